use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;

use super::arguments::{CaCommand, InvitesCommand, PolicyCommand};
use super::*;
use crate::pki::bundle::{Bundle, SignedBundle, text};
use crate::pki::id::{InviteId, KeyId, NodeId};
use crate::pki::key::{PrivateKey, PublicKey};
use crate::pki::revocation::{self, RevocationSet};
use crate::time::UnixSecs;

fn parse(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(line.split_whitespace())
}

#[test]
fn the_tree_of_commands_holds() {
    Arguments::command().debug_assert();
}

/// Every command of the tree, so that none is lost unseen.
#[test]
fn every_command_is_there_and_has_a_line_of_help() {
    fn names(command: &clap::Command, before: &str, into: &mut Vec<String>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = format!("{before}{}", sub.get_name());
            assert!(sub.get_about().is_some(), "{name} has no help");
            names(sub, &format!("{name} "), into);
            into.push(name);
        }
    }
    let mut all = Vec::new();
    names(&Arguments::command(), "", &mut all);
    for name in [
        "init",
        "invite",
        "invites",
        "invites withdraw",
        "join",
        "leave",
        "members",
        "cert show",
        "cert renew",
        "ca add-issuer",
        "ca renew-issuer",
        "ca revoke-issuer",
        "ca rotate-root",
        "ca move-allocator",
        "ca draft-group",
        "ca widen-pool",
        "ca operator-key",
        "ca add-operator",
        "ca remove-operator",
        "ca revocation-key",
        "ca add-revocation-key",
        "ca remove-revocation-key",
        "ca sign-revocations",
        "ca revocation-list",
        "ca publish-revocations",
        "ca backup",
        "ca restore",
        "ca export-crl",
        "revoke",
        "policy show",
        "policy check",
        "policy diff",
        "policy sign",
        "policy apply",
        "policy history",
        "policy rollback",
        "policy explain",
        "log",
        "status",
        "peers",
        "ping",
        "find",
        "dht status",
        "dht lookup",
        "dht get",
        "dht put",
        "config check",
        "run",
        "completions",
    ] {
        assert!(all.iter().any(|known| known == name), "{name} is not among {all:?}");
    }
}

#[test]
fn arguments_are_read_and_defaults_filled_in() {
    let line = "weir invite --name edge-* --subnet auto --group a --group b --ttl 2d --uses 3 --json";
    let arguments = parse(line).unwrap();
    assert!(arguments.json && arguments.instance.to_string() == "weir");
    let Command::Invite(invite) = arguments.command else { panic!("{:?}", arguments.command) };
    assert_eq!((invite.name.as_str(), invite.subnet.as_deref()), ("edge-*", Some("auto")));
    assert_eq!(
        (invite.group, invite.ttl, invite.uses),
        (vec!["a".into(), "b".into()], Duration::from_secs(172_800), 3)
    );

    let Command::Invite(invite) = parse("weir invite --name a").unwrap().command else { panic!() };
    assert_eq!((invite.ttl, invite.uses, invite.replace), (Duration::from_secs(3600), 1, None));
    let arguments = parse("weir --instance lab --config /c status --check").unwrap();
    assert_eq!((arguments.instance.to_string(), arguments.config), ("lab".into(), Some(PathBuf::from("/c"))));
    assert!(matches!(arguments.command, Command::Status { check: true }));
    let plain = parse("weir join -").unwrap().command;
    assert!(matches!(plain, Command::Join { token, name: None, via } if token == "-" && via.is_empty()));
    let through = parse("weir join - --via 192.0.2.7:4646 --via [2001:db8::7]:4646").unwrap().command;
    assert!(matches!(through, Command::Join { via, .. } if via.len() == 2));
    assert!(parse("weir join - --via site-b").is_err(), "an address, with a port");
    assert!(matches!(parse("weir invites").unwrap().command, Command::Invites { command: None }));
    let withdraw = parse("weir invites withdraw ab").unwrap().command;
    assert!(matches!(withdraw, Command::Invites { command: Some(InvitesCommand::Withdraw { .. }) }));
    let explain = parse("weir policy explain a b --proto tcp --port 443").unwrap().command;
    assert!(matches!(explain, Command::Policy { command: PolicyCommand::Explain { port: Some(443), .. } }));
    let init = parse("weir init mynet --roots /r").unwrap().command;
    assert!(matches!(init, Command::Init(init) if init.pool.is_empty() && init.subnet.is_empty()));
    let renew = parse("weir ca renew-issuer --root r --bundle b --issuer i --ahead 12").unwrap().command;
    assert!(matches!(renew, Command::Ca { command: CaCommand::RenewIssuer { ahead: 12, .. } }));
}

