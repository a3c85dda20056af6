//! What an agent needs to start a release: the release itself and its environment, with the secrets opened.

use std::collections::BTreeMap;

use rung_api::wire::Launch;
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, ReleaseNumber, SecretName, keys};

use crate::shared::{Control, store_error};

/// What is sealed can be opened only as the value that it was sealed as.
pub(crate) fn seal_context(app: &AppName, name: &SecretName, version: u64) -> String {
    format!("{app}/{name}/{version}")
}

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

    /// Secrets that were sealed with another key, or are gone: what names them can't be started.
    pub(crate) async fn lost_secrets(
        &self,
        app: &AppName,
        secrets: &BTreeMap<SecretName, u64>,
    ) -> Result<Vec<SecretName>, ErrorBody> {
        let mut lost = Vec::new();
        for (name, version) in secrets {
            match self.open_secret(app, name, *version).await {
                Ok(_) => {}
                Err(error) if error.code == Code::Unavailable => return Err(error),
                Err(_) => lost.push(name.clone()),
            }
        }
        Ok(lost)
    }

    /// Nothing is begun that could not be started.
    pub(crate) async fn refuse_lost_secrets(
        &self,
        app: &AppName,
        secrets: &BTreeMap<SecretName, u64>,
    ) -> Result<(), ErrorBody> {
        let lost = self.lost_secrets(app, secrets).await?;
        if lost.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = lost.iter().map(SecretName::as_str).collect();
        let message = format!("secrets of app {app} can't be opened with this key: {}", names.join(", "));
        Err(ErrorBody::new(Code::MissingSecret, message).hint(format!(
            "put the old secret.key back into the data directory, or set them again, all at once: rung secret set {} \
             --app {app}",
            names.join(" ")
        )))
    }

    async fn open_secret(&self, app: &AppName, name: &SecretName, version: u64) -> Result<String, ErrorBody> {
        let key = keys::secret(app, name, version);
        let read = self.inner.store.get(&key).await.map_err(|error| store_error(&error))?;
        let Some(entry) = read.value else {
            return Err(ErrorBody::new(
                Code::Internal,
                format!("version {version} of secret {name} is gone"),
            )
            .hint(format!("set it again: rung secret set {name} --app {app}")));
        };
        let context = seal_context(app, name, version);
        let opened = self.inner.seal_key.open(&context, &entry.value).map_err(|error| {
            ErrorBody::new(Code::Internal, error.to_string())
                .hint("was secret.key of the data directory replaced? put the old one back")
        })?;
        String::from_utf8(opened)
            .map_err(|_| ErrorBody::new(Code::Internal, format!("secret {name} is not text any more")))
    }
}
