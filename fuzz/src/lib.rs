//! What several targets share: a small network whose keys are known, so that hostile documents get past their signatures.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use weir_controlplane::codec;
use weir_controlplane::pki::bundle::{Bundle, Chain, Parameters, Slice};
use weir_controlplane::pki::ceremony;
use weir_controlplane::pki::certificate::{
    IssuerSpec, LeafSpec, RootSpec, Serial, Validity, issuer_certificate, leaf_certificate, root_certificate,
};
use weir_controlplane::pki::id::{NetworkId, NodeId, Nonce};
use weir_controlplane::pki::key::{Domain, PrivateKey};
use weir_controlplane::pki::name::NamePattern;
use weir_controlplane::pki::resources::{IpBlocks, Resources};
use weir_controlplane::pki::signed::{Document, Signed};
use weir_controlplane::time::{Now, UnixSecs};

/// A key file that costs as little to open as scrypt allows (N = 2, r = 1, p = 1), written by OpenSSL.
pub const CHEAP_KEY: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGSME4GCSqGSIb3DQEFDTBBMCAGCSsGAQQB2kcECzATBAi6xfN0/ErzYAIBAgIB
AQIBATAdBglghkgBZQMEASoEEHI/LT3UtruRELjUgGktkjMEQN/eVVw4oh1ZSGVK
j7iUqj63QNM9KpQ1u52NPKraaj8I9tzU+/7Su4ub+nRqcKIR70mW0wO4+HuyAEe/
MarCPpg=
-----END ENCRYPTED PRIVATE KEY-----
";
/// What opens it.
pub const CHEAP_PASSPHRASE: &str = "fuzz";
/// The seed of the key in it.
pub const CHEAP_SEED: [u8; 32] = [8; 32];

/// When everything happens.
pub const NOW: UnixSecs = UnixSecs(1_800_000_000);
const DAY: u64 = 86_400;

/// A key that is the same in every run: 1 and 2 are roots, 3 and 4 issuers, 5 revokes, 6 is an operator, 7 is a stranger.
pub fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

/// A member's identity key.
pub fn identity_key(member: u8) -> PrivateKey {
    PrivateKey::from_seed(&[member ^ 0x80; 32])
}

/// A member's key for TLS.
pub fn leaf_key(member: u8) -> PrivateKey {
    PrivateKey::from_seed(&[member ^ 0xc0; 32])
}

/// From so many seconds before [`NOW`] to so many after.
pub fn around_now(before: u64, after: u64) -> Validity {
    Validity { not_before: UnixSecs(NOW.0 - before), not_after: UnixSecs(NOW.0 + after) }
}

/// Both clocks, so many seconds after [`NOW`].
pub fn later(start: Instant, secs: u64) -> Now {
    Now { mono: start + Duration::from_secs(secs), wall: UnixSecs(NOW.0 + secs) }
}

/// The network.
pub struct Network {
    /// Its trust bundle.
    pub chain: Chain,
    /// The certificate of issuer 3, which may grant 10.0.0.0/8 and fd00::/8 and allocates all of it.
    pub issuer_der: Vec<u8>,
}

/// The same in every run.
pub static NETWORK: LazyLock<Network> = LazyLock::new(|| {
    let roots: Vec<Vec<u8>> = [(1, "A"), (2, "B")].iter().map(|&(seed, label)| root(seed, label)).collect();
    let resources = Resources::from_prefixes(["10.0.0.0/8", "fd00::/8"].map(|prefix| prefix.parse().unwrap()));
    let issuer = |seed: u8, blocks| {
        let validity = around_now(10 * DAY, 355 * DAY);
        let spec = IssuerSpec { public: key(seed).public(), blocks, validity, serial: Serial::from_bytes([seed; 16]) };
        issuer_certificate(&key(1), &roots[0], &spec).unwrap()
    };
    let issuer_der = issuer(3, IpBlocks::Explicit(resources));
    let issuers = vec![issuer_der.clone(), issuer(4, IpBlocks::Inherit)];
    let (names, prefixes) = (vec![NamePattern::any()], vec!["10.0.0.0/8".parse().unwrap()]);
    let bundle = Bundle {
        version: 1,
        previous: None,
        network_name: "mynet".into(),
        default_allow: true,
        roots,
        issuers,
        revoked_issuers: vec![],
        revokers: vec![key(5).public()],
        slices: vec![Slice { issuer: key(3).public().id(), names, prefixes }],
        dns_parent: "internal".into(),
        operators: vec![key(6).public()],
        parameters: Parameters::default(),
    };
    Network { chain: ceremony::found(&bundle, &[&key(1), &key(2)]).unwrap(), issuer_der }
});

