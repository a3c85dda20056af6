//! `rung cluster`: where the state is kept.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rung_api::wire::cluster::{ApproveRequest, InitRequest};

use super::Session;
use crate::args::ClusterCommand;
use crate::edge::{Exit, Hinted};
use crate::render;

/// A server that starts again needs far less; after this it is said that it did not come back.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(50);

pub async fn cluster(session: &mut Session<'_>, command: Option<ClusterCommand>) -> anyhow::Result<Exit> {
    match command {
        None => show(session).await,
        Some(ClusterCommand::Init(args)) => {
            let before = session.client.health().await.context("looking for the server")?.started;
            let request = InitRequest { address: args.address };
            let moved = session.client.init_cluster(&request).await.context("moving the state to etcd")?;
            comes_back(session, before).await?;
            session.screen.say(&format!(
                "the state is in etcd: {} entries, epoch {}; applications went on\n`rung cluster` shows it, \
                 `rung cluster dissolve` goes back",
                moved.entries, moved.epoch
            ))?;
            Ok(Exit::Done)
        }
        Some(ClusterCommand::Dissolve) => {
            let before = session.client.health().await.context("looking for the server")?.started;
            let moved = session.client.dissolve_cluster().await.context("moving the state to one machine")?;
            comes_back(session, before).await?;
            session.screen.say(&format!(
                "the state is on this machine alone: {} entries, epoch {}; applications went on",
                moved.entries, moved.epoch
            ))?;
            Ok(Exit::Done)
        }
        Some(ClusterCommand::Snapshot) => {
            let taken = session.client.take_snapshot().await.context("taking a snapshot")?;
            session.screen.show(&taken, |taken, _, _| taken.path.clone())?;
            Ok(Exit::Done)
        }
        Some(ClusterCommand::Approve(args)) => approve(session, args.without_silent).await,
        Some(ClusterCommand::Restore(_)) => {
            unreachable!("it needs no server and branched off before")
        }
    }
}

async fn show(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let report = session.client.cluster().await.context("asking where the state is kept")?;
    session.screen.show(&report, render::cluster::render)?;
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Failed })
}

/// The server replaces its process; it is back when one that was started later answers.
async fn comes_back(session: &Session<'_>, before: jiff::Timestamp) -> anyhow::Result<()> {
    let deadline = Instant::now() + COMES_BACK_WITHIN;
    while Instant::now() < deadline {
        tokio::time::sleep(ASK_EVERY).await;
        // While it starts nobody answers; that is no error yet.
        if session.client.health().await.is_ok_and(|health| health.started != before) {
            return Ok(());
        }
    }
    let message = format!(
        "the state was moved, but the server did not come back within {} s",
        COMES_BACK_WITHIN.as_secs()
    );
    Err(Hinted::failed(message, "start rung again; applications go on meanwhile").into())
}

async fn approve(session: &mut Session<'_>, without_silent: bool) -> anyhow::Result<Exit> {
    let report = session.client.cluster().await.context("asking what would be done")?;
    let Some(frozen) = report.frozen else {
        session.screen.say("nothing waits for an approval")?;
        return Ok(Exit::Done);
    };
    session.screen.show(&frozen, |frozen, _, _| render::cluster::plan(frozen))?;
    if !session.global.yes {
        return Err(Hinted::failed("nothing was approved", "rung cluster approve -y").into());
    }
    let request = ApproveRequest { without_silent };
    session.client.approve_plan(&request).await.context("approving the plan")?;
    session.screen.say("approved; `rung events -f` shows what happens")?;
    Ok(Exit::Done)
}
