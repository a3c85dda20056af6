//! One request, to its end: choosing an instance, sending, receiving, and trying again where that is safe.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use rung_model::Protocol;
use rung_model::route::Redirect;
use tokio::net::TcpStream;

use crate::access_log::{CLIENT_GONE, Record, TRUNCATED};
use crate::balance::Tried;
use crate::body::{Decoder, Framing};
use crate::buffer::Buffer;
use crate::error_page::{self, Failure};
use crate::gate::{self, Verdict};
use crate::head::Request;
use crate::hold::{self, Held};
use crate::http2::{Join, JoinEnd};
use crate::pool::Assurance;
use crate::receive::{End, Receive};
use crate::redirect;
use crate::relay::{Encoding, Relay, RelayError, write_all};
use crate::response::ClientConnection;
use crate::stream::ClientStream;
use crate::tally::InTally;
use crate::timer::Timer;
use crate::tunnel::{Begun, tunnel};
use crate::upstream::{RelayRefusal, Upstream};
use crate::watch::{Attention, Watch};
use crate::worker::{Choice, Chosen, Worker};

/// With two instances of which one has crashed, the second attempt succeeds; more are for worse days.
const ATTEMPTS_MAX: u32 = 5;
/// Before an instance that refused a connection is asked again; doubles. Together below a quarter of a second.
const PAUSE_FIRST: Duration = Duration::from_millis(15);

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    KeepAlive,
    Close,
    /// The client is not there any more, or must see that the answer broke off.
    Drop,
}

enum Attempt {
    Done(After),
    /// The table changed while the connection was made, and the instance is not in it any more.
    Rerouted,
    Failed {
        failure: Failure,
        retry: Retry,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// Another instance, if there is one.
    Elsewhere,
    /// The same or another one, with a fresh connection: the kept one was closed meanwhile.
    Fresh,
    Never,
}

/// What there is of the request's body when it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestBody {
    /// All of it is behind the head already: everything can be sent again.
    Whole,
    Streamed,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Exchange<'c, S> {
    pub(crate) worker: &'c Worker,
    pub(crate) client: &'c mut S,
    /// Holds what follows the request's head.
    pub(crate) buffer: &'c mut Buffer,
    pub(crate) request: &'c Request,
    /// The head for the instance.
    pub(crate) head: &'c mut Vec<u8>,
    pub(crate) timer: &'c Timer,
    pub(crate) record: &'c mut Record,
}

