//! A process that outlives the one that started it, and is found again: etcd, keepalived.
//!
//! Whoever starts it writes down who it is; after a `kill -9` of the starter the next one reads that and adopts it. It is known by the boot, its pid and when it began, so that a pid that was given to somebody else is never taken for
//! it. Signals go through a descriptor of the process, for the same reason.
//!
//! Not for instances: those have a shim as their parent, which knows how they ended.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rung_api::seal::write_private;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

/// Looking costs a system call; a member that ended is started again a moment later anyway.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    boot: String,
    pid: i32,
    /// In ticks since the boot.
    began: u64,
}

#[derive(Debug)]
pub struct Process {
    identity: Identity,
    descriptor: OwnedFd,
}

impl Process {
    /// Starts it in a process group of its own, and writes down who it is.
    pub fn spawn(mut command: Command, record: &Path) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let mut child = command.process_group(0).spawn()?;
        let pid = child.id().cast_signed();
        match Self::find(pid).and_then(|process| {
            let identity = serde_json::to_vec(&process.identity).expect("an identity serializes");
            write_private(record, &identity).map(|()| process)
        }) {
            Ok(process) => Ok(process),
            Err(error) => {
                // Nobody would ever find it again.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// The one that was written down, if it lives.
    pub fn adopt(record: &Path) -> Option<Self> {
        let identity: Identity = serde_json::from_slice(&std::fs::read(record).ok()?).ok()?;
        let process = Self::find(identity.pid).ok()?;
        (process.identity == identity).then_some(process)
    }

    /// The descriptor comes first: what is read after it is of the same process, or of none.
    fn find(pid: i32) -> std::io::Result<Self> {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let descriptor =
            rustix::process::pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::NONBLOCK)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything; 20 fields behind it is the time.
        let mut fields = stat.rsplit_once(')').ok_or_else(gone)?.1.split_whitespace();
        if fields.next() == Some("Z") {
            return Err(gone());
        }
        let began = fields.nth(18).and_then(|began| began.parse().ok()).ok_or_else(gone)?;
        Ok(Self { identity: Identity { boot, pid, began }, descriptor })
    }

    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Whether it was started by these arguments, behind the program's name.
    pub fn has_arguments(&self, arguments: &[OsString]) -> bool {
        let given = std::fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap_or_default();
        let mut wanted = Vec::new();
        for argument in arguments {
            wanted.extend(argument.as_encoded_bytes());
            wanted.push(0);
        }
        given.splitn(2, |byte| *byte == 0).nth(1) == Some(wanted.as_slice())
    }

    /// Asks it to end, and kills it when it does not in time.
    pub async fn stop(&self, within: Duration) {
        self.terminate();
        if tokio::time::timeout(within, self.ended()).await.is_err() {
            self.kill();
            self.ended().await;
        }
    }

    /// Returns when it has ended.
    pub async fn ended(&self) {
        while !self.has_ended() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // Ours to reap, when it was started by this process (or by what this process was before it replaced itself).
        if let Some(pid) = Pid::from_raw(self.identity.pid) {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }

    fn has_ended(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::IN)];
        // A descriptor that can't be asked counts as one of a process that is gone.
        !matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(0))
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // It fails only when it is gone, which is what was wanted.
        let _ = rustix::process::pidfd_send_signal(self.descriptor.as_fd(), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_again_and_a_stranger_with_its_pid_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("pid.json");
        let mut command = Command::new("sleep");
        command.arg("60");
        let started = Process::spawn(command, &record).unwrap();
        let found = Process::adopt(&record).expect("it lives and was not found");
        assert_eq!(found.identity, started.identity);
        let mut stranger = found.identity.clone();
        stranger.began -= 1;
        std::fs::write(&record, serde_json::to_vec(&stranger).unwrap()).unwrap();
        assert!(Process::adopt(&record).is_none(), "a process that began at another time was taken for it");
        std::fs::write(&record, serde_json::to_vec(&started.identity).unwrap()).unwrap();
        started.kill();
        started.ended().await;
        assert!(Process::adopt(&record).is_none(), "a process that has ended was found");
    }
}
