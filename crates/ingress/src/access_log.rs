//! The access log: a JSON object a line, never in a request's way.
//!
//! Threads gather lines in memory and hand them over once a second or every 32 KiB. A thread of its own writes them
//! to `access.log`, which is rotated by size. When it can't keep up or can't write (a full disk), lines are dropped
//! and counted, and the count is written once writing works again.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::balance::InstanceLoad;
use crate::clock::now_ms;
use crate::head::{Request, push, push_display, push_number};
use crate::tally::InTally;

/// What a log may cost: 10 MB, five times.
const FILE_MAX: u64 = 10_000_000;
const FILES: u32 = 5;
/// Lines are handed over from this size on.
const BLOCK_SIZE: usize = 32 * 1024;
/// Blocks that wait for the disk: 2 MiB.
const BLOCKS_WAITING: usize = 64;
/// The longest a line waits in memory.
const FLUSH_AFTER_MS: u64 = 1_000;

struct Block {
    bytes: Vec<u8>,
    lines: u64,
}

/// The way to the writing thread; one per process, cloned for every thread.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    sender: Option<SyncSender<Block>>,
    dropped: Arc<AtomicU64>,
}

/// Keeps the writing thread until everything is written.
#[derive(Debug)]
pub(crate) struct Writer(Option<std::thread::JoinHandle<()>>);

impl Writer {
    /// Waits until what was handed over is written. Every [`AccessLog`] must be gone.
    pub(crate) fn finish(mut self) {
        if let Some(thread) = self.0.take() {
            // It only ends by itself; a panic there was printed.
            let _ = thread.join();
        }
    }
}

impl AccessLog {
    pub(crate) fn off() -> Self {
        Self { sender: None, dropped: Arc::default() }
    }

    pub(crate) fn start(directory: &Path) -> io::Result<(Self, Writer)> {
        let (sender, receiver) = sync_channel(BLOCKS_WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut file = LogFile { path: directory.join("access.log"), open: None, size: 0 };
        let counted = dropped.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_blocks(&receiver, &mut file, &counted))?;
        Ok((Self { sender: Some(sender), dropped }, Writer(Some(thread))))
    }
}

fn write_blocks(receiver: &Receiver<Block>, file: &mut LogFile, dropped: &AtomicU64) {
    while let Ok(block) = receiver.recv() {
        let missed = dropped.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let line = format!("{{\"time\":\"{:.3}\",\"dropped_lines\":{missed}}}\n", jiff::Timestamp::now());
            if file.write(line.as_bytes()).is_err() {
                dropped.fetch_add(missed, Ordering::Relaxed);
            }
        }
        if let Err(error) = file.write(&block.bytes) {
            tracing::debug!(%error, lines = block.lines, "dropping lines of the access log");
            dropped.fetch_add(block.lines, Ordering::Relaxed);
            file.open = None;
        }
    }
}

struct LogFile {
    path: PathBuf,
    open: Option<File>,
    size: u64,
}

impl LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.open.is_some() && self.size + bytes.len() as u64 > FILE_MAX {
            self.open = None;
            self.rotate();
        }
        let file = match &mut self.open {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                self.size = file.metadata()?.len();
                self.open.insert(file)
            }
        };
        if let Err(error) = file.write_all(bytes) {
            // A half-written line would spoil the next one.
            let _ = file.set_len(self.size);
            return Err(error);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&self) {
        let numbered = |n: u32| self.path.with_extension(format!("log.{n}"));
        // Missing files are no error: the log may be young.
        for n in (1..FILES - 1).rev() {
            let _ = std::fs::rename(numbered(n), numbered(n + 1));
        }
        let _ = std::fs::rename(&self.path, numbered(1));
    }
}

/// What happened to one request.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    pub(crate) started: Option<std::time::Instant>,
    pub(crate) upstream: Duration,
    pub(crate) retries: u32,
    pub(crate) error: Option<&'static str>,
    pub(crate) instance: Option<Arc<InstanceLoad>>,
    /// Where the request is in flight.
    pub(crate) route: Option<InTally>,
    /// From its start until an instance's answer began.
    pub(crate) began: Option<Duration>,
}

/// In [`Record::error`]: the client saw a part of the answer, and the connection's end.
pub(crate) const TRUNCATED: &str = "truncated";
/// As other proxies log it: the client closed the connection before the answer.
pub(crate) const CLIENT_GONE: u16 = 499;

impl Record {
    /// Tells the route's tally how the request ended.
    pub(crate) fn tell(&self, seen: InTally) {
        if self.status != CLIENT_GONE {
            let until_now = || self.started.map(|started| started.elapsed());
            seen.took(self.began.or_else(until_now).unwrap_or_default());
        }
        if self.status == 0 || self.error == Some(TRUNCATED) {
            seen.lost(self.bytes);
        } else {
            seen.answered(self.status, self.bytes);
        }
    }
}

/// The lines of one thread that are not handed over yet.
#[derive(Debug)]
pub(crate) struct LocalLog {
    log: AccessLog,
    lines: RefCell<Vec<u8>>,
    count: Cell<u64>,
    since_ms: Cell<u64>,
    /// The second of the last line, already written out.
    second: Cell<i64>,
    second_text: RefCell<String>,
}

