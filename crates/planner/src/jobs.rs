//! Jobs: which scheduled times have come, and what becomes of each.
//!
//! Every scheduled time gets one record: a run, or a run that says why nothing ran (one for all times of a stretch).
//! [`JobState::handled_until`] and the records are written in one transaction, guarded by the state's revision, and a
//! run's id is made of its time: over restarts, clock steps and changes of the leader a time is dispatched once. A clock
//! that goes back finds its times handled already; one that goes forward finds some that have passed, and `catch_up` says
//! what to do with them.
//!
//! When a job is due is what the release that serves says; what it then runs is what the release says that it is pinned
//! to, should it be.

mod due;
mod retry;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use rung_model::appfile::Job;
use rung_model::duration::in_words;
use rung_model::job::Timing;
use rung_model::{
    AppName, CatchUp, JobName, JobRun, JobState, Overlap, Release, ReleaseNumber, Run, RunKind, RunOutcome,
    RunState, keys,
};

use crate::draft::{Dispatch, Draft};
use due::Due;

/// Bytes of one dispatch; a transaction of the store holds a megabyte. What does not fit is for the next plan.
const DISPATCH_BYTES_MAX: usize = 400 * 1024;

/// Of a run's record beside its command, generously.
const RECORD_BYTES: usize = 1024;

/// Who is named as having asked for a scheduled run.
const BY_SCHEDULE: &str = "schedule";

/// Dispatches what is due of all the app's jobs.
pub fn dispatch_jobs(draft: &mut Draft<'_>, app: &AppName) {
    let (record, world) = (draft.app(app), draft.input.world);
    let current = record.current.filter(|_| record.destroying.is_none());
    // What serves was stored before it did.
    let Some(release) = current.and_then(|number| world.release(app, number)) else { return };
    for (name, job) in &release.file.jobs {
        dispatch_scheduled(draft, release, name, job);
    }
    retry::retry_failed(draft, release);
    leave_removed_jobs(draft, app, release);
}

/// What the release that serves does not name has no schedule any more. A pause and a pin are kept for as long as there
/// is a release to go back to that names the job.
fn leave_removed_jobs(draft: &mut Draft<'_>, app: &AppName, release: &Release) {
    let world = draft.input.world;
    let states = world.jobs.get(app).into_iter().flatten();
    for (name, held) in states.filter(|(name, _)| !release.file.jobs.contains_key(*name)) {
        draft.progress.next_times.remove(&(app.clone(), name.clone()));
        let releases = || world.releases.get(app).into_iter().flat_map(BTreeMap::values);
        if !releases().any(|release| release.value.file.jobs.contains_key(name)) {
            draft.delete(keys::job(app, name));
        } else if held.value.timing.is_some() {
            let state = JobState { timing: None, ..held.value.clone() };
            draft.dispatch(Dispatch { state: Some(state), runs: Vec::new() });
        }
    }
}

fn dispatch_scheduled(draft: &mut Draft<'_>, release: &Release, name: &JobName, job: &Job) {
    let (app, wall) = (&release.app, draft.input.clock.wall);
    let held = draft.input.world.jobs.get(app).and_then(|of_app| of_app.get(name)).map(|held| &held.value);
    let Some(state) = held.filter(|state| is_timed_so(state, job)) else {
        let schedule = job.schedule.clone();
        let timing = schedule.map(|schedule| Timing { schedule, timezone: job.timezone.clone() });
        if held.is_none() && timing.is_none() {
            return;
        }
        // From now on: what was due before the job, or this schedule of it, was known is nobody's.
        let state = held.cloned().unwrap_or_else(|| JobState::new(app.clone(), name.clone(), wall));
        let handled_until = state.handled_until.max(wall);
        let state = JobState { handled_until, timing, passed_over: None, ..state };
        draft.dispatch(Dispatch { state: Some(state), runs: Vec::new() });
        return;
    };
    if state.paused.is_some() || state.timing.is_none() {
        return;
    }
    let about = Declared { release, name, job };
    if state.passed_over.is_some() {
        pass_over(draft, about, state);
        return;
    }
    let Some(next) = next_time(draft, about, state.handled_until) else { return };
    if next > wall {
        draft.wake_at(draft.input.clock.elapsed + until(wall, next));
        return;
    }
    dispatch_due(draft, about, state, next);
}

