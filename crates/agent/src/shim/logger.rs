//! Writes what an instance prints: a record a line, bounded, rotated, and never in the instance's way.
//!
//! The files are `log`, `log.1` … `log.4`, newest first, shared by all lives of an instance.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rung_api::wire::Stream;

use crate::shim::record::{End, RECORD_MAX, encode};

pub const FILE: &str = "log";
pub const FILES: usize = 5;
pub const FILE_MAX: u64 = 10 * 1000 * 1000;

/// What an instance may write for long: the kept 50 MB then reach back ten seconds at the very least, and the shim
/// stays at a few percent of a core however much is printed.
const RATE: u64 = 5 * 1000 * 1000;
/// What it may write at once: a stack trace of every thread, a dump at the start.
const BURST: u64 = 20 * 1000 * 1000;
/// A line without its end (a prompt, a progress bar) is written after so long.
const PARTIAL_AFTER: Duration = Duration::from_millis(500);

/// So much of the end of a flood is kept although the rest of it was dropped: what explains an end is near it.
const FLOOD_END_MAX: usize = 8 * 1024;

/// How often it is told that lines are dropped, while they are.
const DROPPED_TOLD_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Logger {
    directory: PathBuf,
    file: Option<File>,
    size: u64,
    allowance: u64,
    refilled: Instant,
    dropped_lines: u64,
    dropped_bytes: u64,
    why_dropped: &'static str,
    told_dropped: Option<Instant>,
    flood: Option<Flood>,
    lines: [Line; 2],
    batch: Vec<u8>,
}

/// The beginning of a line whose end has not come.
#[derive(Debug, Default)]
struct Line {
    bytes: Vec<u8>,
    since: Option<Instant>,
}

/// What is over the rate and was not followed by anything that is not.
#[derive(Debug)]
struct Flood {
    stream: Stream,
    /// Its last bytes; they begin in the middle of a line when `is_cut`.
    end: Vec<u8>,
    is_cut: bool,
    at: Instant,
}

