//! QUIC Initials at a running plane: it is told of admission keys by its API, and follows the machine's clock.

use std::net::UdpSocket;
use std::time::{Duration, SystemTime};

use weir_bench::gateway::PORT;
use weir_bench::pair::{Pair, PairConfig};
use weir_dataplane::api::ClientError;
use weir_dataplane::api::admission::{cid, key_words, slot_at, tag};
use weir_dataplane::api::message::{AdmissionKey, DumpItem, Refusal, Request};

use crate::support::*;

const KEY: [u8; 16] = [0xa5; 16];
const NODE: [u8; 32] = [0x4e; 32];
const WAIT: Duration = Duration::from_secs(2);

/// An Initial as long as QUIC asks for, tagged so many seconds away from now.
fn initial(key: [u8; 16], away_secs: i64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let slot = slot_at(now.checked_add_signed(away_secs).unwrap());
    let mut packet = vec![0; 1200];
    packet[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 20]);
    packet[6..26].copy_from_slice(&cid([1; 4], 7, slot, tag(key_words(&key), 7, slot, &NODE)));
    packet
}

fn order(pair: &mut Pair<'_>, keys: &[[u8; 16]], skew_secs: i64) -> Result<(), ClientError> {
    let keys = keys.iter().map(|key| AdmissionKey::new(*key)).collect();
    pair.g2.client().unwrap().order(&Request::SetAdmission { keys, node: NODE, skew_secs })
}

#[test]
fn initials_are_admitted_by_the_keys_that_the_plane_is_told() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig::default(), |pair| {
        let dialler = rig.g1().enter(|| UdpSocket::bind((rig.g1().wan.unwrap().v4, 0))).unwrap().unwrap();
        let to = (rig.g2().wan.unwrap().v4, PORT);
        let counted = |pair: &mut Pair<'_>, packet: Vec<u8>, name: &str| {
            let before = count(&mut pair.g2, name);
            dialler.send_to(&packet, to).unwrap();
            let moved = eventually(WAIT, || count(&mut pair.g2, name) == before + 1);
            assert!(moved, "{name} did not move");
        };
        // Nobody has told of keys yet.
        counted(pair, initial(KEY, 0), "wan_control");
        order(pair, &[[1; 16], [2; 16], KEY], 0).unwrap();
        counted(pair, initial(KEY, 0), "wan_admission_tagged");
        counted(pair, initial([3; 16], 0), "wan_admission_untagged");
        counted(pair, initial(KEY, 400), "wan_admission_expired");
        // The network's clock is ahead of this machine's.
        order(pair, &[KEY], 400).unwrap();
        counted(pair, initial(KEY, 400), "wan_admission_tagged");
        counted(pair, initial(KEY, 0), "wan_admission_expired");
        counted(pair, initial([2; 16], 400), "wan_admission_untagged");
        // One key too many changes nothing.
        let refused = order(pair, &[KEY; 4], 0);
        let limit = Refusal::Limit { what: "the number of admission keys".to_owned(), limit: 3 };
        assert!(matches!(&refused, Err(ClientError::Refused(refusal)) if *refusal == limit), "{refused:?}");
        counted(pair, initial(KEY, 400), "wan_admission_tagged");
        // A dump says that there are keys, and not which. (Four bytes of the key: two are in many an identifier by chance.)
        let dump = format!("{:?}", pair.g2.client().unwrap().dump().unwrap());
        assert!(
            dump.contains("keys: 1") && !dump.contains("a5a5a5a5") && !dump.contains("165, 165, 165, 165"),
            "{dump}"
        );
        order(pair, &[], 0).unwrap();
        counted(pair, initial(KEY, 0), "wan_control");
        let facts = pair.g2.client().unwrap().dump().unwrap();
        let facts = facts.iter().find_map(|item| match item {
            DumpItem::Plane(facts) => Some(facts),
            DumpItem::Session(_) | DumpItem::Routes(_) => None,
        });
        assert!(facts.unwrap().contains(&("admission".to_owned(), "off: no keys".to_owned())));
    });
}
