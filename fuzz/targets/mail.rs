//! Messages of applications, and members that say anything about them: frames of their own invention in any order, and bytes.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::codec;
use weir_controlplane::mail::wire::{Bytes, DATAGRAM_OVERHEAD, Frame, Head, MessageId, Refusal, Topic, WINDOW_MAX};
use weir_controlplane::mail::{
    DATAGRAM_BYTES_MAX, INBOX_BYTES_MAX, Mail, OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX, Output,
};
use weir_controlplane::node::message::MESSAGE_LEN_MAX;
use weir_controlplane::pki::id::NodeId;
use weir_controlplane::store::{MemoryStore, Store as _};
use weir_controlplane::time::Now;
use weir_fuzz::{NOW, later};

/// Members besides us.
const MEMBERS: u8 = 3;

#[derive(Arbitrary, Debug)]
enum Step {
    Up(u8),
    Down(u8),
    Says(u8, Said),
    Bytes(u8, Vec<u8>),
    Send { to: Vec<u8>, topic: u8, len: u32, ttl_secs: u16 },
    Datagram { to: u8, topic: u8, len: u16 },
    Take { topic: u8, max: u8, by: u8 },
    Taken { from: u8, which: u8 },
    Returned { from: u8, which: u8 },
    Unheard(u8),
    Policy { forbids: u8 },
    Forget(u8),
    Wait { ms: u32 },
    Restart { after: u8 },
}

/// A frame, with ids that may be those of messages that there are.
#[derive(Arbitrary, Debug)]
enum Said {
    Begin { life: u8, pending: Vec<u8> },
    Offer { id: u8, topic: u8, len: u32, start: Option<u16>, secs: u32 },
    Piece { id: u8, at: u32, len: u32 },
    Gone(u8),
    Datagram { topic: u8, len: u16 },
    Want { id: u8, from: u32 },
    Credit(u32),
    Held(u8),
    Taken(u8),
    Refused(u8),
    PutBack(u8),
}

fn node(number: u8) -> NodeId {
    NodeId([1 + number % MEMBERS; 32])
}

fn topic(number: u8) -> Topic {
    ["a", "b", "c/d"][usize::from(number % 3)].parse().expect("a topic")
}

fn frame(said: Said, ours: &[MessageId]) -> Frame {
    let id = |which: u8| ours.get(usize::from(which)).copied().unwrap_or(MessageId(which.into()));
    let bytes = |len: usize| Bytes(vec![7; len]);
    match said {
        Said::Begin { life, pending } => {
            let pending: BTreeSet<MessageId> = pending.into_iter().map(|id| MessageId(id.into())).collect();
            Frame::Begin { life: life.into(), pending: pending.into_iter().collect() }
        }
        Said::Offer { id, topic: about, len, start, secs } => {
            let len = len % (20 << 20);
            let head = Head {
                id: MessageId(id.into()),
                topic: topic(about),
                len: start.map_or(len, u32::from),
                sent: NOW,
                expires_in_secs: secs,
            };
            Frame::Offer { head, start: bytes(start.map_or(0, usize::from)) }
        }
        Said::Piece { id, at, len } => {
            Frame::Piece { id: MessageId(id.into()), at, bytes: bytes(len as usize % (80 << 10)) }
        }
        Said::Gone(which) => Frame::Gone { id: MessageId(which.into()) },
        Said::Datagram { topic: about, len } => Frame::Datagram { topic: topic(about), bytes: bytes(len.into()) },
        Said::Want { id: which, from } => Frame::Want { id: id(which), from },
        Said::Credit(bytes) => Frame::Credit(bytes),
        Said::Held(which) => Frame::Held { id: id(which) },
        Said::PutBack(which) => Frame::PutBack { id: id(which) },
        Said::Taken(which) => Frame::Taken { id: id(which) },
        Said::Refused(which) => Frame::Refused { id: id(which), why: Refusal::Policy },
    }
}

/// What is on disk, and how many bytes were sent to whom without credit.
#[derive(Default)]
struct World {
    store: MemoryStore,
    in_flight: BTreeMap<NodeId, usize>,
}

