//! A client's stream and an instance's, joined: heads, frames and trailers pass both ways as they come.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::Response;

use super::stream::{Http2Client, poll_room};
use super::translate;
use crate::head::Request;
use crate::timer::Timer;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Join<'a> {
    pub(crate) request: &'a Request,
    /// So long may the request's body be.
    pub(crate) max_body: u64,
    /// The request's head, as an instance of HTTP/1.1 would get it.
    pub(crate) head: &'a [u8],
    pub(crate) has_body: bool,
    pub(crate) timer: &'a Timer,
    pub(crate) response_timeout: Duration,
    pub(crate) stall: Duration,
    pub(crate) begun: Instant,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinEnd {
    Complete,
    /// The connection had ended before the request was sent.
    NotSent,
    /// The instance says that it has not begun with the request, and takes it no better the next time: it is for another.
    Refused,
    /// The connection or the stream ended before an answer. `untouched`: nothing of the body was taken.
    Lost {
        untouched: bool,
    },
    TimedOut,
    /// The request's body is longer than it may be.
    TooLong,
    /// The client has seen a part of the answer.
    BrokenOff,
    ClientGone,
}

#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) end: JoinEnd,
    /// Of the answer; 0 without one.
    pub(crate) status: u16,
    /// Payload bytes that went to the client.
    pub(crate) bytes: u64,
    /// Until the answer began.
    pub(crate) took: Duration,
}

