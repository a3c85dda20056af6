//! A host name belongs to one app, also when several ask for it at the same moment.
//!
//! Who has a name is read in the index: from what serves, and from what is on its way to. No guard covers the apps that are
//! not there yet, so whoever asks for a name that it had not before writes one document of the store, too, which is
//! guarded: of two at the same moment one is refused, and decides anew by an index that holds the other one.

use std::collections::BTreeSet;
use std::sync::Arc;

use rung_api::{Code, ErrorBody};
use rung_model::{AppFile, AppName, Role, keys};
use rung_planner::World;
use rung_store::{Guard, Op};
use serde::Serialize;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::access::Caller;
use crate::shared::{Control, contended, store_error};

/// Requests that ask for new names ask one after the other: only other servers are in their way.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    turn: Arc<Mutex<()>>,
}

/// What was asked for last, at [`keys::HOSTS_CLAIMED`]; for people who look into the store.
#[derive(Serialize)]
struct Claimed<'a> {
    app: &'a AppName,
    hosts: &'a BTreeSet<String>,
}

/// Goes into the transaction by which an app gets its names.
#[derive(Debug)]
pub(crate) struct Claim {
    pub guard: Guard,
    pub op: Op,
    /// Until that is written.
    _turn: OwnedMutexGuard<()>,
}

pub(crate) enum Claiming {
    /// The app has them already.
    Own,
    Free(Claim),
    /// Somebody else has one.
    Taken,
}

fn hosts_of(app: &AppName, file: Option<&AppFile>) -> BTreeSet<String> {
    let domains = file.into_iter().flat_map(|file| file.domains.iter().cloned());
    std::iter::once(app.host()).chain(domains).collect()
}

/// What an app serves, is about to serve, or may go back to by itself.
fn held_by(world: &World, app: &AppName) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    if let Some(routes) = world.routes.get(app) {
        held.extend(routes.value.hosts.iter().cloned());
    }
    let Some(record) = world.apps.get(app).map(|held| &held.value) else { return held };
    held.insert(app.host());
    let mut releases: BTreeSet<_> = record.current.into_iter().collect();
    let deployments = world.deployments.get(app).into_iter().flat_map(|of_app| of_app.values());
    for deployment in deployments.map(|held| &held.value) {
        if !deployment.has_ended() {
            let draft = deployment.draft.iter().flat_map(|draft| &draft.file.domains);
            held.extend(draft.cloned());
            releases.extend(deployment.release);
        }
        if !deployment.has_ended() || deployment.aftercare.is_some() {
            releases.extend(deployment.from);
        }
    }
    let files = releases.iter().filter_map(|release| world.release(app, *release));
    held.extend(files.flat_map(|release| release.file.domains.iter().cloned()));
    held
}

/// The first of these names that another app has.
fn taken(world: &World, app: &AppName, hosts: &BTreeSet<String>) -> Option<(String, AppName)> {
    let others = world.apps.keys().chain(world.routes.keys()).filter(|other| *other != app);
    others.into_iter().find_map(|other| {
        let host = held_by(world, other).into_iter().find(|host| hosts.contains(host))?;
        Some((host, other.clone()))
    })
}

impl Control {
    /// For who asks: which name is taken, and by whom as far as it may know.
    pub(crate) fn refuse_taken_hosts(
        &self,
        caller: &Caller,
        app: &AppName,
        file: Option<&AppFile>,
    ) -> Result<(), ErrorBody> {
        let hosts = hosts_of(app, file);
        let Some((host, other)) = self.read(|world| taken(world, app, &hosts)) else { return Ok(()) };
        let other = match caller.may(Role::Viewer, &other) {
            true => format!("app {other}"),
            false => "another app".to_owned(),
        };
        let message = format!("host {host} belongs to {other}");
        let way_out = match host == app.host() {
            true => "give the app or its environment another name",
            false => {
                "take it out of the other app's `domains` first; it is free once that deployment has settled"
            }
        };
        Err(ErrorBody::new(Code::Refused, message).hint(way_out))
    }

