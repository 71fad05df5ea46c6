//! Every kind of message that a member can send, each spoiled in every way that there is: refused under a name of its own, and nothing else.

use weir_controlplane::ceremony::{self, Ceremony, Founding, FoundingKeys};
use weir_controlplane::codec;
use weir_controlplane::issuer::{JoinBody, JoinRequest, LeaveBody, LeaveRequest, Refused, RenewBody, RenewRequest};
use weir_controlplane::mail::wire::Frame;
use weir_controlplane::membership;
use weir_controlplane::node::directory::{ENDPOINTS_MAX, Record, SignedRecord};
use weir_controlplane::node::link::Code;
use weir_controlplane::node::message::{
    Ask, Hello, IssuerCall, KeyMessage, MESSAGE_LEN_MAX, MemberRequest, Message, Peers, RECORDS_PER_MESSAGE, VERSION,
};
use weir_controlplane::pki::admission::{AdmissionDocument, SignedAdmission};
use weir_controlplane::pki::bundle::SignedBundle;
use weir_controlplane::pki::dnssec::PARENT;
use weir_controlplane::pki::id::{InviteId, NetworkId, NodeId};
use weir_controlplane::pki::key::{Domain, PrivateKey};
use weir_controlplane::pki::revocation::{ENTRIES_MAX, Entry, REASON_LEN_MAX, Revoked, SignedRevocationList};
use weir_controlplane::pki::signed::Signed;
use weir_controlplane::pki::statement::MemberStatement;
use weir_controlplane::pki::token::InviteSecret;
use weir_controlplane::policy::SignedPolicy;
use weir_controlplane::quic::{Alpn, CloseReason, DialTarget, Event, LinkId, SendError};
use weir_controlplane::random::SeededRandom;
use weir_controlplane::store::{MemoryStore, Store, Table};
use weir_controlplane::time::{Now, UnixSecs};
use weir_dataplane::api::message::{Incarnation, Offer, Salt};

use super::hostile::Misuse;
use super::*;

/// What is known of the network by whoever was a member of it, and keys that it would take more than that to have.
struct Known {
    network: NetworkId,
    bundles: Vec<SignedBundle>,
    lists: Vec<SignedRevocationList>,
    admission: SignedAdmission,
    record: SignedRecord,
    issuer: PrivateKey,
    root_b: PrivateKey,
    stranger: PrivateKey,
    now: UnixSecs,
}

impl Known {
    fn of(misuse: &Misuse) -> Self {
        let store = misuse.world.store(misuse.sites[4]);
        let decode = |bytes: &[u8]| codec::decode(bytes, 1 << 20).unwrap();
        let records = store.entries(Table::Directory).unwrap();
        let records = records.iter().map(|(_, bytes)| codec::decode::<SignedRecord>(bytes, 1 << 20).unwrap());
        let keys = misuse.world.founding_keys().unwrap();
        Self {
            network: misuse.own.network,
            bundles: membership::bundles(store).unwrap(),
            lists: store.entries(Table::Revocations).unwrap().iter().map(|(_, bytes)| decode(bytes)).collect(),
            admission: membership::admission(store).unwrap().unwrap(),
            record: records.into_iter().find(|record| record.statement == misuse.own.statement).unwrap(),
            issuer: keys.issuer.clone(),
            root_b: keys.root_b.clone(),
            stranger: PrivateKey::generate(&mut SeededRandom::new(99)),
            now: misuse.world.true_time(),
        }
    }

    /// The next version of the bundle, as a ceremony makes it, and the one after that.
    fn next_bundles(&self) -> [SignedBundle; 2] {
        let mut ceremony = Ceremony::begin(&self.bundles, self.root_b.clone(), self.now).unwrap();
        ceremony.allow_legacy_kyber(true).unwrap();
        ceremony.allow_legacy_kyber(false).unwrap();
        let [.., next, after] = ceremony.versions() else { panic!("two more versions") };
        [next.clone(), after.clone()]
    }

