//! Calls to whichever member answers: gRPC over HTTP/2, without its code generator.
//!
//! A call is one HTTP/2 stream: `POST /<service>/<method>`, each message behind five bytes (a flag and its length), and
//! the outcome in trailers. There is one connection at a time. One that fails is given up, and the next call goes to the
//! next member.

use std::sync::Mutex;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::time::Instant;

use super::connection::{Active, Connection, EtcdTls};

/// Longer than an election among members takes, so that most calls outlive one.
const CALL_WITHIN: Duration = Duration::from_secs(6);

/// What a single try may take: a member that answers pings but not calls has lost its own leader or its disk.
const TRY_WITHIN: Duration = Duration::from_secs(4);

/// Between tries, when no member could be asked at all.
const PAUSE: Duration = Duration::from_millis(100);

/// Pages of the largest values are far below; more is not what we asked for.
const ANSWER_MAX_BYTES: usize = 512 * 1024 * 1024;

/// What a call without an answer that can be used came to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// Nobody was asked: it surely had no effect.
    #[error("no member of etcd can be reached: {0}")]
    Unreached(String),
    /// Somebody was asked, and nobody knows what came of it.
    #[error("etcd did not answer: {0}")]
    Lost(String),
    #[error("etcd says: {message}")]
    Status { code: u16, message: String },
}

pub mod code {
    pub const INVALID_ARGUMENT: u16 = 3;
    pub const NOT_FOUND: u16 = 5;
    pub const PERMISSION_DENIED: u16 = 7;
    pub const RESOURCE_EXHAUSTED: u16 = 8;
    pub const OUT_OF_RANGE: u16 = 11;
    pub const UNIMPLEMENTED: u16 = 12;
    pub const UNAVAILABLE: u16 = 14;
    pub const UNAUTHENTICATED: u16 = 16;
}

impl CallError {
    /// The member refused before it did anything: it has no leader to pass the request on to, or only learns yet.
    fn is_refused_at_once(&self) -> bool {
        let Self::Status { code: code::UNAVAILABLE, message } = self else { return false };
        message.contains("no leader") || message.contains("not supported for learner")
    }

    /// Another member, or this one a moment later, may do better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreached(_) | Self::Lost(_) => true,
            Self::Status { code, message } => {
                *code == code::UNAVAILABLE || message.contains("too many requests")
            }
        }
    }

    pub fn has_no_effect(&self) -> bool {
        match self {
            Self::Unreached(_) => true,
            Self::Lost(_) => false,
            Self::Status { code, .. } => {
                self.is_refused_at_once()
                    || matches!(
                        *code,
                        code::INVALID_ARGUMENT
                            | code::NOT_FOUND
                            | code::PERMISSION_DENIED
                            | code::RESOURCE_EXHAUSTED
                            | code::OUT_OF_RANGE
                            | code::UNIMPLEMENTED
                            | code::UNAUTHENTICATED
                    )
            }
        }
    }
}

/// Whether a call that may have had an effect may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    Freely,
    /// Only when the try before surely had no effect.
    WhenWithoutEffect,
}

pub struct Channel {
    endpoints: Mutex<Vec<String>>,
    tls: Option<EtcdTls>,
    state: Mutex<State>,
    /// One dials at a time; the others wait for it and use what it found.
    dialling: tokio::sync::Mutex<()>,
}

struct State {
    /// Which endpoint is dialled next.
    next: usize,
    current: Option<(u64, Connection)>,
    /// Tells connections apart.
    dialled: u64,
}

impl Channel {
    pub fn new(endpoints: Vec<String>, tls: Option<EtcdTls>) -> Self {
        let state = State { next: 0, current: None, dialled: 0 };
        Self {
            endpoints: Mutex::new(endpoints),
            tls,
            state: Mutex::new(state),
            dialling: tokio::sync::Mutex::new(()),
        }
    }

    fn endpoints(&self) -> Vec<String> {
        self.endpoints.lock().expect("nobody panics while holding it").clone()
    }

