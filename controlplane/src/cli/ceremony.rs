//! Ceremonies: what needs a root's key, and what is done to a state directory while no node runs.
//!
//! A ceremony reads a bundle from a file and writes the next version into it, so that the host with the root's key needs no network. The
//! outcome takes hold when `weir ca publish` hands it to any member.

use std::fs;
use std::path::Path;
use std::time::Instant;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde_json::json;
use weir_dataplane::api::Prefix;

use super::arguments::{Arguments, CaCommand, Init, Root, Verdict};
use super::{Failure, Outcome, failed, files, passphrase, pool, print, remote, revocation};
use crate::ceremony::{self, Ceremony, Founding, FoundingKeys};
use crate::issuer;
use crate::pki::bundle::text;
use crate::pki::id::KeyId;
use crate::pki::key::{PrivateKey, PublicKey};
use crate::random::SystemRandom;
use crate::state_directory::StateDirectory;
use crate::store::MemoryStore;
use crate::time::Now;

fn now() -> Now {
    Now { mono: Instant::now(), wall: remote::now() }
}

pub(super) fn init(arguments: &Arguments, init: &Init) -> Outcome {
    let config = arguments.configuration().map_err(failed)?;
    let name = match init.name.clone().or_else(|| config.node.name.clone()) {
        Some(name) => name,
        None => host_name()?,
    };
    let subnets = prefixes(&init.subnet)?;
    let pool = match &init.pool[..] {
        [] => pool::choose(&subnets, &mut SystemRandom)?,
        named => prefixes(named)?,
    };
    let founding = Founding {
        dns_parent: init.dns_parent.clone(),
        network: init.network.clone(),
        name,
        default_allow: init.default == Verdict::Allow,
        pool,
        subnets,
        groups: init.group.clone(),
    };
    let files = ["root-a.pem", "root-b.pem"].map(|name| init.roots.join(name));
    if let Some(there) = files.iter().find(|file| file.exists()) {
        return Err(failed(format!("{} is there already: a root's key is never overwritten", there.display())));
    }
    let state = StateDirectory::open(&config.node.state_directory).map_err(failed)?;
    if state.has_issuer_key().map_err(failed)? {
        let path = state.issuer_directory();
        return Err(failed(format!("{} holds an issuer's key: use another instance, or move it away", path.display())));
    }
    let mut store = state.node_store().map_err(failed)?;
    let passphrase_a = passphrase::new("root A", init.passphrase_file_a.as_deref()).map_err(failed)?;
    let passphrase_b = passphrase::new("root B", init.passphrase_file_b.as_deref()).map_err(failed)?;

    let keys = FoundingKeys::generate(&mut SystemRandom);
    fs::create_dir_all(&init.roots).map_err(|error| failed(format!("{}: {error}", init.roots.display())))?;
    let roots = [(&keys.root_a, &passphrase_a), (&keys.root_b, &passphrase_b)];
    for ((key, passphrase), file) in roots.into_iter().zip(&files) {
        files::write_secret(file, key.to_encrypted_pem(passphrase).map_err(failed)?.as_bytes())?;
    }
    state.put_issuer_key(&keys.issuer).map_err(failed)?;
    let issuer_store = state.issuer_store().map_err(failed)?;
    let founded = ceremony::found(&founding, &keys, &mut store, issuer_store, now(), &mut SystemRandom);
    let founded = founded.map_err(failed)?;

    let pool: Vec<String> = founding.pool.iter().map(Prefix::to_string).collect();
    if arguments.json {
        return remote::json(&json!({
            "network": founded.network.to_string(),
            "name": founding.name,
            "node": founded.node.to_string(),
            "issuer": keys.issuer.public().id().to_string(),
            "roots": files,
            "pool": pool,
        }));
    }
    let [a, b] = files.each_ref().map(|file| file.display().to_string());
    let verdict = if founding.default_allow { "pass" } else { "do not pass" };
    print(&format!(
        "Network {} is founded: {}\n\
         This node is {}, and its first issuer.\n\
         Packets that no rule of the policy is about {verdict}.\n\
         Its members are given networks out of {}: all of that is led into the overlay from now on, or nowhere.\n\
         \n\
         The roots' keys are in\n\
         \x20   {a}\n\
         \x20   {b}\n\
         Move them to two places off line, with their passphrases elsewhere: with one of them the network can be repaired, and taken\n\
         over. Make a second issuer soon (weir ca issuer-key, weir ca add-issuer): while there is one, nobody renews when it is down.\n\
         \n\
         Next: weir run, then weir invite --name NAME\n",
        founding.network,
        founded.network,
        founding.name,
        pool.join(", "),
    ))
}

fn host_name() -> Result<String, Failure> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").map_err(failed)?;
    let label = name.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    if label.is_empty() || label == "localhost" {
        return Err(failed("this host has no name of its own: name the node with --name"));
    }
    Ok(label)
}

