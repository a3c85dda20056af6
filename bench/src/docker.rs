//! The container engine that a peer runs on: its programs, its socket, and what an image of the bench's application needs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Debian's, whatever else calls itself docker on the machine.
const CLIENT: &str = "/usr/bin/docker";
const DAEMONS: [&str; 2] = ["/usr/sbin/dockerd", "/usr/bin/dockerd"];

/// Where the daemon is; an error says what brings it.
pub fn daemon() -> anyhow::Result<&'static str> {
    anyhow::ensure!(
        Path::new(CLIENT).exists(),
        "there is no {CLIENT}: `apt-get install docker.io` brings it"
    );
    let found = DAEMONS.into_iter().find(|path| Path::new(path).exists());
    found.context("there is no dockerd: `apt-get install docker.io` brings it")
}

/// A daemon, by its socket.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
}

impl Engine {
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// A command of the CLI, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CLIENT);
        command.arg("-H").arg(format!("unix://{}", self.socket.display())).args(arguments);
        // No credentials of the one who runs the bench.
        command.env("DOCKER_CONFIG", self.socket.with_file_name("no-config")).stdin(Stdio::null());
        command
    }

    pub fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(arguments).output().context("starting docker")?;
        if !output.status.success() {
            bail!("docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A question to the Engine's API, without the CLI's own start.
    pub fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let mut stream = UnixStream::connect(&self.socket)?;
        // HTTP/1.0: the answer is plain, and ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
        anyhow::ensure!(head.contains(" 200 "), "{path}: {head}");
        Ok(serde_json::from_str(body)?)
    }
}

/// Copies what the application needs to run into a tree: the C library and its loader.
pub fn put_libraries(tree: &Path) -> anyhow::Result<()> {
    let listed = Command::new("ldd").arg(std::env::current_exe()?).output().context("starting ldd")?;
    for word in
        String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/'))
    {
        let target = tree.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().expect("a library lies in a directory"))?;
        std::fs::copy(word, target)?;
    }
    Ok(())
}

/// Packs a tree for `docker import`.
pub fn pack(tree: &Path, archive: &Path) -> anyhow::Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "-C"]).arg(tree).arg("-cf").arg(archive).arg(".");
    let packed = tar.status().context("starting tar")?;
    anyhow::ensure!(packed.success(), "tar failed");
    Ok(())
}
