//! Questions about names, and zones of members whose bytes anybody may have changed.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::dns::catalog::{Network, Update, Wanted};
use weir_controlplane::dns::member::{MemberZone, Whose};
use weir_controlplane::dns::message::UDP_LEN_MAX;
use weir_controlplane::dns::publish::Entry;
use weir_controlplane::dns::server::{Asker, Output, Server, Transport};
use weir_controlplane::pki::dnssec::TTL_SECS;
use weir_controlplane::pki::dnssec::delegation::{Delegated, Delegation, member_zone};
use weir_controlplane::pki::dnssec::network::{NetworkZones, Which};
use weir_controlplane::pki::dnssec::rrset::RrSet;
use weir_controlplane::pki::id::overlay_address;
use weir_controlplane::pki::revocation::RevocationSet;
use weir_controlplane::random::SeededRandom;
use weir_controlplane::time::UnixSecs;
use weir_fuzz::{Edit, NETWORK, NOW, edited, identity_key, key, later};

#[derive(Arbitrary, Debug)]
enum Step {
    Query {
        bytes: Vec<u8>,
        tcp: bool,
    },
    /// A good question with changes.
    Bent {
        which: u8,
        edits: Vec<Edit>,
        tcp: bool,
    },
    /// The zone of the member with changes.
    Zone {
        zone: Vec<Edit>,
        name: Vec<Edit>,
    },
    Absent {
        what: u8,
    },
    Failed {
        what: u8,
    },
    Revoked,
    Wait {
        secs: u16,
    },
}

static ZONES: LazyLock<NetworkZones> =
    LazyLock::new(|| NetworkZones::of(NETWORK.chain.current(), NETWORK.id()).unwrap().expect("an issuer"));
const RECORDS: [(&str, &str, &str); 4] = [
    ("www", "A", "192.0.2.7"),
    ("*.pool", "A", "192.0.2.8"),
    ("alias", "CNAME", "www"),
    ("_a._tcp", "SRV", "0 0 80 www"),
];

fn whose() -> Whose<'static> {
    Whose { network: NETWORK.id(), zones: &ZONES, node: NETWORK.node(1), name: "site-1" }
}

static GOOD: LazyLock<MemberZone> = LazyLock::new(|| {
    let member = identity_key(1);
    let of = Delegated { network: NETWORK.id(), node: NETWORK.node(1), name: "site-1", key: member.public() };
    let until = UnixSecs(NOW.0 + 30 * 86_400);
    let delegation = Delegation::sign(&ZONES, of, &key(3), (NOW, until)).unwrap();
    let apex = member_zone(&ZONES, "site-1").unwrap();
    let set = |(name, rtype, data): &(&str, &str, &str)| {
        let entry = Entry::new(name, rtype, data).unwrap();
        let (owner, rdata) = entry.resolve(&apex).unwrap();
        RrSet::new(owner, entry.rtype, TTL_SECS, [rdata])
    };
    let sets = RECORDS.iter().map(set).collect();
    MemberZone::sign(whose(), delegation.parent(), sets, &member, 0, (NOW, until)).unwrap()
});

fn question(which: u8) -> Vec<u8> {
    let names =
        ["www.site-1", "site-1", "x.pool.site-1", "alias.site-1", "none.site-1", "", "nobody", "_a._tcp.site-1"];
    let name = names[usize::from(which) % names.len()];
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.').chain(["mynet", "internal"]).filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, [1, 28, 16, 6, 43, 48, 255, 12][usize::from(which / 8) % 8], 0, 1]);
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 0]);
    bytes
}

fuzz_target!(|steps: Vec<Step>| {
    let (start, mut secs) = (Instant::now(), 0);
    let mut server = Server::new(&mut SeededRandom::new(1), start);
    let signatures = &NETWORK.chain.versions().last().expect("a version").zones;
    let [forward, reverse] = Which::ALL.map(|which| ZONES.name(which).clone());
    let sets = Which::ALL.iter().filter_map(|which| ZONES.keys(*which, signatures)).collect();
    server.handle_update(Update::Network(Some(Network { forward, reverse, sets })), later(start, 0));
    let signers = ZONES.signers(&RevocationSet::default());
    let address = overlay_address(NETWORK.id(), NETWORK.node(1));
    for (number, step) in (0u64..).zip(steps.into_iter().take(64)) {
        let now = later(start, secs);
        let asker = |tcp: bool| Asker {
            address: (Ipv4Addr::new(192, 0, 2, 1), 5000).into(),
            transport: if tcp { Transport::Tcp } else { Transport::Udp },
            port: number,
        };
        let wanted = |what: u8| {
            if what % 2 == 0 { Wanted::Member("site-1".into()) } else { Wanted::Address(address) }
        };
        match step {
            Step::Query { bytes, tcp } => server.handle_query(&bytes, asker(tcp), now),
            Step::Bent { which, edits, tcp } => server.handle_query(&edited(question(which), &edits), asker(tcp), now),
            Step::Zone { zone, name } => {
                let [good_zone, good_name] = GOOD.values();
                let values = [edited(good_zone, &zone), edited(good_name, &name)];
                if let Ok(read) = MemberZone::verify(whose(), [&values[0], &values[1]], &signers, now.wall) {
                    // Whatever was changed, what is believed is what was signed.
                    assert_eq!(read, *GOOD);
                    server.handle_update(Update::Member("site-1".into(), address, Arc::new(read)), now);
                }
            }
            Step::Absent { what } => server.handle_update(Update::Absent(wanted(what)), now),
            Step::Failed { what } => server.handle_update(Update::Failed(wanted(what)), now),
            Step::Revoked => server.handle_update(Update::Revoked("site-1".into()), now),
            Step::Wait { secs: more } => {
                secs += u64::from(more % 100);
                server.handle_timeout(later(start, secs));
            }
        }
        while let Some(output) = server.poll_output() {
            if let Output::Reply(asker, bytes) = output {
                assert!(bytes.len() >= 12 && bytes[2] & 0x80 != 0);
                assert!(asker.transport == Transport::Tcp || bytes.len() <= UDP_LEN_MAX);
            }
        }
    }
});
