//! A watch that goes on over reconnects.
//!
//! [`Resume`] is the machine, without I/O: how far the watch has come, and what an answer of etcd's means for it. The
//! [`Follower`] around it opens streams and waits for their answers.
//!
//! ```text
//!            ┌────────── stream failed, member has no leader ──────────┐
//!            ▼                                                         │
//!   open from `after` + 1 ──► is history there? ──yes──► batches, each once ──┘
//!                                  └─no──► Compacted
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::channel::{CallError, Repeat, Stream, code};
use super::messages as m;
use super::{Inner, RANGE, end_of};
use crate::{Batch, Entry, Event, Fut, Revision, Watch, WatchError};

const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// Between tries while no member answers.
const PAUSE: Duration = Duration::from_millis(100);

/// How far a watch has come, in etcd's count of revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    after: i64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Whole revisions, each for the first time.
    Changes(Vec<(i64, Vec<m::WatchEvent>)>),
    /// History up to this revision is gone, and something of it was still to come.
    Compacted(i64),
    /// The stream is over; there may be another one.
    Over(String),
}

impl Resume {
    pub fn new(after: i64) -> Self {
        Self { after }
    }

    /// Where the next stream has to begin.
    pub fn start(&self) -> i64 {
        self.after + 1
    }

    pub fn hear(&mut self, answer: m::WatchResponse) -> Heard {
        if answer.canceled || answer.compacted > 0 {
            return match answer.compacted {
                0 => Heard::Over(answer.reason),
                floor => Heard::Compacted(floor),
            };
        }
        let is_progress = answer.events.is_empty() && !answer.created;
        let mut changes: Vec<(i64, Vec<m::WatchEvent>)> = Vec::new();
        for event in answer.events {
            let revision = event.entry.as_ref().map_or(0, |entry| entry.modified);
            // What was delivered before a reconnect is passed over.
            if revision <= self.after {
                continue;
            }
            match changes.last_mut() {
                Some((last, events)) if *last == revision => events.push(event),
                _ => changes.push((revision, vec![event])),
            }
        }
        if let Some((last, _)) = changes.last() {
            self.after = *last;
        } else if is_progress && let Some(header) = answer.header {
            // Nothing of ours happened up to there: so the watch of a quiet prefix is not found compacted later.
            self.after = self.after.max(header.revision);
        }
        Heard::Changes(changes)
    }
}

/// A watch over one stream after another.
pub struct Follower {
    /// Weak, so that a watch does not keep a closed store open.
    inner: Weak<Inner>,
    closed: tokio::sync::watch::Receiver<()>,
    prefix: String,
    resume: Resume,
    stream: Option<(u64, Stream)>,
    ready: VecDeque<Batch>,
}

/// Why there is no stream now.
enum Closed {
    Compacted(Revision),
    NotNow(String),
}

impl Follower {
    pub fn new(
        inner: &Arc<Inner>,
        closed: tokio::sync::watch::Receiver<()>,
        prefix: &str,
        after: Revision,
    ) -> Self {
        let resume = Resume::new(inner.theirs(after));
        let (inner, prefix) = (Arc::downgrade(inner), prefix.to_owned());
        Self { inner, closed, prefix, resume, stream: None, ready: VecDeque::new() }
    }

    /// The first stream. That etcd is away is no reason to refuse a watch, which would have to outlive it anyway.
    pub async fn try_to_open(&mut self) -> Result<(), WatchError> {
        let inner = self.inner.upgrade().ok_or(WatchError::Closed)?;
        match self.open(&inner).await {
            Ok(()) | Err(Closed::NotNow(_)) => Ok(()),
            Err(Closed::Compacted(floor)) => Err(WatchError::Compacted(floor)),
        }
    }

    async fn open(&mut self, inner: &Inner) -> Result<(), Closed> {
        let not_now = |error: CallError| Closed::NotNow(error.to_string());
        let key = inner.key(&self.prefix);
        let end = end_of(&key);
        let create = m::WatchCreate { key, end, start: self.resume.start(), progress: true };
        let request = m::WatchRequest { create: Some(create) };
        let (id, mut stream) = inner.channel.open(WATCH, &request).await.map_err(not_now)?;
        let created = tokio::time::timeout(Duration::from_secs(4), stream.next::<m::WatchResponse>()).await;
        let created = created.unwrap_or_else(|_| Err(CallError::Lost("no answer in time".to_owned())));
        let created = match created {
            Ok(Some(created)) => created,
            Ok(None) => return Err(Closed::NotNow("the member ended the watch".to_owned())),
            Err(error) => {
                inner.channel.give_up(id);
                return Err(not_now(error));
            }
        };
        if let Some(header) = &created.header
            && let Err(error) = inner.check_cluster(header)
        {
            inner.channel.give_up(id);
            return Err(Closed::NotNow(error.to_string()));
        }
        self.check_history(inner).await?;
        self.stream = Some((id, stream));
        self.take(inner, created)
    }

