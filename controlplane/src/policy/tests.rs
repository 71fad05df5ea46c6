//! Documents, members, and what becomes of them.

use std::net::IpAddr;

use proptest::prelude::*;
use weir_dataplane::api::Prefix;
use weir_dataplane::api::policy::{PolicyRule, PortRange, Protocol};

use super::*;
use crate::pki::id::NetworkId;
use crate::pki::key::{PrivateKey, PublicKey};
use crate::time::UnixSecs;

/// The clock of whoever hears of a policy.
const NOW: UnixSecs = UnixSecs(1_790_000_000);
const NETWORK: NetworkId = NetworkId([7; 32]);

const DOCUMENT: &str = r#"
default = "deny"

[[rule]]
name = "web"
from = ["group:edge", "node:site-b", "prefix:10.7.0.0/16"]
to = ["group:servers"]
proto = "tcp"
ports = [443, "8000-8100"]

[[rule]]
name = "no-backup"
from = ["any"]
to = ["prefix:10.2.9.0/24"]
action = "deny"

[[rule]]
name = "ping"
from = ["any"]
to = ["any"]
proto = "icmp"
"#;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn member(n: u8, name: &str, groups: &[&str]) -> MemberView {
    MemberView {
        node: NodeId([n; 32]),
        name: name.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        prefixes: vec![format!("10.{n}.0.0/16").parse().unwrap()],
        addresses: vec![address(&format!("fd00::{n}"))],
    }
}

fn members() -> Vec<MemberView> {
    vec![member(1, "site-a", &["edge"]), member(2, "dc", &["servers"]), member(3, "site-b", &[])]
}

fn document() -> Document {
    parse(DOCUMENT).unwrap()
}

