//! A plain client: sends bytes as they are and reads answers to their end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than anything here takes; a story that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Over a plain socket, unless a story brings another stream.
#[derive(Debug)]
pub struct Client<S = TcpStream> {
    pub stream: S,
    rest: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.head, String::from_utf8_lossy(&self.body))
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("the ingress refused a connection");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, rest: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("sending to the ingress failed");
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: shop.localhost\r\n\r\n"));
        self.answer().expect("the connection closed without an answer")
    }

    fn more(&mut self) -> bool {
        let mut bytes = [0; 65536];
        match self.stream.read(&mut bytes) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.rest.extend_from_slice(&bytes[..count]);
                true
            }
        }
    }

    pub fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.rest.len() < count {
            if !self.more() {
                return None;
            }
        }
        Some(self.rest.drain(..count).collect())
    }

    fn take_until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.rest.windows(mark.len()).position(|window| window == mark) {
                return self.take(at + mark.len());
            }
            if !self.more() {
                return None;
            }
        }
    }

    pub fn head(&mut self) -> Option<Answer> {
        let head = String::from_utf8(self.take_until(b"\r\n\r\n")?).unwrap();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        Some(Answer { status, head, body: Vec::new() })
    }

    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.take_until(b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
        let mut chunk = self.take(size + 2)?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// A whole answer to anything but HEAD. `None` when the connection ends before.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.head()?;
        if let Some(length) = answer.header("content-length").map(|length| length.parse().unwrap()) {
            answer.body = self.take(length)?;
        } else if answer.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk()?;
                if chunk.is_empty() {
                    break;
                }
                answer.body.extend_from_slice(&chunk);
            }
        } else if !matches!(answer.status, 100..200 | 204 | 304) {
            while self.more() {}
            answer.body = std::mem::take(&mut self.rest);
        }
        Some(answer)
    }

    /// True when the ingress closes without a further byte.
    pub fn is_closed(&mut self) -> bool {
        self.rest.is_empty() && matches!(self.stream.read(&mut [0; 1]), Ok(0))
    }
}

pub fn get(to: SocketAddr, path: &str) -> Answer {
    Client::connect(to).get(path)
}
