//! What a client's connection is made of: a plain socket, or TLS over one.
//!
//! Everything above is generic over it, so that a plain request pays nothing for TLS being there.

use std::cell::RefCell;
use std::fmt::Debug;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio_rustls::server::TlsStream;

use crate::buffer::BODY_SIZE;
use crate::http2::Http2Client;

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The half of a client's connection that is read from.
pub(crate) trait ClientReader: AsyncRead + Unpin + Debug {
    /// Whether the connection is over, or nothing comes behind what waits to be read, as far as the event loop has heard.
    fn has_left(&mut self, cx: &mut Context<'_>) -> bool;
}

/// Costs no call.
fn is_read_closed(socket: &TcpStream) -> bool {
    let ready = pin!(socket.ready(Interest::READABLE));
    let told = ready.poll(&mut Context::from_waker(Waker::noop()));
    matches!(told, Poll::Ready(Ok(ready)) if ready.is_read_closed())
}

/// A client's connection. Both halves are used by one task.
pub(crate) trait ClientStream: AsyncRead + AsyncWrite + Unpin {
    type Reader<'a>: ClientReader
    where
        Self: 'a;
    type Writer<'a>: AsyncWrite + Unpin
    where
        Self: 'a;

    fn scheme(&self) -> Scheme;

    fn halves(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>);

    /// Ready when a read would not wait: there are bytes, an end or an error. Holds no buffer of ours meanwhile.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Does something to the socket, where the client has one of its own.
    fn with_socket(&self, act: impl FnOnce(&TcpStream));

    /// So many bytes of a body are read ahead of whoever takes them, either way.
    fn ahead(&self) -> usize {
        BODY_SIZE
    }

    /// The end of its socket is all there is to say at its end.
    fn ends_with_its_socket(&self) -> bool {
        false
    }

    /// The stream of HTTP/2 that the client is, for instances that speak it too.
    fn http2(&mut self) -> Option<&mut Http2Client> {
        None
    }
}

impl ClientStream for TcpStream {
    type Reader<'a> = ReadHalf<'a>;
    type Writer<'a> = WriteHalf<'a>;

    fn scheme(&self) -> Scheme {
        Scheme::Http
    }

    fn halves(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        self.split()
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(|_| ())
    }

    fn with_socket(&self, act: impl FnOnce(&TcpStream)) {
        act(self);
    }

    fn ends_with_its_socket(&self) -> bool {
        true
    }
}

impl ClientReader for ReadHalf<'_> {
    fn has_left(&mut self, _: &mut Context<'_>) -> bool {
        is_read_closed(self.as_ref())
    }
}

/// TLS, of which both halves need the whole session. In a cell, because they take turns within one task; in a box, because
/// it has more than a kilobyte, and each part of a task that it passes through would keep room for it.
#[derive(Debug)]
pub(crate) struct TlsClient(Box<RefCell<TlsStream<TcpStream>>>);

impl TlsClient {
    pub(crate) fn new(session: TlsStream<TcpStream>) -> Self {
        Self(Box::new(RefCell::new(session)))
    }
}

/// One direction of a TLS connection.
#[derive(Debug)]
pub(crate) struct TlsHalf<'a>(&'a RefCell<TlsStream<TcpStream>>);

impl ClientStream for TlsClient {
    type Reader<'a> = TlsHalf<'a>;
    type Writer<'a> = TlsHalf<'a>;

    fn scheme(&self) -> Scheme {
        Scheme::Https
    }

    fn halves(&mut self) -> (TlsHalf<'_>, TlsHalf<'_>) {
        (TlsHalf(&self.0), TlsHalf(&self.0))
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The socket's own readiness tells too little: what was read already may wait decrypted, and what comes may
        // be no data. This reads records into the session's buffer and takes nothing.
        Pin::new(self.0.get_mut()).poll_fill_buf(cx).map(|_| ())
    }

    fn with_socket(&self, act: impl FnOnce(&TcpStream)) {
        act(self.0.borrow().get_ref().0);
    }
}

impl AsyncRead for TlsClient {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsClient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().0.get_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().0.get_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_shutdown(cx)
    }
}

impl ClientReader for TlsHalf<'_> {
    fn has_left(&mut self, _: &mut Context<'_>) -> bool {
        is_read_closed(self.0.borrow().get_ref().0)
    }
}

impl AsyncRead for TlsHalf<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsHalf<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}

/// A connection of which the first bytes were read already: they come first once more.
#[derive(Debug)]
pub(crate) struct Rewound<S> {
    first: Vec<u8>,
    taken: usize,
    rest: S,
}

impl<S: ClientStream> Rewound<S> {
    pub(crate) fn new(first: Vec<u8>, rest: S) -> Self {
        Self { first, taken: 0, rest }
    }

    pub(crate) fn scheme(&self) -> Scheme {
        self.rest.scheme()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taken == this.first.len() {
            return Pin::new(&mut this.rest).poll_read(cx, buffer);
        }
        let count = buffer.remaining().min(this.first.len() - this.taken);
        buffer.put_slice(&this.first[this.taken..this.taken + count]);
        this.taken += count;
        if this.taken == this.first.len() {
            this.first = Vec::new();
            this.taken = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().rest).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().rest).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.rest.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().rest).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().rest).poll_shutdown(cx)
    }
}
