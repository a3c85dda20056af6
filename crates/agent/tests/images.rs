//! Images in the engine: those of releases stay, those that no release needs any more go, those of others are left alone.

#![allow(clippy::unwrap_used, reason = "a test that can't go on shall say where")]

#[path = "../../../tests/e2e/src/engine.rs"]
mod engine;

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rung_agent::artifacts::Artifacts;
use rung_agent::engine::Engine;
use rung_agent::images::Images;
use rung_agent::layout::Layout;
use rung_api::{Address, Client, Code, ErrorBody, paths};
use rung_model::Digest;

const SLEEP: &str = r#"CMD ["sleep","1000"]"#;

/// A server that keeps these artifacts.
async fn artifact(State(kept): State<Arc<BTreeSet<String>>>, Path(digest): Path<String>) -> Response {
    match kept.contains(&digest) {
        true => "an archive".into_response(),
        false => {
            let body = ErrorBody::new(Code::NotFound, format!("artifact {digest} is not kept"));
            (StatusCode::NOT_FOUND, axum::Json(body)).into_response()
        }
    }
}

fn digest(letter: char) -> Digest {
    Digest::new(format!("sha256:{}", letter.to_string().repeat(64))).unwrap()
}

/// Our name of an artifact's image.
fn name_of(digest: &Digest) -> String {
    format!("rung/artifact:{}", digest.as_str().trim_start_matches("sha256:"))
}

#[tokio::test]
async fn images_of_releases_that_are_gone_are_removed_and_those_of_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let [kept, gone, shared, running] = ['a', 'b', 'c', 'd'].map(digest);
    let router = Router::new()
        .route(paths::ARTIFACT, get(artifact))
        .with_state(Arc::new(BTreeSet::from([kept.to_string()])));
    let socket = directory.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let dockerd = tokio::task::spawn_blocking(engine::Dockerd::start).await.unwrap();
    let client = Client::new(Address::Unix(socket), None);
    let artifacts = Artifacts::open(Layout::new(directory.path().join("node")), client.clone()).unwrap();
    let images = Images::new(Engine::at(dockerd.socket()), artifacts, client);
    for (local, digest) in [("one:1", &kept), ("two:1", &gone), ("three:1", &shared), ("four:1", &running)] {
        dockerd.import(local, &[SLEEP]);
        let id = dockerd.docker(&["images", "-q", "--no-trunc", local]);
        images.name(&id, digest).await.unwrap();
        // The third one has a name of somebody else's, too.
        if local != "three:1" {
            dockerd.docker(&["rmi", local]);
        }
    }
    let is_there = |name: &str| !dockerd.docker(&["images", "-q", name]).is_empty();
    let container = dockerd.docker(&["run", "-d", &name_of(&running)]);

    assert_eq!(images.prune().await.unwrap(), 2, "images: {}", dockerd.docker(&["images"]));
    assert!(is_there(&name_of(&kept)), "the image of a release that is kept was removed");
    assert!(!is_there(&name_of(&gone)), "the image of a release that is gone is still there");
    assert!(!is_there(&name_of(&shared)) && is_there("three:1"), "somebody else's image was removed");
    assert!(is_there(&name_of(&running)), "the image of a running container was removed");

    dockerd.docker(&["rm", "-f", &container]);
    assert_eq!(images.prune().await.unwrap(), 1, "images: {}", dockerd.docker(&["images"]));
    assert!(!is_there(&name_of(&running)), "it stays although its container is gone");
    assert_eq!(images.prune().await.unwrap(), 0, "something is removed again and again");
    server.abort();
}
