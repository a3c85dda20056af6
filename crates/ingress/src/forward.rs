//! A client's connection: one request after the other, until one side closes it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::access_log::Record;
use crate::body::Framing;
use crate::buffer::Buffer;
use crate::callers::Call;
use crate::error_page::Failure;
use crate::exchange::{After, Exchange};
use crate::head::{self, HEAD_MAX, Request, Sender};
use crate::http2::{self, PREFACE};
use crate::stream::{ClientStream, Rewound};
use crate::timer::Timer;
use crate::worker::Worker;

/// How long a closed connection's last bytes are awaited, so that the client reads its answer before a reset.
const LINGER: Duration = Duration::from_secs(1);
/// So long a connection is taken for a busy one after its last request, and keeps the room of some 7 KB that serving one
/// takes. Making it anew costs less than a hundredth of a request; of thousands of clients that come at once and then rest,
/// it would be the peak that the heap keeps.
const BUSY: Duration = Duration::from_millis(200);
/// A head and the empty line that may come before it.
const BUFFER_MAX: usize = HEAD_MAX + 4;

/// A client that says nothing: what a connection is most of the time.
struct Idle<S> {
    worker: Rc<Worker>,
    stream: S,
    peer: IpAddr,
    /// Set for calls from inside the cluster.
    call: Option<Rc<Call>>,
    timer: Timer,
    /// There was no request yet.
    is_new: bool,
}

/// A client that asks. It is kept apart from the task, and only as long as requests follow each other: its kilobytes would
/// be most of what an idle connection costs.
struct Connection<S> {
    idle: Idle<S>,
    /// The client's address, spelled.
    address: String,
    buffer: Buffer,
    request: Request,
}

enum Next {
    Request,
    /// Nothing came for a while.
    Rest,
    /// Nothing more comes, or nothing more is awaited.
    Closed,
    Rejected(Failure),
    /// The client speaks HTTP/2 without having asked.
    Http2,
}

/// Serves a connection to its end.
pub(crate) async fn serve<S: ClientStream>(
    worker: Rc<Worker>,
    stream: S,
    peer: IpAddr,
    call: Option<Rc<Call>>,
) {
    let timer = worker.timers.timer();
    let mut idle = Idle { worker, stream, peer, call, timer, is_new: true };
    while idle.readable(idle.patience()).await {
        match Box::pin(Connection::new(idle).serve()).await {
            Some(rested) => idle = rested,
            None => return,
        }
    }
    Box::pin(Connection::new(idle).linger()).await;
}

impl<S: ClientStream> Idle<S> {
    /// How long a request may be awaited. Since the last one a part of that has passed.
    fn patience(&self) -> Duration {
        let limit = self.worker.limits().idle;
        if self.is_new { limit } else { limit.saturating_sub(BUSY) }
    }

    /// Waits for the first byte. False when there was none for so long, or there will be none.
    ///
    /// While draining a client that is quick enough may send one more request.
    async fn readable(&mut self, patience: Duration) -> bool {
        self.timer.arm(patience);
        let mut is_last = false;
        poll_fn(|cx| {
            if self.stream.poll_readable(cx).is_ready() {
                return Poll::Ready(true);
            }
            if self.worker.is_draining() && !is_last {
                is_last = true;
                self.timer.arm(self.worker.limits().idle_linger);
            }
            if self.timer.poll_expired(cx) { Poll::Ready(false) } else { Poll::Pending }
        })
        .await
    }
}

impl<S: ClientStream> Connection<S> {
    fn new(idle: Idle<S>) -> Self {
        let request = Request { call: idle.call.clone(), ..Request::default() };
        Self { address: idle.peer.to_string(), idle, buffer: Buffer::default(), request }
    }

    /// Serves requests until none comes for a while. `None`: the connection is over.
    async fn serve(mut self) -> Option<Idle<S>> {
        let mut head = Vec::new();
        loop {
            let after = match self.next(&mut head).await {
                Next::Request => self.exchange(&mut head).await,
                Next::Rejected(failure) => self.reject(&mut head, failure).await,
                Next::Rest if self.idle.worker.is_draining() => After::Close,
                Next::Rest => {
                    self.idle.worker.buffers.take_back(&mut self.buffer);
                    return Some(self.idle);
                }
                // Its side has ended, so nothing of it can be left unread.
                Next::Closed if self.idle.stream.ends_with_its_socket() => break,
                Next::Closed => After::Close,
                // Apart, for a connection that never speaks it has no room to spare.
                Next::Http2 => {
                    Box::pin(self.into_http2()).await;
                    return None;
                }
            };
            self.idle.is_new = false;
            match after {
                After::KeepAlive => {}
                After::Close if self.client_sends_no_more() => break,
                After::Close => {
                    self.idle.worker.buffers.take_output_back(head);
                    self.linger().await;
                    return None;
                }
                After::Drop => break,
            }
        }
        self.buffer.consume(self.buffer.len());
        self.idle.worker.buffers.take_back(&mut self.buffer);
        self.idle.worker.buffers.take_output_back(head);
        None
    }

    /// It asked for the connection's end itself, and nothing of its request can be on its way still: then there is nothing to linger
    /// for, which would be half of what a connection for one request costs.
    fn client_sends_no_more(&self) -> bool {
        let request = &self.request;
        // `None` of what was not understood.
        let is_read = request.framing == Some(Framing::None) && self.buffer.is_empty();
        is_read && !request.keep_alive && !request.upgrade && self.idle.stream.ends_with_its_socket()
    }