fn prefixes(texts: &[String]) -> Result<Vec<Prefix>, Failure> {
    texts.iter().map(|text| text.parse().map_err(|error| failed(format!("{text:?}: {error}")))).collect()
}

pub(super) fn ca(arguments: &Arguments, command: &CaCommand) -> Outcome {
    match command {
        CaCommand::IssuerKey => issuer_key(arguments),
        CaCommand::AddIssuer { root, key } => {
            let public = public_key(key)?;
            change(arguments, root, |ceremony| {
                let id = ceremony.add_issuer(public, &mut SystemRandom)?;
                Ok(format!("{id} is an issuer"))
            })
        }
        CaCommand::RenewIssuer { root, issuer, ahead } => {
            let issuer = key_id(issuer)?;
            change(arguments, root, |ceremony| {
                let end = ceremony.renew_issuer(issuer, *ahead, &mut SystemRandom)?;
                Ok(format!("{issuer} may sign until {end}"))
            })
        }
        CaCommand::RevokeIssuer { root, issuer, heir } => {
            let issuer = key_id(issuer)?;
            let heir = heir.as_deref().map(key_id).transpose()?;
            change(arguments, root, |ceremony| {
                ceremony.revoke_issuer(issuer, heir)?;
                Ok(match heir {
                    Some(heir) => format!("{issuer} is revoked, and {heir} gives out what it gave out"),
                    None => format!("{issuer} is revoked, and nobody gives out what it gave out"),
                })
            })
        }
        CaCommand::RotateRoot { root, replace, out, new_passphrase_file } => {
            let goes = key_id(replace)?;
            let comes = PrivateKey::generate(&mut SystemRandom);
            let mut ceremony = begin(root)?;
            let id = ceremony.rotate_root(goes, &comes, &mut SystemRandom).map_err(failed)?;
            let passphrase = passphrase::new("the new root", new_passphrase_file.as_deref()).map_err(failed)?;
            // The key first: a bundle that names a root nobody has is worse than a key that no bundle names.
            files::write_secret(out, comes.to_encrypted_pem(&passphrase).map_err(failed)?.as_bytes())?;
            let what = format!("root {id} in place of {goes}, its key in {}", out.display());
            finish(arguments, root, &ceremony, &what)
        }
        CaCommand::MoveAllocator { root, from, to } => {
            let (from, to) = (key_id(from)?, key_id(to)?);
            change(arguments, root, |ceremony| {
                ceremony.move_allocator(from, to)?;
                Ok(format!("{to} gives out what {from} gave out"))
            })
        }
        CaCommand::OperatorKey { out, passphrase_file } => {
            fresh_key(arguments, "the operator", out, passphrase_file.as_deref())
        }
        CaCommand::AddOperator { root, key } => {
            let public = public_key(key)?;
            change(arguments, root, |ceremony| {
                let id = ceremony.add_operator(public)?;
                Ok(format!("{id} signs policy"))
            })
        }
        CaCommand::RemoveOperator { root, operator } => {
            let operator = key_id(operator)?;
            change(arguments, root, |ceremony| {
                ceremony.remove_operator(operator)?;
                Ok(format!("{operator} signs policy no more; the one in force stays until another is signed"))
            })
        }
        CaCommand::RevocationKey { out, passphrase_file } => {
            fresh_key(arguments, "the revocation key", out, passphrase_file.as_deref())
        }
        CaCommand::AddRevocationKey { root, key } => {
            let public = public_key(key)?;
            change(arguments, root, |ceremony| {
                let id = ceremony.add_revocation_key(public)?;
                Ok(format!("{id} revokes"))
            })
        }
        CaCommand::RemoveRevocationKey { root, revoker } => {
            let revoker = key_id(revoker)?;
            change(arguments, root, |ceremony| {
                ceremony.remove_revocation_key(revoker)?;
                Ok(format!("{revoker} revokes no more, and what no other list names is good again"))
            })
        }
        CaCommand::SignRevocations(sign) => revocation::sign(arguments, sign),
        CaCommand::WidenPool { root, pool, issuer } => {
            let (more, issuer) = (prefixes(pool)?, issuer.as_deref().map(key_id).transpose()?);
            change(arguments, root, |ceremony| {
                let issuer = ceremony.widen_pool(&more, issuer, &mut SystemRandom)?;
                Ok(format!(
                    "{issuer} gives out {} as well. Once it is published all of that is led into the overlay or nowhere, on every\n\
                     member, and each starts its packet plane anew: no packet passes it for about a second",
                    pool.join(", ")
                ))
            })
        }
        CaCommand::DraftGroup { root, verdict } => change(arguments, root, |ceremony| {
            let is_allowed = *verdict == Verdict::Allow;
            ceremony.allow_legacy_kyber(is_allowed)?;
            let becomes = if is_allowed { "allowed with members that a configuration names" } else { "forbidden" };
            Ok(format!("the draft group X25519Kyber768Draft00 is {becomes}"))
        }),
        CaCommand::Restore { file, passphrase_file } => restore(arguments, file, passphrase_file.as_deref()),
        CaCommand::Bundle { .. }
        | CaCommand::Publish { .. }
        | CaCommand::RevocationList { .. }
        | CaCommand::PublishRevocations { .. }
        | CaCommand::Backup { .. }
        | CaCommand::Recovered
        | CaCommand::ExportCrl { .. } => remote::ca(arguments, command),
    }
}

