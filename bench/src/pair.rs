//! Two gateways with a session between them: what a control plane does, in a page.
//!
//! ```text
//!   h1 ── g1 ═══════ session ═══════ g2 ── h2
//!         reserve ─▶ offer ╳ offer ◀─ reserve
//!         install(other's offer, secret)   on both
//!         routes: own LAN local, other's LAN and TUN addresses by the session
//! ```
//!
//! The secret is random and known to this process, which a real control plane would get from a key exchange.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use weir_dataplane::api::Prefix;
use weir_dataplane::api::message::{
    Counters, Event, Install, NamedCount, Offer, Request, Route, Secret, SessionId, Target,
};
use weir_dataplane::config::{Attach, WanIo};

use crate::gateway::{Gateway, GatewayConfig, PORT};
use crate::rig::{Family, Host, Rig};
use crate::{Error, Result};

/// The overlay of the pair: everything in it leaves a gateway sealed or not at all.
pub const OVERLAY: [&str; 2] = ["10.0.0.0/8", "fd00::/8"];
/// Largest inner packet: what a WAN of 1500 bytes carries in one datagram.
pub const INNER_MTU: u16 = 1420;
/// The session between the gateways.
pub const SESSION: SessionId = SessionId(1);

/// How the two gateways are set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairConfig {
    /// How `wan` is attached on both.
    pub attach: Attach,
    /// What moves datagrams on both.
    pub io: WanIo,
    /// Cores of each gateway's workers; empty leaves the choice to the program.
    pub cores: [Vec<u16>; 2],
    /// MTU of the WAN, bytes: the one that the rig was built with.
    pub wan_mtu: u16,
    /// Largest inner packet, bytes; the gateways' TUNs have to take it (`tun.mtu`).
    pub inner_mtu: u16,
    /// Family of the outer datagrams.
    pub underlay: Family,
    /// Directory for the pins of the first gateway, inside a mounted bpf file system.
    pub pin: Option<PathBuf>,
    /// Let the processes live on when the bench ends.
    pub outlive: bool,
    /// Further keys of both configurations: see [`GatewayConfig::settings`].
    pub settings: Vec<(String, String)>,
}

impl Default for PairConfig {
    fn default() -> Self {
        Self {
            attach: Attach::Auto,
            io: WanIo::Auto,
            cores: Default::default(),
            wan_mtu: 1500,
            inner_mtu: INNER_MTU,
            underlay: Family::V4,
            pin: None,
            outlive: false,
            settings: Vec::new(),
        }
    }
}

/// What both sides put into a session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// The secret of the pretended exchange; the first gateway is the initiator.
    pub secret: [u8; 32],
    /// What each gateway offered.
    pub offers: [Offer; 2],
}

/// Two gateways. The second is stopped first.
pub struct Pair<'a> {
    /// The gateway of h2.
    pub g2: Gateway<'a>,
    /// The gateway of h1.
    pub g1: Gateway<'a>,
    config: PairConfig,
}

impl<'a> Pair<'a> {
    /// Starts both gateways and brings a session with routes for both families up.
    ///
    /// # Errors
    /// As [`Gateway::start`] and [`Self::connect`].
    pub fn up(rig: &'a Rig, config: PairConfig) -> Result<Self> {
        let mut pair = Self::start(rig, config)?;
        pair.connect()?;
        Ok(pair)
    }

