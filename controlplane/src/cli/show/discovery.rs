//! What was found, and how it stands with finding.

use std::fmt::Write as _;

use super::{distance, list, or_dash, short, span};
use crate::api::types::{DhtHop, DhtRecord, DhtStatus, Found};
use crate::cli::remote::now;
use crate::cli::table::{Side, Table, printable};
use crate::time::UnixSecs;

use Side::{Left, Right};

/// Hex digits on a line.
const HEX_WIDTH: usize = 64;

/// A member that was found; with the way to it, where others were asked.
pub(in crate::cli) fn found(found: &Found, with_trace: bool) -> String {
    let mut text = format!(
        "{} ({})\n  id         {}\n  endpoints  {}\n",
        printable(&found.name),
        printable(&found.address),
        printable(&found.node),
        printable(&list(&found.endpoints)),
    );
    if let Some(service) = &found.service {
        let _ = writeln!(text, "  service    {} at port {}", printable(&service.label), service.port);
        for said in &service.texts {
            let _ = writeln!(text, "             {}", printable(said));
        }
    }
    if !found.anchors.is_empty() {
        let _ = writeln!(text, "  by way of  {}", printable(&list(&found.anchors)));
    }
    let _ = match found.source.as_str() {
        "dht" => writeln!(text, "  found      by the DHT in {} ms, {} asked", found.took_ms, found.requests),
        other => writeln!(text, "  found      in the {}", printable(other)),
    };
    if found.dialled {
        text.push_str("  reached    it is tried now; `weir peers --discovered` shows what comes of it\n");
    }
    if with_trace && !found.trace.is_empty() {
        text.push_str(&trace(&found.trace));
    }
    text
}

/// Who was asked, below what came of it.
fn trace(trace: &[DhtHop]) -> String {
    let mut hops = Table::new([
        ("path", Right),
        ("step", Right),
        ("asked", Left),
        ("at", Left),
        ("hops", Right),
        ("bits in common", Right),
        ("answer", Left),
    ]);
    for hop in trace {
        hops.row([
            hop.path.to_string(),
            hop.step.to_string(),
            short(&hop.node),
            hop.address.clone(),
            hop.depth.to_string(),
            hop.shared_bits.to_string(),
            if hop.answered { "yes" } else { "no" }.into(),
        ]);
    }
    format!("\n{}", hops.text("nobody was asked"))
}

/// A record as it lies in the DHT.
pub(in crate::cli) fn dht_record(record: &DhtRecord, now: UnixSecs) -> String {
    let mut text = format!(
        "{} record of {}\n  lies at    {}\n  signed by  {}\n  issuer     {}\n  sequence   {}\n  ends       {}, {}\n  value      {} bytes\n",
        printable(&record.kind),
        printable(&record.name),
        printable(&record.key),
        printable(&record.node),
        printable(&record.issuer),
        record.sequence,
        record.not_after,
        distance(record.not_after, now),
        record.value_len,
    );
    for line in &record.says {
        let _ = writeln!(text, "             {}", printable(line));
    }
    let digits: Vec<char> = record.value.chars().collect();
    for line in digits.chunks(HEX_WIDTH) {
        let _ = writeln!(text, "             {}", printable(&String::from_iter(line)));
    }
    let _ = writeln!(text, "  found      in {} ms, {} asked", record.took_ms, record.requests);
    text + &trace(&record.trace)
}