impl<S: ClientStream> Exchange<'_, S> {
    pub(crate) async fn run(mut self) -> After {
        // What is between a visitor and a host is nothing to those who call inside.
        if let Some(https) = self.worker.https().filter(|_| self.request.call.is_none()) {
            if let Some(proof) = https.proof(self.request) {
                return self.prove(&proof).await;
            }
            if let Some(port) = https.redirect(self.request) {
                return self.redirect(port).await;
            }
        }
        if self.request.upgrade && !self.buffer.is_empty() {
            let why = "bytes follow the request to upgrade before it was answered";
            return self.fail(Failure::BadRequest { status: 400, why }, "").await;
        }
        let body = self.take_body();
        let mut tried = Tried::default();
        let mut lot = None;
        let mut last = None;
        let mut earned = false;
        let mut place = None;
        let since = *self.record.started.get_or_insert_with(Instant::now);
        loop {
            let choice = {
                let seen = &mut self.record.route;
                self.worker.choose(self.request, self.head, &tried, &mut lot, seen)
            };
            // A service that calls keeps no cookies.
            let fresh = lot.filter(|_| self.request.call.is_none()).and_then(|lot| lot.fresh);
            self.request.visitor.set(fresh);
            let chosen = match choice {
                Choice::Target(chosen) => chosen,
                Choice::Gate(policy) => {
                    match gate::pass(&policy, self.request, self.head, self.worker.trusted(None)) {
                        Verdict::Pass => continue,
                        Verdict::Preflight => return self.preflight(body).await,
                        Verdict::Refuse(failure) => return self.fail_body(failure, "", body).await,
                    }
                }
                Choice::Redirect { redirect, path } => return self.redirect_to(&redirect, &path, body).await,
                Choice::Hold { hold, load } => {
                    match hold::wait(self.worker, self.timer, self.client, self.buffer, &hold, &load, since)
                        .await
                    {
                        Held::Released => continue,
                        Held::Failed(failure) => return self.fail_body(failure, "", body).await,
                        Held::ClientGone => return self.client_gone(),
                    }
                }
                Choice::Full { rule, load } => {
                    let (timer, buffer) = (self.timer, &mut *self.buffer);
                    match hold::queue(timer, self.client, buffer, &rule, &load, &mut place, since).await {
                        Held::Released => continue,
                        Held::Failed(failure) => return self.fail_body(failure, "", body).await,
                        Held::ClientGone => return self.client_gone(),
                    }
                }
                Choice::Nothing { failure, explanation } => {
                    return self.fail_body(last.unwrap_or(failure), &explanation, body).await;
                }
            };
            place = None;
            let (service, slot, is_again) = (chosen.service, chosen.in_flight.load().slot, chosen.is_again);
            if !earned {
                self.worker.earn_retry(service);
                earned = true;
            }
            if is_again {
                tokio::time::sleep(PAUSE_FIRST * (1 << self.record.retries.min(4))).await;
            }
            match self.attempt(chosen, body).await {
                Attempt::Done(after) => return after,
                Attempt::Rerouted => {}
                Attempt::Failed { failure, retry } => {
                    let may = retry != Retry::Never && self.record.retries + 1 < ATTEMPTS_MAX;
                    if !may || !self.worker.spend_retry(service) {
                        return self.fail_body(failure, "", body).await;
                    }
                    self.record.retries += 1;
                    last = Some(failure);
                    if retry == Retry::Elsewhere {
                        tried.add(slot);
                    } else {
                        self.worker.pool.forget(slot);
                        self.worker.http2.forget(slot);
                    }
                }
            }
        }
    }

    /// Puts the body behind the head when all of it has been read already.
    fn take_body(&mut self) -> RequestBody {
        match self.request.body() {
            Framing::None => RequestBody::Whole,
            Framing::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= self.buffer.len() => {
                    self.head.extend_from_slice(&self.buffer.filled()[..length]);
                    self.buffer.consume(length);
                    RequestBody::Whole
                }
                _ => RequestBody::Streamed,
            },
            Framing::Chunked | Framing::UntilClose => RequestBody::Streamed,
        }
    }

    async fn attempt(&mut self, chosen: Chosen, body: RequestBody) -> Attempt {
        if chosen.protocol == Protocol::H2c {
            return self.attempt_http2(chosen, body).await;
        }
        let load = chosen.in_flight.load().clone();
        let can_repeat = self.request.is_idempotent() && body == RequestBody::Whole;
        let assurance = if can_repeat { Assurance::Likely } else { Assurance::Certain };
        let kept = self.worker.pool.take(load.slot, chosen.address, assurance);
        let is_kept = kept.is_some();
        let mut instance = match kept {
            Some(stream) => stream,
            None => match self.connect(&chosen).await {
                Ok(stream) => stream,
                Err(retry) => return retry,
            },
        };
        self.record.instance = Some(load.clone());
        let seen = self.worker.tallies.begin(&load.tallied);
        let begun = Instant::now();
        let mut from_instance = Buffer::default();
        self.worker.buffers.lend(&mut from_instance);
        let mut answer = self.worker.buffers.lend_output();
        let passed = Cell::new(0);
        let status = Cell::new(0);
        let uploaded = Cell::new(body == RequestBody::Whole);
        let took = Cell::new(Duration::ZERO);
        let receive = Receive {
            worker: self.worker,
            request: self.request,
            timer: self.timer,
            response_timeout: chosen.response_timeout,
            uploaded: &uploaded,
            passed: &passed,
            status: &status,
            begun,
            took: &took,
            turn: &chosen.turn,
            ahead: self.client.ahead(),
            from_instance: &mut from_instance,
            answer: &mut answer,
        };
        let (end, untouched) = match body {
            RequestBody::Whole => {
                (send_whole(self.client, &mut instance, self.buffer, self.head, receive).await, true)
            }
            RequestBody::Streamed => {
                send_streamed(self.client, &mut instance, self.buffer, self.head, receive).await
            }
        };
        self.record.upstream = begun.elapsed();
        self.record.status = status.get();
        self.record.bytes = passed.get();
        if chosen.is_bounded
            && is_failure(&end, is_kept)
            && let Some(turn) = chosen.turn.take()
        {
            turn.failed();
        }
        let outcome = self.outcome(of(&end), begun, took.get());
        outcome.count(&chosen);
        let attempt = match end {
            End::Complete { keep_instance, keep_client } => {
                load.succeeded();
                if chosen.rivals > 0 {
                    load.took(took.get(), status.get());
                }
                if keep_instance && from_instance.is_empty() && self.worker.is_routed(load.slot) {
                    self.worker.pool.put(load.slot, chosen.address, instance);
                }
                Attempt::Done(if keep_client { After::KeepAlive } else { After::Close })
            }
            End::Upgraded => {
                load.succeeded();
                let begun = Begun {
                    answer: &answer,
                    from_instance: from_instance.filled(),
                    from_client: self.buffer.filled(),
                };
                self.record.bytes = tunnel(self.worker, self.client, instance, self.timer, begun).await;
                self.buffer.consume(self.buffer.len());
                Attempt::Done(After::Drop)
            }
            End::NeverSent => Attempt::Failed { failure: Failure::ConnectionLost, retry: Retry::Fresh },
            End::Lost => {
                if !is_kept {
                    load.broke();
                }
                let retry = match (self.request.is_idempotent() && untouched, is_kept) {
                    (false, _) => Retry::Never,
                    (true, true) => Retry::Fresh,
                    (true, false) => Retry::Elsewhere,
                };
                Attempt::Failed { failure: Failure::ConnectionLost, retry }
            }
            End::Failed(failure) => Attempt::Failed { failure, retry: Retry::Never },
            End::Truncated => {
                self.record.error = Some(TRUNCATED);
                break_off(self.client);
                Attempt::Done(After::Drop)
            }
            End::ClientGone => Attempt::Done(self.client_gone()),
        };
        outcome.tell(seen, self.record.bytes);
        // What an instance still had to say after its answer is nobody's.
        from_instance.consume(from_instance.len());
        self.worker.buffers.take_back(&mut from_instance);
        self.worker.buffers.take_output_back(answer);
        attempt
    }

    /// To an instance that speaks HTTP/2: streams are joined as they are, trailers included.
    async fn attempt_http2(&mut self, chosen: Chosen, body: RequestBody) -> Attempt {
        let failed = |failure, retry| Attempt::Failed { failure, retry };
        if self.request.upgrade {
            return failed(Failure::NeedsHttp1, Retry::Never);
        }
        let mut send = match self.http2_connection(&chosen).await {
            Ok(send) => send,
            Err(attempt) => return attempt,
        };
        let load = chosen.in_flight.load().clone();
        let Some(client) = self.client.http2() else { return failed(Failure::NeedsHttp2, Retry::Never) };
        self.record.instance = Some(load.clone());
        let seen = self.worker.tallies.begin(&load.tallied);
        let begun = Instant::now();
        let max_body = max_body(self.request);
        let join = Join {
            request: self.request,
            max_body,
            head: self.head,
            has_body: body == RequestBody::Streamed,
            timer: self.timer,
            response_timeout: chosen.response_timeout,
            stall: self.worker.limits().stall,
            begun,
        };
        let joined = join.run(client, &mut send).await;
        self.record.upstream = begun.elapsed();
        self.record.status = joined.status;
        self.record.bytes = joined.bytes;
        let outcome = self.outcome(of_joined(joined.end), begun, joined.took);
        outcome.count(&chosen);
        outcome.tell(seen, joined.bytes);
        match joined.end {
            JoinEnd::Complete => {
                load.succeeded();
                Attempt::Done(After::KeepAlive)
            }
            JoinEnd::NotSent => failed(Failure::ConnectionLost, Retry::Fresh),
            JoinEnd::Refused => failed(Failure::ConnectionLost, Retry::Elsewhere),
            JoinEnd::Lost { untouched } => {
                self.worker.http2.forget(load.slot);
                load.broke();
                let may = untouched && self.request.is_idempotent();
                failed(Failure::ConnectionLost, if may { Retry::Elsewhere } else { Retry::Never })
            }
            JoinEnd::TimedOut => failed(Failure::ResponseTimeout, Retry::Never),
            JoinEnd::TooLong => failed(Failure::BodyTooLarge, Retry::Never),
            JoinEnd::BrokenOff => {
                self.record.error = Some(TRUNCATED);
                Attempt::Done(After::Drop)
            }
            JoinEnd::ClientGone => Attempt::Done(self.client_gone()),
        }
    }

    async fn http2_connection(&self, chosen: &Chosen) -> Result<SendRequest<Bytes>, Attempt> {
        let load = chosen.in_flight.load();
        if let Some(send) = self.worker.http2.take(load.slot) {
            return Ok(send);
        }
        let stream = self.connect(chosen).await?;
        self.timer.arm(self.worker.limits().connect);
        let opened = self.timer.limit(self.worker.http2.open(load.slot, stream)).await;
        self.timer.disarm();
        opened.ok().flatten().ok_or_else(|| {
            load.broke();
            let failure = Failure::BadResponse("it does not speak HTTP/2");
            Attempt::Failed { failure, retry: Retry::Never }
        })
    }

    async fn connect(&self, chosen: &Chosen) -> Result<Upstream, Attempt> {
        let failed = |failure| Attempt::Failed { failure, retry: Retry::Elsewhere };
        let limit = self.worker.limits().connect;
        let connected = match &chosen.relay {
            None => {
                self.timer.arm(limit);
                let connected = self.timer.limit(TcpStream::connect(chosen.address)).await;
                connected.map(|connected| connected.map(Upstream::Local).map_err(RelayRefusal::Io))
            }
            Some(relay) => {
                // A handshake more than on this machine.
                self.timer.arm(limit * 2);
                self.timer.limit(Upstream::relayed(relay)).await
            }
        };
        self.timer.disarm();
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(RelayRefusal::Io(error))) if is_out_of_descriptors(&error) => {
                // Nobody's fault but this process's: make room and say that it is busy.
                self.worker.pool.clear();
                return Err(failed(Failure::Overloaded));
            }
            // Nothing is wrong with it: its node knows better which instances get requests.
            Ok(Err(RelayRefusal::NotRouted)) => return Err(failed(Failure::ConnectFailed)),
            Ok(Err(RelayRefusal::Io(_))) | Err(_) => {
                if let Some(counts) = &chosen.counts {
                    counts.failed();
                }
                self.worker.tallies.begin(&chosen.in_flight.load().tallied).lost(0);
                chosen.in_flight.load().unreachable();
                if let Some(turn) = chosen.turn.take() {
                    turn.failed();
                }
                return Err(failed(Failure::ConnectFailed));
            }
        };
        // Un-routed while connecting: from its acknowledgement on, nothing more is sent there.
        if !self.worker.is_still_routed(chosen) {
            return Err(Attempt::Rerouted);
        }
        // Without it small writes wait for acknowledgements; a failure costs only that.
        stream.socket(|socket| drop(socket.set_nodelay(true)));
        Ok(stream)
    }

    /// What an attempt came to that was begun then, and whose answer began after `took`.
    fn outcome(&mut self, says: Says, begun: Instant, took: Duration) -> Outcome {
        let status = self.record.status;
        if status != 0 {
            let started = self.record.started.unwrap_or(begun);
            self.record.began = Some(begun.duration_since(started) + took);
        }
        match says {
            // A client who leaves in the midst of an answer has seen how it began; one who leaves before it says nothing.
            Says::Answer if status != 0 => Outcome::Answered { status, took },
            Says::Failure => Outcome::Failed,
            Says::Answer | Says::Nothing => Outcome::Nothing,
        }
    }

    fn client_gone(&mut self) -> After {
        if self.record.status == 0 {
            self.record.status = CLIENT_GONE;
        }
        self.record.error = Some("client_gone");
        After::Drop
    }

    async fn fail_body(&mut self, failure: Failure, explanation: &str, body: RequestBody) -> After {
        let connection = match failure {
            Failure::BadRequest { .. } => ClientConnection::Close,
            _ => self.connection_after(body),
        };
        self.write_page(failure, explanation, connection).await
    }

    /// What becomes of the client's connection when no instance was asked.
    fn connection_after(&self, body: RequestBody) -> ClientConnection {
        let may_keep = body == RequestBody::Whole && self.request.keep_alive && !self.worker.is_draining();
        if may_keep { ClientConnection::KeepAlive } else { ClientConnection::Close }
    }

    /// Answers a browser that asks what its page may send.
    async fn preflight(&mut self, body: RequestBody) -> After {
        let connection = self.connection_after(body);
        let mut out = self.worker.buffers.lend_output();
        redirect::write_preflight(&mut out, self.request, connection);
        self.record.status = 204;
        self.write(out, connection).await
    }

    /// Answers a request whose route leads elsewhere.
    async fn redirect_to(&mut self, redirect: &Redirect, path: &str, body: RequestBody) -> After {
        let connection = self.connection_after(body);
        let mut out = self.worker.buffers.lend_output();
        redirect::write_route(&mut out, self.request, self.head, redirect, path, connection);
        self.record.status = redirect.status;
        self.write(out, connection).await
    }

    /// Answers a request that is not for any instance.
    pub(crate) async fn reject(mut self, failure: Failure) -> After {
        self.fail(failure, "").await
    }

    /// Answers a plain request to a host that is for HTTPS.
    /// What the client may go on with after an answer that is Rung's own.
    fn after_own_answer(&self) -> ClientConnection {
        let has_body = !matches!(self.request.body(), Framing::None | Framing::Length(0));
        let may_keep = self.request.keep_alive && !has_body && !self.worker.is_draining();
        if may_keep { ClientConnection::KeepAlive } else { ClientConnection::Close }
    }

    /// Shows an authority that the host leads here.
    async fn prove(&mut self, proof: &str) -> After {
        let connection = self.after_own_answer();
        let mut out = self.worker.buffers.lend_output();
        redirect::write_proof(&mut out, self.request, proof, connection);
        self.record.status = 200;
        self.record.bytes = proof.len() as u64;
        self.write(out, connection).await
    }

    async fn redirect(&mut self, port: u16) -> After {
        let connection = self.after_own_answer();
        let mut out = self.worker.buffers.lend_output();
        redirect::write(&mut out, self.request, self.head, port, connection);
        self.record.status = 308;
        self.write(out, connection).await
    }

    async fn fail(&mut self, failure: Failure, explanation: &str) -> After {
        self.write_page(failure, explanation, ClientConnection::Close).await
    }

    async fn write_page(
        &mut self,
        failure: Failure,
        explanation: &str,
        connection: ClientConnection,
    ) -> After {
        let mut out = self.worker.buffers.lend_output();
        self.record.status = failure.status();
        self.record.error = Some(failure.name());
        let is_inside = self.request.call.is_some();
        let pages = if is_inside { None } else { self.worker.pages(&self.request.host) };
        let page = error_page::Page { failure, explanation, own: pages.as_deref() };
        self.record.bytes = error_page::write(&mut out, &page, self.request, connection);
        self.write(out, connection).await
    }

    /// Writes an answer of Rung's own.
    async fn write(&mut self, out: Vec<u8>, connection: ClientConnection) -> After {
        let written = write_all(self.client, self.timer, self.worker.limits().stall, &out, &[]).await;
        self.worker.buffers.take_output_back(out);
        match (written, connection) {
            (Err(_), _) => After::Drop,
            (Ok(()), ClientConnection::KeepAlive) => After::KeepAlive,
            (Ok(()), ClientConnection::Close) => After::Close,
        }
    }
}

