//! Looking back: releases in detail, two of them compared, a deployment explained, a commit's fate.

use std::time::Duration;

use anyhow::Context as _;
use rung_api::wire::{CommitState, CommitStatus, LogQuery, ReleaseDetail, ReleaseListing};
use rung_model::{AppName, DeploymentNumber, ReleaseNumber, Run, RunId};

use super::Session;
use crate::args::{DiffArgs, ExplainArgs, ReleasesArgs};
use crate::edge::{Exit, Hinted};
use crate::follow::may_pass;
use crate::render;

/// How much of each log is shown below a release; all of it is one command away.
const LOG_LINES: usize = 20;
/// How long one long poll for a commit's end waits.
const POLL: Duration = Duration::from_secs(20);
/// Between two attempts to reach a server that is restarted.
const RETRY: Duration = Duration::from_millis(250);

pub async fn releases(session: &mut Session<'_>, args: &ReleasesArgs) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let Some(number) = args.release else {
        let releases = listed(session, &app).await?;
        session.screen.show(&releases, |all, paint, clock| render::releases::render(all, paint, clock))?;
        return Ok(Exit::Done);
    };
    let detail = detail(session, &app, number).await?;
    let mut logs = Vec::new();
    for run in &detail.runs {
        logs.push(tail(session, run).await);
    }
    session
        .screen
        .show(&detail, |detail, paint, clock| render::release::render(&app, detail, &logs, paint, clock))?;
    Ok(Exit::Done)
}

async fn listed(session: &Session<'_>, app: &AppName) -> anyhow::Result<Vec<ReleaseListing>> {
    session.client.releases(app).await.with_context(|| format!("listing the releases of {app}"))
}

async fn detail(
    session: &Session<'_>,
    app: &AppName,
    number: ReleaseNumber,
) -> anyhow::Result<ReleaseDetail> {
    session.client.release(app, number).await.with_context(|| format!("looking at {number} of {app}"))
}

/// The last lines of a run's log; none when it is not kept any more.
async fn tail(session: &Session<'_>, run: &Run) -> Vec<String> {
    let query = LogQuery { run: Some(run.id.clone()), tail: Some(LOG_LINES), ..LogQuery::default() };
    let mut lines = Vec::new();
    if let Ok(mut stream) = session.client.logs(&run.app, &query).await {
        while let Some(Ok(line)) = stream.next().await {
            lines.push(line.text);
        }
    }
    lines
}

/// The run that built a release.
pub async fn build_of(session: &Session<'_>, app: &AppName, number: ReleaseNumber) -> anyhow::Result<RunId> {
    detail(session, app, number).await?.build.ok_or_else(|| {
        let hint = "its source is its artifact: the app file has no [build]";
        Hinted::failed(format!("nothing was built for {number} of {app}"), hint).into()
    })
}

pub async fn diff(session: &mut Session<'_>, args: &DiffArgs) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let (from, to) = compared(&listed(session, &app).await?, args).ok_or_else(|| {
        Hinted::usage(format!("app {app} has no two releases to compare"), "name them: rung diff v6 v7")
    })?;
    let context = || format!("comparing {from} and {to} of {app}");
    let diff = session.client.diff(&app, from, to).await.with_context(context)?;
    session.screen.show(&diff, |diff, paint, _| render::diff::render(diff, paint))?;
    Ok(Exit::Done)
}

/// What was said, else the current release and the one before the later of the two.
fn compared(newest_first: &[ReleaseListing], args: &DiffArgs) -> Option<(ReleaseNumber, ReleaseNumber)> {
    let current = || newest_first.iter().find(|release| release.current).map(|release| release.number);
    let before = |to| {
        let mut older = newest_first.iter().filter(|release| release.number < to && !release.failed);
        older.next().map(|release| release.number)
    };
    match (args.from, args.to) {
        (Some(from), Some(to)) => Some((from, to)),
        (Some(from), None) => Some((from, current()?)),
        (None, _) => {
            let to = current()?;
            Some((before(to)?, to))
        }
    }
}

pub async fn explain(session: &mut Session<'_>, args: &ExplainArgs) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let context = || format!("looking at the deployments of {app}");
    let number = match args.deployment {
        Some(number) => number,
        None => newest(session, &app).await.with_context(context)?,
    };
    let deployment =
        session.client.deployment(&app, number, 0, Duration::ZERO).await.with_context(context)?;
    let mut runs = Vec::new();
    for id in &deployment.runs {
        // One that was forgotten since is left out.
        runs.extend(session.client.run(&app, id, Duration::ZERO).await.ok());
    }
    session.screen.show(&deployment, |deployment, paint, clock| {
        render::explain::render(deployment, &runs, paint, clock)
    })?;
    Ok(Exit::Done)
}

async fn newest(session: &Session<'_>, app: &AppName) -> anyhow::Result<DeploymentNumber> {
    let newest = session.client.deployments(app).await?.into_iter().next();
    let newest = newest.ok_or_else(|| Hinted::failed(format!("{app} was never deployed"), "rung deploy"))?;
    Ok(newest.number)
}

pub async fn commit(session: &mut Session<'_>, commit: &str, no_wait: bool) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let wait = if no_wait { Duration::ZERO } else { POLL };
    let status: CommitStatus = loop {
        match session.client.commit(&app, commit, wait).await {
            Ok(status) if status.state != CommitState::Going || no_wait => break status,
            Ok(_) => {}
            Err(error) if may_pass(&error) && !no_wait => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error).with_context(|| format!("asking for commit {commit} of {app}")),
        }
    };
    session
        .screen
        .show(&status, |status, paint, clock| render::release::commit(&app, status, paint, clock))?;
    Ok(match status.state {
        CommitState::Going => Exit::Deploying,
        CommitState::Succeeded => Exit::Done,
        CommitState::RolledBack => Exit::RolledBack,
        CommitState::Failed => Exit::Failed,
    })
}
