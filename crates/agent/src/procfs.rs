//! What `/proc` tells: who a process is, who descends from whom, who listens where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::shim::kernel;
use crate::shim::protocol::Process;

/// Tells this boot of the machine from every other; pids and start ticks begin anew with each.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

struct Stat {
    parent: u32,
    start_ticks: u64,
    /// Dead, and waiting to be collected.
    zombie: bool,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, parentheses too.
    let rest = &text[text.rfind(')')? + 2..];
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
        zombie: matches!(fields.first(), Some(&"Z" | &"X")),
    })
}

/// The process that has this pid now.
pub fn identify(pid: u32) -> Option<Process> {
    Some(Process { pid, start_ticks: stat(pid)?.start_ticks })
}

pub fn is_alive(process: Process) -> bool {
    stat(process.pid).is_some_and(|stat| stat.start_ticks == process.start_ticks && !stat.zombie)
}

/// Signals exactly this process, or nobody.
pub fn signal(process: Process, signal: Signal) {
    let Ok(pidfd) = kernel::pidfd_open(Pid::from_raw(process.pid as i32)) else { return };
    // The handle is fixed now; only then is it sure whether it is the one that was meant.
    if is_alive(process) {
        let _ = kernel::pidfd_signal(pidfd.as_fd(), signal);
    }
}

/// The pids of all processes below this one, itself left out.
pub fn descendants(of: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in pids() {
        if let Some(stat) = stat(pid).filter(|stat| !stat.zombie) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut open = vec![of];
    while let Some(parent) = open.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            if found.insert(child) {
                open.push(child);
            }
        }
    }
    found
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The first child of a process: the command of an init.
pub fn first_child(of: u32) -> Option<u32> {
    let path = format!("/proc/{of}/task/{of}/children");
    match fs::read_to_string(path) {
        Ok(text) => text.split(' ').next()?.parse().ok(),
        // Not every kernel has that file.
        Err(_) => pids().find(|&pid| stat(pid).is_some_and(|stat| stat.parent == of)),
    }
}

pub fn signal_descendants(of: Pid, with: Signal) {
    for pid in descendants(of.as_raw() as u32) {
        if let Some(process) = identify(pid) {
            signal(process, with);
        }
    }
}

/// Kills until none is left: a process may fork while it is looked at. For subreapers, who get every orphan.
pub fn kill_descendants(of: Pid) {
    /// More rounds than any program but a fork bomb needs, which the limit on processes is for.
    const ROUNDS: u32 = 1000;
    for _ in 0..ROUNDS {
        signal_descendants(of, Signal::SIGKILL);
        while matches!(
            nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)),
            Ok(status) if status != nix::sys::wait::WaitStatus::StillAlive
        ) {}
        if descendants(of.as_raw() as u32).is_empty() {
            return;
        }
        std::thread::yield_now();
    }
}

/// A listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub address: SocketAddr,
    pub inode: u64,
}

pub fn listeners() -> Vec<Listener> {
    listeners_at("/proc/net").unwrap_or_default()
}

/// Of the network that this process sees, which a container has for its own. `None`: there is no such process, or it
/// can't be looked at.
pub fn listeners_seen_by(pid: u32) -> Option<Vec<Listener>> {
    listeners_at(&format!("/proc/{pid}/net"))
}

fn listeners_at(directory: &str) -> Option<Vec<Listener>> {
    // A kernel without IPv6 has the first of them only.
    let four = fs::read_to_string(format!("{directory}/tcp")).ok()?;
    let six = fs::read_to_string(format!("{directory}/tcp6")).unwrap_or_default();
    let of = |text: &str| text.lines().skip(1).filter_map(parse_listener).collect::<Vec<_>>();
    Some([of(&four), of(&six)].concat())
}

fn parse_listener(line: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let address = parse_address(address)?;
    Some(Listener {
        address: SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?),
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// Words of 32 bits in the machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<u8>> = text
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    let words = words?;
    if let Ok(four) = <[u8; 4]>::try_from(words.as_slice()) {
        return Some(Ipv4Addr::from(four).into());
    }
    let sixteen = <[u8; 16]>::try_from(words.as_slice()).ok()?;
    Some(Ipv6Addr::from(sixteen).to_canonical())
}

/// Inodes of the sockets that these processes hold.
pub fn sockets(pids: &BTreeSet<u32>) -> BTreeSet<u64> {
    let mut inodes = BTreeSet::new();
    for pid in pids {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for link in fds.filter_map(|fd| fs::read_link(fd.path()).ok()) {
            let inode: Option<u64> =
                link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inodes.extend(inode);
        }
    }
    inodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_with_its_owner() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let listener = listeners().into_iter().find(|l| l.address == address).expect("the listener is shown");
        let me = BTreeSet::from([std::process::id()]);
        assert!(sockets(&me).contains(&listener.inode), "its socket is not seen among this process's");
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_pid() {
        let me = identify(std::process::id()).unwrap();
        assert!(is_alive(me));
        assert!(!is_alive(Process { start_ticks: me.start_ticks + 1, ..me }));
    }
}
