//! Keys of zones: Ed25519 as DNSKEY and DS have it (RFC 8080, RFC 4034 §2 and §5, RFC 4509).
//!
//! ```text
//!  DNSKEY   flags (2): 256 zone key, 257 with SEP │ protocol (1): 3 │ algorithm (1): 15 │ key (32)
//!  DS       key tag (2) │ algorithm (1): 15 │ digest type (1): 2 │ SHA-256 of owner ‖ DNSKEY (32)
//! ```

use super::Name;
use crate::pki::id::sha256;
use crate::pki::key::PublicKey;

/// Ed25519 (RFC 8080 §4).
pub const ALGORITHM: u8 = 15;
/// SHA-256 (RFC 4509 §2.1).
pub const DIGEST_TYPE: u8 = 2;
const PROTOCOL: u8 = 3;
const RDATA_LEN: usize = 36;

/// What a key is for (RFC 4034 §2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It signs the zone.
    Zone,
    /// It is known from outside, by a DS or as an anchor: a secure entry point.
    EntryPoint,
}

/// A key of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneKey {
    /// The key.
    pub public: PublicKey,
    /// What for.
    pub role: Role,
}

impl ZoneKey {
    /// RDATA of its DNSKEY.
    pub fn rdata(&self) -> [u8; RDATA_LEN] {
        let flags: u16 = match self.role {
            Role::Zone => 256,
            Role::EntryPoint => 257,
        };
        let mut rdata = [0; RDATA_LEN];
        rdata[..2].copy_from_slice(&flags.to_be_bytes());
        (rdata[2], rdata[3]) = (PROTOCOL, ALGORITHM);
        rdata[4..].copy_from_slice(&self.public.0);
        rdata
    }

    /// Reads one.
    pub fn of_rdata(rdata: &[u8]) -> Option<Self> {
        let (head, key) = rdata.split_first_chunk::<4>()?;
        let role = match *head {
            [1, 0, PROTOCOL, ALGORITHM] => Role::Zone,
            [1, 1, PROTOCOL, ALGORITHM] => Role::EntryPoint,
            _ => return None,
        };
        Some(Self { public: PublicKey(key.try_into().ok()?), role })
    }

    /// By which signatures name it (RFC 4034, appendix B).
    pub fn tag(&self) -> u16 {
        let rdata = self.rdata();
        let (pairs, _) = rdata.as_chunks::<2>();
        let sum: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
        (sum + (sum >> 16)) as u16
    }

    /// RDATA of its DS where it is a key of this zone.
    pub fn ds(&self, zone: &Name) -> Vec<u8> {
        let [high, low] = self.tag().to_be_bytes();
        [&[high, low, ALGORITHM, DIGEST_TYPE][..], &self.digest(zone)].concat()
    }

    /// What a DS says of it.
    pub fn digest(&self, zone: &Name) -> [u8; 32] {
        sha256("", &[zone.as_slice(), &self.rdata()])
    }
}

#[cfg(test)]
mod tests {
    use domain::base::iana::SecurityAlgorithm;
    use domain::rdata::Dnskey;

    use super::*;

    /// RFC 8080 §6, the first example.
    #[test]
    fn tag_and_digest_are_as_in_the_example() {
        let public = data_encoding::BASE64.decode(b"l02Woi0iS8Aa25FQkUd9RMzZHJpBoRQwAQEX1SxZJA4=").unwrap();
        let key = ZoneKey { public: PublicKey(public.try_into().unwrap()), role: Role::EntryPoint };
        assert_eq!(key.tag(), 3613);
        let ds = key.ds(&"example.com".parse().unwrap());
        let digest = "3aa5ab37efce57f737fc1627013fee07bdf241bd10f3b1964ab55c78e79a304b";
        assert_eq!(ds[..4], [0x0e, 0x1d, 15, 2]);
        assert_eq!(data_encoding::HEXLOWER.encode(&ds[4..]), digest);
        assert_eq!(ZoneKey::of_rdata(&key.rdata()), Some(key));
    }

    #[test]
    fn the_library_counts_the_same_tag_and_other_keys_are_none() {
        for seed in 0..50 {
            let key = ZoneKey { public: PublicKey([seed * 5; 32]), role: Role::Zone };
            let theirs = Dnskey::new(256, 3, SecurityAlgorithm::ED25519, key.public.0).unwrap();
            assert_eq!(key.tag(), theirs.key_tag());
            assert_eq!(ZoneKey::of_rdata(&key.rdata()), Some(key));
        }
        let good = ZoneKey { public: PublicKey([1; 32]), role: Role::Zone }.rdata();
        for at in 0..4 {
            let mut bent = good;
            bent[at] ^= 0x80;
            assert_eq!(ZoneKey::of_rdata(&bent), None, "{at}");
        }
        assert_eq!(ZoneKey::of_rdata(&good[..35]), None);
    }
}
