//! Connection ids that say two things to those who may know: whom they are for, and that a member made them.
//!
//! ```text
//!  0        4        8        12                 20
//!  +--------+--------+--------+------------------+
//!  | random | nonce  |  slot  |       tag        |    an id for a peer's first Initial
//!  +--------+--------+--------+------------------+
//!  | masked | nonce  |  slot  |       tag        |    an id of our own: random = link ^ PRF(secret, nonce, slot)
//!  +--------+--------+--------+------------------+
//! ```
//!
//! The tag is the admission tag of [`weir_dataplane::api::admission`], for the receiver's node id: the peer's in the first case, ours in the
//! second, so that what answers our Initials is admitted too. Without an admission key the tag is as random as the rest.
//!
//! The mask lets [`Driver`](super::Driver) see which link a datagram is for without a table that a peer could make grow. Nobody else can
//! tell ids of one link from ids of another. An id that a stranger made unmasks to some number as well; it is one of our links with a
//! probability of 2^-32 per link, and then costs that stranger a second attempt.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator};
use weir_dataplane::api::admission;
use zeroize::Zeroizing;

use super::LinkId;
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::UnixSecs;

/// An admission key: one day's of the network, or the one that an invitation carries. Erased when dropped, never printed.
#[derive(Clone)]
pub struct AdmissionKey(Zeroizing<[u64; 2]>);

impl AdmissionKey {
    /// From its bytes.
    pub fn new(bytes: &[u8; 16]) -> Self {
        Self(Zeroizing::new(admission::key_words(bytes)))
    }
}

impl std::fmt::Debug for AdmissionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdmissionKey(…)")
    }
}

/// What the secret's outputs are for: the place of a node id in the tag's hash keeps the uses apart.
const DRAW: [u8; 32] = [1; 32];
const MASK: [u8; 32] = [2; 32];

struct State {
    /// Drawn at start; never leaves this module.
    secret: Zeroizing<[u64; 2]>,
    drawn: u64,
    node: Option<NodeId>,
    admission: Option<AdmissionKey>,
    slot: u32,
    owner: Option<LinkId>,
}

impl State {
    /// Unpredictable without the secret, never the same twice.
    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let (low, high) = halves(self.drawn);
        admission::tag(*self.secret, low, high, &DRAW)
    }

    fn mask(&self, nonce: u32, slot: u32) -> u32 {
        halves(admission::tag(*self.secret, nonce, slot, &MASK)).0
    }

    fn tag(&mut self, key: Option<[u64; 2]>, nonce: u32, node: Option<NodeId>) -> u64 {
        match (key, node) {
            (Some(key), Some(node)) => admission::tag(key, nonce, self.slot, &node.0),
            (None, _) | (_, None) => self.draw(),
        }
    }

    fn own(&mut self) -> [u8; admission::CID_LEN] {
        let (nonce, random) = halves(self.draw());
        let first = match self.owner {
            Some(link) => halves(link.0).0 ^ self.mask(nonce, self.slot),
            None => random,
        };
        let tag = self.tag(self.admission.as_ref().map(|key| *key.0), nonce, self.node);
        admission::cid(first.to_be_bytes(), nonce, self.slot, tag)
    }

    fn for_peer(&mut self, node: Option<NodeId>, key: Option<&AdmissionKey>) -> [u8; admission::CID_LEN] {
        let (nonce, random) = halves(self.draw());
        let key = key.or(self.admission.as_ref()).map(|key| *key.0);
        let tag = self.tag(key, nonce, node);
        admission::cid(random.to_be_bytes(), nonce, self.slot, tag)
    }
}

/// The low and the high word.
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is asked for")]
fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// Makes and reads connection ids; shared by the driver and its endpoint.
#[derive(Clone)]
pub(super) struct Cids(Arc<Mutex<State>>);

