//! Answers as people read them.

mod discovery;

use std::fmt::Write as _;

use super::table::{Side, Table, printable};
use crate::api::types::{
    AuditEntry, Candidate, Certificate, Explanation, Identity, Invite, Invited, Joined, LogVerified, Member, Moment,
    Peer, Ping, Policy, PolicyVersion, Revoked, Severity, Status, Warning,
};
use crate::policy::RuleKind;
use crate::time::UnixSecs;

pub(super) use discovery::{dht_record, dht_status, found};

use Side::{Left, Right};

/// Characters of an id that tell members apart.
const SHORT_LEN: usize = 8;

fn short(id: &str) -> String {
    id.chars().take(SHORT_LEN).collect()
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "-".into() } else { items.join(", ") }
}

/// What may not be there.
fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

/// In the two largest units that it has.
pub(super) fn span(secs: u64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let Some(first) = units.iter().position(|(_, unit)| secs >= *unit) else { return "0 s".into() };
    let (name, unit) = units[first];
    let mut text = format!("{} {name}", secs / unit);
    if let Some((name, next)) = units.get(first + 1)
        && secs % unit / next > 0
    {
        let _ = write!(text, " {} {name}", secs % unit / next);
    }
    text
}

/// How long until then, or since.
pub(super) fn distance(moment: Moment, now: UnixSecs) -> String {
    if moment.0 >= now {
        format!("in {}", span(moment.0.since(now).as_secs()))
    } else {
        format!("{} ago", span(now.since(moment.0).as_secs()))
    }
}

/// Bytes per second in units of a thousand.
pub(super) fn rate(bytes_per_s: f64) -> String {
    let units = ["B/s", "kB/s", "MB/s", "GB/s"];
    let (mut value, mut unit) = (bytes_per_s, 0);
    // What is printed as 1000 is one of the next unit.
    while value >= 999.95 && unit + 1 < units.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{name:<13}{}", printable(value));
}

fn identity(text: &mut String, identity: &Identity) {
    line(text, "name", &identity.name);
    line(text, "node", &identity.node);
    line(text, "addresses", &list(&identity.addresses));
    line(text, "prefixes", &list(&identity.prefixes));
    line(text, "groups", &list(&identity.groups));
    line(text, "roles", &list(&identity.roles));
}

/// Warnings with what to do about them.
fn warnings(text: &mut String, warnings: &[Warning]) {
    for warning in warnings {
        let what = printable(&warning.what);
        let _ = writeln!(text, "{}: {what}\n    {}", warning.severity, printable(&warning.remedy));
    }
}

pub(super) fn status(status: &Status, now: UnixSecs) -> String {
    let mut text = String::new();
    match &status.identity {
        Some(who) => identity(&mut text, who),
        None => line(&mut text, "node", "no member of any network: run `weir join TOKEN`, or `weir init NETWORK`"),
    }
    if let Some(network) = &status.network {
        line(&mut text, "network", &format!("{} ({}), {}", network.name, short(&network.network), network.prefix));
        let counts =
            format!("{}, {} of them issuers, {} connected", network.members, network.issuers, status.peers_connected);
        line(&mut text, "members", &counts);
    }
    if let Some(certificate) = &status.certificate {
        let grace = if certificate.in_grace { ", in grace" } else { "" };
        let end = distance(certificate.not_after, now);
        let renewal = distance(certificate.renew_at, now);
        line(&mut text, "certificate", &format!("ends {end}{grace}, renewed {renewal}"));
    }
    let versions = &status.versions;
    let entries: u64 = versions.revocations.iter().map(|list| list.entries).sum();
    let lists = versions.revocations.len();
    let revocations =
        format!("bundle {}, policy {}, {entries} revoked in {lists} lists", versions.bundle, versions.policy);
    line(&mut text, "versions", &revocations);
    let plane = &status.plane;
    if plane.running {
        let ports: Vec<_> = plane.lane_ports.iter().map(u16::to_string).collect();
        let lanes = if ports.is_empty() { String::new() } else { format!(" and {}", ports.join(", ")) };
        let counts = format!("{} workers, {} sessions, {} routes", plane.workers, plane.sessions, plane.routes);
        line(
            &mut text,
            "packet plane",
            &format!("port {}{lanes}, {counts}, incarnation {}", plane.port, plane.incarnation),
        );
    } else {
        line(&mut text, "packet plane", "does not answer");
    }
    line(&mut text, "running", &format!("weir {} since {}", status.version, status.started_at));
    warnings(&mut text, &status.warnings);
    text
}

/// One line for monitoring, and the exit status that goes with it.
pub(super) fn check(status: &Status) -> (String, u8) {
    let worst = status.warnings.iter().max_by_key(|warning| warning.severity);
    let (word, code) = match worst.map(|warning| warning.severity) {
        None => ("OK", 0),
        Some(Severity::Warning) => ("WARNING", 1),
        Some(Severity::Critical) => ("CRITICAL", 2),
    };
    let about = match (worst, &status.network) {
        (Some(warning), _) => {
            let others = status.warnings.len() - 1;
            let more = if others == 0 { String::new() } else { format!(" ({others} more)") };
            format!("{}: {}{more}", printable(&warning.what), printable(&warning.remedy))
        }
        (None, Some(network)) => format!("{} of {} peers connected", status.peers_connected, network.members),
        (None, None) => "no member of any network".into(),
    };
    (format!("{word}: {about}\n"), code)
}

