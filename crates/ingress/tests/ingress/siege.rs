//! Attacks of one client with many connections: others are served meanwhile, and memory stays within a bound that is
//! stated. Bounded in count and bytes; `cargo xtask test --long` sends sixteen times as much.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::application::{Application, Connection};
use crate::client::get;
use crate::forwarding::resident;
use crate::http2::frame;
use crate::stage::{Stage, backend, shop};

/// An attacker that gets no byte rid of for so long has found the end of what is taken.
const DEAF_AFTER: Duration = Duration::from_millis(700);
const SETTLED_WITHIN: Duration = Duration::from_secs(40);
/// Whatever grows a little with any load at all: heaps of threads, kept buffers.
const SLACK: u64 = 8 << 20;

fn more_of(usual: usize) -> usize {
    if std::env::var_os("RUNG_TEST_LONG").is_some() { usual * 16 } else { usual }
}

/// Answers `/fine`; sends to `/endless` as long as it is taken; neither reads nor answers what comes to `/deaf`.
fn application(sent: &Arc<AtomicU64>) -> Application {
    let sent = sent.clone();
    Application::start("a-1", move |connection| {
        while let Some(head) = connection.head() {
            match head.split(' ').nth(1) {
                Some("/endless") => return endless(connection, &sent),
                Some("/deaf") => loop {
                    std::thread::park();
                },
                _ if connection.answer(b"fine").is_err() => return,
                _ => {}
            }
        }
    })
}

