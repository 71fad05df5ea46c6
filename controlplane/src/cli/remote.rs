//! Commands that ask the node: one call each, and its answer in print.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

use super::arguments::{Arguments, CaCommand, CertCommand, Command, DhtCommand, InvitesCommand, PolicyCommand};
use super::{FAILED, Failure, Outcome, dns, failed, files, messages, passphrase, print, progress, show};
use crate::api::Call;
use crate::api::client;
use crate::api::types::{
    Backup, BackupRequest, BundleApplyRequest, Bundles, Crl, DhtRecordRequest, Done, ExplainRequest, FindRequest,
    Found, InviteRequest, Invited, JoinRequest, LogRequest, LogVerified, LogVerifyRequest, Ping, PingRequest,
    PolicyApplyRequest, PolicyRollbackRequest, RekeyRequest, RevocationList, RevocationListRequest,
    RevocationsApplyRequest, RevokeIssuerRequest, RevokeRequest, Revoked, Secret, Status, WithdrawRequest,
};
use crate::pki::bundle::text;
use crate::policy::RuleKind;
use crate::time::UnixSecs;

/// Longest token that is read from the standard input.
const TOKEN_LEN_MAX: u64 = 4096;
/// Exit status of `status --check` when the node is not there.
const CRITICAL: u8 = 2;

