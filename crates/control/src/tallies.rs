//! What the ingresses that report here have counted, by route and by instance. Kept in memory, as beats are: totals that
//! an ingress tells again when they are missed.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_api::wire::{IngressTraffic, TallyHeard, TallyLine, TallyReport};
use rung_model::tally::{Subject, Tally};

/// An ingress with nothing to tell says so every ten seconds; one that misses three of them is gone, or tells another
/// server.
const SILENT_AFTER: Duration = Duration::from_secs(35);

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    /// By the name of the ingress.
    ingresses: BTreeMap<String, Told>,
}

#[derive(Debug)]
struct Told {
    life: u64,
    at_ms: u64,
    heard: Duration,
    /// What is told in earlier ones may not be all.
    from_round: u32,
    /// All there is was told once.
    is_whole: bool,
    /// With the round in which each was last told.
    lines: BTreeMap<Subject, (u32, Tally)>,
}

impl Tallies {
    /// Of a process that was not known nothing is taken before it begins a round: what a part of its totals grows by is
    /// not what it counted.
    pub(crate) fn hear(&mut self, ingress: &str, report: TallyReport, now: Duration) -> TallyHeard {
        self.forget_silent(now);
        let Some(told) = self.ingresses.get_mut(ingress).filter(|told| told.life == report.life) else {
            let from_round = report.round + 1;
            let told = Told {
                life: report.life,
                at_ms: report.at_ms,
                heard: now,
                from_round,
                is_whole: false,
                lines: BTreeMap::new(),
            };
            self.ingresses.insert(ingress.to_owned(), told);
            return TallyHeard { tell_all: true };
        };
        told.heard = now;
        if report.round < told.from_round || report.at_ms < told.at_ms {
            return TallyHeard { tell_all: report.round < told.from_round };
        }
        told.at_ms = report.at_ms;
        let lines = report.lines.into_iter();
        told.lines.extend(lines.map(|line| (line.subject, (report.round, line.tally))));
        if report.is_complete {
            told.is_whole = true;
            told.lines.retain(|_, (round, _)| *round == report.round);
        }
        TallyHeard { tell_all: false }
    }

    /// An ingress has ended in order.
    pub(crate) fn leave(&mut self, ingress: &str) {
        self.ingresses.remove(ingress);
    }

    pub(crate) fn all(&mut self, now: Duration) -> Vec<IngressTraffic> {
        self.forget_silent(now);
        let whole = self.ingresses.iter().filter(|(_, told)| told.is_whole);
        let ingresses = whole.map(|(ingress, told)| {
            let lines = told
                .lines
                .iter()
                .map(|(subject, (_, tally))| TallyLine { subject: subject.clone(), tally: tally.clone() });
            let (ingress, life, at_ms) = (ingress.clone(), told.life, told.at_ms);
            IngressTraffic { ingress, life, at_ms, lines: lines.collect() }
        });
        ingresses.collect()
    }

    fn forget_silent(&mut self, now: Duration) {
        self.ingresses.retain(|_, told| now.saturating_sub(told.heard) < SILENT_AFTER);
    }
}

/// What several servers were told. An ingress that has turned to another server is known to both for a while: the later
/// word counts.
pub(crate) fn newest(told: impl IntoIterator<Item = IngressTraffic>) -> Vec<IngressTraffic> {
    let mut newest: BTreeMap<u64, IngressTraffic> = BTreeMap::new();
    for traffic in told {
        match newest.get(&traffic.life) {
            Some(known) if known.at_ms >= traffic.at_ms => {}
            _ => drop(newest.insert(traffic.life, traffic)),
        }
    }
    let mut newest: Vec<_> = newest.into_values().collect();
    newest.sort_by(|one, other| one.ingress.cmp(&other.ingress));
    newest
}

#[cfg(test)]
mod tests {
    use rung_model::AppName;

    use super::*;

    fn line(route: &str, requests: u64) -> TallyLine {
        let subject = Subject::Route { app: AppName::new("shop").unwrap(), route: route.to_owned() };
        TallyLine { subject, tally: Tally { ended: [0, 0, requests, 0, 0, 0], ..Tally::default() } }
    }

    fn report(life: u64, at_ms: u64, round: u32, lines: &[(&str, u64)]) -> TallyReport {
        let lines = lines.iter().map(|(route, requests)| line(route, *requests)).collect();
        TallyReport { life, at_ms, round, is_complete: true, lines }
    }

    fn seen(tallies: &mut Tallies, now: u64) -> Vec<(String, u64)> {
        let all = tallies.all(Duration::from_secs(now)).into_iter();
        let lines = all.flat_map(|ingress| ingress.lines);
        let route = |subject| match subject {
            Subject::Route { route, .. } => route,
            Subject::Instance { instance, .. } => instance.to_string(),
        };
        lines.map(|line| (route(line.subject), line.tally.requests())).collect()
    }

    #[test]
    fn totals_stay_until_they_change_or_a_round_leaves_them_out() {
        let at = Duration::from_secs;
        let mut tallies = Tallies::default();
        assert!(tallies.hear("ingress", report(7, 1, 1, &[("/a", 1)]), at(1)).tell_all);
        assert_eq!(seen(&mut tallies, 1), [], "a part is shown as if it were all");
        assert!(!tallies.hear("ingress", report(7, 2, 2, &[("/a", 1)]), at(2)).tell_all);
        assert!(!tallies.hear("ingress", report(7, 3, 2, &[("/b", 2)]), at(3)).tell_all);
        assert_eq!(seen(&mut tallies, 3), [("/a".into(), 1), ("/b".into(), 2)]);
        let begins = TallyReport { is_complete: false, ..report(7, 4, 3, &[("/b", 3)]) };
        tallies.hear("ingress", begins, at(4));
        assert_eq!(seen(&mut tallies, 4).len(), 2, "what has not had its turn yet is forgotten");
        tallies.hear("ingress", report(7, 5, 3, &[]), at(5));
        assert_eq!(seen(&mut tallies, 5), [("/b".into(), 3)]);
        assert!(tallies.hear("ingress", report(8, 1, 1, &[]), at(6)).tell_all, "another process");
        tallies.hear("ingress", report(8, 2, 2, &[("/c", 1)]), at(7));
        assert_eq!(seen(&mut tallies, 7), [("/c".into(), 1)]);
        assert_eq!(seen(&mut tallies, 60), [], "an ingress that is silent is taken for a living one");
    }

    #[test]
    fn an_ingress_that_two_servers_know_counts_once() {
        let told = |at_ms, requests| {
            let lines = vec![line("/", requests)];
            IngressTraffic { ingress: "edge.ingress".into(), life: 7, at_ms, lines }
        };
        let newest = newest([told(20, 9), told(10, 5)]);
        assert_eq!(newest, [told(20, 9)]);
    }
}
