//! Texts that people and programs on this host hand in: tokens, ids, names, `weir.toml`, and requests to the API.
#![no_main]

use std::path::Path;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::api::call::{Input, Method, ROUTES};
use weir_controlplane::config::{Config, Instance};
use weir_controlplane::pki::id::{InviteId, KeyId, NetworkId, NodeId};
use weir_controlplane::pki::name::{NamePattern, check_label, check_member_name};
use weir_controlplane::pki::token::Token;
use weir_fuzz::NOW;

#[derive(Arbitrary, Debug)]
enum Text {
    Small(String),
    Config(String),
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
        again!(text, NodeId, NetworkId, KeyId, InviteId, NamePattern);
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
