//! Commands that look at files only, and the reading and writing of files for the others.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use super::arguments::{Arguments, ConfigCommand};
use super::{Failure, Outcome, failed, passphrase, remote};
use crate::config::default_route_interface;
use crate::issuer::BACKUP_LEN_MAX;
use crate::pki::bundle::{self, SignedBundle};
use crate::pki::key::PrivateKey;
use crate::state_directory;

/// Longest file that is read: the longest backup.
const FILE_LEN_MAX: u64 = BACKUP_LEN_MAX as u64;

pub(super) fn config(arguments: &Arguments, command: &ConfigCommand) -> Outcome {
    let ConfigCommand::Check = command;
    let config = arguments.configuration().map_err(failed)?;
    let route = |path| fs::read_to_string(path).unwrap_or_default();
    let found = default_route_interface(&route("/proc/net/route"), &route("/proc/net/ipv6_route"));
    let wan = match (&config.wan.interface, &found) {
        (Some(name), _) => name.clone(),
        (None, Some(found)) => format!("{found}, that of the default route"),
        (None, None) => "none: there is no default route, so set wan.interface".into(),
    };
    if arguments.json {
        return remote::json(&serde_json::json!({
            "instance": config.node.instance.to_string(),
            "state_directory": config.node.state_directory,
            "runtime_directory": config.node.runtime_directory,
            "socket": config.api.socket,
            "wan_interface": config.wan.interface.or(found),
            "port": config.wan.port,
            "tun": config.tun.name,
            "table": config.routing.table,
            "mark": config.routing.mark,
        }));
    }
    let (node, routing) = (&config.node, &config.routing);
    super::print(&format!(
        "Nothing is wrong with it.\n\
         instance   {}\n\
         state      {}\n\
         API        {}\n\
         WAN        {wan}, UDP port {}\n\
         TUN        {}, table {}, mark {:#x}\n",
        node.instance,
        node.state_directory.display(),
        config.api.socket.display(),
        config.wan.port,
        config.tun.name,
        routing.table,
        routing.mark,
    ))
}

/// What is wrong with a file.
pub(super) fn named(path: &Path, why: impl Display) -> Failure {
    failed(format!("{}: {why}", path.display()))
}

/// Reads a file; `-` is the standard input.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let named = |error: io::Error| named(path, error);
    let whole: Box<dyn io::Read> =
        if path.as_os_str() == "-" { Box::new(io::stdin().lock()) } else { Box::new(File::open(path).map_err(named)?) };
    bounded(whole, FILE_LEN_MAX).map_err(named)
}

/// Reads a file of text.
pub(super) fn text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?).map_err(|error| named(path, format_args!("{error}: save it as UTF-8")))
}

/// Reads the versions of a trust bundle, as `weir ca bundle` and ceremonies write them.
pub(super) fn bundle(path: &Path) -> Result<Vec<SignedBundle>, Failure> {
    bundle::text::read(&read(path)?).map_err(|error| named(path, error))
}

/// Reads a key, and opens it with the passphrase in the other file, or asks for it.
pub(super) fn private_key(path: &Path, whose: &str, passphrase_file: Option<&Path>) -> Result<PrivateKey, Failure> {
    let pem = text(path)?;
    let passphrase = passphrase::known(whose, passphrase_file).map_err(failed)?;
    PrivateKey::from_encrypted_pem(&pem, &passphrase).map_err(|error| named(path, error))
}

/// All that there is to read, or an error that says how much it may be.
pub(super) fn bounded(from: impl io::Read, len_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(len_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max {
        let message = format!("more than {len_max} bytes: is it the right file?");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Writes a file in place of the one that is there: all of it or nothing.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Outcome {
    let unfinished = path.with_added_extension("new");
    let written = File::create(&unfinished).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&unfinished, path)).map_err(|error| named(path, error))
}

/// Writes a new file that only its owner may read.
pub(super) fn write_secret(path: &Path, bytes: &[u8]) -> Outcome {
    state_directory::write_secret(path, bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_meets_the_limit_and_is_told_it() {
        assert_eq!(bounded(&b"abc"[..], 3).unwrap(), b"abc");
        assert!(bounded(&b"abcd"[..], 3).unwrap_err().to_string().contains("more than 3 bytes"));
        assert!(bounded(io::repeat(b'a'), 100).is_err());
    }
}
