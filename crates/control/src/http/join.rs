//! Nodes come and go: tokens, joining, certificates, the list of members, drain and removal.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use rung_api::join::{
    CertificateRequest, Certified, DrainRequest, JoinRequest, JoinToken, JoinTokenIssued, JoinTokenRequest,
    LabelRequest, MemberReport, NodeListing, RemoveRequest,
};
use rung_api::{Code, ErrorBody};
use rung_model::label::LABELS_MAX;
use rung_model::node::Drain;
use rung_model::{Document, Member, NodeId, NodeRole, keys};
use rung_planner::{World, rewrite};
use rung_store::{Entry, Guard, Op};
use rung_trust::{CERTIFICATE_LIFE, Fingerprint, PublicKey};

use super::Answer;
use super::callers::Via;
use super::extract::{Body, Json, Named, Query};
use crate::bells::Topic;
use crate::cluster::ClusterError;
use crate::quorum::Standing;
use crate::shared::{ATTEMPTS, Committed, Control, contended, store_error};
use crate::status;

/// Long enough to walk to the other machine, too short to lie around.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
/// Used and ended ones are kept for so long, so that it can be said what became of them.
const TOKEN_REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Clocks of machines in order differ by less; one that is wrong by more is told before anything goes by it.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5 * 60);

/// At `tokens/<name>`. The secret itself is nowhere.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct KeptToken {
    role: NodeRole,
    secret: Hash,
    expires: Timestamp,
    by: String,
    #[serde(default)]
    used: Option<Used>,
}

rung_model::documents!(KeptToken);

/// `sha256:…`.
type Hash = String;

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Used {
    node: NodeId,
    key: Hash,
    at: Timestamp,
}

fn refused(error: &ClusterError) -> ErrorBody {
    let code = match error {
        ClusterError::Alone => Code::Refused,
        ClusterError::Authority(_) => Code::InvalidRequest,
        _ => Code::Internal,
    };
    ErrorBody::new(code, crate::trees::chain(error))
}

fn random_word(bytes: usize) -> String {
    let mut word = vec![0; bytes];
    SystemRandom::new().fill(&mut word).expect("the kernel gives random bytes");
    hex::encode(word)
}

/// What of a token is kept: it is bound to its role, so that one for an ingress does not make a server.
fn hash_of(secret: &str, role: NodeRole) -> Hash {
    Fingerprint::of(format!("{role}/{secret}").as_bytes()).to_string()
}

pub async fn token(
    State(control): State<Control>,
    Body(request): Body<JoinTokenRequest>,
) -> Answer<JoinTokenIssued> {
    let Some(authority) = control.authority_fingerprint() else {
        let message = "other machines can't reach this server: its API listens on this machine only";
        let hint = "start it with --api and an address that they reach, like --api 0.0.0.0:7864";
        return Err(ErrorBody::new(Code::Refused, message).hint(hint).into());
    };
    if request.role == NodeRole::Server {
        control.quorum()?;
    }
    control.forget_old_tokens().await;
    let token = JoinToken { role: request.role, name: random_word(8), secret: random_word(16), authority };
    let expires = Timestamp::now() + TOKEN_LIFE;
    let kept = KeptToken {
        role: token.role,
        secret: hash_of(&token.secret, token.role),
        expires,
        by: request.by.clone(),
        used: None,
    };
    let key = keys::join_token(&token.name);
    let value = kept.to_json();
    let guard = Guard::Absent { key: key.clone() };
    match control.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await? {
        Committed::Done => {}
        Committed::Conflict => return Err(contended("the join token").into()),
    }
    control.record(None, "join_token", format!("{} made a join token for a {}", request.by, request.role));
    let servers = control.servers();
    Ok(Json(JoinTokenIssued { token: token.to_string(), servers, expires }))
}

impl Control {
    /// Where the API is reached from other machines.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.read(|world| {
            world.members.values().filter_map(|held| held.value.api.clone()).collect::<Vec<_>>()
        })
    }

    async fn forget_old_tokens(&self) {
        let Ok(listed) = self.inner.store.list(keys::JOIN_TOKENS, None, 500).await else { return };
        let now = Timestamp::now();
        for entry in listed.value.entries {
            let is_old =
                KeptToken::from_json(&entry.value).is_ok_and(|kept| now > kept.expires + TOKEN_REMEMBERED);
            if is_old {
                let guard = Guard::Modified { key: entry.key.clone(), revision: entry.modified };
                // The next token tries again.
                let _ = self.txn(vec![guard], vec![Op::Delete { key: entry.key }]).await;
            }
        }
    }
}

