//! A build: the source in a clean directory, the command, the tree that it leaves, the test as a gate.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rung_model::{Digest, Run};

use crate::artifacts::{blocking, chain};
use crate::driver::Start;
use crate::environment;
use crate::facts::{self, Kind};
use crate::images;
use crate::node::{PrepareError, Purpose, ensure_owned, fresh_life};
use crate::runs::{Failure, RunsDriver};
use crate::shim::protocol::{Access, Io, Isolation, Mount, Spec};

/// Where a build finds what earlier ones downloaded.
const CACHE: &str = "/cache";
/// A cache that grew larger is emptied: what is in it can be downloaded again.
const CACHE_MAX_BYTES: u64 = 5_000_000_000;

/// A build as it was asked for.
pub struct Plan<'a> {
    pub run: &'a Run,
    pub source: &'a Digest,
    pub command: Option<&'a str>,
    pub test: Option<&'a str>,
    pub env: &'a BTreeMap<String, String>,
}

impl RunsDriver {
    pub(super) async fn build(&self, plan: &Plan<'_>) -> Result<Digest, Failure> {
        let until = Instant::now() + plan.run.timeout;
        self.end_lives(plan.run).await;
        let tree = self.unpack(plan).await?;
        if let Some(command) = plan.command {
            self.step(plan, "build", command, &tree, until).await?;
        }
        let archive = tree.with_extension("tar");
        let digest = pack(&tree, &archive).await?;
        if let Some(test) = plan.test {
            self.step(plan, "test", test, &tree, until).await?;
        }
        self.send(&digest, &archive).await?;
        self.settle(plan, &tree, &digest).await;
        Ok(digest)
    }

    pub(super) async fn unpack(&self, plan: &Plan<'_>) -> Result<PathBuf, Failure> {
        let tree = self.node.layout.build(&plan.run.app, &plan.run.id);
        self.remove_build(plan.run).await;
        let parent = tree.parent().expect("builds lie in the directory of their app").to_owned();
        fs::create_dir_all(&parent)
            .map_err(|error| Failure::before_start(format!("making {}: {error}", parent.display())))?;
        self.node.artifacts.fetch_source(plan.source, &tree).await.map_err(|error| Failure::of(&error))?;
        let isolation =
            self.node.isolation(&plan.run.app, Purpose::Build).map_err(|error| Failure::of(&error))?;
        if let Isolation::OwnUser { uid, .. } = isolation {
            let path = tree.clone();
            blocking(move || give_tree(&path, uid))
                .await
                .map_err(|error| Failure::before_start(format!("giving the source to the build: {error}")))?;
        }
        Ok(tree)
    }

    /// One command in the build's directory.
    async fn step(
        &self,
        plan: &Plan<'_>,
        what: &str,
        command: &str,
        tree: &Path,
        until: Instant,
    ) -> Result<(), Failure> {
        let left = until.saturating_duration_since(Instant::now());
        let spec = self.prepare_step(plan, what, command, tree, left).map_err(|error| Failure::of(&error))?;
        let start = Start::Process(Box::new(spec));
        self.node.driver.spawn(&start).await.map_err(|error| Failure::of(&error))?;
        let exit = self.node.driver.ended(start.directory(), 1).await;
        let prefix = if what == "build" { String::new() } else { format!("{what} ") };
        self.judge(plan.run, &prefix, &exit).await
    }

    fn prepare_step(
        &self,
        plan: &Plan<'_>,
        what: &str,
        command: &str,
        tree: &Path,
        left: Duration,
    ) -> Result<Spec, PrepareError> {
        let node = &self.node;
        let app = &plan.run.app;
        let isolation = node.isolation(app, Purpose::Build)?;
        let directory = node.layout.run(&plan.run.id).join(what);
        let tmp = fresh_life(&directory, isolation)?;
        let cache = node.layout.cache(app);
        ensure_owned(&cache, isolation)?;
        let home = if node.kind() == Kind::Plain { cache.clone() } else { CACHE.into() };
        let mounts = vec![Mount { source: cache, target: CACHE.into() }];
        Ok(Spec {
            name: plan.run.id.to_string(),
            attempt: 1,
            logs: node.layout.run_logs(app, &plan.run.id),
            command: command.to_owned(),
            env: environment::of_build(app, plan.env, &home, &environment::tmp_inside(node.kind(), &tmp)),
            tree: tree.to_owned(),
            tree_access: Access::Writable,
            tmp,
            directory,
            mounts,
            names: BTreeMap::new(),
            masked: node.masked.clone(),
            isolation,
            limits: node.limits(&format!("{}.{what}", plan.run.id), Some(build_memory()), None),
            io: Io::Logs,
            time_limit_ms: Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            once: None,
            lease: None,
        })
    }

    /// Kept on the server before the build counts as done.
    pub(super) async fn send(&self, digest: &Digest, archive: &Path) -> Result<(), Failure> {
        let body = images::file_body(archive)
            .map_err(|error| Failure::before_start(format!("reading {}: {error}", archive.display())))?;
        self.node
            .client
            .put_artifact(digest, body)
            .await
            .map_err(|error| Failure::before_start(format!("keeping the artifact: {}", chain(&error))))
    }

    /// The tree is where the first instances will look for it. A test may have changed it: then it is fetched.
    async fn settle(&self, plan: &Plan<'_>, tree: &Path, digest: &Digest) {
        let artifacts = &self.node.artifacts;
        let adopted = match (self.node.kind(), plan.test) {
            (Kind::Plain, test) => {
                let archive = test.map(|_| tree.with_extension("tar"));
                artifacts.adopt_in_place(tree, digest, archive).await.map_err(|error| chain(&error))
            }
            (_, None) => artifacts.adopt(tree, digest).await.map_err(|error| chain(&error)),
            (_, Some(_)) => artifacts.ensure(digest).await.map(drop).map_err(|error| chain(&error)),
        };
        if let Err(error) = adopted {
            tracing::warn!(%digest, error, "the built tree is not kept here; it will be fetched");
        }
    }

    /// Nothing of a build stays but its log, its cache and its artifact.
    pub(super) async fn remove_build(&self, run: &Run) {
        let tree = self.node.layout.build(&run.app, &run.id);
        let cache = self.node.layout.cache(&run.app);
        let is_kept = self.node.artifacts.is_tree(&tree);
        blocking(move || {
            let _ = fs::remove_file(tree.with_extension("tar"));
            if is_kept {
                return;
            }
            match rung_artifact::remove_tree(&tree) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, tree = %tree.display(), "removing a build's directory");
                }
                _ => {}
            }
            if size_of_tree(&cache) > CACHE_MAX_BYTES {
                let _ = rung_artifact::remove_tree(&cache);
            }
        })
        .await;
    }
}

/// A build may take most of the machine, and not so much that the instances beside it are killed.
fn build_memory() -> u64 {
    facts::memory_bytes() / 4 * 3
}

pub(super) async fn pack(tree: &Path, archive: &Path) -> Result<Digest, Failure> {
    let (tree, archive) = (tree.to_owned(), archive.to_owned());
    blocking(move || {
        let file = fs::File::create(&archive).map_err(|error| Failure::of(&error))?;
        let packed = rung_artifact::pack_tree(&tree, io::BufWriter::new(file));
        packed.map(|packed| packed.digest).map_err(|error| Failure::of(&error))
    })
    .await
}

fn give_tree(path: &Path, uid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_tree(&entry?.path(), uid)?;
        }
    }
    Ok(())
}

fn size_of_tree(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size_of_tree(&entry.path())).sum()
}