    /// Asks for the names of an app that get a new file.
    pub(crate) async fn claim_hosts(
        &self,
        app: &AppName,
        file: Option<&AppFile>,
    ) -> Result<Claiming, ErrorBody> {
        let hosts = hosts_of(app, file);
        if self.read(|world| hosts.is_subset(&held_by(world, app))) {
            return Ok(Claiming::Own);
        }
        let turn = Arc::clone(&self.inner.hosts.turn).lock_owned().await;
        let key = keys::HOSTS_CLAIMED.to_owned();
        let read = self.inner.store.get(&key).await.map_err(|error| store_error(&error))?;
        self.see(read.revision).await;
        let (is_old, taken) = self.read(|world| (world.revision < read.revision, taken(world, app, &hosts)));
        if is_old {
            return Err(contended("what this server knows of the others' host names"));
        }
        if taken.is_some() {
            return Ok(Claiming::Taken);
        }
        let guard = match read.value {
            Some(entry) => Guard::Modified { key: key.clone(), revision: entry.modified },
            None => Guard::Absent { key: key.clone() },
        };
        let value = serde_json::to_vec(&Claimed { app, hosts: &hosts }).expect("names serialize");
        Ok(Claiming::Free(Claim { guard, op: Op::Put { key, value, lease: None }, _turn: turn }))
    }
}

#[cfg(test)]
mod tests {
    use rung_model::{Deployment, Document, Release, ReleaseNumber, appfile};
    use serde_json::{Value, json};

    use super::*;

    const DOMAIN: &str = "www.example.com";

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    fn put(world: &mut World, key: &str, document: &impl Document) {
        let revision = world.revision + 1;
        world.put(key, &document.to_json(), revision).unwrap();
        world.revision = revision;
    }

    /// An app whose first release names the domain and whose second, which serves, does not.
    fn shop_has_let_it_go(aftercare: &Value) -> World {
        let (mut world, shop) = (World::new(1), app("shop"));
        let mut record = rung_model::App::new(shop.clone());
        record.current = Some(ReleaseNumber(2));
        record.succeeded = vec![ReleaseNumber(1), ReleaseNumber(2)];
        put(&mut world, &keys::app(&shop), &record);
        for (number, domains) in [(1, format!("domains = [{DOMAIN:?}]\n")), (2, String::new())] {
            let file = format!("app = \"shop\"\n{domains}[services.web]\ncommand = \"serve\"\n");
            let release = json!({
                "app": "shop", "number": number, "artifact": format!("sha256:{number:064x}"), "source": null,
                "file": appfile::parse("rung.toml", &file).unwrap(), "config": {}, "secrets": {},
                "at": "2026-01-01T00:00:00Z", "by": "ada", "reason": "deploy",
            });
            let release: Release = serde_json::from_value(release).unwrap();
            put(&mut world, &keys::release(&shop, release.number), &release);
        }
        let deployment = json!({
            "app": "shop", "number": 2, "kind": "deploy", "by": "ada", "at": "2026-01-01T00:00:00Z",
            "phase": "succeeded", "draft": null, "release": 2, "from": 1, "remaining_ms": 0, "aftercare": aftercare,
        });
        let deployment: Deployment = serde_json::from_value(deployment).unwrap();
        put(&mut world, &keys::deployment(&shop, deployment.number), &deployment);
        world
    }

    #[test]
    fn a_domain_is_free_when_nothing_goes_back_to_it_by_itself_any_more() {
        let asked = BTreeSet::from([DOMAIN.to_owned()]);
        let watched = shop_has_let_it_go(&json!({}));
        let by =
            taken(&watched, &app("blog"), &asked).expect("the shop may be taken back to its first release");
        assert_eq!(by, (DOMAIN.to_owned(), app("shop")));
        assert_eq!(taken(&watched, &app("shop"), &asked), None, "it is its own");
        assert_eq!(taken(&shop_has_let_it_go(&Value::Null), &app("blog"), &asked), None);
    }

    #[test]
    fn an_app_that_is_only_there_by_its_name_has_the_host_of_its_name() {
        let world = shop_has_let_it_go(&Value::Null);
        let asked = hosts_of(&app("shop"), None);
        assert!(taken(&world, &app("blog"), &asked).is_some());
        let staging = hosts_of(&app("shop@staging"), None);
        assert_eq!(staging, hosts_of(&app("shop-staging"), None), "two names for one host");
    }
}
