//! `rung scale`: asks for counts, and waits until they are reached.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rung_api::wire::{AppStatus, Cohort, InstanceStatus, ScaleRequest, ServiceStatus};
use rung_model::{InstanceState, ServiceName};

use super::Session;
use crate::args::ScaleArgs;
use crate::edge::Exit;
use crate::follow::may_pass;
use crate::person;
use crate::render::status::instance_lines;
use crate::render::time::span;

/// The status has no long poll; a read costs the server well below a millisecond.
const LOOK: Duration = Duration::from_millis(100);
/// Instances without a place are waited for as long as others take that make way for them, or a lease that ends.
const PLACED_WITHIN: Duration = Duration::from_secs(30);

pub async fn scale(session: &mut Session<'_>, args: ScaleArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let services = crate::once::once(args.counts, "service")?;
    let request = ScaleRequest { services: services.clone(), by: person::name() };
    let mut status = session.client.scale(&app, &request).await.with_context(|| format!("scaling {app}"))?;
    let mut unplaced_since = None;
    let done = loop {
        match progress(&status, &services) {
            _ if args.wait.no_wait => break Exit::Done,
            Progress::Reached => break Exit::Done,
            Progress::Stuck => break Exit::Failed,
            Progress::Unplaced(text) => {
                let began = *unplaced_since.get_or_insert_with(Instant::now);
                if began.elapsed() >= PLACED_WITHIN {
                    break Exit::Failed;
                }
                session.screen.moving(&format!("{text} ({})", span(since.elapsed())));
            }
            Progress::Missing(text) => {
                unplaced_since = None;
                session.screen.moving(&format!("{text} ({})", span(since.elapsed())));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => {
                session.screen.still();
                session.screen.say("\nno longer waiting: the scaling goes on; `rung status` shows it")?;
                return Ok(Exit::Done);
            }
        }
        match session.client.app(&app).await {
            Ok(now) => status = now,
            Err(error) if may_pass(&error) => {}
            Err(error) => {
                return Err(anyhow::Error::from(error).context(format!("asking for the status of {app}")));
            }
        }
    };
    session.screen.still();
    let shown: Vec<ServiceName> = services.into_keys().collect();
    session.screen.show(&status, |status, paint, clock| {
        let mut lines = Vec::new();
        for service in status.services.iter().filter(|service| shown.contains(&service.name)) {
            let ServiceStatus { name, healthy, desired, .. } = service;
            let took = span(since.elapsed());
            lines.push(match done {
                Exit::Done if args.wait.no_wait => {
                    format!("{app} {name}: {desired} asked for, {healthy} healthy")
                }
                Exit::Done => paint.good(&format!("{app} {name}: {healthy} of {desired} healthy ({took})")),
                _ => {
                    let why = match &service.unplaced {
                        Some(why) => format!("can't be placed yet ({why}); they start when they can"),
                        None => "do not come up".to_owned(),
                    };
                    paint.bad(&format!("{app} {name}: {healthy} of {desired} healthy; the others {why}"))
                }
            });
            if done != Exit::Done {
                let stuck = service.instances.iter().filter(|instance| is_stuck(instance));
                lines.extend(stuck.flat_map(|instance| instance_lines(instance, paint, clock)));
            }
        }
        lines.join("\n")
    })?;
    Ok(done)
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Reached,
    /// What is still missing, in words.
    Missing(String),
    /// All that are there are healthy, and for the others no node has a place.
    Unplaced(String),
    /// An instance does not come up by waiting.
    Stuck,
}

fn is_stuck(instance: &InstanceStatus) -> bool {
    !instance.lost && matches!(instance.state, InstanceState::CrashLooping | InstanceState::Failed)
}

fn progress(status: &AppStatus, wanted: &BTreeMap<ServiceName, u32>) -> Progress {
    let mut missing = Vec::new();
    let mut only_places_are_missing = true;
    for service in &status.services {
        let Some(&count) = wanted.get(&service.name) else { continue };
        let ServiceStatus { name, desired, healthy, .. } = service;
        // Nobody knows what became of those on lost nodes; their replacements are among the others. What a deployment
        // brings meanwhile, and what is kept warm, has its own count.
        let of_count = |instance: &&InstanceStatus| !instance.lost && instance.cohort == Cohort::Live;
        let known = || service.instances.iter().filter(of_count);
        let there = known().filter(|instance| instance.state != InstanceState::Stopped).count();
        // As long as there are too many, the ones that fail may be those that go.
        if there <= *desired as usize && known().any(is_stuck) {
            return Progress::Stuck;
        }
        // What is desired is more than the count where there are so many a node.
        let is_asked_for = service.scale.is_some_and(|scale| scale.count == count);
        if !is_asked_for || healthy != desired || there != *desired as usize {
            missing.push(format!("{name}: {healthy} of {desired} healthy"));
            only_places_are_missing &=
                is_asked_for && service.unplaced.is_some() && there == *healthy as usize;
        }
    }
    match missing.join(", ") {
        text if text.is_empty() => Progress::Reached,
        text if only_places_are_missing => Progress::Unplaced(text),
        text => Progress::Missing(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(desired: u32, states: &[&str]) -> AppStatus {
        let instance = |(n, state): (usize, &&str)| {
            serde_json::json!({
                "id": format!("shop-web-a{n}"), "node": "laptop", "service": "web", "release": 1, "state": state,
                "routed": true, "endpoint": null, "pid": null, "restarts": 0, "since": "2026-03-04T10:00:00Z",
                "reason": null, "log_tail": [],
            })
        };
        let instances: Vec<_> = states.iter().enumerate().map(instance).collect();
        let healthy = states.iter().filter(|state| **state == "healthy").count();
        serde_json::from_value(serde_json::json!({
            "app": "shop", "current": 1, "urls": [], "deployment": null, "destroying": false, "problems": [],
            "services": [{
                "name": "web", "desired": desired, "healthy": healthy, "exclusive": false, "port": true,
                "scale": { "count": desired, "from_file": 1 }, "instances": instances,
            }],
        }))
        .unwrap()
    }

    #[test]
    fn a_count_is_reached_when_all_are_healthy_and_none_is_left_over() {
        let wanted = BTreeMap::from([(ServiceName::new("web").unwrap(), 2)]);
        let look = |desired, states: &[&str]| progress(&status(desired, states), &wanted);
        assert_eq!(look(2, &["healthy", "healthy"]), Progress::Reached);
        let down = BTreeMap::from([(ServiceName::new("web").unwrap(), 0)]);
        let leaving = progress(&status(0, &["crash_looping"]), &down);
        assert!(
            matches!(leaving, Progress::Missing(_)),
            "an instance that goes anyway was waited for: {leaving:?}"
        );
        assert_eq!(look(2, &["healthy", "healthy", "stopped"]), Progress::Reached);
        assert_eq!(look(2, &["healthy", "starting"]), Progress::Missing("web: 1 of 2 healthy".into()));
        assert!(
            matches!(look(2, &["healthy", "healthy", "stopping"]), Progress::Missing(_)),
            "one is left over"
        );
        assert!(
            matches!(look(3, &["healthy", "healthy"]), Progress::Missing(_)),
            "the count is not known yet"
        );
        assert_eq!(look(2, &["healthy", "crash_looping"]), Progress::Stuck);
    }

    #[test]
    fn what_is_on_a_lost_node_is_not_waited_for() {
        let wanted = BTreeMap::from([(ServiceName::new("web").unwrap(), 2)]);
        for heard_last in ["healthy", "crash_looping", "stopping"] {
            let mut status = status(2, &["healthy", "healthy", heard_last]);
            status.services[0].healthy = 2;
            status.services[0].instances[2].lost = true;
            assert_eq!(progress(&status, &wanted), Progress::Reached, "{heard_last} when it was heard last");
        }
    }

    #[test]
    fn what_a_canary_brings_and_what_is_kept_warm_is_not_counted() {
        let wanted = BTreeMap::from([(ServiceName::new("web").unwrap(), 2)]);
        for state in ["healthy", "starting", "crash_looping"] {
            let mut status = status(2, &["healthy", "healthy", state]);
            status.services[0].healthy = 2;
            assert!(
                !matches!(progress(&status, &wanted), Progress::Reached | Progress::Stuck),
                "a third one is none too many"
            );
            status.services[0].instances[2].cohort = Cohort::Other;
            assert_eq!(progress(&status, &wanted), Progress::Reached, "{state}, and of another release");
        }
    }

    #[test]
    fn of_so_many_a_node_there_are_more_than_were_asked_for() {
        let wanted = BTreeMap::from([(ServiceName::new("web").unwrap(), 1)]);
        let mut status = status(1, &["healthy", "healthy", "healthy"]);
        status.services[0].desired = 3;
        assert_eq!(progress(&status, &wanted), Progress::Reached);
    }

    #[test]
    fn that_there_is_no_place_is_known_when_nothing_else_is_missing() {
        let wanted = BTreeMap::from([(ServiceName::new("web").unwrap(), 2)]);
        let unplaced = |states: &[&str]| {
            let mut status = status(2, states);
            status.services[0].unplaced = Some("laptop: all of its ports are taken".into());
            progress(&status, &wanted)
        };
        assert_eq!(unplaced(&["healthy"]), Progress::Unplaced("web: 1 of 2 healthy".into()));
        assert!(matches!(unplaced(&["starting"]), Progress::Missing(_)), "one is still on its way");
    }
}
