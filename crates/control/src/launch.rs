//! What an agent needs to start a release: the release itself and its environment, with the secrets opened.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rung_api::wire::Launch;
use rung_api::{Code, ErrorBody};
use rung_model::address::{names, variable};
use rung_model::{AppName, Release, ReleaseNumber};
use rung_planner::World;

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
        let (services, names) = self.read(|world| services(world, &release));
        Ok(Launch { release, env, services, names })
    }
}

type Addresses = BTreeMap<String, Ipv4Addr>;

/// Those of other apps that allow this one now, and its own, whose variables win; and how they are called.
fn services(world: &World, release: &Release) -> (Addresses, Addresses) {
    let caller = &release.app;
    let (mut found, mut called) = (Addresses::new(), Addresses::new());
    for (app, document) in world.routes.iter().filter(|(app, _)| *app != caller) {
        for (service, inside) in &document.value.inside {
            if inside.callers.contains(caller) {
                found.insert(variable(Some(app), service), inside.address);
                called.extend(names(app, service).map(|name| (name, inside.address)));
            }
        }
    }
    for (service, declared) in &release.file.services {
        if let Some(address) = world.address(caller, service).filter(|_| declared.port) {
            found.insert(variable(None, service), address);
            called.extend(names(caller, service).map(|name| (name, address)));
        }
    }
    (found, called)
}
