//! Policies as a person writes them, and everything that is made of one.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::policy::{Action, Decider, MemberView, SignedPolicy, ask, check, compile, diff, explain, parse};
use weir_dataplane::api::policy::Protocol;
use weir_fuzz::NETWORK;

#[derive(Arbitrary, Debug)]
struct Input {
    before: String,
    after: String,
    source: String,
    destination: String,
    protocol: u8,
    port: Option<u16>,
    signed: Vec<u8>,
}

fn members() -> Vec<MemberView> {
    let member = |number: u8| MemberView {
        node: NETWORK.node(number),
        name: format!("site-{number}"),
        groups: vec!["edge".into()],
        prefixes: vec![format!("10.{number}.0.0/16").parse().unwrap()],
        addresses: vec![format!("fd00::{number}").parse().unwrap()],
    };
    (1..4).map(member).collect()
}

fuzz_target!(|input: Input| {
    let _ = SignedPolicy::from_bytes(&input.signed);
    let Ok(document) = parse(&input.after) else { return };
    if let Ok(before) = parse(&input.before) {
        assert!(!diff(&before, &document).is_empty() || before == document);
    }
    assert!(diff(&document, &document).is_empty());
    let members = members();
    let _ = check(&document, &members);
    let own = NETWORK.node(1);
    let compiled = compile(&document, &members, own);
    assert_eq!(compile(&document, &members, own), compiled);
    let Some((source, destination)) = ask(&members, &input.source, &input.destination) else { return };
    let explained = explain(&document, &members, source, destination, Protocol::Number(input.protocol), input.port);
    if explained.decided_by == Decider::Default {
        assert_eq!(explained.action, document.default);
    }
    assert!(matches!(explained.action, Action::Allow | Action::Deny));
});
