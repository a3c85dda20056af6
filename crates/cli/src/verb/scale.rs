//! `rung scale`: asks for counts, and waits until they are reached.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rung_api::wire::{AppStatus, ScaleRequest, ServiceStatus};
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

pub async fn scale(session: &mut Session<'_>, args: ScaleArgs) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let app = session.app().await?;
    let services: BTreeMap<ServiceName, u32> = args.counts.into_iter().collect();
    let request = ScaleRequest { services: services.clone(), by: person::name() };
    let mut status = session.client.scale(&app, &request).await.with_context(|| format!("scaling {app}"))?;
    let done = loop {
        match progress(&status, &services) {
            _ if args.wait.no_wait => break Exit::Done,
            Progress::Reached => break Exit::Done,
            Progress::Stuck => break Exit::Failed,
            Progress::Missing(text) => session.screen.moving(&format!("{text} ({})", span(since.elapsed()))),
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
                _ => paint
                    .bad(&format!("{app} {name}: {healthy} of {desired} healthy; the others do not come up")),
            });
            if done != Exit::Done {
                let stuck = service.instances.iter().filter(|instance| is_stuck(instance.state));
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
    /// An instance does not come up by waiting.
    Stuck,
}

fn is_stuck(state: InstanceState) -> bool {
    matches!(state, InstanceState::CrashLooping | InstanceState::Failed)
}

fn progress(status: &AppStatus, wanted: &BTreeMap<ServiceName, u32>) -> Progress {
    let mut missing = Vec::new();
    for service in &status.services {
        let Some(&count) = wanted.get(&service.name) else { continue };
        let ended = |state| matches!(state, InstanceState::Stopped);
        let there = service.instances.iter().filter(|instance| !ended(instance.state)).count();
        // As long as there are too many, the ones that fail may be those that go.
        if there <= count as usize && service.instances.iter().any(|instance| is_stuck(instance.state)) {
            return Progress::Stuck;
        }
        if service.desired != count || service.healthy != count || there != count as usize {
            missing.push(format!("{}: {} of {count} healthy", service.name, service.healthy));
        }
    }
    if missing.is_empty() { Progress::Reached } else { Progress::Missing(missing.join(", ")) }
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
                "scale": null, "instances": instances,
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
}
