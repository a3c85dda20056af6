//! The file: made, opened, checked and read.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row};

use super::checksum::Checksum;
use crate::memory::{Change, Changed, Core, LogLimits, Parts, Stored};
use crate::{LeaseId, Revision, StoreError};

/// Rises only by an explicit step; a store with a higher one is refused.
pub const FORMAT: u32 = 1;

/// "Rung" in the file's header, so that `file` and we can tell it from other SQLite databases.
const APPLICATION_ID: u32 = u32::from_be_bytes(*b"Rung");

const SCHEMA: &str = "
    CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        epoch INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        last_lease INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta VALUES (1, 1, 0, 0);
    CREATE TABLE entries (
        key TEXT NOT NULL UNIQUE,
        value BLOB NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        lease INTEGER,
        checksum INTEGER NOT NULL
    ) STRICT;
    -- A value that is null was deleted.
    CREATE TABLE log (
        revision INTEGER NOT NULL,
        position INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB,
        created INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (revision, position)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL) STRICT;
";

/// The page cache may be small: everything is read once, from start to end, and then only written.
/// synchronous=FULL syncs every commit. The exclusive lock keeps a second process out, and needs no shared memory file.
const SETTINGS: &str = "
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA synchronous = FULL;
    PRAGMA cache_size = -256;
    PRAGMA temp_store = MEMORY;
    PRAGMA journal_size_limit = 1048576;
    PRAGMA wal_autocheckpoint = 500;
";

/// Numbers in the file are signed; revisions, counted from 1 at some thousands a second, never get near the border.
pub fn to_sql(number: u64) -> i64 {
    i64::try_from(number).expect("counters stay below 2^63")
}

pub fn entry_checksum(
    key: &str,
    value: &[u8],
    created: Revision,
    modified: Revision,
    lease: Option<LeaseId>,
) -> i64 {
    let lease = lease.map_or(0, |lease| lease.0);
    Checksum::new().bytes(key.as_bytes()).bytes(value).number(created).number(modified).number(lease).finish()
}

pub fn log_checksum(revision: Revision, key: &str, value: Option<&[u8]>, created: Revision) -> i64 {
    let sum = Checksum::new().number(revision).bytes(key.as_bytes()).number(created);
    match value {
        None => sum.number(0),
        Some(value) => sum.number(1).bytes(value),
    }
    .finish()
}

/// Opens what is there, or makes it.
pub fn open(path: &Path, limits: LogLimits) -> Result<(Connection, Core), StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(path)?,
        Err(e) => return Err(unavailable(path, "look at", &e)),
    }
    let connection = connect(path)?;
    match load(&connection, path, limits) {
        Ok(core) => {
            // From here on a clean end leaves one file; until now closing must leave everything as it was.
            connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
                .map_err(|e| refusal(path, &e))?;
            Ok((connection, core))
        }
        Err(LoadError::Store(error)) => Err(error),
        Err(LoadError::Sqlite(error)) => Err(refusal(path, &error)),
        Err(LoadError::Damaged(detail)) => Err(damaged(path, detail)),
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let has_log = with_suffix(path, "-wal").exists();
    let connect = || {
        let connection = Connection::open_with_flags(path, flags)?;
        // A log that was there stays, one that SQLite makes goes again when we close.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.execute_batch(SETTINGS)?;
        Ok(connection)
    };
    connect().map_err(|error| refusal(path, &error))
}

/// A new store is made beside its place and renamed when it is whole. So an empty or half made file in its place is
/// damage and never taken for a new store.
fn create(path: &Path) -> Result<(), StoreError> {
    let wal = with_suffix(path, "-wal");
    if wal.exists() {
        return Err(damaged(path, format!("it is gone, but {} is still there", wal.display())));
    }
    let new = with_suffix(path, &format!(".new-{}", std::process::id()));
    let made = create_at(&new).and_then(|()| fs::rename(&new, path).and_then(|()| sync_parent(path)));
    made.map_err(|e| {
        // Best effort: what is left is not in anybody's way.
        let _ = fs::remove_file(&new);
        unavailable(path, "create", &e)
    })
}

