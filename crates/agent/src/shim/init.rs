//! The init of one life: the first process of its PID namespace. It makes the sandbox, starts the command and reaps.
//!
//! When it ends, the kernel ends everything in the namespace; it ends when the command does, and when the shim does.
//! Without a PID namespace it adopts what the command leaves behind and sweeps it before it ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, execve, setgroups, setresgid, setresuid, setsid};

use crate::procfs;
use crate::shim::protocol::{How, Isolation, Spec};
use crate::shim::sandbox;
use crate::shim::{filter, kernel};

/// From the shim to the init: begin, the shim has put you into your cgroups.
pub const GO: u8 = b'G';
/// From the shim to the init: SIGTERM to everything, and the command's end is not yet the end.
pub const TERMINATE: u8 = b'T';

/// What the command gets as its input and outputs.
#[derive(Debug)]
pub struct CommandIo {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub terminal: bool,
}

/// What the init is handed for the command.
#[derive(Debug)]
pub enum Given {
    Io(CommandIo),
    /// A terminal is made inside, where its device has a name: `tty` and all that ask for it find it. The shim gets the
    /// other end through the socket.
    Terminal {
        rows: u16,
        columns: u16,
        shim: UnixStream,
    },
}

/// From the init to the shim, a JSON object a line.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Started,
    Failed { reason: String },
    Ended(How),
}

/// Runs in the forked child until the life ends.
pub fn main(spec: &Spec, control: OwnedFd, report: OwnedFd, given: Given) -> ! {
    let mut report = std::fs::File::from(report);
    let mut control = std::fs::File::from(control);
    let code = match live(spec, &mut control, &mut report, given) {
        Ok(()) => 0,
        Err(reason) => {
            say(&mut report, &Report::Failed { reason });
            1
        }
    };
    kernel::exit_now(code)
}

fn say(report: &mut std::fs::File, what: &Report) {
    let mut line = serde_json::to_vec(what).expect("reports serialize");
    line.push(b'\n');
    // The shim is gone when this fails, and this process is about to follow it.
    let _ = report.write_all(&line);
}

fn live(
    spec: &Spec,
    control: &mut std::fs::File,
    report: &mut std::fs::File,
    given: Given,
) -> Result<(), String> {
    let _ = prctl::set_name(c"rung-init");
    match spec.isolation {
        // Without a namespace this process must live to sweep: it sees the shim's end by the closed pipe.
        Isolation::Plain => prctl::set_child_subreaper(true),
        Isolation::OwnUser { .. } | Isolation::UserNamespace => prctl::set_pdeathsig(Signal::SIGKILL),
    }
    .map_err(|e| format!("tying the instance to its shim: {e}"))?;
    // A shim that died before the line above closes the pipe.
    let mut go = [0];
    if control.read_exact(&mut go).is_err() || go[0] != GO {
        kernel::exit_now(1);
    }
    if spec.isolation != Isolation::Plain {
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)
            .map_err(|e| format!("making a mount namespace: {e}"))?;
        sandbox::enter(spec).map_err(|e| format!("making the sandbox: {e}{}", because(&e)))?;
    }
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(|e| format!("blocking SIGCHLD: {e}"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| format!("watching for SIGCHLD: {e}"))?;
    let io = given.resolve().map_err(|e| format!("making a terminal: {e}"))?;
    let main = start(spec, &spec.command, io)?;
    say(report, &Report::Started);
    let how = Reaper { spec, main, stopping: false }.run(control, &signals);
    say(report, &Report::Ended(how));
    Ok(())
}

impl Given {
    fn resolve(self) -> std::io::Result<CommandIo> {
        let (rows, columns, shim) = match self {
            Self::Io(io) => return Ok(io),
            Self::Terminal { rows, columns, shim } => (rows, columns, shim),
        };
        let pty = nix::pty::openpty(None, None)?;
        kernel::resize_terminal(&pty.master, rows, columns)?;
        kernel::send_descriptor(&shim, &pty.master)?;
        let (stdin, stdout) = (pty.slave.try_clone()?, pty.slave.try_clone()?);
        Ok(CommandIo { stdin, stdout, stderr: pty.slave, terminal: true })
    }
}

fn because(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}

/// Forks the command.
fn start(spec: &Spec, command: &str, io: CommandIo) -> Result<Pid, String> {
    match kernel::fork().map_err(|e| format!("starting the command: {e}"))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => become_command(spec, command, io),
    }
}

struct Reaper<'a> {
    spec: &'a Spec,
    main: Pid,
    stopping: bool,
}