pub async fn join(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    Body(request): Body<JoinRequest>,
) -> Answer<Certified> {
    if via != Via::Tcp || control.authority_fingerprint().is_none() {
        let message = "joining is for machines that reach this server over TLS";
        return Err(ErrorBody::new(Code::Refused, message).into());
    }
    check_clock(&request)?;
    let key = PublicKey::from_hex(&request.key)
        .ok_or_else(|| ErrorBody::new(Code::InvalidRequest, "the node's public key is malformed"))?;
    for _ in 0..ATTEMPTS {
        let (kept, entry) = control.kept_token(&request).await?;
        let (member, mut guards, mut ops) = control.admission(&request, &key)?;
        if let Some(used) = &kept.used {
            // Its answer was lost: the same machine asks again.
            let again = used.node == request.node && used.key == key.fingerprint().to_string();
            if !again {
                let when = used.at.strftime("%H:%M:%S UTC");
                let message =
                    format!("this join token was used already: node {} joined with it at {when}", used.node);
                return Err(ErrorBody::new(Code::Unauthorized, message).hint(NEW_TOKEN).into());
            }
            if control.read(|world| !world.members.contains_key(&request.node)) {
                let message = format!("node {} joined with this token and was removed since", request.node);
                return Err(ErrorBody::new(Code::Unauthorized, message).hint(NEW_TOKEN).into());
            }
        } else {
            let used = Used { node: request.node.clone(), key: member.key.clone(), at: Timestamp::now() };
            let value = rewrite(&entry.value, &kept, &KeptToken { used: Some(used), ..kept.clone() });
            guards.push(Guard::Modified { key: entry.key.clone(), revision: entry.modified });
            ops.push(Op::Put { key: entry.key, value, lease: None });
            // One transaction: a token is used when a node joined with it, and never twice.
            match control.commit(guards, ops).await? {
                Committed::Done => {}
                Committed::Conflict => continue,
            }
            control.record(None, "node_joined", format!("node {} joined as {}", request.node, request.role));
        }
        let issued =
            control.certify(&request.node, request.role, &key, &[]).map_err(|error| refused(&error))?;
        return Ok(Json(Certified {
            certificate: issued.certificate,
            authority: issued.authority,
            life_ms: CERTIFICATE_LIFE.as_millis() as u64,
            servers: control.servers(),
        }));
    }
    Err(contended("the join token").into())
}

const NEW_TOKEN: &str = "make another one with `rung node token` on a server";

fn check_clock(request: &JoinRequest) -> Result<(), ErrorBody> {
    let now = Timestamp::now();
    let seconds = (request.clock.as_second() - now.as_second()).unsigned_abs();
    if Duration::from_secs(seconds) <= CLOCKS_DIFFER {
        return Ok(());
    }
    let direction = if request.clock > now { "ahead of" } else { "behind" };
    let message = format!("this machine's clock is {} minutes {direction} the server's", seconds / 60);
    Err(ErrorBody::new(Code::Refused, message)
        .hint("set the clock (a time service keeps it right), then join again"))
}

impl Control {
    /// The token that is meant, if its secret is right and its time has not ended.
    async fn kept_token(&self, request: &JoinRequest) -> Result<(KeptToken, Entry), ErrorBody> {
        let unknown = || {
            ErrorBody::new(
                Code::Unauthorized,
                "this join token is not known here: it is mistyped, or of long ago",
            )
            .hint(NEW_TOKEN)
        };
        let name = &request.token;
        if name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let read =
            self.inner.store.get(&keys::join_token(name)).await.map_err(|error| store_error(&error))?;
        let entry = read.value.ok_or_else(unknown)?;
        let kept = KeptToken::from_json(&entry.value).map_err(|_| unknown())?;
        let given = hash_of(&request.secret, request.role);
        if !crate::access::is_equal(given.as_bytes(), kept.secret.as_bytes()) {
            let message = "this join token was changed: its secret or its role is not what was given out";
            return Err(ErrorBody::new(Code::Unauthorized, message).hint(NEW_TOKEN));
        }
        if kept.used.is_none() && Timestamp::now() > kept.expires {
            let minutes = (Timestamp::now().as_second() - kept.expires.as_second()) / 60;
            let message =
                format!("this join token ended {minutes} minutes ago; they are valid for 15 minutes");
            return Err(ErrorBody::new(Code::Unauthorized, message).hint(NEW_TOKEN));
        }
        Ok((kept, entry))
    }

