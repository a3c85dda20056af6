//! How strongly counts speak against a release, at any time and however often one looks.
//!
//! Each test is a bet against "the release is fine" at fair odds: a gambler who begins with 1 and bets on every second's
//! counts multiplies his money by [`CONVINCING`] with a chance of at most one in so many while the release is fine,
//! over all looks together (Ville's inequality). Bets are placed on several sizes of the effect at once; the gain is
//! their mean. The reasons are in `docs/decisions/0030-judging-a-canary.md`.

use std::time::Duration;

use rung_model::appfile::rollout::AbortIf;
use rung_model::rollout::Evidence;
use rung_model::traffic::Counts;

/// A gain of so much is taken for a fact.
const CONVINCING: f64 = 20.0;

/// The sizes of the effect that are bet on, as ratios of odds: twice as many errors, up to practically always.
const EFFECTS: [f64; 5] = [2.0, 4.0, 8.0, 16.0, 32.0];

/// No bet falls below it, so that a release that turns bad later is found out, too. From there one bet alone carries the
/// mean to being convincing with a chance of one in a million.
const FLOOR: f64 = 0.000_1;

/// A p95 above its limit is the same as more than this part of the answers beyond it.
const SLOW_PART: f64 = 0.05;

/// Takes in what was counted between two looks.
pub(crate) fn weigh(evidence: &mut Evidence, limits: &AbortIf, new: &Counts, old: &Counts) {
    if let Some(limit) = limits.error_rate {
        bet_above(&mut evidence.errors_above, limit.fraction(), new.errors, new.requests);
        bet_worse(&mut evidence.errors_worse, (new.errors, new.requests), (old.errors, old.requests));
    }
    if let Some(limit) = limits.p95 {
        let (slow_new, new) = answers(new, limit);
        bet_above(&mut evidence.slow_above, SLOW_PART, slow_new, new);
        bet_worse(&mut evidence.slow_worse, (slow_new, new), answers(old, limit));
    }
}

/// The same where the old release does not serve any more: only against limits, which are the higher of what was asked
/// for and what the old one did.
pub(crate) fn weigh_alone(evidence: &mut Evidence, limits: &AbortIf, new: &Counts, before: &Counts) {
    if let Some(limit) = limits.error_rate {
        let limit = limit.fraction().max(upper_bound(before.errors, before.requests));
        bet_above(&mut evidence.errors_above, limit, new.errors, new.requests);
    }
    if let Some(p95) = limits.p95 {
        let (slow_before, of) = answers(before, p95);
        let limit = SLOW_PART.max(upper_bound(slow_before, of));
        let (slow, of) = answers(new, p95);
        bet_above(&mut evidence.slow_above, limit, slow, of);
    }
}

/// Answers beyond the limit, of how many.
fn answers(counts: &Counts, limit: Duration) -> (u64, u64) {
    (counts.slower_than(limit), counts.times.values().sum())
}

/// Above the rate of which so many were seen, with some certainty. Nothing is known of nothing: then 0.
fn upper_bound(events: u64, of: u64) -> f64 {
    if of == 0 {
        return 0.0;
    }
    let (events, of) = (events as f64, of as f64);
    let rate = (events + 1.0) / (of + 2.0);
    (rate + 2.0 * (rate * (1.0 - rate) / of).sqrt()).min(0.99)
}

/// Whether it is taken for a fact that the release fails too often.
pub(crate) fn errors_are_convincing(evidence: &Evidence) -> bool {
    gain(&evidence.errors_above) >= CONVINCING && gain(&evidence.errors_worse) >= CONVINCING
}

/// Whether it is taken for a fact that the release is too slow.
pub(crate) fn slowness_is_convincing(evidence: &Evidence) -> bool {
    gain(&evidence.slow_above) >= CONVINCING && gain(&evidence.slow_worse) >= CONVINCING
}

/// The same of a release that serves alone: there is only a limit.
pub(crate) fn is_convincing_alone(evidence: &Evidence) -> (bool, bool) {
    (gain(&evidence.errors_above) >= CONVINCING, gain(&evidence.slow_above) >= CONVINCING)
}

fn gain(bets: &[f64]) -> f64 {
    if bets.is_empty() {
        return 1.0;
    }
    bets.iter().map(|bet| bet.exp()).sum::<f64>() / bets.len() as f64
}

fn settle(bets: &mut Vec<f64>, factor: impl Fn(f64) -> f64) {
    bets.resize(EFFECTS.len(), 0.0);
    for (bet, effect) in bets.iter_mut().zip(EFFECTS) {
        // Beyond this nothing is more convincing, and numbers stay numbers.
        *bet = (*bet + factor(effect)).clamp(FLOOR.ln(), 200.0);
    }
}

/// A bet that events are more frequent than the limit: the likelihood ratio of a higher rate against it.
fn bet_above(bets: &mut Vec<f64>, limit: f64, events: u64, of: u64) {
    let (events, others) = (events as f64, of.saturating_sub(events) as f64);
    settle(bets, |effect| {
        let odds = effect * limit / (1.0 - limit);
        let rate = odds / (1.0 + odds);
        events * (rate / limit).ln() + others * ((1.0 - rate) / (1.0 - limit)).ln()
    });
}

