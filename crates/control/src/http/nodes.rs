//! For nodes and proxies: assignments and routes go out by long polls, observations come in.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use rung_api::join::Leased;
use rung_api::wire::{Launch, LimitsTaken, ProxyDocuments, ProxyPoll, ProxyTraffic};
use rung_api::{Code, ErrorBody};
use rung_artifact::Limits;
use rung_model::{
    AppName, Assignment, Digest, Document, Generation, Intent, Labels, Node, NodeFacts, NodeId, Observed,
    ReleaseNumber, keys,
};
use rung_store::{Guard, Op};

use super::Answer;
use super::Refused;
use super::callers::Via;
use super::extract::{Body, Json, Named, Query, Wait};
use crate::bells::Topic;
use crate::reconcile::{Event, PollId};
use crate::shared::{ATTEMPTS, Committed, Control, contended, store_error};

pub async fn register(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    named: Named,
    Body(facts): Body<NodeFacts>,
) -> Answer<()> {
    let id: NodeId = named.get("node")?;
    for _ in 0..ATTEMPTS {
        let belongs = control.belongs(&via, &id)?;
        let (held, own, highest) = control.read(|world| {
            let held = world.nodes.get(&id).cloned();
            let of_others = || {
                let others = world.nodes.values().filter(|node| node.value.id != id);
                others.map(|node| node.value.number)
            };
            // Versions before this one gave a number twice to machines that joined at the same moment.
            let own = held.as_ref().map(|held| held.value.number);
            let own = own.filter(|own| of_others().all(|number| number != *own));
            (held, own, of_others().max().unwrap_or(0))
        });
        let number = match own {
            Some(number) => number,
            None => control.take_number(highest).await?,
        };
        let drain = held.as_ref().and_then(|held| held.value.drain.clone());
        let labels = labels(held.as_ref().map(|held| &held.value), &facts);
        let node = Node { id: id.clone(), number, facts: facts.clone(), labels, drain };
        if held.as_ref().is_some_and(|held| held.value == node) {
            return Ok(Json(()));
        }
        let replaces = held.map(|held| held.revision);
        let committed = control.put(keys::node(&id), &node, replaces, belongs).await?;
        if let Committed::Done = committed {
            return Ok(Json(()));
        }
    }
    Err(contended(&format!("node {id}")).into())
}

/// What people said since stays, until the machine's own command line says something new.
fn labels(known: Option<&Node>, facts: &NodeFacts) -> Labels {
    let mut labels = known.map(|node| node.labels.clone()).unwrap_or_default();
    if known.is_none_or(|node| node.facts.labels != facts.labels) {
        labels.extend(facts.labels.clone());
    }
    labels
}

impl Control {
    fn heard(&self, node: &NodeId) {
        self.inner.beats.lock().expect("no panic while held").insert(node.clone(), Instant::now());
        let _ = self.inner.mailbox.send(Event::Heard { node: node.clone() });
    }

    async fn take_number(&self, known: u32) -> Result<u32, ErrorBody> {
        let taking = self.inner.numbers.take(self.inner.store.as_ref(), known);
        taking.await.map_err(|error| store_error(&error))
    }

    /// Holds as long as the machine belongs to the cluster: what it says while it is removed must not stay behind. `None`: one that
    /// belongs to no cluster.
    fn belongs(&self, via: &Via, node: &NodeId) -> Result<Option<Guard>, ErrorBody> {
        let key = keys::member(node);
        match self.read(|world| world.revision_of(&key)) {
            Some(revision) => Ok(Some(Guard::Modified { key, revision })),
            None if matches!(via, Via::Node(_)) => {
                Err(ErrorBody::new(Code::NotFound, format!("node {node} was removed from this cluster")))
            }
            None => Ok(None),
        }
    }

