//! Doors: listening sockets in the networks of containers, by which these call services.
//!
//! A container's loopback is its own, so the addresses of services end within it. There the agent opens a socket and hands
//! it over by the control socket; a socket belongs to the network that it was made in, whoever accepts from it. What
//! comes in by a door comes from that container and nobody else: so the door says which app calls, and the address which
//! service is meant. No byte is passed on by anybody between.
//!
//! Doors outlive the agent, as everything does that serves: the next ingress takes them over from this one, and an agent
//! that comes back finds them by their names.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::{future, io};

use rung_model::{AppName, Inside};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::callers::{Call, Caller};
use crate::control::Control;
use crate::sockets;
use crate::worker::{Worker, accept, begin_call};

#[derive(Debug)]
pub(crate) struct Door {
    /// Who calls by it.
    pub(crate) app: AppName,
    pub(crate) socket: TcpListener,
}

/// By the names that the agent gives them.
pub(crate) type Open = BTreeMap<String, Arc<Door>>;

/// Makes a door of what the agent, or an earlier ingress, has handed over.
pub(crate) fn take(
    doors: &watch::Sender<Open>,
    name: String,
    app: AppName,
    socket: OwnedFd,
) -> io::Result<()> {
    let door = Arc::new(Door { app, socket: sockets::listener(socket)? });
    doors.send_modify(|open| drop(open.insert(name, door)));
    Ok(())
}

pub(crate) fn shut(doors: &watch::Sender<Open>, name: &str) {
    doors.send_if_modified(|open| open.remove(name).is_some());
}

/// Copies of the doors of the ingress that serves now; none where none does.
pub(crate) fn of_earlier(directory: &Path) -> Vec<(String, AppName, OwnedFd)> {
    let found = Control::connect(directory).and_then(|control| {
        let names = control.doors()?;
        // One that was shut in between is not needed.
        let copy = |(name, app): (String, AppName)| Some((control.door(&name).ok()??, name, app));
        Ok(names.into_iter().filter_map(copy).map(|(socket, name, app)| (name, app, socket)).collect())
    });
    found.unwrap_or_default()
}

/// Accepting by one door; its end closes this thread's copy of the socket.
struct Accepting {
    door: Arc<Door>,
    task: JoinHandle<()>,
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves what comes in by doors, until it is aborted.
pub(crate) async fn serve(worker: Rc<Worker>, mut doors: watch::Receiver<Open>) {
    let mut served: BTreeMap<String, Accepting> = BTreeMap::new();
    loop {
        let open = doors.borrow_and_update().clone();
        let is_open = |name: &String, it: &mut Accepting| {
            open.get(name).is_some_and(|door| Arc::ptr_eq(door, &it.door))
        };
        served.retain(is_open);
        for (name, door) in open {
            if served.contains_key(&name) {
                continue;
            }
            match accept_by(&worker, &door) {
                Ok(task) => drop(served.insert(name, Accepting { door, task })),
                Err(error) => tracing::warn!(%error, name, "a container's calls are not heard"),
            }
        }
        if doors.changed().await.is_err() {
            future::pending::<()>().await;
        }
    }
}

fn accept_by(worker: &Rc<Worker>, door: &Arc<Door>) -> io::Result<JoinHandle<()>> {
    let socket = tokio::net::TcpListener::from_std(door.socket.try_clone()?)?;
    let door = door.clone();
    let begin = move |worker: &Rc<Worker>, stream: TcpStream, from: SocketAddr| {
        // Nothing is served at a container's own addresses: whoever comes by one is closed upon.
        if let Some(call) = door.identify(&stream) {
            begin_call(worker, stream, from.ip(), call);
        }
    };
    Ok(tokio::task::spawn_local(accept(worker.clone(), socket, begin)))
}

impl Door {
    fn identify(&self, stream: &TcpStream) -> Option<Call> {
        let Ok(SocketAddr::V4(called)) = stream.local_addr() else { return None };
        let caller = || Caller::App(self.app.clone());
        Inside::covers(*called.ip()).then(|| Call { address: *called.ip(), caller: caller() })
    }
}
