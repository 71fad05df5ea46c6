//! The local network as the loop has it: what the mDNS process is told to say, and what of that which it heard is worth an attempt.
//!
//! Who speaks on a local network is nobody in particular. A beacon of another network is not ours, and an address that is not on that network
//! is not the speaker's to name: else one datagram would have every node there dial whomever it likes.

use std::net::SocketAddr;
use std::path::Path;

use tokio::sync::{mpsc, watch};

use super::host::HostView;
use super::mdns::{self, FromMdns, Heard, Saying};
use crate::config::{Discovery, Wan};
use crate::node::beacon::Beacon;
use crate::pki::id::NetworkId;
use crate::random::SystemRandom;

/// Where others may reach this node: what the configuration says, and what the WAN interface has, where it says so.
pub fn endpoints(wan: &Wan, view: &HostView) -> Vec<SocketAddr> {
    let interface = wan.interface.as_deref().filter(|_| wan.advertise_interface);
    let follows = interface.map(|interface| view.public_endpoints(interface, wan.port)).unwrap_or_default();
    let mut all = wan.advertise.clone();
    all.extend(follows.into_iter().filter(|endpoint| !wan.advertise.contains(endpoint)));
    all
}

/// Where those reach it who are on the same private network: the addresses of the WAN interface, or of the one that the default `route` leaves by.
pub fn local_endpoints(wan: &Wan, route: Option<&str>, view: &HostView) -> Vec<SocketAddr> {
    let interface = wan.interface.as_deref().or(route);
    interface.map(|interface| view.private_endpoints(interface, wan.port)).unwrap_or_default()
}

/// What was heard, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    heard: u64,
    of_others: u64,
    malformed: u64,
    off_link: u64,
    over: u64,
    flooded: u64,
}

/// The way to the mDNS process, where there is one.
pub struct Lan {
    interfaces: Vec<String>,
    saying: watch::Sender<Option<Saying>>,
    heard: mpsc::Receiver<FromMdns>,
    network: Option<NetworkId>,
    port: Option<u16>,
    /// The interfaces as they were when it last began to speak.
    view: HostView,
    counters: Counters,
}

impl Lan {
    /// Begins to look for the process, where the configuration names interfaces.
    pub fn start(runtime: &Path, discovery: &Discovery, view: &HostView) -> Self {
        let (saying, to_process) = watch::channel(None);
        let (to_node, heard) = mpsc::channel(mdns::QUEUE_MAX);
        let interfaces = discovery.mdns_interfaces.clone();
        if !interfaces.is_empty() {
            tokio::spawn(mdns::maintain(mdns::socket_path(runtime), to_process, to_node));
        }
        for name in interfaces.iter().filter(|name| !view.has(name)) {
            tracing::warn!(
                "discovery.mdns_interfaces names {name}, which is not there or not up; it is used when it comes"
            );
        }
        let (view, counters) = (view.only(&interfaces), Counters::default());
        Self { interfaces, saying, heard, network: None, port: None, view, counters }
    }

    /// Which network this node is a member of, and at which port it is.
    pub fn member_of(&mut self, network: Option<NetworkId>, port: Option<u16>) {
        (self.network, self.port) = (network, port);
        self.say();
    }

    /// This node is at another port.
    pub fn moved_to(&mut self, port: Option<u16>) {
        if self.port != port {
            self.port = port;
            self.say();
        }
    }

    /// Whether the interfaces are not as they were when it began to speak.
    pub fn is_another(&self, view: &HostView) -> bool {
        view.only(&self.interfaces) != self.view
    }

    /// Begins to speak and to listen anew, as one that nobody has heard before.
    pub fn begin_anew(&mut self, view: &HostView) {
        self.view = view.only(&self.interfaces);
        self.say();
    }

    fn say(&self) {
        let said = self.network.zip(self.port);
        let said = said.map(|(network, port)| Saying { port, beacon: Beacon::new(network, &mut SystemRandom) });
        // Without a process nobody listens, and what was said last is there for the one that comes.
        self.saying.send_replace(said);
    }

    /// What was heard next; never, without a process.
    pub async fn heard(&mut self) -> FromMdns {
        match self.heard.recv().await {
            Some(told) => told,
            None => std::future::pending().await,
        }
    }

    /// The same, if there is something.
    pub fn try_heard(&mut self) -> Option<FromMdns> {
        self.heard.try_recv().ok()
    }

