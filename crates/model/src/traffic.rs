//! Counts of requests, as the ingress reports them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What became of the requests to one cohort. Reports hold totals, so that a lost or doubled one does no harm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Counts {
    pub requests: u64,
    /// Answered with a status of 500 and more, or not at all. Never more than `requests`.
    pub errors: u64,
    /// Until the first byte of the answer: how many answers are in which class of [`class_of`].
    #[serde(default)]
    pub times: BTreeMap<u8, u64>,
}

/// Classes of an answer's time grow by the fourth root of 2, which tells 800 ms from 950 ms, from a millisecond on.
const CLASSES_PER_DOUBLING: f64 = 4.0;

/// The last class is beyond two minutes.
pub const CLASSES: usize = 70;

/// The class of a time.
pub fn class_of(time: Duration) -> u8 {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 1.0 {
        return 0;
    }
    let class = 1.0 + (ms.log2() * CLASSES_PER_DOUBLING).floor();
    class.min((CLASSES - 1) as f64) as u8
}

/// The shortest time of a class.
pub fn class_begin(class: u8) -> Duration {
    match class {
        0 => Duration::ZERO,
        _ => Duration::from_secs_f64((f64::from(class - 1) / CLASSES_PER_DOUBLING).exp2() / 1000.0),
    }
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        for (class, count) in &other.times {
            *self.times.entry(*class).or_default() += count;
        }
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |class| earlier.times.get(class).copied().unwrap_or(0);
        let times = self.times.iter().map(|(class, count)| (*class, count.saturating_sub(before(class))));
        let requests = self.requests.saturating_sub(earlier.requests);
        Self {
            requests,
            errors: self.errors.saturating_sub(earlier.errors).min(requests),
            times: times.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// How many answers surely took longer.
    pub fn slower_than(&self, limit: Duration) -> u64 {
        let slow = self.times.iter().filter(|(class, _)| class_begin(**class) >= limit);
        slow.map(|(_, count)| count).sum::<u64>().min(self.requests)
    }

    /// Nineteen of twenty answers began within this time; `None` without an answer.
    pub fn p95(&self) -> Option<Duration> {
        let answers: u64 = self.times.values().sum();
        let rank = (answers * 95).div_ceil(100);
        let mut counted = 0;
        self.times.iter().find_map(|(class, count)| {
            counted += count;
            (rank > 0 && counted >= rank).then(|| class_begin(class.saturating_add(1)))
        })
    }

    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn every_time_is_in_the_class_that_begins_before_it() {
        for time in [0, 1, 2, 5, 100, 799, 800, 801, 60_000, 10_000_000].map(ms) {
            let class = class_of(time);
            assert!(class_begin(class) <= time, "{time:?} is before the begin of its class {class}");
            let is_last = usize::from(class) == CLASSES - 1;
            assert!(is_last || class_begin(class + 1) > time, "{time:?} is beyond its class {class}");
        }
    }

    #[test]
    fn ninety_five_of_a_hundred_answers_are_within_the_p95() {
        let mut counts = Counts { requests: 100, ..Counts::default() };
        counts.times.insert(class_of(ms(10)), 95);
        counts.times.insert(class_of(ms(2000)), 5);
        let p95 = counts.p95().unwrap();
        assert!((ms(10)..ms(13)).contains(&p95), "the p95 is {p95:?}");
        assert_eq!(counts.slower_than(ms(800)), 5);
        assert_eq!(Counts::default().p95(), None);
    }

    #[test]
    fn what_is_taken_off_and_added_again_is_the_whole() {
        let mut earlier = Counts { requests: 5, errors: 2, times: [(3, 5)].into() };
        let later = Counts { requests: 9, errors: 2, times: [(3, 6), (9, 3)].into() };
        let between = later.since(&earlier);
        assert_eq!((between.requests, between.errors), (4, 0));
        earlier.add(&between);
        assert_eq!(earlier, later);
    }
}
