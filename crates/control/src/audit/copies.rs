//! Copies of the trails of other servers: what somebody changed on a lost machine, or was made to disappear there, is
//! known elsewhere.
//!
//! A copy takes a record only when it belongs behind the last one. What does not is another trail than the one that was
//! copied: then the copy stays as it is, and says so, until a person has looked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use rung_api::audit::{Act, AuditRecord, Broken, Head, KeptTrail, Verifier};
use rung_model::NodeId;

use super::{FILE_MAX_BYTES, file_path, files, last_record, open_file, read_after, sync_directory};

/// So many copies of servers that are none any more are kept, the last ones that were written to.
const GONE_MAX: usize = 8;

/// A server by its name, and by when it joined: another machine may come under the same name.
pub(crate) type Whose = (NodeId, Timestamp);

#[derive(Debug, Clone)]
pub(crate) struct Copies {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    copies: BTreeMap<Whose, Copy>,
}

#[derive(Debug)]
struct Copy {
    directory: PathBuf,
    file: File,
    length: u64,
    head: Option<Head>,
    /// Why nothing is copied any more.
    trouble: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("what it tells does not follow what it has told before: {0}")]
    Other(#[from] Broken),
    #[error("writing the copy")]
    Write(#[from] io::Error),
}

impl Copies {
    pub fn open(directory: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut copies = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if let Some(whose) = whose(&path) {
                copies.insert(whose, Copy::open(path)?);
            }
        }
        Ok(Self { inner: Arc::new(Mutex::new(Inner { directory: directory.to_owned(), copies })) })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().expect("no panic while held"))
    }

    /// Up to where there is a copy. One that a person has moved away is begun anew. Blocks.
    pub fn head(&self, whose: &Whose) -> Option<Head> {
        self.with(|inner| {
            let copy = inner.copies.get(whose)?;
            if !copy.directory.exists() {
                inner.copies.remove(whose);
                return None;
            }
            copy.head.clone()
        })
    }

    /// Durable when this returns. Blocks.
    pub fn append(&self, whose: &Whose, records: &[AuditRecord]) -> Result<(), CopyError> {
        self.with(|inner| {
            if !inner.copies.contains_key(whose) {
                let path = inner.directory.join(name_of(whose));
                std::fs::create_dir(&path)?;
                sync_directory(&inner.directory)?;
                inner.copies.insert(whose.clone(), Copy::open(path)?);
            }
            let copy = inner.copies.get_mut(whose).expect("it was made just now");
            let appended = copy.append(records);
            copy.trouble = match &appended {
                Err(error @ CopyError::Other(_)) => Some(error.to_string()),
                Err(CopyError::Write(error)) => Some(format!("writing the copy: {error}")),
                Ok(()) => None,
            };
            appended
        })
    }

    /// The newest records of each copy. Blocks.
    pub fn tails(&self, count: usize) -> io::Result<Vec<KeptTrail>> {
        let known: Vec<_> = self.with(|inner| {
            let copies = inner.copies.iter();
            let known = |(whose, copy): (&Whose, &Copy)| {
                (whose.clone(), copy.directory.clone(), copy.head.clone(), copy.trouble.clone())
            };
            copies.map(known).collect()
        });
        let read = known.into_iter().map(|((server, joined), directory, head, trouble)| {
            let last = head.as_ref().map_or(0, |head| head.sequence);
            let records = read_after(&directory, last.saturating_sub(count as u64), last, count)?;
            Ok(KeptTrail { server, joined, records, head, trouble })
        });
        read.collect()
    }

    /// Blocks.
    pub fn after(&self, whose: &Whose, sequence: u64, limit: usize) -> io::Result<Vec<AuditRecord>> {
        let found = self.with(|inner| {
            let copy = inner.copies.get(whose)?;
            Some((copy.directory.clone(), copy.head.as_ref()?.sequence))
        });
        found.map_or(Ok(Vec::new()), |(directory, last)| read_after(&directory, sequence, last, limit))
    }

    /// Of servers that are none any more only the last ones are kept. Blocks.
    pub fn forget_old(&self, is_server: impl Fn(&Whose) -> bool) {
        self.with(|inner| {
            let gone = inner.copies.iter().filter(|(whose, _)| !is_server(whose));
            let written = |copy: &Copy| copy.file.metadata().and_then(|file| file.modified()).ok();
            let mut gone: Vec<_> = gone.map(|(whose, copy)| (written(copy), whose.clone())).collect();
            gone.sort();
            for (_, whose) in gone.iter().rev().skip(GONE_MAX) {
                if let Some(copy) = inner.copies.remove(whose)
                    && let Err(error) = std::fs::remove_dir_all(&copy.directory)
                {
                    tracing::warn!(server = %whose.0, %error, "removing the copy of an old audit trail");
                }
            }
        });
    }
}

impl Copy {
    fn open(directory: PathBuf) -> io::Result<Self> {
        let path = files(&directory)?.pop().map_or_else(|| file_path(&directory, 1), |(_, path)| path);
        let file = open_file(&path)?;
        sync_directory(&directory)?;
        let (length, last) = last_record(&path)?;
        file.set_len(length)?;
        let mut head = last.map(|(sequence, record)| Head { sequence, hash: record.hash });
        if head.is_none() {
            // A file that was begun and never written.
            let before = files(&directory)?.into_iter().rfind(|(_, other)| *other != path);
            let last = before.map(|(_, path)| last_record(&path)).transpose()?.and_then(|(_, last)| last);
            head = last.map(|(sequence, record)| Head { sequence, hash: record.hash });
        }
        Ok(Self { directory, file, length, head, trouble: None })
    }