/// Whether an end says something about the instance and its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It answered, as far as the client wanted to hear.
    Answer,
    Failure,
    /// It was the client's doing, or nothing was asked.
    Nothing,
}

fn of(end: &End) -> Says {
    match end {
        End::Complete { .. } | End::Upgraded | End::ClientGone => Says::Answer,
        End::NeverSent => Says::Nothing,
        End::Failed(Failure::BadRequest { .. } | Failure::RequestTimeout | Failure::BodyTooLarge) => {
            Says::Nothing
        }
        End::Lost | End::Failed(_) | End::Truncated => Says::Failure,
    }
}

fn of_joined(end: JoinEnd) -> Says {
    match end {
        JoinEnd::Complete | JoinEnd::ClientGone => Says::Answer,
        JoinEnd::NotSent | JoinEnd::Refused | JoinEnd::TooLong => Says::Nothing,
        JoinEnd::Lost { .. } | JoinEnd::TimedOut | JoinEnd::BrokenOff => Says::Failure,
    }
}

/// What an attempt says about the instance and its release.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Answered { status: u16, took: Duration },
    Failed,
    Nothing,
}

impl Outcome {
    fn count(self, chosen: &Chosen) {
        match (&chosen.counts, self) {
            (Some(counts), Self::Answered { status, took }) => counts.answered(status, took),
            (Some(counts), Self::Failed) => counts.failed(),
            (None, _) | (_, Self::Nothing) => {}
        }
    }

