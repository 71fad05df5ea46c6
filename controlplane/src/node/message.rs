//! What members say to each other over a `weir/1` link, and over the short `weir-key/1` and `weir-join/1` ones.
//!
//! ```text
//!  weir/1       both: Hello ─▶      then, whenever one has what the other lacks:
//!               Ask ─▶              ◀─ Bundles | Revocations | Policy | Admission | Records
//!               Issuer{ticket, …} ─▶                   ◀─ IssuerSaid{ticket, …}        renewal, through any member
//!               Ping ─▶             ◀─ Pong
//!               either, where the other told the ability:
//!               Contact{index}                                for a contact session
//!               Rpc                                           what belongs into its datagrams and is too long, or early
//!               Peers{here, others}                           where the speaker is, and others are
//!               Mail                                          messages of applications: `mail::wire`
//!
//!  weir-key/1   responder, with its handshake: Offer ─▶ ; initiator, once it has installed: Offer ─▶ ; responder, the same: Installed ─▶
//!
//!  weir-join/1  server: Network ─▶ ; joiner: Issuer{…} ─▶ ; server: IssuerSaid{…} ─▶
//! ```
//!
//! Each message is one frame of the link's control stream, in postcard's format; variants are only ever appended. A peer that says
//! something else is answered by closing the link.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weir_dataplane::api::message::Offer;

use super::directory::SignedRecord;
use crate::dht::place::Contact;
use crate::issuer::{JoinRequest, LeaveRequest, Refused, RenewRequest, Reply};
use crate::mail::wire::Frame;
use crate::pki::admission::SignedAdmission;
use crate::pki::bundle::SignedBundle;
use crate::pki::id::NodeId;
use crate::pki::revocation::SignedRevocationList;
use crate::policy::SignedPolicy;
use crate::time::UnixSecs;

/// Version of this message set. With a peer of the version before, that one is spoken; so a peer of the next one speaks this one with us.
pub const VERSION: u16 = 1;
/// The oldest version that there ever was.
const VERSION_FIRST: u16 = 1;
/// A bit of [`Hello::features`], which tell abilities beyond the version: [`Message::Contact`] and [`Message::Rpc`] are wanted. What is said by an
/// ability is said only to those who told its bit.
pub const FEATURE_CONTACT: u64 = 1;
/// The same of [`Message::Mail`]: messages of applications are taken.
pub const FEATURE_MESSAGES: u64 = 2;
/// A bit of the same: [`Message::Peers`] is wanted.
pub const FEATURE_PEERS: u64 = 4;
/// Most addresses that a member tells of itself at a time.
pub const PEERS_HERE_MAX: usize = 4;
/// Most of others.
pub const PEERS_OTHERS_MAX: usize = 16;
/// Longest message.
pub const MESSAGE_LEN_MAX: usize = 1 << 20;
/// Most records in one message, so that it stays below its longest.
pub const RECORDS_PER_MESSAGE: usize = 256;

/// The version that two sides speak, one of `ours` and one of `theirs`: the older one's, where they are next to each other.
pub fn spoken(ours: u16, theirs: u16) -> Option<u16> {
    (theirs >= VERSION_FIRST && ours.abs_diff(theirs) <= 1).then(|| ours.min(theirs))
}

/// The version that a [`Hello`] tells which may be of any version: its beginning is the same in all.
pub fn version_of_hello(bytes: &[u8]) -> Option<u16> {
    /// The place of [`Message::Hello`] among the messages, and the first field of it.
    const HELLO: u32 = 0;
    let ((what, version), _) = postcard::take_from_bytes::<(u32, u16)>(bytes).ok()?;
    (what == HELLO).then_some(version)
}

/// What each side knows, so that both see at once who lacks what. `version` stays the first field in all versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Of the message set.
    pub version: u16,
    /// Abilities of the speaker, a bit each; bits that are not known are let be.
    pub features: u64,
    /// Of the program, for people.
    pub program: String,
    /// Newest version of the trust bundle.
    pub bundle: u64,
    /// Digest of the revocation lists.
    pub revocations: [u8; 32],
    /// Newest version of the policy; 0 for none.
    pub policy: u64,
    /// Digest of that policy, for two that were signed under one number; zeros for none.
    pub policy_digest: [u8; 32],
    /// Newest version of the admission document; 0 for none.
    pub admission: u64,
    /// Digest of the directory.
    pub directory: [u8; 32],
    /// The speaker's clock, by which others may set theirs.
    pub wall: UnixSecs,
}

