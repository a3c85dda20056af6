//! Whose a loopback connection is: the kernel is asked for the user of its other end.
//!
//! One question of some hundred bytes by netlink (`sock_diag(7)`), answered before it returns. Where the kernel has no such
//! thing, the same is looked for in `/proc/net/tcp`.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Of `linux/sock_diag.h`, `linux/netlink.h` and `linux/inet_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2` and the part of `struct inet_diag_msg` that is looked at.
const QUESTION: usize = 56;
const ANSWER: usize = 72;
const USER_AT: usize = 64;
const INODE_AT: usize = 68;
/// The answer is there when the question has been sent; this is for a kernel that does not keep to that.
const ANSWER_WITHIN_MS: i64 = 100;

thread_local! {
    /// Made with the first question of a thread.
    static ASKING: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// The user of the socket that is bound to `from` and connected to `to`. `None`: there is none any more.
///
/// A connection that its process has closed already belongs to nobody, which the kernel shows as user 0: what is not a
/// process's any more (it has no inode) is nobody's here, too.
pub(crate) fn user_of(from: SocketAddrV4, to: SocketAddrV4) -> Option<u32> {
    match ask(from, to) {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "the kernel does not answer by netlink; looking in /proc/net/tcp");
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
            find(&table, from, to)
        }
    }
}

fn ask(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<Option<u32>> {
    ASKING.with_borrow_mut(|asking| {
        let socket = match asking {
            Some(socket) => &*socket,
            None => &*asking.insert(open()?),
        };
        let answered = exchange(socket, &question(from, to));
        if answered.is_err() {
            // What is left in it would be taken for the next answer.
            *asking = None;
        }
        understand(&answered?)
    })
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(ANSWER_WITHIN_MS))?;
    Ok(socket)
}

fn exchange(socket: &OwnedFd, question: &[u8]) -> io::Result<Vec<u8>> {
    sendto(socket.as_raw_fd(), question, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

fn question(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let length = HEADER + QUESTION;
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&u32::try_from(length).expect("it is short").to_ne_bytes());
    out.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port: one question is open at a time, and the kernel knows who asks.
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[AF_INET, IPPROTO_TCP, 0, 0]);
    // In every state.
    out.extend_from_slice(&u32::MAX.to_ne_bytes());
    out.extend_from_slice(&from.port().to_be_bytes());
    out.extend_from_slice(&to.port().to_be_bytes());
    for address in [from.ip(), to.ip()] {
        out.extend_from_slice(&address.octets());
        out.extend_from_slice(&[0; 12]);
    }
    // On any device, and without a cookie.
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[0xff; 8]);
    out
}

fn understand(answer: &[u8]) -> io::Result<Option<u32>> {
    let number = |at: usize| {
        let bytes = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) if answer.len() >= HEADER + ANSWER => {
            let (user, inode) = (number(HEADER + USER_AT)?, number(HEADER + INODE_AT)?);
            Ok((inode != 0).then_some(user))
        }
        Some(NLMSG_ERROR) => match Errno::from_raw(number(HEADER)?.cast_signed().wrapping_neg()) {
            Errno::ENOENT => Ok(None),
            errno => Err(errno.into()),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// In a table like this, addresses as the machine keeps them in memory:
///
/// ```text
///   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
///    0: 0100007F:C350 0703407F:1E14 01 00000000:00000000 00:00000000 00000000 20001        0 12345 …
/// ```
fn find(table: &str, from: SocketAddrV4, to: SocketAddrV4) -> Option<u32> {
    let shown = |ip: &Ipv4Addr, port: u16| format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip.octets()));
    let (local, remote) = (shown(from.ip(), from.port()), shown(to.ip(), to.port()));
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let is_it = words.next() == Some(&local) && words.next() == Some(&remote);
        let user = is_it.then(|| words.nth(4)).flatten()?.parse().ok()?;
        let inode: u64 = words.nth(1)?.parse().ok()?;
        (inode != 0).then_some(user)
    })
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn v4(address: SocketAddr) -> SocketAddrV4 {
        match address {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(_) => panic!("{address} is not of this test"),
        }
    }

    #[test]
    fn the_kernel_and_its_table_say_the_same_user() {
        let listener = TcpListener::bind("127.64.9.9:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (from, to) = (v4(client.local_addr().unwrap()), v4(listener.local_addr().unwrap()));
        let own = Some(nix::unistd::geteuid().as_raw());
        assert_eq!(ask(from, to).expect("the kernel answers"), own);
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert_eq!(find(&table, from, to), own, "{table}");
    }

    #[test]
    fn a_connection_whose_caller_has_left_is_nobodys_and_not_roots() {
        let listener = TcpListener::bind("127.64.9.10:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (from, to) = (v4(client.local_addr().unwrap()), v4(listener.local_addr().unwrap()));
        let (accepted, _) = listener.accept().unwrap();
        drop(client);
        assert_eq!(user_of(from, to), None, "its caller has closed it");
        drop(accepted);
        assert_eq!(user_of(from, to), None, "both have closed it");
    }

    #[test]
    fn a_line_of_the_table_is_read_by_its_addresses() {
        let from = "127.0.0.1:50000".parse().unwrap();
        let to = "127.64.3.7:7700".parse().unwrap();
        let line = |user: &str, inode: &str| {
            format!(
                "head\n   0: 0100007F:C350 0703407F:1E14 01 00000000:00000000 00:00000000 00000000 {user}        0 {inode} 1\n"
            )
        };
        if cfg!(target_endian = "little") {
            assert_eq!(find(&line("20001", "77"), from, to), Some(20001));
            assert_eq!(find(&line("0", "0"), from, to), None, "it is nobody's any more");
            assert_eq!(find(&line("20001", "77"), to, from), None);
        }
    }
}
