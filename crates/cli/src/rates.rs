//! What came between two readings of what the ingresses count: rates and times, over all of them together.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_api::wire::{IngressTraffic, TrafficReport};
use rung_model::tally::{Subject, Tally};
use rung_model::{AppName, InstanceId, ServiceName};
use serde::Serialize;

/// An ingress tells once a second; one that had nothing to tell before has not counted over all that time.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What an interval brought.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rates {
    pub interval_ms: u64,
    /// Those with the most requests first.
    pub routes: Vec<RouteRates>,
    pub instances: Vec<InstanceRates>,
    /// Servers that did not answer: what is told to them is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteRates {
    pub app: AppName,
    pub route: String,
    #[serde(flatten)]
    pub flow: Flow,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstanceRates {
    pub app: AppName,
    pub service: ServiceName,
    pub instance: InstanceId,
    #[serde(flatten)]
    pub flow: Flow,
}

/// The requests of a route, or to an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Flow {
    pub requests_per_second: f64,
    /// Answered with a status of 500 and more, or not to the end.
    pub errors_per_second: f64,
    pub bytes_per_second: f64,
    /// Until the first byte of the answer; nothing without an answer.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub in_flight: u64,
    /// In this interval.
    pub requests: u64,
    pub errors: u64,
}

impl Flow {
    pub fn is_idle(&self) -> bool {
        self.requests == 0 && self.in_flight == 0
    }
}

/// Sums over ingresses, each of which has its own clock.
#[derive(Debug, Default)]
struct Sum {
    growth: Tally,
    flow: Flow,
}

impl Sum {
    fn add(&mut self, growth: &Tally, time: Duration) {
        let per_second = |count: u64| count as f64 / time.as_secs_f64();
        self.flow.requests_per_second += per_second(growth.requests());
        self.flow.errors_per_second += per_second(growth.errors());
        self.flow.bytes_per_second += per_second(growth.bytes);
        self.growth.add(growth);
    }

    fn flow(self) -> Flow {
        let round = |number: f64| (number * 1000.0).round() / 1000.0;
        let quantile = |share| Some(round(self.growth.quantile(share)?.as_secs_f64() * 1000.0));
        Flow {
            requests_per_second: round(self.flow.requests_per_second),
            errors_per_second: round(self.flow.errors_per_second),
            bytes_per_second: round(self.flow.bytes_per_second),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            in_flight: self.growth.in_flight,
            requests: self.growth.requests(),
            errors: self.growth.errors(),
        }
    }
}

/// `interval` lies between the readings, by the clock of whoever read.
pub fn between(earlier: &TrafficReport, later: &TrafficReport, interval: Duration) -> Rates {
    let longest = interval + TOLD_EVERY;
    let mut sums: BTreeMap<&Subject, Sum> = BTreeMap::new();
    for ingress in &later.ingresses {
        let before = earlier.ingresses.iter().find(|before| before.life == ingress.life);
        let age = Duration::from_millis(ingress.at_ms);
        let told_before = before.map_or(Duration::ZERO, |before| Duration::from_millis(before.at_ms));
        // One that counts for longer than that and was not known before has not counted all of it just now.
        let is_strange = before.is_none() && age > longest;
        let time = age.saturating_sub(told_before).clamp(TOLD_EVERY / 2, longest);
        let totals = totals(before);
        for line in &ingress.lines {
            let known = totals.get(&line.subject).copied();
            let growth = match known {
                None if is_strange => Tally { in_flight: line.tally.in_flight, ..Tally::default() },
                None => line.tally.clone(),
                Some(known) => line.tally.since(known),
            };
            sums.entry(&line.subject).or_default().add(&growth, time);
        }
    }
    sorted(sums, interval, later.silent.clone())
}

fn totals(ingress: Option<&IngressTraffic>) -> BTreeMap<&Subject, &Tally> {
    ingress.into_iter().flat_map(|one| &one.lines).map(|line| (&line.subject, &line.tally)).collect()
}

fn sorted(sums: BTreeMap<&Subject, Sum>, interval: Duration, silent: Vec<String>) -> Rates {
    let (mut routes, mut instances) = (Vec::new(), Vec::new());
    for (subject, sum) in sums {
        let flow = sum.flow();
        match subject.clone() {
            Subject::Route { app, route } => routes.push(RouteRates { app, route, flow }),
            Subject::Instance { app, service, instance } => {
                instances.push(InstanceRates { app, service, instance, flow });
            }
        }
    }
    // Stable: of equals the first by name comes first.
    routes.sort_by_key(|rates| std::cmp::Reverse(rates.flow.requests));
    instances.sort_by_key(|rates| std::cmp::Reverse(rates.flow.requests));
    Rates { interval_ms: interval.as_millis() as u64, routes, instances, silent }
}

#[cfg(test)]
mod tests {
    use rung_api::wire::TallyLine;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    fn ingress(life: u64, at_ms: u64, requests: u64) -> IngressTraffic {
        let subject = Subject::Route { app: AppName::new("shop").unwrap(), route: "/*".into() };
        let tally = Tally {
            in_flight: 1,
            ended: [0, 0, requests - requests / 10, 0, 0, requests / 10],
            times: [(40, requests)].into(),
            ..Tally::default()
        };
        let lines = vec![TallyLine { subject, tally }];
        IngressTraffic { ingress: format!("ingress-{life}"), life, at_ms, lines }
    }

    fn report(ingresses: &[IngressTraffic]) -> TrafficReport {
        TrafficReport { ingresses: ingresses.to_vec(), silent: Vec::new() }
    }

    fn flow(earlier: &[IngressTraffic], later: &[IngressTraffic]) -> Flow {
        between(&report(earlier), &report(later), INTERVAL).routes[0].flow.clone()
    }

    #[test]
    fn ingresses_add_up_each_by_its_own_clock() {
        let flow = flow(
            &[ingress(1, 10_000, 1000), ingress(2, 50_000, 30)],
            &[ingress(1, 12_000, 1200), ingress(2, 51_000, 80)],
        );
        assert_eq!((flow.requests, flow.errors, flow.in_flight), (250, 25, 2));
        assert_eq!(flow.requests_per_second, 150.0, "200 in two seconds and 50 in one");
        assert!(flow.p50_ms.is_some() && flow.p50_ms <= flow.p99_ms, "{flow:?}");
    }

    #[test]
    fn what_an_ingress_counted_before_it_was_known_is_not_taken_for_a_rush() {
        assert_eq!(flow(&[], &[ingress(1, 900_000, 1_000_000)]).requests, 0, "an old one, told of just now");
        assert_eq!(flow(&[], &[ingress(1, 1_500, 30)]).requests, 30, "a new one");
        let restarted = flow(&[ingress(1, 900_000, 1_000_000)], &[ingress(2, 1_000, 10)]);
        assert_eq!((restarted.requests, restarted.requests_per_second), (10, 10.0));
    }

    #[test]
    fn nothing_told_is_nothing_counted_and_a_pause_does_not_thin_what_comes_after_it() {
        let idle = [ingress(1, 10_000, 1000)];
        assert_eq!(flow(&idle, &idle).requests_per_second, 0.0);
        let after = flow(&idle, &[ingress(1, 19_000, 1300)]);
        assert_eq!(after.requests_per_second, 100.0);
    }
}