impl LocalLog {
    pub(crate) fn new(log: AccessLog) -> Self {
        Self {
            log,
            lines: RefCell::default(),
            count: Cell::new(0),
            since_ms: Cell::new(0),
            second: Cell::new(0),
            second_text: RefCell::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    pub(crate) fn add(&self, client: std::net::IpAddr, request: &Request, record: &Record) {
        if self.log.sender.is_none() {
            return;
        }
        if self.is_empty() {
            self.since_ms.set(now_ms());
        }
        self.count.set(self.count.get() + 1);
        let is_full = {
            let mut lines = self.lines.borrow_mut();
            self.push_time(&mut lines);
            push_line(&mut lines, client, request, record);
            lines.len() >= BLOCK_SIZE
        };
        if is_full {
            self.flush();
        }
    }

    fn push_time(&self, lines: &mut Vec<u8>) {
        let now = jiff::Timestamp::now();
        let mut text = self.second_text.borrow_mut();
        if self.second.replace(now.as_second()) != now.as_second() || text.is_empty() {
            *text = now.strftime("{\"time\":\"%Y-%m-%dT%H:%M:%S.").to_string();
        }
        lines.extend_from_slice(text.as_bytes());
        let millis = now.subsec_millisecond();
        lines.extend([100, 10, 1].map(|place| b'0' + (millis / place % 10) as u8));
        lines.extend_from_slice(b"Z\"");
    }

    /// Hands over what has waited for long enough.
    pub(crate) fn flush_old(&self) {
        if !self.is_empty() && now_ms() >= self.since_ms.get() + FLUSH_AFTER_MS {
            self.flush();
        }
    }

    pub(crate) fn flush(&self) {
        let lines = self.count.replace(0);
        let bytes = std::mem::take(&mut *self.lines.borrow_mut());
        let Some(sender) = self.log.sender.as_ref().filter(|_| lines > 0) else { return };
        if let Err(TrySendError::Full(block) | TrySendError::Disconnected(block)) =
            sender.try_send(Block { bytes, lines })
        {
            self.log.dropped.fetch_add(block.lines, Ordering::Relaxed);
        }
    }
}

fn push_line(lines: &mut Vec<u8>, client: std::net::IpAddr, request: &Request, record: &Record) {
    push(lines, &[b",\"id\":\"", request.id.as_bytes(), b"\",\"trace\":\"", request.trace.as_bytes()]);
    lines.extend_from_slice(b"\",\"client\":\"");
    push_display(lines, &client);
    push(
        lines,
        &[b"\",\"method\":\"", request.method.as_bytes(), b"\",\"host\":\"", request.host.as_bytes()],
    );
    lines.extend_from_slice(b"\",\"path\":\"");
    push_escaped(lines, &request.path);
    lines.extend_from_slice(b"\",\"status\":");
    push_number(lines, u64::from(record.status));
    lines.extend_from_slice(b",\"bytes\":");
    push_number(lines, record.bytes);
    lines.extend_from_slice(b",\"duration_ms\":");
    push_millis(lines, record.started.map(|started| started.elapsed()).unwrap_or_default());
    if let Some(instance) = &record.instance {
        push(lines, &[b",\"app\":\"", instance.service.app.as_bytes(), b"\",\"service\":\""]);
        push(
            lines,
            &[instance.service.name.as_bytes(), b"\",\"instance\":\"", instance.id.as_str().as_bytes()],
        );
        lines.extend_from_slice(b"\",\"upstream_ms\":");
        push_millis(lines, record.upstream);
    }
    if record.retries > 0 {
        lines.extend_from_slice(b",\"retries\":");
        push_number(lines, u64::from(record.retries));
    }
    if let Some(error) = record.error {
        push(lines, &[b",\"error\":\"", error.as_bytes(), b"\""]);
    }
    lines.extend_from_slice(b"}\n");
}

/// Paths are visible ASCII; two of those mean something in JSON.
fn push_escaped(lines: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            lines.push(b'\\');
        }
        lines.push(byte);
    }
}

fn push_millis(lines: &mut Vec<u8>, time: Duration) {
    let micros = time.as_micros() as u64;
    push_number(lines, micros / 1000);
    lines.push(b'.');
    lines.extend([100, 10, 1].map(|place| b'0' + (micros / place % 10) as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_files_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let (log, writer) = AccessLog::start(directory.path()).unwrap();
        let local = LocalLog::new(log);
        let mut request = Request::default();
        request.method.push_str("GET");
        request.path.push_str("/a\"b\\");
        let record =
            Record { status: 200, bytes: 12, started: Some(std::time::Instant::now()), ..Record::default() };
        local.add("127.0.0.1".parse().unwrap(), &request, &record);
        local.flush();
        drop(local);
        writer.finish();
        let text = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
        let line: serde_json::Value =
            serde_json::from_str(text.trim_end()).expect("a line is one JSON object");
        assert_eq!(line["path"], "/a\"b\\");
        assert_eq!(line["status"], 200);
        assert!(line["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");

        let mut file = LogFile { path: directory.path().join("access.log"), open: None, size: 0 };
        for _ in 0..70 {
            file.write(&vec![b'x'; 1_000_000]).unwrap();
        }
        let sizes: Vec<u64> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .collect();
        assert!(sizes.len() <= FILES as usize, "{} files were kept", sizes.len());
        assert!(sizes.iter().all(|size| *size <= FILE_MAX), "a file is too large: {sizes:?}");
    }
}
