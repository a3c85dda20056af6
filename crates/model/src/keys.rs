//! The keys of the store, once. Numbers are padded so that keys sort as numbers do.

use crate::address::BlockNumber;
use crate::ids::{AppName, DeploymentNumber, JobName, NodeId, ReleaseNumber, RunId, SecretName, TokenName};

/// Which addresses the services of which app have.
pub const ADDRESSES: &str = "addresses/";
pub const APPS: &str = "apps/";
pub const RELEASES: &str = "releases/";
pub const DEPLOYMENTS: &str = "deployments/";
pub const RUNS: &str = "runs/";
pub const JOBS: &str = "jobs/";
pub const NODES: &str = "nodes/";
pub const ASSIGN: &str = "assign/";
pub const OBSERVED: &str = "observed/";
pub const ROUTES: &str = "routes/";
pub const SECRETS: &str = "secrets/";
pub const TOKENS: &str = "tokens/";
pub const BUILDS: &str = "builds/";
/// Which machines belong to the cluster, and by which key each is known.
pub const MEMBERS: &str = "members/";
/// Join tokens that were given out, by their names; only hashes of their secrets.
pub const JOIN_TOKENS: &str = "join-tokens/";
/// The cluster's certificate authority, its key sealed.
pub const AUTHORITY: &str = "cluster/authority";
/// How many nodes have ever joined: each has a number of its own.
pub const NODES_COUNTED: &str = "cluster/nodes";
/// Written whenever an app asks for host names that it had not before: each is given to one.
pub const HOSTS_CLAIMED: &str = "cluster/hosts";
/// What the proxies of each server have acknowledged; leased by that server.
pub const SERVED: &str = "served/";
/// There after a restore: nothing is changed until an operator has approved what would be.
pub const FROZEN: &str = "frozen";
/// Everything of certificates that the platform orders: the account, what it holds, what proves whose a domain is.
pub const TLS: &str = "tls/";
pub const TLS_ACCOUNT: &str = "tls/account";
pub const TLS_CERTIFICATES: &str = "tls/certificates/";
pub const TLS_CHALLENGES: &str = "tls/challenges/";
/// Leased by the leader; the revision that created it is the fencing token of every write of the leader.
pub const LEADER: &str = "leader";

pub fn addresses(block: BlockNumber) -> String {
    format!("{ADDRESSES}{:05}", block.number())
}

pub fn app(app: &AppName) -> String {
    format!("{APPS}{app}")
}

pub fn release(app: &AppName, number: ReleaseNumber) -> String {
    format!("{RELEASES}{app}/{:010}", number.0)
}

pub fn deployment(app: &AppName, number: DeploymentNumber) -> String {
    format!("{DEPLOYMENTS}{app}/{:010}", number.0)
}

pub fn run(app: &AppName, run: &RunId) -> String {
    format!("{RUNS}{app}/{run}")
}

pub fn job(app: &AppName, job: &JobName) -> String {
    format!("{JOBS}{app}/{job}")
}

pub fn node(node: &NodeId) -> String {
    format!("{NODES}{node}")
}

pub fn assign(node: &NodeId) -> String {
    format!("{ASSIGN}{node}")
}

pub fn observed(node: &NodeId) -> String {
    format!("{OBSERVED}{node}")
}

pub fn join_token(name: &str) -> String {
    format!("{JOIN_TOKENS}{name}")
}

pub fn member(node: &NodeId) -> String {
    format!("{MEMBERS}{node}")
}

pub fn routes(app: &AppName) -> String {
    format!("{ROUTES}{app}")
}

/// A sealed value of a secret.
pub fn secret(app: &AppName, name: &SecretName, version: u64) -> String {
    format!("{SECRETS}{app}/{name}/{version:010}")
}

/// The artifact that a build made; the key covers source and build section.
pub fn build(app: &AppName, key: &str) -> String {
    format!("{BUILDS}{app}/{key}")
}

pub fn token(token: &TokenName) -> String {
    format!("{TOKENS}{token}")
}
