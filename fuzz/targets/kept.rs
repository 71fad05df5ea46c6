//! What processes keep and read again when they start, after a disk, an older program or a hand has changed it.
#![no_main]

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Instant;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::audit::{Position, Start, verify_part};
use weir_controlplane::ceremony::{Founding, FoundingKeys, found};
use weir_controlplane::issuer::{Asked, Issuer, Request};
use weir_controlplane::membership::{self, Membership};
use weir_controlplane::node::{Links, Node, Part, Settings};
use weir_controlplane::pki::admission::DayKey;
use weir_controlplane::pki::dnssec::PARENT;
use weir_controlplane::quic::{Alpn, DialError, DialTarget, ExportError, LinkId, SendError};
use weir_controlplane::random::SeededRandom;
use weir_controlplane::store::{Batch, MemoryStore, Store as _, Table};
use weir_fuzz::{Edit, NOW, edited, later};
use zeroize::Zeroizing;

/// One thing that is kept becomes another.
#[derive(Arbitrary, Debug)]
struct Change {
    of_the_issuer: bool,
    which: u8,
    /// Whether it stands under another key, too.
    key: Vec<Edit>,
    value: Value,
}

#[derive(Arbitrary, Debug)]
enum Value {
    Gone,
    Edited(Vec<Edit>),
    Bytes(Vec<u8>),
    /// That of another entry of the same store.
    Of(u8),
}

/// What a founder's processes have, and the issuer's key.
static GOOD: LazyLock<[MemoryStore; 2]> = LazyLock::new(|| {
    let (start, mut random) = (Instant::now(), SeededRandom::new(1));
    let keys = FoundingKeys::generate(&mut random);
    let founding = Founding {
        dns_parent: PARENT.into(),
        network: "mynet".into(),
        name: "berlin".into(),
        default_allow: true,
        pool: vec!["10.0.0.0/8".parse().expect("a prefix")],
        subnets: vec!["10.1.0.0/16".parse().expect("a prefix")],
        groups: vec!["edge".into()],
    };
    let (mut node, mut issuer) = (MemoryStore::default(), MemoryStore::default());
    found(&founding, &keys, &mut node, &mut issuer, later(start, 0), &mut random).expect("a network");
    // A node that has run has records, lists, a clock.
    let mut running =
        Node::new(settings(), SeededRandom::new(2), &mut node, &mut NoLinks, later(start, 0)).expect("good");
    running.handle_timeout(&mut NoLinks, later(start, 120));
    while let Some(output) = running.poll_output() {
        if let weir_controlplane::node::Output::Store(batch) = output {
            node.commit(batch).expect("memory");
        }
    }
    let mut issuer = Issuer::open(issuer, keys.issuer.clone(), 8).expect("good");
    for secs in 0..12 {
        let asked = Asked { by: "uid 0".into(), request: Request::RotateAdmission };
        issuer.handle(asked, later(start, secs), &mut random).expect("a seed");
    }
    [node, issuer.into_store()]
});

fn settings() -> Settings {
    Settings {
        endpoints: vec!["192.0.2.1:4646".parse().expect("an endpoint")],
        local_endpoints: vec![],
        datagram_len_max: 1452,
        inner_mtu: 1420,
        idle_after_s: 300,
        legacy_kyber: vec![],
        has_issuer: true,
        discovery: Some(Part::Server),
        services: vec![],
        names: vec![],
        unconfined: None,
        build: NOW,
    }
}

fuzz_target!(|changes: Vec<Change>| {
    let mut stores = GOOD.clone();
    for change in changes.into_iter().take(8) {
        let store = &mut stores[usize::from(change.of_the_issuer)];
        let all: Vec<(Table, Vec<u8>, Vec<u8>)> = Table::ALL
            .into_iter()
            .flat_map(|table| {
                let entries = store.entries(table).expect("memory").into_iter();
                entries.map(move |(key, value)| (table, key, value))
            })
            .collect();
        let Some((table, key, value)) = all.get(usize::from(change.which) % all.len().max(1)).cloned() else {
            continue;
        };
        let mut batch = Batch::default();
        let value = match change.value {
            Value::Gone => {
                batch.delete(table, key);
                store.commit(batch).expect("memory");
                continue;
            }
            Value::Edited(edits) => edited(value, &edits),
            Value::Bytes(bytes) => bytes,
            Value::Of(other) => all[usize::from(other) % all.len()].2.clone(),
        };
        batch.put(table, edited(key, &change.key), value);
        store.commit(batch).expect("memory");
    }
    let [mut node, issuer] = stores;
    let start = Instant::now();
    let _ = (membership::bundles(&node), membership::admission(&node));
    let loaded = Membership::load(&mut node, &mut SeededRandom::new(3));
    if let Ok(mut node) = Node::new(settings(), SeededRandom::new(4), &mut node, &mut NoLinks, later(start, 200)) {
        assert!(loaded.is_ok());
        // It can live with what it took.
        for secs in [201, 900, 90_000] {
            node.handle_timeout(&mut NoLinks, later(start, secs));
            while node.poll_output().is_some() {}
        }
    }
    let _ = (Position::open(&issuer), Start::open(&issuer));
    let key = FoundingKeys::generate(&mut SeededRandom::new(1)).issuer;
    let own = key.public();
    let verified = verify_part(&issuer, 0, usize::MAX, |id| Some(own).filter(|own| own.id() == id));
    if let Ok(mut issuer) = Issuer::open(issuer, key, 8) {
        let mut random = SeededRandom::new(5);
        let mut ask = |request| issuer.handle(Asked { by: "uid 0".into(), request }, later(start, 200), &mut random);
        let told = ask(Request::VerifyAudit { from: 0 });
        assert_eq!(told.is_ok(), verified.is_ok(), "{told:?}, {verified:?}");
        let _ = (ask(Request::Status), ask(Request::Members), ask(Request::Invites), ask(Request::RotateAdmission));
        let _ = (ask(Request::Audit { from: 0, max: 400 }), ask(Request::ExportCrl));
    }
});

/// A network in which nobody answers.
struct NoLinks;

impl Links for NoLinks {
    fn dial(&mut self, _: Alpn, _: DialTarget, _: SocketAddr) -> Result<LinkId, DialError> {
        Ok(LinkId(1))
    }

    fn send(&mut self, _: LinkId, _: &[u8]) -> Result<(), SendError> {
        Ok(())
    }

    fn export(&mut self, _: LinkId, _: &[u8], _: &[u8]) -> Result<Zeroizing<[u8; 32]>, ExportError> {
        Ok(Zeroizing::new([1; 32]))
    }

    fn close(&mut self, _: LinkId, _: u32, _: &str) {}

    fn remote(&self, _: LinkId) -> Option<SocketAddr> {
        None
    }

    fn moved(&mut self, _: LinkId, _: SocketAddr) {}

    fn set_identity(&mut self, _: &Membership) {}

    fn set_admission(&mut self, _: &DayKey) {}

    fn keep_alive(&mut self, _: LinkId) {}
}
