//! Buffers that are used again: a connection borrows one while bytes are on their way, and none while it is idle.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// A usual head and a small body fit; larger ones make the buffer grow.
const FIRST_SIZE: usize = 8 * 1024;
/// Body bytes that are read at once, at most. More does not lower the cost of a byte any further.
pub(crate) const BODY_SIZE: usize = 64 * 1024;
/// Buffers that a thread keeps for the next use: at most 16 MiB.
const KEPT: usize = 256;

/// Bytes that were read and not yet taken, in one piece.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Initialised as a whole, so that it can be read into without `unsafe`.
    storage: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read took all the room there was: more is likely waiting.
    was_short: bool,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len(), "more is taken than there is");
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Makes room for at least one byte, without growing beyond `limit` bytes held.
    fn make_room(&mut self, limit: usize) -> bool {
        if self.was_short && self.is_empty() && self.storage.len() < limit {
            self.was_short = false;
            self.storage.resize(limit, 0);
            return true;
        }
        if self.end < self.storage.len() {
            return true;
        }
        if self.start > 0 {
            self.storage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            return true;
        }
        if self.storage.len() >= limit {
            return false;
        }
        let size = (self.storage.len() * 2).clamp(FIRST_SIZE, limit.max(FIRST_SIZE));
        self.storage.resize(size, 0);
        true
    }

    /// Reads once, appending. `Ok(0)` is the end of the stream; a full buffer is an error.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if !self.make_room(limit) {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let mut space = ReadBuf::new(&mut self.storage[self.end..]);
        ready!(Pin::new(reader).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        self.was_short = space.remaining() == 0;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    pub(crate) fn is_full(&self, limit: usize) -> bool {
        self.len() >= limit
    }
}

/// The buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    storages: RefCell<Vec<Vec<u8>>>,
    outputs: RefCell<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// Gives an empty buffer storage to read into.
    pub(crate) fn lend(&self, buffer: &mut Buffer) {
        if buffer.storage.is_empty() {
            buffer.storage = self.storages.borrow_mut().pop().unwrap_or_else(|| vec![0; FIRST_SIZE]);
        }
    }

    /// Takes the storage of an empty buffer back.
    pub(crate) fn take_back(&self, buffer: &mut Buffer) {
        let mut kept = self.storages.borrow_mut();
        if buffer.is_empty() {
            let storage = std::mem::take(&mut buffer.storage);
            if !storage.is_empty() && storage.len() <= BODY_SIZE && kept.len() < KEPT {
                kept.push(storage);
            }
        }
    }

    pub(crate) fn lend_output(&self) -> Vec<u8> {
        self.outputs.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(2048))
    }

    pub(crate) fn take_output_back(&self, mut output: Vec<u8>) {
        let mut kept = self.outputs.borrow_mut();
        if output.capacity() <= BODY_SIZE && kept.len() < KEPT {
            output.clear();
            kept.push(output);
        }
    }
}
