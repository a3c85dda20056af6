//! Repositories that are pushed to: one for each app, kept as small as a buffer, served by the machine's own git.
//!
//! `git http-backend` speaks git's protocol; a repository's only hook is the gate (`rung git-gate`), which deploys what
//! is pushed and says yes or no. While it does, what was pushed lies in git's quarantine: a push that is refused leaves
//! neither a branch nor an object. A push whose client has gone goes on to its end, like any deployment; what ends with
//! the server is the branch that has not moved yet, and the next push moves it.
//!
//! Pushes to an app take turns, from the first byte to the branch that has moved: else two could deploy in one order and
//! move the branch in the other.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rung_api::{Code, ErrorBody};
use rung_model::AppName;
use tokio::process::Command;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// What one push may bring. Above it git refuses while it reads, before anything is kept.
const PUSH_MAX_BYTES: u64 = 1 << 30;

/// A repository that has grown beyond this is begun anew: the history is the team's, ours is only what a push builds on.
const REPOSITORY_MAX_BYTES: u64 = 2 << 30;

/// Each push leaves one pack; reading many is slow.
const PACKS_MAX: usize = 20;

/// How long a push waits for the one before it, which may be about to end.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// Each is a handful of processes, most of them waiting.
const AT_ONCE: usize = 16;

/// What an ended server left of pushes is older than this; a push that goes on touches its files more often.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(3600);

/// Why a repository can't be served.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("git is not installed on the server's machine")]
    Missing,
    #[error("{act}")]
    Io { act: String, source: io::Error },
    #[error("{act}: git said {said:?}")]
    Failed { act: &'static str, said: String },
    #[error("the gate at {path} can't be executed")]
    Gate { path: String },
}

impl From<GitError> for ErrorBody {
    fn from(error: GitError) -> Self {
        let body = Self::new(Code::Unavailable, crate::trees::chain(&error));
        match error {
            GitError::Missing => body.hint("install it there (apt-get install git), or use `rung deploy`"),
            GitError::Gate { .. } => body.hint("is the data directory on a file system mounted noexec?"),
            GitError::Io { .. } | GitError::Failed { .. } => {
                body.hint("`rung deploy` works without git; is the disk full? `rung doctor` tells")
            }
        }
    }
}

fn io_error(act: impl Into<String>) -> impl FnOnce(io::Error) -> GitError {
    let act = act.into();
    move |source| match source.kind() {
        io::ErrorKind::NotFound if act.starts_with("starting git") => GitError::Missing,
        _ => GitError::Io { act, source },
    }
}

/// Who pushes: as the person's own git said it, and by which token. The gate deploys with that token, so that it may what
/// the person may, and is told what the person is told.
#[derive(Clone)]
pub struct Pusher {
    pub by: String,
    /// `None`: by the socket of the machine's owner.
    pub token: Option<String>,
}

impl std::fmt::Debug for Pusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pusher").field("by", &self.by).finish_non_exhaustive()
    }
}

/// Whether a push may deploy now, or another one is at it.
#[derive(Debug)]
pub enum Turn {
    Mine(#[allow(dead_code, reason = "held until the push has ended")] OwnedMutexGuard<()>),
    Taken,
}

/// What a push or a fetch holds while it goes on.
#[derive(Debug)]
pub struct Place {
    pub repository: PathBuf,
    /// Where the gate may check a tree out; removed at the end.
    pub scratch: PathBuf,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays is removed by the next round of pruning.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

#[derive(Debug)]
pub struct Repositories {
    root: PathBuf,
    /// Rung's own program file, which the gate executes.
    program: PathBuf,
    api: PathBuf,
    turns: Mutex<BTreeMap<AppName, Arc<tokio::sync::Mutex<()>>>>,
    places: Arc<Semaphore>,
    count: AtomicU64,
}

impl Repositories {
    /// Touches nothing yet: who never pushes has no directory for it.
    pub fn new(data: &Path) -> Self {
        Self {
            root: data.join("git"),
            // Without a path the gate can't be executed, and a push says so.
            program: std::env::current_exe().unwrap_or_default(),
            api: data.join("api.sock"),
            turns: Mutex::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            count: AtomicU64::new(0),
        }
    }

    pub fn parent(&self) -> PathBuf {
        self.root.join("repositories")
    }

    fn path(&self, app: &AppName) -> PathBuf {
        self.parent().join(format!("{app}.git"))
    }

    pub fn exists(&self, app: &AppName) -> bool {
        self.path(app).is_dir()
    }

    fn scratch(&self) -> PathBuf {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.root.join("scratch").join(format!("{}-{count}", std::process::id()))
    }

