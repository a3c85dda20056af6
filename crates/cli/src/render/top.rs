//! `rung top`: tables for whoever looks, lines for what reads along.

use super::bytes;
use super::paint::{Mood, Paint};
use super::table::{Cell, cell, colored, table};
use super::time::Clock;
use crate::rates::{Flow, Rates};

/// Whether an app's name is worth a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apps {
    One,
    All,
}

const FLOW: [&str; 7] = ["REQ/S", "ERRORS", "P50", "P95", "P99", "IN FLIGHT", "OUT"];

/// Two tables, with so many rows at most.
pub fn render(rates: &Rates, apps: Apps, rows_max: usize, paint: Paint) -> String {
    if rates.routes.is_empty() && rates.instances.is_empty() {
        return format!("{}no requests yet", silent(rates, paint));
    }
    let app = |name: &rung_model::AppName| if apps == Apps::All { name.to_string() } else { String::new() };
    let routes =
        rates.routes.iter().map(|route| (vec![cell(app(&route.app)), cell(&route.route)], &route.flow));
    let instances = rates.instances.iter().map(|instance| {
        let names = vec![cell(app(&instance.app)), cell(&instance.service), cell(&instance.instance)];
        (names, &instance.flow)
    });
    let half = rows_max.saturating_sub(rates.instances.len().min(rows_max / 2));
    let routes = part(&["APP", "ROUTE"], routes.collect(), half, "routes", paint);
    let left = rows_max.saturating_sub(half.min(rates.routes.len()));
    let instances = part(&["APP", "SERVICE", "INSTANCE"], instances.collect(), left, "instances", paint);
    format!("{}{routes}\n\n{instances}", silent(rates, paint))
}

fn silent(rates: &Rates, paint: Paint) -> String {
    if rates.silent.is_empty() {
        return String::new();
    }
    let servers = super::harmless(&rates.silent.join(", "));
    format!("{}\n", paint.warning(&format!("{servers} does not answer: what its ingresses count is missing")))
}

fn part(names: &[&str], rows: Vec<(Vec<Cell>, &Flow)>, max: usize, what: &str, paint: Paint) -> String {
    let more = rows.len().saturating_sub(max);
    let headings: Vec<&str> = names.iter().copied().chain(FLOW).collect();
    let shown = rows.into_iter().take(max).map(|(mut row, flow)| {
        row.extend(cells(flow));
        row
    });
    let text = table(&headings, &shown.collect::<Vec<_>>(), paint);
    match more {
        0 => text,
        _ => format!("{text}\n{}", paint.dim(&format!("and {more} {what} with fewer requests"))),
    }
}

fn cells(flow: &Flow) -> Vec<Cell> {
    let time = |ms: Option<f64>| cell(ms.map(millis).unwrap_or_default());
    vec![
        cell(rate(flow.requests_per_second)),
        colored(errors(flow), if flow.errors > 0 { Mood::Bad } else { Mood::Neutral }),
        time(flow.p50_ms),
        time(flow.p95_ms),
        time(flow.p99_ms),
        cell(flow.in_flight),
        cell(format!("{}/s", bytes(flow.bytes_per_second as u64))),
    ]
}

fn rate(per_second: f64) -> String {
    if per_second >= 100.0 { format!("{per_second:.0}") } else { format!("{per_second:.1}") }
}

/// Their part of the requests.
fn errors(flow: &Flow) -> String {
    let percent = 100.0 * flow.errors as f64 / flow.requests.max(1) as f64;
    match percent {
        0.0 => "0 %".to_owned(),
        percent if percent < 10.0 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// A line for each route and instance that had something to do.
pub fn lines(rates: &Rates, paint: Paint, clock: &Clock) -> Vec<String> {
    let at = clock.now.to_zoned(clock.zone.clone()).strftime("%H:%M:%S").to_string();
    let line = |name: String, flow: &Flow| {
        let mut line = format!("{}  {}  ", paint.dim(&at), super::harmless(&name));
        line.push_str(&format!("{} requests/s", rate(flow.requests_per_second)));
        if flow.errors > 0 {
            line.push_str(&format!("  {}", paint.bad(&format!("{} errors", errors(flow)))));
        }
        for (quantile, ms) in [("p50", flow.p50_ms), ("p95", flow.p95_ms), ("p99", flow.p99_ms)] {
            if let Some(ms) = ms {
                line.push_str(&format!("  {quantile} {}", millis(ms)));
            }
        }
        line.push_str(&format!("  {} in flight", flow.in_flight));
        line
    };
    let routes = rates.routes.iter().filter(|route| !route.flow.is_idle());
    let instances = rates.instances.iter().filter(|instance| !instance.flow.is_idle());
    routes
        .map(|route| line(format!("{} {}", route.app, route.route), &route.flow))
        .chain(instances.map(|instance| line(instance.instance.to_string(), &instance.flow)))
        .collect()
}

#[cfg(test)]
mod tests {
    use rung_model::{AppName, InstanceId, ServiceName};

    use super::*;
    use crate::rates::{InstanceRates, RouteRates};

    fn rates() -> Rates {
        let app = AppName::new("shop").unwrap();
        let busy = Flow {
            requests_per_second: 1234.5,
            errors_per_second: 24.7,
            bytes_per_second: 2_500_000.0,
            p50_ms: Some(0.214),
            p95_ms: Some(3.41),
            p99_ms: Some(1210.0),
            in_flight: 7,
            requests: 2469,
            errors: 49,
        };
        let service = ServiceName::new("web").unwrap();
        let instance = InstanceId::new("shop-web-a1").unwrap();
        let route = |route: &str, flow| RouteRates { app: app.clone(), route: route.into(), flow };
        Rates {
            interval_ms: 2000,
            routes: vec![route("/*", busy.clone()), route("/admin/*", Flow::default())],
            instances: vec![InstanceRates { app: app.clone(), service, instance, flow: busy }],
            silent: Vec::new(),
        }
    }

    #[test]
    fn tables_show_the_busiest_first_and_say_what_is_left_out() {
        let expected = "\
ROUTE     REQ/S  ERRORS  P50      P95     P99    IN FLIGHT  OUT
/*        1234   2.0 %   0.21 ms  3.4 ms  1.2 s  7          2.5 MB/s
/admin/*  0.0    0 %                             0          0 bytes/s

SERVICE  INSTANCE     REQ/S  ERRORS  P50      P95     P99    IN FLIGHT  OUT
web      shop-web-a1  1234   2.0 %   0.21 ms  3.4 ms  1.2 s  7          2.5 MB/s";
        assert_eq!(render(&rates(), Apps::One, 100, Paint::Plain), expected);
        let all = render(&rates(), Apps::All, 2, Paint::Plain);
        assert!(all.contains("APP   ROUTE") && all.contains("and 1 routes with fewer requests"), "{all}");
        let silent = Rates { silent: vec!["server-2".into()], ..rates() };
        assert!(render(&silent, Apps::One, 9, Paint::Plain).starts_with("server-2 does not answer"));
    }

    #[test]
    fn what_is_idle_gets_no_line() {
        let clock = Clock { now: jiff::Timestamp::UNIX_EPOCH, zone: jiff::tz::TimeZone::UTC };
        let said = lines(&rates(), Paint::Plain, &clock);
        let figures = "1234 requests/s  2.0 % errors  p50 0.21 ms  p95 3.4 ms  p99 1.2 s  7 in flight";
        let of = |name| format!("00:00:00  {name}  {figures}");
        assert_eq!(said, [of("shop /*"), of("shop-web-a1")]);
    }
}
