//! A newer version has written fields that this one does not know: it works with the rest, and its rewrites keep them.

use rung_model::{Document, Phase, keys};
use serde_json::{Value, json};

use crate::jobs::{job, report, with_job};
use crate::scene::{Scene, name};

/// What a person or a leader reads, changes and writes back. Releases are never rewritten, and assignments, routes and
/// what nodes report are made whole each time.
const REWRITTEN: &[&str] = &[keys::APPS, keys::DEPLOYMENTS, keys::RUNS, keys::JOBS, keys::NODES];

fn is_rewritten(key: &str) -> bool {
    REWRITTEN.iter().any(|kind| key.starts_with(kind))
}

/// Every document that is there gets a field of the future. Answers with their keys and revisions.
fn a_newer_version_writes(scene: &mut Scene) -> Vec<(String, u64)> {
    let keys: Vec<String> = scene.store.keys().filter(|key| is_rewritten(key)).cloned().collect();
    let with_future = |scene: &mut Scene, key: &String| {
        let mut document: Value = serde_json::from_slice(&scene.store[key].0).unwrap();
        document["of_the_future"] = json!({"kept": true});
        scene.put(key.clone(), &document);
        (key.clone(), scene.revision)
    };
    keys.iter().map(|key| with_future(scene, key)).collect()
}

fn of_the_future(scene: &Scene, key: &str) -> Value {
    let document: Value = serde_json::from_slice(&scene.store[key].0).unwrap();
    document["of_the_future"].clone()
}

#[test]
fn what_a_newer_version_wrote_is_kept_in_every_document_that_is_rewritten() {
    let mut file = with_job(job("* * * * *", "good"));
    file.build.command = Some("make".into());
    let mut scene = Scene::new();
    scene.deploy(&file, "tree 1");
    scene.play("success", |scene| scene.has_ended("shop"));
    scene.play("the job has run", |scene| scene.world.jobs.contains_key(&name("shop")));
    scene.deploy(&file, "tree 2");
    scene.play("the build runs", |scene| scene.deployment("shop").run.is_some());

    let written = a_newer_version_writes(&mut scene);
    scene.play("success", |scene| scene.has_ended("shop"));
    assert_eq!(scene.phase("shop"), Phase::Succeeded);
    let dispatched = scene.store[&keys::job(&name("shop"), &report())].1;
    scene
        .play("the job runs again", |scene| scene.store[&keys::job(&name("shop"), &report())].1 > dispatched);

    let mut rewritten: Vec<&str> = Vec::new();
    for (key, revision) in &written {
        let Some((_, now)) = scene.store.get(key) else { continue };
        assert_eq!(of_the_future(&scene, key)["kept"], true, "the rewrite of {key} has lost it");
        if now > revision {
            rewritten.extend(REWRITTEN.iter().filter(|kind| key.starts_with(**kind)));
        }
    }
    for kind in [keys::APPS, keys::DEPLOYMENTS, keys::RUNS, keys::JOBS] {
        assert!(rewritten.contains(&kind), "nothing below {kind} was rewritten: {written:?}");
    }
}

#[test]
fn a_node_that_registers_anew_keeps_what_a_newer_version_wrote_of_it() {
    let mut scene = Scene::new();
    a_newer_version_writes(&mut scene);
    let key = keys::node(&scene.node);
    let mut node = scene.world.nodes[&scene.node].value.clone();
    node.facts.version = "2".into();
    let bytes = scene.world.encode(&key, &node);
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(document["of_the_future"]["kept"], true);
    assert_eq!(document["facts"]["version"], "2", "what is known is this version's own");
}

#[test]
fn what_this_version_writes_has_nothing_that_it_does_not_know() {
    let mut file = with_job(job("* * * * *", "good"));
    file.build.command = Some("make".into());
    let mut scene = Scene::new();
    scene.deploy(&file, "tree 1");
    scene.play("the job has run", |scene| scene.world.jobs.contains_key(&name("shop")));
    let others = scene.listed_world();
    assert_eq!(others, scene.world);
    for (key, (bytes, _)) in scene.store.iter().filter(|(key, _)| is_rewritten(key)) {
        let own: Value = serde_json::from_slice(bytes).unwrap();
        let again: Value = serde_json::from_slice(&others.encode(key, &Nothing)).unwrap();
        assert_eq!(again, json!({}), "fields of {key} are taken for another version's: {own}");
    }
}

/// A document that says nothing: written anew, it shows what is taken for another version's.
struct Nothing;

impl Document for Nothing {
    fn from_json(_: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self)
    }

    fn to_json(&self) -> Vec<u8> {
        b"{}".to_vec()
    }
}