    fn tell(self, seen: InTally, bytes: u64) {
        match self {
            Self::Answered { status, took } => {
                seen.took(took);
                seen.answered(status, bytes);
            }
            Self::Failed => seen.lost(bytes),
            Self::Nothing => seen.withdrawn(),
        }
    }
}

/// Whether an instance that has not answered has failed by that. One that closes a connection that was kept has not.
fn is_failure(end: &End, is_kept: bool) -> bool {
    match end {
        End::Lost => !is_kept,
        End::Failed(failure) => matches!(failure, Failure::BadResponse(_) | Failure::ResponseTimeout),
        _ => false,
    }
}

pub(crate) fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    use nix::errno::Errno;
    let numbers = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|number| numbers.contains(&Errno::from_raw(number)))
}

/// Lets the client see that the answer is not whole, also where only the connection's end would tell.
fn break_off(client: &impl ClientStream) {
    // The connection is lost anyway; at worst it ends politely.
    client.with_socket(|socket| drop(socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO))));
}

async fn send_whole<S: ClientStream>(
    client: &mut S,
    instance: &mut Upstream,
    buffer: &mut Buffer,
    head: &[u8],
    receive: Receive<'_>,
) -> End {
    let (mut client_reader, mut client_writer) = client.halves();
    let (mut instance_reader, mut instance_writer) = instance.split();
    let stall = receive.worker.limits().stall;
    match write_all(&mut instance_writer, receive.timer, stall, head, &[]).await {
        Err(RelayError::Write { nothing: true }) => return End::NeverSent,
        Err(RelayError::WriteStalled) => return End::Failed(Failure::ResponseTimeout),
        // It may have answered and closed without reading everything: look.
        Ok(()) | Err(_) => {}
    }
    let mut watch = Watch::new(&mut client_reader, buffer, receive.worker, receive.passed);
    receive.run(&mut instance_reader, &mut client_writer, Some(&mut watch)).await
}

