//! The shim's loop: output to the logs, requests from the agent, the end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use rung_api::attach::Frame;
use rung_api::wire::Stream;

use crate::procfs;
use crate::shim::attach::{Attachment, output_frame};
use crate::shim::client::{Client, Mode, PENDING_MAX, Wish};
use crate::shim::complaint::{Complained, SAID_MAX};
use crate::shim::init::{CommandIo, Report, TERMINATE, become_command};
use crate::shim::lease::Alarm;
use crate::shim::logger::{self, Logger};
use crate::shim::protocol::{EXIT_FILE, Exit, How, Io, Isolation, Life, Request, Response, SOCKET, Spec};
use crate::shim::start::set_nonblocking;
use crate::shim::{APP, cgroup, kernel, write_durably};

/// Large enough that 100 MB/s are few calls, small enough for a shim of a megabyte.
const BUFFER: usize = 64 * 1024;
/// When the machine is shut down every process gets SIGTERM; so long a shim lets its tree end in order.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// A one-off's output waits so long for the person who asked for it.
const ATTACH_WAIT: Duration = Duration::from_secs(10);
/// Answers to clients that read slowly wait so long at the end.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Output {
    pub stream: Stream,
    pub fd: OwnedFd,
    pub ended: bool,
}

/// A health check that runs inside.
#[derive(Debug)]
struct Check {
    pid: Pid,
    pidfd: OwnedFd,
    until: Instant,
    timed_out: bool,
    client: u64,
    /// `None` once it was read to its end.
    output: Option<OwnedFd>,
    said: Vec<u8>,
}

/// What was started, and the shim's ends of it.
#[derive(Debug)]
pub struct Tree {
    pub life: Life,
    pub init: Pid,
    pub pidfd: OwnedFd,
    pub control: fs::File,
    pub report: BufReader<fs::File>,
    pub input: Option<OwnedFd>,
    pub outputs: Vec<Output>,
}

#[derive(Debug)]
pub struct Shim {
    spec: Spec,
    life: Life,
    logger: Logger,
    signals: SignalFd,
    listener: UnixListener,
    /// `None` once it was collected.
    init: Option<Pid>,
    pidfd: OwnedFd,
    control: fs::File,
    report: BufReader<fs::File>,
    input: Option<OwnedFd>,
    outputs: Vec<Output>,
    /// The life may not take longer.
    time_limit: Option<Instant>,
    alarm: Alarm,
    lease_over: bool,
    /// The end of the grace period.
    kill_at: Option<Instant>,
    began: Instant,
    attachment: Attachment,
    clients: Vec<(u64, Client)>,
    clients_seen: u64,
    checks: Vec<Check>,
    complained: Complained,
    asked: bool,
    timed_out: bool,
    ended: Option<Exit>,
    buffer: Vec<u8>,
}

enum Source {
    Signals,
    Lease,
    Listener,
    Output(usize),
    Input,
    Client(u64),
    Check(Pid),
}

impl Shim {
    pub fn new(
        spec: Spec,
        tree: Tree,
        alarm: Alarm,
        logger: Logger,
        signals: SignalFd,
        listener: UnixListener,
    ) -> Self {
        let time_limit = spec.time_limit_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        Self {
            spec,
            life: tree.life,
            logger,
            signals,
            listener,
            init: Some(tree.init),
            pidfd: tree.pidfd,
            control: tree.control,
            report: tree.report,
            input: tree.input,
            outputs: tree.outputs,
            time_limit,
            alarm,
            lease_over: false,
            kill_at: None,
            began: Instant::now(),
            attachment: Attachment::default(),
            clients: Vec::new(),
            clients_seen: 0,
            checks: Vec::new(),
            complained: Complained::default(),
            asked: false,
            timed_out: false,
            ended: None,
            buffer: vec![0; BUFFER],
        }
    }

    pub fn serve(mut self) {
        while self.init.is_some() {
            self.turn();
        }
        let exit = self.conclude();
        self.ended = Some(exit.clone());
        self.say_farewell(&exit);
        let _ = fs::remove_file(SOCKET);
    }

