//! From a spec to a living tree.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, pipe2};

use rung_api::wire::Stream;

use crate::procfs;
use crate::shim::init::{self, CommandIo, GO, Given, Report};
use crate::shim::lease::Alarm;
use crate::shim::logger::Logger;
use crate::shim::protocol::{Io, Isolation, LIFE_FILE, LOCK_FILE, Life, Process, SOCKET, Spec};
use crate::shim::serve::{Output, Shim, Tree};
use crate::shim::{cgroup, kernel, logger};

/// One life at a time in a directory: `None` when another shim has it. Held until this process ends.
pub fn lock(directory: &Path) -> Result<Option<Flock<File>>, String> {
    let path = directory.join(LOCK_FILE);
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| format!("opening {}: {e}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(format!("locking {}: {error}", path.display())),
    }
}

/// What stays with the shim of the pipes (or the terminal) that the command gets.
struct Plumbing {
    command: Given,
    input: Option<OwnedFd>,
    outputs: Vec<Output>,
    /// Brings the shim's end of a terminal.
    terminal: Option<UnixStream>,
}

pub fn start(spec: Spec) -> Result<(Shim, Life), String> {
    let _ = prctl::set_name(c"rung-shim");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    std::env::set_current_dir(&spec.directory)
        .map_err(|e| format!("entering {}: {e}", spec.directory.display()))?;
    fs::create_dir_all(&spec.logs).map_err(|e| format!("making {}: {e}", spec.logs.display()))?;
    let mut logger = Logger::new(&spec.logs);
    let signals = watch_signals().map_err(|e| format!("watching for signals: {e}"))?;
    let listener = listen().map_err(|e| format!("listening on {SOCKET}: {e}"))?;
    let mut alarm = Alarm::new(spec.lease).map_err(|e| format!("setting the alarm of its lease: {e}"))?;
    if alarm.is_over().is_some() {
        return Err("its lease is over already".to_owned());
    }
    let plumbing = plumb(&spec).map_err(|e| format!("making pipes: {e}"))?;
    enter_namespaces(spec.isolation)?;
    // Whatever outlives the init without a namespace comes to this process, which sweeps it.
    prctl::set_child_subreaper(true).map_err(|e| format!("becoming a subreaper: {e}"))?;

    let (from_shim, mut control) = pipe().map_err(|e| format!("making pipes: {e}"))?;
    let (report, to_shim) = pipe().map_err(|e| format!("making pipes: {e}"))?;
    let Plumbing { command, mut input, mut outputs, terminal } = plumbing;
    let init = match kernel::fork().map_err(|e| format!("starting the init: {e}"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // The shim's ends of the pipes must be the shim's alone, or their closing would not be seen.
            drop((control, report, listener, signals, alarm, input, outputs, terminal));
            // The agent waits for the end of the shim's standard output, which this process has a copy of.
            let _ = leave_standard_streams();
            init::main(&spec, from_shim.into(), to_shim.into(), command)
        }
    };
    drop((from_shim, to_shim, command));
    let pidfd = kernel::pidfd_open(init).map_err(|e| format!("opening the init: {e}"))?;
    let mut report = BufReader::new(report);
    let begun = cgroup::ensure(&spec.limits, init)
        .map_err(|e| format!("setting the limits: {e}"))
        .and_then(|()| spec.once.as_deref().map_or(Ok(()), begin_once))
        .and_then(|()| control.write_all(&[GO]).map_err(|e| format!("starting the init: {e}")))
        .and_then(|()| await_start(&mut report))
        .and_then(|()| match &terminal {
            Some(socket) => take_terminal(socket, &mut input, &mut outputs)
                .map_err(|e| format!("taking the terminal: {e}")),
            None => Ok(()),
        });
    if let Err(reason) = begun {
        let _ = kernel::pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(init, None);
        cgroup::remove(&spec.limits);
        logger.say(&reason);
        return Err(reason);
    }
    logger.say(&rung_api::wire::said_at_start(spec.attempt));
    let life = describe_life(init);
    // Only a hint for an agent that finds the shim dead; the socket tells the same while it lives.
    let _ = fs::write(LIFE_FILE, serde_json::to_vec(&life).expect("a life serializes"));
    let tree = Tree { life: life.clone(), init, pidfd, control, report, input, outputs };
    Ok((Shim::new(spec, tree, alarm, logger, signals, listener), life))
}

