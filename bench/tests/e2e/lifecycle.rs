//! Members come and go, and so do those who vouch for them: tokens that are no good, sites that leave or are replaced, and ceremonies on a
//! network that carries traffic.

use std::process::Command;

use serde_json::Value;
use weir_bench::external::ping;
use weir_bench::member::{Member, Part};
use weir_bench::network::{bring_up, join};
use weir_bench::rig::Family;
use weir_bench::rig::mesh::{Mesh, Site};
use weir_controlplane::api::client::ClientError;
use weir_controlplane::api::types::{JoinRequest, Secret, WithdrawRequest};
use weir_controlplane::api::{Call, Error, ErrorCode};
use weir_controlplane::pki::token::Token;
use weir_controlplane::time::UnixSecs;

use crate::support::{alone, beside_traffic, both_ways, output, wait_for_version};

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} of {value}"))
}

/// Why a node refuses a call, as its API has it.
fn refusal(member: &Member<'_>, call: &Call) -> Error {
    match member.call(call).unwrap() {
        Err(ClientError::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn join_refused(member: &Member<'_>, token: &str) -> (ErrorCode, String) {
    let refused = refusal(member, &Call::Join(JoinRequest { token: Secret::from(token), name: None, via: vec![] }));
    (refused.code, refused.message)
}

/// Names of the members that a node knows, sorted.
fn known(member: &Member<'_>) -> Vec<String> {
    let members = member.weir(&["members"]).unwrap();
    let mut known: Vec<_> = members.as_array().unwrap().iter().map(|row| text(row, "name").to_owned()).collect();
    known.sort();
    known
}

fn node(member: &Member<'_>) -> String {
    let status = member.weir(&["status"]).unwrap();
    text(&status["identity"], "node").to_owned()
}

fn nothing_between(one: &Site, other: &Site) {
    for (from, to) in [(one, other), (other, one)] {
        let seen = ping(&from.host, to.host.lan.address(Family::V4), 5).unwrap();
        assert_eq!(seen.received, 0, "h{} to h{}: {seen:?}", from.number, to.number);
    }
}

/// Waits until a node knows of nobody by this name, and carries packets for nobody but so many.
fn wait_for_the_end_of(name: &str, member: &Member<'_>, peers: u64) {
    let is_over = |member: &Member<'_>| {
        member.weir(&["status"]).unwrap()["peers_connected"] == peers
            && !known(member).iter().any(|known| known == name)
    };
    member.wait_for(&format!("the end of {name}"), is_over).unwrap();
}

/// An invitation as `weir invites` shows it: uses, refusals, whether it was withdrawn.
fn shown(member: &Member<'_>, invite: &str) -> (usize, u64, bool) {
    let invites = member.weir(&["invites"]).unwrap();
    let row = invites.as_array().unwrap().iter().find(|row| text(row, "invite") == invite);
    let row = row.unwrap_or_else(|| panic!("{invite} in {invites}"));
    let uses = row["used_by"].as_array().unwrap().len();
    (uses, row["refused"].as_u64().unwrap(), row["withdrawn"].as_bool().unwrap())
}

fn tokens_that_are_no_good_are_refused(founder: &Member<'_>, joiner: &Member<'_>, spent: &str) {
    let invited = founder.weir(&["invite", "--name", "site-9"]).unwrap();
    let (invite, token) = (text(&invited, "invite"), text(&invited, "token"));
    assert_eq!(shown(founder, invite), (0, 0, false));
    founder.weir(&["invites", "withdraw", invite]).unwrap();
    assert_eq!(shown(founder, invite), (0, 0, true));
    let (code, said) = join_refused(joiner, token);
    assert!(code == ErrorCode::NotFound && said.contains("was withdrawn"), "{code:?} {said}");

    let (code, said) = join_refused(joiner, spent);
    assert!(code == ErrorCode::Conflict && said.contains("used by another key"), "{code:?} {said}");
    let invite = spent.parse::<Token>().unwrap().invite.to_string();
    assert_eq!(shown(founder, &invite), (1, 1, false));

    let mut over: Token = token.parse().unwrap();
    over.not_after = UnixSecs(over.not_after.0 - 2 * 3600);
    let (code, said) = join_refused(joiner, &over.to_text());
    assert!(code == ErrorCode::BadRequest && said.contains("was good until"), "{code:?} {said}");

    let mut guessed: Token = token.parse().unwrap();
    guessed.secret[0] ^= 1;
    let (code, said) = join_refused(joiner, &guessed.to_text());
    assert!(code == ErrorCode::BadRequest && said.contains("secret does not fit"), "{code:?} {said}");
    let (code, said) = join_refused(joiner, &token[..token.len() - 1]);
    assert!(code == ErrorCode::BadRequest && said.contains("damaged"), "{code:?} {said}");

    let unknown = Call::WithdrawInvite(WithdrawRequest { invite: "00".repeat(8) });
    assert_eq!(refusal(founder, &unknown).code, ErrorCode::NotFound);
    // Whoever was refused is nobody yet, and may still join.
    assert!(joiner.weir(&["status"]).unwrap()["identity"].is_null());
}

#[test]
fn tokens_members_that_leave_and_members_that_are_replaced() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let mut members = mesh.sites().iter().map(|site| Member::new(site, "").unwrap()).collect::<Vec<_>>();
    let mut third = members.pop().unwrap();
    let (founder, second) = (0, 1);
    members[founder].found("example").unwrap();
    members[founder].run().unwrap();
    members[founder].wait_for_plane().unwrap();
    let token = members[founder].invite(mesh.site_of(2)).unwrap();
    join(&mut members[second], &token).unwrap();
    third.run().unwrap();
    tokens_that_are_no_good_are_refused(&members[founder], &third, &token);
    third.weir(&["join", &members[founder].invite(mesh.site_of(3)).unwrap()]).unwrap();
    third.wait_for_plane().unwrap();
    members.iter().chain([&third]).try_for_each(|member| member.wait_for_peers(2)).unwrap();
    both_ways(mesh.site_of(2), mesh.site_of(3));

    // Site 3 leaves: everybody knows, and it knows nothing any more.
    let (was, left) = (node(&third), third.weir(&["leave", "--yes"]).unwrap());
    assert_eq!(left["message"], "this node has left the network and forgotten its keys");
    for member in &members {
        wait_for_the_end_of("site-3", member, 1);
    }
    third.wait_for("the end of its packet plane", |third| third.pid(Part::Plane).is_none()).unwrap();
    assert!(third.weir(&["status"]).unwrap()["identity"].is_null());
    assert!(third.weir(&["members"]).is_err_and(|error| error.to_string().contains("not a member")));
    nothing_between(mesh.site_of(2), mesh.site_of(3));
    nothing_between(mesh.site_of(1), mesh.site_of(3));
    both_ways(mesh.site_of(1), mesh.site_of(2));
    // What it had is given to nobody but a successor, whom somebody names.
    let taken = members[founder].invite(mesh.site_of(3)).unwrap_err().to_string();
    assert!(taken.contains("site-3 is taken"), "{taken}");
    let hint = members[founder].weir(&["revoke", "site-3", "--replace"]).unwrap_err().to_string();
    assert!(hint.contains("weir invite --name site-3 --replace site-3"), "{hint}");
    let invited = members[founder].weir(&["invite", "--name", "site-3", "--replace", "site-3"]).unwrap();
    let joined = third.weir(&["join", text(&invited, "token")]);
    joined.unwrap_or_else(|error| panic!("{error}: {}", third.log()));
    third.wait_for_plane().unwrap();
    members.iter().chain([&third]).try_for_each(|member| member.wait_for_peers(2)).unwrap();
    assert_ne!(node(&third), was, "it is somebody else");
    both_ways(mesh.site_of(2), mesh.site_of(3));

    // Site 2 is lost, and its successor has its name and network on another machine.
    let was = node(&members[second]);
    let revoked = members[founder].weir(&["revoke", "site-2", "--reason", "stolen", "--replace"]).unwrap();
    assert_eq!(text(&revoked, "node"), was);
    for member in [&members[founder], &third] {
        wait_for_the_end_of("site-2", member, 1);
    }
    nothing_between(mesh.site_of(1), mesh.site_of(2));
    nothing_between(mesh.site_of(3), mesh.site_of(2));
    members[second].stop().unwrap();
    let mut successor = Member::new(mesh.site_of(2), "").unwrap();
    join(&mut successor, text(&revoked["replacement"], "token")).unwrap();
    [&members[founder], &third, &successor].iter().try_for_each(|member| member.wait_for_peers(2)).unwrap();
    let status = successor.weir(&["status"]).unwrap();
    let identity = &status["identity"];
    assert!(text(identity, "name") == "site-2" && text(identity, "node") != was, "{identity}");
    assert!(identity["prefixes"].as_array().unwrap().contains(&mesh.site_of(2).subnet().into()), "{identity}");
    both_ways(mesh.site_of(1), mesh.site_of(2));
    both_ways(mesh.site_of(2), mesh.site_of(3));
    for member in [&members[founder], &third, &successor] {
        assert_eq!(known(member), ["site-1", "site-2", "site-3"]);
    }
    members[founder].weir(&["log", "--verify"]).expect("the log tells of all of it");
}

/// What each root of a file is called and the id of its key, as OpenSSL shows them in the subjects. That is how `docs/operate.md` tells people
/// to find the id that `rotate-root` asks for, so it is found that way here, though [`Member`] could read it from the key.
fn root_ids(roots: &str) -> Vec<(String, String)> {
    let begin = "-----BEGIN CERTIFICATE-----";
    let all = std::fs::read_to_string(roots).unwrap();
    let subject = |(at, rest): (usize, &str)| {
        let one = format!("{roots}.{at}");
        std::fs::write(&one, format!("{begin}{rest}")).unwrap();
        let mut openssl = Command::new("openssl");
        let read =
            openssl.args(["x509", "-noout", "-subject", "-nameopt", "sep_multiline,lname", "-in", &one]).output();
        let said = String::from_utf8(read.unwrap().stdout).unwrap();
        let field = |name: &str| {
            let line = said.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{name} in {said}")).to_owned()
        };
        (field("commonName"), field("serialNumber"))
    };
    all.split(begin).skip(1).enumerate().map(subject).collect()
}

/// Ceremonies of the founder's, which another member publishes. Every member follows.
struct Ceremonies<'m, 's> {
    members: &'m [Member<'s>],
    version: u64,
}

