//! How Rung's ingress is started: with documents on its disk, or by a server that has them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::Setting;
use crate::ingress::routes;

/// Where it lives, what it listens on, and who never answers its polls.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub directory: &'a Path,
    pub listener: &'a TcpListener,
    pub silent: &'a TcpListener,
}

pub fn prepare(
    command: &mut Command,
    at: Place<'_>,
    instances: &[SocketAddr],
    setting: Setting<'_>,
) -> anyhow::Result<()> {
    let mut server = at.silent.local_addr()?;
    let documents = at.directory.join("documents");
    std::fs::create_dir_all(&documents)?;
    let count = match setting {
        Setting::Followed(address) => {
            server = address;
            0
        }
        Setting::Routes(count) => count,
        Setting::Plain | Setting::Tls(_) => 1,
    };
    for document in routes::documents(count, instances)? {
        std::fs::write(documents.join(format!("{}.json", document.app)), serde_json::to_vec(&document)?)?;
    }
    fcntl(at.listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let listener = at.listener.as_raw_fd().to_string();
    command.arg("ingress");
    if let Setting::Tls(pair) = setting {
        let certificates = at.directory.join("certificates");
        std::fs::create_dir_all(&certificates)?;
        std::fs::copy(&pair.certificate, certificates.join("bench.localhost.crt"))?;
        std::fs::copy(&pair.key, certificates.join("bench.localhost.key"))?;
        // It wants a plain socket, too: the one that nobody asks.
        fcntl(at.silent, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let silent = at.silent.as_raw_fd().to_string();
        command.args(["--listen-fd", &silent, "--https-fd", &listener, "--redirect", "off"]);
        // Nobody is polled, then.
        server = SocketAddr::from(([127, 0, 0, 1], 9));
    } else {
        command.args(["--listen-fd", &listener]);
    }
    command.args(["--threads", "1", "--access-log", "off", "--api", &server.to_string()]);
    command.arg("--data").arg(at.directory);
    Ok(())
}
