//! What an issuer learns of its network, and what it does about other issuers and about who would use up its limits.

use super::*;
use crate::issuer::join::ENTRIES_RESERVED;
use crate::pki::revocation::ENTRIES_MAX;
use crate::pki::statement::SignedStatement;

fn seed_by(signer: u8, version: u64) -> SignedAdmission {
    let since = UnixSecs(FOUNDED);
    Signed::sign(&AdmissionDocument { version, seed: Zeroizing::new([signer; 32]), since }, &key(signer))
}

fn told(bundles: Vec<SignedBundle>, lists: Vec<SignedRevocationList>, admission: Option<SignedAdmission>) -> Request {
    Request::Learn { bundles, revocations: lists, admission, statements: vec![] }
}

/// Another issuer's version of 2^64 - 1 ended this one's process at its next seed, and left no number for any.
#[test]
fn a_seed_is_a_month_ahead_at_most() {
    let mut world = World::new();
    let month = FOUNDED + 30 * DAY;
    for version in [u64::MAX, month + 1] {
        let refused = world.ask(told(vec![], vec![], Some(seed_by(12, version)))).unwrap_err();
        assert!(matches!(refused, Refused::NotBelieved(_)), "{refused}");
    }
    assert_eq!(world.ask(told(vec![], vec![], Some(seed_by(12, month)))), Ok(Reply::Done));
    assert_eq!(world.issuer.state.admission, seed_by(12, month));
    let Reply::Admission(next) = world.ask(Request::RotateAdmission).unwrap() else { panic!() };
    assert_eq!(next.peek().unwrap().version, month + 1);
}

/// Members take no seed of a revoked issuer, so one that went on holding would have locked out all who come.
#[test]
fn the_seed_of_an_issuer_that_is_revoked_is_replaced_at_once() {
    let mut world = World::of(12);
    world.ask(told(vec![], vec![], Some(seed_by(11, FOUNDED + DAY)))).unwrap();
    let what = Revoked::Issuer(key(11).public().id());
    let entry = Entry { what, reason: "stolen".into(), at: UnixSecs(FOUNDED) };
    let list =
        SignedRevocationList::sign(&key(21), 1, UnixSecs(FOUNDED), UnixSecs(FOUNDED + HOUR), vec![entry.clone()]);
    let Reply::Admission(next) = world.ask(told(vec![], vec![list.clone()], None)).unwrap() else { panic!() };
    assert_eq!((next.signer, next.peek().unwrap().version), (key(12).public().id(), FOUNDED + DAY + 1));
    world.restart();
    let refused = world.ask(told(vec![], vec![], Some(seed_by(11, FOUNDED + 2 * DAY)))).unwrap_err();
    assert!(matches!(refused, Refused::NotBelieved(_)), "{refused}");
    assert_eq!(world.ask(told(vec![], vec![list], None)), Ok(Reply::Done));
    // So is one that the bundle revokes, and one that this issuer revokes itself.
    let mut world = World::of(12);
    world.ask(told(vec![], vec![], Some(seed_by(11, FOUNDED + DAY)))).unwrap();
    let id = key(11).public().id();
    let revoked = next_without(id);
    let reply = world.ask(told(vec![revoked], vec![], None)).unwrap();
    assert!(matches!(reply, Reply::Admission(seed) if seed.signer == key(12).public().id()));
    let mut world = World::of(12);
    world.ask(told(vec![], vec![], Some(seed_by(11, FOUNDED + DAY)))).unwrap();
    world.revoke(what);
    assert_eq!(world.issuer.state.admission.signer, key(12).public().id());
    world.check_audit();
}

fn next_without(id: KeyId) -> SignedBundle {
    let change = |bundle: &mut Bundle| {
        bundle.revoked_issuers.push(id);
        bundle.slices.clear();
        bundle.issuers.remove(0);
    };
    next(&chain(), change, &[&key(1)])
}

