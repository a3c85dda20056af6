//! HTTP/2 to clients: many requests on one connection, each served as if it had come alone.
//!
//! A stream is translated to the HTTP/1.1 request it stands for ([`translate`]) and takes that request's way from
//! there: the same gate for heads, the same choice, holding, retries, error pages and log. [`stream`] is the client that
//! an exchange then talks to. Frames, flow control and compression of headers are the library's.

mod instance;
mod join;
mod servant;
mod stream;
mod translate;

use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::server::Connection;

use crate::access_log::Record;
use crate::buffer::Buffer;
use crate::callers::Call;
use crate::error_page::Failure;
use crate::exchange::{After, Exchange};
use crate::head::{self, HEAD_MAX, Rejection, Request, Sender, Version};
use crate::stream::{ClientStream, Rewound, Scheme};
use crate::timer::Timer;
use crate::worker::Worker;
use servant::{Incoming, OpenStream, Servant, Streams};
use stream::IncomingBody;
use translate::BodyKind;

pub(crate) use instance::Connections;
pub(crate) use join::{Join, JoinEnd};
pub(crate) use stream::Http2Client;

/// What a connection that speaks HTTP/2 begins with (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// As nginx and HAProxy allow; browsers use about as many at once.
const STREAMS_MAX: u32 = 128;
/// What a client may send ahead of the instance: an upload of one stream at 100 ms distance gets 20 Mbit/s.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What waits in memory for a slow reader, a stream: two frames of the usual size.
const SEND_BUFFER: usize = 32 * 1024;
/// What a connection's streams together read ahead of those who take their bodies, and a stream at least. One client may
/// have many connections with many streams that it does not read.
const AHEAD_TOGETHER: usize = 1024 * 1024;
const AHEAD_MIN: usize = 8 * 1024;

/// Serves a connection to its end.
pub(crate) async fn serve<S: ClientStream>(
    worker: Rc<Worker>,
    io: Rewound<S>,
    peer: IpAddr,
    call: Option<Rc<Call>>,
) {
    let scheme = io.scheme();
    let timer = worker.timers.timer();
    timer.arm(worker.limits().head);
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol()
        .handshake(io);
    let Ok(Ok(connection)) = timer.limit(handshake).await else { return };
    timer.disarm();
    let streams = Rc::default();
    Served { worker, connection, timer, peer, call, scheme, streams, is_leaving: false }.run().await;
}

struct Served<S: ClientStream> {
    worker: Rc<Worker>,
    connection: Connection<Rewound<S>, Bytes>,
    timer: Timer,
    peer: IpAddr,
    call: Option<Rc<Call>>,
    scheme: Scheme,
    streams: Rc<Streams>,
    /// The client was told to send nothing new.
    is_leaving: bool,
}

enum Event {
    Stream(Box<Incoming>),
    Ended,
}

impl<S: ClientStream> Drop for Served<S> {
    fn drop(&mut self) {
        self.streams.end();
    }
}

impl<S: ClientStream> Served<S> {
    async fn run(mut self) {
        self.rest();
        loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Event::Stream(incoming) => {
                    self.timer.disarm();
                    if let Some(incoming) = self.streams.give(incoming) {
                        let attendant = Attendant {
                            worker: self.worker.clone(),
                            peer: self.peer,
                            address: self.peer.to_string(),
                            call: self.call.clone(),
                            scheme: self.scheme,
                            streams: self.streams.clone(),
                        };
                        let servant = Servant::new(&self.streams, incoming);
                        drop(tokio::task::spawn_local(attendant.attend(servant)));
                    }
                }
                Event::Ended => return,
            }
        }
    }

    /// Begins to count the time without a request.
    fn rest(&self) {
        let limits = self.worker.limits();
        self.timer.arm(if self.is_leaving { limits.idle_linger } else { limits.idle });
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.worker.is_draining() && !self.is_leaving {
            self.leave();
        }
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                let open = OpenStream::new(&self.streams);
                return Poll::Ready(Event::Stream(Box::new(Incoming { request, respond, open })));
            }
            Poll::Ready(None | Some(Err(_))) => return Poll::Ready(Event::Ended),
            Poll::Pending => {}
        }
        self.streams.watch(cx);
        if self.streams.open() == 0 && !self.timer.is_armed() {
            self.rest();
            self.streams.rest();
        }
        if !self.timer.poll_expired(cx) {
            return Poll::Pending;
        }
        if self.is_leaving {
            // It was told, and had its time.
            return Poll::Ready(Event::Ended);
        }
        self.leave();
        self.rest();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Nothing new is taken; what is in flight ends.
    fn leave(&mut self) {
        self.is_leaving = true;
        self.connection.graceful_shutdown();
        self.timer.disarm();
    }
}

