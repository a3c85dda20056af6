//! The instance's answer, from its first byte to its last.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::{Decoder, Framing};
use crate::buffer::Buffer;
use crate::error_page::Failure;
use crate::head::{HEAD_MAX, Request};
use crate::overload::Turn;
use crate::relay::{Encoding, Relay, RelayError, write_all};
use crate::response::{self, ClientConnection, Response};
use crate::squeeze::Squeeze;
use crate::timer::Timer;
use crate::watch::Attention;
use crate::worker::Worker;

/// More interim answers than this before the final one are not an application's honest work.
const INTERIM_MAX: usize = 32;

/// How it ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The answer went through.
    Complete {
        keep_instance: bool,
        keep_client: bool,
    },
    /// The instance switches protocols; the client's head is in `answer` and not yet sent.
    Upgraded,
    /// Not a byte of the request was taken.
    NeverSent,
    /// The connection ended before a byte of the answer.
    Lost,
    /// The client has seen nothing of a final answer: it can be told.
    Failed(Failure),
    /// The client has seen a part of the answer.
    Truncated,
    ClientGone,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Receive<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) request: &'a Request,
    pub(crate) timer: &'a Timer,
    pub(crate) response_timeout: Duration,
    /// Whether the request is sent to its end.
    pub(crate) uploaded: &'a Cell<bool>,
    /// Payload bytes that went to the client.
    pub(crate) passed: &'a Cell<u64>,
    /// Of the final answer, once its head goes to the client.
    pub(crate) status: &'a Cell<u16>,
    pub(crate) begun: Instant,
    /// How long the final answer's head took, from then on.
    pub(crate) took: &'a Cell<Duration>,
    /// Its turn at the instance, which ends with the final answer's head.
    pub(crate) turn: &'a RefCell<Option<Turn>>,
    /// So much of a body is read ahead of whoever takes it.
    pub(crate) ahead: usize,
    pub(crate) from_instance: &'a mut Buffer,
    pub(crate) answer: &'a mut Vec<u8>,
}

enum Filled {
    Bytes(usize),
    Error,
    ClientGone,
}

