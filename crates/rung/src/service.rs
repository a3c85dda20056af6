//! `rung service install`: rung as a service of the machine, under systemd.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use rung_cli::edge::Hinted;
use rung_cli::{Cli, Command as Verb, Exit, Global, ServiceInstallArgs, data_directory};
use rung_cli::{note, say};
use rung_model::NodeRole;
use rung_trust::TrustDirectory;

use crate::membership::Membership;
use crate::up::parse_address;

const UNIT: &str = "/etc/systemd/system/rung.service";

pub fn install(global: &Global, install: &ServiceInstallArgs) -> anyhow::Result<Exit> {
    let program = std::env::current_exe().context("finding rung's own program file")?;
    let data = data_directory(global.data.as_deref())?;
    let membership = Membership::read(&TrustDirectory::new(data.join("trust")))?;
    let command = command(&data, membership.map(|membership| membership.role), global, install)?;
    let unit = unit(&program, &command);
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

/// What the unit starts: `rung join` on a machine that has joined a cluster, else `rung up`.
fn command(
    data: &Path,
    joined: Option<NodeRole>,
    global: &Global,
    install: &ServiceInstallArgs,
) -> anyhow::Result<Vec<String>> {
    let verb = if joined.is_some() { "join" } else { "up" };
    let mut command = vec![verb.to_owned(), "--data".to_owned(), data.to_string_lossy().into_owned()];
    match (joined, &install.http) {
        (Some(NodeRole::Worker), Some(http)) => {
            let message = format!("--http {http}: a worker serves no visitors");
            return Err(Hinted::usage(message, "leave it out; servers and ingresses serve apps").into());
        }
        (Some(NodeRole::Worker), None) => {}
        (_, said) => {
            command.extend(["--http".to_owned(), said.as_deref().unwrap_or("0.0.0.0:80").to_owned()])
        }
    }
    if let Some(api) = &global.api {
        parse_address("--api", api)?;
        command.extend(["--api".to_owned(), api.clone()]);
    }
    command.extend(install.more.iter().cloned());
    // What is wrong is said now, and not by a unit that is started again and again.
    match Cli::from_words(command.iter().map(String::as_str)) {
        Ok(Cli { command: Verb::Up(up), .. }) if up.directory.is_some() => {
            let message = "a unit deploys nothing";
            Err(Hinted::usage(message, "leave the directory out; deploy with `rung deploy`").into())
        }
        Ok(Cli { command: Verb::Join(join), .. }) if join.server.is_some() => {
            let message = "this machine has joined already";
            Err(Hinted::usage(message, "leave the server and the token out").into())
        }
        Ok(Cli { command: Verb::Up(up), .. }) => {
            up.http.iter().try_for_each(|http| parse_address("--http", http).map(drop))?;
            Ok(command)
        }
        Ok(Cli { command: Verb::Join(join), .. }) => {
            join.http.iter().try_for_each(|http| parse_address("--http", http).map(drop))?;
            Ok(command)
        }
        Ok(_) => unreachable!("the first word says which it is"),
        Err(wrong) => Err(Hinted::usage(wrong, format!("`rung {verb} --help` shows what it takes")).into()),
    }
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

fn unit(program: &Path, command: &[String]) -> String {
    let words = std::iter::once(program.to_string_lossy().into_owned()).chain(command.iter().cloned());
    let command = words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ");
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

    fn asked(more: &[&str]) -> ServiceInstallArgs {
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        ServiceInstallArgs { http: None, print: false, more }
    }

    fn started(joined: Option<NodeRole>, more: &[&str]) -> Result<String, String> {
        let command = command(Path::new("/var/lib/rung"), joined, &Global::default(), &asked(more));
        command.map(|command| command.join(" ")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_unit_leaves_instances_alone_and_survives_odd_paths() {
        let unit = unit(Path::new("/opt/my rung/100%"), &["up".into(), "--label".into(), "a=$b".into()]);
        assert!(unit.contains("KillMode=process\n"), "systemd would kill the instances with rung");
        assert!(unit.contains("Delegate=yes\n"), "rung could make no control groups");
        assert!(unit.contains(r#"ExecStart="/opt/my rung/100%%" "up" "--label" "a=$$b""#), "{unit}");
    }

    #[test]
    fn a_machine_is_started_as_what_it_is() {
        let data = "--data /var/lib/rung";
        assert_eq!(started(None, &[]).unwrap(), format!("up {data} --http 0.0.0.0:80"));
        let server = started(Some(NodeRole::Server), &["--keep"]).unwrap();
        assert_eq!(server, format!("join {data} --http 0.0.0.0:80 --keep"));
        let worker = started(Some(NodeRole::Worker), &["--label", "zone=a"]).unwrap();
        assert_eq!(worker, format!("join {data} --label zone=a"));
    }

    #[test]
    fn what_the_start_would_refuse_is_refused_before_there_is_a_unit() {
        assert!(started(None, &["--kep"]).unwrap_err().contains("--kep"));
        assert!(started(None, &["guestbook"]).unwrap_err().contains("deploys nothing"));
        assert!(started(Some(NodeRole::Worker), &["--ingress", "nonsense"]).is_err());
    }
}
