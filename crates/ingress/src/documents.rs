//! Route documents on disk: what lets the ingress serve through an outage of the servers and its own restart.

use std::io;
use std::path::{Path, PathBuf};

use rung_model::{AppName, Document, RouteDocument};

/// A directory with one file per app.
#[derive(Debug)]
pub(crate) struct Documents {
    directory: PathBuf,
}

impl Documents {
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, app: &AppName) -> PathBuf {
        self.directory.join(format!("{app}.json"))
    }

    /// Everything that can be read. What can't is left out and said: the server has it all and is asked next.
    pub(crate) fn load(&self) -> Vec<RouteDocument> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return Vec::new() };
        let mut documents = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(document) => documents.push(document),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "passing over a kept route document")
                }
            }
        }
        documents
    }

    /// Replaces the app's file whole. It is not synced: after a crash of the machine no instance it names is left.
    pub(crate) fn keep(&self, document: &RouteDocument) -> io::Result<()> {
        let path = self.path(&document.app);
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, document.to_json())?;
        std::fs::rename(&temporary, &path)
    }

    pub(crate) fn forget(&self, app: &AppName) -> io::Result<()> {
        match std::fs::remove_file(self.path(app)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> io::Result<RouteDocument> {
    RouteDocument::from_json(&std::fs::read(path)?).map_err(io::Error::from)
}
