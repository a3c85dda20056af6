//! What an agent needs to start a release: the release itself and its environment, with the secrets opened.

use std::collections::BTreeMap;

use rung_api::wire::Launch;
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, ReleaseNumber};

use crate::shared::Control;

impl Control {
    /// The app file's `[env]`, then config, then secrets: the later wins.
    pub(crate) async fn launch(&self, app: &AppName, number: ReleaseNumber) -> Result<Launch, ErrorBody> {
        let release = self
            .read(|world| world.release(app, number).cloned())
            .ok_or_else(|| ErrorBody::new(Code::NotFound, format!("app {app} has no release {number}")))?;
        let mut env: BTreeMap<String, String> = release.file.env.clone();
        env.extend(release.config.clone());
        for (name, version) in &release.secrets {
            env.insert(name.to_string(), self.open_secret(app, name, *version).await?);
        }
        Ok(Launch { release, env })
    }
}
