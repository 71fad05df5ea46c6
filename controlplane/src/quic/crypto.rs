//! TLS for QUIC (RFC 9001), with what was negotiated in view.
//!
//! quinn-proto takes any TLS that fits its `crypto` traits. Its own wrapper of rustls does not tell the group and the suite, and shares one
//! configuration, so one verifier, among all connections. This one builds a configuration per connection (some Arcs; no key is copied), so
//! that the verdict about the peer's chain stays with the connection that it is about.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use quinn_proto::crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, UnsupportedVersion};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::ServerName;
use rustls::quic::{Connection, KeyChange, Secrets, Suite, Version};

use super::verifier::Verdict;
use crate::pki::verifier::{Member, VerifyError};

/// The version of QUIC that is spoken: RFC 9000.
pub(super) const QUIC_V1: u32 = 1;

/// What stands in place of a host name. It is never sent, and the verifier does not look at it.
pub(super) const SERVER_NAME: &str = "weir.invalid";

/// What TLS knows of a connection so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Negotiated {
    pub(super) alpn: Option<Vec<u8>>,
    pub(super) group: Option<u16>,
    pub(super) suite: Option<u16>,
    /// The peer's chain; judged only when `member`, or nothing but its id.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) member: Option<Box<Member>>,
    pub(super) refusal: Option<VerifyError>,
    /// What TLS failed with. Stays here: the peer is told the alert only.
    pub(super) failure: Option<String>,
}

/// Reads what the connection's session knows.
pub(super) fn negotiated(session: &dyn crypto::Session) -> Negotiated {
    let data = session.handshake_data().and_then(|data| data.downcast::<Negotiated>().ok());
    data.map(|data| *data).unwrap_or_default()
}

/// Makes the TLS of one connection.
pub(super) trait Tls: Send + Sync + 'static {
    /// A configuration whose verifier writes to `verdict`.
    fn client(&self, verdict: Arc<OnceLock<Verdict>>) -> Arc<rustls::ClientConfig>;
}

/// The same for the accepting side.
pub(super) trait TlsServer: Send + Sync + 'static {
    /// A configuration whose verifier writes to `verdict`.
    fn server(&self, verdict: Arc<OnceLock<Verdict>>) -> Arc<rustls::ServerConfig>;
}

/// The dialling side.
pub(super) struct Client<T>(pub(super) T);

impl<T: Tls> crypto::ClientConfig for Client<T> {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        let invalid = || ConnectError::InvalidServerName(server_name.to_owned());
        if version != QUIC_V1 {
            return Err(ConnectError::UnsupportedVersion);
        }
        let verdict = Arc::default();
        let name = ServerName::try_from(server_name).map_err(|_| invalid())?.to_owned();
        let connection = rustls::quic::ClientConnection::new(
            self.0.client(Arc::clone(&verdict)),
            Version::V1,
            name,
            written(params),
        );
        // It fails for a configuration without TLS 1.3 or without a suite for QUIC; ours have both.
        let tls = Connection::Client(connection.map_err(|_| ConnectError::EndpointStopping)?);
        Ok(Box::new(Session::new(tls, verdict)))
    }
}

/// The accepting side.
pub(super) struct Server<T>(pub(super) T);

impl<T: TlsServer> crypto::ServerConfig for Server<T> {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version == QUIC_V1 { Ok(initial_keys(dst_cid, Side::Server)) } else { Err(UnsupportedVersion) }
    }

    fn retry_tag(&self, _version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        retry_tag(orig_dst_cid, &[packet])
    }

    fn start_session(self: Arc<Self>, _version: u32, params: &TransportParameters) -> Box<dyn crypto::Session> {
        let verdict = Arc::default();
        let connection =
            rustls::quic::ServerConnection::new(self.0.server(Arc::clone(&verdict)), Version::V1, written(params))
                // `config` makes nothing but TLS 1.3 with suites that QUIC has, and without early data.
                .expect("TLS 1.3, suites of QUIC, no early data");
        Box::new(Session::new(Connection::Server(connection), verdict))
    }
}

struct Session {
    tls: Connection,
    next: Option<Secrets>,
    announced: bool,
    verdict: Arc<OnceLock<Verdict>>,
    failure: Option<String>,
}

impl Session {
    fn new(tls: Connection, verdict: Arc<OnceLock<Verdict>>) -> Self {
        Self { tls, next: None, announced: false, verdict, failure: None }
    }

    fn side(&self) -> Side {
        match self.tls {
            Connection::Client(_) => Side::Client,
            Connection::Server(_) => Side::Server,
        }
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        initial_keys(dst_cid, side)
    }

