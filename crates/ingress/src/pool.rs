//! Kept connections to instances, per thread.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

use crate::clock::now_ms;
use crate::slots::SlotMap;
use crate::upstream::Upstream;

/// As many as a thread usually has in flight to one instance; beyond, connections are closed after use.
const KEPT_PER_INSTANCE: usize = 128;
/// Idle connections of a quiet app are given back after this time.
const IDLE_MAX_MS: u64 = 60_000;

#[derive(Debug)]
struct Kept {
    stream: Upstream,
    address: SocketAddr,
    since_ms: u64,
}

/// The kept connections, newest last: the newest is the least likely to be closed by the other side.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    kept: RefCell<SlotMap<Vec<Kept>>>,
}

/// How sure one wants to be that the other side has not closed a kept connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Assurance {
    /// By what the event loop has heard: costs nothing. For requests that can be sent again.
    Likely,
    /// By asking the kernel: a call more. For requests that must not be sent twice.
    Certain,
}

impl Pool {
    pub(crate) fn take(&self, slot: u64, address: SocketAddr, assurance: Assurance) -> Option<Upstream> {
        let mut kept = self.kept.borrow_mut();
        let connections = kept.get_mut(&slot)?;
        while let Some(connection) = connections.pop() {
            let mut stream = connection.stream;
            if connection.address == address && is_open(&mut stream, assurance) {
                return Some(stream);
            }
        }
        None
    }

    pub(crate) fn put(&self, slot: u64, address: SocketAddr, stream: Upstream) {
        let mut kept = self.kept.borrow_mut();
        let connections = kept.entry(slot).or_default();
        if connections.len() < KEPT_PER_INSTANCE {
            connections.push(Kept { stream, address, since_ms: now_ms() });
        }
    }

    /// Closes what belongs to instances that get no requests any more.
    pub(crate) fn retain(&self, is_routed: impl Fn(u64) -> bool) {
        self.kept.borrow_mut().retain(|slot, _| is_routed(*slot));
    }

    /// Closes all connections to an instance: where one was found closed, the others likely are.
    pub(crate) fn forget(&self, slot: u64) {
        self.kept.borrow_mut().remove(&slot);
    }

    /// Closes what was idle for long and what the other side has closed.
    pub(crate) fn sweep(&self) {
        let now = now_ms();
        self.kept.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|connection| {
                now < connection.since_ms + IDLE_MAX_MS && is_open(&mut connection.stream, Assurance::Likely)
            });
            !connections.is_empty()
        });
    }

    pub(crate) fn clear(&self) {
        self.kept.borrow_mut().clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.borrow().is_empty()
    }
}

/// An idle connection has nothing to read; an end, an error or unasked bytes all mean that it is of no use.
fn is_open(stream: &mut Upstream, assurance: Assurance) -> bool {
    if assurance == Assurance::Certain {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let mut is_silent = false;
        stream.socket(|socket| {
            let peeked = socket2::SockRef::from(socket).peek(&mut byte);
            is_silent = peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        });
        if !is_silent {
            return false;
        }
    }
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    // With nothing heard from the event loop this is a look at a flag; only a doubt costs a call.
    let mut cx = Context::from_waker(Waker::noop());
    matches!(Pin::new(stream).poll_read(&mut cx, &mut buffer), Poll::Pending)
}
