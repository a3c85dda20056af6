//! The audit trail on disk: appended and synced before a change is begun, and again before it is answered.
//!
//! Records are chained by their hashes ([`rung_api::audit`]) in files of bounded size and number; the chain goes on from
//! file to file. Room for what is still to be told of a change is reserved on the disk before the change is begun: so a
//! change that can't be recorded is refused, and one that was made is never left untold because the disk has filled up
//! meanwhile.

mod copies;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use rung_api::audit::{Act, AuditEntry, AuditRecord, Head, KeptTrail, NOTHING_BEFORE};
use tokio::sync::watch;

pub(crate) use copies::Whose;
use copies::{Copies, CopyError};

/// A file of the trail is closed at this size; a change takes about 600 bytes.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// So many files are kept: the last fifty thousand changes or so.
const FILES_MAX: usize = 8;

/// Reserved ahead at a time, and always left beyond what is written: room for the ends of all changes that go on.
const RESERVE_BYTES: u64 = 512 * 1024;
const ROOM_BYTES: u64 = 128 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct Audit {
    trail: Arc<Mutex<Trail>>,
    /// The sequence of the last record that is durable.
    last: Arc<watch::Sender<u64>>,
    /// Of other servers.
    copies: Copies,
}

#[derive(Debug)]
struct Trail {
    directory: PathBuf,
    limits: Limits,
    file: File,
    length: u64,
    /// Up to where the disk has given room.
    reserved: u64,
    next: u64,
    previous: String,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    file_bytes: u64,
    files: usize,
}

impl Audit {
    pub fn open(directory: &Path) -> io::Result<Self> {
        Self::with_limits(directory, Limits { file_bytes: FILE_MAX_BYTES, files: FILES_MAX })
    }

    fn with_limits(directory: &Path, limits: Limits) -> io::Result<Self> {
        let trail = Trail::open(directory, limits)?;
        let last = Arc::new(watch::Sender::new(trail.next - 1));
        let copies = Copies::open(&directory.join("of"))?;
        Ok(Self { trail: Arc::new(Mutex::new(trail)), last, copies })
    }

    /// Writes durably; answers the record's sequence.
    pub async fn append(&self, act: Act) -> io::Result<u64> {
        let (trail, last) = (Arc::clone(&self.trail), Arc::clone(&self.last));
        blocking(move || {
            let mut trail = trail.lock().expect("no panic while held");
            let appended = trail.append(act, Timestamp::now());
            // A file that was begun has said so in a record of its own.
            last.send_replace(trail.next - 1);
            appended
        })
        .await
    }

    /// Records after a sequence, at most `limit` of them. What is not durable yet is told to nobody.
    pub async fn after(&self, sequence: u64, limit: usize) -> io::Result<Vec<AuditRecord>> {
        let (directory, _, last) = self.place();
        blocking(move || read_after(&directory, sequence, last, limit)).await
    }

    /// Waits for a record after a sequence, at the latest for `wait`.
    pub async fn wait_beyond(&self, sequence: u64, wait: Duration) {
        let mut last = self.last.subscribe();
        let _ = tokio::time::timeout(wait, last.wait_for(|last| *last > sequence)).await;
    }

    /// The sequence of the last record; 0 before the first.
    pub fn last(&self) -> u64 {
        *self.last.borrow()
    }

    fn place(&self) -> (PathBuf, Option<Head>, u64) {
        let trail = self.trail.lock().expect("no panic while held");
        let sequence = trail.next - 1;
        let head = (sequence > 0).then(|| Head { sequence, hash: trail.previous.clone() });
        (trail.directory.clone(), head, sequence)
    }

    /// The newest records of every trail that is here, the own one first.
    pub async fn tails(&self, own: Whose, count: usize) -> io::Result<Vec<KeptTrail>> {
        let ((directory, head, last), copies) = (self.place(), self.copies.clone());
        blocking(move || {
            let records = read_after(&directory, last.saturating_sub(count as u64), last, count)?;
            let (server, joined) = own;
            let mut all = vec![KeptTrail { server, joined, records, head, trouble: None }];
            all.extend(copies.tails(count)?);
            Ok(all)
        })
        .await
    }

    /// Up to where another server's trail is copied here.
    pub async fn copied(&self, whose: &Whose) -> Option<Head> {
        let (copies, whose) = (self.copies.clone(), whose.clone());
        blocking(move || copies.head(&whose)).await
    }

    /// Goes on with the copy of another server's trail, durably.
    pub async fn copy(&self, whose: &Whose, records: Vec<AuditRecord>) -> Result<(), CopyError> {
        let (copies, whose) = (self.copies.clone(), whose.clone());
        blocking(move || copies.append(&whose, &records)).await
    }

