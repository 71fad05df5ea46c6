//! From the secret of a key exchange to the keys of a lane.
//!
//! ```text
//!  secret of the exchange (TLS exporter, 32 bytes)
//!      │ HKDF-Extract, salt "weir lane v1"
//!      ▼
//!     PRK ── HKDF-Expand ─▶ lane secret 0 ── "ratchet" ─▶ lane secret 1 ── "ratchet" ─▶ … ─▶ lane secret 255
//!             │                  ├─ "key" ─▶ 32-byte key      ├─ "key"
//!             │                  └─ "iv"  ─▶ 12-byte IV       └─ "iv"
//!             │
//!   "lane" ‖ direction ‖ lane ‖ session (8) ‖ initiator's incarnation (8) ‖ initiator's salt (16)
//!          ‖ responder's incarnation (8) ‖ responder's salt (16) ‖ algorithm
//! ```
//!
//! HKDF is RFC 5869 with SHA-256; all integers are big-endian, and every field has a fixed width, so no two contexts have the same bytes.
//! The incarnations and salts of *both* planes go in: a plane that is started anew, or a reservation made anew, cannot end up with a
//! key that was used before, whatever the exchange yields. The ratchet goes one way: a lane secret gives all later keys and none before.
//!
//! This part knows neither when to ratchet nor what a counter is for. It erases every secret that it holds.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt as ExtractSalt};
use weir_abi::wire::TAG_LEN;
use zeroize::{Zeroize, Zeroizing};

use super::aead::{AeadError, AeadKey, Algorithm, KEY_LEN, NONCE_LEN, nonce};
use crate::api::message::{Incarnation, Salt, Secret, SessionId};

/// Domain of the derivation. A change of anything below is a change of this.
const EXTRACT_SALT: &[u8] = b"weir lane v1";

/// Which way a lane carries datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the side that began the key exchange.
    FromInitiator = 0,
    /// From the other side.
    FromResponder = 1,
}

impl Direction {
    /// The lanes that a side seals.
    pub const fn sealed_by(initiator: bool) -> Self {
        if initiator { Self::FromInitiator } else { Self::FromResponder }
    }

    /// The lanes that a side opens.
    pub const fn opened_by(initiator: bool) -> Self {
        Self::sealed_by(!initiator)
    }
}

/// One side's share of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The life of the packet plane that holds the keys.
    pub incarnation: Incarnation,
    /// What the plane drew for this one reservation.
    pub salt: Salt,
}

/// What the keys of a session are bound to, besides the secret. Equal on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The session's name.
    pub session: SessionId,
    /// The side that began the exchange.
    pub initiator: Side,
    /// The side that answered.
    pub responder: Side,
    /// The AEAD that the keys are for.
    pub algorithm: Algorithm,
}

impl Context {
    /// The context as one side sees it: `initiator` says whether that side began the exchange.
    pub const fn new(session: SessionId, ours: Side, theirs: Side, initiator: bool, algorithm: Algorithm) -> Self {
        let (initiator, responder) = if initiator { (ours, theirs) } else { (theirs, ours) };
        Self { session, initiator, responder, algorithm }
    }
}

/// What a lane's keys come from. Each copy is erased when dropped; never printed.
#[derive(Clone)]
pub struct LaneSecret {
    secret: Zeroizing<[u8; 32]>,
    algorithm: Algorithm,
}

impl LaneSecret {
    /// The secret of generation 0 of lane `lane` in one direction.
    pub fn derive(secret: &Secret, context: &Context, direction: Direction, lane: u8) -> Self {
        let prk = ExtractSalt::new(HKDF_SHA256, EXTRACT_SALT).extract(secret.expose());
        let info: [&[u8]; 8] = [
            b"lane",
            &[direction as u8, lane],
            &context.session.0.to_be_bytes(),
            &context.initiator.incarnation.0.to_be_bytes(),
            &context.initiator.salt,
            &context.responder.incarnation.0.to_be_bytes(),
            &context.responder.salt,
            &[context.algorithm.id()],
        ];
        Self { secret: expand(&prk, &info), algorithm: context.algorithm }
    }

