//! A stream as an exchange's client: bytes of HTTP/1.1 on this side, frames on the other.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::servant::Streams;
use super::translate::{self, BodyKind};
use crate::stream::{ClientReader, ClientStream, Scheme};

/// What the client sends after the head.
#[derive(Debug)]
pub(super) struct IncomingBody {
    frames: RecvStream,
    kind: BodyKind,
    /// The end was read and passed on.
    has_ended: bool,
    /// Framing to be read first, then a frame's payload, then framing again.
    before: Bytes,
    payload: Bytes,
    after: Bytes,
}

impl IncomingBody {
    pub(super) fn new(frames: RecvStream, kind: BodyKind) -> Self {
        let none = Bytes::new();
        let has_ended = kind == BodyKind::None;
        Self { frames, kind, has_ended, before: none.clone(), payload: none.clone(), after: none }
    }

    /// Reads as much as there is; `Ready` without a byte is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.take(buffer) {
                return Poll::Ready(Ok(()));
            }
            if self.has_ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.frames.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    if self.kind == BodyKind::Chunked {
                        self.before = format!("{:x}\r\n", data.len()).into();
                        self.after = Bytes::from_static(b"\r\n");
                    }
                    self.payload = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => {
                    self.has_ended = true;
                    if self.kind == BodyKind::Chunked {
                        self.before = Bytes::from_static(b"0\r\n\r\n");
                    }
                }
            }
        }
    }

    /// Moves what is at hand; whether there was anything.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let before = buffer.filled().len();
        move_bytes(&mut self.before, buffer);
        let payload = move_bytes(&mut self.payload, buffer);
        if self.payload.is_empty() {
            move_bytes(&mut self.after, buffer);
        }
        if payload > 0 {
            // Only now may the client send as much again: a slow instance slows its client down, not this process. It
            // fails for a stream that is over, whose next read says so.
            let _ = self.frames.flow_control().release_capacity(payload);
        }
        buffer.filled().len() > before
    }
}

fn move_bytes(from: &mut Bytes, to: &mut ReadBuf<'_>) -> usize {
    let count = from.len().min(to.remaining());
    to.put_slice(&from[..count]);
    from.advance(count);
    count
}

/// What goes to the client.
#[derive(Debug)]
enum Outgoing {
    /// Heads: interim ones, then the final one.
    Head {
        respond: SendResponse<Bytes>,
        text: Vec<u8>,
    },
    Body {
        body: SendStream<Bytes>,
        /// So much of it is still to come, where that is known: its last frame says that it is the last.
        left: Option<u64>,
    },
    Ended,
}

/// A frame of this size and its own head are a whole record of TLS; with a byte more they would be two.
const FRAME: usize = 16 * 1024 - 9;

impl Outgoing {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8], to_head: bool) -> Poll<io::Result<usize>> {
        match self {
            Self::Head { respond, text } => {
                let (count, head) = take_head(text, bytes);
                if let Some(head) = head {
                    match translate::answer(head, to_head) {
                        Some(Ok(answer)) => {
                            text.clear();
                            if answer.head.status().is_informational() {
                                respond.send_informational(answer.head).map_err(broken)?;
                            } else {
                                let body =
                                    respond.send_response(answer.head, answer.is_last).map_err(broken)?;
                                *self = match answer.is_last {
                                    true => Self::Ended,
                                    false => Self::Body { body, left: answer.length },
                                };
                            }
                        }
                        None | Some(Err(_)) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                    }
                }
                Poll::Ready(Ok(count))
            }
            Self::Body { body, left } => {
                let room = ready!(poll_room(body, cx, bytes.len()))?;
                let count = room.min(bytes.len());
                *left = left.map(|left| left.saturating_sub(count as u64));
                let is_last = *left == Some(0);
                let mut piece = Bytes::copy_from_slice(&bytes[..count]);
                while piece.len() > FRAME {
                    body.send_data(piece.split_to(FRAME), false).map_err(broken)?;
                }
                body.send_data(piece, is_last).map_err(broken)?;
                if is_last {
                    *self = Self::Ended;
                }
                Poll::Ready(Ok(count))
            }
            // The body of an answer that has none.
            Self::Ended => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        if let Self::Body { body, .. } = self {
            body.send_data(Bytes::new(), true).map_err(broken)?;
            *self = Self::Ended;
        }
        Ok(())
    }

    /// Ready once the client gave the stream up.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Head { respond, .. } => respond.poll_reset(cx).map(|_| ()),
            Self::Body { body, .. } => body.poll_reset(cx).map(|_| ()),
            Self::Ended => Poll::Pending,
        }
    }
}

