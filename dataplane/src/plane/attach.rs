//! Where a classifier is attached, and why there.

use std::fmt;

use crate::config::Attach;
use crate::io::bpf::{AttachMode, BpfError};
use crate::io::netlink::{Link, XdpMode};
use crate::plane::facts::is_virtual;

/// What became of an attachment.
#[derive(Debug)]
pub(super) struct Attached {
    /// Where it sits; `None` when nothing was attached.
    pub(super) mode: Option<AttachMode>,
    reason: String,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Some(mode) => write!(f, "{mode} ({})", self.reason),
            None => write!(f, "nothing attached ({})", self.reason),
        }
    }
}

/// Attaches at the wanted place, or with `auto` at the first one that takes it.
pub(super) fn attach(
    wanted: Attach,
    link: &Link,
    attach: impl FnMut(AttachMode) -> Result<(), BpfError>,
) -> Result<Attached, BpfError> {
    let (order, why): (&[AttachMode], _) = if link.xdp.is_some() {
        (&[AttachMode::Tc], "another XDP program is on the device")
    } else if is_virtual(link) {
        (&[AttachMode::Tc, AttachMode::Generic], "native XDP would cost this driver its offloads")
    } else {
        (&[AttachMode::Native, AttachMode::Tc, AttachMode::Generic], "the driver keeps its offloads with native XDP")
    };
    first_that_fits(wanted, order, why, attach)
}

/// The same for a program that redirects to AF_XDP sockets, which needs XDP.
pub(super) fn attach_xdp(
    wanted: Attach,
    attach: impl FnMut(AttachMode) -> Result<(), BpfError>,
) -> Result<Attached, BpfError> {
    first_that_fits(wanted, &[AttachMode::Native, AttachMode::Generic], "AF_XDP needs XDP", attach)
}

/// Whether a device's XDP program sits where `wanted` says.
pub(super) fn is_mode(found: XdpMode, wanted: AttachMode) -> bool {
    matches!((found, wanted), (XdpMode::Native, AttachMode::Native) | (XdpMode::Generic, AttachMode::Generic))
}

fn first_that_fits(
    wanted: Attach,
    order: &[AttachMode],
    why: &str,
    mut attach: impl FnMut(AttachMode) -> Result<(), BpfError>,
) -> Result<Attached, BpfError> {
    let forced = match wanted {
        Attach::None => return Ok(Attached { mode: None, reason: "as configured".to_owned() }),
        Attach::Native => Some(AttachMode::Native),
        Attach::Generic => Some(AttachMode::Generic),
        Attach::Tc => Some(AttachMode::Tc),
        Attach::Auto => None,
    };
    if let Some(mode) = forced {
        attach(mode)?;
        return Ok(Attached { mode: Some(mode), reason: "as configured".to_owned() });
    }
    let mut reason = why.to_owned();
    let mut last = None;
    for &mode in order {
        match attach(mode) {
            Ok(()) => return Ok(Attached { mode: Some(mode), reason }),
            Err(error @ (BpfError::Unsupported { .. } | BpfError::Busy { .. } | BpfError::Step { .. })) => {
                reason = format!("{mode} was refused: {error}");
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(BpfError::Missing("a place to attach to")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::netlink::XdpState;

    fn link(driver: &str, xdp: bool) -> Link {
        let xdp = xdp.then_some(XdpState { mode: XdpMode::Native, program: Some(1) });
        let name = "eth0".to_owned();
        Link { index: 1, name, mtu: 1500, up: true, driver: Some(driver.to_owned()), xdp, tx_queues: 1, rx_queues: 1 }
    }

    /// Tries in the order given, refusing the first `refusals` of them.
    fn tried(wanted: Attach, link: &Link, refusals: usize) -> (Vec<AttachMode>, Option<AttachMode>) {
        let mut order = vec![];
        let attached = attach(wanted, link, |mode| {
            order.push(mode);
            let error = std::io::Error::from_raw_os_error(95);
            if order.len() <= refusals {
                Err(BpfError::Unsupported { interface: "eth0".to_owned(), mode, error })
            } else {
                Ok(())
            }
        });
        (order, attached.ok().and_then(|attached| attached.mode))
    }

    #[test]
    fn auto_follows_the_driver() {
        use AttachMode::{Generic, Native, Tc};
        assert_eq!(tried(Attach::Auto, &link("ixgbe", false), 0), (vec![Native], Some(Native)));
        assert_eq!(tried(Attach::Auto, &link("ixgbe", false), 1), (vec![Native, Tc], Some(Tc)));
        assert_eq!(tried(Attach::Auto, &link("veth", false), 0), (vec![Tc], Some(Tc)));
        assert_eq!(tried(Attach::Auto, &link("virtio_net", false), 1), (vec![Tc, Generic], Some(Generic)));
        assert_eq!(tried(Attach::Auto, &link("ixgbe", true), 0), (vec![Tc], Some(Tc)));
        assert_eq!(tried(Attach::Auto, &link("veth", false), 2), (vec![Tc, Generic], None));
    }

    #[test]
    fn only_the_same_mode_is_the_same_place() {
        for (found, wanted, same) in [
            (XdpMode::Native, AttachMode::Native, true),
            (XdpMode::Generic, AttachMode::Generic, true),
            (XdpMode::Native, AttachMode::Generic, false),
            (XdpMode::Generic, AttachMode::Native, false),
            (XdpMode::Generic, AttachMode::Tc, false),
            (XdpMode::Multiple, AttachMode::Native, false),
        ] {
            assert_eq!(is_mode(found, wanted), same, "{found:?} {wanted}");
        }
    }

    #[test]
    fn what_is_configured_is_tried_alone() {
        assert_eq!(
            tried(Attach::Native, &link("veth", false), 0),
            (vec![AttachMode::Native], Some(AttachMode::Native))
        );
        assert_eq!(tried(Attach::Native, &link("veth", false), 1), (vec![AttachMode::Native], None));
        assert_eq!(tried(Attach::None, &link("veth", false), 0), (vec![], None));
    }
}
