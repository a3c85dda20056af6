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
