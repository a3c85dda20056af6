//! How many requests an instance works on at a time, where a route asks for a bound: as many as it does well.
//!
//! A request counts from the choice of its instance until its answer begins, so streams and WebSockets that stay open take
//! nobody's place. [`Limit`] is told how each ended and says how many may be under way: it grows while answers begin about as
//! soon as they ever do, and shrinks as soon as they take more than twice as long, for then requests wait in the
//! instance, where nobody can take them back. What the instance does when it is not loaded is learned anew every half a minute.
//!
//! An instance that only fails is left alone for a while, and then asked by one request (a circuit):
//!
//! ```text
//!           ten failures in a row           its time came             an answer
//!  Closed ───────────────────────► Open ──────────────────► Trying ─────────────► Closed
//!                                    ▲                        │
//!                                    └────── a failure ───────┘ for twice as long
//! ```

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::balance::InstanceLoad;
use crate::clock::now_ms;

/// What an instance of which nothing is known gets at once; doubled as long as it bears that.
const FIRST: f64 = 5.0;
/// No instance that anybody runs works on more.
const MOST: f64 = 100_000.0;
/// Judged are so many answers at least, over so much time: less is chance.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_ANSWERS: u32 = 10;
/// Below it no visitor and no queue matters, and what a machine does beside is larger.
const SLACK: Duration = Duration::from_millis(5);
/// Applications change with their data: what was fast an hour ago says nothing.
const FLOOR_SPAN: Duration = Duration::from_secs(30);
/// Where one request in ten fails, fewer are sent.
const FAILING_SHARE: u32 = 10;
const FAILURES_TO_OPEN: u32 = 10;
/// The time in which a crashed process is usually up again; doubled each time.
const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MAX: Duration = Duration::from_secs(30);

/// How a request ended at an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its answer began after so long.
    Answered(Duration),
    /// No answer, or one that says that the instance can't.
    Failed,
    /// The client left, or it was never sent.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    Closed { failures: u32 },
    Open { until: Duration },
    Trying,
}

#[derive(Debug, Default)]
struct Window {
    began: Duration,
    answers: u32,
    failures: u32,
    sum: Duration,
    /// So many were under way at most.
    peak: u32,
}

/// What answers take when the instance is not loaded: the least mean of a window, in this span of time and the last one.
#[derive(Debug, Default)]
struct Floor {
    began: Duration,
    now: Option<Duration>,
    before: Option<Duration>,
}

impl Floor {
    fn least(&self) -> Option<Duration> {
        self.now.into_iter().chain(self.before).min()
    }

    /// True when a new span begins.
    fn take(&mut self, now: Duration, mean: Duration) -> bool {
        let is_over = now.saturating_sub(self.began) >= FLOOR_SPAN;
        if is_over {
            *self = Self { began: now, now: None, before: self.now };
        }
        self.now = Some(self.now.map_or(mean, |least| least.min(mean)));
        is_over
    }
}

/// See the module's text. A machine without a clock: `now` is monotonic.
#[derive(Debug)]
pub(crate) struct Limit {
    limit: f64,
    /// It has never been too much yet.
    is_new: bool,
    circuit: Circuit,
    openings: u32,
    window: Window,
    floor: Floor,
    /// For so many windows half is sent, so that the floor shows itself: the first one still has requests of before.
    probing: u32,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            limit: FIRST,
            is_new: true,
            circuit: Circuit::Closed { failures: 0 },
            openings: 0,
            window: Window::default(),
            floor: Floor::default(),
            probing: 0,
        }
    }
}

impl Limit {
    /// How many may be under way; none while the circuit is open.
    pub(crate) fn allowed(&mut self, now: Duration) -> u32 {
        match self.circuit {
            Circuit::Closed { .. } if self.probing > 0 => (self.limit / 2.0).max(1.0) as u32,
            Circuit::Closed { .. } => self.limit as u32,
            Circuit::Open { until } if now < until => 0,
            Circuit::Open { .. } => {
                self.circuit = Circuit::Trying;
                1
            }
            Circuit::Trying => 1,
        }
    }

    /// A request has ended; with it, so many were under way.
    pub(crate) fn ended(&mut self, now: Duration, outcome: Outcome, under_way: u32) {
        let took = match outcome {
            Outcome::Answered(took) => Some(took),
            Outcome::Failed => None,
            Outcome::Unknown => return,
        };
        self.switch(now, took.is_some());
        if !matches!(self.circuit, Circuit::Closed { .. }) {
            return;
        }
        let window = &mut self.window;
        window.peak = window.peak.max(under_way);
        match took {
            Some(took) => {
                window.answers += 1;
                window.sum += took;
            }
            None => window.failures += 1,
        }
        let is_long = now.saturating_sub(window.began) >= WINDOW;
        if is_long && window.answers + window.failures >= WINDOW_ANSWERS {
            let window = std::mem::replace(&mut self.window, Window { began: now, ..Window::default() });
            self.judge(now, &window);
        }
    }

