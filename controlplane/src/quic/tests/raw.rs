//! A client that is not ours: quinn-proto with its own wrapper of rustls, which does what our own side never would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event as QuicEvent,
    TransportConfig, VarInt,
};
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::world::{World, address, id, member};
use crate::pki::fixture::leaf_key;
use crate::quic::verifier::{Judge, PeerVerifier};
use crate::quic::{Alpn, CloseReason, Transmit, code};

#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

struct Raw {
    endpoint: Endpoint,
    handle: ConnectionHandle,
    conn: Connection,
    from: SocketAddr,
    tickets: Arc<Tickets>,
    connected: bool,
    lost: Option<ConnectionError>,
    stopped: Vec<VarInt>,
}

impl Raw {
    /// Dials node 0 as member 8, with or without its certificate.
    fn dial(world: &World, alpn: Alpn, classical: bool, certificate: bool) -> Self {
        let mut provider = default_provider();
        if classical {
            provider.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
        }
        let judge = Judge::Chain { trust: world.nodes[0].trust.clone().unwrap(), dialled: Some(id(0)) };
        let verifier = PeerVerifier { judge, verdict: Arc::default() };
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut tls = if certificate {
            let pkcs8 = PrivatePkcs8KeyDer::from(leaf_key(member(8)).to_pkcs8().unwrap().to_vec());
            builder.with_client_auth_cert(world.network.chain(member(8)), pkcs8.into()).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        let tickets = Arc::new(Tickets::default());
        tls.alpn_protocols = vec![alpn.wire().to_vec()];
        tls.resumption = Resumption::store(Arc::clone(&tickets) as _);
        let mut config = quinn_proto::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(TransportConfig::default()));
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let (handle, conn) = endpoint.connect(world.now.mono, config, address(0), "some.example").unwrap();
        Self { endpoint, handle, conn, from: address(8), tickets, connected: false, lost: None, stopped: Vec::new() }
    }

    fn run(&mut self, world: &mut World, steps: usize) {
        for _ in 0..steps {
            self.step(world);
        }
    }

    fn step(&mut self, world: &mut World) {
        let now = world.now.mono;
        for flight in std::mem::take(&mut world.unclaimed) {
            let mut answer = Vec::new();
            let event = self.endpoint.handle(now, flight.from, None, None, (&flight.bytes[..]).into(), &mut answer);
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                self.conn.handle_event(event);
            }
        }
        if self.conn.poll_timeout().is_some_and(|at| at <= now) {
            self.conn.handle_timeout(now);
        }
        while let Some(event) = self.conn.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.conn.handle_event(event);
            }
        }
        while let Some(event) = self.conn.poll() {
            match event {
                QuicEvent::Connected => self.connected = true,
                QuicEvent::ConnectionLost { reason } => self.lost = Some(reason),
                QuicEvent::Stream(quinn_proto::StreamEvent::Stopped { error_code, .. }) => {
                    self.stopped.push(error_code)
                }
                _ => {}
            }
        }
        let mut buf = Vec::new();
        while let Some(sent) = self.conn.poll_transmit(now, 1, &mut buf) {
            let transmit = Transmit {
                to: sent.destination,
                from_ip: None,
                ecn: None,
                len: sent.size,
                segment_len: sent.segment_size,
            };
            world.launch(self.from, &transmit, &buf);
            buf.clear();
        }
        world.run(Duration::from_millis(1));
    }

    fn say(&mut self, bytes: &[u8]) {
        let stream = self.conn.streams().open(Dir::Uni).unwrap();
        assert_eq!(self.conn.send_stream(stream).write(bytes).unwrap(), bytes.len());
    }

    fn alert(&self) -> Option<u64> {
        match &self.lost {
            Some(ConnectionError::ConnectionClosed(close)) => Some(u64::from(close.error_code) - 0x100),
            _ => None,
        }
    }
}

#[test]
fn a_client_that_offers_classical_groups_only_is_refused() {
    let mut world = World::new(1);
    let mut raw = Raw::dial(&world, Alpn::Member, true, true);
    raw.run(&mut world, 100);
    assert_eq!((raw.connected, raw.alert()), (false, Some(40)), "handshake_failure");
    assert_eq!((world.nodes[0].driver.counters().accept_failed, world.nodes[0].driver.links()), (1, 0));
}

#[test]
fn another_implementation_with_the_hybrid_group_is_served_and_gets_no_ticket() {
    let mut world = World::new(1);
    let mut raw = Raw::dial(&world, Alpn::Member, false, true);
    raw.run(&mut world, 50);
    raw.say(b"\x01\0\0\0\x02hi\0\0\0\0");
    raw.run(&mut world, 200);
    assert_eq!((raw.connected, &raw.lost), (true, &None));
    assert_eq!(raw.tickets.0.load(Ordering::Relaxed), 0);
    let link = crate::quic::LinkId(1);
    assert_eq!(world.peer(0, link).map(|peer| peer.node), Some(id(8)));
    assert_eq!(world.messages(0, link), [&b"hi"[..], b""]);
}

#[test]
fn a_link_for_members_needs_a_certificate() {
    for alpn in [Alpn::Member, Alpn::Key] {
        let mut world = World::new(1);
        let mut raw = Raw::dial(&world, alpn, false, false);
        raw.run(&mut world, 100);
        assert!(matches!(world.only_end(0), CloseReason::NoCertificate));
        assert!(world.connected(0, crate::quic::LinkId(1)).is_none());
        match raw.lost {
            Some(ConnectionError::ApplicationClosed(close)) => {
                assert_eq!(close.error_code, VarInt::from_u32(code::NO_CERTIFICATE));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(world.nodes[0].driver.counters().no_certificate, 1);
    }
}

#[test]
fn a_stranger_on_a_link_to_join_has_short_messages_only() {
    let mut world = World::new(1);
    let mut raw = Raw::dial(&world, Alpn::Join, false, false);
    raw.run(&mut world, 50);
    raw.say(&[&[1, 0, 0, 0, 3][..], b"abc", &(64u32 << 10).to_be_bytes()].concat());
    raw.run(&mut world, 50);
    assert_eq!(world.messages(0, crate::quic::LinkId(1)), [b"abc"]);
    assert!(world.closed(0, crate::quic::LinkId(1)).is_none());
    let mut raw = Raw::dial(&world, Alpn::Join, false, false);
    raw.run(&mut world, 50);
    raw.say(&[&[1][..], &((64u32 << 10) + 1).to_be_bytes()].concat());
    raw.run(&mut world, 50);
    assert!(matches!(world.closed(0, crate::quic::LinkId(2)), Some(CloseReason::Protocol(_))));
}

#[test]
fn streams_of_unknown_types_are_refused_and_the_link_goes_on() {
    let mut world = World::new(1);
    let mut raw = Raw::dial(&world, Alpn::Member, false, true);
    raw.run(&mut world, 50);
    raw.say(b"\x02unknown");
    raw.say(b"\x01\0\0\0\x01a");
    raw.run(&mut world, 50);
    assert_eq!(raw.stopped, [VarInt::from_u32(code::STREAM_TYPE_UNKNOWN)]);
    assert_eq!(world.messages(0, crate::quic::LinkId(1)), [b"a"]);
    assert_eq!(world.nodes[0].driver.counters().streams_refused, 1);
    raw.say(b"\x01\0\0\0\x01b");
    raw.run(&mut world, 50);
    assert!(matches!(world.only_end(0), CloseReason::Protocol(why) if why == "a second control stream"));
}
