//! Version 1 of what agent and shim say to each other. Frozen: fields and verbs are added, never changed or removed,
//! because a shim may be years older than the agent that adopts it.
//!
//! The agent writes one [`Spec`] to the shim's standard input and reads one [`Ready`] line from its standard output.
//! Later it connects to `shim.sock` in the life's directory and sends [`Request`]s, a JSON object a line; each is
//! answered by one [`Response`] line. After `attach` the connection carries frames of `rung_api::attach`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub const SOCKET: &str = "shim.sock";
pub const EXIT_FILE: &str = "exit.json";
pub const LIFE_FILE: &str = "life.json";
pub const LOCK_FILE: &str = "lock";

/// Everything about one life. It comes through a pipe, so that secrets are neither in an argument nor on the disk.
#[derive(Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The instance's or run's id.
    pub name: String,
    /// Counts the lives of one instance, from 1.
    pub attempt: u32,
    /// Where the socket, `life.json` and `exit.json` are; it exists and belongs to this life alone.
    pub directory: PathBuf,
    pub logs: PathBuf,
    /// Goes through `/bin/sh -c`.
    pub command: String,
    pub env: BTreeMap<String, String>,
    /// The tree that is seen at `/app`.
    pub tree: PathBuf,
    pub tree_access: Access,
    /// The private temporary directory, seen at `/tmp`.
    pub tmp: PathBuf,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Found in `/etc/hosts`, in front of what the machine's own says. Without a mount namespace there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, Ipv4Addr>,
    /// Directories of which nothing shall be seen.
    #[serde(default)]
    pub masked: Vec<PathBuf>,
    pub isolation: Isolation,
    #[serde(default)]
    pub limits: Limits,
    pub io: Io,
    /// Ended with the whole tree when it takes longer.
    #[serde(default)]
    pub time_limit_ms: Option<u64>,
    /// A file that is made just before the command starts. Where it is already nothing is started: the command runs once,
    /// whoever asks for it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<PathBuf>,
    /// Stopped when it is over, unless it was extended. With one that is over nothing is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

/// Until when a life may go on without another word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Milliseconds of CLOCK_BOOTTIME; `None`: for ever.
    pub until_boot_ms: Option<u64>,
    /// From SIGTERM to SIGKILL when it is over.
    pub grace_ms: u64,
}

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec")
            .field("name", &self.name)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    ReadOnly,
    Writable,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    /// Absolute, as the instance sees it.
    pub target: PathBuf,
}

/// How far a life is kept apart from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "isolation")]
pub enum Isolation {
    /// Own user, PID, IPC and mount namespaces. Needs root.
    OwnUser { uid: u32, gid: u32 },
    /// The same namespaces inside a user namespace, as the user who runs Rung.
    UserNamespace,
    /// None of it: the tree is where it lies, orphans are swept.
    Plain,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The cgroups that this life shall be put into, made by the shim and removed at its end.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core.
    #[serde(default)]
    pub cpu_millis: Option<u32>,
    #[serde(default)]
    pub processes: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "io")]
pub enum Io {
    /// No input; output goes to the logs.
    Logs,
    /// Somebody will attach: input is open, output goes to them and to the logs.
    Attached,
    /// The same through a terminal.
    Terminal { rows: u16, columns: u16 },
}

/// The first and only line on the shim's standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum Ready {
    Started(Life),
    Failed {
        reason: String,
    },
    /// Another shim of the same life is alive; the agent adopts that one.
    AlreadyAlive,
}

/// Who is alive, in `life.json`. A process is its boot, its pid and its start ticks: pids come again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    pub boot: String,
    pub shim: Process,
    /// The parent of the command; its end is the tree's end.
    pub init: Process,
    /// The command, as the host sees it.
    pub main: u32,
    /// Milliseconds since 1970.
    pub started_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub start_ticks: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Request {
    Status,
    /// SIGTERM to the tree, and SIGKILL after the grace period. Said again, the shorter rest counts.
    Stop {
        grace_ms: u64,
    },
    Kill,
    /// The lease lasts until then, if that is later than what was said before.
    Lease {
        lease: Lease,
    },
    /// Answered when the life has ended.
    Wait,
    /// Runs a command inside: a health check.
    Check {
        command: String,
        timeout_ms: u64,
    },
    /// From the answer on, the connection carries frames.
    Attach,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Response {
    Alive {
        attempt: u32,
        life: Life,
    },
    Done,
    Ended {
        exit: Exit,
    },
    Checked {
        /// `None`: it passed.
        failure: Option<String>,
    },
    Refused {
        reason: String,
    },
}

/// How a life ended: the content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub attempt: u32,
    pub how: How,
    /// The kernel ended something of it for want of memory below its limit.
    #[serde(default)]
    pub out_of_memory: Option<u64>,
    /// The agent asked for the end.
    #[serde(default)]
    pub asked: bool,
    #[serde(default)]
    pub timed_out: bool,
    /// Nobody extended its lease.
    #[serde(default)]
    pub lease_over: bool,
    /// Milliseconds since 1970.
    pub at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum How {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// It did not get so far as to run the command.
    NotStarted {
        reason: String,
    },
    /// The shim was killed before it could see the end; the tree went with it.
    Unseen,
}

impl Exit {
    /// In words, for people.
    pub fn describe(&self) -> String {
        if let Some(limit) = self.out_of_memory
            && !matches!(self.how, How::Exited { code: 0 })
        {
            return format!("killed: used more than its memory limit of {}", megabytes(limit));
        }
        if self.lease_over {
            return "stopped: no server was reached for as long as an exclusive instance may live without one".to_owned();
        }
        match &self.how {
            How::Exited { code: 0 } => "exited with code 0".to_owned(),
            How::Exited { code: 127 } => {
                "exited with code 127: the command, or something it calls, was not found".to_owned()
            }
            How::Exited { code: 126 } => {
                "exited with code 126: the command, or something it calls, is not executable".to_owned()
            }
            How::Exited { code } => format!("exited with code {code}"),
            How::Signaled { signal } => format!("killed by signal {signal}{}", signal_name(*signal)),
            How::NotStarted { reason } => reason.clone(),
            How::Unseen => "ended unseen: its shim was killed, or the machine went down".to_owned(),
        }
    }

    /// The code that a shell would show.
    pub fn shell_code(&self) -> Option<i32> {
        match self.how {
            How::Exited { code } => Some(code),
            How::Signaled { signal } => Some(128 + signal),
            How::NotStarted { .. } | How::Unseen => None,
        }
    }

    /// The command can't be executed; a second attempt would end the same way.
    pub fn is_not_executable(&self) -> bool {
        matches!(self.how, How::Exited { code: 126 | 127 })
    }
}

fn megabytes(bytes: u64) -> String {
    if bytes.is_multiple_of(1_000_000) {
        format!("{} MB", bytes / 1_000_000)
    } else {
        format!("{} MiB", bytes / (1024 * 1024))
    }
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map(|s| format!(" ({})", s.as_str())).unwrap_or_default()
}
