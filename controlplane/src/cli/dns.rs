//! `weir dns`: what this member publishes, and what other programs are told to verify it.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::arguments::{Arguments, DnsCommand};
use super::remote::{ask_for, done, json, shown};
use super::table::Side::Left;
use super::table::{Table, printable};
use super::{Outcome, print};
use crate::api::call::Call;
use crate::api::types::{DnsAnchors, DnsRecord, DnsRefusal, DnsSetRequest, DnsStatus, DnsUnsetRequest};

/// Where programs are sent when nobody says otherwise.
const PORT: u16 = 53;

pub(super) fn run(arguments: &Arguments, command: &DnsCommand) -> Outcome {
    match command {
        DnsCommand::Status => shown(arguments, &Call::DnsStatus, status),
        DnsCommand::List => {
            let status: DnsStatus = ask_for(arguments, &Call::DnsStatus)?;
            if arguments.json { json(&status.records) } else { print(&list(&status.records)) }
        }
        DnsCommand::Set { name, rtype, data } => {
            let request = DnsSetRequest { name: name.clone(), rtype: rtype.clone(), data: data.join(" ") };
            done(arguments, &Call::DnsSet(request))
        }
        DnsCommand::Unset { name, rtype, data } => {
            let data = (!data.is_empty()).then(|| data.join(" "));
            done(arguments, &Call::DnsUnset(DnsUnsetRequest { name: name.clone(), rtype: rtype.clone(), data }))
        }
        DnsCommand::Anchor { unbound, bind, delv, systemd, server } => {
            let text = |anchors: &DnsAnchors| match (unbound, bind, delv, systemd) {
                (true, ..) => for_unbound(anchors, *server),
                (_, true, ..) => for_bind(anchors, *server),
                (_, _, true, _) => for_delv(anchors),
                (.., true) => for_systemd(anchors),
                (false, false, false, false) => plain(anchors),
            };
            shown(arguments, &Call::DnsAnchors, text)
        }
        DnsCommand::Log => shown(arguments, &Call::DnsLog, |refusals: &Vec<_>| log(refusals)),
    }
}

fn status(status: &DnsStatus) -> String {
    let or_none = |text: &Option<String>| text.as_deref().map_or("none yet".to_owned(), printable);
    let mut text = format!(
        "zone       {}\nreverse    {}\nown        {}\n",
        or_none(&status.zone),
        or_none(&status.reverse),
        or_none(&status.own)
    );
    if let (Some(serial), Some(until)) = (status.serial, status.until) {
        let _ = writeln!(text, "signed     serial {serial}, until {until}");
    }
    if let Some(problem) = &status.problem {
        let _ = writeln!(text, "problem    {}: only the address is published", printable(problem));
    }
    let _ = writeln!(text, "verified   {} members\n", status.verified);
    text.push_str(&list(&status.records));
    for counter in &status.refused {
        let _ = writeln!(text, "{:<24} {}", printable(&counter.name), counter.count);
    }
    text
}

fn list(records: &[DnsRecord]) -> String {
    let mut table = Table::new([("name", Left), ("type", Left), ("data", Left), ("from", Left)]);
    for record in records {
        table.row([&record.name, &record.rtype, &record.data, &record.source].map(|text| printable(text)));
    }
    table.text("no record is published")
}

fn log(refusals: &[DnsRefusal]) -> String {
    let mut table = Table::new([("when", Left), ("member", Left), ("reason", Left), ("what", Left)]);
    for refusal in refusals {
        let what = [&refusal.member, &refusal.reason, &refusal.detail].map(|text| printable(text));
        let [member, reason, detail] = what;
        table.row([refusal.at.to_string(), member, reason, detail]);
    }
    table.text("everything was believed")
}

/// DNSKEY and DS, as `dig +short` and registries have them.
fn plain(anchors: &DnsAnchors) -> String {
    let lines = anchors.zones.iter().flat_map(|zone| zone.dnskeys.iter().chain(&zone.ds));
    lines.map(|line| printable(line) + "\n").collect()
}

fn at(anchors: &DnsAnchors, server: Option<SocketAddr>) -> (String, u16) {
    match server {
        Some(server) => (server.ip().to_string(), server.port()),
        None => (printable(&anchors.server), PORT),
    }
}

