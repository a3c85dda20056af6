//! Addresses inside the cluster: each service has one, nobody has another's, and it stays.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rung_model::app::Destroying;
use rung_model::{DeploymentKind, ReleaseNumber, ServiceName, keys};

use crate::files::{add, app, service, worker};
use crate::scene::{Scene, name};

fn address(scene: &Scene, of: &str, service: &str) -> Option<Ipv4Addr> {
    scene.world.address(&name(of), &ServiceName::new(service).unwrap())
}

#[test]
fn every_service_with_a_port_has_an_address_before_its_first_instance() {
    let mut scene = Scene::new();
    let mut file = app("shop", "good", 1);
    add(&mut file, "api", service("good", 0));
    add(&mut file, "mail", worker("good", 1));
    scene.deploy(&file, "tree 1");
    scene.play("an instance is assigned", |scene| !scene.assignment().instances.is_empty());
    let (web, api) = (address(&scene, "shop", "web"), address(&scene, "shop", "api"));
    assert!(web.is_some() && api.is_some() && web != api, "{web:?} and {api:?}");
    assert_eq!(address(&scene, "shop", "mail"), None, "what has no port has no address");
    scene.play("success", |scene| scene.has_ended("shop"));
    let inside = &scene.routes("shop").unwrap().inside;
    assert_eq!(inside[&ServiceName::new("api").unwrap()].address, api.unwrap(), "{inside:?}");
    assert_eq!(inside.len(), 2);
}

#[test]
fn an_address_outlives_the_release_and_goes_with_the_app() {
    let mut scene = Scene::new();
    let mut with_api = app("shop", "good", 1);
    add(&mut with_api, "api", service("good", 1));
    scene.deploy(&with_api, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    let before = address(&scene, "shop", "api");
    scene.deploy(&app("shop", "good", 1), "tree 2");
    scene.play("success", |scene| scene.has_ended("shop"));
    assert!(!scene.routes("shop").unwrap().inside.contains_key(&ServiceName::new("api").unwrap()));
    scene.redeploy("shop", DeploymentKind::Rollback, ReleaseNumber(1));
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(address(&scene, "shop", "api"), before, "the way back led to another address");
    scene.destroy("shop", Destroying::KeepVolumes);
    scene.play("gone", |scene| scene.world.apps.is_empty());
    let left: Vec<&String> = scene.store.keys().filter(|key| key.starts_with(keys::ADDRESSES)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn apps_never_share_an_address_and_a_restart_of_the_leader_changes_none() {
    let mut scene = Scene::new();
    let names: Vec<String> = (0..40).map(|n| format!("app-{n}")).collect();
    for app_name in &names {
        let mut file = app(app_name, "good", 1);
        add(&mut file, "api", service("good", 0));
        scene.deploy(&file, "tree 1");
    }
    scene.play("all serve", |scene| names.iter().all(|app_name| scene.has_ended(app_name)));
    let all = |scene: &Scene| -> Vec<Option<Ipv4Addr>> {
        let of = |app_name: &String| ["web", "api"].map(|service| address(scene, app_name, service));
        names.iter().flat_map(of).collect()
    };
    let before = all(&scene);
    let distinct: BTreeSet<Ipv4Addr> = before.iter().copied().map(Option::unwrap).collect();
    assert_eq!(distinct.len(), 80, "two services share an address");
    scene.change_leader();
    scene.settle();
    assert_eq!(all(&scene), before);
    assert_eq!(scene.world, scene.listed_world(), "the index is not what is stored");
}

#[test]
fn who_may_call_is_what_the_release_says_that_serves() {
    let mut scene = Scene::new();
    let mut file = app("billing", "good", 1);
    let web = ServiceName::new("web").unwrap();
    file.services.get_mut(&web).unwrap().allow = vec![name("reports")];
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("billing"));
    assert_eq!(scene.routes("billing").unwrap().inside[&web].callers, [name("reports")]);
    file.services.get_mut(&web).unwrap().allow.clear();
    scene.deploy(&file, "tree 2");
    scene.settle();
    scene.play("success", |scene| scene.has_ended("billing"));
    scene.settle();
    assert!(scene.routes("billing").unwrap().inside[&web].callers.is_empty(), "the old release's word holds");
}