    /// Another network's first bundle.
    fn foreign_bundle(&self) -> SignedBundle {
        let mut random = SeededRandom::new(98);
        let keys = FoundingKeys::generate(&mut random);
        let founding = Founding {
            dns_parent: PARENT.into(),
            network: "another".to_owned(),
            name: "founder".to_owned(),
            default_allow: true,
            pool: vec!["10.0.0.0/8".parse().unwrap()],
            subnets: vec![],
            groups: vec![],
        };
        let now = Now { mono: std::time::Instant::now(), wall: self.now };
        let (mut node, issuer) = (MemoryStore::default(), MemoryStore::default());
        ceremony::found(&founding, &keys, &mut node, issuer, now, &mut random).unwrap().bundle
    }

    fn version_of_list(&self) -> u64 {
        self.lists[0].head.peek().unwrap().version
    }

    fn list(&self, key: &PrivateKey, version: u64, entries: Vec<Entry>) -> SignedRevocationList {
        SignedRevocationList::sign(key, version, self.now, self.now.plus(HOUR), entries)
    }

    fn entry(&self, of: u8) -> Entry {
        Entry { what: Revoked::Node(NodeId([of; 32])), reason: "stolen".to_owned(), at: self.now }
    }

    fn policy(&self, network: NetworkId, version: u64, operator: &PrivateKey) -> SignedPolicy {
        SignedPolicy::sign(network, version, self.now, "default = \"deny\"", operator).unwrap()
    }

    fn seed(&self, version: u64, key: &PrivateKey) -> SignedAdmission {
        let document = AdmissionDocument { version, seed: zeroize::Zeroizing::new([7; 32]), since: self.now };
        Signed::sign(&document, key)
    }

    fn body(&self, misuse: &Misuse) -> Record {
        let not_after = self.now.plus(DAY);
        Record { node: misuse.own.node, sequence: self.now.0 + 60, not_after, endpoints: vec![], workers: 1 }
    }

    /// A record of ours with this body, and with our statement changed.
    fn record(
        &self,
        misuse: &Misuse,
        body: impl FnOnce(&mut Record),
        said: impl FnOnce(&mut MemberStatement),
    ) -> SignedRecord {
        let (mut record, before) = (self.body(misuse), misuse.own.statement.peek().unwrap());
        let mut statement = before.clone();
        body(&mut record);
        said(&mut statement);
        let statement =
            if statement == before { misuse.own.statement.clone() } else { Signed::sign(&statement, &self.issuer) };
        SignedRecord::sign(&record, statement, &misuse.own.identity)
    }
}

/// The first message of a link, with next to nothing in it.
pub(super) fn hello(version: u16, wall: UnixSecs) -> Hello {
    Hello {
        version,
        features: 0,
        program: String::new(),
        bundle: 1,
        revocations: [0; 32],
        policy: 0,
        policy_digest: [0; 32],
        admission: 0,
        directory: [0; 32],
        wall,
    }
}

/// What a member says that believes it to be this late.
pub(super) fn hello_at(wall: u64) -> Message {
    Message::Hello(hello(VERSION, UnixSecs(wall)))
}

/// The place of a message's kind in the list of all: a new one does not compile before it is tested here.
fn kind(message: &Message) -> usize {
    match message {
        Message::Hello(_) => 0,
        Message::Ask(_) => 1,
        Message::Bundles(_) => 2,
        Message::Revocations(_) => 3,
        Message::Policy(_) => 4,
        Message::Admission(_) => 5,
        Message::Records(_) => 6,
        Message::Issuer(_) => 7,
        Message::IssuerSaid { .. } => 8,
        Message::Ping(_) => 9,
        Message::Pong(_) => 10,
        Message::Contact { .. } => 11,
        Message::Rpc(_) => 12,
        Message::Mail(_) => 13,
        Message::Peers(_) => 14,
    }
}
const KINDS: usize = 15;

