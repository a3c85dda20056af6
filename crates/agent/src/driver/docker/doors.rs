//! Doors: by them containers call services.
//!
//! A container's loopback is its own, so the addresses of services end within it. There Rung listens: a thread enters the
//! container's network, opens a socket, and brings it back; the machine's proxy accepts from it as it does from its own.
//! Whatever comes in by it comes from that container, whichever user made the call, so the door says which app calls.
//!
//! ```text
//!              container's network                     machine's network
//!   app ─► 127.98.60.129:7700 ═ the door's socket ═══► the proxy ─► an instance, here or elsewhere
//! ```
//!
//! A socket lives as long as somebody has it, and so does the network around it: both the proxy and the agent do, so
//! neither's end is felt in the container. An agent that comes back finds the doors with the proxy, by their names.
//! What is wanted is compared with what the proxy has once a second; whatever was missed is made good there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use rung_model::AppName;
use serde::{Deserialize, Serialize};

use crate::artifacts::{blocking, chain};
use crate::shim::logger::Logger;

/// A proxy that was killed is replaced within a fraction of this; calls wait in the door's queue meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What an agent before this one opened is shut when nobody has asked for it for so long: containers are found again one
/// by one.
const STRANGE_FOR: Duration = Duration::from_secs(60);
/// The port may belong to the container's own application; a proxy that is on its way out gives it up.
const TRIES: u32 = 10;
/// Calls that wait while the proxy is replaced.
const BACKLOG: i32 = 1024;
const OWN_NETWORK: &str = "/proc/self/ns/net";

/// The machine's proxy, as far as containers call services by it. The one who composes the roles has it.
pub trait Porter: std::fmt::Debug + Send + Sync {
    /// The doors that it serves, with the app that calls by each.
    ///
    /// # Errors
    /// It does not answer.
    fn doors(&self) -> io::Result<BTreeMap<String, AppName>>;

    /// A copy of a door's socket.
    ///
    /// # Errors
    /// See [`Porter::doors`].
    fn copy(&self, name: &str) -> io::Result<Option<OwnedFd>>;

