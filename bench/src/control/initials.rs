//! Initials of strangers: proper ones, with a ClientHello that would be answered, whose tags no member made and whose sources are made up.
//!
//! Their keys come from their connection ids, so none can be changed on the way out. They are made beforehand, as many as are let in while
//! a node still remembers one, and sent over and over from other addresses.

use std::net::{Ipv4Addr, SocketAddr};

use weir_controlplane::pki::id::NodeId;
use weir_controlplane::quic::{AdmissionKey, Alpn, DialTarget};
use weir_controlplane::random::{Random as _, SystemRandom};

use super::party::{self, Party, broken};
use crate::Result;

/// Dials of one driver: fewer than the links that it may have.
const DIALS_MAX: usize = 1024;
const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// Where frames come from on the link.
const SOURCE_MAC: [u8; 6] = [0x02, 0x57, 0x65, 0x03, 0, 0];

/// Whom they are sent to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victim {
    /// Its id.
    pub(super) node: NodeId,
    /// Its link-layer address.
    pub(super) mac: [u8; 6],
    /// Its address.
    pub(super) address: Ipv4Addr,
    /// Its port.
    pub(super) port: u16,
}

/// Ready-made Initials and what becomes of them on the way out.
pub(super) struct Spoofed {
    victim: Victim,
    initials: Vec<Vec<u8>>,
    random: u64,
}

impl Spoofed {
    /// The first datagram of so many dials by a stranger.
    pub(super) fn new(stranger: &Party, victim: Victim, dials: usize) -> Result<Self> {
        let to = SocketAddr::from((victim.address, victim.port));
        let mut initials = Vec::with_capacity(dials);
        let mut train = Vec::new();
        while initials.len() < dials {
            let mut driver = stranger.driver();
            driver.set_admission(Some(AdmissionKey::new(&SystemRandom.array())));
            for _ in 0..DIALS_MAX.min(dials - initials.len()) {
                let dialled = driver.dial(Alpn::Key, &DialTarget::member(victim.node), to, party::now());
                dialled.map_err(|error| broken("making Initials")(&error))?;
                let transmit = driver.poll_transmit(party::now(), &mut train);
                let transmit = transmit.ok_or_else(|| broken("making Initials")(&"a dial sends nothing"))?;
                initials.push(train[..transmit.segment_len.unwrap_or(transmit.len)].to_vec());
                // What is left of the dial's first flight is not wanted.
                while driver.poll_transmit(party::now(), &mut train).is_some() {}
            }
        }
        Ok(Self { victim, initials, random: SystemRandom.u64() | 1 })
    }

    /// Writes the next frame.
    pub(super) fn write(&mut self, n: u64, frame: &mut [u8]) -> usize {
        // Xorshift (Marsaglia, 2003): addresses need be no secret.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let drawn = self.random.to_be_bytes();
        let initial = &self.initials[n as usize % self.initials.len()];
        let udp_len = (UDP_LEN + initial.len()) as u16;
        let (ethernet, rest) = frame.split_at_mut(ETHERNET_LEN);
        ethernet[..6].copy_from_slice(&self.victim.mac);
        ethernet[6..12].copy_from_slice(&SOURCE_MAC);
        ethernet[12..].copy_from_slice(&[0x08, 0x00]);
        let (ip, rest) = rest.split_at_mut(IPV4_LEN);
        let total_len = IPV4_LEN as u16 + udp_len;
        ip.copy_from_slice(&[
            0x45,
            0,
            0,
            0,
            0,
            0,
            0x40,
            0,
            64,
            17,
            0,
            0,
            198,
            18 | drawn[0] & 1,
            drawn[1],
            drawn[2],
            0,
            0,
            0,
            0,
        ]);
        ip[2..4].copy_from_slice(&total_len.to_be_bytes());
        ip[16..].copy_from_slice(&self.victim.address.octets());
        let sum = checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let (udp, rest) = rest.split_at_mut(UDP_LEN);
        udp[..2].copy_from_slice(&[drawn[3] | 0x80, drawn[4]]);
        udp[2..4].copy_from_slice(&self.victim.port.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
        // No checksum, which IPv4 allows (RFC 768).
        udp[6..].fill(0);
        rest[..initial.len()].copy_from_slice(initial);
        ETHERNET_LEN + usize::from(total_len)
    }
}

/// The Internet checksum of a header whose own field is zero (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let words =
        header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spoofed_frames_are_proper_initials_from_ever_other_addresses() {
        let parties = party::network(1).unwrap();
        let victim = Victim { node: parties[0].node, mac: [2; 6], address: Ipv4Addr::new(192, 0, 2, 1), port: 4646 };
        let mut spoofed = Spoofed::new(&parties[0], victim, 3).unwrap();
        let mut sources = std::collections::BTreeSet::new();
        for n in 0..6 {
            let mut frame = [0; 2048];
            let len = spoofed.write(n, &mut frame);
            let ip = &frame[ETHERNET_LEN..len];
            assert_eq!(checksum(&ip[..IPV4_LEN]), 0);
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
            assert_eq!((ip[12], ip[13] & !1, &ip[16..20]), (198, 18, &[192, 0, 2, 1][..]));
            sources.insert(ip[12..22].to_vec());
            // RFC 9000 §17.2.2 and §14.1.
            let initial = &ip[IPV4_LEN + UDP_LEN..];
            assert_eq!((initial[0] & 0xf0, &initial[1..6]), (0xc0, &[0, 0, 0, 1, 20][..]));
            assert!(initial.len() >= 1200, "{}", initial.len());
        }
        assert_eq!(sources.len(), 6);
        assert!(spoofed.initials[0] != spoofed.initials[1]);
    }
}
