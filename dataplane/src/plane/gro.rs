//! `rx-udp-gro-forwarding` on the LAN interfaces while the plane runs: the kernel merges small UDP packets before the TUN, so they travel as
//! superpackets. Whatever was off before is off again afterwards.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::PathBuf;

use crate::io::netlink::features::RX_UDP_GRO_FORWARDING;
use crate::io::netlink::{Error, Generic};

/// Longest record in bytes that is read: more than the names of all LAN interfaces that there can be.
const RECORD_LEN_MAX: u64 = 4096;

/// The interfaces on which the feature was turned on here. Dropping it turns it off again. One that is killed leaves their names in a
/// record for the next one, or the feature would look as if it had been on before.
#[derive(Debug)]
pub(super) struct GroForwarding {
    generic: Generic,
    record: PathBuf,
    turned_on: Vec<String>,
}

impl GroForwarding {
    /// Takes over what a killed predecessor left in the file `record`, which need not be there. Nothing is changed yet.
    pub(super) fn open(record: PathBuf) -> Result<Self, Error> {
        let mut names = String::new();
        // Without a record there was no predecessor, or it cleaned up.
        if let Ok(file) = File::open(&record) {
            let _ = file.take(RECORD_LEN_MAX).read_to_string(&mut names);
        }
        Ok(Self { generic: Generic::open()?, record, turned_on: names.lines().map(str::to_owned).collect() })
    }

    /// Writes down what is to be turned off should this process be killed.
    fn write_down(&self) {
        let written = match self.turned_on.is_empty() {
            true => fs::remove_file(&self.record).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }),
            false => fs::write(&self.record, self.turned_on.join("\n") + "\n"),
        };
        if let Err(error) = written {
            tracing::warn!("{}: {error}; a daemon that is killed leaves udp gro forwarding on", self.record.display());
        }
    }

    /// Turns the feature on where it is off, and says what became of it. Called again, it does so for interfaces that came since.
    pub(super) fn turn_on(&mut self, interface: &str) -> String {
        let features = match self.generic.features(interface) {
            Ok(Some(features)) => features,
            Ok(None) => return "not known to this kernel".to_owned(),
            Err(error) => return format!("left alone: {error}"),
        };
        if features.active.contains(RX_UDP_GRO_FORWARDING) {
            let ours = self.turned_on.iter().any(|name| name == interface);
            return if ours { "on while the plane runs" } else { "on before the plane started" }.to_owned();
        }
        if !features.changeable.contains(RX_UDP_GRO_FORWARDING) {
            return "the device cannot".to_owned();
        }
        // First on the record: a name too many turns off what is off.
        self.turned_on.retain(|name| name != interface);
        self.turned_on.push(interface.to_owned());
        self.write_down();
        match self.generic.set_feature(interface, RX_UDP_GRO_FORWARDING, true) {
            Ok(()) => "on while the plane runs".to_owned(),
            Err(error) => {
                self.turned_on.retain(|name| name != interface);
                self.write_down();
                format!("left alone: {error}")
            }
        }
    }

    /// Turns the feature off again where [`Self::turn_on`] turned it on. An interface that is gone needs nothing.
    pub(super) fn restore(&mut self) {
        for interface in std::mem::take(&mut self.turned_on) {
            match self.generic.set_feature(&interface, RX_UDP_GRO_FORWARDING, false) {
                Err(error) if error.errno() != Some(libc::ENODEV) => tracing::warn!("{error}"),
                _ => {}
            }
        }
        self.write_down();
    }
}

impl Drop for GroForwarding {
    fn drop(&mut self) {
        self.restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::netlink::testing::{Namespace, ip};

    #[test]
    fn what_was_off_is_off_again_and_what_was_on_stays() {
        let _namespace = Namespace::with_veth();
        let mut generic = Generic::open().unwrap();
        let mut is_on = |name: &str| generic.features(name).unwrap().unwrap().active.contains(RX_UDP_GRO_FORWARDING);
        let mut other = Generic::open().unwrap();
        other.set_feature("vb", RX_UDP_GRO_FORWARDING, true).unwrap();
        let record = std::env::temp_dir().join(format!("weir-gro-{}", std::process::id()));
        let open = || GroForwarding::open(record.clone()).unwrap();
        let mut gro = open();
        for _ in 0..2 {
            assert_eq!(gro.turn_on("va"), "on while the plane runs");
            assert_eq!(gro.turn_on("vb"), "on before the plane started");
            assert!(gro.turn_on("eth77").starts_with("left alone: "));
        }
        assert!(is_on("va") && is_on("vb"));
        // Killed: nothing is dropped. The next one still knows whose it was.
        std::mem::forget(gro);
        let mut gro = open();
        assert_eq!(gro.turn_on("va"), "on while the plane runs");
        assert_eq!(gro.turn_on("vb"), "on before the plane started");
        drop(gro);
        assert!(!is_on("va") && is_on("vb") && !record.exists());
        let mut gro = open();
        gro.turn_on("va");
        ip("link del va");
        gro.restore();
    }
}