    pub async fn copy_after(
        &self,
        whose: Whose,
        sequence: u64,
        limit: usize,
    ) -> io::Result<Vec<AuditRecord>> {
        let copies = self.copies.clone();
        blocking(move || copies.after(&whose, sequence, limit)).await
    }

    /// Of servers that are none any more only the last copies are kept.
    pub async fn forget_old_copies(&self, servers: Vec<Whose>) {
        let copies = self.copies.clone();
        blocking(move || copies.forget_old(|whose| servers.contains(whose))).await;
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.expect("reading and writing trails does not panic")
}

impl Trail {
    fn open(directory: &Path, limits: Limits) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let newest = files(directory)?.pop();
        let (first, path) = newest.unwrap_or_else(|| (1, file_path(directory, 1)));
        let file = open_file(&path)?;
        sync_directory(directory)?;
        let (length, last) = last_record(&path)?;
        // A line without its end was being written when the power went: nobody was answered, and nothing was begun.
        file.set_len(length)?;
        let (next, previous) = match last {
            Some((sequence, record)) => (sequence + 1, record.hash),
            None => (first, previous_of(directory, first)?),
        };
        let mut trail =
            Self { directory: directory.to_owned(), limits, file, length, reserved: length, next, previous };
        // On a full disk the server starts nevertheless; changes are refused until there is room.
        let _ = trail.reserve();
        Ok(trail)
    }

    fn append(&mut self, act: Act, at: Timestamp) -> io::Result<u64> {
        let begins = matches!(act, Act::Asked { .. });
        if begins {
            self.rotate_when_full(at)?;
            self.reserve()?;
        }
        self.write(act, at)
    }

    fn write(&mut self, act: Act, at: Timestamp) -> io::Result<u64> {
        let sequence = self.next;
        let entry = AuditEntry { sequence, at, previous: self.previous.clone(), act };
        let record = AuditRecord::of(serde_json::to_string(&entry).expect("wire types serialize"));
        let line = format!("{} {}\n", record.hash, record.text);
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What is half written must not stand before what comes next; if even this fails, reading stops there.
            let _ = self.file.set_len(self.length);
            self.reserved = self.length;
            return Err(error);
        }
        self.length += line.len() as u64;
        self.next += 1;
        self.previous = record.hash;
        Ok(sequence)
    }

    /// Makes sure that what is still to be told has its place on the disk.
    fn reserve(&mut self) -> io::Result<()> {
        if self.length + ROOM_BYTES <= self.reserved {
            return Ok(());
        }
        let (offset, more) = (self.length.cast_signed(), RESERVE_BYTES.cast_signed());
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, more) {
            // Where the file system can't promise room, it is found out by writing.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                self.reserved = self.length + RESERVE_BYTES;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn rotate_when_full(&mut self, at: Timestamp) -> io::Result<()> {
        if self.length < self.limits.file_bytes {
            return Ok(());
        }
        let file = open_file(&file_path(&self.directory, self.next))?;
        sync_directory(&self.directory)?;
        (self.file, self.length, self.reserved) = (file, 0, 0);
        self.reserve()?;
        let mut kept = files(&self.directory)?;
        let excess = kept.len().saturating_sub(self.limits.files);
        let dropped: Vec<_> = kept.drain(..excess).collect();
        if let (Some((first, _)), false) = (kept.first(), dropped.is_empty()) {
            // Told before it is done: a beginning that is missing without a word shows.
            self.write(Act::Shortened { first: *first }, at)?;
        }
        dropped.iter().try_for_each(|(_, path)| std::fs::remove_file(path))
    }
}

fn file_path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("audit-{first:012}.log"))
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The files with the sequence that each begins with, oldest first.
fn files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let first = name.strip_prefix("audit-").and_then(|rest| rest.strip_suffix(".log")?.parse().ok());
        found.extend(first.map(|first| (first, path.clone())));
    }
    found.sort();
    Ok(found)
}

/// Whole lines of a file, as they are kept.
fn records(path: &Path) -> io::Result<impl Iterator<Item = io::Result<(usize, AuditRecord)>>> {
    let mut reader = BufReader::new(File::open(path)?);
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Err(error) => Some(Err(error)),
            Ok(_) if !line.ends_with(b"\n") => None,
            Ok(length) => {
                // A line that was damaged is shown as it is: checking it finds that out.
                let text = String::from_utf8_lossy(&line);
                let (hash, text) = text.trim_end().split_once(' ').unwrap_or_default();
                Some(Ok((length, AuditRecord { hash: hash.to_owned(), text: text.to_owned() })))
            }
        }
    }))
}

