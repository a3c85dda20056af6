//! Where the bench plays: whatever becomes of it, nothing of it stays.
//!
//! The bench runs in a process of its own, with a directory for everything that it makes. The one that a person started
//! waits for its end, its failure or for Ctrl-C, and sweeps up: processes, mounts, networks, cgroups, files.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use rung_e2e::{Cgroups, process};

const CGROUPS: &str = "/sys/fs/cgroup";
const NETWORKS: &str = "/run/netns";
/// What was killed is gone within milliseconds; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs this program again with the same words, within a stage.
pub fn run() -> anyhow::Result<()> {
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        awaited.add(signal);
    }
    awaited.thread_block()?;
    let directory = tempfile::Builder::new().prefix("rung-stage-").tempdir()?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    command.arg("--stage").arg(directory.path()).env("TMPDIR", directory.path());
    let mut bench = command.spawn().context("starting setpriv (of Debian's util-linux)")?;
    let ended = loop {
        if let Some(status) = bench.try_wait()? {
            break Some(status);
        }
        if awaited.wait()? != Signal::SIGCHLD {
            bench.kill()?;
            bench.wait()?;
            break None;
        }
    };
    sweep(directory.path(), bench.id());
    let status = ended.context("it was interrupted; what it had started is gone")?;
    anyhow::ensure!(status.success(), "the bench ended with {status}; what it had started is gone");
    Ok(())
}

/// Called by the bench itself: signals that the one above waits for are its own again.
pub fn enter() -> anyhow::Result<()> {
    Ok(SigSet::all().thread_unblock()?)
}

/// What is made by a name that all of the machine sees is called so.
pub fn name() -> String {
    let directory = std::env::temp_dir();
    directory.file_name().map_or_else(|| "rung-stage".into(), |name| name.to_string_lossy().into_owned())
}

fn sweep(directory: &Path, bench: u32) {
    let deadline = Instant::now() + PATIENCE;
    let mut cgroups = Cgroups::default();
    loop {
        let left = process::concerned_with(directory);
        left.iter().for_each(|life| cgroups.note(life.pid));
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        left.iter().for_each(|life| process::kill_9(life.pid));
        std::thread::sleep(Duration::from_millis(20));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for at in ours.filter(|at| Path::new(at).starts_with(directory)) {
        let _ = Command::new("umount").arg("-l").arg(at).status();
    }
    let networks = format!("rung{bench}-");
    for network in entries(Path::new(NETWORKS)) {
        let called = network.file_name().unwrap_or_default();
        if called.to_string_lossy().starts_with(&networks) {
            let _ = Command::new("ip").args(["netns", "del"]).arg(called).status();
        }
    }
    cgroups.remove();
    let Some(cgroup) = directory.file_name() else { return };
    for hierarchy in entries(Path::new(CGROUPS)) {
        remove_cgroup(&hierarchy.join(cgroup));
    }
    remove_cgroup(&Path::new(CGROUPS).join(cgroup));
}

/// With those below it; only empty ones go.
fn remove_cgroup(cgroup: &Path) {
    for below in entries(cgroup).into_iter().filter(|below| below.is_dir()) {
        remove_cgroup(&below);
    }
    let _ = std::fs::remove_dir(cgroup);
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}
