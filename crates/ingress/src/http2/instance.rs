//! Connections to instances that speak HTTP/2: one for each and thread, which carries all their streams.

use std::cell::RefCell;

use bytes::Bytes;
use h2::client::SendRequest;

use crate::slots::SlotMap;
use crate::upstream::Upstream;

/// An answer that a slow client has not taken yet: a stream, and all streams of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: RefCell<SlotMap<SendRequest<Bytes>>>,
}

impl Connections {
    pub(crate) fn take(&self, slot: u64) -> Option<SendRequest<Bytes>> {
        self.open.borrow().get(&slot).cloned()
    }

    /// Begins to speak HTTP/2. `None`: the other side does not.
    pub(crate) async fn open(&self, slot: u64, stream: Upstream) -> Option<SendRequest<Bytes>> {
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false)
            .handshake(stream);
        let (send, connection) = handshake.await.ok()?;
        drop(tokio::task::spawn_local(async move {
            // Whoever has a stream on it hears of its end there.
            let _ = connection.await;
        }));
        // Two may have begun at once; the later one stays, the other ends with its streams.
        self.open.borrow_mut().insert(slot, send.clone());
        Some(send)
    }

    /// Opens a new one for the next request. Streams on the old one go on.
    pub(crate) fn forget(&self, slot: u64) {
        self.open.borrow_mut().remove(&slot);
    }

    pub(crate) fn retain(&self, is_routed: impl Fn(u64) -> bool) {
        self.open.borrow_mut().retain(|slot, _| is_routed(*slot));
    }
}
