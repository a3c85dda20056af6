//! A build that makes an image: pulled by its name, or built by the engine from a Dockerfile. What is kept as the
//! artifact says which image it is; see [`crate::images`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rung_api::wire::Stream;
use rung_model::image::DEFAULT_REGISTRY;
use rung_model::{Digest, ImageBuild, ImageName, ImageSource};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::artifacts::{blocking, chain};
use crate::containers::image_name;
use crate::driver::Start;
use crate::driver::docker::{APP_LABEL, ContainerSpec, Labels};
use crate::engine::Image;
use crate::environment;
use crate::images::{self, ARCHIVE, ImageError, Pinned};
use crate::runs::build::{Plan, pack};
use crate::runs::{Failure, RunsDriver};
use crate::shim::logger::Logger;
use crate::shim::protocol::Io;

/// In the place of a registry, in the names that Podman gives to what was made here.
const MADE_HERE: &str = "localhost";
/// In the run's directory: the artifact's tree, its archive, and where the build's tool writes the image's id.
const TREE: &str = "image";
const PACKED: &str = "image-packed.tar";
const ID_FILE: &str = "image-id";
/// What builds from Dockerfiles: the engine's own tool, which knows its build kit, `.dockerignore` and base images'
/// registries.
const TOOLS: [&str; 2] = ["docker", "podman"];
/// A Dockerfile that the engine's older builder does not understand is built by its newer one.
const NEEDS_BUILDKIT: &str = "requires BuildKit";

impl RunsDriver {
    pub(super) async fn build_image(&self, plan: &Plan<'_>, build: &ImageBuild) -> Result<Digest, Failure> {
        let until = Instant::now() + plan.run.timeout;
        self.end_lives(plan.run).await;
        let home = self.node.layout.run(&plan.run.id);
        clean(&home)?;
        let (pinned, image) = match &build.source {
            ImageSource::Name { image } => self.find_named(plan, image).await?,
            ImageSource::Dockerfile { path } => self.build_dockerfile(plan, path, &home, until).await?,
        };
        require_command(&image, build)?;
        if let Some(test) = plan.test {
            self.test_image(plan, test, &image, &image_name(&build.source), until).await?;
        }
        self.keep_image(plan, &pinned, &home).await
    }

    /// The tag's image of this moment. One that was made on this machine and that no registry has is taken as it is.
    async fn find_named(&self, plan: &Plan<'_>, name: &ImageName) -> Result<(Pinned, Image), Failure> {
        let images = &self.node.images;
        let local = images.engine().image(name.with_tag().as_str()).await.ok();
        let is_own = |image: &Image| image.repo_digests.as_ref().is_none_or(Vec::is_empty);
        if let Some(image) = local.clone().filter(is_own) {
            self.say(
                plan,
                &format!("{name} was made on this machine, and is in no registry: taken as it is"),
            );
            return Ok((pinned(name, &image, None), image));
        }
        self.say(plan, &format!("pulling {}", name.with_tag()));
        let pulled = match (images.pull(name).await, local) {
            (Ok(pulled), _) => pulled,
            // Engines of a newer kind note a digest for what was made here, too.
            (Err(ImageError::Denied { .. } | ImageError::Missing { .. }), Some(image))
                if name.registry() == DEFAULT_REGISTRY =>
            {
                self.say(plan, &format!("{DEFAULT_REGISTRY} has no {name}: taken as it is on this machine"));
                return Ok((pinned(name, &image, None), image));
            }
            (Err(_), Some(image)) if name.registry() == MADE_HERE => {
                self.say(plan, &format!("{name} was made on this machine: taken as it is"));
                return Ok((pinned(name, &image, None), image));
            }
            (Err(error), _) => return Err(Failure::of(&error)),
        };
        let pull = pulled.digest.as_ref().map(|digest| name.at(digest));
        match &pulled.digest {
            Some(digest) => self.say(plan, &format!("{name} is {digest}: the release is pinned to it")),
            None => self.say(plan, "the engine does not say the image's digest: the image itself is kept"),
        }
        Ok((pinned(name, &pulled.image, pull), pulled.image))
    }

