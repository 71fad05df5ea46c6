//! Asks the host for the facts that [`super::choice`] is made of. Nothing is changed and nothing is kept.

use crate::config::Config;
use crate::io::netlink::{Error, Generic, Hook, Hooks, Interface, Link, Netlink, Tables, XdpState};
use crate::plane::choice::{Costs, Device, Facts, Wanted};

/// Drivers whose devices lose the sender's offloads, or their own, when XDP runs natively on them: superpackets die, and the socket path
/// with them.
pub(super) const VIRTUAL_DRIVERS: [&str; 2] = ["veth", "virtio_net"];
/// Names of our own XDP programs.
const OWN_PROGRAMS: [&str; 2] = ["wan", "lan"];

/// Whether a device is driven by one of [`VIRTUAL_DRIVERS`].
pub(super) fn is_virtual(link: &Link) -> bool {
    link.driver.as_deref().is_some_and(|driver| VIRTUAL_DRIVERS.contains(&driver))
}

/// What the configuration says about ports.
pub fn wanted(config: &Config) -> Wanted {
    Wanted {
        wan_rx: config.wan.rx,
        wan_tx: config.wan.tx,
        lan_rx: config.lan.rx,
        lan_tx: config.lan.tx,
        attach: config.wan.attach,
        lan_attach: config.lan.attach,
    }
}

/// The sockets that facts are asked through.
#[derive(Debug)]
pub struct Sources {
    generic: Generic,
    hooks: Hooks,
    /// Numbers of our own programs.
    own: Vec<u32>,
    /// Devices with a program of a predecessor, which will be taken over.
    inherited: Vec<String>,
    /// Why there are no AF_XDP sockets.
    refused: Option<String>,
}

impl Sources {
    /// Opens them.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self { generic: Generic::open()?, hooks: Hooks::open(), own: vec![], inherited: vec![], refused: None })
    }

    /// Names programs that are no strangers: numbers of ours, and devices on which a predecessor's is taken over. Without CAP_SYS_ADMIN
    /// a program on a device cannot be asked for its name.
    pub(super) fn know(&mut self, own: Vec<u32>, inherited: Vec<String>) {
        (self.own, self.inherited) = (own, inherited);
    }

    /// Remembers why the start got no AF_XDP sockets.
    pub(super) fn refuse(&mut self, why: String) {
        self.refused = Some(why);
    }

    /// Gathers the facts about the configured interfaces.
    ///
    /// # Errors
    /// [`Error::NoInterface`] when the WAN interface is not there, and what netlink may say.
    pub fn gather(
        &mut self,
        config: &Config,
        netlink: &mut Netlink,
        tables: &Tables,
        costs: Option<Costs>,
    ) -> Result<Facts, Error> {
        let interfaces = netlink.interfaces()?;
        let link = netlink.link(&config.wan.interface)?;
        let wan = self.device(&link, &interfaces, netlink)?;
        let (mut lan, mut lan_missing) = (vec![], vec![]);
        for name in &config.lan.interfaces {
            match netlink.link(name) {
                Ok(link) => lan.push(self.device(&link, &interfaces, netlink)?),
                Err(Error::NoInterface { .. }) => lan_missing.push(name.clone()),
                Err(error) => return Err(error),
            }
        }
        Ok(Facts {
            wan,
            lan,
            lan_missing,
            hooks: words(self.hooks.forwarding()),
            foreign_rule: tables.foreign_rule.clone(),
            long_table: tables.too_long,
            costs: costs.unwrap_or(Costs::BUILT_IN),
            calibrated: costs.is_some(),
            refused: self.refused.clone(),
        })
    }

    fn device(&mut self, link: &Link, interfaces: &[Interface], netlink: &mut Netlink) -> Result<Device, Error> {
        let features = self.generic.xdp_features(link.index)?.unwrap_or_default();
        let interface = interfaces.iter().find(|interface| interface.index == link.index);
        let children = interfaces.iter().filter(|interface| interface.takes_from(link.index));
        let is_ours = |xdp: XdpState| {
            self.inherited.contains(&link.name)
                || xdp.program.is_some_and(|id| {
                    self.own.contains(&id) || program_name(id).is_some_and(|name| OWN_PROGRAMS.contains(&name.as_str()))
                })
        };
        Ok(Device {
            name: link.name.clone(),
            driver: link.driver.clone(),
            native_xdp: features.native(),
            zero_copy: features.zero_copy(),
            multi_buffer: features.multi_buffer(),
            loses_offloads: is_virtual(link),
            mtu: link.mtu,
            ethernet: interface.is_some_and(|interface| interface.ethernet),
            is_port: interface.is_some_and(|interface| interface.master.is_some()),
            children: children.map(|interface| interface.name.clone()).collect(),
            foreign_xdp: link.xdp.is_some_and(|xdp| !is_ours(xdp)),
            filters: words(netlink.filters(link.index, &link.name)),
        })
    }
}

/// What was found, in words; what could not be asked is no reason to fail, but one to keep to the kernel.
fn words(hooks: Result<Vec<Hook>, Error>) -> Result<Vec<String>, String> {
    hooks.map(|hooks| hooks.iter().map(Hook::to_string).collect()).map_err(|error| error.to_string())
}

fn program_name(id: u32) -> Option<String> {
    let programs = aya::programs::loaded_programs().filter_map(Result::ok);
    programs.into_iter().find(|program| program.id() == id)?.name_as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::netlink::testing::{Namespace, ip};
    use crate::plane::choice::choose;

    #[test]
    fn facts_are_what_the_host_is_like() {
        let _namespace = Namespace::with_veth();
        for command in [
            "link add lan0 type veth peer name lan1",
            "link set va up",
            "link set lan0 up",
            "link add br0 type bridge",
            "link set lan1 master br0",
            "link add mv0 link lan0 type macvlan",
            "link set va mtu 9000",
        ] {
            ip(command);
        }
        let text = "[wan]\ninterface = \"va\"\n[lan]\ninterfaces = [\"lan0\", \"lan1\", \"lan2\"]";
        let config = Config::parse(Path::new("test"), text).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let tables = netlink.tables(&config.routing).unwrap();
        let mut sources = Sources::open().unwrap();
        let facts = sources.gather(&config, &mut netlink, &tables, None).unwrap();
        let wan = &facts.wan;
        assert_eq!((wan.name.as_str(), wan.driver.as_deref(), wan.mtu), ("va", Some("veth"), 9000));
        assert!(wan.native_xdp && wan.loses_offloads && !wan.zero_copy && wan.ethernet && !wan.foreign_xdp);
        assert_eq!(facts.lan[0].children, ["mv0"]);
        assert!(facts.lan[1].is_port && !facts.lan[0].is_port);
        assert_eq!(facts.lan_missing, ["lan2"]);
        assert_eq!((facts.hooks.clone(), facts.wan.filters.clone()), (Ok(vec![]), Ok(vec![])));
        let choice = choose(&wanted(&config), &facts);
        assert_eq!(choice.lan_rx.to_string(), "tun (lan2 is not there)");
        ip("link del va");
        assert!(matches!(sources.gather(&config, &mut netlink, &tables, None), Err(Error::NoInterface { .. })));
    }
}