/// One good message of each kind, and of each form of a kind.
fn good(known: &Known, misuse: &Misuse) -> Vec<Message> {
    let asks = [
        Ask::Bundles { after: 0 },
        Ask::Revocations,
        Ask::Policy { have: 0 },
        Ask::Admission { have: 0 },
        Ask::Records { known: vec![(misuse.own.node, 7)] },
    ];
    let mut all: Vec<Message> = asks.into_iter().map(Message::Ask).collect();
    all.extend([
        Message::Hello(hello(VERSION, known.now)),
        Message::Bundles(known.bundles.clone()),
        Message::Revocations(known.lists.clone()),
        Message::Policy(known.policy(known.network, 1, &known.issuer)),
        Message::Admission(known.admission.clone()),
        Message::Records(vec![known.record.clone()]),
        Message::Issuer(call(renewal(known, misuse, known.network, &misuse.own.identity))),
        Message::IssuerSaid { ticket: 77, reply: Box::new(Err(Refused::Spent)) },
        Message::Ping(1),
        Message::Pong(2),
        Message::Contact { index: 9 },
        Message::Rpc(vec![1, 2, 3]),
        Message::Mail(Box::new(Frame::Credit(0))),
        Message::Peers(Peers { here: vec![], others: vec![] }),
    ]);
    all
}

fn call(request: MemberRequest) -> IssuerCall {
    IssuerCall { ticket: 5, hops: 1, exporter: [0; 32], request }
}

fn renewal(known: &Known, misuse: &Misuse, network: NetworkId, identity: &PrivateKey) -> MemberRequest {
    let body = RenewBody {
        network,
        certificate: misuse.own.chain[0].clone(),
        leaf_public: known.stranger.public(),
        dns_key: None,
        bundle_version: 1,
    };
    MemberRequest::Renew(RenewRequest::new(&body, identity, &known.stranger, &[0; 32]))
}

impl Misuse {
    /// Sends these bytes and says by what code the link ended, if it did.
    fn send(&mut self, link: LinkId, bytes: &[u8]) -> Option<u32> {
        let puppet = self.sites[4];
        self.world.heard(puppet);
        self.world.links(puppet).send(link, bytes).unwrap();
        self.world.run(ms(100));
        self.world.heard(puppet).into_iter().find_map(|event| match event {
            Event::Closed { link: of, reason: CloseReason::Peer { code, .. } } if of == link => Some(code),
            _ => None,
        })
    }

    /// Whether a question on the link is answered.
    fn answers(&mut self, link: LinkId) -> bool {
        let puppet = self.sites[4];
        self.world.heard(puppet);
        self.world.links(puppet).send(link, &codec::encode(&Message::Ping(11))).unwrap();
        self.world.run(ms(100));
        let pong = codec::encode(&Message::Pong(11));
        let is_pong = |event: Event| matches!(event, Event::Message { link: of, bytes } if of == link && bytes == pong);
        self.world.heard(puppet).into_iter().any(is_pong)
    }

    /// Counters of the victim, but for what a quiet node counts as well.
    fn all_counted(&mut self) -> std::collections::BTreeMap<String, u64> {
        let counters = status(&mut self.world, self.victim).counters;
        let is_quiet = |name: &str| {
            name.starts_with("exchange_") || name.starts_with("chain_") || name.starts_with("quic_") || name == "pong"
        };
        counters.into_iter().filter(|row| !is_quiet(&row.name)).map(|row| (row.name, row.count)).collect()
    }
}

