//! What members, joiners, issuers and stores say to each other, before any of it is believed.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use weir_controlplane::audit;
use weir_controlplane::codec::{decode, encode};
use weir_controlplane::dht;
use weir_controlplane::issuer::{Asked, JoinBody, LeaveBody, Refused, RenewBody, Reply};
use weir_controlplane::node::directory::{Record, SignedRecord};
use weir_controlplane::node::message::{KeyMessage, MESSAGE_LEN_MAX, Message, Network};
use weir_controlplane::pki::admission::AdmissionDocument;
use weir_controlplane::pki::bundle::Bundle;
use weir_controlplane::pki::revocation::{RevocationHead, SignedRevocationList};
use weir_controlplane::pki::statement::MemberStatement;
use weir_controlplane::policy::SignedPolicy;
use weir_controlplane::shell::frame;
use weir_controlplane::shell::mdns::{FromMdns, Saying};
use weir_controlplane::supervisor::Order;

macro_rules! again {
    ($data:expr, $($message:ty),*) => {
        $(if let Ok(message) = decode::<$message>($data, MESSAGE_LEN_MAX) {
            // Not always the same bytes, as numbers have longer forms, but always the same message.
            let twin = decode::<$message>(&encode(&message), usize::MAX).expect("what was written is read");
            assert_eq!(message, twin);
        })*
    };
}

/// One frame after the other, as the shell takes them from a process of ours.
fn frames<T: serde::de::DeserializeOwned + Debug>(mut data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without a driver");
    runtime.block_on(async { while let Ok(Some(_)) = frame::receive::<T>(&mut data, MESSAGE_LEN_MAX).await {} });
}

fuzz_target!(|data: &[u8]| {
    again!(data, Message, KeyMessage, Network, SignedRecord, Record, SignedPolicy, SignedRevocationList);
    again!(data, Bundle, RevocationHead, AdmissionDocument, MemberStatement, audit::Entry);
    again!(data, Asked, Result<Reply, Refused>, JoinBody, RenewBody, LeaveBody, Order, audit::Position, audit::Start);
    again!(data, dht::message::Message, dht::record::SignedRecord, dht::record::Envelope);
    again!(data, dht::value::NodeValue, dht::value::ServiceValue, dht::value::RevocationsValue);
    if let Ok(value) = dht::value::ServiceValue::decode(data) {
        assert!(value.check().is_ok());
    }
    frames::<(u32, Asked)>(data);
    frames::<(u32, Result<Reply, Refused>)>(data);
    frames::<Order>(data);
    again!(data, FromMdns, Option<Saying>);
    frames::<FromMdns>(data);
});
