use proptest::prelude::*;

use super::super::answer::{Answer, Rcode};
use super::super::fixture::{Fixture, NOW, UNTIL, address, member_key, name, set};
use super::*;

const NAMES: [&str; 9] = ["", "www", "_http._tcp", "_tcp", "*.pool", "a.pool", "b.c.pool", "nothing", "pool"];

fn told(zone: &MemberZone, owner: &str, rtype: Rtype) -> (Rcode, Vec<String>, Vec<String>) {
    let owner = match owner {
        "" => zone.apex.clone(),
        labels => name(&format!("{labels}.{}", zone.apex)),
    };
    let Answer { rcode, answer, authority, .. } = zone.answer(&owner, rtype);
    let show = |set: &SignedSet| {
        let owner = set.set.owner.to_string();
        let short =
            owner.strip_suffix("b.mynet.internal").map_or(owner.clone(), |rest| rest.trim_end_matches('.').into());
        format!("{short} {}", set.set.rtype)
    };
    (rcode, answer.iter().map(|set| show(set)).collect(), authority.into_iter().map(show).collect())
}

#[test]
fn what_one_signs_another_puts_together_and_both_answer_alike() {
    let fixture = Fixture::new();
    let signed = fixture.zone("b");
    let read = fixture.verify("b", &signed.values(), NOW).unwrap();
    assert_eq!(read, signed);
    assert!(signed.values().iter().all(|value| value.len() < 1200), "{:?}", signed.values().map(|value| value.len()));
    assert_eq!(signed.until, UNTIL);
}

#[test]
fn answers_come_with_what_proves_them() {
    let fixture = Fixture::new();
    let zone = fixture.zone("b");
    let yes =
        |answer: &[&str]| (Rcode::NoError, answer.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>(), vec![]);
    let no = |rcode, proof: &[&str]| (rcode, vec![], proof.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>());
    assert_eq!(told(&zone, "", Rtype::A), yes(&[" A"]));
    assert_eq!(told(&zone, "", Rtype::DNSKEY), yes(&[" DNSKEY"]));
    assert_eq!(told(&zone, "", Rtype::NSEC), yes(&[" NSEC"]));
    assert_eq!(told(&zone, "www", Rtype::A), yes(&["www CNAME"]));
    assert_eq!(told(&zone, "www", Rtype::CNAME), yes(&["www CNAME"]));
    assert_eq!(told(&zone, "", Rtype::MX), no(Rcode::NoError, &[" SOA", " NSEC"]));
    // Nothing stands there, but below: the chain goes over it.
    assert_eq!(told(&zone, "_tcp", Rtype::A), no(Rcode::NoError, &[" SOA", " NSEC"]));
    assert_eq!(told(&zone, "pool", Rtype::A), no(Rcode::NoError, &[" SOA", "_http._tcp NSEC"]));
    assert_eq!(told(&zone, "nothing", Rtype::A), no(Rcode::NxDomain, &[" SOA", "_http._tcp NSEC", " NSEC"]));
    assert_eq!(told(&zone, "x.www", Rtype::A), no(Rcode::NxDomain, &[" SOA", "www NSEC"]));
    let wild = told(&zone, "b.c.pool", Rtype::A);
    assert_eq!(wild, (Rcode::NoError, vec!["b.c.pool A".into()], vec!["*.pool NSEC".into()]));
    assert_eq!(told(&zone, "a.pool", Rtype::TXT), no(Rcode::NoError, &[" SOA", "*.pool NSEC"]));
    assert_eq!(told(&zone, "*.pool", Rtype::A), yes(&["*.pool A"]));
}

