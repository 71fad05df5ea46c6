//! Device features, rings and channels, as `ethtool -k`, `-g` and `-l` show them (`linux/ethtool_netlink.h`).

use std::collections::BTreeSet;

use super::generic::GENL_HEADER_LEN;
use super::raw::{Attributes, push, push_nested};
use super::{Error, Failure, Generic};

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_MSG_RINGS_GET: u8 = 15;
const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
/// The header is the first attribute of every message.
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;
const ETHTOOL_A_RINGS_RX_MAX: u16 = 2;
const ETHTOOL_A_RINGS_TX_MAX: u16 = 5;
const ETHTOOL_A_RINGS_RX: u16 = 6;
const ETHTOOL_A_RINGS_TX: u16 = 9;
const ETHTOOL_A_CHANNELS_COMBINED_MAX: u16 = 5;
const ETHTOOL_A_CHANNELS_RX: u16 = 6;
const ETHTOOL_A_CHANNELS_COMBINED: u16 = 9;

/// Merges UDP flows at ingress even when nobody here listens for them, so that they reach a TUN as superpackets.
pub const RX_UDP_GRO_FORWARDING: &str = "rx-udp-gro-forwarding";
/// Merges by chaining whole packets; a TUN takes such a chain apart again, and it wins over [`RX_UDP_GRO_FORWARDING`].
pub const RX_GRO_LIST: &str = "rx-gro-list";
/// Merges TCP flows at ingress.
pub const RX_GRO: &str = "rx-gro";
/// Cuts superpackets at egress, in the stack.
pub const TX_GSO: &str = "tx-generic-segmentation";
/// Cuts TCP superpackets in the device.
pub const TX_TSO: &str = "tx-tcp-segmentation";
/// Cuts UDP superpackets in the device.
pub const TX_USO: &str = "tx-udp-segmentation";

/// The features of a device, by the kernel's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Those that are on.
    pub active: BTreeSet<String>,
    /// Those that may be changed.
    pub changeable: BTreeSet<String>,
}

/// How many entries or queues there are, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// As it is set.
    pub now: u32,
    /// The most that the device takes.
    pub max: u32,
}

/// Descriptor rings of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Receive descriptors of a queue.
    pub rx: Size,
    /// Transmit descriptors of a queue.
    pub tx: Size,
}

impl Generic {
    /// The features of an interface; `None` when the kernel or the device has no answer.
    ///
    /// # Errors
    /// [`Error::Refused`], with ENODEV when there is no such interface.
    pub fn features(&mut self, interface: &str) -> Result<Option<Features>, Error> {
        let answer = self.ethtool(ETHTOOL_MSG_FEATURES_GET, interface, &[], "read the features")?;
        Ok(answer.map(|bytes| {
            let attributes = Attributes(&bytes);
            Features {
                active: names(attributes.nested(ETHTOOL_A_FEATURES_ACTIVE)),
                changeable: names(attributes.nested(ETHTOOL_A_FEATURES_HW)),
            }
        }))
    }

    /// Turns a feature on or off. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// [`Error::Refused`], with EINVAL or EOPNOTSUPP when the device does not know the feature.
    pub fn set_feature(&mut self, interface: &str, feature: &str, on: bool) -> Result<(), Error> {
        let mut bit = vec![];
        push(&mut bit, ETHTOOL_A_BITSET_BIT_NAME, &[feature.as_bytes(), b"\0"].concat());
        if on {
            push(&mut bit, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
        }
        let (mut bits, mut set, mut wanted) = (vec![], vec![], vec![]);
        push_nested(&mut bits, ETHTOOL_A_BITSET_BITS_BIT, &bit);
        push_nested(&mut set, ETHTOOL_A_BITSET_BITS, &bits);
        push_nested(&mut wanted, ETHTOOL_A_FEATURES_WANTED, &set);
        let action = if on { format!("turn on {feature}") } else { format!("turn off {feature}") };
        self.ethtool(ETHTOOL_MSG_FEATURES_SET, interface, &wanted, &action)?;
        match self.features(interface)? {
            Some(features) if features.active.contains(feature) == on => Ok(()),
            _ => {
                Err(Failure::Refused { errno: libc::EOPNOTSUPP, said: None }.during(format!("{action} of {interface}")))
            }
        }
    }

    /// The rings of an interface; `None` when it has none, as virtual ones.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn rings(&mut self, interface: &str) -> Result<Option<Rings>, Error> {
        let answer = self.ethtool(ETHTOOL_MSG_RINGS_GET, interface, &[], "read the ring sizes")?;
        Ok(answer.and_then(|bytes| {
            let size = |now, max| size(&bytes, now, max);
            let rx = size(ETHTOOL_A_RINGS_RX, ETHTOOL_A_RINGS_RX_MAX)?;
            Some(Rings { rx, tx: size(ETHTOOL_A_RINGS_TX, ETHTOOL_A_RINGS_TX_MAX)? })
        }))
    }

