//! Writes to one open connection, in transactions of SQLite's.

use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Statement, ffi, params};

use super::file::{entry_checksum, log_checksum, to_sql};
use crate::memory::{Change, Changed};
use crate::{LeaseId, Revision};

/// A commit that did not succeed.
#[derive(Debug)]
pub enum Failed {
    /// Nothing is on disk; the session can go on.
    Refused(String),
    /// It may be on disk. The session must end, and the file be read again: after a failed sync the kernel may have
    /// dropped what it could not write, and would not say so again.
    Unknown(String),
}

pub struct Session<'c> {
    connection: &'c Connection,
    begin: Statement<'c>,
    commit: Statement<'c>,
    put: Statement<'c>,
    delete: Statement<'c>,
    log: Statement<'c>,
    prune: Statement<'c>,
    set_revision: Statement<'c>,
    set_epoch: Statement<'c>,
    grant: Statement<'c>,
    set_last_lease: Statement<'c>,
    revoke: Statement<'c>,
    #[cfg(test)]
    fail_next: Option<Failed>,
}

/// What goes to disk together.
#[derive(Debug, Default)]
pub struct Work<'a> {
    pub changes: &'a [Change],
    /// History up to here may go.
    pub prune: Option<Revision>,
    pub epoch: Option<u64>,
    pub grant: Option<(LeaseId, Duration)>,
    pub revoke: Option<LeaseId>,
}

impl<'c> Session<'c> {
    pub fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let prepare = |sql| connection.prepare(sql);
        Ok(Self {
            connection,
            begin: prepare("BEGIN IMMEDIATE")?,
            commit: prepare("COMMIT")?,
            put: prepare(
                "INSERT INTO entries (key, value, created, modified, lease, checksum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, created = excluded.created,
                 modified = excluded.modified, lease = excluded.lease, checksum = excluded.checksum",
            )?,
            delete: prepare("DELETE FROM entries WHERE key = ?1")?,
            log: prepare("INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?,
            prune: prepare("DELETE FROM log WHERE revision <= ?1")?,
            set_revision: prepare("UPDATE meta SET revision = ?1")?,
            set_epoch: prepare("UPDATE meta SET epoch = ?1")?,
            grant: prepare("INSERT INTO leases VALUES (?1, ?2)")?,
            set_last_lease: prepare("UPDATE meta SET last_lease = ?1")?,
            revoke: prepare("DELETE FROM leases WHERE id = ?1")?,
            #[cfg(test)]
            fail_next: None,
        })
    }

    pub fn connection(&self) -> &'c Connection {
        self.connection
    }

    #[cfg(test)]
    pub fn fail_next(&mut self, failed: Failed) {
        self.fail_next = Some(failed);
    }

    /// All of it, synced, or nothing.
    pub fn write(&mut self, work: &Work<'_>) -> Result<(), Failed> {
        #[cfg(test)]
        if let Some(failed) = self.fail_next.take() {
            if matches!(failed, Failed::Unknown(_)) {
                self.write(work)?;
            }
            return Err(failed);
        }
        let result = self.begin.execute([]).and_then(|_| self.statements(work));
        // Nothing is on disk before the commit, whatever went wrong.
        let result = result.map_err(|e| Failed::Refused(e.to_string()));
        let result = result.and_then(|()| match self.commit.execute([]) {
            Ok(_) => Ok(()),
            Err(error) => Err(classify(&error)),
        });
        if result.is_err()
            && !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            return Err(Failed::Unknown(error.to_string()));
        }
        result
    }

    fn statements(&mut self, work: &Work<'_>) -> rusqlite::Result<()> {
        for change in work.changes {
            self.change(change)?;
        }
        if let Some(last) = work.changes.last() {
            self.set_revision.execute([to_sql(last.revision)])?;
        }
        if let Some(floor) = work.prune {
            self.prune.execute([to_sql(floor)])?;
        }
        if let Some(epoch) = work.epoch {
            self.set_epoch.execute([to_sql(epoch)])?;
        }
        if let Some((lease, ttl)) = work.grant {
            let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            self.grant.execute([to_sql(lease.0), ttl_ms])?;
            self.set_last_lease.execute([to_sql(lease.0)])?;
        }
        if let Some(lease) = work.revoke {
            self.revoke.execute([to_sql(lease.0)])?;
        }
        Ok(())
    }

    fn change(&mut self, change: &Change) -> rusqlite::Result<()> {
        let revision = change.revision;
        for (position, event) in (0i64..).zip(&change.events) {
            let (value, created) = match event {
                Changed::Deleted { key } => {
                    self.delete.execute([key])?;
                    (None, 0)
                }
                Changed::Put { key, value, created, lease } => {
                    let checksum = entry_checksum(key, value, *created, revision, *lease);
                    let lease = lease.map(|lease| to_sql(lease.0));
                    self.put.execute(params![
                        key,
                        &value[..],
                        to_sql(*created),
                        to_sql(revision),
                        lease,
                        checksum
                    ])?;
                    (Some(&value[..]), *created)
                }
            };
            let key = event.key();
            let checksum = log_checksum(revision, key, value, created);
            self.log.execute(params![to_sql(revision), position, key, value, to_sql(created), checksum])?;
        }
        Ok(())
    }
}

/// The commit record is the last thing that a commit writes before it syncs. A write that was refused left it out; a
/// sync that failed says nothing about what is on disk.
fn classify(error: &rusqlite::Error) -> Failed {
    let refused = matches!(
        (error.sqlite_error_code(), error.sqlite_extended_error_code()),
        (Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::OutOfMemory), _)
            | (_, Some(ffi::SQLITE_IOERR_WRITE))
    );
    if refused { Failed::Refused(error.to_string()) } else { Failed::Unknown(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_that_was_refused_is_known_not_to_have_happened() {
        let error = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE] {
            assert!(matches!(classify(&error(code)), Failed::Refused(_)), "{code}");
        }
        for code in
            [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC, ffi::SQLITE_IOERR, ffi::SQLITE_CORRUPT]
        {
            assert!(matches!(classify(&error(code)), Failed::Unknown(_)), "{code}");
        }
    }
}
