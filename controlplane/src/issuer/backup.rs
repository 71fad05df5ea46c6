//! An issuer in one encrypted file, and back.
//!
//! ```text
//!  -----BEGIN ENCRYPTED PRIVATE KEY-----     a key made for this file: PKCS#8, scrypt and AES-256 under the passphrase
//!  …
//!  -----END ENCRYPTED PRIVATE KEY-----
//!  nonce (12) ‖ AES-256-GCM( HKDF-SHA-256(seed of that key, "weir-backup-1"), associated: the text above ‖ nonce, content )
//!
//!  content:  version 1 │ issuer's key seed (32) │ counter │ tables
//! ```
//!
//! Putting back an old state would give out names and prefixes a second time, so what was restored allocates nothing before it has been told
//! of the members that there are; and a store that has gone further than the file is left alone.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Issuer, RECORD_LEN_MAX, Refused, Reply, STATE_KEY, SecretText, State, limit};
use crate::audit::{self, Act, AuditError};
use crate::codec;
use crate::pki::id::{KeyId, NetworkId};
use crate::pki::key::{KeyFileError, PrivateKey};
use crate::random::Random;
use crate::store::{Batch, MemoryStore, Store, StoreError, Table};
use crate::time::{Now, UnixSecs};

/// The format that we write and read.
const VERSION: u8 = 1;
/// Longest file that is written and read. Ours: some 300,000 entries of the audit log; half as many again as it keeps when nobody says
/// otherwise.
pub const BACKUP_LEN_MAX: usize = 96 << 20;
/// What stands in the file besides entries, and the one that tells of it.
const ROOM: usize = 64 << 10;
/// What the text part ends with.
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----\n";
/// The tables that make an issuer, with the numbers they have in the file.
const TABLES: [(u8, Table); 4] =
    [(0, Table::Issuer), (1, Table::Bundles), (2, Table::Revocations), (AUDIT_NUMBER, Table::Audit)];
/// The number of the audit log among them.
const AUDIT_NUMBER: u8 = 3;
/// Bytes of the nonce of AES-GCM.
const NONCE_LEN: usize = 12;

#[derive(Serialize, Deserialize)]
struct Content {
    version: u8,
    seed: Zeroizing<[u8; 32]>,
    counter: u64,
    entries: Vec<(u8, Vec<u8>, Zeroizing<Vec<u8>>)>,
}

/// Why a backup is not put back. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not a backup, or a damaged one.
    #[error("this is no backup of an issuer, or it is damaged")]
    Malformed,
    /// The passphrase does not open it.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// Written by a newer version.
    #[error("the backup is of format {0}, we read {VERSION}; use the newer weir that wrote it")]
    Version(u8),
    /// The store belongs to another issuer.
    #[error("the store holds an issuer of network {0}; use an empty state directory")]
    OtherNetwork(NetworkId),
    /// The store has gone further.
    #[error(
        "the store has made {store} allocations and the backup knows {backup}; going back would give out things twice"
    )]
    Behind {
        /// What the store counts.
        store: u64,
        /// What the backup counts.
        backup: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The backup's audit log cannot be continued.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// What was put back.
#[derive(Debug)]
pub struct Restored {
    /// The issuer's key.
    pub key: PrivateKey,
    /// Its network.
    pub network: NetworkId,
    /// Allocations that it knows of.
    pub counter: u64,
}

struct KeyLen;

impl hkdf::KeyType for KeyLen {
    fn len(&self) -> usize {
        32
    }
}

/// The key for the content, and what else it is bound to.
fn sealing(file_key: &PrivateKey) -> LessSafeKey {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&*file_key.seed());
    let mut key = Zeroizing::new([0; 32]);
    let expanded = secret.expand(&[b"weir-backup-1"], KeyLen).and_then(|output| output.fill(&mut *key));
    expanded.expect("32 bytes are within HKDF's limit");
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("a key of 32 bytes is AES-256's"))
}

