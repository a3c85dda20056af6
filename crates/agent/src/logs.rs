//! Reading the logs that shims write: merged by time over instances, from the end, and as they grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rung_api::sse::Message;
use rung_api::wire::{LogLine, LogQuery, Stream, is_start};
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, ServiceName};
use tokio::sync::mpsc;

use crate::layout::Layout;
use crate::shim::logger::{FILE, FILES};
use crate::shim::record::{self, End, Record};

/// How soon a follower sees a new line; looked for only while somebody follows.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);
/// New instances are looked for every so many pauses.
const RESCAN_EVERY: u32 = 5;
/// Logs of so many ended instances of a service are kept.
const KEPT_ENDED: usize = 10;
/// And of so many runs of a kind: builds, release commands, each job. As many as the store remembers of a job, and their
/// retries.
const KEPT_RUNS: usize = 40;
/// Of each step of deployments: as many as the server keeps releases.
const KEPT_OF_RELEASES: usize = 100;
/// What explains a failure is near the end.
pub const TAIL_LINES: usize = 20;

/// One directory of logs: an instance's or a run's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    name: String,
    service: Option<ServiceName>,
    directory: PathBuf,
}

/// Why a reading ended before its end.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("nobody listens any more")]
    NobodyListens,
    #[error("reading the log at {path}")]
    Unreadable { path: PathBuf, source: io::Error },
}

impl Stopped {
    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unreadable { path: path.clone(), source }
    }
}

fn sources(layout: &Layout, app: &AppName, query: &LogQuery) -> Result<Vec<Source>, Stopped> {
    let mut found = Vec::new();
    if let Some(run) = &query.run {
        let directory = layout.run_logs(app, run);
        found.push(Source { name: run.to_string(), service: None, directory });
        return Ok(found);
    }
    for service in list(&layout.app_logs(app))?.into_iter().filter_map(|name| ServiceName::new(name).ok()) {
        if query.service.as_ref().is_some_and(|wanted| *wanted != service) {
            continue;
        }
        let directory = layout.service_logs(app, &service);
        for name in list(&directory)? {
            if query.instance.as_ref().is_none_or(|wanted| wanted.as_str() == name) {
                let directory = directory.join(&name);
                found.push(Source { name, service: Some(service.clone()), directory });
            }
        }
    }
    Ok(found)
}

/// What a directory holds. One that is not there, or was removed meanwhile, holds nothing; one that can't be read is an
/// error: what it holds would be missing without a word.
fn list(directory: &Path) -> Result<Vec<String>, Stopped> {
    use io::ErrorKind::{NotADirectory, NotFound};
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(Stopped::at(directory)(error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect::<io::Result<_>>().map_err(Stopped::at(directory))
}

/// For tidying up: what can't be read now is looked at again the next time.
fn names(directory: &Path) -> impl Iterator<Item = String> {
    list(directory).unwrap_or_default().into_iter()
}

/// `None`: it is not there (a rotation is going on, or nothing was written yet).
fn open(path: &Path) -> Result<Option<File>, Stopped> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Stopped::at(path)(error)),
    }
}

fn file_path(directory: &Path, number: usize) -> PathBuf {
    directory.join(if number == 0 { FILE.to_owned() } else { format!("{FILE}.{number}") })
}

/// Reads one source from a place on, across rotations.
#[derive(Debug)]
struct Reader {
    source: Source,
    /// Files that are still to be read, the next one last.
    older: Vec<File>,
    current: Option<BufReader<File>>,
    /// The beginning of a line whose end is not written yet.
    torn: Vec<u8>,
    next: Option<Record>,
}

impl Reader {
    /// Reads from where at least `tail` lines follow, or from the beginning.
    fn open(source: Source, tail: Option<usize>) -> Result<Self, Stopped> {
        let mut files = Vec::new();
        let mut wanted = tail;
        let mut seen = BTreeSet::new();
        for number in 0..FILES {
            let path = file_path(&source.directory, number);
            let Some(mut file) = open(&path)? else { continue };
            let failed = Stopped::at(&path);
            // A rotation meanwhile has moved the one that was just opened: it is met again under the next name.
            if !seen.insert(file.metadata().map_err(&failed)?.ino()) {
                continue;
            }
            let follow = wanted.map(|wanted| seek_tail(&mut file, wanted)).transpose().map_err(&failed)?;
            files.push(file);
            wanted = match (wanted, follow) {
                (Some(wanted), Some(follow)) if follow >= wanted => break,
                (Some(wanted), Some(follow)) => Some(wanted - follow),
                _ => None,
            };
        }
        Ok(Self { source, older: files, current: None, torn: Vec::new(), next: None })
    }

