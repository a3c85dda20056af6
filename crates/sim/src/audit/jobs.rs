//! Invariant 5, of scheduled runs: each time has one record, whatever clocks do and whoever leads.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rung_model::{AppName, JobName, JobRun, JobState, Run, keys};
use rung_store::Revision;

use super::parse;
use crate::story::Story;

/// Scheduled times that have their record, with the revision that created their app's.
#[derive(Debug, Default)]
pub struct Times(BTreeSet<(AppName, JobName, Timestamp, Revision)>);

impl Story {
    /// A record is made.
    pub(super) fn audit_schedule(&mut self, new: &Run) {
        let Some(of) = new.of_job() else { return };
        let Some(time) = of.scheduled.filter(|_| of.attempt == 1) else { return };
        let created = self.store.get(&keys::app(&new.app)).value.map_or(0, |held| held.created);
        self.summary.scheduled += 1;
        if !self.audit.times.0.insert((new.app.clone(), of.job.clone(), time, created)) {
            self.fail(format!("{time} of {}/{} has a second record", new.app, of.job));
        }
    }

    /// The line up to which every time has its record only goes forward, and over no time that has none.
    pub(super) fn audit_line(&mut self, old: Option<&[u8]>, new: Option<&[u8]>) {
        let (Some(old), Some(new)) = (old.map(parse::<JobState>), new.map(parse::<JobState>)) else { return };
        let JobState { app, job, .. } = &new;
        if new.handled_until < old.handled_until {
            self.fail(format!(
                "{app}/{job} was handled until {} and is until {}",
                old.handled_until, new.handled_until
            ));
        }
        // With another schedule it counts from the present on: what passed before is nobody's.
        let Some(timing) = new.timing.as_ref().filter(|timing| old.timing.as_ref() == Some(*timing)) else {
            return;
        };
        let times = timing.schedule.after(old.handled_until, &timing.timezone);
        let mut recorded_through = old.handled_until;
        for time in times.take_while(|time| *time <= new.handled_until) {
            if time <= recorded_through {
                continue;
            }
            let key = keys::run(app, &JobRun::scheduled_id(app, job, time));
            let Some(held) = self.store.get(&key).value else {
                self.fail(format!("{time} of {app}/{job} counts as handled and has no record"));
                return;
            };
            let through = parse::<Run>(&held.value).of_job().and_then(|of| of.through);
            recorded_through = through.unwrap_or(time);
        }
    }
}
