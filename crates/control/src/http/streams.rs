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
use rung_api::sse::Message;
use rung_api::wire::{EventRecord, LogLine, LogQuery, OwnEvents};
use rung_api::{Address, Client, ClientError, Code, ErrorBody, Tls, attach, paths};
use rung_model::{AppName, NodeId, Role, RunId};
use rung_planner::World;
use rung_trust::{Belief, client_config};
use serde::Serialize;
use tokio::sync::mpsc;

use super::extract::{Beyond, Json, Named, Query};
use super::{Answer, Refused};
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

/// When a stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// When nobody listens any more. A source's failure is told at once: whoever follows begins anew.
    Never,
    /// When all of it was said. What one source can't give is told when the others have given theirs.
    WithTheLastSource,
}

/// The messages of several sources on their way into one answer, which is whole when each of them says that it is.
struct Joined<T> {
    messages: mpsc::Receiver<Message<T>>,
    /// Sources that have not said how they ended.
    open: usize,
    ending: Ending,
    failed: Option<ErrorBody>,
    is_over: bool,
}

impl<T: Serialize + Send + 'static> Joined<T> {
    fn new(messages: mpsc::Receiver<Message<T>>, sources: usize, ending: Ending) -> Self {
        Self { messages, open: sources, ending, failed: None, is_over: false }
    }

    fn into_response(self) -> Response {
        let body = stream::unfold(self, |mut joined| async move {
            let text = joined.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(text)), joined))
        });
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
        (headers, HttpBody::from_stream(body.boxed())).into_response()
    }

    async fn next(&mut self) -> Option<String> {
        while !self.is_over {
            match tokio::time::timeout(KEEP_ALIVE, self.messages.recv()).await {
                Err(_) => return Some(": still here\n\n".to_owned()),
                Ok(Some(item @ Message::Item(_))) => return Some(item.encode()),
                Ok(Some(Message::End)) => self.open = self.open.saturating_sub(1),
                Ok(Some(Message::Failed(body))) if self.ending == Ending::Never => {
                    self.is_over = true;
                    return Some(Message::<T>::Failed(body).encode());
                }
                Ok(Some(Message::Failed(body))) => {
                    self.failed.get_or_insert(body);
                }
                Ok(None) => {
                    self.is_over = true;
                    return match self.failed.take() {
                        Some(body) => Some(Message::<T>::Failed(body).encode()),
                        None if self.open == 0 => Some(Message::<T>::End.encode()),
                        // A source died without a word: this stream stops without its end, too.
                        None => None,
                    };
                }
            }
        }
        None
    }
}

impl Control {
    /// The agent of this machine is asked by its socket, those of others show who they are.
    fn agent(&self, node: &NodeId, address: Address) -> Client {
        match (self.inner.identity.get(), &address) {
            (Some(identity), Address::Tls(_)) => {
                let belief = Belief::Authority(identity.authority().clone());
                let config = client_config(belief, Some(identity.clone()));
                Client::over_tls(address, None, Tls::to_node(config, node))
            }
            _ => Client::new(address, None),
        }
    }

