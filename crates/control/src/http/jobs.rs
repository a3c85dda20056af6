//! Jobs: listed, run on demand, paused, pinned.

use std::collections::BTreeMap;

use axum::extract::State;
use jiff::Timestamp;
use rung_api::wire::{JobListing, JobRequest, PinRequest};
use rung_api::{Code, ErrorBody};
use rung_model::appfile::Job;
use rung_model::job::Paused;
use rung_model::{
    AppFile, AppName, JobName, JobRun, JobState, Overlap, ReleaseNumber, Run, RunKind, RunState, keys,
};
use rung_store::{Guard, Op};

use super::Answer;
use super::extract::{Body, Json, Named};
use super::releases::no_such_release;
use crate::given;
use crate::shared::{ATTEMPTS, Committed, Control, contended};

/// How many of the next times are shown.
const NEXT_SHOWN: usize = 5;

impl Control {
    /// The release that serves, with the job that it declares.
    /// And the revision of the app's record.
    fn job_of(&self, app: &AppName, name: &JobName) -> Result<(ReleaseNumber, Job, u64), ErrorBody> {
        let (record, revision) = self.record_of(app)?;
        let file = self.current_file(&record);
        let found = file.as_ref().and_then(|file| file.jobs.get(name)).cloned();
        match (record.current, found) {
            (Some(release), Some(job)) => Ok((release, job, revision)),
            (None, _) => Err(ErrorBody::new(Code::Refused, format!("app {app} is not deployed yet"))),
            (Some(_), None) => Err(no_such_job(app, name, file.as_ref())),
        }
    }

    /// The release that a job is pinned to, with what that one says of it.
    fn pinned_job(
        &self,
        app: &AppName,
        name: &JobName,
        pinned: Option<ReleaseNumber>,
    ) -> Option<(ReleaseNumber, Job)> {
        let number = pinned?;
        let job = self.read(|world| world.release(app, number)?.file.jobs.get(name).cloned());
        Some((number, job?))
    }

    /// What is remembered of a job, with the revision it was read at; fresh when the leader has not met it yet.
    fn job_state(&self, app: &AppName, job: &JobName) -> (JobState, Option<u64>) {
        let held = self.read(|world| world.jobs.get(app)?.get(job).cloned());
        match held {
            Some(held) => (held.value, Some(held.revision)),
            None => (JobState::new(app.clone(), job.clone(), Timestamp::now()), None),
        }
    }

    async fn change_job(
        &self,
        app: &AppName,
        job: &JobName,
        change: impl Fn(&mut JobState),
    ) -> Result<(), ErrorBody> {
        let _turn = self.turn_of(app).await?;
        for _ in 0..ATTEMPTS {
            let (_, _, of_app) = self.job_of(app, job)?;
            let (mut state, revision) = self.job_state(app, job);
            change(&mut state);
            let key = keys::job(app, job);
            let value = self.encode(&key, &state);
            let guard = match revision {
                Some(revision) => Guard::Modified { key: key.clone(), revision },
                None => Guard::Absent { key: key.clone() },
            };
            // Of an app that is destroyed at this moment it would be left to the next one of that name.
            let of_app = Guard::Modified { key: keys::app(app), revision: of_app };
            if let Committed::Done =
                self.commit(vec![of_app, guard], vec![Op::Put { key, value, lease: None }]).await?
            {
                return Ok(());
            }
        }
        Err(contended(&format!("job {job} of app {app}")))
    }

    /// Newest first.
    fn runs_of_job(&self, app: &AppName, job: &JobName) -> Vec<Run> {
        let mut runs: Vec<Run> = self.read(|world| {
            let runs = world.runs.values().map(|held| &held.value);
            let of_job = |run: &&Run| run.app == *app && run.of_job().is_some_and(|of| of.job == *job);
            runs.filter(of_job).cloned().collect()
        });
        runs.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
        runs
    }

    /// The newest run of each of the app's jobs, in one look: an app may have a thousand of them.
    fn newest_runs(&self, app: &AppName) -> BTreeMap<JobName, Run> {
        self.read(|world| {
            let mut newest: BTreeMap<&JobName, &Run> = BTreeMap::new();
            for run in world.runs.values().map(|held| &held.value).filter(|run| run.app == *app) {
                let Some(of) = run.of_job() else { continue };
                let known = newest.entry(&of.job).or_insert(run);
                if (run.at, &run.id) > (known.at, &known.id) {
                    *known = run;
                }
            }
            newest.into_iter().map(|(job, run)| (job.clone(), run.clone())).collect()
        })
    }
}

fn no_such_job(app: &AppName, name: &JobName, file: Option<&AppFile>) -> ErrorBody {
    let known: Vec<&str> =
        file.into_iter().flat_map(|file| file.jobs.keys()).map(|name| name.as_str()).collect();
    let body = ErrorBody::new(Code::NotFound, format!("app {app} has no job {name}"));
    if known.is_empty() {
        return body.hint("jobs are written `[jobs.<name>]` in rung.toml");
    }
    body.hint(format!("it has {}", known.join(", ")))
}

pub async fn list(State(control): State<Control>, named: Named) -> Answer<Vec<JobListing>> {
    let app: AppName = named.get("app")?;
    control.status_of(&app)?;
    let record = control.read(|world| world.apps.get(&app).map(|held| held.value.clone()));
    let file = record.and_then(|record| control.current_file(&record));
    let jobs = file.map(|file| file.jobs).unwrap_or_default();
    let mut newest = control.newest_runs(&app);
    let listed = jobs.into_iter().map(|(name, job)| {
        let last = newest.remove(&name);
        let (state, _) = control.job_state(&app, &name);
        listing(name, job, state, last)
    });
    Ok(Json(listed.collect()))
}

