//! The next try of a run that failed.
//!
//! The tries that are left go over from one run to the next, in the transaction that makes that one: a retry happens
//! once, whatever is forgotten of the history. They are given up when the job is paused or gone at that time, or when a
//! newer run of it has come meanwhile and the two shall not overlap.

use std::time::Duration;

use rung_model::{JobRun, Overlap, Release, Run, RunKind, RunState};

use super::{overlap, until};
use crate::draft::{Dispatch, Draft};

/// Retries never wait longer, however often they doubled.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

pub(super) fn retry_failed(draft: &mut Draft<'_>, release: &Release) {
    for run in draft.failed_with_tries_left(&release.app).to_vec() {
        let RunKind::Job { run: of, .. } = &run.kind else { continue };
        let at = due_at(draft, run, of);
        if draft.input.clock.elapsed < at {
            draft.wake_at(at);
            continue;
        }
        draft.progress.retries.remove(&run.id);
        let mut runs = vec![with_tries(run, 0)];
        let next = of.retry_id(&run.id);
        if !is_given_up(draft, release, run, of) && !draft.input.world.runs.contains_key(&next) {
            let mut again = with_tries(run, of.retries_left - 1);
            if let RunKind::Job { run, .. } = &mut again.kind {
                run.attempt += 1;
                run.started = None;
            }
            let at = draft.input.clock.wall;
            runs.push(Run { id: next, at, node: None, state: RunState::Pending, ..again });
        }
        draft.dispatch(Dispatch { state: None, runs });
    }
}

/// On the monotonic clock: a wall clock that steps back must not hold a retry up for as long.
fn due_at(draft: &mut Draft<'_>, run: &Run, of: &JobRun) -> Duration {
    if let Some(at) = draft.progress.retries.get(&run.id) {
        return *at;
    }
    let clock = draft.input.clock;
    let doubled = 2_u32.saturating_pow(of.attempt.saturating_sub(1));
    let pause = of.retry_after.saturating_mul(doubled).min(RETRY_AFTER_MAX);
    let waited = match &run.state {
        RunState::Ended { at, .. } => until(*at, clock.wall),
        RunState::Pending | RunState::Running { .. } => Duration::ZERO,
    };
    let at = clock.elapsed + pause.saturating_sub(waited);
    draft.progress.retries.insert(run.id.clone(), at);
    at
}

fn is_given_up(draft: &Draft<'_>, release: &Release, run: &Run, of: &JobRun) -> bool {
    let states = draft.input.world.jobs.get(&run.app);
    let state = states.and_then(|states| states.get(&of.job));
    let paused = state.is_some_and(|held| held.value.paused.is_some());
    let gone = !release.file.jobs.contains_key(&of.job);
    let alone = overlap(draft, &run.app, &of.job, release.number) != Overlap::Allow;
    paused || gone || run.cancelled || (alone && draft.has_newer_run(run, of))
}

fn with_tries(run: &Run, retries_left: u32) -> Run {
    let mut run = run.clone();
    if let RunKind::Job { run, .. } = &mut run.kind {
        run.retries_left = retries_left;
    }
    run
}
