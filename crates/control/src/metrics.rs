//! What ingresses count, in the text format of Prometheus.

use std::fmt::{self, Write};

use rung_api::wire::{IngressTraffic, TallyLine};
use rung_model::tally::{Subject, Tally, class_begin};

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The classes that a bucket ends before: each begins at twice the time of the one before, from half a millisecond to a
/// minute.
fn bounds() -> impl Iterator<Item = u8> {
    (24..=160).step_by(8)
}

/// Each ingress by itself: one that begins anew counts from zero, as a restarted process does anywhere.
pub(crate) fn render(ingresses: &[IngressTraffic]) -> String {
    let mut out = String::new();
    let routes = Of { prefix: "rung_http", what: "requests by route", lines: lines(ingresses, is_route) };
    let instances = Of {
        prefix: "rung_instance",
        what: "attempts to have a request answered, by instance",
        lines: lines(ingresses, |subject| !is_route(subject)),
    };
    for of in [routes, instances] {
        of.write(&mut out).expect("writing to a string succeeds");
    }
    out
}

fn is_route(subject: &Subject) -> bool {
    matches!(subject, Subject::Route { .. })
}

fn lines(ingresses: &[IngressTraffic], is_it: impl Fn(&Subject) -> bool) -> Vec<(String, &Tally)> {
    let all = ingresses.iter().flat_map(|one| one.lines.iter().map(move |line| (&one.ingress, line)));
    all.filter(|(_, line)| is_it(&line.subject))
        .map(|(name, line)| (labels(name, line), &line.tally))
        .collect()
}

fn labels(ingress: &str, line: &TallyLine) -> String {
    let app = line.subject.app();
    let (name, environment) = (app.base(), app.environment());
    let place = format!("ingress=\"{}\",app=\"{name}\",environment=\"{environment}\"", Escaped(ingress));
    match &line.subject {
        Subject::Route { route, .. } => format!("{place},route=\"{}\"", Escaped(route)),
        Subject::Instance { service, instance, .. } => {
            format!("{place},service=\"{service}\",instance_id=\"{instance}\"")
        }
    }
}

struct Of<'t> {
    prefix: &'static str,
    what: &'static str,
    lines: Vec<(String, &'t Tally)>,
}

impl Of<'_> {
    fn write(&self, out: &mut String) -> fmt::Result {
        let Self { prefix, what, lines } = self;
        writeln!(out, "# HELP {prefix}_requests_total Ended {what}; lost: without an answer, or amid one.")?;
        writeln!(out, "# TYPE {prefix}_requests_total counter")?;
        const CODES: [&str; 6] = ["lost", "1xx", "2xx", "3xx", "4xx", "5xx"];
        for (labels, tally) in lines {
            for (code, count) in CODES.iter().zip(tally.ended).filter(|(_, count)| *count > 0) {
                writeln!(out, "{prefix}_requests_total{{{labels},code=\"{code}\"}} {count}")?;
            }
        }
        writeln!(out, "# HELP {prefix}_requests_in_flight Begun and not ended {what}.")?;
        writeln!(out, "# TYPE {prefix}_requests_in_flight gauge")?;
        for (labels, tally) in lines {
            writeln!(out, "{prefix}_requests_in_flight{{{labels}}} {}", tally.in_flight)?;
        }
        writeln!(out, "# HELP {prefix}_response_bytes_total Payload of the answers, {what}.")?;
        writeln!(out, "# TYPE {prefix}_response_bytes_total counter")?;
        for (labels, tally) in lines {
            writeln!(out, "{prefix}_response_bytes_total{{{labels}}} {}", tally.bytes)?;
        }
        writeln!(out, "# HELP {prefix}_response_seconds Until an answer's first byte, {what}.")?;
        writeln!(out, "# TYPE {prefix}_response_seconds histogram")?;
        for (labels, tally) in lines {
            histogram(out, prefix, labels, tally)?;
        }
        Ok(())
    }
}

fn histogram(out: &mut String, prefix: &str, labels: &str, tally: &Tally) -> fmt::Result {
    let answers: u64 = tally.times.values().sum();
    for bound in bounds() {
        let within: u64 = tally.times.range(..bound).map(|(_, count)| count).sum();
        let le = class_begin(bound).as_secs_f64();
        writeln!(out, "{prefix}_response_seconds_bucket{{{labels},le=\"{le}\"}} {within}")?;
    }
    writeln!(out, "{prefix}_response_seconds_bucket{{{labels},le=\"+Inf\"}} {answers}")?;
    let sum = tally.time_us as f64 / 1e6;
    writeln!(out, "{prefix}_response_seconds_sum{{{labels}}} {sum}")?;
    writeln!(out, "{prefix}_response_seconds_count{{{labels}}} {answers}")
}

/// A label's value.
struct Escaped<'t>(&'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rung_model::tally::class_of;
    use rung_model::{AppName, InstanceId, ServiceName};

    use super::*;

    #[test]
    fn a_page_has_each_family_once_and_its_buckets_add_up() {
        let times = [(class_of(Duration::from_micros(700)), 3), (class_of(Duration::from_millis(30)), 2)];
        let tally = Tally {
            in_flight: 1,
            ended: [1, 0, 4, 0, 0, 0],
            bytes: 90,
            time_us: 62_100,
            times: times.into(),
        };
        let app = AppName::new("shop").unwrap();
        let route = Subject::Route { app: app.clone(), route: "/a\"b\\/*".into() };
        let instance = Subject::Instance {
            app,
            service: ServiceName::new("web").unwrap(),
            instance: InstanceId::new("shop-web-a1").unwrap(),
        };
        let line = |subject| TallyLine { subject, tally: tally.clone() };
        let lines = vec![line(route), line(instance)];
        let page = render(&[IngressTraffic { ingress: "ingress".into(), life: 1, at_ms: 9, lines }]);
        let place = "ingress=\"ingress\",app=\"shop\",environment=\"production\",route=\"/a\\\"b\\\\/*\"";
        for expected in [
            format!("rung_http_requests_total{{{place},code=\"2xx\"}} 4"),
            format!("rung_http_requests_total{{{place},code=\"lost\"}} 1"),
            format!("rung_http_requests_in_flight{{{place}}} 1"),
            format!("rung_http_response_bytes_total{{{place}}} 90"),
            format!("rung_http_response_seconds_bucket{{{place},le=\"0.000512\"}} 0"),
            format!("rung_http_response_seconds_bucket{{{place},le=\"0.001024\"}} 3"),
            format!("rung_http_response_seconds_bucket{{{place},le=\"0.032768\"}} 5"),
            format!("rung_http_response_seconds_bucket{{{place},le=\"+Inf\"}} 5"),
            format!("rung_http_response_seconds_sum{{{place}}} 0.0621"),
        ] {
            assert!(page.lines().any(|line| line == expected), "no line {expected} in\n{page}");
        }
        assert!(page.contains("service=\"web\",instance_id=\"shop-web-a1\""), "{page}");
        let families = page.lines().filter(|line| line.starts_with("# TYPE"));
        assert_eq!(families.count(), 8, "{page}");
    }
}
