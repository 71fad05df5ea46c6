//! Netlink messages and attributes for those families that no crate of ours knows: nfnetlink and generic netlink.
//!
//! ```text
//!  16 bits length │ 16 bits type (2 bits flags) │ value │ padding to 4 bytes │ next attribute …
//! ```
//!
//! Numbers and bytes only; what they mean is the business of those who ask.

use std::convert::Infallible;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use super::ALIGNMENT;

/// Bytes before an attribute's value.
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// The attribute holds attributes (`linux/netlink.h`).
const NLA_F_NESTED: u16 = 1 << 15;
/// Bits of an attribute's type that name it.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A message as it stands behind the netlink header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// The family's own header, then attributes.
    pub(super) bytes: Vec<u8>,
}

impl Raw {
    /// A message of a header without attributes yet; the header's length has to be a multiple of four.
    pub(super) fn new(kind: u16, header: &[u8]) -> Self {
        debug_assert!(header.len().is_multiple_of(ALIGNMENT));
        Self { kind, bytes: header.to_vec() }
    }

    /// With one more attribute. Values longer than an attribute may be do not occur: all are ours.
    pub(super) fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        push(&mut self.bytes, attribute, value);
        self
    }

    /// The attributes behind a header of this length.
    pub(super) fn attributes(&self, header_len: usize) -> Attributes<'_> {
        Attributes(self.bytes.get(header_len..).unwrap_or_default())
    }
}

/// Appends an attribute.
pub(super) fn push(bytes: &mut Vec<u8>, attribute: u16, value: &[u8]) {
    let len = (ATTRIBUTE_HEADER_LEN + value.len()) as u16;
    bytes.extend(len.to_ne_bytes());
    bytes.extend(attribute.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

/// Appends an attribute that holds others.
pub(super) fn push_nested(bytes: &mut Vec<u8>, attribute: u16, inside: &[u8]) {
    push(bytes, attribute | NLA_F_NESTED, inside);
}

/// The attributes of a message or of another attribute. What is cut off ends them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this type.
    pub(super) fn value(self, attribute: u16) -> Option<&'a [u8]> {
        { self }.find(|(kind, _)| *kind == attribute).map(|(_, value)| value)
    }

    /// The attributes inside the first attribute of this type.
    pub(super) fn nested(self, attribute: u16) -> Option<Self> {
        self.value(attribute).map(Self)
    }

    /// A string, without its terminator.
    pub(super) fn text(self, attribute: u16) -> Option<String> {
        let value = self.value(attribute)?;
        let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// A number of 32 bits in the host's order.
    pub(super) fn u32(self, attribute: u16) -> Option<u32> {
        self.value(attribute)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    /// A number of 64 bits in the host's order.
    pub(super) fn u64(self, attribute: u16) -> Option<u64> {
        self.value(attribute)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    /// A number of 32 bits in network order.
    pub(super) fn be32(self, attribute: u16) -> Option<u32> {
        self.value(attribute)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk()?;
        let (kind, _) = rest.split_first_chunk()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let value = self.0.get(ATTRIBUTE_HEADER_LEN..len)?;
        self.0 = self.0.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & NLA_TYPE_MASK, value))
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, bytes: payload.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut inside = vec![];
        push(&mut inside, 3, &7u32.to_be_bytes());
        let mut raw = Raw::new(9, &[0; 4]).with(1, b"va\0").with(2, &5u64.to_ne_bytes());
        push_nested(&mut raw.bytes, 4, &inside);
        let raw = raw.with(5, &[1]);
        assert_eq!(raw.bytes.len() % ALIGNMENT, 0);
        let attributes = raw.attributes(4);
        assert_eq!(attributes.text(1).as_deref(), Some("va"));
        assert_eq!((attributes.u64(2), attributes.u32(2).is_some(), attributes.u64(1)), (Some(5), true, None));
        assert_eq!(attributes.nested(4).and_then(|nested| nested.be32(3)), Some(7));
        assert_eq!(attributes.value(6), None);
        assert_eq!(attributes.count(), 4);
    }

    #[test]
    fn attributes_that_are_cut_off_end_the_list() {
        let raw = Raw::new(9, &[]).with(1, &[1, 2, 3, 4]).with(2, &[5]);
        assert_eq!(Attributes(&raw.bytes).count(), 2);
        for (len, count) in [(0, 0), (3, 0), (4, 0), (7, 0), (8, 1), (11, 1), (12, 1), (13, 2)] {
            assert_eq!(Attributes(&raw.bytes[..len]).count(), count, "{len}");
        }
        // A length below that of the header itself.
        assert_eq!(Attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(raw.attributes(1000).count(), 0);
    }
}
