//! A certificate authority of a test's own: pebble, with names that all lead to one machine, behind a door that can be
//! shut.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tempfile::TempDir;

use crate::advice::{Advice, Advisor};
use crate::reserved::Reserved;
use crate::wait::eventually;

/// A running pebble. Dropping it ends it.
#[derive(Debug)]
pub struct Authority {
    directory: TempDir,
    door: Door,
    advisor: Option<Advisor>,
    management: SocketAddr,
    children: Vec<Child>,
    /// Where these listen.
    _reserved: [Reserved; 4],
}

/// Where it looks for what proves a name.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    /// Where every name leads.
    pub at: Ipv4Addr,
    /// For HTTP-01.
    pub http: u16,
    /// For TLS-ALPN-01.
    pub https: u16,
}

impl Authority {
    pub fn start(looks: Looks) -> Self {
        Self::start_with(looks, None)
    }

    /// One that gives advice on renewals.
    pub fn start_that_advises(looks: Looks, advice: Advice) -> Self {
        Self::start_with(looks, Some(advice))
    }

    fn start_with(looks: Looks, advice: Option<Advice>) -> Self {
        let directory =
            tempfile::Builder::new().prefix("rung-authority-").tempdir().expect("a temporary directory");
        let reserved = [(); 4].map(|()| Reserved::any());
        let [own, management, names, records] = reserved.each_ref().map(Reserved::address);
        make_certificate(directory.path());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": own.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": directory.path().join("own.crt"),
            "privateKey": directory.path().join("own.key"),
            "httpPort": looks.http,
            "tlsPort": looks.https,
        }});
        let file = directory.path().join("pebble.json");
        std::fs::write(&file, config.to_string()).expect("its configuration");
        let names_at = names.to_string();
        let mut dns = Command::new("pebble-challtestsrv");
        dns.args(["-defaultIPv4", &looks.at.to_string(), "-defaultIPv6", "", "-dns01", &names_at]);
        dns.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", &records.to_string()]);
        let mut pebble = Command::new("pebble");
        pebble.args(["-strict", "-dnsserver", &names_at, "-config"]).arg(&file);
        // It neither idles at random nor remembers what was proved to it; some of its nonces are refused.
        pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
        let children = [dns, pebble].map(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"))
        });
        let [certificate, key] = ["own.crt", "own.key"].map(|file| directory.path().join(file));
        let advisor = advice.map(|advice| Advisor::new(own, &certificate, &key, advice));
        let door = Door::open(own, advisor.clone());
        let children = children.into();
        let authority = Self { door, advisor, directory, management, children, _reserved: reserved };
        eventually("the authority answers", || {
            TcpStream::connect(own).map(drop).map_err(|error| error.to_string())?;
            TcpStream::connect(management).map(drop).map_err(|error| error.to_string())
        });
        authority
    }

    /// # Panics
    /// It was not started as one that advises.
    pub fn advisor(&self) -> &Advisor {
        self.advisor.as_ref().expect("it was started as one that advises")
    }

    /// Its ACME directory.
    pub fn directory_url(&self) -> String {
        format!("https://localhost:{}/dir", self.door.address.port())
    }

    /// Who vouches for that address.
    pub fn trust(&self) -> PathBuf {
        self.directory.path().join("own.crt")
    }

    /// Who vouches for what it signs, as a file.
    pub fn root(&self) -> PathBuf {
        let file = self.directory.path().join("root.crt");
        let got = Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--fail", "--cacert"])
            .arg(self.trust())
            .arg("--output")
            .arg(&file)
            .arg(format!("https://localhost:{}/roots/0", self.management.port()))
            .status()
            .expect("curl is installed");
        assert!(got.success(), "the authority does not give its root away");
        file
    }

    /// Nobody reaches it any more.
    pub fn shut(&self) {
        self.door.is_open.store(false, Ordering::Relaxed);
    }

    pub fn reopen(&self) {
        self.door.is_open.store(true, Ordering::Relaxed);
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn make_certificate(directory: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=localhost", "-days", "2", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(directory.join("own.key"))
        .arg("-out")
        .arg(directory.join("own.crt"))
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed");
    assert!(made.success(), "openssl made no certificate");
}

/// Passes connections on, as long as it is open.
#[derive(Debug)]
struct Door {
    address: SocketAddr,
    is_open: Arc<AtomicBool>,
    /// The listening socket.
    socket: TcpStream,
    keeper: Option<JoinHandle<()>>,
}

impl Door {
    fn open(to: SocketAddr, advisor: Option<Advisor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let socket = TcpStream::from(OwnedFd::from(listener.try_clone().expect("a descriptor more")));
        let is_open = Arc::new(AtomicBool::new(true));
        let opened = is_open.clone();
        let keeper = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if !opened.load(Ordering::Relaxed) {
                    // Dropped: the client sees the connection's end at once.
                    continue;
                }
                match &advisor {
                    Some(advisor) => {
                        let advisor = advisor.clone();
                        // Who breaks off has its own trouble with it.
                        std::thread::spawn(move || advisor.serve(client));
                    }
                    None => {
                        if let Ok(server) = TcpStream::connect(to) {
                            pass_on(client, server);
                        }
                    }
                }
            }
        });
        Self { address, is_open, socket, keeper: Some(keeper) }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Ends the listening, wherever it is: it may be on another machine of a test's.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

fn pass_on(client: TcpStream, server: TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        std::thread::spawn(move || {
            // Ends with either side.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    };
    if let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) {
        copy(from, to);
        copy(server, client);
    }
}
