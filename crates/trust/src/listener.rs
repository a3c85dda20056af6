//! Accepts TLS. Handshakes run beside each other, so that a slow or silent stranger keeps nobody waiting.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{Protocol, server_config};
use crate::guard::Guarded;
use crate::identity::Identity;
use crate::members::Members;
use crate::peer::Peer;

/// A handshake takes two round trips; who needs longer means nothing good.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Beyond, connections wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 256;
/// Before the next try when accepting fails: for want of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// With a certificate they must be members; without one they are people.
    Anybody,
    /// Members only.
    Nodes,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Accepted {
    pub stream: Guarded<TlsStream<TcpStream>>,
    pub address: SocketAddr,
    pub caller: Caller,
    pub protocol: Protocol,
}

/// Whom a connection's certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// It showed none.
    Anybody,
    Member(Peer),
    /// It was a member once, or its name is another machine's now. Only where anybody may connect, to be told.
    Removed(Peer),
}

/// Accepts connections in a task that ends with it.
#[derive(Debug)]
pub struct Listener {
    accepted: mpsc::Receiver<Accepted>,
    address: SocketAddr,
    task: tokio::task::AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// The socket does not know its own address.
    pub fn new(
        socket: TcpListener,
        identity: Arc<Identity>,
        clients: Clients,
        members: Members,
    ) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let (sender, accepted) = mpsc::channel(64);
        let door = Arc::new(Door { config: server_config(identity, clients), clients, members, sender });
        let task = tokio::spawn(accept_all(socket, door)).abort_handle();
        Ok(Self { accepted, address, task })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next connection; waits for ever once the task has ended, which it does with this only.
    pub async fn accept(&mut self) -> Accepted {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }
}

#[derive(Debug)]
struct Door {
    config: Arc<ServerConfig>,
    clients: Clients,
    members: Members,
    sender: mpsc::Sender<Accepted>,
}

async fn accept_all(socket: TcpListener, door: Arc<Door>) {
    let turns = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let turn = turns.clone().acquire_owned().await.expect("nobody closes it");
        match socket.accept().await {
            Ok((stream, address)) => {
                tokio::spawn(admit(door.clone(), stream, address, turn));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn admit(door: Arc<Door>, stream: TcpStream, address: SocketAddr, turn: OwnedSemaphorePermit) {
    // Without it the last part of an answer waits for an acknowledgement; a failure costs only that.
    let _ = stream.set_nodelay(true);
    let accepting = TlsAcceptor::from(door.config.clone()).accept(stream);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_WITHIN, accepting).await else { return };
    drop(turn);
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = match certificate.map(Peer::of) {
        None => Caller::Anybody,
        Some(Ok(peer)) if door.members.admits(&peer) => Caller::Member(peer),
        Some(Ok(peer)) if door.clients == Clients::Anybody => Caller::Removed(peer),
        // Nothing is said to it.
        Some(Ok(_) | Err(_)) => return,
    };
    let gone = match &caller {
        Caller::Member(peer) => Some(until_gone(door.members.clone(), peer.clone())),
        Caller::Anybody | Caller::Removed(_) => None,
    };
    let protocol = Protocol::agreed(stream.get_ref().1);
    let accepted = Accepted { stream: Guarded::new(stream, gone), address, caller, protocol };
    // Nobody listens any more when the role ends.
    let _ = door.sender.send(accepted).await;
}

fn until_gone(members: Members, peer: Peer) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move { members.gone(peer).await })
}