/// What one side asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Versions of the trust bundle after this one.
    Bundles {
        /// The newest that is there.
        after: u64,
    },
    /// All revocation lists.
    Revocations,
    /// The policy, if it is newer.
    Policy {
        /// The version that is there.
        have: u64,
    },
    /// The admission document, if it is newer.
    Admission {
        /// The version that is there.
        have: u64,
    },
    /// Records that are newer than these, or of other members.
    Records {
        /// Sequence of each record that is there.
        known: Vec<(NodeId, u64)>,
    },
}

/// Something for an issuer, which any member passes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerCall {
    /// Chosen by who asks; comes back with the answer.
    pub ticket: u32,
    /// Members that it may still pass through.
    pub hops: u8,
    /// Exporter of the link on which a joiner asked, as the member saw it that the joiner spoke to.
    pub exporter: [u8; 32],
    /// What is asked.
    pub request: MemberRequest,
}

/// What members and those who join ask of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberRequest {
    /// To become a member.
    Join(JoinRequest),
    /// For the next certificate.
    Renew(RenewRequest),
    /// To be a member no more.
    Leave(LeaveRequest),
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first on a `weir/1` link, from both sides.
    Hello(Hello),
    /// Wants something.
    Ask(Ask),
    /// Versions of the trust bundle, in order.
    Bundles(Vec<SignedBundle>),
    /// Revocation lists.
    Revocations(Vec<SignedRevocationList>),
    /// The policy.
    Policy(SignedPolicy),
    /// The admission document.
    Admission(SignedAdmission),
    /// What members say of themselves.
    Records(Vec<SignedRecord>),
    /// For an issuer.
    Issuer(IssuerCall),
    /// What an issuer said.
    IssuerSaid {
        /// As it was asked.
        ticket: u32,
        /// The answer.
        reply: Box<Result<Reply, Refused>>,
    },
    /// Is anybody there? The token comes back.
    Ping(u64),
    /// Yes.
    Pong(u64),
    /// A contact session is wanted: the index that the speaker has drawn for it.
    Contact {
        /// Datagrams to the speaker have it.
        index: u32,
    },
    /// What is too long for a datagram of a contact session, or came before there was one.
    Rpc(Vec<u8>),
    /// About messages of applications.
    Mail(Box<Frame>),
    /// Addresses of the speaker, and of others that it has links with.
    Peers(Peers),
}

/// Peer exchange: addresses, which prove nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Private addresses of the speaker, for those who happen to be near; at most [`PEERS_HERE_MAX`].
    pub here: Vec<SocketAddr>,
    /// Public addresses at which it has links with others; at most [`PEERS_OTHERS_MAX`].
    pub others: Vec<Contact>,
}

/// A message of a key exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyMessage {
    /// What the speaker's packet plane offers.
    Offer {
        /// For [`weir_dataplane::api::message::Install::peer`].
        offer: Offer,
        /// Largest inner packet that the speaker's TUN takes.
        inner_mtu: u16,
    },
    /// The responder's packet plane has the keys and opens what they seal.
    Installed,
}

/// The first message of the server on a `weir-join/1` link: enough to know whom one speaks to, and nothing that is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// All versions of the trust bundle.
    pub bundles: Vec<SignedBundle>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn versions_next_to_each_other_speak_the_older_one() {
        let with = |theirs| spoken(5, theirs);
        assert_eq!([3, 4, 5, 6, 7].map(with), [None, Some(4), Some(5), Some(5), None]);
        assert_eq!((spoken(1, 0), spoken(1, 1), spoken(1, 2), spoken(1, u16::MAX)), (None, Some(1), Some(1), None));
        // Both sides come to the same.
        for (ours, theirs) in (0..9).flat_map(|ours| (0..9).map(move |theirs| (ours, theirs))) {
            assert!(ours == 0 || theirs == 0 || spoken(ours, theirs) == spoken(theirs, ours), "{ours} and {theirs}");
        }
    }

    #[test]
    fn the_version_of_a_hello_is_read_whatever_follows_it() {
        let hello = |version| {
            codec::encode(&Message::Hello(Hello {
                version,
                features: 0,
                program: String::new(),
                bundle: 1,
                revocations: [0; 32],
                policy: 0,
                policy_digest: [0; 32],
                admission: 0,
                directory: [0; 32],
                wall: UnixSecs(1),
            }))
        };
        for version in [0, 1, 127, 128, u16::MAX] {
            assert_eq!(version_of_hello(&hello(version)), Some(version));
            assert_eq!(version_of_hello(&[&hello(version)[..], b"and more"].concat()), Some(version));
        }
        assert_eq!(version_of_hello(&codec::encode(&Message::Ping(1))), None);
        assert_eq!((version_of_hello(&[]), version_of_hello(&[0])), (None, None));
    }
}
