//! Where the state is kept: shown, moved, copied, and let go after a restore.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use rung_api::wire::cluster::{
    ApproveRequest, ClusterProblem, ClusterReport, EnterRequest, FrozenReport, InitRequest, MemberReport,
    MemberState, Moved, SnapshotTaken, SnapshotsReport, StoreKind,
};
use rung_api::{Code, ErrorBody};
use rung_model::{NodeId, NodeRole, keys};
use rung_store::etcd::{EtcdMember, MemberStatus};
use rung_store::{Guard, Op, StoreError};
use rung_trust::Peer;

use super::Answer;
use super::callers::Via;
use super::extract::{Body, Json};
use crate::Ending;
use crate::prune::artifacts_in_use;
use crate::quorum::{self, Backing, Climb, Quorum, QuorumError};
use crate::shared::{Committed, Control, contended};
use crate::trees::{TOGETHER, chain};

/// One that needs longer is of no use to the others either.
const MEMBER_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

pub(super) fn refused(error: &QuorumError) -> ErrorBody {
    let code = match error {
        QuorumError::Refused(_) => Code::Conflict,
        QuorumError::Later(_) | QuorumError::Store(StoreError::Unavailable(_)) => Code::Unavailable,
        _ => Code::Internal,
    };
    ErrorBody::new(code, chain(error))
}

pub async fn show(State(control): State<Control>) -> Answer<ClusterReport> {
    let (revision, frozen) = control.read_loop(|reconcile| {
        (
            reconcile.world().revision,
            reconcile.frozen().map(|frozen| (frozen.clone(), reconcile.preview(control.clock()))),
        )
    });
    let asking = tokio::time::timeout(MEMBER_ANSWERS_WITHIN, control.inner.store.get(keys::LEADER));
    let leader = asking.await.ok().and_then(Result::ok).and_then(|read| read.value);
    let leader =
        leader.and_then(|entry| String::from_utf8(entry.value).ok()).and_then(|name| name.parse().ok());
    let mut report = ClusterReport {
        store: StoreKind::Sqlite,
        epoch: control.inner.store.epoch(),
        revision,
        server: control.inner.node.clone(),
        leader,
        members: Vec::new(),
        snapshots: SnapshotsReport::default(),
        artifacts: None,
        frozen: frozen.map(|(frozen, plan)| {
            let (reported, silent) = control.heard_of();
            FrozenReport { why: frozen.why, since: frozen.since, reported, silent, plan }
        }),
        problems: Vec::new(),
    };
    if let Backing::Several(quorum) = &control.inner.backing {
        report.store = StoreKind::Etcd;
        let snapshots = quorum.snapshots();
        report.snapshots.kept = snapshots.len() as u64;
        report.snapshots.newest = snapshots.last().map(|newest| newest.taken);
        match tokio::time::timeout(MEMBER_ANSWERS_WITHIN, quorum.admin().members()).await {
            Ok(Ok(members)) => report.members = describe(quorum, members).await,
            Ok(Err(error)) => report.problems.extend(without_etcd(quorum, error.to_string())),
            Err(_) => {
                let what = format!("etcd has not answered within {} s", MEMBER_ANSWERS_WITHIN.as_secs());
                report.problems.extend(without_etcd(quorum, what));
            }
        }
        report.problems.extend(problems(&report.members));
    }
    let held = control.inner.trees.check(&control.read(artifacts_in_use)).await;
    // Without a bucket here nobody is waited for: this is looked at while a server does not answer.
    let apart = match &held {
        Some(_) => control.artifacts_apart(held.as_ref()).await,
        None => Vec::new(),
    };
    if let Some(held) = held {
        report.problems.extend(held.state.err().map(|wrong| ClusterProblem {
            what: format!("artifacts can't be read or written in {}: {}", held.place, wrong.what),
            way_out: wrong.way_out,
        }));
        report.artifacts = Some(held.place);
    }
    report
        .problems
        .extend(apart.into_iter().map(|what| ClusterProblem { what, way_out: TOGETHER.to_owned() }));
    report.problems.extend(report.frozen.as_ref().map(|frozen| ClusterProblem {
        what: format!("nothing is changed since {:.0}: {}", frozen.since, frozen.why),
        way_out: "look at what would be done, then `rung cluster approve`".to_owned(),
    }));
    Ok(Json(report))
}