fn endless(connection: &mut Connection, sent: &AtomicU64) {
    let piece = [b'x'; 64 * 1024];
    if connection.write("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n").is_err() {
        return;
    }
    while connection.write(piece).is_ok() {
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
}

/// What is attacked.
struct Siege {
    stage: Stage,
    pid: nix::unistd::Pid,
    before: u64,
    /// Bytes that the application got rid of.
    sent: Arc<AtomicU64>,
    _application: Application,
}

impl Siege {
    fn begin() -> Self {
        Self::with(Stage::start)
    }

    fn with(start: impl FnOnce(Vec<rung_model::RouteDocument>) -> Stage) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let application = application(&sent);
        let stage = start(vec![shop(backend(vec![application.endpoint()]))]);
        for _ in 0..50 {
            assert_eq!(get(stage.http, "/fine").status, 200);
        }
        let pid = stage.pid();
        Self { before: resident(pid), pid, stage, sent, _application: application }
    }

    fn http(&self) -> SocketAddr {
        self.stage.http
    }

    /// Others are served, each on a connection of its own.
    fn others_are_served(&self, during: &str) {
        for _ in 0..20 {
            let answer = get(self.http(), "/fine");
            assert_eq!((answer.status, answer.text()), (200, "fine"), "during {during}");
        }
    }

    /// Serves others until what is counted does not change any more meanwhile.
    fn settle(&self, during: &str, count: impl Fn() -> u64) {
        let until = Instant::now() + SETTLED_WITHIN;
        let mut before = count();
        loop {
            self.others_are_served(during);
            let now = count();
            if now == before {
                return;
            }
            assert!(Instant::now() < until, "{during}: it goes on and on, {now} so far");
            before = now;
        }
    }

    fn assert_bounded(&self, during: &str, bound: u64) {
        assert_eq!(self.stage.pid(), self.pid, "{during}: the ingress was started again");
        let grown = resident(self.pid).saturating_sub(self.before);
        println!("{during}: grown by {} KiB, bound {} KiB", grown >> 10, (bound + SLACK) >> 10);
        assert!(
            grown < bound + SLACK,
            "{during}: the ingress grew by {} KiB, and {} KiB is the bound",
            grown >> 10,
            (bound + SLACK) >> 10
        );
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("the ingress refused a connection");
    stream.set_write_timeout(Some(DEAF_AFTER)).expect("a timeout above zero");
    stream.set_nodelay(true).expect("it is a socket of TCP");
    stream
}

/// Writes until all is gone, the other side has enough, or it takes nothing any more. What went.
fn push(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut gone = 0;
    while gone < bytes.len() {
        match stream.write(&bytes[gone..]) {
            Ok(count) => gone += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    gone
}

fn many(to: SocketAddr, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let begin = |_| {
        let mut stream = connect(to);
        push(&mut stream, bytes);
        stream
    };
    (0..count).map(begin).collect()
}

#[test]
fn heads_that_never_end_hold_what_they_sent_and_no_more() {
    const COUNT: usize = 200;
    let siege = Siege::begin();
    let head = format!("GET /fine HTTP/1.1\r\nHost: shop.localhost\r\nX-A: {}", "a".repeat(31 * 1024));
    let slow = many(siege.http(), COUNT, head.as_bytes());
    siege.others_are_served("slow heads");
    // 32 KiB of a head, and room for what becomes of it.
    siege.assert_bounded("slow heads", COUNT as u64 * (48 << 10));
    drop(slow);
}

#[test]
fn bodies_that_nobody_reads_and_bodies_that_pause_take_two_buffers_each() {
    const COUNT: usize = 64;
    let siege = Siege::begin();
    let head = "POST /deaf HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 9999999999\r\n\r\n";
    // More than all sockets on the way take.
    let body = vec![b'x'; more_of(1 << 20)];
    let uploads = many(siege.http(), COUNT, head.as_bytes());
    let pushing: Vec<_> = uploads
        .into_iter()
        .map(|mut stream| {
            let body = body.clone();
            std::thread::spawn(move || {
                push(&mut stream, &body);
                stream
            })
        })
        .collect();
    let uploads: Vec<TcpStream> = pushing.into_iter().map(|thread| thread.join().unwrap()).collect();
    siege.others_are_served("uploads that nobody reads");
    siege.assert_bounded("uploads that nobody reads", COUNT as u64 * (160 << 10));
    drop(uploads);
}

#[test]
fn readers_that_do_not_read_take_two_buffers_each() {
    const COUNT: usize = 64;
    let siege = Siege::begin();
    let readers = many(siege.http(), COUNT, b"GET /endless HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    // Others that ask for more and more without reading a single answer.
    let pipelined = "GET /fine HTTP/1.1\r\nHost: shop.localhost\r\n\r\n".repeat(more_of(20_000));
    let mut pipelining = connect(siege.http());
    push(&mut pipelining, pipelined.as_bytes());
    siege.settle("slow readers", || siege.sent.load(Ordering::Relaxed));
    siege.assert_bounded("slow readers", COUNT as u64 * (160 << 10));
    drop((readers, pipelining));
}

#[test]
fn half_closed_clients_are_given_up_and_leave_nothing() {
    const COUNT: usize = 300;
    let siege = Siege::begin();
    let clients = many(siege.http(), COUNT, b"GET /deaf HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    for client in &clients {
        client.shutdown(Shutdown::Write).expect("it is connected");
    }
    let until = Instant::now() + SETTLED_WITHIN;
    while siege.stage.status().connections > 0 {
        siege.others_are_served("half-closed clients");
        assert!(Instant::now() < until, "{} are still there", siege.stage.status().connections);
    }
    // As many requests as were there at once.
    siege.assert_bounded("half-closed clients", COUNT as u64 * (40 << 10));
    drop(clients);
}

#[test]
fn handshakes_that_never_end_hold_what_they_sent_and_no_more() {
    const COUNT: usize = 200;
    let siege = Siege::with(|documents| Stage::with_https(documents, &[]));
    // The largest hello that there may be, in records of 16 KiB, but for its last bytes.
    let mut hello = Vec::new();
    let mut message = vec![1, 0, 0xff, 0xf0];
    message.resize(60 * 1024, 0);
    for record in message.chunks(16 * 1024) {
        hello.extend_from_slice(&[0x16, 3, 1]);
        hello.extend_from_slice(&(record.len() as u16).to_be_bytes());
        hello.extend_from_slice(record);
    }
    let stalled = many(siege.stage.https(), COUNT, &hello);
    siege.others_are_served("handshakes that stall");
    siege.assert_bounded("handshakes that stall", COUNT as u64 * (100 << 10));
    drop(stalled);
}

const MAGIC: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HEADERS of a GET, by hand.
fn headers(flags: u8, stream: u32, path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(&[0x01, 14]);
    block.extend_from_slice(b"shop.localhost");
    frame(1, flags, stream, &block)
}

/// Opens a connection of HTTP/2 whose windows are as large as they may be, and lets it say this.
fn http2(to: SocketAddr, frames: &[u8]) -> TcpStream {
    let mut stream = connect(to);
    let windows: [u8; 6] = [0, 4, 0x7f, 0xff, 0xff, 0xff];
    let hello = [MAGIC, &frame(4, 0, 0, &windows), &frame(8, 0, 0, &0x7ff0_0000_u32.to_be_bytes()), frames];
    push(&mut stream, &hello.concat());
    stream
}

#[test]
fn streams_that_are_not_read_take_bounded_buffers_each() {
    const CONNECTIONS: usize = 3;
    const STREAMS: u32 = 100;
    let siege = Siege::begin();
    let asks: Vec<u8> = (0..STREAMS).flat_map(|n| headers(5, 2 * n + 1, "/endless")).collect();
    let readers: Vec<_> = (0..CONNECTIONS).map(|_| http2(siege.http(), &asks)).collect();
    siege.settle("streams that are not read", || siege.sent.load(Ordering::Relaxed));
    assert!(siege.sent.load(Ordering::Relaxed) > 0, "nothing was asked for");
    let streams = CONNECTIONS as u64 * u64::from(STREAMS);
    siege.assert_bounded("streams that are not read", streams * (80 << 10));
    drop(readers);
}

#[test]
fn large_heads_of_many_streams_are_held_once() {
    const CONNECTIONS: usize = 3;
    const STREAMS: u32 = 100;
    let siege = Siege::begin();
    // A header of 3900 bytes that is said once a stream and named seven times: 31 KB of a head for 4 KB.
    let mut asks = Vec::new();
    for n in 0..STREAMS {
        let mut block = vec![0x83, 0x86, 0x04, 5];
        block.extend_from_slice(b"/deaf");
        block.extend_from_slice(&[0x01, 14]);
        block.extend_from_slice(b"shop.localhost");
        block.extend_from_slice(&[0x40, 1, b'x', 0x7f]);
        block.extend_from_slice(&[((3900 - 127) % 128) as u8 | 0x80, ((3900 - 127) / 128) as u8]);
        block.resize(block.len() + 3900, b'y');
        block.resize(block.len() + 6, 0xbe);
        // Its body never comes.
        asks.extend(frame(1, 4, 2 * n + 1, &block));
    }
    let streams: Vec<_> = (0..CONNECTIONS).map(|_| http2(siege.http(), &asks)).collect();
    siege.settle("large heads", || siege.stage.status().connections);
    let count = CONNECTIONS as u64 * u64::from(STREAMS);
    siege.assert_bounded("large heads", count * (96 << 10));
    drop(streams);
}

/// Frames that cost their sender next to nothing, one kind at a time.
fn floods() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let open = headers(4, 1, "/deaf");
    let nothing = Vec::new;
    let resets =
        |n: u32| [headers(5, 2 * n + 1, "/deaf"), frame(3, 0, 2 * n + 1, &8u32.to_be_bytes())].concat();
    vec![
        ("pings", nothing(), frame(6, 0, 0, b"eight by")),
        ("settings", nothing(), frame(4, 0, 0, &[0, 1, 0, 0, 0x10, 0])),
        (
            "tables of headers that grow and shrink",
            nothing(),
            frame(4, 0, 0, &[0, 1, 0x7f, 0xff, 0xff, 0xff]),
        ),
        ("priorities", nothing(), frame(2, 0, 3, &[0, 0, 0, 0, 16])),
        ("windows", nothing(), frame(8, 0, 0, &1u32.to_be_bytes())),
        ("windows of a stream", open.clone(), frame(8, 0, 1, &1u32.to_be_bytes())),
        ("frames without data", open.clone(), frame(0, 0, 1, b"")),
        ("frames of one byte", open.clone(), frame(0, 0, 1, b"x")),
        ("frames of padding", open, frame(0, 8, 1, &[255; 256])),
        ("frames of no kind", nothing(), frame(0xfa, 0, 0, &[0; 4096])),
        ("empty continuations", frame(1, 0, 1, &[0x82]), frame(9, 0, 1, b"")),
        ("resets of what is just begun", nothing(), (0..200).flat_map(resets).collect()),
        (
            "more streams than there may be",
            nothing(),
            (0..1000).flat_map(|n| headers(5, 2 * n + 1, "/deaf")).collect(),
        ),
    ]
}

#[test]
fn floods_by_clients_that_do_not_listen_are_bounded() {
    let siege = Siege::begin();
    let size = more_of(2 << 20);
    for (what, first, repeated) in floods() {
        let flood = [first, repeated.repeat(size.div_ceil(repeated.len()))].concat();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Each is deaf: no byte of an answer is taken.
                let _attackers: Vec<TcpStream> = (0..2).map(|_| http2(siege.http(), &flood)).collect();
                over.store(true, Ordering::Release);
            });
            while !over.load(Ordering::Acquire) {
                siege.others_are_served(what);
            }
        });
        siege.assert_bounded(what, 0);
    }
}

#[test]
fn pings_and_settings_do_not_keep_a_connection_without_requests_open() {
    let siege = Siege::with(|documents| Stage::with_arguments(documents, &["--idle-timeout-ms", "500"]));
    let mut stream = http2(siege.http(), b"");
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout above zero");
    let until = Instant::now() + SETTLED_WITHIN;
    let mut heard = [0; 4096];
    loop {
        assert!(Instant::now() < until, "an idle connection lives on pings");
        if stream.write_all(&frame(6, 0, 0, b"eight by")).is_err() {
            break;
        }
        match stream.read(&mut heard) {
            Ok(0) => break,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Ok(_) | Err(_) => {}
        }
    }
    siege.others_are_served("the end of somebody else's connection");
}
