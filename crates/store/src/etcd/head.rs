//! The head of a store: a key beside its entries that says its epoch, and whether it is to be used.

use super::channel::{CallError, Channel, Repeat};
use super::messages as m;
use super::{RANGE, TXN, unavailable};
use crate::StoreError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Filling,
    Ready,
    Ended,
}

/// The head as it was when the store was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub state: State,
    pub epoch: u64,
    /// In etcd's count: what this store counts as revision nought.
    pub created: i64,
    /// In etcd's count: what every transaction of this store is guarded by.
    pub modified: i64,
}

impl Head {
    pub fn guard(&self, root: &str) -> m::Compare {
        let expected = Some(m::Expected::Modified(self.modified));
        m::Compare { target: m::Target::Modified.into(), key: key(root), expected }
    }

    /// A transaction's guards did not hold. Was it the head's?
    pub fn still_holds(&self, answer: m::TxnResponse) -> Result<(), StoreError> {
        let found = answer.responses.into_iter().find_map(|op| match op.response {
            Some(m::Response::Range(range)) => range.entries.into_iter().next(),
            None => None,
        });
        match found {
            Some(found) if found.modified == self.modified => Ok(()),
            Some(found) => Err(StoreError::Ended { epoch: decode(&found)?.epoch }),
            None => Err(StoreError::Empty),
        }
    }
}

/// Beside the entries, which are below `<root>/`, so that no listing and no watch of theirs meets it.
fn key(root: &str) -> Vec<u8> {
    format!("{root}.head").into_bytes()
}

fn encode(state: State, epoch: u64) -> Vec<u8> {
    let state = match state {
        State::Filling => "filling",
        State::Ready => "ready",
        State::Ended => "ended",
    };
    format!("{state} {epoch}").into_bytes()
}

fn decode(found: &m::KeyValue) -> Result<Head, StoreError> {
    let text = String::from_utf8_lossy(&found.value);
    let mut words = text.split(' ');
    let state = match words.next() {
        Some("filling") => Some(State::Filling),
        Some("ready") => Some(State::Ready),
        Some("ended") => Some(State::Ended),
        _ => None,
    };
    match (state, words.next().and_then(|epoch| epoch.parse().ok())) {
        (Some(state), Some(epoch)) => {
            Ok(Head { state, epoch, created: found.created, modified: found.modified })
        }
        _ => Err(StoreError::Unavailable(format!(
            "the head of the state in etcd says {text:?}, which this version of rung does not know"
        ))),
    }
}

pub fn ask(root: &str) -> m::RequestOp {
    let request = m::Request::Range(m::RangeRequest { key: key(root), ..Default::default() });
    m::RequestOp { request: Some(request) }
}

pub async fn read(channel: &Channel, root: &str) -> Result<Head, StoreError> {
    let request = m::RangeRequest { key: key(root), ..Default::default() };
    let found: m::RangeResponse =
        channel.call(RANGE, &request, Repeat::Freely).await.map_err(|error| unavailable(&error))?;
    decode(found.entries.first().ok_or(StoreError::Empty)?)
}

/// Where there is none.
pub async fn create(channel: &Channel, root: &str, epoch: u64, state: State) -> Result<Head, StoreError> {
    let absent = m::Compare {
        target: m::Target::Created.into(),
        key: key(root),
        expected: Some(m::Expected::Created(0)),
    };
    write(channel, root, absent, state, epoch).await
}

/// Replaces the head that is known.
pub async fn turn(
    channel: &Channel,
    root: &str,
    known: &Head,
    state: State,
    epoch: u64,
) -> Result<Head, StoreError> {
    write(channel, root, known.guard(root), state, epoch).await
}

/// Written once; whether it was is then read, so that a lost answer does no harm.
async fn write(
    channel: &Channel,
    root: &str,
    guard: m::Compare,
    state: State,
    epoch: u64,
) -> Result<Head, StoreError> {
    let put = m::PutRequest { key: key(root), value: encode(state, epoch), lease: 0 };
    let success = vec![m::RequestOp { request: Some(m::Request::Put(put)) }];
    let request = m::TxnRequest { compare: vec![guard], success, failure: Vec::new() };
    match channel.call::<m::TxnResponse>(TXN, &request, Repeat::WhenWithoutEffect).await {
        Ok(_) | Err(CallError::Lost(_)) => {}
        Err(error) => return Err(unavailable(&error)),
    }
    let head = read(channel, root).await?;
    if (head.state, head.epoch) == (state, epoch) {
        return Ok(head);
    }
    Err(StoreError::Unavailable(format!(
        "the head of the state in etcd was changed by somebody else: epoch {} instead of {epoch}",
        head.epoch
    )))
}