fn problem(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// A document of one rule with these lines.
fn with(lines: &str) -> String {
    format!("default = \"deny\"\n[[rule]]\nname = \"x\"\nfrom = [\"any\"]\nto = [\"any\"]\n{lines}")
}

#[test]
fn a_document_is_read_as_it_stands() {
    let document = document();
    assert_eq!(document.default, Action::Deny);
    assert_eq!(document.rules.len(), 3);
    let expected = Rule {
        name: "web".to_owned(),
        from: vec![
            Term::Group("edge".to_owned()),
            Term::Node("site-b".to_owned()),
            Term::Prefix("10.7.0.0/16".parse().unwrap()),
        ],
        to: vec![Term::Group("servers".to_owned())],
        protocol: Protocol::Tcp,
        ports: vec![PortRange { first: 443, last: 443 }, PortRange { first: 8000, last: 8100 }],
        action: Action::Allow,
    };
    assert_eq!(document.rules[0], expected);
    let other = &document.rules[1];
    assert_eq!((other.action, other.protocol, other.ports.len()), (Action::Deny, Protocol::Any, 0));
    assert_eq!(parse("default = \"allow\""), Ok(Document::empty(Action::Allow)));
    assert_eq!(parse(&with("proto = 47")).unwrap().rules[0].protocol, Protocol::Number(47));
    assert_eq!(parse(&with("proto = 6\nports = [1]")).unwrap().rules[0].protocol, Protocol::Tcp);
}

#[test]
fn what_is_wrong_is_said_with_its_rule_its_key_and_the_nearest_known_one() {
    for (text, expected) in [
        ("", "`default` is missing: write default = \"deny\""),
        ("defualt = \"deny\"", "unknown key `defualt`: did you mean `default`?"),
        ("default = \"drop\"", "`default`: \"drop\" is none of deny, allow: remove it"),
        ("default = 1", "`default`: is integer: write a string in quotes"),
        ("default = \"deny\"\nrule = 1", "`rule`: write each rule below a [[rule]] of its own"),
        ("default = \"deny\"\nrule = [1]", "`rule`: write each rule below a [[rule]] of its own"),
        (
            "default = \"deny\"\n[[rule]]\nfrom = [\"any\"]",
            "rule 1: `name` is missing: write name = \"…\", by which it is shown and counted",
        ),
        (&with("port = [1]"), "rule 1 (\"x\"): unknown key `port`: did you mean `ports`?"),
        (&with("colour = 1"), "rule 1 (\"x\"): unknown key `colour`: remove it"),
        (
            &with("action = \"alow\""),
            "rule 1 (\"x\"): `action`: \"alow\" is none of allow, deny: did you mean `allow`?",
        ),
        (
            &with("proto = \"tpc\""),
            "rule 1 (\"x\"): `proto`: \"tpc\" is none of any, tcp, udp, icmp: did you mean `tcp`?",
        ),
        (&with("proto = 256"), "rule 1 (\"x\"): `proto`: 256 is none of 0 to 255"),
        (
            &with("ports = [1]"),
            "rule 1 (\"x\"): `ports`: only tcp and udp have ports: write proto = \"tcp\" or proto = \"udp\"",
        ),
        (
            &with("proto = \"tcp\"\nports = [65536]"),
            "rule 1 (\"x\"): `ports`: 65536 is no port: write 0 to 65535, or \"8000-8100\"",
        ),
        (&with("proto = \"tcp\"\nports = [\"9-8\"]"), "rule 1 (\"x\"): `ports`: 9-8 ends before it begins"),
    ] {
        assert_eq!(problem(text), expected, "{text}");
    }
    let from = |term: &str| problem(&with("").replace("from = [\"any\"]", &format!("from = [{term}]")));
    assert!(
        from("\"edge\"")
            .ends_with("\"edge\" says not what it is: write group:NAME, node:NAME, prefix:ADDRESS/LENGTH or any")
    );
    assert!(from("\"grop:edge\"").ends_with("\"grop\" is none of group, node, prefix: did you mean `group`?"));
    assert!(from("\"prefix:10.0.0.1/8\"").contains("has bits set behind its prefix length"));
    assert!(from("\"group:\"").ends_with("\"\" is no name of a group"));
    assert!(from("\"any\", \"any\"").ends_with("`any` stands here twice: remove one"));
    assert!(from("").ends_with("an empty list fits nothing: remove the rule, or write [\"any\"]"));
    let twice = format!("{}\n[[rule]]\nname = \"x\"\nfrom = [\"any\"]\nto = [\"any\"]", with(""));
    assert_eq!(problem(&twice), "rule 2 (\"x\"): `name`: an earlier rule has this name: choose another");
    assert!(problem("default = ").starts_with("not valid TOML: "));
    // What a terminal would obey is not repeated to it.
    let hostile = problem("\"\\u001b[2J\" = 1");
    assert!(!hostile.contains('\u{1b}'), "{hostile:?}");
}

#[test]
fn documents_end_at_their_limits() {
    let rules = |count: usize| {
        let rule = |i| format!("[[rule]]\nname = \"r{i}\"\nfrom = [\"any\"]\nto = [\"any\"]\n");
        format!("default = \"deny\"\n{}", (0..count).map(rule).collect::<String>())
    };
    assert_eq!(parse(&rules(RULES_MAX)).unwrap().rules.len(), RULES_MAX);
    assert_eq!(
        problem(&rules(RULES_MAX + 1)),
        format!("`rule`: {} rules; at most {RULES_MAX} are read", RULES_MAX + 1)
    );
    let terms = |count: usize| {
        let list: Vec<String> = (0..count).map(|i| format!("\"node:n{i}\"")).collect();
        with("").replace("from = [\"any\"]", &format!("from = [{}]", list.join(", ")))
    };
    assert_eq!(parse(&terms(TERMS_MAX)).unwrap().rules[0].from.len(), TERMS_MAX);
    assert!(parse(&terms(TERMS_MAX + 1)).is_err());
    let ports = |count: usize| with(&format!("proto = \"udp\"\nports = [{}]", vec!["7"; count].join(",")));
    assert_eq!(parse(&ports(PORTS_MAX)).unwrap().rules[0].ports.len(), PORTS_MAX);
    assert!(parse(&ports(PORTS_MAX + 1)).is_err() && parse(&ports(0)).is_err());
    let name = |len: usize| with("").replace("\"x\"", &format!("\"{}\"", "n".repeat(len)));
    assert!(parse(&name(NAME_LEN_MAX)).is_ok() && parse(&name(NAME_LEN_MAX + 1)).is_err() && parse(&name(0)).is_err());
    let head = "default = \"deny\"\n#";
    let long = |len: usize| [head, &"#".repeat(len - head.len())].concat();
    assert!(parse(&long(DOCUMENT_LEN_MAX)).is_ok());
    assert_eq!(parse(&long(DOCUMENT_LEN_MAX + 1)).unwrap_err().problem, Problem::TooLong(DOCUMENT_LEN_MAX + 1));
}

#[test]
fn each_member_compiles_what_concerns_it() {
    let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse::<Prefix>().unwrap()).collect::<Vec<_>>();
    let own = |n: u8| prefixes(&[&format!("10.{n}.0.0/16"), &format!("fd00::{n}/128")]);
    let edge = prefixes(&["10.1.0.0/16", "10.3.0.0/16", "10.7.0.0/16", "fd00::1/128", "fd00::3/128"]);
    let web = compile(&document(), &members(), NodeId([2; 32]));
    assert_eq!(web.rules[0].sources, edge);
    assert_eq!(web.rules[0].destinations, own(2));
    assert_eq!((web.rules[0].allow, web.rules[0].ports.len()), (true, 2));
    assert_eq!((web.origins[..2].to_vec(), web.default_allow), (vec![0, 1], false));
    let site = compile(&document(), &members(), NodeId([1; 32]));
    assert_eq!((&site.rules[0].sources, &site.rules[0].destinations), (&own(1), &own(2)));
    assert_eq!(site.rules[1].destinations, prefixes(&["10.2.9.0/24"]));
    // Everybody may ping, so this member may, and may be pinged.
    assert_eq!(site.origins, [0, 1, 2, 2]);
    let stranger = compile(&document(), &members(), NodeId([9; 32]));
    assert_eq!(stranger.rules, []);
    let hits = site.hits(&document(), &[5, 0, 2, 3, 9]);
    let hit = |rule: &str, hits| RuleHits { rule: Some(rule.to_owned()), hits };
    assert_eq!(hits, [hit("web", 5), hit("no-backup", 0), hit("ping", 5), RuleHits { rule: None, hits: 9 }]);
}