    fn peek(&mut self) -> Result<Option<&Record>, Stopped> {
        if self.next.is_none() {
            self.next = self.read()?;
        }
        Ok(self.next.as_ref())
    }

    /// `None` where the log ends, for now.
    fn read(&mut self) -> Result<Option<Record>, Stopped> {
        loop {
            if self.current.is_none() {
                let Some(oldest) = self.older.pop() else { return Ok(None) };
                self.current = Some(BufReader::new(oldest));
            }
            let Some(current) = self.current.as_mut() else { return Ok(None) };
            let count = current
                .read_until(b'\n', &mut self.torn)
                .map_err(|source| Stopped::at(&self.source.directory)(source))?;
            if count == 0 && self.older.is_empty() {
                return Ok(None);
            }
            if count == 0 {
                // A rotated file gets no more: a line without its end has none.
                self.torn.clear();
                self.current = None;
            } else if self.torn.ends_with(b"\n") {
                let line = std::mem::take(&mut self.torn);
                if let Some(record) = record::decode(line.trim_ascii_end()) {
                    return Ok(Some(record));
                }
            }
        }
    }

    /// After a rotation: what is left of the old file was read, the new ones are next.
    fn follow_rotation(&mut self) -> Result<(), Stopped> {
        let newest = file_path(&self.source.directory, 0);
        let inode = |file: &File| file.metadata().map(|meta| meta.ino());
        let current = match &self.current {
            Some(reader) => Some(inode(reader.get_ref()).map_err(Stopped::at(&newest))?),
            None => None,
        };
        match fs::metadata(&newest) {
            Ok(newest) if current == Some(newest.ino()) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Stopped::at(&newest)(error)),
        }
        // Everything newer than the current file, which has become `log.N` (or is gone).
        let mut seen = BTreeSet::from_iter(current);
        for number in 0..FILES {
            let path = file_path(&self.source.directory, number);
            let Some(file) = open(&path)? else { continue };
            let inode = inode(&file).map_err(Stopped::at(&path))?;
            if current == Some(inode) {
                break;
            }
            if seen.insert(inode) {
                self.older.push(file);
            }
        }
        Ok(())
    }
}

/// Moves to where at most `lines` whole lines follow; answers how many do. The end of a line that is being written is
/// not there yet, and is none.
fn seek_tail(file: &mut File, lines: usize) -> io::Result<usize> {
    const CHUNK: u64 = 64 * 1024;
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut ends = 0;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.by_ref().take(end - start).read_to_end(&mut chunk)?;
        for at in memchr::memrchr_iter(b'\n', &chunk) {
            ends += 1;
            if ends > lines {
                file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                return Ok(lines);
            }
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(ends)
}

fn line(source: &Source, record: Record) -> LogLine {
    LogLine {
        at: Timestamp::from_microsecond(record.micros).unwrap_or(Timestamp::UNIX_EPOCH),
        source: source.name.clone(),
        service: source.service.clone(),
        stream: record.stream,
        text: record.text,
        partial: record.end == End::Partial,
    }
}

/// The next line in the order of time.
fn pop_earliest(readers: &mut [Reader]) -> Result<Option<LogLine>, Stopped> {
    let mut earliest: Option<(usize, i64)> = None;
    for (at, reader) in readers.iter_mut().enumerate() {
        if let Some(record) = reader.peek()?
            && earliest.is_none_or(|(_, micros)| record.micros < micros)
        {
            earliest = Some((at, record.micros));
        }
    }
    Ok(earliest.and_then(|(at, _)| {
        let record = readers[at].next.take()?;
        Some(line(&readers[at].source, record))
    }))
}

/// Sends what the query asks for, and goes on for as long as it follows and somebody listens. The last message says
/// whether that is all. Blocks.
pub fn read(layout: &Layout, app: &AppName, query: &LogQuery, sender: &mpsc::Sender<Message<LogLine>>) {
    let last = match send_all(layout, app, query, sender) {
        Ok(()) => Message::End,
        Err(Stopped::NobodyListens) => return,
        Err(error @ Stopped::Unreadable { .. }) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            let message = format!("{error}{}", source.unwrap_or_default());
            Message::Failed(ErrorBody::new(Code::Internal, message))
        }
    };
    // Whoever has gone meanwhile needs no end.
    let _ = sender.blocking_send(last);
}

