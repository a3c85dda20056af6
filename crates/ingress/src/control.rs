//! The control socket of a running ingress: who it is, its listening sockets, and the word to drain.
//!
//! A line of JSON each way: `{"command":"status"}`, `{"command":"listeners"}` and `{"command":"names"}` (the answer carries the
//! sockets), and `{"command":"drain"}`. The agent of this machine asks for `doors`, and lets one be opened (the question carries
//! the socket) or shut. The directory is its owner's alone, and so is the socket.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rung_model::{AppName, Generation};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};

use crate::doors;
use crate::sockets::{self, ShortPath};

const NAME: &str = "control.sock";
/// Requests and answers are some hundred bytes; the names of a machine's doors are some thousand such.
const LINE_MAX: usize = 1 << 20;
/// A living ingress answers within microseconds; a stopped one never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    command: Command,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    Status,
    Listeners,
    Names,
    Drain,
    /// By their names, with who calls by them.
    Doors,
    /// A copy of the socket of one.
    Door {
        name: String,
    },
    OpenDoor {
        name: String,
        app: AppName,
    },
    ShutDoor {
        name: String,
    },
}

/// What a running ingress says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub pid: u32,
    pub version: String,
    /// The name under which it polls the server.
    pub proxy: String,
    /// Every thread of it picks from it.
    pub generation: Generation,
    pub ready: bool,
    pub draining: bool,
    pub connections: u64,
    /// So many of its listening sockets, the first ones, are for calls of services.
    #[serde(default)]
    pub services: usize,
    /// So many of the last ones are for HTTPS.
    #[serde(default)]
    pub https: usize,
    /// So many after these are for other machines of the cluster.
    #[serde(default)]
    pub peers: usize,
    /// Where that was asked for: the doors by which containers call services, and the app of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub doors: BTreeMap<String, AppName>,
}

/// The serving side.
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// What the server answers with.
pub(crate) struct Facts {
    pub(crate) status: Box<dyn Fn() -> Status>,
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) names: Option<UdpSocket>,
    pub(crate) doors: watch::Sender<doors::Open>,
    pub(crate) drain: Notify,
}

impl Server {
    /// Takes the place of another ingress's socket; connections that it has already stay with it.
    pub(crate) fn bind(directory: &Path) -> io::Result<Self> {
        let own = format!("control.{}.sock", std::process::id());
        let short = ShortPath::new(directory, &own)?;
        // Left by a process that had this number before.
        let _ = std::fs::remove_file(short.path());
        let listener = UnixListener::bind(short.path())?;
        std::fs::set_permissions(short.path(), PermissionsExt::from_mode(0o600))?;
        let path = directory.join(NAME);
        let inode = std::fs::metadata(directory.join(&own))?.ino();
        std::fs::rename(directory.join(&own), &path)?;
        Ok(Self { listener, path, inode })
    }

