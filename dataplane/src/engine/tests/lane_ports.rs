//! Lane ports: nothing goes there before an answer came from there, and everything else does not notice.
//!
//! Both gateways have three lane ports. Gateway 2 is worker 2, so the lane towards it goes to its port + 2; the lane's own number is 0, so
//! answers go to the common port of gateway 1, as for any worker without a port of its own.

use std::time::Duration;

use super::rig::*;
use crate::engine::block::Control;
use crate::engine::lane_port::{CONFIRMATION_INTERVAL_MAX, MAX_LOSSES, SharedLanePorts};
use crate::engine::*;

const PORTS: u8 = 3;

fn session(gateway: &mut Gateway, m: u8) -> &mut Session {
    gateway.engine.sessions[usize::from(m)].as_mut().unwrap()
}

fn shared(m: u8) -> Arc<SharedLanePorts> {
    Arc::new(SharedLanePorts::new(endpoint(m), PORTS))
}

/// Gateways 1 and 2, and what the first knows of the second's lane ports.
fn with_lane_ports() -> (Gateway, Gateway, Arc<SharedLanePorts>) {
    let (mut one, mut two) = pair(&Link::default());
    let ports = shared(2);
    session(&mut one, 2).use_lane_ports(Arc::clone(&ports));
    session(&mut two, 1).use_lane_ports(shared(1));
    (one, two, ports)
}

fn lane_port() -> std::net::SocketAddr {
    ([192, 0, 2, 2], 4648).into()
}

/// What arrives of what was sent, at the lane port where it was sent there.
fn arriving(sink: Sink) -> Burst {
    let received = |(bytes, meta): (Vec<u8>, TxMeta)| {
        let lane_port = meta.destination == Some(lane_port());
        (bytes, RxMeta { segment: meta.segment, lane_port, ..RxMeta::default() })
    };
    Burst(sink.frames.into_iter().map(received).collect())
}

fn ways(sink: &Sink) -> Vec<(Option<std::net::SocketAddr>, bool)> {
    sink.frames.iter().map(|(_, meta)| (meta.destination, meta.lane_port)).collect()
}

/// What a worker sends when it is its turn.
fn turn(gateway: &mut Gateway, now: Time) -> Sink {
    let mut wan = Sink::new();
    gateway.engine.expire(now);
    gateway.engine.send_waiting(now, &mut wan);
    wan
}

/// Sends a packet each millisecond; `reaches` tells whether the lane port can be reached. Returns how many packets arrived and how many
/// of the last hundred datagrams went by the lane port.
fn exchange(one: &mut Gateway, two: &mut Gateway, from: Time, millis: u64, reaches: bool) -> (usize, usize, Time) {
    let (mut arrived, mut by_lane, mut now) = (0, vec![], from);
    for i in 0..millis {
        now = now.plus(Duration::from_millis(1));
        let (mut wan, _) = one.encapsulate(now, Burst::of([v4(1, 2, 100, i as usize)]));
        by_lane.push(wan.frames[0].1.destination == Some(lane_port()));
        wan.frames.extend(turn(one, now).frames);
        wan.frames.retain(|(_, meta)| reaches || meta.destination != Some(lane_port()));
        let (lan, back) = two.decapsulate(now, arriving(wan));
        arrived += lan.frames.len();
        one.decapsulate(now, Burst::trains(back));
    }
    let last = by_lane.iter().rev().take(100).filter(|by_lane| **by_lane).count();
    (arrived, last, now)
}

#[test]
fn a_request_goes_from_lane_port_to_lane_port_and_so_does_the_answer_before_any_data() {
    let (mut one, mut two, ports) = with_lane_ports();
    let (wan, _) = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    assert_eq!(ways(&wan), [(Some(endpoint(2)), false)]);
    one.moved();
    let now = START.plus(Duration::from_millis(2));
    let request = turn(&mut one, now);
    assert_eq!(ways(&request), [(Some(lane_port()), true)]);
    assert_eq!(
        one.moved(),
        [("sealed_datagrams", 1), ("sealed_bytes", 42), ("sent_trains", 1), ("sent_lane_probes", 1)]
    );
    two.decapsulate(now, Burst::trains(wan));
    let (lan, reply) = two.decapsulate(now, arriving(request));
    assert_eq!((lan.frames.len(), ways(&reply)), (0, vec![(Some(endpoint(1)), true)]));
    assert_eq!(ports.in_use(), 0);
    one.decapsulate(now, Burst::trains(reply));
    assert_eq!(ports.in_use(), 1);
    let (wan, _) = one.encapsulate(now, Burst::of([v4(1, 2, 100, 1)]));
    assert_eq!(ways(&wan), [(Some(lane_port()), true)]);
    assert_eq!((one.dropped(), two.dropped()), (0, 0));
}

