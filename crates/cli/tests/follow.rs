//! Deploying against a server that says what it is told to say: what is sent, what is shown, what is exited with.

// A test that can't go on says where.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path as Param, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use rung_api::client::Address;
use rung_api::wire::{AppStatus, DeployRequest, Started};
use rung_api::{Client, Code, ErrorBody, paths};
use rung_cli::{DeployOptions, Exit, Screen, deploy_directory, explain};
use rung_model::deployment::Trouble;
use rung_model::{
    AppName, Deployment, DeploymentKind, DeploymentNumber, Phase, ReleaseNumber, RunId, TimelineEntry,
};

/// What the server answers, and what it was asked.
#[derive(Default)]
struct Script {
    holds_source: bool,
    started: Mutex<Option<Result<Started, ErrorBody>>>,
    /// One more of these is told at each poll; the last one stays.
    polls: Mutex<Vec<Deployment>>,
    polled: AtomicUsize,
    uploads: Mutex<Vec<Vec<u8>>>,
    requests: Mutex<Vec<DeployRequest>>,
}

type Shared = State<Arc<Script>>;

async fn upload(State(script): Shared, body: Bytes) -> Json<()> {
    script.uploads.lock().unwrap().push(body.to_vec());
    Json(())
}

async fn deploy(State(script): Shared, Json(request): Json<DeployRequest>) -> Response {
    script.requests.lock().unwrap().push(request);
    match script.started.lock().unwrap().clone().expect("the script says what a deploy is answered with") {
        Ok(started) => Json(started).into_response(),
        Err(body) => (StatusCode::from_u16(body.code.status()).unwrap(), Json(body)).into_response(),
    }
}

async fn poll(State(script): Shared) -> Json<Deployment> {
    let polls = script.polls.lock().unwrap();
    let at = script.polled.fetch_add(1, Ordering::SeqCst).min(polls.len() - 1);
    Json(polls[at].clone())
}

async fn status(Param(app): Param<AppName>) -> Json<AppStatus> {
    Json(AppStatus {
        urls: vec![format!("http://{app}.localhost:8080")],
        app,
        current: Some(ReleaseNumber(1)),
        services: vec![],
        deployment: None,
        destroying: false,
        environments: vec![],
        problems: vec![],
    })
}

async fn log() -> Response {
    let line = r#"{"at":"2026-03-04T10:00:00Z","source":"shop-build-1","service":null,"stream":"stdout","text":"compiling"}"#;
    ([("content-type", "text/event-stream")], rung_api::sse::encode(line)).into_response()
}