    /// Addresses that are worth an attempt.
    pub fn judge(&mut self, told: FromMdns, view: &HostView) -> Vec<SocketAddr> {
        let counters = &mut self.counters;
        let Heard { beacon, addresses } = match told {
            FromMdns::Heard(heard) => heard,
            FromMdns::Malformed => {
                counters.malformed += 1;
                return vec![];
            }
            FromMdns::Over => {
                counters.over += 1;
                return vec![];
            }
            FromMdns::Flooded => {
                tracing::warn!("too much is said on the local network: mDNS pauses for a minute");
                counters.flooded += 1;
                return vec![];
            }
        };
        if !self.network.is_some_and(|network| beacon.is_of(network)) {
            counters.of_others += 1;
            return vec![];
        }
        counters.heard += 1;
        let (near, far): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| view.is_on_link(address.ip(), &self.interfaces));
        counters.off_link += far.len() as u64;
        near
    }

    /// What was counted, by name.
    pub fn counted(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        let Counters { heard, of_others, malformed, off_link, over, flooded } = self.counters;
        let all = [
            ("heard", heard),
            ("of_others", of_others),
            ("malformed", malformed),
            ("off_link", off_link),
            ("over", over),
            ("flooded", flooded),
        ];
        all.into_iter().map(|(name, count)| (format!("mdns_{name}"), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DiscoveryMode, Instance};
    use crate::random::SeededRandom;

    const OURS: NetworkId = NetworkId([1; 32]);
    const THEIRS: NetworkId = NetworkId([2; 32]);

    fn lan(interfaces: &[&str]) -> Lan {
        let mdns_interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        Lan::start(
            Path::new("/nowhere"),
            &Discovery { mode: DiscoveryMode::Off, bootstrap: vec![], mdns_interfaces, services: vec![] },
            &HostView::default(),
        )
    }

    fn heard(network: NetworkId, addresses: &[&str]) -> FromMdns {
        let beacon = Beacon::new(network, &mut SeededRandom::new(1));
        FromMdns::Heard(Heard { beacon, addresses: addresses.iter().map(|text| text.parse().unwrap()).collect() })
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_our_own_network_and_only_what_is_near_is_worth_an_attempt() {
        let view = HostView::with("lan", &["10.1.0.1/24"]);
        let mut lan = lan(&["lan"]);
        let ours = heard(OURS, &["10.1.0.2:4646", "8.8.8.8:53"]);
        assert!(lan.judge(ours.clone(), &view).is_empty(), "of no network yet");
        lan.member_of(Some(OURS), Some(4646));
        assert_eq!(lan.judge(ours.clone(), &view), ["10.1.0.2:4646".parse().unwrap()]);
        assert!(lan.judge(ours, &HostView::with("wan", &["10.1.0.1/24"])).is_empty(), "on an interface not chosen");
        let rest = [heard(THEIRS, &["10.1.0.2:4646"]), FromMdns::Malformed, FromMdns::Over, FromMdns::Flooded];
        assert!(rest.into_iter().all(|told| lan.judge(told, &view).is_empty()));
        let counted: Vec<u64> = lan.counted().map(|(_, count)| count).collect();
        assert_eq!(counted, [2, 2, 1, 3, 1, 1]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_said_is_new_each_time_and_nothing_without_a_network() {
        let mut lan = lan(&["lan"]);
        let mut listener = lan.saying.subscribe();
        lan.member_of(Some(OURS), None);
        assert_eq!(*listener.borrow_and_update(), None);
        lan.moved_to(Some(4646));
        let first = listener.borrow_and_update().unwrap();
        assert!(first.port == 4646 && first.beacon.is_of(OURS));
        lan.moved_to(Some(4646));
        assert!(!listener.has_changed().unwrap(), "nothing has changed");
        let view = HostView::with("lan", &["10.1.0.1/24"]);
        assert!(lan.is_another(&view));
        lan.begin_anew(&view);
        assert!(!lan.is_another(&view) && !lan.is_another(&view.only(&["lan".to_owned()])));
        assert_ne!(listener.borrow_and_update().unwrap().beacon, first.beacon);
        lan.member_of(None, None);
        assert_eq!(*listener.borrow_and_update(), None);
    }

    #[test]
    fn what_is_advertised_follows_the_interface_only_where_it_is_told_to() {
        let mut wan = Config::of_instance(&Instance::default()).wan;
        let view = HostView::with("wan", &["198.51.100.1/24", "10.0.0.1/8"]);
        wan.interface = Some("wan".into());
        wan.advertise = vec!["203.0.113.1:1".parse().unwrap()];
        assert_eq!(endpoints(&wan, &view), wan.advertise);
        wan.advertise_interface = true;
        let expected: SocketAddr = format!("198.51.100.1:{}", wan.port).parse().unwrap();
        assert_eq!(endpoints(&wan, &view), [wan.advertise[0], expected]);
        wan.advertise.push(expected);
        assert_eq!(endpoints(&wan, &view), wan.advertise);
    }
}
