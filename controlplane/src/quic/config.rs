//! How our TLS and our QUIC are set.
//!
//! | choice | reason |
//! |---|---|
//! | X25519MLKEM768 the only group | whoever agrees at all agrees on the hybrid; offering nothing else proves it |
//! | TLS 1.3, Ed25519 | nothing older or weaker to be talked down to |
//! | no tickets, no early data | a resumed session skips the certificate, so revocation and expiry with it; early data can be replayed |
//! | no server name, no hints of authorities | Initials are encrypted with public keys; what stands in them is public |
//! | migration off | the path layer below proves addresses; QUIC sees one unmoving peer |
//! | QUIC bit not greased | the port is shared, and a datagram's first byte says whose it is (RFC 9443) |

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::{EndpointConfig, IdleTimeout, NoneTokenLog, NoneTokenStore, TimeSource, TransportConfig, VarInt};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group, sign};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use zeroize::Zeroizing;

use super::Alpn;
use super::cid::Cids;
use super::crypto::{Client, QUIC_V1, Server, Tls, TlsServer};
use super::verifier::{Judge, PeerVerifier, SIGNATURES, Verdict};
use crate::pki::key::PrivateKey;
use crate::pki::trust::SharedTrust;
use crate::time::UnixSecs;

/// A link on which nothing arrives for so long is dead (RFC 9308 §3.2 recommends it).
const IDLE_TIMEOUT_MS: u32 = 30_000;
/// Taken for the round trip before one was measured. The overlay's are shorter than the 333 ms of RFC 9002; a spurious copy of an Initial
/// costs one datagram, a lost one this times three.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Streams that a peer may have open: its control stream, and room for types that we refuse.
const STREAMS_MAX: u32 = 4;
/// Bytes of a stream that may wait in quinn-proto: 20 Mbit/s at a round trip of 100 ms.
const STREAM_WINDOW: u32 = 256 << 10;
/// Stateless resets are at least so far apart: a thousand a second, each shorter than what provoked it.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// A Retry must be answered within this time.
const RETRY_LIFETIME: Duration = Duration::from_secs(15);

/// Why a chain and a key are no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The chain is empty, or the key is not its first certificate's.
    #[error("certificate and key do not belong together: {0}")]
    Mismatch(rustls::Error),
    /// The key cannot be used for TLS.
    #[error("the key cannot be used for TLS: {0}")]
    Key(String),
}

/// A leaf certificate with its chain, and its key.
#[derive(Clone)]
pub struct LeafIdentity(Arc<SingleCertAndKey>);

impl LeafIdentity {
    /// The leaf first, then its issuer.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn new(chain: &[Vec<u8>], key: &PrivateKey) -> Result<Self, IdentityError> {
        let pkcs8 = key.to_pkcs8().map_err(|error| IdentityError::Key(error.to_string()))?;
        let signing = sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]));
        let signing = signing.map_err(|error| IdentityError::Key(error.to_string()))?;
        let certified = CertifiedKey::new(chain.iter().cloned().map(CertificateDer::from).collect(), signing);
        certified.keys_match().map_err(IdentityError::Mismatch)?;
        Ok(Self(Arc::new(certified.into())))
    }
}

impl fmt::Debug for LeafIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeafIdentity(…)")
    }
}

/// The network's clock, for those who look at it by themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(super) fn set(&self, now: UnixSecs) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    fn since_1970(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        // Beyond what the system can express no Retry is valid.
        UNIX_EPOCH.checked_add(self.since_1970()).unwrap_or(UNIX_EPOCH)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.since_1970()))
    }
}

/// The cryptography of one role, with these groups.
fn provider(groups: Vec<&'static dyn SupportedKxGroup>) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        // Keys of 256 bits against a searcher with a quantum computer. The one with SHA-256 first: a short connection is mostly key schedule,
        // and many CPUs have instructions for that hash of which the library makes use, and none that it uses for SHA-384.
        cipher_suites: vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: groups,
        signature_verification_algorithms: SIGNATURES,
        ..default_provider()
    })
}

/// The groups of each role, made once.
#[derive(Clone)]
pub(super) struct Providers {
    hybrid: Arc<CryptoProvider>,
    accepting: Arc<CryptoProvider>,
    #[cfg(feature = "legacy-kyber")]
    legacy: Arc<CryptoProvider>,
}

impl Providers {
    /// `accept_legacy` has no effect without the feature `legacy-kyber`.
    pub(super) fn new(accept_legacy: bool) -> Self {
        let hybrid = provider(vec![kx_group::X25519MLKEM768]);
        #[cfg(feature = "legacy-kyber")]
        {
            let draft = super::legacy_kyber::X25519KYBER768;
            let accepting =
                if accept_legacy { provider(vec![kx_group::X25519MLKEM768, draft]) } else { Arc::clone(&hybrid) };
            Self { hybrid, accepting, legacy: provider(vec![draft]) }
        }
        #[cfg(not(feature = "legacy-kyber"))]
        {
            let _ = accept_legacy;
            Self { accepting: Arc::clone(&hybrid), hybrid }
        }
    }

    /// The one for a dial; `None` when this build does not have what is asked for.
    pub(super) fn dialling(&self, legacy: bool) -> Option<&Arc<CryptoProvider>> {
        #[cfg(feature = "legacy-kyber")]
        return Some(if legacy { &self.legacy } else { &self.hybrid });
        #[cfg(not(feature = "legacy-kyber"))]
        (!legacy).then_some(&self.hybrid)
    }
}