/// A root's certificate.
pub fn root(seed: u8, label: &str) -> Vec<u8> {
    let validity = around_now(30 * DAY, 3650 * DAY);
    let serial = Serial::from_bytes([seed; 16]);
    root_certificate(&key(seed), &RootSpec { label, network_name: "mynet", validity, serial }).unwrap()
}

impl Network {
    /// Its id.
    pub fn id(&self) -> NetworkId {
        self.chain.network()
    }

    /// A member's id.
    pub fn node(&self, member: u8) -> NodeId {
        NodeId::derive(self.id(), &identity_key(member).public().0, Nonce([member; 16]))
    }

    /// A member's certificate.
    pub fn leaf(&self, member: u8) -> Vec<u8> {
        let prefix = format!("10.1.{member}.0/24").parse().unwrap();
        let spec = LeafSpec {
            leaf_public: leaf_key(member).public(),
            network: self.id(),
            identity: identity_key(member).public(),
            nonce: Nonce([member; 16]),
            name: "berlin",
            prefixes: Resources::from_prefixes([prefix]),
            groups: &["edge".into()],
            roles: &["relay".into()],
            validity: around_now(3600, DAY),
            serial: Serial::from_bytes([member; 16]),
        };
        leaf_certificate(&key(3), &self.issuer_der, &spec).unwrap()
    }
}

/// A change to bytes that were good.
#[derive(Arbitrary, Clone, Debug)]
pub enum Edit {
    /// This byte instead of what was there.
    Set(u16, u8),
    /// One byte more.
    Insert(u16, u8),
    /// So many bytes less.
    Remove(u16, u8),
    /// What stands at the one place, again at the other.
    Copy(u16, u16, u8),
    /// The end is missing.
    Cut(u16),
}

/// The bytes after the changes.
pub fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let len = bytes.len();
        let place = |at: u16| usize::from(at) % (len + 1);
        match *edit {
            Edit::Set(at, byte) => {
                if let Some(there) = bytes.get_mut(place(at)) {
                    *there = byte;
                }
            }
            Edit::Insert(at, byte) => bytes.insert(place(at), byte),
            Edit::Remove(at, count) => drop(bytes.drain(place(at)..len.min(place(at) + usize::from(count)))),
            Edit::Copy(from, to, count) => {
                let copied = bytes[place(from)..len.min(place(from) + usize::from(count))].to_vec();
                bytes.splice(place(to)..place(to), copied);
            }
            Edit::Cut(at) => bytes.truncate(place(at)),
        }
    }
    bytes
}

/// A document with whatever body, well signed.
pub fn signed<T: Document>(body: &[u8], signer: &PrivateKey) -> Signed<T> {
    let parts = (body, signer.public().id(), signer.sign(T::DOMAIN, body));
    codec::decode(&codec::encode(&parts), usize::MAX).expect("three parts make a signed document")
}

/// A certificate around whatever content, well signed (RFC 5280 §4.1, RFC 8410).
pub fn certificate(content: &[u8], signer: &PrivateKey) -> Vec<u8> {
    const ED25519: [u8; 7] = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
    let signature = signer.sign_raw(content);
    let signature = der(3, &[&[0], &signature.0[..]].concat());
    der(0x30, &[content, &ED25519, &signature].concat())
}

/// The signed part of a certificate.
pub fn content(certificate: &[u8]) -> &[u8] {
    // Ours have between 256 and 65,535 bytes: one of tag, three of length.
    let len = usize::from(u16::from_be_bytes([certificate[6], certificate[7]]));
    &certificate[4..8 + len]
}

fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let len = value.len();
    let bytes = u32::try_from(len).expect("a fuzzer's inputs are short").to_be_bytes();
    let head = match len {
        0..128 => vec![tag, bytes[3]],
        128..256 => vec![tag, 0x81, bytes[3]],
        256..65_536 => vec![tag, 0x82, bytes[2], bytes[3]],
        _ => vec![tag, 0x84, bytes[0], bytes[1], bytes[2], bytes[3]],
    };
    [&head[..], value].concat()
}

/// Signs a member's request as its library does.
pub fn request_signature(
    signer: &PrivateKey,
    exporter: &[u8; 32],
    body: &[u8],
) -> weir_controlplane::pki::key::Signature {
    signer.sign(Domain::Request, &[&exporter[..], body].concat())
}
