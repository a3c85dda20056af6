//! Counting requests: token buckets, one for each client or key, in bounded memory.
//!
//! A bucket is one number, the time at which it would be full again (the generic cell rate algorithm): a request moves
//! it on by its share, and is refused when that lies more than a whole bucket ahead. A bucket that is full says nothing,
//! so it is not kept; the threads of a process share one table. What other ingresses let pass is taken out of the same
//! buckets, late ([`crate::ran_over`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rung_model::route::Rate;

use crate::ran_over::RanOver;

/// Threads seldom meet in one of these.
const SHARDS: usize = 16;
/// 65,536 clients at once, about 4 MiB a limit, and 9 MiB more where other ingresses share it: beyond, the oldest word about somebody is forgotten.
const BUCKETS_PER_SHARD: usize = 4096;

/// In nanoseconds. Three ingresses that hear of each other three seconds late have made good in less what they owe together;
/// what is owed longer is not owed by the others.
const OWED_AT_MOST: u64 = 10_000_000_000;

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
    buckets: HashMap<u128, Bucket>,
    /// What passed since the others were told.
    untold: HashMap<u128, u32>,
}

/// Of one client. Times and amounts are nanoseconds.
#[derive(Debug, Default)]
struct Bucket {
    full_at: u64,
    /// Since when it owes more than a request here can.
    owes_since: Option<u64>,
    /// Where the limit is shared.
    ran_over: Option<Box<RanOver>>,
}

impl Bucket {
    /// Fills it up to now.
    fn fill(&mut self, now: u64, is_shared: bool) {
        if self.full_at >= now {
            return;
        }
        if is_shared {
            let ran_over = self.ran_over.get_or_insert_with(|| Box::new(RanOver::new(now)));
            ran_over.add(self.full_at, now);
        } else {
            self.ran_over = None;
        }
        self.full_at = now;
    }

    /// Forgets a debt that nothing has made good for long. What one ingress let pass and another has not heard of (it had just
    /// come, a word was lost) is owed by the first one alone; while the other lets pass all of the limit it would stay so for ever.
    fn forgive(&mut self, now: u64, room: u64) {
        let most = now.saturating_add(room);
        if self.full_at <= most {
            self.owes_since = None;
            return;
        }
        let since = *self.owes_since.get_or_insert(now);
        if now.saturating_sub(since) > OWED_AT_MOST.max(room.saturating_mul(4)) {
            self.full_at = most;
            self.owes_since = None;
        }
    }

    /// Takes what passed elsewhere from then on.
    fn take_late(&mut self, amount: u64, since: u64, now: u64) {
        let paid = self.ran_over.as_mut().map_or(0, |ran_over| ran_over.pay(amount, since, now));
        self.full_at = self.full_at.saturating_add(amount - paid);
    }
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

    /// What a whole bucket holds.
    fn room(&self) -> u64 {
        self.share.saturating_mul(u64::from(self.rate.burst.max(1)))
    }

