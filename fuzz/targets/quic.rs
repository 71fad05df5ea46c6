//! A driver between an honest peer and somebody on the path, who bends, cuts, repeats and withholds datagrams and writes his own.
#![no_main]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::pki::id::NodeId;
use weir_controlplane::pki::revocation::RevocationSet;
use weir_controlplane::pki::trust::{SharedTrust, Trust};
use weir_controlplane::quic::{Alpn, Config, DialTarget, Driver, Event, LeafIdentity, Limits, LinkId, Side};
use weir_controlplane::random::SeededRandom;
use weir_controlplane::time::Now;
use weir_fuzz::{Edit, NETWORK, NOW, edited, leaf_key};
use zeroize::Zeroizing;

const LINKS_MAX: usize = 8;

#[derive(Arbitrary, Debug)]
enum Step {
    /// The oldest datagram under way arrives as it is.
    Deliver,
    /// It arrives changed, and is still under way.
    Bent(Vec<Edit>),
    /// It arrives from elsewhere, and is still under way.
    Elsewhere(u8),
    Lost,
    /// Something arrives that nobody honest has sent.
    Noise {
        to: bool,
        from: u8,
        bytes: Vec<u8>,
    },
    Dial(u8),
    Say(u16),
    Close,
    Wait(u16),
}

struct Node {
    driver: Driver,
    address: SocketAddr,
    links: Vec<LinkId>,
    heard: Vec<usize>,
}

fn trust() -> SharedTrust {
    let (bundle, revoked) = (Arc::new(NETWORK.chain.current().clone()), Arc::new(RevocationSet::default()));
    SharedTrust::new(Trust { network: NETWORK.id(), bundle, revoked }, NOW)
}

fn id(number: u8) -> NodeId {
    NETWORK.node(number)
}

fn node(number: u8) -> Node {
    let chain = [NETWORK.leaf(number), NETWORK.issuer_der.clone()];
    let config = Config {
        identity: Some(LeafIdentity::new(&chain, &leaf_key(number)).expect("a certificate and its key")),
        membership: Some((id(number), trust())),
        key: Zeroizing::new([number; 32]),
        accept_legacy_kyber: false,
        limits: Limits { links_max: LINKS_MAX, unverified_max: 4, retry_from: 3, ..Limits::default() },
    };
    let driver = Driver::new(config, &mut SeededRandom::new(number.into()));
    let address = SocketAddr::from(([192, 0, 2, number], 4433));
    Node { driver, address, links: vec![], heard: vec![] }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut now = Now { mono: Instant::now(), wall: NOW };
    let mut nodes = [node(1), node(2)];
    // Whom it goes to, and the bytes.
    let mut flying: std::collections::VecDeque<(usize, Vec<u8>)> = Default::default();
    let mut said = vec![];
    for step in steps.into_iter().take(64) {
        match step {
            Step::Deliver | Step::Lost => {
                if let Some((to, bytes)) = flying.pop_front()
                    && matches!(step, Step::Deliver)
                {
                    let from = nodes[1 - to].address;
                    nodes[to].driver.handle_datagram(now, from, None, None, &bytes);
                }
            }
            Step::Bent(edits) => {
                if let Some((to, bytes)) = flying.front() {
                    let from = nodes[1 - to].address;
                    nodes[*to].driver.handle_datagram(now, from, None, Some(2), &edited(bytes.clone(), &edits));
                }
            }
            Step::Elsewhere(from) => {
                if let Some((to, bytes)) = flying.front() {
                    nodes[*to].driver.handle_datagram(now, stranger(from), None, None, bytes);
                }
            }
            Step::Noise { to, from, bytes } => {
                let to = usize::from(to);
                let from = if from == 0 { nodes[1 - to].address } else { stranger(from) };
                nodes[to].driver.handle_datagram(now, from, None, None, &bytes);
            }
            Step::Dial(alpn) => {
                let alpn = Alpn::ALL[usize::from(alpn) % Alpn::ALL.len()];
                let to = nodes[1].address;
                let _ = nodes[0].driver.dial(alpn, &DialTarget::member(id(2)), to, now);
            }
            Step::Say(len) => {
                if let Some(link) = nodes[0].links.last().copied()
                    && nodes[0].driver.send(link, &vec![7; len.into()]).is_ok()
                {
                    said.push(usize::from(len));
                }
            }
            Step::Close => {
                if let Some(link) = nodes[0].links.pop() {
                    nodes[0].driver.close(link, 1, "enough", now);
                }
            }
            Step::Wait(ms) => {
                now = now.plus(Duration::from_millis(ms.into()));
                nodes.iter_mut().for_each(|node| node.driver.handle_timeout(now));
            }
        }
        for at in 0..nodes.len() {
            let other = nodes[1 - at].address;
            for datagram in nodes[at].act(now, other) {
                flying.push_back((1 - at, datagram));
            }
        }
        flying.truncate(256);
    }
    // Whatever came, nobody but the peer is heard, and of it only what it said.
    assert!(nodes[1].heard.iter().all(|len| said.contains(len)), "{:?} of {said:?}", nodes[1].heard);
    assert!(nodes[0].heard.is_empty());
});

fn stranger(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 4433))
}

impl Node {
    /// Takes what the driver has to give; returns the datagrams for the other node.
    fn act(&mut self, now: Now, other: SocketAddr) -> Vec<Vec<u8>> {
        let mut datagrams = vec![];
        let mut buf = Vec::new();
        loop {
            while let Some(event) = self.driver.poll_event() {
                match event {
                    Event::Connected { link, side, peer, .. } => {
                        let joins = peer.is_none();
                        assert!(joins || peer.is_some_and(|peer| [id(1), id(2)].contains(&peer.node)));
                        if side == Side::Dialled {
                            self.links.push(link);
                        }
                    }
                    Event::Message { bytes, .. } => self.heard.push(bytes.len()),
                    Event::Closed { link, .. } => self.links.retain(|known| *known != link),
                    Event::Opening { .. } => {}
                }
            }
            assert!(self.driver.links() <= LINKS_MAX);
            let Some(transmit) = self.driver.poll_transmit(now, &mut buf) else { return datagrams };
            let segments = buf[..transmit.len].chunks(transmit.segment_len.unwrap_or(transmit.len).max(1));
            if transmit.to == other {
                datagrams.extend(segments.map(<[u8]>::to_vec));
            }
        }
    }
}
