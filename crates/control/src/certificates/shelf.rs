//! What the store holds of certificates, in memory, and the long polls of the ingresses that follow it.
//!
//! Marks name a state of this server's memory and mean nothing to another: an ingress that comes from another server is
//! told at once what there is, which is a list of versions. What it holds already it does not ask for again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use rung_api::wire::certificates::{CertificateNews, CertificatePoll, FileCertificate, UselessFile};
use rung_model::keys;
use rung_store::{Entry, Event, Revision, StoreError, WatchError};
use tokio::sync::watch;

use super::record::{Account, KeptChallenge, Record, challenge_key};
use crate::shared::Control;

const PAGE: usize = 100;
const AGAIN: Duration = Duration::from_millis(500);
/// An ingress that has not asked for so long is not waited for.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// What it has by file is shown for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);

/// A document and the revision that wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Kept<T> {
    pub value: T,
    pub revision: Revision,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    /// Counts changes; 0: the store has not been read yet.
    pub sequence: u64,
    /// As new as this.
    pub revision: Revision,
    pub account: Option<Kept<Account>>,
    pub records: BTreeMap<String, Kept<Record>>,
    pub challenges: BTreeMap<String, KeptChallenge>,
}

#[derive(Debug)]
struct Polled {
    acknowledged: u64,
    at: Instant,
    /// Polls that wait.
    open: u32,
    files: Vec<FileCertificate>,
    useless: Vec<UselessFile>,
}

