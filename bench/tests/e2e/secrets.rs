//! Nothing that is secret is said: not in a log that tells everything, not by the API, not in what lies in the runtime directory.
//!
//! The nodes say all that they can through a join, an exchange, a renewal, a backup and refusals. Then their keys are read from where they
//! are kept, and looked for in all of that, in all forms in which programs print bytes.

use std::fs;
use std::path::Path;

use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, Encoding, HEXLOWER, HEXUPPER};
use weir_bench::member::{Member, PASSPHRASE, Part};
use weir_bench::network::join;
use weir_bench::rig::Family;
use weir_bench::rig::mesh::Mesh;
use weir_controlplane::membership::{self, Membership};
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::pki::token::Token;
use weir_controlplane::random::SystemRandom;
use weir_controlplane::state_directory::StateDirectory;

use crate::support::{alone, answered};

/// A secret, by what it is.
struct Secret {
    what: String,
    bytes: Vec<u8>,
}

impl Secret {
    fn new(what: impl Into<String>, bytes: &[u8]) -> Self {
        Self { what: what.into(), bytes: bytes.to_vec() }
    }

    /// All forms in which it could be printed, alone or amid other bytes.
    fn forms(&self) -> Vec<Vec<u8>> {
        let bytes = self.bytes.as_slice();
        let list = |between: &str| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(between);
        let hex = |between: &str| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between);
        let escaped = bytes.escape_ascii().to_string();
        let mut forms = vec![HEXLOWER.encode(bytes), HEXUPPER.encode(bytes), list(", "), list(","), list(" ")];
        for between in [", ", ":"] {
            forms.extend([hex(between), hex(between).to_ascii_uppercase()]);
        }
        forms.extend([escaped.replace("\\x00", "\\0"), escaped]);
        for (encoding, bits, group) in [(&BASE64_NOPAD, 6, 3), (&BASE64URL_NOPAD, 6, 3), (&BASE32_NOPAD, 5, 5)] {
            forms.extend((0..group).map(|before| amid(encoding, bits, before, bytes)));
        }
        forms.extend((0..5).map(|before| amid(&BASE32_NOPAD, 5, before, bytes).to_ascii_lowercase()));
        forms.into_iter().map(String::into_bytes).chain([bytes.to_vec()]).collect()
    }
}

/// The characters that are its alone where it stands behind so many other bytes.
fn amid(encoding: &Encoding, bits: usize, before: usize, bytes: &[u8]) -> String {
    let whole = encoding.encode(&[&vec![0; before], bytes].concat());
    whole[(before * 8).div_ceil(bits)..(before + bytes.len()) * 8 / bits].to_owned()
}

/// What a node that does not run keeps to itself.
fn kept(member: &Member<'_>) -> Vec<Secret> {
    let directory = StateDirectory::open(&member.directory().join("state")).unwrap();
    let mut store = directory.node_store().unwrap();
    let of = |what: &str| format!("{what} of g{}", member.site().number);
    let own = Membership::load(&mut store, &mut SystemRandom).unwrap().expect("it is a member");
    let seed = membership::admission(&store).unwrap().expect("it has the seed").peek().unwrap().seed;
    let mut secrets = vec![
        Secret::new(of("the identity key"), own.identity.seed().as_slice()),
        Secret::new(of("the leaf key"), own.leaf.seed().as_slice()),
        Secret::new(of("the admission seed"), seed.as_slice()),
    ];
    let key = directory.issuer_key().unwrap();
    secrets.extend(key.map(|key| Secret::new(of("the issuer's key"), key.seed().as_slice())));
    secrets
}