impl Ceremonies<'_, '_> {
    fn hold(&mut self, root: &str, ceremony: &[&str]) {
        let bundle = self.members[0].ceremony(root, ceremony).unwrap();
        self.members[1].weir(&["ca", "publish", &bundle]).unwrap();
        self.version += 1;
        wait_for_version(self.members, "bundle", self.version);
    }

    /// Has a member renew, and shows the new certificate.
    fn renewed(&self, at: usize) -> Value {
        self.members[at].weir(&["cert", "renew"]).expect("a new certificate")
    }
}

#[test]
fn ceremonies_on_a_running_network_cost_no_packet_and_whoever_joins_later_believes_them() {
    let _alone = alone();
    let mesh = Mesh::new(4).unwrap();
    let mut members = mesh.sites().iter().map(|site| Member::new(site, "").unwrap()).collect::<Vec<_>>();
    let mut late = members.pop().unwrap();
    bring_up(&mut members).unwrap();
    // Site 3 is to be an issuer: its key is there before traffic begins, since making one takes a restart.
    let second = members[2].weir(&["ca", "issuer-key"]).unwrap();
    members[2].stop().unwrap();
    members[2].run().unwrap();
    members.iter().try_for_each(|member| member.wait_for_peers(2)).unwrap();
    let first = text(&members[0].weir(&["cert", "show"]).unwrap(), "issuer").to_owned();
    let passphrase = members[0].passphrase_file().unwrap();
    let version = members[0].weir(&["status"]).unwrap()["versions"]["bundle"].as_u64().unwrap();
    let mut ceremonies = Ceremonies { members: &members, version };
    let at = |name: &str| members[0].directory().join(name).display().to_string();
    let roots = at("roots.pem");

    let ((), seen) = beside_traffic(mesh.site_of(1), mesh.site_of(2), || {
        let before = ceremonies.renewed(1);
        ceremonies.hold("a", &["renew-issuer", "--issuer", &first, "--ahead", "2"]);
        let after = ceremonies.renewed(1);
        assert!(before["chain"][1] != after["chain"][1] && text(&after, "issuer") == first, "{before} {after}");

        members[0].weir(&["ca", "bundle", &at("bundle"), "--roots", &roots]).unwrap();
        let ids = root_ids(&roots);
        let of = |label: &str| &ids.iter().find(|(name, _)| name.ends_with(label)).expect("a root of that name").1;
        let out = at("roots/root-c.pem");
        let rotate = ["rotate-root", "--replace", of("root A"), "--out", &out, "--new-passphrase-file", &passphrase];
        ceremonies.hold("b", &rotate);
        assert!(ceremonies.renewed(1)["chain"][1] != after["chain"][1], "signed by a root that stays");
        // The one that went signs nothing any more, the new one does.
        let add = ["add-issuer", "--key", text(&second, "key")];
        let said = members[0].ceremony("a", &add).unwrap_err().to_string();
        assert!(said.contains("is no root of version"), "{said}");
        ceremonies.hold("c", &add);

        let early = members[2].invite(mesh.site_of(4)).unwrap_err().to_string();
        assert!(early.contains("no slice"), "{early}");
        ceremonies.hold("b", &["move-allocator", "--from", &first, "--to", text(&second, "id")]);
        let moved = members[0].invite(mesh.site_of(4)).unwrap_err().to_string();
        assert!(moved.contains("no slice"), "{moved}");
        // The second issuer knows what the first one gave out.
        let taken = members[2].invite(mesh.site_of(2)).unwrap_err().to_string();
        assert!(taken.contains("is taken"), "{taken}");
        join(&mut late, &members[2].invite(mesh.site_of(4)).unwrap()).unwrap();
        members.iter().chain([&late]).try_for_each(|member| member.wait_for_peers(3)).unwrap();
    });
    assert!(seen.sent >= 200 && seen.received == seen.sent, "{seen:?} {}", members[0].log());
    for number in 1..=3 {
        both_ways(mesh.site_of(4), mesh.site_of(number));
    }
    // Judged by a program that is not ours: what the late one shows leads to a root that is in force now.
    let roots = late.directory().join("roots.pem").display().to_string();
    late.weir(&["ca", "bundle", &late.directory().join("bundle").display().to_string(), "--roots", &roots]).unwrap();
    let chain = late.weir(&["cert", "show"]).unwrap();
    assert_eq!(text(&chain, "issuer"), text(&second, "id"));
    let [leaf, issuer] = ["leaf.pem", "issuer.pem"].map(|name| late.directory().join(name).display().to_string());
    std::fs::write(&leaf, chain["chain"][0].as_str().unwrap()).unwrap();
    std::fs::write(&issuer, chain["chain"][1].as_str().unwrap()).unwrap();
    output(&late.site().gateway, "openssl", &["verify", "-CAfile", &roots, "-untrusted", &issuer, &leaf]);
}