/// Up to where whole records go, and the last of them.
fn last_record(path: &Path) -> io::Result<(u64, Option<(u64, AuditRecord)>)> {
    let (mut length, mut last) = (0, None);
    for read in records(path)? {
        let (bytes, record) = read?;
        length += bytes as u64;
        // Counting goes on from the last one that can be read; what is damaged behind it shows as a gap.
        if let Ok(entry) = record.entry() {
            last = Some((entry.sequence, record));
        }
    }
    Ok((length, last))
}

/// The hash that the first record of a fresh file names: of the last one in the file before.
fn previous_of(directory: &Path, first: u64) -> io::Result<String> {
    let before = files(directory)?.into_iter().rfind(|(begins, _)| *begins < first);
    let last = before.map(|(_, path)| last_record(&path)).transpose()?.and_then(|(_, last)| last);
    Ok(last.map_or_else(|| NOTHING_BEFORE.to_owned(), |(_, record)| record.hash))
}

/// Records after a sequence, up to the one that is the last. One that can't be read is given as it is.
fn read_after(directory: &Path, sequence: u64, last: u64, limit: usize) -> io::Result<Vec<AuditRecord>> {
    let all = files(directory)?;
    // The last file that begins at or before what is wanted holds it.
    let from = all.iter().rposition(|(first, _)| *first <= sequence + 1).unwrap_or(0);
    let mut found = Vec::new();
    for (_, path) in &all[from..] {
        for read in records(path)? {
            let (_, record) = read?;
            match record.entry() {
                Ok(entry) if entry.sequence <= sequence => continue,
                // It is being written.
                Ok(entry) if entry.sequence > last => return Ok(found),
                Ok(_) | Err(_) => {}
            }
            found.push(record);
            if found.len() == limit {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rung_api::audit::{Broken, Verifier};

    use super::*;

    fn asked(n: u64) -> Act {
        Act::Asked {
            who: "ci".into(),
            from: "192.0.2.1".into(),
            what: format!("Change number {n}"),
            method: "POST".into(),
            path: "/v1/apps/shop/scale".into(),
            app: Some("shop".into()),
        }
    }

    fn verified(directory: &Path) -> Result<(u64, u64), Broken> {
        let mut verifier = Verifier::new(None);
        let all = read_after(directory, 0, u64::MAX, usize::MAX).unwrap();
        all.iter().try_for_each(|record| verifier.push(record))?;
        Ok(verifier.end()?.map_or((0, 0), |(first, last)| (first, last.sequence)))
    }

    fn write(trail: &mut Trail, count: u64) {
        for n in 0..count {
            trail.append(asked(n), Timestamp::UNIX_EPOCH).unwrap();
        }
    }

    #[test]
    fn the_chain_goes_on_over_restarts_and_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { file_bytes: FILE_MAX_BYTES, files: FILES_MAX };
        write(&mut Trail::open(dir.path(), limits).unwrap(), 3);
        let path = file_path(dir.path(), 1);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"00ff {\"sequence\":4,").unwrap();
        let mut trail = Trail::open(dir.path(), limits).unwrap();
        write(&mut trail, 2);
        assert_eq!(verified(dir.path()), Ok((1, 5)), "a torn line broke the chain");
    }

    #[test]
    fn old_files_go_and_say_so_and_a_beginning_that_was_taken_away_shows() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { file_bytes: 2000, files: 3 };
        let mut trail = Trail::open(dir.path(), limits).unwrap();
        write(&mut trail, 60);
        let kept = files(dir.path()).unwrap();
        assert!(kept.len() <= 3, "{} files are kept", kept.len());
        let (first, last) = verified(dir.path()).expect("the chain goes on from file to file");
        assert!(first > 1 && last > 60, "{first} to {last}");
        let mut again = Trail::open(dir.path(), limits).unwrap();
        write(&mut again, 1);
        verified(dir.path()).expect("a fresh file goes on after a restart");
        std::fs::remove_file(&files(dir.path()).unwrap()[0].1).unwrap();
        assert!(matches!(verified(dir.path()), Err(Broken::Start { .. })), "the oldest file is gone");
    }

    #[test]
    fn a_page_goes_on_where_the_one_before_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut trail = Trail::open(dir.path(), Limits { file_bytes: 1000, files: 100 }).unwrap();
        write(&mut trail, 25);
        let mut seen = Vec::new();
        loop {
            let page = read_after(dir.path(), seen.last().copied().unwrap_or(0), u64::MAX, 4).unwrap();
            if page.is_empty() {
                break;
            }
            seen.extend(page.iter().map(|record| record.entry().unwrap().sequence));
        }
        assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    }
}