/// Nothing can be changed; this machine's member may know why.
fn without_etcd(quorum: &Quorum, what: String) -> Vec<ClusterProblem> {
    let (first, lost) = if quorum.is_alone() {
        ("mend what it says", "its files are")
    } else {
        ("start the other servers, or mend the network to them", "they are")
    };
    let way_out = format!(
        "{first}; when {lost} lost for good, stop rung and run `rung cluster restore` with the newest snapshot"
    );
    let own = quorum.member.trouble().map(|trouble| ClusterProblem {
        what: format!("etcd on this machine: {trouble}"),
        way_out: "mend that; it is started again by itself".to_owned(),
    });
    own.into_iter().chain([ClusterProblem { what, way_out }]).collect()
}

async fn describe(quorum: &Arc<Quorum>, members: Vec<EtcdMember>) -> Vec<MemberReport> {
    let asking = members.into_iter().map(|member| {
        let quorum = Arc::clone(quorum);
        async move {
            let endpoint = member.clients.first().map(|url| address_of(url).to_owned());
            let status = match &endpoint {
                Some(endpoint) => {
                    let asking = quorum.admin_of(endpoint);
                    let asked = tokio::time::timeout(MEMBER_ANSWERS_WITHIN, asking.status());
                    asked.await.ok().and_then(Result::ok)
                }
                None => None,
            };
            member_report(&member, status)
        }
    });
    let mut reports = futures_util::future::join_all(asking).await;
    reports.sort_by(|one, other| one.name.cmp(&other.name));
    reports
}

fn address_of(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, address)| address)
}

fn member_report(member: &EtcdMember, status: Option<MemberStatus>) -> MemberReport {
    let state = match &status {
        _ if member.name.is_empty() => MemberState::Awaited,
        Some(_) if member.is_learner => MemberState::Learns,
        None => MemberState::Unreachable,
        Some(status) if status.leader.is_none() => MemberState::Leaderless,
        Some(status) if status.leader == Some(member.id) => MemberState::Leads,
        Some(_) => MemberState::Follows,
    };
    let first = |urls: &[String]| urls.first().map(|url| address_of(url).to_owned()).unwrap_or_default();
    MemberReport {
        name: member.name.clone(),
        client: first(&member.clients),
        peer: first(&member.peers),
        state,
        db_bytes: status.as_ref().map_or(0, |status| status.db_bytes),
        is_full: status.as_ref().is_some_and(|status| quorum::is_full(&status.errors)),
        version: status.map(|status| status.version),
    }
}

fn problems(members: &[MemberReport]) -> Vec<ClusterProblem> {
    let is_well = |member: &&MemberReport| matches!(member.state, MemberState::Leads | MemberState::Follows);
    let counts = |member: &&MemberReport| !matches!(member.state, MemberState::Learns | MemberState::Awaited);
    let (all, well) = (members.iter().filter(counts).count(), members.iter().filter(is_well).count());
    let mut problems: Vec<ClusterProblem> = members
        .iter()
        .filter(|member| matches!(member.state, MemberState::Unreachable | MemberState::Leaderless))
        .map(|member| ClusterProblem {
            what: format!("server {} can't be reached", member.name),
            way_out:
                "start rung there again; when the machine is lost for good, `rung node remove` it and join \
                      another"
                    .to_owned(),
        })
        .collect();
    problems.extend(members.iter().filter(|member| member.is_full).map(|member| ClusterProblem {
        what: format!("etcd on {} is out of space: nothing can be changed", member.name),
        way_out: "its history is dropped and its file packed by itself; when that is not enough, raise quota_bytes in \
                  cluster.json in the data directory of each server and start them again one after the other"
            .to_owned(),
    }));
    if all > 1 && well == all / 2 + 1 && well < all {
        problems.push(ClusterProblem {
            what: format!("{well} of {all} servers are left: when one more is lost, nothing can be changed"),
            way_out: "bring the others back first".to_owned(),
        });
    }
    if all == 2 {
        problems.push(ClusterProblem {
            what: "two servers bear no loss: a majority of two is two".to_owned(),
            way_out: "join a third".to_owned(),
        });
    }
    problems
}

