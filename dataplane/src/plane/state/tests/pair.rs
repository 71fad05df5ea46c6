//! Two planes and their engines: what one seals the other opens.

use weir_abi::wire::DataHeader;

use super::*;
use crate::engine::Engine;
use crate::engine::counters::Counters;
use crate::engine::port::{RxBurst, RxMeta, TxMeta, TxSink};

/// Frames in memory, for either side of an engine.
#[derive(Default)]
struct Frames {
    frames: Vec<Vec<u8>>,
    scratch: Vec<u8>,
}

impl RxBurst for Frames {
    fn len(&self) -> usize {
        self.frames.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        (&mut self.frames[i], RxMeta::default())
    }
}

impl TxSink for Frames {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.scratch = vec![0; len];
        Some(&mut self.scratch)
    }

    fn commit(&mut self, len: usize, _: TxMeta) {
        self.frames.push(self.scratch[..len].to_vec());
    }
}

/// An IPv6 packet between two planes' networks.
fn packet(from: u16, to: u16) -> Vec<u8> {
    let address = |number: u16| std::net::Ipv6Addr::new(0xfd00, number, 0, 0, 0, 0, 0, 5).octets();
    // Version 6, eight bytes of an experimental protocol (RFC 3692), 64 hops.
    let header = [0x60, 0, 0, 0, 0, 8, 253, 64];
    [&header[..], &address(from), &address(to), b"payload!"].concat()
}

fn engines(state: &mut State<Seeded>, engines: &mut Vec<Engine>) {
    for worker in engines.len() as u8..state.fixed.workers {
        engines.push(Engine::new(worker, Counters::new()));
    }
    for effect in effects(state) {
        if let Effect::Worker(worker, command) = effect {
            engines[usize::from(worker)].command(command, START);
        }
    }
}

#[test]
fn planes_that_install_each_others_offers_open_each_others_datagrams() {
    // Different numbers of workers, and one side without AES.
    let (mut left, mut right) = (plane(1, 2), plane(2, 3));
    right.fixed.has_aes = false;
    let (mut left_engines, mut right_engines) = (vec![], vec![]);
    for (state, us, them) in [(&mut left, 1, 2), (&mut right, 2, 1)] {
        let routes = vec![local(&format!("fd00:{us}::/32")), to_session(&format!("fd00:{them}::/32"), 7)];
        done(state, Request::StageRoutes(routes), START);
        done(state, Request::CommitRoutes, START);
    }
    // Once to come up, once to rekey.
    for _ in 0..2 {
        let (left_reservation, left_offer) = reserve(&mut left, 3, START);
        let (right_reservation, right_offer) = reserve(&mut right, 3, START);
        for (state, reservation, peer, initiator, them) in
            [(&mut left, left_reservation, right_offer, true, 2), (&mut right, right_reservation, left_offer, false, 1)]
        {
            let sources = vec![prefix(&format!("fd00:{them}::/32"))];
            let install = Install { peer, initiator, sources, ..install(state, 7, reservation) };
            done(state, Request::Install(Box::new(install)), START);
        }
        engines(&mut left, &mut left_engines);
        engines(&mut right, &mut right_engines);
        packets_cross(&mut left_engines, &mut right_engines, 1, 2);
        packets_cross(&mut right_engines, &mut left_engines, 2, 1);
    }
}

/// Has each sealing worker send a packet, and the worker that its lane names open it.
fn packets_cross(sealing: &mut [Engine], opening: &mut [Engine], from: u16, to: u16) {
    for sender in sealing {
        let (mut wan, mut lan) = (Frames::default(), Frames::default());
        let mut out = Frames { frames: vec![packet(from, to)], scratch: vec![] };
        sender.encapsulate(START, &mut out, &mut wan, &mut lan);
        assert_eq!((wan.frames.len(), lan.frames.len()), (1, 0), "{:?}", sender.counters());
        let header = DataHeader::parse(&wan.frames[0]).unwrap();
        let opener = &mut opening[usize::from(header.receiver.worker())];
        let (mut inside, mut back) = (Frames::default(), Frames::default());
        opener.decapsulate(START, &mut wan, &mut inside, &mut back);
        assert_eq!(inside.frames, [packet(from, to)], "{:?}", opener.counters());
    }
}