/// Serves streams of one connection, one after the other.
struct Attendant {
    worker: Rc<Worker>,
    peer: IpAddr,
    /// The same, spelled.
    address: String,
    call: Option<Rc<Call>>,
    scheme: Scheme,
    streams: Rc<Streams>,
}

impl Attendant {
    async fn attend(self, servant: Servant) {
        let mut request = Request { call: self.call.clone(), ..Request::default() };
        let timer = self.worker.timers.timer();
        while let Some(incoming) = servant.next().await {
            self.serve(incoming, &mut request, &timer).await;
            request.reset();
            timer.disarm();
            if !servant.wait() {
                return;
            }
        }
    }

    async fn serve(&self, incoming: Box<Incoming>, request: &mut Request, timer: &Timer) {
        let Incoming { request: parts, respond, open } = *incoming;
        let (parts, body) = parts.into_parts();
        let mut head = self.worker.buffers.lend_output();
        let read = self.read(&parts, body.is_end_stream(), request, &mut head);
        let kind = *read.as_ref().unwrap_or(&BodyKind::None);
        // It holds every header; what counts of them is in the request now.
        drop(parts);
        let body = IncomingBody::new(body, kind);
        let mut client =
            Http2Client::new(body, respond, self.scheme, request.is_head(), self.streams.clone());
        let mut record = Record { started: Some(Instant::now()), ..Record::default() };
        let mut buffer = Buffer::default();
        self.worker.buffers.lend(&mut buffer);
        let exchange = Exchange {
            worker: &self.worker,
            client: &mut client,
            buffer: &mut buffer,
            request,
            head: &mut head,
            timer,
            record: &mut record,
        };
        let understood = read.is_ok();
        let after = match read {
            Ok(_) => exchange.run().await,
            Err(Rejection { status, why }) => exchange.reject(Failure::BadRequest { status, why }).await,
        };
        client.end(after != After::Drop);
        self.worker.ended(self.peer, request, if understood { &head } else { b"" }, &mut record);
        buffer.consume(buffer.len());
        self.worker.buffers.take_back(&mut buffer);
        self.worker.buffers.take_output_back(head);
        drop(open);
    }

    /// Reads the request; its head for the instance is in `out` afterwards.
    fn read(
        &self,
        parts: &http::request::Parts,
        has_ended: bool,
        request: &mut Request,
        out: &mut Vec<u8>,
    ) -> Result<BodyKind, Rejection> {
        let trusted = self.worker.trusted(self.call.as_deref());
        let sender = Sender { ip: self.peer, address: &self.address, scheme: self.scheme, trusted };
        let read = translate::head(parts, has_ended).and_then(|(text, kind)| {
            match head::read(&text, request, out, &sender)? {
                Some(length) if length == text.len() => Ok(kind),
                // Its end is not where the stream's head ended.
                Some(_) | None => Err(translate::MALFORMED),
            }
        });
        request.version = Version::Http2;
        if request.id.is_empty() {
            head::make_id(&mut request.id);
        }
        request.hsts_s = self.worker.https().and_then(|https| https.hsts_s(request));
        read
    }
}
