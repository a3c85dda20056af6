//! Twenty thousand routes: what they add to a request, and how soon a change of one is seen.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rung_e2e::http::Connection;
use rung_e2e::{Rung, Start};
use rung_model::route::{Destination, Redirect};
use rung_model::{
    AppName, Backend, DeploymentNumber, Endpoint, Generation, InstanceId, ReleaseNumber, Route,
    RouteDocument, ServiceName,
};

use super::peers::{Kind, Peer, Setting};
use super::report::{Report, Series};
use super::server::Server;
use super::world::{Pace, World};
use crate::payload::Payload;

/// As many as an app file takes.
const PER_HOST: usize = 100;
/// How often a change is made.
const CHANGES: usize = 20;
const VISIBLE_PATIENCE: Duration = Duration::from_secs(10);

/// Hosts, each with the paths that it has beside `/`; the first is the one that is asked for.
pub fn sites(routes: usize) -> impl Iterator<Item = (String, Vec<String>)> {
    (0..routes.div_ceil(PER_HOST)).map(move |number| {
        let host = if number == 0 { "bench".to_owned() } else { format!("other-{number}") };
        let more = (routes - number * PER_HOST).min(PER_HOST) - 1;
        (format!("{host}.localhost"), (0..more).map(|part| format!("/part-{part}/")).collect())
    })
}

/// The same for HAProxy: prefixes of host and path.
pub fn map(routes: usize) -> String {
    let lines = |(host, paths): (String, Vec<String>)| {
        let all = ["/".to_owned()].into_iter().chain(paths);
        all.map(|path| format!("{host}{path} bench\n")).collect::<String>()
    };
    sites(routes).map(lines).collect()
}

/// The same for Rung: an app for each host.
pub fn documents(routes: usize, instances: &[SocketAddr]) -> anyhow::Result<Vec<RouteDocument>> {
    let web = ServiceName::new("web")?;
    let document = |(host, paths): (String, Vec<String>)| -> anyhow::Result<RouteDocument> {
        let app = AppName::new(host.trim_end_matches(".localhost"))?;
        let mut rules = vec![Route::to_service("/*", web.clone())];
        rules.extend(paths.iter().map(|path| Route::to_service(format!("{path}*"), web.clone())));
        let backend = backend(&app, instances)?;
        Ok(RouteDocument {
            generation: Generation::new(1, 1),
            ..RouteDocument::new(app, vec![host], rules, [(web.clone(), backend)].into())
        })
    };
    sites(routes).map(document).collect()
}

fn backend(app: &AppName, instances: &[SocketAddr]) -> anyhow::Result<Backend> {
    let endpoint = |(index, address): (usize, &SocketAddr)| -> anyhow::Result<Endpoint> {
        Ok(Endpoint {
            node: None,
            proxy: None,
            instance: InstanceId::new(format!("{app}-{index}"))?,
            release: ReleaseNumber(1),
            cohort: DeploymentNumber(1),
            address: *address,
            weight: 1,
        })
    };
    Ok(Backend {
        endpoints: instances.iter().enumerate().map(endpoint).collect::<Result<_, _>>()?,
        draining: Vec::new(),
        protocol: Default::default(),
        hold: None,
        response_timeout: Duration::from_secs(60),
        explanation: String::new(),
        absence: Default::default(),
        split: None,
    })
}

/// What a request costs among so many routes, and alone.
pub fn measure_cost(
    world: &mut World,
    rung: &Path,
    routes: usize,
    (rounds, time): (usize, Duration),
    report: &mut Report,
) -> anyhow::Result<()> {
    let instances = world.instances()?;
    let mut peers = Vec::new();
    for kind in Kind::YARDSTICKS {
        for setting in [Setting::Plain, Setting::Routes(routes)] {
            match super::start(world, kind, rung, &instances, setting) {
                Ok(peer) => peers.push(peer),
                Err(error) if kind == Kind::Rung => return Err(error),
                Err(error) => report.note(format!("{}, {routes} routes: {error:#}", kind.name())),
            }
        }
    }
    let mut alone = Series::new("CPU per request with one route, 128 B".into(), "us");
    let mut among = Series::new(format!("CPU per request with {routes} routes, 128 B"), "us");
    let plan = super::plan(Pace::Closed, super::SMALL, time);
    super::rounds(world, &peers, rounds, plan, |peer, turn| {
        let series = if peer.routes == 1 { &mut alone } else { &mut among };
        series.add(peer.kind, super::cpu_per_request(&turn));
    })?;
    report.push(alone);
    report.push(among);
    Ok(())
}

