//! `rung service install`: rung as a service of the machine, under systemd.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use rung_cli::edge::Hinted;
use rung_cli::{Exit, Global, ServiceInstallArgs, data_directory};
use rung_cli::{note, say};

use crate::up::parse_address;

const UNIT: &str = "/etc/systemd/system/rung.service";

pub fn install(global: &Global, install: &ServiceInstallArgs) -> anyhow::Result<Exit> {
    let program = std::env::current_exe().context("finding rung's own program file")?;
    let data = data_directory(global.data.as_deref())?;
    if let Some(http) = &install.http {
        parse_address("--http", http)?;
    }
    if let Some(api) = &global.api {
        parse_address("--api", api)?;
    }
    let unit = unit(&program, &data, install.http.as_deref().unwrap_or("0.0.0.0:80"), global.api.as_deref());
    if install.print {
        say!("{}", unit.trim_end());
        return Ok(Exit::Done);
    }
    if !nix::unistd::geteuid().is_root() {
        let message = format!("only root may write {UNIT}");
        return Err(Hinted::failed(message, "sudo rung service install, or --print to see the unit").into());
    }
    warn_of_a_program_that_may_vanish(&program);
    std::fs::write(UNIT, unit).with_context(|| format!("writing {UNIT}"))?;
    say!("wrote {UNIT}");
    if !PathBuf::from("/run/systemd/system").is_dir() {
        say!("systemd does not run here; after the next boot with it: systemctl enable --now rung");
        return Ok(Exit::Done);
    }
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "rung.service"])?;
    say!("rung runs now and after each boot; `systemctl status rung` shows it");
    Ok(Exit::Done)
}

/// A unit that points into a build directory works until the next `cargo clean`.
fn warn_of_a_program_that_may_vanish(program: &Path) {
    if program.components().any(|part| part.as_os_str() == "target") {
        note!(
            "note: the unit runs {}; copy it to /usr/local/bin first to be independent of it",
            program.display()
        );
    }
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("systemctl").args(arguments).status().context("running systemctl")?;
    anyhow::ensure!(status.success(), "systemctl {} ended with {status}", arguments.join(" "));
    Ok(())
}

/// Quoted as systemd reads it: `%` and `$` mean something to it.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

fn unit(program: &Path, data: &Path, http: &str, api: Option<&str>) -> String {
    let mut command =
        format!("{} up --data {}", quoted(&program.to_string_lossy()), quoted(&data.to_string_lossy()));
    command.push_str(&format!(" --http {}", quoted(http)));
    if let Some(api) = api {
        command.push_str(&format!(" --api {}", quoted(api)));
    }
    format!(
        "# Written by `rung service install`; drop-ins go to rung.service.d.
[Unit]
Description=Rung: runs web applications
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
# A crash of rung itself leaves the instances and the ingress alone; the next start adopts them.
KillMode=process
Restart=always
RestartSec=200ms
# Stopping the service stops instances, each within its own grace.
TimeoutStopSec=150
# Rung makes a control group for each instance below its own.
Delegate=yes
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_leaves_instances_alone_and_survives_odd_paths() {
        let unit = unit(Path::new("/opt/my rung/100%"), Path::new("/var/lib/rung"), "0.0.0.0:80", None);
        assert!(unit.contains("KillMode=process\n"), "systemd would kill the instances with rung");
        assert!(unit.contains("Delegate=yes\n"), "rung could make no control groups");
        assert!(
            unit.contains(r#"ExecStart="/opt/my rung/100%%" up --data "/var/lib/rung" --http "0.0.0.0:80""#),
            "{unit}"
        );
    }
}
