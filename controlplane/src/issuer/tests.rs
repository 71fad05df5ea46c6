//! What an issuer does, against the real verifier and on virtual time.

mod network;

use std::cell::Cell;
use std::rc::Rc;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::*;
use crate::pki::bundle::tests::{FOUNDED, chain, key, network, next};
use crate::pki::revocation::Entry;
use crate::pki::statement;
use crate::pki::token::Token;
use crate::pki::verifier::{Member, VerifyError, verify};
use crate::random::SeededRandom;
use crate::store::{Entries, MemoryStore};

const HOUR: u64 = 3600;
const DAY: u64 = 86_400;
const EXPORTER: [u8; 32] = [9; 32];

/// A store that fails its next commits when it is told to.
#[derive(Clone, Debug, Default)]
struct Shaky {
    inner: MemoryStore,
    fails: Rc<Cell<bool>>,
}

impl Store for Shaky {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.value(table, key)
    }

    fn entries(&self, table: Table) -> Result<Entries, StoreError> {
        self.inner.entries(table)
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        if self.fails.get() {
            return Err(StoreError { doing: "writing".into(), source: "no space".into() });
        }
        self.inner.commit(batch)
    }
}

/// An issuer with its clock.
struct World {
    start: Instant,
    secs: u64,
    random: SeededRandom,
    issuer: Issuer<Shaky>,
    fails: Rc<Cell<bool>>,
    audit_max: u64,
}

/// A site that joins.
#[derive(Clone)]
struct Site {
    identity: PrivateKey,
    leaf: PrivateKey,
}

fn site(seed: u64) -> Site {
    let mut random = SeededRandom::new(seed);
    Site { identity: PrivateKey::generate(&mut random), leaf: PrivateKey::generate(&mut random) }
}

fn spec(name: &str) -> InviteSpec {
    InviteSpec::of(name.parse().unwrap())
}

fn contact() -> Contact {
    Contact { node: NodeId([7; 32]), endpoints: vec!["192.0.2.1:4433".parse().unwrap()] }
}

impl World {
    fn new() -> Self {
        Self::of(11)
    }

    fn of(seed: u8) -> Self {
        Self::with_log(seed, audit::ENTRIES_MAX_DEFAULT)
    }

    /// One whose log has so many entries at most.
    fn with_log(seed: u8, audit_max: u64) -> Self {
        let (network, first) = network();
        let store = Shaky::default();
        let (fails, start) = (Rc::clone(&store.fails), Instant::now());
        let now = Now { mono: start, wall: UnixSecs(FOUNDED) };
        let mut random = SeededRandom::new(u64::from(seed));
        let issuer = Issuer::create(store, key(seed), network, &[first], audit_max, now, &mut random).unwrap();
        Self { start, secs: 0, random, issuer, fails, audit_max }
    }

