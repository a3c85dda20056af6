//! Which cgroups this machine lets the agent make. Version 1 hierarchies and version 2 are both understood.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Controllers that limits are set with.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Where the cgroups of lives are made, and what they can limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups {
    bases: Vec<PathBuf>,
    pub memory: bool,
    pub cpu: bool,
    pub processes: bool,
}

impl Cgroups {
    /// Looks for what can be used, and makes the directories below which lives get theirs. `name` tells this data
    /// directory's lives from another's.
    pub fn detect(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let found = version_2(&mounts, &own, name);
        if found.memory { found } else { version_1(&mounts, &own, name) }
    }

    /// The cgroups of one life.
    pub fn of(&self, life: &str) -> Vec<PathBuf> {
        self.bases.iter().map(|base| base.join(life)).collect()
    }

    /// Removes the cgroups of lives whose shim was killed. What is still in use can't be removed, and stays.
    pub fn sweep(&self) {
        for base in &self.bases {
            for entry in fs::read_dir(base).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    /// Removes the directories above the lives' cgroups when no life is left in them; the next agent makes them anew.
    pub fn release(&self) {
        self.sweep();
        for base in &self.bases {
            let _ = fs::remove_dir(base);
        }
    }

    fn add(&mut self, base: PathBuf, controllers: &[&str]) {
        self.memory |= controllers.contains(&"memory");
        self.cpu |= controllers.contains(&"cpu");
        self.processes |= controllers.contains(&"pids");
        self.bases.push(base);
    }
}

/// Mount points by controller (version 1), or under `""` (version 2).
fn mount_points(mountinfo: &str, kind: &str) -> BTreeMap<String, PathBuf> {
    let mut points = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(point), true) = (left.get(4), right.first() == Some(&kind)) else { continue };
        if kind == "cgroup2" {
            points.insert(String::new(), PathBuf::from(point));
            continue;
        }
        for option in right.get(2).into_iter().flat_map(|options| options.split(',')) {
            points.insert(option.to_owned(), PathBuf::from(point));
        }
    }
    points
}

/// This process's cgroup: limits that somebody set on Rung go on to hold for its instances.
fn own_path(own: &str, controller: &str) -> Option<String> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|c| c == controller).then(|| path.trim_start_matches('/').to_owned())
    })
}

fn version_1(mounts: &str, own: &str, name: &str) -> Cgroups {
    let points = mount_points(mounts, "cgroup");
    let mut cgroups = Cgroups::default();
    let mut by_base: BTreeMap<PathBuf, Vec<&str>> = BTreeMap::new();
    for controller in CONTROLLERS {
        let (Some(point), Some(path)) = (points.get(controller), own_path(own, controller)) else { continue };
        // Inside a container the path may be the host's, and not be there.
        let parent = [point.join(&path), point.clone()].into_iter().find(|parent| parent.is_dir());
        let Some(parent) = parent else { continue };
        by_base.entry(parent.join(name)).or_default().push(controller);
    }
    for (base, controllers) in by_base {
        if fs::create_dir_all(&base).is_ok() && is_writable(&base) {
            cgroups.add(base, &controllers);
        }
    }
    cgroups
}

/// Beside the cgroups of the machine's services, not below Rung's own: systemd could not start Rung again in a cgroup
/// whose children have controllers, and the instances that a killed Rung leaves are such children.
const SLICE: &str = "rung.slice";

/// A version 2 cgroup has either processes or children with limits; the machine's root alone has both. Where Rung sees
/// only a part of the machine (a container, a delegated cgroup), what shares its cgroup moves into a leaf first.
fn version_2(mounts: &str, own: &str, name: &str) -> Cgroups {
    let mut cgroups = Cgroups::default();
    let Some(point) = mount_points(mounts, "cgroup2").remove("") else { return cgroups };
    let parent = if is_root_of_the_machine(&point) {
        point
    } else {
        let path = own_path(own, "").unwrap_or_default();
        // After a restart the agent is in its leaf already.
        point.join(path.strip_suffix(LEAF).unwrap_or(&path).trim_end_matches('/'))
    };
    let available = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    let controllers: Vec<&str> =
        CONTROLLERS.into_iter().filter(|c| available.split_whitespace().any(|a| a == *c)).collect();
    if controllers.is_empty() {
        return cgroups;
    }
    let base = if is_root_of_the_machine(&parent) {
        parent.join(SLICE).join(name)
    } else {
        if move_into_leaf(&parent).is_err() {
            return cgroups;
        }
        parent.join(name)
    };
    if fs::create_dir_all(&base).is_ok() && enable(&parent, &base, &controllers).is_ok() {
        cgroups.add(base, &controllers);
    }
    cgroups
}

const LEAF: &str = "rung-agent";

/// These files are in every cgroup but the first.
fn is_root_of_the_machine(cgroup: &Path) -> bool {
    cgroup.join("cgroup.procs").exists() && !cgroup.join("cgroup.type").exists()
}

fn move_into_leaf(parent: &Path) -> std::io::Result<()> {
    let leaf = parent.join(LEAF);
    fs::create_dir_all(&leaf)?;
    for pid in fs::read_to_string(parent.join("cgroup.procs"))?.lines() {
        match fs::write(leaf.join("cgroup.procs"), pid) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved?,
        }
    }
    Ok(())
}

/// Each cgroup from `parent` down to `base` hands the controllers on to those below it.
fn enable(parent: &Path, base: &Path, controllers: &[&str]) -> std::io::Result<()> {
    let words: String = controllers.iter().map(|c| format!("+{c} ")).collect();
    let mut path: Vec<&Path> = base.ancestors().take_while(|at| *at != parent).collect();
    path.push(parent);
    path.iter().rev().try_for_each(|cgroup| fs::write(cgroup.join("cgroup.subtree_control"), &words))
}

fn is_writable(base: &Path) -> bool {
    let probe = base.join("probe");
    let made = fs::create_dir(&probe).is_ok() || probe.is_dir();
    made && fs::remove_dir(&probe).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_understood() {
        let mounts = "35 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      36 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_points(mounts, "cgroup")["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mount_points(mounts, "cgroup2")[""], Path::new("/sys/fs/cgroup/unified"));
        let own = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/system.slice/rung.service\n";
        assert_eq!(own_path(own, "memory").as_deref(), Some("a/b"));
        assert_eq!(own_path(own, "cpu").as_deref(), Some(""));
        assert_eq!(own_path(own, "").as_deref(), Some("system.slice/rung.service"));
    }
}
