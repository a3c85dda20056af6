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

/// What a process of a proxy has counted since it began: totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub life: u64,
    pub cohorts: Vec<(AppName, DeploymentNumber, Counts)>,
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

    /// The same of a report that another server passes on. It holds only apps that are being judged: what had been counted
    /// of a cohort before it was passed on for the first time is not counted here.
    pub fn hear_from_afar(
        &mut self,
        proxy: &str,
        life: u64,
        counts: impl IntoIterator<Item = (AppName, DeploymentNumber, Counts)>,
    ) -> bool {
        let counts: Vec<_> = counts.into_iter().collect();
        if let Some(known) = self.reported.get_mut(proxy).filter(|known| known.life == life) {
            for (app, cohort, counts) in &counts {
                known.counts.entry((app.clone(), *cohort)).or_insert_with(|| counts.clone());
            }
        }
        self.hear(proxy, life, counts)
    }

    /// The last report of each process of a proxy, to be passed on, as far as it is about apps that are asked for.
    pub fn reports(&self, is_asked_for: impl Fn(&AppName) -> bool) -> BTreeMap<String, Report> {
        let of_asked = |reported: &Reported| -> Vec<_> {
            let asked = reported.counts.iter().filter(|((app, _), _)| is_asked_for(app));
            asked.map(|((app, cohort), counts)| (app.clone(), *cohort, counts.clone())).collect()
        };
        let reports = self.reported.iter().map(|(proxy, reported)| {
            let report = Report { life: reported.life, cohorts: of_asked(reported) };
            (proxy.clone(), report)
        });
        reports.filter(|(_, report)| !report.cohorts.is_empty()).collect()
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
    #[test]
    fn what_another_server_passes_on_counts_from_its_first_word_on() {
        let (mut there, mut here) = (Traffic::default(), Traffic::default());
        let shop = AppName::new("shop").unwrap();
        let pass_on = |there: &Traffic, here: &mut Traffic| {
            for (proxy, report) in there.reports(|app| *app == shop) {
                here.hear_from_afar(&proxy, report.life, report.cohorts);
            }
        };
        there.hear("a", 1, []);
        pass_on(&there, &mut here);
        assert!(there.reports(|_| true).is_empty(), "a report of nothing is passed on");
        there.hear("a", 1, report(100));
        pass_on(&there, &mut here);
        there.hear("a", 1, report(130));
        pass_on(&there, &mut here);
        pass_on(&there, &mut here);
        assert_eq!(here.of(&shop, DeploymentNumber(2)).requests, 30);
    }
}