    /// Waits for a request; its head for the instance is in `out` afterwards.
    async fn next(&mut self, out: &mut Vec<u8>) -> Next {
        let worker = &self.idle.worker;
        if self.buffer.is_empty() {
            // A connection that waits holds no buffers.
            worker.buffers.take_back(&mut self.buffer);
            if out.capacity() > 0 {
                worker.buffers.take_output_back(std::mem::take(out));
            }
            let patience = BUSY.min(worker.limits().idle);
            if !self.idle.readable(patience).await {
                return Next::Rest;
            }
        }
        let worker = &self.idle.worker;
        worker.buffers.lend(&mut self.buffer);
        if out.capacity() == 0 {
            *out = worker.buffers.lend_output();
        }
        self.read_head(out).await
    }

    async fn read_head(&mut self, out: &mut Vec<u8>) -> Next {
        // What is left from the last read may be a whole request.
        let mut is_news = !self.buffer.is_empty();
        if is_news {
            self.idle.timer.arm(self.idle.worker.limits().head);
        }
        loop {
            // A head is parsed again only when a line of it has ended: a slow sender costs little.
            if is_news || self.buffer.is_full(BUFFER_MAX) {
                let sender = Sender {
                    ip: self.idle.peer,
                    address: &self.address,
                    scheme: self.idle.stream.scheme(),
                    trusted: self.idle.worker.trusted(self.idle.call.as_deref()),
                };
                match head::read(self.buffer.filled(), &mut self.request, out, &sender) {
                    Ok(Some(length)) => {
                        self.buffer.consume(length);
                        self.idle.timer.disarm();
                        return Next::Request;
                    }
                    Ok(None) => {}
                    Err(_) if self.begins_http2() => {
                        if self.buffer.len() >= PREFACE.len() {
                            return Next::Http2;
                        }
                    }
                    Err(rejection) => {
                        let head::Rejection { status, why } = rejection;
                        return Next::Rejected(Failure::BadRequest { status, why });
                    }
                }
            }
            let before = self.buffer.len();
            let (buffer, stream) = (&mut self.buffer, &mut self.idle.stream);
            let filled = self.idle.timer.limit(poll_fn(|cx| buffer.poll_fill(cx, stream, BUFFER_MAX))).await;
            match filled {
                Ok(Ok(0) | Err(_)) => return Next::Closed,
                // It was told to be readable, and was not.
                Err(_) if before == 0 => return Next::Rest,
                Err(_) => return Next::Rejected(Failure::RequestTimeout),
                Ok(Ok(_)) => {}
            }
            if before == 0 {
                self.idle.timer.arm(self.idle.worker.limits().head);
            }
            is_news = before == 0 || memchr::memchr(b'\n', &self.buffer.filled()[before..]).is_some();
        }
    }

    /// Whether this is the preface of HTTP/2, or its beginning, as the first words of the connection.
    fn begins_http2(&self) -> bool {
        let filled = self.buffer.filled();
        let length = filled.len().min(PREFACE.len());
        self.idle.is_new && filled[..length] == PREFACE[..length]
    }

    async fn into_http2(self) {
        let first = self.buffer.filled().to_vec();
        let Self { idle: Idle { worker, stream, peer, call, timer, .. }, mut buffer, .. } = self;
        drop(timer);
        buffer.consume(buffer.len());
        worker.buffers.take_back(&mut buffer);
        http2::serve(worker, Rewound::new(first, stream), peer, call).await;
    }

    async fn exchange(&mut self, head: &mut Vec<u8>) -> After {
        self.request.hsts_s = self.idle.worker.https().and_then(|https| https.hsts_s(&self.request));
        let mut record = Record { started: Some(Instant::now()), ..Record::default() };
        let after = self.begin(head, &mut record).run().await;
        self.idle.worker.ended(self.idle.peer, &self.request, head, &mut record);
        after
    }

    async fn reject(&mut self, head: &mut Vec<u8>, failure: Failure) -> After {
        if self.request.id.is_empty() || self.request.framing.is_none() {
            self.request.id.clear();
            head::make_id(&mut self.request.id);
        }
        let mut record = Record { started: Some(Instant::now()), ..Record::default() };
        let after = self.begin(head, &mut record).reject(failure).await;
        self.idle.worker.ended(self.idle.peer, &self.request, b"", &mut record);
        after
    }

    fn begin<'c>(&'c mut self, head: &'c mut Vec<u8>, record: &'c mut Record) -> Exchange<'c, S> {
        Exchange {
            worker: &self.idle.worker,
            client: &mut self.idle.stream,
            buffer: &mut self.buffer,
            request: &self.request,
            head,
            timer: &self.idle.timer,
            record,
        }
    }

    /// Closes such that the client gets the whole answer: a close with unread bytes would reset the connection.
    async fn linger(mut self) {
        let Idle { worker, stream, timer, .. } = &mut self.idle;
        timer.arm(LINGER);
        worker.buffers.lend(&mut self.buffer);
        let buffer = &mut self.buffer;
        let _ = timer
            .limit(async {
                stream.shutdown().await?;
                loop {
                    buffer.consume(buffer.len());
                    if poll_fn(|cx| buffer.poll_fill(cx, stream, HEAD_MAX)).await? == 0 {
                        return Ok::<(), std::io::Error>(());
                    }
                }
            })
            .await;
        self.buffer.consume(self.buffer.len());
        self.idle.worker.buffers.take_back(&mut self.buffer);
    }
}
