//! One-off runs: `rung run`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use jiff::Timestamp;
use rung_api::wire::RunRequest;
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, Document, Run, RunId, RunKind, RunState, keys};
use rung_store::{Guard, Op};

use super::Answer;
use super::extract::{Body, Json, Named, Query, Wait};
use crate::access::Caller;
use crate::given;
use crate::shared::{ATTEMPTS, Committed, Control, contended};

/// Nobody types at a terminal for longer; what runs longer is a service or a job.
const ONE_OFF_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

pub async fn start(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<RunRequest>,
) -> Answer<Run> {
    let app: AppName = named.get("app")?;
    if request.command.trim().is_empty() {
        return Err(ErrorBody::new(Code::InvalidRequest, "there is no command to run").into());
    }
    given::check_run(&request.command, &BTreeMap::new())?;
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (record, revision) = control.record_of(&app)?;
        let Some(release) = record.current else {
            let message = format!("app {app} is not deployed yet: there is no release to run a command in");
            return Err(ErrorBody::new(Code::Refused, message).hint("rung deploy").into());
        };
        let run = Run {
            id: control.next_run_id(&app, "run"),
            app: app.clone(),
            kind: RunKind::OneOff { release, command: request.command.clone(), terminal: request.terminal },
            by: request.by.clone(),
            at: Timestamp::now(),
            node: None,
            timeout: ONE_OFF_TIMEOUT,
            cancelled: false,
            state: RunState::Pending,
        };
        if let Committed::Done = control.create_run(&run, revision).await? {
            control.record(Some(&app), "run", format!("{} runs `{}`", request.by, request.command));
            tokio::spawn(control.clone().end_with(caller, app, run.id.clone()));
            return Ok(Json(run));
        }
    }
    Err(contended(&format!("runs of app {app}")).into())
}

/// Builds, release commands, jobs and one-off commands that go on, oldest first.
pub async fn list(State(control): State<Control>, named: Named) -> Answer<Vec<Run>> {
    let app: AppName = named.get("app")?;
    control.status_of(&app)?;
    let mut runs: Vec<Run> = control.read(|world| {
        let runs = world.runs.values().map(|held| &held.value);
        runs.filter(|run| run.app == app && !run.has_ended()).cloned().collect()
    });
    runs.sort_by_key(|run| run.at);
    Ok(Json(runs))
}

impl Control {
    /// A command goes on as long as whoever started it may; also when nobody has attached to it yet.
    async fn end_with(self, caller: Caller, app: AppName, run: RunId) {
        let is_over = |reconcile: &crate::reconcile::Reconcile| {
            reconcile.world().runs.get(&run).is_none_or(|held| held.value.has_ended()).then_some(())
        };
        tokio::select! {
            _ = self.wait_for(ONE_OFF_TIMEOUT, is_over) => {}
            () = caller.ends() => {
                if let Err(error) = self.cancel_run(&app, &run).await {
                    tracing::warn!(%error, %run, "the command of a token that has ended goes on");
                }
            }
        }
    }

    /// Records a run if nobody else took its id, and its app is as it was at this revision: one that is destroyed at this
    /// moment would leave it to the next app of that name.
    pub(crate) async fn create_run(&self, run: &Run, app: u64) -> Result<Committed, ErrorBody> {
        let key = keys::run(&run.app, &run.id);
        let value = run.to_json();
        let of_app = Guard::Modified { key: keys::app(&run.app), revision: app };
        let guard = Guard::Absent { key: key.clone() };
        self.commit(vec![of_app, guard], vec![Op::Put { key, value, lease: None }]).await
    }

    /// `<app>.<what>-n<n>`: one more than the highest that is known.
    pub(crate) fn next_run_id(&self, app: &AppName, what: &str) -> RunId {
        let prefix = format!("{app}.{what}-n");
        let highest = self.read(|world| {
            let numbers =
                world.runs.keys().filter_map(|id| id.as_str().strip_prefix(&prefix)?.parse::<u64>().ok());
            numbers.max().unwrap_or(0)
        });
        RunId::new(format!("{prefix}{}", highest + 1)).expect("a name and a number make an id")
    }

    fn run_of(&self, app: &AppName, run: &RunId) -> Result<(Run, u64), ErrorBody> {
        let held = self.read(|world| world.runs.get(run).filter(|held| held.value.app == *app).cloned());
        let held = held.ok_or_else(|| {
            ErrorBody::new(Code::NotFound, format!("app {app} has no run {run}"))
                .hint("`rung job history` shows those of a job, `rung run --list` those that go on")
        })?;
        Ok((held.value, held.revision))
    }
}

pub async fn show(State(control): State<Control>, named: Named, Query(wait): Query<Wait>) -> Answer<Run> {
    let (app, run): (AppName, RunId) = (named.get("app")?, named.get("run")?);
    let (before, _) = control.run_of(&app, &run)?;
    let ended = control.wait_for(wait.duration(), |reconcile| {
        let held = reconcile.world().runs.get(&run)?;
        held.value.has_ended().then(|| held.value.clone())
    });
    Ok(Json(match ended.await {
        Some(ended) => ended,
        None => control.run_of(&app, &run).map_or(before, |(now, _)| now),
    }))
}

pub async fn cancel(State(control): State<Control>, named: Named) -> Answer<()> {
    let (app, run): (AppName, RunId) = (named.get("app")?, named.get("run")?);
    Ok(Json(control.cancel_run(&app, &run).await?))
}

impl Control {
    /// Marks a run as cancelled; its node ends it.
    pub(crate) async fn cancel_run(&self, app: &AppName, run: &RunId) -> Result<(), ErrorBody> {
        for _ in 0..ATTEMPTS {
            let (mut record, revision) = self.run_of(app, run)?;
            if record.has_ended() {
                return Err(ErrorBody::new(Code::Refused, format!("run {run} has ended already")));
            }
            record.cancelled = true;
            let key = keys::run(app, run);
            let value = self.encode(&key, &record);
            let guard = Guard::Modified { key: key.clone(), revision };
            if let Committed::Done =
                self.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await?
            {
                return Ok(());
            }
        }
        Err(contended(&format!("run {run}")))
    }
}
