//! Lives as processes of this machine, each under a shim: starting one, finding one again, talking to it.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{SpawnError, Status, TalkError, read_exit};
use crate::procfs;
use crate::shim::protocol::{Exit, How, LIFE_FILE, Lease, Life, Ready, Request, Response, SOCKET, Spec};
use crate::shim::{lock, shim_command};

/// A shim that does not answer in so long is stuck; a status costs it microseconds.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long a killed init may take until the kernel has ended its whole tree.
const TREE_END_WAIT: Duration = Duration::from_secs(10);
const TREE_END_POLL: Duration = Duration::from_millis(5);

#[derive(Debug, Clone)]
pub struct Processes {
    program: PathBuf,
}

impl Processes {
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Starts a life, or finds that it was started already.
    pub async fn spawn(&self, spec: &Spec) -> Result<Life, SpawnError> {
        let fail = |source| SpawnError::Shim { program: self.program.display().to_string(), source };
        let mut command = tokio::process::Command::from(shim_command(&self.program, &spec.name));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(fail)?;
        let text = serde_json::to_vec(spec).expect("a spec serializes");
        let mut stdin = child.stdin.take().expect("it was asked for");
        let stdout = child.stdout.take().expect("it was asked for");
        stdin.write_all(&text).await.map_err(fail)?;
        drop(stdin);
        let mut answer = Vec::new();
        BufReader::new(stdout).read_until(b'\n', &mut answer).await.map_err(fail)?;
        child.wait().await.map_err(fail)?;
        match serde_json::from_slice(&answer) {
            Ok(Ready::Started(life)) => Ok(life),
            Ok(Ready::Failed { reason }) => Err(SpawnError::Failed(reason)),
            Ok(Ready::AlreadyAlive) => match status(&spec.directory).await {
                Status::Alive(_) => read_life(&spec.directory).ok_or(SpawnError::Silent),
                Status::Ended(_) | Status::Lost => Err(SpawnError::Silent),
            },
            Err(_) => Err(SpawnError::Silent),
        }
    }
}

/// By the directory's descriptor: a socket's address holds 107 bytes, paths are longer.
async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let directory = std::fs::File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())).await
}

async fn send(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request).expect("requests serialize");
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn receive(stream: &mut BufReader<&mut UnixStream>) -> io::Result<Response> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::UnexpectedEof, error))
}

/// Waits until the shim of an ended life has said farewell: it stays a while for those who come to attach, and takes its
/// socket away when it goes.
pub async fn left(directory: &Path) {
    let socket = directory.join(SOCKET);
    while socket.exists() && connect(directory).await.is_ok() {
        tokio::time::sleep(TREE_END_POLL).await;
    }
}

async fn ask(directory: &Path, request: &Request, wait: Duration) -> Result<Response, TalkError> {
    let name = || directory.display().to_string();
    let talk = async {
        let mut stream = connect(directory).await?;
        send(&mut stream, request).await?;
        receive(&mut BufReader::new(&mut stream)).await
    };
    match tokio::time::timeout(wait, talk).await {
        Ok(Ok(Response::Refused { reason })) => Err(TalkError::Refused(reason)),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(source)) => Err(TalkError::Io { directory: name(), source }),
        Err(_) => Err(TalkError::Silent { directory: name() }),
    }
}

pub async fn status(directory: &Path) -> Status {
    let until = tokio::time::Instant::now() + ANSWER_WAIT;
    let mut looks = 0;
    // A shim that is just ending is seen the second time; one that has the lock and does not listen yet is on its way.
    while looks < 2 || (is_held(directory) && tokio::time::Instant::now() < until) {
        looks += 1;
        match ask(directory, &Request::Status, ANSWER_WAIT).await {
            Ok(Response::Alive { life, .. }) => return Status::Alive((&life).into()),
            Ok(Response::Ended { exit }) => return Status::Ended(exit),
            Err(TalkError::Silent { .. }) => {
                // Stopped or swapped out, and alive.
                if let Some(life) = read_life(directory) {
                    return Status::Alive((&life).into());
                }
            }
            Ok(_) | Err(_) => {}
        }
        if let Some(exit) = read_exit(directory) {
            return Status::Ended(exit);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Status::Lost
}

fn is_held(directory: &Path) -> bool {
    directory.exists() && matches!(lock(directory), Ok(None))
}

pub fn read_life(directory: &Path) -> Option<Life> {
    serde_json::from_slice(&std::fs::read(directory.join(LIFE_FILE)).ok()?).ok()
}

/// Waits until the life has ended, to its last process.
pub async fn ended(directory: &Path, attempt: u32) -> Exit {
    loop {
        let heard = async {
            let mut stream = connect(directory).await?;
            send(&mut stream, &Request::Wait).await?;
            receive(&mut BufReader::new(&mut stream)).await
        };
        if let Ok(Response::Ended { exit }) = heard.await {
            return exit;
        }
        match status(directory).await {
            Status::Ended(exit) => return exit,
            Status::Lost => {
                end_lost(directory).await;
                let at_ms = jiff::Timestamp::now().as_millisecond();
                let how = How::Unseen;
                return Exit {
                    attempt,
                    how,
                    out_of_memory: None,
                    asked: false,
                    timed_out: false,
                    lease_over: false,
                    at_ms,
                };
            }
            Status::Alive(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The shim is dead. Its init goes by itself; whoever starts anew must not be sooner.
pub async fn end_lost(directory: &Path) {
    let Some(life) = read_life(directory).filter(|life| life.boot == procfs::boot_id()) else { return };
    procfs::signal(life.init, Signal::SIGKILL);
    let until = tokio::time::Instant::now() + TREE_END_WAIT;
    while procfs::is_alive(life.init) && tokio::time::Instant::now() < until {
        tokio::time::sleep(TREE_END_POLL).await;
    }
}

pub async fn stop(directory: &Path, grace: Duration) -> Result<(), TalkError> {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    ask(directory, &Request::Stop { grace_ms }, ANSWER_WAIT).await.map(drop)
}

pub async fn lease(directory: &Path, lease: Lease) -> Result<(), TalkError> {
    ask(directory, &Request::Lease { lease }, ANSWER_WAIT).await.map(drop)
}

pub async fn kill(directory: &Path) -> Result<(), TalkError> {
    ask(directory, &Request::Kill, ANSWER_WAIT).await.map(drop)
}

/// Runs a command inside; the failure in words.
pub async fn check(directory: &Path, command: &str, timeout: Duration) -> Result<(), String> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Check { command: command.to_owned(), timeout_ms };
    match ask(directory, &request, timeout + ANSWER_WAIT).await {
        Ok(Response::Checked { failure: None }) => Ok(()),
        Ok(Response::Checked { failure: Some(failure) }) => Err(failure),
        Ok(_) => Err("shim answered something else".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A connection that carries frames from now on.
pub async fn attach(directory: &Path) -> Result<UnixStream, TalkError> {
    let io_error = |source| TalkError::Io { directory: directory.display().to_string(), source };
    let mut stream = connect(directory).await.map_err(io_error)?;
    send(&mut stream, &Request::Attach).await.map_err(io_error)?;
    // Byte by byte: what follows the line is frames, and belongs to the caller.
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.map_err(io_error)?);
    }
    match serde_json::from_slice(&line) {
        Ok(Response::Done) => Ok(stream),
        Ok(Response::Refused { reason }) => Err(TalkError::Refused(reason)),
        Ok(_) | Err(_) => Err(TalkError::Refused("it answered something else".to_owned())),
    }
}
