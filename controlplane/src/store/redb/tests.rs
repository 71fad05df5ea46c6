use std::path::PathBuf;

use super::*;

/// A directory of this test's own, gone when it ends.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE_NAME)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn put(table: Table, key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::default();
    batch.put(table, key, value);
    batch
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let directory = Directory::new("reopen");
    let mut store = RedbStore::open(&directory.file()).unwrap();
    for table in Table::ALL {
        assert_eq!(store.entries(table).unwrap(), []);
        store.commit(put(table, table.name().as_bytes(), b"value")).unwrap();
    }
    let mut batch = put(Table::Clock, b"b", b"2");
    batch.put(Table::Clock, b"a", b"1");
    batch.delete(Table::Clock, b"clock");
    batch.delete(Table::Clock, b"never there");
    store.commit(batch).unwrap();
    drop(store);

    let store = RedbStore::open(&directory.file()).unwrap();
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Clock) {
        assert_eq!(store.value(table, table.name().as_bytes()).unwrap().as_deref(), Some(b"value".as_slice()));
    }
    let clock = store.entries(Table::Clock).unwrap();
    assert_eq!(clock, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(store.value(Table::Clock, b"clock").unwrap(), None);
}

#[test]
fn the_file_is_its_owners_alone_and_one_process_has_it() {
    let directory = Directory::new("owner");
    let store = RedbStore::open(&directory.file()).unwrap();
    let mode = || fs::metadata(directory.file()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    // A lock belongs to an open file, so that a second opening is refused in the same process too.
    let error = RedbStore::open(&directory.file()).unwrap_err().to_string();
    assert!(error.contains("another process has it open") && error.contains(FILE_NAME), "{error}");
    drop(store);
    fs::set_permissions(directory.file(), Permissions::from_mode(0o644)).unwrap();
    drop(RedbStore::open(&directory.file()).unwrap());
    assert_eq!(mode(), 0o600);
}

fn rename(store: &dyn Store) -> Result<Batch, StoreError> {
    let mut batch = Batch::default();
    for (key, value) in store.entries(Table::Clock)? {
        batch.delete(Table::Clock, key.clone());
        batch.put(Table::Clock, [b"new-", key.as_slice()].concat(), value);
    }
    Ok(batch)
}

fn fail(_: &dyn Store) -> Result<Batch, StoreError> {
    Err(StoreError { doing: "a step".into(), source: "no".into() })
}

#[test]
fn an_older_schema_is_taken_forward_and_a_newer_one_refused() {
    let directory = Directory::new("schema");
    let mut store = RedbStore::open_at(&directory.file(), &[]).unwrap();
    store.commit(put(Table::Clock, b"key", b"value")).unwrap();
    drop(store);

    // What fails on the way stops behind the last step that succeeded.
    RedbStore::open_at(&directory.file(), &[rename, fail]).unwrap_err();
    let store = RedbStore::open_at(&directory.file(), &[rename, rename]).unwrap();
    assert_eq!(store.entries(Table::Clock).unwrap(), [(b"new-new-key".to_vec(), b"value".to_vec())]);
    drop(store);

    let error = RedbStore::open_at(&directory.file(), &[rename]).unwrap_err().to_string();
    assert!(error.contains("schema 3, this one knows 2") && error.contains("restore the backup"), "{error}");
    let store = RedbStore::open_at(&directory.file(), &[rename, rename]).unwrap();
    assert_eq!(store.value(Table::Clock, b"new-new-key").unwrap().as_deref(), Some(b"value".as_slice()));
}

/// A node did not start after an upgrade to a program with one table more.
#[test]
fn a_table_that_is_younger_than_the_file_is_empty_and_can_be_written() {
    let directory = Directory::new("younger");
    drop(RedbStore::open(&directory.file()).unwrap());
    let database = Database::open(directory.file()).unwrap();
    let transaction = database.begin_write().unwrap();
    assert!(transaction.delete_table(super::definition(Table::Outbox)).unwrap());
    transaction.commit().unwrap();
    drop(database);
    let mut store = RedbStore::open(&directory.file()).unwrap();
    assert_eq!(store.entries(Table::Outbox).unwrap(), []);
    assert_eq!(store.value(Table::Outbox, b"key").unwrap(), None);
    store.commit(put(Table::Outbox, b"key", b"value")).unwrap();
    assert_eq!(store.value(Table::Outbox, b"key").unwrap().as_deref(), Some(b"value".as_slice()));
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let directory = Directory::new("foreign");
    fs::write(directory.file(), b"somebody's letter").unwrap();
    let error = RedbStore::open(&directory.file()).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(fs::read(directory.file()).unwrap(), b"somebody's letter");

    fs::remove_file(directory.file()).unwrap();
    let database = Database::create(directory.file()).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u8, u8>::new("other")).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(RedbStore::open(&directory.file()).unwrap_err().to_string().contains("no schema version"));

    let error = RedbStore::open(&directory.0.join("missing").join(FILE_NAME)).unwrap_err().to_string();
    assert!(error.contains("check that the directory exists"), "{error}");
}

#[test]
fn what_was_left_unfinished_is_made_anew() {
    let directory = Directory::new("unfinished");
    fs::write(directory.0.join("state.redb.new"), vec![7; 9_000]).unwrap();
    let store = RedbStore::open(&directory.file()).unwrap();
    assert_eq!(store.entries(Table::Clock).unwrap(), []);
    let names: Vec<_> = fs::read_dir(&directory.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [FILE_NAME]);
}

/// Where the child below writes; absent when nobody asked for it.
const CHILD_FILE: &str = "WEIR_STORE_TEST_CHILD";

/// Not a test of its own: the process that the next test kills.
#[test]
#[ignore = "writes until it is killed"]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let mut store = RedbStore::open(Path::new(&path)).unwrap();
    for number in 1u64.. {
        let mut batch = put(Table::Clock, b"number", &number.to_le_bytes());
        batch.put(Table::Audit, number.to_be_bytes(), vec![number as u8; 700]);
        store.commit(batch).unwrap();
        println!("committed {number}");
    }
}

#[test]
fn a_process_killed_at_any_moment_loses_nothing_that_it_was_told_is_safe() {
    use std::io::BufRead as _;
    let directory = Directory::new("kill");
    let mut safe = 0;
    for round in 0..6 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::redb::tests::child_that_writes_until_it_is_killed", "--ignored", "--nocapture"])
            .env(CHILD_FILE, directory.file())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = io::BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let committed = lines.filter_map(|line| line.split_once("committed ")?.1.parse::<u64>().ok());
        safe = committed.take(3 + 5 * round).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();

        let mut store = RedbStore::open(&directory.file()).unwrap();
        let number = store.value(Table::Clock, b"number").unwrap().unwrap();
        let number = u64::from_le_bytes(number.try_into().unwrap());
        assert!(number >= safe, "{number} is there, {safe} was safe");
        let audit = store.entries(Table::Audit).unwrap();
        let expected: Vec<_> = (1..=number).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; 700])).collect();
        assert_eq!(audit, expected);
        let mut batch = Batch::default();
        (1..=number).for_each(|n| batch.delete(Table::Audit, n.to_be_bytes()));
        store.commit(batch).unwrap();
    }
    assert!(safe > 0);
}