    /// The key of this generation.
    pub fn key(&self) -> DatagramKey {
        let prk = self.prk();
        let key: Zeroizing<[u8; KEY_LEN]> = expand(&prk, &[b"key"]);
        let iv = expand(&prk, &[b"iv"]);
        DatagramKey { key: AeadKey::new(self.algorithm, &key), iv }
    }

    /// The secret of the next generation. This one still exists; drop it.
    #[must_use]
    pub fn ratchet(&self) -> Self {
        Self { secret: expand(&self.prk(), &[b"ratchet"]), algorithm: self.algorithm }
    }

    fn prk(&self) -> Prk {
        Prk::new_less_safe(HKDF_SHA256, &*self.secret)
    }
}

impl std::fmt::Debug for LaneSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneSecret(…)")
    }
}

/// Key and IV of one generation of a lane: all that sealing and opening need besides the counter. Erased when dropped.
pub struct DatagramKey {
    key: AeadKey,
    iv: Zeroizing<[u8; NONCE_LEN]>,
}

impl DatagramKey {
    /// Seals under `counter`, which is never used twice. See [`AeadKey::seal`].
    ///
    /// # Errors
    /// As [`AeadKey::seal`].
    #[inline]
    pub fn seal(&self, counter: u64, aad: &[u8], in_out: &mut [u8], tag: &mut [u8; TAG_LEN]) -> Result<(), AeadError> {
        self.key.seal(nonce(&self.iv, counter), aad, in_out, tag)
    }

    /// Opens what was sealed under `counter`. See [`AeadKey::open`].
    ///
    /// # Errors
    /// As [`AeadKey::open`].
    #[inline]
    pub fn open<'a>(&self, counter: u64, aad: &[u8], sealed: &'a mut [u8]) -> Result<&'a mut [u8], AeadError> {
        self.key.open(nonce(&self.iv, counter), aad, sealed)
    }
}

impl std::fmt::Debug for DatagramKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatagramKey(…)")
    }
}