    fn take_at(&self, whose: u128, now: u64) -> Taken {
        let room = self.room();
        let is_shared = self.is_shared.load(Ordering::Relaxed);
        let mut shard = self.shard(whose);
        let bucket = shard.bucket(whose, now, is_shared);
        bucket.forgive(now, room);
        let after = bucket.full_at.saturating_add(self.share);
        let ahead = after - now;
        if ahead > room {
            let full = Duration::from_nanos(bucket.full_at - now);
            return Taken { wait: Some(Duration::from_nanos(ahead - room)), remaining: 0, full };
        }
        bucket.full_at = after;
        // Also of one that is alone: before it hears of another that has come it may let a second's worth pass.
        *shard.untold.entry(whose).or_default() += 1;
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

    /// Whether there are others, who let pass what is not known here yet.
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
                // Whoever comes next does not care for more.
                shard.untold = HashMap::new();
            }
        }
        told
    }

    /// So many passed elsewhere, the first of them so long ago at most. The bucket may owe more than it holds.
    pub(crate) fn others_took(&self, whose: u128, count: u32, age: Duration) {
        let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        self.others_took_at(whose, count, age, self.now());
    }

    fn others_took_at(&self, whose: u128, count: u32, age: u64, now: u64) {
        let mut shard = self.shard(whose);
        let amount = self.share.saturating_mul(u64::from(count));
        let bucket = shard.bucket(whose, now, true);
        bucket.take_late(amount, now.saturating_sub(age), now);
        bucket.forgive(now, self.room());
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Shard {
    /// Somebody's, as it is now. Who is not known has taken nothing for long.
    fn bucket(&mut self, whose: u128, now: u64, is_shared: bool) -> &mut Bucket {
        if self.buckets.len() >= BUCKETS_PER_SHARD && !self.buckets.contains_key(&whose) {
            make_room(&mut self.buckets, now);
            // Who is forgotten is not told of either.
            self.untold.retain(|whose, _| self.buckets.contains_key(whose));
        }
        let bucket = self.buckets.entry(whose).or_default();
        bucket.fill(now, is_shared);
        bucket
    }
}

/// Forgets whose bucket is full; when nobody's is, an eighth of all: better a guest too many than memory without end, and
/// a look at everybody for each newcomer.
fn make_room(buckets: &mut HashMap<u128, Bucket>, now: u64) {
    buckets.retain(|_, bucket| bucket.full_at > now);
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
        let kept: usize = limiter.shards.iter().map(|shard| shard.lock().unwrap().buckets.len()).sum();
        assert!(kept <= SHARDS * BUCKETS_PER_SHARD, "{kept} buckets are kept");
    }

    #[test]
    fn what_passes_before_another_one_is_known_is_told_all_the_same() {
        let limiter = limiter(100, 1, 20);
        let passed = (0..5).filter(|_| limiter.take_at(7, 0).wait.is_none());
        assert_eq!(passed.count(), 5);
        assert_eq!(limiter.tell(10), [(7, 5)], "whoever comes would owe alone what both let pass");
        assert_eq!(limiter.tell(10), [], "it was told twice");
    }

    #[test]
    fn what_only_one_has_heard_of_is_not_owed_for_ever() {
        let limiter = limiter(100, 1, 20);
        limiter.account(true);
        limiter.others_took_at(7, 140, 0, SECOND);
        assert!(limiter.take_at(7, SECOND).wait.is_some(), "more than all of it has passed elsewhere");
        // From then on another lets all of the limit pass.
        for fifth in 6..100 {
            limiter.others_took_at(7, 20, SECOND / 5, fifth * SECOND / 5);
        }
        let passed = (0..100).filter(|n| limiter.take_at(7, 20 * SECOND + n * SECOND / 100).wait.is_none());
        assert!(passed.count() >= 95, "an old debt is still owed when the other one has nothing more to do");
    }

    /// How late words are, in milliseconds: from an ingress to where they are passed on, and from there to an ingress.
    type Lateness<'a> = &'a mut dyn FnMut() -> [u64; 2];

    type Late = Box<dyn FnMut() -> [u64; 2]>;

    /// An ingress that tells what it let pass every 200 ms, unless its last word has not been answered yet; the answer brings
    /// what the others said.
    struct Ingress {
        limiter: Limiter,
        told_at: u64,
        took: u64,
        asking: Option<Asking>,
        /// What the others said, and since when that had passed, where words are passed on.
        waiting: u32,
        since: u64,
        heard: u64,
    }

    struct Asking {
        asked: u64,
        told: u32,
        age: u64,
        arrives: u64,
        answered: u64,
        answer: Option<(u32, u64)>,
    }

    impl Ingress {
        fn new(burst: u32) -> Self {
            let limiter = limiter(100, 1, burst);
            limiter.account(true);
            Self { limiter, told_at: 0, took: 0, asking: None, waiting: 0, since: 0, heard: 0 }
        }

        fn ask(&mut self, now: u64, late: Lateness<'_>) {
            let [there, back] = late().map(|ms| ms * SECOND / 1000);
            self.asking = Some(Asking {
                asked: now,
                told: self.limiter.tell(10).iter().map(|(_, count)| count).sum(),
                age: now - self.told_at + self.took,
                arrives: now + there,
                answered: now + there + back,
                answer: None,
            });
            self.told_at = now;
        }
    }

    /// As `shares.rs` of the server does it, where the other ingresses' words wait for one that asks.
    fn pass_words_on(ingresses: &mut [Ingress], now: u64) {
        for from in 0..ingresses.len() {
            let own = &mut ingresses[from];
            let Some(asking) = own.asking.as_mut() else { continue };
            if asking.answer.is_none() && asking.arrives <= now {
                let age = asking.age.max(now - own.heard);
                asking.answer = Some((std::mem::take(&mut own.waiting), now - own.since.min(now)));
                own.heard = now;
                own.since = u64::MAX;
                let told = asking.told;
                let others = ingresses.iter_mut().enumerate().filter(|(to, _)| *to != from && told > 0);
                for (_, other) in others {
                    other.waiting += told;
                    other.since = other.since.min(now.saturating_sub(age));
                }
            }
            let own = &mut ingresses[from];
            if let Some(asking) = own.asking.take_if(|asking| asking.answered <= now)
                && let Some((count, age)) = asking.answer
            {
                own.took = now - asking.asked;
                if count > 0 {
                    own.limiter.others_took_at(1, count, age + own.took, now);
                }
            }
        }
    }

    /// As many ingresses as have a load; so many requests a second come to each in that second. How many passed in
    /// each tenth of a second, in all.
    fn pass_together<const N: usize>(
        burst: u32,
        seconds: u64,
        late: Lateness<'_>,
        loads: impl Fn(u64) -> [u64; N],
    ) -> Vec<u64> {
        let mut ingresses: [Ingress; N] = std::array::from_fn(|_| Ingress::new(burst));
        let mut passed = vec![0; seconds as usize * 10];
        for ms in 0..seconds * 1000 {
            let now = ms * SECOND / 1000;
            for (ingress, load) in ingresses.iter().zip(loads(ms / 1000)) {
                for _ in 0..(load * (ms + 1) / 1000 - load * ms / 1000) {
                    let is_passed = ingress.limiter.take_at(1, now).wait.is_none();
                    passed[(ms / 100) as usize] += u64::from(is_passed);
                }
            }
            for ingress in ingresses.iter_mut().filter(|ingress| ingress.asking.is_none()) {
                if ms % 200 == 0 {
                    ingress.ask(now, late);
                }
            }
            pass_words_on(&mut ingresses, now);
        }
        passed
    }

    /// In so many seconds from then on.
    fn sum(passed: &[u64], from: u64, seconds: u64) -> u64 {
        passed[from as usize * 10..(from + seconds) as usize * 10].iter().sum()
    }

    /// The most and the least that passed in any five seconds of these.
    fn extremes(passed: &[u64], from: u64, to: u64) -> (u64, u64) {
        let tenths = &passed[from as usize * 10..to as usize * 10];
        let windows = || tenths.windows(50).map(|window| window.iter().sum::<u64>());
        (windows().min().expect("there are five seconds"), windows().max().expect("there are five seconds"))
    }

    const VERY_LATE: &str = "1 to 3 s late";

    /// On time; between servers, with a pause between two words and until the ingress there asks next; and from 1 to 3 s late,
    /// each word for itself.
    fn latenesses() -> Vec<(&'static str, Late)> {
        let mut random = fastrand::Rng::with_seed(7);
        vec![
            ("in time", Box::new(|| [0, 0])),
            ("between servers", Box::new(|| [250, 50])),
            (VERY_LATE, Box::new(move || [random.u64(300..1000), random.u64(300..1000)])),
        ]
    }

    #[test]
    fn ingresses_together_let_as_many_pass_as_one_would() {
        let all_loads =
            [("evenly", [300, 300, 300]), ("unevenly", [1000, 60, 10]), ("one-sided", [500, 0, 0])];
        for (when, mut late) in latenesses() {
            // Where each word is seconds late, what all of them let pass swings; over ten minutes it is as much all the same.
            let minutes = if when == VERY_LATE { 10 } else { 1 };
            for (what, loads) in all_loads {
                let passed = pass_together(100, 15 + minutes * 60, &mut late, |_| loads);
                let (passed, may) = (sum(&passed, 15, minutes * 60), minutes * 6000);
                assert!(
                    passed.abs_diff(may) * 100 <= may,
                    "{what} loaded, words {when}, they let {passed} of {may} pass in {minutes} min"
                );
            }
        }
    }

    #[test]
    fn when_the_load_moves_to_another_ingress_the_limit_holds() {
        for (when, mut late) in latenesses() {
            // Five loads: each of three ingresses has had all of it and lost all of it.
            let loads = |second| match second {
                0..20 | 60..80 => [500, 0, 0],
                20..40 => [0, 500, 0],
                40..60 => [0, 0, 500],
                _ => [0, 500, 0],
            };
            let passed = pass_together(20, 100, &mut late, loads);
            let (least, most) = extremes(&passed, 15, 100);
            assert!(
                least >= 450 && most <= 550,
                "words {when}: {least} to {most} of 500 passed in five seconds"
            );
            let minute = sum(&passed, 30, 60);
            assert!((5940..=6060).contains(&minute), "words {when}: {minute} of 6000 passed in a minute");
        }
    }

    #[test]
    fn a_large_burst_is_not_given_twice_when_words_are_in_time() {
        let loads = |second| if second < 20 { [500, 0] } else { [0, 500] };
        let passed = pass_together(100, 40, &mut || [5, 5], loads);
        let (least, most) = extremes(&passed, 15, 40);
        assert!(least >= 450 && most <= 550, "{least} to {most} of 500 passed in five seconds");
    }
}
