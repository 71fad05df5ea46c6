use super::*;
use crate::api::types::{CandidateState, Counter, Network, PeerState, Plane, PolicyRule, RevocationVersion, Versions};

const NOW: UnixSecs = UnixSecs(1_796_000_000);

fn at(secs_from_now: i64) -> Moment {
    Moment(UnixSecs((NOW.0 as i64 + secs_from_now) as u64))
}

fn who() -> Identity {
    Identity {
        name: "berlin".into(),
        node: "abcdefghijkl".into(),
        addresses: vec!["fd00::1".into()],
        prefixes: vec!["10.1.0.0/16".into(), "fd00:1::/48".into()],
        groups: Vec::new(),
        roles: vec!["issuer".into()],
    }
}

fn whole_status() -> Status {
    Status {
        version: "0.1.0".into(),
        started_at: at(-3600),
        identity: Some(who()),
        network: Some(Network {
            name: "mynet".into(),
            network: "zyxwvutsrq".into(),
            prefix: "fd12::/48".into(),
            members: 3,
            issuers: 1,
        }),
        certificate: Some(Certificate {
            name: "berlin".into(),
            node: "abcdefghijkl".into(),
            issuer: "00ff".into(),
            not_before: at(-7200),
            not_after: at(80_000),
            renew_at: at(40_000),
            in_grace: false,
            prefixes: vec!["10.1.0.0/16".into()],
            groups: Vec::new(),
            roles: Vec::new(),
            chain: vec!["PEM\n".into()],
        }),
        versions: Versions {
            bundle: 2,
            policy: 7,
            revocations: vec![RevocationVersion {
                signer: "00ff".into(),
                version: 3,
                entries: 5,
                fresh_until: at(600),
            }],
        },
        plane: Plane {
            running: true,
            incarnation: "0123".into(),
            port: 4646,
            lane_ports: vec![4647, 4648],
            workers: 2,
            sessions: 2,
            routes: 4,
        },
        peers_connected: 2,
        counters: vec![Counter { name: "chain_accepted".into(), count: 4 }],
        warnings: vec![Warning {
            severity: Severity::Warning,
            what: "only one issuer".into(),
            remedy: "make a second one: weir ca add-issuer".into(),
        }],
    }
}

#[test]
fn a_status_shows_all_of_it_and_what_to_do() {
    let expected = "\
name         berlin
node         abcdefghijkl
addresses    fd00::1
prefixes     10.1.0.0/16, fd00:1::/48
groups       -
roles        issuer
network      mynet (zyxwvuts), fd12::/48
members      3, 1 of them issuers, 2 connected
certificate  ends in 22 h 13 min, renewed in 11 h 6 min
versions     bundle 2, policy 7, 5 revoked in 1 lists
packet plane port 4646 and 4647, 4648, 2 workers, 2 sessions, 4 routes, incarnation 0123
running      weir 0.1.0 since 2026-11-29T23:53:20Z
warning: only one issuer
    make a second one: weir ca add-issuer
";
    assert_eq!(status(&whole_status(), NOW), expected);
}

#[test]
fn a_node_without_a_network_says_how_to_get_one() {
    let mut bare = whole_status();
    (bare.identity, bare.network, bare.certificate) = (None, None, None);
    bare.plane.running = false;
    let text = status(&bare, NOW);
    assert!(text.starts_with("node         no member of any network: run `weir join TOKEN`"), "{text}");
    assert!(text.contains("packet plane does not answer\n"), "{text}");
}

#[test]
fn a_check_is_one_line_about_the_worst() {
    let mut of = whole_status();
    let warning = "WARNING: only one issuer: make a second one: weir ca add-issuer\n";
    assert_eq!(check(&of), (warning.into(), 1));
    of.warnings.push(Warning { severity: Severity::Critical, what: "a\nb".into(), remedy: "c".into() });
    assert_eq!(check(&of), ("CRITICAL: a\u{fffd}b: c (1 more)\n".into(), 2));
    of.warnings.clear();
    assert_eq!(check(&of), ("OK: 2 of 3 peers connected\n".into(), 0));
}

#[test]
fn peers_are_a_table_with_dashes_for_what_is_not_known() {
    let known = Peer {
        name: "paris".into(),
        node: "mnopqrstuvw".into(),
        state: PeerState::Connected,
        endpoint: Some("192.0.2.1:4646".into()),
        port: Some(4646),
        lanes_by_port: Some(2),
        path: "direct".into(),
        rtt_ms: Some(12.34),
        loss: Some(0.015),
        tx_bytes_per_s: 1_250_000.0,
        rx_bytes_per_s: 999.4,
        key_age_s: Some(61),
        key_generation: Some(3),
        group: Some("X25519MLKEM768".into()),
        algorithm: Some("AES-256-GCM".into()),
    };
    let unknown = Peer {
        name: "rome".into(),
        state: PeerState::Unreachable,
        endpoint: None,
        port: None,
        lanes_by_port: None,
        rtt_ms: None,
        loss: None,
        key_age_s: None,
        key_generation: None,
        group: None,
        algorithm: None,
        ..known.clone()
    };
    let expected = "\
NAME   NODE      STATE        PATH    ENDPOINT           PORT      RTT   LOSS      SENT  RECEIVED    KEY AGE  GEN  GROUP           AEAD
paris  mnopqrst  connected    direct  192.0.2.1:4646  4646 +2  12.3 ms  1.5 %  1.2 MB/s   999 B/s  1 min 1 s    3  X25519MLKEM768  AES-256-GCM
rome   mnopqrst  unreachable  direct  -                     -        -      -  1.2 MB/s   999 B/s          -    -  -               -
";
    assert_eq!(peers(&[known, unknown]), expected);
    assert_eq!(peers(&[]), "No peers so far.\n");
}

