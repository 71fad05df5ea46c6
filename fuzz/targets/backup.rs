//! A backup of an issuer, as somebody writes it who knows the passphrase: sealed well, and saying anything.
#![no_main]

use std::sync::LazyLock;
use std::time::Instant;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::audit;
use weir_controlplane::codec;
use weir_controlplane::issuer::{Asked, Issuer, Request, restore};
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::random::SeededRandom;
use weir_controlplane::store::{Entries, MemoryStore, Store as _, Table};
use weir_fuzz::{CHEAP_KEY, CHEAP_PASSPHRASE, CHEAP_SEED, Edit, NETWORK, NOW, edited, key, later};

/// The tables of a backup by their numbers.
const TABLES: [Table; 4] = [Table::Issuer, Table::Bundles, Table::Revocations, Table::Audit];

#[derive(Arbitrary, Debug)]
enum File {
    Bytes(Vec<u8>),
    /// A good one that was damaged on the way.
    Damaged(Vec<Edit>),
    /// Sealed well around anything, or around a good content with changes.
    Content(Vec<u8>),
    Edited(Vec<Edit>),
    /// Entries changed, left out and put elsewhere one by one.
    Entries(Vec<Change>),
}

#[derive(Arbitrary, Debug)]
struct Change {
    which: u8,
    /// Where it goes; left out without.
    table: Option<u8>,
    key: Vec<Edit>,
    value: Vec<Edit>,
}

type Content = (u8, [u8; 32], u64, Vec<(u8, Vec<u8>, Vec<u8>)>);

/// An issuer that has done something, and whose log was full once.
static GOOD: LazyLock<Content> = LazyLock::new(|| {
    let (start, mut random) = (Instant::now(), SeededRandom::new(1));
    let versions = NETWORK.chain.versions();
    let store = MemoryStore::default();
    let now = later(start, 0);
    let mut issuer = Issuer::create(store, key(3), NETWORK.id(), versions, 16, now, &mut random).expect("new");
    for secs in 0..20 {
        let asked = Asked { by: "uid 0".into(), request: Request::RotateAdmission };
        issuer.handle(asked, later(start, secs), &mut random).expect("a seed");
    }
    let store = issuer.into_store();
    let of_table = |(number, table)| {
        let entries: Entries = store.entries(table).expect("memory");
        entries.into_iter().map(move |(key, value)| (number, key, value))
    };
    (1, *key(3).seed(), 0, (0..).zip(TABLES).flat_map(of_table).collect())
});

struct KeyLen;

impl hkdf::KeyType for KeyLen {
    fn len(&self) -> usize {
        32
    }
}

fn sealed(content: &[u8]) -> Vec<u8> {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&CHEAP_SEED);
    let mut key = [0; 32];
    secret.expand(&[b"weir-backup-1"], KeyLen).and_then(|output| output.fill(&mut key)).expect("32 bytes");
    let sealing = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("32 bytes"));
    let nonce = [7; 12];
    let mut file = [CHEAP_KEY.as_bytes(), &nonce].concat();
    let mut bytes = content.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    sealing.seal_in_place_append_tag(nonce, Aad::from(&file[..]), &mut bytes).expect("a short content");
    file.extend(bytes);
    file
}

fn put_back(file: &[u8]) -> bool {
    let mut store = MemoryStore::default();
    let Ok(restored) = restore(&mut store, file, CHEAP_PASSPHRASE, "uid 0", NOW) else {
        let left = |table| store.entries(table).expect("memory").len();
        assert!(Table::ALL.into_iter().map(left).all(|left| left == 0), "what is refused leaves nothing");
        return false;
    };
    // What was put back tells everything in order, and the last thing it tells is this.
    let own = restored.key.public();
    let end = audit::verify_part(&store, 0, usize::MAX, |id| Some(own).filter(|own| own.id() == id)).expect("a log");
    let last = audit::read(&store, end.next - 1, 1).expect("an entry")[0].peek().expect("that was checked");
    assert_eq!(last.what, audit::Act::Restored { counter: restored.counter });
    if let Ok(mut issuer) = Issuer::open(store, PrivateKey::from_seed(&restored.key.seed()), 16) {
        let mut random = SeededRandom::new(2);
        for request in [Request::Status, Request::Members, Request::Invites, Request::VerifyAudit { from: 0 }] {
            let asked = Asked { by: "uid 0".into(), request };
            issuer.handle(asked, later(Instant::now(), 0), &mut random).expect("what changes nothing");
        }
    }
    true
}

fuzz_target!(|file: File| {
    let good = || codec::encode(&*GOOD);
    match file {
        File::Bytes(bytes) => _ = put_back(&bytes),
        File::Damaged(edits) => {
            let whole = sealed(&good());
            let damaged = edited(whole.clone(), &edits);
            // Nobody who has not the passphrase changes anything.
            assert_eq!(put_back(&damaged), damaged == whole);
        }
        File::Content(bytes) => _ = put_back(&sealed(&bytes)),
        File::Edited(edits) => _ = put_back(&sealed(&edited(good(), &edits))),
        File::Entries(changes) => {
            let mut content = GOOD.clone();
            for Change { which, table, key, value } in changes {
                let at = usize::from(which) % content.3.len().max(1);
                if at < content.3.len() {
                    let (number, old_key, old_value) = content.3.remove(at);
                    if let Some(table) = table {
                        let number = if table < 8 { table } else { number };
                        content.3.push((number, edited(old_key, &key), edited(old_value, &value)));
                    }
                }
            }
            put_back(&sealed(&codec::encode(&content)));
        }
    }
});
