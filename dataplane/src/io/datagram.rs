//! What both sending socket ports share: a queue of datagrams and trains, and the message headers that send it in order.
//!
//! ```text
//!   commit ─▶ frames ── plan ─▶ messages 0 1 2 … ── kernel ─▶ settle(0) settle(1) …   (stop at the first that did not go)
//!                ▲                                                 │
//!                └────────── what was not sent stays, in order ◀───┘
//! ```
//!
//! A message is a datagram, a train, or one datagram of a train on a path where the kernel cannot cut trains. It knows nothing of how
//! messages reach the kernel.
#![allow(unsafe_code, reason = "message headers point to slots and addresses")]

use std::io;
use std::net::SocketAddr;

use super::message::{ADDRESS_LEN, TX_CONTROL_LEN, encode_address, encode_control, is_v6};
use super::queue::{FrameQueue, Limits};
use super::socket::{Exit, Exits};
use crate::engine::port::{TRAIN_SEGMENTS_MAX, TxMeta};

/// Most messages handed to the kernel at once.
pub(super) const PLAN_LEN_MAX: usize = 64;

/// Most paths remembered as unable to take trains. The oldest is forgotten for a new one: it costs that path one refused train.
pub(super) const SINGLE_PATHS_MAX: usize = 64;

/// Slots of a sending underlay port.
#[derive(Clone, Copy, Debug)]
pub struct UdpTxConfig {
    /// Frames (datagrams or trains) that can wait.
    pub slots: usize,
    /// Bytes of the longest frame.
    pub slot_len: usize,
}

impl Default for UdpTxConfig {
    fn default() -> Self {
        // One burst of full trains: 4 MiB.
        Self { slots: 64, slot_len: 65_536 }
    }
}

/// What to do after the kernel's answer to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It is sent: go on with the next message's answer.
    Sent,
    /// The socket's buffer is full: wait until it is writable.
    Blocked,
    /// It was not sent, the rest neither: plan again.
    Stopped,
}

#[derive(Clone, Copy)]
struct Message {
    len: usize,
    destination: SocketAddr,
    exit: Exit,
    /// The kernel was asked to cut it.
    train: bool,
    /// The kernel was told which of our addresses to send from.
    sourced: bool,
    /// It is one datagram of a train that we cut.
    cut: bool,
    ends_frame: bool,
}

struct Head {
    header: libc::msghdr,
    part: libc::iovec,
    address: [u8; ADDRESS_LEN],
    control: [u8; TX_CONTROL_LEN],
}

/// A queue of frames towards the underlay.
pub(super) struct DatagramQueue {
    frames: FrameQueue,
    slot_free: bool,
    exits: Exits,
    heads: Box<[Head]>,
    plan: Vec<Message>,
    /// Bytes of the oldest frame that are sent already, when it goes out datagram by datagram.
    sent: usize,
    /// The kernel refused the oldest frame as a train; whether the path or the train is to blame shows when its first datagram goes alone.
    on_trial: bool,
    /// The kernel refused the oldest frame with its source address, which may be gone from this host: the routing table chooses another.
    sourceless: bool,
    single_paths: Vec<SocketAddr>,
    next_single: usize,
    failed: u64,
}

impl DatagramQueue {
    pub(super) fn new(config: UdpTxConfig, exits: Exits) -> io::Result<Self> {
        let head = || Head {
            // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and lengths of zero.
            header: unsafe { std::mem::zeroed() },
            part: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            address: [0; ADDRESS_LEN],
            control: [0; TX_CONTROL_LEN],
        };
        let bytes = config.slots.checked_mul(config.slot_len).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            frames: FrameQueue::new(Limits { frames: config.slots, frame_len: config.slot_len, bytes })?,
            slot_free: false,
            exits,
            heads: (0..PLAN_LEN_MAX).map(|_| head()).collect(),
            plan: Vec::with_capacity(PLAN_LEN_MAX),
            sent: 0,
            on_trial: false,
            sourceless: false,
            single_paths: Vec::with_capacity(SINGLE_PATHS_MAX),
            next_single: 0,
            failed: 0,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn room(&self) -> usize {
        self.frames.room()
    }

    pub(super) fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        let slot = self.frames.slot(len);
        self.slot_free = slot.is_some();
        slot
    }