#[test]
fn a_rule_over_many_addresses_is_compiled_in_pieces() {
    let max = weir_dataplane::api::POLICY_RULE_PREFIXES_MAX;
    let mut large = member(1, "large", &["edge"]);
    large.prefixes = (0..max).map(|i| format!("10.{}.{}.0/28", i / 256, i % 256).parse().unwrap()).collect();
    large.addresses.clear();
    let everyone = [large, member(200, "dc", &["servers"])];
    let rules = compile(&document(), &everyone, NodeId([200; 32])).rules;
    let lens: Vec<_> = rules.iter().take(2).map(|rule| rule.sources.len()).collect();
    // And one of the document itself.
    assert_eq!(lens, [max, 1]);
    let mut larger = everyone.clone();
    larger[0]
        .prefixes
        .extend((0..300).map(|i| format!("172.16.{}.{}/32", i / 256, i % 256).parse::<Prefix>().unwrap()));
    let rules = compile(&document(), &larger, NodeId([200; 32])).rules;
    assert_eq!((rules[0].sources.len(), rules[1].sources.len()), (max, 301));
}

#[test]
fn an_explanation_names_the_rule_and_the_reasons() {
    let (document, members) = (document(), members());
    let why = |source, destination, protocol, port| {
        explain(&document, &members, address(source), address(destination), protocol, port)
    };
    let web = why("10.3.1.1", "10.2.0.9", Protocol::Tcp, Some(8050));
    assert_eq!(web.action, Action::Allow);
    assert_eq!(web.decided_by, Decider::Rule { number: 1, name: "web".to_owned() });
    assert_eq!(web.why, "rule 1, web, says allow: 10.3.1.1 is in node:site-b, 10.2.0.9 is in group:servers");
    assert_eq!((web.source_members, web.destination_members), (vec!["site-b".to_owned()], vec!["dc".to_owned()]));
    let denied = why("10.3.1.1", "10.2.0.9", Protocol::Tcp, Some(22));
    assert_eq!((denied.action, denied.decided_by), (Action::Deny, Decider::Default));
    assert_eq!(denied.why, "no rule fits, and the default is deny");
    let reasons: Vec<_> = denied.considered.iter().map(|c| format!("{}: {}", c.rule, c.why)).collect();
    assert_eq!(
        reasons,
        [
            "web: it is about ports 443, 8000-8100",
            "no-backup: 10.2.0.9 is in none of prefix:10.2.9.0/24",
            "ping: it is about icmp"
        ]
    );
    let json = serde_json::to_value(why("fd00::1", "fd00::2", Protocol::Icmp, None)).unwrap();
    assert_eq!((json["action"].as_str(), json["decided_by"]["rule"]["name"].as_str()), (Some("allow"), Some("ping")));
    assert_eq!(ask(&members, "site-a", "fd00::9"), Some((address("fd00::1"), address("fd00::9"))));
    assert_eq!(
        ask(&members, "10.9.9.9", &NodeId([2; 32]).to_string()),
        Some((address("10.9.9.9"), address("10.2.0.0")))
    );
    assert_eq!(ask(&members, "site-a", "nobody"), None);
}

