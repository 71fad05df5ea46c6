//! A rig of any number of gateways on one switch, each with a host behind it.
//!
//! ```text
//!                 ┌──────────── switch (bridge) ────────────┐
//!              wan│ 192.0.2.1       wan│ 192.0.2.2       wan│ 192.0.2.3      /24, 2001:db8::n/64
//!                 g1                   g2                   g3
//!              lan│ 10.1.0.1        lan│ 10.2.0.1        lan│ 10.3.0.1       /24, fd0n::1/64
//!                 h1 10.1.0.2          h2 10.2.0.2          h3 10.3.0.2
//! ```
//!
//! Gateways forward, but know no route to another's LAN: that is what the overlay is for.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use super::netlink::{Rtnetlink, VethEnd};
use super::{Family, Host, Interface, Namespace, configure, fresh_name, path, prepare};
use crate::stream::Path;
use crate::sys::{netns, tun};
use crate::{Error, Result};

/// Most gateways of a mesh: their numbers are the third byte of addresses.
pub const GATEWAYS_MAX: u8 = 64;
/// Queues of each interface.
const QUEUES: u32 = 2;
/// MTU of each link.
const MTU: u32 = 1500;
/// The switch itself.
const BRIDGE: &str = "br";
/// Frames that wait at an end of a line for whoever carries them.
const LINE_QUEUE: u32 = 10_000;

/// A gateway and the host behind it.
#[derive(Debug)]
pub struct Site {
    /// Its number, from 1.
    pub number: u8,
    /// The gateway.
    pub gateway: Host,
    /// The host.
    pub host: Host,
}

impl Site {
    /// The gateway's address on the switch.
    pub fn wan(&self) -> Ipv4Addr {
        wan_interface(self.number).v4
    }

    /// The network behind the gateway, as `10.1.0.0/24`.
    pub fn subnet(&self) -> String {
        format!("10.{}.0.0/24", self.number)
    }

    /// Addresses of a stream from the host here to the host of another site.
    pub fn path_to(&self, other: &Self, family: Family) -> Path {
        path(&self.host, &self.gateway, &other.host, family)
    }
}

/// The rig. Dropping it removes everything.
#[derive(Debug)]
pub struct Mesh {
    switch: Namespace,
    sites: Vec<Site>,
}

fn interface(name: &'static str, link: u8, host: u8, v4: [u8; 4], v6: [u16; 2]) -> Interface {
    Interface {
        name,
        index: 0,
        mac: [0x02, 0x57, 0x65, 0x01, link, host],
        v4: v4.into(),
        v6: Ipv6Addr::new(v6[0], v6[1], 0, 0, 0, 0, 0, v4[3].into()),
    }
}

fn wan_interface(number: u8) -> Interface {
    interface("wan", 0, number, [192, 0, 2, number], [0x2001, 0xdb8])
}

fn lan_interface(number: u8, host: u8) -> Interface {
    interface("lan", number, host, [10, number, 0, host], [0xfd00 + u16::from(number), 0])
}

impl Mesh {
    /// Builds a mesh of `gateways` sites.
    ///
    /// # Errors
    /// [`Error::NotRoot`], or [`Error::Io`] naming the step.
    ///
    /// # Panics
    /// When there are to be more than [`GATEWAYS_MAX`] gateways.
    pub fn new(gateways: u8) -> Result<Self> {
        assert!(gateways <= GATEWAYS_MAX, "at most {GATEWAYS_MAX} gateways");
        let name = fresh_name();
        let switch = Namespace::create(&format!("{name}-switch"))?;
        prepare(&switch)?;
        switch.enter(|| Rtnetlink::open()?.bridge(BRIDGE))?.map_err(Error::io("cannot make the bridge"))?;
        let bridge = switch.interface_index(BRIDGE)?;
        switch.enter(|| Rtnetlink::open()?.up(bridge))?.map_err(Error::io("cannot bring the bridge up"))?;
        let mut mesh = Self { switch, sites: vec![] };
        for number in 1..=gateways {
            let site = mesh.site(&name, number, bridge)?;
            mesh.sites.push(site);
        }
        Ok(mesh)
    }

