//! Small file systems that can be filled. Making one needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A small file system of its own, unmounted at its end.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    /// The directory it is mounted on, when it was made for it.
    own: Option<TempDir>,
}

impl SmallDisk {
    pub fn new(size: &str) -> Self {
        let own = tempfile::Builder::new().prefix("rung-e2e-disk-").tempdir().expect("a temporary directory");
        let mut disk = Self::on(own.path(), size);
        disk.own = Some(own);
        disk
    }

    /// Mounted on this directory, which is made when it is not there.
    pub fn on(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).expect("making a directory to mount on");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "tmpfs"]).arg(path);
        let output = mount.output().expect("starting mount");
        assert!(
            output.status.success(),
            "this story needs to mount a small tmpfs, which takes root: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self { path: path.to_owned(), own: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn fill(&self) {
        let filler = std::fs::File::create(self.path.join("filler")).expect("a file on the small disk");
        let piece = vec![1u8; 4096];
        while std::io::Write::write_all(&mut &filler, &piece).is_ok() {}
    }

    pub fn free(&self) {
        std::fs::remove_file(self.path.join("filler")).expect("the filler is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what a failed story left open must not keep it.
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "umount failed");
        // The temporary directory around it could not be removed while this was there; when it is not empty, somebody wants it.
        let around = self.path.parent().filter(|_| self.own.is_none());
        let _ = std::fs::remove_dir(&self.path).and_then(|()| around.map_or(Ok(()), std::fs::remove_dir));
        drop(self.own.take());
    }
}