#[test]
fn names_that_nobody_has_and_rules_that_never_decide_are_found() {
    assert_eq!(check(&document(), &members()), []);
    let text = format!(
        "{DOCUMENT}\n[[rule]]\nname = \"late\"\nfrom = [\"group:egde\", \"any\"]\nto = [\"prefix:10.2.9.7/32\"]\nproto = \"udp\"\nports = [5]"
    );
    let found: Vec<_> = check(&parse(&text).unwrap(), &members()).into_iter().map(|f| (f.severity, f.what)).collect();
    assert_eq!(
        found,
        [
            (
                Severity::Warning,
                "`from` names group:egde, which is nobody now: `weir members` shows who there is".to_owned()
            ),
            (
                Severity::Warning,
                "it never decides, because no-backup before it fits all that it fits: move it up, or remove it"
                    .to_owned()
            ),
        ]
    );
    let mut crowd: Vec<_> = (0..80u32).map(|i| member(i as u8, &format!("n{i}"), &["edge", "servers"])).collect();
    for (i, member) in (0u32..).zip(&mut crowd) {
        member.prefixes =
            (0..900u32).map(|k| Prefix::host((0x0a00_0000 + (i * 900 + k) * 2).to_be_bytes().into())).collect();
    }
    let findings = check(&document(), &crowd[..1]);
    assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
    let too_many = check(&document(), &crowd);
    assert!(too_many.iter().any(|finding| finding.severity == Severity::Error), "{too_many:?}");
}

#[test]
fn a_difference_is_told_rule_by_rule() {
    let before = document();
    let mut after = before.clone();
    assert_eq!(diff(&before, &after), []);
    after.default = Action::Allow;
    after.rules[0].ports.pop();
    after.rules.swap(1, 2);
    after.rules.push(Rule { name: "new".to_owned(), ..before.rules[2].clone() });
    let lines = |before, after| diff(before, after).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        lines(&before, &after),
        [
            "- default deny\n+ default allow",
            "- web: allow tcp from group:edge, node:site-b, prefix:10.7.0.0/16 to group:servers ports 443, 8000-8100\n\
             + web: allow tcp from group:edge, node:site-b, prefix:10.7.0.0/16 to group:servers ports 443",
            "~ no-backup: is rule 3 now",
            "+ new (rule 4): allow icmp from any to any",
        ]
    );
    assert_eq!(lines(&after, &before)[1], "- new: allow icmp from any to any");
}