/// TLS of the links of one dial.
struct ClientTls {
    provider: Arc<CryptoProvider>,
    clock: Clock,
    judge: Judge,
    identity: Option<LeafIdentity>,
    alpn: Alpn,
}

impl Tls for ClientTls {
    fn client(&self, verdict: Arc<OnceLock<Verdict>>) -> Arc<rustls::ClientConfig> {
        let verifier = Arc::new(PeerVerifier { judge: self.judge.clone(), verdict });
        let builder =
            rustls::ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::new(self.clock.clone()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                // `provider` has suites of TLS 1.3 and a group.
                .expect("suites and a group for TLS 1.3")
                .dangerous()
                .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::clone(&identity.0) as Arc<dyn ResolvesClientCert>),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![self.alpn.wire().to_vec()];
        config.enable_sni = false;
        config.enable_early_data = false;
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

/// TLS of accepted links.
struct ServerTls {
    provider: Arc<CryptoProvider>,
    clock: Clock,
    trust: SharedTrust,
    identity: LeafIdentity,
}

impl TlsServer for ServerTls {
    fn server(&self, verdict: Arc<OnceLock<Verdict>>) -> Arc<rustls::ServerConfig> {
        let judge = Judge::Chain { trust: SharedTrust::clone(&self.trust), dialled: None };
        let mut config =
            rustls::ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::new(self.clock.clone()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                // `provider` has suites of TLS 1.3 and a group.
                .expect("suites and a group for TLS 1.3")
                .with_client_cert_verifier(Arc::new(PeerVerifier { judge, verdict }))
                .with_cert_resolver(Arc::clone(&self.identity.0) as _);
        config.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.wire().to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Arc::new(config)
    }
}

/// TLS of accepted links by itself, for judges that speak it over TCP.
#[cfg(test)]
pub(super) fn server_tls(trust: &SharedTrust, identity: &LeafIdentity) -> Arc<rustls::ServerConfig> {
    let (provider, clock) = (Providers::new(false).accepting, Clock::default());
    clock.set(trust.now());
    let tls = ServerTls { provider, clock, trust: SharedTrust::clone(trust), identity: identity.clone() };
    tls.server(Arc::default())
}

/// QUIC's own settings, the same for all links but those that are `brief`: they are over before a search for longer datagrams pays.
pub(super) fn transport(brief: bool) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .initial_mtu(1200)
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(2 * STREAM_WINDOW))
        .send_window(u64::from(STREAM_WINDOW))
        .datagram_receive_buffer_size(None)
        .allow_spin(false);
    if brief {
        config.mtu_discovery_config(None);
    }
    Arc::new(config)
}

/// A key for one purpose out of the one that was given (RFC 5869).
fn derived(key: &[u8; 32], purpose: &'static [u8]) -> Zeroizing<[u8; 32]> {
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, key);
    let mut out = Zeroizing::new([0; 32]);
    let expanded = prk.expand(&[purpose], hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut out[..]));
    expanded.expect("one hash's length is asked for");
    out
}

/// The endpoint's settings. The key outlives restarts, so that a reset sent after one is believed.
pub(super) fn endpoint(key: &[u8; 32], cids: &Cids, seed: [u8; 32]) -> Arc<EndpointConfig> {
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &derived(key, b"weir-quic-reset-1")[..]);
    let mut config = EndpointConfig::new(Arc::new(reset));
    let cids = cids.clone();
    config
        .cid_generator(move || Box::new(cids.clone()))
        .supported_versions(vec![QUIC_V1])
        .grease_quic_bit(false)
        .min_reset_interval(RESET_INTERVAL)
        .rng_seed(Some(seed));
    Arc::new(config)
}

/// What accepted links are made with.
pub(super) fn server(
    key: &[u8; 32],
    transport: &Arc<TransportConfig>,
    providers: &Providers,
    clock: &Clock,
    trust: &SharedTrust,
    identity: &LeafIdentity,
) -> Arc<quinn_proto::ServerConfig> {
    let tls = ServerTls {
        provider: Arc::clone(&providers.accepting),
        clock: clock.clone(),
        trust: SharedTrust::clone(trust),
        identity: identity.clone(),
    };
    let token = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &derived(key, b"weir-quic-token-1")[..]);
    let mut config = quinn_proto::ServerConfig::new(Arc::new(Server(tls)), Arc::new(token));
    config.validation_token.sent(0).log(Arc::new(NoneTokenLog));
    config
        .transport_config(Arc::clone(transport))
        .migration(false)
        .retry_token_lifetime(RETRY_LIFETIME)
        .time_source(Arc::new(clock.clone()));
    Arc::new(config)
}

/// What one dial is made with; `None` when this build does not have the group.
pub(super) fn client(
    transport: &Arc<TransportConfig>,
    providers: &Providers,
    clock: &Clock,
    judge: Judge,
    identity: Option<LeafIdentity>,
    alpn: Alpn,
    legacy: bool,
) -> Option<quinn_proto::ClientConfig> {
    let provider = Arc::clone(providers.dialling(legacy)?);
    let tls = ClientTls { provider, clock: clock.clone(), judge, identity, alpn };
    let mut config = quinn_proto::ClientConfig::new(Arc::new(Client(tls)));
    config.transport_config(Arc::clone(transport)).token_store(Arc::new(NoneTokenStore)).version(QUIC_V1);
    Some(config)
}
