//! `rx-udp-gro-forwarding` on the LAN interfaces while the plane runs: the kernel merges small UDP packets before the TUN, so they travel as
//! superpackets. Whatever was off before is off again afterwards.

use crate::io::netlink::features::RX_UDP_GRO_FORWARDING;
use crate::io::netlink::{Error, Generic};

/// The interfaces on which the feature was turned on here. Dropping it turns it off again.
#[derive(Debug)]
pub(super) struct GroForwarding {
    generic: Generic,
    turned_on: Vec<String>,
}

impl GroForwarding {
    /// Nothing is changed yet.
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self { generic: Generic::open()?, turned_on: vec![] })
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
        match self.generic.set_feature(interface, RX_UDP_GRO_FORWARDING, true) {
            Ok(()) => {
                self.turned_on.retain(|name| name != interface);
                self.turned_on.push(interface.to_owned());
                "on while the plane runs".to_owned()
            }
            Err(error) => format!("left alone: {error}"),
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
        let mut gro = GroForwarding::open().unwrap();
        for _ in 0..2 {
            assert_eq!(gro.turn_on("va"), "on while the plane runs");
            assert_eq!(gro.turn_on("vb"), "on before the plane started");
            assert!(gro.turn_on("eth77").starts_with("left alone: "));
        }
        assert!(is_on("va") && is_on("vb"));
        drop(gro);
        assert!(!is_on("va") && is_on("vb"));
        let mut gro = GroForwarding::open().unwrap();
        gro.turn_on("va");
        ip("link del va");
        gro.restore();
    }
}
