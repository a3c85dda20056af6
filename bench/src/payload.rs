//! What is deployed: a tree of 5 MB with this program in it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rung_e2e::http;
use tempfile::TempDir;

const SIZE: u64 = 5_000_000;

/// An app in a directory; every version has the same size.
#[derive(Debug)]
pub struct Payload {
    pub name: String,
    pub version: u32,
    pub instances: usize,
    directory: TempDir,
}

impl Payload {
    pub fn new(name: &str, instances: usize) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("rung-bench-").tempdir()?;
        let server = directory.path().join("server");
        let program = std::fs::copy(std::env::current_exe()?, &server)?;
        std::fs::write(directory.path().join("padding"), noise(SIZE.saturating_sub(program)))?;
        let mut payload = Self { name: name.into(), version: 0, instances, directory };
        payload.declare("")?;
        payload.next()?;
        Ok(payload)
    }

    /// Writes the app file, with more sections below the service.
    pub fn declare(&mut self, sections: &str) -> anyhow::Result<()> {
        let Self { name, instances, .. } = self;
        let file = format!(
            "app = {name:?}\n\n[services.web]\ncommand = \"exec ./server serve\"\ninstances = {instances}\n\
             health = {{ path = \"/up\" }}\n\n{sections}"
        );
        std::fs::write(self.directory.path().join("rung.toml"), file)?;
        Ok(())
    }

    /// Makes the next version.
    pub fn next(&mut self) -> anyhow::Result<()> {
        self.version += 1;
        std::fs::write(self.directory.path().join("version"), format!("{:06}", self.version))?;
        Ok(())
    }

    pub fn spelled(&self) -> String {
        format!("{:06}", self.version)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Bytes that do not compress, the same in every run.
fn noise(size: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// From the spawn to the first answer, without any platform; the median of some.
pub fn own_start() -> anyhow::Result<Duration> {
    let payload = Payload::new("bare", 1)?;
    let mut took = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        let mut command = Command::new("./server");
        command.arg("serve").current_dir(payload.directory()).env("PORT", "0").stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
        let port: u16 = line.trim().rsplit(' ').next().unwrap_or_default().parse()?;
        let answer = http::get(([127, 0, 0, 1], port).into(), "bare", "/");
        took.push(began.elapsed());
        child.kill()?;
        child.wait()?;
        anyhow::ensure!(answer.is_ok_and(|answer| answer.status == 200), "the application does not answer");
    }
    took.sort();
    Ok(took[took.len() / 2])
}