    /// Starts both gateways, without a session.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub fn start(rig: &'a Rig, config: PairConfig) -> Result<Self> {
        let start = |host, side: usize, pin| {
            let gateway = GatewayConfig {
                attach: config.attach,
                io: config.io,
                cores: config.cores[side].clone(),
                tun_addresses: tun_addresses(side).map(|(address, len)| format!("{address}/{len}")).to_vec(),
                prefixes: OVERLAY.iter().filter_map(|prefix| prefix.parse().ok()).collect(),
                pin,
                outlive: config.outlive,
                settings: config.settings.clone(),
            };
            Gateway::start(host, gateway)
        };
        let g1 = start(rig.g1(), 0, config.pin.clone())?;
        let g2 = start(rig.g2(), 1, None)?;
        Ok(Self { g1, g2, config })
    }

    /// Makes a fresh session under [`SESSION`] and sets the routes of both gateways: the first bring-up, a rekey, or a new start after a
    /// death.
    ///
    /// # Errors
    /// [`Error::Api`], [`Error::GatewayGone`].
    pub fn connect(&mut self) -> Result<Session> {
        let endpoints = self.endpoints();
        self.connect_by(endpoints)
    }

    /// As [`Self::connect`], with other places where the gateways believe each other to be: first where the first finds the second.
    ///
    /// # Errors
    /// [`Error::Api`], [`Error::GatewayGone`].
    pub fn connect_by(&mut self, endpoints: [SocketAddr; 2]) -> Result<Session> {
        let mut secret = [0; 32];
        rand::fill(&mut secret)
            .map_err(|_| Error::Broken { what: "drawing a secret".into(), detail: String::new() })?;
        let hosts = [self.g1.host(), self.g2.host()];
        let lanes = self.g1.client()?.welcome().workers.max(self.g2.client()?.welcome().workers);
        let (own, peer) = (self.g1.client()?.reserve(lanes)?, self.g2.client()?.reserve(lanes)?);
        let offers = [own.1, peer.1];
        let reservations = [own.0, peer.0];
        for side in 0..2 {
            let other = 1 - side;
            let install = Install {
                session: SESSION,
                reservation: reservations[side],
                incarnation: offers[side].incarnation,
                peer: offers[other].clone(),
                secret: Secret::new(secret),
                initiator: side == 0,
                endpoint: endpoints[side],
                sources: behind(hosts[other], other),
                datagram_len_max: self.datagram_len_max(),
                inner_mtu: self.config.inner_mtu,
                rate: None,
                activate: true,
                idle_after_s: 0,
            };
            let local = lans(hosts[side]).into_iter().map(|prefix| Route { prefix, target: Target::Local });
            let far = behind(hosts[other], other);
            let far = far.into_iter().map(|prefix| Route { prefix, target: Target::Session(SESSION) });
            let routes: Vec<_> = local.chain(far).collect();
            let client = self.side(side).client()?;
            client.order(&Request::Install(Box::new(install)))?;
            client.set_routes(&routes)?;
        }
        Ok(Session { id: SESSION, secret, offers })
    }

    /// Where the gateways are: where the first finds the second, then the other way round.
    pub fn endpoints(&self) -> [SocketAddr; 2] {
        [self.g2.host(), self.g1.host()].map(|host| {
            let address = host.wan.map_or(Ipv4Addr::UNSPECIFIED.into(), |wan| wan.address(self.config.underlay));
            SocketAddr::new(address, PORT)
        })
    }

    /// Longest UDP payload that the WAN carries.
    pub fn datagram_len_max(&self) -> u16 {
        let ip = if self.config.underlay == Family::V4 { 20 } else { 40 };
        self.config.wan_mtu - ip - 8
    }

    /// The gateways by number: 0 is g1.
    pub fn side(&mut self, side: usize) -> &mut Gateway<'a> {
        if side == 0 { &mut self.g1 } else { &mut self.g2 }
    }

    /// Round trip between the gateways, measured inside the session by the first.
    ///
    /// # Errors
    /// [`Error::Api`], [`Error::GatewayGone`], [`Error::Broken`] when three echoes in a row are not answered within two seconds each.
    pub fn echo(&mut self) -> Result<Duration> {
        // An echo is one datagram, and what came before may have left a queue full.
        self.one_echo().or_else(|_| self.one_echo()).or_else(|_| self.one_echo())
    }

    fn one_echo(&mut self) -> Result<Duration> {
        // A connection of its own: events of other requests do not come in between.
        let mut client = self.g1.connect()?;
        client.order(&Request::Subscribe)?;
        client.order(&Request::Echo(SESSION))?;
        let deadline = Instant::now() + Duration::from_secs(2);
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            match client.next_event(left)? {
                Some(Event::Echo { session: SESSION, rtt_ns }) => return Ok(Duration::from_nanos(rtt_ns)),
                Some(_) => {}
                None => break,
            }
        }
        Err(Error::Broken { what: "the in-band echo".into(), detail: "no answer within 2 s".into() })
    }

    /// Counters of both gateways as text, for a person who looks for the reason of a failure. Says so where there are none.
    pub fn report(&mut self) -> String {
        let mut text = String::new();
        for side in 0..2 {
            let gateway = self.side(side);
            let name = gateway.host().name().to_owned();
            match gateway.counters() {
                Ok(counters) => text += &format!("{name}: {}\n", summary(&counters)),
                Err(error) => text += &format!("{name}: {error}\n"),
            }
            text += &gateway.log();
        }
        text
    }

    /// Leaves processes and files in place.
    pub fn keep(self) {
        self.g1.keep();
        self.g2.keep();
    }
}

/// Counters that are not zero, in one line.
fn summary(counters: &Counters) -> String {
    let all = [&counters.engine, &counters.engine_drops, &counters.bpf, &counters.bpf_drops];
    let moved = all.into_iter().flatten().filter(|c| c.count > 0);
    moved.map(|NamedCount { name, count }| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// Addresses of a gateway's TUN with the lengths of their prefixes; side 0 is g1.
pub fn tun_addresses(side: usize) -> [(IpAddr, u8); 2] {
    let host = side as u8 + 1;
    [(Ipv4Addr::new(10, 200, 0, host).into(), 24), (Ipv6Addr::new(0xfd00, 200, 0, 0, 0, 0, 0, host.into()).into(), 64)]
}

/// The LANs behind a gateway.
pub fn lans(gateway: &Host) -> Vec<Prefix> {
    let [a, b, c, _] = gateway.lan.v4.octets();
    let [first, ..] = gateway.lan.v6.segments();
    let v4 = Prefix::new(Ipv4Addr::new(a, b, c, 0).into(), 24);
    let v6 = Prefix::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).into(), 64);
    // The addresses end in zeros behind their lengths, so both are prefixes.
    [v4, v6].into_iter().flatten().collect()
}

/// What is reached by a gateway: its LANs and the addresses of its TUN.
fn behind(gateway: &Host, side: usize) -> Vec<Prefix> {
    let mut prefixes = lans(gateway);
    prefixes.extend(tun_addresses(side).map(|(address, _)| Prefix::host(address)));
    prefixes
}
