//! What an instance sees: a fresh root, the tree at `/app`, its volumes, a private `/tmp`, and the machine's programs.
//!
//! Every top-level directory of the machine is bound in, except those that are made new (`/tmp`, `/proc`, `/dev`,
//! `/app`). Where a volume is mounted at a path that the machine does not have, the directories above it are made new
//! and their entries bound one by one, so nothing is ever created on the machine itself.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::shim::kernel;
use crate::shim::protocol::{Access, Isolation, Mount, Spec};

/// Where the tree is seen. Build and run see it at the same path: virtual environments embed paths.
pub const APP: &str = "/app";

/// Made new in every sandbox.
const OWN: [&str; 4] = ["/tmp", "/proc", "/dev", APP];

/// Without these no command runs.
const NEEDED: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"];

/// Files there make nobody mightier.
const TAME: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

#[derive(Debug, thiserror::Error)]
#[error("{act} {path}: {source}")]
pub struct SandboxError {
    act: &'static str,
    path: String,
    source: io::Error,
}

type Result<T> = std::result::Result<T, SandboxError>;

fn failed<E: Into<io::Error>>(act: &'static str, path: &Path) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError { act, path: path.display().to_string(), source: source.into() }
}

/// Makes the sandbox and moves this process into it. Runs in the init, in new mount and PID namespaces.
pub fn enter(spec: &Spec) -> Result<()> {
    // What is made here is for the instance's user to see.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let root = spec.directory.join("root");
    // Mounts of the machine go on to come and go here, and nothing made here is seen there.
    mount_at(None, Path::new("/"), None, MsFlags::MS_SLAVE | MsFlags::MS_REC, None)?;
    make_dir(&root)?;
    mount_tmpfs(&root, "mode=0755,size=1m")?;

    let sandbox = Sandbox { root: &root, spec };
    sandbox.bind_machine()?;
    sandbox.make_dev()?;
    sandbox.make_proc()?;
    sandbox.bind_tmp()?;
    sandbox.bind_tree()?;
    for mount in &spec.mounts {
        sandbox.bind_mount(mount)?;
    }
    sandbox.name_the_user()?;
    sandbox.name_the_services()?;
    sandbox.mask()?;

    chdir(&root).map_err(failed("entering", &root))?;
    pivot_root(".", ".").map_err(failed("making a root of", &root))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leaving the machine's root from", &root))?;
    let slash = Path::new("/");
    mount_at(None, slash, None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, None)?;
    chdir(APP).map_err(failed("entering", Path::new(APP)))
}

struct Sandbox<'a> {
    root: &'a Path,
    spec: &'a Spec,
}

