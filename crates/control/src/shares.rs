//! What ingresses let pass of limits that they share, on its way from each to all others. Nothing of it is kept: what
//! is lost makes a limit a little wider for a moment.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_api::wire::{LimitTaken, LimitsTaken};

/// Several times the pause between two reports of an ingress that is alone.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// Words that wait for an ingress that does not ask; it has forgotten these clients by then.
const WAITING_MAX: usize = 20_000;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    proxies: BTreeMap<String, Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    heard: Duration,
    /// By limit and client.
    waiting: BTreeMap<(String, String), u32>,
}

impl Shares {
    /// Takes what one ingress let pass, and answers with what the others did since it last asked.
    pub(crate) fn exchange(&mut self, proxy: &str, told: LimitsTaken, now: Duration) -> LimitsTaken {
        self.proxies.retain(|_, inbox| now.saturating_sub(inbox.heard) < SILENT_AFTER);
        let own = self.proxies.entry(proxy.to_owned()).or_default();
        own.heard = now;
        let waiting = std::mem::take(&mut own.waiting);
        for (_, inbox) in self.proxies.iter_mut().filter(|(name, _)| *name != proxy) {
            for LimitTaken { limit, taken } in &told.limits {
                for (whose, count) in taken {
                    inbox.add(limit, whose, *count);
                }
            }
        }
        let mut limits: BTreeMap<String, LimitTaken> = BTreeMap::new();
        for ((limit, whose), count) in waiting {
            let entry =
                limits.entry(limit.clone()).or_insert_with(|| LimitTaken { limit, taken: BTreeMap::new() });
            entry.taken.insert(whose, count);
        }
        LimitsTaken { others: self.proxies.len() - 1, limits: limits.into_values().collect() }
    }
}

impl Inbox {
    fn add(&mut self, limit: &str, whose: &str, count: u32) {
        let is_full = self.waiting.len() >= WAITING_MAX;
        let key = (limit.to_owned(), whose.to_owned());
        match self.waiting.get_mut(&key) {
            Some(waiting) => *waiting = waiting.saturating_add(count),
            None if is_full => {}
            None => drop(self.waiting.insert(key, count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(count: u32) -> LimitsTaken {
        let taken = [("1f".to_owned(), count)].into();
        LimitsTaken { others: 0, limits: vec![LimitTaken { limit: "shop".into(), taken }] }
    }

    fn heard(answer: &LimitsTaken) -> u32 {
        answer.limits.iter().flat_map(|limit| limit.taken.values()).sum()
    }

    #[test]
    fn each_hears_what_the_others_let_pass_and_nothing_of_its_own() {
        let mut shares = Shares::default();
        let at = Duration::from_secs;
        assert_eq!(shares.exchange("a", told(5), at(1)).others, 0, "a is alone");
        assert_eq!(heard(&shares.exchange("b", told(0), at(1))), 0, "what was told before it came is over");
        let answer = shares.exchange("a", told(3), at(2));
        assert_eq!((answer.others, heard(&answer)), (1, 0));
        shares.exchange("a", told(4), at(3));
        assert_eq!(heard(&shares.exchange("b", told(2), at(3))), 7, "two reports come as one");
        assert_eq!(heard(&shares.exchange("b", told(0), at(4))), 0, "it was heard twice");
        assert_eq!(heard(&shares.exchange("a", told(0), at(4))), 2);
        assert_eq!(shares.exchange("b", told(0), at(20)).others, 0, "who is silent is gone");
    }
}