fn create_at(new: &Path) -> io::Result<()> {
    match fs::remove_file(new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Secrets are in it, sealed; still nobody else has to read it.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    let fill = || {
        let connection = Connection::open_with_flags(
            new,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.pragma_update(None, "journal_mode", "memory")?;
        connection.execute_batch(&format!(
            "BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT;"
        ))?;
        connection.query_row("PRAGMA journal_mode = wal", [], |_| Ok(()))?;
        connection.close().map_err(|(_, error)| error)
    };
    fill().map_err(io::Error::other)?;
    file.sync_all()
}

pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn unavailable(path: &Path, act: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("can't {act} {}: {error}", path.display()))
}

fn damaged(path: &Path, detail: String) -> StoreError {
    StoreError::Damaged { path: path.display().to_string(), detail }
}

/// What an error of SQLite's means for somebody who wants to open the file.
fn refusal(path: &Path, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::InUse { path: path.display().to_string() }
        }
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::OutOfMemory,
        ) => unavailable(path, "open", error),
        // A missing table or column, a value of another type: not what we write.
        _ => damaged(path, error.to_string()),
    }
}

enum LoadError {
    Sqlite(rusqlite::Error),
    Damaged(String),
    Store(StoreError),
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn load(connection: &Connection, path: &Path, limits: LogLimits) -> Result<Core, LoadError> {
    check(connection, path)?;
    let mut parts = Parts::default();
    (parts.epoch, parts.revision, parts.last_lease) =
        connection.query_row("SELECT epoch, revision, last_lease FROM meta WHERE id = 1", [], |row| {
            Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?))
        })?;
    load_leases(connection, &mut parts)?;
    load_entries(connection, &mut parts)?;
    load_log(connection, &mut parts)?;
    Ok(Core::from_parts(parts, limits))
}

fn check(connection: &Connection, path: &Path) -> Result<(), LoadError> {
    let application: u32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != APPLICATION_ID {
        return Err(LoadError::Damaged("it is not a store of rung's".to_owned()));
    }
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > FORMAT {
        let path = path.display().to_string();
        return Err(LoadError::Store(StoreError::Newer { path, found, known: FORMAT }));
    }
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(LoadError::Damaged(verdict));
    }
    Ok(())
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column)
        .and_then(|n| u64::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n)))
}

fn load_leases(connection: &Connection, parts: &mut Parts) -> Result<(), LoadError> {
    let mut statement = connection.prepare("SELECT id, ttl_ms FROM leases")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        parts.leases.insert(LeaseId(number(row, 0)?), Duration::from_millis(number(row, 1)?));
    }
    Ok(())
}

fn load_entries(connection: &Connection, parts: &mut Parts) -> Result<(), LoadError> {
    let mut statement =
        connection.prepare("SELECT key, value, created, modified, lease, checksum FROM entries")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key: Arc<str> = row.get(0)?;
        let value: Arc<[u8]> = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?.into();
        let lease = row.get::<_, Option<i64>>(4)?.map(|n| LeaseId(n.cast_unsigned()));
        let stored = Stored { value, created: number(row, 2)?, modified: number(row, 3)?, lease };
        let sum = entry_checksum(&key, &stored.value, stored.created, stored.modified, lease);
        if sum != row.get::<_, i64>(5)? || stored.modified > parts.revision {
            return Err(LoadError::Damaged(format!("the value of key {key} is not what was written")));
        }
        parts.entries.insert(key, stored);
    }
    Ok(())
}

fn load_log(connection: &Connection, parts: &mut Parts) -> Result<(), LoadError> {
    let mut statement = connection
        .prepare("SELECT revision, key, value, created, checksum FROM log ORDER BY revision, position")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let revision = number(row, 0)?;
        let key: Arc<str> = row.get(1)?;
        let value = row.get_ref(2)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
        let created = number(row, 3)?;
        if log_checksum(revision, &key, value, created) != row.get::<_, i64>(4)? {
            return Err(LoadError::Damaged(format!(
                "the history of revision {revision} is not what was written"
            )));
        }
        let event = match value {
            None => Changed::Deleted { key },
            // History does not say which lease a value hung on: only current values need to know.
            Some(value) => Changed::Put { key, value: value.into(), created, lease: None },
        };
        match parts.changes.last_mut() {
            Some(last) if last.revision == revision => last.events.push(event),
            Some(last) if last.revision + 1 != revision => {
                return Err(LoadError::Damaged(format!("history has a gap before revision {revision}")));
            }
            _ => parts.changes.push(Change { revision, events: vec![event] }),
        }
    }
    match parts.changes.last().map_or(0, |last| last.revision) {
        newest if newest == parts.revision => Ok(()),
        newest => Err(LoadError::Damaged(format!(
            "history ends at revision {newest}, the store is at {}",
            parts.revision
        ))),
    }
}
