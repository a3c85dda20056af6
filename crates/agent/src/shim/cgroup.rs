//! The cgroups of one life: made and limited before the command starts, removed when the tree is gone.
//!
//! Version 1 has a directory for each controller, version 2 has one for all; which it is shows in the files that the
//! kernel puts there.

use std::fs;
use std::io;
use std::path::Path;

use nix::unistd::Pid;

use crate::shim::protocol::Limits;

/// The scheduler's period: the kernel's default, and short enough that a limited instance answers evenly.
const PERIOD_MICROS: u64 = 100_000;

/// Makes the cgroups, sets the limits and puts the process in; its children are born inside.
pub fn ensure(limits: &Limits, process: Pid) -> io::Result<()> {
    for path in &limits.cgroups {
        fs::create_dir_all(path)?;
        limit(path, limits)?;
        fs::write(path.join("cgroup.procs"), process.to_string())?;
    }
    Ok(())
}

fn limit(path: &Path, limits: &Limits) -> io::Result<()> {
    if let Some(bytes) = limits.memory_bytes {
        set(path, &["memory.limit_in_bytes", "memory.max"], &bytes.to_string())?;
        // An instance that swaps is slow for everybody; its end with a reason helps more. Not every kernel counts it.
        let _ = set(path, &["memory.memsw.limit_in_bytes"], &bytes.to_string());
        let _ = set(path, &["memory.swap.max"], "0");
        // Half a tree is of no use: the supervisor restarts the whole.
        let _ = set(path, &["memory.oom.group"], "1");
    }
    if let Some(millis) = limits.cpu_millis {
        let quota = u64::from(millis) * PERIOD_MICROS / 1000;
        set(path, &["cpu.cfs_quota_us"], &quota.max(1000).to_string())?;
        set(path, &["cpu.max"], &format!("{} {PERIOD_MICROS}", quota.max(1000)))?;
    }
    if let Some(processes) = limits.processes {
        set(path, &["pids.max"], &processes.to_string())?;
    }
    Ok(())
}

/// Writes whichever of the files this cgroup has.
fn set(path: &Path, names: &[&str], value: &str) -> io::Result<()> {
    for file in names.iter().map(|name| path.join(name)).filter(|file| file.exists()) {
        fs::write(file, value)?;
    }
    Ok(())
}

/// Whether the kernel ended a process for want of memory in one of the cgroups.
pub fn ran_out_of_memory(limits: &Limits) -> bool {
    limits.cgroups.iter().any(|path| {
        ["memory.oom_control", "memory.events"].iter().any(|name| {
            fs::read_to_string(path.join(name)).is_ok_and(|text| {
                let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                kills.is_some_and(|count| count.trim() != "0")
            })
        })
    })
}

/// Removes the cgroups of an ended life; what is still busy is swept by the agent later.
pub fn remove(limits: &Limits) {
    for path in &limits.cgroups {
        let _ = fs::remove_dir(path);
    }
}