impl Polled {
    fn is_waited_for(&self) -> bool {
        self.open > 0 || self.at.elapsed() < SILENT_AFTER
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Shelf {
    index: watch::Sender<Arc<Index>>,
    /// Tells this process's marks from others'.
    own: String,
    proxies: Mutex<BTreeMap<String, Polled>>,
}

impl Shelf {
    pub fn new() -> Self {
        let own = format!("{:016x}", fastrand::u64(..));
        Self { index: watch::Sender::default(), own, proxies: Mutex::default() }
    }

    pub fn index(&self) -> Arc<Index> {
        self.index.borrow().clone()
    }

    pub fn changes(&self) -> watch::Receiver<Arc<Index>> {
        self.index.subscribe()
    }

    /// Waits until it holds what this revision wrote. It does soon, or the store is closed.
    pub async fn reach(&self, revision: Revision) -> Arc<Index> {
        let mut changes = self.changes();
        match changes.wait_for(|index| index.revision >= revision).await {
            Ok(index) => index.clone(),
            Err(_) => self.index(),
        }
    }

    /// Waits until every ingress that follows this server shows what this index holds, or counts as silent. `false`:
    /// none follows.
    pub async fn shown(&self, sequence: u64) -> bool {
        loop {
            let states = {
                let proxies = self.proxies.lock().expect("no panic while held");
                let waited_for = proxies.values().filter(|polled| polled.is_waited_for());
                waited_for.map(|polled| polled.acknowledged >= sequence).collect::<Vec<_>>()
            };
            if states.iter().all(|shows| *shows) {
                return !states.is_empty();
            }
            // A poll comes back within milliseconds; there is nothing to wake this but the next one.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Certificates by file, and where: one that any ingress has is not ordered.
    pub fn files(&self) -> Vec<FileCertificate> {
        self.of_proxies(|polled| &polled.files)
    }

    /// Those that are of no use, and why.
    pub fn useless_files(&self) -> Vec<UselessFile> {
        self.of_proxies(|polled| &polled.useless)
    }

    fn of_proxies<T: Clone + Ord>(&self, what: impl Fn(&Polled) -> &Vec<T>) -> Vec<T> {
        let mut proxies = self.proxies.lock().expect("no panic while held");
        proxies.retain(|_, polled| polled.open > 0 || polled.at.elapsed() < FORGOTTEN_AFTER);
        let mut all: Vec<T> = proxies.values().flat_map(|polled| what(polled).clone()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Whether any ingress has asked: without one nothing can be proved to an authority.
    pub fn is_followed(&self) -> bool {
        self.proxies.lock().expect("no panic while held").values().any(Polled::is_waited_for)
    }

    pub fn leave(&self, proxy: &str) {
        self.proxies.lock().expect("no panic while held").remove(proxy);
    }

    /// `None`: the store could not be read yet.
    pub async fn poll(&self, proxy: &str, poll: CertificatePoll, wait: Duration) -> Option<CertificateNews> {
        let acknowledged = self.sequence_of(&poll.after);
        let _open = self.enter(proxy, acknowledged, poll.files, poll.useless);
        let mut changes = self.changes();
        let newer = changes.wait_for(|index| index.sequence > 0 && index.sequence != acknowledged);
        let index = match tokio::time::timeout(wait, newer).await {
            Ok(Ok(index)) => index.clone(),
            Ok(Err(_)) | Err(_) => self.index(),
        };
        (index.sequence > 0).then(|| self.news(&index))
    }

    fn sequence_of(&self, mark: &str) -> u64 {
        let own = mark.split_once('.').filter(|(own, _)| *own == self.own);
        own.and_then(|(_, sequence)| sequence.parse().ok()).unwrap_or(0)
    }

    fn enter(
        &self,
        proxy: &str,
        acknowledged: u64,
        files: Vec<FileCertificate>,
        useless: Vec<UselessFile>,
    ) -> OpenPoll<'_> {
        let mut proxies = self.proxies.lock().expect("no panic while held");
        let open = proxies.get(proxy).map_or(0, |polled| polled.open) + 1;
        proxies.insert(proxy.to_owned(), Polled { acknowledged, at: Instant::now(), open, files, useless });
        OpenPoll { shelf: self, proxy: proxy.to_owned() }
    }

    fn news(&self, index: &Index) -> CertificateNews {
        let versions = index.records.iter().filter_map(|(domain, kept)| {
            let held = kept.value.held.as_ref()?;
            Some((domain.clone(), version(&held.chain)))
        });
        CertificateNews {
            mark: format!("{}.{}", self.own, index.sequence),
            certificates: versions.collect(),
            challenges: index.challenges.values().map(|kept| kept.challenge.clone()).collect(),
        }
    }

    fn set(&self, change: impl FnOnce(&mut Index)) {
        self.index.send_modify(|held| {
            let mut index = Index::clone(held);
            change(&mut index);
            index.sequence += 1;
            *held = Arc::new(index);
        });
    }
}

/// A certificate that is renewed has another chain.
fn version(chain: &str) -> String {
    hex::encode(&digest(&SHA256, chain.as_bytes()).as_ref()[..8])
}

/// A poll that waits, until it is dropped.
struct OpenPoll<'a> {
    shelf: &'a Shelf,
    proxy: String,
}

impl Drop for OpenPoll<'_> {
    fn drop(&mut self) {
        let mut proxies = self.shelf.proxies.lock().expect("no panic while held");
        if let Some(polled) = proxies.get_mut(&self.proxy) {
            polled.open = polled.open.saturating_sub(1);
            polled.at = Instant::now();
        }
    }
}

/// Keeps the shelf as the store says.
pub(crate) async fn follow(control: Control) {
    loop {
        match read_all(&control).await {
            Ok(revision) => match control.inner.store.watch(keys::TLS, revision).await {
                Ok(mut watch) => {
                    while let Ok(batch) = watch.next().await {
                        control.inner.shelf.set(|index| {
                            batch.events.into_iter().for_each(|event| apply(index, event));
                            index.revision = batch.revision;
                        });
                    }
                }
                Err(WatchError::Compacted(_)) => {}
                Err(WatchError::Closed) => return,
            },
            Err(error) => tracing::warn!(%error, "certificates can't be read from the store"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn read_all(control: &Control) -> Result<Revision, StoreError> {
    let mut read = Index::default();
    let mut from: Option<String> = None;
    let mut first = None;
    loop {
        let page = control.inner.store.list(keys::TLS, from.as_deref(), PAGE).await?;
        // What changes between two pages comes by the watch, which begins at the first one.
        let revision = *first.get_or_insert(page.revision);
        page.value.entries.into_iter().for_each(|entry| put(&mut read, entry));
        match page.value.next {
            Some(next) => from = Some(next),
            None => {
                read.revision = revision;
                control.inner.shelf.set(|index| *index = Index { sequence: index.sequence, ..read });
                return Ok(revision);
            }
        }
    }
}

fn apply(index: &mut Index, event: Event) {
    match event {
        Event::Put(entry) => put(index, entry),
        Event::Deleted { key } => {
            if key == keys::TLS_ACCOUNT {
                index.account = None;
            } else if let Some(domain) = key.strip_prefix(keys::TLS_CERTIFICATES) {
                index.records.remove(domain);
            } else {
                index.challenges.retain(|token, _| challenge_key(token) != key);
            }
        }
    }
}

fn put(index: &mut Index, entry: Entry) {
    let Entry { key, value, modified: revision, .. } = entry;
    let unreadable =
        |error: serde_json::Error| tracing::error!(key, %error, "a document of the store can't be read");
    if key == keys::TLS_ACCOUNT {
        match serde_json::from_slice(&value) {
            Ok(value) => index.account = Some(Kept { value, revision }),
            Err(error) => unreadable(error),
        }
    } else if let Some(domain) = key.strip_prefix(keys::TLS_CERTIFICATES) {
        match serde_json::from_slice(&value) {
            Ok(value) => drop(index.records.insert(domain.to_owned(), Kept { value, revision })),
            Err(error) => unreadable(error),
        }
    } else if let Some(token) = key.strip_prefix(keys::TLS_CHALLENGES) {
        match serde_json::from_slice(&value) {
            Ok(kept) => drop(index.challenges.insert(token.to_owned(), kept)),
            Err(error) => unreadable(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> Shelf {
        let shelf = Shelf::new();
        shelf.set(|index| index.revision = 1);
        shelf
    }

    async fn poll(shelf: &Shelf, after: &str) -> CertificateNews {
        let poll = CertificatePoll { after: after.to_owned(), ..CertificatePoll::default() };
        shelf.poll("ingress", poll, Duration::from_secs(20)).await.unwrap()
    }

    #[tokio::test]
    async fn a_mark_of_another_server_is_answered_at_once_and_our_own_waits_for_news() {
        let shelf = shelf();
        let news = poll(&shelf, "elsewhere.7").await;
        let waiting = async { poll(&shelf, &news.mark).await };
        let changing = async {
            tokio::task::yield_now().await;
            shelf.set(|index| index.revision = 2);
        };
        let (later, ()) = tokio::join!(waiting, changing);
        assert_ne!(later.mark, news.mark);
    }

    #[tokio::test]
    async fn a_server_that_has_not_read_its_store_takes_nothing_away() {
        let shelf = Shelf::new();
        let none = shelf.poll("ingress", CertificatePoll::default(), Duration::from_millis(1)).await;
        assert_eq!(none, None, "an ingress would drop what it holds");
    }

    #[tokio::test]
    async fn a_challenge_is_shown_once_every_ingress_has_said_so() {
        let shelf = shelf();
        assert!(!shelf.shown(1).await, "nobody follows");
        let first = poll(&shelf, "").await;
        shelf.set(|index| index.revision = 2);
        let sequence = shelf.index().sequence;
        let too_early = tokio::time::timeout(Duration::from_millis(60), shelf.shown(sequence)).await;
        assert!(too_early.is_err(), "an ingress that holds the state before was not waited for");
        let second = poll(&shelf, &first.mark).await;
        // Its next poll says that it holds it.
        let waiting = shelf.poll(
            "ingress",
            CertificatePoll { after: second.mark, ..CertificatePoll::default() },
            Duration::from_secs(20),
        );
        tokio::select! {
            _ = waiting => panic!("there was no news"),
            shown = shelf.shown(sequence) => assert!(shown),
        }
    }
}
