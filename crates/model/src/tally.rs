//! What became of the requests that took one route, or went to one instance: totals, as every ingress keeps them.
//!
//! Times are counted in classes that are narrow enough to tell 210 µs from 240 µs and wide enough for a hundred and some
//! of them to reach beyond two minutes. Totals of several ingresses add up, and what came between two readings is their
//! difference, quantiles included. (The counts that a canary is judged by are coarser and are kept with the deployment:
//! [`crate::traffic`].)

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, InstanceId, ServiceName};

/// Whose requests are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "of")]
pub enum Subject {
    /// As the app file has it: `/api/*`, with its host and methods where it asks for some. Routes of one name count as one.
    Route { app: AppName, route: String },
    /// Each attempt to have a request answered by it, the failed ones too.
    Instance { app: AppName, service: ServiceName, instance: InstanceId },
}

impl Subject {
    pub fn app(&self) -> &AppName {
        match self {
            Self::Route { app, .. } | Self::Instance { app, .. } => app,
        }
    }
}

/// See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Tally {
    /// Begun and not ended yet.
    pub in_flight: u64,
    /// How many ended, by the first digit of their status; at 0: without an answer, or in the midst of one.
    pub ended: [u64; 6],
    /// Payload of the answers.
    pub bytes: u64,
    /// All times together.
    pub time_us: u64,
    /// Until the first byte of the answer: how many answers are in which class of [`class_of`].
    #[serde(default)]
    pub times: BTreeMap<u8, u64>,
}

/// The first classes are as wide as this, in microseconds: below, a request's time is mostly the scheduler's.
const UNIT_US: u64 = 16;
/// Classes to a doubling, as a power of two: each is an eighth as wide as the time it begins at.
const STEPS: u32 = 3;

/// The last class is beyond two minutes.
pub const CLASSES: usize = 168;

/// The class of a time.
pub fn class_of(time: Duration) -> u8 {
    let units = time.as_micros() as u64 / UNIT_US;
    let steps = 1 << STEPS;
    if units < steps {
        return units as u8;
    }
    let doublings = units.ilog2() - STEPS;
    let class = (u64::from(doublings) << STEPS) + (units >> doublings);
    class.min(CLASSES as u64 - 1) as u8
}

/// The shortest time of a class.
pub fn class_begin(class: u8) -> Duration {
    let (class, steps) = (u64::from(class), 1 << STEPS);
    let units = match class.checked_sub(steps) {
        None => class,
        Some(above) => (steps + above % steps) << (above >> STEPS),
    };
    Duration::from_micros(units * UNIT_US)
}

impl Tally {
    pub fn requests(&self) -> u64 {
        self.ended.iter().sum()
    }

    /// Answered with a status of 500 and more, or not to the end.
    pub fn errors(&self) -> u64 {
        self.ended[0] + self.ended[5]
    }

    pub fn add(&mut self, other: &Self) {
        self.in_flight += other.in_flight;
        for (own, other) in self.ended.iter_mut().zip(other.ended) {
            *own += other;
        }
        self.bytes += other.bytes;
        self.time_us += other.time_us;
        for (class, count) in &other.times {
            *self.times.entry(*class).or_default() += count;
        }
    }

    /// What came after `earlier`; what is in flight is in flight now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |class| earlier.times.get(class).copied().unwrap_or(0);
        let times = self.times.iter().map(|(class, count)| (*class, count.saturating_sub(before(class))));
        Self {
            in_flight: self.in_flight,
            ended: std::array::from_fn(|at| self.ended[at].saturating_sub(earlier.ended[at])),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            time_us: self.time_us.saturating_sub(earlier.time_us),
            times: times.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// The time within which `share` of the answers began, taken to lie evenly in its class. `None` without an answer.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let answers: u64 = self.times.values().sum();
        let rank = (answers as f64 * share).max(1.0);
        let mut counted = 0.0;
        for (class, count) in &self.times {
            let count = *count as f64;
            if count > 0.0 && counted + count >= rank {
                let (begin, end) = (class_begin(*class), class_begin(class.saturating_add(1)));
                return Some(begin + (end - begin).mul_f64((rank - counted) / count));
            }
            counted += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn classes_follow_each_other_without_a_gap_and_none_is_wide() {
        for class in 0..CLASSES as u8 - 1 {
            let (begin, end) = (class_begin(class), class_begin(class + 1));
            assert_eq!(class_of(begin), class, "a class does not hold its begin, {begin:?}");
            assert_eq!(class_of(end - us(1)), class, "a class ends before the next one begins, at {end:?}");
            let width = end - begin;
            assert!(width <= us(16) || width <= begin / 8, "{begin:?} to {end:?} is one class");
        }
        assert!(class_begin(CLASSES as u8 - 1) > us(120_000_000), "the last class begins too soon");
        assert_eq!(usize::from(class_of(Duration::from_secs(1 << 30))), CLASSES - 1);
    }

    #[test]
    fn quantiles_of_known_times_are_near_them() {
        let mut tally = Tally::default();
        for time in 1..=10_000 {
            *tally.times.entry(class_of(us(time))).or_default() += 1;
        }
        for (share, expected) in [(0.5, 5_000.0), (0.95, 9_500.0), (0.99, 9_900.0), (0.0001, 16.0)] {
            let got = tally.quantile(share).unwrap().as_secs_f64() * 1e6;
            let off: f64 = (got - expected) / expected;
            assert!(off.abs() < 0.07 || got < 20.0, "the quantile {share} of 1 to 10,000 µs was {got} µs");
        }
        assert_eq!(Tally::default().quantile(0.5), None);
    }

    #[test]
    fn what_is_taken_off_and_added_again_is_the_whole() {
        let earlier =
            Tally { in_flight: 0, ended: [1, 0, 5, 0, 0, 2], bytes: 70, time_us: 9, times: [(3, 7)].into() };
        let later = Tally {
            ended: [1, 0, 9, 0, 1, 3],
            bytes: 100,
            time_us: 30,
            times: [(3, 8), (90, 5)].into(),
            ..earlier.clone()
        };
        let mut between = later.since(&earlier);
        assert_eq!((between.requests(), between.errors(), between.bytes), (6, 1, 30));
        between.add(&earlier);
        assert_eq!(between, later);
    }
}
