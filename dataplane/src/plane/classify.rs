//! The classifiers on their devices: attached at the start, and again when a device has gone and come back.

use weir_abi::map::flag;

use super::{Plane, PlaneError, attach};
use crate::config::{Attach, LanPort, WanPort};
use crate::io::netlink;

impl Plane {
    /// Attaches the classifiers, and turns on what the LAN's kernel side should do.
    pub(super) fn attach(&mut self, wan: &netlink::Link) -> Result<(), PlaneError> {
        self.attach_wan(wan)?;
        for interface in self.config.lan.interfaces.clone() {
            let link = self.netlink.link(&interface)?;
            self.attach_lan(&link)?;
        }
        self.host.know_programs(self.programs.ids());
        Ok(self.programs.remove_stale_links()?)
    }

    /// Attaches `wan`, as the configuration says or as fits the device.
    fn attach_wan(&mut self, wan: &netlink::Link) -> Result<(), PlaneError> {
        // What a killed predecessor left there is ours to take over, not another's program to keep away from.
        let (predecessor, xdp) = match wan.xdp {
            Some(state) if self.programs.has_pinned_xdp(&wan.name) => (Some(state), None),
            other => (None, other),
        };
        let wan = &netlink::Link { xdp, ..wan.clone() };
        let programs = &mut self.programs;
        let place = |mode| {
            // A link keeps its mode for life: one in another mode than is wanted now cannot be taken over.
            if predecessor.is_some_and(|state| !attach::is_mode(state.mode, mode)) {
                programs.end_pinned_xdp(&wan.name)?;
            }
            programs.attach_wan(&wan.name, mode)
        };
        let attached = match self.host.choice().wan_rx.port {
            WanPort::Xsk => attach::attach_xdp(self.config.wan.attach, place)?,
            _ => attach::attach(self.config.wan.attach, wan, place)?,
        };
        tracing::info!("wan on {}: {attached}", wan.name);
        self.tell(format!("wan on {}", wan.name), attached.to_string());
        self.attached.insert(wan.name.clone(), wan.index);
        if attached.mode.is_some() {
            self.map_config.flags |= flag::WAN_ATTACHED;
        }
        self.map_config.xsk_frame_len_max = self.xsk.wan_frame_len_max(wan);
        Ok(self.programs.configure(self.map_config)?)
    }

    /// Follows the devices' MTUs: longer frames are superpackets. From a device that is gone nothing is redirected.
    pub(super) fn follow_devices(&mut self) -> Result<(), PlaneError> {
        let longest = match self.netlink.link(&self.config.wan.interface) {
            Ok(wan) => self.xsk.wan_frame_len_max(&wan),
            Err(_) => 0,
        };
        if longest != self.map_config.xsk_frame_len_max {
            self.map_config.xsk_frame_len_max = longest;
            self.programs.configure(self.map_config)?;
        }
        Ok(self.xsk.follow_lan(&mut self.programs, &mut self.netlink)?)
    }

    /// Attaches `lan` where packets are received by AF_XDP, or where the configuration names a mode; turns on merging where it may.
    fn attach_lan(&mut self, link: &netlink::Link) -> Result<(), PlaneError> {
        let name = &link.name;
        self.attached.insert(name.clone(), link.index);
        if self.config.lan.gro_forwarding {
            let told = self.gro.turn_on(name);
            self.tell(format!("udp gro forwarding on {name}"), told);
        }
        let chosen = self.host.choice().lan_rx.port == LanPort::Xsk;
        let told = if chosen || self.config.lan.attach != Attach::Auto {
            let attached = attach::attach_xdp(self.config.lan.attach, |mode| self.programs.attach_lan(name, mode))?;
            attached.to_string()
        } else {
            "nothing attached (the kernel routes)".to_owned()
        };
        tracing::info!("lan on {name}: {told}");
        self.tell(format!("lan on {name}"), told);
        Ok(())
    }

    /// A device that was attached to has gone and come again under its name: what was on it went with it.
    pub(super) fn attach_again(&mut self, name: &str, index: u32) {
        let again = match self.netlink.link(name) {
            // It has gone once more, or another change will tell.
            Err(netlink::Error::NoInterface { .. }) => return,
            Ok(link) if link.index != index => return,
            Ok(link) => self.programs.forget_device(name).map_err(PlaneError::from).and_then(|()| {
                if name == self.config.wan.interface { self.attach_wan(&link) } else { self.attach_lan(&link) }
            }),
            Err(error) => Err(error.into()),
        };
        match again {
            Ok(()) => tracing::info!("{name} came again"),
            Err(error) => tracing::error!("{name} came again, but: {error}"),
        }
    }
}
