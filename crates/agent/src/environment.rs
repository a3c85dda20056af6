//! What a command finds in its environment: nothing of Rung's own, everything that was promised to it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rung_api::wire::Launch;
use rung_model::{AppName, AssignedInstance, JobRun, VolumeName};

use crate::facts::Kind;
use crate::layout::Layout;
use crate::shim::protocol::Mount;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds fetch from the network, by the ways of the machine that they run on: these settings of the agent's own
/// environment are passed on to them. Names that end in `_` are prefixes.
const BUILD_NETWORK: [&str; 14] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "PIP_",
    "NPM_CONFIG_",
    "npm_config_",
];

/// What every command gets.
fn base(home: &Path, tmp: &Path) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(env.insert(name.to_owned(), value));
    set("PATH", PATH.to_owned());
    set("HOME", home.display().to_string());
    set("TMPDIR", tmp.display().to_string());
    set("LANG", "C.UTF-8".to_owned());
    env
}

/// Where `/tmp` is seen.
pub fn tmp_inside(kind: Kind, tmp: &Path) -> PathBuf {
    if kind == Kind::Plain { tmp.to_owned() } else { "/tmp".into() }
}

/// Who runs: what tells one copy from another.
#[derive(Debug)]
pub struct Identity<'a> {
    pub id: &'a str,
    pub service: Option<&'a str>,
    pub port: Option<u16>,
    /// At which port services are reached from here, when they are.
    pub services: Option<u16>,
}

/// An instance's or a run's environment: the app's own, then what Rung alone knows, which wins.
pub fn of_release(
    launch: &Launch,
    identity: &Identity<'_>,
    volumes: &[(VolumeName, PathBuf)],
    kind: Kind,
    tmp: &Path,
) -> BTreeMap<String, String> {
    let tmp = tmp_inside(kind, tmp);
    let mut env = base(&tmp, &tmp);
    env.extend(of_life(launch, identity, "127.0.0.1", volumes));
    env
}

/// The same for a container: what its image says of `PATH` and `HOME` is left alone, and its port is reached from
/// outside of it.
pub fn of_container(
    launch: &Launch,
    identity: &Identity<'_>,
    volumes: &[(VolumeName, PathBuf)],
) -> BTreeMap<String, String> {
    of_life(launch, identity, "0.0.0.0", volumes)
}

fn of_life(
    launch: &Launch,
    identity: &Identity<'_>,
    host: &str,
    volumes: &[(VolumeName, PathBuf)],
) -> BTreeMap<String, String> {
    let mut env = launch.env.clone();
    let mut set = |name: &str, value: String| drop(env.insert(name.to_owned(), value));
    set("RUNG_APP", launch.release.app.base().to_string());
    set("RUNG_ENVIRONMENT", launch.release.app.environment().to_string());
    set("RUNG_INSTANCE", identity.id.to_owned());
    set("RUNG_RELEASE", launch.release.number.to_string());
    if let Some(service) = identity.service {
        set("RUNG_SERVICE", service.to_owned());
    }
    if let Some(port) = identity.port {
        set("PORT", port.to_string());
        set("HOST", host.to_owned());
    }
    if let Some(port) = identity.services {
        set("RUNG_SERVICES_PORT", port.to_string());
        for (variable, address) in &launch.services {
            set(&format!("{variable}_URL"), format!("http://{address}:{port}"));
        }
    }
    for (name, path) in volumes {
        set(&volume_variable(name), path.display().to_string());
    }
    env
}

/// By which names a life finds services: those of its `/etc/hosts`.
pub fn names(launch: &Launch, identity: &Identity<'_>) -> BTreeMap<String, Ipv4Addr> {
    if identity.services.is_some() { launch.names.clone() } else { BTreeMap::new() }
}

/// What an exclusive instance finds beside that.
pub fn of_fence(assigned: &AssignedInstance) -> Option<(String, String)> {
    assigned.fence.map(|fence| ("RUNG_FENCE".to_owned(), fence.to_string()))
}

/// What a run of a job finds beside that: which job, for which time, and which try it is.
pub fn of_job(run: &JobRun) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("RUNG_JOB".to_owned(), run.job.to_string()),
        ("RUNG_JOB_ATTEMPT".to_owned(), run.attempt.to_string()),
    ]);
    if let Some(time) = run.scheduled {
        env.insert("RUNG_JOB_SCHEDULED".to_owned(), time.to_string());
    }
    env
}

/// A build's environment: the app file's, no config, no secrets, and the machine's ways to the network.
pub fn of_build(
    app: &AppName,
    own: &BTreeMap<String, String>,
    home: &Path,
    tmp: &Path,
) -> BTreeMap<String, String> {
    let mut env = base(home, tmp);
    env.extend(ways_to_the_network());
    env.extend(of_build_image(app, own));
    env
}

/// What the machine's own environment says of how the network is reached.
pub fn ways_to_the_network() -> impl Iterator<Item = (String, String)> {
    let passed_on = |name: &str| {
        BUILD_NETWORK.iter().any(|known| name == *known || (known.ends_with('_') && name.starts_with(known)))
    };
    std::env::vars_os().filter_map(move |(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        passed_on(&name).then_some((name, value))
    })
}

/// Of a test in a container of the image that was built.
pub fn of_build_image(app: &AppName, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    // Not in which environment: what is built may serve in others, too.
    let mut env = BTreeMap::from([
        ("CI".to_owned(), "true".to_owned()),
        ("RUNG_APP".to_owned(), app.base().to_string()),
    ]);
    env.extend(own.clone());
    env
}

/// `RUNG_VOLUME_UPLOADS`: the path that is valid where the variable is read.
fn volume_variable(name: &VolumeName) -> String {
    format!("RUNG_VOLUME_{}", name.as_str().to_ascii_uppercase().replace('-', "_"))
}

/// The mounts of a service (or of all, for a release command), and where each volume is seen.
pub fn mounts<'a>(
    layout: &Layout,
    app: &AppName,
    wanted: impl Iterator<Item = (&'a VolumeName, &'a String)>,
    kind: Kind,
) -> (Vec<Mount>, Vec<(VolumeName, PathBuf)>) {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut seen = Vec::new();
    for (name, target) in wanted {
        let source = layout.volume(app, name);
        let target = PathBuf::from(target);
        if mounts.iter().any(|mount| mount.target == target || mount.source == source) {
            continue;
        }
        let place = if kind == Kind::Plain { source.clone() } else { target.clone() };
        seen.push((name.clone(), place));
        mounts.push(Mount { source, target });
    }
    (mounts, seen)
}
