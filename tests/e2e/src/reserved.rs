//! Ports for programs that can't be told to choose their own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port that nobody is given by chance as long as this is held: the socket is bound and never listens. A program that
/// asks for the port by its number gets it all the same, if it sets `SO_REUSEADDR` as servers do; until then whoever
/// connects there is refused.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    /// On loopback.
    pub fn any() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor more");
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let bound = socket.set_reuse_address(true).and_then(|()| socket.bind(&loopback.into()));
        let address = bound.and_then(|()| socket.local_addr()).expect("a free port");
        Self { address: address.as_socket().expect("an address of IPv4"), _socket: socket }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn who_asks_for_a_reserved_port_by_its_number_gets_it_and_nobody_else() {
        let reserved = Reserved::any();
        let refused = TcpStream::connect(reserved.address()).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let chosen: Vec<_> = (0..2000)
            .map(|_| {
                TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound")
            })
            .collect();
        let chosen: BTreeSet<_> = chosen.into_iter().collect();
        assert!(
            !chosen.contains(&reserved.address()),
            "the kernel gave it to somebody who asked for any port"
        );
        let server = TcpListener::bind(reserved.address()).expect("it is kept for who knows its number");
        TcpStream::connect(server.local_addr().expect("it is bound")).expect("it is reached there");
    }
}
