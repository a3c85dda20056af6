//! Binding the listening socket.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait while an ingress starts; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Ports that are tried when the wanted one is taken.
pub(crate) const PORTS_TRIED: u16 = 100;

/// Binds `address` exactly.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    listen(Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?, address)
}

/// Binds the port on every address of the loopback device, and on no other device: nobody else's packets get there.
///
/// One socket for all services, for a machine takes all of 127.0.0.0/8 for its own.
fn bind_loopback(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Before it is bound: there is no moment in which the network reaches it.
    socket.bind_device(Some(b"lo"))?;
    listen(socket, SocketAddr::from(([0, 0, 0, 0], port)))
}

fn listen(socket: Socket, address: SocketAddr) -> io::Result<TcpListener> {
    // Lets a port be taken again although old connections of it linger; never shares it with another listener.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds `address`, or the next free port above it.
pub(crate) fn bind_next_free(address: SocketAddr) -> io::Result<TcpListener> {
    first_free(from(address.port()), |port| bind(SocketAddr::new(address.ip(), port)))
}

/// Listens on the loopback device at the port that was used last, else at `usual` or the next free one above it.
pub(crate) fn bind_loopback_next_free(last: Option<u16>, usual: u16) -> io::Result<TcpListener> {
    first_free(last.into_iter().chain(from(usual)), bind_loopback)
}

fn from(port: u16) -> impl Iterator<Item = u16> {
    (0..PORTS_TRIED).map_while(move |step| port.checked_add(step))
}

/// The first of these ports that is not taken.
fn first_free(
    ports: impl Iterator<Item = u16>,
    bind: impl Fn(u16) -> io::Result<TcpListener>,
) -> io::Result<TcpListener> {
    let mut first_error = None;
    for port in ports {
        match bind(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                first_error.get_or_insert(error);
            }
            bound => return bound,
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}
