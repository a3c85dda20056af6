//! Processes end, by plan and otherwise, and clients do not notice.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use nix::sys::signal::{Signal, kill};

use crate::application::Application;
use crate::client::{Client, get};
use crate::stage::{Stage, backend, shop};

/// Clients that ask again and again. What each does with a broken connection is the story's matter.
struct Load {
    stop: Arc<AtomicBool>,
    pub answered: Arc<AtomicUsize>,
    pub lost: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// `per_connection` requests go over each connection.
    fn start(http: SocketAddr, per_connection: usize) -> Self {
        let load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            lost: Arc::default(),
            refused: Arc::default(),
            threads: Vec::new(),
        };
        let threads = (0..6).map(|_| load.client(http, per_connection)).collect();
        Self { threads, ..load }
    }

    fn client(&self, http: SocketAddr, per_connection: usize) -> std::thread::JoinHandle<()> {
        let (stop, answered, lost, refused) =
            (self.stop.clone(), self.answered.clone(), self.lost.clone(), self.refused.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if TcpStream::connect(http).is_err() {
                    refused.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let mut client = Client::connect(http);
                for _ in 0..per_connection {
                    use std::io::Write;
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let sent = client.stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
                    match sent.ok().and_then(|()| client.answer()) {
                        Some(answer) if answer.status == 200 => {
                            answered.fetch_add(1, Ordering::SeqCst);
                            if answer.header("Connection") == Some("close") {
                                break;
                            }
                        }
                        _ => {
                            lost.fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                    }
                }
            }
        })
    }

    fn await_answers(&self, count: usize) {
        let from = self.answered.load(Ordering::SeqCst);
        while self.answered.load(Ordering::SeqCst) < from + count {
            std::thread::yield_now();
        }
    }

    /// Answered, lost, refused.
    fn end(self) -> (usize, usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a connection was refused");
        }
        let read = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (read(&self.answered), read(&self.lost), read(&self.refused))
    }
}

#[test]
fn killing_the_ingress_refuses_no_connection() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let mut stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let load = Load::start(stage.http, 1);
    for _ in 0..5 {
        load.await_answers(50);
        let pid = stage.pid();
        kill(pid, Signal::SIGKILL).unwrap();
        stage.await_event("serves on");
        assert_ne!(stage.pid(), pid);
        // Two crashes in a row are followed by a pause; connections wait in the socket meanwhile.
    }
    load.await_answers(50);
    let (answered, lost, refused) = load.end();
    assert_eq!(refused, 0, "connections were refused");
    assert!(
        lost <= 5 * 6 * 2,
        "{lost} of {answered} requests were lost to five kills of six clients' connections"
    );
}

#[test]
fn a_killed_ingress_serves_from_its_disk_while_the_server_is_away() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let mut stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    // Documents are written after the threads have them.
    while !stage.directory.path().join("documents/shop.json").exists() {
        std::thread::yield_now();
    }
    stage.server.set_down(true);
    assert_eq!(get(stage.http, "/").text(), "hello", "an outage of the server took the routes away");
    kill(stage.pid(), Signal::SIGKILL).unwrap();
    stage.await_event("serves on");
    assert_eq!(get(stage.http, "/").text(), "hello", "the documents on disk were not used");
    stage.server.set_down(false);
    let other = Application::answering("a-2", |_| b"other".to_vec());
    let generation = stage.server.publish(vec![shop(backend(vec![other.endpoint()]))]);
    stage.server.await_acknowledged(generation);
    assert_eq!(get(stage.http, "/").text(), "other", "it does not follow the server that came back");
}

#[test]
fn the_next_rung_takes_the_socket_over_without_losing_a_request() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let mut stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let load = Load::start(stage.http, usize::MAX);
    for _ in 0..3 {
        load.await_answers(50);
        let before = stage.status();
        stage.lose_rung();
        load.await_answers(50);
        assert_eq!(stage.status().pid, before.pid, "the ingress died with its supervisor");
        assert_eq!(stage.start_rung(), stage.http, "another port is served");
        stage.await_event("ends its last requests");
        let now = stage.status();
        assert_ne!(now.pid, before.pid, "the earlier ingress goes on");
        assert_ne!(now.proxy, before.proxy, "both are one proxy to the server");
        // So that no deploy waits for it any more.
        stage.server.await_leaving(&before.proxy);
        // The earlier one is gone once its last connection is.
        while std::fs::exists(format!("/proc/{}/fd", before.pid)).unwrap() && !is_zombie(before.pid) {
            std::thread::yield_now();
        }
    }
    load.await_answers(50);
    let (answered, lost, refused) = load.end();
    assert_eq!((lost, refused), (0, 0), "requests were lost, of {answered}");
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn sigterm_ends_what_is_in_flight_first() {
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let app = Application::answering("a-1", move |_| {
        let _ = wait.lock().unwrap().recv();
        b"done".to_vec()
    });
    let mut stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut busy = Client::connect(stage.http);
    busy.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    while app.seen().is_empty() {
        std::thread::yield_now();
    }
    let before = stage.status();
    kill(stage.pid(), Signal::SIGTERM).unwrap();
    // A stray signal, which is no reason for others to wait until the request in flight has ended.
    stage.await_event("starting another");
    stage.await_event("serves on");
    let now = stage.status();
    assert_ne!((now.pid, &now.proxy), (before.pid, &before.proxy), "both are one to the server");
    let mut next = Client::connect(stage.http);
    next.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    while app.seen().len() < 2 {
        std::thread::yield_now();
    }
    go.send(()).unwrap();
    go.send(()).unwrap();
    let answer = busy.answer().expect("the request in flight was cut off");
    assert_eq!((answer.text(), answer.header("Connection")), ("done", Some("close")));
    assert_eq!(next.answer().expect("it was accepted by nobody").text(), "done");
    stage.server.await_leaving(&before.proxy);
}

#[test]
fn a_tunnel_has_a_grace_when_the_ingress_drains() {
    let app = Application::start("a-1", |connection| {
        connection.head().unwrap();
        connection
            .write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
            .unwrap();
        while let Some(bytes) = connection.take_exact(4) {
            let _ = connection.write(bytes);
        }
    });
    let documents = vec![shop(backend(vec![app.endpoint()]))];
    let mut stage = Stage::with_arguments(documents, &["--upgrade-grace-ms", "700", "--drain-ms", "100"]);
    let mut client = Client::connect(stage.http);
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 101);
    let before = stage.status();
    kill(stage.pid(), Signal::SIGTERM).unwrap();
    client.send("ping");
    assert_eq!(client.take(4).unwrap(), b"ping", "the tunnel was cut at once");
    assert_eq!(client.take(1), None, "the tunnel outlives its grace");
    stage.await_event("starting another");
    stage.server.await_leaving(&before.proxy);
}
