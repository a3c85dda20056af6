//! What the agent must remember over its own restart.
//!
//! Ports and attempts are written before the process they belong to exists. A machine that loses power loses the
//! processes with them, so only user numbers, which files on volumes carry, are synced to the disk at once.
//! Environments hold secrets: they are kept sealed with the node's own key.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rung_api::seal::{KeyError, SealKey, write_private};
use rung_api::wire::Launch;
use rung_model::{AppName, AssignedInstance, Assignment, Document, InstanceId, ReleaseNumber, Users};
use serde::{Deserialize, Serialize};

use crate::firewall::Doors;
use crate::layout::Layout;

/// Above what distributions give to people and services, below 65534's neighbours of old systems' overflow and the
/// ranges of user namespaces (100000 and up).
pub const UIDS: std::ops::RangeInclusive<u32> = 70_000..=99_999;
pub const PORTS: std::ops::RangeInclusive<u16> = 20_000..=29_999;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("reading {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} is damaged; stop every instance, move the file away, and start again")]
    Damaged { path: String, source: serde_json::Error },
    #[error("writing {path}")]
    Write { path: String, source: io::Error },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("no user number is free for {0}: 30000 are taken")]
    NoUid(String),
    #[error("no port from 20000 to 29999 is free")]
    NoPort,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    pub assigned: AssignedInstance,
    pub attempt: u32,
    pub port: Option<u16>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Book {
    instances: BTreeMap<InstanceId, Entry>,
    /// By app, and by app and purpose (`shop/build`).
    #[serde(default)]
    uids: BTreeMap<String, u32>,
    /// Ports are given in turn, so that a port that was just left is not given at once to somebody else.
    #[serde(default)]
    next_port: u16,
    /// When the newest agent began, by its own account.
    #[serde(default)]
    began: Option<jiff::Timestamp>,
}

impl Book {
    /// Where the ports begin differs with the directory: two Rungs on one machine (tests, mostly) would otherwise find
    /// the same port free in the same moment.
    fn new(layout: &Layout) -> Self {
        let path = layout.root().as_os_str().as_encoded_bytes();
        let hash = path.iter().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        let offset = u16::try_from(hash % u32::from(PORTS.end() - PORTS.start())).expect("less than 10000");
        Self { next_port: PORTS.start() + offset, ..Self::default() }
    }
}

