//! Where everything of a node lies in its data directory.

use std::path::{Path, PathBuf};

use rung_model::{AppName, Digest, InstanceId, ReleaseNumber, RunId, ServiceName, VolumeName};

/// Not a service's name: those begin with a letter.
const RUNS: &str = ".runs";

#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.json")
    }

    /// Read by the machine's proxy, too.
    pub fn users(&self) -> PathBuf {
        self.root.join("users.json")
    }

    pub fn assignment(&self) -> PathBuf {
        self.root.join("assignment.json")
    }

    pub fn key(&self) -> PathBuf {
        self.root.join("node.key")
    }

    pub fn launches(&self) -> PathBuf {
        self.root.join("launches")
    }

    pub fn launch(&self, app: &AppName, release: ReleaseNumber) -> PathBuf {
        self.launches().join(format!("{app}.{release}"))
    }

    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    pub fn instance(&self, id: &InstanceId) -> PathBuf {
        self.instances().join(id.as_str())
    }

    pub fn life(&self, id: &InstanceId, attempt: u32) -> PathBuf {
        self.instance(id).join(attempt.to_string())
    }

    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    pub fn run(&self, id: &RunId) -> PathBuf {
        self.runs().join(id.as_str())
    }

    pub fn trees(&self) -> PathBuf {
        self.root.join("trees")
    }

    pub fn tree(&self, digest: &Digest) -> PathBuf {
        self.trees().join(digest.as_str().trim_start_matches("sha256:"))
    }

    pub fn app_volumes(&self, app: &AppName) -> PathBuf {
        self.root.join("volumes").join(app.as_str())
    }

    pub fn volume(&self, app: &AppName, name: &VolumeName) -> PathBuf {
        self.app_volumes(app).join(name.as_str())
    }

    pub fn cache(&self, app: &AppName) -> PathBuf {
        self.root.join("cache").join(app.as_str())
    }

    pub fn builds(&self) -> PathBuf {
        self.root.join("build")
    }

    pub fn app_builds(&self, app: &AppName) -> PathBuf {
        self.builds().join(app.as_str())
    }

    pub fn build(&self, app: &AppName, run: &RunId) -> PathBuf {
        self.app_builds(app).join(run.as_str())
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn app_logs(&self, app: &AppName) -> PathBuf {
        self.logs().join(app.as_str())
    }

    pub fn service_logs(&self, app: &AppName, service: &ServiceName) -> PathBuf {
        self.app_logs(app).join(service.as_str())
    }

    pub fn instance_logs(&self, app: &AppName, service: &ServiceName, id: &InstanceId) -> PathBuf {
        self.service_logs(app, service).join(id.as_str())
    }

    pub fn runs_logs(&self, app: &AppName) -> PathBuf {
        self.app_logs(app).join(RUNS)
    }

    pub fn run_logs(&self, app: &AppName, run: &RunId) -> PathBuf {
        self.runs_logs(app).join(run.as_str())
    }
}
