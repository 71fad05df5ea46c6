use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{ConnectionId, Side as QuicSide};

use super::world::{Flight, LATENCY, World, address, id, member};
use crate::pki::certificate::Serial;
use crate::pki::fixture::{DAY, NETWORK, around_now, leaf_key};
use crate::pki::revocation::{Entry, Revoked, SignedRevocationList};
use crate::pki::trust::Trust;
use crate::pki::verifier::VerifyError;
use crate::quic::crypto::{SERVER_NAME, initial_keys};
use crate::quic::{
    Alpn, CloseReason, DialError, DialTarget, Event, ExportError, GROUP_X25519MLKEM768, LeafIdentity, Limits, LinkId,
    Proof, SendError, Side,
};

#[test]
fn a_handshake_on_each_protocol_takes_one_round_trip_and_agrees_on_the_hybrid_group() {
    for wanted in Alpn::ALL {
        let mut world = World::new(2);
        let (ours, theirs) = world.connect(0, 1, wanted);
        for (index, of, side) in [(0, ours, Side::Dialled), (1, theirs, Side::Accepted)] {
            let Some(Event::Connected { alpn, side: found, peer, chain, remote, group, suite, took, .. }) =
                world.connected(index, of)
            else {
                panic!("not connected");
            };
            assert_eq!((*alpn, *found, *remote), (wanted, side, address(1 - index)));
            assert_eq!((*group, *suite, *took), (GROUP_X25519MLKEM768, 0x1303, 2 * LATENCY));
            let shows = side == Side::Dialled || wanted != Alpn::Join;
            assert_eq!(peer.as_ref().map(|peer| peer.node), shows.then(|| id(1 - index)));
            assert_eq!(chain.len(), if shows { 2 } else { 0 });
        }
        let opening = world.nodes[1].events.iter().find(|event| matches!(event, Event::Opening { .. }));
        assert!(matches!(opening, Some(Event::Opening { alpn, link, .. }) if *alpn == wanted && *link == theirs));
    }
}

#[test]
fn what_the_accepting_side_says_at_once_is_there_when_the_dialling_side_connects() {
    let mut world = World::new(2);
    world.nodes[1].greeting = Some(b"indices".to_vec());
    let begin = world.now;
    let ours = world.dial(0, 1, Alpn::Key);
    world.run_until(Duration::from_secs(1), |world| !world.messages(0, ours).is_empty());
    assert_eq!(world.now.mono - begin.mono, 2 * LATENCY);
    assert!(world.connected(0, ours).is_some());
    assert!(world.connected(1, LinkId(1)).is_none(), "the other side waits for the Finished");
    assert_eq!(world.messages(0, ours), [b"indices"]);
    // And the other way: with the Finished.
    world.send(0, ours, b"ours");
    world.run_until(Duration::from_secs(1), |world| !world.messages(1, LinkId(1)).is_empty());
    assert_eq!(world.now.mono - begin.mono, 3 * LATENCY);
    assert!(world.connected(1, LinkId(1)).is_some());
}

/// It was told as a broken rule, and counted as one.
#[test]
fn a_link_that_is_closed_before_its_handshake_ends_was_closed_by_the_peer() {
    let mut world = World::new(2);
    let ours = world.dial(0, 1, Alpn::Member);
    let opening = |world: &World| world.nodes[1].events.iter().any(|event| matches!(event, Event::Opening { .. }));
    world.run_until(Duration::from_secs(1), opening);
    let now = world.now;
    world.nodes[1].driver.close(LinkId(1), 0x105, "no room", now);
    world.run(Duration::from_secs(1));
    let reason = world.closed(0, ours);
    assert!(matches!(reason, Some(CloseReason::Peer { code: 0, words }) if words.ends_with("handshake")), "{reason:?}");
    let counted = world.nodes[0].driver.counters();
    assert_eq!((counted.closed, counted.protocol_errors), (1, 0));
}

