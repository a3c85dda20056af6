//! Strict heads on the API's TCP port.
//!
//! hyper reads what it can make sense of: bare line feeds, a `Content-Length` beside a `Transfer-Encoding`, no `Host`.
//! Whatever stands between a client and the API may read these otherwise, so they are refused. Each connection carries
//! one request (its answer says `Connection: close`), so the first head is the only one: it is gathered, judged, and
//! either passed on unchanged or replaced by a line that no server accepts, which hyper answers with 400 and a close.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};

/// Our longest head (a token and a path of names) is below one kilobyte.
const HEAD_MAX_BYTES: usize = 16 * 1024;

/// A head that is sent byte by byte must not hold a connection for long.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Parsed by nobody as a request.
const REFUSED: &[u8] = b"\0\r\n\r\n";

/// Accepts connections whose first head is judged.
#[derive(Debug)]
pub struct StrictListener(pub TcpListener);

impl Listener for StrictListener {
    type Io = StrictStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (StrictStream<TcpStream>, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        // Answers are small and written at once; without it fails nothing but a little time.
        let _ = stream.set_nodelay(true);
        (StrictStream::judging(stream), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[derive(Debug)]
pub struct StrictStream<S> {
    stream: S,
    head: Head,
}

impl<S> StrictStream<S> {
    pub fn judging(stream: S) -> Self {
        let late = Box::pin(sleep(HEAD_WITHIN));
        Self { stream, head: Head::Gathering { bytes: Vec::new(), late } }
    }

    /// For who is known and sends many requests on one connection, with nothing in between that reads them otherwise.
    pub fn trusting(stream: S) -> Self {
        Self { stream, head: Head::Passed }
    }
}

/// `Gathering` ─► `Passing` what was gathered ─► `Passed`: straight through.
#[derive(Debug)]
enum Head {
    Gathering { bytes: Vec<u8>, late: Pin<Box<Sleep>> },
    Passing { bytes: Vec<u8>, at: usize },
    Passed,
}

impl<S: AsyncRead + Unpin> AsyncRead for StrictStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.head {
                Head::Passed => return Pin::new(&mut this.stream).poll_read(context, buffer),
                Head::Passing { bytes, at } => {
                    let count = buffer.remaining().min(bytes.len() - *at);
                    buffer.put_slice(&bytes[*at..*at + count]);
                    *at += count;
                    if *at == bytes.len() {
                        this.head = Head::Passed;
                    }
                    return Poll::Ready(Ok(()));
                }
                Head::Gathering { bytes, late } => {
                    let mut chunk = [0; 2048];
                    let mut read = ReadBuf::new(&mut chunk);
                    match Pin::new(&mut this.stream).poll_read(context, &mut read) {
                        Poll::Ready(result) => result?,
                        Poll::Pending => {
                            ready!(late.as_mut().poll(context));
                            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                        }
                    }
                    let ended = read.filled().is_empty();
                    bytes.extend_from_slice(read.filled());
                    let end = find_end(bytes);
                    if end.is_none() && !ended && bytes.len() <= HEAD_MAX_BYTES {
                        continue;
                    }
                    let is_good =
                        end.is_some_and(|end| end <= HEAD_MAX_BYTES && judge(&bytes[..end]).is_ok());
                    let bytes =
                        if is_good || bytes.is_empty() { std::mem::take(bytes) } else { REFUSED.to_vec() };
                    this.head = if bytes.is_empty() { Head::Passed } else { Head::Passing { bytes, at: 0 } };
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StrictStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Where the head ends; a bare line feed ends it, too, to be refused at once instead of waited on.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let empty_line =
        |ending: &[u8]| bytes.windows(ending.len()).position(|w| w == ending).map(|at| at + ending.len());
    [empty_line(b"\r\n\r\n"), empty_line(b"\n\n"), empty_line(b"\n\r\n")].into_iter().flatten().min()
}

/// Why a head is refused; for tests, which name it.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    LineEnd,
    Control,
    RequestLine,
    HeaderName,
    Host,
    Length,
    Encoding,
}

fn judge(head: &[u8]) -> Result<(), Fault> {
    let head = head.strip_suffix(b"\r\n\r\n").ok_or(Fault::LineEnd)?;
    let mut lines = Vec::new();
    for line in head.split(|&byte| byte == b'\n') {
        lines.push(line);
    }
    let last = lines.len() - 1;
    let mut trimmed = Vec::with_capacity(lines.len());
    for (index, line) in lines.into_iter().enumerate() {
        let line = if index == last { line } else { line.strip_suffix(b"\r").ok_or(Fault::LineEnd)? };
        if line.contains(&b'\r') {
            return Err(Fault::LineEnd);
        }
        if line.iter().any(|&byte| byte == 0x7f || (byte < 0x20 && byte != b'\t')) {
            return Err(Fault::Control);
        }
        trimmed.push(line);
    }
    let is_11 = judge_request_line(trimmed[0])?;
    judge_headers(&trimmed[1..], is_11)
}

fn judge_request_line(line: &[u8]) -> Result<bool, Fault> {
    let parts: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let [method, target, version] = parts.as_slice() else { return Err(Fault::RequestLine) };
    if method.is_empty() || !method.iter().all(u8::is_ascii_uppercase) || !target.starts_with(b"/") {
        return Err(Fault::RequestLine);
    }
    match *version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Fault::RequestLine),
    }
}

fn judge_headers(lines: &[&[u8]], is_11: bool) -> Result<(), Fault> {
    let (mut hosts, mut lengths, mut encodings) = (0, 0, 0);
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':').ok_or(Fault::HeaderName)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
            return Err(Fault::HeaderName);
        }
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(Fault::Length);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Encoding);
            }
        }
    }
    if hosts > 1 || (is_11 && hosts == 0) {
        return Err(Fault::Host);
    }
    if lengths > 1 || (lengths == 1 && encodings > 0) {
        return Err(Fault::Length);
    }
    if encodings > 1 || (encodings == 1 && !is_11) {
        return Err(Fault::Encoding);
    }
    Ok(())
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn heads_that_others_may_read_otherwise_are_refused() {
        let host = "Host: rung\r\n";
        let cases = [
            (format!("GET / HTTP/1.1\r\n{host}\r\n"), Ok(())),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), Ok(())),
            (format!("POST /a HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\n"), Ok(())),
            (format!("PUT /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n"), Ok(())),
            ("GET / HTTP/1.1\nHost: rung\n\n".to_owned(), Err(Fault::LineEnd)),
            (format!("GET / HTTP/1.1\n{host}\r\n"), Err(Fault::LineEnd)),
            (format!("GET / HTTP/1.1\r\n{host}A: b\rc\r\n\r\n"), Err(Fault::LineEnd)),
            (format!("GET / HTTP/1.1\r\n{host}A: b\0c\r\n\r\n"), Err(Fault::Control)),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), Err(Fault::Host)),
            (format!("GET / HTTP/1.1\r\n{host}{host}\r\n"), Err(Fault::Host)),
            (format!("GET  / HTTP/1.1\r\n{host}\r\n"), Err(Fault::RequestLine)),
            (format!("GET / HTTP/2.0\r\n{host}\r\n"), Err(Fault::RequestLine)),
            (format!("GET http://x/ HTTP/1.1\r\n{host}\r\n"), Err(Fault::RequestLine)),
            (format!("GET / HTTP/1.1\r\n{host}A : b\r\n\r\n"), Err(Fault::HeaderName)),
            (format!("GET / HTTP/1.1\r\n{host}A: b\r\n c\r\n\r\n"), Err(Fault::HeaderName)),
            (
                format!("GET / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
                Err(Fault::Length),
            ),
            (format!("GET / HTTP/1.1\r\n{host}Content-Length: +1\r\n\r\n"), Err(Fault::Length)),
            (
                format!("GET / HTTP/1.1\r\n{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
                Err(Fault::Length),
            ),
            (format!("GET / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n"), Err(Fault::Encoding)),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), Err(Fault::Encoding)),
        ];
        for (head, expected) in cases {
            assert_eq!(judge(head.as_bytes()), expected, "{head:?}");
        }
    }

    async fn answered(request: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo =
            axum::Router::new().route("/echo", axum::routing::post(|body: String| async move { body }));
        let server = tokio::spawn(async move { axum::serve(StrictListener(listener), echo).await });
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A server that closes on what it refused may reset what we still sent.
        let _ = stream.read_to_end(&mut answer).await;
        server.abort();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn a_good_request_passes_with_its_body_and_a_bad_one_is_answered_with_400() {
        let good = b"POST /echo HTTP/1.1\r\nHost: rung\r\nContent-Length: 5\r\n\r\nhello";
        let answer = answered(good).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"), "{answer}");
        let smuggled =
            b"POST /echo HTTP/1.1\r\nHost: rung\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        let answer = answered(smuggled).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let endless =
            [b"GET / HTTP/1.1\r\nHost: rung\r\nA: ".as_slice(), &vec![b'a'; HEAD_MAX_BYTES * 2]].concat();
        let answer = answered(&endless).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") || answer.is_empty(), "{answer}");
    }
}