    async fn build_dockerfile(
        &self,
        plan: &Plan<'_>,
        path: &str,
        home: &Path,
        until: Instant,
    ) -> Result<(Pinned, Image), Failure> {
        let engine = self.node.images.engine();
        let socket = engine.socket().await.map_err(|error| Failure::of(&error))?;
        let context = self.unpack(plan).await?;
        if !context.join(path).is_file() {
            return Err(Failure::before_start(format!(
                "there is no {path} in what was deployed (is it named in .gitignore or .rungignore?)"
            )));
        }
        let id_file = home.join(ID_FILE);
        let tool = |buildkit: Buildkit| build_command(plan, &context, path, &id_file, &socket, buildkit);
        let said = Arc::new(Mutex::new(Said::default()));
        let mut outcome = self.run_tool(plan, tool(Buildkit::AsItIs)?, &said, until).await?;
        if !outcome && said.lock().expect("no panic while held").needs_buildkit {
            self.say(plan, "the Dockerfile needs BuildKit: building with it");
            outcome = self.run_tool(plan, tool(Buildkit::Wanted)?, &said, until).await?;
        }
        if !outcome {
            let log_tail = said.lock().expect("no panic while held").last_lines();
            return Err(Failure { reason: format!("building {path} failed"), exit_code: Some(1), log_tail });
        }
        let id = fs::read_to_string(&id_file)
            .map_err(|error| Failure::before_start(format!("reading the built image's id: {error}")))?;
        let image = engine.image(id.trim()).await.map_err(|error| Failure::of(&error))?;
        self.say(plan, &format!("built {}", image.id));
        let name = format!("of {path}");
        Ok((Pinned { name, id: image.id.clone(), pull: None }, image))
    }

    /// Whether it succeeded.
    async fn run_tool(
        &self,
        plan: &Plan<'_>,
        mut command: tokio::process::Command,
        said: &Arc<Mutex<Said>>,
        until: Instant,
    ) -> Result<bool, Failure> {
        let mut child =
            command.spawn().map_err(|error| Failure::before_start(format!("starting the build: {error}")))?;
        let logs = self.node.layout.run_logs(&plan.run.app, &plan.run.id);
        let pipes = [
            child.stdout.take().map(|pipe| follow(pipe, Stream::Stdout, logs.clone(), said.clone())),
            child.stderr.take().map(|pipe| follow(pipe, Stream::Stderr, logs, said.clone())),
        ];
        let left = until.saturating_duration_since(Instant::now());
        let Ok(ended) = tokio::time::timeout(left, child.wait()).await else {
            // Dropped, it is killed, and the engine gives the build up.
            return Err(Failure::before_start(format!(
                "took longer than {}",
                crate::health::words(plan.run.timeout)
            )));
        };
        for pipe in pipes.into_iter().flatten() {
            let _ = pipe.await;
        }
        let status = ended.map_err(|error| Failure::before_start(format!("awaiting the build: {error}")))?;
        Ok(status.success())
    }

    /// The gate: the command in a container of the image, without config and secrets.
    async fn test_image(
        &self,
        plan: &Plan<'_>,
        test: &str,
        image: &Image,
        image_name: &str,
        until: Instant,
    ) -> Result<(), Failure> {
        let (node, run) = (&self.node, plan.run);
        let left = until.saturating_duration_since(Instant::now());
        let directory = node.layout.run(&run.id).join("test");
        let spec = ContainerSpec {
            name: format!("{}-test", run.id),
            attempt: 1,
            directory: directory.clone(),
            logs: node.layout.run_logs(&run.app, &run.id),
            image: image.id.clone(),
            image_name: image_name.to_owned(),
            config: image.config(),
            command: Some(test.to_owned()),
            env: environment::of_build_image(&run.app, plan.env),
            mounts: Vec::new(),
            fresh: Vec::new(),
            limits: node.limits(&format!("{}.test", run.id), None, None),
            port: None,
            // A build calls nobody.
            calls: None,
            names: Default::default(),
            io: Io::Logs,
            time_limit_ms: Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            labels: Labels::from([(APP_LABEL, run.app.to_string())]),
        };
        let start = Start::Container(Box::new(spec));
        node.driver.spawn(&start).await.map_err(|error| Failure::of(&error))?;
        let exit = node.driver.ended(&directory, 1).await;
        node.driver.release(&directory).await;
        self.judge(run, "test ", &exit).await
    }

