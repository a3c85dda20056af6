//! Counting requests: token buckets, one for each client or key, in bounded memory.
//!
//! A bucket is one number, the time at which it would be full again (the generic cell rate algorithm): a request moves
//! it on by its share, and is refused when that lies more than a whole bucket ahead. A bucket that is full says nothing,
//! so it is not kept; the threads of a process share one table.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
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
    /// Whose bucket is full again when.
    shards: [Mutex<HashMap<u128, u64>>; SHARDS],
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
        }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    pub(crate) fn take(&self, whose: u128) -> Taken {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.take_at(whose, now)
    }

    fn take_at(&self, whose: u128, now: u64) -> Taken {
        let room = self.share.saturating_mul(u64::from(self.rate.burst.max(1)));
        let mixed = (whose ^ (whose >> 64)) as u64;
        let shard = (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize % SHARDS;
        // A panic elsewhere leaves counts that are counts all the same.
        let mut buckets = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let before = buckets.get(&whose).copied().unwrap_or(0).max(now);
        let after = before.saturating_add(self.share);
        let ahead = after - now;
        if ahead > room {
            let full = Duration::from_nanos(before - now);
            return Taken { wait: Some(Duration::from_nanos(ahead - room)), remaining: 0, full };
        }
        if buckets.len() >= BUCKETS_PER_SHARD && !buckets.contains_key(&whose) {
            make_room(&mut buckets, now);
        }
        buckets.insert(whose, after);
        Taken { wait: None, remaining: (room - ahead) / self.share, full: Duration::from_nanos(ahead) }
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
        let kept: usize = limiter.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(kept <= SHARDS * BUCKETS_PER_SHARD, "{kept} buckets are kept");
    }
}