/// Sends the body as it comes while the answer is already awaited: it may come before the body's end.
///
/// Also says whether nothing of the body was taken, so that it could be sent again.
async fn send_streamed<S: ClientStream>(
    client: &mut S,
    instance: &mut Upstream,
    buffer: &mut Buffer,
    head: &[u8],
    receive: Receive<'_>,
) -> (End, bool) {
    let (mut client_reader, mut client_writer) = client.halves();
    let (mut instance_reader, mut instance_writer) = instance.split();
    let (worker, request, timer) = (receive.worker, receive.request, receive.timer);
    let (uploaded, status, passed) = (receive.uploaded, receive.status, receive.passed);
    let (response_timeout, ahead) = (receive.response_timeout, receive.ahead);
    let upload_timer = worker.timers.timer();
    let sent = Cell::new(0);
    let mut out = worker.buffers.lend_output();
    out.extend_from_slice(head);
    let framing = request.body();
    let end = {
        let upload = async {
            let relay = Relay {
                buffer: &mut *buffer,
                decoder: Decoder::new(framing),
                encoding: if framing == Framing::Chunked { Encoding::Chunked } else { Encoding::Identity },
                out: &mut out,
                timer: &upload_timer,
                stall: worker.limits().stall,
                ahead,
                passed: &sent,
                max: max_body(request),
                watch: None,
            };
            match relay.run(&mut client_reader, &mut instance_writer).await {
                Ok(()) => uploaded.set(true),
                Err(error) => {
                    if let Some(end) = client_failed(&error, status.get()) {
                        return end;
                    }
                }
            }
            upload_timer.disarm();
            // From now on it is the instance's turn.
            if status.get() == 0 {
                timer.arm(response_timeout);
            }
            let mut watch = Watch::new(&mut client_reader, buffer, worker, passed);
            poll_fn(|cx| watch.poll_left(cx)).await;
            End::ClientGone
        };
        let mut upload = pin!(upload);
        let mut download = pin!(receive.run(&mut instance_reader, &mut client_writer, None));
        poll_fn(|cx| match upload.as_mut().poll(cx) {
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => download.as_mut().poll(cx),
        })
        .await
    };
    worker.buffers.take_output_back(out);
    (end, sent.get() == 0 && matches!(framing, Framing::Length(_)))
}

/// What the route takes.
fn max_body(request: &Request) -> u64 {
    let dress = request.dress.borrow();
    dress.as_ref().and_then(|dress| dress.policy.rule.max_body_bytes).unwrap_or(u64::MAX)
}

/// The end of the exchange, when it was the client who failed to send its body.
fn client_failed(error: &RelayError, status: u16) -> Option<End> {
    let failure = match error {
        RelayError::Read | RelayError::Left => return Some(End::ClientGone),
        RelayError::ReadStalled => Failure::RequestTimeout,
        RelayError::Malformed(malformed) => Failure::BadRequest { status: 400, why: malformed.0 },
        RelayError::TooLong => Failure::BodyTooLarge,
        RelayError::Write { .. } | RelayError::WriteStalled => return None,
    };
    Some(if status == 0 { End::Failed(failure) } else { End::Truncated })
}
