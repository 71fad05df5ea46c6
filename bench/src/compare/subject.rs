//! What is compared: anything that can stand between h1 and h2.
//!
//! ```text
//!   Subject ── ready: found, installed, version ──▶ Ready ── start, on a rig of its own ──▶ Running ── drop ──▶ gone
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weir_dataplane::config::Config;

use super::install;
use super::peer::{Peer, QUEUE_LEN, Tunnel, networks};
use super::splice::{self, Splice};
use super::system::{self, Workers};
use crate::external::ping;
use crate::gateway::GatewayConfig;
use crate::pair::{INNER_MTU, Pair, PairConfig, tun_addresses};
use crate::rig::{Family, Rig, RigConfig};
use crate::{Error, Result};

/// How long a subject may take until a ping comes back: handshakes are done by then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A combination of Weir's ports.
struct Variant {
    name: &'static str,
    place: Place,
    /// The keys of the configuration that force it, as TOML. A combination with a key that this build does not know is left out.
    keys: &'static [(&'static str, &'static str)],
}

const fn variant(name: &'static str, place: Place, keys: &'static [(&'static str, &'static str)]) -> Variant {
    Variant { name, place, keys }
}

/// Where the workers of the two gateways run. Both gateways choose workers by the same hash, so with the same cores in the same order one
/// core would do all the work of a flow, which two machines would share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Where the program puts them.
    #[default]
    Chosen,
    /// One worker for each gateway, on a core of its own.
    Apart,
    /// Two workers for each gateway, those of the second one in the opposite order.
    Crossed,
}

impl Place {
    fn cores(self) -> [Vec<u16>; 2] {
        match self {
            Self::Chosen => Default::default(),
            Self::Apart => [vec![0], vec![1]],
            Self::Crossed => [vec![0, 1], vec![1, 0]],
        }
    }
}

use Place::{Apart, Chosen, Crossed};

const SOCKETS: [(&str, &str); 2] = [("wan.rx", "\"socket\""), ("wan.tx", "\"socket\"")];
const XSK_LAN: [(&str, &str); 2] = [("lan.rx", "\"xsk\""), ("lan.tx", "\"xsk\"")];

/// What is compared. The first is what an operator gets who chooses nothing.
const VARIANTS: &[Variant] = &[
    variant("auto", Chosen, &[]),
    variant("apart", Apart, &[]),
    variant("crossed", Crossed, &[]),
    variant("uring", Chosen, &[("wan.io", "\"uring\"")]),
    variant("mmsg", Chosen, &[("wan.io", "\"mmsg\"")]),
    variant("spin", Apart, &[("workers.latency", "\"spin\"")]),
    variant("no-gro", Chosen, &[("lan.gro_forwarding", "false")]),
    variant("xsk-rx", Chosen, &[("wan.rx", "\"xsk\""), ("wan.tx", "\"socket\""), ("lan.rx", "\"tun\"")]),
    variant("xsk-wan", Chosen, &[("wan.rx", "\"xsk\""), ("wan.tx", "\"xsk\""), ("lan.rx", "\"tun\"")]),
    variant("xsk-lan-rx", Chosen, &[SOCKETS[0], SOCKETS[1], XSK_LAN[0], ("lan.tx", "\"tun\"")]),
    variant("xsk-lan", Chosen, &[SOCKETS[0], SOCKETS[1], XSK_LAN[0], XSK_LAN[1]]),
    variant("xsk-lan-apart", Apart, &[SOCKETS[0], SOCKETS[1], XSK_LAN[0], XSK_LAN[1]]),
    variant("xsk-lan-crossed", Crossed, &[SOCKETS[0], SOCKETS[1], XSK_LAN[0], XSK_LAN[1]]),
    variant("xsk", Chosen, &[("wan.rx", "\"xsk\""), ("wan.tx", "\"xsk\""), XSK_LAN[0], XSK_LAN[1]]),
];

/// A subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The kernel's own forwarding: as it comes, or with the ethtool settings that suit Weir.
    Plain {
        /// GRO with `rx-udp-gro-forwarding` on every interface of the gateways.
        udp_gro_forwarding: bool,
    },
    /// TUN and UDP trains without encryption.
    Splice,
    /// Weir with further keys in its configuration.
    Weir {
        /// The name of the combination.
        variant: String,
        /// Where its workers run.
        place: Place,
        /// Keys and their TOML values.
        settings: Vec<(String, String)>,
    },
    /// Somebody else's program.
    Peer(Peer),
}

