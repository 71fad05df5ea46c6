//! What the values of records say, kind by kind. Values of other kinds are not known here.
//!
//! ```text
//!  node         count, endpoint … (at most 16) │ count, anchor … (at most 8)
//!  service      label: len, "_http._tcp" │ port │ count, text: len, bytes … (at most 8, each at most 255)
//!  revocations  version │ hash (32) │ size
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::place::Contact;
use crate::codec::{self, DecodeError};

/// Longest value.
pub const VALUE_LEN_MAX: usize = 4096;

/// Why a value is none of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// It does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// More of something than is read.
    #[error("{count} {what}, at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are read.
        max: usize,
    },
    /// The label of a service is not of the form `_name._tcp` or `_name._udp`, in lower case (RFC 6335 §5.1, RFC 6763 §4.1.2).
    #[error("the label of a service is not of the form \"_name._tcp\"")]
    Label,
    /// A text is longer than DNS can say (RFC 1035 §3.3).
    #[error("a text of {0} bytes, at most {max}", max = ServiceValue::TEXT_LEN_MAX)]
    TextLen(usize),
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), ValueError> {
    if count > max { Err(ValueError::TooMany { what, count, max }) } else { Ok(()) }
}

/// What a [`Kind::Node`](super::record::Kind::Node) record says: how its signer is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeValue {
    /// Addresses at which it is dialled, the best first.
    pub endpoints: Vec<SocketAddr>,
    /// Servers that it keeps contact with: the way to one that is not reached from everywhere.
    pub anchors: Vec<Contact>,
}

impl NodeValue {
    /// Addresses that are read, and anchors.
    pub const ENDPOINTS_MAX: usize = 16;
    /// Anchors that are read.
    pub const ANCHORS_MAX: usize = 8;

    /// As the value of a record.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads the value of a record.
    ///
    /// # Errors
    /// [`ValueError`]: of another form, or with more addresses than are read.
    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let read: Self = codec::decode(value, VALUE_LEN_MAX)?;
        at_most("endpoints", read.endpoints.len(), Self::ENDPOINTS_MAX)?;
        at_most("anchors", read.anchors.len(), Self::ANCHORS_MAX)?;
        Ok(read)
    }
}

/// What a [`Kind::Service`](super::record::Kind::Service) record says: where a service of its signer is. The label stands in it, since the place of
/// the record follows from that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceValue {
    /// As in DNS: `_http._tcp`.
    pub label: String,
    /// Where it listens, at the overlay address of the member; 0: it is not offered any more.
    pub port: u16,
    /// What else is to be known of it (RFC 6763 §6).
    pub texts: Vec<Vec<u8>>,
}

impl ServiceValue {
    /// Texts that are read.
    pub const TEXTS_MAX: usize = 8;
    /// Bytes of one.
    pub const TEXT_LEN_MAX: usize = 255;
    /// Characters of the name within a label (RFC 6335 §5.1).
    pub const NAME_LEN_MAX: usize = 15;

    /// As the value of a record.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads the value of a record.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let read: Self = codec::decode(value, VALUE_LEN_MAX)?;
        read.check()?;
        Ok(read)
    }

    /// Whether others would read it.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn check(&self) -> Result<(), ValueError> {
        if !is_label(&self.label) {
            return Err(ValueError::Label);
        }
        at_most("texts", self.texts.len(), Self::TEXTS_MAX)?;
        match self.texts.iter().map(Vec::len).find(|len| *len > Self::TEXT_LEN_MAX) {
            Some(len) => Err(ValueError::TextLen(len)),
            None => Ok(()),
        }
    }
}

/// Lower case only: DNS takes no notice of case, and a place is a hash.
fn is_label(label: &str) -> bool {
    let name = label.strip_prefix('_').and_then(|rest| rest.strip_suffix("._tcp").or(rest.strip_suffix("._udp")));
    let Some(name) = name else { return false };
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=ServiceValue::NAME_LEN_MAX).contains(&name.len())
        && name.bytes().all(is_known)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !(name.starts_with('-') || name.ends_with('-') || name.contains("--"))
}