/// Whether the job's progress is that of the schedule it has now.
fn is_timed_so(state: &JobState, job: &Job) -> bool {
    match (&state.timing, &job.schedule) {
        (Some(timing), Some(schedule)) => timing.schedule == *schedule && timing.timezone == job.timezone,
        (timing, schedule) => timing.is_none() && schedule.is_none(),
    }
}

/// A job as the release that serves has it.
#[derive(Debug, Clone, Copy)]
struct Declared<'r> {
    release: &'r Release,
    name: &'r JobName,
    job: &'r Job,
}

fn dispatch_due(draft: &mut Draft<'_>, about: Declared<'_>, state: &JobState, first: Timestamp) {
    let wall = draft.input.clock.wall;
    let due = Due::find(about.job, state.handled_until, first, wall);
    let chosen = due.chosen(about.job, wall);
    let template = template(draft, about, state);
    let room = (DISPATCH_BYTES_MAX / bytes_of(&template.command)).max(1);
    let later = chosen.len() > room;
    let chosen = &chosen[..chosen.len().min(room)];
    let mut runs = Vec::new();
    if let Some((from, through)) = due.missed(chosen.first().copied()) {
        runs.push(template.skipped(from, through, missed_in_words(from, through)));
    }
    let skip = about.job.overlap == Overlap::Forbid && draft.is_going(&about.release.app, about.name);
    runs.extend(chosen.iter().map(|time| match skip {
        true => template.skipped(*time, *time, "the run before it still goes on".to_owned()),
        false => template.pending(*time),
    }));
    // Should a person have put the job's time back, what has its record keeps it.
    runs.retain(|run| !draft.input.world.runs.contains_key(&run.id));
    let handled_until = if later { *chosen.last().expect("there is room for one") } else { due.last() };
    if !later {
        let key = (about.release.app.clone(), about.name.clone());
        draft.progress.next_times.insert(key, (about.release.number, handled_until, due.next));
    }
    draft.dispatch(Dispatch { state: Some(JobState { handled_until, ..state.clone() }), runs });
}

/// Records the times of a pause.
fn pass_over(draft: &mut Draft<'_>, about: Declared<'_>, state: &JobState) {
    let Some(passed) = &state.passed_over else { return };
    let first = next_time(draft, about, state.handled_until).filter(|first| *first <= passed.through);
    let runs = first.map(|first| {
        let due = Due::find(about.job, state.handled_until, first, passed.through);
        template(draft, about, state).skipped(first, due.last(), passed.reason.clone())
    });
    let runs = runs.into_iter().filter(|run| !draft.input.world.runs.contains_key(&run.id)).collect();
    let handled_until = state.handled_until.max(passed.through);
    let state = JobState { handled_until, passed_over: None, ..state.clone() };
    draft.dispatch(Dispatch { state: Some(state), runs });
}

fn missed_in_words(from: Timestamp, through: Timestamp) -> String {
    if from == through {
        return "its time passed while nothing was dispatched".to_owned();
    }
    // From when to when, the record says itself.
    "these times passed while nothing was dispatched".to_owned()
}

