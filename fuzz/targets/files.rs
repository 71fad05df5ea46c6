//! Files that a person carries from one host to another: trust bundles and revocation lists as texts, and keys under a passphrase.
#![no_main]

use data_encoding::BASE64;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::ceremony::Ceremony;
use weir_controlplane::pki::bundle::{SignedBundle, text};
use weir_controlplane::pki::id::NodeId;
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::pki::revocation::{self, Entry, RevocationSet, Revoked, SignedRevocationList};
use weir_fuzz::{CHEAP_KEY, CHEAP_PASSPHRASE, Edit, NETWORK, NOW, edited, key};

#[derive(Arbitrary, Debug)]
enum File {
    /// A bundle, or anything.
    Text(Vec<u8>),
    /// The network's bundle, with changes to its text.
    Bundle(Vec<Edit>),
    /// The same with changes to what stands in its last line.
    Version { body: Vec<Edit>, signer: u8 },
    /// A revocation list with changes to its text.
    List { count: u8, edits: Vec<Edit> },
    /// A key, or anything.
    Pem(String),
    /// A good key file with changes to what is behind the base64.
    Key(Vec<Edit>),
}

fn bundle(file: &[u8]) {
    let Ok(versions) = text::read(file) else { return };
    assert_eq!(text::read(text::write(&versions).as_bytes()), Ok(versions.clone()));
    // A root of the network, and somebody who is none.
    for root in [key(1), key(7)] {
        if let Ok(ceremony) = Ceremony::begin(&versions, root, NOW) {
            assert_eq!(ceremony.versions(), versions);
            assert_eq!(ceremony.bundle().check(), Ok(()));
        }
    }
}

fn list(file: &[u8]) {
    let Ok(list) = std::str::from_utf8(file).map_err(drop).and_then(|text| revocation::text::read(text).map_err(drop))
    else {
        return;
    };
    assert_eq!(revocation::text::read(&revocation::text::write(&list)), Ok(list.clone()));
    let mut known = RevocationSet::default();
    if let Ok(applied) = known.apply(list, NETWORK.chain.current()) {
        assert!(applied.added.iter().all(|entry| known.is_revoked(entry.what)));
    }
}

fn opened(pem: &str) {
    if let Ok(key) = PrivateKey::from_encrypted_pem(pem, CHEAP_PASSPHRASE) {
        let public = key.public();
        assert_eq!(PrivateKey::from_seed(&key.seed()).public(), public);
    }
}

fuzz_target!(|file: File| match file {
    File::Text(bytes) => {
        bundle(&bytes);
        list(&bytes);
    }
    File::List { count, edits } => {
        let entry = |byte| Entry { what: Revoked::Node(NodeId([byte; 32])), reason: "stolen".to_owned(), at: NOW };
        let signed = SignedRevocationList::sign(&key(11), 1, NOW, NOW, (0..count).map(entry).collect());
        list(&edited(revocation::text::write(&signed).into_bytes(), &edits));
    }
    File::Bundle(edits) => bundle(&edited(text::write(NETWORK.chain.versions()).into_bytes(), &edits)),
    File::Version { body, signer } => {
        let mut next = SignedBundle::sign(&NETWORK.chain.successor(), Some(NETWORK.id()), &[&key(signer % 3)]);
        next.body = edited(next.body, &body);
        let versions = [NETWORK.chain.versions(), &[next]].concat();
        bundle(text::write(&versions).as_bytes());
    }
    File::Pem(pem) => opened(&pem),
    File::Key(edits) => {
        let base64: String = CHEAP_KEY.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64.decode(base64.as_bytes()).expect("a good file");
        let base64 = BASE64.encode(&edited(der, &edits));
        let lines: Vec<&str> =
            base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64")).collect();
        let label = "ENCRYPTED PRIVATE KEY-----";
        opened(&format!("-----BEGIN {label}\n{}\n-----END {label}\n", lines.join("\n")));
    }
});