    fn turn(&mut self) {
        let ready = self.wait();
        let now = Instant::now();
        for source in ready {
            match source {
                Source::Signals => self.on_signals(),
                Source::Lease => self.on_lease(),
                Source::Listener => self.accept(),
                Source::Output(index) => self.take_output(index),
                Source::Input => self.attachment.write(&mut self.input),
                Source::Client(id) => self.serve_client(id),
                Source::Check(pid) => self.hear_check(pid),
            }
        }
        self.clients.retain(|(_, client)| client.open);
        self.outputs.retain(|output| !output.ended);
        self.on_time(now);
    }

    fn wait(&mut self) -> Vec<Source> {
        let timeout = self.next_wake().map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut sources = vec![Source::Signals, Source::Listener, Source::Lease];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.alarm.fd(), PollFlags::POLLIN),
        ];
        if self.may_take_output() {
            for (index, output) in self.outputs.iter().enumerate() {
                sources.push(Source::Output(index));
                fds.push(PollFd::new(output.fd.as_fd(), PollFlags::POLLIN));
            }
        }
        if let Some(input) = self.input.as_ref().filter(|_| self.attachment.wants_to_write()) {
            sources.push(Source::Input);
            fds.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
        }
        for (id, client) in &self.clients {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, !(client.is_attached() && self.attachment.is_full()));
            events.set(PollFlags::POLLOUT, client.pending() > 0);
            sources.push(Source::Client(*id));
            fds.push(PollFd::new(client.stream.as_fd(), events));
        }
        for check in &self.checks {
            if let Some(output) = &check.output {
                sources.push(Source::Check(check.pid));
                fds.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
            }
        }
        // Interrupted or not: what is ready is looked at, and the loop comes round again.
        let _ = poll(&mut fds, timeout);
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        sources.into_iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|(source, _)| source).collect()
    }

    fn next_wake(&self) -> Option<Instant> {
        let checks = self.checks.iter().filter(|check| !check.timed_out).map(|check| check.until);
        let attach = self.waits_for_attach().then(|| self.began + ATTACH_WAIT);
        [self.time_limit, self.kill_at, self.logger.wake_at(), attach]
            .into_iter()
            .flatten()
            .chain(checks)
            .min()
    }

    fn on_time(&mut self, now: Instant) {
        self.logger.tick(now);
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            self.logger.say("the grace period is over; killed");
            self.kill();
        }
        if self.time_limit.is_some_and(|at| now >= at) {
            self.time_limit = None;
            self.timed_out = true;
            self.logger.say("the time is over; killed");
            self.kill();
        }
        for check in self.checks.iter_mut().filter(|check| !check.timed_out && now >= check.until) {
            check.timed_out = true;
            let _ = kernel::pidfd_signal(check.pidfd.as_fd(), Signal::SIGKILL);
        }
    }

    fn kill(&mut self) {
        let _ = kernel::pidfd_signal(self.pidfd.as_fd(), Signal::SIGKILL);
        if self.spec.isolation == Isolation::Plain {
            procfs::signal_descendants(Pid::this(), Signal::SIGKILL);
        }
    }

    fn stop(&mut self, grace: Duration) {
        self.asked = true;
        let kill_at = Instant::now() + grace;
        if self.kill_at.is_some_and(|at| at <= kill_at) {
            return;
        }
        let first = self.kill_at.is_none();
        self.kill_at = Some(kill_at);
        if first {
            // An init that is gone needs no word.
            let _ = self.control.write_all(&[TERMINATE]);
        }
    }

    /// Another one may be started elsewhere soon.
    fn on_lease(&mut self) {
        if let Some(grace) = self.alarm.is_over() {
            self.lease_over = true;
            self.logger.say("no server was reached: stopped, for another instance may be started elsewhere");
            self.stop(grace);
        }
    }

    fn on_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                self.logger.say("the machine, or somebody, asked the shim to end");
                self.stop(SHUTDOWN_GRACE);
            }
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(status) => self.on_child(status),
                Err(_) => {}
            }
        }
    }

    fn on_child(&mut self, status: WaitStatus) {
        if status.pid().is_some() && status.pid() == self.init {
            self.init = None;
            return;
        }
        let Some(at) = self.checks.iter().position(|check| Some(check.pid) == status.pid()) else { return };
        let pid = self.checks[at].pid;
        self.hear_check(pid);
        let check = self.checks.swap_remove(at);
        let failure = match status {
            _ if check.timed_out => Some("took too long".to_owned()),
            WaitStatus::Exited(_, 0) => None,
            WaitStatus::Exited(_, code) => Some(format!("exited with code {code}")),
            WaitStatus::Signaled(_, signal, _) => Some(format!("was killed by {signal}")),
            _ => Some("ended in an unknown way".to_owned()),
        };
        if failure.is_some() {
            self.complained.tell(&mut self.logger, &check.said);
        }
        if let Some((_, client)) = self.clients.iter_mut().find(|(id, _)| *id == check.client) {
            client.answer(&Response::Checked { failure });
        }
    }

    fn waits_for_attach(&self) -> bool {
        self.spec.io != Io::Logs && !self.attachment.was_attached && self.began.elapsed() < ATTACH_WAIT
    }

    /// Output waits in the pipe while the one who is attached, or is about to, has not read what came before.
    fn may_take_output(&self) -> bool {
        let slow = self.clients.iter().any(|(_, c)| c.is_attached() && c.pending() > PENDING_MAX);
        let full = self.waits_for_attach() && self.attachment.backlog.len() > PENDING_MAX;
        !slow && !full
    }

    fn take_output(&mut self, index: usize) {
        // A terminal that was closed takes its outputs along.
        let Some(output) = self.outputs.get_mut(index) else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        match nix::unistd::read(&output.fd, &mut buffer) {
            Ok(0) => output.ended = true,
            Ok(count) => {
                let stream = output.stream;
                self.logger.take(stream, &buffer[..count]);
                self.pass_on(stream, &buffer[..count]);
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            // A terminal whose last user is gone answers EIO.
            Err(_) => output.ended = true,
        }
        self.buffer = buffer;
    }

    fn pass_on(&mut self, stream: Stream, bytes: &[u8]) {
        if self.spec.io == Io::Logs {
            return;
        }
        let frame = output_frame(stream, bytes);
        if self.waits_for_attach() {
            self.attachment.backlog.extend_from_slice(&frame);
        }
        for (_, client) in self.clients.iter_mut().filter(|(_, client)| client.is_attached()) {
            client.send(&frame);
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Ok(client) = Client::new(stream) {
                self.clients_seen += 1;
                self.clients.push((self.clients_seen, client));
            }
        }
    }

    fn serve_client(&mut self, id: u64) {
        let Some(at) = self.clients.iter().position(|(other, _)| *other == id) else { return };
        let (_, mut client) = self.clients.swap_remove(at);
        client.flush();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut wishes = client.receive(&mut buffer);
        self.buffer = buffer;
        while !wishes.is_empty() {
            let mut more = Vec::new();
            for wish in wishes {
                match wish {
                    Wish::Request(request) => more.extend(self.grant(id, &mut client, request)),
                    Wish::Frame(frame) => self.take_frame(frame),
                }
            }
            wishes = more;
        }
        if !client.open && client.is_attached() {
            self.on_detached();
        }
        self.clients.push((id, client));
    }

    fn grant(&mut self, id: u64, client: &mut Client, request: Request) -> Vec<Wish> {
        match request {
            Request::Status if self.ended.is_some() => client.mode = Mode::Waiting,
            Request::Status => {
                client.answer(&Response::Alive { attempt: self.spec.attempt, life: self.life.clone() });
            }
            Request::Stop { grace_ms } => {
                self.stop(Duration::from_millis(grace_ms));
                client.answer(&Response::Done);
            }
            Request::Kill => {
                self.asked = true;
                self.kill();
                client.answer(&Response::Done);
            }
            Request::Lease { lease } => {
                // What is being stopped is not saved by it.
                let set = if self.kill_at.is_some() { Ok(()) } else { self.alarm.set(lease) };
                client.answer(&match set {
                    Ok(()) => Response::Done,
                    Err(error) => Response::Refused { reason: format!("setting the alarm: {error}") },
                });
            }
            Request::Wait => client.mode = Mode::Waiting,
            Request::Check { command, timeout_ms } => {
                if let Err(error) = self.start_check(id, &command, Duration::from_millis(timeout_ms)) {
                    let failure = Some(format!("could not be started: {error}"));
                    client.answer(&Response::Checked { failure });
                }
            }
            Request::Attach if self.spec.io == Io::Logs => {
                client.answer(&Response::Refused { reason: "it was started without input".to_owned() });
            }
            Request::Attach => {
                client.answer(&Response::Done);
                self.attachment.was_attached = true;
                client.send(&std::mem::take(&mut self.attachment.backlog));
                return client.become_attached();
            }
        }
        Vec::new()
    }

    fn take_frame(&mut self, frame: Frame) {
        match frame {
            Frame::Stdin(bytes) => self.attachment.push_input(&bytes),
            // A terminal has no end of input, but a key for it.
            Frame::StdinEof if matches!(self.spec.io, Io::Terminal { .. }) => {
                self.attachment.push_input(&[4])
            }
            Frame::StdinEof => self.attachment.end_input(),
            Frame::Resize { rows, columns } => {
                if let (Io::Terminal { .. }, Some(terminal)) = (self.spec.io, &self.input) {
                    let _ = kernel::resize_terminal(terminal, rows, columns);
                }
            }
            Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) => {}
        }
        self.attachment.write(&mut self.input);
    }

    /// As when a terminal's window is closed: input ends, and what runs on a terminal is hung up.
    fn on_detached(&mut self) {
        match self.spec.io {
            Io::Terminal { .. } => {
                self.logger.say("the terminal was closed");
                self.input = None;
                self.outputs.clear();
            }
            Io::Attached => self.attachment.end_input(),
            Io::Logs => {}
        }
        self.attachment.write(&mut self.input);
    }

    /// Takes what a check has printed so far. Only its end is kept.
    fn hear_check(&mut self, pid: Pid) {
        let Some(check) = self.checks.iter_mut().find(|check| check.pid == pid) else { return };
        let Some(output) = &check.output else { return };
        match nix::unistd::read(output, &mut self.buffer) {
            Ok(0) => check.output = None,
            Ok(count) => {
                check.said.extend_from_slice(&self.buffer[..count]);
                let excess = check.said.len().saturating_sub(SAID_MAX);
                check.said.drain(..excess);
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(_) => check.output = None,
        }
    }

    fn start_check(&mut self, client: u64, command: &str, timeout: Duration) -> std::io::Result<()> {
        let (output, said) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&output)?;
        let stdin = fs::File::open("/dev/null")?.into();
        let io = CommandIo { stdin, stdout: said.try_clone()?, stderr: said, terminal: false };
        let namespace = match self.spec.isolation {
            Isolation::Plain => None,
            _ => Some(fs::File::open(format!("/proc/{}/ns/mnt", self.life.init.pid))?),
        };
        match kernel::fork()? {
            ForkResult::Parent { child } => {
                let pidfd = kernel::pidfd_open(child)?;
                let until = Instant::now() + timeout;
                let (output, said) = (Some(output), Vec::new());
                self.checks.push(Check { pid: child, pidfd, until, timed_out: false, client, output, said });
                Ok(())
            }
            ForkResult::Child => {
                // Born into the PID namespace already; its PID 1 adopts what the check leaves behind.
                let _ = cgroup::ensure(&self.spec.limits, Pid::from_raw(0));
                if let Some(namespace) = namespace
                    && (nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNS).is_err()
                        || std::env::set_current_dir(APP).is_err())
                {
                    kernel::exit_now(126);
                }
                become_command(&self.spec, command, io)
            }
        }
    }

    /// The tree is gone (or swept now): the last output, how it ended, the document that says so.
    fn conclude(&mut self) -> Exit {
        if self.spec.isolation == Isolation::Plain {
            procfs::kill_descendants(Pid::this());
        }
        self.drain_outputs();
        let how = self.read_how();
        let out_of_memory =
            self.spec.limits.memory_bytes.filter(|_| cgroup::ran_out_of_memory(&self.spec.limits));
        cgroup::remove(&self.spec.limits);
        let exit = Exit {
            attempt: self.spec.attempt,
            how,
            out_of_memory,
            asked: self.asked,
            timed_out: self.timed_out,
            lease_over: self.lease_over,
            at_ms: logger::now_micros() / 1000,
        };
        self.logger.finish();
        self.logger.say(&exit.describe());
        let bytes = serde_json::to_vec(&exit).expect("an exit serializes");
        if let Err(error) = write_durably(&self.spec.directory.join(Path::new(EXIT_FILE)), &bytes) {
            // Whoever listens is told all the same.
            self.logger.say(&format!("writing how it ended: {error}"));
        }
        exit
    }

    /// Reads every output until there is nothing more now. Bounded: somebody outside may hold the other end and write on.
    fn drain_outputs(&mut self) {
        const CHUNKS: usize = 1024;
        for index in 0..self.outputs.len() {
            for _ in 0..CHUNKS {
                let mut probe = [PollFd::new(self.outputs[index].fd.as_fd(), PollFlags::POLLIN)];
                if poll(&mut probe, PollTimeout::ZERO) != Ok(1) {
                    break;
                }
                self.take_output(index);
                if self.outputs[index].ended {
                    break;
                }
            }
        }
    }

    fn read_how(&mut self) -> How {
        let mut line = String::new();
        let _ = self.report.read_line(&mut line);
        match serde_json::from_slice(line.as_bytes()) {
            Ok(Report::Ended(how)) => how,
            Ok(Report::Failed { reason }) => How::NotStarted { reason },
            // The init was killed, and with it everything: by this shim, or by somebody else.
            Ok(Report::Started) | Err(_) => How::Signaled { signal: Signal::SIGKILL as i32 },
        }
    }

    fn say_farewell(&mut self, exit: &Exit) {
        let awaits_attach = self.spec.io != Io::Logs && !self.attachment.was_attached;
        let until = Instant::now() + if awaits_attach { ATTACH_WAIT } else { FAREWELL };
        self.outputs.clear();
        self.checks.clear();
        (self.time_limit, self.kill_at) = (None, Some(until));
        loop {
            for (_, client) in &mut self.clients {
                farewell(client, exit);
            }
            self.clients.retain(|(_, client)| client.open);
            let all_told = self.clients.iter().all(|(_, client)| client.pending() == 0);
            let attached = self.attachment.was_attached || !awaits_attach;
            if Instant::now() >= until || (all_told && attached) {
                return;
            }
            for source in self.wait() {
                match source {
                    Source::Listener => self.accept(),
                    Source::Client(id) => self.serve_client(id),
                    Source::Signals
                    | Source::Lease
                    | Source::Output(_)
                    | Source::Input
                    | Source::Check(_) => while let Ok(Some(_)) = self.signals.read_signal() {},
                }
            }
        }
    }
}

/// Tells a client of the end, in its own way, once.
fn farewell(client: &mut Client, exit: &Exit) {
    if std::mem::replace(&mut client.told_end, !matches!(client.mode, Mode::Requests)) {
        return;
    }
    match client.mode {
        Mode::Requests => {}
        Mode::Waiting => client.answer(&Response::Ended { exit: exit.clone() }),
        Mode::Attached(_) => client.send(&Frame::Exit(exit.shell_code().unwrap_or(1)).encode()),
    }
}
