//! The state directory: what outlives a restart.
//!
//! ```text
//!  /var/lib/weir/              0700
//!    state.redb                the node: identity, certificate, bundles, lists
//!    issuer/                   0700, on issuers only; may belong to another user
//!      issuer.key              the issuer's key: its seed in hexadecimal
//!      state.redb              the issuer: allocations, invitations, audit log
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE;
use zeroize::Zeroizing;

use crate::pki::key::PrivateKey;
use crate::random::Random;
use crate::store::StoreError;
use crate::store::redb::{self, RedbStore};

const DIRECTORY_MODE: u32 = 0o700;
const KEY_MODE: u32 = 0o600;

/// Why something in it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system says no.
    #[error("{}: {source}: is it the user that weir runs as, or root, who asks?", .path.display())]
    Io {
        /// Of which file or directory.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// The key file has something else in it.
    #[error("{} is no key: 64 hexadecimal digits; restore the issuer's backup", .0.display())]
    Key(PathBuf),
    /// A store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A state directory.
#[derive(Clone, Debug)]
pub struct StateDirectory(PathBuf);

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_path_buf();
    move |source| StateError::Io { path, source }
}

fn private_directory(path: &Path) -> Result<(), StateError> {
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path);
    made.map_err(io_error(path))
}

impl StateDirectory {
    /// The one at this path, made if it is not there.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        private_directory(path)?;
        Ok(Self(path.to_path_buf()))
    }

    /// The node's store.
    ///
    /// # Errors
    /// [`StateError::Store`].
    pub fn node_store(&self) -> Result<RedbStore, StateError> {
        Ok(RedbStore::open(&self.0.join(redb::FILE_NAME))?)
    }

    /// The issuer's part.
    pub fn issuer_directory(&self) -> PathBuf {
        self.0.join("issuer")
    }

    /// The issuer's store, made if it is not there.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn issuer_store(&self) -> Result<RedbStore, StateError> {
        private_directory(&self.issuer_directory())?;
        Ok(RedbStore::open(&self.issuer_directory().join(redb::FILE_NAME))?)
    }

    fn key_file(&self) -> PathBuf {
        self.issuer_directory().join("issuer.key")
    }

    /// Whether there is an issuer's key. It is not read: who asks this has no need of it.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn has_issuer_key(&self) -> Result<bool, StateError> {
        let path = self.key_file();
        match path.try_exists() {
            // The issuer's directory belongs to another user: that is where its key is.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(true),
            other => other.map_err(io_error(&path)),
        }
    }

    /// The issuer's key, where there is one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn issuer_key(&self) -> Result<Option<PrivateKey>, StateError> {
        let path = self.key_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path)(error)),
        };
        let seed = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).map(Zeroizing::new);
        let seed = seed.ok().and_then(|seed| Some(PrivateKey::from_seed(seed.as_slice().try_into().ok()?)));
        seed.map(Some).ok_or(StateError::Key(path))
    }

    /// The issuer's key; a fresh one where there is none.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn issuer_key_or_fresh(&self, random: &mut impl Random) -> Result<PrivateKey, StateError> {
        if let Some(key) = self.issuer_key()? {
            return Ok(key);
        }
        let key = PrivateKey::generate(random);
        self.put_issuer_key(&key)?;
        Ok(key)
    }

    /// Writes the issuer's key, where there is none: one that is there is never overwritten.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_issuer_key(&self, key: &PrivateKey) -> Result<(), StateError> {
        private_directory(&self.issuer_directory())?;
        let text =
            Zeroizing::new(format!("{}\n", Zeroizing::new(HEXLOWER_PERMISSIVE.encode(key.seed().as_slice())).as_str()));
        write_secret(&self.key_file(), text.as_bytes())
    }
}

/// Writes a new file that only its owner may read, and waits until it is on the disk.
///
/// # Errors
/// [`StateError::Io`], also when there is a file of that name.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let written = OpenOptions::new().write(true).create_new(true).mode(KEY_MODE).open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(io_error(path))?;
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(io_error(directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::random::SeededRandom;

    #[test]
    fn keys_are_kept_for_their_owner_and_never_overwritten() {
        let path = std::env::temp_dir().join(format!("weir-state-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let state = StateDirectory::open(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert!(state.issuer_key().unwrap().is_none() && !state.has_issuer_key().unwrap());
        let key = state.issuer_key_or_fresh(&mut SeededRandom::new(1)).unwrap();
        assert_eq!((mode(&state.issuer_directory()), mode(&state.key_file())), (0o700, 0o600));
        let again = state.issuer_key_or_fresh(&mut SeededRandom::new(2)).unwrap();
        assert_eq!(again.public(), key.public());
        assert!(state.put_issuer_key(&PrivateKey::from_seed(&[1; 32])).is_err());
        fs::write(state.key_file(), "no key").unwrap();
        // Whoever asks only whether there is one does not look into the file.
        assert!(state.has_issuer_key().unwrap());
        assert!(state.issuer_key().unwrap_err().to_string().contains("restore the issuer's backup"));
        let both = (state.node_store().is_ok(), state.issuer_store().is_ok());
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(both, (true, true));
    }
}