    fn switch(&mut self, now: Duration, answered: bool) {
        self.circuit = match (self.circuit, answered) {
            (Circuit::Closed { .. }, true) => Circuit::Closed { failures: 0 },
            (Circuit::Closed { failures }, false) if failures + 1 < FAILURES_TO_OPEN => {
                Circuit::Closed { failures: failures + 1 }
            }
            (Circuit::Closed { .. } | Circuit::Trying, false) => {
                let time = OPEN_FIRST.saturating_mul(1 << self.openings.min(10)).min(OPEN_MAX);
                self.openings += 1;
                Circuit::Open { until: now + time }
            }
            // What it was sent before says nothing of what it does now.
            (open @ Circuit::Open { .. }, _) => open,
            (Circuit::Trying, true) => {
                self.limit = (self.limit / 2.0).max(1.0);
                self.window = Window { began: now, ..Window::default() };
                Circuit::Closed { failures: 0 }
            }
        };
    }

    fn judge(&mut self, now: Duration, window: &Window) {
        if window.failures * FAILING_SHARE > window.answers {
            self.shrink(0.7);
            return;
        }
        self.openings = 0;
        let mean = window.sum / window.answers.max(1);
        let is_new_span = self.floor.take(now, mean);
        if is_new_span {
            self.probing = 2;
        } else if self.probing > 0 {
            self.probing -= 1;
            return;
        }
        let good = self.floor.least().unwrap_or(mean) * 2 + SLACK;
        if mean > good {
            self.shrink((good.as_secs_f64() / mean.as_secs_f64()).clamp(0.5, 0.95));
        } else if f64::from(window.peak) * 2.0 >= self.limit {
            // What is not used shows nothing about more of it.
            let more = if self.is_new { self.limit } else { self.limit.sqrt() };
            self.limit = (self.limit + more).min(MOST);
        }
    }

    fn shrink(&mut self, to: f64) {
        self.is_new = false;
        self.limit = (self.limit * to).max(1.0);
    }
}

/// Whether an instance takes one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    /// It has as many as it does well.
    Full,
    /// Its circuit is open.
    Broken,
}

/// What all threads know of an instance's limit.
#[derive(Debug)]
pub(crate) struct Gauge {
    under_way: AtomicU32,
    /// As the limit said last; 0: it must be asked, for time may have passed.
    allowed: AtomicU32,
    limit: Mutex<Limit>,
}

impl Default for Gauge {
    fn default() -> Self {
        Self {
            under_way: AtomicU32::new(0),
            allowed: AtomicU32::new(FIRST as u32),
            limit: Mutex::new(Limit::default()),
        }
    }
}

impl Gauge {
    fn limit(&self) -> MutexGuard<'_, Limit> {
        // Whoever panicked in between has left an estimate, as ever.
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Two threads that look at once may both see the last place: so many more are under way for a moment.
    pub(crate) fn room(&self, max: u32) -> Room {
        let mut allowed = self.allowed.load(Ordering::Acquire);
        if allowed == 0 {
            allowed = self.limit().allowed(Duration::from_millis(now_ms()));
            self.allowed.store(allowed, Ordering::Release);
        }
        match allowed {
            0 => Room::Broken,
            _ if self.under_way.load(Ordering::Acquire) < allowed.min(max) => Room::Free,
            _ => Room::Full,
        }
    }

    fn ended(&self, outcome: Outcome) {
        let under_way = self.under_way.fetch_sub(1, Ordering::AcqRel);
        let now = Duration::from_millis(now_ms());
        let mut limit = self.limit();
        limit.ended(now, outcome, under_way);
        self.allowed.store(limit.allowed(now), Ordering::Release);
    }

    /// It is another process, or the same after a pause.
    pub(crate) fn forget(&self) {
        *self.limit() = Limit::default();
        self.allowed.store(FIRST as u32, Ordering::Release);
    }
}

/// One request at an instance whose requests are bounded, until its answer begins.
#[derive(Debug)]
pub(crate) struct Turn {
    load: Arc<InstanceLoad>,
    outcome: Outcome,
}

impl Turn {
    pub(crate) fn begin(load: &Arc<InstanceLoad>) -> Self {
        load.gauge.under_way.fetch_add(1, Ordering::AcqRel);
        Self { load: load.clone(), outcome: Outcome::Unknown }
    }

    pub(crate) fn answered(mut self, took: Duration, status: u16) {
        // By these an instance says itself that it has no room, or that what is behind it has none. Other errors are
        // some page's own.
        let can = !matches!(status, 502..=504);
        self.outcome = if can { Outcome::Answered(took) } else { Outcome::Failed };
    }