    /// A [`Negotiated`], at any time: also when the handshake failed.
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let (member, refusal) = match self.verdict.get() {
            Some(Verdict::Member(member)) => (Some(member.clone()), None),
            Some(Verdict::Unjudged) | None => (None, None),
            Some(Verdict::Refused(refusal)) => (None, Some(refusal.clone())),
        };
        Some(Box::new(Negotiated {
            alpn: self.tls.alpn_protocol().map(<[u8]>::to_vec),
            group: self.tls.negotiated_key_exchange_group().map(|group| group.name().into()),
            suite: self.tls.negotiated_cipher_suite().map(|suite| suite.suite().into()),
            chain: self.tls.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec()).collect(),
            member,
            refusal,
            failure: self.failure.clone(),
        }))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.tls.peer_certificates().map(|chain| -> Box<dyn Any> { Box::new(chain.to_vec()) })
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        match self.tls {
            Connection::Client(_) => Some(false),
            Connection::Server(_) => None,
        }
    }

    fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        if let Err(error) = self.tls.read_hs(buf) {
            self.failure = Some(error.to_string());
            // Without an alert the mistake lies below TLS: internal_error (RFC 8446 §6.2).
            let alert = self.tls.alert().map_or(80, u8::from);
            return Err(TransportError { code: TransportErrorCode::crypto(alert), frame: None, reason: String::new() });
        }
        // The protocol is fixed by the first message of the other side, and from then on there is something to tell.
        let announce = !self.announced && (self.tls.alpn_protocol().is_some() || !self.tls.is_handshaking());
        self.announced |= announce;
        Ok(announce)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(mut bytes) = self.tls.quic_transport_parameters() else { return Ok(None) };
        Ok(Some(TransportParameters::read(self.side(), &mut bytes)?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        Some(match self.tls.write_hs(buf)? {
            KeyChange::Handshake { keys } => boxed(keys),
            KeyChange::OneRtt { keys, next } => {
                self.next = Some(next);
                boxed(keys)
            }
        })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair { local: Box::new(keys.local), remote: Box::new(keys.remote) })
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        // Nothing in it is secret, so a plain comparison does.
        payload.split_last_chunk().is_some_and(|(token, tag)| retry_tag(orig_dst_cid, &[header, token]) == *tag)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.tls.export_keying_material(output, label, Some(context)).map(drop).map_err(|_| ExportKeyingMaterialError)
    }
}

fn written(params: &TransportParameters) -> Vec<u8> {
    let mut bytes = Vec::new();
    params.write(&mut bytes);
    bytes
}

fn boxed(keys: rustls::quic::Keys) -> Keys {
    Keys {
        header: KeyPair { local: Box::new(keys.local.header), remote: Box::new(keys.remote.header) },
        packet: KeyPair { local: Box::new(keys.local.packet), remote: Box::new(keys.remote.packet) },
    }
}

/// The keys of Initial packets, which everybody can compute (RFC 9001 §5.2).
pub(super) fn initial_keys(dst_cid: &ConnectionId, side: Side) -> Keys {
    let side = match side {
        Side::Client => rustls::Side::Client,
        Side::Server => rustls::Side::Server,
    };
    boxed(initial_suite().keys(dst_cid, side, Version::V1))
}

fn initial_suite() -> Suite {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
    suite.expect("the library has AES-128-GCM for QUIC: RFC 9001 asks for it")
}

/// The integrity tag of a Retry packet (RFC 9001 §5.8); `packet` is the packet without it.
fn retry_tag(orig_dst_cid: &[u8], packet: &[&[u8]]) -> [u8; 16] {
    const KEY: [u8; 16] =
        [0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a, 0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68, 0xc8, 0x4e];
    const NONCE: [u8; 12] = [0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb];
    // A connection id has 20 bytes at most.
    let len = u8::try_from(orig_dst_cid.len()).unwrap_or(u8::MAX);
    let pseudo_packet = [&[len], orig_dst_cid, &packet.concat()].concat();
    let key = UnboundKey::new(&AES_128_GCM, &KEY).map(LessSafeKey::new);
    let sealed = key.and_then(|key| {
        key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(NONCE), Aad::from(pseudo_packet), &mut [])
    });
    let mut tag = [0; 16];
    tag.copy_from_slice(sealed.expect("a key of 16 bytes, and nothing to seal").as_ref());
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9001, appendix A.4.
    #[test]
    fn the_retry_of_rfc_9001_bears_its_tag() {
        let orig = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
        let packet = [&[0xff, 0, 0, 0, 1, 0, 8, 0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5][..], b"token"].concat();
        let tag = [0x04, 0xa2, 0x65, 0xba, 0x2e, 0xff, 0x4d, 0x82, 0x90, 0x58, 0xfb, 0x3f, 0x0f, 0x24, 0x96, 0xba];
        assert_eq!(retry_tag(&orig, &[&packet]), tag);
        assert_eq!(retry_tag(&orig, &[&packet[..9], &packet[9..]]), tag);
    }
}
