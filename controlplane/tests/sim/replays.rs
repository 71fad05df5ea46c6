//! What was true once and is not any more, said again by somebody who kept it.

use data_encoding::BASE64;
use weir_controlplane::api::types::{PolicyApplyRequest, RevokeRequest};
use weir_controlplane::codec;
use weir_controlplane::membership;
use weir_controlplane::node::directory::SignedRecord;
use weir_controlplane::node::message::Message;
use weir_controlplane::pki::revocation::SignedRevocationList;
use weir_controlplane::policy::SignedPolicy;
use weir_controlplane::store::{MemoryStore, Store, Table};

use super::hostile::Misuse;
use super::*;

fn all<T: serde::de::DeserializeOwned>(store: &MemoryStore, table: Table) -> Vec<T> {
    let entries = store.entries(table).unwrap();
    entries.iter().map(|(_, bytes)| codec::decode(bytes, 1 << 20).unwrap()).collect()
}

#[test]
fn old_messages_change_nothing_and_are_counted_each_by_its_kind() {
    let (mut world, sites) = network(730, 6);
    let apply = |text: &str| Call::PolicyApply(PolicyApplyRequest { text: Some(text.to_owned()), signed: None });
    assert!(world.ask(sites[0], apply("default = \"allow\""), SECOND).unwrap().is_ok());
    world.run(SECOND);
    // Somebody keeps what all members know.
    let kept = world.store(sites[4]).clone();
    let old_records: Vec<SignedRecord> = all(&kept, Table::Directory);
    let old = [
        (Message::Bundles(membership::bundles(&kept).unwrap()), "bundle_old"),
        (Message::Revocations(all(&kept, Table::Revocations)), "revocation_old"),
        (Message::Policy(all::<SignedPolicy>(&kept, Table::Policy).remove(0)), "policy_old"),
        (Message::Admission(membership::admission(&kept).unwrap().unwrap()), "admission_old"),
        (Message::Records(old_records.clone()), "record_old"),
    ];
    let victim = sites[1];
    let digests = |world: &World| (world.documents(victim), world.policy_version(victim));
    let at_first = digests(&world);
    // The network goes on: another bundle, policy, list and seed, and everybody renews, so that each record has a newer statement.
    world.hold_ceremony(sites[0], |ceremony, _| ceremony.allow_legacy_kyber(true)).expect("a new bundle");
    assert!(world.ask(sites[0], apply("default = \"deny\""), SECOND).unwrap().is_ok());
    let member = world.id(sites[5]).unwrap();
    let request = RevokeRequest { member: member.to_string(), reason: "stolen".to_owned(), replace: false };
    assert!(world.ask(sites[0], Call::Revoke(request), SECOND).unwrap().is_ok());
    world.run(2 * SECOND);
    for site in &sites[..5] {
        assert!(world.ask(*site, Call::CertRenew, 5 * SECOND).unwrap().is_ok());
    }
    world.run(10 * SECOND);
    let before = digests(&world);
    assert_ne!(at_first, before);

    let mut misuse = Misuse::over(world, sites, 1);
    for (message, counter) in &old {
        // A record of the one that was revoked meanwhile is refused as that. The others each for its age.
        let (times, count) = match message {
            Message::Records(records) => (records.len() as u64 - 1, counter),
            _ => (1, counter),
        };
        let counted = misuse.counted(count);
        misuse.say(message);
        assert_eq!(misuse.counted(count) - counted, times, "{count}");
        assert_eq!(digests(&misuse.world), before, "{count}");
    }
    assert_eq!(misuse.counted("record_revoked"), 1);
    // What is known is no replay: everybody tells everybody all the time.
    let now = misuse.world.store(misuse.sites[1]).clone();
    let names = ["bundle_old", "revocation_old", "policy_old", "admission_old", "record_old"];
    let counted = names.map(|name| misuse.counted(name));
    let lists: Vec<SignedRevocationList> = all(&now, Table::Revocations);
    let newest = all::<SignedPolicy>(&now, Table::Policy).pop().unwrap();
    let records: Vec<SignedRecord> = all(&now, Table::Directory);
    assert!(records.iter().all(|record| !old_records.contains(record)));
    let known = [
        Message::Bundles(vec![membership::bundles(&now).unwrap().pop().unwrap()]),
        Message::Revocations(lists),
        Message::Policy(newest.clone()),
        Message::Admission(membership::admission(&now).unwrap().unwrap()),
        Message::Records(records),
    ];
    known.iter().for_each(|message| misuse.say(message));
    assert_eq!((names.map(|name| misuse.counted(name)), digests(&misuse.world)), (counted, before));
    // Nor does one bring the old policy back through the door for people.
    let first = Some(BASE64.encode(&all::<SignedPolicy>(&kept, Table::Policy)[0].to_bytes()));
    let call = Call::PolicyApply(PolicyApplyRequest { text: None, signed: first });
    let answer = misuse.world.ask(misuse.sites[1], call, SECOND).unwrap();
    assert!(answer.is_err_and(|error| error.message.contains("version 2 is in force")));
}
