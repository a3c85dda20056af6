//! Finds the binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `RUNG_BIN`, or the debug binary of this workspace, which is built when it is missing.
///
/// # Panics
/// When there is none and it can't be built.
pub fn rung_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(path) = std::env::var_os("RUNG_BIN") {
            return PathBuf::from(path);
        }
        let path = target_directory().join("debug/rung");
        if !path.exists() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let status = Command::new(cargo).args(["build", "-p", "rung"]).current_dir(workspace()).status();
            assert!(status.is_ok_and(|status| status.success()), "the binary under test could not be built");
        }
        path
    })
}

/// The repository's root.
pub fn workspace() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo and nextest say where the crate is");
    Path::new(&manifest).ancestors().nth(2).expect("tests/e2e lies two below the root").to_owned()
}

/// Where cargo builds.
pub fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}