pub async fn init(State(control): State<Control>, Body(request): Body<InitRequest>) -> Answer<Moved> {
    let Backing::One(store) = &control.inner.backing else {
        let body = ErrorBody::new(Code::Conflict, "this server's state is in etcd already");
        return Err(body.hint("`rung cluster` shows it").into());
    };
    let _moving = control.begin_move()?;
    let address = request.address.or_else(|| control.own_address());
    let address = address.unwrap_or(IpAddr::from(Ipv4Addr::LOCALHOST));
    let climb = Climb { name: control.inner.node.to_string(), address };
    let (data, store, events) = (control.inner.data.clone(), Arc::clone(store), control.clone());
    // On its own: whoever asked may go away, and half a climb is none.
    let moving = tokio::spawn(async move {
        let climbed = quorum::climb(&data, &store, &climb).await;
        match &climbed {
            Ok(climbed) => {
                let message = format!("the state moved to etcd, in epoch {}; starting again", climbed.epoch);
                events.record(None, "cluster", message);
                events.start_again();
            }
            Err(error) => {
                events.record(
                    None,
                    "cluster",
                    format!("moving to etcd failed, nothing was changed: {}", chain(error)),
                );
            }
        }
        climbed
    });
    let climbed = moving.await.map_err(|_| ErrorBody::new(Code::Internal, "moving to etcd panicked"))?;
    let climbed = climbed.map_err(|error| refused(&error))?;
    Ok(Json(Moved { entries: climbed.carried.entries as u64, epoch: climbed.epoch }))
}

pub async fn dissolve(State(control): State<Control>) -> Answer<Moved> {
    let Backing::Several(quorum) = &control.inner.backing else {
        return Err(ErrorBody::new(Code::Conflict, "this server's state is on one machine already").into());
    };
    let _moving = control.begin_move()?;
    let (data, quorum, events) = (control.inner.data.clone(), Arc::clone(quorum), control.clone());
    let moving = tokio::spawn(async move {
        let descended = quorum::descend(&data, &quorum).await;
        let message = match &descended {
            // Nothing was begun.
            Err(QuorumError::Refused(_)) => return descended,
            Ok(moved) => format!("the state moved to one machine, in epoch {}; starting again", moved.epoch),
            Err(error) => format!("moving to one machine failed, the state stays in etcd: {}", chain(error)),
        };
        events.record(None, "cluster", message);
        events.start_again();
        descended
    });
    let moved = moving.await.map_err(|_| ErrorBody::new(Code::Internal, "moving to one machine panicked"))?;
    let moved = moved.map_err(|error| refused(&error))?;
    Ok(Json(Moved { entries: moved.carried.entries as u64, epoch: moved.epoch }))
}

pub async fn snapshot(State(control): State<Control>) -> Answer<SnapshotTaken> {
    let Backing::Several(quorum) = &control.inner.backing else {
        let body = ErrorBody::new(Code::Conflict, "snapshots are taken of a state in etcd");
        return Err(body.hint("on one machine each upgrade leaves a backup").into());
    };
    let taken = quorum.take_snapshot().await.map_err(|error| refused(&error))?;
    Ok(Json(SnapshotTaken { path: taken.path.display().to_string(), bytes: taken.bytes }))
}

