//! Processes as the kernel shows them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::wait::eventually;

/// One life of a process: pids are used again, start times with them are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Life {
    pub pid: u32,
    pub started: u64,
}

/// `None` when there is no such process, or only its remains that its parent has not read.
pub fn life(pid: u32) -> Option<Life> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows its last parenthesis is well-formed.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    Some(Life { pid, started: fields.get(19)?.parse().ok()? })
}

impl Life {
    pub fn goes_on(self) -> bool {
        life(self.pid) == Some(self)
    }
}

/// Sends a signal to one process; one that is gone gets none.
pub fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("the kernel's pids are positive i32");
    assert!(pid > 1, "no test signals init or a group");
    #[allow(unsafe_code)]
    // SAFETY: kill takes two integers and touches no memory of ours.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// Makes it hang: it is there, and does nothing.
pub fn freeze(pid: u32) {
    signal(pid, libc::SIGSTOP);
}

pub fn kill_9(pid: u32) {
    signal(pid, libc::SIGKILL);
}

/// Waits until this life has ended.
pub fn wait_until_gone(life: Life) {
    eventually(&format!("process {} is gone", life.pid), || {
        if life.goes_on() { Err(describe(life.pid)) } else { Ok(()) }
    });
}

/// Every process that has to do with a directory: its command line, environment, root or working directory names it.
pub fn concerned_with(directory: &Path) -> Vec<Life> {
    let own = std::process::id();
    all().into_iter().filter(|life| life.pid != own && names(life.pid, directory)).collect()
}

fn names(pid: u32, directory: &Path) -> bool {
    let needle = directory.as_os_str().as_bytes();
    let holds = |file: &str| {
        std::fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|text| text.windows(needle.len()).any(|part| part == needle))
    };
    let leads = |link: &str| {
        std::fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|to| to.starts_with(directory))
    };
    holds("cmdline") || holds("environ") || leads("cwd") || leads("root")
}

/// Every process that this user may see.
pub fn all() -> Vec<Life> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(life)
        .collect()
}

pub fn children(pid: u32) -> Vec<Life> {
    all().into_iter().filter(|life| parent(life.pid) == Some(pid)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Its command line, for messages.
pub fn describe(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> =
        line.split(|&b| b == 0).map(|word| OsStr::from_bytes(word).to_string_lossy()).collect();
    format!("process {pid} `{}`", words.join(" ").trim())
}

/// Resident memory that is its own share of what is shared, in bytes; 0 when it can't be read.
pub fn proportional_memory(pid: u32) -> u64 {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { return 0 };
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Processor time that it has used, in clock ticks.
pub fn ticks(pid: u32) -> u64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0 };
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0 };
    let field =
        |n: usize| rest.split_whitespace().nth(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    field(11) + field(12)
}