    /// Combined channels of an interface: pairs of a receive and a transmit queue; `None` when it has none.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn channels(&mut self, interface: &str) -> Result<Option<Size>, Error> {
        let answer = self.ethtool(ETHTOOL_MSG_CHANNELS_GET, interface, &[], "read the channels")?;
        Ok(answer.and_then(|bytes| size(&bytes, ETHTOOL_A_CHANNELS_COMBINED, ETHTOOL_A_CHANNELS_COMBINED_MAX)))
    }

    /// Receive queues of an interface that are in use, alone and combined: those that frames may come by; `None` when the device does not say.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn receive_queues(&mut self, interface: &str) -> Result<Option<u32>, Error> {
        let answer = self.ethtool(ETHTOOL_MSG_CHANNELS_GET, interface, &[], "read the channels")?;
        Ok(answer.and_then(|bytes| {
            let attributes = Attributes(&bytes);
            let counts = [ETHTOOL_A_CHANNELS_RX, ETHTOOL_A_CHANNELS_COMBINED].map(|count| attributes.u32(count));
            let total = counts.into_iter().flatten().fold(0, u32::saturating_add);
            (total > 0).then_some(total)
        }))
    }

    /// Sends one request of the family `ethtool` and returns the attributes of the answer.
    fn ethtool(
        &mut self,
        command: u8,
        interface: &str,
        attributes: &[u8],
        action: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Some(family) = self.family("ethtool")? else { return Ok(None) };
        let (mut header, mut all) = (vec![], vec![]);
        push(&mut header, ETHTOOL_A_HEADER_DEV_NAME, &[interface.as_bytes(), b"\0"].concat());
        push_nested(&mut all, ETHTOOL_A_HEADER, &header);
        all.extend(attributes);
        let answer =
            self.ask(family, command, &all).map_err(|failure| failure.during(format!("{action} of {interface}")))?;
        Ok(answer.map(|answer| answer.attributes(GENL_HEADER_LEN).0.to_vec()))
    }
}

fn size(bytes: &[u8], now: u16, max: u16) -> Option<Size> {
    let attributes = Attributes(bytes);
    let max = attributes.u32(max).filter(|max| *max > 0)?;
    Some(Size { now: attributes.u32(now)?, max })
}

/// The names of the bits that a bitset without mask lists.
fn names(bitset: Option<Attributes<'_>>) -> BTreeSet<String> {
    let bits = bitset.and_then(|bitset| bitset.nested(ETHTOOL_A_BITSET_BITS));
    bits.into_iter()
        .flatten()
        .filter(|(kind, _)| *kind == ETHTOOL_A_BITSET_BITS_BIT)
        .filter_map(|(_, bit)| Attributes(bit).text(ETHTOOL_A_BITSET_BIT_NAME))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Namespace;
    use super::*;

    #[test]
    fn features_are_read_and_set_and_what_cannot_be_is_refused() {
        let _namespace = Namespace::with_veth();
        let mut generic = Generic::open().unwrap();
        let before = generic.features("va").unwrap().expect("this kernel answers");
        assert!(before.active.contains(TX_GSO) && before.changeable.contains(RX_UDP_GRO_FORWARDING), "{before:?}");
        assert!(!before.active.contains(RX_UDP_GRO_FORWARDING));
        for on in [true, true, false, false] {
            generic.set_feature("va", RX_UDP_GRO_FORWARDING, on).unwrap();
            let now = generic.features("va").unwrap().unwrap();
            assert_eq!(now.active.contains(RX_UDP_GRO_FORWARDING), on);
        }
        assert_eq!(generic.features("va").unwrap().unwrap(), before);
        let unknown = generic.set_feature("va", "no-such-feature", true).unwrap_err().to_string();
        assert!(unknown.contains("turn on no-such-feature of va"), "{unknown}");
        assert!(generic.set_feature("va", "netns-local", true).is_err());
        assert!(generic.features("eth77").is_err());
    }

    #[test]
    fn channels_and_rings_are_told_where_there_are_any() {
        let _namespace = Namespace::with_veth();
        let mut generic = Generic::open().unwrap();
        assert_eq!(generic.rings("va").unwrap(), None);
        let channels = generic.channels("va").unwrap();
        assert!(channels.is_none_or(|channels| channels.now <= channels.max), "{channels:?}");
    }
}
