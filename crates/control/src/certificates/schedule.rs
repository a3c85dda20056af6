//! When which domain's certificate is ordered: a machine without I/O.
//!
//! ```text
//!             wanted, none held          done
//!   ─────────► due ──► ordered ────────────────► held ──► due again at two thirds of its life,
//!               ▲         │ failed                │        or when its authority advises
//!               └─────────┘ after 2 min, doubling └──► advice asked for now and then
//! ```
//! A failure takes nothing away: what is held is shown to its end, while orders go on, rarer and rarer. Authorities count
//! failed orders, five an hour for a name; the pauses stay below that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use rung_api::wire::certificates::ChallengeWay;

/// Together; authorities count orders, too.
const AT_ONCE: usize = 4;
const PAUSE_FIRST: Duration = Duration::from_secs(2 * 60);
/// A mended DNS or an authority that is back is noticed within this; `rung certificate renew` is quicker.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);

/// The authority's advice on when to renew is asked for this often, unless it says otherwise within the bounds.
pub(super) const ADVICE_EVERY: Duration = Duration::from_secs(6 * 3600);
pub(super) const ADVICE_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(3600), Duration::from_secs(24 * 3600));

/// What is known of a domain that has an app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Of what is held.
    pub renew: Option<Timestamp>,
    pub ask_again: Option<Timestamp>,
    pub failures: u32,
    /// After a failure.
    pub again: Option<Timestamp>,
    pub asked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Every domain that is to be looked after, as it is.
    Seen(BTreeMap<String, Facts>),
    /// What was begun has ended; the next facts hold its outcome.
    Ended(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Order { domain: String, way: ChallengeWay },
    AskAdvice { domain: String },
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// What was begun and has not ended.
    busy: BTreeSet<String>,
}

impl Schedule {
    pub fn step(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        let domains = match event {
            Event::Seen(domains) => domains,
            Event::Ended(domain) => {
                // What was seen before is old now: what is due is found by the next look.
                self.busy.remove(&domain);
                return Vec::new();
            }
        };
        let mut effects = Vec::new();
        // Those without any certificate come first.
        let mut order: Vec<_> = domains.iter().collect();
        order.sort_by_key(|(_, facts)| facts.renew);
        for (domain, facts) in order {
            if self.busy.len() >= AT_ONCE {
                break;
            }
            if let Some(effect) = due(domain, facts, now)
                && self.busy.insert(domain.clone())
            {
                effects.push(effect);
            }
        }
        effects
    }
}

fn due(domain: &str, facts: &Facts, now: Timestamp) -> Option<Effect> {
    let domain = domain.to_owned();
    if facts.asked || order_at(facts).is_none_or(|at| at <= now) {
        return Some(Effect::Order { domain, way: way(facts.failures) });
    }
    facts.ask_again.is_some_and(|at| at <= now).then_some(Effect::AskAdvice { domain })
}

/// `None`: as soon as can be.
pub(super) fn order_at(facts: &Facts) -> Option<Timestamp> {
    facts.renew.max(facts.again)
}

/// Port 80 may be closed where 443 is open, or the other way round: after a failure the other way is tried.
fn way(failures: u32) -> ChallengeWay {
    if failures.is_multiple_of(2) { ChallengeWay::Http01 } else { ChallengeWay::TlsAlpn01 }
}

/// How long to wait after so many failures in a row.
pub(super) fn pause(failures: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX)
}

/// At two thirds of its life.
pub(super) fn renewal(from: Timestamp, until: Timestamp) -> Timestamp {
    let life = until.duration_since(from);
    from.checked_add(life * 2 / 3).unwrap_or(until)
}

/// A time within the window that the authority advises for the renewal (RFC 9773), by a number between 0 and 1: not all that it
/// advises shall come at once. `None`: it is no window, or one after the certificate's end, and what was planned holds.
pub(super) fn advised(start: Timestamp, end: Timestamp, until: Timestamp, draw: f64) -> Option<Timestamp> {
    let window = Duration::try_from(end.duration_since(start)).ok().filter(|window| !window.is_zero())?;
    let at = start.checked_add(window.mul_f64(draw.clamp(0.0, 1.0))).ok()?;
    (at < until).then_some(at)
}

/// When an authority is asked for its advice on a certificate for the first time. On one that took the place of another it is
/// later: of an authority that says "now" of each that it signs, one after the other would be ordered.
pub(super) fn first_question(is_renewed: bool, now: Timestamp) -> Timestamp {
    let pause = if is_renewed { ADVICE_EVERY } else { Duration::ZERO };
    now.checked_add(pause).unwrap_or(Timestamp::MAX)
}