impl Join<'_> {
    pub(crate) async fn run(self, client: &mut Http2Client, send: &mut SendRequest<Bytes>) -> Joined {
        let (status, bytes, took) = (Cell::new(0), Cell::new(0), Cell::new(Duration::ZERO));
        let end = self.steps(client, send, &status, &bytes, &took).await;
        self.timer.disarm();
        Joined { end, status: status.get(), bytes: bytes.get(), took: took.get() }
    }

    async fn steps(
        &self,
        client: &mut Http2Client,
        send: &mut SendRequest<Bytes>,
        status: &Cell<u16>,
        bytes: &Cell<u64>,
        took: &Cell<Duration>,
    ) -> JoinEnd {
        self.timer.arm(self.response_timeout);
        match self.timer.limit(poll_fn(|cx| send.poll_ready(cx))).await {
            Err(_) => return JoinEnd::TimedOut,
            Ok(Err(_)) => return JoinEnd::NotSent,
            Ok(Ok(())) => {}
        }
        let Some(request) = translate::for_instance(self.head) else {
            return JoinEnd::Lost { untouched: false };
        };
        let Ok((mut answer, upload)) = send.send_request(request, !self.has_body) else {
            return JoinEnd::NotSent;
        };
        let mut upload = Upload {
            to: upload,
            has_ended: !self.has_body,
            waiting: Bytes::new(),
            taken: false,
            left: self.max_body,
        };
        let head = match self.head_of(client, &mut answer, &mut upload).await {
            Ok(head) => head,
            Err(end) => {
                upload.to.send_reset(Reason::CANCEL);
                return end;
            }
        };
        let (mut head, body) = head.into_parts();
        if let Some(dress) = self.request.dress.borrow().as_ref() {
            dress.put_on(&mut head.headers);
        }
        translate::ensure_id(&mut head.headers, &self.request.id);
        status.set(head.status.as_u16());
        took.set(self.begun.elapsed());
        let is_last = body.is_end_stream();
        let Some(to) = client.answer(Response::from_parts(head, ()), is_last) else {
            upload.to.send_reset(Reason::CANCEL);
            return JoinEnd::ClientGone;
        };
        if is_last {
            return JoinEnd::Complete;
        }
        self.bodies(client, body, to, upload, bytes).await
    }

    /// Waits for the answer's head, passing the request's body on meanwhile.
    async fn head_of(
        &self,
        client: &mut Http2Client,
        answer: &mut ResponseFuture,
        upload: &mut Upload,
    ) -> Result<Response<RecvStream>, JoinEnd> {
        let mut answer = pin!(answer);
        let waited = self.timer.limit(poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
                client.interim(interim);
            }
            if let Poll::Ready(result) = answer.as_mut().poll(cx) {
                let taken = upload.taken;
                return Poll::Ready(result.map_err(|error| lost(&error, taken)));
            }
            let was_uploading = !upload.has_ended;
            if let Err(end) = upload.poll(cx, client.frames()) {
                return Poll::Ready(Err(end));
            }
            if !upload.has_ended {
                // The answer's time counts from the request's end.
                self.timer.disarm();
            } else if was_uploading {
                self.timer.arm(self.response_timeout);
            }
            match client.poll_reset(cx) {
                Poll::Ready(()) => Poll::Ready(Err(JoinEnd::ClientGone)),
                Poll::Pending => Poll::Pending,
            }
        }));
        waited.await.unwrap_or(Err(JoinEnd::TimedOut))
    }

    /// Both directions, until the answer has ended. Streams may be silent for hours; only a reader who takes nothing
    /// of what waits for it is given up.
    async fn bodies(
        &self,
        client: &mut Http2Client,
        mut from: RecvStream,
        mut to: SendStream<Bytes>,
        mut upload: Upload,
        bytes: &Cell<u64>,
    ) -> JoinEnd {
        self.timer.disarm();
        let mut waiting = Bytes::new();
        let run = poll_fn(|cx| {
            if let Err(end) = upload.poll(cx, client.frames()) {
                return Poll::Ready(end);
            }
            match self.poll_answer(cx, &mut from, &mut to, &mut waiting, bytes) {
                Poll::Pending if to.poll_reset(cx).is_ready() => Poll::Ready(JoinEnd::ClientGone),
                polled => polled,
            }
        });
        let end = self.timer.limit(run).await.unwrap_or(JoinEnd::ClientGone);
        if end != JoinEnd::Complete {
            to.send_reset(if end == JoinEnd::BrokenOff { Reason::INTERNAL_ERROR } else { Reason::CANCEL });
        }
        if !upload.has_ended {
            // As the instance said all it had to say, nobody reads the rest.
            upload.to.send_reset(if end == JoinEnd::Complete { Reason::NO_ERROR } else { Reason::CANCEL });
        }
        end
    }

    fn poll_answer(
        &self,
        cx: &mut Context<'_>,
        from: &mut RecvStream,
        to: &mut SendStream<Bytes>,
        waiting: &mut Bytes,
        bytes: &Cell<u64>,
    ) -> Poll<JoinEnd> {
        loop {
            match poll_pass(cx, from, to, waiting) {
                Poll::Ready(Ok(Passed::Some(count))) => {
                    bytes.set(bytes.get() + count as u64);
                    self.timer.disarm();
                }
                Poll::Ready(Ok(Passed::Ended)) => return Poll::Ready(JoinEnd::Complete),
                Poll::Ready(Err(Broken::Reader)) => return Poll::Ready(JoinEnd::BrokenOff),
                Poll::Ready(Err(Broken::Writer)) => return Poll::Ready(JoinEnd::ClientGone),
                Poll::Pending => {
                    if !waiting.is_empty() && !self.timer.is_armed() {
                        self.timer.arm(self.stall);
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

fn lost(error: &h2::Error, taken: bool) -> JoinEnd {
    let refused = error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
    if refused && !taken { JoinEnd::Refused } else { JoinEnd::Lost { untouched: !taken } }
}

/// The request's body on its way.
struct Upload {
    to: SendStream<Bytes>,
    has_ended: bool,
    waiting: Bytes,
    taken: bool,
    /// So much more of it there may be.
    left: u64,
}

impl Upload {
    /// Passes on what there is. An error: the client failed, or sends too much. What the instance does not take is its own affair; its
    /// answer tells.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut RecvStream) -> Result<(), JoinEnd> {
        while !self.has_ended {
            match poll_pass(cx, from, &mut self.to, &mut self.waiting) {
                Poll::Ready(Ok(Passed::Some(count))) => {
                    self.taken = true;
                    self.left = self.left.checked_sub(count as u64).ok_or(JoinEnd::TooLong)?;
                }
                Poll::Ready(Ok(Passed::Ended) | Err(Broken::Writer)) => self.has_ended = true,
                Poll::Ready(Err(Broken::Reader)) => return Err(JoinEnd::ClientGone),
                Poll::Pending => {
                    self.taken |= !self.waiting.is_empty();
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

enum Passed {
    /// So many bytes.
    Some(usize),
    /// The end, with the trailers.
    Ended,
}

enum Broken {
    Reader,
    Writer,
}

/// Passes one piece on. The reading side may send more only when the writing side has taken it.
fn poll_pass(
    cx: &mut Context<'_>,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    waiting: &mut Bytes,
) -> Poll<Result<Passed, Broken>> {
    if waiting.is_empty() {
        match from.poll_data(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Broken::Reader)),
            Poll::Ready(Some(Ok(data))) if data.is_empty() => return Poll::Ready(Ok(Passed::Some(0))),
            Poll::Ready(Some(Ok(data))) => *waiting = data,
            Poll::Ready(None) => return poll_trailers(cx, from, to),
        }
    }
    match poll_room(to, cx, waiting.len()) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(_)) => Poll::Ready(Err(Broken::Writer)),
        Poll::Ready(Ok(room)) => {
            let piece = waiting.split_to(room.min(waiting.len()));
            let count = piece.len();
            if to.send_data(piece, false).is_err() {
                return Poll::Ready(Err(Broken::Writer));
            }
            // It fails for a stream that is over, whose next read says so.
            let _ = from.flow_control().release_capacity(count);
            Poll::Ready(Ok(Passed::Some(count)))
        }
    }
}

fn poll_trailers(
    cx: &mut Context<'_>,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
) -> Poll<Result<Passed, Broken>> {
    let sent = match from.poll_trailers(cx) {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Reader)),
        Poll::Ready(Ok(Some(trailers))) => to.send_trailers(trailers),
        Poll::Ready(Ok(None)) => to.send_data(Bytes::new(), true),
    };
    Poll::Ready(sent.map(|()| Passed::Ended).map_err(|_| Broken::Writer))
}