    /// The machine's git, which reads nobody's settings but ours.
    pub fn git(&self) -> Command {
        let mut command = Command::new("git");
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.env("HOME", &self.root).env("LC_ALL", "C.UTF-8");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        for (name, value) in SETTINGS {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.arg("-c").arg(format!("receive.maxInputSize={PUSH_MAX_BYTES}"));
        let mut hooks = std::ffi::OsString::from("core.hooksPath=");
        hooks.push(self.root.join("hooks"));
        command.arg("-c").arg(hooks);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the gate is told, beside what git tells a hook.
    pub fn tell_gate(
        &self,
        command: &mut Command,
        app: &AppName,
        pusher: &Pusher,
        turn: &Turn,
        place: &Place,
    ) {
        let mut api = std::ffi::OsString::from("unix:");
        api.push(&self.api);
        command.env("RUNG_GATE_PROGRAM", &self.program).env("RUNG_GATE_API", api);
        command.env("RUNG_GATE_APP", app.as_str()).env("RUNG_GATE_BY", &pusher.by);
        if let Some(token) = &pusher.token {
            command.env("RUNG_GATE_TOKEN", token);
        }
        command.env("RUNG_GATE_SCRATCH", &place.scratch);
        command.env("RUNG_GATE_TURN", if matches!(turn, Turn::Mine(_)) { "mine" } else { "taken" });
    }

    /// Makes sure that the app has a repository, and that the gate stands before it.
    pub async fn open(&self, app: &AppName) -> Result<Place, GitError> {
        let permit = Arc::clone(&self.places).acquire_owned().await.expect("it is never closed");
        self.ensure_gate()?;
        let place = Place { repository: self.path(app), scratch: self.scratch(), _permit: permit };
        let making = || io_error(format!("making the directory {}", place.scratch.display()));
        std::fs::create_dir_all(&place.scratch).map_err(making())?;
        std::fs::create_dir_all(self.parent()).map_err(making())?;
        if !place.repository.is_dir() {
            // Made elsewhere and renamed, so that there is none that is half made.
            let fresh = place.scratch.join("repository.git");
            let mut init = self.git();
            init.args(["init", "--bare", "--quiet", "--template=", "--initial-branch=main"]).arg(&fresh);
            run("making a repository", init).await?;
            if let Err(error) = std::fs::rename(&fresh, &place.repository)
                && !place.repository.is_dir()
            {
                return Err(io_error(format!("making the repository of {app}"))(error));
            }
        }
        Ok(place)
    }

    fn ensure_gate(&self) -> Result<(), GitError> {
        use std::os::unix::fs::PermissionsExt as _;
        let hooks = self.root.join("hooks");
        let gate = hooks.join("pre-receive");
        let making = || io_error(format!("writing {}", gate.display()));
        if !std::fs::read(&gate).is_ok_and(|found| found == GATE.as_bytes()) {
            std::fs::create_dir_all(&hooks).map_err(making())?;
            let unfinished = hooks.join(format!("pre-receive.{}.tmp", std::process::id()));
            std::fs::write(&unfinished, GATE).map_err(making())?;
            std::fs::set_permissions(&unfinished, std::fs::Permissions::from_mode(0o700)).map_err(making())?;
            std::fs::rename(&unfinished, &gate).map_err(making())?;
        }
        // Git passes over a hook that it can't execute, and would take every push without a deploy.
        let executable = |path: &Path| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
        match [&gate, &self.program].into_iter().find(|path| !executable(path)) {
            None => Ok(()),
            Some(path) => Err(GitError::Gate { path: path.display().to_string() }),
        }
    }

    fn turn_of(&self, app: &AppName) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.turns.lock().expect("no panic while held").entry(app.clone()).or_default())
    }

    /// Waits a moment for the push before.
    pub async fn turn(&self, app: &AppName) -> Turn {
        match tokio::time::timeout(TURN_WITHIN, self.turn_of(app).lock_owned()).await {
            Ok(guard) => Turn::Mine(guard),
            Err(_) => Turn::Taken,
        }
    }

    /// Forgets what was pushed, unless a push goes on: then it is asked for again by the next round of pruning.
    pub async fn forget(&self, app: &AppName) -> Result<(), GitError> {
        let repository = self.path(app);
        let Ok(_turn) = self.turn_of(app).try_lock_owned() else { return Ok(()) };
        if !repository.is_dir() {
            return Ok(());
        }
        let removing = || io_error(format!("removing the repository of {app}"));
        let doomed = self.scratch();
        std::fs::create_dir_all(self.root.join("scratch")).map_err(removing())?;
        std::fs::rename(&repository, &doomed).map_err(removing())?;
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&doomed)).await;
        removed
            .map_err(|_| GitError::Failed { act: "removing a repository", said: String::new() })?
            .map_err(removing())
    }