/// Whether an authority of the world can vouch for this name by what an ingress can prove.
pub(crate) fn is_orderable(domain: &str) -> bool {
    let is_local = domain == "localhost" || domain.ends_with(".localhost");
    let is_address = domain.starts_with('[') || domain.parse::<std::net::Ipv4Addr>().is_ok();
    domain.contains('.') && !domain.starts_with('*') && !is_local && !is_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + minutes * 60).unwrap()
    }

    fn seen(facts: &[(&str, Facts)]) -> Event {
        Event::Seen(facts.iter().map(|(domain, facts)| ((*domain).to_owned(), facts.clone())).collect())
    }

    fn order(domain: &str, way: ChallengeWay) -> Effect {
        Effect::Order { domain: domain.to_owned(), way }
    }

    fn failed(failures: u32, again: Timestamp) -> Facts {
        Facts { failures, again: Some(again), ..Facts::default() }
    }

    #[test]
    fn a_new_domain_is_ordered_at_once_and_not_twice() {
        let mut schedule = Schedule::default();
        let wanted = seen(&[("a.example", Facts::default())]);
        assert_eq!(schedule.step(wanted.clone(), at(0)), [order("a.example", ChallengeWay::Http01)]);
        assert_eq!(schedule.step(wanted.clone(), at(1)), [], "it is ordered while it is being ordered");
        let held = Facts { renew: Some(at(100)), ask_again: Some(at(50)), ..Facts::default() };
        let by_what_was_seen_before = schedule.step(Event::Ended("a.example".into()), at(2));
        assert_eq!(by_what_was_seen_before, [], "it is ordered again by what was seen before it was there");
        assert_eq!(schedule.step(seen(&[("a.example", held.clone())]), at(2)), []);
        assert_eq!(
            schedule.step(seen(&[("a.example", held.clone())]), at(50)),
            [Effect::AskAdvice { domain: "a.example".into() }]
        );
        schedule.step(Event::Ended("a.example".into()), at(50));
        let asked = Facts { ask_again: Some(at(300)), ..held };
        assert_eq!(schedule.step(seen(&[("a.example", asked.clone())]), at(99)), []);
        assert_eq!(
            schedule.step(seen(&[("a.example", asked)]), at(100)),
            [order("a.example", ChallengeWay::Http01)]
        );
    }

    #[test]
    fn a_failure_is_followed_by_the_other_way_after_a_pause_and_asking_skips_the_pause() {
        let mut schedule = Schedule::default();
        let waits = failed(1, at(2));
        assert_eq!(schedule.step(seen(&[("a.example", waits.clone())]), at(1)), []);
        let asked = Facts { asked: true, ..waits.clone() };
        let other_way = order("a.example", ChallengeWay::TlsAlpn01);
        assert_eq!(schedule.step(seen(&[("a.example", asked)]), at(1)), std::slice::from_ref(&other_way));
        schedule.step(Event::Ended("a.example".into()), at(1));
        assert_eq!(schedule.step(seen(&[("a.example", waits)]), at(2)), [other_way]);
    }

    #[test]
    fn an_outage_of_days_costs_an_authority_a_few_orders_a_day() {
        let mut minutes = 0;
        let mut orders = 0;
        while minutes < 5 * 24 * 60 {
            orders += 1;
            minutes += pause(orders).as_secs() / 60;
            let within_an_hour = (1..=5).map(|failures| pause(failures).as_secs()).sum::<u64>();
            assert!(within_an_hour >= 3600, "an authority counts five failures an hour");
        }
        assert!((10..40).contains(&orders), "{orders} orders in five days");
    }

    #[test]
    fn few_are_ordered_at_once_and_those_that_have_nothing_first() {
        let mut schedule = Schedule::default();
        let due = Facts { renew: Some(at(0)), ..Facts::default() };
        let names: Vec<String> = (0..6).map(|n| format!("n{n}.example")).collect();
        let mut domains: Vec<_> = names.iter().map(|name| (name.as_str(), due.clone())).collect();
        domains.push(("z.example", Facts::default()));
        let effects = schedule.step(seen(&domains), at(1));
        assert_eq!(effects.len(), AT_ONCE);
        assert_eq!(effects[0], order("z.example", ChallengeWay::Http01));
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds() {
        assert_eq!(renewal(at(0), at(90)), at(60));
    }

    #[test]
    fn advice_is_a_time_within_the_window_and_nonsense_is_none() {
        let until = at(90);
        assert_eq!(advised(at(20), at(40), until, 0.5), Some(at(30)));
        assert_eq!(advised(at(20), at(40), until, 0.0), Some(at(20)));
        assert_eq!(advised(at(40), at(20), until, 0.5), None, "the window ends before it begins");
        assert_eq!(advised(at(20), at(20), until, 0.5), None, "an empty window is none");
        assert_eq!(advised(at(91), at(95), until, 0.5), None, "the certificate has ended by then");
        assert_eq!(advised(Timestamp::MIN, Timestamp::MAX, until, 1.0), None, "a window of all times");
    }

    #[test]
    fn an_authority_that_wants_each_certificate_renewed_at_once_gets_four_orders_a_day() {
        let mut orders = 0;
        let mut now = at(0);
        while now < at(5 * 24 * 60) {
            orders += 1;
            now = first_question(orders > 1, now).checked_add(Duration::from_secs(10)).unwrap();
        }
        assert!((10..=22).contains(&orders), "{orders} orders in five days");
    }

    #[test]
    fn names_that_no_authority_of_the_world_knows_are_not_ordered() {
        for (domain, orderable) in [
            ("shop.example.com", true),
            ("*.example.com", false),
            ("shop.localhost", false),
            ("localhost", false),
            ("10.0.0.1", false),
            ("intranet", false),
        ] {
            assert_eq!(is_orderable(domain), orderable, "{domain}");
        }
    }
}