    /// Queues the slot lent last; what has no destination, or one of a family without socket, fails at once.
    pub(super) fn commit(&mut self, len: usize, meta: TxMeta) {
        debug_assert!(self.slot_free, "commit follows a slot");
        if meta.destination.is_some_and(|to| self.exits.choose(is_v6(to), meta.lane_port).is_some()) {
            self.frames.commit(len, meta);
        } else {
            self.failed += 1;
        }
    }

    pub(super) fn take_failed(&mut self) -> u64 {
        std::mem::take(&mut self.failed)
    }

    /// Destinations whose trains are sent datagram by datagram, because their path refused a train (`EIO`, `EINVAL`).
    pub(super) fn single_paths(&self) -> &[SocketAddr] {
        &self.single_paths
    }

    /// Tries trains again on every path.
    pub(super) fn forget_single_paths(&mut self) {
        self.single_paths.clear();
        self.next_single = 0;
    }

    /// Writes the headers of the next messages and says how many. Not to be called while the kernel still reads the last plan's.
    pub(super) fn plan(&mut self) -> usize {
        self.plan.clear();
        let mut frame = 0;
        while frame < self.frames.len() && self.plan.len() < PLAN_LEN_MAX {
            let queued = self.frames.frame(frame);
            // `commit` queues nothing without these.
            let Some(destination) = queued.meta.destination else { break };
            let Some(exit) = self.exits.choose(is_v6(destination), queued.meta.lane_port) else { break };
            let with_source = !(frame == 0 && self.sourceless);
            let segment = usize::from(queued.meta.segment);
            let is_train = segment > 0 && segment < queued.len;
            let singly = is_train
                && (queued.len.div_ceil(segment) > TRAIN_SEGMENTS_MAX
                    || self.single_paths.contains(&destination)
                    || frame == 0 && (self.on_trial || self.sent > 0));
            let mut offset = if frame == 0 { self.sent } else { 0 };
            let step = if singly { segment } else { queued.len };
            loop {
                let len = step.min(queued.len - offset);
                let ends_frame = offset + len == queued.len;
                let head = &mut self.heads[self.plan.len()];
                // `wrapping_add` stays within the slot: `offset` is at most its length.
                head.part.iov_base = queued.bytes.wrapping_add(offset).cast_mut().cast();
                head.part.iov_len = len;
                head.header.msg_iov = &raw mut head.part;
                head.header.msg_iovlen = 1;
                head.header.msg_namelen = encode_address(destination, &mut head.address);
                head.header.msg_name = head.address.as_mut_ptr().cast();
                let train = is_train && !singly;
                let control_len = encode_control(&queued.meta, train, with_source, &mut head.control);
                head.header.msg_controllen = control_len as _;
                head.header.msg_control =
                    if control_len > 0 { head.control.as_mut_ptr().cast() } else { std::ptr::null_mut() };
                let sourced = with_source && queued.meta.source.is_some();
                self.plan.push(Message { len, destination, exit, train, sourced, cut: singly, ends_frame });
                offset += len;
                if ends_frame || self.plan.len() == PLAN_LEN_MAX {
                    break;
                }
            }
            frame += 1;
        }
        self.plan.len()
    }

    /// The header of message `i` of the plan.
    pub(super) fn header(&self, i: usize) -> *const libc::msghdr {
        &raw const self.heads[i].header
    }

    /// Which socket message `i` of the plan goes by.
    pub(super) fn exit(&self, i: usize) -> Exit {
        self.plan[i].exit
    }

    /// Takes the kernel's answer to message `i`: zero or more, or a negated errno. Call it in order, and no more after one that was not
    /// sent.
    pub(super) fn settle(&mut self, i: usize, answer: i32) -> Settled {
        let message = self.plan[i];
        match -answer {
            ..=0 => {
                if self.on_trial && message.cut {
                    // Alone it goes, so it was the path that could not take the train.
                    self.on_trial = false;
                    self.remember(message.destination);
                }
                self.sent += message.len;
                if message.ends_frame {
                    self.frame_done();
                }
                Settled::Sent
            }
            libc::EAGAIN => Settled::Blocked,
            // Cancelled because one before it failed, or a signal came first: nothing is wrong with it.
            libc::ECANCELED | libc::EINTR => Settled::Stopped,
            // What the kernel says, among other things, of a source address that this host does not have, or has lost.
            libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENETUNREACH if message.sourced => {
                self.sourceless = true;
                Settled::Stopped
            }
            libc::EIO | libc::EINVAL if message.train => {
                self.on_trial = true;
                Settled::Stopped
            }
            _ => {
                self.failed += 1;
                self.frame_done();
                Settled::Stopped
            }
        }
    }