#[test]
fn keys_are_exported_alike_and_only_after_the_client_is_verified() {
    let mut world = World::new(2);
    let ours = world.dial(0, 1, Alpn::Key);
    let export = |world: &World, index: usize, link, context: &[u8]| {
        world.nodes[index].driver.export(link, b"EXPORTER-weir", context).map(|key| *key)
    };
    assert_eq!(export(&world, 0, ours, b""), Err(ExportError::NotYet));
    world.run_until(Duration::from_secs(1), |world| world.connected(0, ours).is_some());
    let first = export(&world, 0, ours, b"ab").unwrap();
    // The accepting side has the secrets by now, and does not know yet who the other is.
    assert_eq!(export(&world, 1, LinkId(1), b"ab"), Err(ExportError::NotYet));
    world.run_until(Duration::from_secs(1), |world| world.connected(1, LinkId(1)).is_some());
    assert_eq!(export(&world, 1, LinkId(1), b"ab"), Ok(first));
    assert_ne!(export(&world, 1, LinkId(1), b"abc"), Ok(first));
    let now = world.now;
    world.nodes[0].driver.close(ours, 0, "", now);
    assert_eq!(export(&world, 0, ours, b"ab"), Err(ExportError::Closed));
    assert_eq!(export(&world, 0, LinkId(99), b"ab"), Err(ExportError::Closed));
}

#[test]
fn another_node_than_the_dialled_one_is_refused_by_name() {
    let mut world = World::new(3);
    let link = world.dial_at(0, 1, Alpn::Member, address(2));
    world.run(Duration::from_secs(1));
    match world.only_end(0) {
        CloseReason::Refused(VerifyError::OtherNode { expected, found }) => {
            assert_eq!((*expected, *found), (id(1), id(2)));
        }
        other => panic!("{other}"),
    }
    assert!(world.connected(0, link).is_none());
    assert!(matches!(world.only_end(2), CloseReason::RefusedByPeer { alert: 49 }), "{}", world.only_end(2));
    assert_eq!(world.nodes[0].driver.counters().certificates_refused, 1);
}

fn revoke(world: &mut World, at: usize, what: usize) {
    let revoker = crate::pki::fixture::key(77);
    let mut bundle = world.network.bundle.clone();
    bundle.revokers = vec![revoker.public()];
    let entry = Entry { what: Revoked::Node(id(what)), reason: "stolen".into(), at: world.now.wall };
    let until = world.now.wall.plus(Duration::from_secs(3600));
    let list = SignedRevocationList::sign(&revoker, 1, world.now.wall, until, vec![entry]);
    let mut revoked = crate::pki::revocation::RevocationSet::default();
    revoked.apply(list, &bundle).unwrap();
    let trust = world.nodes[at].trust.as_ref().unwrap();
    trust.replace(Trust { network: NETWORK, bundle: Arc::new(bundle), revoked: Arc::new(revoked) });
}

#[test]
fn revoked_members_are_refused_on_either_side() {
    let mut world = World::new(2);
    revoke(&mut world, 1, 0);
    let link = world.dial(0, 1, Alpn::Member);
    world.run(Duration::from_secs(1));
    assert!(matches!(world.only_end(1), CloseReason::Refused(VerifyError::NodeRevoked(node)) if *node == id(0)));
    assert!(world.connected(1, LinkId(1)).is_none());
    // The dialling side was connected for a moment, as TLS 1.3 has it, and is told.
    assert!(matches!(world.closed(0, link), Some(CloseReason::RefusedByPeer { alert: 44 })));

    let mut world = World::new(2);
    revoke(&mut world, 0, 1);
    let link = world.dial(0, 1, Alpn::Member);
    world.run(Duration::from_secs(1));
    assert!(matches!(world.only_end(0), CloseReason::Refused(VerifyError::NodeRevoked(node)) if *node == id(1)));
    assert!(world.connected(0, link).is_none());
    assert!(matches!(world.only_end(1), CloseReason::RefusedByPeer { alert: 44 }));
}

#[test]
fn expired_certificates_are_refused() {
    let mut world = World::new(2);
    let later = world.now.wall.plus(Duration::from_secs(9 * DAY));
    world.nodes[0].trust.as_ref().unwrap().set_now(later);
    world.dial(0, 1, Alpn::Member);
    world.run(Duration::from_secs(1));
    assert!(matches!(world.only_end(0), CloseReason::Refused(VerifyError::Expired(_))), "{}", world.only_end(0));
    assert!(matches!(world.only_end(1), CloseReason::RefusedByPeer { alert: 45 }));
    assert_eq!(world.only_end(0).name(), "expired");
}

