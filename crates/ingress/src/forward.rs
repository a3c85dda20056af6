//! A client's connection: one request after the other, until one side closes it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::access_log::Record;
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
/// A head and the empty line that may come before it.
const BUFFER_MAX: usize = HEAD_MAX + 4;

struct Connection<S> {
    worker: Rc<Worker>,
    stream: S,
    peer: IpAddr,
    /// The same, spelled.
    address: String,
    buffer: Buffer,
    /// Set for calls from inside the cluster.
    call: Option<Rc<Call>>,
    request: Request,
    timer: Timer,
}

enum Next {
    Request,
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
    let mut connection = Connection {
        worker,
        stream,
        peer,
        address: peer.to_string(),
        buffer: Buffer::default(),
        request: Request { call: call.clone(), ..Request::default() },
        call,
        timer,
    };
    let mut head = Vec::new();
    loop {
        let after = match connection.next(&mut head).await {
            Next::Request => connection.exchange(&mut head).await,
            Next::Rejected(failure) => connection.reject(&mut head, failure).await,
            Next::Closed => After::Close,
            Next::Http2 => return connection.into_http2().await,
        };
        match after {
            After::KeepAlive => {}
            After::Close => {
                connection.linger().await;
                break;
            }
            After::Drop => break,
        }
    }
    connection.buffer.consume(connection.buffer.len());
    connection.worker.buffers.take_back(&mut connection.buffer);
    connection.worker.buffers.take_output_back(head);
}

impl<S: ClientStream> Connection<S> {
    /// Waits for a request; its head for the instance is in `out` afterwards.
    async fn next(&mut self, out: &mut Vec<u8>) -> Next {
        if self.buffer.is_empty() {
            // An idle connection holds no buffers.
            self.worker.buffers.take_back(&mut self.buffer);
            if out.capacity() > 0 {
                self.worker.buffers.take_output_back(std::mem::take(out));
            }
            if !self.readable().await {
                return Next::Closed;
            }
        }
        self.worker.buffers.lend(&mut self.buffer);
        if out.capacity() == 0 {
            *out = self.worker.buffers.lend_output();
        }
        self.read_head(out).await
    }

    /// Waits for the first byte. False when there will be none: the client closed or was idle for too long.
    ///
    /// While draining a client that is quick enough may send one more request.
    async fn readable(&mut self) -> bool {
        self.timer.arm(self.worker.limits().idle);
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

    async fn read_head(&mut self, out: &mut Vec<u8>) -> Next {
        // What is left from the last read may be a whole request.
        let mut is_news = !self.buffer.is_empty();
        if is_news {
            self.timer.arm(self.worker.limits().head);
        }
        loop {
            // A head is parsed again only when a line of it has ended: a slow sender costs little.
            if is_news || self.buffer.is_full(BUFFER_MAX) {
                let sender = Sender {
                    ip: self.peer,
                    address: &self.address,
                    scheme: self.stream.scheme(),
                    trusted: self.worker.trusted(self.call.as_deref()),
                };
                match head::read(self.buffer.filled(), &mut self.request, out, &sender) {
                    Ok(Some(length)) => {
                        self.buffer.consume(length);
                        self.timer.disarm();
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
            let (buffer, stream) = (&mut self.buffer, &mut self.stream);
            let filled = self.timer.limit(poll_fn(|cx| buffer.poll_fill(cx, stream, BUFFER_MAX))).await;
            match filled {
                Ok(Ok(0) | Err(_)) => return Next::Closed,
                Err(_) if before == 0 => return Next::Closed,
                Err(_) => return Next::Rejected(Failure::RequestTimeout),
                Ok(Ok(_)) => {}
            }
            if before == 0 {
                self.timer.arm(self.worker.limits().head);
            }
            is_news = before == 0 || memchr::memchr(b'\n', &self.buffer.filled()[before..]).is_some();
        }
    }

    /// Whether this is the preface of HTTP/2, or its beginning, as the first words of the connection.
    fn begins_http2(&self) -> bool {
        let filled = self.buffer.filled();
        let length = filled.len().min(PREFACE.len());
        self.request.id.is_empty() && filled[..length] == PREFACE[..length]
    }

    async fn into_http2(self) {
        let first = self.buffer.filled().to_vec();
        let Self { worker, stream, peer, call, mut buffer, timer, .. } = self;
        drop(timer);
        buffer.consume(buffer.len());
        worker.buffers.take_back(&mut buffer);
        http2::serve(worker, Rewound::new(first, stream), peer, call).await;
    }

    async fn exchange(&mut self, head: &mut Vec<u8>) -> After {
        self.request.hsts_s = self.worker.https().and_then(|https| https.hsts_s(&self.request));
        let mut record = Record { started: Some(Instant::now()), ..Record::default() };
        let after = self.begin(head, &mut record).run().await;
        self.worker.ended(self.peer, &self.request, head, &mut record);
        after
    }

    async fn reject(&mut self, head: &mut Vec<u8>, failure: Failure) -> After {
        if self.request.id.is_empty() || self.request.framing.is_none() {
            self.request.id.clear();
            head::make_id(&mut self.request.id);
        }
        let mut record = Record { started: Some(Instant::now()), ..Record::default() };
        let after = self.begin(head, &mut record).reject(failure).await;
        self.worker.ended(self.peer, &self.request, b"", &mut record);
        after
    }

    fn begin<'c>(&'c mut self, head: &'c mut Vec<u8>, record: &'c mut Record) -> Exchange<'c, S> {
        Exchange {
            worker: &self.worker,
            client: &mut self.stream,
            buffer: &mut self.buffer,
            request: &self.request,
            head,
            timer: &self.timer,
            record,
        }
    }

    /// Closes such that the client gets the whole answer: a close with unread bytes would reset the connection.
    async fn linger(&mut self) {
        self.timer.arm(LINGER);
        self.worker.buffers.lend(&mut self.buffer);
        let (buffer, stream) = (&mut self.buffer, &mut self.stream);
        let _ = self
            .timer
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
    }
}