#[test]
fn a_request_that_comes_to_the_common_port_is_not_answered() {
    let (mut one, mut two, _) = with_lane_ports();
    one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    let request = turn(&mut one, START.plus(Duration::from_millis(2)));
    let (_, reply) = two.decapsulate(START, Burst::trains(request));
    assert_eq!(reply.frames, []);
}

#[test]
fn a_lane_port_that_is_out_of_reach_costs_probes_and_no_packet() {
    let (mut one, mut two, ports) = with_lane_ports();
    let (arrived, by_lane, _) = exchange(&mut one, &mut two, START, 5000, false);
    assert_eq!((arrived, by_lane, ports.in_use()), (5000, 0, 0));
    assert!(one.moved().contains(&("sent_lane_probes", MAX_LOSSES as u64)));
}

#[test]
fn a_lane_port_that_becomes_blocked_is_left_within_the_interval_and_three_answers() {
    let (mut one, mut two, ports) = with_lane_ports();
    let (arrived, by_lane, now) = exchange(&mut one, &mut two, START, 10_000, true);
    assert_eq!((arrived, by_lane, ports.in_use()), (10_000, 100, 1));
    let limit = CONFIRMATION_INTERVAL_MAX + Duration::from_millis(200) * MAX_LOSSES as u32;
    let (_, by_lane, now) = exchange(&mut one, &mut two, now, limit.as_millis() as u64 + 101, false);
    assert_eq!((by_lane, ports.in_use()), (0, 0));
    let (arrived, ..) = exchange(&mut one, &mut two, now, 1000, false);
    assert_eq!(arrived, 1000, "by the common port nothing is lost");
}

#[test]
fn a_rekey_goes_on_by_the_lane_port_and_a_removed_session_leaves_no_timer() {
    let (mut one, mut two, ports) = with_lane_ports();
    let (_, _, now) = exchange(&mut one, &mut two, START, 100, true);
    let link = Link { exchange: EXCHANGE + 1, now, ..Link::default() };
    let mut fresh = Gateway::new(1, &[2]);
    fresh.install(2, &link);
    let mut again = fresh.engine.sessions[2].take().unwrap();
    again.use_lane_ports(Arc::clone(&ports));
    one.engine.command(Command::Install { slot: slot(2), session: again, lanes: vec![] }, now);
    let (wan, _) = one.encapsulate(now, Burst::of([v4(1, 2, 100, 0)]));
    assert_eq!((ways(&wan)[0], ports.in_use()), ((Some(lane_port()), true), 1));
    one.engine.command(Command::Remove(slot(2)), now);
    assert_eq!(one.engine.next_deadline(), None);
}

#[test]
fn answers_that_nobody_asked_for_change_nothing() {
    let (mut gateway, link) = (Gateway::new(2, &[1]), Link::default());
    let mut attacker = Attacker::against(&mut gateway, 1, &link);
    let mut block = [0; Control::LEN_MAX];
    for control in [Control::LaneReply([7; 8]), Control::LaneReply([0xff; 8]), Control::LaneRequest([7; 8])] {
        control.encode(&mut block);
        let datagram = attacker.sealed(&block, START);
        gateway.decapsulate(START, Burst::of([datagram]));
    }
    assert!(gateway.moved().contains(&("control_malformed", 3)), "a session without lane ports");
    let ports = shared(1);
    session(&mut gateway, 1).use_lane_ports(Arc::clone(&ports));
    for token in 0..=u8::MAX {
        Control::LaneReply([0, 0, 0, 0, 0, 0, 0, token]).encode(&mut block);
        let datagram = attacker.sealed(&block, START);
        let (_, wan) = gateway.decapsulate(START, Burst::of([datagram]));
        assert_eq!(wan.frames, []);
    }
    assert_eq!((ports.in_use(), gateway.dropped()), (0, 0));
}
