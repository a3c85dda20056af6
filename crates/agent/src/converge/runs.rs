//! Runs as the converge machine sees them: begun once, cancelled when asked, kept until the server has the outcome.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rung_model::observed::ObservedRun;
use rung_model::{AppName, Run, RunId, RunOutcome, RunState};

use super::Effect;

/// What a node says of itself is one document, which holds a megabyte at the most.
const TAILS_BYTES_MAX: usize = 200 * 1024;

#[derive(Debug)]
struct Life {
    app: AppName,
    state: RunState,
    started: Option<Timestamp>,
    cancel_asked: bool,
}

/// ```text
/// assigned ──► Pending ──► Running ──► Ended ──► forgotten, when the assignment has it no more
/// ```
#[derive(Debug, Default)]
pub(super) struct Runs {
    lives: BTreeMap<RunId, Life>,
}

impl Runs {
    /// Of all together no more log lines than one document may hold: the others can be read where they were written.
    pub fn observed(&self) -> BTreeMap<RunId, ObservedRun> {
        let mut room = TAILS_BYTES_MAX;
        let observed = self.lives.iter().map(|(id, life)| {
            let mut state = life.state.clone();
            if let RunState::Ended { outcome: RunOutcome::Failed { log_tail, .. }, .. } = &mut state {
                let bytes: usize = log_tail.iter().map(String::len).sum();
                match room.checked_sub(bytes) {
                    Some(left) => room = left,
                    None => log_tail.clear(),
                }
            }
            (id.clone(), ObservedRun { app: life.app.clone(), state, started: life.started })
        });
        observed.collect()
    }

    pub fn any_of(&self, app: &AppName) -> bool {
        self.lives.values().any(|life| life.app == *app)
    }

    pub fn is_quiet(&self) -> bool {
        self.lives.values().all(|life| matches!(life.state, RunState::Ended { .. }))
    }

    pub fn started(&mut self, id: &RunId, at: Timestamp) {
        if let Some(life) = self.lives.get_mut(id)
            && life.state == RunState::Pending
        {
            life.state = RunState::Running { since: at };
            life.started = Some(at);
        }
    }

    /// The first outcome is the outcome.
    pub fn ended(&mut self, id: &RunId, outcome: RunOutcome, at: Timestamp) {
        if let Some(life) = self.lives.get_mut(id)
            && !matches!(life.state, RunState::Ended { .. })
        {
            life.state = RunState::Ended { at, outcome };
        }
    }

    pub fn converge(
        &mut self,
        wanted: &BTreeMap<RunId, Run>,
        shutting_down: bool,
        may_begin: impl Fn(&AppName) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        if !shutting_down {
            for (id, run) in wanted.iter().filter(|(_, run)| !run.has_ended() && may_begin(&run.app)) {
                self.ensure(id, run, effects);
            }
        }
        let gone = |id: &RunId| !wanted.contains_key(id);
        for (id, life) in &mut self.lives {
            let ended = matches!(life.state, RunState::Ended { .. });
            let cancelled = gone(id) || wanted.get(id).is_some_and(|run| run.cancelled);
            if !ended && (cancelled || shutting_down) && !std::mem::replace(&mut life.cancel_asked, true) {
                effects.push(Effect::CancelRun { run: id.clone() });
            }
        }
        self.lives.retain(|id, life| {
            let forgotten = gone(id) && matches!(life.state, RunState::Ended { .. });
            if forgotten {
                effects.push(Effect::ForgetRun { run: id.clone() });
            }
            !forgotten
        });
    }

    fn ensure(&mut self, id: &RunId, run: &Run, effects: &mut Vec<Effect>) {
        self.lives.entry(id.clone()).or_insert_with(|| {
            effects.push(Effect::StartRun { run: Box::new(run.clone()) });
            Life { app: run.app.clone(), state: RunState::Pending, started: None, cancel_asked: false }
        });
    }
}