#[test]
fn what_makes_no_zone_is_not_signed() {
    let fixture = Fixture::new();
    let sign = |sets| fixture.sign("b", sets).map(|_| ());
    let a = |owner: &str, last| set(owner, Rtype::A, [address(last)]);
    assert_eq!(sign(vec![a("b.mynet.internal", 1), a("b.mynet.internal", 2)]), Err(ZoneError::Type(Rtype::A)));
    assert_eq!(sign(vec![set("b.mynet.internal", Rtype::NS, [vec![0]])]), Err(ZoneError::Type(Rtype::NS)));
    assert_eq!(sign(vec![set("x.b.mynet.internal", Rtype::SOA, [vec![0]])]), Err(ZoneError::Type(Rtype::SOA)));
    assert_eq!(sign(vec![a("c.mynet.internal", 1)]).unwrap_err().name(), "dns_wrong_owner");
    let alias = set("b.mynet.internal", Rtype::CNAME, [vec![0]]);
    assert_eq!(sign(vec![alias]), Err(ZoneError::Cname(name("b.mynet.internal"))));
    let two = set("x.b.mynet.internal", Rtype::CNAME, [vec![0], vec![1, b'a', 0]]);
    assert_eq!(sign(vec![two]), Err(ZoneError::Cname(name("x.b.mynet.internal"))));
    // As the texts of one service may be: it was signed, and refused by everybody else with all that is beside it.
    let texts = |len: usize| set("b.mynet.internal", Rtype::TXT, [vec![0; len]]);
    assert_eq!(sign(vec![texts(1024)]), Ok(()));
    assert_eq!(sign(vec![texts(1025)]).unwrap_err().name(), "dns_malformed");
    let many = |count| (0..count).map(|number| a(&format!("h{number}.b.mynet.internal"), 1)).collect::<Vec<_>>();
    // The apex is one of them.
    assert_eq!(sign(many(OWNERS_MAX - 1)), Ok(()));
    let too_many = ZoneError::TooMany { what: "owners", found: OWNERS_MAX + 1, max: OWNERS_MAX };
    assert_eq!(sign(many(OWNERS_MAX)), Err(too_many));
    let long = set("b.mynet.internal", Rtype::TXT, (0..17).map(|number| [&[255][..], &[number; 255]].concat()));
    assert!(matches!(sign(vec![long]), Err(ZoneError::TooLong(_))));
}

#[test]
fn what_another_signed_is_refused_whatever_it_is() {
    let fixture = Fixture::new();
    let refused = |zone: Result<MemberZone, ZoneError>, as_whose: &str, now| {
        let values = zone.unwrap().values();
        fixture.verify(as_whose, &values, now).unwrap_err().name()
    };
    let of = |member: &str| Ok(fixture.zone(member));
    // Another member's zone, and one that its own issuer's key did not sign.
    assert_eq!(refused(of("c"), "b", NOW), "dns_forged");
    let self_made =
        |parent, key: &PrivateKey| MemberZone::sign(fixture.whose("b"), parent, vec![], key, 0, (NOW, UNTIL));
    let stranger = fixture.delegation("b", &member_key("b"), 77).parent();
    assert_eq!(refused(self_made(stranger, &member_key("b")), "b", NOW), "dns_wrong_key");
    // A key that the issuer does not vouch for.
    assert_eq!(refused(self_made(fixture.parent("b"), &member_key("x")), "b", NOW), "dns_wrong_key");
    let past = UnixSecs(UNTIL.0 + 1);
    assert_eq!(refused(of("b"), "b", past), "dns_expired");
    assert_eq!(refused(of("b"), "b", UnixSecs(NOW.0 - 7300)), "dns_expired");
    // RDATA of the wrong length, rightly signed.
    let nonsense = fixture.sign("b", vec![set("b.mynet.internal", Rtype::A, [vec![1; 5]])]);
    assert_eq!(refused(nonsense, "b", NOW), "dns_malformed");
    // A member that has left an issuer that was revoked.
    let good = fixture.zone("b").values();
    let [zone, names] = &good;
    let none = MemberZone::verify(fixture.whose("b"), [zone, names], &[], NOW);
    assert_eq!(none.unwrap_err().name(), "dns_wrong_key");
}

/// Whoever signed ahead kept those who had its name later out for as long.
#[test]
fn a_serial_from_the_future_is_refused() {
    let fixture = Fixture::new();
    let signed = |before: u64| {
        let (parent, key) = (fixture.parent("b"), member_key("b"));
        MemberZone::sign(fixture.whose("b"), parent, vec![], &key, before, (NOW, UNTIL)).unwrap().values()
    };
    assert!(fixture.verify("b", &signed(NOW.0 + 3599), NOW).is_ok());
    assert_eq!(fixture.verify("b", &signed(NOW.0 + 3600), NOW), Err(ZoneError::Future(NOW.0 + 3601)));
}