    fn now(&self) -> Now {
        Now { mono: self.start + Duration::from_secs(self.secs), wall: UnixSecs(FOUNDED + self.secs) }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Refused> {
        let now = self.now();
        self.issuer.handle(Asked { by: "uid 0".into(), request }, now, &mut self.random)
    }

    fn invite(&mut self, spec: InviteSpec) -> Result<Token, Refused> {
        match self.ask(Request::Invite { spec, contact: contact() })? {
            Reply::Invited { token, .. } => Ok(token.0.parse().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn join_as(&mut self, token: &Token, site: &Site, wanted: Option<&str>) -> Result<Grant, Refused> {
        let body = JoinBody {
            network: token.network,
            invite: token.invite,
            identity: site.identity.public(),
            leaf_public: site.leaf.public(),
            wanted_name: wanted.map(str::to_owned),
            dns_key: None,
            bundle_version: 0,
        };
        let request = JoinRequest::new(&body, &site.identity, &site.leaf, &token.secret, &EXPORTER);
        self.granted(Request::Join { request, exporter: EXPORTER })
    }

    fn join(&mut self, token: &Token, site: &Site) -> Result<Grant, Refused> {
        self.join_as(token, site, None)
    }

    fn renew(&mut self, grant: &Grant, site: &Site, leaf_seed: u64) -> Result<Grant, Refused> {
        let leaf = PrivateKey::generate(&mut SeededRandom::new(leaf_seed));
        let body = RenewBody {
            network: self.issuer.network(),
            certificate: grant.chain[0].clone(),
            leaf_public: leaf.public(),
            dns_key: None,
            bundle_version: 1,
        };
        let request = RenewRequest::new(&body, &site.identity, &leaf, &EXPORTER);
        self.granted(Request::Renew { request, exporter: EXPORTER })
    }

    fn granted(&mut self, request: Request) -> Result<Grant, Refused> {
        match self.ask(request)? {
            Reply::Granted(grant) => Ok(*grant),
            other => panic!("{other:?}"),
        }
    }

    fn revoke(&mut self, what: Revoked) -> SignedRevocationList {
        match self.ask(Request::Revoke { what, reason: "stolen".into() }).unwrap() {
            Reply::Revoked { list, .. } => list,
            other => panic!("{other:?}"),
        }
    }

    /// What a peer that knows the same makes of a grant.
    fn judge(&self, grant: &Grant) -> Result<Member, VerifyError> {
        let chain: Vec<CertificateDer<'_>> = grant.chain.iter().map(|der| der.as_slice().into()).collect();
        let Issuer { chain: bundles, revoked, .. } = &self.issuer;
        verify(&chain, bundles.current(), self.issuer.network(), revoked, self.now().wall)
    }

    /// Ends the process and starts it again on what the store has.
    fn restart(&mut self) {
        let store = self.issuer.store.clone();
        self.issuer = Issuer::open(store, self.issuer.key.clone(), self.audit_max).unwrap();
    }

    fn check_audit(&self) {
        let known = |id| self.issuer.chain.issuer_ever(id).map(|issuer| issuer.public);
        assert_eq!(audit::verify_part(&self.issuer.store, 0, usize::MAX, known).unwrap(), self.issuer.audit);
    }
}

#[test]
fn a_joiner_gets_what_the_invitation_says_and_peers_accept_it() {
    let mut world = World::new();
    let subnet = Subnet::Auto { bit_len: 24 };
    let spec = InviteSpec { subnet, groups: vec!["edge".into()], roles: vec!["relay".into()], ..spec("berlin") };
    let token = world.invite(spec).unwrap();
    let grant = world.join(&token, &site(1)).unwrap();
    let member = world.judge(&grant).unwrap();
    assert_eq!((member.node, member.name.as_str(), member.in_grace), (grant.node, "berlin", false));
    assert_eq!((member.groups, member.roles), (vec!["edge".to_owned()], vec!["relay".to_owned()]));
    let own = crate::pki::id::overlay_address(world.issuer.network(), grant.node);
    let prefixes: Vec<Prefix> = vec!["10.0.0.0/24".parse().unwrap(), Prefix::host(own.into())];
    assert_eq!(member.prefixes.prefixes(), prefixes);
    let Issuer { chain, revoked, .. } = &world.issuer;
    let now = world.now().wall;
    let stated = statement::verify(&grant.statement, world.issuer.network(), chain.current(), revoked, now).unwrap();
    assert_eq!((stated.node, stated.prefixes), (grant.node, prefixes));
    assert!(grant.statement.body.len() < 300, "{}", grant.statement.body.len());
    assert_eq!(grant.bundles, chain.versions());
    world.check_audit();
}

#[test]
fn the_same_key_gets_the_same_certificate_and_another_is_refused_counted_and_shown() {
    let mut world = World::new();
    let token = world.invite(spec("berlin")).unwrap();
    let first = world.join(&token, &site(1)).unwrap();
    world.restart();
    assert_eq!(world.join(&token, &site(1)).unwrap().chain, first.chain);
    let other_leaf = Site { leaf: site(5).leaf, ..site(1) };
    let again = world.join(&token, &other_leaf).unwrap();
    assert_eq!((again.node, again.nonce, again.name), (first.node, first.nonce, first.name));
    assert_eq!(world.join(&token, &site(2)), Err(Refused::Spent));
    assert_eq!(world.join(&token, &site(3)), Err(Refused::Spent));
    world.restart();
    let Reply::Invites(invites) = world.ask(Request::Invites).unwrap() else { panic!() };
    assert_eq!((invites[0].refused, &invites[0].used_by[..]), (2, &[first.node][..]));
    world.secs += u64::from(TTL_SECS_DEFAULT) + DAY;
    assert!(matches!(world.join(&token, &site(1)), Err(Refused::InviteExpired(_))));
}

#[test]
fn a_proof_is_good_for_its_connection_secret_and_keys_only() {
    let mut world = World::new();
    let token = world.invite(spec("berlin")).unwrap();
    let Site { identity, leaf } = site(1);
    let body = JoinBody {
        network: token.network,
        invite: token.invite,
        identity: identity.public(),
        leaf_public: leaf.public(),
        wanted_name: None,
        dns_key: None,
        bundle_version: 0,
    };
    let good = JoinRequest::new(&body, &identity, &leaf, &token.secret, &EXPORTER);
    let mut join = |request: JoinRequest, exporter| world.granted(Request::Join { request, exporter });
    assert_eq!(join(good.clone(), [8; 32]), Err(Refused::BadProof));
    let wrong = JoinRequest::new(&body, &identity, &leaf, &Zeroizing::new([1; 16]), &EXPORTER);
    assert_eq!(join(wrong, EXPORTER), Err(Refused::BadProof));
    for (one, other) in [(&identity, &identity), (&leaf, &leaf)] {
        let wrong = JoinRequest::new(&body, one, other, &token.secret, &EXPORTER);
        assert_eq!(join(wrong, EXPORTER), Err(Refused::BadSignature));
    }
    let elsewhere = JoinBody { network: NetworkId([1; 32]), ..body.clone() };
    let wrong = JoinRequest::new(&elsewhere, &identity, &leaf, &token.secret, &EXPORTER);
    assert_eq!(join(wrong, EXPORTER), Err(Refused::OtherNetwork(NetworkId([1; 32]))));
    let same = JoinBody { leaf_public: identity.public(), ..body.clone() };
    let wrong = JoinRequest::new(&same, &identity, &identity, &token.secret, &EXPORTER);
    assert!(matches!(join(wrong, EXPORTER), Err(Refused::Certificate(_))));
    let mut cut = good.clone();
    cut.body.pop();
    assert_eq!(join(cut, EXPORTER), Err(Refused::Malformed));
    assert!(join(good, EXPORTER).is_ok());
}

#[test]
fn an_invitation_ends_or_is_withdrawn() {
    let mut world = World::new();
    let token = world.invite(spec("berlin")).unwrap();
    world.secs += u64::from(TTL_SECS_DEFAULT);
    assert_eq!(world.join(&token, &site(1)), Err(Refused::InviteExpired(token.not_after)));
    let token = world.invite(spec("berlin")).unwrap();
    world.ask(Request::Withdraw(token.invite)).unwrap();
    world.restart();
    assert_eq!(world.join(&token, &site(1)), Err(Refused::Withdrawn));
    let token = world.invite(spec("berlin")).unwrap();
    world.revoke(Revoked::Invite(token.invite));
    assert_eq!(world.join(&token, &site(1)), Err(Refused::Withdrawn));
    let unknown = Token { invite: InviteId([0; 8]), ..token };
    assert_eq!(world.join(&unknown, &site(1)), Err(Refused::UnknownInvite(InviteId([0; 8]))));
}

#[test]
fn names_and_prefixes_are_promised_once() {
    let mut world = World::new();
    let given =
        |name: &str, prefix: &str| InviteSpec { subnet: Subnet::Given(vec![prefix.parse().unwrap()]), ..spec(name) };
    world.invite(given("berlin", "10.1.0.0/16")).unwrap();
    assert_eq!(world.invite(spec("berlin")).unwrap_err(), Refused::NameTaken("berlin".into()));
    let taken = world.invite(given("paris", "10.1.2.0/24")).unwrap_err();
    assert_eq!(taken, Refused::PrefixTaken("10.1.2.0/24".parse().unwrap(), "10.1.0.0/16".parse().unwrap()));
    let foreign = "172.16.0.0/16".parse().unwrap();
    assert_eq!(world.invite(given("paris", "172.16.0.0/16")).unwrap_err(), Refused::PrefixNotAllowed(foreign));
    // A promise ends with its invitation.
    world.secs += u64::from(TTL_SECS_DEFAULT);
    world.invite(given("berlin", "10.1.2.0/24")).unwrap();
    let many = world.invite(InviteSpec { uses: 3, ..spec("b*") }).unwrap();
    assert_eq!(world.join_as(&many, &site(1), Some("berlin")), Err(Refused::NameTaken("berlin".into())));
    assert!(matches!(world.join_as(&many, &site(1), Some("paris")), Err(Refused::NameNotAllowed(..))));
    assert!(matches!(world.join_as(&many, &site(1), Some("b.c")), Err(Refused::Name(_))));
    assert_eq!(world.join_as(&many, &site(1), Some("bonn")).unwrap().name, "bonn");
    assert_eq!(world.join(&many, &site(2)).unwrap().name, "b1");
    assert_eq!(world.join(&many, &site(3)).unwrap().name, "b2");
    assert_eq!(world.join(&many, &site(4)), Err(Refused::Spent));
    let token = world.invite(spec("rome")).unwrap();
    assert!(matches!(world.join(&token, &site(1)), Err(Refused::AlreadyMember(_))));
}

#[test]
fn invitations_stay_within_their_limits() {
    let mut world = World::new();
    type Case = (fn(&mut InviteSpec, u32), u32, u32);
    let cases: [Case; 5] = [
        (|spec, secs| spec.ttl_secs = secs, 30 * 86_400, 30 * 86_400 + 1),
        (|spec, secs| spec.ttl_secs = secs, 60, 59),
        (|spec, uses| spec.uses = uses, 1000, 1001),
        (|spec, groups| spec.groups = vec!["g".into(); groups as usize], 8, 9),
        (|spec, roles| spec.roles = vec!["r".into(); roles as usize], 8, 9),
    ];
    for (set, good, bad) in cases {
        let mut with = |value| {
            let mut spec = spec("edge-*");
            set(&mut spec, value);
            world.invite(spec).map(|_| ())
        };
        assert_eq!(with(good), Ok(()));
        assert!(matches!(with(bad), Err(Refused::Limit { .. })), "{bad}");
    }
    assert!(matches!(world.invite(InviteSpec { uses: 2, ..spec("one") }), Err(Refused::Limit { .. })));
    while world.issuer.invites.len() < INVITES_MAX {
        world.invite(spec("edge-*")).unwrap();
    }
    assert!(matches!(world.invite(spec("edge-*")), Err(Refused::Limit { .. })));
    world.secs += 8 * DAY;
    world.invite(spec("edge-*")).unwrap();
}

#[test]
fn nothing_is_signed_and_nothing_is_taken_when_the_store_fails() {
    let mut world = World::new();
    let token = world.invite(InviteSpec { subnet: Subnet::Auto { bit_len: 24 }, ..spec("berlin") }).unwrap();
    world.fails.set(true);
    assert!(matches!(world.join(&token, &site(1)), Err(Refused::Store(_))));
    assert!(matches!(world.ask(Request::RotateAdmission), Err(Refused::Store(_))));
    world.fails.set(false);
    assert_eq!((world.issuer.members.len(), world.issuer.state.counter), (0, 0));
    assert!(world.join(&token, &site(2)).is_ok());
    world.check_audit();
}

#[test]
fn an_only_issuer_that_is_down_for_thirty_hours_costs_nobody_the_membership() {
    let mut world = World::new();
    let token = world.invite(spec("berlin")).unwrap();
    let grant = world.join(&token, &site(1)).unwrap();
    world.secs = 24 * HOUR;
    assert!(!world.judge(&grant).unwrap().in_grace);
    world.secs = 30 * HOUR;
    assert!(world.judge(&grant).unwrap().in_grace);
    world.restart();
    let renewed = world.renew(&grant, &site(1), 100).unwrap();
    let member = world.judge(&renewed).unwrap();
    assert_eq!((member.node, member.in_grace, member.not_after.0), (grant.node, false, FOUNDED + 54 * HOUR));
    world.check_audit();
}

#[test]
fn a_member_that_was_off_for_thirty_days_returns_without_a_token() {
    let mut world = World::new();
    let token = world.invite(InviteSpec { groups: vec!["edge".into()], ..spec("berlin") }).unwrap();
    let grant = world.join(&token, &site(1)).unwrap();
    world.secs = 30 * DAY;
    assert!(matches!(world.judge(&grant), Err(VerifyError::Expired(_))));
    let renewed = world.renew(&grant, &site(1), 100).unwrap();
    let (old, new) = (grant.statement.peek().unwrap(), renewed.statement.peek().unwrap());
    assert_eq!((old.node, old.name, old.groups, old.prefixes), (new.node, new.name, new.groups, new.prefixes));
    assert!(world.judge(&renewed).is_ok());
    // A day is the leaf's life, ninety more are the quarter that renewal waits.
    world.secs = 91 * DAY;
    assert!(world.renew(&grant, &site(1), 101).is_ok());
    world.secs += 1;
    assert!(matches!(world.renew(&grant, &site(1), 102), Err(Refused::TooOld(_))));
}

#[test]
fn another_issuer_renews_but_does_not_allocate() {
    let (mut first, mut second) = (World::new(), World::of(12));
    let token = first.invite(InviteSpec { subnet: Subnet::Auto { bit_len: 24 }, ..spec("berlin") }).unwrap();
    let grant = first.join(&token, &site(1)).unwrap();
    let renewed = second.renew(&grant, &site(1), 100).unwrap();
    let member = first.judge(&renewed).unwrap();
    assert_eq!((member.node, member.issuer), (grant.node, key(12).public().id()));
    assert_eq!(member.prefixes, first.judge(&grant).unwrap().prefixes);
    assert_eq!(second.invite(spec("paris")).unwrap_err(), Refused::NotAllocator);
    assert_eq!(second.renew(&grant, &site(2), 100), Err(Refused::BadSignature));
    let mut bent = grant.clone();
    let last = bent.chain[0].len() - 1;
    bent.chain[0][last] ^= 1;
    assert!(matches!(second.renew(&bent, &site(1), 100), Err(Refused::Certificate(_))));
    let list = first.revoke(Revoked::Node(grant.node));
    let learn = Request::Learn { bundles: vec![], revocations: vec![list], admission: None, statements: vec![] };
    second.ask(learn).unwrap();
    second.restart();
    assert_eq!(second.renew(&grant, &site(1), 100), Err(Refused::MemberRevoked(grant.node)));
}

#[test]
fn who_leaves_or_is_revoked_is_believed_no_more_and_the_seed_changes() {
    let mut world = World::new();
    let token = world.invite(InviteSpec { uses: 2, ..spec("edge-*") }).unwrap();
    let (one, two) = (world.join(&token, &site(1)).unwrap(), world.join(&token, &site(2)).unwrap());
    let seed = world.issuer.state.admission.peek().unwrap();
    let list = world.revoke(Revoked::Node(one.node));
    assert!(world.judge(&one).is_err() && world.judge(&two).is_ok());
    assert_ne!(world.issuer.state.admission.peek().unwrap().seed, seed.seed);
    assert_eq!(world.revoke(Revoked::Node(one.node)).entries, list.entries);
    let body = LeaveBody { network: world.issuer.network(), certificate: two.chain[0].clone() };
    let stranger = LeaveRequest::new(&body, &site(3).identity, &EXPORTER);
    let left = Request::Leave { request: stranger, exporter: EXPORTER };
    assert_eq!(world.ask(left), Err(Refused::BadSignature));
    let request = LeaveRequest::new(&body, &site(2).identity, &EXPORTER);
    world.ask(Request::Leave { request, exporter: EXPORTER }).unwrap();
    assert!(world.judge(&two).is_err());
    world.restart();
    assert!(world.judge(&one).is_err() && world.judge(&two).is_err());
    world.check_audit();
}

#[test]
fn a_successor_takes_over_and_its_predecessor_is_revoked_in_the_same_step() {
    let mut world = World::new();
    let spec = InviteSpec { subnet: Subnet::Auto { bit_len: 24 }, groups: vec!["edge".into()], ..spec("berlin") };
    let token = world.invite(spec).unwrap();
    let old = world.join(&token, &site(1)).unwrap();
    let replace = Request::Replace { of: Predecessor::Node(old.node), ttl_secs: 3600, contact: contact() };
    let Reply::Invited { token, .. } = world.ask(replace.clone()).unwrap() else { panic!() };
    assert!(world.judge(&old).is_ok());
    let new = world.join(&token.0.parse().unwrap(), &site(2)).unwrap();
    assert!(world.judge(&old).is_err());
    let (before, after) = (old.statement.peek().unwrap(), new.statement.peek().unwrap());
    assert_ne!(before.node, after.node);
    assert_eq!((before.name, before.prefixes[0], before.groups), (after.name, after.prefixes[0], after.groups));
    world.restart();
    assert_eq!(world.issuer.allocations.holder("berlin"), Some(new.node));
    assert_eq!(world.ask(replace), Err(Refused::NameTaken("berlin".into())));
    world.check_audit();
}

/// The network forgets who has gone, so there was nobody left whose id could be named, and name and networks were lost for good.
#[test]
fn the_successor_of_one_that_has_left_is_invited_by_its_name() {
    let mut world = World::new();
    let spec = InviteSpec { subnet: Subnet::Auto { bit_len: 24 }, ..spec("berlin") };
    let token = world.invite(spec).unwrap();
    let old = world.join(&token, &site(1)).unwrap();
    world.ask(Request::Revoke { what: Revoked::Node(old.node), reason: "left".into() }).unwrap();
    let by_name =
        |name: &str| Request::Replace { of: Predecessor::Name(name.into()), ttl_secs: 3600, contact: contact() };
    assert_eq!(world.ask(by_name("oslo")), Err(Refused::UnknownName("oslo".into())));
    let Reply::Invited { token, .. } = world.ask(by_name("berlin")).unwrap() else { panic!() };
    let new = world.join(&token.0.parse().unwrap(), &site(2)).unwrap();
    let (before, after) = (old.statement.peek().unwrap(), new.statement.peek().unwrap());
    assert_eq!((before.name, before.prefixes[0]), (after.name, after.prefixes[0]));
    assert!(world.judge(&old).is_err() && world.judge(&new).is_ok());
    world.check_audit();
}

#[test]
fn the_list_is_signed_afresh_every_ten_minutes() {
    let mut world = World::new();
    let at = |world: &mut World, secs| {
        world.secs = secs;
        let now = world.now();
        world.issuer.handle_timeout(now).map(|list| list.head.peek().unwrap())
    };
    let first = at(&mut world, 0).unwrap();
    assert_eq!(at(&mut world, 599), None);
    let second = at(&mut world, 600).unwrap();
    assert!(second.version > first.version && second.fresh_until.0 == FOUNDED + 600 + 3600);
    world.restart();
    let third = at(&mut world, 601).unwrap();
    assert!(third.version > second.version);
}

/// Nobody wakes the issuer's process by the clock: the node beside it asks every ten minutes, as it would after each answer.
#[test]
fn a_list_that_is_asked_for_every_ten_minutes_stays_fresh() {
    let mut world = World::new();
    let mut versions = vec![];
    for turn in 0..20 {
        world.secs = turn * 600;
        let Reply::Revocations(list) = world.ask(Request::Revocations { from: 0 }).unwrap() else { panic!() };
        let head = list.head.peek().unwrap();
        assert!(head.fresh_until > world.now().wall.plus(Duration::from_secs(1800)), "turn {turn}");
        versions.push(head.version);
    }
    versions.dedup();
    assert_eq!(versions.len(), 20);
    let Reply::Revocations(again) = world.ask(Request::Revocations { from: 0 }).unwrap() else { panic!() };
    assert_eq!(again.head.peek().unwrap().version, versions[19]);
}

#[test]
fn a_key_becomes_an_issuer_with_the_first_bundle_that_names_it() {
    let (start, mut random) = (Instant::now(), SeededRandom::new(3));
    let now = Now { mono: start, wall: UnixSecs(FOUNDED) };
    let (_, first) = network();
    let learn = |bundles| Asked {
        by: "the node".into(),
        request: Request::Learn { bundles, revocations: vec![], admission: None, statements: vec![] },
    };
    let store = Shaky::default();
    let mut seat = Seat::open(store.clone(), key(99), 1000).unwrap();
    assert_eq!(seat.handle(learn(vec![first.clone()]), now, &mut random).unwrap(), Err(Refused::NotIssuer));
    assert!(!seat.is_taken());
    let mut seat = Seat::open(store.clone(), key(11), 1000).unwrap();
    let status = Asked { by: "uid 0".into(), request: Request::Status };
    assert_eq!(seat.handle(status.clone(), now, &mut random).unwrap(), Err(Refused::NotIssuer));
    assert_eq!(seat.handle(learn(vec![]), now, &mut random).unwrap(), Err(Refused::NotIssuer));
    assert_eq!(seat.handle(learn(vec![first]), now, &mut random).unwrap(), Ok(Reply::Done));
    assert!(matches!(seat.handle(status, now, &mut random).unwrap(), Ok(Reply::Status(_))));
    assert!(seat.is_taken());
}

/// What the configuration says reaches the issuer, whether it is here or comes, and holds up to the entry.
#[test]
fn a_seat_keeps_as_many_entries_of_the_log_as_it_was_told() {
    let (start, mut random) = (Instant::now(), SeededRandom::new(3));
    let now = Now { mono: start, wall: UnixSecs(FOUNDED) };
    let asked = |request| Asked { by: "uid 0".into(), request };
    let bundles = vec![network().1];
    let learn = Request::Learn { bundles, revocations: vec![], admission: None, statements: vec![] };
    let mut store = MemoryStore::default();
    // How many entries there are, and the first that is kept.
    let mut log = |seat: &mut Seat<&mut MemoryStore>, acts: usize| {
        let mut ask = |request| seat.handle(asked(request), now, &mut random).unwrap().unwrap();
        (0..acts).for_each(|_| drop(ask(Request::RotateAdmission)));
        let Reply::AuditVerified { entries, first, .. } = ask(Request::VerifyAudit { from: 0 }) else { panic!() };
        (entries, first)
    };
    let mut seat = Seat::open(&mut store, key(11), 16).unwrap();
    assert_eq!(seat.handle(asked(learn), now, &mut SeededRandom::new(4)).unwrap(), Ok(Reply::Done));
    // The first entry is that it was made.
    assert_eq!(log(&mut seat, 14), (15, 0));
    // An eighth goes with the next, and one entry tells of it; then there are sixteen again.
    assert_eq!(log(&mut seat, 1), (17, 2));
    assert_eq!(log(&mut seat, 1), (19, 4));
    // The same after a restart, and another number after another.
    assert_eq!(log(&mut Seat::open(&mut store, key(11), 16).unwrap(), 1), (21, 6));
    assert_eq!(log(&mut Seat::open(&mut store, key(11), 64).unwrap(), 48), (69, 6));
    assert_eq!(log(&mut Seat::open(&mut store, key(11), 64).unwrap(), 1), (71, 14));
}

/// One damaged entry where the log was to begin had the issuer refuse every act for good.
#[test]
fn a_damaged_log_keeps_nobody_from_being_revoked() {
    let damage = |world: &mut World, sequences: std::ops::Range<u64>| {
        let mut batch = Batch::default();
        sequences.for_each(|sequence| batch.delete(Table::Audit, sequence.to_be_bytes()));
        world.issuer.store.commit(batch).unwrap();
    };
    let revoke = |world: &mut World, number: u8| {
        let list = world.revoke(Revoked::Node(NodeId([number; 32])));
        assert_eq!(list.entries.len(), usize::from(number));
        (world.issuer.audit.next, world.issuer.audit_start.at.next)
    };
    // A revocation is two entries, and with the first one entries 0 to 5 were to go. The last of them is gone already, or all are.
    for (damaged, after) in [(5..6, [(42, 5), (44, 5)]), (0..6, [(41, 0), (44, 8)])] {
        let mut world = World::with_log(11, 40);
        (0..38).for_each(|_| drop(world.ask(Request::RotateAdmission).unwrap()));
        assert_eq!((world.issuer.audit.next, world.issuer.audit_start.at.next), (39, 0));
        damage(&mut world, damaged.clone());
        for (number, expected) in (1..).zip(after) {
            assert_eq!(revoke(&mut world, number), expected, "{damaged:?}");
        }
        assert_eq!(world.issuer.audit_start, audit::Start::open(&world.issuer.store).unwrap());
        // What is damaged and kept is told.
        let verified = world.ask(Request::VerifyAudit { from: 0 });
        assert_eq!(verified.is_err(), damaged.contains(&world.issuer.audit_start.at.next), "{damaged:?}");
        world.restart();
        revoke(&mut world, 3);
    }
    // What the store cannot do is still refused.
    let mut world = World::with_log(11, 40);
    world.fails.set(true);
    let request = Request::Revoke { what: Revoked::Node(NodeId([1; 32])), reason: String::new() };
    assert!(matches!(world.ask(request), Err(Refused::Store(_))));
}

#[test]
fn the_x509_list_names_every_certificate_of_who_is_revoked_until_a_day_after_its_end() {
    use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};
    let serial = |grant: &Grant| X509Certificate::from_der(&grant.chain[0]).unwrap().1.raw_serial().to_vec();
    let export = |world: &mut World| match world.ask(Request::ExportCrl).unwrap() {
        Reply::Crl { issuer, list } => {
            assert_eq!(issuer, world.issuer.id);
            let (_, list) = CertificateRevocationList::from_der(&list).unwrap();
            let serials = list.iter_revoked_certificates().map(|row| row.raw_serial().to_vec()).collect::<Vec<_>>();
            (list.crl_number().unwrap().to_string().parse::<u64>().unwrap(), serials)
        }
        other => panic!("{other:?}"),
    };
    let mut world = World::new();
    let token = world.invite(InviteSpec { uses: 2, ..spec("edge-*") }).unwrap();
    let (one, two) = (world.join(&token, &site(1)).unwrap(), world.join(&token, &site(2)).unwrap());
    world.secs = 16 * HOUR;
    let again = world.renew(&one, &site(1), 77).unwrap();
    let (first, none) = export(&mut world);
    assert!(none.is_empty());
    world.revoke(Revoked::Node(one.node));
    world.restart();
    world.secs += 1;
    let (second, listed) = export(&mut world);
    assert_eq!(listed, [serial(&one), serial(&again)]);
    assert!(second > first && !listed.contains(&serial(&two)));
    // The first ended after a day, the second sixteen hours later.
    world.secs = 2 * DAY + 1;
    assert_eq!(export(&mut world).1, [serial(&again)]);
    world.secs = 2 * DAY + 16 * HOUR + 1;
    assert!(export(&mut world).1.is_empty());
    world.issuer.handle_timeout(world.now()).unwrap();
    assert!(world.issuer.leaves.is_empty());
    world.restart();
    assert!(world.issuer.leaves.is_empty());
}

#[test]
fn a_member_gets_so_many_certificates_in_a_day_and_no_more() {
    let mut world = World::new();
    let token = world.invite(spec("berlin")).unwrap();
    let grant = world.join(&token, &site(1)).unwrap();
    (1..LEAVES_MAX as u64).for_each(|seed| drop(world.renew(&grant, &site(1), seed + 100).unwrap()));
    assert_eq!(world.renew(&grant, &site(1), 99).unwrap_err().name(), "limit");
    assert_eq!(world.issuer.leaves[&grant.node].len(), LEAVES_MAX);
    world.secs = 2 * DAY + 1;
    world.renew(&grant, &site(1), 98).unwrap();
    assert_eq!(world.issuer.leaves[&grant.node].len(), 1);
}

#[test]
fn an_issuer_that_the_bundle_revoked_signs_nothing() {
    let mut world = World::new();
    let token = world.invite(spec("berlin")).unwrap();
    let id = key(11).public().id();
    let revoked = next(
        &chain(),
        |bundle| {
            bundle.revoked_issuers.push(id);
            bundle.slices.clear();
            bundle.issuers.remove(0);
        },
        &[&key(1)],
    );
    let learn = Request::Learn { bundles: vec![revoked], revocations: vec![], admission: None, statements: vec![] };
    assert_eq!(world.ask(learn), Err(Refused::NotIssuer), "so that its node turns to another");
    for _ in 0..2 {
        assert_eq!(world.join(&token, &site(1)), Err(Refused::NotIssuer));
        assert_eq!(world.ask(Request::RotateAdmission), Err(Refused::NotIssuer));
        let now = world.now();
        assert_eq!(world.issuer.handle_timeout(now), None);
        // What it did can still be looked at, also after a restart.
        assert!(
            matches!(world.ask(Request::Audit { from: 0, max: 10 }), Ok(Reply::Audit(entries)) if !entries.is_empty())
        );
        world.restart();
    }
}

#[test]
fn policies_are_signed_once_per_version() {
    let mut world = World::new();
    let sign = |world: &mut World, version| world.ask(Request::SignPolicy { version, body: b"policy".to_vec() });
    let Reply::Policy { signature, .. } = sign(&mut world, 3).unwrap() else { panic!() };
    key(11).public().verify(crate::pki::key::Domain::Policy, b"policy", &signature).unwrap();
    world.restart();
    assert_eq!(sign(&mut world, 3), Err(Refused::PolicyVersion { last: 3, found: 3 }));
    assert!(sign(&mut world, 4).is_ok());
    assert_eq!(sign(&mut World::of(12), 1), Err(Refused::NotOperator));
}

#[test]
fn a_restored_issuer_learns_who_is_there_before_it_allocates() {
    let mut world = World::new();
    let auto = |name: &str| InviteSpec { subnet: Subnet::Auto { bit_len: 24 }, ..spec(name) };
    let token = world.invite(auto("berlin")).unwrap();
    world.join(&token, &site(1)).unwrap();
    let passphrase = SecretText(Zeroizing::new("correct horse".to_owned()));
    let Reply::Backup(file) = world.ask(Request::Backup { passphrase }).unwrap() else { panic!() };
    let token = world.invite(auto("paris")).unwrap();
    let later = world.join(&token, &site(2)).unwrap();
    let list = world.revoke(Revoked::Node(NodeId([5; 32])));

    let now = world.now().wall;
    let put_back = |store: &mut Shaky, file: &[u8], with| restore(store, file, with, "uid 0", now);
    let behind = put_back(&mut world.issuer.store, &file, "correct horse").unwrap_err();
    assert!(matches!(behind, RestoreError::Behind { store: 2, backup: 1 }), "{behind}");
    let mut fresh = Shaky::default();
    assert!(matches!(put_back(&mut fresh, &file, "wrong").unwrap_err(), RestoreError::Key(_)));
    let mut bent = file.clone();
    *bent.last_mut().unwrap() ^= 1;
    assert!(matches!(put_back(&mut fresh, &bent, "correct horse").unwrap_err(), RestoreError::Malformed));
    let restored = put_back(&mut fresh, &file, "correct horse").unwrap();
    assert_eq!((restored.network, restored.counter), (world.issuer.network(), 1));

    world.issuer = Issuer::open(fresh, restored.key, world.audit_max).unwrap();
    assert_eq!(world.invite(auto("rome")).unwrap_err(), Refused::Recovering);
    let statements = vec![later.statement.clone()];
    let learn = Request::Learn { bundles: vec![], revocations: vec![list.clone()], admission: None, statements };
    world.ask(learn).unwrap();
    world.ask(Request::Recovered).unwrap();
    assert_eq!(world.invite(auto("paris")).unwrap_err(), Refused::NameTaken("paris".into()));
    let token = world.invite(auto("rome")).unwrap();
    let rome = world.join(&token, &site(3)).unwrap();
    assert_eq!(rome.statement.peek().unwrap().prefixes[0], "10.0.2.0/24".parse().unwrap());
    // Its list goes on from what the network had, not from what the file had.
    let next = world.revoke(Revoked::Node(NodeId([6; 32])));
    assert_eq!(next.entries[..1], list.entries[..]);
    assert!(next.head.peek().unwrap().version > list.head.peek().unwrap().version);
    world.check_audit();
}

#[test]
fn entries_of_another_list_are_adopted_once() {
    let mut world = World::new();
    let entry = |byte| Entry { what: Revoked::Node(NodeId([byte; 32])), reason: "old".into(), at: UnixSecs(5) };
    world.ask(Request::Adopt(vec![entry(1), entry(2)])).unwrap();
    let Reply::Revoked { list, .. } = world.ask(Request::Adopt(vec![entry(2), entry(3)])).unwrap() else { panic!() };
    assert_eq!(list.entries, [entry(1), entry(2), entry(3)]);
}

/// Joins, retries, replays, revocations, replacements, failing stores and crashes in any order: no name, prefix or id is ever given twice.
#[test]
fn nothing_is_allocated_twice_whatever_fails() {
    for seed in 0..8 {
        let mut world = World::new();
        let mut dice = SeededRandom::new(seed);
        let mut draw = move |below: u64| dice.u64() % below;
        let mut tokens: Vec<Token> = vec![];
        let mut grants: BTreeMap<NodeId, Grant> = BTreeMap::new();
        for step in 0..150 {
            match draw(10) {
                0..=2 => {
                    let name = ["edge-*", "core-*", "*", "berlin", "paris"][draw(5) as usize];
                    let bit_len = 20 + draw(10) as u8;
                    let uses = if name.contains('*') { 1 + draw(4) as u32 } else { 1 };
                    let spec = InviteSpec { subnet: Subnet::Auto { bit_len }, uses, ..spec(name) };
                    tokens.extend(world.invite(spec));
                }
                3..=6 if !tokens.is_empty() => {
                    let token = tokens[draw(tokens.len() as u64) as usize].clone();
                    world.fails.set(draw(4) == 0);
                    let joined = world.join(&token, &site(1000 + draw(60)));
                    world.fails.set(false);
                    // The crash between write and signature: the answer never leaves.
                    if draw(4) == 0 {
                        world.restart();
                    } else if let Ok(grant) = joined {
                        grants.insert(grant.node, grant);
                    }
                }
                7 if !grants.is_empty() => {
                    let node = *grants.keys().nth(draw(grants.len() as u64) as usize).unwrap();
                    let replace = Request::Replace { of: Predecessor::Node(node), ttl_secs: 3600, contact: contact() };
                    if let Ok(Reply::Invited { token, .. }) = world.ask(replace) {
                        tokens.push(token.0.parse().unwrap());
                    }
                }
                8 => world.secs += draw(900),
                _ => world.restart(),
            }
            let alive: Vec<_> = grants.values().filter(|grant| !world.issuer.is_gone(grant.node)).collect();
            for (at, one) in alive.iter().enumerate() {
                let one = one.statement.peek().unwrap();
                for other in &alive[..at] {
                    let other = other.statement.peek().unwrap();
                    let shared = one.prefixes.iter().any(|prefix| {
                        other.prefixes.iter().any(|other| crate::pki::bundle::prefixes_overlap(prefix, other))
                    });
                    assert!(one.name != other.name && !shared, "seed {seed}, step {step}: {one:?} {other:?}");
                }
            }
        }
        assert!(grants.len() > 5, "seed {seed}");
        world.check_audit();
    }
}