    /// Members come and go; the connection that is open stays.
    pub fn set_endpoints(&self, endpoints: Vec<String>) {
        *self.endpoints.lock().expect("nobody panics while holding it") = endpoints;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    async fn connection(&self) -> Result<(u64, Connection), CallError> {
        if let Some(current) = self.state().current.clone() {
            return Ok(current);
        }
        let _dialling = self.dialling.lock().await;
        if let Some(current) = self.state().current.clone() {
            return Ok(current);
        }
        let first = self.state().next;
        let endpoints = self.endpoints();
        let mut troubles = Vec::new();
        for n in 0..endpoints.len() {
            let index = (first + n) % endpoints.len();
            let endpoint = &endpoints[index];
            match Connection::dial(endpoint, self.tls.as_ref()).await {
                Ok(connection) => {
                    let mut state = self.state();
                    state.dialled += 1;
                    state.next = index;
                    let current = (state.dialled, connection);
                    state.current = Some(current.clone());
                    return Ok(current);
                }
                Err(error) => troubles.push(format!("{endpoint}: {error}")),
            }
        }
        Err(CallError::Unreached(troubles.join("; ")))
    }

    /// A connection that failed is not used again; the next call goes to the next member.
    pub fn give_up(&self, connection: u64) {
        let mut state = self.state();
        if state.current.as_ref().is_some_and(|(id, _)| *id == connection) {
            state.current = None;
            state.next += 1;
        }
    }

    /// One request, one answer, from whichever member gives one in time.
    pub async fn call<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        repeat: Repeat,
    ) -> Result<A, CallError> {
        let deadline = Instant::now() + CALL_WITHIN;
        loop {
            let error = match self.try_call(method, request, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let may_repeat = error.is_passing() && (repeat == Repeat::Freely || error.has_no_effect());
            if !may_repeat || Instant::now() + PAUSE >= deadline {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_call<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        deadline: Instant,
    ) -> Result<A, CallError> {
        let unreached = || CallError::Unreached("none answered in time".to_owned());
        let connecting = tokio::time::timeout_at(deadline, self.connection());
        let (id, connection) = connecting.await.map_err(|_| unreached())??;
        let until = deadline.min(Instant::now() + TRY_WITHIN);
        let exchange = async {
            let mut stream = Stream::open(connection, method, request, Ends::AfterRequest).await?;
            let answer = stream.next().await?;
            // The outcome is in the trailers, behind the answer.
            match stream.next::<A>().await? {
                None => answer.ok_or_else(|| CallError::Lost("an answer without content".to_owned())),
                Some(_) => Err(CallError::Lost("two answers to one request".to_owned())),
            }
        };
        let outcome = tokio::time::timeout_at(until, exchange).await;
        let outcome = outcome.unwrap_or_else(|_| Err(CallError::Lost("no answer in time".to_owned())));
        if outcome.as_ref().is_err_and(CallError::is_passing) {
            self.give_up(id);
        }
        outcome
    }

    /// A call whose answers come as long as it is open.
    pub async fn open(&self, method: &str, request: &impl Message) -> Result<(u64, Stream), CallError> {
        let (id, connection) = self.connection().await?;
        let opened = tokio::time::timeout(TRY_WITHIN, Stream::open(connection, method, request, Ends::Stays));
        match opened.await.unwrap_or_else(|_| Err(CallError::Lost("no answer in time".to_owned()))) {
            Ok(stream) => Ok((id, stream)),
            Err(error) => {
                self.give_up(id);
                Err(error)
            }
        }
    }
}

/// Whether more requests may follow on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    AfterRequest,
    Stays,
}

/// An open call. Dropping it resets the stream.
pub struct Stream {
    answers: Answers,
    received: BytesMut,
    /// Half closed by us means the end to etcd's watches.
    _send: h2::SendStream<Bytes>,
    _active: Active,
    _connection: Connection,
}

enum Answers {
    /// The head of the answer comes with the first message.
    Expected(h2::client::ResponseFuture),
    Coming(h2::RecvStream),
    Ended,
}

impl Stream {
    async fn open(
        connection: Connection,
        method: &str,
        request: &impl Message,
        ends: Ends,
    ) -> Result<Self, CallError> {
        let active = connection.count();
        let unreached = |error: h2::Error| CallError::Unreached(error.to_string());
        let mut ready = connection.send.clone().ready().await.map_err(unreached)?;
        let head = Request::post(format!("http://etcd{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // A member that has lost its leader says so, and ends open watches, instead of going on with what it knows.
            .header("hasleader", "true")
            .body(())
            .expect("its parts are constants");
        let (answer, mut send) = ready.send_request(head, false).map_err(unreached)?;
        let lost = |error: h2::Error| CallError::Lost(error.to_string());
        send.send_data(framed(request), ends == Ends::AfterRequest).map_err(lost)?;
        Ok(Self {
            answers: Answers::Expected(answer),
            received: BytesMut::new(),
            _send: send,
            _active: active,
            _connection: connection,
        })
    }

    /// The next message; `None` at a good end. Dropping the future loses nothing.
    pub async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, CallError> {
        loop {
            if let Some(message) = self.take_message()? {
                return A::decode(message)
                    .map(Some)
                    .map_err(|error| CallError::Lost(format!("an answer that is none: {error}")));
            }
            if !self.receive().await? {
                return Ok(None);
            }
        }
    }

    /// `false`: there is nothing more to come.
    async fn receive(&mut self) -> Result<bool, CallError> {
        let lost = |error: h2::Error| CallError::Lost(error.to_string());
        match &mut self.answers {
            Answers::Ended => Ok(false),
            Answers::Expected(answer) => {
                let (head, body) = answer.await.map_err(lost)?.into_parts();
                self.answers = Answers::Coming(body);
                if head.status != http::StatusCode::OK {
                    return Err(CallError::Lost(format!("HTTP status {}", head.status)));
                }
                // An error may come in the head, with nothing behind it.
                outcome(&head.headers).map(|()| true)
            }
            Answers::Coming(body) => match body.data().await {
                Some(Ok(chunk)) => {
                    // Fails only when the stream is gone, which the next read says.
                    let _ = body.flow_control().release_capacity(chunk.len());
                    self.received.extend_from_slice(&chunk);
                    Ok(true)
                }
                Some(Err(error)) => Err(lost(error)),
                None => {
                    let trailers = body.trailers().await.map_err(lost)?;
                    self.answers = Answers::Ended;
                    match trailers {
                        Some(trailers) => outcome(&trailers).map(|()| false),
                        None => Err(CallError::Lost("an answer without an outcome".to_owned())),
                    }
                }
            },
        }
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, CallError> {
        if self.received.len() < 5 {
            return Ok(None);
        }
        let length = u32::from_be_bytes(self.received[1..5].try_into().expect("four bytes")) as usize;
        if self.received[0] != 0 || length > ANSWER_MAX_BYTES {
            return Err(CallError::Lost("an answer that is none: its head makes no sense".to_owned()));
        }
        if self.received.len() < 5 + length {
            return Ok(None);
        }
        self.received.advance(5);
        Ok(Some(self.received.split_to(length).freeze()))
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(5 + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("requests are small"));
    message.encode(&mut framed).expect("there is room");
    framed.freeze()
}

/// What the head or the trailers say came of a call.
fn outcome(headers: &HeaderMap) -> Result<(), CallError> {
    let Some(status) = headers.get("grpc-status").and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    let code: u16 = status.parse().unwrap_or(2);
    if code == 0 {
        return Ok(());
    }
    let message = headers.get("grpc-message").and_then(|value| value.to_str().ok()).unwrap_or("nothing more");
    Err(CallError::Status { code, message: message.replace("%20", " ") })
}