    async fn put<T: Document>(
        &self,
        key: String,
        document: &T,
        replaces: Option<u64>,
        belongs: Option<Guard>,
    ) -> Result<Committed, ErrorBody> {
        let value = self.encode(&key, document);
        let held = match replaces {
            Some(revision) => Guard::Modified { key: key.clone(), revision },
            None => Guard::Absent { key: key.clone() },
        };
        let guards = belongs.into_iter().chain([held]).collect();
        self.commit(guards, vec![Op::Put { key, value, lease: None }]).await
    }
}

/// Beats stay in memory: a heartbeat in the store would be a write per node and two seconds.
pub async fn beat(State(control): State<Control>, named: Named) -> Answer<()> {
    let id: NodeId = named.get("node")?;
    control.heard(&id);
    // One that was taken out while its agent went on registers anew, or is told that it may not.
    match control.read(|world| world.nodes.contains_key(&id)) {
        true => Ok(Json(())),
        false => Err(ErrorBody::new(Code::NotFound, format!("node {id} has not registered")).into()),
    }
}

/// Read from the store itself: the index of a server that is cut off may be old, and by the answer exclusive instances live.
pub async fn leases(State(control): State<Control>, named: Named) -> Answer<Leased> {
    let id: NodeId = named.get("node")?;
    let read = control.inner.store.get(&keys::assign(&id)).await.map_err(|error| store_error(&error))?;
    let assignment = read.value.and_then(|entry| Assignment::from_json(&entry.value).ok());
    let instances = assignment.map(|assignment| assignment.instances).unwrap_or_default().into_iter();
    let running = instances.filter(|(_, assigned)| assigned.intent == Intent::Run);
    Ok(Json(Leased { instances: running.map(|(instance, _)| instance).collect() }))
}

#[derive(Debug, serde::Deserialize)]
pub struct After {
    after: Generation,
    #[serde(default)]
    wait_ms: u64,
}

pub async fn assignment(
    State(control): State<Control>,
    named: Named,
    Query(after): Query<After>,
) -> Answer<Option<Assignment>> {
    let id: NodeId = named.get("node")?;
    let wait = Duration::from_millis(after.wait_ms).min(Duration::from_secs(60));
    let newer = control.wait_for_topic(Topic::Assignment(id.clone()), wait, |reconcile| {
        if reconcile.frozen().is_some() {
            return None;
        }
        let held = reconcile.world().assignments.get(&id)?;
        (held.value.generation > after.after).then(|| held.value.clone())
    });
    Ok(Json(newer.await))
}

/// An agent's report. One that is older than what is held is passed over: reports may overtake each other.
pub async fn report(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    named: Named,
    Body(observed): Body<Observed>,
) -> Answer<()> {
    let id: NodeId = named.get("node")?;
    if observed.node != id {
        let message = format!("report of node {} was sent as node {id}", observed.node);
        return Err(ErrorBody::new(Code::InvalidRequest, message).into());
    }
    control.heard(&id);
    for _ in 0..ATTEMPTS {
        let held = control.read(|world| world.observed.get(&id).cloned());
        let age = |observed: &Observed| (observed.agent_started, observed.sequence);
        if held.as_ref().is_some_and(|held| age(&held.value) >= age(&observed)) {
            return Ok(Json(()));
        }
        let belongs = control.belongs(&via, &id)?;
        let replaces = held.map(|held| held.revision);
        let committed = control.put(keys::observed(&id), &observed, replaces, belongs).await?;
        if let Committed::Done = committed {
            return Ok(Json(()));
        }
    }
    Err(contended(&format!("report of node {id}")).into())
}

pub async fn launch(State(control): State<Control>, named: Named) -> Answer<Launch> {
    let (app, release): (AppName, ReleaseNumber) = (named.get("app")?, named.get("release")?);
    Ok(Json(control.launch(&app, release).await?))
}

