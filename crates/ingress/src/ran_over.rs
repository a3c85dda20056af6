//! What ran over: what would have filled a bucket that was full already, by when that was.
//!
//! Of a limit that several ingresses share each hears late what the others let pass. Until then its bucket seems fuller than
//! it is, and what would have filled it runs over. A late word is paid for out of what ran over since the requests that it
//! tells of, the oldest first; only the rest is owed. The bucket is then as if each request had been known of at once,
//! however late the words are, and in whichever order they come. Without that each late word would be a debt that nothing
//! makes good while requests pass elsewhere at the full rate.

/// A power of two near an eighth of a second, so that nothing is divided.
const SLOT: u64 = 1 << 27;
/// More than eight seconds: twice as late as a word is waited for.
const SLOTS: usize = 64;
/// A slot holds so many of these.
const UNIT: u64 = SLOT >> 15;

/// See the module's text. Times and amounts are nanoseconds.
#[derive(Debug)]
pub(crate) struct RanOver {
    /// By time, in a circle.
    slots: [u16; SLOTS],
    /// The slot of the latest time that was looked at.
    last: u64,
}

impl RanOver {
    /// Of a bucket that was looked at for the first time then.
    pub(crate) fn new(now: u64) -> Self {
        Self { slots: [0; SLOTS], last: now / SLOT }
    }

    /// The bucket was full from then on, until now.
    pub(crate) fn add(&mut self, from: u64, now: u64) {
        self.go_on(now);
        for slot in self.oldest().max(from / SLOT)..=now / SLOT {
            let begins = slot * SLOT;
            let part = now.min(begins + SLOT).saturating_sub(from.max(begins));
            let held = self.held(slot);
            *held = held.saturating_add((part / UNIT) as u16);
        }
    }

    /// Takes at most so much of what ran over since then; how much that was.
    pub(crate) fn pay(&mut self, amount: u64, since: u64, now: u64) -> u64 {
        self.go_on(now);
        let mut left = amount / UNIT;
        for slot in self.oldest().max(since / SLOT)..=self.last {
            let held = self.held(slot);
            let paid = u64::from(*held).min(left);
            *held -= paid as u16;
            left -= paid;
        }
        (amount / UNIT - left) * UNIT
    }

    fn go_on(&mut self, now: u64) {
        let slot = now / SLOT;
        for fresh in (self.last + 1).max(slot.saturating_sub(SLOTS as u64 - 1))..=slot {
            *self.held(fresh) = 0;
        }
        self.last = self.last.max(slot);
    }

    fn oldest(&self) -> u64 {
        (self.last + 1).saturating_sub(SLOTS as u64)
    }

    fn held(&mut self, slot: u64) -> &mut u16 {
        &mut self.slots[(slot % SLOTS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_ran_over_is_paid_out_once_and_only_to_what_came_before_it() {
        let mut ran_over = RanOver::new(0);
        ran_over.add(10 * SECOND, 12 * SECOND);
        let paid = ran_over.pay(SECOND, 11 * SECOND, 13 * SECOND);
        assert!(paid.abs_diff(SECOND) < SECOND / 100, "{paid} ns were paid of a second");
        let again = ran_over.pay(SECOND, 11 * SECOND, 13 * SECOND);
        assert!(again < SLOT, "{again} ns were paid twice");
        let older = ran_over.pay(5 * SECOND, 9 * SECOND, 13 * SECOND);
        assert!(older.abs_diff(SECOND) < SLOT, "{older} ns were paid of the second before");
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut ran_over = RanOver::new(0);
        ran_over.add(0, 100 * SECOND);
        let held = ran_over.pay(100 * SECOND, 0, 100 * SECOND);
        assert!((8 * SECOND..9 * SECOND).contains(&held), "{held} ns were kept");
        ran_over.add(100 * SECOND, 101 * SECOND);
        assert_eq!(ran_over.pay(SECOND, 0, 200 * SECOND), 0);
    }
}