fn send_all(
    layout: &Layout,
    app: &AppName,
    query: &LogQuery,
    sender: &mpsc::Sender<Message<LogLine>>,
) -> Result<(), Stopped> {
    let mut known: BTreeSet<Source> = BTreeSet::new();
    let mut readers: Vec<Reader> = Vec::new();
    for source in sources(layout, app, query)? {
        known.insert(source.clone());
        readers.push(Reader::open(source, query.tail)?);
    }
    let wanted = |line: &LogLine| query.since.is_none_or(|since| line.at >= since);
    let send = |line: LogLine| sender.blocking_send(Message::Item(line)).map_err(|_| Stopped::NobodyListens);
    send_existing(&mut readers, query.tail, wanted, send)?;
    let mut rounds = 0;
    while query.follow && !sender.is_closed() {
        std::thread::sleep(FOLLOW_PAUSE);
        rounds += 1;
        if rounds % RESCAN_EVERY == 0 {
            for source in sources(layout, app, query)? {
                if known.insert(source.clone()) {
                    readers.push(Reader::open(source, None)?);
                }
            }
        }
        for reader in &mut readers {
            reader.follow_rotation()?;
        }
        while let Some(line) = pop_earliest(&mut readers)? {
            if wanted(&line) {
                send(line)?;
            }
        }
    }
    Ok(())
}

fn send_existing(
    readers: &mut [Reader],
    tail: Option<usize>,
    wanted: impl Fn(&LogLine) -> bool,
    send: impl Fn(LogLine) -> Result<(), Stopped>,
) -> Result<(), Stopped> {
    let mut held = std::collections::VecDeque::new();
    while let Some(line) = pop_earliest(readers)? {
        if !wanted(&line) {
            continue;
        }
        let Some(tail) = tail else {
            send(line)?;
            continue;
        };
        held.push_back(line);
        if held.len() > tail {
            held.pop_front();
        }
    }
    held.into_iter().try_for_each(send)
}

/// The last lines of the latest life: what explains its end.
pub fn tail(directory: &Path) -> Vec<String> {
    let source = Source { name: String::new(), service: None, directory: directory.to_owned() };
    let Ok(mut reader) = Reader::open(source, Some(2 * TAIL_LINES)) else { return Vec::new() };
    let mut lines = Vec::new();
    // What can be read explains more than nothing.
    while let Ok(Some(record)) = reader.read() {
        if record.stream != Stream::Rung {
            lines.push(record.text);
        } else if is_start(&record.text) {
            lines.clear();
        }
    }
    lines.split_off(lines.len().saturating_sub(TAIL_LINES))
}

/// Removes logs of instances that ended long ago; what `is_live` names stays.
pub fn prune(layout: &Layout, is_live: impl Fn(&str) -> bool) {
    for app in names(&layout.logs()).filter_map(|name| AppName::new(name).ok()) {
        for service in names(&layout.app_logs(&app)).filter_map(|name| ServiceName::new(name).ok()) {
            let directory = layout.service_logs(&app, &service);
            let ended = names(&directory).filter(|name| !is_live(name));
            remove_oldest(ended.map(|name| directory.join(name)).collect(), KEPT_ENDED);
        }
    }
}

/// Removes logs of runs that ended long ago.
pub fn prune_runs(layout: &Layout) {
    // A run that goes on has its directory, even when it has said nothing for days.
    let live: BTreeSet<String> = names(&layout.runs()).collect();
    for app in names(&layout.logs()).filter_map(|name| AppName::new(name).ok()) {
        let directory = layout.runs_logs(&app);
        let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for name in names(&directory).filter(|name| !live.contains(name)) {
            kinds.entry(kind_of(&name).to_owned()).or_default().push(directory.join(name));
        }
        for (kind, ended) in kinds {
            // A release's logs are kept as long as the release; only those of deployments have a kind without a dot.
            remove_oldest(ended, if kind.contains('.') { KEPT_RUNS } else { KEPT_OF_RELEASES });
        }
    }
}

