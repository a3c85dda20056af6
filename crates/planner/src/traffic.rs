//! What the proxies have counted, as facts for judging a release.

use std::collections::BTreeMap;

use rung_model::traffic::Counts;
use rung_model::{AppName, DeploymentNumber};

/// Of each cohort: everything that was counted since this leadership began. Only ever grows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    totals: BTreeMap<(AppName, DeploymentNumber), Counts>,
    /// The last report of each process of a proxy.
    reported: BTreeMap<String, Reported>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reported {
    life: u64,
    counts: BTreeMap<(AppName, DeploymentNumber), Counts>,
}

impl Traffic {
    pub fn of(&self, app: &AppName, cohort: DeploymentNumber) -> Counts {
        self.totals.get(&(app.clone(), cohort)).cloned().unwrap_or_default()
    }

    /// Takes in a report: the totals of one process of a proxy. One that was overtaken by a later one changes nothing.
    /// What a process had counted before it was first heard of in this leadership is not counted here: an earlier
    /// leader may have. True when there is anything new.
    pub fn hear(
        &mut self,
        proxy: &str,
        life: u64,
        counts: impl IntoIterator<Item = (AppName, DeploymentNumber, Counts)>,
    ) -> bool {
        let known = self.reported.entry(proxy.to_owned()).or_default();
        if known.life != life {
            *known = Reported { life, counts: BTreeMap::new() };
            let counts = counts.into_iter().map(|(app, cohort, counts)| ((app, cohort), counts));
            known.counts = counts.collect();
            return false;
        }
        let mut is_news = false;
        for (app, cohort, counts) in counts {
            let key = (app, cohort);
            let before = known.counts.entry(key.clone()).or_default();
            if counts.requests <= before.requests {
                continue;
            }
            let more = counts.since(before);
            *before = counts;
            self.totals.entry(key).or_default().add(&more);
            is_news = true;
        }
        is_news
    }

    /// Forgets cohorts that nobody asks for any more.
    pub fn retain(&mut self, is_known: impl Fn(&AppName, DeploymentNumber) -> bool) {
        self.totals.retain(|(app, cohort), _| is_known(app, *cohort));
        for reported in self.reported.values_mut() {
            reported.counts.retain(|(app, cohort), _| is_known(app, *cohort));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(requests: u64) -> [(AppName, DeploymentNumber, Counts); 1] {
        let counts = Counts { requests, errors: requests / 2, ..Counts::default() };
        [(AppName::new("shop").unwrap(), DeploymentNumber(2), counts)]
    }

    #[test]
    fn a_request_counts_once_whatever_happens_to_reports() {
        let mut traffic = Traffic::default();
        let seen =
            |traffic: &Traffic| traffic.of(&AppName::new("shop").unwrap(), DeploymentNumber(2)).requests;
        traffic.hear("a", 1, report(100));
        assert_eq!(seen(&traffic), 0, "what an earlier leader may have counted was counted again");
        traffic.hear("a", 1, report(110));
        traffic.hear("a", 1, report(110));
        traffic.hear("a", 1, report(104));
        assert_eq!(seen(&traffic), 10, "a doubled or late report was counted");
        traffic.hear("a", 2, report(0));
        traffic.hear("a", 2, report(7));
        assert_eq!(seen(&traffic), 17, "a proxy that began anew took something back");
    }
}