/// A bet that of the events that came, more are the new release's than its part of the requests explains: the likelihood
/// ratio of Fisher's noncentral hypergeometric distribution against the central one. It compares what came in the
/// same moment only, so a bad hour that both go through says nothing.
fn bet_worse(bets: &mut Vec<f64>, new: (u64, u64), old: (u64, u64)) {
    let events = new.0 + old.0;
    let (fewest, most) = (events.saturating_sub(old.1), events.min(new.1));
    if fewest >= most || new.0 > most || new.0 < fewest {
        settle(bets, |_| 0.0);
        return;
    }
    let mut weights = vec![0.0];
    for at in fewest..most {
        let up = ((new.1 - at) as f64).ln() + ((events - at) as f64).ln();
        let down = ((at + 1) as f64).ln() + ((old.1 + at + 1 - events) as f64).ln();
        weights.push(weights[weights.len() - 1] + up - down);
    }
    let total = |effect: f64| {
        let terms = || weights.iter().enumerate().map(|(nth, weight)| weight + nth as f64 * effect);
        let largest = terms().fold(f64::NEG_INFINITY, f64::max);
        largest + terms().map(|term| (term - largest).exp()).sum::<f64>().ln()
    };
    let fair = total(0.0);
    let seen = (new.0 - fewest) as f64;
    settle(bets, |effect| seen * effect.ln() - (total(effect.ln()) - fair));
}

#[cfg(test)]
mod tests {
    use rung_model::appfile::rollout::Share;

    use super::*;

    const LIMITS: AbortIf = AbortIf { error_rate: Some(Share(200)), p95: None, requests: 10 };

    /// A generator that needs no crate: the tests must tell the same story each time.
    struct Dice(u64);

    impl Dice {
        fn falls(&mut self, chance: f64) -> bool {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) as f64) / ((1u64 << 31) as f64) < chance
        }

        fn second(&mut self, requests: u64, rate: f64) -> Counts {
            let errors = (0..requests).filter(|_| self.falls(rate)).count() as u64;
            Counts { requests, errors, ..Counts::default() }
        }
    }

    /// After how many seconds it is taken for a fact; `None`: not within them.
    fn convinced(dice: &mut Dice, seconds: u64, new: (u64, f64), old: (u64, f64)) -> Option<u64> {
        let mut evidence = Evidence::default();
        let mut seen = 0;
        (1..=seconds).find(|_| {
            let (new, old) = (dice.second(new.0, new.1), dice.second(old.0, old.1));
            weigh(&mut evidence, &LIMITS, &new, &old);
            seen += new.requests;
            seen >= LIMITS.requests && errors_are_convincing(&evidence)
        })
    }

    #[test]
    fn a_release_that_fails_every_fifth_request_is_found_out_within_seconds() {
        let mut dice = Dice(1);
        let mut seconds: Vec<u64> = (0..500)
            .map(|_| convinced(&mut dice, 120, (3, 0.2), (47, 0.0)).expect("it was not found in two minutes"))
            .collect();
        seconds.sort_unstable();
        assert!(seconds[250] <= 7, "half of them took more than {} s", seconds[250]);
        assert!(seconds[350] <= 10, "three of ten took more than {} s", seconds[350]);
        assert!(seconds[475] <= 20, "one in twenty took more than {} s", seconds[475]);
    }

    #[test]
    fn a_release_that_is_no_worse_is_left_alone_however_often_one_looks() {
        let mut dice = Dice(2);
        // In the bad hour there is only the comparison, which keeps its promise of one in twenty.
        for (rate, most, name) in
            [(0.0, 0, "perfect"), (0.01, 1, "below the limit"), (0.3, 15, "in a bad hour, with the old one")]
        {
            let aborted =
                (0..300).filter(|_| convinced(&mut dice, 300, (5, rate), (45, rate)).is_some()).count();
            assert!(aborted <= most, "{aborted} of 300 releases that were {name} were aborted");
        }
    }

    #[test]
    fn a_release_at_its_limit_is_aborted_less_often_than_promised() {
        let mut dice = Dice(3);
        let aborted = (0..400).filter(|_| convinced(&mut dice, 60, (5, 0.02), (45, 0.0)).is_some()).count();
        assert!(
            aborted <= 40,
            "{aborted} of 400 releases that failed just as often as they may were aborted"
        );
    }

    #[test]
    fn a_release_that_turns_bad_later_is_found_out_too() {
        let mut dice = Dice(4);
        let mut evidence = Evidence::default();
        for _ in 0..3600 {
            let (new, old) = (dice.second(10, 0.0), dice.second(40, 0.0));
            weigh(&mut evidence, &LIMITS, &new, &old);
        }
        let found = (1..60).find(|_| {
            let (new, old) = (dice.second(10, 0.3), dice.second(40, 0.0));
            weigh(&mut evidence, &LIMITS, &new, &old);
            errors_are_convincing(&evidence)
        });
        assert!(found.is_some_and(|seconds| seconds <= 10), "after an hour of good answers: {found:?}");
    }

    #[test]
    fn when_all_fail_at_the_same_time_nobody_is_to_blame() {
        let mut evidence = Evidence::default();
        let all_fail = |requests| Counts { requests, errors: requests, ..Counts::default() };
        for _ in 0..100 {
            weigh(&mut evidence, &LIMITS, &all_fail(5), &all_fail(45));
        }
        assert!(!errors_are_convincing(&evidence), "an outage of both was taken for the new one's fault");
    }
}
