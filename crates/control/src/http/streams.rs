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
use rung_api::wire::{EventRecord, LogLine, LogQuery};
use rung_api::{Address, Client, ClientError, Code, ErrorBody, attach, paths, sse};
use rung_model::{AppName, NodeId, Role, RunId};
use rung_planner::World;
use tokio::sync::mpsc;

use super::Refused;
use super::extract::{Named, Query};
use crate::access::Caller;
use crate::shared::Control;

/// A stream that says nothing for this long gets a comment, so that a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How many of the names that exist are told beside one that does not.
const NAMED_MAX: usize = 8;

/// A node that has the run it is to attach to needs no longer to know of it.
const ATTACH_WAIT: Duration = Duration::from_secs(30);

/// An agent looks at its machine before it serves, which takes some tenths of a second.
const AGENT_STARTS_WITHIN: Duration = Duration::from_secs(5);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

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
    let query = LogQuery { app: Some(app.clone()), ..query };
    control.refuse_unknown_source(&app, &query).await?;
    let path = format!("{}?{}", paths::AGENT_LOGS, log_query(&query));
    let (lines, received) = mpsc::channel(256);
    for agent in control.agents(|_| true) {
        let stream = reach(|| agent.stream::<LogLine>(&path)).await.map_err(|error| {
            let message = format!("asking the agent for logs: {}", crate::trees::chain(&error));
            ErrorBody::new(Code::Unavailable, message)
        })?;
        tokio::spawn(pass_on(stream, lines.clone()));
    }
    Ok(event_stream(received))
}

impl Control {
    /// Nothing is what a wrong name shows, and that looks like silence.
    async fn refuse_unknown_source(&self, app: &AppName, query: &LogQuery) -> Result<(), ErrorBody> {
        let Some(unknown) = self.read(|world| unknown_source(world, app, query)) else { return Ok(()) };
        // What the server has forgotten may have left its log.
        let any = LogQuery { follow: false, since: None, tail: Some(1), ..query.clone() };
        let path = format!("{}?{}", paths::AGENT_LOGS, log_query(&any));
        for agent in self.agents(|_| true) {
            if let Ok(mut lines) = reach(|| agent.stream::<LogLine>(&path)).await
                && let Some(Ok(_)) = lines.next().await
            {
                return Ok(());
            }
        }
        Err(unknown)
    }
}

/// What the query names and the server does not know, with what there is.
fn unknown_source(world: &World, app: &AppName, query: &LogQuery) -> Option<ErrorBody> {
    let is_of = |run: &RunId| world.runs.get(run).is_some_and(|held| held.value.app == *app);
    if let Some(run) = query.run.as_ref().filter(|run| !is_of(run)) {
        let mut runs: Vec<_> = world.runs.values().filter(|held| held.value.app == *app).collect();
        runs.sort_by_key(|held| std::cmp::Reverse(held.value.at));
        let newest = listed(runs.into_iter().take(NAMED_MAX).map(|held| held.value.id.to_string()));
        let message = format!("app {app} has no run {run}; the newest are {newest}");
        return Some(ErrorBody::new(Code::NotFound, message));
    }
    let files = || world.releases.get(app).into_iter().flatten().map(|(_, held)| &held.value.file);
    if let Some(service) = query.service.as_ref()
        && !files().any(|file| file.services.contains_key(service))
    {
        let services = files().next_back().into_iter().flat_map(|file| file.services.keys());
        let message = format!(
            "app {app} has no service {service}; it has {}",
            listed(services.map(ToString::to_string))
        );
        return Some(ErrorBody::new(Code::NotFound, message));
    }
    let instance = query.instance.as_ref()?;
    let assigned = world.assignments.values().flat_map(|held| &held.value.instances);
    let mut own: Vec<_> = assigned.filter(|(_, assigned)| assigned.app == *app).map(|(id, _)| id).collect();
    if own.contains(&instance) {
        return None;
    }
    own.truncate(NAMED_MAX);
    let there = listed(own.into_iter().map(ToString::to_string));
    let message = format!("app {app} has no instance {instance}; there are {there}");
    Some(ErrorBody::new(Code::NotFound, message).hint("`rung ps` lists the instances"))
}

fn listed(names: impl Iterator<Item = String>) -> String {
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "none".to_owned() } else { names }
}

/// Asks an agent, with patience for one that is starting: after a restart the server answers a little earlier.
async fn reach<T, F>(ask: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let until = tokio::time::Instant::now() + AGENT_STARTS_WITHIN;
    loop {
        match ask().await {
            Err(ClientError::Connect { .. }) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
            answer => return answer,
        }
    }
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
                Some(Err(error)) => {
                    tracing::warn!(error = crate::trees::chain(&error), "logs of an agent broke off");
                    return;
                }
                None => return,
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

pub async fn events(
    State(control): State<Control>,
    caller: Caller,
    Query(query): Query<EventQuery>,
) -> Result<Response, Refused> {
    if let Some(app) = &query.app {
        caller.require(Role::Viewer, app)?;
    }
    // What belongs to no app is the platform's.
    let is_shown = move |record: &EventRecord| match &record.app {
        Some(app) => caller.may(Role::Viewer, app),
        None => caller.is_at_least(Role::Admin),
    };
    let (lines, received) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut newest = control.inner.events.subscribe();
        let mut seen = 0;
        loop {
            for record in control.inner.events.after(seen, query.app.as_ref()) {
                seen = record.sequence;
                if !is_shown(&record) {
                    continue;
                }
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
    Ok(event_stream(received))
}

/// Joins the caller's connection with the agent's: the frames pass unread.
pub async fn attach(
    State(control): State<Control>,
    caller: Caller,
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
    let path = fill(paths::AGENT_ATTACH, &[&run]);
    let to_agent = reach(|| agent.upgrade(&path)).await.map_err(|error| {
        let message = format!("attaching to run {run}: {}", crate::trees::chain(&error));
        ErrorBody::new(Code::Unavailable, message)
    })?;
    tokio::spawn(async move {
        if let Ok(from_caller) = hyper::upgrade::on(request).await {
            let (mut from_caller, mut agent) = (TokioIo::new(from_caller), to_agent);
            tokio::select! {
                // Either side may end it at any time; there is nobody left to tell.
                _ = tokio::io::copy_bidirectional(&mut from_caller, &mut agent) => {}
                () = caller.ends() => {}
            }
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
