//! `rung job`: jobs run on demand and by schedule.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use rung_api::wire::{JobRequest, LogLine, PinRequest, Stream};
use rung_model::{AppName, JobName, Run, RunId};

use super::Session;
use super::command::told;
use crate::args::JobCommand;
use crate::edge::Exit;
use crate::follow::may_pass;
use crate::note;
use crate::run_log::RunLog;
use crate::{person, render};

/// How long one long poll for a run's end waits.
const POLL: Duration = Duration::from_secs(20);
/// Between two attempts to reach a server that is restarted.
const RETRY: Duration = Duration::from_millis(250);

pub async fn job(session: &mut Session<'_>, command: JobCommand) -> anyhow::Result<Exit> {
    let app = session.app().await?;
    let by = person::name();
    match command {
        JobCommand::List => {
            let jobs =
                session.client.jobs(&app).await.with_context(|| format!("listing the jobs of {app}"))?;
            session.screen.show(&jobs, |jobs, paint, clock| render::jobs::render(jobs, paint, clock))?;
        }
        JobCommand::Run { job, env, no_wait, arguments } => {
            let request = JobRequest { arguments, env: env.into_iter().collect(), by };
            return run(session, &app, &job, &request, no_wait).await;
        }
        JobCommand::History { job } => {
            let context = || format!("reading the history of job {job} of {app}");
            let runs = session.client.job_runs(&app, &job).await.with_context(context)?;
            session.screen.show(&runs, |runs, paint, clock| render::jobs::history(runs, paint, clock))?;
        }
        JobCommand::Pause { job } => {
            let context = || format!("pausing job {job} of {app}");
            session.client.pause_job(&app, &job, &by).await.with_context(context)?;
            session.screen.say(&format!("job {job} is paused; `rung job resume {job}` lets it go on"))?;
        }
        JobCommand::Resume { job } => {
            let context = || format!("resuming job {job} of {app}");
            session.client.resume_job(&app, &job, &by).await.with_context(context)?;
            session.screen.say(&format!("job {job} goes by its schedule"))?;
        }
        JobCommand::Pin { job, release, none: _ } => {
            let request = PinRequest { release, by };
            let context = || format!("pinning job {job} of {app}");
            session.client.pin_job(&app, &job, &request).await.with_context(context)?;
            let to =
                release.map_or_else(|| "the release that serves".to_owned(), |number| number.to_string());
            session.screen.say(&format!("job {job} runs {to}"))?;
        }
        JobCommand::Cancel { run } => {
            let context = || format!("cancelling run {run} of {app}");
            session.client.cancel_run(&app, &run).await.with_context(context)?;
            session.screen.say(&format!("{run} is ended"))?;
        }
    }
    Ok(Exit::Done)
}

async fn run(
    session: &mut Session<'_>,
    app: &AppName,
    job: &JobName,
    request: &JobRequest,
    no_wait: bool,
) -> anyhow::Result<Exit> {
    let context = || format!("running job {job} of {app}");
    let run = session.client.run_job(app, job, request).await.with_context(context)?;
    if no_wait {
        session.screen.show(&run, |run, _, _| {
            format!("{} was started; `rung logs --run {} -f` shows its output", run.id, run.id)
        })?;
        return Ok(Exit::Done);
    }
    let Some(ended) = follow(session, app, &run.id).await? else {
        session.screen.say(&format!(
            "\nno longer following: {} goes on; `rung job cancel {}` ends it",
            run.id, run.id
        ))?;
        return Ok(Exit::Failed);
    };
    let exit = told(&ended).context("a run that has ended has an outcome")?;
    if exit != Exit::Done && ended.of_job().is_some_and(|of| of.retries_left > 0) {
        note!("it is tried again; `rung job history {job}` shows what comes of that");
    }
    Ok(exit)
}

/// Shows the output of a run until it has ended; `None`: the person stopped following.
async fn follow(session: &mut Session<'_>, app: &AppName, id: &RunId) -> anyhow::Result<Option<Run>> {
    let client = session.client.clone();
    let mut log = RunLog::new(&client, app, id);
    let mut ended = std::pin::pin!(async {
        loop {
            match client.run(app, id, POLL).await {
                Ok(run) if run.has_ended() => return Ok(run),
                Ok(_) => {}
                Err(error) if may_pass(&error) => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error),
            }
        }
    });
    let run = loop {
        tokio::select! {
            run = &mut ended => break run.with_context(|| format!("asking for the end of {id}"))?,
            line = log.next() => show(session, &line)?,
            _ = tokio::signal::ctrl_c() => return Ok(None),
        }
    };
    log.rest(|line| show(session, line)).await?;
    Ok(Some(run))
}

/// As the command printed it: its output can be read by a program. What Rung says of it is no part of that.
fn show(session: &mut Session<'_>, line: &LogLine) -> anyhow::Result<()> {
    if session.screen.is_json() {
        return session.screen.show_one(line, |line, _, _| line.text.clone());
    }
    match line.stream {
        Stream::Stdout => session.screen.line(&render::harmless(&line.text))?,
        Stream::Stderr => {
            // Nobody is left to be told when this fails.
            let _ = writeln!(std::io::stderr(), "{}", render::harmless(&line.text));
        }
        Stream::Rung => {}
    }
    Ok(())
}