impl Sandbox<'_> {
    fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn bind_machine(&self) -> Result<()> {
        let slash = Path::new("/");
        for entry in fs::read_dir(slash).map_err(failed("listing", slash))? {
            let path = entry.map_err(failed("listing", slash))?.path();
            if OWN.iter().any(|own| Path::new(own) == path) {
                continue;
            }
            let exposed = self.expose(&path, &path, self.machine_attributes());
            // Somebody's stale network mount must not keep every instance from starting.
            if NEEDED.iter().any(|needed| Path::new(needed) == path) || self.leads_to_a_mount(&path) {
                exposed?;
            }
        }
        Ok(())
    }

    fn leads_to_a_mount(&self, path: &Path) -> bool {
        self.spec.mounts.iter().any(|mount| mount.target.starts_with(path))
    }

    /// As root the machine is read-only inside; inside a user namespace it is the user's own, as outside.
    fn machine_attributes(&self) -> u64 {
        match self.spec.isolation {
            Isolation::OwnUser { .. } => libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
            Isolation::UserNamespace | Isolation::Plain => libc::MOUNT_ATTR_NOSUID,
        }
    }

    /// Binds `source` at `target`, or, when something is to be mounted below it that is not there, makes `target` new
    /// and exposes the entries one by one.
    fn expose(&self, source: &Path, target: &Path, set: u64) -> Result<()> {
        let inside = self.inside(target);
        let kind = fs::symlink_metadata(source).map_err(failed("looking at", source))?.file_type();
        if kind.is_symlink() {
            let to = fs::read_link(source).map_err(failed("reading", source))?;
            return symlink(&to, &inside).map_err(failed("linking", &inside));
        }
        if !kind.is_dir() {
            fs::write(&inside, "").map_err(failed("making", &inside))?;
            bind(source, &inside)?;
            return attributes(&inside, set);
        }
        make_dir(&inside)?;
        let wanted = |mount: &Mount| {
            mount.target.starts_with(target) && mount.target != target && {
                let below = mount.target.strip_prefix(target).unwrap_or(Path::new(""));
                !source.join(below).is_dir()
            }
        };
        if !self.spec.mounts.iter().any(wanted) {
            bind(source, &inside)?;
            return attributes(&inside, set);
        }
        for entry in fs::read_dir(source).map_err(failed("listing", source))? {
            let name = entry.map_err(failed("listing", source))?.file_name();
            self.expose(&source.join(&name), &target.join(&name), set)?;
        }
        Ok(())
    }

    fn make_dev(&self) -> Result<()> {
        let dev = self.inside(Path::new("/dev"));
        make_dir(&dev)?;
        mount_tmpfs(&dev, "mode=0755,size=1m")?;
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let (source, inside) = (Path::new("/dev").join(name), dev.join(name));
            fs::write(&inside, "").map_err(failed("making", &inside))?;
            bind(&source, &inside)?;
        }
        let links = [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
        for (name, to) in links.into_iter().chain([("ptmx", "pts/ptmx")]) {
            symlink(to, dev.join(name)).map_err(failed("linking", &dev.join(name)))?;
        }
        let pts = dev.join("pts");
        make_dir(&pts)?;
        let options = Some("newinstance,ptmxmode=0666,mode=0620");
        mount_at(Some("devpts"), &pts, Some("devpts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, options)?;
        let shm = dev.join("shm");
        make_dir(&shm)?;
        // It counts against the memory limit where there is one; 64 MB is what container engines give.
        mount_tmpfs(&shm, "mode=1777,size=64m")
    }

    fn make_proc(&self) -> Result<()> {
        let proc = self.inside(Path::new("/proc"));
        make_dir(&proc)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount_at(Some("proc"), &proc, Some("proc"), flags, None)
    }

    /// `/tmp` and `/var/tmp` are the same private directory.
    fn bind_tmp(&self) -> Result<()> {
        let tmp = self.inside(Path::new("/tmp"));
        make_dir(&tmp)?;
        for place in [tmp, self.inside(Path::new("/var/tmp"))] {
            if place.is_dir() {
                bind(&self.spec.tmp, &place)?;
                attributes(&place, TAME)?;
            }
        }
        Ok(())
    }

    fn bind_tree(&self) -> Result<()> {
        let app = Path::new(APP);
        let inside = self.inside(app);
        match self.spec.tree_access {
            // Expanded like the machine when a volume lies below it in a directory that the tree does not have.
            Access::ReadOnly => self.expose(&self.spec.tree, app, libc::MOUNT_ATTR_RDONLY | TAME),
            Access::Writable => {
                make_dir(&inside)?;
                bind(&self.spec.tree, &inside)?;
                attributes(&inside, TAME)
            }
        }
    }

    fn bind_mount(&self, mount: &Mount) -> Result<()> {
        let inside = self.inside(&mount.target);
        self.refuse_links(&mount.target)?;
        if !inside.is_dir() {
            fs::create_dir_all(&inside).map_err(failed("making the mount point", &mount.target))?;
        }
        bind(&mount.source, &inside)?;
        attributes(&inside, TAME)
    }

    /// The machine's root is still the root: a link on the way (of the tree's author, say) would lead out of the sandbox.
    fn refuse_links(&self, target: &Path) -> Result<()> {
        let links = target.ancestors().filter(|part| self.inside(part).is_symlink()).last();
        match links {
            None => Ok(()),
            Some(link) => {
                let why = format!("it goes through the link {}; name the real path", link.display());
                Err(failed("mounting a volume at", target)(io::Error::other(why)))
            }
        }
    }

    /// Programs look their own user up, and fail in odd ways when there is none.
    fn name_the_user(&self) -> Result<()> {
        let Isolation::OwnUser { uid, gid } = self.spec.isolation else { return Ok(()) };
        let lines = [
            ("/etc/passwd", format!("app:x:{uid}:{gid}:{}:/tmp:/bin/sh\n", self.spec.name)),
            ("/etc/group", format!("app:x:{gid}:\n")),
        ];
        lines.iter().try_for_each(|(path, line)| self.prepend(Path::new(path), line))
    }

    /// Services have names like hosts, for the programs that look hosts up.
    fn name_the_services(&self) -> Result<()> {
        if self.spec.names.is_empty() {
            return Ok(());
        }
        let lines: String =
            self.spec.names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
        self.prepend(Path::new("/etc/hosts"), &lines)
    }

    /// Shows a copy of the machine's file that begins with this. What the machine does not have is not made, and a link
    /// may lead out of the sandbox: both are left as they are.
    fn prepend(&self, path: &Path, lines: &str) -> Result<()> {
        let inside = self.inside(path);
        if !inside.is_file() || inside.is_symlink() {
            return Ok(());
        }
        let machine = fs::read(path).map_err(failed("reading", path))?;
        let copy = self.spec.directory.join(path.file_name().expect("these paths end with a name"));
        let content = [lines.as_bytes(), &machine].concat();
        fs::write(&copy, content).map_err(failed("writing", &copy))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644))
            .map_err(failed("opening to all", &copy))?;
        bind(&copy, &inside)?;
        attributes(&inside, libc::MOUNT_ATTR_RDONLY)
    }

    /// Rung's own data is out of sight, whatever its modes say.
    fn mask(&self) -> Result<()> {
        for path in &self.spec.masked {
            let path = &fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let inside = self.inside(path);
            let shown = self.spec.mounts.iter().any(|mount| mount.target.starts_with(path));
            if inside.is_dir() && !shown {
                mount_tmpfs(&inside, "mode=0000,size=4k")?;
                attributes(&inside, libc::MOUNT_ATTR_RDONLY)?;
            }
        }
        Ok(())
    }
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed("making", path)),
    }
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(failed("binding", source))
}

fn attributes(path: &Path, set: u64) -> Result<()> {
    kernel::mount_attributes(path, set).map_err(failed("restricting the mount at", path))
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<()> {
    mount_at(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
}

fn mount_at(
    source: Option<&str>,
    path: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(source, path, kind, flags, options).map_err(failed("mounting", path))
}