    /// Has it serve this socket.
    ///
    /// # Errors
    /// See [`Porter::doors`].
    fn open(&self, name: &str, app: &AppName, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// # Errors
    /// See [`Porter::doors`].
    fn shut(&self, name: &str) -> io::Result<()>;
}

/// Who calls, and at which port it finds services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    pub app: AppName,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("the engine runs its containers elsewhere: process {pid} of this machine is not the container's")]
    Elsewhere { pid: u32 },
    #[error("the container has no network of its own")]
    NoOwnNetwork,
    #[error("entering the container's network")]
    Enter(#[source] io::Error),
    #[error("listening at port {port} of the container's loopback")]
    Listen { port: u16, source: io::Error },
    #[error("talking to the proxy")]
    Proxy(#[source] io::Error),
}

/// Where a door leads to.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The engine's id of the container.
    pub container: String,
    /// Its first process.
    pub pid: u32,
    pub calls: Calls,
    /// Where it is said when there is none.
    pub logs: PathBuf,
}

#[derive(Debug)]
struct Wanted {
    place: Place,
    /// Kept here, too: while the proxy is replaced calls wait in its queue.
    socket: Option<Arc<OwnedFd>>,
    failures: u32,
}

#[derive(Debug, Clone, Default)]
pub struct Doors {
    porter: Option<Arc<dyn Porter>>,
    wanted: Arc<Mutex<BTreeMap<String, Wanted>>>,
    /// What the proxy has and nobody asked for, and since when.
    strange: Arc<Mutex<BTreeMap<String, Instant>>>,
    has_looked: Arc<AtomicBool>,
}

impl Doors {
    pub fn new(porter: Arc<dyn Porter>) -> Self {
        Self { porter: Some(porter), ..Self::default() }
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<String, Wanted>> {
        self.wanted.lock().expect("nothing panics while it is held")
    }

    /// Opens a container's door, unless it is open. When this returns its calls are heard, or its log says why not.
    pub(super) async fn ensure(&self, name: &str, place: Place) {
        // A life that was started anew under the same name is another one.
        let name = name_of(name, place.pid);
        if self.porter.is_none() || self.wanted().contains_key(&name) {
            return;
        }
        self.wanted().insert(name.clone(), Wanted { place, socket: None, failures: 0 });
        let this = self.clone();
        blocking(move || this.settle(&name, &this.known())).await;
    }

    /// The container has ended; a process of it that lingers calls nobody any more.
    pub(super) async fn shut(&self, name: &str, pid: Option<u32>) {
        let Some((porter, pid)) = self.porter.clone().zip(pid) else { return };
        let name = name_of(name, pid);
        if self.wanted().remove(&name).is_none() {
            return;
        }
        // One that does not answer is asked again by the look for strange ones.
        blocking(move || drop(porter.shut(&name))).await;
    }

    /// What the proxy has; nothing where it does not answer, which the next look will see.
    fn known(&self) -> BTreeMap<String, AppName> {
        self.porter.as_ref().and_then(|porter| porter.doors().ok()).unwrap_or_default()
    }

    /// Makes one door be as it is wanted.
    fn settle(&self, name: &str, known: &BTreeMap<String, AppName>) {
        let Some(porter) = &self.porter else { return };
        let found = self.wanted().get(name).map(|it| (it.place.clone(), it.socket.clone(), it.failures));
        let Some((place, socket, failures)) = found else { return };
        if failures >= TRIES || (socket.is_some() && known.contains_key(name)) {
            return;
        }
        let mut made = socket;
        let settled = open(&**porter, name, &place, known, &mut made);
        let mut wanted = self.wanted();
        let Some(it) = wanted.get_mut(name) else {
            // It has ended meanwhile.
            drop(wanted);
            return drop(porter.shut(name));
        };
        it.socket = made;
        let Err(error) = settled else {
            it.failures = 0;
            return;
        };
        // The proxy will be there again; a container that has just ended is asked for no more.
        if !matches!(error, DoorError::Proxy(_)) {
            it.failures += 1;
        }
        let gives_up = it.failures >= TRIES;
        drop(wanted);
        tracing::debug!(error = chain(&error), name, "opening a container's door");
        if gives_up {
            Logger::new(&place.logs).say(&format!("services can't be called from here: {}", chain(&error)));
        }
    }

    /// Looks after the doors as long as the agent lives.
    pub async fn keep(self) {
        if self.porter.is_none() {
            return;
        }
        loop {
            let this = self.clone();
            blocking(move || this.look()).await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look(&self) {
        let names: Vec<String> = self.wanted().keys().cloned().collect();
        let is_strange = !self.strange.lock().expect("nothing panics while it is held").is_empty();
        // A machine without containers asks nobody, after its first look.
        if names.is_empty() && !is_strange && self.has_looked.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(porter) = &self.porter else { return };
        let Ok(known) = porter.doors() else { return };
        for name in &names {
            self.settle(name, &known);
        }
        let mut strange = self.strange.lock().expect("nothing panics while it is held");
        let wanted = self.wanted();
        strange.retain(|name, _| known.contains_key(name) && !wanted.contains_key(name));
        for name in known.into_keys().filter(|name| !wanted.contains_key(name)) {
            let since = *strange.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() > STRANGE_FOR {
                let _ = porter.shut(&name);
            }
        }
    }
}

/// `rung-1a2b3c4d-shop-web-1-2.4711`.
fn name_of(container: &str, pid: u32) -> String {
    format!("{container}.{pid}")
}

/// What was reached of it is left in `socket`, whatever came of the rest.
fn open(
    porter: &dyn Porter,
    name: &str,
    place: &Place,
    known: &BTreeMap<String, AppName>,
    socket: &mut Option<Arc<OwnedFd>>,
) -> Result<(), DoorError> {
    let is_known = known.contains_key(name);
    if socket.is_none() && is_known {
        *socket = porter.copy(name).map_err(DoorError::Proxy)?.map(Arc::new);
    }
    let socket = match socket {
        Some(socket) => socket,
        None => socket.insert(Arc::new(listen_in(place)?)),
    };
    if is_known {
        return Ok(());
    }
    porter.open(name, &place.calls.app, socket.as_fd()).map_err(DoorError::Proxy)
}

/// A listening socket in the network of a container.
fn listen_in(place: &Place) -> Result<OwnedFd, DoorError> {
    let (pid, port) = (place.pid, place.calls.port);
    let network = fs::File::open(format!("/proc/{pid}/ns/net")).map_err(DoorError::Enter)?;
    // After it was opened: a number that went to somebody else meanwhile is seen here.
    if !is_of_container(pid, &place.container) {
        return Err(DoorError::Elsewhere { pid });
    }
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let own = fs::metadata(OWN_NETWORK).map(identity).map_err(DoorError::Enter)?;
    if network.metadata().map(identity).map_err(DoorError::Enter)? == own {
        return Err(DoorError::NoOwnNetwork);
    }
    // A thread of its own, which ends there: one of the runtime's would have to come back.
    let opening = std::thread::spawn(move || {
        setns(&network, CloneFlags::CLONE_NEWNET).map_err(|errno| DoorError::Enter(errno.into()))?;
        listen_on_loopback(port).map_err(|source| DoorError::Listen { port, source })
    });
    opening.join().expect("opening a socket does not panic")
}

/// The container's id is in the names of its control groups, and of the files that its engine mounts into it. An engine in
/// a virtual machine, or behind a tunnel, counts its processes by itself: they are others here.
fn is_of_container(pid: u32, container: &str) -> bool {
    let says = |file: &str| {
        fs::read_to_string(format!("/proc/{pid}/{file}")).is_ok_and(|text| text.contains(container))
    };
    !container.is_empty() && (says("cgroup") || says("mountinfo"))
}

/// At every address of the loopback device, and of no other: nobody else on the container's networks gets there.
fn listen_on_loopback(port: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &"lo".into())?;
    let everywhere = SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, port);
    bind(socket.as_raw_fd(), &SockaddrStorage::from(everywhere))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    /// A proxy that can be killed.
    #[derive(Debug, Default)]
    struct FakeProxy {
        doors: Mutex<BTreeMap<String, (AppName, OwnedFd)>>,
        is_away: AtomicBool,
    }

    impl FakeProxy {
        fn doors(&self) -> io::Result<MutexGuard<'_, BTreeMap<String, (AppName, OwnedFd)>>> {
            match self.is_away.load(Ordering::Relaxed) {
                true => Err(io::ErrorKind::ConnectionRefused.into()),
                false => Ok(self.doors.lock().unwrap()),
            }
        }

        fn names(&self) -> Vec<String> {
            self.doors.lock().unwrap().keys().cloned().collect()
        }
    }