#[test]
fn what_is_not_exactly_one_message_ends_its_link_under_one_code() {
    let mut misuse = Misuse::of(720, 1);
    let known = Known::of(&misuse);
    let good = good(&known, &misuse);
    let kinds: std::collections::BTreeSet<usize> = good.iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "every kind is among them");
    let documents = misuse.world.documents(misuse.victim);
    let mut refused = 0;
    for message in &good {
        let whole = codec::encode(message);
        let unknown = [&[0x7f][..], &whole[1..]].concat();
        for spoiled in [whole[..whole.len() - 1].to_vec(), [&whole[..], &[0]].concat(), unknown] {
            let link = misuse.dial();
            assert_eq!(misuse.send(link, &spoiled), Some(Code::Protocol as u32), "{message:?}");
            refused += 1;
            assert_eq!(misuse.counted("link_protocol"), refused, "{message:?}");
        }
        // As it is, the link outlives it.
        let link = misuse.dial();
        assert_eq!(misuse.send(link, &whole), None, "{message:?}");
        assert!(misuse.answers(link), "{message:?}");
    }
    // An empty one is none.
    let link = misuse.dial();
    assert_eq!(misuse.send(link, &[]), Some(Code::Protocol as u32));
    assert_eq!(misuse.counted("link_protocol"), refused + 1);
    assert_eq!(misuse.world.documents(misuse.victim).map(|(bundle, ..)| bundle), documents.map(|(bundle, ..)| bundle));
    misuse.is_unharmed();
}

/// Message, the counter that it comes under, and the code by which the link ends, if it does.
type Case = (&'static str, Message, &'static str, Option<Code>);

fn bent<T>(mut signed: Signed<T>, by: &Signed<T>) -> Signed<T> {
    signed.signature = by.signature;
    signed
}

fn bundles(known: &Known) -> Vec<Case> {
    let [next, after] = known.next_bundles();
    let of_nobody = SignedBundle {
        body: next.body.clone(),
        signatures: known.bundles[0].signatures.clone(),
        zones: next.zones.clone(),
    };
    let many = SignedBundle { signatures: vec![next.signatures[0]; 100], ..next.clone() };
    let cut = SignedBundle { body: next.body[..next.body.len() - 1].to_vec(), ..next.clone() };
    let case = |what, bundle, counter| -> Case { (what, Message::Bundles(vec![bundle]), counter, None) };
    vec![
        case("a wrong signature", of_nobody, "bundle_predecessor"),
        case("a version that is missing before it", after, "bundle_gap"),
        case("another network's", known.foreign_bundle(), "bundle_predecessor"),
        case("too many signatures", many, "bundle_too_many"),
        case("half a body", cut, "bundle_malformed"),
    ]
}

fn lists(known: &Known) -> Vec<Case> {
    let version = known.version_of_list();
    let (one, two) = (known.entry(1), known.entry(2));
    let good = known.list(&known.issuer, version + 9, vec![one.clone()]);
    let signature = bent(good.head.clone(), &known.list(&known.stranger, version + 9, vec![one.clone()]).head);
    let whole = known.list(&known.issuer, version + 9, vec![one.clone(), two.clone()]);
    let end = SignedRevocationList { from: 1, entries: vec![two.clone()], ..whole };
    let ends_early = SignedRevocationList::sign(&known.issuer, version + 9, known.now, UnixSecs(1), vec![]);
    let long = Entry { reason: "x".repeat(REASON_LEN_MAX + 1), ..one.clone() };
    let case = |what, list, counter| -> Case { (what, Message::Revocations(vec![list]), counter, None) };
    vec![
        case("a stranger's", known.list(&known.stranger, version + 9, vec![one.clone()]), "revocation_stranger"),
        case("a wrong signature", SignedRevocationList { head: signature, ..good.clone() }, "revocation_signature"),
        case("other entries", SignedRevocationList { entries: vec![two], ..good.clone() }, "revocation_entries"),
        case("an end without its beginning", end, "revocation_gap"),
        case("a version before", known.list(&known.issuer, version - 1, vec![one.clone()]), "revocation_old"),
        case("fresh before it was issued", ends_early, "revocation_freshness"),
        case(
            "too many entries",
            known.list(&known.issuer, version + 9, vec![one; ENTRIES_MAX + 1]),
            "revocation_too_long",
        ),
        case("too long a reason", known.list(&known.issuer, version + 9, vec![long]), "revocation_too_long"),
    ]
}

