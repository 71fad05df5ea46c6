//! Names that nobody can choose: hashes of what they name.
//!
//! ```text
//!  node id = SHA-256( "weir-node-1" ‖ network id (32) ‖ identity public key (32) ‖ nonce (16) )
//! ```
//!
//! The issuer draws the nonce after it has seen the key, so a member cannot grind an id next to one that it wants to be near of.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use aws_lc_rs::digest;
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use weir_dataplane::api::Prefix;

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no {1}")]
pub struct ParseIdError(String, &'static str);

/// SHA-256 of a domain and parts, each of a fixed length or the last.
pub(crate) fn sha256(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(domain.as_bytes());
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal, $encoding:expr, $case:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$encoding.encode(&self.0).to_ascii_lowercase())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let decoded = $encoding.decode(text.trim().$case().as_bytes()).ok();
                let bytes = decoded.and_then(|bytes| bytes.try_into().ok());
                bytes.map(Self).ok_or_else(|| ParseIdError(text.to_owned(), $what))
            }
        }
    };
}

id!(
    /// A network: the hash of the first version of its trust bundle.
    NetworkId, 32, "network id", BASE32_NOPAD, to_ascii_uppercase
);
id!(
    /// A member, for as long as its membership lives.
    NodeId, 32, "node id", BASE32_NOPAD, to_ascii_uppercase
);
id!(
    /// A signing key: the first 20 bytes of SHA-256 over its public key.
    KeyId, 20, "key id", HEXLOWER, to_ascii_lowercase
);
id!(
    /// An invitation.
    InviteId, 8, "invite id", HEXLOWER, to_ascii_lowercase
);
id!(
    /// What an issuer adds to a node id, so that nobody can choose one.
    Nonce, 16, "nonce", HEXLOWER, to_ascii_lowercase
);

/// Characters of [`NodeId::short`] and [`NetworkId::short`].
const SHORT_LEN: usize = 8;

impl NodeId {
    /// The id of this identity key in this network under this nonce.
    pub fn derive(network: NetworkId, identity: &[u8; 32], nonce: Nonce) -> Self {
        Self(sha256("weir-node-1", &[&network.0, identity, &nonce.0]))
    }

    /// Enough of it for a person to tell members apart.
    pub fn short(self) -> String {
        self.to_string()[..SHORT_LEN].to_owned()
    }
}

impl NetworkId {
    /// Enough of it for a person to tell networks apart.
    pub fn short(self) -> String {
        self.to_string()[..SHORT_LEN].to_owned()
    }
}

impl KeyId {
    /// The id of a public key.
    pub fn of(public: &[u8; 32]) -> Self {
        let hash = sha256("", &[public]);
        let mut id = Self::default();
        id.0.copy_from_slice(&hash[..20]);
        id
    }
}

/// Bits of a network's prefix in the overlay's own IPv6 addresses (RFC 4193 §3.1).
const NETWORK_BITS: u8 = 48;

fn network_octets(network: NetworkId) -> [u8; 16] {
    let hash = sha256("weir-net-48", &[&network.0]);
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&hash[..5]);
    octets
}

/// The network's own IPv6 prefix, a /48 of unique local addresses (RFC 4193).
pub fn overlay_network(network: NetworkId) -> Prefix {
    // The bits after the prefix are zero, so it is one.
    Prefix::new(network_octets(network).into(), NETWORK_BITS).expect("a /48 with nothing behind it")
}

/// A member's own address: the network's /48 and the first 80 bits of the node id.
pub fn overlay_address(network: NetworkId, node: NodeId) -> Ipv6Addr {
    let mut octets = network_octets(network);
    octets[6..].copy_from_slice(&node.0[..10]);
    octets.into()
}

/// Names the session of two members, the same on both sides.
pub fn session_id(one: NodeId, other: NodeId) -> u64 {
    let (lower, higher) = if one < other { (one, other) } else { (other, one) };
    let hash = sha256("weir-session-1", &[&lower.0, &higher.0]);
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    #[test]
    fn ids_are_read_back_from_their_text_in_either_case() {
        let id = NodeId::derive(NetworkId([1; 32]), &[2; 32], Nonce([3; 16]));
        let text = id.to_string();
        assert_eq!((text.len(), text.parse()), (52, Ok(id)));
        assert_eq!(text.to_ascii_uppercase().parse(), Ok(id));
        let key = KeyId([0xab; 20]);
        assert_eq!((key.to_string().len(), key.to_string().to_ascii_uppercase().parse()), (40, Ok(key)));
        for wrong in ["", "a", &text[1..], &format!("{text}a"), &text.replace(&text[..1], "1")] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_part_changes_a_node_id() {
        let base = NodeId::derive(NetworkId([1; 32]), &[2; 32], Nonce([3; 16]));
        assert_ne!(base, NodeId::derive(NetworkId([0; 32]), &[2; 32], Nonce([3; 16])));
        assert_ne!(base, NodeId::derive(NetworkId([1; 32]), &[0; 32], Nonce([3; 16])));
        assert_ne!(base, NodeId::derive(NetworkId([1; 32]), &[2; 32], Nonce([0; 16])));
    }

    #[test]
    fn an_address_lies_in_its_networks_prefix() {
        let (network, other) = (NetworkId([7; 32]), NetworkId([8; 32]));
        let address = overlay_address(network, node(9));
        assert!(overlay_network(network).contains(address.into()));
        assert!(!overlay_network(other).contains(address.into()));
        assert_eq!(address.octets()[0], 0xfd);
        assert_eq!(address.octets()[6..], [9; 10]);
    }

    #[test]
    fn both_sides_name_a_session_alike() {
        assert_eq!(session_id(node(1), node(2)), session_id(node(2), node(1)));
        assert_ne!(session_id(node(1), node(2)), session_id(node(1), node(3)));
    }
}