fn operator() -> PrivateKey {
    PrivateKey::from_seed(&[1; 32])
}

fn signed(version: u64) -> SignedPolicy {
    SignedPolicy::sign(NETWORK, version, UnixSecs(version.saturating_add(1000)), DOCUMENT, &operator()).unwrap()
}

#[test]
fn only_an_operators_word_for_this_network_is_followed() {
    let operators: &[PublicKey] = &[PrivateKey::from_seed(&[2; 32]).public(), operator().public()];
    let policy = SignedPolicy::from_bytes(&signed(3).to_bytes()).unwrap();
    let version = policy.verify(NETWORK, operators).unwrap();
    assert_eq!((version.version, version.issued_at, version.operator), (3, UnixSecs(1003), operator().public()));
    assert_eq!((version.text.as_str(), version.document), (DOCUMENT, document()));
    assert_eq!(policy.verify(NETWORK, &operators[..1]), Err(PolicyError::Operator(operator().public())));
    assert_eq!(policy.verify(NetworkId([8; 32]), operators), Err(PolicyError::Network(NETWORK)));
    assert!(SignedPolicy::sign(NETWORK, 1, UnixSecs(0), "nonsense", &operator()).is_err());
    let bytes = policy.to_bytes();
    for at in 0..bytes.len() {
        let mut bent = bytes.clone();
        bent[at] ^= 1;
        let read = SignedPolicy::from_bytes(&bent).and_then(|policy| policy.verify(NETWORK, operators));
        assert!(read.is_err(), "byte {at}");
    }
    assert!(matches!(SignedPolicy::from_bytes(&[bytes, vec![0]].concat()), Err(PolicyError::Decode(_))));
}

#[test]
fn versions_only_rise_and_the_oldest_are_forgotten() {
    let operators = &[operator().public()];
    let mut history = History::default();
    assert_eq!((history.current(), history.next_version()), (None, 1));
    // A member without a policy says 0, so nobody would ever ask for this one.
    let zero = history.apply(signed(0), NETWORK, operators, NOW);
    assert_eq!(zero, Err(PolicyError::Version { version: 0, known: 0 }));
    history.apply(signed(1), NETWORK, operators, NOW).unwrap();
    history.apply(signed(5), NETWORK, operators, NOW).unwrap();
    for version in [5, 1, 0] {
        let before = history.clone();
        let refused = history.apply(signed(version), NETWORK, operators, NOW);
        assert_eq!(refused, Err(PolicyError::Version { version, known: 5 }));
        assert_eq!(history, before);
    }
    assert_eq!(history.next_version(), 6);
    assert_eq!((history.text_of(1), history.text_of(2)), (Ok(DOCUMENT), Err(HistoryError::Unknown(2))));
    for version in 6..6 + HISTORY_MAX as u64 - 2 {
        history.apply(signed(version), NETWORK, operators, NOW).unwrap();
    }
    assert_eq!((history.versions().count(), history.text_of(1)), (HISTORY_MAX, Ok(DOCUMENT)));
    history.apply(signed(1000), NETWORK, operators, NOW).unwrap();
    assert_eq!((history.versions().count(), history.text_of(1)), (HISTORY_MAX, Err(HistoryError::Unknown(1))));
    assert_eq!(history.current_signed(), Some(&signed(1000)));
}