    /// On the server before the build counts as done, and by our name in the engine.
    async fn keep_image(&self, plan: &Plan<'_>, pinned: &Pinned, home: &Path) -> Result<Digest, Failure> {
        let images = &self.node.images;
        let (tree, packed) = (home.join(TREE), home.join(PACKED));
        images::write_tree(tree.clone(), pinned).await.map_err(|error| Failure::of(&error))?;
        if pinned.pull.is_none() {
            self.say(plan, "keeping the image with the release");
            images.save(&pinned.id, &tree.join(ARCHIVE)).await.map_err(|error| Failure::of(&error))?;
        }
        let digest = pack(&tree, &packed).await?;
        self.send(&digest, &packed).await?;
        images.name(&pinned.id, &digest).await.map_err(|error| Failure::before_start(chain(&error)))?;
        clean(home)?;
        Ok(digest)
    }

    fn say(&self, plan: &Plan<'_>, text: &str) {
        let logs = self.node.layout.run_logs(&plan.run.app, &plan.run.id);
        let _ = fs::create_dir_all(&logs);
        Logger::new(&logs).say(text);
    }
}

fn pinned(name: &ImageName, image: &Image, pull: Option<ImageName>) -> Pinned {
    Pinned { name: name.to_string(), id: image.id.clone(), pull }
}

fn require_command(image: &Image, build: &ImageBuild) -> Result<(), Failure> {
    if build.commandless.is_empty() || !image.config().own_command().is_empty() {
        return Ok(());
    }
    let services: Vec<String> = build.commandless.iter().map(|name| format!("[services.{name}]")).collect();
    Err(Failure::before_start(format!(
        "the image {} has no command of its own; write `command` below {}",
        image_name(&build.source),
        services.join(" and ")
    )))
}

/// What an earlier try left.
fn clean(home: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::before_start(format!("cleaning {}: {error}", home.display()));
    let _ = rung_artifact::remove_tree(&home.join(TREE));
    for file in [PACKED, ID_FILE] {
        let _ = fs::remove_file(home.join(file));
    }
    fs::create_dir_all(home).map_err(failed)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buildkit {
    /// As the machine's tool does by itself.
    AsItIs,
    Wanted,
}

fn build_command(
    plan: &Plan<'_>,
    context: &Path,
    path: &str,
    id_file: &Path,
    socket: &Path,
    buildkit: Buildkit,
) -> Result<tokio::process::Command, Failure> {
    let program = TOOLS.iter().find_map(|tool| find_program(tool)).ok_or_else(|| {
        Failure::before_start(
            "building from a Dockerfile needs the `docker` command beside the engine (or `podman`): install docker.io or docker-cli"
                .to_owned(),
        )
    })?;
    let is_podman = program.ends_with("podman");
    let host = format!("unix://{}", socket.display());
    let mut command = tokio::process::Command::new(&program);
    if is_podman {
        command.args(["--remote", "--url", &host]);
    } else {
        command.env("DOCKER_HOST", &host).env("BUILDKIT_PROGRESS", "plain");
        if buildkit == Buildkit::Wanted {
            command.env("DOCKER_BUILDKIT", "1");
        }
    }
    command.args(["build", "--iidfile"]).arg(id_file).arg("--file").arg(context.join(path));
    // What the app file says is no secret; secrets and config are not given to builds.
    let proxies =
        environment::ways_to_the_network().filter(|(name, _)| name.to_lowercase().ends_with("_proxy"));
    for (name, value) in proxies.chain(plan.env.clone()) {
        command.arg("--build-arg").arg(format!("{name}={value}"));
    }
    command.arg(context).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

fn find_program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// What the build said last, for who reads why it failed.
#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    needs_buildkit: bool,
}

impl Said {
    fn take(&mut self, text: &str) {
        self.needs_buildkit |= text.contains(NEEDS_BUILDKIT);
        self.lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        let excess = self.lines.len().saturating_sub(crate::logs::TAIL_LINES);
        self.lines.drain(..excess);
    }

    fn last_lines(&self) -> Vec<String> {
        self.lines.clone()
    }
}

fn follow(
    mut pipe: impl AsyncRead + Unpin + Send + 'static,
    stream: Stream,
    logs: PathBuf,
    said: Arc<Mutex<Said>>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut logger = Logger::new(&logs);
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
            said.lock().expect("no panic while held").take(&String::from_utf8_lossy(&chunk[..count]));
            let bytes = chunk[..count].to_vec();
            logger = blocking(move || {
                logger.take(stream, &bytes);
                logger
            })
            .await;
        }
        blocking(move || logger.finish()).await;
    })
}
