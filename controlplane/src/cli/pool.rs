//! What a network may give to its sites when whoever founds it does not say: ranges that this host has no other way into.
//!
//! ```text
//!  /proc/net/fib_trie     Main:                           the tables one after the other, each a tree
//!                           +-- 192.0.2.0/24 2 0 2        an inner node: of no interest
//!                              |-- 192.0.2.0              an address …
//!                                 /24 link UNICAST        … and the length of a route that begins there
//!  /proc/net/ipv6_route   destination length source length next-hop metric refcnt use flags interface     all in hexadecimal
//! ```
//!
//! Both files have every routing table: with the addresses of this host, and with what another network of ours holds here.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use weir_dataplane::api::Prefix;

use super::{Failure, failed};
use crate::pki::bundle::prefixes_overlap;
use crate::random::Random;

/// Routes that are wider than any private range are default routes by another name, as `0.0.0.0/1` beside `128.0.0.0/1`.
const ROUTE_BITS_MIN: u8 = 7;

/// A pool for a network with these networks behind its first member: they, and a /16 of 10.0.0.0/8 and a /48 of fd00::/8 drawn among
/// those that no route of this host is about.
pub(super) fn choose(subnets: &[Prefix], random: &mut impl Random) -> Result<Vec<Prefix>, Failure> {
    let path = "/proc/net/fib_trie";
    let ipv4 =
        fs::read_to_string(path).map_err(|error| failed(format!("{path}: {error}: name the pool with --pool")))?;
    // Where IPv6 is off there is none.
    let ipv6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let pool = beside(&routes(&ipv4, &ipv6), subnets, random);
    pool.ok_or_else(|| failed("this host has routes into all of 10.0.0.0/8: name the pool with --pool"))
}

