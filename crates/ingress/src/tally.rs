//! What became of the requests, by route and by instance, for whoever looks: counted without a lock, told when it has changed.
//!
//! Each thread counts in lanes of its own, which nobody else writes: no request waits for another one's counter, and no
//! line of a cache travels between cores. A lane is made when its thread has the first request for its [`Tallied`]; what
//! never has a request costs a pointer. Whoever reads adds the lanes up, a moment's inaccuracy included.
//!
//! [`Teller`] says once a second what has changed since it last did, a bounded part at a time.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rung_api::wire::{TallyLine, TallyReport};
use rung_model::tally::{CLASSES, Subject, Tally, class_of};

use crate::slots::SlotMap;

/// How often changes are told: whoever looks at them is a person.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(1);
/// With nothing to tell, the server hears from time to time that this process is still there.
const STILL_THERE_EVERY: Duration = Duration::from_secs(10);
/// Lines in a report, which keeps it below a megabyte. Where more are busy they are told by turns.
const LINES_MAX: usize = 500;

/// What one thread counts. Aligned such that no two lanes share a line of a cache, prefetched neighbours included.
#[derive(Debug)]
#[repr(align(128))]
struct Lane {
    begun: AtomicU64,
    ended: [AtomicU64; 6],
    bytes: AtomicU64,
    time_us: AtomicU64,
    times: [AtomicU32; CLASSES],
}

