//! This machine's member of etcd: started, adopted, started again when it ends, stopped.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rung_process::Process;
use rung_store::etcd::ETCD_MAX_TXN_OPS;

use super::authority::{self, Files};
use super::record::{Record, Start};
use super::{QuorumError, Tell};

/// What is told about it, in `rung events`.
pub const EVENT_KIND: &str = "etcd";

/// As etcd's own advice has it for machines on one network; an election takes one to two of the latter.
const HEARTBEAT_MS: u32 = 100;
const ELECTION_MS: u32 = 1000;

/// History that watches can resume from; a server that was away for longer reads everything anew.
const HISTORY: &str = "30m";

/// Entries between etcd's own snapshots. The default (100,000) keeps that many in memory.
const SNAPSHOT_EVERY: u32 = 10_000;

/// A member that ends again and again is started less and less often, up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// SIGTERM lets it hand its leadership over; a paused one ends only by SIGKILL.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

/// Its log is begun anew at this size: warnings only, it takes months.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// The member; cheap to clone.
#[derive(Debug, Clone)]
pub struct Member {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data: PathBuf,
    process: Mutex<Arc<Process>>,
    /// Why it ended last, or was not started.
    trouble: Mutex<Option<String>>,
}

fn etcd_directory(data: &Path) -> PathBuf {
    data.join("etcd")
}

fn pid_file(data: &Path) -> PathBuf {
    etcd_directory(data).join("pid.json")
}

pub(super) fn files(data: &Path, record: &Record) -> PathBuf {
    etcd_directory(data).join(&record.directory)
}

/// Whether there is an etcd that can be started, said in words when not.
pub(super) fn check_program() -> Result<(), QuorumError> {
    let missing = "it is not installed: apt-get install etcd-server";
    let output = Command::new("etcd").arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|_| QuorumError::Etcd(missing.to_owned()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap_or_default();
    match version.split('.').take(2).collect::<Vec<_>>().as_slice() {
        ["3", minor] if minor.parse::<u32>().is_ok_and(|minor| minor >= 4) => Ok(()),
        _ => Err(QuorumError::Etcd(format!(
            "version {version:?} is not known to work; 3.4 or newer is needed"
        ))),
    }
}

/// Stops a member that an earlier server of this data directory left, whatever it was for.
pub(super) async fn stop_any(data: &Path) {
    if let Some(process) = Process::adopt(&pid_file(data)) {
        process.stop(STOPS_WITHIN).await;
    }
}

impl Member {
    /// Adopts the member that runs, or starts it.
    pub(super) async fn ensure(data: &Path, record: &Record) -> Result<Self, QuorumError> {
        authority::ensure(data, &record.name, record.client.ip())?;
        let process = match Process::adopt(&pid_file(data)) {
            Some(process) if process.has_arguments(&arguments(data, record)) => process,
            // Of a cluster that is not this one any more, or with other options.
            Some(process) => {
                process.stop(STOPS_WITHIN).await;
                start(data, record)?
            }
            None => start(data, record)?,
        };
        let process = Mutex::new(Arc::new(process));
        let inner = Inner { data: data.to_owned(), process, trouble: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn data(&self) -> &Path {
        &self.inner.data
    }

    fn process(&self) -> Arc<Process> {
        Arc::clone(&self.inner.process.lock().expect("nobody panics while holding it"))
    }

    pub fn pid(&self) -> i32 {
        self.process().pid()
    }

    pub(super) async fn ended(&self) {
        self.process().ended().await;
    }

    pub async fn stop(&self) {
        self.process().stop(STOPS_WITHIN).await;
    }

    /// Starts it again whenever it ends. Never returns.
    pub async fn supervise(self, record: Record, tell: Tell<'_>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let began = Instant::now();
            self.process().ended().await;
            if began.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            let words = last_words(&self.inner.data).map(|words| format!("it said: {words}"));
            let words = words.unwrap_or_else(|| "it said nothing".to_owned());
            tell(&format!("etcd ended; it is started again; {words}"));
            self.inner.note(format!("it ended; {words}"));
            let process = loop {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                match start(&self.inner.data, &record) {
                    Ok(process) => break process,
                    Err(error) => {
                        let why = crate::trees::chain(&error);
                        tell(&why);
                        self.inner.note(why);
                    }
                }
            };
            *self.inner.process.lock().expect("nobody panics while holding it") = Arc::new(process);
        }
    }

    /// Why it ended last, or was not started; it may be well since.
    pub fn trouble(&self) -> Option<String> {
        self.inner.trouble.lock().expect("nobody panics while holding it").clone()
    }
}

impl Inner {
    fn note(&self, trouble: String) {
        *self.trouble.lock().expect("nobody panics while holding it") = Some(trouble);
    }
}

fn start(data: &Path, record: &Record) -> Result<Process, QuorumError> {
    check_program()?;
    let directory = etcd_directory(data);
    let log = log_path(data);
    if std::fs::metadata(&log).is_ok_and(|found| found.len() > LOG_MAX_BYTES) {
        std::fs::rename(&log, log.with_extension("log.1")).map_err(QuorumError::file("moving", &log))?;
    }
    let output = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let output = output.map_err(QuorumError::file("opening", &log))?;
    let mut command = Command::new("etcd");
    command.args(arguments(data, record)).current_dir(&directory);
    // What its environment says about etcd is not about this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
        command.env_remove(name);
    }
    let errors = output.try_clone().map_err(QuorumError::file("opening", &log))?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    Process::spawn(command, &pid_file(data)).map_err(|error| QuorumError::Etcd(error.to_string()))
}

fn log_path(data: &Path) -> PathBuf {
    etcd_directory(data).join("etcd.log")
}

/// Why it may have ended: the last line that it wrote.
pub(super) fn last_words(data: &Path) -> Option<String> {
    let text = std::fs::read(log_path(data)).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| line.starts_with('{'))?;
    let said: serde_json::Value = serde_json::from_str(line).ok()?;
    let message = said.get("msg")?.as_str()?;
    let detail = said.get("error").and_then(serde_json::Value::as_str);
    Some(detail.map_or_else(|| message.to_owned(), |detail| format!("{message}: {detail}")))
}

