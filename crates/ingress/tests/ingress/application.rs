//! Applications to route to: a thread per connection, whatever a story needs as the answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rung_model::{DeploymentNumber, Endpoint, InstanceId, ReleaseNumber};

/// A request as an instance saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

pub struct Application {
    pub id: InstanceId,
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
}

/// What a connection's thread works with.
pub struct Connection {
    pub stream: TcpStream,
    rest: Vec<u8>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Application {
    /// Each connection is given to `serve` in a thread of its own.
    pub fn start(id: &str, serve: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let closed = Arc::new(AtomicBool::new(false));
        let serve = Arc::new(serve);
        let (seen_by, counted, stop) = (seen.clone(), connections.clone(), closed.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                counted.fetch_add(1, Ordering::AcqRel);
                let mut connection =
                    Connection { stream: stream.unwrap(), rest: Vec::new(), seen: seen_by.clone() };
                let serve = serve.clone();
                std::thread::spawn(move || serve(&mut connection));
            }
        });
        Self { id: InstanceId::new(id).unwrap(), address, seen, connections, closed }
    }

    /// Answers each request with `200` and what `answer` makes of it, keeping connections.
    pub fn answering(id: &str, answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(id, move |connection| {
            while let Some(seen) = connection.request() {
                if connection.answer(&answer(&seen)).is_err() {
                    return;
                }
            }
        })
    }

    pub fn endpoint(&self) -> Endpoint {
        self.endpoint_of(1)
    }

    /// As an instance that a certain deployment asked for.
    pub fn endpoint_of(&self, cohort: u64) -> Endpoint {
        Endpoint {
            instance: self.id.clone(),
            address: self.address,
            release: ReleaseNumber(cohort),
            cohort: DeploymentNumber(cohort),
            node: None,
            proxy: None,
            weight: 1,
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Stops listening, so that connections are refused.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(TcpStream::connect(self.address));
    }
}

impl Connection {
    fn more(&mut self) -> Option<()> {
        let mut bytes = [0; 65536];
        let count = self.stream.read(&mut bytes).ok().filter(|count| *count > 0)?;
        self.rest.extend_from_slice(&bytes[..count]);
        Some(())
    }

    pub fn take_exact(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.rest.len() < count {
            self.more()?;
        }
        Some(self.rest.drain(..count).collect())
    }

    /// Up to and with `mark`.
    fn take_until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.rest.windows(mark.len()).position(|window| window == mark) {
                return self.take_exact(at + mark.len());
            }
            self.more()?;
        }
    }

    pub fn head(&mut self) -> Option<String> {
        Some(String::from_utf8(self.take_until(b"\r\n\r\n")?).expect("heads for instances are text"))
    }

    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.take_until(b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
        let mut chunk = self.take_exact(size + 2)?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// Reads a whole request, as the plainest of servers would.
    pub fn request(&mut self) -> Option<Seen> {
        let head = self.head()?;
        let mut seen = Seen { head, body: Vec::new() };
        if let Some(length) = seen.header("content-length").map(|length| length.parse().unwrap()) {
            seen.body = self.take_exact(length)?;
        } else if seen.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk()?;
                if chunk.is_empty() {
                    break;
                }
                seen.body.extend_from_slice(&chunk);
            }
        }
        self.seen.lock().unwrap().push(seen.clone());
        Some(seen)
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    pub fn answer(&mut self, body: &[u8]) -> std::io::Result<()> {
        let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        self.write(bytes)
    }
}