fn policies(known: &Known) -> Vec<Case> {
    let good = known.policy(known.network, 1, &known.issuer);
    let signature = |body: Vec<u8>| {
        let signature = known.stranger.sign(Domain::Policy, &body);
        SignedPolicy::assemble(body, known.issuer.public(), signature)
    };
    let body = SignedPolicy::body(known.network, 1, known.now, "default = \"deny\"").unwrap();
    let cut = body[..body.len() - 1].to_vec();
    let by_issuer = known.issuer.sign(Domain::Policy, &cut);
    let cut = SignedPolicy::assemble(cut, known.issuer.public(), by_issuer);
    let other = NetworkId([8; 32]);
    let case = |what, policy, counter| -> Case { (what, Message::Policy(policy), counter, None) };
    assert_ne!(good, signature(body.clone()));
    vec![
        case("a stranger's", known.policy(known.network, 1, &known.stranger), "policy_operator"),
        case("a wrong signature", signature(body), "policy_signature"),
        case("another network's", known.policy(other, 1, &known.issuer), "policy_other_network"),
        case("a number that leaves none", known.policy(known.network, u64::MAX, &known.issuer), "policy_ahead"),
        case("half a body", cut, "policy_malformed"),
    ]
}

fn seeds(known: &Known) -> Vec<Case> {
    let version = known.admission.peek().unwrap().version;
    let good = known.seed(version + 1, &known.issuer);
    let case = |what, seed, counter| -> Case { (what, Message::Admission(seed), counter, None) };
    vec![
        case("a stranger's", known.seed(version + 1, &known.stranger), "admission_stranger"),
        case("a wrong signature", bent(good.clone(), &known.seed(version + 1, &known.stranger)), "admission_signature"),
        case("a version before", known.seed(version - 1, &known.issuer), "admission_old"),
    ]
}

fn records(known: &Known, misuse: &Misuse) -> Vec<Case> {
    let record = |body: &dyn Fn(&mut Record), said: &dyn Fn(&mut MemberStatement)| {
        known.record(misuse, |record| body(record), |statement| said(statement))
    };
    let same = |_: &mut Record| {};
    let said = |_: &mut MemberStatement| {};
    let good = record(&same, &said);
    let endpoints = vec!["192.0.2.1:1".parse().unwrap(); ENDPOINTS_MAX + 1];
    let signature = SignedRecord::sign(&known.body(misuse), misuse.own.statement.clone(), &known.stranger);
    let by_stranger = Signed::sign(&misuse.own.statement.peek().unwrap(), &known.stranger);
    let statement_signature = bent(misuse.own.statement.clone(), &by_stranger);
    let case = |what, record, counter| -> Case { (what, Message::Records(vec![record]), counter, None) };
    vec![
        case("a wrong signature", signature, "record_signature"),
        case(
            "a statement with a wrong signature",
            SignedRecord { statement: statement_signature, ..good.clone() },
            "record_statement",
        ),
        case("a stranger's statement", SignedRecord { statement: by_stranger, ..good.clone() }, "record_statement"),
        case(
            "another network's statement",
            record(&same, &|statement| statement.network = NetworkId([8; 32])),
            "record_statement",
        ),
        case(
            "an ended statement",
            record(&same, &|statement| {
                (statement.not_before, statement.not_after) = (UnixSecs(1), UnixSecs(2));
            }),
            "record_statement",
        ),
        case("another member's", record(&|record| record.node = NodeId([9; 32]), &said), "record_other_node"),
        case("ended", record(&|record| record.not_after = UnixSecs(1), &said), "record_expired"),
        case("a sequence that leaves none", record(&|record| record.sequence = u64::MAX, &said), "record_too_long"),
        case("a life without end", record(&|record| record.not_after = UnixSecs(u64::MAX), &said), "record_too_long"),
        case("too many addresses", record(&|record| record.endpoints = endpoints.clone(), &said), "record_endpoints"),
        case("an older one", record(&|record| record.sequence = 1, &said), "record_old"),
        case("half a body", SignedRecord { body: good.body[..9].to_vec(), ..good.clone() }, "record_malformed"),
        (
            "too many of them",
            Message::Records(vec![good; RECORDS_PER_MESSAGE + 1]),
            "link_protocol",
            Some(Code::Protocol),
        ),
    ]
}

