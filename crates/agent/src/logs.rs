//! Reading the logs that shims write: merged by time over instances, from the end, and as they grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rung_api::wire::{LogLine, LogQuery, Stream};
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

fn sources(layout: &Layout, app: &AppName, query: &LogQuery) -> Vec<Source> {
    let mut found = Vec::new();
    if let Some(run) = &query.run {
        let directory = layout.run_logs(app, run);
        found.push(Source { name: run.to_string(), service: None, directory });
        return found;
    }
    for service in names(&layout.app_logs(app)).filter_map(|name| ServiceName::new(name).ok()) {
        if query.service.as_ref().is_some_and(|wanted| *wanted != service) {
            continue;
        }
        let directory = layout.service_logs(app, &service);
        for name in names(&directory) {
            if query.instance.as_ref().is_none_or(|wanted| wanted.as_str() == name) {
                let directory = directory.join(&name);
                found.push(Source { name, service: Some(service.clone()), directory });
            }
        }
    }
    found
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
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
    fn open(source: Source, tail: Option<usize>) -> Self {
        let mut files = Vec::new();
        let mut wanted = tail;
        for number in 0..FILES {
            let Ok(mut file) = File::open(file_path(&source.directory, number)) else { continue };
            let counted = wanted.map(|wanted| seek_tail(&mut file, wanted));
            files.push(file);
            match (counted, &mut wanted) {
                (Some(Ok(count)), Some(left)) if count < *left => *left -= count,
                (None, _) => {}
                _ => break,
            }
        }
        Self { source, older: files, current: None, torn: Vec::new(), next: None }
    }

    fn peek(&mut self) -> Option<&Record> {
        if self.next.is_none() {
            self.next = self.read();
        }
        self.next.as_ref()
    }

    fn read(&mut self) -> Option<Record> {
        loop {
            if self.current.is_none() {
                self.current = Some(BufReader::new(self.older.pop()?));
            }
            let current = self.current.as_mut()?;
            match current.read_until(b'\n', &mut self.torn) {
                Ok(0) if !self.older.is_empty() => self.current = None,
                Ok(0) | Err(_) => return None,
                Ok(_) if !self.torn.ends_with(b"\n") => {}
                Ok(_) => {
                    let line = std::mem::take(&mut self.torn);
                    if let Some(record) = record::decode(line.trim_ascii_end()) {
                        return Some(record);
                    }
                }
            }
        }
    }

    /// After a rotation: what is left of the old file was read, the new one is next.
    fn follow_rotation(&mut self) {
        let Ok(newest) = fs::metadata(file_path(&self.source.directory, 0)) else { return };
        let inode = |file: &File| file.metadata().map(|meta| meta.ino()).ok();
        let current = self.current.as_ref().and_then(|reader| inode(reader.get_ref()));
        if current == Some(newest.ino()) {
            return;
        }
        // Everything newer than the current file, which has become `log.N` (or is gone).
        for number in 0..FILES {
            let Ok(file) = File::open(file_path(&self.source.directory, number)) else { continue };
            if current.is_some() && inode(&file) == current {
                break;
            }
            self.older.push(file);
            if current.is_none() {
                break;
            }
        }
    }
}

/// Moves to where at most `lines` lines follow; answers how many do.
fn seek_tail(file: &mut File, lines: usize) -> io::Result<usize> {
    const CHUNK: u64 = 64 * 1024;
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut count = 0;
    let mut chunk = Vec::new();
    let mut is_last_byte = true;
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.by_ref().take(end - start).read_to_end(&mut chunk)?;
        for (at, &byte) in chunk.iter().enumerate().rev() {
            if byte == b'\n' && !std::mem::take(&mut is_last_byte) {
                count += 1;
                if count == lines {
                    file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                    return Ok(count);
                }
            }
            is_last_byte = false;
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(count + 1)
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
fn pop_earliest(readers: &mut [Reader]) -> Option<LogLine> {
    let (at, _) = readers
        .iter_mut()
        .enumerate()
        .filter_map(|(at, reader)| reader.peek().map(|record| (at, record.micros)))
        .min_by_key(|(_, micros)| *micros)?;
    let record = readers[at].next.take()?;
    Some(line(&readers[at].source, record))
}

/// Sends what the query asks for, and goes on for as long as it follows and somebody listens. Blocks.
pub fn read(layout: &Layout, app: &AppName, query: &LogQuery, sender: &mpsc::Sender<LogLine>) {
    let mut known: BTreeMap<Source, ()> = BTreeMap::new();
    let mut readers: Vec<Reader> = Vec::new();
    for source in sources(layout, app, query) {
        known.insert(source.clone(), ());
        readers.push(Reader::open(source, query.tail));
    }
    let wanted = |line: &LogLine| query.since.is_none_or(|since| line.at >= since);
    if send_existing(&mut readers, query.tail, wanted, sender).is_none() {
        return;
    }
    let mut rounds = 0;
    while query.follow && !sender.is_closed() {
        std::thread::sleep(FOLLOW_PAUSE);
        rounds += 1;
        if rounds % RESCAN_EVERY == 0 {
            for source in sources(layout, app, query) {
                if known.insert(source.clone(), ()).is_none() {
                    readers.push(Reader::open(source, None));
                }
            }
        }
        readers.iter_mut().for_each(Reader::follow_rotation);
        while let Some(line) = pop_earliest(&mut readers) {
            if wanted(&line) && sender.blocking_send(line).is_err() {
                return;
            }
        }
    }
}

/// `None` when nobody listens any more.
fn send_existing(
    readers: &mut [Reader],
    tail: Option<usize>,
    wanted: impl Fn(&LogLine) -> bool,
    sender: &mpsc::Sender<LogLine>,
) -> Option<()> {
    let mut held = std::collections::VecDeque::new();
    while let Some(line) = pop_earliest(readers) {
        if !wanted(&line) {
            continue;
        }
        let Some(tail) = tail else {
            sender.blocking_send(line).ok()?;
            continue;
        };
        held.push_back(line);
        if held.len() > tail {
            held.pop_front();
        }
    }
    for line in held {
        sender.blocking_send(line).ok()?;
    }
    Some(())
}

/// The last lines of the latest life: what explains its end.
pub fn tail(directory: &Path) -> Vec<String> {
    let source = Source { name: String::new(), service: None, directory: directory.to_owned() };
    let mut reader = Reader::open(source, Some(2 * TAIL_LINES));
    let mut lines = Vec::new();
    while let Some(record) = reader.read() {
        if record.stream != Stream::Rung {
            lines.push(record.text);
        } else if record.text.starts_with("started ") {
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

    fn collect(layout: &Layout, query: &LogQuery) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(100);
        read(layout, &AppName::new("shop").unwrap(), query, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).map(|line| line.text).collect()
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