#[test]
fn an_issuer_on_a_list_signs_no_policy() {
    let mut world = World::new();
    let what = Revoked::Issuer(key(11).public().id());
    let entry = Entry { what, reason: "stolen".into(), at: UnixSecs(FOUNDED) };
    let list = SignedRevocationList::sign(&key(12), 1, UnixSecs(FOUNDED), UnixSecs(FOUNDED + HOUR), vec![entry]);
    assert_eq!(world.ask(told(vec![], vec![list], None)), Err(Refused::NotIssuer));
    let sign = Request::SignPolicy { version: 1, body: b"policy".to_vec() };
    assert_eq!(world.ask(sign), Err(Refused::NotOperator));
    assert_eq!(world.ask(Request::RotateAdmission), Err(Refused::NotIssuer));
}

/// Members of one invitation that come and go could have filled the list, and nobody could be revoked any more.
#[test]
fn who_leaves_keeps_a_part_of_the_list_free_for_operators() {
    let mut world = World::new();
    let token = world.invite(InviteSpec { uses: 2, ..spec("edge-*") }).unwrap();
    let grants = [1, 2].map(|number| world.join(&token, &site(number)).unwrap());
    let entry = |number: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        Entry { what: Revoked::Node(NodeId(id)), reason: String::new(), at: UnixSecs(5) }
    };
    let free = ENTRIES_MAX - ENTRIES_RESERVED;
    world.ask(Request::Adopt((1..free).map(entry).collect())).unwrap();
    let mut leave = |number: usize| {
        let body = LeaveBody { network: world.issuer.network(), certificate: grants[number - 1].chain[0].clone() };
        let request = LeaveRequest::new(&body, &site(number as u64).identity, &EXPORTER);
        world.ask(Request::Leave { request, exporter: EXPORTER }).map(|_| ())
    };
    assert_eq!(leave(1), Ok(()));
    let [found, max] = [free + 1, free].map(|number| number as u64);
    let what = "members that have left".to_owned();
    assert_eq!(leave(2), Err(Refused::Limit { what, found, min: 1, max }));
    world.ask(Request::Adopt((free..ENTRIES_MAX).map(entry).collect())).unwrap();
    let more = Request::Revoke { what: entry(ENTRIES_MAX).what, reason: String::new() };
    assert!(matches!(world.ask(more), Err(Refused::Limit { .. })));
}

/// A network of a few thousand members has more to tell than a message takes.
#[test]
fn what_the_network_knows_comes_in_parts_and_makes_an_issuer_of_a_key() {
    let (start, mut random) = (Instant::now(), SeededRandom::new(3));
    let now = Now { mono: start, wall: UnixSecs(FOUNDED) };
    let mut long = chain();
    let third = crate::pki::bundle::tests::issuer(13, 1, &long.current().roots[0].clone());
    for turn in 0..3u8 {
        let version = next(
            &long,
            |bundle| {
                bundle.parameters.grace_secs = turn.into();
                bundle.issuers.extend((turn == 2).then(|| third.clone()));
            },
            &[&key(1)],
        );
        long.extend(version).unwrap();
    }
    let statements: Vec<SignedStatement> = {
        let mut world = World::new();
        let token = world.invite(InviteSpec { uses: 3, ..spec("edge-*") }).unwrap();
        (1..=3).map(|number| world.join(&token, &site(number)).unwrap().statement).collect()
    };
    let many: Vec<SignedStatement> = statements.iter().cycle().take(6000).cloned().collect();
    let parts = Request::learn(long.versions().to_vec(), vec![], Some(seed_by(12, FOUNDED)), many);
    assert!(parts.len() > 2, "{}", parts.len());
    assert!(parts.iter().all(|part| codec::encode(part).len() < 1 << 20));
    assert_eq!(Request::learn(vec![], vec![], None, vec![]), [told(vec![], vec![], None)]);

    let mut seat = Seat::open(MemoryStore::default(), key(13), 1000).unwrap();
    let single = long.versions().iter().map(|version| told(vec![version.clone()], vec![], None));
    let mut ask = |request| seat.handle(Asked { by: "the node".into(), request }, now, &mut random).unwrap();
    let replies: Vec<_> = single.map(&mut ask).collect();
    assert_eq!(replies, [Err(Refused::NotIssuer), Err(Refused::NotIssuer), Err(Refused::NotIssuer), Ok(Reply::Done)]);
    for part in parts {
        assert_eq!(ask(part), Ok(Reply::Done));
    }
    let Ok(Reply::Members(members)) = ask(Request::Members) else { panic!() };
    assert_eq!(members.len(), 3);
}