impl Cids {
    pub(super) fn new(node: Option<NodeId>, random: &mut dyn Random) -> Self {
        let secret = Zeroizing::new([random.u64(), random.u64()]);
        Self(Arc::new(Mutex::new(State { secret, drawn: 0, node, admission: None, slot: 0, owner: None })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in this module panics between two writes, so what another thread left is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our own node id, when it became known.
    pub(super) fn set_node(&self, node: NodeId) {
        self.state().node = Some(node);
    }

    /// The key of the day.
    pub(super) fn set_admission(&self, key: Option<AdmissionKey>) {
        self.state().admission = key;
    }

    /// Ids made from now on are of this time.
    pub(super) fn set_time(&self, now: UnixSecs) {
        self.state().slot = admission::slot_at(now.0);
    }

    /// Ids made from now on belong to this link, or to none.
    pub(super) fn set_owner(&self, link: Option<LinkId>) {
        self.state().owner = link;
    }

    /// An id for a first Initial to `node`; one without a tag where it is not known who answers.
    pub(super) fn for_peer(&self, node: Option<NodeId>, key: Option<&AdmissionKey>) -> ConnectionId {
        ConnectionId::new(&self.state().for_peer(node, key))
    }

    /// The low 32 bits of the link that an id of ours belongs to; some number for an id of somebody else's.
    pub(super) fn owner_of(&self, cid: &[u8]) -> Option<u32> {
        let (fields, masked) = (admission::Fields::parse(cid)?, cid.first_chunk()?);
        Some(u32::from_be_bytes(*masked) ^ self.state().mask(fields.nonce, fields.slot))
    }
}

impl ConnectionIdGenerator for Cids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.state().own())
    }

    fn cid_len(&self) -> usize {
        admission::CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use weir_dataplane::api::admission::{Fields, Key};

    use super::*;
    use crate::random::SeededRandom;

    const US: NodeId = NodeId([1; 32]);
    const PEER: NodeId = NodeId([2; 32]);
    const NETWORK: [u8; 16] = [3; 16];
    const INVITE: [u8; 16] = [4; 16];

    fn cids() -> Cids {
        let cids = Cids::new(Some(US), &mut SeededRandom::new(1));
        cids.set_admission(Some(AdmissionKey::new(&NETWORK)));
        cids.set_time(UnixSecs(1_790_000_000));
        cids
    }

    fn tagged(cid: &ConnectionId, key: &[u8; 16], node: NodeId) -> bool {
        Fields::parse(cid).unwrap().is_tagged_by(&Key::new(admission::key_words(key), &node.0))
    }

    #[test]
    fn a_first_initial_is_tagged_for_its_receiver_by_the_network_or_the_invitation() {
        let cids = cids();
        let cid = cids.for_peer(Some(PEER), None);
        assert_eq!((tagged(&cid, &NETWORK, PEER), tagged(&cid, &NETWORK, US)), (true, false));
        assert_eq!(Fields::parse(&cid).unwrap().slot, admission::slot_at(1_790_000_000));
        let cid = cids.for_peer(Some(PEER), Some(&AdmissionKey::new(&INVITE)));
        assert_eq!((tagged(&cid, &NETWORK, PEER), tagged(&cid, &INVITE, PEER)), (false, true));
        cids.set_admission(None);
        assert!(!tagged(&cids.for_peer(Some(PEER), None), &NETWORK, PEER));
        cids.set_admission(Some(AdmissionKey::new(&NETWORK)));
        let (one, other) = (cids.for_peer(None, None), cids.for_peer(None, None));
        assert!(
            one != other && ![US, PEER].iter().any(|node| tagged(&one, &NETWORK, *node)),
            "for nobody in particular"
        );
    }

    #[test]
    fn our_own_ids_are_tagged_for_us_and_name_their_link_to_us_alone() {
        let mut cids = cids();
        let other = Cids::new(Some(US), &mut SeededRandom::new(2));
        let mut seen = HashSet::new();
        for link in [0, 1, 7, 0xffff_fffe, 0x1_0000_0003] {
            cids.set_owner(Some(LinkId(link)));
            for _ in 0..50 {
                let cid = cids.generate_cid();
                assert!(tagged(&cid, &NETWORK, US));
                assert_eq!(cids.owner_of(&cid), Some(halves(link).0));
                assert_ne!(other.owner_of(&cid), Some(halves(link).0));
                assert!(seen.insert(cid));
            }
        }
        assert_eq!(cids.owner_of(&[0; 19]), None);
        cids.set_owner(None);
        assert!(tagged(&cids.generate_cid(), &NETWORK, US), "what a Retry asks for is tagged too");
    }

    #[test]
    fn a_joiner_without_a_node_id_makes_ids_too() {
        let mut cids = Cids::new(None, &mut SeededRandom::new(3));
        cids.set_owner(Some(LinkId(9)));
        let (one, other) = (cids.generate_cid(), cids.generate_cid());
        assert_ne!(one, other);
        assert_eq!((cids.owner_of(&one), cids.owner_of(&other)), (Some(9), Some(9)));
        cids.set_node(US);
        cids.set_admission(Some(AdmissionKey::new(&NETWORK)));
        assert!(tagged(&cids.generate_cid(), &NETWORK, US));
    }
}