    pub(crate) async fn run(&self, facts: Rc<Facts>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let facts = facts.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(error) = answer_all(&stream, &facts).await {
                            tracing::debug!(%error, "a control connection broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a control connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The next ingress may have put its own there already.
        if std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn answer_all(stream: &UnixStream, facts: &Facts) -> io::Result<()> {
    while let Some((line, mut received)) = read_line(stream).await? {
        let Request { command } = serde_json::from_slice(&line)?;
        let mut status = (facts.status)();
        let mut sockets: Vec<RawFd> = Vec::new();
        // Kept until it is sent: the door may be shut meanwhile.
        let mut door = None;
        match command {
            Command::Status => {}
            Command::Listeners => sockets = facts.listeners.iter().map(AsRawFd::as_raw_fd).collect(),
            Command::Names => sockets = facts.names.iter().map(AsRawFd::as_raw_fd).collect(),
            Command::Drain => facts.drain.notify_one(),
            Command::Doors => {
                let open = facts.doors.borrow();
                status.doors = open.iter().map(|(name, door)| (name.clone(), door.app.clone())).collect();
            }
            Command::Door { name } => {
                door = facts.doors.borrow().get(&name).cloned();
                sockets = door.iter().map(|door| door.socket.as_raw_fd()).collect();
            }
            Command::OpenDoor { name, app } => {
                let socket = received.pop().ok_or(io::ErrorKind::InvalidInput)?;
                doors::take(&facts.doors, name, app, socket)?;
            }
            Command::ShutDoor { name } => doors::shut(&facts.doors, &name),
        }
        let mut answer = serde_json::to_vec(&status).expect("the status serializes");
        answer.push(b'\n');
        write(stream, &answer, &sockets).await?;
        drop(door);
    }
    Ok(())
}

/// With what came along; `None` at the end.
async fn read_line(stream: &UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        if line.len() > LINE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
        }
        let mut bytes = [0; 1024];
        let receive = || sockets::receive_with(stream.as_raw_fd(), &mut bytes);
        let (count, more) = stream.async_io(Interest::READABLE, receive).await?;
        if count == 0 {
            return Ok(None);
        }
        line.extend_from_slice(&bytes[..count]);
        descriptors.extend(more);
    }
    Ok(Some((line, descriptors)))
}

async fn write(stream: &UnixStream, bytes: &[u8], sockets: &[i32]) -> io::Result<()> {
    let (mut sent, mut sockets) = (0, sockets);
    while sent < bytes.len() {
        sent += stream
            .async_io(Interest::WRITABLE, || sockets::send_with(stream.as_raw_fd(), &bytes[sent..], sockets))
            .await?;
        sockets = &[];
    }
    Ok(())
}

/// The asking side: a connection to the ingress that serves now. It stays with that process when another one takes
/// its place.
#[derive(Debug)]
pub struct Control {
    stream: StdUnixStream,
}

impl Control {
    /// Connects to the ingress whose files are in `directory`.
    ///
    /// # Errors
    /// When none runs there, or another user's.
    pub fn connect(directory: &Path) -> io::Result<Self> {
        let short = ShortPath::new(directory, NAME)?;
        let stream = StdUnixStream::connect(short.path())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { stream })
    }

    fn ask(&self, command: Command) -> io::Result<(Status, Vec<OwnedFd>)> {
        self.ask_with(command, &[])
    }

    fn ask_with(&self, command: Command, carried: &[RawFd]) -> io::Result<(Status, Vec<OwnedFd>)> {
        let mut request = serde_json::to_vec(&Request { command }).expect("a command serializes");
        request.push(b'\n');
        let (mut sent, mut carried) = (0, carried);
        while sent < request.len() {
            sent += sockets::send_with(self.stream.as_raw_fd(), &request[sent..], carried)?;
            carried = &[];
        }
        let (mut line, mut descriptors) = (Vec::new(), Vec::new());
        while line.last() != Some(&b'\n') && line.len() <= LINE_MAX {
            let mut bytes = [0; 1024];
            let (count, mut more) = sockets::receive_with(self.stream.as_raw_fd(), &mut bytes)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            line.extend_from_slice(&bytes[..count]);
            descriptors.append(&mut more);
        }
        Ok((serde_json::from_slice(&line)?, descriptors))
    }

    /// # Errors
    /// When the ingress is gone or answers strangely.
    pub fn status(&self) -> io::Result<Status> {
        Ok(self.ask(Command::Status)?.0)
    }

    /// Copies of its listening sockets.
    pub(crate) fn listeners(&self) -> io::Result<Vec<TcpListener>> {
        sockets::listeners(self.ask(Command::Listeners)?.1)
    }

    /// A copy of the socket at which it is asked for names. One of an older version does not know the question, and hangs
    /// up.
    pub(crate) fn names(&self) -> io::Result<UdpSocket> {
        let socket = self.ask(Command::Names)?.1.pop();
        sockets::datagrams(socket.ok_or(io::ErrorKind::NotFound)?)
    }

    /// Tells it to stop accepting and to end once nothing is in flight.
    pub(crate) fn drain(&self) -> io::Result<()> {
        self.ask(Command::Drain).map(|_| ())
    }

    /// The doors by which containers call services, each with the app that calls by it.
    ///
    /// # Errors
    /// When the ingress is gone; one of an older version does not know the question, and hangs up.
    pub fn doors(&self) -> io::Result<BTreeMap<String, AppName>> {
        Ok(self.ask(Command::Doors)?.0.doors)
    }

    /// A copy of a door's socket, where there is such a door.
    ///
    /// # Errors
    /// See [`Control::doors`].
    pub fn door(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        Ok(self.ask(Command::Door { name: name.to_owned() })?.1.pop())
    }

    /// Has it serve what comes in by a listening socket as calls of this app.
    ///
    /// # Errors
    /// See [`Control::doors`].
    pub fn open_door(&self, name: &str, app: &AppName, socket: BorrowedFd<'_>) -> io::Result<()> {
        let command = Command::OpenDoor { name: name.to_owned(), app: app.clone() };
        self.ask_with(command, &[socket.as_raw_fd()]).map(|_| ())
    }

    /// Connections that were accepted by it go on.
    ///
    /// # Errors
    /// See [`Control::doors`].
    pub fn shut_door(&self, name: &str) -> io::Result<()> {
        self.ask(Command::ShutDoor { name: name.to_owned() }).map(|_| ())
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(self) {
        let stream = self.stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(self.stream));
        let Ok(stream) = stream else { return };
        // An end and a broken connection say the same.
        while let Ok(Some(_)) = read_line(&stream).await {}
    }
}