impl Subject {
    /// Every subject that this build knows, in the order of reports.
    pub fn all() -> Vec<Self> {
        let plain = [false, true].map(|udp_gro_forwarding| Self::Plain { udp_gro_forwarding });
        let weir = VARIANTS.iter().map(|&Variant { name, place, keys }| {
            let settings = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Self::Weir { variant: name.to_owned(), place, settings }
        });
        let known = weir.filter(Self::is_known);
        plain.into_iter().chain([Self::Splice]).chain(known).chain(Peer::ALL.map(Self::Peer)).collect()
    }

    /// Finds subjects by their names; `weir` is every combination of its ports.
    ///
    /// # Errors
    /// The names that there are, when one is unknown.
    pub fn choose(names: &[String]) -> std::result::Result<Vec<Self>, String> {
        let all = Self::all();
        let matches = |subject: &Self, name: &str| {
            subject.name() == name || name == "weir" && matches!(subject, Self::Weir { .. })
        };
        if let Some(unknown) = names.iter().find(|name| !all.iter().any(|subject| matches(subject, name))) {
            let known: Vec<_> = all.iter().map(Self::name).collect();
            return Err(format!("no subject {unknown}: there are weir, {}", known.join(", ")));
        }
        Ok(all.into_iter().filter(|subject| names.iter().any(|name| matches(subject, name))).collect())
    }

    /// The name in reports.
    pub fn name(&self) -> String {
        match self {
            Self::Plain { udp_gro_forwarding: false } => "plain".to_owned(),
            Self::Plain { udp_gro_forwarding: true } => "plain-gro".to_owned(),
            Self::Splice => "splice".to_owned(),
            Self::Weir { variant, .. } => format!("weir-{variant}"),
            Self::Peer(peer) => peer.name().to_owned(),
        }
    }

    /// Whether it carries a family.
    pub fn carries(&self, family: Family) -> bool {
        if let Self::Peer(peer) = self { peer.carries(family) } else { true }
    }

    /// Whether the packet plane that this was built with knows all keys of a combination.
    fn is_known(&self) -> bool {
        let Self::Weir { settings, .. } = self else { return true };
        let config = GatewayConfig { settings: settings.clone(), ..GatewayConfig::default() };
        Config::parse(Path::new("variant"), &config.toml(Path::new("/run/weir.sock"))).is_ok()
    }

    /// Finds its program and its version.
    ///
    /// # Errors
    /// Why it cannot take part, and what to do about it.
    pub fn ready(&self, install: bool, progress: &mut dyn FnMut(&str)) -> std::result::Result<Ready, String> {
        let kernel = || format!("Linux {}", system::Machine::this().kernel);
        let own =
            || format!("{} ({})", env!("CARGO_PKG_VERSION"), system::commit().unwrap_or_else(|| "no commit".into()));
        let (version, program) = match self {
            Self::Plain { .. } => (kernel(), PathBuf::new()),
            Self::Splice | Self::Weir { .. } => (own(), PathBuf::new()),
            Self::Peer(peer) => {
                let program = install::program(*peer, install, progress)?;
                (peer.version(&program), program)
            }
        };
        Ok(Ready { subject: self.clone(), version, program })
    }
}

/// A subject that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Which.
    pub subject: Subject,
    /// Its version, in its own words.
    pub version: String,
    program: PathBuf,
}

impl Ready {
    /// The rig that it needs.
    pub fn rig(&self) -> RigConfig {
        let plain = matches!(self.subject, Subject::Plain { .. });
        let udp_gro_forwarding = self.subject == Subject::Plain { udp_gro_forwarding: true };
        RigConfig { plain, udp_gro_forwarding, ..RigConfig::default() }
    }

