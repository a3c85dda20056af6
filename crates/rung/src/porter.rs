//! What the agent wants of the proxy beside it: doors, by which containers call services.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rung_ingress::Control;
use rung_model::AppName;

use crate::data::Data;

/// Asks whichever ingress serves at the moment.
#[derive(Debug)]
pub struct Porter {
    directory: PathBuf,
}

impl Porter {
    pub fn of(data: &Data) -> Arc<Self> {
        Arc::new(Self { directory: data.ingress() })
    }

    fn control(&self) -> io::Result<Control> {
        Control::connect(&self.directory)
    }
}

impl rung_agent::Porter for Porter {
    fn doors(&self) -> io::Result<BTreeMap<String, AppName>> {
        self.control()?.doors()
    }

    fn copy(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        self.control()?.door(name)
    }

    fn open(&self, name: &str, app: &AppName, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.control()?.open_door(name, app, socket)
    }

    fn shut(&self, name: &str) -> io::Result<()> {
        self.control()?.shut_door(name)
    }
}