    /// Keeps a repository small; to be called in its turn. `true`: it had grown so large that it was begun anew.
    pub async fn tidy(&self, place: &Place) -> Result<bool, GitError> {
        let objects = place.repository.join("objects");
        remove_old(&objects, |name| name.starts_with("tmp_objdir-"));
        let (packs, bytes) = packed(&objects);
        if packs <= PACKS_MAX && bytes <= REPOSITORY_MAX_BYTES {
            return Ok(false);
        }
        let mut gc = self.git();
        gc.arg("--git-dir").arg(&place.repository).args(["gc", "--quiet", "--prune=now"]);
        run("packing a repository anew", gc).await?;
        let (_, bytes) = packed(&objects);
        if bytes <= REPOSITORY_MAX_BYTES {
            return Ok(false);
        }
        std::fs::rename(&place.repository, place.scratch.join("outgrown"))
            .map_err(io_error("removing a repository that has grown too large"))?;
        Ok(true)
    }

    /// Removes repositories of apps that are not there, and what an ended server left behind.
    pub async fn prune(&self, is_there: impl Fn(&AppName) -> bool) -> Result<(), GitError> {
        remove_old(&self.root.join("scratch"), |_| true);
        let Ok(listed) = std::fs::read_dir(self.parent()) else { return Ok(()) };
        let old = listed.flatten().filter(is_old);
        let apps =
            old.filter_map(|entry| AppName::new(entry.file_name().to_str()?.strip_suffix(".git")?).ok());
        for app in apps.filter(|app| !is_there(app)).collect::<Vec<_>>() {
            self.forget(&app).await?;
            let mut turns = self.turns.lock().expect("no panic while held");
            // A push that goes on or waits has it, too: with another one beside it there would be two turns.
            if turns.get(&app).is_some_and(|turn| Arc::strong_count(turn) == 1) {
                turns.remove(&app);
            }
        }
        Ok(())
    }
}

/// The program is named by the environment, so that no path is ever read by a shell.
const GATE: &str = "#!/bin/sh\nexec \"$RUNG_GATE_PROGRAM\" git-gate\n";

/// Beside the limits: nothing runs after a push or beside it, and one push can't take the machine's memory.
const SETTINGS: &[(&str, &str)] = &[
    // Packs are kept as they come: git would hold each object of a small push in memory to unpack it.
    ("receive.unpackLimit", "1"),
    ("receive.fsckObjects", "true"),
    // Old tools wrote these, and they harm nobody.
    ("receive.fsck.zeroPaddedFilemode", "warn"),
    ("receive.fsck.missingSpaceBeforeDate", "warn"),
    ("receive.fsck.badTimezone", "warn"),
    // A clone without its history (as CI makes it) has all that a deploy needs.
    ("receive.shallowUpdate", "true"),
    ("receive.autogc", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("pack.threads", "1"),
    ("core.bigFileThreshold", "16m"),
    ("http.receivepack", "true"),
    ("http.getanyfile", "false"),
];

/// Runs git to its end.
async fn run(act: &'static str, mut command: Command) -> Result<(), GitError> {
    let output = command.output().await.map_err(io_error("starting git"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(GitError::Failed { act, said })
}

pub(crate) fn starting_git() -> impl FnOnce(io::Error) -> GitError {
    io_error("starting git")
}

/// How many packs there are, and how much is in them.
fn packed(objects: &Path) -> (usize, u64) {
    let Ok(listed) = std::fs::read_dir(objects.join("pack")) else { return (0, 0) };
    let files = listed.flatten().filter_map(|entry| {
        let is_pack = entry.file_name().as_encoded_bytes().ends_with(b".pack");
        Some((is_pack, entry.metadata().ok()?.len()))
    });
    files.fold((0, 0), |(packs, bytes), (is_pack, size)| (packs + usize::from(is_pack), bytes + size))
}

fn is_old(entry: &std::fs::DirEntry) -> bool {
    let modified = entry.metadata().and_then(|found| found.modified());
    let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age > LEFT_BEHIND_AFTER)
}

/// What can't be removed now can be in the next round.
fn remove_old(directory: &Path, concerned: impl Fn(&str) -> bool) {
    let Ok(listed) = std::fs::read_dir(directory) else { return };
    for entry in listed.flatten().filter(is_old) {
        if concerned(&entry.file_name().to_string_lossy()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
