//! How a user-space WireGuard is configured: the `set=1` request of its socket (<https://www.wireguard.com/xplatform/#configuration-protocol>).
//!
//! Two ends with fixed addresses and one peer each is all that is needed here, so `wg` is not.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::rand;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_LEN_MAX: usize = 4096;

/// A pair of X25519 keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The secret one.
    pub private: [u8; 32],
    /// What the other end knows.
    pub public: [u8; 32],
}

impl KeyPair {
    /// A fresh pair.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn random() -> io::Result<Self> {
        let mut private = [0; 32];
        rand::fill(&mut private).map_err(|_| io::Error::other("no random numbers"))?;
        Self::of(private)
    }

    /// The pair of a secret key; its fixed bits are set (RFC 7748 §5).
    fn of(mut private: [u8; 32]) -> io::Result<Self> {
        private[0] &= 248;
        private[31] = private[31] & 127 | 64;
        let refused = || io::Error::other("not a key of X25519");
        let key = PrivateKey::from_private_key(&X25519, &private).map_err(|_| refused())?;
        let public = key.compute_public_key().map_err(|_| refused())?;
        Ok(Self { private, public: public.as_ref().try_into().map_err(|_| refused())? })
    }
}

/// One end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface<'a> {
    /// Our secret key.
    pub private: &'a [u8; 32],
    /// Our UDP port.
    pub listen_port: u16,
    /// The peer's public key.
    pub peer: &'a [u8; 32],
    /// Where the peer is.
    pub endpoint: SocketAddr,
    /// What is reached through it.
    pub allowed: &'a [(IpAddr, u8)],
}

impl Interface<'_> {
    /// The request that sets everything and forgets what was set before.
    pub fn request(&self) -> String {
        let hex = |key: &[u8; 32]| key.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let mut text = format!(
            "set=1\nprivate_key={}\nlisten_port={}\nreplace_peers=true\npublic_key={}\nendpoint={}\nreplace_allowed_ips=true\n",
            hex(self.private),
            self.listen_port,
            hex(self.peer),
            self.endpoint,
        );
        for (address, len) in self.allowed {
            // Writing to a string does not fail.
            let _ = writeln!(text, "allowed_ip={address}/{len}");
        }
        text + "\n"
    }

    /// Sends the request and waits for its answer.
    ///
    /// # Errors
    /// What the socket says, or the errno that the implementation answered with.
    pub fn apply(&self, socket: &Path) -> io::Result<()> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(self.request().as_bytes())?;
        let mut answer = Vec::new();
        let mut part = [0; 256];
        // An answer ends with an empty line; some implementations leave the connection open after it.
        while !answer.ends_with(b"\n\n") && answer.len() < ANSWER_LEN_MAX {
            match stream.read(&mut part)? {
                0 => break,
                len => answer.extend_from_slice(&part[..len]),
            }
        }
        verdict(&String::from_utf8_lossy(&answer))
    }
}

/// `errno=0` is success.
fn verdict(answer: &str) -> io::Result<()> {
    match answer.lines().find_map(|line| line.strip_prefix("errno=")).map(str::parse::<i32>) {
        Some(Ok(0)) => Ok(()),
        Some(Ok(errno)) => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("no errno in the answer {answer:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_is_that_of_rfc_7748() {
        // Alice's keys of RFC 7748 §6.1.
        let hex = |text: &str| -> [u8; 32] {
            std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        };
        let alice = KeyPair::of(hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")).unwrap();
        assert_eq!(alice.public, hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
        assert_ne!(KeyPair::random().unwrap(), KeyPair::random().unwrap());
    }

    #[test]
    fn request_is_what_the_protocol_page_shows() {
        let interface = Interface {
            private: &[0x0a; 32],
            listen_port: 51820,
            peer: &[0xb0; 32],
            endpoint: "192.0.2.2:51820".parse().unwrap(),
            allowed: &[("10.2.0.0".parse().unwrap(), 24), ("fd02::".parse().unwrap(), 64)],
        };
        let expected = format!(
            "set=1\nprivate_key={}\nlisten_port=51820\nreplace_peers=true\npublic_key={}\nendpoint=192.0.2.2:51820\n\
             replace_allowed_ips=true\nallowed_ip=10.2.0.0/24\nallowed_ip=fd02::/64\n\n",
            "0a".repeat(32),
            "b0".repeat(32)
        );
        assert_eq!(interface.request(), expected);
        let v6 = Interface { endpoint: "[2001:db8::2]:1".parse().unwrap(), ..interface };
        assert!(v6.request().contains("endpoint=[2001:db8::2]:1\n"));
    }

    #[test]
    fn only_errno_zero_is_success() {
        assert!(verdict("errno=0\n\n").is_ok());
        assert_eq!(verdict("errno=-22\n\n").unwrap_err().raw_os_error(), Some(22));
        assert_eq!(verdict("errno=22\n\n").unwrap_err().raw_os_error(), Some(22));
        assert!(verdict("").is_err());
        assert!(verdict("errno=x\n\n").is_err());
    }
}
