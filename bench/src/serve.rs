//! The application that is deployed: one thread a connection, says its version, ends when its requests are answered.
//! With `FAILING=20` a fifth of its pages are errors, each drawn on its own; its health check is not.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const ANY: Ordering = Ordering::SeqCst;

/// Listens on `PORT` at `BIND` (127.0.0.1 when it is not said) until SIGTERM.
pub fn run() -> anyhow::Result<()> {
    let signals = block_sigterm();
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1".into());
    let port = std::env::var("PORT").unwrap_or_else(|_| "8000".into());
    let version = std::fs::read_to_string("version")?.trim().to_owned();
    let failing = std::env::var("FAILING").map_or(Ok(0), |percent| percent.parse::<u64>())?;
    let listener = TcpListener::bind(format!("{bind}:{port}"))?;
    println!("version {version} listens on {}", listener.local_addr()?.port());
    let in_flight = Arc::new(AtomicUsize::new(0));
    let counted = in_flight.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let (version, in_flight) = (version.clone(), counted.clone());
            // A client that goes away is its own affair.
            std::thread::spawn(move || drop(answer(stream, &version, failing, &in_flight)));
        }
    });
    wait_for(&signals);
    while in_flight.load(ANY) > 0 {
        std::thread::yield_now();
    }
    Ok(())
}

/// `failing` is how many of a hundred pages are errors.
fn answer(stream: TcpStream, version: &str, failing: u64, in_flight: &AtomicUsize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let body = format!("version {version}\n");
    let pid = std::process::id();
    let spelled = |status: &str| {
        let length = body.len();
        let head = format!("Content-Length: {length}\r\nX-Version: {version}\r\nX-Pid: {pid}\r\n\r\n");
        format!("HTTP/1.1 {status}\r\n{head}{body}").into_bytes()
    };
    let (good, bad) = (spelled("200 OK"), spelled("500 Internal Server Error"));
    while reader.read_line(&mut line)? > 0 {
        let counted = Counted::new(in_flight);
        let fails = failing > 0 && !line.starts_with("GET /up ") && draw() % 100 < failing;
        // The head's end; requests of the bench have no body.
        while line.trim_end() != "" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        line.clear();
        reader.get_mut().write_all(if fails { &bad } else { &good })?;
        drop(counted);
    }
    Ok(())
}

/// A number that nobody foresees: the standard library's maps are keyed by such.
fn draw() -> u64 {
    RandomState::new().hash_one(())
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, ANY);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, ANY);
    }
}

#[allow(unsafe_code)]
fn block_sigterm() -> libc::sigset_t {
    // SAFETY: a zeroed sigset_t is a valid value to be emptied, and each call gets pointers to it that live long enough.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

#[allow(unsafe_code)]
fn wait_for(signals: &libc::sigset_t) {
    let mut got = 0;
    // SAFETY: both pointers are to values of this frame or the caller's.
    unsafe { libc::sigwait(signals, &mut got) };
}
