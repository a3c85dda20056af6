//! The access log: a line for each request, or for some of them, never in a request's way.
//!
//! Threads gather lines in memory and hand them over once a second or every 32 KiB. A thread of its own writes them
//! to `access.log`, which is rotated by size. When it can't keep up or can't write (a full disk), lines are dropped
//! and counted, and the count is written once writing works again. How a line looks is in [`line`].

mod line;

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
use crate::config::LogFormat;
use crate::head::Request;
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
    style: Style,
}

/// What is written, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) format: LogFormat,
    /// The part of the requests that is written, 1 for all. What went wrong is written in any case.
    pub(crate) sample: f64,
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
        let style = Style { format: LogFormat::Json, sample: 1.0 };
        Self { sender: None, dropped: Arc::default(), style }
    }

    pub(crate) fn start(directory: &Path, style: Style) -> io::Result<(Self, Writer)> {
        let (sender, receiver) = sync_channel(BLOCKS_WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut file = LogFile { path: directory.join("access.log"), open: None, size: 0 };
        let counted = dropped.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_blocks(&receiver, &mut file, &counted, style.format))?;
        Ok((Self { sender: Some(sender), dropped, style }, Writer(Some(thread))))
    }
}

fn write_blocks(receiver: &Receiver<Block>, file: &mut LogFile, dropped: &AtomicU64, format: LogFormat) {
    while let Ok(block) = receiver.recv() {
        let missed = dropped.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let line = line::of_dropped(format, missed);
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
    /// It ended otherwise than whoever looks after the app wants.
    fn went_wrong(&self) -> bool {
        self.status == 0 || self.status >= 500 || self.error.is_some()
    }

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

    /// `head` is the request's, as it went to the instance; empty where it was not understood.
    pub(crate) fn add(&self, client: std::net::IpAddr, request: &Request, head: &[u8], record: &Record) {
        if self.log.sender.is_none() || !self.is_drawn(record) {
            return;
        }
        if self.is_empty() {
            self.since_ms.set(now_ms());
        }
        self.count.set(self.count.get() + 1);
        let is_full = {
            let mut lines = self.lines.borrow_mut();
            let entry = line::Entry { client, request, head, record, sample: self.log.style.sample };
            match self.log.style.format {
                LogFormat::Json => entry.push_json(&mut lines, |lines| self.push_time(lines)),
                LogFormat::Combined => entry.push_combined(&mut lines, |lines| self.push_second(lines)),
            }
            lines.len() >= BLOCK_SIZE
        };
        if is_full {
            self.flush();
        }
    }

    /// Whether the request is one of those that are written.
    fn is_drawn(&self, record: &Record) -> bool {
        let sample = self.log.style.sample;
        sample >= 1.0 || record.went_wrong() || fastrand::f64() < sample
    }

    /// The second of now, written out once in a second.
    fn push_second(&self, lines: &mut Vec<u8>) -> jiff::Timestamp {
        let now = jiff::Timestamp::now();
        let mut text = self.second_text.borrow_mut();
        if self.second.replace(now.as_second()) != now.as_second() || text.is_empty() {
            *text = now.strftime(line::second(self.log.style.format)).to_string();
        }
        lines.extend_from_slice(text.as_bytes());
        now
    }

    fn push_time(&self, lines: &mut Vec<u8>) {
        let millis = self.push_second(lines).subsec_millisecond();
        lines.extend([100, 10, 1].map(|place| b'0' + (millis / place % 10) as u8));
        lines.push(b'Z');
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

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Style = Style { format: LogFormat::Json, sample: 1.0 };

    fn request() -> Request {
        let mut request = Request::default();
        request.method.push_str("GET");
        request.path.push_str("/a\"b\\");
        request
    }

    fn answered(status: u16) -> Record {
        Record { status, bytes: 12, started: Some(std::time::Instant::now()), ..Record::default() }
    }

    /// What is in the log after these requests.
    fn written(style: Style, head: &str, records: impl IntoIterator<Item = Record>) -> String {
        let directory = tempfile::tempdir().unwrap();
        let (log, writer) = AccessLog::start(directory.path(), style).unwrap();
        let local = LocalLog::new(log);
        for record in records {
            local.add("192.0.2.7".parse().unwrap(), &request(), head.as_bytes(), &record);
        }
        local.flush();
        drop(local);
        writer.finish();
        std::fs::read_to_string(directory.path().join("access.log")).unwrap_or_default()
    }

    #[test]
    fn a_line_is_one_json_object() {
        let text = written(JSON, "", [answered(200)]);
        let line: serde_json::Value =
            serde_json::from_str(text.trim_end()).expect("a line is one JSON object");
        assert_eq!(line["path"], "/a\"b\\");
        assert_eq!(line["status"], 200);
        assert!(line["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");
        assert!(line.get("sample").is_none(), "{line}");
    }

    #[test]
    fn a_combined_line_is_what_every_reader_of_logs_knows() {
        let head = "GET /a?key=k1 HTTP/1.1\r\nReferer: https://example.com/from?token=t1\r\n\
            User-Agent: a \"browser\"\\\x1b\r\nCookie: session=s1\r\nAuthorization: Bearer b1\r\n\r\n";
        let style = Style { format: LogFormat::Combined, sample: 1.0 };
        let text = written(style, head, [answered(200)]);
        let (before, after) = text.trim_end().split_once('[').expect("a time in brackets");
        let (time, after) = after.split_once("] ").expect("a time in brackets");
        assert_eq!(before, "192.0.2.7 - - ");
        let is_time = jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", time).is_ok();
        assert!(is_time, "{time} is no time of this format");
        let expected =
            r#""GET /a\x22b\x5C HTTP/1.1" 200 12 "https://example.com/from" "a \x22browser\x22\x5C\x1B""#;
        assert_eq!(after, expected, "and no query, cookie or key in it");
        let nothing = written(style, "", [answered(404)]);
        assert!(nothing.trim_end().ends_with(r#"404 12 "-" "-""#), "{nothing}");
    }

    #[test]
    fn of_a_sample_what_went_wrong_is_never_left_out() {
        let style = Style { sample: 0.1, ..JSON };
        let broken = || Record { error: Some(TRUNCATED), ..answered(200) };
        let all = (0..5000).map(|_| answered(200));
        let text = written(style, "", all.chain((0..20).flat_map(|_| [answered(503), broken()])));
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let (drawn, wrong): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.get("sample").is_some());
        assert_eq!(wrong.len(), 40, "some of what went wrong was left out, or counts for many");
        assert!((350..650).contains(&drawn.len()), "a tenth of 5000 were {}", drawn.len());
        assert_eq!(drawn[0]["sample"], 0.1);
    }

    #[test]
    fn files_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
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
