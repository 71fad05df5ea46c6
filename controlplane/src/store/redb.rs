//! The store on disk: one file, a copy-on-write B+tree by the crate `redb`.
//!
//! ```text
//!  state.redb     table "meta"        "schema" → version, 4 bytes, little-endian
//!                 table "membership"  key → value     one table for each of Table::ALL
//!                 …
//! ```
//!
//! A commit writes new pages beside the old ones, waits until they are on the disk, and only then turns one byte of the header; so the file
//! holds either all of a batch or nothing of it, whatever the moment at which the power fails. Every opening checks every page's
//! checksum, because a file that was damaged outside of us must be an error and not a surprise.
//!
//! The file belongs to one process at a time and to its owner alone. A schema that is older is taken forward step by step; one that is
//! newer is refused, because an older program would read it wrongly.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageBackend, StorageError,
    TableDefinition, WriteTransaction,
};

use super::{Batch, Entries, Store, StoreError, Table, Write};

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "state.redb";
/// Permissions of the file: it holds private keys.
const FILE_MODE: u32 = 0o600;
/// Bytes of pages kept in memory. A node reads its store when it starts; a few pages serve what it commits.
const CACHE_LEN: usize = 4 << 20;
/// Where the version of the schema stands.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const SCHEMA: &str = "schema";

/// Takes what one version of the schema wrote to the next: looks at the store and says what has to change. It is committed together with
/// the new version.
pub type Step = fn(&dyn Store) -> Result<Batch, StoreError>;

/// The steps there are, oldest first: step number n leads from version n + 1 to version n + 2. Append only.
const STEPS: &[Step] = &[];

/// Why a store on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RedbError {
    /// A second process.
    #[error("another process has it open: is `weir run` running? Use its API, or stop it first")]
    AlreadyOpen,
    /// Written by a later version of this program.
    #[error(
        "it was written by a newer version of weir (schema {found}, this one knows {known}): \
         install that version again, or restore the backup made before the upgrade"
    )]
    NewerSchema {
        /// What the file says.
        found: u32,
        /// The highest that this program knows.
        known: u32,
    },
    /// A database, but not one of ours.
    #[error("it has no schema version: move it away if it is not a store of weir")]
    NoSchema,
    /// The directory or the file.
    #[error("{0}: check that the directory exists and belongs to the user that weir runs as")]
    Io(#[from] io::Error),
    /// The file's content.
    #[error("it is damaged ({0}): restore a backup, or take it away and join again")]
    Damaged(String),
    /// Whatever else the library says.
    #[error("{0}")]
    Library(Box<::redb::Error>),
}

impl From<::redb::Error> for RedbError {
    fn from(error: ::redb::Error) -> Self {
        match error {
            ::redb::Error::DatabaseAlreadyOpen => Self::AlreadyOpen,
            ::redb::Error::Corrupted(what) => Self::Damaged(what),
            // The library says so of a file that is too short or begins with other bytes.
            ::redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            ::redb::Error::Io(error) => Self::Io(error),
            other => Self::Library(Box::new(other)),
        }
    }
}

impl From<DatabaseError> for RedbError {
    fn from(error: DatabaseError) -> Self {
        ::redb::Error::from(error).into()
    }
}

impl From<StorageError> for RedbError {
    fn from(error: StorageError) -> Self {
        ::redb::Error::from(error).into()
    }
}

/// Tables of bytes in one file.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
    /// For messages: the path of the file.
    name: String,
}

