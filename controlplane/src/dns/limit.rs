//! How many answers a network gets by UDP: who forges the address of a victim has us send it little (the aim of response rate limiting, as NSD and BIND
//! have it).
//!
//! Who shows a cookie of ours, or comes by TCP, has proven its address and is not limited.

use std::net::IpAddr;
use std::time::Instant;

use crate::gcra::Groups;

/// Groups of networks, as a power of two. Ours: 4 KiB.
const GROUP_BITS: u32 = 10;
/// Between two answers to one network, over time: a thousand a second.
const INTERVAL_MS: u32 = 1;
/// How far a network may be ahead. Ours: a second's worth.
const AHEAD_MAX_MS: u32 = 1000;
/// Of those that are too many one in so many is answered by "ask by TCP", so that an honest client in that network gets through.
const SLIP: u32 = 2;

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes.
    Send,
    /// In its place goes: ask by TCP.
    Slip,
    /// Nothing goes.
    Drop,
}

/// What each network has got.
#[derive(Debug)]
pub struct Limit {
    groups: Groups,
    slipped: u32,
}

/// What one owner has as a rule: a /24, or a /56 (RFC 6177).
fn prefix(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(u32::from(v4) >> 8),
        IpAddr::V6(v6) => (u128::from(v6) >> 72) as u64 | 1 << 63,
    }
}

impl Limit {
    /// With a random key.
    pub fn new(key: u64, now: Instant) -> Self {
        Self { groups: Groups::new(GROUP_BITS, INTERVAL_MS, AHEAD_MAX_MS, key, now), slipped: 0 }
    }

    /// Judges one answer.
    pub fn judge(&mut self, to: IpAddr, now: Instant) -> Verdict {
        if to.is_loopback() || self.groups.admit(prefix(to), now) {
            return Verdict::Send;
        }
        self.slipped = self.slipped.wrapping_add(1);
        if self.slipped.is_multiple_of(SLIP) { Verdict::Slip } else { Verdict::Drop }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_network_gets_its_rate_and_half_of_the_rest_is_told_to_come_by_tcp() {
        let start = Instant::now();
        let mut limit = Limit::new(0x9e37_79b9_7f4a_7c15, start);
        let mut judged = |to: &str, ms| limit.judge(to.parse().unwrap(), start + Duration::from_millis(ms));
        let all: Vec<Verdict> = (0..3000).map(|host| judged(&format!("192.0.2.{}", host % 250), 0)).collect();
        let count = |verdict| all.iter().filter(|one| **one == verdict).count();
        let sent = count(Verdict::Send);
        assert!((995..=1005).contains(&sent), "{sent}");
        assert!(count(Verdict::Slip).abs_diff(count(Verdict::Drop)) <= 1);
        assert_eq!(judged("198.51.100.1", 0), Verdict::Send);
        assert_eq!(judged("2001:db8::1", 0), Verdict::Send);
        assert_eq!(judged("127.0.0.1", 0), Verdict::Send);
        assert_eq!(judged("192.0.2.7", 1000), Verdict::Send);
    }
}
