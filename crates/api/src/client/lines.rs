//! The connections of a client, and which of them a question goes by.
//!
//! Between machines, questions go side by side on one connection, by HTTP/2: a server holds one for each machine, however
//! much is asked at a time, and most of what it is asked are long polls. What flows has a connection of its own, by
//! HTTP/1.1: archives, logs, terminals. So an archive keeps no question waiting, not in a window and not in the kernel's
//! queue, and the windows can be small.
//!
//! An older server, a socket of this machine, and a person's command have HTTP/1.1 for all: a connection carries one
//! question at a time, and is used again for the next one.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rung_trust::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::silence::{CONNECT_WITHIN, connect_tcp, in_time};
use super::witness::{Watched, Witness};
use super::{Address, Body, Client, ClientError};

/// More than this many connections are never idle at once in a role's normal work.
const IDLE_MAX: usize = 8;

/// Whoever connects for all may take its time twice: for the connection and for the handshake.
const TURN_WITHIN: Duration = CONNECT_WITHIN.saturating_mul(2);

/// Of one answer so much is on its way until it is read: a table of routes or a list of members comes in few round trips,
/// and questions beside it wait for no more than that.
const WINDOW: u32 = 256 * 1024;
/// Four answers that nobody reads hold up none of the others.
const WINDOW_OF_ALL: u32 = 4 * WINDOW;
/// The server remembers so much of the headers of its answers for each connection: there are two, of forty bytes.
const HEADERS_REMEMBERED: u32 = 256;

/// How a question goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Beside others, where both sides can: what is asked and answered in one piece.
    Beside,
    /// On a connection of its own: what flows.
    Alone,
}

#[derive(Default)]
pub struct Lines {
    /// That carry one question at a time, and none now.
    idle: Mutex<Vec<Line>>,
    /// That carries all that goes beside others.
    shared: Mutex<Option<Line>>,
    /// Of several questions that find no connection, one makes it.
    turn: tokio::sync::Mutex<()>,
}

/// A connection that is ready for a question.
pub struct Line {
    address: Address,
    witness: Arc<Witness>,
    sender: Sender,
}

enum Sender {
    OneByOne(http1::SendRequest<Body>),
    SideBySide(http2::SendRequest<Body>),
}

impl Lines {
    fn idle(&self) -> MutexGuard<'_, Vec<Line>> {
        self.idle.lock().expect("no panic while held")
    }

    fn shared(&self) -> MutexGuard<'_, Option<Line>> {
        self.shared.lock().expect("no panic while held")
    }

    /// What was asked on them goes on.
    pub fn forget_those_to(&self, server: &Address) {
        self.idle().retain(|line| line.address != *server);
        self.shared().take_if(|line| line.address == *server);
    }

    /// One of them leads to a machine that is silent. A shared one that was made since may not.
    pub fn forget(&self, silent: &Arc<Witness>) {
        self.idle().clear();
        self.shared().take_if(|line| Arc::ptr_eq(&line.witness, silent));
    }

    fn take_idle(&self, to: &Address) -> Option<Line> {
        let mut idle = self.idle();
        while let Some(line) = idle.pop() {
            if line.is_good_for(to) {
                return Some(line);
            }
        }
        None
    }

    fn share(&self, to: &Address) -> Option<Line> {
        let mut shared = self.shared();
        // The server may have gone, or another one is asked now.
        shared.take_if(|line| !line.is_good_for(to));
        shared.as_ref().and_then(Line::beside)
    }
}

impl Line {
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn witness(&self) -> &Arc<Witness> {
        &self.witness
    }

    /// The same connection once more, when it carries more than one question.
    fn beside(&self) -> Option<Self> {
        let Sender::SideBySide(sender) = &self.sender else { return None };
        let sender = Sender::SideBySide(sender.clone());
        Some(Self { address: self.address.clone(), witness: self.witness.clone(), sender })
    }

    fn is_good_for(&self, to: &Address) -> bool {
        let is_ready = match &self.sender {
            Sender::OneByOne(sender) => sender.is_ready(),
            Sender::SideBySide(sender) => sender.is_ready(),
        };
        is_ready && self.address == *to
    }

    /// The begin of a request as it is written on this connection.
    pub fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder().method(method);
        match &self.sender {
            Sender::OneByOne(_) => request.uri(path).header("host", "rung"),
            Sender::SideBySide(_) => request.uri(format!("https://rung{path}")),
        }
    }

    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let answer = match &mut self.sender {
            Sender::OneByOne(sender) => sender.send_request(request).await,
            Sender::SideBySide(sender) => sender.send_request(request).await,
        };
        answer.map_err(|source| self.broken(source))
    }

    pub fn broken(&self, source: hyper::Error) -> ClientError {
        let address = self.address.to_string();
        match self.witness.why().or_else(|| rung_trust::explain(&source)) {
            Some(why) => ClientError::Untrusted { address, why },
            None => ClientError::Broken { address, source },
        }
    }
}

