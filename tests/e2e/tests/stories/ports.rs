//! Ports that somebody else has, and applications that listen where nobody looks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rung_e2e::{Rung, TestApp, eventually, process};

/// Another process's server on an instance's port: it answers everything, and well.
struct Thief {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Thief {
    fn on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address)
            .unwrap_or_else(|error| panic!("{address} was to be free still, for the story: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let mut stream = stream;
                // Whoever asks may go at any time.
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nthief\n");
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = std::net::TcpStream::connect(self.address);
        let _ = self.thread.take().expect("dropped once").join();
    }
}

/// Begins to deploy an application that takes its time to listen, and takes its port meanwhile.
fn steal_port(rung: &Rung, app: &TestApp) -> (Thief, std::process::Child) {
    let deploy = rung.begin_deploy(app.directory());
    let port = eventually("the instance has its port", || {
        let status = rung.try_app(&app.name)?;
        let mut instances = status.services.iter().flat_map(|service| &service.instances);
        instances.find_map(|instance| instance.endpoint).ok_or(format!("{status:?}"))
    });
    (Thief::on(port), deploy)
}

fn assert_serves_elsewhere(rung: &Rung, app: &str, thief: &Thief, mut deploy: std::process::Child) {
    assert!(deploy.wait().expect("waiting for rung deploy").success(), "it serves on another port");
    let instance = &rung.wait_until_settled(app, "web", 1)[0];
    assert_ne!(instance.endpoint, Some(thief.address), "it is said to have the port that somebody else has");
    assert!(rung.page(app, "/").contains("version 1 "), "somebody else's answer was passed on");
}

#[test]
fn a_port_that_is_taken_before_the_instance_binds_it_is_replaced_by_another() {
    let rung = Rung::start();
    let mut app = TestApp::new("robbed", 1);
    app.set("BE_SLOW_TO_START", "2000");
    let (thief, deploy) = steal_port(&rung, &app);
    assert_serves_elsewhere(&rung, "robbed", &thief, deploy);
}

#[test]
fn a_stranger_that_answers_on_the_port_is_not_taken_for_the_instance() {
    let rung = Rung::start();
    let mut app = TestApp::new("outdone", 1);
    app.set("BE_SLOW_TO_START", "2000");
    // It can't bind its port, and stays.
    app.web().lines.push("command = \"python3 -B app.py || exec sleep 1000\"".into());
    let (thief, deploy) = steal_port(&rung, &app);
    assert_serves_elsewhere(&rung, "outdone", &thief, deploy);
}

#[test]
fn an_application_that_ignores_its_port_is_told_where_it_listens_instead() {
    let rung = Rung::start();
    let mut app = TestApp::new("headstrong", 1);
    app.sections.push("[deploy]\ndeadline = \"5s\"".into());
    app.web().lines.push("command = \"PORT=0 exec python3 -B app.py\"".into());
    let said = rung.deploy(app.directory()).ends_with(1);
    said.mentions("listens on 127.0.0.1:").mentions("make it listen on $PORT");
}

#[test]
fn an_application_that_never_listens_is_given_up_with_a_reason() {
    let rung = Rung::start();
    let mut app = TestApp::new("mute", 1);
    app.sections.push("[deploy]\ndeadline = \"5s\"".into());
    app.web().lines.push("command = \"echo thinking; exec sleep 1000\"".into());
    rung.deploy(app.directory()).ends_with(1).mentions("nothing listens").mentions("thinking");
}

#[test]
fn an_application_that_forks_and_exits_is_told_so_and_leaves_no_orphan() {
    let rung = Rung::start();
    let mut app = TestApp::new("daemon", 1);
    app.sections.push("[deploy]\ndeadline = \"5s\"".into());
    app.web().lines.push("command = \"setsid python3 -B app.py & exit 0\"".into());
    rung.deploy(app.directory())
        .ends_with(1)
        .mentions("exited with code 0")
        .mentions("stays in the foreground");
    let directory = rung.data().join("node/instances");
    eventually("nothing of it is left", || {
        let left: Vec<_> =
            process::concerned_with(&directory).iter().map(|l| process::describe(l.pid)).collect();
        if left.is_empty() && rung.instances("daemon").is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}