pub async fn artifact(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    named: Named,
) -> Result<Response, Refused> {
    let digest: Digest = named.get("digest")?;
    // Another server asks every server by itself.
    if !via.is_server() {
        control.has_artifact(&digest).await?;
    }
    let archive = control.inner.trees.get(&digest).await?;
    let headers = [(axum::http::header::CONTENT_TYPE, "application/x-tar")];
    Ok((headers, HttpBody::from_stream(archive)).into_response())
}

pub async fn put_artifact(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    named: Named,
    body: HttpBody,
) -> Answer<()> {
    let digest: Digest = named.get("digest")?;
    control.inner.trees.put(&digest, Limits::tree(), body.into_data_stream()).await?;
    if !via.is_server() {
        control.copy_to_another(&digest).await;
    }
    Ok(Json(()))
}

/// Tells the loop when a poll is over, however it ended: answered, timed out, or dropped with its connection.
struct Poll<'a> {
    control: &'a Control,
    proxy: &'a str,
    poll: PollId,
}

impl Drop for Poll<'_> {
    fn drop(&mut self) {
        let _ = self
            .control
            .inner
            .mailbox
            .send(Event::PollEnded { proxy: self.proxy.to_owned(), poll: self.poll });
    }
}

pub async fn poll_routes(
    State(control): State<Control>,
    named: Named,
    Query(wait): Query<Wait>,
    Body(poll): Body<ProxyPoll>,
) -> Answer<ProxyDocuments> {
    let proxy = named.text("proxy");
    let id = PollId(control.inner.polls.fetch_add(1, Ordering::Relaxed));
    let polled = Event::Polled {
        proxy: proxy.to_owned(),
        poll: id,
        acknowledged: poll.after,
        draining: poll.draining.into_iter().collect(),
    };
    let _ = control.inner.mailbox.send(polled);
    let _ended = Poll { control: &control, proxy, poll: id };
    let whole = poll.whole;
    let news = control.wait_for(wait.duration(), |reconcile| reconcile.routes_after(poll.after, whole));
    let nothing =
        ProxyDocuments { generation: poll.after, whole: false, documents: Vec::new(), removed: Vec::new() };
    let mut answer = news.await.unwrap_or(nothing);
    control.add_verifiers(&mut answer.documents).await?;
    Ok(Json(answer))
}

/// Counts stay in memory, as beats do: totals that the next report holds, too.
pub async fn traffic(
    State(control): State<Control>,
    named: Named,
    Body(traffic): Body<ProxyTraffic>,
) -> Answer<()> {
    let cohorts = traffic.cohorts.into_iter().map(|counted| (counted.app, counted.cohort, counted.counts));
    let event = Event::Traffic {
        proxy: named.text("proxy").to_owned(),
        life: traffic.life,
        cohorts: cohorts.collect(),
    };
    let _ = control.inner.mailbox.send(event);
    Ok(Json(()))
}

/// Passed on in memory, as counts are.
pub async fn limits(
    State(control): State<Control>,
    named: Named,
    Body(told): Body<LimitsTaken>,
) -> Answer<LimitsTaken> {
    let now = control.clock().elapsed;
    Ok(Json(control.shares(|shares| shares.exchange(named.text("proxy"), &told, now))))
}

/// The same from another server.
pub async fn limits_elsewhere(
    State(control): State<Control>,
    named: Named,
    Body(told): Body<LimitsTaken>,
) -> Answer<()> {
    let now = control.clock().elapsed;
    let server = named.get::<NodeId>("server")?;
    control.shares(|shares| shares.hear(&server, &told, now));
    Ok(Json(()))
}

/// A proxy that ends in order is not waited for until it counts as silent.
pub async fn leave(State(control): State<Control>, named: Named) -> Answer<()> {
    control.proxy_gone(named.text("proxy"));
    control.inner.shelf.leave(named.text("proxy"));
    control.inner.tallies.lock().expect("leaving does not panic").leave(named.text("proxy"));
    Ok(Json(()))
}