impl World {
    /// Carries out at most so many outputs.
    fn settle(&mut self, mail: &mut Mail, max: usize) {
        for _ in 0..max {
            match mail.poll_output() {
                None => break,
                Some(Output::Store(batch)) => self.store.commit(batch).expect("memory"),
                Some(Output::Count(_)) => {}
                Some(Output::Say(to, frame)) => {
                    let len = match &frame {
                        Frame::Offer { start: bytes, .. } | Frame::Piece { bytes, .. } => bytes.0.len(),
                        Frame::Datagram { bytes, .. } => bytes.0.len() + DATAGRAM_OVERHEAD,
                        _ => 0,
                    };
                    let in_flight = self.in_flight.entry(to).or_default();
                    *in_flight += len;
                    assert!(*in_flight <= WINDOW_MAX, "{in_flight} bytes are on the way");
                    let bytes = codec::encode(&frame);
                    assert!(bytes.len() < MESSAGE_LEN_MAX, "a frame of {} bytes", bytes.len());
                    assert_eq!(codec::decode(&bytes, bytes.len()), Ok(frame));
                }
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let (start, mut ms) = (Instant::now(), 0u64);
    let at = |ms: u64| -> Now {
        let now = later(start, ms / 1000);
        Now { mono: start + Duration::from_millis(ms), ..now }
    };
    let mut world = World::default();
    let load = |world: &World, ms: u64| Mail::load(&world.store, at(ms)).expect("what was written is read");
    let mut mail = load(&world, 0);
    let (mut ours, mut theirs, mut forbidden) = (vec![], vec![], 3u8);
    let mut up: BTreeSet<NodeId> = BTreeSet::new();
    for step in steps {
        let now = at(ms);
        let mut heard = vec![];
        match step {
            Step::Up(number) => {
                up.insert(node(number));
                world.in_flight.remove(&node(number));
                mail.handle_link_up(node(number), now);
            }
            Step::Down(number) => {
                up.remove(&node(number));
                world.in_flight.remove(&node(number));
                mail.handle_link_down(node(number), now);
            }
            Step::Says(number, said) => heard.push((node(number), frame(said, &ours))),
            Step::Bytes(number, bytes) => {
                heard.extend(codec::decode(&bytes, MESSAGE_LEN_MAX).ok().map(|frame| (node(number), frame)));
            }
            Step::Send { to, topic: about, len, ttl_secs } => {
                let to: BTreeSet<NodeId> = to.into_iter().map(node).collect();
                let to: Vec<NodeId> = to.into_iter().collect();
                let body: Arc<[u8]> = vec![3; len as usize % (17 << 20)].into();
                let sent = mail.send(&to, &topic(about), &body, Duration::from_secs(ttl_secs.into()), now);
                assert_eq!(sent.len(), to.len());
                ours.extend(sent.into_iter().flatten());
            }
            Step::Datagram { to, topic: about, len } => {
                // There may be no link, or no room on it.
                let _ = mail.send_datagram(node(to), topic(about), vec![5; len.into()], now);
            }
            Step::Take { topic: about, max, by } => {
                let topics = ["*", "a", "c*"][usize::from(about % 3)].parse().expect("a pattern");
                let taken = mail.take(&topics, usize::from(max), 1 << 20, by.into(), now.mono);
                assert!(taken.len() <= usize::from(max));
                theirs.extend(taken.into_iter().filter_map(|one| Some((one.from, one.id?))));
            }
            Step::Taken { from, which } => {
                let named = theirs.get(usize::from(which)).copied().unwrap_or((node(from), MessageId(which.into())));
                let count = mail.taken(&[named, named]);
                assert!(count <= 1, "taken twice");
            }
            Step::Returned { from, which } => {
                let named = theirs.get(usize::from(which)).copied().unwrap_or((node(from), MessageId(which.into())));
                assert!(mail.returned(&[named, named], now.mono) <= 1, "returned twice");
            }
            Step::Unheard(by) => mail.give_back(by.into(), now.mono),
            Step::Policy { forbids } => {
                forbidden = forbids % 4;
                mail.rejudge(|_, about| forbidden == 3 || *about != topic(forbidden), now);
            }
            Step::Forget(number) => mail.forget(node(number), now),
            Step::Wait { ms: more } => {
                ms += u64::from(more % 100_000_000);
                mail.handle_timeout(at(ms));
            }
            Step::Restart { after } => {
                world.settle(&mut mail, after.into());
                mail = load(&world, ms);
                (up, world.in_flight) = (BTreeSet::new(), BTreeMap::new());
            }
        }
        for (from, frame) in heard {
            if !up.contains(&from) {
                continue;
            }
            // More credit than was sent is refused; else the bytes have arrived.
            let credit = if let Frame::Credit(bytes) = &frame { *bytes as usize } else { 0 };
            match mail.handle_frame(from, frame, |about| forbidden == 3 || *about != topic(forbidden), now) {
                Ok(()) => {
                    let in_flight = world.in_flight.entry(from).or_default();
                    *in_flight = in_flight.saturating_sub(credit);
                }
                Err(_) => {
                    up.remove(&from);
                    world.in_flight.remove(&from);
                    mail.handle_link_down(from, now);
                }
            }
        }
        world.settle(&mut mail, usize::MAX);
        assert!(mail.inbox().bytes() <= INBOX_BYTES_MAX && mail.outbox().bytes() <= OUTBOX_BYTES_MAX);
        assert!(mail.outbox().waiting().count() <= OUTBOX_MESSAGES_MAX);
        assert!(mail.inbox().datagram_bytes() <= DATAGRAM_BYTES_MAX);
    }
    // Whatever there was: when all of its time is over nothing is left of what is ours.
    (0..2).for_each(|_| {
        ms += 40 * 86_400_000;
        (0..300).for_each(|step| mail.handle_timeout(at(ms + step * 2)));
        world.settle(&mut mail, usize::MAX);
    });
    assert_eq!(mail.outbox().bytes(), 0);
    assert_eq!(load(&world, ms).outbox().waiting().count(), 0);
});