/// What an issuer is asked, by somebody who speaks for itself on a link of its own.
fn requests(known: &Known, misuse: &Misuse) -> Vec<Case> {
    let (own, network, other) = (&misuse.own, known.network, NetworkId([8; 32]));
    let leave = |network, identity: &PrivateKey| {
        let body = LeaveBody { network, certificate: own.chain[0].clone() };
        MemberRequest::Leave(LeaveRequest::new(&body, identity, &[0; 32]))
    };
    let join = |network| {
        let body = JoinBody {
            network,
            invite: InviteId([5; 8]),
            identity: own.identity.public(),
            leaf_public: known.stranger.public(),
            wanted_name: None,
            dns_key: None,
            bundle_version: 1,
        };
        let secret = InviteSecret::new([3; 16]);
        MemberRequest::Join(JoinRequest::new(&body, &own.identity, &known.stranger, &secret, &[0; 32]))
    };
    let half = |request: MemberRequest| match request {
        MemberRequest::Join(request) => {
            MemberRequest::Join(JoinRequest { body: request.body[..9].to_vec(), ..request })
        }
        MemberRequest::Renew(request) => {
            MemberRequest::Renew(RenewRequest { body: request.body[..9].to_vec(), ..request })
        }
        MemberRequest::Leave(request) => {
            MemberRequest::Leave(LeaveRequest { body: request.body[..9].to_vec(), ..request })
        }
    };
    let renew = |network| renewal(known, misuse, network, &own.identity);
    let case = |what, request, counter| -> Case { (what, Message::Issuer(call(request)), counter, None) };
    vec![
        case("half a join", half(join(network)), "malformed"),
        case("half a renewal", half(renew(network)), "malformed"),
        case("half a leave", half(leave(network, &own.identity)), "malformed"),
        case("a join of another network", join(other), "other_network"),
        case("a renewal of another network", renew(other), "other_network"),
        case("a leave of another network", leave(other, &own.identity), "other_network"),
        case("a join by no invitation", join(network), "unknown_invite"),
        // Bound to another connection than the one that it comes by, as one that was overheard would be.
        case("a renewal for another connection", renew(network), "bad_signature"),
        case("a leave for another connection", leave(network, &own.identity), "bad_signature"),
        (
            "an answer that nobody waits for",
            Message::IssuerSaid { ticket: 9, reply: Box::new(Err(Refused::Spent)) },
            "issuer_said_unasked",
            None,
        ),
    ]
}

