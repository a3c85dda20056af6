//! `rung doctor` where no server runs: what can be said of a machine before it is given anything.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::unistd::{AccessFlags, access};
use rung_api::wire::{DoctorCheck, DoctorReport, DoctorState};
use rung_cli::connect::absent_server;
use rung_cli::render;
use rung_cli::screen::Format;
use rung_cli::{Exit, Global, Screen, Verb, data_directory};
use rung_control::doctor::{check, check_disk};
use rung_model::node::IsolationFact;

use crate::node_name;

/// The ports that `rung up` takes when nobody says otherwise.
const USUAL_PORTS: [(&str, u16); 2] = [("http", 8080), ("api", 7864)];

/// Asks the server how it is; where there is none, looks at the machine.
pub fn run(global: &Global) -> anyhow::Result<Exit> {
    let Some(why) = absent_server(global)? else { return Ok(rung_cli::run(global, Verb::Doctor)) };
    let data = data_directory(global.data.as_deref())?;
    let mut checks = vec![check("server", DoctorState::Broken, why, Some("start one with `rung up`"))];
    checks.push(check_data(&data));
    checks.push(check_disk(&above(&data), "free some space, or say another place with --data"));
    checks.extend(USUAL_PORTS.map(|(name, port)| check_port(name, port)));
    let isolation = BTreeMap::from([(node_name::of_this_host(), isolation()?)]);
    let report = DoctorReport { version: env!("CARGO_PKG_VERSION").to_owned(), checks, isolation };
    let mut screen = Screen::stdout(if global.json { Format::Json } else { Format::People });
    screen.show(&report, |report, paint, _| render::doctor::render(report, paint))?;
    Ok(if render::doctor::is_broken(&report) { Exit::Failed } else { Exit::Done })
}

fn check_data(data: &Path) -> DoctorCheck {
    let shown = data.display();
    if !data.exists() {
        let above = above(data);
        return if access(&above, AccessFlags::W_OK | AccessFlags::X_OK).is_ok() {
            check("data", DoctorState::Fine, format!("{shown} is not there yet; `rung up` makes it"), None)
        } else {
            let detail = format!("{shown} is not there and can't be made: {} is not yours", above.display());
            check("data", DoctorState::Broken, detail, Some("say another place with --data, or make it"))
        };
    }
    if access(data, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let hint = "become the user that `rung up` runs as, or say another place with --data";
        return check("data", DoctorState::Broken, format!("{shown} can't be read and written"), Some(hint));
    }
    let state = if data.join("store.db").exists() || data.join("cluster.json").exists() {
        "holds the state of before; `rung up` goes on with it"
    } else {
        "holds no state; `rung up` begins anew"
    };
    check("data", DoctorState::Fine, format!("{shown} {state}"), None)
}

/// The nearest directory above that is there.
fn above(path: &Path) -> PathBuf {
    path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn check_port(name: &str, port: u16) -> DoctorCheck {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => check(name, DoctorState::Fine, format!("127.0.0.1:{port} is free"), None),
        Err(error) => {
            let detail = format!("127.0.0.1:{port} can't be listened on: {error}");
            let hint = format!("`rung up` takes the next free port, or the one that --{name} says");
            check(name, DoctorState::Warning, detail, Some(&hint))
        }
    }
}

/// What instances would be guaranteed: tried, in a directory that goes again.
fn isolation() -> anyhow::Result<Vec<IsolationFact>> {
    let program = std::env::current_exe().context("finding this program")?;
    let scratch = std::env::temp_dir().join(format!("rung-trial-{}", std::process::id()));
    let making = || format!("making {}", scratch.display());
    DirBuilder::new().mode(0o700).create(&scratch).with_context(making)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let facts = runtime.block_on(rung_agent::facts::isolation_here(program, &scratch));
    let _ = std::fs::remove_dir_all(&scratch);
    Ok(facts)
}
