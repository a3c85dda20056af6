//! Both ends of a proxy in one event loop: the applications behind it and the clients before it.
//!
//! One thread, because a machine with two cores has one for the proxy and one for this: two threads would wait for
//! each other. The loop reads once per event and writes at once, so that it costs less than any proxy does.
//!
//! Clients are closed (each sends when its answer came), open (requests are due at times drawn beforehand; a late
//! one counts from when it was due, whoever made it late), or new (a connection per request).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// Instances behind each proxy.
pub const INSTANCES: usize = 2;
const FIRST_CONNECTION: usize = INSTANCES;
/// A read takes this much at once.
const SCRATCH: usize = 256 * 1024;
/// Longer than any answer is awaited after the end, so that no proxy is judged by what it must clean up.
const SETTLE: Duration = Duration::from_secs(3);
/// Of answers beyond this size only the end differs: their bodies are written from one block again and again.
const BLOCK: usize = 1024 * 1024;
/// Requests that nobody can send any more: the proxy is far beyond its capacity.
const BACKLOG_MAX: usize = 1_000_000;

/// A small request, over a connection that is kept.
pub const REQUEST: &[u8] = b"GET /128 HTTP/1.1\r\nHost: bench.localhost\r\nAccept: */*\r\n\r\n";

#[derive(Debug, Clone, Copy)]
pub enum Pace {
    Closed,
    /// Requests a second, at random distances.
    Open(f64),
    New,
}

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub pace: Pace,
    pub connections: usize,
    pub body: usize,
    pub warm_up: Duration,
    pub time: Duration,
}

/// What one turn showed.
#[derive(Debug, Default)]
pub struct Turn {
    pub requests: u64,
    pub failures: u64,
    /// Of the answers, heads included; also of those that did not come to their end.
    pub bytes: u64,
    pub time: Duration,
    /// Of the proxy.
    pub cpu: Duration,
    /// From when a request was due to its answer's last byte; empty unless the pace is open.
    pub latencies: Vec<Duration>,
}

#[derive(Debug)]
enum Role {
    /// An instance's connection: what of its answer is still to be written.
    Instance {
        unwritten: usize,
        body: usize,
    },
    Client(Client),
}

