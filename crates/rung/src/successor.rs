//! `rung upgrade` on a machine that is a worker or an ingress: another binary takes the node over.
//!
//! A node serves no API. The command leaves the program's path in the data directory and sends the node SIGUSR2; the node
//! becomes the program (exec) with the options of its own start: same process, same children. Instances live under their
//! shims and the proxy is a process of its own, so both go on; the new program adopts them as it does after a crash. When it
//! runs, it says so in `running.json`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rung_api::seal::write_private;
use rung_cli::edge::Hinted;
use rung_cli::{Exit, JoinArgs, note, say};
use rung_model::NodeRole;
use rung_trust::TrustDirectory;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use crate::data::Data;
use crate::membership::Membership;

const RUNNING: &str = "running.json";
const PROGRAM: &str = "upgrade-to";

/// A program that starts needs far less; after this it is said that it did not come back.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `<data>/running.json`: which rung runs the node.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Running {
    pid: u32,
    version: String,
    started: Timestamp,
}

impl Running {
    fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data.join(RUNNING)).ok()?).ok()
    }
}

/// In the node: it runs, for whoever waits for that.
pub fn say_running(data: &Data) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let running = Running { pid: std::process::id(), version, started: Timestamp::now() };
    let path = data.root().join(RUNNING);
    let bytes = serde_json::to_vec(&running).expect("a version and a time serialize");
    write_private(&path, &bytes).with_context(|| format!("writing {}", path.display()))
}

/// In the node: what asks it to become another program.
#[derive(Debug)]
pub struct Requests(Signals);

impl Requests {
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::user_defined2()).map(Self)
    }

    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// In the node: becomes the program that was left in the data directory. Returns only with the reason why not; nothing is
/// stopped by then.
pub fn take_over(data: &Data, args: &JoinArgs) -> anyhow::Error {
    let path = data.root().join(PROGRAM);
    let program = match std::fs::read_to_string(&path) {
        Ok(program) => PathBuf::from(program),
        Err(error) => return anyhow::Error::new(error).context(format!("reading {}", path.display())),
    };
    note!("{} takes over", program.display());
    let error = Command::new(&program).arg("join").arg("--data").arg(data.root()).args(args.again()).exec();
    anyhow::Error::new(error).context(format!("executing {}", program.display()))
}

/// In the command: the node of a data directory, when it is one that serves no API.
pub fn node_in(data: &Path) -> anyhow::Result<Option<Membership>> {
    let membership = Membership::read(&TrustDirectory::new(data.join("trust")))?;
    Ok(membership.filter(|membership| membership.role != NodeRole::Server))
}

/// In the command: asks the node, and waits until the new program runs it.
pub fn ask(data: &Path, membership: &Membership, program: &Path, version: &str) -> anyhow::Result<Exit> {
    let node = &membership.node;
    let pid = Data::holder(data).filter(|pid| understands(*pid)).ok_or_else(|| {
        let message = format!("no rung that can be replaced while it runs has {}", data.display());
        Hinted::failed(message, "start it with the new program: `rung join`, or systemctl restart rung")
    })?;
    let before = Running::read(data);
    let path = data.join(PROGRAM);
    write_private(&path, program.as_os_str().as_encoded_bytes())
        .with_context(|| format!("writing {}", path.display()))?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGUSR2)
        .with_context(|| format!("asking the rung that runs {node} (pid {pid})"))?;
    let deadline = Instant::now() + COMES_BACK_WITHIN;
    while Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
        let Some(now) = Running::read(data).filter(|now| Some(now) != before.as_ref()) else { continue };
        let _ = std::fs::remove_file(&path);
        let old = before.map_or_else(String::new, |before| format!(" from rung {}", before.version));
        say!("{version} took over{old} on {node} (pid {}); instances and requests went on", now.pid);
        return Ok(Exit::Done);
    }
    Err(Hinted::failed(
        format!("{version} did not take over {node} within {} s", COMES_BACK_WITHIN.as_secs()),
        "what rung said where it runs (`journalctl -u rung`) says why; if it is gone, start it again with the program that ran \
         before: instances and requests go on meanwhile",
    )
    .into())
}

/// Whether the process catches SIGUSR2; one that does not would end by it.
fn understands(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught >> (Signal::SIGUSR2 as u32 - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_wait_for_the_signal_is_never_sent_it() {
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(!understands(other.id()), "it would end by the signal");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