impl Reaper<'_> {
    fn run(&mut self, control: &mut std::fs::File, signals: &SignalFd) -> How {
        let mut ended = None;
        loop {
            if let Some(how) = self.reap(&mut ended) {
                return how;
            }
            let _ = signals.read_signal();
            let mut fds = [
                PollFd::new(control.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            let _ = poll(&mut fds, PollTimeout::NONE);
            if fds[0].any().unwrap_or(false) {
                let mut byte = [0];
                match control.read(&mut byte) {
                    Ok(1) if byte[0] == TERMINATE => self.terminate(),
                    // The shim is gone.
                    Ok(0) => {
                        self.sweep();
                        return How::Unseen;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Collects what has ended; answers when the life is over. While it is being stopped the rest of the tree may
    /// outlive the command: a shell dies of SIGTERM at once, the server that it started drains first.
    fn reap(&self, ended: &mut Option<How>) -> Option<How> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.main => *ended = Some(How::Exited { code }),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.main => {
                    *ended = Some(How::Signaled { signal: signal as i32 });
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => {}
                // No children are left.
                Err(_) => return Some(ended.take().unwrap_or(How::Unseen)),
            }
        }
        if self.stopping {
            return None;
        }
        let how = ended.take()?;
        self.sweep();
        Some(how)
    }

    fn terminate(&mut self) {
        self.stopping = true;
        match self.spec.isolation {
            // Every process of this namespace but this one: exact, whatever pids the machine reuses.
            Isolation::OwnUser { .. } | Isolation::UserNamespace => {
                let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
            }
            Isolation::Plain => procfs::signal_descendants(Pid::this(), Signal::SIGTERM),
        }
    }

    /// In a namespace the kernel does it, and better.
    fn sweep(&self) {
        if self.spec.isolation == Isolation::Plain {
            procfs::kill_descendants(Pid::this());
        }
    }
}

/// Turns this process into the command: own session, no rights, a clean environment.
pub fn become_command(spec: &Spec, command: &str, io: CommandIo) -> ! {
    let error = match prepare_command(spec, io) {
        Ok(()) => exec(command, &spec.env),
        Err(error) => error,
    };
    // Its standard error is the instance's by now, or /dev/null's.
    // It goes to the instance's log; without one there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "rung: starting the command: {error}");
    kernel::exit_now(126)
}

fn exec(command: &str, env: &BTreeMap<String, String>) -> std::io::Error {
    // Zero bytes can't be in an environment; the app file's parser refuses them, this drops them.
    let env: Vec<CString> =
        env.iter().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect();
    let Ok(command) = CString::new(command) else {
        return std::io::Error::other("the command has a zero byte in it");
    };
    let never: Result<Infallible, _> = execve(c"/bin/sh", &[c"sh", c"-c", command.as_c_str()], &env);
    match never {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

fn prepare_command(spec: &Spec, io: CommandIo) -> std::io::Result<()> {
    setsid()?;
    if io.terminal {
        kernel::take_terminal(io.stdin.as_fd())?;
    }
    nix::unistd::dup2_stdin(&io.stdin)?;
    nix::unistd::dup2_stdout(&io.stdout)?;
    nix::unistd::dup2_stderr(&io.stderr)?;
    kernel::close_on_exec_from(3)?;
    match spec.isolation {
        Isolation::OwnUser { uid, gid } => {
            if io.terminal {
                // So that programs can open /dev/tty and the device by its name.
                std::os::unix::fs::fchown(&io.stdin, Some(uid), Some(gid))?;
            } else {
                open_to_user(&io);
            }
            kernel::drop_bounding_set()?;
            setgroups(&[])?;
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
        }
        Isolation::UserNamespace => kernel::drop_bounding_set()?,
        Isolation::Plain => {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            std::env::set_current_dir(&spec.tree)?;
        }
    }
    prctl::set_no_new_privs()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    kernel::default_signals();
    filter::put_on()
}

/// `/dev/stderr` and its like open the pipe again, which asks for its mode: nginx's `error_log /dev/stderr`.
/// Pipes only: a health check's output is the machine's own `/dev/null`, whose mode is nobody's to change.
fn open_to_user(io: &CommandIo) {
    for fd in [&io.stdout, &io.stderr] {
        let Ok(file) = fd.try_clone().map(std::fs::File::from) else { continue };
        if file.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
            let _ = file.set_permissions(std::fs::Permissions::from_mode(0o622));
        }
    }
}
