//! Counting requests: token buckets, one for each client or key, in bounded memory.
//!
//! A bucket is one number, the time at which it would be full again (the generic cell rate algorithm): a request moves
//! it on by its share, and is refused when that lies more than a whole bucket ahead. A bucket that is full says nothing,
//! so it is not kept; the threads of a process share one table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rung_model::route::Rate;

/// Threads seldom meet in one of these.
const SHARDS: usize = 16;
/// 65,536 clients at once, about 4 MiB a limit: beyond, the oldest word about somebody is forgotten.
const BUCKETS_PER_SHARD: usize = 4096;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    /// Of one request, in nanoseconds.
    share: u64,
    started: Instant,
    shards: [Mutex<Shard>; SHARDS],
    /// There are other ingresses, which are told what passes here.
    is_shared: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    /// Whose bucket is full again when.
    full_at: HashMap<u128, u64>,
    /// What passed since the others were told.
    untold: HashMap<u128, u32>,
}

/// What became of a request, for its answer's headers too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// `None`: it may pass. Else it may come again after this time.
    pub(crate) wait: Option<Duration>,
    /// So many more may come now.
    pub(crate) remaining: u64,
    /// Until all may come again.
    pub(crate) full: Duration,
}

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Self {
        let share = rate.per.as_nanos() / u128::from(rate.requests.max(1));
        Self {
            rate,
            share: u64::try_from(share).unwrap_or(u64::MAX / 4).max(1),
            started: Instant::now(),
            shards: std::array::from_fn(|_| Mutex::default()),
            is_shared: AtomicBool::new(false),
        }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    pub(crate) fn take(&self, whose: u128) -> Taken {
        self.take_at(whose, self.now())
    }

    fn take_at(&self, whose: u128, now: u64) -> Taken {
        let room = self.share.saturating_mul(u64::from(self.rate.burst.max(1)));
        let mut shard = self.shard(whose);
        let before = shard.full_at.get(&whose).copied().unwrap_or(0).max(now);
        let after = before.saturating_add(self.share);
        let ahead = after - now;
        if ahead > room {
            let full = Duration::from_nanos(before - now);
            return Taken { wait: Some(Duration::from_nanos(ahead - room)), remaining: 0, full };
        }
        shard.set(whose, after, now);
        if self.is_shared.load(Ordering::Relaxed) {
            *shard.untold.entry(whose).or_default() += 1;
        }
        Taken { wait: None, remaining: (room - ahead) / self.share, full: Duration::from_nanos(ahead) }
    }

    fn shard(&self, whose: u128) -> MutexGuard<'_, Shard> {
        let mixed = (whose ^ (whose >> 64)) as u64;
        let at = (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize % SHARDS;
        self.locked(at)
    }

    fn locked(&self, at: usize) -> MutexGuard<'_, Shard> {
        // A panic elsewhere leaves counts that are counts all the same.
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what passes is kept to be told.
    pub(crate) fn account(&self, is_shared: bool) {
        self.is_shared.store(is_shared, Ordering::Relaxed);
    }

    /// What passed since it was last told, of so many clients at most.
    pub(crate) fn tell(&self, max: usize) -> Vec<(u128, u32)> {
        let mut told = Vec::new();
        for at in 0..SHARDS {
            let mut shard = self.locked(at);
            let some: Vec<u128> = shard.untold.keys().take(max - told.len()).copied().collect();
            told.extend(some.into_iter().filter_map(|whose| Some((whose, shard.untold.remove(&whose)?))));
            if !self.is_shared.load(Ordering::Relaxed) {
                shard.untold = HashMap::new();
            }
        }
        told
    }

    /// So many passed elsewhere. The bucket may owe more than it holds.
    pub(crate) fn others_took(&self, whose: u128, count: u32) {
        self.others_took_at(whose, count, self.now());
    }

    fn others_took_at(&self, whose: u128, count: u32, now: u64) {
        let mut shard = self.shard(whose);
        let before = shard.full_at.get(&whose).copied().unwrap_or(0).max(now);
        shard.set(whose, before.saturating_add(self.share.saturating_mul(u64::from(count))), now);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Shard {
    fn set(&mut self, whose: u128, full_at: u64, now: u64) {
        if self.full_at.len() >= BUCKETS_PER_SHARD && !self.full_at.contains_key(&whose) {
            make_room(&mut self.full_at, now);
            // Who is forgotten is not told of either.
            self.untold.retain(|whose, _| self.full_at.contains_key(whose));
        }
        self.full_at.insert(whose, full_at);
    }
}

/// Forgets whose bucket is full; when nobody's is, an eighth of all: better a guest too many than memory without end, and
/// a look at everybody for each newcomer.
fn make_room(buckets: &mut HashMap<u128, u64>, now: u64) {
    buckets.retain(|_, full_at| *full_at > now);
    if buckets.len() >= BUCKETS_PER_SHARD {
        let some: Vec<u128> = buckets.keys().take(BUCKETS_PER_SHARD / 8).copied().collect();
        for whose in some {
            buckets.remove(&whose);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limiter(requests: u32, per_s: u64, burst: u32) -> Limiter {
        Limiter::new(Rate { requests, per: Duration::from_secs(per_s), burst })
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let limiter = limiter(10, 1, 5);
        let passed = (0..20).filter(|_| limiter.take_at(1, 0).wait.is_none()).count();
        assert_eq!(passed, 5, "a bucket of 5 let {passed} pass at once");
        assert_eq!(limiter.take_at(1, 0).wait, Some(Duration::from_millis(100)));
        assert!(limiter.take_at(2, 0).wait.is_none(), "another client was made to wait");
        let passed = (0..10_000u64).filter(|ms| limiter.take_at(1, ms * SECOND / 1000).wait.is_none());
        let passed = passed.count();
        assert!((99..=105).contains(&passed), "10 a second let {passed} pass in 10 seconds");
    }

    #[test]
    fn what_is_left_is_said() {
        let limiter = limiter(60, 60, 3);
        assert_eq!(limiter.take_at(1, 0).remaining, 2);
        assert_eq!(limiter.take_at(1, 0).remaining, 1);
        let last = limiter.take_at(1, 0);
        assert_eq!((last.remaining, last.full), (0, Duration::from_secs(3)));
        assert_eq!(limiter.take_at(1, 2 * SECOND).remaining, 1, "two seconds brought two requests back");
    }

    #[test]
    fn any_number_of_clients_takes_bounded_memory() {
        let limiter = limiter(1, 3600, 1);
        for client in 0..300_000u128 {
            assert!(limiter.take_at(client, 0).wait.is_none(), "a new client was refused");
        }
        let kept: usize = limiter.shards.iter().map(|shard| shard.lock().unwrap().full_at.len()).sum();
        assert!(kept <= SHARDS * BUCKETS_PER_SHARD, "{kept} buckets are kept");
    }

    /// What one ingress said, on its way to the other until that time.
    struct Underway {
        until: u64,
        to: usize,
        told: Vec<(u128, u32)>,
    }

    /// From one server to the other: the pause between two words, and until the ingress there asks next.
    const BETWEEN_SERVERS_MS: u64 = 300;

    /// Two ingresses that speak every 200 ms and hear of each other so much later; so many requests a second come to each.
    fn pass_together(seconds: u64, late_ms: u64, loads: impl Fn(u64) -> [u64; 2]) -> Vec<u64> {
        let ingresses = [limiter(100, 1, 100), limiter(100, 1, 100)];
        ingresses.iter().for_each(|limiter| limiter.account(true));
        let mut underway: Vec<Underway> = Vec::new();
        let mut passed = vec![0; seconds as usize];
        for ms in 0..seconds * 1000 {
            let now = ms * SECOND / 1000;
            for (limiter, load) in ingresses.iter().zip(loads(ms / 1000)) {
                for _ in 0..(load * (ms + 1) / 1000 - load * ms / 1000) {
                    passed[(ms / 1000) as usize] += u64::from(limiter.take_at(1, now).wait.is_none());
                }
            }
            if ms % 200 == 0 {
                underway.extend(ingresses.iter().enumerate().map(|(from, limiter)| Underway {
                    until: now + late_ms * SECOND / 1000,
                    to: 1 - from,
                    told: limiter.tell(10),
                }));
            }
            for Underway { to, told, .. } in underway.extract_if(.., |word| word.until <= now) {
                told.iter().for_each(|(whose, count)| ingresses[to].others_took_at(*whose, *count, now));
            }
        }
        passed
    }

    #[test]
    fn two_ingresses_let_as_many_pass_as_one_would() {
        for late_ms in [0, BETWEEN_SERVERS_MS] {
            for (what, loads) in [("evenly", [300, 300]), ("unevenly", [1000, 60]), ("one-sided", [500, 0])] {
                let passed = pass_together(65, late_ms, |_| loads);
                let minute: u64 = passed[5..].iter().sum();
                assert!(
                    (5940..=6060).contains(&minute),
                    "{what} loaded, {late_ms} ms apart, they let {minute} of 6000 pass in a minute"
                );
            }
        }
    }

    #[test]
    fn when_the_load_moves_to_the_other_ingress_the_limit_holds() {
        for late_ms in [0, BETWEEN_SERVERS_MS] {
            let loads = |second| if second < 20 { [500, 0] } else { [0, 500] };
            let passed = pass_together(40, late_ms, loads);
            for from in 18..30 {
                let window: u64 = passed[from..from + 5].iter().sum();
                assert!(
                    (450..=550).contains(&window),
                    "{late_ms} ms apart, from second {from} on {window} of 500 passed in 5 s"
                );
            }
        }
    }
}