#[test]
fn a_joiner_dials_by_the_id_alone() {
    let mut world = World::new(1);
    world.add(5, false, Limits::default());
    let (now, remote) = (world.now, address(0));
    let target = |node, proof| DialTarget { proof, ..DialTarget::member(node) };
    let joiner = &mut world.nodes[1].driver;
    let dialled = joiner.dial(Alpn::Member, &target(id(0), Proof::Chain), remote, now);
    assert_eq!(dialled, Err(DialError::NoIdentity));
    assert_eq!(joiner.dial(Alpn::Join, &target(id(0), Proof::Chain), remote, now), Err(DialError::NoTrust));
    let right = joiner.dial(Alpn::Join, &target(id(0), Proof::IdOnly), remote, now).unwrap();
    let wrong = joiner.dial(Alpn::Join, &target(id(3), Proof::IdOnly), remote, now).unwrap();
    let unknown = DialTarget { proof: Proof::Later, ..DialTarget::any_member() };
    let whichever = joiner.dial(Alpn::Join, &unknown, remote, now).unwrap();
    world.run(Duration::from_secs(1));
    match world.connected(1, right) {
        Some(Event::Connected { peer: None, chain, alpn: Alpn::Join, .. }) => {
            assert_eq!(world.network.chain(member(0)).iter().map(|der| der.to_vec()).collect::<Vec<_>>(), *chain);
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(world.connected(1, whichever), Some(Event::Connected { peer: None, chain, .. }) if !chain.is_empty())
    );
    assert!(matches!(world.closed(1, wrong), Some(CloseReason::Refused(VerifyError::OtherNode { .. }))));
    let keys =
        [(1, right), (0, LinkId(1))].map(|(index, link)| *world.nodes[index].driver.export(link, b"l", b"").unwrap());
    assert_eq!(keys[0], keys[1]);
    // Nobody can dial somebody who has no certificate: there is silence.
    let link = world.dial_at(0, 5, Alpn::Member, address(5));
    world.run(Duration::from_secs(40));
    assert!(matches!(world.closed(0, link), Some(CloseReason::HandshakeTimedOut)));
}

/// Where only an address is known, whoever shows a good chain is whom we wanted, and learns nothing of who asks.
#[test]
fn whichever_member_answers_is_told_by_its_chain() {
    let mut world = World::new(2);
    let (now, target) = (world.now, DialTarget::any_member());
    let dialled = world.nodes[0].driver.dial(Alpn::Join, &target, address(1), now).unwrap();
    let no_id = DialTarget { proof: Proof::IdOnly, ..DialTarget::any_member() };
    assert_eq!(world.nodes[0].driver.dial(Alpn::Join, &no_id, address(1), now), Err(DialError::NoId));
    world.run(Duration::from_secs(1));
    assert_eq!(world.peer(0, dialled).unwrap().node, id(1));
    assert!(
        matches!(world.connected(1, LinkId(1)), Some(Event::Connected { peer: None, chain, .. }) if chain.is_empty())
    );
    // One whose certificate has ended is none.
    let later = world.now.wall.plus(Duration::from_secs(9 * DAY));
    world.nodes[0].trust.as_ref().unwrap().set_now(later);
    let now = world.now;
    let ended = world.nodes[0].driver.dial(Alpn::Join, &target, address(1), now).unwrap();
    world.run(Duration::from_secs(1));
    assert!(matches!(world.closed(0, ended), Some(CloseReason::Refused(VerifyError::Expired(_)))));
}

#[test]
fn a_new_certificate_is_for_new_links_and_leaves_the_old_ones_alone() {
    let mut world = World::new(2);
    let (ours, _) = world.connect(0, 1, Alpn::Member);
    let mut spec = world.network.spec(member(1));
    (spec.validity, spec.serial) = (around_now(60, 2 * DAY), Serial::from_bytes([99; 16]));
    spec.leaf_public = leaf_key(42).public();
    let ends = spec.validity.not_after;
    let chain: Vec<Vec<u8>> = world.network.chain_of(&spec).iter().map(|der| der.to_vec()).collect();
    assert!(LeafIdentity::new(&chain, &leaf_key(member(1))).is_err(), "the key is another's");
    let renewed = LeafIdentity::new(&chain, &leaf_key(42)).unwrap();
    world.nodes[1].driver.set_identity(renewed);
    let (new, _) = world.connect(0, 1, Alpn::Key);
    assert_eq!(world.peer(0, new).unwrap().not_after, ends);
    assert_ne!(world.peer(0, ours).unwrap().not_after, ends);
    world.send(0, ours, b"still here");
    world.run(Duration::from_secs(1));
    assert_eq!(world.messages(1, LinkId(1)), [b"still here"]);
    // And as the one who dials.
    let (_, theirs) = world.connect(1, 0, Alpn::Member);
    assert_eq!(world.peer(0, theirs).unwrap().not_after, ends);
}

/// What an Initial says, without any secret (RFC 9001 §5).
fn opened_initial(flight: &Flight, original: &[u8], side: QuicSide) -> Option<Vec<u8>> {
    let bytes = &flight.bytes;
    if bytes[0] & 0xf0 != 0xc0 {
        return None;
    }
    let number = |at: usize| -> (usize, usize) {
        let len = 1 << (bytes[at] >> 6);
        let value = bytes[at + 1..at + len].iter().fold(usize::from(bytes[at] & 0x3f), |n, b| n << 8 | usize::from(*b));
        (value, at + len)
    };
    let dcid_end = 6 + usize::from(bytes[5]);
    let scid_end = dcid_end + 1 + usize::from(bytes[dcid_end]);
    let (token, at) = number(scid_end);
    let (len, pn_at) = number(at + token);
    let mut packet = bytes[..pn_at + len].to_vec();
    // The keys of who reads what `side` wrote.
    let keys = initial_keys(&ConnectionId::new(original), !side);
    keys.header.remote.decrypt(pn_at, &mut packet);
    let pn_len = usize::from(packet[0] & 3) + 1;
    let pn = packet[pn_at..pn_at + pn_len].iter().fold(0, |n, b| n << 8 | u64::from(*b));
    let (header, body) = packet.split_at(pn_at + pn_len);
    let mut plain = body.into();
    keys.packet.remote.decrypt(pn, header, &mut plain).unwrap();
    Some(plain.to_vec())
}

#[test]
fn initials_name_nobody_though_everybody_can_open_them() {
    let mut world = World::new(2);
    world.connect(0, 1, Alpn::Member);
    let original = world.log[0].bytes[6..26].to_vec();
    let side = |flight: &Flight| if flight.from == address(0) { QuicSide::Client } else { QuicSide::Server };
    let opened: Vec<Vec<u8>> =
        world.log.iter().filter_map(|flight| opened_initial(flight, &original, side(flight))).collect();
    assert!(opened.len() >= 3, "two of the client's and one of the server's");
    let contains = |what: &[u8]| opened.iter().any(|plain| plain.windows(what.len()).any(|window| window == what));
    assert!(contains(Alpn::Member.wire()), "the opening works");
    let names = [
        NETWORK.0.to_vec(),
        NETWORK.to_string().into_bytes(),
        id(0).0.to_vec(),
        id(1).0.to_vec(),
        id(0).to_string().into_bytes(),
        id(1).to_string().into_bytes(),
        b"mynet".to_vec(),
        b"berlin".to_vec(),
        SERVER_NAME.as_bytes().to_vec(),
    ];
    for name in names {
        assert!(!contains(&name), "{}", String::from_utf8_lossy(&name));
    }
    let datagrams: HashSet<usize> = world.log[..2].iter().map(|flight| flight.bytes.len()).collect();
    assert_eq!(datagrams, HashSet::from([1200]), "a hybrid ClientHello takes two Initials of the least path MTU");
}

#[test]
fn nothing_can_be_said_before_its_time() {
    let mut world = World::new(2);
    let link = world.dial(0, 1, Alpn::Member);
    assert_eq!(world.nodes[0].driver.send(link, b"early"), Err(SendError::NotYet));
    assert_eq!(world.nodes[0].driver.send(LinkId(99), b"to nobody"), Err(SendError::Closed));
    let now = world.now;
    world.nodes[0].driver.close(link, 0x101, "done", now);
    assert_eq!(world.nodes[0].driver.send(link, b"late"), Err(SendError::Closed));
    world.run(Duration::from_secs(1));
    assert!(matches!(world.only_end(0), CloseReason::Local { code: 0x101 }));
    assert_eq!(world.nodes[0].driver.remote(link), None);
}