impl Client {
    /// A connection for a question: one that is there, if it may be, or a new one.
    pub(super) async fn line(&self, way: Way) -> Result<Line, ClientError> {
        match way {
            Way::Beside if self.may_share() => self.shared_line().await,
            Way::Beside | Way::Alone => match self.inner.lines.take_idle(&self.address()) {
                Some(line) => Ok(line),
                None => self.connect(way).await,
            },
        }
    }

    fn may_share(&self) -> bool {
        let offers = self.inner.tls.as_ref().is_some_and(|tls| rung_trust::offers_side_by_side(&tls.config));
        offers && matches!(self.address(), Address::Tls(_))
    }

    async fn shared_line(&self) -> Result<Line, ClientError> {
        let lines = &self.inner.lines;
        let there = || lines.share(&self.address()).or_else(|| lines.take_idle(&self.address()));
        if let Some(line) = there() {
            return Ok(line);
        }
        let Ok(turn) = tokio::time::timeout(TURN_WITHIN, lines.turn.lock()).await else {
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 6 s");
            return Err(ClientError::Connect { address: self.address().to_string(), source });
        };
        if let Some(line) = there() {
            return Ok(line);
        }
        let line = self.connect(Way::Beside).await?;
        if let Some(shared) = line.beside() {
            *lines.shared() = Some(shared);
        }
        drop(turn);
        Ok(line)
    }

    /// A new connection, to the first server that is there.
    pub(super) async fn connect(&self, way: Way) -> Result<Line, ClientError> {
        let mut tries = self.servers().addresses.len();
        loop {
            tries -= 1;
            let address = self.address();
            match self.connect_to(&address, way).await {
                Ok(line) => return Ok(line),
                Err(error) => {
                    self.turn_away_from(&address);
                    if tries == 0 {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn connect_to(&self, address: &Address, way: Way) -> Result<Line, ClientError> {
        let fail = |source| ClientError::Connect { address: address.to_string(), source };
        match address {
            Address::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await.map_err(fail)?;
                begin(address, Protocol::OneByOne, stream).await
            }
            Address::Tcp(authority) => {
                let stream = connect_tcp(authority, self.who()).await.map_err(fail)?;
                begin(address, Protocol::OneByOne, stream).await
            }
            Address::Tls(authority) => {
                let stream = self.connect_tls(address, authority, way).await?;
                begin(address, Protocol::agreed(stream.get_ref().1), stream).await
            }
        }
    }

    pub(super) async fn connect_tls(
        &self,
        address: &Address,
        authority: &str,
        way: Way,
    ) -> Result<TlsStream<TcpStream>, ClientError> {
        let fail = |source| ClientError::Connect { address: address.to_string(), source };
        let Some(tls) = &self.inner.tls else {
            return Err(ClientError::NoTrust { address: address.to_string() });
        };
        let config = match way {
            Way::Beside => &tls.config,
            Way::Alone => &tls.one_by_one,
        };
        let stream = connect_tcp(authority, self.who()).await.map_err(fail)?;
        let connecting = TlsConnector::from(config.clone()).connect(tls.name.clone(), stream);
        in_time(connecting).await.map_err(|source| match rung_trust::explain(&source) {
            Some(why) => ClientError::Untrusted { address: address.to_string(), why },
            None => fail(source),
        })
    }

    /// Keeps a connection for the next question, once the answer to this one was read.
    pub(super) fn keep(&self, line: Line) {
        let client = self.clone();
        let Line { address, witness, sender: Sender::OneByOne(mut sender) } = line else { return };
        tokio::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            let lines = &client.inner.lines;
            // Beside a shared one it was for what flows, which comes seldom; thousands of machines hold none of these.
            if lines.shared().is_some() {
                return;
            }
            let mut idle = lines.idle();
            if idle.len() < IDLE_MAX {
                idle.push(Line { address, witness, sender: Sender::OneByOne(sender) });
            }
        });
    }
}

/// Begins to speak HTTP on a connection.
async fn begin<S>(address: &Address, protocol: Protocol, stream: S) -> Result<Line, ClientError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let witness = Witness::new();
    let stream = TokioIo::new(Watched::new(stream, witness.clone()));
    let begun = match protocol {
        Protocol::OneByOne => http1::handshake(stream).await.map(|(sender, connection)| {
            tokio::spawn(async move {
                // Its end is seen by whoever holds the sender.
                let _ = connection.with_upgrades().await;
            });
            Sender::OneByOne(sender)
        }),
        Protocol::SideBySide => side_by_side().handshake(stream).await.map(|(sender, connection)| {
            tokio::spawn(async move {
                let _ = connection.await;
            });
            Sender::SideBySide(sender)
        }),
    };
    match begun {
        Ok(sender) => Ok(Line { address: address.clone(), witness, sender }),
        Err(source) => Err(ClientError::Broken { address: address.to_string(), source }),
    }
}

fn side_by_side() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW_OF_ALL)
        .header_table_size(HEADERS_REMEMBERED);
    http
}
