//! Generic netlink: families by name, and what a device's driver says about XDP (`linux/genetlink.h`, `linux/netdev.h`).

use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::raw::Raw;
use super::{Error, Failure, Netlink};

/// Bytes of `struct genlmsghdr`.
pub(super) const GENL_HEADER_LEN: usize = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// Bits of [`XdpFeatures`] (`enum netdev_xdp_act`).
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_REDIRECT: u64 = 2;
const NETDEV_XDP_ACT_XSK_ZEROCOPY: u64 = 8;
const NETDEV_XDP_ACT_RX_SG: u64 = 32;

/// What a device's driver can do with XDP. A device says it whether or not a program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Whether the driver runs XDP programs itself and redirects frames to AF_XDP sockets.
    pub const fn native(self) -> bool {
        let both = NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT;
        self.0 & both == both
    }

    /// Whether AF_XDP sockets on the device may share their memory with it.
    pub const fn zero_copy(self) -> bool {
        self.0 & NETDEV_XDP_ACT_XSK_ZEROCOPY != 0
    }

    /// Whether XDP programs see frames of more than one buffer.
    pub const fn multi_buffer(self) -> bool {
        self.0 & NETDEV_XDP_ACT_RX_SG != 0
    }
}

/// A socket for generic netlink families.
#[derive(Debug)]
pub struct Generic {
    pub(super) netlink: Netlink,
}

impl Generic {
    /// Opens the socket. Asking needs no privilege.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::open_protocol(NETLINK_GENERIC)? })
    }

    /// The number that the kernel gave to a family; `None` when it has no such family.
    pub(super) fn family(&mut self, name: &str) -> Result<Option<u16>, Error> {
        let name_z = [name.as_bytes(), b"\0"].concat();
        let get = Raw::new(GENL_ID_CTRL, &[CTRL_CMD_GETFAMILY, 1, 0, 0]).with(CTRL_ATTR_FAMILY_NAME, &name_z);
        let mut id = None;
        let asked = self.netlink.request(get, NLM_F_REQUEST, |answer| {
            let value = answer.attributes(GENL_HEADER_LEN).value(CTRL_ATTR_FAMILY_ID);
            id = value.and_then(|value| value.first_chunk()).map(|bytes| u16::from_ne_bytes(*bytes));
        });
        match asked {
            Err(failure) if failure.is(&[libc::ENOENT]) => Ok(None),
            other => other.map(|()| id).map_err(|failure| failure.during(format!("find the netlink family {name}"))),
        }
    }

    /// Asks a family and returns the last answer; `None` when the kernel or the device does not know the question.
    pub(super) fn ask(&mut self, family: u16, command: u8, attributes: &[u8]) -> Result<Option<Raw>, Failure> {
        let mut message = Raw::new(family, &[command, 1, 0, 0]);
        message.bytes.extend(attributes);
        let mut answer = None;
        match self.netlink.request(message, NLM_F_REQUEST, |found| answer = Some(found)) {
            Err(failure) if failure.is(&[libc::EOPNOTSUPP, libc::ENOENT]) => Ok(None),
            other => other.map(|()| answer),
        }
    }

    /// What the driver of an interface says about XDP; `None` before Linux 6.3, which does not say.
    ///
    /// # Errors
    /// [`Error::Refused`], with ENODEV when there is no such interface.
    pub fn xdp_features(&mut self, index: u32) -> Result<Option<XdpFeatures>, Error> {
        let Some(family) = self.family("netdev")? else { return Ok(None) };
        let mut attributes = vec![];
        super::raw::push(&mut attributes, NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
        let answer = self.ask(family, NETDEV_CMD_DEV_GET, &attributes);
        let answer =
            answer.map_err(|failure| failure.during(format!("read the XDP features of interface #{index}")))?;
        let features = answer.and_then(|answer| answer.attributes(GENL_HEADER_LEN).u64(NETDEV_A_DEV_XDP_FEATURES));
        Ok(features.map(XdpFeatures))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Namespace;
    use super::*;

    #[test]
    fn drivers_say_what_they_do_with_xdp() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let mut generic = Generic::open().unwrap();
        let index = netlink.link("va").unwrap().index;
        let features = generic.xdp_features(index).unwrap().expect("this kernel says");
        assert!(features.native() && !features.zero_copy(), "{features:?}");
        let loopback = generic.xdp_features(1).unwrap().expect("this kernel says");
        assert!(!loopback.native(), "{loopback:?}");
        assert_eq!(generic.xdp_features(9999).unwrap_err().errno(), Some(libc::ENODEV));
        assert_eq!(generic.family("nonesuch").unwrap(), None);
    }
}