/// The word `run` was taken out of the arguments wherever it stood, and the socket was forgotten.
#[test]
fn the_processes_of_a_node_are_started_with_what_names_it() {
    let arguments = parse("weir --instance run --socket /run --config=run run").unwrap();
    assert_eq!(arguments.of_the_node(), ["--instance", "run", "--config", "run", "--socket", "/run"]);
    let arguments = parse("weir run --socket /s").unwrap();
    assert_eq!(arguments.of_the_node(), ["--instance", "weir", "--socket", "/s"]);
    assert_eq!(arguments.configuration().unwrap().api.socket, PathBuf::from("/s"));
}

#[test]
fn what_does_not_fit_is_refused_with_status_two() {
    for (line, kind) in [
        ("weir", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("weir statsu", ErrorKind::InvalidSubcommand),
        ("weir status --chekc", ErrorKind::UnknownArgument),
        ("weir invite", ErrorKind::MissingRequiredArgument),
        ("weir invite --name a --uses 0", ErrorKind::ValueValidation),
        ("weir invite --name a --ttl 1w", ErrorKind::ValueValidation),
        ("weir dht get member a", ErrorKind::InvalidValue),
        ("weir dht get node", ErrorKind::MissingRequiredArgument),
        ("weir ping a --count 21", ErrorKind::ValueValidation),
        ("weir --instance Lab status", ErrorKind::ValueValidation),
        ("weir revoke", ErrorKind::MissingRequiredArgument),
        ("weir revoke a --issuer b", ErrorKind::ArgumentConflict),
        ("weir init mynet", ErrorKind::MissingRequiredArgument),
        ("weir ca revoke-issuer --root r --bundle b", ErrorKind::MissingRequiredArgument),
        ("weir log --verify --after 3", ErrorKind::ArgumentConflict),
        ("weir ca renew-issuer --root r --bundle b --issuer i --ahead 13", ErrorKind::ValueValidation),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
    }
}

#[test]
fn completions_and_man_pages_come_out() {
    let mut script = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut Arguments::command(), "weir", &mut script);
    let script = String::from_utf8(script).unwrap();
    assert!(script.contains("add-issuer") && script.contains("--passphrase-file"));
    let directory = std::env::temp_dir().join(format!("weir-man-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let written = clap_mangen::generate_to(Arguments::command(), &directory);
    let page = fs::read_to_string(directory.join("weir-status.1"));
    fs::remove_dir_all(&directory).unwrap();
    written.unwrap();
    assert!(page.unwrap().contains("monitoring"));
}

#[test]
fn a_node_that_is_not_there_has_a_status_of_its_own() {
    let place = std::env::temp_dir().join("weir-no-such-node.sock");
    let status = |line: &str| {
        let line = format!("{line} --socket {}", place.display());
        let outcome = dispatch(&parse(&line).unwrap());
        match &outcome {
            Err(Failure::Status(status)) => *status,
            Err(Failure::Client(ClientError::NotRunning { .. })) => NO_NODE,
            other => panic!("{line}: {other:?}"),
        }
    };
    assert_eq!(status("weir peers"), 3);
    assert_eq!(status("weir status"), 3);
    assert_eq!(status("weir status --check"), 2);
}

#[test]
fn policies_are_checked_and_compared_as_files() {
    let place = std::env::temp_dir().join(format!("weir-policies-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let write = |name: &str, text: &str| {
        fs::write(place.join(name), text).unwrap();
        place.join(name).display().to_string()
    };
    let one = write("one", "default = \"deny\"\n[[rule]]\nname = \"web\"\nfrom = [\"any\"]\nto = [\"group:a\"]\n");
    let wrong = write("wrong", "default = \"deny\"\n[[rule]]\nname = \"web\"\nform = [\"any\"]\n");
    let run = |line: &str| dispatch(&parse(&format!("weir {line} --socket /nowhere/weir.sock")).unwrap());
    assert!(run(&format!("policy check {one}")).is_ok());
    assert!(run(&format!("policy diff {one} --from {one} --json")).is_ok());
    let outcome = run(&format!("policy check {wrong}"));
    assert!(matches!(outcome, Err(Failure::Message(why)) if why.contains("did you mean `from`?")));
    for asks in [format!("policy check {one} --members"), format!("policy diff {one}")] {
        assert!(matches!(run(&asks), Err(Failure::Client(ClientError::NotRunning { .. }))), "{asks}");
    }
    fs::remove_dir_all(&place).unwrap();
}

/// Some commands said only what was wrong, not with which of their files.
#[test]
fn a_file_that_is_none_of_its_kind_is_named_by_every_command_that_reads_it() {
    let place = std::env::temp_dir().join(format!("weir-no-bundle-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(place.join(name), bytes).unwrap();
        place.join(name).display().to_string()
    };
    let good = write("good", text::write(crate::pki::bundle::tests::chain().versions()).as_bytes());
    let (nonsense, binary) = (write("nonsense", b"nonsense\n"), write("binary", b"\xff"));
    let line = write("line", b"weir trust bundle 1\n!\n");
    let passphrase = format!("--passphrase-file {}", write("passphrase", b"correct horse battery\n"));
    fs::set_permissions(place.join("passphrase"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let operator = "07".repeat(20);
    let out = place.join("out").display().to_string();
    let refused = |line: &str| match dispatch(&parse(&format!("weir {line} --socket /nowhere/weir.sock")).unwrap()) {
        Err(Failure::Message(why)) => why,
        other => panic!("{line}: {other:?}"),
    };
    let publish = |bundle: &str| format!("ca publish {bundle}");
    let change =
        |bundle: &str, key: &str| format!("ca remove-operator --bundle {bundle} --root {key} {passphrase} {operator}");
    let sign = |bundle: &str, key: &str| {
        format!("policy sign {good} --bundle {bundle} --key {key} {passphrase} --version 1 --out {out}")
    };
    let with = |bundle: &str, key: &str| [publish(bundle), change(bundle, key), sign(bundle, key)];
    for bundle in [&nonsense, &binary] {
        for why in with(bundle, &nonsense).map(|line| refused(&line)) {
            assert!(why.starts_with(&format!("{bundle}: this is no trust bundle")), "{why}");
        }
    }
    for why in with(&line, &nonsense).map(|line| refused(&line)) {
        assert!(why.starts_with(&format!("{line}: line 2 of the trust bundle is no version")), "{why}");
    }
    for key in [&nonsense, &binary] {
        for why in [change(&good, key), sign(&good, key)].map(|line| refused(&line)) {
            assert!(why.starts_with(&format!("{key}: ")), "{why}");
        }
    }
    fs::remove_dir_all(&place).unwrap();
}

/// A directory with a configuration and a passphrase, where a network is founded.
struct Office(std::path::PathBuf);

impl Office {
    fn new(name: &str) -> Self {
        let place = std::env::temp_dir().join(format!("weir-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir(&place).unwrap();
        let office = Self(place);
        let (state, run) = (office.at("state"), office.at("run"));
        let text = format!("[node]\nstate_directory = \"{state}\"\nruntime_directory = \"{run}\"\n");
        fs::write(office.at("weir.toml"), text).unwrap();
        fs::write(office.at("passphrase"), "correct horse battery\n").unwrap();
        fs::set_permissions(office.at("passphrase"), PermissionsExt::from_mode(0o600)).unwrap();
        office
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn run(&self, line: &str) -> Outcome {
        dispatch(&parse(&format!("weir --config {} {line}", self.at("weir.toml"))).unwrap())
    }

    /// Why a command does not do what it is told.
    fn refused(&self, line: &str) -> String {
        match self.run(line) {
            Err(Failure::Message(why)) => why,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn init(&self) -> Outcome {
        let (roots, passphrase) = (self.at("roots"), self.at("passphrase"));
        self.run(&format!(
            "init mynet --name berlin --subnet 10.1.0.0/16 --roots {roots} --passphrase-file-a {passphrase} \
             --passphrase-file-b {passphrase}"
        ))
    }

    /// Puts the founder's trust bundle into a file; the arguments of a ceremony with it.
    fn ceremony(&self) -> (Vec<SignedBundle>, String) {
        let state = crate::state_directory::StateDirectory::open(&self.0.join("state")).unwrap();
        let versions = crate::membership::bundles(&state.node_store().unwrap()).unwrap();
        files::write(&self.0.join("bundle"), text::write(&versions).as_bytes()).unwrap();
        let (root, bundle, passphrase) = (self.at("roots/root-b.pem"), self.at("bundle"), self.at("passphrase"));
        (versions, format!("--root {root} --bundle {bundle} --passphrase-file {passphrase}"))
    }

    /// The trust bundle in the file.
    fn bundle(&self) -> Bundle {
        text::read(&files::read(&self.0.join("bundle")).unwrap()).unwrap().last().unwrap().peek().unwrap()
    }

    /// The public half of a key that is in a file.
    fn public_key(&self, name: &str) -> PublicKey {
        let pem = fs::read_to_string(self.at(name)).unwrap();
        PrivateKey::from_encrypted_pem(&pem, "correct horse battery").unwrap().public()
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_network_is_founded_and_changed_by_files_alone() {
    let office = Office::new("init");
    let (at, run) = (|name: &str| office.at(name), |line: &str| office.run(line));
    office.init().unwrap();
    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
    let secret = ["roots/root-a.pem", "roots/root-b.pem", "state/state.redb", "state/issuer/issuer.key"];
    assert!(secret.iter().all(|name| mode(name) == 0o600));
    assert!(matches!(office.init(), Err(Failure::Message(message)) if message.contains("never overwritten")));

    let (versions, root) = office.ceremony();
    let network = crate::pki::bundle::network_id(&versions[0]);
    let chain = crate::pki::bundle::Chain::walk(network, &versions).unwrap();
    let pool = chain.current().slices[0].prefixes.clone();
    assert!(pool.contains(&"10.1.0.0/16".parse().unwrap()) && pool.len() > 1, "{pool:?}");
    assert!(pool.iter().all(|prefix| prefix.bit_len() >= 16), "more than a site needs: {pool:?}");
    run(&format!("ca add-issuer {root} --key {}", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"))
        .unwrap();
    let after = text::read(&files::read(&office.0.join("bundle")).unwrap()).unwrap();
    assert_eq!((after.len(), &after[0]), (2, &versions[0]));
    assert!(run(&format!("ca add-issuer {root} --key abc")).is_err());
    // The founder's issuer is revoked, and the one that was added follows it.
    // More to give out: every issuer may grant it, and what was there is not named twice.
    assert!(run(&format!("ca widen-pool {root} --pool 10.1.2.0/24")).is_err(), "that is in the pool");
    run(&format!("ca widen-pool {root} --pool 172.16.0.0/12 --pool 10.0.0.0/15")).unwrap();
    let wide = office.bundle();
    let pool = &wide.slices[0].prefixes;
    assert!(["172.16.0.0/12", "10.0.0.0/15"].iter().all(|prefix| pool.contains(&prefix.parse().unwrap())), "{pool:?}");
    assert!(!pool.contains(&"10.1.0.0/16".parse().unwrap()), "{pool:?}");
    assert_eq!((wide.version, wide.issuers.len()), (3, 2));
    // An operator of its own, on a host that is no member.
    let operator = format!("--passphrase-file {}", at("passphrase"));
    run(&format!("ca operator-key --out {} {operator}", at("operator.pem"))).unwrap();
    assert_eq!(mode("operator.pem"), 0o600);
    fs::write(at("policy.toml"), "default = \"deny\"\n").unwrap();
    let sign = format!(
        "policy sign {} --key {} {operator} --bundle {} --version 7 --out {}",
        at("policy.toml"),
        at("operator.pem"),
        at("bundle"),
        at("policy.signed")
    );
    assert!(matches!(run(&sign), Err(Failure::Message(why)) if why.contains("is no operator of version 3")));
    let public = office.public_key("operator.pem");
    run(&format!("ca add-operator {root} --key {}", data_encoding::HEXLOWER.encode(&public.0))).unwrap();
    run(&sign).unwrap();
    let signed = crate::policy::SignedPolicy::from_bytes(&fs::read(at("policy.signed")).unwrap()).unwrap();
    assert_eq!(signed.verify(network, &office.bundle().operators).unwrap().version, 7);
    run(&format!("ca remove-operator {root} {}", public.id())).unwrap();
    assert!(run(&sign).is_err() && run(&format!("ca remove-operator {root} {}", public.id())).is_err());
    let before = office.bundle();
    let key = |at: usize| crate::pki::certificate::public_key(&before.issuers[at]).unwrap().id();
    let (founder, heir) = (key(0), key(1));
    assert!(run(&format!("ca revoke-issuer {root} {founder} --heir abc")).is_err());
    run(&format!("ca revoke-issuer {root} {founder} --heir {heir} --json")).unwrap();
    let after = office.bundle();
    assert_eq!((after.version, &after.revoked_issuers[..]), (6, &[founder][..]));
    assert!(after.issuer(founder).is_none() && after.slice(heir).is_some());
    let again = run(&format!("ca revoke-issuer {root} {founder}"));
    assert!(matches!(again, Err(Failure::Message(why)) if why.contains("names no issuer")));
}

/// As on the day when no issuer is left that could.
#[test]
fn a_revocation_key_revokes_by_files_alone() {
    let office = Office::new("revoke");
    office.init().unwrap();
    let (_, root) = office.ceremony();
    let [key, list, bundle, passphrase] = ["revoker.pem", "list", "bundle", "passphrase"].map(|name| office.at(name));
    office.run(&format!("ca revocation-key --out {key} --passphrase-file {passphrase}")).unwrap();
    let public = office.public_key("revoker.pem");
    let id = public.id();
    let sign = |what: &str| {
        format!("ca sign-revocations --list {list} --key {key} --passphrase-file {passphrase} --bundle {bundle} {what}")
    };
    let (node, other, issuer) = (NodeId([7; 32]), NodeId([8; 32]), KeyId([9; 20]));
    let why = office.refused(&sign(&node.to_string()));
    assert!(why.contains(&format!("{id} is no revocation key of version 1")), "{why}");
    let hex = data_encoding::HEXLOWER.encode(&public.0);
    office.run(&format!("ca add-revocation-key {root} --key {hex}")).unwrap();
    let why = office.refused(&format!("ca add-revocation-key {root} --key {hex}"));
    assert!(why.contains("revokes already"), "{why}");

    office.run(&sign(&format!("{node} --reason stolen"))).unwrap();
    let read = || revocation::text::read(&fs::read_to_string(&list).unwrap()).unwrap();
    let mut known = RevocationSet::default();
    known.apply(read(), &office.bundle()).unwrap();
    assert!(known.is_node_revoked(node) && !known.is_fresh(UnixSecs(0)) && known.have(id) == (1, 1));
    // More is added to what is there, so members that have the first list take the second.
    office.run(&sign(&format!("{other} --issuer {issuer} --invite {}", InviteId([1; 8])))).unwrap();
    known.apply(read(), &office.bundle()).unwrap();
    assert!(known.is_node_revoked(other) && known.is_issuer_revoked(issuer) && known.have(id) == (2, 4));
    let reasons: Vec<_> = known.entries().map(|entry| entry.reason.clone()).collect();
    assert_eq!(reasons, ["stolen", "revoked", "revoked", "revoked"]);

    for (wrong, why) in [
        (sign(&node.to_string()), "is on the list already"),
        (sign("abc"), "abc"),
        (sign(&format!("{} --reason {}", NodeId([5; 32]), "r".repeat(201))), "a reason of 201 bytes"),
    ] {
        let said = office.refused(&wrong);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(known.list(id, 0), Some(read()), "what is refused changes nothing");
    assert!(parse(&format!("weir {}", sign(""))).is_err(), "nobody is named");
    let whole = fs::read_to_string(&list).unwrap();
    fs::write(&list, "nonsense").unwrap();
    assert!(office.refused(&sign(&NodeId([5; 32]).to_string())).contains("this is no revocation list"));
    // The list of another key is not continued.
    fs::write(&list, whole).unwrap();
    fs::remove_file(&key).unwrap();
    office.run(&format!("ca revocation-key --out {key} --passphrase-file {passphrase}")).unwrap();
    let hex = data_encoding::HEXLOWER.encode(&office.public_key("revoker.pem").0);
    office.run(&format!("ca add-revocation-key {root} --key {hex}")).unwrap();
    let why = office.refused(&sign(&NodeId([5; 32]).to_string()));
    assert!(why.contains(&format!("the list is of {id}")), "{why}");

    office.run(&format!("ca remove-revocation-key {root} {id}")).unwrap();
    assert!(office.refused(&format!("ca remove-revocation-key {root} {id}")).contains("names no revocation key"));
    assert_eq!(known.retain(&office.bundle()), [id]);
    assert!(!known.is_node_revoked(node));
}