impl RedbStore {
    /// Opens the file, makes it when there is none, and takes it to the current schema.
    ///
    /// # Errors
    /// [`StoreError`] around a [`RedbError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_at(path, STEPS)
    }

    /// A new file gets its name when it is whole: power lost before that leaves something to throw away, not a damaged store.
    fn open_at(path: &Path, steps: &[Step]) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let failed = |error| store_error("opening", &name, error);
        if !path.try_exists().map_err(|error| failed(error.into()))? {
            let unfinished = path.with_added_extension("new");
            drop(Self::made(&unfinished, steps)?);
            fs::rename(&unfinished, path).map_err(|error| failed(error.into()))?;
        }
        let backend = file(path).map_err(failed)?;
        Self::with_backend(backend, name.clone(), steps)
    }

    /// A new store below this name, in place of one that was left unfinished.
    fn made(path: &Path, steps: &[Step]) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let failed = |error| store_error("making", &name, error);
        let made = Self::with_backend(file(path).map_err(failed)?, name.clone(), steps);
        match made {
            Err(error) if matches!(error.source.downcast_ref(), Some(RedbError::Damaged(_) | RedbError::NoSchema)) => {
                fs::remove_file(path).map_err(|error| failed(error.into()))?;
                Self::with_backend(file(path).map_err(failed)?, name.clone(), steps)
            }
            other => other,
        }
    }

    fn with_backend(backend: impl StorageBackend, name: String, steps: &[Step]) -> Result<Self, StoreError> {
        let opened = Builder::new()
            .set_cache_size(CACHE_LEN)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(RedbError::from);
        let database = opened.map_err(|error| store_error("opening", &name, error))?;
        let mut store = Self { database, name };
        store.migrate(steps)?;
        Ok(store)
    }

    fn migrate(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        // Counted from 1, and nobody writes four thousand million steps.
        let known = u32::try_from(steps.len()).map_or(u32::MAX, |count| count.saturating_add(1));
        let mut version = match self.schema().map_err(|error| self.error("reading the schema of", error))? {
            Some(version) if version > known => {
                return Err(self.error("opening", RedbError::NewerSchema { found: version, known }));
            }
            Some(version) => version,
            None => {
                self.write(Batch::default(), Some(known)).map_err(|error| self.error("setting up", error))?;
                known
            }
        };
        while version < known {
            let step = steps[version.saturating_sub(1) as usize];
            let batch = step(self)?;
            version += 1;
            self.write(batch, Some(version)).map_err(|error| self.error("migrating", error))?;
        }
        Ok(())
    }

    /// The file's version; none when it is new.
    fn schema(&self) -> Result<Option<u32>, RedbError> {
        let transaction = self.database.begin_read().map_err(::redb::Error::from)?;
        if transaction.list_tables()?.next().is_none() {
            return Ok(None);
        }
        let table = match transaction.open_table(META) {
            Ok(table) => table,
            Err(::redb::TableError::TableDoesNotExist(_)) => return Err(RedbError::NoSchema),
            Err(error) => return Err(::redb::Error::from(error).into()),
        };
        let version = table.get(SCHEMA)?.and_then(|value| value.value().try_into().ok().map(u32::from_le_bytes));
        version.map(Some).ok_or(RedbError::NoSchema)
    }

    fn write(&self, batch: Batch, schema: Option<u32>) -> Result<(), RedbError> {
        let mut transaction = self.database.begin_write().map_err(::redb::Error::from)?;
        // Values come from the network. With one phase a crash is told from a whole commit by a checksum that is not cryptographic,
        // and whoever chooses the bytes can aim at that.
        transaction.set_two_phase_commit(true);
        if let Some(version) = schema {
            let mut meta = transaction.open_table(META).map_err(::redb::Error::from)?;
            meta.insert(SCHEMA, version.to_le_bytes().as_slice())?;
            for table in Table::ALL {
                transaction.open_table(definition(table)).map_err(::redb::Error::from)?;
            }
        }
        apply(&transaction, batch)?;
        transaction.commit().map_err(::redb::Error::from)?;
        Ok(())
    }

    /// A table that the program that made the file did not know yet has nothing in it.
    fn read<T: Default>(
        &self,
        table: Table,
        read: impl FnOnce(::redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StorageError>,
    ) -> Result<T, RedbError> {
        let transaction = self.database.begin_read().map_err(::redb::Error::from)?;
        match transaction.open_table(definition(table)) {
            Ok(opened) => Ok(read(opened)?),
            Err(::redb::TableError::TableDoesNotExist(_)) => Ok(T::default()),
            Err(error) => Err(::redb::Error::from(error).into()),
        }
    }

    fn error(&self, doing: &str, error: RedbError) -> StoreError {
        store_error(doing, &self.name, error)
    }
}

impl Store for RedbStore {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let read = self.read(table, |opened| Ok(opened.get(key)?.map(|value| value.value().to_vec())));
        read.map_err(|error| self.error("reading", error))
    }

    fn entries(&self, table: Table) -> Result<Entries, StoreError> {
        let read = self.read(table, |opened| {
            let mut all = Entries::new();
            for entry in opened.iter()? {
                let (key, value) = entry?;
                all.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(all)
        });
        read.map_err(|error| self.error("reading", error))
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.write(batch, None).map_err(|error| self.error("writing", error))
    }
}

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

fn apply(transaction: &WriteTransaction, batch: Batch) -> Result<(), RedbError> {
    for write in batch.0 {
        match write {
            Write::Put(table, key, value) => {
                let mut table = transaction.open_table(definition(table)).map_err(::redb::Error::from)?;
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Write::Delete(table, key) => {
                let mut table = transaction.open_table(definition(table)).map_err(::redb::Error::from)?;
                table.remove(key.as_slice())?;
            }
        }
    }
    Ok(())
}

/// Opens or makes the file, readable for its owner only, and sees to it that a new one is still there after a loss of power.
fn file(path: &Path) -> Result<FileBackend, RedbError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        File::open(fs::canonicalize(directory)?)?.sync_all()?;
    }
    Ok(FileBackend::new(file)?)
}

fn store_error(doing: &str, name: &str, error: RedbError) -> StoreError {
    StoreError { doing: format!("{doing} {name}"), source: Box::new(error) }
}

#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;
