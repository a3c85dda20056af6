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
use crate::error_page::{self, Failure};
use crate::exchange::{After, Exchange};
use crate::head::{self, HEAD_MAX, Request, Sender};
use crate::redirect;
use crate::relay::write_all;
use crate::response::ClientConnection;
use crate::stream::ClientStream;
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
    request: Request,
    timer: Timer,
}

enum Next {
    Request,
    /// Nothing more comes, or nothing more is awaited.
    Closed,
    Rejected(Failure),
}

/// Serves a connection to its end.
pub(crate) async fn serve<S: ClientStream>(worker: Rc<Worker>, stream: S, peer: IpAddr) {
    let timer = worker.timers.timer();
    let mut connection = Connection {
        worker,
        stream,
        peer,
        address: peer.to_string(),
        buffer: Buffer::default(),
        request: Request::default(),
        timer,
    };
    let mut head = Vec::new();
    loop {
        let after = match connection.next(&mut head).await {
            Next::Request => connection.exchange(&mut head).await,
            Next::Rejected(failure) => connection.reject(failure).await,
            Next::Closed => After::Close,
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
                    scheme: S::SCHEME,
                    trusted: self.worker.trusted(),
                };
                match head::read(self.buffer.filled(), &mut self.request, out, &sender) {
                    Ok(Some(length)) => {
                        self.buffer.consume(length);
                        self.timer.disarm();
                        return Next::Request;
                    }
                    Ok(None) => {}
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

    /// Answers a plain request to a host that is for HTTPS.
    async fn redirect(&mut self, port: u16, head: &[u8]) -> After {
        let has_body = !matches!(self.request.body(), Framing::None | Framing::Length(0));
        let may_keep = self.request.keep_alive && !has_body && !self.worker.is_draining();
        let connection = if may_keep { ClientConnection::KeepAlive } else { ClientConnection::Close };
        let mut out = self.worker.buffers.lend_output();
        redirect::write(&mut out, &self.request, head, port, connection);
        let record = Record { status: 308, started: Some(Instant::now()), ..Record::default() };
        self.worker.log.add(self.peer, &self.request, &record);
        let written = write_all(&mut self.stream, &self.timer, self.worker.limits().stall, &out, &[]).await;
        self.worker.buffers.take_output_back(out);
        match (written, connection) {
            (Err(_), _) => After::Drop,
            (Ok(()), ClientConnection::KeepAlive) => After::KeepAlive,
            (Ok(()), ClientConnection::Close) => After::Close,
        }
    }

    async fn exchange(&mut self, head: &mut Vec<u8>) -> After {
        if let Some(https) = self.worker.https() {
            if let Some(port) = https.redirect(&self.request) {
                return self.redirect(port, head).await;
            }
            self.request.hsts_s = https.hsts_s(&self.request);
        }
        let mut record = Record { started: Some(Instant::now()), ..Record::default() };
        let exchange = Exchange {
            worker: &self.worker,
            client: &mut self.stream,
            buffer: &mut self.buffer,
            request: &self.request,
            head,
            timer: &self.timer,
            record: &mut record,
        };
        let after = exchange.run().await;
        self.worker.log.add(self.peer, &self.request, &record);
        after
    }

    async fn reject(&mut self, failure: Failure) -> After {
        if self.request.id.is_empty() || self.request.framing.is_none() {
            self.request.id.clear();
            head::make_id(&mut self.request.id);
        }
        let mut out = self.worker.buffers.lend_output();
        let bytes = error_page::write(&mut out, failure, "", &self.request, ClientConnection::Close);
        let record = Record {
            status: failure.status(),
            bytes,
            started: Some(Instant::now()),
            error: Some(failure.name()),
            ..Record::default()
        };
        self.worker.log.add(self.peer, &self.request, &record);
        let written = write_all(&mut self.stream, &self.timer, self.worker.limits().stall, &out, &[]).await;
        self.worker.buffers.take_output_back(out);
        if written.is_ok() { After::Close } else { After::Drop }
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