#[derive(Debug)]
pub struct Ledger {
    layout: Layout,
    key: SealKey,
    book: Book,
    /// Shared: a release with a thousand jobs is large, and each run and each probe looks at it.
    launches: BTreeMap<(AppName, ReleaseNumber), Arc<Launch>>,
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LedgerError> {
    let name = || path.display().to_string();
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| LedgerError::Damaged { path: name(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Read { path: name(), source }),
    }
}

/// Whole or not at all; a power loss may bring the old one back.
fn write_quickly(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let fail = |source| LedgerError::Write { path: path.display().to_string(), source };
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

impl Ledger {
    pub fn open(layout: Layout) -> Result<Self, LedgerError> {
        let key = SealKey::ensure(&layout.key())?;
        let book: Book = read_json(&layout.ledger())?.unwrap_or_else(|| Book::new(&layout));
        let mut ledger = Self { layout, key, book, launches: BTreeMap::new() };
        ledger.read_launches();
        ledger.tell_users()?;
        Ok(ledger)
    }

    /// Those that can't be read are fetched again.
    fn read_launches(&mut self) {
        let Ok(entries) = fs::read_dir(self.layout.launches()) else { return };
        for entry in entries.flatten() {
            let context = entry.file_name().to_string_lossy().into_owned();
            if context.ends_with(".tmp") {
                // Of an agent that was killed while it wrote: the whole one comes again, or is there already.
                let _ = fs::remove_file(entry.path());
                continue;
            }
            let launch = fs::read(entry.path())
                .ok()
                .and_then(|sealed| self.key.open(&context, &sealed).ok())
                .and_then(|bytes| serde_json::from_slice::<Launch>(&bytes).ok());
            match launch {
                Some(launch) => {
                    let key = (launch.release.app.clone(), launch.release.number);
                    self.launches.insert(key, Arc::new(launch));
                }
                None => tracing::warn!(launch = context, "a kept launch can't be read; it is fetched again"),
            }
        }
    }

    /// The moment that orders this agent's reports after those of the agents before it: now, unless the clock was set
    /// back since then. The server would pass over every report until the clock has caught up.
    pub fn begin(&mut self, now: jiff::Timestamp) -> Result<jiff::Timestamp, LedgerError> {
        let after_last = self.book.began.map(|last| last + std::time::Duration::from_millis(1));
        let began = after_last.map_or(now, |after| after.max(now));
        self.book.began = Some(began);
        self.save()?;
        Ok(began)
    }

    pub fn instances(&self) -> &BTreeMap<InstanceId, Entry> {
        &self.book.instances
    }

    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.launches.values().map(Arc::as_ref)
    }

    pub fn launch(&self, app: &AppName, release: ReleaseNumber) -> Option<&Arc<Launch>> {
        self.launches.get(&(app.clone(), release))
    }

    pub fn assignment(&self) -> Result<Option<Assignment>, LedgerError> {
        read_json(&self.layout.assignment())
    }

    pub fn record_assignment(&self, assignment: &Assignment) -> Result<(), LedgerError> {
        let bytes = assignment.to_json();
        write_quickly(&self.layout.assignment(), &bytes)
    }

    pub fn record_launch(&mut self, launch: Arc<Launch>) -> Result<(), LedgerError> {
        let path = self.layout.launch(&launch.release.app, launch.release.number);
        let context =
            path.file_name().expect("it ends with the release's name").to_string_lossy().into_owned();
        let bytes = serde_json::to_vec(&*launch).expect("a launch serializes");
        self.launches.insert((launch.release.app.clone(), launch.release.number), launch);
        let sealed = self.key.seal(&context, &bytes);
        write_private(&path, &sealed)
            .map_err(|source| LedgerError::Write { path: path.display().to_string(), source })
    }

    /// Forgets the environments that no instance needs any more.
    pub fn keep_launches(&mut self, wanted: &BTreeSet<(AppName, ReleaseNumber)>) {
        let layout = self.layout.clone();
        self.launches.retain(|(app, release), _| {
            let keep = wanted.contains(&(app.clone(), *release));
            if !keep {
                let _ = fs::remove_file(layout.launch(app, *release));
            }
            keep
        });
    }

    fn save(&self) -> Result<(), LedgerError> {
        write_quickly(&self.layout.ledger(), &serde_json::to_vec(&self.book).expect("a ledger serializes"))
    }

    /// Written before the launch that it describes.
    pub fn record(&mut self, id: &InstanceId, entry: Entry) -> Result<(), LedgerError> {
        self.book.instances.insert(id.clone(), entry);
        self.save()
    }

    pub fn forget(&mut self, id: &InstanceId) -> Result<(), LedgerError> {
        self.book.instances.remove(id);
        self.save()
    }

    /// A port that nobody listens on and no other instance has; the wanted one when it is such.
    pub fn pick_port(&mut self, id: &InstanceId, wanted: Option<u16>) -> Result<u16, LedgerError> {
        let others: BTreeSet<u16> = self
            .book
            .instances
            .iter()
            .filter(|(other, _)| *other != id)
            .filter_map(|(_, e)| e.port)
            .collect();
        let is_free = |port: &u16| {
            !others.contains(port)
                && std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, *port)).is_ok()
        };
        if let Some(port) = wanted.filter(is_free) {
            return Ok(port);
        }
        let first = self.book.next_port.clamp(*PORTS.start(), *PORTS.end());
        let in_turn = (first..=*PORTS.end()).chain(*PORTS.start()..first);
        let port = in_turn.into_iter().find(is_free).ok_or(LedgerError::NoPort)?;
        self.book.next_port = port + 1;
        Ok(port)
    }

    /// The ports of all instances, each with the user of its app; containers run as nobody of this machine.
    pub fn doors(&self) -> Doors {
        let of_entry =
            |entry: &Entry| Some((entry.port?, self.book.uids.get(entry.assigned.app.as_str()).copied()));
        self.book.instances.values().filter_map(of_entry).collect()
    }

    /// The user number of an app, the same for ever: files on its volumes belong to it.
    pub fn uid(&mut self, owner: &str) -> Result<u32, LedgerError> {
        if let Some(&uid) = self.book.uids.get(owner) {
            return Ok(uid);
        }
        let taken: BTreeSet<u32> = self.book.uids.values().copied().collect();
        let uid = UIDS
            .into_iter()
            .find(|uid| !taken.contains(uid))
            .ok_or_else(|| LedgerError::NoUid(owner.into()))?;
        self.book.uids.insert(owner.to_owned(), uid);
        let path = self.layout.ledger();
        write_private(&path, &serde_json::to_vec(&self.book).expect("a ledger serializes"))
            .map_err(|source| LedgerError::Write { path: path.display().to_string(), source })?;
        self.tell_users()?;
        Ok(uid)
    }

    /// Says whose the users are, for the proxy: by them it tells who calls. Before the first process of a user is there.
    fn tell_users(&self) -> Result<(), LedgerError> {
        if self.book.uids.is_empty() {
            return Ok(());
        }
        // What builds run as calls nobody, and is no app's name.
        let of_app = |(owner, uid): (&String, &u32)| Some((*uid, AppName::new(owner.as_str()).ok()?));
        let users = Users(self.book.uids.iter().filter_map(of_app).collect());
        write_quickly(&self.layout.users(), &serde_json::to_vec(&users).expect("users serialize"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_starts_after_the_clock_was_set_back_is_still_the_newer_one() {
        let directory = tempfile::tempdir().unwrap();
        let layout = || Layout::new(directory.path().to_owned());
        let noon = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        let first = Ledger::open(layout()).unwrap().begin(noon).unwrap();
        assert_eq!(first, noon);
        let hour = std::time::Duration::from_secs(3600);
        let second = Ledger::open(layout()).unwrap().begin(noon - hour).unwrap();
        assert!(second > first, "its reports would be taken for older ones: {second}");
        let third = Ledger::open(layout()).unwrap().begin(noon + hour).unwrap();
        assert_eq!(third, noon + hour, "the clock is believed again as soon as it is ahead");
    }
}