async fn serve(script: Script) -> (Client, Arc<Script>) {
    let script = Arc::new(script);
    let held = script.clone();
    let router = Router::new()
        .route(paths::SOURCE, get(async move || Json(held.holds_source)).put(upload))
        .route(paths::DEPLOYMENTS, post(deploy))
        .route(paths::DEPLOYMENT, get(poll))
        .route(paths::APP_STATUS, get(status))
        .route(paths::LOGS, get(log))
        .with_state(script.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (Client::new(address, None), script)
}

fn shop(file: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rung.toml"), file).unwrap();
    std::fs::write(dir.path().join("server"), "#!/bin/sh\n").unwrap();
    dir
}

const FILE: &str = "app = \"shop\"\n[services.web]\ncommand = \"./server\"\n";

fn started() -> Started {
    Started::Deployment {
        number: DeploymentNumber(1),
        release: None,
        remarks: vec!["the build of v0 is used again".into()],
    }
}

fn deployment(phase: Phase, entries: &[(Phase, &str)]) -> Deployment {
    let at: Timestamp = "2026-03-04T10:00:00Z".parse().unwrap();
    Deployment {
        app: AppName::new("shop").unwrap(),
        number: DeploymentNumber(1),
        kind: DeploymentKind::Deploy,
        by: "ada".into(),
        at,
        phase,
        draft: None,
        release: Some(ReleaseNumber(1)),
        from: None,
        run: None,
        remaining: Duration::from_secs(300),
        cancelled_by: None,
        trouble: None,
        timeline: entries
            .iter()
            .map(|(phase, message)| TimelineEntry::milestone(at, *phase, *message))
            .collect(),
        asked: Default::default(),
        runs: vec![],
        notification: None,
        rollout: None,
        aftercare: None,
    }
}

async fn deployed(client: &Client, dir: &Path) -> (anyhow::Result<Exit>, String) {
    let (mut screen, captured) = Screen::captured();
    let options = DeployOptions { note: Some("first".into()), ..DeployOptions::default() };
    let exit = deploy_directory(client, dir, &options, &mut screen).await;
    (exit, captured.text())
}

#[tokio::test]
async fn a_first_deploy_sends_the_directory_and_shows_every_phase() {
    let mut building = deployment(Phase::Building, &[(Phase::Building, "make")]);
    let rolling = deployment(Phase::Rolling, &[(Phase::Building, "make"), (Phase::Rolling, "web: 1 of 1")]);
    let done = deployment(
        Phase::Succeeded,
        &[(Phase::Building, "make"), (Phase::Rolling, "web: 1 of 1"), (Phase::Succeeded, "done")],
    );
    let build = RunId::new("shop-build-1").unwrap();
    building.run = Some(build.clone());
    let polls = [building, rolling, done].map(|poll| Deployment { runs: vec![build.clone()], ..poll });
    let (client, script) = serve(Script {
        started: Mutex::new(Some(Ok(started()))),
        polls: Mutex::new(polls.into()),
        ..Script::default()
    })
    .await;
    let dir = shop(FILE);
    let (exit, shown) = deployed(&client, dir.path()).await;
    assert_eq!(exit.unwrap(), Exit::Done, "{shown}");
    let uploads = script.uploads.lock().unwrap();
    assert_eq!(uploads.len(), 1, "the tree was sent once");
    let checked = rung_artifact::check(uploads[0].as_slice(), rung_artifact::Limits::source()).unwrap();
    let requests = script.requests.lock().unwrap();
    assert_eq!(requests[0].source, Some(checked.digest.clone()), "what was asked for is what was sent");
    assert_eq!((requests[0].file.name.as_str(), requests[0].file.text.as_str()), ("rung.toml", FILE));
    assert_eq!(requests[0].note.as_deref(), Some("first"));
    let order = [
        "deploying shop",
        "packed",
        "2 files",
        "sent",
        "used again",
        "compiling",
        "built",
        "rolled out",
        "shop v1 is live at http://shop.localhost:8080",
    ];
    let mut rest = shown.as_str();
    for words in order {
        let at =
            rest.find(words).unwrap_or_else(|| panic!("{words:?} is not shown, or too late, in\n{shown}"));
        rest = &rest[at..];
    }
    assert!(!shown.contains('\u{1b}'), "there is no terminal, so nothing is coloured or redrawn");
}

#[tokio::test]
async fn what_the_server_holds_is_not_sent_again_and_unchanged_is_said() {
    let (client, script) = serve(Script {
        holds_source: true,
        started: Mutex::new(Some(Ok(Started::Unchanged { release: ReleaseNumber(4) }))),
        ..Script::default()
    })
    .await;
    let (exit, shown) = deployed(&client, shop(FILE).path()).await;
    assert_eq!(exit.unwrap(), Exit::Done);
    assert!(script.uploads.lock().unwrap().is_empty(), "the tree was sent although the server holds it");
    assert!(shown.contains("shop v4 is live already: nothing has changed"), "{shown}");
}

#[tokio::test]
async fn a_rollback_is_explained_and_exits_with_3() {
    let mut reverted = deployment(
        Phase::RolledBack,
        &[(Phase::Rolling, "starting"), (Phase::Reverting, "stopping"), (Phase::RolledBack, "v0 goes on")],
    );
    reverted.trouble = Some(Trouble {
        reason: "shop-web-a1 exited with code 1".into(),
        log_tail: vec!["no such table".into()],
    });
    let (client, _) = serve(Script {
        started: Mutex::new(Some(Ok(started()))),
        polls: Mutex::new(vec![reverted]),
        ..Script::default()
    })
    .await;
    let (exit, shown) = deployed(&client, shop(FILE).path()).await;
    assert_eq!(exit.unwrap().code(), 3);
    for words in ["was rolled back", "shop-web-a1 exited with code 1", "| no such table"] {
        assert!(shown.contains(words), "{words:?} is missing in\n{shown}");
    }
}

#[tokio::test]
async fn somebody_else_s_deployment_exits_with_4() {
    let body = ErrorBody::new(Code::Deploying, "deployment d7 of shop by ada@laptop is going on");
    let (client, _) =
        serve(Script { holds_source: true, started: Mutex::new(Some(Err(body))), ..Script::default() }).await;
    let (exit, _) = deployed(&client, shop(FILE).path()).await;
    let (text, exit) = explain(&exit.unwrap_err());
    assert_eq!(exit.code(), 4);
    assert!(text.contains("by ada@laptop") && text.contains("rung cancel"), "{text}");
}

#[tokio::test]
async fn a_wrong_app_file_is_told_before_anything_is_sent() {
    let (client, script) = serve(Script::default()).await;
    let (exit, _) = deployed(&client, shop("app = \"Shop\"\nservice = 1\n").path()).await;
    let (text, exit) = explain(&exit.unwrap_err());
    assert_eq!(exit, Exit::Failed);
    assert!(text.contains("rung.toml:1:7") && text.contains("rung.toml:2:1"), "{text}");
    assert!(script.uploads.lock().unwrap().is_empty());
    let empty = tempfile::tempdir().unwrap();
    let (exit, _) = deployed(&client, empty.path()).await;
    let (text, _) = explain(&exit.unwrap_err());
    assert!(text.contains("no rung.toml and no Procfile") && text.contains("[services.web]"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_gone_is_named_with_the_way_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    drop(listener);
    let (exit, _) = deployed(&Client::new(address, None), shop(FILE).path()).await;
    let (text, exit) = explain(&exit.unwrap_err());
    assert_eq!(exit, Exit::Failed);
    assert!(text.contains("start it with `rung up`"), "{text}");
}