/// The next scheduled time; remembered, because working it out costs more than all else of a job that is not due.
fn next_time(draft: &mut Draft<'_>, about: Declared<'_>, after: Timestamp) -> Option<Timestamp> {
    let key = (about.release.app.clone(), about.name.clone());
    if let Some((of, since, next)) = draft.progress.next_times.get(&key)
        && (*of, *since) == (about.release.number, after)
    {
        return *next;
    }
    let next = about.job.schedule.as_ref()?.next_after(after, &about.job.timezone);
    draft.progress.next_times.insert(key, (about.release.number, after, next));
    next
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

fn bytes_of(command: &str) -> usize {
    RECORD_BYTES + 2 * command.len()
}

/// What all runs of one dispatch have in common.
struct Template {
    app: AppName,
    name: JobName,
    release: ReleaseNumber,
    command: String,
    timeout: Duration,
    retries: u32,
    retry_after: Duration,
    at: Timestamp,
}

fn template(draft: &Draft<'_>, about: Declared<'_>, state: &JobState) -> Template {
    let app = &about.release.app;
    let pinned = state.pinned.and_then(|number| draft.release(app, number));
    let pinned = pinned.and_then(|release| Some((release.number, release.file.jobs.get(about.name)?)));
    let (release, job) = pinned.unwrap_or((about.release.number, about.job));
    Template {
        app: app.clone(),
        name: about.name.clone(),
        release,
        command: job.command.clone(),
        timeout: job.timeout,
        retries: job.retries,
        retry_after: job.retry_after,
        at: draft.input.clock.wall,
    }
}

impl Template {
    fn pending(&self, time: Timestamp) -> Run {
        self.run(time, None, RunState::Pending)
    }

    /// The record that nothing ran.
    fn skipped(&self, from: Timestamp, through: Timestamp, reason: String) -> Run {
        let state = RunState::Ended { at: self.at, outcome: RunOutcome::Skipped { reason } };
        self.run(from, (from != through).then_some(through), state)
    }

    fn run(&self, time: Timestamp, through: Option<Timestamp>, state: RunState) -> Run {
        let run = JobRun {
            job: self.name.clone(),
            scheduled: Some(time),
            through,
            started: None,
            attempt: 1,
            retries_left: self.retries,
            retry_after: self.retry_after,
        };
        Run {
            id: JobRun::scheduled_id(&self.app, &self.name, time),
            app: self.app.clone(),
            kind: RunKind::Job {
                release: self.release,
                run,
                command: self.command.clone(),
                env: BTreeMap::new(),
            },
            by: BY_SCHEDULE.to_owned(),
            at: self.at,
            node: None,
            timeout: self.timeout,
            cancelled: false,
            state,
        }
    }
}

/// What the release that serves says of a run's job, or else the run's own.
fn declared<'d>(draft: &'d Draft<'_>, app: &AppName, name: &JobName, own: ReleaseNumber) -> Option<&'d Job> {
    let current = draft.app(app).current.and_then(|number| draft.release(app, number));
    let job = current.and_then(|release| release.file.jobs.get(name));
    job.or_else(|| draft.release(app, own)?.file.jobs.get(name))
}

fn overlap(draft: &Draft<'_>, app: &AppName, name: &JobName, own: ReleaseNumber) -> Overlap {
    declared(draft, app, name, own).map_or(Overlap::Allow, |job| job.overlap)
}

/// A run waits for its node while another one of the same job goes on, unless the job allows that.
pub(crate) fn is_held_back(draft: &Draft<'_>, run: &Run) -> bool {
    let RunKind::Job { release, run: of, .. } = &run.kind else { return false };
    if overlap(draft, &run.app, &of.job, *release) == Overlap::Allow {
        return false;
    }
    // Of those that wait, the one that came first goes first.
    let goes_first = |other: &Run| other.node.is_some() || (other.at, &other.id) < (run.at, &run.id);
    draft.going_runs(&run.app, &of.job).iter().any(|other| other.id != run.id && goes_first(other))
}

/// The run that takes this one's place.
pub(crate) fn replacement<'a>(draft: &Draft<'a>, run: &Run) -> Option<&'a Run> {
    let RunKind::Job { release, run: of, .. } = &run.kind else { return None };
    if overlap(draft, &run.app, &of.job, *release) != Overlap::Replace {
        return None;
    }
    // One that has its node is older than one that has none, whatever clock they were written by.
    let age = |run: &Run| (run.node.is_none(), run.at, run.id.clone());
    let others = draft.going_runs(&run.app, &of.job).iter().copied();
    others.filter(|other| !other.cancelled).find(|other| age(other) > age(run))
}

/// Why a run that was not started yet never will be: its time is too long ago.
pub(crate) fn missed_its_deadline(draft: &Draft<'_>, run: &Run) -> Option<String> {
    let RunKind::Job { release, run: of, .. } = &run.kind else { return None };
    let job = declared(draft, &run.app, &of.job, *release)?;
    let late = until(of.scheduled?, draft.input.clock.wall);
    (late > job.start_deadline && of.attempt == 1)
        .then(|| format!("it could not be started within {}", in_words(job.start_deadline)))
}

/// Whether missed times run beside each other.
fn catches_up_with_all(job: &Job) -> bool {
    job.catch_up == CatchUp::All && job.overlap == Overlap::Allow
}
