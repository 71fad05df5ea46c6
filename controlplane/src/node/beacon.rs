//! What a node says of itself on the local network: that somebody of its network is here, to those only who know the network's id.
//!
//! ```text
//!  TXT  v=1  s=<salt, 8 bytes>  h=<first 16 bytes of SHA-256("weir-mdns-1" ‖ salt ‖ network id)>      bytes in small hexadecimal
//! ```
//!
//! The salt is drawn at each start. So nobody sees that two beacons are of one network, or that one of today is the one of yesterday; who knows
//! an id can try it. No name, no node id and no network id is in it. How it is carried, this part refuses to know.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::pki::id::{NetworkId, sha256};
use crate::random::Random;

/// The version of what is said, and the only one.
const VERSION: &str = "1";
const SALT_LEN: usize = 8;
const HASH_LEN: usize = 16;

/// A salted hash of a network's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    salt: [u8; SALT_LEN],
    hash: [u8; HASH_LEN],
}

fn hash(salt: [u8; SALT_LEN], network: NetworkId) -> [u8; HASH_LEN] {
    let whole = sha256("weir-mdns-1", &[&salt, &network.0]);
    std::array::from_fn(|at| whole[at])
}

impl Beacon {
    /// One of this network that nobody has seen before.
    pub fn new(network: NetworkId, random: &mut impl Random) -> Self {
        let salt = random.array();
        Self { salt, hash: hash(salt, network) }
    }

    /// Whether it is of this network.
    pub fn is_of(&self, network: NetworkId) -> bool {
        self.hash == hash(self.salt, network)
    }

    /// As keys and values of a TXT record (RFC 6763 §6).
    pub fn to_txt(&self) -> [(&'static str, String); 3] {
        [("v", VERSION.to_owned()), ("s", HEXLOWER.encode(&self.salt)), ("h", HEXLOWER.encode(&self.hash))]
    }

    /// From the values of a TXT record, which anybody may have written; `value` gives the one of a key. `None` when it is no beacon of a version
    /// that is known here.
    pub fn from_txt<'a>(value: impl Fn(&str) -> Option<&'a [u8]>) -> Option<Self> {
        (value("v")? == VERSION.as_bytes()).then_some(())?;
        Some(Self { salt: bytes(value("s")?)?, hash: bytes(value("h")?)? })
    }
}

fn bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    // Before it is decoded: what is too long costs nothing.
    (text.len() == 2 * N).then_some(())?;
    HEXLOWER.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SeededRandom;

    const OURS: NetworkId = NetworkId([7; 32]);

    fn read(txt: &[(&str, String)]) -> Option<Beacon> {
        Beacon::from_txt(|key| txt.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_bytes()))
    }

    #[test]
    fn a_beacon_is_known_by_those_who_know_the_network_and_by_nothing_else() {
        let mut random = SeededRandom::new(1);
        let (one, other) = (Beacon::new(OURS, &mut random), Beacon::new(OURS, &mut random));
        assert!(one.salt != other.salt && one.hash != other.hash, "two of one network are alike");
        assert!(one.is_of(OURS) && other.is_of(OURS) && !one.is_of(NetworkId([8; 32])));
        let mixed = Beacon { salt: one.salt, hash: other.hash };
        assert!(!mixed.is_of(OURS));
        assert_eq!(read(&one.to_txt()), Some(one));
        let said: String = one.to_txt().iter().map(|(_, value)| value.as_str()).collect();
        assert!(!said.contains(&HEXLOWER.encode(&OURS.0[..8])));
    }

    #[test]
    fn what_is_no_beacon_is_none() {
        let good = Beacon::new(OURS, &mut SeededRandom::new(2)).to_txt();
        let with = |key: &str, value: &str| {
            let mut txt = good.clone();
            txt.iter_mut().filter(|(known, _)| *known == key).for_each(|(_, old)| *old = value.to_owned());
            read(&txt)
        };
        let (salt, hash) = (good[1].1.as_str(), good[2].1.as_str());
        assert!(with("s", salt).is_some());
        for wrong in ["", &salt[2..], &format!("{salt}00"), &salt.replace(|_| true, "A"), &salt.replace(|_| true, "é")]
        {
            assert_eq!(with("s", wrong), None, "{wrong}");
        }
        assert_eq!((with("h", &hash[1..]), with("h", &format!("{hash} "))), (None, None));
        assert_eq!((with("v", "2"), with("v", ""), with("v", "1 ")), (None, None, None));
        assert_eq!((read(&good[..2]), read(&good[1..]), read(&[])), (None, None, None));
    }
}
