//! Jobs: which scheduled times have come, and what becomes of each.
//!
//! Every scheduled time gets one record: a run, or a run that says why nothing ran. [`JobState::handled_until`] and the
//! records are written in one transaction, guarded by the state's revision, and a run's id is made of its time: over
//! restarts, clock steps and changes of the leader a time is dispatched once. A clock that goes back finds its times
//! handled already; one that goes forward finds some that have passed, and `catch_up` says what to do with them.

use std::time::Duration;

use jiff::Timestamp;
use rung_model::appfile::Job;
use rung_model::duration::in_words;
use rung_model::{
    AppName, CatchUp, JobName, JobRun, JobState, Overlap, Release, Run, RunKind, RunOutcome, RunState, keys,
};

use crate::draft::{Dispatch, Draft};

/// A time that is found so late was not missed, only met by a busy machine.
const ON_TIME: Duration = Duration::from_secs(5);

/// How many missed times run at the most; the older ones are recorded as missed.
const CAUGHT_UP_MAX: usize = 100;

/// Missed times are counted up to here: a week of a job for each second is 600,000.
const COUNTED_MAX: usize = 10_000;

/// Retries never wait longer, however often they doubled.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Who is named as having asked for a scheduled run.
const BY_SCHEDULE: &str = "schedule";

/// Dispatches what is due of all the app's jobs.
pub fn dispatch_jobs(draft: &mut Draft<'_>, app: &AppName) {
    let record = draft.app(app);
    let current = record.current.filter(|_| record.destroying.is_none());
    let Some(release) = current.and_then(|number| draft.release(app, number)).cloned() else { return };
    for (name, job) in &release.file.jobs {
        if job.schedule.is_some() {
            dispatch_scheduled(draft, &release, name, job);
        }
    }
    retry_failed(draft, app);
    forget_removed_jobs(draft, app, &release);
}

/// What the release that serves does not name has no schedule any more; its runs are kept as history.
fn forget_removed_jobs(draft: &mut Draft<'_>, app: &AppName, release: &Release) {
    let known = draft.input.world.jobs.get(app).into_iter().flat_map(|of_app| of_app.keys());
    for job in known.filter(|job| !release.file.jobs.contains_key(*job)) {
        draft.delete(keys::job(app, job));
    }
}

fn dispatch_scheduled(draft: &mut Draft<'_>, release: &Release, name: &JobName, job: &Job) {
    let (app, wall) = (&release.app, draft.input.clock.wall);
    let Some(state) = draft.input.world.jobs.get(app).and_then(|of_app| of_app.get(name)) else {
        // From now on: what was due before the job was known is nobody's.
        let state =
            JobState { app: app.clone(), job: name.clone(), handled_until: wall, paused: None, pinned: None };
        draft.dispatch(Dispatch { state: Some(state), runs: Vec::new() });
        return;
    };
    let state = &state.value;
    if state.paused.is_some() {
        return;
    }
    let Some(next) = next_time(draft, release, name, job, state.handled_until) else { return };
    if next > wall {
        draft.wake_at(draft.input.clock.elapsed + until(wall, next));
        return;
    }
    let release = match state.pinned.and_then(|number| draft.release(app, number)) {
        Some(pinned) => pinned.clone(),
        None => release.clone(),
    };
    let due = Due::find(job, state.handled_until, wall);
    let runs = due.runs(draft, &release, name, job, wall);
    let handled = JobState { handled_until: due.last, ..state.clone() };
    draft.dispatch(Dispatch { state: Some(handled), runs });
}