/// `shop.report` of `shop.report-1790000000` and of `shop.report-1790000000-try2`; `build` of `shop.d7-build`.
fn kind_of(run: &str) -> &str {
    let (first, last) = run.rsplit_once('-').unwrap_or((run, ""));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let of_deployment = first.rsplit_once(".d").is_some_and(|(_, number)| is_number(number));
    // A job may be called `d7`: what counts its runs are numbers.
    match last {
        "build" | "before" | "release" if of_deployment => last,
        _ if last.starts_with("try") => kind_of(first),
        _ => first,
    }
}

fn remove_oldest(ended: Vec<PathBuf>, keep: usize) {
    if ended.len() <= keep {
        return;
    }
    let changed = |path: &Path| fs::metadata(path.join(FILE)).and_then(|meta| meta.modified()).ok();
    let mut ended: Vec<_> = ended.into_iter().map(|path| (changed(&path), path)).collect();
    ended.sort();
    for (_, path) in ended.iter().rev().skip(keep) {
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::record::encode;

    fn write(directory: &Path, file: usize, lines: &[(i64, &str)]) {
        fs::create_dir_all(directory).unwrap();
        let mut out = Vec::new();
        for (micros, text) in lines {
            encode(&mut out, *micros, Stream::Stdout, End::Whole, text.as_bytes());
        }
        fs::write(file_path(directory, file), out).unwrap();
    }

    /// The lines, and whether the answer says of itself that it is whole.
    fn read_out(layout: &Layout, query: &LogQuery) -> (Vec<String>, Option<Message<LogLine>>) {
        let (sender, mut receiver) = mpsc::channel(100);
        read(layout, &AppName::new("shop").unwrap(), query, &sender);
        drop(sender);
        let mut last = None;
        let mut lines = Vec::new();
        while let Some(message) = receiver.blocking_recv() {
            match message {
                Message::Item(line) => lines.push(line.text),
                ending => last = Some(ending),
            }
        }
        (lines, last)
    }

    fn collect(layout: &Layout, query: &LogQuery) -> Vec<String> {
        let (lines, last) = read_out(layout, query);
        assert_eq!(last, Some(Message::End), "an answer without its end: {lines:?}");
        lines
    }

    fn last(lines: usize) -> LogQuery {
        LogQuery { tail: Some(lines), ..LogQuery::default() }
    }

    /// A directory with the logs of `shop`'s `web`.
    fn stage() -> (tempfile::TempDir, Layout, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let web = layout.app_logs(&AppName::new("shop").unwrap()).join("web");
        (directory, layout, web)
    }

    #[test]
    fn a_line_is_found_however_the_file_after_it_begins() {
        let (_directory, layout, web) = stage();
        write(&web.join("a1"), 1, &[(1, "one"), (2, "two")]);
        fs::write(file_path(&web.join("a1"), 0), b"").unwrap();
        assert_eq!(collect(&layout, &last(1)), ["two"], "a rotation had just begun the next file");
        fs::write(file_path(&web.join("a1"), 0), b"3 o. thr").unwrap();
        assert_eq!(collect(&layout, &last(1)), ["two"], "the next line was being written");
        assert_eq!(collect(&layout, &last(0)), Vec::<String>::new());
        assert_eq!(collect(&layout, &last(5)), ["one", "two"]);
    }

    #[test]
    fn a_rotation_between_two_looks_doubles_nothing_and_hides_nothing() {
        let (_directory, layout, web) = stage();
        let a1 = web.join("a1");
        write(&a1, 0, &[(1, "one"), (2, "two")]);
        // In the middle of it: the newest has its next name, and the new one is not there.
        fs::rename(file_path(&a1, 0), file_path(&a1, 1)).unwrap();
        assert_eq!(collect(&layout, &LogQuery::default()), ["one", "two"]);
        // As a reader sees it that opened the file under both of its names.
        fs::hard_link(file_path(&a1, 1), file_path(&a1, 0)).unwrap();
        assert_eq!(collect(&layout, &LogQuery::default()), ["one", "two"]);
    }

    #[test]
    fn a_follower_hears_all_of_a_log_that_was_rotated_before_it_was_first_there() {
        let (_directory, _layout, web) = stage();
        let source = Source { name: "a1".into(), service: None, directory: web.join("a1") };
        let mut readers = [Reader::open(source, None).unwrap()];
        assert!(pop_earliest(&mut readers).unwrap().is_none(), "there is no file yet");
        write(&web.join("a1"), 1, &[(1, "one")]);
        write(&web.join("a1"), 0, &[(2, "two")]);
        readers[0].follow_rotation().unwrap();
        let texts: Vec<_> =
            std::iter::from_fn(|| pop_earliest(&mut readers).unwrap()).map(|line| line.text).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn what_can_not_be_read_is_an_error_and_never_an_empty_answer() {
        let (_directory, layout, web) = stage();
        write(&web.join("a1"), 0, &[(1, "one")]);
        fs::create_dir_all(file_path(&web.join("a2"), 0)).unwrap();
        let (_, ending) = read_out(&layout, &LogQuery::default());
        let Some(Message::Failed(body)) = ending else { panic!("it ended with {ending:?}") };
        assert!(body.message.contains("a2"), "the log is not named: {}", body.message);
    }

    #[test]
    fn an_instance_that_has_said_nothing_yet_is_a_whole_and_empty_answer() {
        let (_directory, layout, web) = stage();
        assert_eq!(collect(&layout, &LogQuery::default()), Vec::<String>::new());
        fs::create_dir_all(web.join("a1")).unwrap();
        assert_eq!(collect(&layout, &last(100)), Vec::<String>::new());
    }

    #[test]
    fn lines_of_several_instances_and_rotated_files_come_in_the_order_of_time() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let web = layout.app_logs(&AppName::new("shop").unwrap()).join("web");
        write(&web.join("a1"), 1, &[(1, "one"), (3, "three")]);
        write(&web.join("a1"), 0, &[(5, "five")]);
        write(&web.join("a2"), 0, &[(2, "two"), (4, "four")]);
        assert_eq!(collect(&layout, &LogQuery::default()), ["one", "two", "three", "four", "five"]);
        let tail = LogQuery { tail: Some(2), ..LogQuery::default() };
        assert_eq!(collect(&layout, &tail), ["four", "five"]);
        let since = LogQuery { since: Some(Timestamp::from_microsecond(4).unwrap()), ..LogQuery::default() };
        assert_eq!(collect(&layout, &since), ["four", "five"]);
        assert_eq!(super::tail(&web.join("a1")), ["one", "three", "five"]);
    }

    #[test]
    fn each_kind_of_run_keeps_its_newest_logs_and_one_that_goes_on_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let runs = layout.runs_logs(&AppName::new("shop").unwrap());
        let age = |name: &str, seconds: u64| {
            write(&runs.join(name), 0, &[(1, name)]);
            let then = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(file_path(&runs.join(name), 0)).unwrap().set_modified(then).unwrap();
        };
        age("shop.nightly-5", 5);
        age("shop.tick-1", 1);
        age("shop.tick-2", 2);
        age("shop.tick-2-try2", 3);
        (10..50).for_each(|n| age(&format!("shop.tick-{n}"), n));
        fs::create_dir_all(layout.runs().join("shop.tick-1")).unwrap();
        (1..=110).for_each(|n| age(&format!("shop.d{n}-build"), 1000 + n));
        prune_runs(&layout);
        let kept: BTreeSet<String> = names(&runs).collect();
        assert!(kept.contains("shop.nightly-5"), "another job's runs pushed it out");
        assert!(kept.contains("shop.tick-1"), "it goes on, and its log is gone");
        assert!(!kept.contains("shop.tick-2") && !kept.contains("shop.tick-2-try2"), "{kept:?}");
        assert!(kept.contains("shop.d11-build") && !kept.contains("shop.d10-build"), "{kept:?}");
        assert_eq!(kept.len(), 42 + 100);
    }
}