    impl Porter for FakeProxy {
        fn doors(&self) -> io::Result<BTreeMap<String, AppName>> {
            Ok(self.doors()?.iter().map(|(name, door)| (name.clone(), door.0.clone())).collect())
        }

        fn copy(&self, name: &str) -> io::Result<Option<OwnedFd>> {
            self.doors()?.get(name).map(|door| door.1.try_clone()).transpose()
        }

        fn open(&self, name: &str, app: &AppName, socket: BorrowedFd<'_>) -> io::Result<()> {
            let door = (app.clone(), socket.try_clone_to_owned()?);
            drop(self.doors()?.insert(name.to_owned(), door));
            Ok(())
        }

        fn shut(&self, name: &str) -> io::Result<()> {
            drop(self.doors()?.remove(name));
            Ok(())
        }
    }

    fn place(pid: u32, port: u16, logs: PathBuf) -> Place {
        let calls = Calls { app: AppName::new("shop").unwrap(), port };
        Place { container: "nobody's".into(), pid, calls, logs }
    }

    #[test]
    fn what_is_not_the_containers_process_gets_no_door() {
        let place = place(std::process::id(), 0, PathBuf::new());
        let refused = listen_in(&place).unwrap_err();
        assert!(matches!(refused, DoorError::Elsewhere { .. }), "{refused}");
        assert!(!is_of_container(std::process::id(), ""), "no id is in everybody's files");
    }

    #[test]
    fn a_door_is_on_the_loopback_device_for_all_its_addresses() {
        let door = TcpListener::from(listen_on_loopback(0).unwrap());
        let port = door.local_addr().unwrap().port();
        for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 98, 60, 129)] {
            TcpStream::connect((address, port)).expect("it is heard at every address");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_was_killed_is_given_the_doors_again_and_their_queues_were_kept() {
        let proxy = Arc::new(FakeProxy::default());
        let doors = Doors::new(proxy.clone());
        let logs = tempfile::tempdir().unwrap();
        let name = name_of("shop-web-1-1", 7);
        let socket = listen_on_loopback(0).unwrap();
        let port = TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap().port();
        let wanted = Wanted {
            place: place(7, port, logs.path().to_owned()),
            socket: Some(Arc::new(socket)),
            failures: 0,
        };
        doors.wanted().insert(name.clone(), wanted);
        doors.look();
        assert_eq!(proxy.names(), std::slice::from_ref(&name), "the proxy was not told");

        proxy.is_away.store(true, Ordering::Relaxed);
        proxy.doors.lock().unwrap().clear();
        doors.look();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("calls wait while there is no proxy");
        proxy.is_away.store(false, Ordering::Relaxed);
        doors.look();
        assert_eq!(proxy.names(), std::slice::from_ref(&name), "the next proxy was not told");

        // The next agent finds it with the proxy.
        let next = Doors::new(proxy.clone());
        next.ensure("shop-web-1-1", place(7, port, logs.path().to_owned())).await;
        assert!(next.wanted()[&name].socket.is_some(), "the next agent has no copy of it");
        drop(doors);
        next.shut("shop-web-1-1", Some(7)).await;
        assert!(proxy.names().is_empty(), "a container has ended, and its door is open");
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        assert!(refused.is_err(), "somebody still has the socket of a container that is gone");
    }

    #[test]
    fn what_nobody_asks_for_is_shut_after_a_while_only() {
        let proxy = Arc::new(FakeProxy::default());
        let socket = listen_on_loopback(0).unwrap();
        proxy.open("of-an-agent-before.9", &AppName::new("shop").unwrap(), socket.as_fd()).unwrap();
        let doors = Doors::new(proxy.clone());
        doors.look();
        assert_eq!(proxy.names().len(), 1, "its container may not have been found yet");
        let long_ago =
            Instant::now().checked_sub(STRANGE_FOR * 2).expect("the machine has been up for so long");
        doors.strange.lock().unwrap().values_mut().for_each(|since| *since = long_ago);
        doors.look();
        assert!(proxy.names().is_empty(), "it stays for ever");
    }
}