/// ```text
/// Connecting ─► Idle ◄─► Waiting
/// ```
#[derive(Debug, Clone, Copy)]
enum Client {
    Connecting,
    Idle,
    /// For an answer to a request that was due then.
    Waiting {
        due: Instant,
        left: Left,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Head,
    Body(usize),
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    role: Role,
    /// The start of a head that came in parts.
    part: Vec<u8>,
}

/// See the module's text.
#[derive(Debug)]
pub struct World {
    poll: Poll,
    listeners: Vec<TcpListener>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    scratch: Vec<u8>,
    answers: Vec<(usize, Vec<u8>)>,
    random: u64,
}

/// The state of one turn.
struct Run {
    plan: Plan,
    target: SocketAddr,
    request: Vec<u8>,
    turn: Turn,
    is_measuring: bool,
    is_over: bool,
    open: usize,
    idle: Vec<usize>,
    due: VecDeque<Instant>,
    next_due: Instant,
}

impl Run {
    /// Without a client of its own.
    fn of_nobody() -> Self {
        let plan = Plan {
            pace: Pace::Closed,
            connections: 0,
            body: 128,
            warm_up: Duration::ZERO,
            time: Duration::ZERO,
        };
        Self {
            plan,
            target: SocketAddr::from(([127, 0, 0, 1], 0)),
            request: Vec::new(),
            turn: Turn::default(),
            is_measuring: false,
            is_over: true,
            open: 0,
            idle: Vec::new(),
            due: VecDeque::new(),
            next_due: Instant::now(),
        }
    }
}

impl World {
    pub fn new() -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut listeners = Vec::new();
        for index in 0..INSTANCES {
            let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
            poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
            listeners.push(listener);
        }
        Ok(Self {
            poll,
            listeners,
            connections: Vec::new(),
            free: Vec::new(),
            scratch: vec![0; SCRATCH],
            answers: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    pub fn instances(&self) -> anyhow::Result<Vec<SocketAddr>> {
        Ok(self.listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
    }

    /// Serves what proxies ask of the instances, as long as `goes_on`.
    pub fn serve_while(&mut self, goes_on: impl Fn() -> bool) -> anyhow::Result<()> {
        let mut run = Run::of_nobody();
        while goes_on() {
            self.step(&mut run, Some(Duration::from_millis(2)))?;
        }
        Ok(())
    }

    /// Sends requests by the plan; `cpu` tells what the proxy has used so far.
    pub fn turn(
        &mut self,
        target: SocketAddr,
        plan: Plan,
        cpu: &dyn Fn() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<Turn> {
        let close = if matches!(plan.pace, Pace::New) { "Connection: close\r\n" } else { "" };
        let request = format!(
            "GET /{} HTTP/1.1\r\nHost: bench.localhost\r\nUser-Agent: rung-bench\r\nAccept: */*\r\n{close}\r\n",
            plan.body
        );
        let now = Instant::now();
        let mut run = Run { plan, target, request: request.into_bytes(), is_over: false, ..Run::of_nobody() };
        for _ in 0..plan.connections {
            self.connect(&mut run)?;
        }
        self.go_on(&mut run, now + plan.warm_up)?;
        let (began, cpu_before) = (Instant::now(), cpu()?);
        run.is_measuring = true;
        self.go_on(&mut run, began + plan.time)?;
        run.turn.time = began.elapsed();
        run.turn.cpu = cpu()? - cpu_before;
        run.is_measuring = false;
        run.is_over = true;
        if plan.body <= BLOCK {
            self.go_on(&mut run, Instant::now() + SETTLE)?;
        }
        self.close_clients();
        Ok(run.turn)
    }

    /// Opens connections that have made one request each, and leaves them open while `then` looks.
    pub fn with_idle<T>(
        &mut self,
        target: SocketAddr,
        count: usize,
        then: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut run = Run { target, request: REQUEST.to_vec(), is_measuring: true, ..Run::of_nobody() };
        let seen = self.open_idle(&mut run, count).and_then(|()| then());
        self.close_clients();
        seen
    }

    fn open_idle(&mut self, run: &mut Run, count: usize) -> anyhow::Result<()> {
        while run.open < count {
            // A few at a time: a burst would show how each proxy buffers it, not what an idle connection holds.
            for _ in 0..(count - run.open).min(16) {
                self.connect(run)?;
            }
            let opened = run.open as u64;
            let patience = Instant::now() + SETTLE;
            while run.turn.requests < opened {
                let Turn { requests, failures, .. } = run.turn;
                anyhow::ensure!(
                    failures == 0 && Instant::now() < patience,
                    "{requests} of {opened} connections were answered, {failures} failed"
                );
                self.step(run, Some(Duration::from_millis(10)))?;
            }
        }
        Ok(())
    }

    fn go_on(&mut self, run: &mut Run, until: Instant) -> anyhow::Result<()> {
        loop {
            let now = Instant::now();
            let has_settled = run.is_over && (run.idle.len() >= run.open || run.open == 0);
            if now >= until || has_settled {
                return Ok(());
            }
            let patience = match run.plan.pace {
                // The loop has a core of its own: it looks again at once, to send each request when it is due.
                Pace::Open(_) if !run.is_over => Duration::ZERO,
                _ => (until - now).min(Duration::from_millis(20)),
            };
            if let Pace::Open(rate) = run.plan.pace
                && !run.is_over
            {
                self.send_due(run, now, rate)?;
            }
            self.step(run, Some(patience))?;
        }
    }

    fn send_due(&mut self, run: &mut Run, now: Instant, rate: f64) -> anyhow::Result<()> {
        while run.next_due <= now {
            run.due.push_back(run.next_due);
            run.next_due += Duration::from_secs_f64(self.exponential() / rate);
        }
        anyhow::ensure!(
            run.due.len() < BACKLOG_MAX,
            "{} does not keep up with {rate:.0} a second",
            run.target
        );
        while !run.due.is_empty() {
            let Some(key) = run.idle.pop() else { break };
            let since = run.due.pop_front().expect("it is not empty");
            self.send(run, key, since)?;
        }
        Ok(())
    }

    /// Exponentially distributed with mean 1: arrivals of people who do not know of each other.
    fn exponential(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let uniform = ((self.random >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        -uniform.min(1.0).ln()
    }

    fn step(&mut self, run: &mut Run, patience: Option<Duration>) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(256);
        if let Err(error) = self.poll.poll(&mut events, patience) {
            anyhow::ensure!(error.kind() == ErrorKind::Interrupted, "waiting for events: {error}");
        }
        for event in &events {
            let Token(token) = event.token();
            if token < INSTANCES {
                self.accept(token)?;
                continue;
            }
            let key = token - FIRST_CONNECTION;
            match self.connections.get(key).and_then(Option::as_ref).map(|c| &c.role) {
                Some(Role::Instance { .. }) => self.serve(key, event.is_writable()),
                Some(Role::Client(_)) => self.receive(run, key, event.is_writable())?,
                None => {}
            }
        }
        Ok(())
    }

    fn insert(&mut self, mut stream: TcpStream, role: Role) -> anyhow::Result<usize> {
        let key = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(FIRST_CONNECTION + key), interest)?;
        self.connections[key] = Some(Connection { stream, role, part: Vec::new() });
        Ok(key)
    }

    fn remove(&mut self, key: usize) {
        if self.connections[key].take().is_some() {
            self.free.push(key);
        }
    }

    fn accept(&mut self, listener: usize) -> anyhow::Result<()> {
        loop {
            match self.listeners[listener].accept() {
                Ok((stream, _)) => {
                    stream.set_nodelay(true)?;
                    let key = self.insert(stream, Role::Instance { unwritten: 0, body: 0 })?;
                    // What came before it was registered makes an event too.
                    debug_assert!(self.connections[key].is_some());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accepting a proxy's connection"),
            }
        }
    }

    /// An instance's part: reads a request, answers with as many bytes as its path says.
    fn serve(&mut self, key: usize, is_writable: bool) {
        let Some(connection) = self.connections[key].as_mut() else { return };
        let Role::Instance { unwritten, body } = &mut connection.role else { return };
        if *unwritten == 0 {
            match connection.stream.read(&mut self.scratch) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => return self.remove(key),
                Ok(count) => connection.part.extend_from_slice(&self.scratch[..count]),
            }
            if !connection.part.ends_with(b"\r\n\r\n") {
                return;
            }
            *body = asked_for(&connection.part);
            connection.part.clear();
            *unwritten = answer(&mut self.answers, *body).len() + body.saturating_sub(BLOCK);
        } else if !is_writable {
            return;
        }
        let bytes = answer(&mut self.answers, *body);
        let head = bytes.len() - (*body).min(BLOCK);
        let whole = head + *body;
        while *unwritten > 0 {
            let written = whole - *unwritten;
            // Any part of the block is as good as another.
            let from = if written < bytes.len() { written } else { head };
            let piece = &bytes[from..];
            match connection.stream.write(&piece[..piece.len().min(*unwritten)]) {
                Ok(count) => *unwritten -= count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.remove(key),
            }
        }
    }

    fn connect(&mut self, run: &mut Run) -> anyhow::Result<()> {
        let stream = TcpStream::connect(run.target)?;
        self.insert(stream, Role::Client(Client::Connecting))?;
        run.open += 1;
        Ok(())
    }

    fn send(&mut self, run: &mut Run, key: usize, due: Instant) -> anyhow::Result<()> {
        let Some(connection) = self.connections[key].as_mut() else { return Ok(()) };
        connection.role = Role::Client(Client::Waiting { due, left: Left::Head });
        match connection.stream.write(&run.request) {
            Ok(count) if count == run.request.len() => Ok(()),
            // A request of a hundred bytes always fits a connection that is idle.
            _ => self.replace(run, key, true),
        }
    }

    /// It is connected: it sends, or waits for its first request.
    fn begin(&mut self, run: &mut Run, key: usize) -> anyhow::Result<()> {
        let Some(connection) = self.connections[key].as_mut() else { return Ok(()) };
        if connection.stream.set_nodelay(true).is_err() {
            return self.replace(run, key, true);
        }
        if matches!(run.plan.pace, Pace::Open(_)) {
            connection.role = Role::Client(Client::Idle);
            run.idle.push(key);
            return Ok(());
        }
        self.send(run, key, Instant::now())
    }

    /// A connection that is of no use any more gives way to a new one.
    fn replace(&mut self, run: &mut Run, key: usize, has_failed: bool) -> anyhow::Result<()> {
        if has_failed && run.is_measuring {
            run.turn.failures += 1;
        }
        self.remove(key);
        run.open -= 1;
        if run.is_over { Ok(()) } else { self.connect(run) }
    }

    /// A client's part: sends when connected, counts when the answer is whole.
    fn receive(&mut self, run: &mut Run, key: usize, is_writable: bool) -> anyhow::Result<()> {
        let Some(connection) = self.connections[key].as_mut() else { return Ok(()) };
        let Role::Client(client) = &mut connection.role else { return Ok(()) };
        let due = match client {
            Client::Connecting if is_writable => return self.begin(run, key),
            Client::Connecting => return Ok(()),
            Client::Idle => {
                // Whatever comes unasked is the connection's end; a mere room to write is not.
                if matches!(connection.stream.read(&mut self.scratch), Err(error) if error.kind() == ErrorKind::WouldBlock)
                {
                    return Ok(());
                }
                run.idle.retain(|idle| *idle != key);
                return self.replace(run, key, false);
            }
            Client::Waiting { due, left } => loop {
                match connection.stream.read(&mut self.scratch) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Ok(0) | Err(_) => return self.replace(run, key, true),
                    Ok(count) => {
                        if run.is_measuring {
                            run.turn.bytes += count as u64;
                        }
                        match take(left, &mut connection.part, &self.scratch[..count]) {
                            Err(_) => return self.replace(run, key, true),
                            Ok(true) => break *due,
                            // More of it makes another event.
                            Ok(false) if count < SCRATCH => return Ok(()),
                            Ok(false) => {}
                        }
                    }
                }
            },
        };
        *client = Client::Idle;
        if run.is_measuring {
            run.turn.requests += 1;
            if matches!(run.plan.pace, Pace::Open(_)) {
                run.turn.latencies.push(due.elapsed());
            }
        }
        match run.plan.pace {
            Pace::New => self.replace(run, key, false),
            Pace::Closed if !run.is_over => self.send(run, key, Instant::now()),
            _ => {
                run.idle.push(key);
                Ok(())
            }
        }
    }

    fn close_clients(&mut self) {
        for key in 0..self.connections.len() {
            if self.connections[key].as_ref().is_some_and(|c| matches!(c.role, Role::Client(_))) {
                self.remove(key);
            }
        }
    }
}

/// Takes bytes of an answer; true when it is whole.
fn take(left: &mut Left, part: &mut Vec<u8>, bytes: &[u8]) -> io::Result<bool> {
    let body = match *left {
        Left::Body(body) => {
            let more = body.checked_sub(bytes.len()).ok_or(ErrorKind::InvalidData)?;
            *left = Left::Body(more);
            return Ok(more == 0);
        }
        Left::Head if part.is_empty() => bytes,
        Left::Head => {
            part.extend_from_slice(bytes);
            part.as_slice()
        }
    };
    let Some(end) = memchr::memmem::find(body, b"\r\n\r\n") else {
        if part.is_empty() {
            part.extend_from_slice(bytes);
        }
        return Ok(false);
    };
    let head = &body[..end];
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(ErrorKind::InvalidData.into());
    }
    let length = content_length(head).ok_or(ErrorKind::InvalidData)?;
    let more = length.checked_sub(body.len() - end - 4).ok_or(ErrorKind::InvalidData)?;
    part.clear();
    *left = Left::Body(more);
    Ok(more == 0)
}

fn content_length(head: &[u8]) -> Option<usize> {
    let line = memchr::memchr_iter(b'\n', head)
        .map(|at| &head[at + 1..])
        .find(|line| line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:")))?;
    let digits = line[15..].split(|byte| *byte == b'\r').next()?;
    std::str::from_utf8(digits).ok()?.trim().parse().ok()
}

/// The number in `GET /128 HTTP/1.1`.
fn asked_for(head: &[u8]) -> usize {
    head.iter()
        .skip_while(|byte| **byte != b'/')
        .skip(1)
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

fn answer(answers: &mut Vec<(usize, Vec<u8>)>, body: usize) -> &[u8] {
    let at = answers.iter().position(|(size, _)| *size == body).unwrap_or_else(|| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: {body}\r\n\r\n"
        );
        let mut bytes = head.into_bytes();
        bytes.resize(bytes.len() + body.min(BLOCK), b'x');
        answers.push((body, bytes));
        answers.len() - 1
    });
    &answers[at].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_parts_is_whole_at_its_last_byte() {
        let (mut left, mut part) = (Left::Head, Vec::new());
        for (bytes, whole) in
            [("HTTP/1.1 200 OK\r\ncontent-len", false), ("gth: 4\r\n\r\nab", false), ("cd", true)]
        {
            assert_eq!(take(&mut left, &mut part, bytes.as_bytes()).unwrap(), whole, "after {bytes:?}");
        }
        let (mut left, mut part) = (Left::Head, Vec::new());
        let error = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        assert!(take(&mut left, &mut part, error).is_err(), "an error page counts as an answer");
    }

    #[test]
    fn distances_of_the_open_pace_have_the_mean_they_should() {
        let mut world = World::new().unwrap();
        let mean = (0..100_000).map(|_| world.exponential()).sum::<f64>() / 100_000.0;
        assert!((0.98..1.02).contains(&mean), "the mean is {mean}");
    }
}
