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
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Lets a port be taken again although old connections of it linger; never shares it with another listener.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds the port on every address of the loopback device, and on no other device: nobody else's packets get there.
///
/// One socket for all services, for a machine takes all of 127.0.0.0/8 for its own.
pub(crate) fn bind_loopback(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Before it is bound: there is no moment in which the network reaches it.
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The same at the first of these ports that is free.
pub(crate) fn bind_loopback_at(ports: impl Iterator<Item = u16>) -> io::Result<TcpListener> {
    let mut first_error = None;
    for port in ports {
        match bind_loopback(port) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// Binds `address`, or the next free port above it.
pub(crate) fn bind_next_free(address: SocketAddr) -> io::Result<TcpListener> {
    let mut wanted = address;
    let mut first_error = None;
    for step in 0..PORTS_TRIED {
        let Some(port) = address.port().checked_add(step) else { break };
        wanted.set_port(port);
        match bind(wanted) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}