/// Two operators at once: each number was taken by whoever came first, so that members followed different policies for good.
#[test]
fn of_two_with_one_number_all_follow_the_same() {
    let operators = &[operator().public()];
    let sign = |text: &str| SignedPolicy::sign(NETWORK, 3, UnixSecs(7), text, &operator()).unwrap();
    let mut two = [sign("default = \"allow\""), sign("default = \"deny\"")];
    two.sort_by_key(SignedPolicy::digest);
    let [lower, higher] = two;
    for (first, second) in [(&lower, &higher), (&higher, &lower)] {
        let mut history = History::default();
        history.apply(signed(2), NETWORK, operators, NOW).unwrap();
        history.apply(first.clone(), NETWORK, operators, NOW).unwrap();
        let taken = history.apply(second.clone(), NETWORK, operators, NOW).is_ok();
        assert_eq!((taken, history.current_signed()), (second == &higher, Some(&higher)));
        assert_eq!((history.versions().count(), history.next_version(), history.digest()), (2, 4, higher.digest()));
    }
    assert_eq!(History::default().digest(), [0; 32]);
}

/// Who had the one with the higher digest kept it, and all others refused it.
#[test]
fn what_an_operator_signed_that_is_one_no_more_makes_room_for_its_rival() {
    let gone = PrivateKey::from_seed(&[2; 32]);
    let sign = |by: &PrivateKey, text: &str| SignedPolicy::sign(NETWORK, 3, UnixSecs(7), text, by).unwrap();
    let old = sign(&gone, "default = \"deny\"");
    let new = ["# a", "# b", "# c", "# d", "# e", "# f"]
        .map(|comment| sign(&operator(), &format!("default = \"allow\" {comment}")))
        .into_iter()
        .find(|new| new.digest() < old.digest())
        .expect("one of six has the lower digest");
    let both: &[PublicKey] = &[operator().public(), gone.public()];
    let mut history = History::default();
    history.apply(old.clone(), NETWORK, both, NOW).unwrap();
    assert!(history.clone().apply(new.clone(), NETWORK, both, NOW).is_err());
    history.apply(new.clone(), NETWORK, &both[..1], NOW).unwrap();
    assert_eq!(history.current_signed(), Some(&new));
    assert_eq!(history.apply(old, NETWORK, &both[..1], NOW), Err(PolicyError::Operator(gone.public())));
    let again = history.apply(new, NETWORK, &both[..1], NOW);
    assert_eq!(again, Err(PolicyError::Version { version: 3, known: 3 }));
}

#[test]
fn no_version_uses_up_the_numbers_behind_it() {
    let operators = &[operator().public()];
    let most = NOW.0 + 30 * 86_400;
    let mut history = History::default();
    for version in [most + 1, u64::MAX] {
        assert_eq!(history.apply(signed(version), NETWORK, operators, NOW), Err(PolicyError::Ahead(version)));
    }
    history.apply(signed(most), NETWORK, operators, NOW).unwrap();
    let later = UnixSecs(NOW.0 + 1);
    assert_eq!(history.apply(signed(history.next_version()), NETWORK, operators, later).unwrap().version, most + 1);
    // Our own copy was judged when it came.
    assert_eq!(History::default().keep(signed(most + 1), NETWORK).unwrap().version, most + 1);
}

/// Rules of the packet plane, one after the other.
fn plain(compiled: &Compiled, source: IpAddr, destination: IpAddr, protocol: Protocol, port: Option<u16>) -> bool {
    let fits = |rule: &&PolicyRule| {
        rule.sources.iter().any(|prefix| prefix.contains(source))
            && rule.destinations.iter().any(|prefix| prefix.contains(destination))
            && (rule.protocol == Protocol::Any || rule.protocol == protocol)
            && (rule.ports.is_empty() || rule.ports.iter().any(|r| port.is_some_and(|p| r.first <= p && p <= r.last)))
    };
    compiled.rules.iter().find(fits).map_or(compiled.default_allow, |rule| rule.allow)
}