/// How it stands with the DHT.
pub(in crate::cli) fn dht_status(status: &DhtStatus) -> String {
    let joined = if status.is_joined { "it can be asked" } else { "nobody has answered yet" };
    let reached = match status.witnesses_wanted {
        0 => String::new(),
        wanted => format!("reached    by {} of {wanted} members that it takes to be a server\n", status.witnesses),
    };
    let mut text = format!(
        "{}, {joined}\n{reached}\
         contacts   {} in the table, of about {} servers; {} sessions\n\
         stay       half of them for {} or longer\n\
         kept       {} records, {} bytes\n\n",
        printable(&status.mode),
        status.contacts,
        status.servers,
        status.sessions,
        span(status.half_life_secs),
        status.records,
        status.bytes,
    );
    let mut ours = Table::new([("our record", Left), ("sequence", Right), ("kept by", Right), ("offered", Left)]);
    for record in &status.published {
        ours.row([
            match &record.service {
                Some(label) if record.withdrawn => format!("{label} (no more)"),
                Some(label) => label.clone(),
                None => record.kind.clone(),
            },
            record.sequence.to_string(),
            format!("{} of {}", record.stored, record.asked),
            or_dash(record.at.map(|at| distance(at, now()))),
        ]);
    }
    text.push_str(&ours.text("none of ours"));
    for counter in &status.counters {
        let _ = writeln!(text, "{:<12} {}", printable(&counter.name), counter.count);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{DhtPublication, FoundService, Moment};

    fn hop() -> DhtHop {
        DhtHop {
            node: "0123456789abcdef".into(),
            address: "192.0.2.7:4646".into(),
            path: 1,
            step: 2,
            depth: 1,
            shared_bits: 9,
            answered: true,
        }
    }

    #[test]
    fn a_member_that_was_found_is_shown_with_the_way_and_nothing_in_it_steers_a_terminal() {
        let member = Found {
            node: "abc".into(),
            name: "a\x1b[2Jb".into(),
            address: "fd00::1".into(),
            endpoints: vec!["192.0.2.1:4646".into()],
            anchors: vec![],
            service: None,
            source: "dht".into(),
            dialled: false,
            sequence: 7,
            took_ms: 12,
            requests: 1,
            trace: vec![hop()],
        };
        let text = found(&member, true);
        assert!(!text.contains('\x1b') && text.contains("by the DHT in 12 ms, 1 asked"), "{text}");
        assert!(text.contains("1     2  01234567  192.0.2.7:4646"), "{text}");
        assert!(!found(&member, false).contains("192.0.2.7"));
        let known = Found { source: "directory".into(), trace: vec![], ..member.clone() };
        assert!(found(&known, true).ends_with("found      in the directory\n"));
        let (label, texts) = ("_http._tcp".into(), vec!["path=/\x1b[2J".into()]);
        let service = Some(FoundService { label, port: 80, texts });
        let text = found(&Found { service, dialled: true, ..member }, false);
        assert!(text.contains("  service    _http._tcp at port 80\n             path=/\u{fffd}[2J\n"), "{text}");
        assert!(text.contains("it is tried now"), "{text}");
    }

    #[test]
    fn a_record_is_shown_whole_and_nothing_in_it_steers_a_terminal() {
        let record = DhtRecord {
            kind: "service".into(),
            key: "ab".repeat(32),
            sequence: 7,
            not_after: Moment(UnixSecs(1_790_003_600)),
            node: "abc".into(),
            name: "site-b".into(),
            issuer: "def".into(),
            value_len: 33,
            value: "0".repeat(66),
            says: vec!["_http._tcp at port 80".into(), "text \x1b[2J".into()],
            record: "AA==".into(),
            took_ms: 5,
            requests: 1,
            trace: vec![hop()],
        };
        let expected = format!(
            "service record of site-b\n  lies at    {}\n  signed by  abc\n  issuer     def\n  sequence   7\n  \
             ends       2026-09-21T15:13:20Z, in 1 h\n  value      33 bytes\n             _http._tcp at port 80\n             \
             text \u{fffd}[2J\n             {}\n             00\n  found      in 5 ms, 1 asked\n\n\
             path  step  asked     at              hops  bits in common  answer\n   \
             1     2  01234567  192.0.2.7:4646     1               9  yes\n",
            "ab".repeat(32),
            "0".repeat(64),
        );
        assert_eq!(dht_record(&record, UnixSecs(1_790_000_000)), expected);
    }

    #[test]
    fn the_state_says_who_keeps_what_is_ours() {
        let status = DhtStatus {
            mode: "server".into(),
            witnesses: 2,
            witnesses_wanted: 3,
            is_joined: false,
            contacts: 3,
            sessions: 4,
            servers: 5,
            half_life_secs: 7200,
            records: 6,
            bytes: 700,
            published: vec![
                DhtPublication {
                    kind: "node".into(),
                    service: None,
                    withdrawn: false,
                    sequence: 8,
                    stored: 1,
                    asked: 2,
                    at: None,
                },
                DhtPublication {
                    kind: "service".into(),
                    service: Some("_http._tcp".into()),
                    withdrawn: true,
                    sequence: 9,
                    stored: 0,
                    asked: 0,
                    at: None,
                },
            ],
            counters: vec![],
        };
        let text = dht_status(&status);
        assert!(
            text.starts_with("server, nobody has answered yet\n")
                && text.contains("node                         8   1 of 2"),
            "{text}"
        );
        assert!(text.contains("_http._tcp (no more)         9   0 of 0"), "{text}");
        assert!(text.contains("reached    by 2 of 3 members"), "{text}");
        let told = DhtStatus { witnesses_wanted: 0, ..status };
        assert!(!dht_status(&told).contains("reached"));
    }
}