/// unbound has local zones for `internal` and for private addresses, which hide ours unless they are taken away, and asks nobody on this host unless it is
/// told to.
fn for_unbound(anchors: &DnsAnchors, server: Option<SocketAddr>) -> String {
    let (address, port) = at(anchors, server);
    let mut text = "server:\n    do-not-query-localhost: no\n".to_owned();
    for zone in &anchors.zones {
        let name = printable(&zone.zone);
        let _ = writeln!(text, "    local-zone: \"{name}\" nodefault\n    domain-insecure: \"{}\"", parent(&name));
        for ds in &zone.ds {
            let _ = writeln!(text, "    trust-anchor: \"{}\"", printable(ds));
        }
    }
    for name in ["internal.", "d.f.ip6.arpa."] {
        let _ = writeln!(text, "    local-zone: \"{name}\" nodefault");
    }
    for zone in &anchors.zones {
        let _ = writeln!(
            text,
            "stub-zone:\n    name: \"{}\"\n    stub-addr: {address}@{port}\n    stub-no-cache: no",
            printable(&zone.zone)
        );
    }
    text
}

/// The name above a zone.
fn parent(zone: &str) -> &str {
    zone.split_once('.').map_or(".", |(_, rest)| if rest.is_empty() { "." } else { rest })
}

fn for_delv(anchors: &DnsAnchors) -> String {
    let mut text = "trust-anchors {\n".to_owned();
    for line in anchors.zones.iter().flat_map(|zone| &zone.ds) {
        // zone IN DS tag algorithm type digest
        if let [zone, _, _, tag, algorithm, kind, digest] = line.split(' ').collect::<Vec<_>>()[..] {
            let _ = writeln!(text, "    {zone} static-ds {tag} {algorithm} {kind} \"{digest}\";");
        }
    }
    text.push_str("};\n");
    text
}

fn for_bind(anchors: &DnsAnchors, server: Option<SocketAddr>) -> String {
    let (address, port) = at(anchors, server);
    let mut text = for_delv(anchors);
    for zone in &anchors.zones {
        let name = printable(&zone.zone);
        let _ = writeln!(
            text,
            "zone \"{name}\" {{ type static-stub; server-addresses {{ {address}; }}; }};  // answers at port {port}"
        );
    }
    text
}

fn for_systemd(anchors: &DnsAnchors) -> String {
    let mut text = "# /etc/dnssec-trust-anchors.d/weir.positive\n".to_owned();
    for line in anchors.zones.iter().flat_map(|zone| &zone.ds) {
        text.push_str(&printable(line));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::DnsAnchor;

    fn anchors() -> DnsAnchors {
        let zone = |name: &str| DnsAnchor {
            zone: name.into(),
            dnskeys: vec![format!("{name} IN DNSKEY 257 3 15 AAAA")],
            ds: vec![format!("{name} IN DS 7 15 2 abcd")],
        };
        DnsAnchors { server: "fd00::35".into(), zones: vec![zone("net.internal."), zone("0.d.f.ip6.arpa.")] }
    }

    #[test]
    fn each_program_gets_its_own_words() {
        let anchors = anchors();
        assert!(
            plain(&anchors).starts_with("net.internal. IN DNSKEY 257 3 15 AAAA\nnet.internal. IN DS 7 15 2 abcd\n")
        );
        let unbound = for_unbound(&anchors, Some("127.0.0.1:5300".parse().unwrap()));
        assert!(unbound.contains("trust-anchor: \"net.internal. IN DS 7 15 2 abcd\""));
        assert!(
            unbound.contains("stub-addr: 127.0.0.1@5300") && unbound.contains("local-zone: \"internal.\" nodefault")
        );
        let bind = for_bind(&anchors, None);
        assert!(bind.contains("net.internal. static-ds 7 15 2 \"abcd\";") && bind.contains("{ fd00::35; }"));
        assert!(for_systemd(&anchors).contains("\n0.d.f.ip6.arpa. IN DS 7 15 2 abcd\n"));
        assert_eq!((parent("net.internal."), parent("internal.")), ("internal.", "."));
    }

    #[test]
    fn what_is_published_and_refused_is_shown_and_nothing_of_it_controls_the_terminal() {
        let record = DnsRecord {
            name: "b.net.internal.".into(),
            rtype: "TXT".into(),
            data: "\u{1b}[2J".into(),
            source: "set".into(),
        };
        let shown = status(&DnsStatus {
            zone: Some("net.internal.".into()),
            reverse: None,
            own: None,
            serial: None,
            until: None,
            problem: Some("too much".into()),
            records: vec![record],
            verified: 3,
            refused: vec![],
        });
        assert!(
            shown.contains("problem    too much")
                && shown.contains("verified   3 members")
                && !shown.contains('\u{1b}')
        );
        assert!(log(&[]).contains("everything was believed"));
    }
}