fn begin_once(mark: &Path) -> Result<(), String> {
    match fs::OpenOptions::new().write(true).create_new(true).open(mark) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err("it was begun before".to_owned())
        }
        Err(error) => Err(format!("making {}: {error}", mark.display())),
    }
}

fn watch_signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_block()?;
    ignore_hangup()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

#[allow(unsafe_code)]
fn ignore_hangup() -> nix::Result<()> {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGHUP, SigHandler::SigIgn) }.map(drop)
}

/// By its bare name: the working directory is the life's, and long paths do not fit into a socket's address.
fn listen() -> std::io::Result<UnixListener> {
    let _ = fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET)?;
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn pipe() -> std::io::Result<(File, File)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

pub fn set_nonblocking(fd: &impl AsFd) -> std::io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn plumb(spec: &Spec) -> std::io::Result<Plumbing> {
    let plumbing = match spec.io {
        Io::Terminal { rows, columns } => {
            let (ours, shim) = UnixStream::pair()?;
            let command = Given::Terminal { rows, columns, shim };
            Plumbing { command, input: None, outputs: Vec::new(), terminal: Some(ours) }
        }
        Io::Attached => {
            let (stdin, input) = pipe()?;
            pipes(stdin.into(), Some(input.into()))?
        }
        Io::Logs => pipes(File::open("/dev/null")?.into(), None)?,
    };
    for fd in plumbing.outputs.iter().map(|output| &output.fd).chain(&plumbing.input) {
        set_nonblocking(fd)?;
    }
    Ok(plumbing)
}

fn pipes(stdin: OwnedFd, input: Option<OwnedFd>) -> std::io::Result<Plumbing> {
    let (out, stdout) = pipe()?;
    let (err, stderr) = pipe()?;
    let outputs = vec![
        Output { stream: Stream::Stdout, fd: out.into(), ended: false },
        Output { stream: Stream::Stderr, fd: err.into(), ended: false },
    ];
    let command = CommandIo { stdin, stdout: stdout.into(), stderr: stderr.into(), terminal: false };
    Ok(Plumbing { command: Given::Io(command), input, outputs, terminal: None })
}

/// The init has sent it before it said that the command was started.
fn take_terminal(
    socket: &UnixStream,
    input: &mut Option<OwnedFd>,
    outputs: &mut Vec<Output>,
) -> std::io::Result<()> {
    let terminal = kernel::receive_descriptor(socket)?;
    set_nonblocking(&terminal)?;
    *input = Some(terminal.try_clone()?);
    outputs.push(Output { stream: Stream::Stdout, fd: terminal, ended: false });
    Ok(())
}

/// The children of this process are born in a new PID namespace; the first of them is its init.
fn enter_namespaces(isolation: Isolation) -> Result<(), String> {
    match isolation {
        Isolation::Plain => return Ok(()),
        Isolation::OwnUser { .. } => {}
        Isolation::UserNamespace => {
            let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
            unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| format!("making a user namespace: {e}"))?;
            let maps = [
                ("setgroups", "deny".to_owned()),
                ("uid_map", format!("{uid} {uid} 1")),
                ("gid_map", format!("{gid} {gid} 1")),
            ];
            for (name, content) in maps {
                fs::write(format!("/proc/self/{name}"), content)
                    .map_err(|e| format!("mapping the user in its namespace ({name}): {e}"))?;
            }
        }
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(|e| format!("making a PID namespace: {e}"))
}

fn await_start(report: &mut BufReader<File>) -> Result<(), String> {
    let mut line = String::new();
    let _ = report.read_line(&mut line);
    match serde_json::from_slice(line.as_bytes()) {
        Ok(Report::Started) => Ok(()),
        Ok(Report::Failed { reason }) => Err(reason),
        Ok(Report::Ended(_)) | Err(_) => {
            Err("the init was killed before it could start the command".to_owned())
        }
    }
}

fn describe_life(init: Pid) -> Life {
    let init = init.as_raw() as u32;
    let identify = |pid| procfs::identify(pid).unwrap_or(Process { pid, start_ticks: 0 });
    Life {
        boot: procfs::boot_id(),
        shim: identify(std::process::id()),
        init: identify(init),
        main: procfs::first_child(init).unwrap_or(init),
        started_ms: logger::now_micros() / 1000,
    }
}

pub fn leave_standard_streams() -> std::io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