    /// The member that the request makes, if its name is free.
    fn admission(
        &self,
        request: &JoinRequest,
        key: &PublicKey,
    ) -> Result<(Member, Vec<Guard>, Vec<Op>), ErrorBody> {
        let fingerprint = key.fingerprint().to_string();
        let held = self.read(|world| world.members.get(&request.node).map(|held| held.value.clone()));
        if held.is_some_and(|held| held.key != fingerprint || held.role != request.role) {
            let message = format!("the name {} is taken by another machine of this cluster", request.node);
            return Err(ErrorBody::new(Code::Conflict, message).hint(format!(
                "choose another with --name, or take the old one out with `rung node remove {}`",
                request.node
            )));
        }
        let member = Member {
            node: request.node.clone(),
            role: request.role,
            key: fingerprint,
            joined: Timestamp::now(),
            api: None,
        };
        let place = keys::member(&request.node);
        let value = member.to_json();
        let guards = vec![Guard::Absent { key: place.clone() }];
        Ok((member, guards, vec![Op::Put { key: place, value, lease: None }]))
    }
}

/// A node's certificate anew, for the key that it joined with.
pub async fn certificate(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    named: Named,
    Body(request): Body<CertificateRequest>,
) -> Answer<Certified> {
    let node: NodeId = named.get("node")?;
    let Via::Node(peer) = via else {
        let message = "a certificate is renewed by the node that it is of";
        return Err(ErrorBody::new(Code::Unauthorized, message).into());
    };
    let key = PublicKey::from_hex(&request.key).filter(|key| key.fingerprint() == peer.key);
    let Some(key) = key else {
        let message = format!("node {node} joined with another key");
        return Err(ErrorBody::new(Code::Unauthorized, message).into());
    };
    let issued = control.certify(&node, peer.role, &key, &[]).map_err(|error| refused(&error))?;
    Ok(Json(Certified {
        certificate: issued.certificate,
        authority: issued.authority,
        life_ms: CERTIFICATE_LIFE.as_millis() as u64,
        servers: control.servers(),
    }))
}

#[derive(Debug, serde::Deserialize)]
pub struct AfterMark {
    #[serde(default)]
    after: String,
    #[serde(default)]
    wait_ms: u64,
    /// When nothing has changed, its mark says so: who has the list does not want it again.
    #[serde(default)]
    brief: bool,
}

/// Waits until the list is another than the one that is held.
pub async fn members(State(control): State<Control>, Query(query): Query<AfterMark>) -> Answer<MemberReport> {
    let wait = Duration::from_millis(query.wait_ms).min(Duration::from_secs(60));
    let news = control.wait_for_topic(Topic::Members, wait, |reconcile| {
        let world = reconcile.world();
        (world.revision > 0 && mark(world) != query.after).then(|| report(world))
    });
    Ok(Json(match news.await {
        Some(report) => report,
        None if query.brief => MemberReport { mark: query.after, members: Vec::new() },
        None => control.read(report),
    }))
}

fn report(world: &World) -> MemberReport {
    MemberReport {
        mark: mark(world),
        members: world.members.values().map(|held| held.value.clone()).collect(),
    }
}

/// As many, and none newer: the same list.
fn mark(world: &World) -> String {
    let newest = world.members.values().map(|held| held.revision).max().unwrap_or(0);
    format!("{}-{}-{newest}", world.epoch, world.members.len())
}

pub async fn list(State(control): State<Control>) -> Answer<Vec<NodeListing>> {
    Ok(Json(control.read_loop(status::nodes)))
}

fn no_such_node(node: &NodeId) -> ErrorBody {
    ErrorBody::new(Code::NotFound, format!("there is no node {node}")).hint("`rung node list` lists them")
}

pub async fn drain(
    State(control): State<Control>,
    named: Named,
    Body(request): Body<DrainRequest>,
) -> Answer<()> {
    let node: NodeId = named.get("node")?;
    let deadline = request.deadline_ms.map(|wait| Timestamp::now() + Duration::from_millis(wait));
    let drain = Drain { since: Timestamp::now(), deadline, by: request.by.clone() };
    control.change_drain(&node, Some(drain)).await?;
    control.record(None, "node_draining", format!("{} drains node {node}", request.by));
    Ok(Json(()))
}

/// Takes a drain back.
pub async fn undrain(State(control): State<Control>, named: Named, Body(by): Body<String>) -> Answer<()> {
    let node: NodeId = named.get("node")?;
    control.change_drain(&node, None).await?;
    control.record(None, "node_back", format!("{by} lets node {node} take instances again"));
    Ok(Json(()))
}