    /// Starts it on a rig built by [`Self::rig`], and waits until it carries packets of each of its families.
    ///
    /// # Errors
    /// [`Error::Broken`] with what it said when no packet comes through; others of whichever step failed.
    pub fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>> {
        let gateways = [rig.g1(), rig.g2()];
        let mut running = match &self.subject {
            Subject::Plain { udp_gro_forwarding } => {
                if *udp_gro_forwarding {
                    for gateway in gateways {
                        gateway.feature("wan", "rx-gro", true)?;
                        gateway.feature("wan", "rx-udp-gro-forwarding", true)?;
                    }
                }
                Running::Kernel
            }
            Subject::Splice => {
                let splice = Splice::start(gateways)?;
                for side in 0..2 {
                    let far = networks(gateways[1 - side]);
                    gateways[side].tunnel(splice::TUN, INNER_MTU.into(), QUEUE_LEN, &tun_addresses(side), &far)?;
                }
                Running::Splice(splice)
            }
            Subject::Weir { settings, place, .. } => {
                let config = PairConfig { settings: settings.clone(), cores: place.cores(), ..PairConfig::default() };
                Running::Weir(Box::new(Pair::up(rig, config)?))
            }
            Subject::Peer(peer) => Running::Peer(Tunnel::start(*peer, &self.program, rig)?),
        };
        for family in [Family::V4, Family::V6].into_iter().filter(|family| self.subject.carries(*family)) {
            let start = Instant::now();
            while ping(rig.h1(), rig.h2().lan.address(family), 5)?.received == 0 {
                if start.elapsed() > ANSWER_TIMEOUT {
                    let what = format!("{} over {family}", self.subject.name());
                    return Err(Error::Broken { what, detail: running.said() });
                }
            }
        }
        Ok(running)
    }
}

/// A subject at work, until dropped.
pub enum Running<'a> {
    /// Nothing of ours runs.
    Kernel,
    /// Two threads of this process.
    Splice(Splice),
    /// Two processes with a session.
    Weir(Box<Pair<'a>>),
    /// Two processes, or more.
    Peer(#[allow(private_interfaces, reason = "only started, asked and dropped here")] Tunnel),
}

impl Running<'_> {
    /// Who does its work, besides the kernel.
    pub fn workers(&self) -> Workers {
        match self {
            Self::Kernel => Workers::default(),
            Self::Splice(splice) => Workers { processes: vec![], threads: splice.threads() },
            Self::Weir(pair) => {
                Workers { processes: [pair.g1.pid(), pair.g2.pid()].into_iter().flatten().collect(), threads: vec![] }
            }
            Self::Peer(tunnel) => tunnel.workers(),
        }
    }

    /// What it says of itself: for Weir the ports and attach modes that it chose and got.
    pub fn facts(&mut self) -> Vec<(String, String)> {
        match self {
            Self::Weir(pair) => pair.g1.facts().unwrap_or_default(),
            _ => vec![],
        }
    }

    /// What it said last, for a person who looks for the reason of a failure.
    pub fn said(&mut self) -> String {
        match self {
            Self::Kernel | Self::Splice(_) => String::new(),
            Self::Weir(pair) => pair.report(),
            Self::Peer(tunnel) => tunnel.said(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> std::result::Result<Vec<String>, String> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(Subject::choose(&names)?.iter().map(Subject::name).collect())
    }

    #[test]
    fn subjects_are_chosen_by_name_and_weir_is_all_of_its_combinations() {
        assert_eq!(chosen(&["splice", "plain"]).unwrap(), ["plain", "splice"]);
        assert_eq!(chosen(&["plain-gro"]).unwrap(), ["plain-gro"]);
        assert_eq!(chosen(&["weir-auto", "gotatun"]).unwrap(), ["weir-auto", "gotatun"]);
        let weir = chosen(&["weir"]).unwrap();
        assert!(weir.len() > 1 && weir.iter().all(|name| name.starts_with("weir-")), "{weir:?}");
        assert!(chosen(&["wireguard"]).unwrap_err().contains("wireguard-go"));
    }

    #[test]
    fn combinations_that_the_configuration_refuses_are_left_out() {
        let settings = |key: &str| vec![(key.to_owned(), "\"uring\"".to_owned())];
        let subject = |key| Subject::Weir { variant: "x".into(), place: Place::Chosen, settings: settings(key) };
        assert!(!subject("wan.no_such_key").is_known());
        assert!(Subject::all().iter().all(Subject::is_known));
    }
}