fn slot(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

pub fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl Logger {
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            file: None,
            size: 0,
            allowance: BURST,
            refilled: Instant::now(),
            dropped_lines: 0,
            dropped_bytes: 0,
            why_dropped: "",
            told_dropped: None,
            flood: None,
            lines: [Line::default(), Line::default()],
            batch: Vec::new(),
        }
    }

    /// Rung's own words.
    pub fn say(&mut self, text: &str) {
        encode(&mut self.batch, now_micros(), Stream::Rung, End::Whole, text.as_bytes());
        self.write_batch(1);
    }

    /// Takes what the instance printed. Cuts lines, and drops and counts what is over the rate.
    pub fn take(&mut self, stream: Stream, chunk: &[u8]) {
        if !self.allow(chunk.len() as u64) {
            // What the line goes on with is dropped: it must not be taken for the beginning of a later one.
            self.flush_line(stream, End::Partial);
            self.drop_chunk(chunk, "more than 5 MB a second");
            self.keep_flood_end(stream, chunk);
            return;
        }
        self.flood = None;
        self.say_dropped();
        let now = now_micros();
        let mut records = 0;
        let mut line = std::mem::take(&mut self.lines[slot(stream)]);
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            line.bytes.extend_from_slice(piece);
            let ended = piece.ends_with(b"\n");
            while line.bytes.len() > RECORD_MAX + usize::from(ended) {
                let rest = line.bytes.split_off(RECORD_MAX);
                encode(&mut self.batch, now, stream, End::Partial, &line.bytes);
                line.bytes = rest;
                records += 1;
            }
            if ended {
                let text = line.bytes.trim_suffix_line();
                encode(&mut self.batch, now, stream, End::Whole, text);
                line.bytes.clear();
                records += 1;
            }
        }
        line.since = (!line.bytes.is_empty()).then(|| line.since.unwrap_or_else(Instant::now));
        self.lines[slot(stream)] = line;
        self.write_batch(records);
    }

    /// Takes one line, or a part of one, that somebody else has noted the moment of.
    pub fn take_noted(&mut self, micros: i64, stream: Stream, end: End, line: &[u8]) {
        if !self.allow(line.len() as u64 + 1) {
            self.dropped_lines += 1;
            self.dropped_bytes += line.len() as u64 + 1;
            self.why_dropped = "more than 5 MB a second";
            return;
        }
        self.say_dropped();
        let mut pieces = line.chunks(RECORD_MAX).peekable();
        if pieces.peek().is_none() {
            encode(&mut self.batch, micros, stream, end, b"");
        }
        while let Some(piece) = pieces.next() {
            let end = if pieces.peek().is_some() { End::Partial } else { end };
            encode(&mut self.batch, micros, stream, end, piece);
        }
        self.write_batch(1);
    }

    /// When an unfinished line shall be written.
    pub fn wake_at(&self) -> Option<Instant> {
        let flood = self.flood.as_ref().map(|flood| flood.at);
        let waiting = self.lines.iter().filter_map(|line| line.since).chain(flood).min();
        waiting.map(|since| since + PARTIAL_AFTER)
    }

    /// Writes unfinished lines that have waited long enough, and the end of a flood that nothing has followed.
    pub fn tick(&mut self, now: Instant) {
        if self.flood.as_ref().is_some_and(|flood| now >= flood.at + PARTIAL_AFTER) {
            self.end_flood(End::Partial);
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.lines[slot(stream)].since.is_some_and(|since| now >= since + PARTIAL_AFTER) {
                self.flush_line(stream, End::Partial);
            }
        }
    }

    /// Writes everything that is held: the last line needs no end.
    pub fn finish(&mut self) {
        self.end_flood(End::Whole);
        self.flush_line(Stream::Stdout, End::Whole);
        self.flush_line(Stream::Stderr, End::Whole);
        self.say_dropped_now();
    }

    fn flush_line(&mut self, stream: Stream, end: End) {
        let line = std::mem::take(&mut self.lines[slot(stream)]);
        if !line.bytes.is_empty() {
            encode(&mut self.batch, now_micros(), stream, end, &line.bytes);
            self.write_batch(1);
        }
    }

    fn allow(&mut self, bytes: u64) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.refilled).as_micros() as u64 * (RATE / 1_000_000);
        // Not on every call: fractions of a byte would be lost.
        if earned > 1024 {
            self.allowance = (self.allowance + earned).min(BURST);
            self.refilled = now;
        }
        let allowed = self.allowance >= bytes;
        if allowed {
            self.allowance -= bytes;
        }
        allowed
    }

    fn drop_chunk(&mut self, chunk: &[u8], why: &'static str) {
        self.dropped_lines += memchr::memchr_iter(b'\n', chunk).count() as u64;
        self.dropped_bytes += chunk.len() as u64;
        self.why_dropped = why;
    }

    fn keep_flood_end(&mut self, stream: Stream, chunk: &[u8]) {
        let mut flood = self.flood.take().filter(|flood| flood.stream == stream).unwrap_or(Flood {
            stream,
            end: Vec::new(),
            is_cut: false,
            at: Instant::now(),
        });
        flood.at = Instant::now();
        flood.end.extend_from_slice(&chunk[chunk.len().saturating_sub(FLOOD_END_MAX)..]);
        let excess = flood.end.len().saturating_sub(FLOOD_END_MAX);
        flood.end.drain(..excess);
        flood.is_cut |= excess > 0 || chunk.len() > FLOOD_END_MAX;
        self.flood = Some(flood);
    }

    /// Says how much was dropped, and then its last lines after all.
    fn end_flood(&mut self, last: End) {
        let Some(flood) = self.flood.take() else { return };
        self.say_dropped_now();
        let cut = match memchr::memchr(b'\n', &flood.end) {
            Some(end) if flood.is_cut => end + 1,
            _ => 0,
        };
        let mut records = 0;
        for piece in flood.end[cut..].split_inclusive(|&byte| byte == b'\n') {
            let end = if piece.ends_with(b"\n") { End::Whole } else { last };
            encode(&mut self.batch, now_micros(), flood.stream, end, piece.to_vec().trim_suffix_line());
            records += 1;
        }
        self.write_batch(records);
    }

    /// Once a second at most while it goes on, so that a flood is told of while it lasts.
    fn say_dropped(&mut self) {
        if self.told_dropped.is_none_or(|told| told.elapsed() >= DROPPED_TOLD_EVERY) {
            self.say_dropped_now();
        }
    }

    fn say_dropped_now(&mut self) {
        if self.dropped_bytes == 0 {
            return;
        }
        self.told_dropped = Some(Instant::now());
        let (lines, bytes) = (self.dropped_lines, self.dropped_bytes);
        let of = match lines {
            0 => format!("{bytes} bytes of a line"),
            lines => format!("{lines} lines ({bytes} bytes)"),
        };
        let text = format!("{of} were dropped: {}", self.why_dropped);
        (self.dropped_lines, self.dropped_bytes) = (0, 0);
        self.say(&text);
    }

    fn write_batch(&mut self, records: u64) {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        match self.append(&batch) {
            Ok(()) => {}
            Err(_) => {
                // The file may end in a torn record; a fresh one is opened, and readers pass over what is torn.
                self.file = None;
                self.dropped_lines += records;
                self.dropped_bytes += batch.len() as u64;
                self.why_dropped = "the disk is full, or the log can't be written";
            }
        }
        self.batch = batch;
        self.batch.clear();
        // One long burst must not keep its memory for the whole life.
        self.batch.shrink_to(64 * 1024);
    }

    fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        if self.size >= FILE_MAX {
            self.rotate()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = OpenOptions::new()
                    .read(true)
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(self.directory.join(FILE))?;
                self.size = file.metadata()?.len();
                end_torn_record(&mut file, self.size)?;
                self.file.insert(file)
            }
        };
        file.write_all(batch)?;
        self.size += batch.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..FILES).rev() {
            let from = if number == 1 { FILE.to_owned() } else { format!("{FILE}.{}", number - 1) };
            match std::fs::rename(self.directory.join(from), self.directory.join(format!("{FILE}.{number}")))
            {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = None;
        self.size = 0;
        Ok(())
    }
}

