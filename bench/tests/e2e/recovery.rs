//! The drill for the worst day: the founder's machine is gone, with its issuer and all that it knew. `docs/operate.md` says what to do, and
//! this does it.

use weir_bench::external::ping;
use weir_bench::member::Member;
use weir_bench::network::{bring_up, found, join};
use weir_bench::rig::Family;
use weir_bench::rig::mesh::Mesh;

use crate::support::{alone, both_ways, refused, wait_for_version};

#[test]
fn a_network_whose_founder_is_lost_goes_on_from_the_backup_and_gives_nothing_out_twice() {
    let _alone = alone();
    let mesh = Mesh::new(4).unwrap();
    let mut members = mesh.sites().iter().map(|site| Member::new(site, "").unwrap()).collect::<Vec<_>>();
    let mut late = members.pop().unwrap();
    bring_up(&mut members).unwrap();
    let mut heir = members.remove(1);
    let (founder, third) = (members.remove(0), members.remove(0));

    // The file is kept elsewhere, and somebody joins after it was made.
    let file = heir.directory().join("backup").display().to_string();
    founder.weir(&["ca", "backup", &file, "--passphrase-file", &founder.passphrase_file().unwrap()]).unwrap();
    join(&mut late, &founder.invite(mesh.site_of(4)).unwrap()).unwrap();
    [&heir, &third, &late].iter().try_for_each(|member| member.wait_for_peers(3)).unwrap();
    let issuer = founder.weir(&["cert", "show"]).unwrap()["issuer"].clone();
    founder.destroy().unwrap();

    // What has sessions goes on, and nobody is left who could sign.
    both_ways(mesh.site_of(2), mesh.site_of(3));
    assert_eq!(ping(&mesh.site_of(2).host, mesh.site_of(1).host.lan.address(Family::V4), 3).unwrap().received, 0);
    heir.stop().unwrap();
    let wrong = heir.directory().join("wrong");
    let passphrase = heir.passphrase_file().unwrap();
    std::fs::copy(&passphrase, &wrong).unwrap();
    std::fs::write(&wrong, "incorrect horse battery staple\n").unwrap();
    let said = refused(&heir, &["ca", "restore", &file, "--passphrase-file", &wrong.display().to_string()]);
    assert!(said.contains("passphrase"), "{said}");
    assert!(!heir.directory().join("state/issuer/issuer.key").exists(), "a wrong passphrase leaves nothing");
    let restored = heir.weir(&["ca", "restore", &file, "--passphrase-file", &passphrase]).unwrap();
    assert!(restored["message"].as_str().unwrap().contains(issuer.as_str().unwrap()), "{restored}");
    heir.run().unwrap();
    heir.wait_for_plane().unwrap();
    heir.wait_for_peers(2).unwrap();

    // It renews at once, for members that it does not know by the backup as well; and invites nobody.
    for member in [&third, &late] {
        let renews =
            |member: &Member<'_>| member.weir(&["cert", "renew"]).is_ok_and(|renewed| renewed["issuer"] == issuer);
        member.wait_for("a certificate by the restored issuer", renews).unwrap();
    }
    let said = refused(&heir, &["invite", "--name", "site-5"]);
    assert!(said.contains("weir ca recovered"), "{said}");
    let knows = |heir: &Member<'_>| heir.weir(&["members"]).is_ok_and(|all| all.to_string().contains("\"site-4\""));
    heir.wait_for("all members that joined since", knows).unwrap();
    heir.weir(&["ca", "recovered"]).unwrap();

    // What was given out after the backup is not given out again.
    let said = refused(&heir, &["invite", "--name", "site-4"]);
    assert!(said.contains("site-4 is taken"), "{said}");
    let said = refused(&heir, &["invite", "--name", "site-5", "--subnet", &mesh.site_of(4).subnet()]);
    assert!(said.contains("10.4.0.0/24"), "{said}");
    // The founder's successor has its name and network, on another machine.
    let revoked = heir.weir(&["revoke", "site-1", "--replace"]).unwrap();
    let mut successor = Member::new(mesh.site_of(1), "").unwrap();
    join(&mut successor, revoked["replacement"]["token"].as_str().unwrap()).unwrap();
    [&heir, &third, &late, &successor].iter().try_for_each(|member| member.wait_for_peers(3)).unwrap();
    for number in 2..=4 {
        both_ways(mesh.site_of(1), mesh.site_of(number));
    }
    // It signs policy and lists, as it did, and its log goes on.
    let policy = heir.directory().join("policy.toml");
    std::fs::write(&policy, "default = \"allow\"\n").unwrap();
    heir.weir(&["policy", "apply", &policy.display().to_string()]).expect("signed by the operator's key");
    wait_for_version([&third, &late, &successor], "policy", 1);
    heir.weir(&["log", "--verify"]).unwrap();
}

/// Nobody is left who could sign, and a stolen gateway goes on: a key that was made for this day cuts it off.
#[test]
fn a_revocation_key_cuts_a_gateway_off_after_the_only_issuer_is_lost() {
    let _alone = alone();
    let mesh = Mesh::new(4).unwrap();
    let mut members = found(&mesh).expect("a network of all sites");
    let founder = members.remove(0);
    let [second, third, stolen] = &members[..] else { panic!() };
    let [key, list, bundle] = ["revoker.pem", "list", "bundle"].map(|name| second.directory().join(name));
    let [key, list, bundle] = [key, list, bundle].map(|path| path.display().to_string());
    let passphrase = second.passphrase_file().unwrap();
    let made = second.weir(&["ca", "revocation-key", "--out", &key, "--passphrase-file", &passphrase]).unwrap();
    let ceremony = ["add-revocation-key", "--key", made["key"].as_str().unwrap()];
    let version = founder.weir(&["status"]).unwrap()["versions"]["bundle"].as_u64().unwrap();
    let published = founder.ceremony("a", &ceremony).unwrap();
    founder.weir(&["ca", "publish", &published]).unwrap();
    wait_for_version(&members, "bundle", version + 1);
    founder.destroy().unwrap();
    both_ways(stolen.site(), third.site());

    let node = stolen.weir(&["status"]).unwrap()["identity"]["node"].as_str().unwrap().to_owned();
    assert!(refused(second, &["revoke", "site-4"]).contains("issuer"));
    second.weir(&["ca", "bundle", &bundle]).unwrap();
    let with = ["--list", &list, "--key", &key, "--passphrase-file", &passphrase, "--bundle", &bundle];
    second.weir(&[&["ca", "sign-revocations", &node, "--reason", "stolen"][..], &with].concat()).unwrap();
    // Any member takes it, and the others hear of it.
    third.weir(&["ca", "publish-revocations", &list]).unwrap();
    for member in [second, third] {
        let is_gone =
            |member: &Member<'_>| member.weir(&["peers"]).is_ok_and(|all| !all.to_string().contains("site-4"));
        member.wait_for("the end of what it had with site-4", is_gone).unwrap();
        let there = member.site().host.lan.address(Family::V4);
        assert_eq!(ping(&stolen.site().host, there, 3).unwrap().received, 0);
    }
    both_ways(second.site(), third.site());
}