impl Lane {
    fn new() -> Self {
        Self {
            begun: AtomicU64::new(0),
            ended: std::array::from_fn(|_| AtomicU64::new(0)),
            bytes: AtomicU64::new(0),
            time_us: AtomicU64::new(0),
            times: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Only the lane's own thread adds: a load and a store, without locking the line.
    fn add(counter: &AtomicU64, by: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    fn took(&self, time: Duration) {
        Self::add(&self.time_us, time.as_micros() as u64);
        let class = &self.times[usize::from(class_of(time))];
        class.store(class.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// A route or an instance, as all threads share it.
#[derive(Debug)]
pub(crate) struct Tallied {
    pub(crate) subject: Subject,
    /// Never given twice by this process.
    slot: u64,
    lanes: Mutex<Vec<Arc<Lane>>>,
}

impl Tallied {
    pub(crate) fn new(subject: Subject, slot: u64) -> Self {
        Self { subject, slot, lanes: Mutex::default() }
    }

    fn new_lane(&self) -> Arc<Lane> {
        let lane = Arc::new(Lane::new());
        self.lanes.lock().expect("no panic while held").push(lane.clone());
        lane
    }

    /// The totals of all threads. Requests are in flight here when they were begun by [`Tallies::begin`].
    pub(crate) fn read(&self) -> Tally {
        let mut tally = Tally::default();
        let mut begun: u64 = 0;
        for lane in self.lanes.lock().expect("no panic while held").iter() {
            for (total, count) in tally.ended.iter_mut().zip(&lane.ended) {
                *total += count.load(Ordering::Relaxed);
            }
            begun += lane.begun.load(Ordering::Relaxed);
            tally.bytes += lane.bytes.load(Ordering::Relaxed);
            tally.time_us += lane.time_us.load(Ordering::Relaxed);
            for (class, count) in lane.times.iter().enumerate() {
                let count = u64::from(count.load(Ordering::Relaxed));
                if count > 0 {
                    *tally.times.entry(class as u8).or_default() += count;
                }
            }
        }
        tally.in_flight = begun.saturating_sub(tally.requests());
        tally
    }

    /// Changes with every request that begins or ends.
    fn mark(&self) -> u64 {
        let lanes = self.lanes.lock().expect("no panic while held");
        lanes.iter().fold(0, |mark, lane| {
            let ended = lane.ended.iter().map(|count| count.load(Ordering::Relaxed));
            mark.wrapping_add(lane.begun.load(Ordering::Relaxed)).wrapping_add(ended.sum())
        })
    }
}

/// The lanes of one thread.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    lanes: RefCell<SlotMap<Arc<Lane>>>,
}

impl Tallies {
    /// Counts a request as in flight until the answer is dropped.
    pub(crate) fn begin(&self, tallied: &Tallied) -> InTally {
        let lane = self.lane(tallied);
        Lane::add(&lane.begun, 1);
        InTally { lane, end: End::Lost }
    }

    fn lane(&self, tallied: &Tallied) -> Arc<Lane> {
        let mut lanes = self.lanes.borrow_mut();
        lanes.entry(tallied.slot).or_insert_with(|| tallied.new_lane()).clone()
    }

    /// Forgets the lanes of what is not there any more.
    pub(crate) fn forget_retired(&self) {
        self.lanes.borrow_mut().retain(|_, lane| Arc::strong_count(lane) > 1);
    }
}

/// How a request ended, as one of its tallies sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answered(u16),
    /// Without an answer, or in the midst of one.
    Lost,
    Withdrawn,
}

/// A request in flight. What was not said to be its end by then, is [`End::Lost`] when it is dropped.
#[derive(Debug)]
pub(crate) struct InTally {
    lane: Arc<Lane>,
    end: End,
}

impl InTally {
    /// The answer has begun.
    pub(crate) fn took(&self, time: Duration) {
        self.lane.took(time);
    }

    pub(crate) fn answered(mut self, status: u16, bytes: u64) {
        self.end = End::Answered(status);
        Lane::add(&self.lane.bytes, bytes);
    }

    pub(crate) fn lost(self, bytes: u64) {
        Lane::add(&self.lane.bytes, bytes);
    }

    /// It says nothing about whom it was for, as if it had never been.
    pub(crate) fn withdrawn(mut self) {
        self.end = End::Withdrawn;
    }
}

impl Drop for InTally {
    fn drop(&mut self) {
        let digit = match self.end {
            End::Answered(status) => usize::from(status / 100).min(5),
            End::Lost => 0,
            // Counted up again by itself it is what it was before.
            End::Withdrawn => return Lane::add(&self.lane.begun, u64::MAX),
        };
        Lane::add(&self.lane.ended[digit], 1);
    }
}

/// Knows what the server has been told.
#[derive(Debug)]
pub(crate) struct Teller {
    /// Tells this process from others under the same name.
    life: u64,
    started: Instant,
    round: u32,
    /// The mark of each in this round, when it was last told.
    told: SlotMap<u64>,
    /// Of the last one that was told.
    cursor: u64,
    last: Option<Instant>,
}

impl Teller {
    pub(crate) fn new() -> Self {
        Self {
            life: fastrand::u64(1..),
            started: Instant::now(),
            round: 1,
            told: SlotMap::default(),
            cursor: 0,
            last: None,
        }
    }

    /// The server has missed something, or shall forget something: it is told everything anew.
    pub(crate) fn begin_anew(&mut self) {
        self.round += 1;
        self.told.clear();
        // Without a request to tell of, too: until then the server takes what it knows for a part.
        self.last = None;
    }

    /// What there is to tell, when there is anything.
    pub(crate) fn report(&mut self, all: Vec<Arc<Tallied>>, now: Instant) -> Option<TallyReport> {
        let mut news: Vec<(u64, Arc<Tallied>)> = all
            .into_iter()
            .map(|tallied| (tallied.mark(), tallied))
            .filter(|(mark, tallied)| self.told.get(&tallied.slot).copied().unwrap_or(0) != *mark)
            .collect();
        let is_due = self.last.is_none_or(|last| now.duration_since(last) >= STILL_THERE_EVERY);
        if news.is_empty() && !is_due {
            return None;
        }
        self.last = Some(now);
        let is_complete = news.len() <= LINES_MAX;
        if !is_complete {
            let cursor = self.cursor;
            news.sort_unstable_by_key(|(_, tallied)| (tallied.slot <= cursor, tallied.slot));
            news.truncate(LINES_MAX);
            self.cursor = news.last().map_or(0, |(_, last)| last.slot);
        }
        let lines = news.into_iter().map(|(mark, tallied)| {
            self.told.insert(tallied.slot, mark);
            TallyLine { subject: tallied.subject.clone(), tally: tallied.read() }
        });
        let lines = lines.collect();
        let at_ms = now.duration_since(self.started).as_millis() as u64;
        Some(TallyReport { life: self.life, at_ms, round: self.round, is_complete, lines })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rung_model::AppName;

    use super::*;

    fn route(slot: u64) -> Arc<Tallied> {
        let subject = Subject::Route { app: AppName::new("shop").unwrap(), route: format!("/{slot}") };
        Arc::new(Tallied::new(subject, slot))
    }

    #[test]
    fn what_threads_count_adds_up_and_nothing_of_it_is_lost() {
        let tallied = route(1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let tallies = Tallies::default();
                    for nth in 0..1000 {
                        let request = tallies.begin(&tallied);
                        request.took(Duration::from_millis(nth % 7));
                        match nth % 10 {
                            0 => request.lost(1),
                            1 => request.answered(503, 2),
                            _ => request.answered(200, 3),
                        }
                    }
                });
            }
        });
        let tally = tallied.read();
        assert_eq!((tally.ended, tally.in_flight), ([400, 0, 3200, 0, 0, 400], 0));
        assert_eq!(tally.bytes, 400 + 800 + 9600);
        assert_eq!(tally.times.values().sum::<u64>(), 4000);
    }

    #[test]
    fn a_request_is_in_flight_until_it_ends_however_it_ends() {
        let (tallied, tallies) = (route(1), Tallies::default());
        let (one, two) = (tallies.begin(&tallied), tallies.begin(&tallied));
        assert_eq!(tallied.read().in_flight, 2);
        one.answered(200, 0);
        // Its connection was cut.
        drop(two);
        let tally = tallied.read();
        assert_eq!((tally.in_flight, tally.ended), (0, [1, 0, 1, 0, 0, 0]));
    }

    #[test]
    fn only_what_has_changed_is_told_and_a_new_round_tells_all() {
        let (all, tallies) = ([route(1), route(2)].to_vec(), Tallies::default());
        let mut teller = Teller::new();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let told = |report: Option<TallyReport>| report.map(|report| report.lines.len());
        assert_eq!(
            told(teller.report(all.clone(), at(0))),
            Some(0),
            "the server does not hear of the process"
        );
        assert_eq!(told(teller.report(all.clone(), at(1))), None);
        let request = tallies.begin(&all[0]);
        assert_eq!(told(teller.report(all.clone(), at(2))), Some(1), "what begins is not told");
        request.answered(200, 0);
        tallies.begin(&all[1]).answered(200, 0);
        assert_eq!(told(teller.report(all.clone(), at(3))), Some(2));
        assert_eq!(told(teller.report(all.clone(), at(12))), None);
        assert_eq!(
            told(teller.report(all.clone(), at(13))),
            Some(0),
            "a quiet process is taken for a dead one"
        );
        teller.begin_anew();
        assert_eq!(
            told(teller.report(Vec::new(), at(13))),
            Some(0),
            "a round with nothing in it is not told"
        );
        let report = teller.report(all, at(14)).unwrap();
        assert_eq!((report.lines.len(), report.round, report.is_complete), (2, 2, true));
    }

    #[test]
    fn when_more_are_busy_than_a_report_holds_all_get_their_turn() {
        let all: Vec<_> = (1..=LINES_MAX as u64 * 2 + 7).map(route).collect();
        let (tallies, mut teller) = (Tallies::default(), Teller::new());
        let mut seen = BTreeSet::new();
        for round in 0..3 {
            // Each is busy all the time.
            all.iter().for_each(|tallied| tallies.begin(tallied).answered(200, 0));
            let report = teller.report(all.clone(), Instant::now()).unwrap();
            assert!(report.lines.len() <= LINES_MAX, "a report holds {} lines", report.lines.len());
            assert!(!report.is_complete, "report {round} says that it is all");
            seen.extend(report.lines.into_iter().map(|line| line.subject));
        }
        assert_eq!(seen.len(), all.len(), "some are never told");
    }

    #[test]
    fn lanes_of_what_is_gone_are_forgotten() {
        let (kept, gone) = (route(1), route(2));
        let tallies = Tallies::default();
        tallies.begin(&kept).answered(200, 0);
        let last = tallies.begin(&gone);
        drop(gone);
        last.answered(200, 0);
        tallies.forget_retired();
        assert_eq!(tallies.lanes.borrow().len(), 1);
        tallies.begin(&kept).answered(200, 0);
        assert_eq!(kept.read().requests(), 2, "it counts in another lane than before");
    }
}