/// What a [`Kind::Revocations`](super::record::Kind::Revocations) record says: which revocation lists its signer, an issuer's node, holds. The lists
/// themselves go from member to member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationsValue {
    /// Of all lists, added up.
    pub version: u64,
    /// Digest of signers and versions, as members tell each other.
    pub hash: [u8; 32],
    /// Their bytes.
    pub size: u32,
}

impl RevocationsValue {
    /// As the value of a record.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads the value of a record.
    ///
    /// # Errors
    /// [`ValueError::Decode`].
    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        Ok(codec::decode(value, VALUE_LEN_MAX)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::contact;
    use super::*;
    use crate::pki::id::NodeId;

    fn service(label: &str, texts: Vec<Vec<u8>>) -> ServiceValue {
        ServiceValue { label: label.into(), port: 80, texts }
    }

    #[test]
    fn values_are_read_as_they_were_written() {
        let node = NodeValue {
            endpoints: vec!["198.51.100.7:4646".parse().unwrap(); NodeValue::ENDPOINTS_MAX],
            anchors: vec![contact(NodeId([7; 32]), 1); NodeValue::ANCHORS_MAX],
        };
        assert_eq!(NodeValue::decode(&node.encode()), Ok(node.clone()));
        let texts = vec![vec![b'x'; ServiceValue::TEXT_LEN_MAX]; ServiceValue::TEXTS_MAX];
        let service = service("_http._tcp", texts);
        assert_eq!(ServiceValue::decode(&service.encode()), Ok(service.clone()));
        assert!(service.encode().len() <= VALUE_LEN_MAX);
        let revocations = RevocationsValue { version: u64::MAX, hash: [7; 32], size: u32::MAX };
        assert_eq!(RevocationsValue::decode(&revocations.encode()), Ok(revocations));
        assert!(RevocationsValue::decode(&[&revocations.encode()[..], &[0]].concat()).is_err());
    }

    /// As the page of formats shows it.
    #[test]
    fn a_service_and_a_list_have_these_bytes() {
        let bytes = service("_a._tcp", vec![b"k=v".to_vec()]).encode();
        assert_eq!(bytes, b"\x07_a._tcp\x50\x01\x03k=v");
        let list = RevocationsValue { version: 3, hash: [9; 32], size: 300 }.encode();
        assert_eq!((&list[..2], &list[33..]), (&[3, 9][..], &[0xac, 0x02][..]));
    }

    #[test]
    fn what_is_beyond_its_bounds_is_refused() {
        let judged = |value: ServiceValue| ServiceValue::decode(&value.encode());
        let one_more = vec![vec![]; ServiceValue::TEXTS_MAX + 1];
        let (what, max) = ("texts", ServiceValue::TEXTS_MAX);
        assert_eq!(judged(service("_a._tcp", one_more)), Err(ValueError::TooMany { what, count: max + 1, max }));
        let long = vec![vec![0; ServiceValue::TEXT_LEN_MAX + 1]];
        assert_eq!(judged(service("_a._tcp", long)), Err(ValueError::TextLen(ServiceValue::TEXT_LEN_MAX + 1)));
        let many = NodeValue { endpoints: vec!["192.0.2.1:9".parse().unwrap(); 17], anchors: vec![] };
        let refused = ValueError::TooMany { what: "endpoints", count: 17, max: 16 };
        assert_eq!(NodeValue::decode(&many.encode()), Err(refused));
    }

    #[test]
    fn a_label_is_one_service_name_and_a_transport_in_lower_case() {
        let longest = format!("_{}._udp", "a".repeat(ServiceValue::NAME_LEN_MAX));
        for good in ["_http._tcp", "_dns-sd._udp", "_9p._tcp", &longest] {
            assert!(is_label(good), "{good}");
        }
        let too_long = format!("_{}._udp", "a".repeat(ServiceValue::NAME_LEN_MAX + 1));
        let bad =
            ["", "http._tcp", "_http", "_http._sctp", "_HTTP._tcp", "_._tcp", "_80._tcp", "_a.b._tcp", "_-a._tcp"];
        for bad in bad.into_iter().chain(["_a-._tcp", "_a--b._tcp", "_a_b._tcp", "_ä._tcp", &too_long]) {
            assert_eq!(ServiceValue::decode(&service(bad, vec![]).encode()), Err(ValueError::Label), "{bad}");
        }
    }
}
