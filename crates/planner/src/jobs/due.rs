//! The scheduled times that have come since the last ones were handled.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use rung_model::appfile::Job;
use rung_model::{CatchUp, Overlap};

use super::{catches_up_with_all, until};

/// A time that is found so late was not missed, only met by a busy machine.
const ON_TIME: Duration = Duration::from_secs(5);

/// How many missed times run at the most; the older ones are recorded as missed.
const CAUGHT_UP_MAX: usize = 100;

/// The first stretch that is looked through for the newest times, from its end. It grows fourfold until it holds enough:
/// a week of a job for each second is never gone through, nor is a year of one for each minute of a single night.
const FIRST_STRETCH: Duration = Duration::from_secs(120);

pub(super) struct Due {
    first: Timestamp,
    /// The newest, oldest first: one more than can be caught up with, so that the last missed one is known.
    newest: VecDeque<Timestamp>,
    /// The one that comes after them.
    pub next: Option<Timestamp>,
}

impl Due {
    /// `first` is the first time after `after`, and not later than `wall`.
    pub fn find(job: &Job, after: Timestamp, first: Timestamp, wall: Timestamp) -> Self {
        let schedule = job.schedule.as_ref().expect("only what has a schedule is due");
        let mut stretch = FIRST_STRETCH;
        loop {
            let from = wall.checked_sub(stretch).map_or(after, |from| from.max(after));
            let mut newest = VecDeque::new();
            // What is known is not searched for again.
            newest.extend((from < first).then_some(first));
            let mut times = schedule.after(from.max(first), &job.timezone);
            let mut next = times.next();
            while let Some(time) = next.take_if(|time| *time <= wall) {
                next = times.next();
                newest.push_back(time);
                if newest.len() > CAUGHT_UP_MAX + 1 {
                    newest.pop_front();
                }
            }
            if from <= after || newest.len() > CAUGHT_UP_MAX {
                return Self { first, newest, next };
            }
            stretch = stretch.saturating_mul(4);
        }
    }

    pub fn last(&self) -> Timestamp {
        *self.newest.back().expect("it holds the first at least")
    }

    /// The times that run, oldest first: always the newest ones.
    pub fn chosen(&self, job: &Job, wall: Timestamp) -> Vec<Timestamp> {
        let last = self.last();
        let is_on_time = |time: Timestamp| until(time, wall) <= ON_TIME;
        let is_wanted = |time: Timestamp| match job.catch_up {
            _ if job.overlap != Overlap::Allow && time != last => false,
            CatchUp::None => is_on_time(time),
            CatchUp::Last => time == last || is_on_time(time),
            CatchUp::All => catches_up_with_all(job) || time == last,
        };
        let skip = self.newest.len().saturating_sub(CAUGHT_UP_MAX);
        let newest = self.newest.iter().skip(skip).copied();
        newest.filter(|time| is_wanted(*time) && until(*time, wall) <= job.start_deadline).collect()
    }

    /// The stretch of times before the first that runs, all of them when none does.
    pub fn missed(&self, first_chosen: Option<Timestamp>) -> Option<(Timestamp, Timestamp)> {
        let Some(chosen) = first_chosen else { return Some((self.first, self.last())) };
        let before = self.newest.iter().rev().find(|time| **time < chosen)?;
        Some((self.first, *before))
    }
}