fn arbitrary_document() -> impl Strategy<Value = Document> {
    let term = prop_oneof![
        Just(Term::Any),
        prop::sample::select(vec!["edge", "servers", "nobody"]).prop_map(|name| Term::Group(name.to_owned())),
        prop::sample::select(vec!["n1", "n2", "n3", "n9"]).prop_map(|name| Term::Node(name.to_owned())),
        prop::sample::select(vec![
            "10.1.0.0/16",
            "10.0.0.0/8",
            "10.2.3.0/24",
            "10.3.0.7/32",
            "fd00::/16",
            "fd00::2/128",
            "10.9.0.0/16"
        ])
        .prop_map(|text| Term::Prefix(text.parse().unwrap())),
    ];
    let side = prop::collection::vec(term, 1..4);
    let protocol = prop_oneof![
        Just((Protocol::Any, false)),
        Just((Protocol::Tcp, true)),
        Just((Protocol::Udp, true)),
        Just((Protocol::Icmp, false)),
        Just((Protocol::Number(47), false)),
    ];
    let port = (0..5u16, 0..3u16).prop_map(|(first, more)| PortRange { first, last: first + more });
    let rule = (side.clone(), side, protocol, prop::collection::vec(port, 0..3), any::<bool>());
    let rule = rule.prop_map(|(from, to, (protocol, has_ports), ports, allow)| Rule {
        name: String::new(),
        from,
        to,
        protocol,
        ports: if has_ports { ports } else { vec![] },
        action: Action::of(allow),
    });
    (prop::collection::vec(rule, 0..8), any::<bool>()).prop_map(|(mut rules, allow)| {
        (0..).zip(&mut rules).for_each(|(i, rule)| rule.name = format!("r{i}"));
        Document { default: Action::of(allow), rules, messages: vec![] }
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", lines in prop::collection::vec("(name|from|to|proto|ports|action|x) = (1|\"any\"|\\[\"any\"\\]|\\[\"9-1\", 3, \\[\\]\\]|\\{a=1\\}|-1|1.5|true)", 0..6)) {
        let _ = parse(&text);
        let _ = parse(&format!("default = \"deny\"\n[[rule]]\n{}", lines.join("\n"))).map_err(|error| error.to_string());
        let _ = SignedPolicy::from_bytes(text.as_bytes());
    }

    /// For packets with one end behind the member, which are those that its plane checks.
    #[test]
    fn an_explanation_agrees_with_the_compiled_rules(
        document in arbitrary_document(),
        own in 1..=3u8,
        ends in prop::collection::vec((1..=4u8, 0..10u8, 1..=4u8, 0..10u8, any::<bool>(), 0..8u16, 0..5usize), 1..60),
    ) {
        let members: Vec<_> = [(1, &["edge"][..]), (2, &["servers", "edge"]), (3, &[])]
            .map(|(n, groups)| member(n, &format!("n{n}"), groups)).to_vec();
        let compiled = compile(&document, &members, NodeId([own; 32]));
        prop_assert_eq!(compiled.rules.len(), compiled.origins.len());
        for (from, host, to, other, is_ipv4, port, protocol) in ends {
            if from != own && to != own {
                continue;
            }
            let at = |n: u8, host: u8| match is_ipv4 {
                true => address(&format!("10.{n}.{}.{host}", host % 4)),
                false => address(&format!("fd00::{n}")),
            };
            let (source, destination) = (at(from, host), at(to, other));
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Number(47), Protocol::Number(99)][protocol];
            let port = matches!(protocol, Protocol::Tcp | Protocol::Udp).then_some(port);
            let explanation = explain(&document, &members, source, destination, protocol, port);
            let allowed = plain(&compiled, source, destination, protocol, port);
            prop_assert_eq!(explanation.action, Action::of(allowed), "{} {} {:?}", source, destination, compiled);
        }
    }
}

/// A node that was started again after its operator was revoked would have let everything through that the policy denied.
#[test]
fn a_version_that_was_in_force_is_kept_when_its_operator_is_one_no_more() {
    let mut history = History::default();
    assert!(history.apply(signed(1), NETWORK, &[], NOW).is_err());
    history.keep(signed(1), NETWORK).unwrap();
    assert_eq!(history.current_signed(), Some(&signed(1)));
    assert!(history.keep(signed(2), NetworkId([8; 32])).is_err());
}
