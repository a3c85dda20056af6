//! The data directory: who may use it, what lies in it, and the lock that lets one `rung up` at a time have it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use ring::rand::{SecureRandom, SystemRandom};
use rung_api::seal::write_private;
use rung_cli::edge::Hinted;

/// The kernel's bound for the path of a socket, and the longest name of one that lies in the directory itself.
const SOCKET_PATH_MAX: usize = 107;
const LONGEST_SOCKET: &str = "/agent.sock";

/// Said before anything is made there.
fn ensure_short(root: &Path) -> anyhow::Result<()> {
    let whole = std::path::absolute(root).with_context(|| format!("looking at {}", root.display()))?;
    let most = SOCKET_PATH_MAX - LONGEST_SOCKET.len();
    let length = whole.as_os_str().len();
    if length > most {
        let message =
            format!("the data directory's path is {length} bytes long, {most} at most: {}", whole.display());
        return Err(Hinted::usage(message, "sockets lie in it; choose a shorter one with --data").into());
    }
    Ok(())
}

/// A data directory that is ours until this is dropped (or the process ends).
#[derive(Debug)]
pub struct Data {
    root: PathBuf,
    _lock: Flock<File>,
}

impl Data {
    /// Makes the directory when it is not there, and locks it.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        ensure_short(root)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .with_context(|| format!("making the data directory {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("looking at {}", root.display()))?;
        ensure_private(&root)?;
        let lock = lock(&root)?;
        Ok(Self { root, _lock: lock })
    }

    /// The process that has the data directory now.
    pub fn holder(root: &Path) -> Option<u32> {
        let mut file = File::open(root.join("lock")).ok()?;
        let mut holder = String::new();
        file.read_to_string(&mut holder).ok()?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // What is written there is of one that has ended.
            Ok(_) => None,
            Err(_) => holder.trim().parse().ok(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn seal_key(&self) -> PathBuf {
        self.root.join("secret.key")
    }

    pub fn api_socket(&self) -> PathBuf {
        self.root.join("api.sock")
    }

    pub fn agent_socket(&self) -> PathBuf {
        self.root.join("agent.sock")
    }

    pub fn ingress(&self) -> PathBuf {
        self.root.join("ingress")
    }

    /// The agent says there which app has which user.
    pub fn users(&self) -> PathBuf {
        rung_agent::layout::Layout::new(self.node()).users()
    }

    pub fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    pub fn node_name(&self) -> PathBuf {
        self.root.join("node-name")
    }

    /// Who this machine is to others.
    pub fn trust(&self) -> PathBuf {
        self.root.join("trust")
    }

    pub fn backups(&self) -> PathBuf {
        self.root.join("backups")
    }

    /// The token that guards the API on TCP; made at the first start.
    pub fn ensure_token(&self) -> anyhow::Result<String> {
        let path = self.root.join("token");
        match std::fs::read_to_string(&path) {
            Ok(token) if token.trim().len() >= 32 => Ok(token.trim().to_owned()),
            Ok(_) => bail!("{} holds no token; remove it and a new one is made", path.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
                let token = hex::encode(bytes);
                write_private(&path, token.as_bytes())
                    .with_context(|| format!("writing {}", path.display()))?;
                Ok(token)
            }
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
}

/// Others must not be able to look in: secrets' key and token are there.
fn ensure_private(root: &Path) -> anyhow::Result<()> {
    let found = std::fs::metadata(root).with_context(|| format!("looking at {}", root.display()))?;
    let me = nix::unistd::geteuid().as_raw();
    if found.uid() != me {
        bail!("data directory {} belongs to uid {}, not to {me}", root.display(), found.uid());
    }
    if found.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("taking away others' access to {}", root.display()))?;
    }
    Ok(())
}

/// A rung that was killed in the midst of starting a process leaves a copy of itself for the moment until that process
/// begins, and the copy holds the lock.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);

fn lock(root: &Path) -> anyhow::Result<Flock<File>> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let mut holder = String::new();
    // Only for the message; an empty file is a fine answer.
    let _ = file.read_to_string(&mut holder);
    let began = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.seek(SeekFrom::Start(0))?;
                // A full disk must not keep rung from starting: the lock is held, only its label is missing.
                let _ = write!(lock, "{}", std::process::id());
                return Ok(lock);
            }
            Err((held, Errno::EWOULDBLOCK)) if is_gone(&holder) && began.elapsed() < LET_GO_WITHIN => {
                file = held;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let pid = if holder.is_empty() { "unknown" } else { holder.trim() };
                let message =
                    format!("data directory {} is in use by a running rung (pid {pid})", root.display());
                let hint = "deploy to it with `rung deploy`, or give another one with --data";
                return Err(Hinted::failed(message, hint).into());
            }
            Err((_, error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
    }
}

/// Whether who wrote itself into the lock has ended.
fn is_gone(holder: &str) -> bool {
    holder.trim().parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_of_a_data_directory_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Data::open(&dir.path().join("data")).unwrap();
        let refused = Data::open(first.root()).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "the holder is not named: {refused}");
        drop(first);
        Data::open(&dir.path().join("data")).expect("the lock is free again");
    }

    #[test]
    fn a_directory_that_others_could_read_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let data = Data::open(dir.path()).unwrap();
        let mode = std::fs::metadata(data.root()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let token = data.ensure_token().unwrap();
        assert_eq!(data.ensure_token().unwrap(), token, "the token changed");
    }
}
