//! Datagrams of contact sessions between two members, changed, repeated and reordered by the network; each is opened once, as it was sealed.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::contact::{Agreed, Contacts, PLAINTEXT_LEN_MAX};
use weir_controlplane::pki::id::NodeId;
use weir_fuzz::{Edit, edited};
use zeroize::Zeroizing;

#[derive(Arbitrary, Debug)]
enum Step {
    /// The two meet once more.
    Meet {
        secret: u8,
        indices: (u32, u32),
    },
    /// One seals.
    Seal {
        by_first: bool,
        text: Vec<u8>,
    },
    /// One of those that were sealed arrives, at either, as it is or changed.
    Arrive {
        which: u8,
        at_first: bool,
        edits: Vec<Edit>,
    },
    /// Anything arrives.
    Bytes {
        at_first: bool,
        bytes: Vec<u8>,
    },
    Wait {
        secs: u16,
    },
}

const MEMBERS: [NodeId; 2] = [NodeId([1; 32]), NodeId([2; 32])];

fuzz_target!(|steps: Vec<Step>| {
    let start = Instant::now();
    let (mut now, mut ends) = (start, [Contacts::default(), Contacts::default()]);
    let mut sealed: Vec<(usize, Vec<u8>)> = vec![];
    let mut texts: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut opened = BTreeSet::new();
    let mut drawn = BTreeSet::new();
    let remote = SocketAddr::from(([192, 0, 2, 1], 4646));
    for step in steps.into_iter().take(256) {
        match step {
            Step::Meet { secret, indices } => {
                // Indices are drawn anew, and with them the secret.
                if indices.0 == indices.1 || !drawn.insert(indices.0) || !drawn.insert(indices.1) {
                    continue;
                }
                for (at, (ours, theirs)) in [(0, indices), (1, (indices.1, indices.0))] {
                    let agreed = Agreed { secret: Zeroizing::new([secret; 32]), ours, theirs, remote };
                    ends[at].agree(MEMBERS[at], MEMBERS[1 - at], &agreed, now);
                }
            }
            Step::Seal { by_first, text } => {
                let by = usize::from(!by_first);
                if let Some((_, datagram)) = ends[by].seal(MEMBERS[1 - by], &text, now) {
                    assert!(text.len() <= PLAINTEXT_LEN_MAX);
                    texts.insert(datagram.clone(), text);
                    sealed.push((1 - by, datagram));
                }
            }
            Step::Arrive { which, at_first, edits } => {
                let Some((_, datagram)) = sealed.get(usize::from(which)) else { continue };
                let datagram = edited(datagram.clone(), &edits);
                let at = usize::from(!at_first);
                if let Ok(open) = ends[at].open(&datagram, now) {
                    assert_eq!((open.node, Some(&open.plaintext)), (MEMBERS[1 - at], texts.get(&datagram)));
                    assert!(opened.insert((at, datagram)), "opened twice");
                }
            }
            Step::Bytes { at_first, bytes } => {
                let at = usize::from(!at_first);
                if let Ok(open) = ends[at].open(&bytes, now) {
                    assert_eq!(Some(&open.plaintext), texts.get(&bytes), "forged");
                    assert!(opened.insert((at, bytes)), "opened twice");
                }
            }
            Step::Wait { secs } => {
                now += Duration::from_secs(secs.into());
                ends.iter_mut().for_each(|end| end.expire(now));
            }
        }
    }
});
