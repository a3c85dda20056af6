//! A small HTTP/1.1 client that says exactly what went wrong, and when.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than anything that a healthy platform makes a client wait for.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How far a request came before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Connecting,
    Sending,
    /// Nothing of the answer's head had come.
    Waiting,
    Reading,
}

#[derive(Debug)]
pub struct Failure {
    pub stage: Stage,
    pub source: io::Error,
}

fn at(stage: Stage) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure { stage, source }
}

/// A connection that is kept for the next request.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(at(Stage::Connecting))?;
        stream.set_nodelay(true).map_err(at(Stage::Connecting))?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(at(Stage::Connecting))?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(at(Stage::Connecting))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends bytes as they are; malformed ones too.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.get_mut().write_all(bytes).map_err(at(Stage::Sending))
    }

    /// Sends a request and reads the whole answer.
    pub fn ask(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method != "GET" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes)?;
        self.read_answer()
    }

    pub fn get(&mut self, host: &str, path: &str) -> Result<Answer, Failure> {
        self.ask("GET", host, path, &[], b"")
    }

    /// Reads one answer: its head, and its body by length, in chunks, or to the connection's end.
    pub fn read_answer(&mut self) -> Result<Answer, Failure> {
        let (status, headers) = self.read_head()?;
        let mut answer = Answer { status, headers, body: Vec::new() };
        if status == 204 || status == 304 || (100..200).contains(&status) {
            return Ok(answer);
        }
        let chunked =
            answer.header("transfer-encoding").is_some_and(|value| value.to_lowercase().contains("chunked"));
        let length = answer.header("content-length").and_then(|value| value.parse::<usize>().ok());
        answer.body = match (chunked, length) {
            (true, _) => self.read_chunks().map_err(at(Stage::Reading))?,
            (false, Some(length)) => {
                let mut body = vec![0; length];
                self.stream.read_exact(&mut body).map_err(at(Stage::Reading))?;
                body
            }
            (false, None) => {
                let mut body = Vec::new();
                self.stream.read_to_end(&mut body).map_err(at(Stage::Reading))?;
                body
            }
        };
        Ok(answer)
    }

    fn read_head(&mut self) -> Result<(u16, Vec<(String, String)>), Failure> {
        if self.stream.fill_buf().map_err(at(Stage::Waiting))?.is_empty() {
            return Err(at(Stage::Waiting)(io::ErrorKind::UnexpectedEof.into()));
        }
        let first = self.read_line().map_err(at(Stage::Reading))?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| at(Stage::Reading)(invalid(&first)))?;
        let mut headers = Vec::new();
        loop {
            let line = self.read_line().map_err(at(Stage::Reading))?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| at(Stage::Reading)(invalid(&line)))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// A line without its end; an end of the connection before it is an error.
    pub fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| invalid("not UTF-8"))
    }

    /// So many bytes as they come: of a tunnel, after an upgrade.
    pub fn read_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn read_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line()?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(|_| invalid(&line))?;
            let from = body.len();
            body.resize(from + size, 0);
            self.stream.read_exact(&mut body[from..])?;
            self.read_line()?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// Whether the other side closes the connection without a further byte.
    pub fn is_closed(&mut self) -> bool {
        self.stream.fill_buf().is_ok_and(<[u8]>::is_empty)
            || self.stream.fill_buf().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }
}

fn invalid(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {line:?}"))
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer, Failure> {
    Connection::open(address)?.get(host, path)
}