#[test]
fn the_log_is_checked_on_demand_and_a_backup_of_a_bent_one_is_not_put_back() {
    let mut world = World::new();
    let passphrase = || SecretText(Zeroizing::new("correct horse".to_owned()));
    world.invite(spec("berlin")).unwrap();
    let Reply::AuditVerified { verified, entries, first } = world.ask(Request::VerifyAudit { from: 0 }).unwrap() else {
        panic!()
    };
    assert_eq!((verified, entries, first), (world.issuer.audit, 2, 0));
    let mut batch = Batch::default();
    let first = world.issuer.store.value(Table::Audit, &0u64.to_be_bytes()).unwrap().unwrap();
    batch.put(Table::Audit, 1u64.to_be_bytes(), first);
    world.issuer.store.commit(batch).unwrap();
    assert!(matches!(world.ask(Request::VerifyAudit { from: 0 }), Err(Refused::Audit(_))));
    let Reply::Backup(file) = world.ask(Request::Backup { passphrase: passphrase() }).unwrap() else { panic!() };
    let mut fresh = Shaky::default();
    let refused = restore(&mut fresh, &file, "correct horse", "uid 0", world.now().wall).unwrap_err();
    assert!(matches!(refused, RestoreError::Audit(AuditError::Sequence { expected: 1, found: 0 })), "{refused}");
    assert!(fresh.entries(Table::Audit).unwrap().is_empty());
}

#[test]
fn a_full_log_drops_its_oldest_entries_and_is_good_through_restarts_failures_and_a_restore() {
    let mut world = World::with_log(11, 40);
    let passphrase = || SecretText(Zeroizing::new("correct horse".to_owned()));
    let mut drops = 0;
    for number in 0..200 {
        let (start, end) = (world.issuer.audit_start, world.issuer.audit);
        if number % 3 == 0 {
            world.fails.set(true);
            assert!(matches!(world.ask(Request::RotateAdmission), Err(Refused::Store(_))));
            world.fails.set(false);
            assert_eq!((world.issuer.audit_start, world.issuer.audit), (start, end), "nothing has happened");
        }
        world.ask(Request::RotateAdmission).unwrap();
        let kept = world.issuer.audit.next - world.issuer.audit_start.at.next;
        assert!(kept <= 40, "{kept} entries");
        if world.issuer.audit_start != start {
            drops += 1;
            world.restart();
            world.check_audit();
        }
    }
    assert!(drops > 20, "{drops}");
    // Nothing more goes from here on.
    world.audit_max = 1000;
    world.restart();
    let first = world.issuer.audit_start.at.next;
    let Reply::Audit(entries) = world.ask(Request::Audit { from: 0, max: 1 }).unwrap() else { panic!() };
    assert_eq!(entries[0].peek().unwrap().sequence, first);
    let Reply::AuditVerified { verified, first: from, .. } = world.ask(Request::VerifyAudit { from: 0 }).unwrap()
    else {
        panic!()
    };
    assert_eq!((verified, from), (world.issuer.audit, first));

    let Reply::Backup(file) = world.ask(Request::Backup { passphrase: passphrase() }).unwrap() else { panic!() };
    let now = world.now().wall;
    let mut fresh = Shaky::default();
    let restored = restore(&mut fresh, &file, "correct horse", "uid 0", now).unwrap();
    let key = restored.key.public();
    let found = audit::verify_part(&fresh, 0, usize::MAX, |id| Some(key).filter(|key| key.id() == id)).unwrap();
    assert_eq!(found.next, world.issuer.audit.next + 1, "and the restore");

    // Somebody moves the beginning.
    let mut batch = Batch::default();
    let mut note = world.issuer.store.value(Table::Audit, b"start").unwrap().unwrap();
    note[0] += 1;
    batch.put(Table::Audit, *b"start", note);
    world.issuer.store.commit(batch).unwrap();
    assert!(matches!(world.ask(Request::VerifyAudit { from: 0 }), Err(Refused::Audit(_))));
    let Reply::Backup(file) = world.ask(Request::Backup { passphrase: passphrase() }).unwrap() else { panic!() };
    let refused = restore(&mut Shaky::default(), &file, "correct horse", "uid 0", now).unwrap_err();
    assert!(matches!(refused, RestoreError::Audit(AuditError::Start(at)) if at == first + 1), "{refused}");
}
