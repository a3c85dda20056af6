//! Deploys, rollbacks, scaling, config changes and restarts, under load: nothing is lost.

use std::sync::mpsc;

use rung_e2e::http::{self, Connection};
use rung_e2e::{Load, Rung, TestApp, eventually};

fn deployed(name: &str, instances: u32) -> (Rung, TestApp) {
    let rung = Rung::start();
    let app = TestApp::new(name, instances);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled(name, "web", instances as usize);
    (rung, app)
}

#[test]
fn whatever_is_changed_under_load_loses_no_request() {
    let (rung, mut app) = deployed("shop", 2);
    let load = Load::start(rung.http(), "shop.localhost", "/");
    load.wait_for(200);
    for version in 2..=5 {
        app.version = version.to_string();
        rung.deploy(app.directory()).succeeds();
        assert!(
            rung.page("shop", "/").contains(&format!("version {version} ")),
            "traffic is on the new release when deploy returns"
        );
    }
    load.wait_for(100);
    for words in [
        &["rollback"][..],
        &["rollback", "v2"],
        &["scale", "web=4"],
        &["scale", "web=1"],
        &["scale", "web=3"],
        &["config", "set", "COLOUR=green"],
        &["restart"],
    ] {
        let mut arguments = words.to_vec();
        arguments.extend(["--app", "shop"]);
        rung.cli(&arguments).succeeds();
        load.wait_for(50);
    }
    for value in ["first", "rotated"] {
        rung.set_secret("shop", "TOKEN", value).succeeds();
        load.wait_for(50);
    }
    rung.wait_until_settled("shop", "web", 3);
    let tally = load.stop();
    tally
        .assert_none_lost("deploys, rollbacks, scalings, a config change, a restart and a secret's rotation");
    let versions: Vec<&str> = tally.versions.iter().map(String::as_str).collect();
    assert_eq!(versions, ["1", "2", "3", "4", "5"], "every version has answered");
    assert_eq!(rung.page("shop", "/env?name=COLOUR"), "green");
    assert_eq!(rung.page("shop", "/env?name=TOKEN"), "rotated");
    assert!(
        rung.page("shop", "/").contains("version 2 "),
        "the config change and the restart kept what was rolled back to"
    );
}

#[test]
fn one_instance_is_enough_for_deploys_without_loss() {
    let (rung, mut app) = deployed("solo", 1);
    let load = Load::start(rung.http(), "solo.localhost", "/");
    for version in 2..=4 {
        app.version = version.to_string();
        rung.deploy(app.directory()).succeeds();
        load.wait_for(50);
    }
    load.stop().assert_none_lost("three deploys of one instance");
    rung.wait_until_settled("solo", "web", 1);
}

#[test]
fn requests_in_flight_are_finished_by_the_instance_that_began_them() {
    let (rung, mut app) = deployed("patient", 1);
    let address = rung.http();
    let (began, has_begun) = mpsc::channel();
    let long = ["/slow?ms=2500", "/stream?chunks=250&ms=10"].map(|path| {
        let began = began.clone();
        std::thread::spawn(move || {
            let mut connection = Connection::open(address).expect("the ingress takes connections");
            let request = format!("GET {path} HTTP/1.1\r\nHost: patient.localhost\r\n\r\n");
            connection.send(request.as_bytes()).expect("the ingress takes the request");
            began.send(()).expect("the test waits");
            connection.read_answer()
        })
    });
    long.iter().for_each(|_| has_begun.recv().expect("both requests were sent"));
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    assert!(rung.page("patient", "/").contains("version 2 "), "new requests go to the new instance");
    for thread in long {
        let answer = thread.join().expect("the client did not panic").expect("the answer was finished");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-version"), Some("1"), "the old instance began it");
    }
    rung.wait_until_settled("patient", "web", 1);
}

#[test]
fn a_websocket_passes_through_both_ways() {
    let (rung, _app) = deployed("socket", 1);
    let mut connection = Connection::open(rung.http()).expect("the ingress takes connections");
    let request = "GET /ws HTTP/1.1\r\nHost: socket.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    connection.send(request.as_bytes()).expect("the ingress takes the request");
    let answer = connection.read_answer().expect("an answer");
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    // A masked text frame; its mask is of zeros, so that the echo's text is the same bytes.
    connection.send(b"\x81\x85\0\0\0\0hello").expect("the tunnel takes a frame");
    assert_eq!(connection.read_bytes(7).expect("the echo"), b"\x81\x05hello");
}

#[test]
fn large_bodies_stream_both_ways() {
    let (rung, _app) = deployed("mover", 1);
    let body: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut connection = Connection::open(rung.http()).expect("the ingress takes connections");
    let answer = connection.ask("POST", "mover.localhost", "/", &[], &body).expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "8 MB came back as they went");
    let answer = connection
        .get("mover.localhost", "/stream?chunks=20&ms=1")
        .expect("an answer on the same connection");
    assert_eq!(answer.body.len(), 20 * 1024);
}

#[test]
fn deploying_what_has_not_changed_is_fast_and_says_so() {
    let (rung, app) = deployed("same", 1);
    let lives = rung.lives("same");
    let said = rung.deploy(app.directory()).succeeds().mentions("nothing has changed");
    assert!(said.took.as_secs() < 5, "it took {:?}", said.took);
    assert_eq!(rung.lives("same"), lives, "no instance was replaced");
}

#[test]
fn the_build_runs_once_and_is_used_again() {
    let rung = Rung::start();
    let mut app = TestApp::new("built", 1);
    app.sections.push("[build]\ncommand = \"date +%N > built && echo the build speaks\"".into());
    // Left out of the tree, the app file is no part of what is built from.
    std::fs::write(app.directory().join(".rungignore"), "rung.toml\n").expect("a file of the app");
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("built", "web", 1);
    app.web().lines.push("stop_grace = \"7s\"".into());
    rung.deploy(app.directory()).succeeds().mentions("used again");
    let releases: Vec<rung_api::wire::ReleaseListing> =
        rung.cli(&["releases", "--app", "built", "--json"]).succeeds().json();
    assert_eq!(releases.len(), 2);
    assert_eq!(
        releases[0].artifact, releases[1].artifact,
        "the same source and build make the same artifact, without another build"
    );
}

#[test]
fn a_release_command_runs_once_for_an_artifact() {
    let rung = Rung::start();
    let mut app = TestApp::new("migrated", 1);
    app.sections.push("[deploy]\nrelease = \"python3 -B app.py release\"".into());
    app.sections.push("[volumes.state]".into());
    app.web().lines.push("mounts = { state = \"/state\" }".into());
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["config", "set", "COLOUR=red", "--app", "migrated"]).succeeds();
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    rung.cli(&["rollback", "--app", "migrated"]).succeeds();
    rung.wait_until_settled("migrated", "web", 1);
    assert_eq!(
        rung.page("migrated", "/state?name=released"),
        "1\n2\n",
        "neither config nor rollback ran it again"
    );
}

#[test]
fn the_old_release_serves_until_the_new_one_is_healthy() {
    let (rung, mut app) = deployed("slow", 1);
    app.version = "2".into();
    app.set("BE_SLOW_TO_START", "1500");
    let mut deploy = rung.begin_deploy(app.directory());
    let load = Load::start(rung.http(), "slow.localhost", "/");
    eventually("the new release serves", || match http::get(rung.http(), "slow.localhost", "/") {
        Ok(answer) if answer.header("x-version") == Some("2") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    load.stop().assert_none_lost("the wait for a slow start");
    assert!(deploy.wait().expect("waiting for rung deploy").success());
}
