//! From a release that runs from an image to the container of an instance or a run.

use std::path::PathBuf;

use rung_api::wire::Launch;
use rung_model::appfile::AppFile;
use rung_model::{AppName, ImageSource, ServiceName, VolumeName};

use crate::driver::docker::{APP_LABEL, Calls, ContainerPort, ContainerSpec, Labels, RELEASE_LABEL};
use crate::engine::{Image, ImageConfig};
use crate::environment::{self, Identity};
use crate::facts::Kind;
use crate::node::{Node, PrepareError, ensure_container_volumes, fresh_life};
use crate::shim::protocol::{Io, Isolation, Limits};

/// Whether the services of this file run from an image.
pub fn runs_image(file: &AppFile) -> bool {
    file.build.image.is_some()
}

/// As people know it.
pub fn image_name(source: &ImageSource) -> String {
    match source {
        ImageSource::Name { image } => image.to_string(),
        ImageSource::Dockerfile { path } => format!("of {path}"),
    }
}

/// Where the application listens in its container: what the file says, else the one port that the image exposes, else
/// the number that it is told in `PORT`, which is then the same inside and outside.
pub fn port_of(image: &Image, said: Option<u16>, host: Option<u16>) -> Option<ContainerPort> {
    let host = host?;
    let inside = said.or_else(|| image.config().only_port()).unwrap_or(host);
    Some(ContainerPort { host, inside })
}

/// What an instance or a run asks for beside its release.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub launch: &'a Launch,
    pub id: &'a str,
    pub service: Option<&'a ServiceName>,
    pub attempt: u32,
    pub directory: PathBuf,
    pub logs: PathBuf,
    pub command: Option<String>,
    pub port: Option<ContainerPort>,
    pub mounts: Vec<(&'a VolumeName, &'a String)>,
    pub limits: Limits,
    pub io: Io,
    pub time_limit_ms: Option<u64>,
}

/// How a container calls services: only root may enter its network. Its loopback is its own, and the application in it may
/// use the very port that services have on the machine: then it is told another one.
fn calls_of(node: &Node, app: &AppName, config: &ImageConfig, own: Option<u16>) -> Option<Calls> {
    let usual = node.services.filter(|_| node.kind() == Kind::OwnUsers && node.porter.is_some())?;
    let is_taken = |port: &u16| Some(*port) == own || config.ports().any(|exposed| exposed == *port);
    let port = (usual..=u16::MAX).find(|port| !is_taken(port))?;
    Some(Calls { app: app.clone(), port })
}

/// # Errors
/// The image has no command and none is wanted, or a directory can't be made.
pub fn prepare(node: &Node, image: &Image, wanted: Wanted<'_>) -> Result<ContainerSpec, PrepareError> {
    let release = &wanted.launch.release;
    let source = release.file.build.image.as_ref();
    let image_name = source.map(image_name).unwrap_or_default();
    let config = image.config();
    if wanted.command.is_none() && config.own_command().is_empty() {
        let service = wanted.service.map(ToString::to_string).unwrap_or_default();
        return Err(PrepareError::NoCommand { image: image_name, service });
    }
    // No temporary directory is needed: a container has its own.
    fresh_life(&wanted.directory, Isolation::Plain)?;
    let (mut mounts, volumes) =
        environment::mounts(&node.layout, &release.app, wanted.mounts.into_iter(), Kind::OwnUsers);
    for mount in &mut mounts {
        // The engine has a working directory of its own.
        mount.source = std::path::absolute(&mount.source).unwrap_or_else(|_| mount.source.clone());
    }
    let fresh = ensure_container_volumes(&mounts)?;
    let port = wanted.port.map(|port| port.inside);
    let calls = calls_of(node, &release.app, &config, port);
    let services = calls.as_ref().map(|calls| calls.port);
    let service = wanted.service.map(ServiceName::as_str);
    let identity = Identity { id: wanted.id, service, port, services };
    let mut labels = Labels::from([
        (APP_LABEL, release.app.to_string()),
        (RELEASE_LABEL, release.number.to_string()),
        ("rung.attempt", wanted.attempt.to_string()),
    ]);
    if let Some(service) = wanted.service {
        labels.insert("rung.service", service.to_string());
        labels.insert("rung.instance", wanted.id.to_owned());
    }
    Ok(ContainerSpec {
        name: wanted.id.to_owned(),
        attempt: wanted.attempt,
        directory: wanted.directory,
        logs: wanted.logs,
        image: image.id.clone(),
        image_name,
        config,
        command: wanted.command,
        env: environment::of_container(wanted.launch, &identity, &volumes),
        mounts,
        fresh,
        limits: wanted.limits,
        port: wanted.port,
        calls,
        names: environment::names(wanted.launch, &identity),
        io: wanted.io,
        time_limit_ms: wanted.time_limit_ms,
        labels,
    })
}