fn beside(routes: &[Prefix], subnets: &[Prefix], random: &mut impl Random) -> Option<Vec<Prefix>> {
    let is_free = |prefix: &Prefix| !routes.iter().chain(subnets).any(|taken| prefixes_overlap(taken, prefix));
    // Not of the other private ranges: home networks and containers are there, on this host tomorrow or on another one today.
    let ipv4 = (0..=u8::MAX).filter_map(|second| Prefix::new(Ipv4Addr::new(10, second, 0, 0).into(), 16).ok());
    let ipv4: Vec<Prefix> = ipv4.filter(is_free).collect();
    let drawn = *ipv4.get(usize::try_from(random.u64() % (ipv4.len() as u64).max(1)).ok()?)?;
    // RFC 4193 §3.1: fd, then 40 random bits. Only a route into most of fd00::/8 is ever in the way, and then there is no IPv6 to give.
    let [a, b, c, d, e] = random.array();
    let local = u128::from_be_bytes([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let local = Prefix::new(Ipv6Addr::from_bits(local).into(), 48).ok().filter(is_free);
    let mut pool: Vec<Prefix> = std::iter::once(drawn).chain(local).collect();
    pool.extend(subnets);
    Some(pool)
}

/// All routes in the texts of the two files, but for default routes.
fn routes(fib_trie: &str, ipv6_route: &str) -> Vec<Prefix> {
    let mut address = None;
    let ipv4 = fib_trie.lines().filter_map(|line| {
        let line = line.trim_start();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            address = leaf.trim_end().parse::<Ipv4Addr>().ok();
            return None;
        }
        let len = line.strip_prefix('/')?.split_whitespace().next()?.parse().ok()?;
        Prefix::new(address?.into(), len).ok()
    });
    let ipv6 = ipv6_route.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        let len = u8::from_str_radix(words.next()?, 16).ok()?;
        Prefix::new(Ipv6Addr::from_bits(address).into(), len).ok()
    });
    ipv4.chain(ipv6).filter(|route| route.bit_len() >= ROUTE_BITS_MIN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::bundle::prefix_covers;
    use crate::random::SeededRandom;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn beside(routes: &[&str], subnets: &[&str], seed: u64) -> Option<Vec<Prefix>> {
        super::beside(&prefixes(routes), &prefixes(subnets), &mut SeededRandom::new(seed))
    }

    #[test]
    fn routes_are_read_from_every_table() {
        let fib_trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                        \x20    +-- 10.20.0.0/16 2 0 2\n        |-- 10.20.0.0\n           /16 link UNICAST\n\
                        \x20          /24 universe UNICAST\n        |-- 128.0.0.0\n           /1 universe UNICAST\n\
                        Local:\n     |-- 10.20.0.7\n        /32 host LOCAL\n\
                        Id 7770:\n     |-- 172.16.0.0\n        /12 universe UNREACHABLE\n";
        let [network, zeros] = ["fd00000000000000", "0000000000000000"];
        let ipv6_route = format!(
            "{network}{zeros} 40 {zeros}{zeros} 00 {zeros}{zeros} 00000100 00000001 00000000 00000001     eth0\n\
             {zeros}{zeros} 00 {zeros}{zeros} 00 {network}{zeros} 00000400 00000003 00000000 00000003     eth0\n\
             {network}{zeros} 80 {zeros}{zeros} 00 {zeros}{zeros} 00000000 00000003 00000000 80200001       lo\n"
        );
        let expected = ["10.20.0.0/16", "10.20.0.0/24", "10.20.0.7/32", "172.16.0.0/12", "fd00::/64", "fd00::/128"];
        assert_eq!(routes(fib_trie, &ipv6_route), prefixes(&expected));
        assert_eq!(routes("nonsense\n/8 host\n|-- here\n/8 host", "nonsense\n00"), []);
    }

    #[test]
    fn the_pool_has_the_subnets_and_nothing_that_the_host_has_a_way_into() {
        let home = ["10.0.0.0/9", "10.128.7.0/24", "10.130.0.1/32", "172.16.0.0/12", "fd12:3456:789a::/48"];
        let subnets = ["192.168.7.0/24", "10.129.3.0/24"];
        for seed in 0..200 {
            let pool = beside(&home, &subnets, seed).unwrap();
            let [ipv4, ipv6, given @ ..] = &pool[..] else { panic!("{pool:?}") };
            assert_eq!(given, prefixes(&subnets));
            assert_eq!((ipv4.bit_len(), ipv6.bit_len()), (16, 48));
            assert!(prefix_covers(&"10.128.0.0/9".parse().unwrap(), ipv4), "{ipv4}");
            assert!(prefix_covers(&"fd00::/8".parse().unwrap(), ipv6), "{ipv6}");
            for taken in prefixes(&home).iter().chain(given) {
                assert!(!prefixes_overlap(taken, ipv4) && !prefixes_overlap(taken, ipv6), "{ipv4} {ipv6} {taken}");
            }
        }
    }

    #[test]
    fn two_networks_rarely_have_the_same_pool() {
        let drawn: std::collections::HashSet<_> = (0..100).map(|seed| beside(&[], &[], seed).unwrap()[0]).collect();
        assert!(drawn.len() > 50, "{}", drawn.len());
    }

    #[test]
    fn the_last_free_range_is_taken_and_none_is_said_to_be_none() {
        let all_but = |free: Option<u8>| -> Vec<Prefix> {
            let taken = (0..=u8::MAX).filter(|second| Some(*second) != free);
            taken.map(|second| format!("10.{second}.255.0/24").parse().unwrap()).collect()
        };
        let choose = |taken: &[Prefix]| super::beside(taken, &[], &mut SeededRandom::new(7));
        assert_eq!(choose(&all_but(Some(77))).unwrap()[0], "10.77.0.0/16".parse().unwrap());
        assert_eq!(choose(&all_but(None)), None);
        assert_eq!(beside(&["10.0.0.0/8"], &[], 7), None);
        assert_eq!(beside(&["fd00::/8"], &[], 7).unwrap().len(), 1, "no IPv6 where all of it is routed already");
    }
}