    fn frame_done(&mut self) {
        self.frames.pop();
        self.sent = 0;
        self.on_trial = false;
        self.sourceless = false;
    }

    fn remember(&mut self, destination: SocketAddr) {
        if self.single_paths.contains(&destination) {
            return;
        }
        if self.single_paths.len() < SINGLE_PATHS_MAX {
            self.single_paths.push(destination);
        } else {
            self.single_paths[self.next_single] = destination;
            self.next_single = (self.next_single + 1) % SINGLE_PATHS_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> DatagramQueue {
        let config = UdpTxConfig { slots: 8, slot_len: 4096 };
        DatagramQueue::new(config, Exits::of([Exit { v6: false, lane: false }])).unwrap()
    }

    fn push(queue: &mut DatagramQueue, host: u8, len: usize, segment: u16) {
        let destination = Some(SocketAddr::from(([192, 0, 2, host], 9)));
        queue.slot(len).unwrap().fill(host);
        queue.commit(len, TxMeta { destination, segment, ..TxMeta::default() });
    }

    fn lens(queue: &mut DatagramQueue) -> Vec<usize> {
        queue.plan();
        queue.plan.iter().map(|message| message.len).collect()
    }

    #[test]
    fn what_was_not_sent_stays_in_order() {
        let mut queue = queue();
        (1..=4).for_each(|host| push(&mut queue, host, usize::from(host), 0));
        assert_eq!(lens(&mut queue), [1, 2, 3, 4]);
        assert_eq!(queue.settle(0, 1), Settled::Sent);
        assert_eq!(queue.settle(1, -libc::EAGAIN), Settled::Blocked);
        assert_eq!(lens(&mut queue), [2, 3, 4]);
        assert_eq!(queue.settle(0, -libc::ECANCELED), Settled::Stopped);
        assert_eq!((lens(&mut queue), queue.take_failed()), (vec![2, 3, 4], 0));
    }

    #[test]
    fn a_hard_error_drops_that_frame_only() {
        let mut queue = queue();
        (1..=3).for_each(|host| push(&mut queue, host, usize::from(host), 0));
        queue.plan();
        assert_eq!(queue.settle(0, -libc::ENETUNREACH), Settled::Stopped);
        assert_eq!((lens(&mut queue), queue.take_failed(), queue.take_failed()), (vec![2, 3], 1, 0));
    }

    #[test]
    fn a_path_that_refuses_trains_gets_datagrams_and_is_remembered() {
        let mut queue = queue();
        push(&mut queue, 1, 1000, 400);
        push(&mut queue, 2, 1000, 400);
        assert_eq!(lens(&mut queue), [1000, 1000]);
        assert_eq!(queue.settle(0, -libc::EIO), Settled::Stopped);
        assert_eq!(lens(&mut queue), [400, 400, 200, 1000], "only the path in question");
        assert_eq!(queue.settle(0, 400), Settled::Sent);
        assert_eq!(queue.single_paths(), ["192.0.2.1:9".parse().unwrap()]);
        assert_eq!(queue.settle(1, -libc::EAGAIN), Settled::Blocked);
        assert_eq!(lens(&mut queue), [400, 200, 1000], "goes on where it stopped");
        (0..3).for_each(|i| assert_eq!(queue.settle(i, 1), Settled::Sent));
        push(&mut queue, 1, 800, 400);
        assert_eq!(lens(&mut queue), [400, 400]);
        queue.forget_single_paths();
        assert_eq!(lens(&mut queue), [800]);
    }

    #[test]
    fn a_train_too_wide_for_its_path_does_not_condemn_the_path() {
        let mut queue = queue();
        push(&mut queue, 1, 3000, 1500);
        queue.plan();
        assert_eq!(queue.settle(0, -libc::EINVAL), Settled::Stopped);
        assert_eq!(lens(&mut queue), [1500, 1500]);
        assert_eq!(queue.settle(0, -libc::EMSGSIZE), Settled::Stopped);
        assert_eq!((queue.len(), queue.take_failed(), queue.single_paths().len()), (0, 1, 0));
    }

    #[test]
    fn trains_beyond_the_kernels_limit_are_cut_by_us() {
        let mut queue = queue();
        push(&mut queue, 1, 640, 10);
        assert_eq!(lens(&mut queue), [640], "64 datagrams are a train");
        queue.settle(0, 640);
        push(&mut queue, 1, 641, 10);
        assert_eq!(lens(&mut queue), [10; 64], "65 are not");
        (0..64).for_each(|i| assert_eq!(queue.settle(i, 10), Settled::Sent));
        assert_eq!(lens(&mut queue), [1]);
        assert_eq!(queue.settle(0, 1), Settled::Sent);
        assert_eq!((queue.len(), queue.single_paths().len()), (0, 0));
    }

    #[test]
    fn a_lost_source_address_is_left_to_the_routing_table_before_the_path_is_blamed() {
        let mut queue = queue();
        let destination = Some(SocketAddr::from(([192, 0, 2, 1], 9)));
        let source = Some([198, 51, 100, 1].into());
        for _ in 0..2 {
            queue.slot(1000).unwrap();
            queue.commit(1000, TxMeta { destination, source, segment: 400, ..TxMeta::default() });
        }
        let tried = |queue: &mut DatagramQueue| {
            queue.plan();
            queue.plan.iter().map(|message| (message.sourced, message.train)).collect::<Vec<_>>()
        };
        assert_eq!(tried(&mut queue), [(true, true); 2]);
        assert_eq!(queue.settle(0, -libc::EINVAL), Settled::Stopped);
        assert_eq!(tried(&mut queue), [(false, true), (true, true)], "only the frame in question");
        assert_eq!(queue.settle(0, -libc::EINVAL), Settled::Stopped, "so it was not the source");
        assert_eq!(tried(&mut queue)[..3], [(false, false); 3]);
        (0..3).for_each(|i| assert_eq!(queue.settle(i, 400), Settled::Sent));
        assert_eq!((queue.single_paths().len(), queue.take_failed()), (1, 0));
        assert!(tried(&mut queue)[0].0, "the next frame tries its source again");
        assert_eq!(queue.settle(0, -libc::EADDRNOTAVAIL), Settled::Stopped);
        tried(&mut queue);
        assert_eq!(queue.settle(0, -libc::EADDRNOTAVAIL), Settled::Stopped);
        assert_eq!((queue.len(), queue.take_failed()), (0, 1), "without it there is nothing left to try");
    }

    #[test]
    fn lane_frames_leave_by_the_lane_port_where_there_is_one() {
        let config = UdpTxConfig { slots: 8, slot_len: 64 };
        let v4 = |lane| Exit { v6: false, lane };
        for exits in [vec![v4(false), v4(true)], vec![v4(false)]] {
            let mut queue = DatagramQueue::new(config, Exits::of(exits.iter().copied())).unwrap();
            for lane_port in [true, false] {
                let destination = Some(SocketAddr::from(([192, 0, 2, 1], 9)));
                queue.slot(1).unwrap();
                queue.commit(1, TxMeta { destination, lane_port, ..TxMeta::default() });
            }
            assert_eq!(queue.plan(), 2);
            assert_eq!([queue.exit(0), queue.exit(1)], [v4(exits.len() == 2), v4(false)]);
        }
    }

    #[test]
    fn a_single_datagram_is_no_train_whatever_the_segment() {
        let mut queue = queue();
        push(&mut queue, 1, 400, 400);
        queue.plan();
        assert!(!queue.plan[0].train && !queue.plan[0].cut);
        push(&mut queue, 1, 401, 400);
        queue.plan();
        assert!(queue.plan[1].train);
    }

    #[test]
    fn a_frame_without_a_socket_to_leave_by_fails() {
        let mut queue = queue();
        for destination in [None, Some("[2001:db8::1]:9".parse().unwrap())] {
            queue.slot(1).unwrap();
            queue.commit(1, TxMeta { destination, ..TxMeta::default() });
        }
        assert_eq!((queue.len(), queue.take_failed()), (0, 2));
    }

    #[test]
    fn remembered_paths_are_bounded() {
        let mut queue = queue();
        for port in 0..=SINGLE_PATHS_MAX as u16 {
            queue.remember(SocketAddr::from(([192, 0, 2, 1], port)));
        }
        assert_eq!(queue.single_paths().len(), SINGLE_PATHS_MAX);
        assert_eq!(queue.single_paths()[0].port(), SINGLE_PATHS_MAX as u16);
    }
}