/// The next scheduled time; remembered, because working it out costs more than all else of a job that is not due.
fn next_time(
    draft: &mut Draft<'_>,
    release: &Release,
    name: &JobName,
    job: &Job,
    after: Timestamp,
) -> Option<Timestamp> {
    let key = (release.app.clone(), name.clone());
    if let Some((of, since, next)) = draft.progress.next_times.get(&key)
        && (*of, *since) == (release.number, after)
    {
        return *next;
    }
    let next = job.schedule.as_ref()?.next_after(after, &job.timezone);
    draft.progress.next_times.insert(key, (release.number, after, next));
    next
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// The scheduled times that have come since the last ones were handled.
struct Due {
    /// The newest of them, oldest first; no more than can be caught up with.
    times: Vec<Timestamp>,
    /// How many came before these.
    earlier: usize,
    first: Timestamp,
    last: Timestamp,
}

impl Due {
    fn find(job: &Job, after: Timestamp, wall: Timestamp) -> Self {
        let schedule = job.schedule.as_ref().expect("the caller looked");
        let all = schedule.after(after, &job.timezone).take_while(|time| *time <= wall).take(COUNTED_MAX);
        let mut times = std::collections::VecDeque::new();
        let (mut first, mut earlier) = (None, 0);
        for time in all {
            first.get_or_insert(time);
            times.push_back(time);
            if times.len() > CAUGHT_UP_MAX {
                times.pop_front();
                earlier += 1;
            }
        }
        if earlier + times.len() == COUNTED_MAX {
            // Too many to count: the rest is passed over in one step, the last of them found from the other side.
            times = schedule.last_before(wall, &job.timezone).into_iter().collect();
            earlier = COUNTED_MAX;
        }
        let last = times.back().copied().unwrap_or(wall);
        Self { times: times.into(), earlier, first: first.unwrap_or(last), last }
    }

    /// A record for each time that runs, and one for all that do not.
    fn runs(
        &self,
        draft: &Draft<'_>,
        release: &Release,
        name: &JobName,
        job: &Job,
        wall: Timestamp,
    ) -> Vec<Run> {
        let is_on_time = |time: &Timestamp| until(*time, wall) <= ON_TIME;
        let may_start = |time: &&Timestamp| until(**time, wall) <= job.start_deadline;
        let chosen: Vec<Timestamp> = match job.catch_up {
            CatchUp::All => self.times.iter().filter(may_start).copied().collect(),
            CatchUp::Last => self.times.last().into_iter().filter(may_start).copied().collect(),
            CatchUp::None => self.times.last().into_iter().filter(|time| is_on_time(time)).copied().collect(),
        };
        let mut runs = Vec::new();
        let missed = self.earlier + self.times.len() - chosen.len();
        if missed > 0 {
            runs.push(record(draft, release, name, job, self.first, Some(self.describe_missed(missed))));
        }
        let goes_on = !draft.going_runs(&release.app, name).is_empty();
        for time in chosen {
            let skipped = (job.overlap == Overlap::Forbid && goes_on)
                .then(|| "the run before it still goes on".to_owned());
            runs.push(record(draft, release, name, job, time, skipped));
        }
        if job.overlap == Overlap::Replace && !runs.is_empty() {
            runs.extend(ended_for_replacement(draft, &release.app, name));
        }
        runs
    }

    fn describe_missed(&self, missed: usize) -> String {
        match missed {
            1 => "its time passed while nothing was dispatched".to_owned(),
            _ if self.earlier >= COUNTED_MAX => {
                format!(
                    "more than {COUNTED_MAX} times from {} on passed while nothing was dispatched",
                    self.first
                )
            }
            _ => format!("{missed} times from {} on passed while nothing was dispatched", self.first),
        }
    }
}

/// A run for a scheduled time, or the record that there is none.
fn record(
    draft: &Draft<'_>,
    release: &Release,
    name: &JobName,
    job: &Job,
    time: Timestamp,
    skipped: Option<String>,
) -> Run {
    let at = draft.input.clock.wall;
    let state = match skipped {
        Some(reason) => RunState::Ended { at, outcome: RunOutcome::Skipped { reason } },
        None => RunState::Pending,
    };
    let of = JobRun {
        job: name.clone(),
        scheduled: Some(time),
        attempt: 1,
        retries_left: job.retries,
        retry_after: job.retry_after,
    };
    Run {
        id: JobRun::scheduled_id(&release.app, name, time),
        app: release.app.clone(),
        kind: RunKind::Job {
            release: release.number,
            run: of,
            command: job.command.clone(),
            env: std::collections::BTreeMap::new(),
        },
        by: BY_SCHEDULE.to_owned(),
        at,
        node: None,
        timeout: job.timeout,
        cancelled: false,
        state,
    }
}

/// The runs that a replacement ends, marked; they and their successor are written together.
fn ended_for_replacement(draft: &Draft<'_>, app: &AppName, name: &JobName) -> Vec<Run> {
    let going = draft.going_runs(app, name).iter().filter(|run| !run.cancelled);
    going.map(|run| Run { cancelled: true, ..(*run).clone() }).collect()
}

/// A run waits for its node while an earlier one of the same job goes on, unless the job allows that.
pub(crate) fn is_held_back(draft: &Draft<'_>, run: &Run) -> bool {
    let RunKind::Job { release, run: of, .. } = &run.kind else { return false };
    let declared = draft.release(&run.app, *release).and_then(|release| release.file.jobs.get(&of.job));
    let overlap = declared.map_or(Overlap::Allow, |job| job.overlap);
    overlap != Overlap::Allow && draft.going_runs(&run.app, &of.job).iter().any(|other| other.node.is_some())
}

/// Why a run that was not started yet never will be: its time is too long ago.
pub(crate) fn missed_its_deadline(draft: &Draft<'_>, run: &Run) -> Option<String> {
    let RunKind::Job { release, run: of, .. } = &run.kind else { return None };
    let job = draft.release(&run.app, *release)?.file.jobs.get(&of.job)?;
    let late = until(of.scheduled?, draft.input.clock.wall);
    (late > job.start_deadline && of.attempt == 1)
        .then(|| format!("it could not be started within {}", in_words(job.start_deadline)))
}

/// Makes the next try of each run that failed and has some left.
fn retry_failed(draft: &mut Draft<'_>, app: &AppName) {
    let world = draft.input.world;
    let wall = draft.input.clock.wall;
    for run in world.runs.values().map(|held| &held.value).filter(|run| run.app == *app) {
        let RunKind::Job { release, run: of, command, env } = &run.kind else { continue };
        let RunState::Ended { at: ended, outcome: RunOutcome::Failed { .. } } = &run.state else { continue };
        let id = of.retry_id(&run.id);
        if of.retries_left == 0 || run.cancelled || world.runs.contains_key(&id) {
            continue;
        }
        let doubled = 2_u32.saturating_pow(of.attempt.saturating_sub(1));
        let pause = of.retry_after.saturating_mul(doubled).min(RETRY_AFTER_MAX);
        let waited = until(*ended, wall);
        if waited < pause {
            draft.wake_at(draft.input.clock.elapsed + (pause - waited));
            continue;
        }
        let again = JobRun { attempt: of.attempt + 1, retries_left: of.retries_left - 1, ..of.clone() };
        let kind = RunKind::Job { release: *release, run: again, command: command.clone(), env: env.clone() };
        let next = Run { id, kind, at: wall, node: None, state: RunState::Pending, ..run.clone() };
        draft.dispatch(Dispatch { state: None, runs: vec![next] });
    }
}