/// Everything that a running node says to others on its host, but for its log.
fn said(member: &Member<'_>) -> Vec<(String, Vec<u8>)> {
    let number = member.site().number;
    let mut all = vec![];
    for part in [Part::Control, Part::Plane, Part::Issuer] {
        for file in ["cmdline", "environ"] {
            let path = member.pid(part).map(|pid| format!("/proc/{pid}/{file}"));
            all.extend(path.map(|path| (path.clone(), fs::read(path).unwrap())));
        }
    }
    let bundle = member.directory().join("bundle");
    let calls = [
        "status",
        "peers",
        "members",
        "cert show",
        "invites",
        "log",
        "policy show",
        "policy history",
        "config check",
        &format!("ca bundle {}", bundle.display()),
        "ca export-crl",
    ];
    for call in calls {
        // Those for issuers are refused elsewhere, in words that are looked through too.
        let output = member.output(&call.split(' ').collect::<Vec<_>>()).unwrap();
        all.push((format!("weir {call} on g{number}"), [output.stdout, output.stderr].concat()));
    }
    all.push(("the bundle".to_owned(), fs::read(bundle).unwrap()));
    let dump = member.plane().unwrap().dump().unwrap();
    all.push((format!("the dump of g{number}"), format!("{dump:?}").into_bytes()));
    let files = fs::read_dir(member.directory().join("run")).unwrap().map(|entry| entry.unwrap().path());
    all.extend(files.filter(|path| path.is_file()).map(|path| (path.display().to_string(), fs::read(&path).unwrap())));
    all
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

fn root_key(path: &Path) -> PrivateKey {
    PrivateKey::from_encrypted_pem(&fs::read_to_string(path).unwrap(), PASSPHRASE).unwrap()
}

#[test]
fn no_key_no_token_and_no_passphrase_stands_in_a_log_or_an_answer() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let mut members = mesh.sites().iter().map(|site| Member::new(site, "").unwrap()).collect::<Vec<_>>();
    members.iter_mut().for_each(|member| member.log_at("trace"));
    members[0].found("example").unwrap();
    members[0].run().unwrap();
    members[0].wait_for_plane().unwrap();
    let token = members[0].invite(mesh.site_of(2)).unwrap();
    // One with a slip of the hand, which is refused.
    members[1].run().unwrap();
    assert!(members[1].weir(&["join", &token[..token.len() - 1]]).is_err());
    members[1].stop().unwrap();
    join(&mut members[1], &token).unwrap();
    members.iter().try_for_each(|member| member.wait_for_peers(1)).unwrap();
    let invited = members[0].weir(&["invite", "--name", "spare"]).unwrap();
    let spare = invited["token"].as_str().unwrap().to_owned();

    // Who they are before the renewal is read while they rest.
    members.iter_mut().try_for_each(Member::stop).unwrap();
    let mut secrets: Vec<Secret> = members.iter().flat_map(kept).collect();
    members.iter_mut().try_for_each(Member::run).unwrap();
    for member in &members {
        member.wait_for_plane().unwrap();
        member.wait_for_peers(1).unwrap();
    }
    answered(&mesh.site_of(1).host, mesh.site_of(2).host.lan.address(Family::V4), 5);
    members[0].weir(&["rekey", "site-2"]).unwrap();
    for member in &members {
        member.weir(&["cert", "renew"]).unwrap();
    }
    let passphrase = members[0].passphrase_file().unwrap();
    let backup = members[0].directory().join("backup").display().to_string();
    members[0].weir(&["ca", "backup", &backup, "--passphrase-file", &passphrase]).unwrap();
    assert!(members[1].weir(&["ca", "backup", &backup, "--passphrase-file", &passphrase]).is_err());
    // A member takes no token.
    assert!(members[1].weir(&["join", &spare]).is_err());
    let mut said: Vec<_> = members.iter().flat_map(said).collect();
    members.iter_mut().try_for_each(Member::stop).unwrap();
    said.extend(members.iter().map(|member| (format!("the log of g{}", member.site().number), member.log().into())));
    secrets.extend(members.iter().flat_map(kept));
    let seeds = secrets.iter().map(|secret| &secret.bytes).collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(seeds, 2 + 4 + 1 + 1, "two identities, two leaves each, an issuer's key, one admission seed");

    for name in ["root-a", "root-b"] {
        let key = root_key(&members[0].directory().join(format!("roots/{name}.pem")));
        secrets.push(Secret::new(name, key.seed().as_slice()));
    }
    secrets.push(Secret::new("the passphrase", PASSPHRASE.as_bytes()));
    for text in [&token, &spare] {
        let token: Token = text.parse().unwrap();
        secrets.push(Secret::new("a token", text.as_bytes()));
        secrets.push(Secret::new("a token's secret", token.secret.as_slice()));
        secrets.push(Secret::new("a token's key of the day", token.admission.expect("it has one").key.as_slice()));
    }
    // What is looked through is no shallow log, and what is looked for is found where it is kept.
    for log in said.iter().filter(|(place, _)| place.starts_with("the log")) {
        assert!(contains(&log.1, b"TRACE") && log.1.len() > 10_000, "{}: {} bytes", log.0, log.1.len());
    }
    let store = fs::read(members[1].directory().join("state/state.redb")).unwrap();
    assert!(kept(&members[1]).iter().all(|secret| secret.forms().iter().any(|form| contains(&store, form))));
    for secret in &secrets {
        for form in secret.forms() {
            let found: Vec<_> =
                said.iter().filter(|(_, bytes)| contains(bytes, &form)).map(|(place, _)| place).collect();
            assert!(found.is_empty(), "{} stands in {found:?} as {:?}", secret.what, String::from_utf8_lossy(&form));
        }
    }
}
