//! One contact session: two keys, a counter, a window.

use std::net::SocketAddr;
use std::time::Instant;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use zeroize::Zeroizing;

use super::{Agreed, LIFE, OpenError, UNANSWERED_FOR, UNANSWERED_MAX};
use crate::pki::id::NodeId;

/// Bytes before the ciphertext.
pub const HEADER_LEN: usize = 16;
/// Bytes of the tag behind it.
pub const TAG_LEN: usize = 16;
/// Longest text of one datagram: 1,232 bytes of UDP payload cross every path of IPv6 (RFC 8200 §5).
pub const PLAINTEXT_LEN_MAX: usize = 1232 - HEADER_LEN - TAG_LEN;
/// How many counters before the newest are told apart.
pub(super) const WINDOW: u64 = 128;
/// The first byte of each: the overlay's bits, and the type (docs/wire-format.md).
pub const FIRST_BYTE: u8 = 0x22;
/// The first four bytes: ours, RPC, version 1.
const BEGIN: [u8; 4] = [FIRST_BYTE, 1, 0, 0];

/// The bytes before the ciphertext.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) index: u32,
    counter: u64,
}

impl Header {
    pub(super) fn decode(datagram: &[u8]) -> Result<Self, OpenError> {
        let (begin, rest) = datagram.split_first_chunk::<4>().ok_or(OpenError::Malformed)?;
        let (index, rest) = rest.split_first_chunk::<4>().ok_or(OpenError::Malformed)?;
        let (counter, rest) = rest.split_first_chunk::<8>().ok_or(OpenError::Malformed)?;
        let counter = u64::from_be_bytes(*counter);
        // Nobody seals with the last counter.
        if *begin != BEGIN || rest.len() < TAG_LEN || counter == u64::MAX {
            return Err(OpenError::Malformed);
        }
        Ok(Self { index: u32::from_be_bytes(*index), counter })
    }

    fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&BEGIN);
        bytes[4..8].copy_from_slice(&self.index.to_be_bytes());
        bytes[8..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }

    /// Its place in a stream of nonces (RFC 8439 §2.8).
    fn nonce(self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Counters that have been here (RFC 4303 §3.4.3).
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// One above the highest; 0 before the first.
    next: u64,
    /// The lowest bit is the highest counter.
    seen: u128,
}

impl Window {
    fn has(self, counter: u64) -> bool {
        if counter >= self.next {
            return false;
        }
        let behind = self.next - 1 - counter;
        behind >= WINDOW || self.seen >> behind & 1 == 1
    }

    fn put(&mut self, counter: u64) {
        if counter >= self.next {
            let ahead = counter - self.next + 1;
            self.seen = if ahead >= WINDOW { 0 } else { self.seen << ahead };
            // The last counter is refused, so this does not overflow.
            self.next = counter.saturating_add(1);
        }
        self.seen |= 1 << (self.next - 1 - counter);
    }
}

#[derive(Debug)]
pub(super) struct Session {
    node: NodeId,
    remote: SocketAddr,
    theirs: u32,
    unanswered: u32,
    /// When the last of those was sealed that make one wonder.
    waits_since: Instant,
    next_counter: u64,
    window: Window,
    until: Instant,
    used: Instant,
    seal_key: Zeroizing<[u8; 32]>,
    open_key: Zeroizing<[u8; 32]>,
}

const _: () = assert!(size_of::<Session>() <= super::SESSION_LEN);

/// The key of one direction. Both ids are in it, so that two members that agreed on one secret cannot be played against a third.
fn key(secret: &[u8; 32], from: NodeId, to: NodeId) -> Zeroizing<[u8; 32]> {
    let info: [&[u8]; 3] = [b"weir contact v1", &from.0, &to.0];
    let mut key = Zeroizing::new([0; 32]);
    let prk = Prk::new_less_safe(HKDF_SHA256, secret);
    // One hash of output is within HKDF's limit (RFC 5869 §2.3).
    let filled = prk.expand(&info, HKDF_SHA256).and_then(|output| output.fill(&mut *key));
    filled.expect("32 bytes are within HKDF's limit");
    key
}

/// A cipher by a key that is kept as its bytes: the library's form of it is several times as long.
fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("it has the cipher's length"))
}

impl Session {
    pub(super) fn new(own: NodeId, node: NodeId, agreed: &Agreed, now: Instant) -> Self {
        Self {
            node,
            remote: agreed.remote,
            theirs: agreed.theirs,
            unanswered: 0,
            waits_since: now,
            next_counter: 0,
            window: Window::default(),
            until: now + LIFE,
            used: now,
            seal_key: key(&agreed.secret, own, node),
            open_key: key(&agreed.secret, node, own),
        }
    }

    pub(super) const fn node(&self) -> NodeId {
        self.node
    }

    pub(super) const fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub(super) const fn used(&self) -> Instant {
        self.used
    }

    /// Notes that it is used now; gives when it was before.
    pub(super) const fn use_at(&mut self, now: Instant) -> Instant {
        std::mem::replace(&mut self.used, now)
    }

    pub(super) fn is_good(&self, now: Instant) -> bool {
        now < self.until
    }

    /// Whether the other side has most likely forgotten it.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        self.unanswered >= UNANSWERED_MAX && now.saturating_duration_since(self.waits_since) >= UNANSWERED_FOR
    }

    /// `None` when it has ended.
    pub(super) fn seal(&mut self, plaintext: &[u8], now: Instant) -> Option<Vec<u8>> {
        if !self.is_good(now) || self.next_counter == u64::MAX {
            return None;
        }
        let header = Header { index: self.theirs, counter: self.next_counter };
        self.next_counter += 1;
        // The last of those that make one wonder gets its time as well.
        if self.unanswered < UNANSWERED_MAX {
            self.waits_since = now;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        let clear = header.encode();
        let mut bytes = Vec::with_capacity(HEADER_LEN + plaintext.len() + TAG_LEN);
        bytes.extend_from_slice(&clear);
        bytes.extend_from_slice(plaintext);
        let tag = cipher(&self.seal_key)
            .seal_in_place_separate_tag(header.nonce(), Aad::from(clear), &mut bytes[HEADER_LEN..])
            .expect("a datagram is shorter than the cipher's limit");
        bytes.extend_from_slice(tag.as_ref());
        Some(bytes)
    }

    pub(super) fn open(&mut self, header: &Header, datagram: &[u8], now: Instant) -> Result<Vec<u8>, OpenError> {
        if !self.is_good(now) {
            return Err(OpenError::Ended);
        }
        // What is authentic is looked up afterwards once more, but a replay need not cost a decryption.
        if self.window.has(header.counter) {
            return Err(OpenError::Replayed);
        }
        let mut text = datagram[HEADER_LEN..].to_vec();
        let opened = cipher(&self.open_key).open_in_place(header.nonce(), Aad::from(header.encode()), &mut text);
        let len = opened.map_err(|_| OpenError::Forged)?.len();
        text.truncate(len);
        self.window.put(header.counter);
        self.unanswered = 0;
        Ok(text)
    }
}
