//! Descriptors that cross processes, and Unix sockets on paths of any length.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg,
    sockopt::{AcceptConn, SockType},
};
use socket2::SockRef;

/// More listening sockets are never handed over at once.
const SOCKETS_MAX: usize = 16;

/// Takes possession of a descriptor that this process inherited by number.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 || !Path::new(&format!("/proc/self/fd/{number}")).exists() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("descriptor {number} was not inherited"),
        ));
    }
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is open, as was just seen, and by the contract of `rung ingress` it was given to this
    // process for this purpose: nothing else here owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(descriptor)
}

/// Takes possession of an inherited listening socket.
pub(crate) fn inherited_listener(number: RawFd) -> io::Result<std::net::TcpListener> {
    listener(inherited(number)?)
}

/// Takes possession of an inherited socket for datagrams.
pub(crate) fn inherited_datagrams(number: RawFd) -> io::Result<std::net::UdpSocket> {
    datagrams(inherited(number)?)
}

pub(crate) fn datagrams(descriptor: OwnedFd) -> io::Result<std::net::UdpSocket> {
    if getsockopt(&descriptor, SockType)? != nix::sys::socket::SockType::Datagram {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is no socket for datagrams"));
    }
    let socket = std::net::UdpSocket::from(descriptor);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

pub(crate) fn listener(descriptor: OwnedFd) -> io::Result<std::net::TcpListener> {
    if !getsockopt(&descriptor, AcceptConn)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not a listening socket"));
    }
    let listener = std::net::TcpListener::from(descriptor);
    listener.set_nonblocking(true)?;
    // What it accepts inherits that, at no call each: else the last part of an answer waits for an acknowledgement.
    SockRef::from(&listener).set_tcp_nodelay(true)?;
    Ok(listener)
}

/// Sends bytes and, with them, copies of descriptors.
pub(crate) fn send_with(socket: RawFd, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    Ok(sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives bytes, and the descriptors that came with them.
pub(crate) fn receive_with(socket: RawFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; SOCKETS_MAX]);
    let mut slices = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(socket, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            #[allow(unsafe_code)]
            // SAFETY: the kernel has just made these descriptors for this process; nothing else knows of them.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    Ok((message.bytes, descriptors))
}

/// Makes listeners of received descriptors.
pub(crate) fn listeners(descriptors: Vec<OwnedFd>) -> io::Result<Vec<std::net::TcpListener>> {
    descriptors.into_iter().map(listener).collect()
}

/// A socket's address is 107 bytes at most; by way of the open directory it is always short.
#[derive(Debug)]
pub(crate) struct ShortPath {
    directory: File,
    name: String,
}

impl ShortPath {
    pub(crate) fn new(directory: &Path, name: &str) -> io::Result<Self> {
        Ok(Self { directory: File::open(directory)?, name: name.to_owned() })
    }

    /// Valid while `self` lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{}", self.directory.as_raw_fd(), self.name).into()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_a_listener_accepts_sends_its_last_part_at_once() {
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = listener(OwnedFd::from(bound)).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap(), "this kernel does not hand it on to what is accepted");
    }
}
