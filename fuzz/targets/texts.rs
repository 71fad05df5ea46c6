//! Texts that people and programs on this host, and speakers on the local network, hand in: tokens, ids, names, addresses, both configurations, what the host has in its files, and
//! requests to the API.
#![no_main]

use std::path::Path;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::api::access::Access;
use weir_controlplane::api::call::{Input, Method, ROUTES};
use weir_controlplane::config::{Config, Instance, default_route_interface};
use weir_controlplane::node::beacon::Beacon;
use weir_controlplane::pki::id::{InviteId, KeyId, NetworkId, NodeId};
use weir_controlplane::pki::name::{NamePattern, check_label, check_member_name};
use weir_controlplane::pki::token::Token;
use weir_dataplane::api::Prefix;
use weir_dataplane::config::Config as PlaneConfig;
use weir_fuzz::NOW;

#[derive(Arbitrary, Debug)]
enum Text {
    Small(String),
    Config(String),
    Plane(String),
    Beacon { version: Option<Vec<u8>>, salt: Vec<u8>, hash: Vec<u8> },
    Host { passwd: String, group: String, ipv4: String, ipv6: String },
    Call { route: u8, query: String, body: Vec<u8> },
}

macro_rules! again {
    ($text:expr, $($of:ty),*) => {
        $(if let Ok(value) = $text.parse::<$of>() {
            assert_eq!(value.to_string().parse(), Ok(value));
        })*
    };
}

fuzz_target!(|text: Text| match text {
    Text::Small(text) => {
        again!(text, NodeId, NetworkId, KeyId, InviteId, NamePattern, Prefix);
        let _ = (check_label(&text), check_member_name(&text), text.parse::<Instance>());
        if let Ok(token) = text.parse::<Token>() {
            assert_eq!(token.to_text().parse(), Ok(token.clone()));
            let _ = token.check(NOW);
        }
    }
    Text::Config(text) => {
        if let Err(error) = Config::parse(Path::new("weir.toml"), &text, &Instance::default()) {
            // One line for a person.
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    Text::Plane(text) => {
        if let Err(error) = PlaneConfig::parse(Path::new("dataplane.toml"), &text) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    Text::Beacon { version, salt, hash } => {
        let version = version.unwrap_or_else(|| b"1".to_vec());
        let said = [("v", version.as_slice()), ("s", &salt), ("h", &hash)];
        if let Some(beacon) =
            Beacon::from_txt(|key| said.iter().find(|(known, _)| *known == key).map(|(_, text)| *text))
        {
            assert_eq!(beacon.to_txt().each_ref().map(|(key, text)| (*key, text.as_bytes())), said);
        }
    }
    Text::Host { passwd, group, ipv4, ipv6 } => {
        let api = r#"[api]
read = ["@weir", "alice", "1000"]
admin = ["@1000"]"#;
        let config = Config::parse(Path::new("weir.toml"), api, &Instance::default()).expect("a good one");
        let (_, unknown) = Access::resolve(&config.api, &passwd, &group, 0);
        // Numbers need no name.
        assert!(unknown.len() <= 2, "{unknown:?}");
        if let Some(name) = default_route_interface(&ipv4, &ipv6) {
            assert!(ipv4.contains(&name) || ipv6.contains(&name));
        }
    }
    Text::Call { route, query, body } => {
        let route = &ROUTES[usize::from(route) % ROUTES.len()];
        let Ok(uri) = format!("{}?{query}", route.path).parse() else { return };
        if let Ok(call) = (route.read)(Input { method: route.method, uri: &uri, body: &body }) {
            assert_eq!(call.name(), route.name);
            // What a client would send for it is read as the same call.
            if route.method == Method::Post && route.arguments.is_some() {
                let body = call.arguments().to_string();
                let twin = (route.read)(Input { method: route.method, uri: &uri, body: body.as_bytes() });
                assert_eq!(twin.expect("what was written is read"), call);
            }
        }
    }
});
