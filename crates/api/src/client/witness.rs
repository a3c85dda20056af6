//! What is remembered of a connection beside what it carries.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rung_trust::Explained;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// When something came last, and why the other side broke off. HTTP/2 tells its questions of a failure by its text alone,
/// and that our certificate was refused, which shows after the handshake only, is found no more in that.
#[derive(Debug)]
pub struct Witness {
    began: Instant,
    heard_ms: AtomicU64,
    why: OnceLock<Explained>,
}

impl Witness {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), heard_ms: AtomicU64::new(0), why: OnceLock::new() })
    }

    pub fn silent_for(&self) -> Duration {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(heard)
    }

    pub fn why(&self) -> Option<Explained> {
        self.why.get().cloned()
    }

    fn heard(&self) {
        self.heard_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn failed(&self, error: &io::Error) {
        if let Some(why) = rung_trust::explain(error) {
            // The first one is the cause of the others.
            let _ = self.why.set(why);
        }
    }
}

/// A connection whose witness sees all that comes.
pub struct Watched<S> {
    stream: S,
    witness: Arc<Witness>,
}

impl<S> Watched<S> {
    pub fn new(stream: S, witness: Arc<Witness>) -> Self {
        Self { stream, witness }
    }

    fn tell<T>(&self, done: io::Result<T>) -> io::Result<T> {
        done.inspect_err(|error| self.witness.failed(error))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let done = ready!(Pin::new(&mut this.stream).poll_read(context, buffer));
        if buffer.filled().len() > before {
            this.witness.heard();
        }
        Poll::Ready(this.tell(done))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = ready!(Pin::new(&mut this.stream).poll_write(context, bytes));
        Poll::Ready(this.tell(done))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, bytes));
        Poll::Ready(this.tell(done))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = ready!(Pin::new(&mut this.stream).poll_flush(context));
        Poll::Ready(this.tell(done))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
