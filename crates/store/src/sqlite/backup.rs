//! A consistent copy of an open store.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::file::{sync_parent, with_suffix};
use crate::StoreError;

/// Written beside its place, synced and then given its name.
pub fn write(from: &Connection, to: &Path) -> Result<(), StoreError> {
    let failed = |detail: &dyn std::fmt::Display| {
        StoreError::Unavailable(format!("can't write a backup to {}: {detail}", to.display()))
    };
    if to.symlink_metadata().is_ok() {
        return Err(failed(&"it exists already"));
    }
    let part = with_suffix(to, &format!(".part-{}", std::process::id()));
    let result = copy(from, &part)
        .and_then(|()| File::open(&part)?.sync_all())
        // Fails, rather than overwrites, if somebody was faster.
        .and_then(|()| fs::hard_link(&part, to));
    let removed = fs::remove_file(&part);
    result.and(removed).and_then(|()| sync_parent(to)).map_err(|e| failed(&e))
}

fn copy(from: &Connection, part: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part)?;
    let copy = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut into = Connection::open_with_flags(part, flags)?;
        // It is synced once, at the end, and worthless until then.
        into.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
        let backup = Backup::new(from, &mut into)?;
        // In one step: the connection is ours alone, so it never waits, and nothing changes meanwhile.
        let step = backup.step(-1)?;
        drop(backup);
        into.close().map_err(|(_, error)| error)?;
        Ok::<_, rusqlite::Error>(step)
    };
    match copy().map_err(io::Error::other)? {
        StepResult::Done => Ok(()),
        other => Err(io::Error::other(format!("the copy is not complete ({other:?})"))),
    }
}
