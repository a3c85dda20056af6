//! Counts of requests by cohort, for those who judge a release by them.
//!
//! Only services whose document says that they are measured have any. All threads count in the same atomics, which belong
//! to the cohort and outlive tables; what is reported are totals.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rung_api::wire::{CohortTraffic, ProxyTraffic};
use rung_model::traffic::{CLASSES, Counts, class_of};

/// How often totals are reported while they grow: a release that fails is judged by the second.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What became of the requests to one cohort of an app.
#[derive(Debug)]
pub(crate) struct CohortCounts {
    requests: AtomicU64,
    errors: AtomicU64,
    times: [AtomicU64; CLASSES],
}

impl Default for CohortCounts {
    fn default() -> Self {
        let times = std::array::from_fn(|_| AtomicU64::new(0));
        Self { requests: AtomicU64::new(0), errors: AtomicU64::new(0), times }
    }
}

impl CohortCounts {
    pub(crate) fn answered(&self, status: u16, after: Duration) {
        self.requests.fetch_add(1, Ordering::Release);
        if status >= 500 {
            self.errors.fetch_add(1, Ordering::Release);
        }
        self.times[usize::from(class_of(after))].fetch_add(1, Ordering::Release);
    }

    /// The instance did not answer, or not to the end.
    pub(crate) fn failed(&self) {
        self.requests.fetch_add(1, Ordering::Release);
        self.errors.fetch_add(1, Ordering::Release);
    }

    /// Reads what a request adds last first, so that there are never more errors than requests.
    pub(crate) fn read(&self) -> Counts {
        let times =
            self.times.iter().enumerate().map(|(class, count)| (class as u8, count.load(Ordering::Acquire)));
        let times = times.filter(|(_, count)| *count > 0).collect();
        let errors = self.errors.load(Ordering::Acquire);
        Counts { errors, times, requests: self.requests.load(Ordering::Acquire) }
    }
}

/// Says when there is something to report.
#[derive(Debug)]
pub(crate) struct Reporter {
    /// Tells this process from others under the same name.
    life: u64,
    reported: Option<u64>,
}

impl Reporter {
    pub(crate) fn new() -> Self {
        Self { life: fastrand::u64(1..), reported: None }
    }

    /// The totals, when they have grown. The first report is made in any case: what is counted, is counted from there.
    pub(crate) fn report(&mut self, cohorts: Vec<CohortTraffic>) -> Option<ProxyTraffic> {
        let requests = cohorts.iter().map(|cohort| cohort.counts.requests).sum();
        let is_news = self.reported.replace(requests) != Some(requests);
        is_news.then_some(ProxyTraffic { life: self.life, cohorts })
    }
}
