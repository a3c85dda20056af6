//! What a container prints, into the bounded logs of its life.
//!
//! The engine notes a moment for each line. It is kept in our record, so an agent that was killed finds where it was:
//! at the last record's microsecond, and behind as many lines of that microsecond as were written.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use rung_api::wire::Stream;

use super::spec::Record;
use super::{Containers, RETRY};
use crate::artifacts::blocking;
use crate::engine::{EngineError, Frames, Piece, Query};
use crate::shim::logger::{FILE, Logger};
use crate::shim::record::{self, End};

/// So much of the end of a log is looked at for the last line: some lines of the longest kind.
const WINDOW: u64 = 256 * 1024;
/// Between two looks whether a container whose output ended has ended, too.
const PAUSE: Duration = Duration::from_millis(50);

/// How the log tells that a life begins.
const STARTED: &str = "started (attempt ";

/// Where the next line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// Microseconds since 1970 of the last line that was written.
    micros: i64,
    /// How many lines of that microsecond were.
    written: usize,
}

/// Which lines of a stream that begins at a place were written already.
#[derive(Debug)]
struct Passing {
    place: Place,
    to_skip: usize,
    replaying: bool,
}

impl Passing {
    fn from(place: Place) -> Self {
        Self { place, to_skip: place.written, replaying: place.written > 0 }
    }

    fn is_new(&mut self, micros: i64) -> bool {
        if self.replaying {
            if micros < self.place.micros {
                return false;
            }
            if micros == self.place.micros && self.to_skip > 0 {
                self.to_skip -= 1;
                return false;
            }
            self.replaying = false;
        }
        if micros == self.place.micros {
            self.place.written += 1;
        } else {
            self.place = Place { micros, written: 1 };
        }
        true
    }
}

/// One line as the engine noted it.
struct Noted {
    micros: i64,
    stream: Stream,
    end: End,
    text: Vec<u8>,
}

