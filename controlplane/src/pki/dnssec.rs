//! DNSSEC (RFC 4033 to 4035) as far as a network signs with it: names of zones, RRsets in canonical form, Ed25519 keys (RFC 8080), and who
//! signs what.
//!
//! ```text
//!  roots, off line ──sign──▶ DNSKEY RRset: roots (SEP) and issuers     with each version of the trust bundle
//!  issuer ──────────sign──▶ SOA, NS, DS of each member, PTR            with each certificate
//!  member ──────────sign──▶ its own zone                               whenever that changes
//! ```
//!
//! Roots and issuers sign with the keys that they have. A signature of DNSSEC begins with the type that it covers, so with a zero byte, one of X.509
//! with 0x30, and all of ours with "weir-": none can be taken for another (docs/decisions/0016).

pub mod delegation;
pub mod key;
pub mod network;
pub mod rrset;

use std::net::Ipv6Addr;

use domain::base::name::NameBuilder;

use super::id::{NetworkId, overlay_network};

/// A domain name in lower case, absolute and not compressed.
pub type Name = domain::base::Name<Vec<u8>>;

/// How long answers may be kept (RFC 1035 §3.2.1), and what was denied (RFC 2308 §5), in seconds. Ours: who is revoked has gone from everywhere after that.
pub const TTL_SECS: u32 = 30;
/// Under which a network's zone stands unless its founder says otherwise: reserved for private use (ICANN, 2024-07-29).
pub const PARENT: &str = "internal";
/// The label of the host that answers, and of all others like it.
pub const SERVER_LABEL: &str = "ns";
/// The interface identifier of the anycast address at which each gateway answers: nobody's id begins with 78 zero bits.
const SERVER_IID: u16 = 53;

/// Why labels make no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name is longer than 255 bytes, or a label of it than 63")]
pub struct LongName;

/// Labels below a name.
///
/// # Errors
/// [`LongName`].
pub fn below<'a>(labels: impl IntoIterator<Item = &'a [u8]>, name: &Name) -> Result<Name, LongName> {
    let mut builder = NameBuilder::new_vec();
    for label in labels {
        builder.append_label(&label.to_ascii_lowercase()).map_err(|_| LongName)?;
    }
    builder.append_origin(name).map_err(|_| LongName)
}

/// The zone of a network: its name below its parent.
///
/// # Errors
/// [`LongName`], also for a parent that is none.
pub fn zone(network_name: &str, parent: &str) -> Result<Name, LongName> {
    let labels = std::iter::once(network_name).chain(parent.split('.').filter(|label| !label.is_empty()));
    below(labels.map(str::as_bytes), &Name::root_vec())
}

fn nibbles(octets: &[u8]) -> impl Iterator<Item = u8> {
    octets.iter().rev().flat_map(|octet| [octet & 0xf, octet >> 4])
}

fn reversed(octets: &[u8]) -> Name {
    let digit = |nibble: u8| [b"0123456789abcdef"[usize::from(nibble)]];
    let digits: Vec<[u8; 1]> = nibbles(octets).map(digit).collect();
    let labels = digits.iter().map(<[u8; 1]>::as_slice).chain([&b"ip6"[..], b"arpa"]);
    below(labels, &Name::root_vec()).expect("at most 34 labels of a nibble")
}

/// The name of an address (RFC 3596 §2.5).
pub fn reverse(address: Ipv6Addr) -> Name {
    reversed(&address.octets())
}

/// The zone of the addresses that members have in the overlay.
pub fn reverse_zone(network: NetworkId) -> Name {
    let Ipv6Octets(octets) = overlay_network(network).address().into();
    reversed(&octets[..6])
}

/// The address of a name that [`reverse`] gives.
pub fn address_of(name: &Name) -> Option<Ipv6Addr> {
    let labels: Vec<&[u8]> = name.iter().map(|label| label.as_slice()).collect();
    let ([digits @ .., b"ip6", b"arpa", b""], 35) = (&labels[..], labels.len()) else { return None };
    let mut octets = [0u8; 16];
    for (at, digit) in digits.iter().rev().enumerate() {
        let [digit] = digit else { return None };
        let value = (*digit as char).to_digit(16)?;
        octets[at / 2] |= (value as u8) << if at % 2 == 0 { 4 } else { 0 };
    }
    Some(octets.into())
}

/// At which address all gateways of a network answer.
pub fn server_address(network: NetworkId) -> Ipv6Addr {
    let Ipv6Octets(mut octets) = overlay_network(network).address().into();
    octets[14..].copy_from_slice(&SERVER_IID.to_be_bytes());
    octets.into()
}

struct Ipv6Octets([u8; 16]);

impl From<std::net::IpAddr> for Ipv6Octets {
    fn from(address: std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V6(v6) => Self(v6.octets()),
            std::net::IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::id::{NodeId, overlay_address};

    #[test]
    fn names_of_zones_and_addresses_are_as_the_rfcs_have_them() {
        let network = NetworkId([0xab; 32]);
        let zone = zone("MyNet", PARENT).unwrap();
        assert_eq!(zone.to_string(), "mynet.internal");
        assert_eq!(below([&b"Site-B"[..]], &zone).unwrap().to_string(), "site-b.mynet.internal");
        assert_eq!(super::zone("mynet", "example.com").unwrap().to_string(), "mynet.example.com");
        let address: Ipv6Addr = "2001:db8::567:89ab".parse().unwrap();
        let name = "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(reverse(address).to_string(), name);
        assert_eq!(address_of(&reverse(address)), Some(address));
        let member = overlay_address(network, NodeId([7; 32]));
        assert!(reverse(member).ends_with(&reverse_zone(network)) && reverse_zone(network).label_count() == 15);
        for none in ["ip6.arpa", "1.0.ip6.arpa", "mynet.internal"] {
            assert_eq!(address_of(&none.parse().unwrap()), None, "{none}");
        }
        let wrong = name.replacen('b', "g", 1);
        assert_eq!(address_of(&wrong.parse().unwrap()), None);
        assert!(reverse(server_address(network)).ends_with(&reverse_zone(network)));
    }

    #[test]
    fn labels_have_their_limits() {
        let root = Name::root_vec();
        assert!(below([&[b'a'; 63][..]], &root).is_ok());
        assert_eq!(below([&[b'a'; 64][..]], &root), Err(LongName));
        assert_eq!(below([&[b'a'; 63][..]; 4], &root), Err(LongName));
        assert_eq!(super::zone("a", "b..c").unwrap().to_string(), "a.b.c");
    }
}