/// Takes bytes up to a head's end; how many, and the head when it is whole. One that is not is kept in `text`.
fn take_head<'a>(text: &'a mut Vec<u8>, bytes: &'a [u8]) -> (usize, Option<&'a [u8]>) {
    if text.is_empty()
        && let Some(at) = memchr::memmem::find(bytes, b"\r\n\r\n")
    {
        return (at + 4, Some(&bytes[..at + 4]));
    }
    let from = text.len().saturating_sub(3);
    let before = text.len();
    text.extend_from_slice(bytes);
    match memchr::memmem::find(&text[from..], b"\r\n\r\n") {
        Some(at) => {
            text.truncate(from + at + 4);
            (text.len() - before, Some(text.as_slice()))
        }
        None => (bytes.len(), None),
    }
}

/// Waits until the client takes at least a byte; how many it takes.
pub(super) fn poll_room(
    body: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    body.reserve_capacity(wanted);
    while body.capacity() == 0 {
        match ready!(body.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
    Poll::Ready(Ok(body.capacity()))
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

#[derive(Debug)]
struct Inner {
    incoming: IncomingBody,
    outgoing: Outgoing,
    /// The answer to HEAD describes a body that it does not bring.
    to_head: bool,
}

impl Inner {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.incoming.poll_read(cx, buffer))?;
        if buffer.filled().len() > before || self.incoming.kind == BodyKind::Tunnel {
            return Poll::Ready(Ok(()));
        }
        // On HTTP/1.1 an end here means that the client has left. A stream ends with its request, and the client waits.
        self.outgoing.poll_reset(cx).map(|()| Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.outgoing.poll_write(cx, bytes, self.to_head)
    }
}

/// See the module's text. In a cell, for both directions take turns within one task.
#[derive(Debug)]
pub(crate) struct Http2Client {
    inner: RefCell<Inner>,
    scheme: Scheme,
    /// Those of its connection.
    streams: Rc<Streams>,
}

impl Http2Client {
    pub(super) fn new(
        incoming: IncomingBody,
        respond: SendResponse<Bytes>,
        scheme: Scheme,
        to_head: bool,
        streams: Rc<Streams>,
    ) -> Self {
        let outgoing = Outgoing::Head { respond, text: Vec::new() };
        Self { inner: RefCell::new(Inner { incoming, outgoing, to_head }), scheme, streams }
    }

    /// The frames that the client sends.
    pub(super) fn frames(&mut self) -> &mut RecvStream {
        &mut self.inner.get_mut().incoming.frames
    }

    /// Ready once the client gave the stream up, before its answer.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.get_mut().outgoing.poll_reset(cx)
    }

    /// Sends the answer's head, for frames to follow. `None`: the client is gone, or has an answer already.
    pub(super) fn answer(&mut self, head: http::Response<()>, is_last: bool) -> Option<SendStream<Bytes>> {
        let outgoing = &mut self.inner.get_mut().outgoing;
        let Outgoing::Head { respond, .. } = outgoing else { return None };
        let body = respond.send_response(head, is_last).ok();
        *outgoing = Outgoing::Ended;
        body
    }

    /// Passes an interim head on; it fails when the client is gone, which its next read says.
    pub(super) fn interim(&mut self, head: http::Response<()>) {
        if let Outgoing::Head { respond, .. } = &mut self.inner.get_mut().outgoing {
            let _ = respond.send_informational(head);
        }
    }

    /// Ends the stream: well, or so that the client sees that the answer is not whole.
    pub(super) fn end(self, is_whole: bool) {
        let mut inner = self.inner.into_inner();
        if is_whole {
            // It fails when the client is gone, who then misses nothing.
            let _ = inner.outgoing.end();
            return;
        }
        match &mut inner.outgoing {
            Outgoing::Head { respond, .. } => respond.send_reset(Reason::INTERNAL_ERROR),
            Outgoing::Body { body, .. } => body.send_reset(Reason::INTERNAL_ERROR),
            Outgoing::Ended => {}
        }
    }
}

impl ClientStream for Http2Client {
    type Reader<'a> = Half<'a>;
    type Writer<'a> = Half<'a>;

    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn halves(&mut self) -> (Half<'_>, Half<'_>) {
        (Half(&self.inner), Half(&self.inner))
    }

    fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<()> {
        // Asked between two requests; a stream has one.
        Poll::Ready(())
    }

    fn with_socket(&self, _: impl FnOnce(&TcpStream)) {
        // It is all streams': what ends one must not end the others.
    }

    fn ahead(&self) -> usize {
        self.streams.ahead()
    }

    fn http2(&mut self) -> Option<&mut Http2Client> {
        Some(self)
    }
}

/// One direction of a stream.
#[derive(Debug)]
pub(crate) struct Half<'a>(&'a RefCell<Inner>);

impl ClientReader for Half<'_> {
    fn has_left(&mut self, cx: &mut Context<'_>) -> bool {
        self.0.borrow_mut().outgoing.poll_reset(cx).is_ready()
    }
}

impl AsyncRead for Half<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Half<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task sends.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().outgoing.end())
    }
}

impl AsyncRead for Http2Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().inner.get_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Http2Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().inner.get_mut().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().inner.get_mut().outgoing.end())
    }
}