pub(super) fn candidates(candidates: &[Candidate], now: UnixSecs) -> String {
    let mut table = Table::new([
        ("ADDRESS", Left),
        ("SOURCE", Left),
        ("SEEN", Right),
        ("STATE", Left),
        ("NAME", Left),
        ("NODE", Left),
    ]);
    for candidate in candidates {
        let state = match (&candidate.trouble, candidate.failures) {
            (Some(why), 2..) => format!("{}, {} times: {why}", candidate.state, candidate.failures),
            (Some(why), _) => format!("{}: {why}", candidate.state),
            (None, _) => candidate.state.to_string(),
        };
        table.row([
            candidate.address.clone(),
            candidate.sources.join(", "),
            distance(candidate.seen_at, now),
            state,
            or_dash(candidate.name.as_ref()),
            or_dash(candidate.node.as_deref().map(short)),
        ]);
    }
    table.text("Nobody was said to be anywhere: see [discovery] in the configuration.")
}

pub(super) fn peers(peers: &[Peer]) -> String {
    let mut table = Table::new([
        ("NAME", Left),
        ("NODE", Left),
        ("STATE", Left),
        ("PATH", Left),
        ("ENDPOINT", Left),
        ("PORT", Right),
        ("RTT", Right),
        ("LOSS", Right),
        ("SENT", Right),
        ("RECEIVED", Right),
        ("KEY AGE", Right),
        ("GEN", Right),
        ("GROUP", Left),
        ("AEAD", Left),
    ]);
    for peer in peers {
        table.row([
            peer.name.clone(),
            short(&peer.node),
            peer.state.to_string(),
            peer.path.clone(),
            or_dash(peer.endpoint.as_ref()),
            or_dash(peer.port.map(|port| match peer.lanes_by_port {
                None | Some(0) => port.to_string(),
                Some(lanes) => format!("{port} +{lanes}"),
            })),
            or_dash(peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            or_dash(peer.loss.map(|loss| format!("{:.1} %", loss * 100.0))),
            rate(peer.tx_bytes_per_s),
            rate(peer.rx_bytes_per_s),
            or_dash(peer.key_age_s.map(span)),
            or_dash(peer.key_generation),
            or_dash(peer.group.as_ref()),
            or_dash(peer.algorithm.as_ref()),
        ]);
    }
    table.text("No peers so far.")
}

pub(super) fn members(members: &[Member], now: UnixSecs) -> String {
    let mut table = Table::new([
        ("NAME", Left),
        ("NODE", Left),
        ("STATE", Left),
        ("ADDRESS", Left),
        ("PREFIXES", Left),
        ("GROUPS", Left),
        ("ROLES", Left),
        ("CERTIFICATE ENDS", Left),
    ]);
    for member in members {
        table.row([
            member.name.clone(),
            short(&member.node),
            member.state.to_string(),
            member.address.clone(),
            list(&member.prefixes),
            list(&member.groups),
            list(&member.roles),
            distance(member.not_after, now),
        ]);
    }
    table.text("No members are known.")
}

pub(super) fn invites(invites: &[Invite], now: UnixSecs) -> String {
    let mut table = Table::new([
        ("INVITE", Left),
        ("NAME", Left),
        ("PREFIXES", Left),
        ("GROUPS", Left),
        ("USED", Right),
        ("ENDS", Left),
        ("REMARK", Left),
    ]);
    for invite in invites {
        let used = invite.used_by.len();
        let remark = match (invite.withdrawn, invite.refused) {
            (true, _) => "withdrawn".into(),
            (false, 0) if used as u64 >= u64::from(invite.uses) => "used up".into(),
            (false, 0) if invite.not_after.0 < now => "too late".into(),
            (false, 0) => "open".into(),
            (false, refused) => format!("refused {refused} times: somebody else has the token"),
        };
        table.row([
            invite.invite.clone(),
            invite.name.clone(),
            list(&invite.prefixes),
            list(&invite.groups),
            format!("{used} of {}", invite.uses),
            distance(invite.not_after, now),
            remark,
        ]);
    }
    table.text("No invitations were given out.")
}

/// The token alone on the first line, so that it can be piped; the rest is for the standard error.
pub(super) fn invited(invited: &Invited, now: UnixSecs) -> (String, String) {
    let end = distance(invited.not_after, now);
    let note = format!(
        "Invitation {}, ends {end}. Whoever has the token can join: hand it over in secret, and run on the other host:\n\
         \x20   weir join -\n",
        invited.invite
    );
    (format!("{}\n", *invited.token.0), note)
}

pub(super) fn joined(joined: &Joined) -> String {
    let mut text = format!("Joined {} ({}).\n", printable(&joined.network.name), short(&joined.network.network));
    identity(&mut text, &joined.identity);
    text
}

pub(super) fn certificate(certificate: &Certificate, now: UnixSecs) -> String {
    let mut text = String::new();
    line(&mut text, "name", &certificate.name);
    line(&mut text, "node", &certificate.node);
    line(&mut text, "issuer", &certificate.issuer);
    line(&mut text, "begins", &format!("{} ({})", certificate.not_before, distance(certificate.not_before, now)));
    line(&mut text, "ends", &format!("{} ({})", certificate.not_after, distance(certificate.not_after, now)));
    line(&mut text, "renewed", &distance(certificate.renew_at, now));
    if certificate.in_grace {
        line(&mut text, "grace", "ended, and accepted for a while yet: no issuer was reached so far");
    }
    line(&mut text, "prefixes", &list(&certificate.prefixes));
    line(&mut text, "groups", &list(&certificate.groups));
    line(&mut text, "roles", &list(&certificate.roles));
    certificate.chain.iter().for_each(|pem| text.push_str(pem));
    text
}

pub(super) fn revoked(revoked: &Revoked) -> String {
    let name = printable(&revoked.name);
    format!("{name} ({}) is cut off, by version {} of the list.\n", short(&revoked.node), revoked.list_version)
}

pub(super) fn policy(policy: &Policy) -> String {
    let mut text = match (&policy.signer, policy.signed_at) {
        (Some(signer), Some(at)) => format!("Version {}, signed by {} at {at}.\n", policy.version, short(signer)),
        _ => "There is no policy.\n".into(),
    };
    let mut table = Table::new([
        ("RULE", Right),
        ("ACTION", Left),
        ("FROM", Left),
        ("TO", Left),
        ("PROTOCOL", Left),
        ("PORTS", Left),
        ("HITS", Right),
    ]);
    for rule in &policy.rules {
        table.row([
            rule.number.to_string(),
            rule.action.clone(),
            rule.from.clone(),
            rule.to.clone(),
            rule.protocol.clone(),
            rule.ports.clone(),
            rule.hits.to_string(),
        ]);
    }
    text.push_str(&table.text("It has no rules."));
    let _ = writeln!(text, "What no rule is about: {}.", printable(&policy.otherwise));
    text
}

pub(super) fn policy_history(versions: &[PolicyVersion]) -> String {
    let mut table = Table::new([("VERSION", Right), ("SIGNED", Left), ("BY", Left), ("RULES", Right), ("", Left)]);
    for version in versions {
        table.row([
            version.version.to_string(),
            version.signed_at.to_string(),
            short(&version.signer),
            version.rules.to_string(),
            if version.in_force { "in force".into() } else { String::new() },
        ]);
    }
    table.text("There is no policy.")
}

pub(super) fn explanation(kind: RuleKind, explanation: &Explanation) -> String {
    let verdict = if explanation.allowed { "It passes" } else { "It is dropped" };
    let by = explanation.rule.map_or(format!("no {kind} is about it"), |rule| format!("{kind} {rule} decides"));
    let reasons = explanation.reasons.iter().map(|reason| format!("    {}\n", printable(reason))).collect::<String>();
    format!("{verdict}: {by}.\n{reasons}")
}

pub(super) fn log(entries: &[AuditEntry]) -> String {
    let mut table =
        Table::new([("NUMBER", Right), ("AT", Left), ("BY", Left), ("ACT", Left), ("SUBJECT", Left), ("DETAIL", Left)]);
    for entry in entries {
        table.row([
            entry.number.to_string(),
            entry.at.to_string(),
            entry.actor.clone(),
            entry.act.clone(),
            entry.subject.clone(),
            entry.detail.clone(),
        ]);
    }
    table.text("The log has no such entries.")
}

pub(super) fn log_verified(log: &LogVerified) -> String {
    let which = match log.first {
        0..=1 => format!("All {} entries are", log.verified),
        first => format!("Entries {first} to {} are", log.verified),
    };
    let dropped = match log.first.saturating_sub(1) {
        0 => String::new(),
        last => format!(
            "Those before, 1 to {last}, were dropped to keep the log within its limit, as one of its entries says.\n"
        ),
    };
    format!(
        "{which} the issuer's, and each continues the one before. Note the last one's hash elsewhere:\n{}\n{dropped}",
        printable(&log.hash)
    )
}

pub(super) fn ping(ping: &Ping) -> String {
    let received = ping.rtts_ms.len();
    let mut text = format!("{} ({}), {}\n", printable(&ping.name), short(&ping.node), printable(&ping.path));
    for (number, rtt) in (1..).zip(&ping.rtts_ms) {
        let _ = writeln!(text, "echo {number}: {rtt:.2} ms");
    }
    let _ = write!(text, "{received} of {} came back", ping.sent);
    if received > 0 {
        let sum: f64 = ping.rtts_ms.iter().sum();
        let min = ping.rtts_ms.iter().copied().fold(f64::INFINITY, f64::min);
        let max = ping.rtts_ms.iter().copied().fold(0.0, f64::max);
        let _ = write!(text, "; {min:.2} / {:.2} / {max:.2} ms shortest, mean, longest", sum / received as f64);
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
