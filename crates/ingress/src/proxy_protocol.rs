//! The PROXY protocol, versions 1 and 2: a load balancer in front says by the connection's first bytes who the client is.
//!
//! Taken only from addresses that are named for it, and demanded from them: whoever could choose to leave it out could
//! choose to be somebody else, too. Nothing is read beyond the header, so that TLS or a request begins where it ends.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::task::Poll;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::worker::Worker;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest of version 1, its line's end included.
const LINE_MAX: usize = 107;
/// Of version 2 behind its first 16 bytes: addresses, and what else a balancer likes to tell.
const REST_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("it does not begin with a header of the PROXY protocol")]
    Missing,
    #[error("its header of the PROXY protocol is malformed")]
    Malformed,
}

/// Who the client is, by the word of `peer`; `None` when it does not say so in time, or says nonsense.
pub(crate) async fn client(worker: &Worker, stream: &mut TcpStream, peer: IpAddr) -> Option<IpAddr> {
    let timer = worker.timers.timer();
    timer.arm(worker.limits().handshake);
    let read = async {
        match read(stream).await {
            // A balancer that looks whether we are there speaks for itself.
            Ok(said) => Some(said.unwrap_or(peer)),
            Err(error) => {
                tracing::debug!(%peer, %error, "a connection of a load balancer is closed");
                None
            }
        }
    };
    let mut read = pin!(read);
    let mut is_last = false;
    poll_fn(|cx| {
        if let Poll::Ready(client) = read.as_mut().poll(cx) {
            return Poll::Ready(client);
        }
        if worker.is_draining() && !is_last {
            is_last = true;
            timer.arm(worker.limits().idle_linger);
        }
        if timer.poll_expired(cx) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// `None`: the header names nobody but the sender.
async fn read(stream: &mut TcpStream) -> Result<Option<IpAddr>, HeaderError> {
    // Every header of either version is longer than this.
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == SIGNATURE {
        return read_binary(stream).await;
    }
    if !first.starts_with(b"PROXY ") {
        return Err(HeaderError::Missing);
    }
    read_line(stream, &first).await
}

async fn read_binary(stream: &mut TcpStream) -> Result<Option<IpAddr>, HeaderError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [command, family, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 || length > REST_MAX {
        return Err(HeaderError::Malformed);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match command & 0xf {
        0 => Ok(None),
        1 => source(family, &rest),
        _ => Err(HeaderError::Malformed),
    }
}

/// Source and destination come first, then their ports.
fn source(family: u8, rest: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    let bytes =
        |length: usize| (rest.len() >= 2 * length + 4).then(|| &rest[..length]).ok_or(HeaderError::Malformed);
    match family >> 4 {
        1 => {
            let source: [u8; 4] = bytes(4)?.try_into().expect("as many were asked for");
            Ok(Some(Ipv4Addr::from(source).into()))
        }
        2 => {
            let source: [u8; 16] = bytes(16)?.try_into().expect("as many were asked for");
            Ok(Some(Ipv6Addr::from(source).to_canonical()))
        }
        // Unspecified, or a socket of the balancer's own machine.
        0 | 3 => Ok(None),
        _ => Err(HeaderError::Malformed),
    }
}

async fn read_line(stream: &mut TcpStream, first: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    let mut line = first.to_vec();
    while !line.ends_with(b"\n") {
        if line.len() >= LINE_MAX {
            return Err(HeaderError::Malformed);
        }
        // What is there already is looked at first, so that a line costs two reads and not a hundred.
        let mut ahead = [0; LINE_MAX];
        let seen = stream.peek(&mut ahead[..LINE_MAX - line.len()]).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let take = memchr::memchr(b'\n', &ahead[..seen]).map_or(seen, |at| at + 1);
        stream.read_exact(&mut ahead[..take]).await?;
        line.extend_from_slice(&ahead[..take]);
    }
    let line = line.strip_suffix(b"\r\n").ok_or(HeaderError::Malformed)?;
    parse_line(std::str::from_utf8(line).map_err(|_| HeaderError::Malformed)?)
}

fn parse_line(line: &str) -> Result<Option<IpAddr>, HeaderError> {
    let mut words = line.split(' ');
    let malformed = || HeaderError::Malformed;
    let (Some("PROXY"), Some(family)) = (words.next(), words.next()) else { return Err(malformed()) };
    if family == "UNKNOWN" {
        return Ok(None);
    }
    let (Some(source), Some(destination), Some(from), Some(to), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(malformed());
    };
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok();
    if !is_port(from) || !is_port(to) {
        return Err(malformed());
    }
    let (source, destination): (IpAddr, IpAddr) =
        (source.parse().map_err(|_| malformed())?, destination.parse().map_err(|_| malformed())?);
    match (family, source, destination) {
        ("TCP4", IpAddr::V4(_), IpAddr::V4(_)) | ("TCP6", IpAddr::V6(_), IpAddr::V6(_)) => {
            Ok(Some(source.to_canonical()))
        }
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_client_or_is_refused() {
        let read = |line: &str| parse_line(line).map(|client| client.map(|client| client.to_string()));
        assert_eq!(read("PROXY TCP4 1.2.3.4 5.6.7.8 56324 443").unwrap().as_deref(), Some("1.2.3.4"));
        assert_eq!(read("PROXY TCP6 2001:db8::1 ::1 56324 443").unwrap().as_deref(), Some("2001:db8::1"));
        assert_eq!(read("PROXY UNKNOWN").unwrap(), None);
        assert_eq!(read("PROXY UNKNOWN ffff::1 ffff::2 1 2").unwrap(), None);
        for bad in [
            "PROXY",
            "PROXY TCP4",
            "PROXY TCP4 1.2.3.4 5.6.7.8 56324",
            "PROXY TCP4 1.2.3.4 5.6.7.8 56324 443 x",
            "PROXY TCP4 2001:db8::1 ::1 1 2",
            "PROXY TCP6 1.2.3.4 5.6.7.8 1 2",
            "PROXY TCP4 1.2.3.4 5.6.7.8 65536 443",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 443",
            "PROXY  TCP4 1.2.3.4 5.6.7.8 1 443",
            "PROXY TCP4 host 5.6.7.8 1 443",
            "proxy TCP4 1.2.3.4 5.6.7.8 1 443",
        ] {
            assert!(read(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_binary_header_names_the_client_whatever_else_it_tells() {
        let v4 = [&[10, 0, 0, 9, 10, 0, 0, 1, 1, 2, 1, 187][..], b"and more"].concat();
        assert_eq!(source(0x11, &v4).unwrap(), Some("10.0.0.9".parse().unwrap()));
        assert!(source(0x11, &v4[..11]).is_err(), "addresses that are cut off");
        let mut v6 = vec![0; 36];
        v6[..2].copy_from_slice(&[0x20, 0x01]);
        assert_eq!(source(0x21, &v6).unwrap(), Some("2001::".parse().unwrap()));
        assert_eq!(source(0x00, &[]).unwrap(), None);
        assert_eq!(source(0x31, &[]).unwrap(), None, "a socket of the balancer's machine");
        assert!(source(0x41, &v6).is_err());
    }
}