fn public_key(text: &str) -> Result<PublicKey, Failure> {
    let key = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok().and_then(|key| key.try_into().ok());
    key.map(PublicKey).ok_or_else(|| {
        let who = "`weir ca issuer-key`, `operator-key` and `revocation-key` print them";
        failed(format!("{text:?} is no key: 64 hexadecimal digits, as {who}"))
    })
}

fn key_id(text: &str) -> Result<KeyId, Failure> {
    text.parse().map_err(|error| failed(format!("{error}: 40 hexadecimal digits")))
}

fn issuer_key(arguments: &Arguments) -> Outcome {
    let config = arguments.configuration().map_err(failed)?;
    let state = StateDirectory::open(&config.node.state_directory).map_err(failed)?;
    shown(arguments, state.issuer_key_or_fresh(&mut SystemRandom).map_err(failed)?.public())
}

/// Makes a key in a file, and prints its public half.
fn fresh_key(arguments: &Arguments, whose: &str, out: &Path, passphrase_file: Option<&Path>) -> Outcome {
    let key = PrivateKey::generate(&mut SystemRandom);
    let passphrase = passphrase::new(whose, passphrase_file).map_err(failed)?;
    files::write_secret(out, key.to_encrypted_pem(&passphrase).map_err(failed)?.as_bytes())?;
    shown(arguments, key.public())
}

/// Prints a key, to be named in a ceremony.
fn shown(arguments: &Arguments, public: PublicKey) -> Outcome {
    let key = HEXLOWER_PERMISSIVE.encode(&public.0);
    if arguments.json {
        return remote::json(&json!({ "key": key, "id": public.id().to_string() }));
    }
    print(&format!("{key}\n"))
}

fn begin(root: &Root) -> Result<Ceremony, Failure> {
    let versions = files::bundle(&root.bundle)?;
    let key = files::private_key(&root.root, "the root", root.passphrase_file.as_deref())?;
    Ceremony::begin(&versions, key, now().wall).map_err(failed)
}

fn change(
    arguments: &Arguments,
    root: &Root,
    change: impl FnOnce(&mut Ceremony) -> Result<String, ceremony::CeremonyError>,
) -> Outcome {
    let mut ceremony = begin(root)?;
    let what = change(&mut ceremony).map_err(failed)?;
    finish(arguments, root, &ceremony, &what)
}

fn finish(arguments: &Arguments, root: &Root, ceremony: &Ceremony, what: &str) -> Outcome {
    files::write(&root.bundle, text::write(ceremony.versions()).as_bytes())?;
    let file = root.bundle.display();
    let message = format!(
        "{what}: version {} of the trust bundle, in {file}.\nIt takes hold when a member has it: weir ca publish {file}",
        ceremony.bundle().version
    );
    remote::report(arguments, &message)
}

fn restore(arguments: &Arguments, file: &Path, passphrase_file: Option<&Path>) -> Outcome {
    let config = arguments.configuration().map_err(failed)?;
    let backup = files::read(file)?;
    let passphrase = passphrase::known("the backup", passphrase_file).map_err(failed)?;
    let state = StateDirectory::open(&config.node.state_directory).map_err(failed)?;
    // Into memory first: whose backup it is shows only when it is open.
    let opened = issuer::restore(&mut MemoryStore::default(), &backup, &passphrase, "restore", now().wall);
    let key = opened.map_err(failed)?.key;
    let there = state.issuer_key().map_err(failed)?;
    if let Some(there) = there.as_ref().filter(|there| there.public() != key.public()) {
        let (found, wanted) = (there.public().id(), key.public().id());
        return Err(failed(format!("the state directory holds the key of issuer {found}, the backup is of {wanted}")));
    }
    if there.is_none() {
        state.put_issuer_key(&key).map_err(failed)?;
    }
    let mut store = state.issuer_store().map_err(failed)?;
    let restored = issuer::restore(&mut store, &backup, &passphrase, "restore", now().wall).map_err(failed)?;
    let id = restored.key.public().id();
    let message = format!(
        "Issuer {id} is back, with {} allocations. It renews; it invites again after it has been told of the members that joined\n\
         since the backup: weir run, wait until weir members shows them all, then weir ca recovered",
        restored.counter
    );
    remote::report(arguments, &message)
}