/// The system's clock, to say how far away moments are.
pub(super) fn now() -> UnixSecs {
    UnixSecs(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// An answer as it came.
struct Answer {
    /// Who answered, for errors.
    socket: PathBuf,
    json: Value,
}

impl Answer {
    /// What it says.
    fn read<A: DeserializeOwned>(&self) -> Result<A, Failure> {
        Ok(client::read(&self.socket, &self.json)?)
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

/// Makes a call.
fn ask(arguments: &Arguments, call: &Call) -> Result<Answer, Failure> {
    let socket = arguments.socket().map_err(failed)?;
    let json = runtime()?.block_on(client::call(&socket, call))?;
    Ok(Answer { socket, json })
}

/// Makes a call and reads its answer.
pub(super) fn ask_for<A: DeserializeOwned>(arguments: &Arguments, call: &Call) -> Result<A, Failure> {
    ask(arguments, call)?.read()
}

/// Makes a call and prints the answer: as JSON as it came, or as `text` has it.
pub(super) fn shown<A: DeserializeOwned>(
    arguments: &Arguments,
    call: &Call,
    text: impl FnOnce(&A) -> String,
) -> Outcome {
    printed(arguments, &ask(arguments, call)?, text)
}

fn printed<A: DeserializeOwned>(arguments: &Arguments, answer: &Answer, text: impl FnOnce(&A) -> String) -> Outcome {
    if arguments.json { json(&answer.json) } else { print(&text(&answer.read()?)) }
}

pub(super) fn json(answer: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(answer).map_err(failed)?;
    print(&format!("{text}\n"))
}

pub(super) fn done(arguments: &Arguments, call: &Call) -> Outcome {
    shown(arguments, call, |done: &Done| format!("{}\n", super::table::printable(&done.message)))
}

/// Prints a token by itself, and what to know about it beside.
fn invited(invited: &Invited) -> Outcome {
    let (token, note) = show::invited(invited, now());
    print(&token)?;
    io::stderr().write_all(note.as_bytes()).map_err(failed)
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Command::Status { check: true } => check(arguments),
        Command::Status { check: false } => {
            shown(arguments, &Call::Status, |status: &Status| show::status(status, now()))
        }
        Command::Peers { discovered: true } => {
            shown(arguments, &Call::Candidates, |candidates: &Vec<_>| show::candidates(candidates, now()))
        }
        Command::Peers { discovered: false } => shown(arguments, &Call::Peers, |peers: &Vec<_>| show::peers(peers)),
        Command::Members => shown(arguments, &Call::Members, |members: &Vec<_>| show::members(members, now())),
        Command::Ping { peer, count } => ping(arguments, peer, *count),
        Command::Find { what, dht } => find(arguments, what, *dht, *dht),
        Command::Dht { command: DhtCommand::Status } => shown(arguments, &Call::DhtStatus, show::dht_status),
        Command::Dht { command: DhtCommand::Lookup { what } } => find(arguments, what, true, true),
        Command::Dht { command: DhtCommand::Get { kind, what } } => {
            let request = DhtRecordRequest { kind: kind.clone(), what: what.clone() };
            looked_for(arguments, &Call::DhtRecord(request), what, |record| show::dht_record(record, now()))
        }
        Command::Dht { command: DhtCommand::Put } => done(arguments, &Call::DhtPublish),
        Command::Dns { command } => dns::run(arguments, command),
        Command::Rekey { peer } => done(arguments, &Call::Rekey(RekeyRequest { peer: peer.clone() })),
        Command::Messages => shown(arguments, &Call::Messages, |waiting| messages::waiting(waiting, now())),
        Command::Invite(invite) => {
            let call = Call::Invite(InviteRequest {
                name: invite.name.clone(),
                subnet: invite.subnet.clone(),
                groups: invite.group.clone(),
                roles: invite.role.clone(),
                ttl_secs: Some(invite.ttl.as_secs()),
                uses: Some(invite.uses),
                replace: invite.replace.clone(),
            });
            let answer = ask(arguments, &call)?;
            if arguments.json { json(&answer.json) } else { invited(&answer.read()?) }
        }
        Command::Invites { command: None } => {
            shown(arguments, &Call::Invites, |invites: &Vec<_>| show::invites(invites, now()))
        }
        Command::Invites { command: Some(InvitesCommand::Withdraw { invite }) } => {
            done(arguments, &Call::WithdrawInvite(WithdrawRequest { invite: invite.clone() }))
        }
        Command::Join { token, name, via } => {
            let token = if token == "-" { token_from(io::stdin().lock())? } else { token.as_str().into() };
            let name = match name {
                Some(name) => Some(name.clone()),
                // Whoever names a socket may mean another instance than that of the file.
                None if arguments.socket.is_some() => None,
                None => arguments.configuration().map_err(failed)?.node.name,
            };
            let call = Call::Join(JoinRequest { token, name, via: via.iter().map(ToString::to_string).collect() });
            shown(arguments, &call, show::joined)
        }
        Command::Leave { yes } => {
            if !yes && !agreed("Leave the network, and forget this node's keys and certificates? [y/N] ")? {
                return Err(failed("nothing was done"));
            }
            done(arguments, &Call::Leave)
        }
        Command::Cert { command } => {
            let call = match command {
                CertCommand::Show => Call::CertShow,
                CertCommand::Renew => Call::CertRenew,
            };
            shown(arguments, &call, |certificate| show::certificate(certificate, now()))
        }
        Command::Revoke { member: Some(member), issuer: _, reason, replace } => {
            let request = RevokeRequest { member: member.clone(), reason: reason.clone(), replace: *replace };
            revoke(arguments, &Call::Revoke(request))
        }
        Command::Revoke { member: None, issuer, reason, replace: _ } => {
            // The parser wants one of the two.
            let issuer = issuer.clone().unwrap_or_default();
            done(arguments, &Call::RevokeIssuer(RevokeIssuerRequest { issuer, reason: reason.clone() }))
        }
        Command::Policy { command } => policy(arguments, command),
        Command::Log { verify: true, .. } => verify_log(arguments),
        Command::Log { after, limit, verify: false } => {
            let call = Call::AuditLog(LogRequest { after: *after, limit: *limit });
            shown(arguments, &call, |entries: &Vec<_>| show::log(entries))
        }
        Command::Ca { command } => ca(arguments, command),
        // Whoever calls has taken these.
        Command::Init(_)
        | Command::Config { .. }
        | Command::Run
        | Command::Send(_)
        | Command::Recv(_)
        | Command::Control(_)
        | Command::Issuer(_)
        | Command::Mdns(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Docs { .. } => Ok(()),
    }
}

/// Has the issuer check its log part by part: one call for all of it would keep everybody else waiting.
fn verify_log(arguments: &Arguments) -> Outcome {
    let mut after = 0;
    loop {
        let call = Call::AuditVerify(LogVerifyRequest { after: Some(after) });
        let part: LogVerified = ask_for(arguments, &call)?;
        if part.verified >= part.entries {
            return if arguments.json { json(&part) } else { print(&show::log_verified(&part)) };
        }
        if part.verified <= after {
            let (verified, entries) = (part.verified, part.entries);
            return Err(failed(format!("only {verified} of {entries} entries were checked: ask again")));
        }
        after = part.verified;
    }
}

fn check(arguments: &Arguments) -> Outcome {
    match ask_for::<Status>(arguments, &Call::Status) {
        Ok(status) => {
            let (line, code) = show::check(&status);
            if arguments.json {
                json(&status.warnings)?
            } else {
                print(&line)?
            }
            if code == 0 { Ok(()) } else { Err(Failure::Status(code)) }
        }
        Err(Failure::Client(error)) => {
            print(&format!("CRITICAL: {error}\n"))?;
            Err(Failure::Status(CRITICAL))
        }
        Err(other) => Err(other),
    }
}

fn ping(arguments: &Arguments, peer: &str, count: u16) -> Outcome {
    let answer = ask(arguments, &Call::Ping(PingRequest { peer: peer.to_owned(), count: Some(count) }))?;
    let ping: Ping = answer.read()?;
    if arguments.json {
        json(&answer.json)?
    } else {
        print(&show::ping(&ping))?
    }
    if ping.rtts_ms.is_empty() { Err(Failure::Status(FAILED)) } else { Ok(()) }
}

fn revoke(arguments: &Arguments, call: &Call) -> Outcome {
    let answer = ask(arguments, call)?;
    if arguments.json {
        return json(&answer.json);
    }
    let revoked: Revoked = answer.read()?;
    match &revoked.replacement {
        None => print(&show::revoked(&revoked)),
        Some(replacement) => {
            io::stderr().write_all(show::revoked(&revoked).as_bytes()).map_err(failed)?;
            invited(replacement)
        }
    }
}

fn policy(arguments: &Arguments, command: &PolicyCommand) -> Outcome {
    let call = match command {
        PolicyCommand::Show => Call::PolicyShow,
        PolicyCommand::Apply { file, signed } => {
            let (mut request, bytes) = (PolicyApplyRequest { text: None, signed: None }, files::read(file)?);
            if *signed {
                request.signed = Some(BASE64.encode(&bytes));
            } else {
                request.text =
                    Some(String::from_utf8(bytes).map_err(|error| {
                        files::named(file, format_args!("{error}: save it as UTF-8, or add --signed"))
                    })?);
            }
            Call::PolicyApply(request)
        }
        PolicyCommand::Rollback { version } => Call::PolicyRollback(PolicyRollbackRequest { version: *version }),
        PolicyCommand::History => {
            return shown(arguments, &Call::PolicyHistory, |versions: &Vec<_>| show::policy_history(versions));
        }
        // Whoever calls has taken these.
        PolicyCommand::Check { .. } | PolicyCommand::Diff { .. } | PolicyCommand::Sign(_) => return Ok(()),
        PolicyCommand::Explain { src, dst, proto, port, topic } => {
            let kind = if topic.is_some() { RuleKind::Message } else { RuleKind::Packet };
            let (src, dst, proto, topic) = (src.clone(), dst.clone(), proto.clone(), topic.clone());
            let request = ExplainRequest { src, dst, proto, port: *port, topic };
            return shown(arguments, &Call::PolicyExplain(request), |explained| show::explanation(kind, explained));
        }
    };
    shown(arguments, &call, show::policy)
}

/// With the way, where the DHT is asked.
fn find(arguments: &Arguments, what: &str, dht: bool, with_trace: bool) -> Outcome {
    let call = Call::Find(FindRequest { what: what.to_owned(), dht });
    looked_for(arguments, &call, what, |found: &Found| show::found(found, with_trace))
}

/// Makes a call that looks for something, which may take a while.
fn looked_for<A: DeserializeOwned>(
    arguments: &Arguments,
    call: &Call,
    what: &str,
    text: impl FnOnce(&A) -> String,
) -> Outcome {
    let socket = arguments.socket().map_err(failed)?;
    let answer = runtime()?.block_on(progress::call(&socket, call, what, !arguments.json))?;
    printed(arguments, &Answer { socket, json: answer }, text)
}

/// Those of `weir ca` that ask the node; the others are ceremonies.
pub(super) fn ca(arguments: &Arguments, command: &CaCommand) -> Outcome {
    match command {
        CaCommand::Bundle { file, roots } => {
            let bundles: Bundles = ask_for(arguments, &Call::BundleShow)?;
            if let Some(roots) = roots {
                files::write(roots, bundles.roots.concat().as_bytes())?;
            }
            let versions: Result<Vec<_>, _> = bundles.versions.iter().map(|line| text::read_version(line)).collect();
            let versions = versions.map_err(|error| {
                failed(format!("the node's answer is no trust bundle: {error}: is it weir of the same version?"))
            })?;
            files::write(file, text::write(&versions).as_bytes())?;
            report(arguments, &format!("{}: the trust bundle, version {}", file.display(), versions.len()))
        }
        CaCommand::Publish { file } => {
            let versions = files::bundle(file)?.iter().map(text::version).collect();
            done(arguments, &Call::BundleApply(BundleApplyRequest { versions }))
        }
        CaCommand::RevocationList { signer, file } => {
            let request = RevocationListRequest { signer: signer.clone() };
            let list: RevocationList = ask_for(arguments, &Call::RevocationList(request))?;
            files::write(file, list.list.as_bytes())?;
            let what = format!("{}: the list of {}, {} entries", file.display(), list.signer, list.entries);
            report(arguments, &what)
        }
        CaCommand::PublishRevocations { file } => {
            let list = files::text(file)?;
            done(arguments, &Call::RevocationsApply(RevocationsApplyRequest { list }))
        }
        CaCommand::Backup { file, passphrase_file } => {
            let passphrase = passphrase::new("the backup", passphrase_file.as_deref()).map_err(failed)?;
            let request = BackupRequest { passphrase: Secret(passphrase) };
            let backup: Backup = ask_for(arguments, &Call::Backup(request))?;
            let bytes = BASE64.decode(backup.file.as_bytes()).map_err(failed)?;
            files::write_secret(file, &bytes)?;
            report(arguments, &format!("{}: everything that this issuer keeps, {} bytes", file.display(), bytes.len()))
        }
        CaCommand::Recovered => done(arguments, &Call::Recovered),
        CaCommand::ExportCrl { out } => export_crl(arguments, out.as_deref()),
        CaCommand::IssuerKey
        | CaCommand::AddIssuer { .. }
        | CaCommand::RenewIssuer { .. }
        | CaCommand::RevokeIssuer { .. }
        | CaCommand::RotateRoot { .. }
        | CaCommand::MoveAllocator { .. }
        | CaCommand::WidenPool { .. }
        | CaCommand::OperatorKey { .. }
        | CaCommand::AddOperator { .. }
        | CaCommand::RemoveOperator { .. }
        | CaCommand::RevocationKey { .. }
        | CaCommand::AddRevocationKey { .. }
        | CaCommand::RemoveRevocationKey { .. }
        | CaCommand::SignRevocations(_)
        | CaCommand::DraftGroup { .. }
        | CaCommand::Restore { .. } => Ok(()),
    }
}

/// What was done, for a command that has written a file.
pub(super) fn report(arguments: &Arguments, message: &str) -> Outcome {
    if arguments.json {
        return json(&Done { message: message.to_owned() });
    }
    print(&format!("{message}\n"))
}

fn export_crl(arguments: &Arguments, out: Option<&Path>) -> Outcome {
    let crls: Vec<Crl> = ask_for(arguments, &Call::ExportCrl)?;
    let Some(directory) = out else {
        return if arguments.json {
            json(&crls)
        } else {
            print(&crls.iter().map(|crl| crl.pem.as_str()).collect::<String>())
        };
    };
    for crl in &crls {
        // The node says what the file is called; it is ours, and still no path.
        let id: String = crl.issuer.chars().filter(char::is_ascii_alphanumeric).collect();
        files::write(&directory.join(format!("{id}.crl.pem")), crl.pem.as_bytes())?;
    }
    report(arguments, &format!("{}: {} lists", directory.display(), crls.len()))
}

fn token_from(input: impl io::Read) -> Result<Secret, Failure> {
    // With room for all of it, so that no shorter copy of the secret is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(TOKEN_LEN_MAX as usize + 1));
    input.take(TOKEN_LEN_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > TOKEN_LEN_MAX {
        return Err(failed(format!(
            "more than {TOKEN_LEN_MAX} bytes are no token: give the line that begins with weir1-"
        )));
    }
    let text = std::str::from_utf8(&bytes).map_err(failed)?;
    Ok(text.trim().into())
}

fn agreed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(failed("there is nobody to ask: add --yes"));
    }
    io::stderr().write_all(question.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().take(16).read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_up_to_its_limit() {
        assert_eq!(*token_from(&b" weir1-abc\n"[..]).unwrap().0, "weir1-abc");
        assert!(token_from(io::repeat(b'a').take(TOKEN_LEN_MAX)).is_ok());
        for endless in [io::repeat(b'a').take(TOKEN_LEN_MAX + 1), io::repeat(b'a').take(u64::MAX)] {
            assert!(matches!(token_from(endless), Err(Failure::Message(why)) if why.contains("4096")));
        }
    }
}