/// From the server's word to the first request that follows it, among so many routes.
pub fn measure_change(rung: &Path, routes: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut documents = documents(routes, &[SocketAddr::from(([127, 0, 0, 1], 9))])?;
    documents.push(changing(0)?);
    let server = Server::start(documents)?;
    let peer = Peer::start(Kind::Rung, rung, &[], Setting::Followed(server.address))?;
    let mut client = Connection::open(peer.address).map_err(|failure| failure.source)?;
    let mut series =
        Series::new(format!("route change visible after the server's word, {routes} routes"), "ms");
    for round in 0..=CHANGES {
        let path = format!("/new-{round}");
        let said = Instant::now();
        if round > 0 {
            server.say(changing(round)?);
        }
        let took =
            until(said, || Ok(client.get("changing.localhost", &path).map_err(|f| f.source)?.status == 302))?;
        // The first is the start.
        if round > 0 {
            series.add(Kind::Rung, took.as_secs_f64() * 1000.0);
        }
    }
    report.push(series);
    Ok(())
}

/// An app whose only route shows how often it was changed.
fn changing(round: usize) -> anyhow::Result<RouteDocument> {
    let to = Destination::Redirect(Redirect { to: "/".into(), status: 302 });
    let route = Route { to, ..Route::to_service(format!("/new-{round}"), ServiceName::new("web")?) };
    let app = AppName::new("changing")?;
    Ok(RouteDocument::new(app, vec!["changing.localhost".into()], vec![route], Default::default()))
}

/// The same with the whole platform: from its answer to a command to what the ingress does.
pub fn measure_acknowledged(rung: &Path, report: &mut Report) -> anyhow::Result<()> {
    let platform = Rung::start_with(Start { binary: Some(rung.to_owned()), ..Start::default() });
    let app = Payload::new("solo", 1)?;
    crate::deploys::begin(&platform, &app)?;
    let bearer = format!("Bearer {}", platform.access().token);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let mut client = Connection::open(platform.http()).map_err(|failure| failure.source)?;
    let mut series = Series::new("route change visible after its acknowledgement".into(), "ms");
    for round in 0..CHANGES {
        let (word, status) = if round % 2 == 0 { ("on", 503) } else { ("off", 200) };
        let body = format!("{{\"maintenance\":\"{word}\",\"by\":\"bench\"}}");
        let mut api = Connection::open(platform.api_address()).map_err(|failure| failure.source)?;
        let answer = api.ask("PUT", "rung", "/v1/apps/solo/maintenance", &headers, body.as_bytes());
        let answer = answer.map_err(|failure| failure.source)?;
        anyhow::ensure!(answer.status == 200, "maintenance {word}: {}: {}", answer.status, answer.text());
        let took = until(Instant::now(), || {
            Ok(client.get("solo.localhost", "/").map_err(|f| f.source)?.status == status)
        })?;
        series.add(Kind::Rung, took.as_secs_f64() * 1000.0);
    }
    report.push(series);
    Ok(())
}

fn until(since: Instant, is_it: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<Duration> {
    let mut is_it = is_it;
    while !is_it().context("asking whether the change is visible")? {
        anyhow::ensure!(
            since.elapsed() < VISIBLE_PATIENCE,
            "a change was not visible after {VISIBLE_PATIENCE:?}"
        );
    }
    Ok(since.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_the_same_routes_and_as_many_as_were_asked_for() {
        for count in [1, 100, 101, 20_000] {
            let of_rung: usize =
                documents(count, &[]).unwrap().iter().map(|document| document.rules.len()).sum();
            let of_nginx: usize = sites(count).map(|(_, paths)| paths.len() + 1).sum();
            assert_eq!((of_rung, of_nginx, map(count).lines().count()), (count, count, count));
        }
    }
}