    /// etcd serves a watch from the revision to which history was compacted, but has forgotten that revision's
    /// deletions: a gap. So the revision before must still be there, too.
    async fn check_history(&self, inner: &Inner) -> Result<(), Closed> {
        let before = self.resume.start() - 1;
        let request =
            m::RangeRequest { key: inner.key(""), revision: before, count_only: true, ..Default::default() };
        match inner.channel.call::<m::RangeResponse>(RANGE, &request, Repeat::Freely).await {
            Err(CallError::Status { code: code::OUT_OF_RANGE, message }) if message.contains("compacted") => {
                Err(Closed::Compacted(inner.ours(before) + 1))
            }
            // A revision that is still to come is there, too.
            Ok(_) | Err(CallError::Status { code: code::OUT_OF_RANGE, .. }) => Ok(()),
            Err(error) => Err(Closed::NotNow(error.to_string())),
        }
    }

    fn take(&mut self, inner: &Inner, answer: m::WatchResponse) -> Result<(), Closed> {
        match self.resume.hear(answer) {
            Heard::Changes(changes) => {
                let batches = changes.into_iter().map(|(revision, events)| batch(inner, revision, events));
                self.ready.extend(batches);
                Ok(())
            }
            Heard::Compacted(floor) => {
                self.stream = None;
                Err(Closed::Compacted(inner.ours(floor)))
            }
            Heard::Over(why) => {
                if let Some((id, _)) = self.stream.take() {
                    inner.channel.give_up(id);
                }
                Err(Closed::NotNow(why))
            }
        }
    }

    /// Waits for the next answer. Dropping the future loses nothing: an answer that was read is kept at once.
    async fn advance(&mut self) -> Result<(), WatchError> {
        let inner = self.inner.upgrade().ok_or(WatchError::Closed)?;
        let Some((id, stream)) = &mut self.stream else {
            return match self.open(&inner).await {
                Ok(()) => Ok(()),
                Err(Closed::Compacted(floor)) => Err(WatchError::Compacted(floor)),
                Err(Closed::NotNow(why)) => {
                    tracing::debug!(why, "the watch waits for etcd");
                    drop(inner);
                    tokio::time::sleep(PAUSE).await;
                    Ok(())
                }
            };
        };
        let id = *id;
        match stream.next::<m::WatchResponse>().await {
            Ok(Some(answer)) => match self.take(&inner, answer) {
                Ok(()) | Err(Closed::NotNow(_)) => Ok(()),
                Err(Closed::Compacted(floor)) => Err(WatchError::Compacted(floor)),
            },
            ended => {
                tracing::debug!(?ended, "a watch's stream ended; it goes on with another");
                self.stream = None;
                inner.channel.give_up(id);
                Ok(())
            }
        }
    }
}

fn batch(inner: &Inner, revision: i64, events: Vec<m::WatchEvent>) -> Batch {
    let events = events.into_iter().filter_map(|event| {
        let entry = event.entry?;
        match event.kind {
            0 => inner.entry(entry).map(Event::Put),
            _ => inner.entry(entry).map(|Entry { key, .. }| Event::Deleted { key }),
        }
    });
    Batch { revision: inner.ours(revision), events: events.collect() }
}

impl Watch for Follower {
    fn next(&mut self) -> Fut<'_, Result<Batch, WatchError>> {
        Box::pin(async move {
            loop {
                if let Some(batch) = self.ready.pop_front() {
                    return Ok(batch);
                }
                let mut closed = self.closed.clone();
                tokio::select! {
                    advanced = self.advance() => advanced?,
                    _ = closed.changed() => return Err(WatchError::Closed),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: i64) -> m::WatchEvent {
        let entry = m::KeyValue { key: b"k".to_vec(), modified: revision, ..Default::default() };
        m::WatchEvent { kind: 0, entry: Some(entry) }
    }

    fn answer(revisions: &[i64]) -> m::WatchResponse {
        m::WatchResponse { events: revisions.iter().map(|r| put(*r)).collect(), ..Default::default() }
    }

    #[test]
    fn what_comes_again_after_a_reconnect_is_delivered_once() {
        let mut resume = Resume::new(4);
        let Heard::Changes(first) = resume.hear(answer(&[5, 5, 7])) else { panic!("no changes") };
        assert_eq!(first.iter().map(|(r, e)| (*r, e.len())).collect::<Vec<_>>(), [(5, 2), (7, 1)]);
        assert_eq!(resume.start(), 8, "the next stream begins behind what was delivered");
        let Heard::Changes(again) = resume.hear(answer(&[5, 7, 9])) else { panic!("no changes") };
        assert_eq!(again.len(), 1, "a revision came twice: {again:?}");
    }

    #[test]
    fn progress_moves_a_quiet_watch_on_and_the_creation_of_a_stream_does_not() {
        let header = Some(m::Header { revision: 40, ..Default::default() });
        let mut resume = Resume::new(4);
        resume.hear(m::WatchResponse { header: header.clone(), created: true, ..Default::default() });
        assert_eq!(resume.start(), 5, "what happened before the stream was there would be missed");
        resume.hear(m::WatchResponse { header, ..Default::default() });
        assert_eq!(resume.start(), 41);
    }

    #[test]
    fn a_compacted_history_is_told_from_a_stream_that_ended() {
        let mut resume = Resume::new(4);
        let over = m::WatchResponse { canceled: true, reason: "no leader".to_owned(), ..Default::default() };
        assert_eq!(resume.hear(over), Heard::Over("no leader".to_owned()));
        let compacted = m::WatchResponse { canceled: true, compacted: 9, ..Default::default() };
        assert_eq!(resume.hear(compacted), Heard::Compacted(9));
    }
}