    pub(crate) fn failed(mut self) {
        self.outcome = Outcome::Failed;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.load.gauge.ended(self.outcome);
        self.load.service.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    const MS: Duration = Duration::from_millis(1);

    /// An instance that works on so many requests at a time, each for so long; others wait inside it.
    struct Instance {
        workers: usize,
        work: Duration,
        /// When each worker is free again.
        free: BinaryHeap<Reverse<Duration>>,
    }

    impl Instance {
        fn new(workers: usize, work: Duration) -> Self {
            Self { workers, work, free: BinaryHeap::new() }
        }

        fn answers_at(&mut self, now: Duration) -> Duration {
            let begins = if self.free.len() < self.workers {
                now
            } else {
                self.free.pop().map_or(now, |Reverse(at)| at.max(now))
            };
            self.free.push(Reverse(begins + self.work));
            begins + self.work
        }
    }

    #[derive(Debug, Default)]
    struct Seen {
        answered: u32,
        refused: u32,
        sum: Duration,
    }

    /// Requests come every so often; who finds no room is refused.
    fn run(
        limit: &mut Limit,
        instance: &mut Instance,
        every: Duration,
        from: Duration,
        to: Duration,
    ) -> Seen {
        let (mut seen, mut now) = (Seen::default(), from);
        let mut under_way: BinaryHeap<Reverse<(Duration, Duration)>> = BinaryHeap::new();
        while now < to {
            while let Some(Reverse((ends, began))) = under_way.peek().copied().filter(|next| next.0.0 <= now)
            {
                limit.ended(ends, Outcome::Answered(ends - began), under_way.len() as u32);
                under_way.pop();
                seen.answered += 1;
                seen.sum += ends - began;
            }
            if (under_way.len() as u32) < limit.allowed(now) {
                under_way.push(Reverse((instance.answers_at(now), now)));
            } else {
                seen.refused += 1;
            }
            now += every;
        }
        seen
    }

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn overload_stays_outside_and_the_instance_works_as_much_as_it_can() {
        let (mut limit, mut instance) = (Limit::default(), Instance::new(8, 20 * MS));
        // It does 400 a second; 1000 come.
        run(&mut limit, &mut instance, MS, second(0), second(5));
        let seen = run(&mut limit, &mut instance, MS, second(5), second(120));
        let (rate, mean) = (seen.answered / 115, seen.sum / seen.answered);
        assert!(rate >= 380, "{rate} of 400 a second were answered");
        assert!(mean <= 60 * MS, "answers took {mean:?} where 20 ms is what the work takes");
        assert!((8..=28).contains(&limit.allowed(second(120))), "{limit:?}");
    }

    #[test]
    fn an_instance_with_room_is_not_bounded() {
        let (mut limit, mut instance) = (Limit::default(), Instance::new(1000, 200 * MS));
        run(&mut limit, &mut instance, MS, second(0), second(3));
        let seen = run(&mut limit, &mut instance, MS, second(3), second(29));
        assert_eq!(seen.refused, 0, "{limit:?}");
    }

    #[test]
    fn what_gets_slower_gets_less_and_what_recovers_gets_more() {
        let (mut limit, mut instance) = (Limit::default(), Instance::new(40, 20 * MS));
        run(&mut limit, &mut instance, MS, second(0), second(10));
        let before = limit.allowed(second(10));
        instance.workers = 4;
        instance.free.clear();
        run(&mut limit, &mut instance, MS, second(10), second(15));
        let during = limit.allowed(second(15));
        assert!(during < before && during <= 16, "{before} before, {during} with a tenth of the workers");
        instance.workers = 40;
        instance.free.clear();
        let after = run(&mut limit, &mut instance, MS, second(15), second(25));
        let refused = run(&mut limit, &mut instance, MS, second(25), second(28)).refused;
        assert_eq!(refused, 0, "ten seconds later it is still bounded: {after:?}, {limit:?}");
    }

    #[test]
    fn who_only_fails_is_left_alone_and_asked_again_by_one() {
        let mut limit = Limit::default();
        for n in 0..FAILURES_TO_OPEN {
            assert!(limit.allowed(second(0)) > 0, "open after {n} failures");
            limit.ended(second(0), Outcome::Failed, 1);
        }
        assert_eq!(limit.allowed(second(0)), 0, "it is asked on and on");
        limit.ended(MS, Outcome::Answered(MS), 3);
        assert_eq!(limit.allowed(999 * MS), 0, "what was under way has closed it");
        assert_eq!(limit.allowed(second(1)), 1);
        limit.ended(second(1), Outcome::Failed, 1);
        assert_eq!(limit.allowed(2999 * MS), 0, "the second time is not longer");
        assert_eq!(limit.allowed(second(3)), 1);
        limit.ended(second(3), Outcome::Unknown, 1);
        assert_eq!(limit.allowed(second(3)), 1, "a client that left has taken the only question along");
        limit.ended(second(3), Outcome::Answered(MS), 1);
        assert!(limit.allowed(second(3)) >= 2, "{limit:?}");
    }

    #[test]
    fn a_failure_now_and_then_is_no_reason() {
        let mut limit = Limit::default();
        for n in 0..10_000 {
            let outcome = if n % 20 == 0 { Outcome::Failed } else { Outcome::Answered(10 * MS) };
            limit.ended(n * MS, outcome, limit.limit as u32);
        }
        assert!(limit.limit > 100.0, "{limit:?}");
    }
}