/// What makes a machine a server. It holds keys: it is answered to a machine that joined as one, for itself alone.
pub async fn enter(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    Body(request): Body<EnterRequest>,
) -> Answer<serde_json::Value> {
    let Via::Node(Peer { node, role: NodeRole::Server, .. }) = via else {
        let message = "only a machine that joins as a server is told what makes it one";
        return Err(ErrorBody::new(Code::Unauthorized, message).into());
    };
    let quorum = control.quorum()?;
    // Nobody begins to replace the master key from here on: there is another server.
    let _turn = control.inner.keys.turn_to_rotate().await;
    if control.inner.keys.is_rotating() {
        let message = "the master key is being replaced, and this server would get the one before";
        let hint = "take this one out with `rung node remove`, end that with `rung secret rotate-key`, then join again";
        return Err(ErrorBody::new(Code::Unavailable, message).hint(hint).into());
    }
    let bundle = quorum.admit(node.as_str(), request.address).await.map_err(|error| refused(&error))?;
    control.record(None, "cluster", format!("server {node} at {} joins", request.address));
    Ok(Json(serde_json::to_value(&bundle).expect("a bundle serializes")))
}

/// The leader may write again. What was held back until now reaches nodes and proxies.
pub async fn approve(State(control): State<Control>, Body(request): Body<ApproveRequest>) -> Answer<()> {
    let held = control.inner.store.get(keys::FROZEN).await;
    let held = held.map_err(|error| crate::shared::store_error(&error))?.value;
    let Some(entry) = held else {
        return Err(ErrorBody::new(Code::Conflict, "nothing waits for an approval").into());
    };
    let (_, silent) = control.heard_of();
    if !silent.is_empty() && !request.without_silent {
        let names: Vec<&str> = silent.iter().map(NodeId::as_str).collect();
        let message = format!("nodes have not said yet what runs on them: {}", names.join(", "));
        let hint = "wait for them, or give --without-silent: what ran there is then started elsewhere";
        return Err(ErrorBody::new(Code::Conflict, message).hint(hint).into());
    }
    let guard = Guard::Modified { key: entry.key.clone(), revision: entry.modified };
    match control.commit(vec![guard], vec![Op::Delete { key: entry.key }]).await? {
        Committed::Done => {
            control.record(None, "cluster", "the plan after the restore was approved");
            Ok(Json(()))
        }
        Committed::Conflict => Err(contended("the approval").into()),
    }
}

/// Nobody else moves the state as long as this lives.
struct Moving<'a>(&'a Control);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.inner.is_moving.store(false, std::sync::atomic::Ordering::Release);
    }
}

impl Control {
    fn begin_move(&self) -> Result<Moving<'_>, ErrorBody> {
        if self.inner.is_moving.swap(true, std::sync::atomic::Ordering::AcqRel) {
            return Err(ErrorBody::new(Code::Conflict, "the state is being moved already"));
        }
        Ok(Moving(self))
    }

    pub(super) fn quorum(&self) -> Result<&Arc<Quorum>, ErrorBody> {
        self.inner.backing.quorum().ok_or_else(|| {
            ErrorBody::new(Code::Conflict, "the state of this server is on one machine")
                .hint("`rung cluster init` moves it to etcd, so that others can join")
        })
    }

    /// Where other machines reach this one, if they do.
    fn own_address(&self) -> Option<IpAddr> {
        let api = self.read(|world| world.members.get(&self.inner.node)?.value.api.clone())?;
        quorum::socket_of(&api).map(|address| address.ip())
    }

    /// Asks whoever composed this server to replace its process.
    fn start_again(&self) {
        // One that is asked for already is enough.
        let _ = self.inner.endings.try_send(Ending::StateMoved);
    }

    /// Nodes whose agents were heard of since this server started, and those that were not.
    fn heard_of(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let heard: BTreeMap<NodeId, _> = self.inner.beats.lock().expect("no panic while held").clone();
        let nodes: Vec<NodeId> = self.read(|world| world.nodes.keys().cloned().collect());
        nodes.into_iter().partition(|node| heard.contains_key(node))
    }
}