    /// The agents of nodes; `None` for one that can't be reached by what it has said of itself.
    pub(crate) fn agents(&self, of: impl Fn(&NodeId) -> bool) -> Vec<(NodeId, Option<Client>)> {
        self.read(|world| {
            let nodes = world.nodes.values().map(|held| &held.value).filter(|node| of(&node.id));
            let client = |node: &NodeId, address: Address| self.agent(node, address);
            nodes
                .map(|node| {
                    let address = node.facts.agent.parse().ok();
                    (node.id.clone(), address.map(|address| client(&node.id, address)))
                })
                .collect()
        })
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
    if let Some(lines) = control.kept_run_log(&app, &query) {
        return Ok(all_of(lines));
    }
    control.refuse_unknown_source(&app, &query).await?;
    // Where a run was placed is its log, and no node that is away is missed.
    let of_run = control.read(|world| world.runs.get(query.run.as_ref()?)?.value.node.clone());
    let agents = control.agents(|node| of_run.as_ref().is_none_or(|of_run| of_run == node));
    if agents.is_empty() {
        return Err(nobody_has(&app, of_run).into());
    }
    let path = format!("{}?{}", paths::AGENT_LOGS, log_query(&query));
    let (lines, received) = mpsc::channel(256);
    let ending = if query.follow { Ending::Never } else { Ending::WithTheLastSource };
    let joined = Joined::new(received, agents.len(), ending);
    for (node, agent) in agents {
        tokio::spawn(pass_on(node, agent, path.clone(), lines.clone()));
    }
    Ok(joined.into_response())
}

fn nobody_has(app: &AppName, of_run: Option<NodeId>) -> ErrorBody {
    match of_run {
        Some(node) => ErrorBody::new(Code::NotFound, format!("node {node} had this log, and is gone")),
        None => ErrorBody::new(Code::Unavailable, format!("no node has come yet that has logs of {app}"))
            .hint("try again in a moment"),
    }
}

/// What is there already, as a stream that is whole.
fn all_of(lines: Vec<LogLine>) -> Response {
    let (messages, received) = mpsc::channel(64);
    tokio::spawn(async move {
        for message in lines.into_iter().map(Message::Item).chain([Message::End]) {
            if messages.send(message).await.is_err() {
                return;
            }
        }
    });
    Joined::new(received, 1, Ending::WithTheLastSource).into_response()
}

impl Control {
    /// Nothing is what a wrong name shows, and that looks like silence.
    async fn refuse_unknown_source(&self, app: &AppName, query: &LogQuery) -> Result<(), ErrorBody> {
        let Some(unknown) = self.read(|world| unknown_source(world, app, query)) else { return Ok(()) };
        // What the server has forgotten may have left its log.
        let any = LogQuery { follow: false, since: None, tail: Some(1), ..query.clone() };
        let path = format!("{}?{}", paths::AGENT_LOGS, log_query(&any));
        for agent in self.agents(|_| true).into_iter().filter_map(|(_, agent)| agent) {
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
        let message = match newest.as_str() {
            NONE => format!("app {app} has no run {run}, nor any other that is kept"),
            newest => format!("app {app} has no run {run}; the newest are {newest}"),
        };
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
    if names.is_empty() { NONE.to_owned() } else { names }
}

const NONE: &str = "none";

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

async fn pass_on(node: NodeId, agent: Option<Client>, path: String, to: mpsc::Sender<Message<LogLine>>) {
    let relayed = async {
        match agent {
            Some(agent) => relay(&node, &agent, &path, &to).await,
            None => Err(unreached(&node)),
        }
    };
    let outcome = tokio::select! {
        outcome = relayed => outcome,
        // Whoever followed has gone.
        () = to.closed() => return,
    };
    let last = match outcome {
        Ok(()) => Message::End,
        Err(body) => {
            tracing::warn!(%node, error = body.message, "logs are not whole");
            Message::Failed(body)
        }
    };
    let _ = to.send(last).await;
}

/// Everything that the agent says, to its end.
async fn relay(
    node: &NodeId,
    agent: &Client,
    path: &str,
    to: &mpsc::Sender<Message<LogLine>>,
) -> Result<(), ErrorBody> {
    let failed = |act: &str, error: ClientError| match error {
        ClientError::Api(body) => body,
        error => {
            let message = format!("{act} node {node}: {}", crate::trees::chain(&error));
            ErrorBody::new(Code::Unavailable, message).hint("`rung doctor` tells how the node is; try again")
        }
    };
    let asked = reach(|| agent.stream::<LogLine>(path)).await;
    let mut from = asked.map_err(|error| failed("asking for the logs of", error))?;
    while let Some(line) = from.next().await {
        let line = line.map_err(|error| failed("reading the logs of", error))?;
        if to.send(Message::Item(line)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn unreached(node: &NodeId) -> ErrorBody {
    ErrorBody::new(Code::Unavailable, format!("node {node} has not said where its agent is reached"))
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
    let (records, received) = mpsc::channel(256);
    let ending = if query.follow { Ending::Never } else { Ending::WithTheLastSource };
    tokio::spawn(async move {
        let mut newest = control.inner.events.subscribe();
        let mut seen = 0;
        loop {
            for record in control.inner.events.after(seen, query.app.as_ref()) {
                seen = record.sequence;
                if !is_shown(&record) {
                    continue;
                }
                if records.send(Message::Item(record)).await.is_err() {
                    return;
                }
            }
            if !query.follow {
                let _ = records.send(Message::End).await;
                return;
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                () = records.closed() => return,
            }
        }
    });
    Ok(Joined::new(received, 1, ending).into_response())
}

/// For the other servers.
pub async fn own_events(State(control): State<Control>, Query(query): Query<Beyond>) -> Answer<OwnEvents> {
    let events = &control.inner.events;
    let mut newest = events.subscribe();
    let is_longer = newest.wait_for(|newest| *newest > query.after);
    let _ = tokio::time::timeout(query.wait(), is_longer).await;
    Ok(Json(events.own_after(&control.inner.node, query.after)))
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
    let agent = control
        .agents(|id| *id == node)
        .pop()
        .and_then(|(_, agent)| agent)
        .ok_or_else(|| unreached(&node))?;
    let path = fill(paths::AGENT_ATTACH, &[&run]);
    let to_agent = reach(|| agent.upgrade(&path)).await.map_err(|error| {
        let message = format!("attaching to run {run}: {}", crate::trees::chain(&error));
        ErrorBody::new(Code::Unavailable, message)
    })?;
    tokio::spawn(async move {
        if let Ok(from_caller) = hyper::upgrade::on(request).await {
            tokio::select! {
                () = attach::pass_on(TokioIo::new(from_caller), to_agent) => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn joined(said: Vec<Message<u32>>, sources: usize, ending: Ending) -> String {
        let (sender, received) = mpsc::channel(16);
        for message in said {
            sender.send(message).await.unwrap();
        }
        drop(sender);
        let mut joined = Joined::new(received, sources, ending);
        let mut text = String::new();
        while let Some(next) = joined.next().await {
            text.push_str(&next);
        }
        text
    }

    fn missing() -> Message<u32> {
        Message::Failed(ErrorBody::new(Code::Unavailable, "node n2 can't be asked"))
    }

    #[tokio::test]
    async fn an_answer_is_whole_when_every_node_has_said_its_end() {
        let said = vec![Message::Item(1), Message::End, Message::Item(2), Message::End];
        let text = joined(said, 2, Ending::WithTheLastSource).await;
        assert_eq!(text, "data: 1\n\ndata: 2\n\nevent: end\ndata: {}\n\n");
    }

    #[tokio::test]
    async fn what_one_node_can_not_give_is_told_after_what_the_others_gave() {
        let said = vec![missing(), Message::Item(2), Message::End];
        let text = joined(said, 2, Ending::WithTheLastSource).await;
        assert!(text.starts_with("data: 2\n\nevent: error\n") && !text.contains("event: end"), "{text}");
        let text = joined(vec![missing(), Message::Item(2)], 2, Ending::Never).await;
        assert!(text.starts_with("event: error") && !text.contains("data: 2"), "a follower waits: {text}");
    }

    #[tokio::test]
    async fn a_source_that_dies_without_a_word_leaves_an_answer_without_its_end() {
        let text = joined(vec![Message::Item(1), Message::End], 2, Ending::WithTheLastSource).await;
        assert_eq!(text, "data: 1\n\n");
        assert_eq!(joined(vec![], 1, Ending::WithTheLastSource).await, "");
    }
}