/// How many bytes an expansion yields, as `aws_lc_rs` wants to be told.
struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(prk: &Prk, info: &[&[u8]]) -> Zeroizing<[u8; N]>
where
    [u8; N]: Zeroize,
{
    let mut out = Zeroizing::new([0; N]);
    // RFC 5869 §2.3 allows 255 × 32 bytes; ours are at most 32.
    prk.expand(info, Len(N)).and_then(|okm| okm.fill(&mut *out)).expect("at most 32 bytes are expanded");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: u8 = 3;

    fn secret() -> Secret {
        Secret::new(std::array::from_fn(|i| i as u8))
    }

    fn side(incarnation: u64, salt: u8) -> Side {
        Side { incarnation: Incarnation(incarnation), salt: std::array::from_fn(|i| salt + i as u8) }
    }

    fn initiator() -> Side {
        side(0x1111_1111_1111_1111, 0xa0)
    }

    fn responder() -> Side {
        side(0x2222_2222_2222_2222, 0xb0)
    }

    fn context() -> Context {
        Context {
            session: SessionId(0x0102_0304_0506_0708),
            initiator: initiator(),
            responder: responder(),
            algorithm: Algorithm::Aes256Gcm,
        }
    }

    /// Key and IV in hex, derived once more by the means of the module.
    fn material(lane: &LaneSecret) -> (String, String) {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let key: Zeroizing<[u8; KEY_LEN]> = expand(&lane.prk(), &[b"key"]);
        (hex(&*key), hex(&*lane.key().iv))
    }

    /// The vectors were computed with another implementation: Python's `hmac` and twenty lines of RFC 5869.
    #[test]
    fn keys_are_those_of_an_independent_implementation() {
        let expected = [
            ("cf954836bba85229bf87f934dcd6e29af80e5a3ad5227bb15943de4adaedca42", "1b722f8735ca68d2b98e8164"),
            ("b6bf1e04f62d5646a6776848b617a71125906b5bb395a4c2bc057e9053149239", "19ca851e602104431e0fbbfd"),
            ("e86a6a2f8ee9ca96dd351a7d7436377b5ca53f303a3080468815dc32b2716d3f", "a0d15b8c90e8bd4d1082a1eb"),
        ];
        let mut lane = LaneSecret::derive(&secret(), &context(), Direction::FromInitiator, LANE);
        for (key, iv) in expected {
            assert_eq!(material(&lane), (key.to_owned(), iv.to_owned()));
            lane = lane.ratchet();
        }
        let chacha = Context { algorithm: Algorithm::ChaCha20Poly1305, ..context() };
        let lane = LaneSecret::derive(&secret(), &chacha, Direction::FromResponder, LANE);
        assert_eq!(material(&lane).0, "7d92578e4d80981b34358e485f84028f5634e7b52824cd4735ac9b99426f9317");
    }

    #[test]
    fn what_one_side_seals_the_other_opens() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            let session = context().session;
            let left = Context::new(session, initiator(), responder(), true, algorithm);
            let right = Context::new(session, responder(), initiator(), false, algorithm);
            assert_eq!(left, right);
            for left_seals in [true, false] {
                let (sealed_by, opened_by) = if left_seals { (left, right) } else { (right, left) };
                let sealing = LaneSecret::derive(&secret(), &sealed_by, Direction::sealed_by(left_seals), 0).key();
                let opening = LaneSecret::derive(&secret(), &opened_by, Direction::opened_by(!left_seals), 0).key();
                let mut bytes = *b"inner packet................";
                let (plaintext, tag) = bytes.split_last_chunk_mut::<TAG_LEN>().unwrap();
                sealing.seal(9, b"aad", plaintext, tag).unwrap();
                assert_ne!(&bytes[..12], b"inner packet");
                assert_eq!(opening.open(8, b"aad", &mut bytes.clone()), Err(AeadError));
                assert_eq!(opening.open(9, b"aaD", &mut bytes.clone()), Err(AeadError));
                assert_eq!(opening.open(9, b"aad", &mut bytes).unwrap(), b"inner packet");
            }
        }
    }

    #[test]
    fn every_part_of_the_context_changes_key_and_iv() {
        let base = context();
        let other_secret = Secret::new([0xee; 32]);
        let (from, back) = (Direction::FromInitiator, Direction::FromResponder);
        let mut contexts = vec![
            Context { session: SessionId(base.session.0 ^ 1), ..base },
            Context { algorithm: Algorithm::ChaCha20Poly1305, ..base },
            Context { initiator: base.responder, responder: base.initiator, ..base },
        ];
        for flip in [0, 15] {
            let mut context = base;
            context.initiator.salt[flip] ^= 1;
            contexts.push(context);
            let mut context = base;
            context.responder.salt[flip] ^= 1;
            contexts.push(context);
        }
        let mut context = base;
        context.initiator.incarnation.0 ^= 1 << 63;
        contexts.push(context);
        let mut context = base;
        context.responder.incarnation.0 ^= 1;
        contexts.push(context);

        let mut all: Vec<LaneSecret> =
            contexts.iter().map(|context| LaneSecret::derive(&secret(), context, from, LANE)).collect();
        all.push(LaneSecret::derive(&secret(), &base, from, LANE));
        all.push(LaneSecret::derive(&secret(), &base, back, LANE));
        all.push(LaneSecret::derive(&secret(), &base, from, LANE + 1));
        all.push(LaneSecret::derive(&other_secret, &base, from, LANE));
        all.push(all[0].ratchet());
        let all: Vec<_> = all.iter().map(material).collect();
        for (i, one) in all.iter().enumerate() {
            for other in &all[..i] {
                assert!(one.0 != other.0 && one.1 != other.1);
            }
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let lane = LaneSecret::derive(&secret(), &context(), Direction::FromInitiator, 0);
        assert_eq!(format!("{lane:?} {:?}", lane.key()), "LaneSecret(…) DatagramKey(…)");
    }
}