fn arguments(data: &Path, record: &Record) -> Vec<std::ffi::OsString> {
    let tls = Files::of(data);
    let (client, peer) = (format!("https://{}", record.client), format!("https://{}", record.peer));
    let initial: Vec<String> =
        record.initial.iter().map(|(name, peer)| format!("{name}=https://{peer}")).collect();
    let mut arguments: Vec<std::ffi::OsString> = Vec::new();
    let mut say = |option: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        arguments.extend([option.into(), value.as_ref().to_owned()]);
    };
    say("--name", &record.name);
    say("--data-dir", &files(data, record));
    say("--listen-client-urls", &client);
    say("--advertise-client-urls", &client);
    say("--listen-peer-urls", &peer);
    say("--initial-advertise-peer-urls", &peer);
    say("--initial-cluster", &initial.join(","));
    say("--initial-cluster-token", &record.token);
    let state = match record.start {
        Start::Founds => "new",
        Start::Joins => "existing",
    };
    say("--initial-cluster-state", &state);
    for side in ["", "peer-"] {
        say(&format!("--{side}trusted-ca-file"), &tls.authority);
        say(&format!("--{side}cert-file"), &tls.certificate);
        say(&format!("--{side}key-file"), &tls.key);
    }
    say("--heartbeat-interval", &HEARTBEAT_MS.to_string());
    say("--election-timeout", &ELECTION_MS.to_string());
    say("--auto-compaction-mode", &"periodic");
    say("--auto-compaction-retention", &HISTORY);
    say("--quota-backend-bytes", &record.quota_bytes.to_string());
    say("--snapshot-count", &SNAPSHOT_EVERY.to_string());
    say("--max-txn-ops", &ETCD_MAX_TXN_OPS.to_string());
    // Its clients ping well below the default of 5 s, to find out early that a member is paused.
    say("--grpc-keepalive-min-time", &"500ms");
    say("--logger", &"zap");
    say("--log-outputs", &"stderr");
    say("--log-level", &"warn");
    arguments.extend(["--client-cert-auth".into(), "--peer-client-cert-auth".into()]);
    arguments
}
