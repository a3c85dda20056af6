//! Streams: logs and attached runs are passed on from the nodes' agents, events come from here.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use rung_api::client::{fill, log_query};
use rung_api::wire::{LogLine, LogQuery};
use rung_api::{Address, Client, Code, ErrorBody, attach, paths, sse};
use rung_model::{AppName, NodeId, RunId};
use tokio::sync::mpsc;

use super::Refused;
use super::extract::{Named, Query};
use crate::shared::Control;

/// A stream that says nothing for this long gets a comment, so that a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A node that has the run it is to attach to needs no longer to know of it.
const ATTACH_WAIT: Duration = Duration::from_secs(30);

/// The end of a run is recorded a little after its connection has ended.
const END_AFTER_DETACHED: Duration = Duration::from_secs(5);

fn event_stream(lines: mpsc::Receiver<String>) -> Response {
    let body = stream::unfold(lines, |mut lines| async move {
        let text = match tokio::time::timeout(KEEP_ALIVE, lines.recv()).await {
            Ok(Some(json)) => sse::encode(&json),
            Ok(None) => return None,
            Err(_) => ": still here\n\n".to_owned(),
        };
        Some((Ok::<_, Infallible>(Bytes::from(text)), lines))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, HttpBody::from_stream(body.boxed())).into_response()
}

impl Control {
    fn agents(&self, of: impl Fn(&NodeId) -> bool) -> Vec<Client> {
        let addresses: Vec<Address> = self.read(|world| {
            let nodes = world.nodes.values().filter(|held| of(&held.value.id));
            nodes.filter_map(|held| held.value.facts.agent.parse().ok()).collect()
        });
        addresses.into_iter().map(|address| Client::new(address, None)).collect()
    }
}

pub async fn logs(
    State(control): State<Control>,
    named: Named,
    Query(query): Query<LogQuery>,
) -> Result<Response, Refused> {
    let app: AppName = named.get("app")?;
    control.status_of(&app)?;
    let query = LogQuery { app: Some(app), ..query };
    let path = format!("{}?{}", paths::AGENT_LOGS, log_query(&query));
    let (lines, received) = mpsc::channel(256);
    for agent in control.agents(|_| true) {
        let stream = agent.stream::<LogLine>(&path).await.map_err(|error| {
            let message = format!("asking the agent for logs: {}", crate::trees::chain(&error));
            ErrorBody::new(Code::Unavailable, message)
        })?;
        tokio::spawn(pass_on(stream, lines.clone()));
    }
    Ok(event_stream(received))
}

async fn pass_on(mut from: rung_api::client::EventStream<LogLine>, to: mpsc::Sender<String>) {
    loop {
        tokio::select! {
            line = from.next() => match line {
                Some(Ok(line)) => {
                    let json = serde_json::to_string(&line).expect("wire types serialize");
                    if to.send(json).await.is_err() {
                        return;
                    }
                }
                Some(Err(_)) | None => return,
            },
            // Whoever followed has gone.
            () = to.closed() => return,
        }
    }
}

#[derive(Debug, serde::Deserialize)]
pub struct EventQuery {
    #[serde(default)]
    follow: bool,
    app: Option<AppName>,
}

pub async fn events(State(control): State<Control>, Query(query): Query<EventQuery>) -> Response {
    let (lines, received) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut newest = control.inner.events.subscribe();
        let mut seen = 0;
        loop {
            for record in control.inner.events.after(seen, query.app.as_ref()) {
                seen = record.sequence;
                let json = serde_json::to_string(&record).expect("wire types serialize");
                if lines.send(json).await.is_err() {
                    return;
                }
            }
            if !query.follow {
                return;
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                () = lines.closed() => return,
            }
        }
    });
    event_stream(received)
}

/// Joins the caller's connection with the agent's: the frames pass unread.
pub async fn attach(
    State(control): State<Control>,
    named: Named,
    request: Request,
) -> Result<Response, Refused> {
    let (app, run): (AppName, RunId) = (named.get("app")?, named.get("run")?);
    let upgrade = request.headers().get(header::UPGRADE);
    if upgrade.is_none_or(|protocol| protocol.as_bytes() != attach::PROTOCOL.as_bytes()) {
        let message = format!("attaching to run {run} needs an upgrade to {}", attach::PROTOCOL);
        return Err(ErrorBody::new(Code::InvalidRequest, message).into());
    }
    let node = control
        .wait_for(ATTACH_WAIT, |reconcile| {
            let held = reconcile.world().runs.get(&run).filter(|held| held.value.app == app)?;
            held.value.node.clone()
        })
        .await;
    let node =
        node.ok_or_else(|| ErrorBody::new(Code::NotFound, format!("run {run} was not placed on a node")))?;
    let agent = control.agents(|id| *id == node).pop().ok_or_else(|| {
        ErrorBody::new(Code::Unavailable, format!("node {node} has not said where its agent is reached"))
    })?;
    let to_agent = agent.upgrade(&fill(paths::AGENT_ATTACH, &[&run])).await.map_err(|error| {
        let message = format!("attaching to run {run}: {}", crate::trees::chain(&error));
        ErrorBody::new(Code::Unavailable, message)
    })?;
    tokio::spawn(async move {
        if let Ok(from_caller) = hyper::upgrade::on(request).await {
            let (mut caller, mut agent) = (TokioIo::new(from_caller), to_agent);
            // Either side may end it at any time; there is nobody left to tell.
            let _ = tokio::io::copy_bidirectional(&mut caller, &mut agent).await;
        }
        // As a closed terminal ends what ran in it, whoever was killed or cut off leaves nothing behind.
        let is_over = |reconcile: &crate::reconcile::Reconcile| {
            reconcile.world().runs.get(&run).is_none_or(|held| held.value.has_ended()).then_some(())
        };
        if control.wait_for(END_AFTER_DETACHED, is_over).await.is_none() {
            let _ = control.cancel_run(&app, &run).await;
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, attach::PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
