//! Cgroups of platforms that are killed: nobody is left who would remove them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// What the platform's own names begin with.
const OURS: &str = "rung-";

/// Those of processes that were looked at while they were there.
#[derive(Debug, Default)]
pub struct Cgroups(BTreeSet<PathBuf>);

impl Cgroups {
    /// Notes where a process is, when it is in one of the platform's.
    pub fn note(&mut self, pid: u32) {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            let path = Path::new(path.trim_start_matches('/'));
            let ours = |path: &&Path| path.iter().any(|part| part.to_string_lossy().starts_with(OURS));
            self.0.extend(path.ancestors().take_while(ours).map(Path::to_owned));
        }
    }

    /// Removes those that are empty, in every hierarchy.
    pub fn remove(&self) {
        let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from(ROOT)]) {
            // The deepest come last in their order.
            for cgroup in self.0.iter().rev() {
                let _ = fs::remove_dir(hierarchy.join(cgroup));
            }
        }
    }
}
