//! What was found, and how it stands with finding.

use std::fmt::Write as _;

use super::{distance, list, or_dash, short, span};
use crate::api::types::{DhtStatus, Found};
use crate::cli::remote::now;
use crate::cli::table::{Side, Table, printable};

use Side::{Left, Right};

/// A member that was found; with the way to it, where others were asked.
pub(in crate::cli) fn found(found: &Found, with_trace: bool) -> String {
    let mut text = format!(
        "{} ({})\n  id         {}\n  endpoints  {}\n",
        printable(&found.name),
        printable(&found.address),
        printable(&found.node),
        printable(&list(&found.endpoints)),
    );
    if !found.anchors.is_empty() {
        let _ = writeln!(text, "  by way of  {}", printable(&list(&found.anchors)));
    }
    let _ = match found.source.as_str() {
        "dht" => writeln!(text, "  found      by the DHT in {} ms, {} asked", found.took_ms, found.requests),
        other => writeln!(text, "  found      in the {}", printable(other)),
    };
    if with_trace && !found.trace.is_empty() {
        let mut hops = Table::new([
            ("path", Right),
            ("step", Right),
            ("asked", Left),
            ("at", Left),
            ("hops", Right),
            ("bits in common", Right),
            ("answer", Left),
        ]);
        for hop in &found.trace {
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
        text.push('\n');
        text.push_str(&hops.text("nobody was asked"));
    }
    text
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
            record.kind.clone(),
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
    use crate::api::types::{DhtHop, DhtPublication};

    #[test]
    fn a_member_that_was_found_is_shown_with_the_way_and_nothing_in_it_steers_a_terminal() {
        let hop = DhtHop {
            node: "0123456789abcdef".into(),
            address: "192.0.2.7:4646".into(),
            path: 1,
            step: 2,
            depth: 1,
            shared_bits: 9,
            answered: true,
        };
        let member = Found {
            node: "abc".into(),
            name: "a\x1b[2Jb".into(),
            address: "fd00::1".into(),
            endpoints: vec!["192.0.2.1:4646".into()],
            anchors: vec![],
            source: "dht".into(),
            sequence: 7,
            took_ms: 12,
            requests: 1,
            trace: vec![hop],
        };
        let text = found(&member, true);
        assert!(!text.contains('\x1b') && text.contains("by the DHT in 12 ms, 1 asked"), "{text}");
        assert!(text.contains("1     2  01234567  192.0.2.7:4646"), "{text}");
        assert!(!found(&member, false).contains("192.0.2.7"));
        let known = Found { source: "directory".into(), trace: vec![], ..member };
        assert!(found(&known, true).ends_with("found      in the directory\n"));
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
            published: vec![DhtPublication { kind: "node".into(), sequence: 8, stored: 1, asked: 2, at: None }],
            counters: vec![],
        };
        let text = dht_status(&status);
        assert!(text.starts_with("server, nobody has answered yet\n") && text.contains("1 of 2"), "{text}");
        assert!(text.contains("reached    by 2 of 3 members"), "{text}");
        let told = DhtStatus { witnesses_wanted: 0, ..status };
        assert!(!dht_status(&told).contains("reached"));
    }
}