    fn site(&self, name: &str, number: u8, bridge: u32) -> Result<Site> {
        let [gateway, host] = ["g", "h"].map(|letter| Namespace::create(&format!("{name}-{letter}{number}")));
        let (gateway, host) = (gateway?, host?);
        prepare(&gateway)?;
        prepare(&host)?;
        let port = format!("p{number}");
        let wan = wan_interface(number);
        veth(&gateway, wan.name, wan.mac, &self.switch, &port, [0x02, 0x57, 0x65, 0x02, 0, number])?;
        let port = self.switch.interface_index(&port)?;
        self.switch
            .enter(|| {
                let mut rtnetlink = Rtnetlink::open()?;
                rtnetlink.enslave(port, bridge)?;
                rtnetlink.up(port)
            })?
            .map_err(Error::io(format!("cannot plug g{number} into the switch")))?;
        let (near, far) = (lan_interface(number, 1), lan_interface(number, 2));
        veth(&gateway, near.name, near.mac, &host, far.name, far.mac)?;
        let wan = configure(&gateway, &wan)?;
        let lan = configure(&gateway, &near)?;
        let host_lan = configure(&host, &far)?;
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            gateway.sysctl(key, "1")?;
        }
        gateway.feature("lan", "rx-gro", true)?;
        host.enter(|| {
            let mut rtnetlink = Rtnetlink::open()?;
            rtnetlink.route(Ipv4Addr::UNSPECIFIED.into(), 0, near.v4.into())?;
            rtnetlink.route(Ipv6Addr::UNSPECIFIED.into(), 0, near.v6.into())
        })?
        .map_err(Error::io(format!("cannot add the routes of h{number}")))?;
        // A default route, as a gateway has one: by it the program finds its WAN, and what leaves in clear would leave there.
        gateway
            .enter(|| Rtnetlink::open()?.route(Ipv4Addr::UNSPECIFIED.into(), 0, IpAddr::from([192, 0, 2, 254])))?
            .map_err(Error::io(format!("cannot add the default route of g{number}")))?;
        Ok(Site {
            number,
            gateway: Host { namespace: gateway, lan, wan: Some(wan) },
            host: Host { namespace: host, lan: host_lan, wan: None },
        })
    }

    /// The sites, by their numbers.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The site with this number, from 1.
    ///
    /// # Panics
    /// When there is none.
    pub fn site_of(&self, number: u8) -> &Site {
        &self.sites[usize::from(number) - 1]
    }

    /// The switch, to look at what passes.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Switches all ports of the switch on or off: gateways see their carrier come and go.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn plug(&self, is_on: bool) -> Result<()> {
        let plugged = self.switch.enter(|| -> io::Result<()> {
            let mut rtnetlink = Rtnetlink::open()?;
            for site in &self.sites {
                let port = netns::interface_index(&format!("p{}", site.number))?;
                if is_on { rtnetlink.up(port)? } else { rtnetlink.down(port)? }
            }
            Ok(())
        });
        plugged?.map_err(Error::io("cannot switch the ports of the switch"))
    }

    /// Moves a gateway to the far end of a line, and hands over both ends of it, the near one first: Ethernet frames that are read from one
    /// are to be written to the other. Whoever holds them decides when, and whether.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn line(&self, number: u8) -> Result<[File; 2]> {
        let port = self.switch.interface_index(&format!("p{number}"))?;
        let made = self.switch.enter(|| -> io::Result<[File; 2]> {
            let mut rtnetlink = Rtnetlink::open()?;
            let bridge = format!("br{number}");
            rtnetlink.bridge(&bridge)?;
            let far = netns::interface_index(&bridge)?;
            rtnetlink.up(far)?;
            rtnetlink.enslave(port, far)?;
            let mut end = |name: String, bridge| {
                let tap = tun::open_tap(&name)?;
                let index = netns::interface_index(&name)?;
                rtnetlink.enslave(index, bridge)?;
                rtnetlink.shape(index, MTU, LINE_QUEUE)?;
                io::Result::Ok(tap)
            };
            Ok([end(format!("near{number}"), netns::interface_index(BRIDGE)?)?, end(format!("far{number}"), far)?])
        })?;
        made.map_err(Error::io(format!("cannot make a line to g{number}")))
    }
}

fn veth(
    near: &Namespace,
    near_name: &str,
    near_mac: [u8; 6],
    far: &Namespace,
    far_name: &str,
    far_mac: [u8; 6],
) -> Result<()> {
    let near_end = VethEnd { name: near_name, mac: near_mac, mtu: MTU, queues: QUEUES };
    let far_end = VethEnd { name: far_name, mac: far_mac, mtu: MTU, queues: QUEUES };
    let far_namespace = far.file().as_raw_fd();
    near.enter(|| Rtnetlink::open()?.veth(&near_end, &far_end, far_namespace))?.map_err(Error::io(format!(
        "cannot make the veth pair {}–{}",
        near.name(),
        far.name()
    )))
}
