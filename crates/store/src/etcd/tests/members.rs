//! Real members of etcd, as many as a test wants, on ports that the kernel chose; they end with the test.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::etcd::{ETCD_MAX_TXN_OPS, EtcdAdmin, EtcdConfig};

/// A machine that is busy takes its time; this is for one that hangs.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How often a port that somebody else took in between is chosen anew.
const TRIES: usize = 5;

pub struct Member {
    directory: PathBuf,
    name: String,
    client: u16,
    peer: u16,
    cluster: String,
    process: std::sync::Mutex<Option<Child>>,
}

pub struct Members {
    pub members: Vec<Member>,
    roots: AtomicUsize,
    _directory: TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Member {
    fn spawn(&self) -> Child {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", self.client), format!("http://127.0.0.1:{}", self.peer));
        let log = std::fs::File::create(self.directory.join(format!("{}.log", self.name))).unwrap();
        Command::new("etcd")
            .arg("--data-dir")
            .arg(self.directory.join(&self.name))
            .args(["--name", &self.name, "--initial-cluster", &self.cluster])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--max-txn-ops", &ETCD_MAX_TXN_OPS.to_string(), "--grpc-keepalive-min-time", "500ms"])
            .args(["--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is not installed: apt-get install etcd-server")
    }

    pub fn start(&self) {
        *self.process.lock().unwrap() = Some(self.spawn());
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.lock().unwrap();
        let pid = process.as_ref().expect("it runs").id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub fn kill(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    fn has_ended(&self) -> bool {
        self.process.lock().unwrap().as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// Waits until it answers and knows a leader. `false`: it has ended.
    pub async fn is_ready(&self) -> bool {
        let admin = EtcdAdmin::new(vec![self.endpoint()], None);
        let ready = async {
            loop {
                if self.has_ended() {
                    return false;
                }
                if admin.status().await.is_ok_and(|status| status.leader.is_some()) {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(20)).await; // tidy: etcd tells nobody when it is ready
            }
        };
        tokio::time::timeout(READY_WITHIN, ready).await.expect("a member of etcd did not become ready")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = self.process.lock().unwrap().as_mut() {
            // SIGKILL ends a paused process, too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Members {
    pub async fn start(count: usize) -> Self {
        for _ in 0..TRIES {
            let members = Self::spawn(count);
            let mut all = true;
            for member in &members.members {
                all &= member.is_ready().await;
            }
            if all {
                return members;
            }
        }
        panic!("etcd did not start in {TRIES} tries");
    }

    fn spawn(count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let cluster = ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}"));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let members = ports.iter().enumerate().map(|(n, (client, peer))| {
            let member = Member {
                directory: directory.path().to_owned(),
                name: format!("m{n}"),
                client: *client,
                peer: *peer,
                cluster: cluster.clone(),
                process: std::sync::Mutex::new(None),
            };
            member.start();
            member
        });
        Self { members: members.collect(), roots: AtomicUsize::new(0), _directory: directory }
    }

    pub fn fresh_root(&self) -> EtcdConfig {
        let root = format!("test{}", self.roots.fetch_add(1, Ordering::Relaxed));
        let endpoints = self.members.iter().map(Member::endpoint).collect();
        EtcdConfig { endpoints, tls: None, root }
    }
}
