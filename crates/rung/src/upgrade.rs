//! `rung upgrade`: another binary takes the running platform over.
//!
//! The server backs its state up and then becomes the new program (exec): same process, same children. Instances live
//! under their shims and the ingress is a process of its own, so both go on serving meanwhile; the new program adopts
//! the instances, takes the listening sockets from the ingress and replaces it by one of its own version.
//! Going back is the same with the older binary, as long as it reads the store's format; the backup is for when not.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rung_api::ClientError;
use rung_cli::args::IngressSetting;
use rung_cli::edge::Hinted;
use rung_cli::{Exit, Global, UpgradeArgs, data_directory};
use rung_cli::{note, say};
use rung_control::quorum::Backing;

use crate::data::Data;
use crate::successor;

/// Backups of the store that upgrades leave.
const BACKUPS_KEPT: usize = 5;

/// A program that starts needs far less; after this it is said that it did not come back.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(30);

/// How often the server is asked whether it is the new one.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The command: asks the server, and waits until the new program answers.
pub fn ask(global: &Global, upgrade: &UpgradeArgs) -> anyhow::Result<Exit> {
    let program = match &upgrade.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("looking for {}", binary.display()))?,
        None => std::env::current_exe().context("finding rung's own program file")?,
    };
    let version = version_of(&program)?;
    if global.api.is_none() {
        let data = data_directory(global.data.as_deref())?;
        if let Some(node) = successor::node_in(&data)? {
            return successor::ask(&data, &node, &program, &version);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = rung_cli::connect::connect(global)?;
        let before = client.health().await?;
        // Any other failure is none: it may have become the new program before its answer was sent.
        if let Err(refused @ ClientError::Api(_)) = client.upgrade_server(&program).await {
            return Err(refused.into());
        }
        let deadline = Instant::now() + COMES_BACK_WITHIN;
        while Instant::now() < deadline {
            tokio::time::sleep(ASK_EVERY).await;
            // While it starts nobody answers; that is no error yet.
            let Ok(now) = client.health().await else { continue };
            if now.started != before.started {
                say!("{version} took over from rung {}; instances and requests went on", before.version);
                return Ok(Exit::Done);
            }
        }
        Err(Hinted::failed(
            format!("{version} did not take over within {} s", COMES_BACK_WITHIN.as_secs()),
            "`rung events` says why; if the server is gone, start it again with the program that ran before: \
             instances and requests go on meanwhile, and the state's backup is in the data directory's `backups`",
        )
        .into())
    })
}

/// Runs `program --version`: what is not a rung must not become the server.
fn version_of(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("running {} --version", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned();
    if !output.status.success() || !said.starts_with("rung ") {
        bail!("{} is not a rung: `--version` says {said:?}", program.display());
    }
    Ok(said)
}

/// Whether the program's `up` has an option.
fn knows(program: &Path, option: &str) -> bool {
    let help = Command::new(program).args(["up", "--help"]).output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains(option))
}

/// Where a running platform is reached.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub http: SocketAddr,
    pub https: Option<SocketAddr>,
    pub api: SocketAddr,
    /// Where others shall reach it, when that was said.
    pub advertised: Option<IpAddr>,
}

/// What else was said at the start, and holds for the new program.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// Whether instances outlive the platform.
    pub instances: bool,
    pub ingress: &'a [IngressSetting],
    /// The address that moves between machines.
    pub floating: Option<IpAddr>,
    /// Where artifacts shall be; what was reached before is known without it.
    pub artifacts: Option<&'a str>,
}

/// In the server: becomes the program. Returns only with the reason why not; nothing is stopped by then.
pub async fn take_over(
    data: &Data,
    backing: &Backing,
    program: &Path,
    addresses: Addresses,
    kept: Kept<'_>,
) -> anyhow::Error {
    if let Err(error) = version_of(program) {
        return error;
    }
    match back_up(data, backing).await {
        Ok(path) => note!("state is backed up to {}", path.display()),
        Err(error) => return error.context("backing the state up"),
    }
    note!("{} takes over", program.display());
    become_anew(data, program, addresses, kept)
}

/// In the server: becomes itself once more, because the state has moved. Returns only with the reason why not.
pub fn start_again(data: &Data, addresses: Addresses, kept: Kept<'_>) -> anyhow::Error {
    match std::env::current_exe() {
        Ok(program) => become_anew(data, &program, addresses, kept),
        Err(error) => anyhow::Error::new(error).context("finding rung's own program file"),
    }
}

fn become_anew(data: &Data, program: &Path, addresses: Addresses, kept: Kept<'_>) -> anyhow::Error {
    let mut command = Command::new(program);
    // The same addresses, said outright; no directory, so nothing is deployed.
    command.arg("up").arg("--data").arg(data.root());
    command.args(["--http", &addresses.http.to_string(), "--api", &addresses.api.to_string()]);
    if let Some(advertised) = addresses.advertised.filter(|_| knows(program, "--address")) {
        command.args(["--address", &advertised.to_string()]);
    }
    match addresses.https {
        Some(https) if knows(program, "--https") => {
            command.args(["--https", &https.to_string()]);
        }
        Some(https) => {
            // It would end at once over an option that it does not know, and everything with it.
            note!(
                "{} serves no TLS: https://{https} is not served until a newer one takes over",
                program.display()
            );
        }
        None => {}
    }
    if kept.instances {
        command.arg("--keep");
    }
    match kept.floating {
        Some(floating) if knows(program, "--floating") => {
            command.args(["--floating", &floating.to_string()]);
        }
        Some(floating) => {
            note!("{} knows no --floating: {floating} stays as it is, unwatched", program.display())
        }
        None => {}
    }
    match kept.artifacts {
        Some(place) if knows(program, "--artifacts") => {
            command.args(["--artifacts", place]);
        }
        Some(_) => note!("{} knows no --artifacts: it keeps them on this disk", program.display()),
        None => {}
    }
    if !kept.ingress.is_empty() && !knows(program, "--ingress") {
        note!("{} knows no --ingress: the ingress goes on with its usual settings", program.display());
    } else {
        for setting in kept.ingress {
            command.args(["--ingress", &setting.to_string()]);
        }
    }
    let error = command.exec();
    anyhow::Error::new(error).context(format!("executing {}", program.display()))
}

async fn back_up(data: &Data, backing: &Backing) -> anyhow::Result<PathBuf> {
    let directory = data.backups();
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(format!("store-{}.db", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S-%3f")));
    backing.back_up(&path).await?;
    drop_old_backups(&directory)?;
    Ok(path)
}

fn drop_old_backups(directory: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    let mut backups: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    backups.retain(|path| path.extension().is_some_and(|extension| extension == "db"));
    backups.sort();
    let excess = backups.len().saturating_sub(BACKUPS_KEPT);
    for old in &backups[..excess] {
        std::fs::remove_file(old).with_context(|| format!("removing {}", old.display()))?;
    }
    Ok(())
}
