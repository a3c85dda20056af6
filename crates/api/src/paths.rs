//! The endpoints, once: the server's router and the client both take them from here.
//!
//! `{…}` stand for path parameters, in axum's spelling.

pub const HEALTH: &str = "/v1/health";
pub const OPENAPI: &str = "/v1/openapi.json";

// For people and their tools.
pub const APPS: &str = "/v1/apps";
pub const APP: &str = "/v1/apps/{app}";
pub const APP_STATUS: &str = "/v1/apps/{app}/status";
pub const SOURCE: &str = "/v1/sources/{digest}";
pub const DEPLOYMENTS: &str = "/v1/apps/{app}/deployments";
pub const DEPLOYMENT: &str = "/v1/apps/{app}/deployments/{deployment}";
pub const DEPLOYMENT_CANCEL: &str = "/v1/apps/{app}/deployments/{deployment}/cancel";
pub const DEPLOYMENT_CONTINUE: &str = "/v1/apps/{app}/deployments/{deployment}/continue";
pub const RELEASES: &str = "/v1/apps/{app}/releases";
pub const RELEASE: &str = "/v1/apps/{app}/releases/{release}";
pub const RELEASE_DEPLOY: &str = "/v1/apps/{app}/releases/{release}/deploy";
pub const RELEASE_DIFF: &str = "/v1/apps/{app}/releases/{release}/diff/{other}";
pub const PROMOTE: &str = "/v1/apps/{app}/promote";
pub const COMMIT: &str = "/v1/apps/{app}/commits/{commit}";
pub const ROLLBACK: &str = "/v1/apps/{app}/rollback";
pub const RESTART: &str = "/v1/apps/{app}/restart";
pub const SCALE: &str = "/v1/apps/{app}/scale";
pub const MAINTENANCE: &str = "/v1/apps/{app}/maintenance";
pub const CONFIG: &str = "/v1/apps/{app}/config";
pub const SECRETS: &str = "/v1/apps/{app}/secrets";
pub const SECRETS_GENERATE: &str = "/v1/apps/{app}/secrets/generate";
pub const RUNS: &str = "/v1/apps/{app}/runs";
pub const RUN: &str = "/v1/apps/{app}/runs/{run}";
pub const RUN_CANCEL: &str = "/v1/apps/{app}/runs/{run}/cancel";
pub const RUN_ATTACH: &str = "/v1/apps/{app}/runs/{run}/attach";
pub const JOBS: &str = "/v1/apps/{app}/jobs";
pub const JOB_RUNS: &str = "/v1/apps/{app}/jobs/{job}/runs";
pub const JOB_PAUSE: &str = "/v1/apps/{app}/jobs/{job}/pause";
pub const JOB_RESUME: &str = "/v1/apps/{app}/jobs/{job}/resume";
pub const JOB_PIN: &str = "/v1/apps/{app}/jobs/{job}/pin";
pub const LOGS: &str = "/v1/apps/{app}/logs";
pub const EVENTS: &str = "/v1/events";
pub const TRAFFIC: &str = "/v1/traffic";
pub const METRICS: &str = "/v1/metrics";
pub const UPGRADE: &str = "/v1/upgrade";
pub const CLUSTER: &str = "/v1/cluster";
pub const CLUSTER_INIT: &str = "/v1/cluster/init";
pub const CLUSTER_DISSOLVE: &str = "/v1/cluster/dissolve";
pub const CLUSTER_SNAPSHOTS: &str = "/v1/cluster/snapshots";
pub const CLUSTER_APPROVE: &str = "/v1/cluster/approve";
pub const DOCTOR: &str = "/v1/doctor";
pub const ROTATE_KEY: &str = "/v1/secrets/rotate-key";
pub const TOKENS: &str = "/v1/tokens";
pub const TOKEN: &str = "/v1/tokens/{token}";
pub const AUDIT: &str = "/v1/audit";
pub const AUDIT_SERVERS: &str = "/v1/audit/servers";
pub const WHOAMI: &str = "/v1/whoami";
pub const CERTIFICATES: &str = "/v1/certificates";
pub const CERTIFICATE_ACCOUNT: &str = "/v1/certificates/account";
pub const CERTIFICATE_RENEW: &str = "/v1/certificates/{domain}/renew";

// For people's git, which adds what follows the name itself.
pub const GIT_REFS: &str = "/git/{app}/info/refs";
pub const GIT_RECEIVE: &str = "/git/{app}/git-receive-pack";
pub const GIT_UPLOAD: &str = "/git/{app}/git-upload-pack";
/// The remote that a repository pushes to.
pub const GIT: &str = "/git/{app}";
pub const JOIN_TOKENS: &str = "/v1/join-tokens";
pub const NODES: &str = "/v1/nodes";
pub const NODE_DRAIN: &str = "/v1/nodes/{node}/drain";
pub const NODE_LABELS: &str = "/v1/nodes/{node}/labels";
pub const NODE_REMOVE: &str = "/v1/nodes/{node}/remove";

// For machines that want to become nodes.
pub const JOIN: &str = "/v1/join";

// For nodes.
pub const MEMBERS: &str = "/v1/members";
pub const CLUSTER_SERVERS: &str = "/v1/cluster/servers";
pub const CERTIFICATE: &str = "/v1/nodes/{node}/certificate";
pub const NODE: &str = "/v1/nodes/{node}";
pub const NODE_BEAT: &str = "/v1/nodes/{node}/beat";
/// Which instances shall run there, read from the store.
pub const NODE_LEASES: &str = "/v1/nodes/{node}/leases";
pub const ASSIGNMENT: &str = "/v1/nodes/{node}/assignment";
pub const OBSERVED: &str = "/v1/nodes/{node}/observed";
pub const LAUNCH: &str = "/v1/apps/{app}/releases/{release}/launch";
pub const ARTIFACT: &str = "/v1/artifacts/{digest}";

// For proxies.
pub const PROXY: &str = "/v1/proxies/{proxy}";
pub const PROXY_POLL: &str = "/v1/proxies/{proxy}/poll";
pub const PROXY_LIMITS: &str = "/v1/proxies/{proxy}/limits";
pub const PROXY_TRAFFIC: &str = "/v1/proxies/{proxy}/traffic";
pub const PROXY_TALLY: &str = "/v1/proxies/{proxy}/tally";
pub const PROXY_CERTIFICATES: &str = "/v1/proxies/{proxy}/certificates";
pub const PROXY_CERTIFICATE: &str = "/v1/proxies/{proxy}/certificates/{host}";

// For other servers.
pub const TALLIES: &str = "/v1/tallies";
pub const OWN_AUDIT: &str = "/v1/own/audit";
pub const KEPT_AUDITS: &str = "/v1/own/audits";
pub const OWN_ARTIFACTS: &str = "/v1/own/artifacts";
pub const OWN_EVENTS: &str = "/v1/own/events";
pub const SERVER_LIMITS: &str = "/v1/servers/{server}/limits";

// Served by each agent on its own address; the server passes people's requests on to it.
pub const AGENT_LOGS: &str = "/v1/agent/logs";
pub const AGENT_ATTACH: &str = "/v1/agent/runs/{run}/attach";