#[test]
fn invitations_say_what_became_of_them() {
    let invite = |uses: u32, used: usize, end: i64, withdrawn: bool, refused: u32| Invite {
        invite: "00112233".into(),
        name: "edge-*".into(),
        prefixes: Vec::new(),
        groups: vec!["edge".into()],
        not_after: at(end),
        uses,
        used_by: vec!["n".into(); used],
        refused,
        withdrawn,
    };
    let text = invites(
        &[
            invite(2, 1, 60, false, 0),
            invite(2, 2, 60, false, 0),
            invite(2, 1, -60, false, 0),
            invite(2, 1, 60, true, 0),
            invite(1, 1, 60, false, 4),
        ],
        NOW,
    );
    let remarks = ["open", "used up", "too late", "withdrawn", "refused 4 times: somebody else has the token"];
    for (line, remark) in text.lines().skip(1).zip(remarks) {
        assert!(line.ends_with(remark), "{line}");
    }
    assert!(text.contains("1 of 2") && text.contains("in 1 min") && text.contains("1 min ago"), "{text}");
}

#[test]
fn a_token_stands_alone_on_its_line() {
    let made = Invited { invite: "0011".into(), token: "weir1-abc".into(), not_after: at(3600) };
    let (token, note) = invited(&made, NOW);
    assert_eq!(token, "weir1-abc\n");
    assert!(note.contains("ends in 1 h") && note.contains("weir join -") && !note.contains("weir1-"), "{note}");
}

#[test]
fn a_policy_shows_its_rules_and_what_becomes_of_the_rest() {
    let rule = PolicyRule {
        number: 1,
        action: "allow".into(),
        from: "group edge".into(),
        to: "10.1.0.0/16".into(),
        protocol: "tcp".into(),
        ports: "443".into(),
        hits: 12_345,
    };
    let mut of = Policy {
        version: 7,
        signer: Some("00ff00ff00ff".into()),
        signed_at: Some(at(0)),
        otherwise: "deny".into(),
        rules: vec![rule],
        text: String::new(),
    };
    let expected = "\
Version 7, signed by 00ff00ff at 2026-11-30T00:53:20Z.
RULE  ACTION  FROM        TO           PROTOCOL  PORTS   HITS
   1  allow   group edge  10.1.0.0/16  tcp       443    12345
What no rule is about: deny.
";
    assert_eq!(policy(&of), expected);
    (of.signer, of.signed_at) = (None, None);
    of.rules.clear();
    assert_eq!(policy(&of), "There is no policy.\nIt has no rules.\nWhat no rule is about: deny.\n");
    let explained = Explanation { allowed: false, rule: None, reasons: vec!["a is in no group".into()] };
    let of = |kind| explanation(kind, &explained);
    assert_eq!(of(RuleKind::Packet), "It is dropped: no rule is about it.\n    a is in no group\n");
    assert_eq!(of(RuleKind::Message), "It is dropped: no message rule is about it.\n    a is in no group\n");
}

#[test]
fn a_ping_sums_up() {
    let of = |rtts_ms: Vec<f64>| Ping { name: "p".into(), node: "n".into(), path: "direct".into(), sent: 3, rtts_ms };
    let text = ping(&of(vec![1.0, 2.0]));
    assert!(text.ends_with("2 of 3 came back; 1.00 / 1.50 / 2.00 ms shortest, mean, longest\n"), "{text}");
    assert!(ping(&of(Vec::new())).ends_with("0 of 3 came back\n"));
}

#[test]
fn spans_and_rates_have_the_units_that_people_use() {
    for (secs, text) in [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3_599, "59 min 59 s"),
        (3_600, "1 h"),
        (3_659, "1 h"),
        (90_000, "1 d 1 h"),
    ] {
        assert_eq!(span(secs), text);
    }
    for (bytes, text) in
        [(0.0, "0 B/s"), (999.0, "999 B/s"), (999.96, "1.0 kB/s"), (1e6, "1.0 MB/s"), (2.5e12, "2500.0 GB/s")]
    {
        assert_eq!(rate(bytes), text);
    }
}

#[test]
fn candidates_are_shown_with_who_named_them_and_what_came_of_it() {
    let candidate = |address: &str, state, trouble: Option<&str>| Candidate {
        address: address.into(),
        sources: vec!["bootstrap".into(), "mdns".into()],
        seen_at: at(-90),
        state,
        name: (state == CandidateState::Member).then(|| "paris".into()),
        node: (state == CandidateState::Member).then(|| "bcdefghijklm".into()),
        failures: trouble.map_or(0, |_| 3),
        trouble: trouble.map(str::to_owned),
    };
    let all = [
        candidate("192.0.2.1:4646", CandidateState::Member, None),
        candidate("[2001:db8::1]:4646", CandidateState::Failed, Some("no answer in time")),
    ];
    assert_eq!(
        candidates(&all, NOW),
        "ADDRESS             SOURCE                     SEEN  STATE                               NAME   NODE\n\
         192.0.2.1:4646      bootstrap, mdns  1 min 30 s ago  member                              paris  bcdefghi\n\
         [2001:db8::1]:4646  bootstrap, mdns  1 min 30 s ago  failed, 3 times: no answer in time  -      -\n"
    );
    assert!(candidates(&[], NOW).contains("[discovery]"));
}
