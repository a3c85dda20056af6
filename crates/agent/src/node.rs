//! What the parts of the agent share: where things lie, how instances are run, the ledger.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rung_api::Client;
use rung_api::wire::Launch;
use rung_model::{AppName, Digest, Labels, NodeId, ReleaseNumber};

use crate::artifacts::{Artifacts, chain};
use crate::converge::Cause;
use crate::driver::Driver;
use crate::driver::docker::Porter;
use crate::facts::{Capabilities, Kind};
use crate::firewall::Firewall;
use crate::firewall::walls::Walls;
use crate::images::{ImageError, Images};
use crate::layout::Layout;
use crate::leases::Leases;
use crate::ledger::{Ledger, LedgerError};
use crate::shim::protocol::{Isolation, Limits, Mount};

/// More processes than any web application needs; fewer than would starve the machine.
const PROCESSES_MAX: u32 = 4096;

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub layout: Layout,
    /// Nothing of Rung's data is seen in an instance.
    pub masked: Vec<PathBuf>,
    pub client: Client,
    pub driver: Driver,
    pub artifacts: Artifacts,
    pub images: Images,
    pub capabilities: Capabilities,
    /// What the command line says of the machine.
    pub labels: Labels,
    /// At which port this machine's proxy answers for the cluster's services.
    pub services: Option<u16>,
    /// By whom containers call services; `None`: they can't.
    pub porter: Option<Arc<dyn Porter>>,
    pub leases: Leases,
    pub firewall: Firewall,
    pub walls: Walls,
    pub(crate) ledger: Mutex<Ledger>,
    /// Held while a release is fetched.
    pub(crate) fetching: tokio::sync::Mutex<()>,
}

pub type Shared = Arc<Node>;

/// Why a life could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("making {path}")]
    Make { path: String, source: io::Error },
    #[error(transparent)]
    Fetch(#[from] crate::artifacts::FetchError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("fetching the release {app} {release}")]
    Launch { app: AppName, release: ReleaseNumber, source: rung_api::ClientError },
    #[error("image {image} has no command of its own; write `command` below [services.{service}]")]
    NoCommand { image: String, service: String },
    #[error("it shall not run on this node any more")]
    NotHere,
    #[error("{release} has no service {service}")]
    NoService { release: ReleaseNumber, service: String },
}

/// A user's purpose: what a build leaves can't touch what instances wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Run,
    Build,
}

impl Node {
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nothing panics while it holds the ledger")
    }

    pub fn kind(&self) -> Kind {
        self.capabilities.kind
    }

    pub fn isolation(&self, app: &AppName, purpose: Purpose) -> Result<Isolation, LedgerError> {
        Ok(match self.kind() {
            Kind::OwnUsers => {
                let owner = match purpose {
                    Purpose::Run => app.to_string(),
                    Purpose::Build => format!("{app}/build"),
                };
                let uid = self.ledger().uid(&owner)?;
                Isolation::OwnUser { uid, gid: uid }
            }
            Kind::UserNamespace => Isolation::UserNamespace,
            Kind::Plain => Isolation::Plain,
        })
    }

    pub fn limits(&self, life: &str, memory_bytes: Option<u64>, cpu_millis: Option<u32>) -> Limits {
        let cgroups = self.capabilities.cgroups.of(life);
        Limits { cgroups, memory_bytes, cpu_millis, processes: Some(PROCESSES_MAX) }
    }

    /// Makes sure that what a release runs is here: its tree, or its image.
    ///
    /// # Errors
    /// Why it is not, and whether trying again may help.
    pub async fn ensure_artifact(&self, digest: &Digest) -> Result<(), (String, Cause)> {
        let is_image = self
            .ledger()
            .launches()
            .any(|launch| launch.release.artifact == *digest && launch.release.file.build.image.is_some());
        if is_image {
            return match self.images.ensure(digest).await {
                Ok(_) => Ok(()),
                Err(error) => Err((chain(&error), error.cause())),
            };
        }
        match self.artifacts.ensure(digest).await {
            Ok(_) => Ok(()),
            Err(error) => Err((chain(&error), error.cause())),
        }
    }

    /// The release with its environment; kept, so that instances start while no server answers.
    pub async fn launch(&self, app: &AppName, release: ReleaseNumber) -> Result<Arc<Launch>, PrepareError> {
        let known = || self.ledger().launch(app, release).cloned();
        if let Some(launch) = known() {
            return Ok(launch);
        }
        // A thousand runs of one release ask for it once.
        let _turn = self.fetching.lock().await;
        if let Some(launch) = known() {
            return Ok(launch);
        }
        let launch = self.client.launch(app, release).await.map_err(|source| PrepareError::Launch {
            app: app.clone(),
            release,
            source,
        })?;
        let launch = Arc::new(launch);
        self.ledger().record_launch(Arc::clone(&launch))?;
        Ok(launch)
    }
}

/// Makes a directory (again) that belongs to the one who will use it.
pub fn ensure_owned(path: &Path, isolation: Isolation) -> Result<(), PrepareError> {
    let fail = |source| PrepareError::Make { path: path.display().to_string(), source };
    std::fs::create_dir_all(path).map_err(fail)?;
    if let Isolation::OwnUser { uid, gid } = isolation {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(fail)?;
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(fail)
}

/// Volumes are made when they are first needed, and are never emptied.
pub fn ensure_volumes(mounts: &[Mount], isolation: Isolation) -> Result<(), PrepareError> {
    mounts
        .iter()
        .filter(|mount| !mount.source.exists())
        .try_for_each(|mount| ensure_owned(&mount.source, isolation))
}

/// The same for containers, whose image says who writes there; answers those that were made just now.
pub fn ensure_container_volumes(mounts: &[Mount]) -> Result<Vec<PathBuf>, PrepareError> {
    let mut fresh = Vec::new();
    for mount in mounts.iter().filter(|mount| !mount.source.exists()) {
        ensure_owned(&mount.source, Isolation::Plain)?;
        fresh.push(mount.source.clone());
    }
    Ok(fresh)
}

/// A clean directory for one life, with its private temporary directory.
pub fn fresh_life(directory: &Path, isolation: Isolation) -> Result<PathBuf, PrepareError> {
    let fail = |source| PrepareError::Make { path: directory.display().to_string(), source };
    if directory.exists() {
        rung_artifact::remove_tree(directory).map_err(fail)?;
    }
    std::fs::create_dir_all(directory).map_err(fail)?;
    let tmp = directory.join("tmp");
    ensure_owned(&tmp, isolation)?;
    Ok(tmp)
}
