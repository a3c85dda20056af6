//! What ingresses count, from them to whoever looks.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rung_api::wire::{IngressTraffic, TallyHeard, TallyReport, TrafficReport};
use rung_model::{AppName, Role};

use super::Answer;
use super::extract::{Body, Json, Named, Query};
use crate::access::Caller;
use crate::shared::Control;
use crate::{metrics, tallies};

/// A server that answers at all does so at once; whoever looks every two seconds shall not wait for one that does not.
const PATIENCE: Duration = Duration::from_secs(1);

pub async fn report(
    State(control): State<Control>,
    named: Named,
    Body(report): Body<TallyReport>,
) -> Answer<TallyHeard> {
    let mut tallies = control.inner.tallies.lock().expect("hearing does not panic");
    Ok(Json(tallies.hear(named.text("proxy"), report, control.inner.started.elapsed())))
}

/// What was told to this server, for the others.
pub async fn told_here(State(control): State<Control>) -> Json<Vec<IngressTraffic>> {
    Json(control.tallies())
}

#[derive(Debug, serde::Deserialize)]
pub struct Which {
    app: Option<AppName>,
}

pub async fn show(
    State(control): State<Control>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Answer<TrafficReport> {
    if let Some(app) = &which.app {
        caller.require(Role::Viewer, app)?;
        control.status_of(app)?;
    }
    let mut report = control.traffic().await;
    let is_meant = |app: &AppName| which.app.as_ref().is_none_or(|meant| meant == app);
    retain(&mut report, |app| is_meant(app) && caller.may(Role::Viewer, app));
    Ok(Json(report))
}

/// The same for Prometheus.
pub async fn metrics(State(control): State<Control>, caller: Caller) -> Response {
    let mut report = control.traffic().await;
    retain(&mut report, |app| caller.may(Role::Viewer, app));
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&report.ingresses)).into_response()
}

fn retain(report: &mut TrafficReport, is_shown: impl Fn(&AppName) -> bool) {
    for ingress in &mut report.ingresses {
        ingress.lines.retain(|line| is_shown(line.subject.app()));
    }
}

impl Control {
    fn tallies(&self) -> Vec<IngressTraffic> {
        let mut tallies = self.inner.tallies.lock().expect("reading does not panic");
        tallies.all(self.inner.started.elapsed())
    }

    /// What ingresses have told any of the servers.
    async fn traffic(&self) -> TrafficReport {
        let others = self.other_servers();
        let mut asked: FuturesUnordered<_> = others
            .iter()
            .map(async |(server, client)| (server, tokio::time::timeout(PATIENCE, client.tallies()).await))
            .collect();
        let (mut told, mut silent) = (self.tallies(), Vec::new());
        while let Some((server, answer)) = asked.next().await {
            match answer {
                Ok(Ok(tallies)) => told.extend(tallies),
                Ok(Err(_)) | Err(_) => silent.push(server.to_string()),
            }
        }
        silent.sort_unstable();
        TrafficReport { ingresses: tallies::newest(told), silent }
    }
}
