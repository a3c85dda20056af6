//! A wall clock of a platform's own, set by libfaketime; the machine's clock stays as it is.

use std::fmt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The wall clock of the processes that are started with its [`environment`](Self::environment).
#[derive(Debug)]
pub struct WallClock {
    place: TempDir,
}

impl WallClock {
    /// One that is right, as yet.
    pub fn new() -> Self {
        let clock = Self { place: tempfile::tempdir().expect("a temporary directory") };
        clock.set_off_by(0);
        clock
    }

    /// Steps it: so many hours ahead of the machine's clock, or behind it.
    pub fn set_off_by(&self, hours: i32) {
        // Renamed into place: what reads it at any moment reads a whole one.
        let new = self.place.path().join("new");
        std::fs::write(&new, format!("{:+}\n", hours * 3600)).expect("writing the clock's offset");
        std::fs::rename(new, self.file()).expect("renaming the clock's offset");
    }

    fn file(&self) -> PathBuf {
        self.place.path().join("offset")
    }

    /// Only the wall clock is another one: what measures how long something takes is the kernel's.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: &dyn fmt::Display| (name.to_owned(), value.to_string());
        vec![
            pair("LD_PRELOAD", &library().display()),
            pair("FAKETIME_TIMESTAMP_FILE", &self.file().display()),
            pair("FAKETIME_NO_CACHE", &1),
            pair("FAKETIME_DONT_FAKE_MONOTONIC", &1),
            pair("NO_FAKE_STAT", &1),
        ]
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new()
    }
}

/// # Panics
/// When Debian's package `faketime` is not installed.
fn library() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let mut found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| Path::exists(path)).expect("this story needs libfaketime: apt-get install faketime")
}