#[test]
fn halves_of_two_signings_are_no_zone_and_a_set_that_is_left_out_is_missed() {
    let fixture = Fixture::new();
    let old = fixture.zone("b").values();
    let later = |published| {
        let parent = fixture.parent("b");
        MemberZone::sign(fixture.whose("b"), parent, published, &member_key("b"), NOW.0, (NOW, UNTIL)).unwrap()
    };
    let new = later(vec![]);
    assert_eq!(new.serial, NOW.0 + 1);
    let mixed = [new.values()[0].clone(), old[1].clone()];
    assert_eq!(fixture.verify("b", &mixed, NOW), Err(ZoneError::Serials(NOW.0 + 1, NOW.0)));
    // A store that strips a set, or puts an old one in, breaks the chain.
    let mut names: NameValue = codec::decode(&old[1], VALUE_LEN_MAX).unwrap();
    names.owners.remove(0);
    assert_eq!(fixture.verify("b", &[old[0].clone(), codec::encode(&names)], NOW), Err(ZoneError::Chain));
}

proptest! {
    /// No record that somebody injects is ever served: whatever bytes of a zone are changed, it is refused, or is the same zone.
    #[test]
    fn changed_bytes_change_nothing_that_is_served(
        changes in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 1u8..), 1..4),
        cut in proptest::option::of((any::<bool>(), any::<prop::sample::Index>())),
    ) {
        let fixture = Fixture::new();
        let good = fixture.zone("b");
        let mut values = good.values();
        for (of_zone, at, change) in changes {
            let value = &mut values[usize::from(of_zone)];
            let at = at.index(value.len());
            value[at] ^= change;
        }
        if let Some((of_zone, at)) = cut {
            let value = &mut values[usize::from(of_zone)];
            let at = at.index(value.len());
            value.truncate(at);
        }
        if let Ok(zone) = fixture.verify("b", &values, NOW) {
            prop_assert_eq!(&zone, &good);
            for owner in NAMES {
                prop_assert_eq!(told(&zone, owner, Rtype::A), told(&good, owner, Rtype::A));
            }
        }
    }

    /// A denial never denies what is there, and an answer has what was asked for.
    #[test]
    fn every_owner_is_found_and_nothing_else_is(
        labels in proptest::collection::btree_set("[a-c*](\\.[a-c]){0,2}", 0..8),
        asked in "[a-c*](\\.[a-c]){0,3}",
    ) {
        let fixture = Fixture::new();
        let owners: Vec<String> = labels.iter().map(|labels| format!("{labels}.b.mynet.internal")).collect();
        let sets = owners.iter().map(|owner| set(owner, Rtype::A, [address(3)])).collect();
        let zone = fixture.sign("b", sets).unwrap();
        let asked = name(&format!("{asked}.b.mynet.internal"));
        let Answer { rcode, answer, authority, .. } = zone.answer(&asked, Rtype::A);
        let is_there = owners.iter().any(|owner| name(owner) == asked);
        if is_there {
            prop_assert!(rcode == Rcode::NoError && answer.len() == 1 && authority.is_empty());
        }
        // The proof of absence lies around the name, in canonical order (RFC 4034 §6.1).
        let covers = |nsec: &&&SignedSet| {
            let rdata = &nsec.set.rdata()[0];
            let end = rdata.iter().position(|byte| *byte == 0).unwrap() + 1;
            let next = Name::from_octets(rdata[..end].to_vec()).unwrap();
            nsec.set.owner < asked && (asked < next || next == zone.apex)
        };
        let has_proof = authority.iter().filter(|set| set.set.rtype == Rtype::NSEC).any(|nsec| covers(&nsec));
        prop_assert!(has_proof || is_there || owners.iter().any(|owner| name(owner).ends_with(&asked)));
        if rcode == Rcode::NxDomain {
            prop_assert!(!is_there && answer.is_empty() && !zone.has(&asked));
        }
    }
}