#[test]
fn what_is_wrong_with_a_message_has_a_counter_of_its_own_and_the_node_goes_on() {
    // The victim is the node with the issuer.
    let mut misuse = Misuse::of(721, 0);
    let known = Known::of(&misuse);
    let mut cases = [bundles(&known), lists(&known), policies(&known), seeds(&known)].concat();
    cases.extend(records(&known, &misuse));
    cases.extend(requests(&known, &misuse));
    let hello = |version| Message::Hello(hello(version, known.now));
    cases.push(("a version to come", hello(VERSION + 2), "link_version", Some(Code::Version)));
    cases.push(("a version that never was", hello(VERSION - 1), "link_version", Some(Code::Version)));
    let documents =
        |misuse: &Misuse| (misuse.world.documents(misuse.victim), misuse.world.policy_version(misuse.victim));
    let before = documents(&misuse);
    let mut link = misuse.dial();
    for (what, message, counter, code) in cases {
        let bytes = codec::encode(&message);
        assert!(bytes.len() <= MESSAGE_LEN_MAX, "{what}: the limit of a message comes first");
        let counted = misuse.all_counted();
        let ended = misuse.send(link, &bytes);
        assert_eq!(ended, code.map(|code| code as u32), "{what}, of kind {}", kind(&message));
        let mut expected = counted;
        *expected.entry(counter.to_owned()).or_default() += 1;
        assert_eq!(misuse.all_counted(), expected, "{what}, of kind {}", kind(&message));
        if code.is_some() {
            link = misuse.dial();
        }
        assert!(misuse.answers(link), "{what}: the node goes on");
    }
    assert_eq!(documents(&misuse), before, "nothing of all that is believed");
    // A message at its limit is taken off the link; one beyond does not get onto it.
    let puppet = misuse.sites[4];
    let too_long = misuse.world.links(puppet).send(link, &vec![0; MESSAGE_LEN_MAX + 1]);
    assert_eq!(too_long, Err(SendError::TooLong(MESSAGE_LEN_MAX + 1)));
    assert_eq!(misuse.send(link, &vec![0x7f; MESSAGE_LEN_MAX]), Some(Code::Protocol as u32));
    misuse.is_unharmed();
}

/// A signer that takes back what it revoked, and a root that signs two bundles of one version: nobody but a thief of keys can.
#[test]
fn what_only_a_stolen_key_can_say_is_refused_by_name_too() {
    let mut misuse = Misuse::of(722, 1);
    let known = Known::of(&misuse);
    let version = known.version_of_list();
    let link = misuse.dial();
    let longer = known.list(&known.issuer, version + 20, vec![known.entry(1), known.entry(2)]);
    let shorter = known.list(&known.issuer, version + 21, vec![known.entry(1)]);
    let [next, _] = known.next_bundles();
    let mut other = Ceremony::begin(&known.bundles, known.root_b.clone(), known.now.plus(HOUR)).unwrap();
    let another = PrivateKey::generate(&mut SeededRandom::new(4)).public();
    other.add_issuer(another, &mut SeededRandom::new(5)).unwrap();
    let fork = other.versions().last().unwrap().clone();
    for (message, counter) in [
        (Message::Revocations(vec![longer]), None),
        (Message::Revocations(vec![shorter]), Some("revocation_rewritten")),
        (Message::Bundles(vec![next]), None),
        (Message::Bundles(vec![fork]), Some("bundle_fork")),
    ] {
        assert_eq!(misuse.send(link, &codec::encode(&message)), None);
        assert_eq!(counter.map(|counter| misuse.counted(counter)), counter.map(|_| 1), "{message:?}");
    }
    assert_eq!(misuse.world.documents(misuse.victim).unwrap().0, 2);
    assert!(misuse.world.knows_revoked(misuse.victim, NodeId([2; 32])));
}

/// The short links for keys: what is said there harms that exchange and no other.
#[test]
fn a_key_exchange_that_is_spoiled_ends_alone() {
    let mut misuse = Misuse::of(723, 1);
    let (victim, puppet) = (misuse.victim, misuse.sites[4]);
    let offer =
        Offer { incarnation: Incarnation(7), salt: Salt::default(), indices: vec![1, 2], has_aes: true, lane_ports: 0 };
    let whole = codec::encode(&KeyMessage::Offer { offer, inner_mtu: 1300 });
    let installed = codec::encode(&KeyMessage::Installed);
    let cases = [
        ("cut short", whole[..whole.len() - 1].to_vec(), Code::Protocol, "link_protocol"),
        ("with more behind it", [&whole[..], &[0]].concat(), Code::Protocol, "link_protocol"),
        ("of no kind", vec![9], Code::Protocol, "link_protocol"),
        ("the responder's word from the initiator", installed, Code::Failed, "exchange_failed"),
    ];
    let remote = misuse.remote();
    for (what, bytes, code, counter) in cases {
        let target = DialTarget::member(misuse.world.id(victim).unwrap());
        let link = misuse.world.links(puppet).dial(Alpn::Key, target, remote).unwrap();
        misuse.world.run(ms(100));
        let before = misuse.counted(counter);
        assert_eq!(misuse.send(link, &bytes), Some(code as u32), "{what}");
        assert_eq!(misuse.counted(counter), before + 1, "{what}");
    }
    // An offer that is as it should be, and another behind it.
    let target = DialTarget::member(misuse.world.id(victim).unwrap());
    let link = misuse.world.links(puppet).dial(Alpn::Key, target, remote).unwrap();
    misuse.world.run(ms(100));
    misuse.world.links(puppet).send(link, &whole).unwrap();
    let before = misuse.counted("exchange_failed");
    assert_eq!(misuse.send(link, &whole), Some(Code::Failed as u32));
    assert_eq!(misuse.counted("exchange_failed"), before + 1);
    misuse.is_unharmed();
}