/// Instances that ask for other labels than the node has now are moved away by the planner.
pub async fn label(
    State(control): State<Control>,
    named: Named,
    Body(request): Body<LabelRequest>,
) -> Answer<()> {
    let node: NodeId = named.get("node")?;
    let LabelRequest { by, set, remove } = request;
    control
        .change_node(&node, |changed| {
            if changed.labels.len() + set.len() > LABELS_MAX {
                let message = format!("node {node} would have more than {LABELS_MAX} labels");
                let hint = "remove some with `rung node label NODE name=`";
                return Err(ErrorBody::new(Code::InvalidRequest, message).hint(hint));
            }
            changed.labels.retain(|name, _| !remove.contains(name));
            changed.labels.extend(set.clone());
            Ok(())
        })
        .await?;
    control.record(None, "node_labelled", format!("{by} changed the labels of node {node}"));
    Ok(Json(()))
}

impl Control {
    async fn change_drain(&self, node: &NodeId, drain: Option<Drain>) -> Result<(), ErrorBody> {
        let change = |changed: &mut rung_model::Node| {
            changed.drain.clone_from(&drain);
            Ok(())
        };
        self.change_node(node, change).await
    }

    async fn change_node(
        &self,
        node: &NodeId,
        change: impl Fn(&mut rung_model::Node) -> Result<(), ErrorBody>,
    ) -> Result<(), ErrorBody> {
        for _ in 0..ATTEMPTS {
            let held = self.read(|world| world.nodes.get(node).cloned()).ok_or_else(|| no_such_node(node))?;
            let mut changed = held.value;
            change(&mut changed)?;
            let key = keys::node(node);
            let value = self.encode(&key, &changed);
            let guard = Guard::Modified { key: key.clone(), revision: held.revision };
            match self.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await? {
                Committed::Done => return Ok(()),
                Committed::Conflict => {}
            }
        }
        Err(contended(&format!("node {node}")))
    }
}

/// Takes a node out: what it still runs is taken for gone, and nobody of the cluster speaks with it any more.
pub async fn remove(
    State(control): State<Control>,
    named: Named,
    Body(request): Body<RemoveRequest>,
) -> Answer<()> {
    let node: NodeId = named.get("node")?;
    let RemoveRequest { by, force } = request;
    if node == control.inner.node {
        let message = format!("node {node} is the server that is asked");
        return Err(ErrorBody::new(Code::Refused, message).hint("ask another server to remove it").into());
    }
    control.refuse_running(&node, force)?;
    let member = control.read(|world| world.members.get(&node).map(|held| held.value.clone()));
    let server = member.filter(|member| member.role == NodeRole::Server).zip(control.quorum().ok());
    if let Some((member, quorum)) = &server {
        let standing = if member.api.is_some() { Standing::HasServed } else { Standing::Awaited };
        quorum.remove(node.as_str(), standing).await.map_err(|error| super::cluster::refused(&error))?;
    }
    for _ in 0..ATTEMPTS {
        // Anew each time, from the same moment as what is deleted: it may have been given something meanwhile.
        control.refuse_running(&node, force || server.is_some())?;
        let own = [keys::member(&node), keys::node(&node), keys::assign(&node), keys::observed(&node)];
        let held = control.read(|world| own.clone().map(|key| (world.revision_of(&key), key)));
        if held.iter().all(|(revision, _)| revision.is_none()) {
            return Err(no_such_node(&node).into());
        }
        let ops = held.iter().filter(|(revision, _)| revision.is_some());
        let ops = ops.map(|(_, key)| Op::Delete { key: key.clone() }).collect();
        let guards = held.map(|(revision, key)| match revision {
            Some(revision) => Guard::Modified { key, revision },
            // What comes at this moment would stay behind.
            None => Guard::Absent { key },
        });
        if let Committed::Done = control.commit(guards.into(), ops).await? {
            control.record(None, "node_removed", format!("{by} removed node {node}"));
            return Ok(Json(()));
        }
    }
    Err(contended(&format!("node {node}")).into())
}

impl Control {
    fn refuse_running(&self, node: &NodeId, force: bool) -> Result<(), ErrorBody> {
        let running = self.read_loop(|reconcile| {
            let assigned = reconcile.world().assignments.get(node);
            let count = assigned.map_or(0, |held| held.value.instances.len() + held.value.runs.len());
            let liveness = reconcile.liveness();
            if liveness.is_lost(node) || liveness.silent().contains(node) { 0 } else { count }
        });
        if running == 0 || force {
            return Ok(());
        }
        let message = format!("node {node} still runs {running} instances and runs");
        let hint = format!("move them with `rung node drain {node}`, or end them there with --force");
        Err(ErrorBody::new(Code::Refused, message).hint(hint))
    }
}
