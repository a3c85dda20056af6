//! The node's proxy: where requests of other machines come in for instances of this one.
//!
//! ```text
//!   mutual TLS, a member ─► one line names an instance ─► routed here? ─ yes ─► `+`, then bytes both ways
//!                                                            └ no ─► `-` and the end: nothing was sent, try elsewhere
//! ```
//!
//! It looks at no request: who sends one has routed and counted it. Its own part of the route documents says which
//! instances get requests, so a stale sender does no harm; a connection that it kept to an instance that is un-routed is
//! closed as soon as it is quiet.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rung_model::InstanceId;
use rung_trust::{Clients, Identity, Members, Peer, server_config};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::upstream::{ACCEPTED, GREETING, NOT_ROUTED};
use crate::worker::Worker;

/// Longer than any instance's id with what stands before it.
const LINE_MAX: usize = 256;
/// How often a connection looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// An instance that has answered and heard nothing more for so long has nothing in flight on this connection.
const QUIET_AFTER: Duration = Duration::from_millis(200);

/// What the threads need to serve other machines.
#[derive(Debug)]
pub(crate) struct PeerDoor {
    tls: Arc<ServerConfig>,
    members: Members,
}

impl PeerDoor {
    pub(crate) fn new(identity: Arc<Identity>, members: Members) -> Self {
        Self { tls: server_config(identity, Clients::Nodes), members }
    }
}

/// Serves a connection of another machine to its end.
pub(crate) async fn serve_peer(worker: Rc<Worker>, door: Arc<PeerDoor>, stream: TcpStream) {
    let limit = worker.limits().handshake;
    let Ok(Some((mut stream, peer))) = tokio::time::timeout(limit, greet(&door, stream)).await else {
        return;
    };
    let asked = tokio::time::timeout(limit, read_line(&mut stream)).await;
    let Ok(Ok(instance)) = asked else { return };
    let gone = door.members.gone(peer);
    tokio::select! {
        // Whatever becomes of it, both sides see the end of the connection.
        _ = serve_instance(&worker, &mut stream, &instance) => {}
        () = gone => {}
    }
}

async fn greet(door: &PeerDoor, stream: TcpStream) -> Option<(TlsStream<TcpStream>, Peer)> {
    let stream = TlsAcceptor::from(door.tls.clone()).accept(stream).await.ok()?;
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let peer = Peer::of(certificate).ok()?;
    door.members.admits(&peer).then_some((stream, peer))
}

/// The sender waits for the answer before it says more, so there is nothing behind the line.
async fn read_line(stream: &mut TlsStream<TcpStream>) -> io::Result<InstanceId> {
    let mut line = Vec::with_capacity(LINE_MAX);
    while line.last() != Some(&b'\n') {
        if line.len() >= LINE_MAX || stream.read_buf(&mut line).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let line = std::str::from_utf8(&line).map_err(io::Error::other)?;
    let name = line.trim_end().strip_prefix(GREETING).ok_or(io::ErrorKind::InvalidData)?;
    InstanceId::new(name).map_err(io::Error::other)
}

async fn serve_instance(
    worker: &Worker,
    stream: &mut TlsStream<TcpStream>,
    instance: &InstanceId,
) -> io::Result<()> {
    let reached = match worker.local_address(instance).filter(|_| !worker.is_draining()) {
        Some(address) => connect(worker, address).await,
        None => None,
    };
    let Some(local) = reached else {
        stream.write_all(&[NOT_ROUTED]).await?;
        return stream.shutdown().await;
    };
    stream.write_all(&[ACCEPTED]).await?;
    stream.flush().await?;
    let traffic = Traffic::default();
    let mut local = Watched { stream: local, traffic: &traffic };
    let mut passing = pin!(tokio::io::copy_bidirectional(stream, &mut local));
    loop {
        tokio::select! {
            ended = &mut passing => return ended.map(drop),
            () = tokio::time::sleep(LOOK_EVERY) => {
                let shall_end = worker.is_draining() || worker.local_address(instance).is_none();
                if shall_end && traffic.is_quiet() {
                    return Ok(());
                }
            }
        }
    }
}

async fn connect(worker: &Worker, address: SocketAddr) -> Option<TcpStream> {
    let stream =
        tokio::time::timeout(worker.limits().connect, TcpStream::connect(address)).await.ok()?.ok()?;
    let _ = stream.set_nodelay(true);
    Some(stream)
}

/// Which side spoke last, and when.
#[derive(Debug, Default)]
struct Traffic {
    /// `None` while the instance owes an answer.
    answered: Cell<Option<Instant>>,
    is_used: Cell<bool>,
}

impl Traffic {
    fn is_quiet(&self) -> bool {
        !self.is_used.get() || self.answered.get().is_some_and(|at| at.elapsed() >= QUIET_AFTER)
    }
}

/// The connection to the instance, which notes what passes.
#[derive(Debug)]
struct Watched<'t> {
    stream: TcpStream,
    traffic: &'t Traffic,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            this.traffic.answered.set(Some(Instant::now()));
        }
        read
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.traffic.is_used.set(true);
        this.traffic.answered.set(None);
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