/// Who shows no certificate speaks with an issuer and of nothing else.
#[test]
fn a_stranger_may_say_one_thing_only() {
    let mut misuse = Misuse::of(724, 0);
    let known = Known::of(&misuse);
    let puppet = misuse.sites[4];
    let remote = misuse.remote();
    for message in good(&known, &misuse) {
        let target = DialTarget::member(misuse.world.id(misuse.victim).unwrap());
        let link = misuse.world.links(puppet).dial(Alpn::Join, target, remote).unwrap();
        misuse.world.run(ms(100));
        let before = misuse.counted("link_protocol");
        let ended = misuse.send(link, &codec::encode(&message));
        let is_allowed = matches!(message, Message::Issuer(_));
        assert_eq!(ended, (!is_allowed).then_some(Code::Protocol as u32), "{message:?}");
        assert_eq!(misuse.counted("link_protocol"), before + u64::from(!is_allowed), "{message:?}");
    }
    misuse.is_unharmed();
}

/// What answers a joiner is the token's network, or the join says that it is not.
#[test]
fn a_joiner_believes_no_server_that_greets_wrongly() {
    let greetings = |known: &Known| {
        let good = codec::encode(&weir_controlplane::node::message::Network { bundles: known.bundles.clone() });
        let other = weir_controlplane::node::message::Network { bundles: vec![known.foreign_bundle()] };
        let none = weir_controlplane::node::message::Network { bundles: vec![] };
        vec![
            (good[..good.len() - 1].to_vec(), "link_protocol"),
            ([&good[..], &[0]].concat(), "link_protocol"),
            (codec::encode(&other), "join_server_refused"),
            (codec::encode(&none), "join_server_refused"),
            (good, ""),
        ]
    };
    for at in 0..5 {
        let mut misuse = Misuse::of(725 + at as u64, 0);
        let known = Known::of(&misuse);
        let founder = misuse.sites[0];
        let token = misuse.world.invite(founder, 1, None).unwrap();
        let (greeting, counter) = greetings(&known).swap_remove(at);
        misuse.world.make_puppet(founder);
        let new = misuse.world.add_machine();
        misuse.world.start(new);
        let call = misuse.world.join(new, &token);
        let mut greeted = 0;
        for _ in 0..200 {
            for event in misuse.world.heard(founder) {
                if let Event::Opening { link, alpn: Alpn::Join, .. } = event {
                    misuse.world.links(founder).send(link, &greeting).unwrap();
                    greeted += 1;
                }
            }
            misuse.world.run(ms(10));
        }
        assert!(greeted > 0);
        let answer = misuse.world.answer(call);
        if counter.is_empty() {
            assert!(answer.is_none(), "it asks and waits: {answer:?}");
            continue;
        }
        assert!(matches!(answer, Some(Err(_))), "{answer:?}");
        assert_eq!((misuse.world.count(new, counter), misuse.world.id(new)), (1, None), "greeting {at}");
    }
}