impl<S: Store> Issuer<S> {
    /// Everything that this issuer is, under a passphrase.
    pub(super) fn backup(
        &mut self,
        passphrase: &SecretText,
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        let counter = self.state.counter;
        // What cannot be written is not noted as written.
        let mut len = ROOM;
        for (_, table) in TABLES {
            len += self.store.entries(table)?.iter().map(|(key, value)| key.len() + value.len() + 8).sum::<usize>();
        }
        limit("bytes of a backup", len, 0, BACKUP_LEN_MAX)?;
        // Noted first, so that the file tells of itself.
        self.commit(Batch::default(), vec![Act::BackedUp { counter }], by, now.wall)?;
        let mut entries = Vec::new();
        for (number, table) in TABLES {
            let stored = self.store.entries(table)?.into_iter();
            entries.extend(stored.map(|(key, value)| (number, key, Zeroizing::new(value))));
        }
        let content = Content { version: VERSION, seed: self.key.seed(), counter, entries };
        let failed = |error: &dyn fmt::Display| Refused::Backup(error.to_string());
        let file_key = PrivateKey::generate(random);
        let text = file_key.to_encrypted_pem(&passphrase.0).map_err(|error| failed(&error))?;
        let nonce: [u8; NONCE_LEN] = random.array();
        let mut file = text.as_bytes().to_vec();
        file.extend_from_slice(&nonce);
        // Sealed where it stands, with room for the tag, so that no copy of it is left open.
        let mut sealed = codec::encode_secret(&content, AES_256_GCM.tag_len());
        let seal = sealing(&file_key).seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(file.as_slice()),
            &mut *sealed,
        );
        seal.map_err(|error| failed(&error))?;
        file.extend_from_slice(&sealed);
        limit("bytes of a backup", file.len(), 0, BACKUP_LEN_MAX)?;
        Ok(Reply::Backup(file))
    }
}

fn open(file: &[u8], passphrase: &str) -> Result<Content, RestoreError> {
    if file.len() > BACKUP_LEN_MAX {
        return Err(RestoreError::Malformed);
    }
    let at = file.windows(END.len()).position(|window| window == END.as_bytes());
    let text_len = at.ok_or(RestoreError::Malformed)? + END.len();
    let text = std::str::from_utf8(&file[..text_len]).map_err(|_| RestoreError::Malformed)?;
    let file_key = PrivateKey::from_encrypted_pem(text, passphrase)?;
    let (nonce, sealed) = file[text_len..].split_first_chunk::<NONCE_LEN>().ok_or(RestoreError::Malformed)?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let associated = Aad::from(&file[..text_len + NONCE_LEN]);
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let content = sealing(&file_key).open_in_place(nonce, associated, &mut sealed);
    let content = content.map_err(|_| RestoreError::Malformed)?;
    match content.first() {
        Some(&VERSION) => codec::decode(content, BACKUP_LEN_MAX).map_err(|_| RestoreError::Malformed),
        Some(other) => Err(RestoreError::Version(*other)),
        None => Err(RestoreError::Malformed),
    }
}

/// Where the backup's audit log ends, once every entry is known to be the issuer's and in its place.
fn check_log(content: &Content, key: &PrivateKey) -> Result<audit::Position, RestoreError> {
    let (mut log, mut batch) = (MemoryStore::default(), Batch::default());
    for (_, place, value) in content.entries.iter().filter(|(of, ..)| *of == AUDIT_NUMBER) {
        batch.put(Table::Audit, place.as_slice(), value.as_slice());
    }
    log.commit(batch)?;
    let own = |id: KeyId| Some(key.public()).filter(|key| key.id() == id);
    Ok(audit::verify_part(&log, 0, usize::MAX, own)?)
}

/// Puts an issuer back. It allocates again after [`super::Request::Recovered`].
///
/// # Errors
/// [`RestoreError`].
pub fn restore(
    store: &mut impl Store,
    file: &[u8],
    passphrase: &str,
    by: &str,
    now: UnixSecs,
) -> Result<Restored, RestoreError> {
    let content = open(file, passphrase)?;
    let key = PrivateKey::from_seed(&content.seed);
    let backup = content.counter;
    let state = content.entries.iter().find(|(number, key, _)| *number == 0 && key == STATE_KEY);
    let decoded = state.and_then(|(_, _, value)| codec::decode::<State>(value, RECORD_LEN_MAX).ok());
    let mut state = decoded.ok_or(RestoreError::Malformed)?;
    if let Some(bytes) = store.value(Table::Issuer, STATE_KEY)? {
        let there: State = codec::decode(&bytes, RECORD_LEN_MAX).map_err(|_| RestoreError::Malformed)?;
        if there.network != state.network {
            return Err(RestoreError::OtherNetwork(there.network));
        }
        if there.counter > backup {
            return Err(RestoreError::Behind { store: there.counter, backup });
        }
    }
    let end = check_log(&content, &key)?;
    let mut batch = Batch::default();
    for (number, table) in TABLES {
        for (old, _) in store.entries(table)? {
            batch.delete(table, old);
        }
        for (_, key, value) in content.entries.iter().filter(|(of, ..)| *of == number) {
            batch.put(table, key.as_slice(), value.as_slice());
        }
    }
    state.recovering = true;
    batch.put(Table::Issuer, STATE_KEY, codec::encode(&state));
    let _end = end.append(&mut batch, &key, now, by, Act::Restored { counter: backup });
    store.commit(batch)?;
    Ok(Restored { key, network: state.network, counter: backup })
}
