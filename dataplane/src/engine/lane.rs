//! One-way lanes: a key, a counter and, on the opening side, a replay window.
//!
//! A lane has one core that seals and one that opens, so nothing here is shared. Keys go through generations by a one-way ratchet; the
//! counter goes on across them, so one replay window serves all. The sealing side decides when; the opening side follows the generation
//! byte of the header, which is under AAD:
//!
//! ```text
//!              seal: the generation is 60 s old or has sealed its bytes
//!   generation g ───────────────────────────────────────────────────────▶ generation g+1 … 255, then KeyExhausted
//!
//!   open, header says  < g, the one before, not yet erased   open with the old key
//!                      = g                                   open
//!                      g+1 ..= g+8                           derive ahead, open; only a tag that fits makes it the current one
//!                      anything else                         WrongGeneration
//! ```
//!
//! The old key stays for three round trips, at least a second, and is then erased: late datagrams are not lost, and a stolen machine does
//! not tell what was said two minutes ago. Keys derived ahead are kept until the lane gets there, so a forged generation costs what any
//! forged datagram costs, one AEAD open, except for at most eight derivations per generation that the lane is in (measured: 1.3 µs for a
//! key and 0.5 µs for a step of the ratchet, 25 µs for all).
//!
//! Lanes wake up when they are used: a [`SealLane`] expands its key with its first datagram, an [`OpenLane`] makes its window (2 KiB) when
//! the first one proves authentic. Asleep, each costs some 200 bytes, so sessions may have a lane for every worker although most workers
//! never see their peer; each expanded key is some 0.6 KiB more.
//!
//! Neither lane knows sockets, peers or what a datagram carries. The time is an argument.

mod open;
mod seal;

use std::time::Duration;

pub use open::OpenLane;
pub use seal::SealLane;

// From specifications.

/// Bytes that one AES-GCM key may seal, a datagram counting for at least [`DATAGRAM_CHARGE_MIN`]: RFC 9001 appendix B.1.1 allows 2^28
/// packets of up to 2^11 bytes, which keeps an attacker's advantage below 2^-57; the advantage grows with the square of all blocks sealed,
/// so longer datagrams count by their length (2^26 of 8 KiB). ChaCha20-Poly1305 has no such limit and keeps to the same.
pub const GENERATION_BYTES: u64 = 1 << 39;
/// What a short datagram counts for: the size that RFC 9001 speaks of.
pub const DATAGRAM_CHARGE_MIN: u64 = 1 << 11;
/// The last generation that the header's byte can name.
pub const GENERATION_LAST: u8 = u8::MAX;

// Our own choices.

/// Age at which a generation ends with the next datagram. A minute is what a stolen key may tell, and costs 2 µs.
pub const GENERATION_AGE: Duration = Duration::from_secs(60);
/// Time of use after which a fresh key exchange is due. WireGuard's REKEY_AFTER_TIME; long enough that exchanges cost nothing.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Age at which keys seal no more: how long the packet plane may outlive its control plane.
pub const KEY_LIFETIME: Duration = Duration::from_secs(3600);
/// How much longer keys open than seal: both sides install within an exchange's round trips, and datagrams are on their way.
pub const OPEN_GRACE: Duration = Duration::from_secs(10);
/// Counters of one lane. 256 generations of 2^28 datagrams are 2^36; the rest leaves room for jumps at hand-over, and anything beyond is
/// a broken peer that would push the window to its end.
pub const COUNTERS: u64 = 1 << 48;
/// Generations that the opening side derives ahead: eight minutes in which nothing arrived.
pub const AHEAD_MAX: usize = 8;
/// Shortest time that an old key is kept.
pub const RETAIN_MIN: Duration = Duration::from_secs(1);
/// Round trips that an old key is kept.
pub const RETAIN_ROUND_TRIPS: u32 = 3;

/// The limits of a lane. Tests make them small; everything else uses the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See [`GENERATION_BYTES`].
    pub generation_bytes: u64,
    /// See [`GENERATION_AGE`].
    pub generation_age: Duration,
    /// See [`GENERATION_LAST`].
    pub generation_last: u8,
    /// See [`COUNTERS`]; the largest counter is one less.
    pub counters: u64,
    /// See [`KEY_LIFETIME`].
    pub lifetime: Duration,
    /// See [`OPEN_GRACE`].
    pub open_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            generation_bytes: GENERATION_BYTES,
            generation_age: GENERATION_AGE,
            generation_last: GENERATION_LAST,
            counters: COUNTERS,
            lifetime: KEY_LIFETIME,
            open_grace: OPEN_GRACE,
        }
    }
}

/// What the tests of both ends use.
#[cfg(test)]
mod testing {
    use super::super::aead::Algorithm;
    use super::super::keys::{Context, Direction, LaneSecret, Side};
    use super::super::time::Time;
    use super::*;
    use crate::api::message::{Incarnation, Secret, SessionId};
    use weir_abi::drop::DropReason;
    use weir_abi::wire::{DATA_LEN_MIN, DataHeader, HEADER_LEN, ReceiverIndex};

    pub(super) const RECEIVER: ReceiverIndex = ReceiverIndex(0x0102_0304);
    pub(super) const BODY: &[u8] = b"a packet";
    pub(super) const LEN: usize = DATA_LEN_MIN + BODY.len();

    pub(super) fn at(time: Duration) -> Time {
        Time::ZERO.plus(time)
    }

    pub(super) fn ns(nanos: u64) -> Duration {
        Duration::from_nanos(nanos)
    }

    pub(super) fn secret() -> LaneSecret {
        let side = Side { incarnation: Incarnation(1), salt: [1; 16] };
        let context = Context::new(SessionId(1), side, side, true, Algorithm::for_this_cpu());
        LaneSecret::derive(&Secret::new([9; 32]), &context, Direction::FromInitiator, 0)
    }

    pub(super) fn lanes(limits: Limits) -> (SealLane, OpenLane) {
        let secret = secret();
        (
            SealLane::new(&secret, 0, RECEIVER, Time::ZERO, limits),
            OpenLane::new(&secret, 0, RECEIVER, Time::ZERO, limits),
        )
    }

    pub(super) fn sealed(lane: &mut SealLane, now: Time) -> Result<[u8; LEN], DropReason> {
        let mut datagram = [0xee; LEN];
        datagram[HEADER_LEN..][..BODY.len()].copy_from_slice(BODY);
        lane.seal(&mut datagram, now).map(|_| datagram)
    }

    /// What became of a datagram: nothing for opened.
    pub(super) fn open(lane: &mut OpenLane, mut datagram: [u8; LEN], now: Time) -> Result<(), DropReason> {
        let header = DataHeader::parse(&datagram).unwrap();
        lane.open(&header, &mut datagram, now).map(|plaintext| assert_eq!(plaintext, BODY))
    }

    /// Datagrams of the generations 0, 1, 2, …: each is one generation's first.
    pub(super) fn one_of_each_generation(lane: &mut SealLane, count: u32) -> Vec<[u8; LEN]> {
        (0..count).map(|i| sealed(lane, at(GENERATION_AGE * i)).unwrap()).collect()
    }
}