/// Whoever wrote before was killed in the middle of it: what follows must not become a part of that.
fn end_torn_record(file: &mut File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    let mut last = [0];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut last, size - 1)?;
    if last != *b"\n" { file.write_all(b"\n") } else { Ok(()) }
}

trait TrimLine {
    fn trim_suffix_line(&self) -> &[u8];
}

impl TrimLine for Vec<u8> {
    /// Without `\n` or `\r\n`.
    fn trim_suffix_line(&self) -> &[u8] {
        let line = self.strip_suffix(b"\n").unwrap_or(self);
        line.strip_suffix(b"\r").unwrap_or(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(directory: &Path) -> u64 {
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn a_gigabyte_is_bounded_and_what_was_dropped_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let mut logger = Logger::new(directory.path());
        let chunk = b"a line of forty characters, more or less\n".repeat(25_000);
        for _ in 0..1000 {
            logger.take(Stream::Stdout, &chunk);
        }
        logger.allowance = BURST;
        logger.finish();
        let total = written(directory.path());
        assert!(total < FILE_MAX * FILES as u64 + 5_000_000, "{total} bytes were kept of a gigabyte");
        let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        assert!(
            text.contains("were dropped: more than 5 MB a second"),
            "it is not said that lines were dropped"
        );
    }

    #[test]
    fn the_end_of_a_flood_is_in_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let text = || std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        let mut logger = Logger::new(directory.path());
        logger.allowance = 0;
        // One piece: what is small may be within the rate by the time that it comes.
        let mut flood = b"a line like every other\n".repeat(40_000);
        flood.extend_from_slice(b"cannot find the compiler\n");
        logger.take(Stream::Stdout, &flood);
        logger.tick(Instant::now());
        assert!(!directory.path().join(FILE).exists(), "it may go on");
        logger.tick(Instant::now() + PARTIAL_AFTER);
        let log = text();
        assert!(log.contains("40001 lines"), "what was dropped is not said: {log}");
        assert!(log.ends_with(" o. cannot find the compiler\n"), "the end is not the end: {log}");
        assert!(log.len() < 2 * FLOOD_END_MAX, "{} bytes of a flood were kept", log.len());

        logger.allowance = 0;
        logger.take(Stream::Stderr, b"killed");
        logger.finish();
        assert!(text().ends_with(" e. killed\n"), "{}", text());
    }

    #[test]
    fn a_line_longer_than_a_record_goes_on_in_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let mut logger = Logger::new(directory.path());
        logger.take(Stream::Stdout, &[b'x'; RECORD_MAX + 10]);
        logger.take(Stream::Stdout, b"end\r\nprompt> ");
        logger.tick(Instant::now() + PARTIAL_AFTER);
        let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        let records: Vec<_> =
            text.lines().map(|l| crate::shim::record::decode(l.as_bytes()).unwrap()).collect();
        assert_eq!(records.len(), 3);
        assert_eq!((records[0].end, records[0].text.len()), (End::Partial, RECORD_MAX));
        assert_eq!((records[1].end, records[1].text.as_str()), (End::Whole, "xxxxxxxxxxend"));
        assert_eq!((records[2].end, records[2].text.as_str()), (End::Partial, "prompt> "));
    }

    #[test]
    fn a_log_that_cant_be_written_drops_and_counts() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("later");
        let mut logger = Logger::new(&logs);
        logger.take(Stream::Stdout, b"lost\n");
        std::fs::create_dir(&logs).unwrap();
        logger.take(Stream::Stdout, b"kept\n");
        let text = std::fs::read_to_string(logs.join(FILE)).unwrap();
        assert!(text.contains("1 lines") && text.contains("kept"), "the log is {text:?}");
    }
}