impl Containers {
    /// Follows to the end of the container's output; at once when somebody else does.
    pub(super) async fn follow(&self, directory: &Path, record: &Record) {
        let Some(_turn) = self.take_turn(directory) else { return };
        let _ = std::fs::create_dir_all(&record.logs);
        let (logs, attempt) = (record.logs.clone(), record.attempt);
        let mut place = blocking(move || last_place(&logs, attempt)).await;
        let mut logger = Logger::new(&record.logs);
        loop {
            let followed;
            (followed, place, logger) = self.follow_once(record, place, logger).await;
            match self.engine.container(&record.name).await {
                Ok(found) if found.state.is_running() => tokio::time::sleep(PAUSE).await,
                // What it printed last was read only if the stream came to its own end.
                Ok(_) if followed.is_ok() => return,
                Err(error) if error.is_not_found() => return,
                Ok(_) | Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    fn take_turn(&self, directory: &Path) -> Option<Turn> {
        let is_first = self.followed.lock().expect("no panic while held").insert(directory.to_owned());
        is_first.then(|| Turn { of: self.clone(), directory: directory.to_owned() })
    }

    async fn follow_once(
        &self,
        record: &Record,
        place: Place,
        mut logger: Logger,
    ) -> (Result<(), EngineError>, Place, Logger) {
        let mut query = Query::default().with("follow", "1").with("timestamps", "1");
        query = query.with("stdout", "1").with("stderr", "1");
        if place.written > 0 {
            let (seconds, micros) = (place.micros.div_euclid(1_000_000), place.micros.rem_euclid(1_000_000));
            query = query.with("since", &format!("{seconds}.{micros:06}000"));
        }
        let path = query.on(&format!("/containers/{}/logs", record.name));
        let mut body = match self.engine.stream(Method::GET, &path).await {
            Ok(body) => body,
            Err(error) => return (Err(error), place, logger),
        };
        let mut passing = Passing::from(place);
        let mut lines = Lines::new(record.terminal);
        loop {
            let frame = match body.frame().await {
                None => return (Ok(()), passing.place, logger),
                Some(Ok(frame)) => frame,
                Some(Err(source)) => {
                    let broken = EngineError::Broken { socket: String::new(), source };
                    return (Err(broken), passing.place, logger);
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            let mut noted = lines.push(&bytes);
            noted.retain(|line| passing.is_new(line.micros));
            logger = blocking(move || {
                for line in noted {
                    logger.take_noted(line.micros, line.stream, line.end, &line.text);
                }
                logger
            })
            .await;
        }
    }
}

/// Held while a container is followed.
struct Turn {
    of: Containers,
    directory: PathBuf,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.of.followed.lock().expect("no panic while held").remove(&self.directory);
    }
}

/// Cuts lines out of the engine's answer: a frame is a line, but for a terminal, whose output comes bare.
struct Lines {
    frames: Option<Frames>,
    bare: Vec<u8>,
}

impl Lines {
    fn new(terminal: bool) -> Self {
        Self { frames: (!terminal).then(Frames::default), bare: Vec::new() }
    }

    fn push(&mut self, chunk: &[u8]) -> Vec<Noted> {
        let pieces = match &mut self.frames {
            Some(frames) => frames.push(chunk),
            None => {
                self.bare.extend_from_slice(chunk);
                let whole = self.bare.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                let lines: Vec<u8> = self.bare.drain(..whole).collect();
                let piece = |line: &[u8]| Piece { stream: Stream::Stdout, bytes: line.to_vec() };
                lines.split_inclusive(|&byte| byte == b'\n').map(piece).collect()
            }
        };
        pieces.into_iter().filter_map(noted).collect()
    }
}

/// `2026-11-21T23:53:13.649396625Z listening\n`.
fn noted(piece: Piece) -> Option<Noted> {
    let space = piece.bytes.iter().position(|&byte| byte == b' ')?;
    let at: jiff::Timestamp = std::str::from_utf8(&piece.bytes[..space]).ok()?.parse().ok()?;
    let text = &piece.bytes[space + 1..];
    let (text, end) = match text.strip_suffix(b"\n") {
        Some(text) => (text.strip_suffix(b"\r").unwrap_or(text), End::Whole),
        None => (text, End::Partial),
    };
    Some(Noted { micros: at.as_microsecond(), stream: piece.stream, end, text: text.to_vec() })
}

/// Where an earlier agent was with this life.
fn last_place(logs: &Path, attempt: u32) -> Place {
    let mut place = Place::default();
    // Just after a rotation the last line is in the older file.
    let mut text = end_of(&logs.join(format!("{FILE}.1")));
    text.extend(end_of(&logs.join(FILE)));
    // What is torn is no line that was written: it is asked for again.
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    text.truncate(whole);
    let own = format!("{STARTED}{attempt})");
    let mut is_own = true;
    for line in text.split(|&byte| byte == b'\n') {
        let Some(found) = record::decode(line) else { continue };
        if found.stream == Stream::Rung {
            if found.text.starts_with(STARTED) {
                // What came before is of an earlier life.
                is_own = found.text.starts_with(&own);
                place = Place::default();
            }
        } else if found.micros == place.micros {
            place.written += 1;
        } else {
            place = Place { micros: found.micros, written: 1 };
        }
    }
    if is_own { place } else { Place::default() }
}

fn end_of(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Ok(mut file) = File::open(path) else { return bytes };
    let length = file.metadata().map_or(0, |meta| meta.len());
    let from = length.saturating_sub(WINDOW);
    if file.seek(SeekFrom::Start(from)).is_ok() {
        // A line that was cut at the window's beginning is no record, and is passed over.
        let _ = file.read_to_end(&mut bytes);
    }
    if from > 0 {
        let first = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..first);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_was_killed_goes_on_behind_the_last_line_it_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let mut logger = Logger::new(directory.path());
        logger.say("started (attempt 1): image shop:1");
        logger.take_noted(4, Stream::Stdout, End::Whole, b"of the life before");
        logger.say("started (attempt 2): image shop:1");
        assert_eq!(last_place(directory.path(), 2), Place::default(), "a life that printed nothing yet");
        for (micros, text) in [(5, "a"), (7, "b"), (7, "c")] {
            logger.take_noted(micros, Stream::Stdout, End::Whole, text.as_bytes());
        }
        // Killed in the middle of a record.
        std::io::Write::write_all(
            &mut File::options().append(true).open(directory.path().join(FILE)).unwrap(),
            b"7 o. torn",
        )
        .unwrap();
        let place = last_place(directory.path(), 2);
        assert_eq!((place.micros, place.written), (7, 2));
        let mut passing = Passing::from(place);
        let new: Vec<bool> = [7, 7, 7, 7, 9].into_iter().map(|micros| passing.is_new(micros)).collect();
        assert_eq!(new, [false, false, true, true, true], "a line is there twice, or is missing");
        let mut next = Logger::new(directory.path());
        next.take_noted(7, Stream::Stdout, End::Whole, b"torn no more");
        let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        assert!(text.ends_with("torn\n7 o. torn no more\n"), "{text:?}");
    }

    #[test]
    fn lines_of_a_terminal_come_bare() {
        let mut lines = Lines::new(true);
        let mut found = lines.push(b"2026-01-01T00:00:00.000001Z one\r\n2026-01-01T00:0");
        found.extend(lines.push(b"0:00.000002Z two\r\n"));
        let texts: Vec<_> =
            found.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect();
        assert_eq!(texts, ["one", "two"]);
        assert_eq!(found[1].micros - found[0].micros, 1);
    }
}