fn listing(name: JobName, job: Job, state: JobState, last: Option<Run>) -> JobListing {
    let next = match (&job.schedule, &state.paused) {
        (Some(schedule), None) => {
            let from = state.handled_until.max(Timestamp::now());
            schedule.after(from, &job.timezone).take(NEXT_SHOWN).collect()
        }
        _ => Vec::new(),
    };
    JobListing {
        name,
        schedule: job.schedule,
        timezone: job.timezone,
        command: job.command,
        paused: state.paused,
        pinned: state.pinned,
        next,
        last,
    }
}

pub async fn runs(State(control): State<Control>, named: Named) -> Answer<Vec<Run>> {
    let (app, job): (AppName, JobName) = (named.get("app")?, named.get("job")?);
    let runs = control.runs_of_job(&app, &job);
    if runs.is_empty() {
        control.job_of(&app, &job)?;
    }
    Ok(Json(runs))
}

pub async fn run(
    State(control): State<Control>,
    named: Named,
    Body(request): Body<JobRequest>,
) -> Answer<Run> {
    let (app, name): (AppName, JobName) = (named.get("app")?, named.get("job")?);
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (current, declared, revision) = control.job_of(&app, &name)?;
        let earlier = control.runs_of_job(&app, &name);
        refuse_overlap(&name, &declared, &earlier)?;
        let pinned = control.job_state(&app, &name).0.pinned;
        let (release, job) = control.pinned_job(&app, &name, pinned).unwrap_or((current, declared));
        let command = with_arguments(&job.command, &request.arguments);
        given::check_run(&command, &request.env)?;
        let run = Run {
            id: control.next_run_id(&app, name.as_str()),
            app: app.clone(),
            kind: RunKind::Job {
                release,
                run: JobRun {
                    job: name.clone(),
                    scheduled: None,
                    through: None,
                    started: None,
                    attempt: 1,
                    retries_left: job.retries,
                    retry_after: job.retry_after,
                },
                command,
                env: request.env.clone(),
            },
            by: request.by.clone(),
            at: Timestamp::now(),
            node: None,
            timeout: job.timeout,
            cancelled: false,
            state: RunState::Pending,
        };
        if let Committed::Done = control.create_run(&run, revision).await? {
            control.record(Some(&app), "job", format!("job {name} is run by {}", request.by));
            return Ok(Json(run));
        }
    }
    Err(contended(&format!("runs of app {app}")).into())
}

fn refuse_overlap(name: &JobName, job: &Job, earlier: &[Run]) -> Result<(), ErrorBody> {
    let going = earlier.iter().find(|run| !run.has_ended());
    match going {
        Some(run) if job.overlap == Overlap::Forbid => {
            let message = format!("{} of job {name} still goes on, and its overlap is forbidden", run.id);
            Err(ErrorBody::new(Code::Refused, message)
                .hint(format!("wait for it, or end it: rung job cancel {}", run.id)))
        }
        _ => Ok(()),
    }
}

/// Each argument as one word of the shell that runs the command.
fn with_arguments(command: &str, arguments: &[String]) -> String {
    let quoted = arguments.iter().map(|argument| format!(" '{}'", argument.replace('\'', r"'\''")));
    std::iter::once(command.to_owned()).chain(quoted).collect()
}

pub async fn pause(State(control): State<Control>, named: Named, Body(by): Body<String>) -> Answer<()> {
    let (app, job): (AppName, JobName) = (named.get("app")?, named.get("job")?);
    let paused = Paused { since: Timestamp::now(), by: by.clone() };
    control.change_job(&app, &job, |state| state.paused = Some(paused.clone())).await?;
    control.record(Some(&app), "job", format!("job {job} is paused by {by}"));
    Ok(Json(()))
}

pub async fn resume(State(control): State<Control>, named: Named, Body(by): Body<String>) -> Answer<()> {
    let (app, job): (AppName, JobName) = (named.get("app")?, named.get("job")?);
    control.change_job(&app, &job, |state| state.resume(Timestamp::now())).await?;
    control.record(Some(&app), "job", format!("job {job} is resumed by {by}"));
    Ok(Json(()))
}

pub async fn pin(
    State(control): State<Control>,
    named: Named,
    Body(request): Body<PinRequest>,
) -> Answer<()> {
    let (app, job): (AppName, JobName) = (named.get("app")?, named.get("job")?);
    if let Some(number) = request.release {
        let release = control.read(|world| world.release(&app, number).cloned());
        let release = release.ok_or_else(|| no_such_release(&app, number))?;
        if !release.file.jobs.contains_key(&job) {
            let message = format!("{number} of app {app} has no job {job}");
            return Err(ErrorBody::new(Code::Refused, message)
                .hint("pin it to a release that has it")
                .into());
        }
    }
    control.change_job(&app, &job, |state| state.pinned = request.release).await?;
    let to = request.release.map_or("the release that serves".to_owned(), |number| number.to_string());
    control.record(Some(&app), "job", format!("job {job} runs {to}, says {}", request.by));
    Ok(Json(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_stay_whole_words_whatever_is_in_them() {
        let arguments = ["a b".to_owned(), "it's; rm -rf $HOME".to_owned()];
        assert_eq!(with_arguments("bin/report", &arguments), r"bin/report 'a b' 'it'\''s; rm -rf $HOME'");
    }
}