    fn append(&mut self, records: &[AuditRecord]) -> Result<(), CopyError> {
        let mut verifier = Verifier::behind(self.head.clone());
        let (mut lines, mut begins) = (String::new(), None);
        let checked = records.iter().try_for_each(|record| {
            verifier.push(record)?;
            lines += &format!("{} {}\n", record.hash, record.text);
            if let Ok(Act::Shortened { first }) = record.entry().map(|entry| entry.act) {
                begins = Some(first);
            }
            Ok::<(), Broken>(())
        });
        // What stands before the one that does not belong is kept.
        if !lines.is_empty() {
            self.write(&lines, verifier.last().cloned())?;
        }
        if let Some(begins) = begins {
            self.drop_before(begins)?;
        }
        Ok(checked?)
    }

    fn write(&mut self, lines: &str, head: Option<Head>) -> io::Result<()> {
        if self.length >= FILE_MAX_BYTES {
            let next = self.head.as_ref().map_or(1, |head| head.sequence + 1);
            self.file = open_file(&file_path(&self.directory, next))?;
            self.length = 0;
            sync_directory(&self.directory)?;
        }
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += lines.len() as u64;
        self.head = head;
        Ok(())
    }

    /// What the server itself has dropped, and told of, need not be kept here.
    fn drop_before(&self, begins: u64) -> io::Result<()> {
        let all = files(&self.directory)?;
        for pair in all.windows(2) {
            if pair[1].0 <= begins {
                std::fs::remove_file(&pair[0].1)?;
            }
        }
        Ok(())
    }
}

/// `web-2.1772618400000000000`: names have no dot.
fn name_of((server, joined): &Whose) -> String {
    format!("{server}.{}", joined.as_nanosecond())
}

fn whose(path: &Path) -> Option<Whose> {
    let (server, joined) = path.file_name()?.to_str()?.split_once('.')?;
    Some((server.parse().ok()?, Timestamp::from_nanosecond(joined.parse().ok()?).ok()?))
}

#[cfg(test)]
mod tests {
    use rung_api::audit::{AuditEntry, NOTHING_BEFORE};

    use super::*;

    fn whose() -> Whose {
        ("web-2".parse().unwrap(), "2026-03-04T10:00:00.123456789Z".parse().unwrap())
    }

    fn chain(count: u64, status: u16) -> Vec<AuditRecord> {
        let mut previous = NOTHING_BEFORE.to_owned();
        let record = |sequence| {
            let act = Act::Ended { of: sequence, refused: None, status, note: None, by: None };
            let entry = AuditEntry { sequence, at: Timestamp::UNIX_EPOCH, previous: previous.clone(), act };
            let record = AuditRecord::of(serde_json::to_string(&entry).unwrap());
            previous.clone_from(&record.hash);
            record
        };
        (1..=count).map(record).collect()
    }

    #[test]
    fn a_copy_goes_on_over_restarts_and_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let chain = chain(6, 200);
        Copies::open(dir.path()).unwrap().append(&whose(), &chain[..3]).unwrap();
        let path = file_path(&dir.path().join(name_of(&whose())), 1);
        open_file(&path).unwrap().write_all(b"00ff {\"sequence\":4,").unwrap();
        let copies = Copies::open(dir.path()).unwrap();
        assert_eq!(copies.head(&whose()).map(|head| head.sequence), Some(3));
        copies.append(&whose(), &chain[3..]).unwrap();
        assert_eq!(copies.after(&whose(), 0, 100).unwrap(), chain);
        assert_eq!(copies.tails(2).unwrap()[0].records, chain[4..]);
    }

    #[test]
    fn a_trail_that_was_written_anew_leaves_the_copy_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(dir.path()).unwrap();
        let (kept, anew) = (chain(3, 200), chain(5, 403));
        copies.append(&whose(), &kept).unwrap();
        let refused = copies.append(&whose(), &anew[3..]);
        assert!(matches!(refused, Err(CopyError::Other(Broken::Link { sequence: 4 }))), "{refused:?}");
        let told = copies.tails(9).unwrap().pop().unwrap();
        assert_eq!(told.records, kept);
        assert!(told.trouble.unwrap().contains("record 4"), "nobody is told");
        std::fs::rename(dir.path().join(name_of(&whose())), dir.path().join("looked-at")).unwrap();
        assert_eq!(copies.head(&whose()), None, "a person has moved it away");
        copies.append(&whose(), &anew).unwrap();
        assert_eq!(copies.after(&whose(), 0, 100).unwrap(), anew);
    }

    #[test]
    fn of_servers_that_are_gone_the_last_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(dir.path()).unwrap();
        let joined = |n| (whose().0, Timestamp::from_second(n).unwrap());
        for n in 0..20 {
            copies.append(&joined(n), &chain(1, 200)).unwrap();
        }
        copies.forget_old(|whose| *whose == joined(3));
        let kept = copies.tails(1).unwrap();
        assert_eq!(kept.len(), GONE_MAX + 1);
        assert!(kept.iter().any(|trail| trail.joined == joined(3).1), "one of a server that is there");
    }
}