impl Receive<'_> {
    /// `watch` looks after the client, unless somebody else does.
    pub(crate) async fn run<R, W>(
        mut self,
        instance: &mut R,
        client: &mut W,
        mut watch: Option<&mut (dyn Attention + '_)>,
    ) -> End
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.uploaded.get() {
            self.timer.arm(self.response_timeout);
        } else {
            // Armed at the upload's end.
            self.timer.disarm();
        }
        let (response, connection) = match self.final_head(instance, client, &mut watch).await {
            Ok(head) => head,
            Err(end) => return end,
        };
        if response.status == 101 {
            return End::Upgraded;
        }
        self.body(response, connection, instance, client, watch).await
    }

    /// Reads heads until the final one, passing interim ones on.
    async fn final_head<R, W>(
        &mut self,
        instance: &mut R,
        client: &mut W,
        watch: &mut Option<&mut (dyn Attention + '_)>,
    ) -> Result<(Response, ClientConnection), End>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut interims = 0;
        loop {
            if !self.from_instance.is_empty() {
                let connection = self.client_connection();
                self.answer.clear();
                let encoders = &self.worker.encoders;
                let bytes = self.from_instance.filled();
                let read = response::read(bytes, self.request, connection, encoders, self.answer);
                match read {
                    Err(bad) => return Err(End::Failed(Failure::BadResponse(bad.0))),
                    Ok(Some((length, response))) => {
                        self.from_instance.consume(length);
                        if !response.is_interim() {
                            return self.accept(response, connection);
                        }
                        interims += 1;
                        if interims > INTERIM_MAX {
                            return Err(End::Failed(Failure::BadResponse("it has too many interim answers")));
                        }
                        self.pass_interim(response.status, client).await?;
                        continue;
                    }
                    Ok(None) => {}
                }
            }
            self.fill(instance, watch, interims).await?;
        }
    }

    /// Whether the client can go on with its connection, as far as this side knows before the answer.
    fn client_connection(&self) -> ClientConnection {
        let may_keep = self.request.keep_alive && self.uploaded.get() && !self.worker.is_draining();
        if may_keep { ClientConnection::KeepAlive } else { ClientConnection::Close }
    }

    fn accept(
        &self,
        response: Response,
        connection: ClientConnection,
    ) -> Result<(Response, ClientConnection), End> {
        if response.status == 101 && !self.request.upgrade {
            return Err(End::Failed(Failure::BadResponse("it switches protocols without being asked")));
        }
        self.status.set(response.status);
        self.took.set(self.begun.elapsed());
        if let Some(turn) = self.turn.take() {
            turn.answered(self.took.get(), response.status);
        }
        let ends_by_close =
            self.request.is_http_10() && matches!(response.framing, Framing::Chunked | Framing::UntilClose);
        Ok((response, if ends_by_close { ClientConnection::Close } else { connection }))
    }

    async fn pass_interim<W: AsyncWrite + Unpin>(&mut self, status: u16, client: &mut W) -> Result<(), End> {
        let is_wanted = !self.request.is_http_10() && (status != 100 || self.request.expects_continue);
        if !is_wanted {
            return Ok(());
        }
        let stall = self.worker.limits().stall;
        let written = write_all(client, self.timer, stall, self.answer, &[]).await;
        if self.uploaded.get() {
            self.timer.arm(self.response_timeout);
        } else {
            self.timer.disarm();
        }
        written.map_err(|_| End::ClientGone)
    }

    async fn fill<R: AsyncRead + Unpin>(
        &mut self,
        instance: &mut R,
        watch: &mut Option<&mut (dyn Attention + '_)>,
        interims: usize,
    ) -> Result<(), End> {
        let has_begun = !self.from_instance.is_empty() || interims > 0;
        let from_instance = &mut *self.from_instance;
        let filled = self
            .timer
            .limit(poll_fn(|cx| {
                match from_instance.poll_fill(cx, instance, HEAD_MAX) {
                    Poll::Ready(Ok(count)) => return Poll::Ready(Filled::Bytes(count)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Filled::Error),
                    Poll::Pending => {}
                }
                match watch {
                    Some(watch) => watch.poll_left(cx).map(|()| Filled::ClientGone),
                    None => Poll::Pending,
                }
            }))
            .await;
        match filled {
            Err(_) => Err(End::Failed(Failure::ResponseTimeout)),
            Ok(Filled::ClientGone) => Err(End::ClientGone),
            Ok(Filled::Bytes(0) | Filled::Error) if !has_begun => Err(End::Lost),
            Ok(Filled::Bytes(0) | Filled::Error) => {
                Err(End::Failed(Failure::BadResponse("it ends in the midst of its head")))
            }
            Ok(Filled::Bytes(_)) => Ok(()),
        }
    }

    async fn body<R, W>(
        self,
        response: Response,
        connection: ClientConnection,
        instance: &mut R,
        client: &mut W,
        watch: Option<&mut (dyn Attention + '_)>,
    ) -> End
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let framing = match response.coding {
            None => response.framing,
            Some(_) => Framing::Chunked,
        };
        let is_chunked = response::chunks_for_client(framing, self.request);
        let relay = Relay {
            buffer: self.from_instance,
            decoder: Decoder::new(response.framing),
            encoding: if is_chunked { Encoding::Chunked } else { Encoding::Identity },
            out: self.answer,
            timer: self.timer,
            stall: self.worker.limits().stall,
            ahead: self.ahead,
            passed: self.passed,
            max: u64::MAX,
            watch: watch.map(|watch| watch as _),
        };
        let relayed = match response.coding {
            None => relay.run(instance, client).await,
            Some(coding) => {
                Squeeze::new(relay, self.worker.encoders.lend(coding)).run(instance, client).await
            }
        };
        match relayed {
            Ok(()) => End::Complete {
                keep_instance: response.keep_alive && self.uploaded.get(),
                keep_client: connection == ClientConnection::KeepAlive,
            },
            Err(RelayError::Write { .. } | RelayError::WriteStalled | RelayError::Left) => End::ClientGone,
            Err(
                RelayError::Read | RelayError::ReadStalled | RelayError::Malformed(_) | RelayError::TooLong,
            ) => End::Truncated,
        }
    }
}
