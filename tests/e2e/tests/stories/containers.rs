//! Calls from containers: to services of their own app and of others, on this machine and another, through restarts.
//! Root only, as `rung doctor` says.

use std::net::SocketAddr;

use rung_api::wire::{AppStatus, InstanceStatus};
use rung_e2e::http::Connection;
use rung_e2e::{
    Hosts, Load, Network, Rung, Service, Start, TestApp, eventually, grpc, http, process, rung_binary,
};
use tempfile::TempDir;

use super::images::{EXPOSE, SERVE, Stage, app, of_image};

/// Answers with what it got from the address behind the question mark.
const CALL: &str =
    "#!/bin/sh\necho 'Content-Type: text/plain'\necho\ntimeout 3 wget -qO- \"$QUERY_STRING\" 2>&1\n";

pub fn stage() -> Stage {
    let stage = Stage::new();
    let files =
        [("www/index.html", "from a container"), ("www/cgi-bin/call", CALL), ("www/cgi-bin/tell", TELL)];
    stage.engine.import_with("shop:1", &[SERVE, EXPOSE], &files);
    stage
}

const TELL: &str = "#!/bin/sh\necho 'Content-Type: text/plain'\necho\nenv\n";

/// `web` in containers for visitors, and `api` for `web`.
pub fn shop(name: &str, api: u32) -> TempDir {
    app(&format!("{}[services.api]\ninstances = {api}\nstop_grace = \"1s\"\n", of_image(name, "shop:1", "")))
}

/// A process whose `ledger` lets these apps in.
pub fn billing(allow: &str) -> TestApp {
    let mut billing = TestApp::new("billing", 1);
    let lines = vec![
        "health = { path = \"/up\", interval = \"200ms\", timeout = \"2s\" }".to_owned(),
        format!("allow = [{allow}]"),
    ];
    billing.services.push(Service { name: "ledger".into(), instances: 1, lines });
    billing
}

pub fn inside(status: &AppStatus, service: &str) -> SocketAddr {
    let found = status.services.iter().find(|found| found.name.as_str() == service);
    let said = found.and_then(|found| found.inside.clone()).unwrap_or_else(|| panic!("{status:?}"));
    said.trim_start_matches("http://").parse().unwrap_or_else(|error| panic!("{said}: {error}"))
}

/// What the app's container gets from there.
pub fn call(rung: &Rung, app: &str, at: &str) -> String {
    rung.page(app, &format!("/cgi-bin/call?{at}"))
}

pub fn one(rung: &Rung, app: &str, service: &str) -> InstanceStatus {
    rung.wait_until_settled(app, service, 1).remove(0)
}

pub fn network(of: &InstanceStatus) -> Network {
    Network::of(of.pid.expect("a healthy instance has a process"))
}

#[test]
fn a_container_calls_its_apps_services_and_those_that_let_it_in() {
    let stage = stage();
    let rung = stage.rung();
    rung.deploy(billing("\"shop\"").directory()).succeeds();
    rung.wait_until_settled("billing", "ledger", 1);
    rung.deploy(shop("shop", 0).path()).succeeds();
    rung.deploy(shop("other", 0).path()).succeeds();
    let web = one(&rung, "shop", "web");
    one(&rung, "other", "web");
    let (api, ledger) = (inside(&rung.app("shop"), "api"), inside(&rung.app("billing"), "ledger"));
    let told = rung.page("shop", "/cgi-bin/tell");
    for line in [
        format!("RUNG_SERVICE_API_URL=http://{api}"),
        format!("RUNG_SERVICE_BILLING_LEDGER_URL=http://{ledger}"),
    ] {
        assert!(told.lines().any(|told| told == line), "{line} is not in {told}");
    }

    // One that appears later is reached by who is there already.
    let nothing = call(&rung, "shop", &format!("http://{api}/"));
    assert!(nothing.contains("503"), "nothing of it runs: {nothing}");
    rung.cli(&["scale", "api=1", "--app", "shop"]).succeeds();
    assert!(call(&rung, "shop", &format!("http://{api}/")).contains("from a container"));
    assert_eq!(one(&rung, "shop", "web").id, web.id, "the caller was started again for it");
    let by_name = format!("http://api.shop.internal:{}/", api.port());
    assert!(call(&rung, "shop", &by_name).contains("from a container"), "its name is not known");

    // Another app's, which says who may.
    let at_ledger = format!("http://{ledger}/");
    assert!(call(&rung, "shop", &at_ledger).contains("version 1"), "shop is allowed");
    let by_name = format!("http://ledger.billing.internal:{}/", ledger.port());
    assert!(call(&rung, "shop", &by_name).contains("version 1"));
    assert!(call(&rung, "other", &at_ledger).contains("403"), "another app's container was let in");
    rung.deploy(billing("\"other\"").directory()).succeeds();
    eventually("who may call has changed for containers that run", || {
        let (shop, other) = (call(&rung, "shop", &at_ledger), call(&rung, "other", &at_ledger));
        if shop.contains("403") && other.contains("version 1") {
            Ok(())
        } else {
            Err(format!("{shop}\n{other}"))
        }
    });

    // Jobs and one-offs, from their first moment.
    for _ in 0..5 {
        rung.cli(&["run", "--no-tty", "--app", "shop", "wget -qO- $RUNG_SERVICE_API_URL/"])
            .succeeds()
            .mentions("from a container");
    }
    // A container's own addresses, and the machine's, are nobody's service.
    let port = api.port();
    let own = network(&web).inside(|| http::get(SocketAddr::from(([127, 0, 0, 1], port)), "x", "/"));
    assert!(own.is_err(), "something is served at 127.0.0.1 of a container");
    rung.cli(&["doctor"]).mentions("ok  calls from containers").mentions("addresses of containers");
}

#[test]
fn calls_of_a_container_go_on_while_rung_and_its_proxy_are_killed() {
    let stage = stage();
    let mut rung = stage.rung();
    rung.deploy(shop("shop", 2).path()).succeeds();
    rung.wait_until_settled("shop", "api", 2);
    let web = one(&rung, "shop", "web");
    let (network, api) = (network(&web), inside(&rung.app("shop"), "api"));
    let load = network.inside(|| Load::start(api, "api.shop.internal", "/"));
    load.wait_for(50);
    rung.kill_9();
    // Nobody is there but the proxy.
    load.wait_for(50);
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "api", 2);
    load.wait_for(50);
    load.stop().assert_none_lost("a kill and a restart of rung");

    process::kill_9(rung.ingress().pid);
    eventually("the next proxy hears it", || {
        let answer =
            network.inside(|| http::get(api, "api", "/")).map_err(|failure| format!("{failure:?}"))?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });

    // A container that is started anew has a network of its own again.
    process::kill_9(web.pid.expect("a healthy instance has a process"));
    eventually("the instance was started again", || {
        let now = rung.instances("shop").into_iter().find(|it| it.id == web.id);
        let again = now.filter(|it| it.restarts > 0 && it.routed);
        again.map(drop).ok_or_else(|| format!("{:?}", rung.instances("shop")))
    });
    assert!(call(&rung, "shop", &format!("http://{api}/")).contains("from a container"));
    eventually("nobody listens in the network of the container that has ended", || {
        match network.inside(|| http::get(api, "api", "/")) {
            Err(_) => Ok(()),
            Ok(answer) => Err(format!("it answers with {}", answer.status)),
        }
    });
}

/// Passes bytes on to where `ECHO` says.
const RELAY: &str = r#"
import asyncio, os
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()
async def serve(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(os.environ["ECHO"]))
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()
asyncio.run(main())
"#;

/// A service that is called by gRPC.
fn speaker(echo: &grpc::Echo) -> TempDir {
    let file = format!(
        "app = \"speaker\"\n[env]\nECHO = \"{}\"\n[services.web]\nprotocol = \"h2c\"\nallow = [\"shop\"]\n\
         command = \"exec python3 -B relay.py\"\nstop_grace = \"1s\"\n",
        echo.address.port()
    );
    let directory = app(&file);
    std::fs::write(directory.path().join("relay.py"), RELAY).expect("a file of the app");
    directory
}

/// A WebSocket from within, and what it says back.
struct Socket(Connection);

impl Socket {
    fn open(network: &Network, at: SocketAddr) -> Self {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {at}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let mut connection = network.inside(|| Connection::open(at)).expect("the door takes connections");
        connection.send(request.as_bytes()).expect("the proxy takes the request");
        assert_eq!(connection.read_answer().expect("an answer").status, 101);
        Self(connection)
    }

    /// A masked text frame; its mask is of zeros, so that the echo's text is the same bytes.
    fn says_back(&mut self) {
        self.0.send(b"\x81\x85\0\0\0\0hello").expect("the tunnel takes a frame");
        assert_eq!(self.0.read_bytes(7).expect("the echo"), b"\x81\x05hello");
    }
}

#[test]
fn a_container_calls_by_websocket_and_grpc_and_an_upgrade_of_rung_is_not_felt() {
    let place = tempfile::Builder::new().prefix("rung-e2e-bin-").tempdir().expect("a temporary directory");
    let [older, newer] = ["rung", "rung-newer"].map(|name| place.path().join(name));
    for copy in [&older, &newer] {
        std::fs::copy(rung_binary(), copy).expect("a copy of the binary");
    }
    let stage = stage();
    let environment = stage.env();
    let mut rung = Rung::start_with(Start { environment, binary: Some(older.clone()), ..Start::default() });
    let echo = grpc::Echo::start();
    rung.deploy(speaker(&echo).path()).succeeds();
    rung.deploy(billing("\"shop\"").directory()).succeeds();
    rung.deploy(shop("shop", 2).path()).succeeds();
    rung.wait_until_settled("shop", "api", 2);
    let lives = rung.lives("shop");
    let network = network(&one(&rung, "shop", "web"));
    let ledger = inside(&rung.app("billing"), "ledger");
    let speaker = inside(&rung.app("speaker"), "web");

    Socket::open(&network, ledger).says_back();
    let speak = |when: &str| {
        let (heard, trailers) = network
            .inside(|| grpc::call(speaker, &["one", "two", "three"]))
            .unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(heard, ["one", "two", "three"], "{when}");
        assert_eq!(trailers.get("grpc-status").map(|status| status.as_bytes()), Some(&b"0"[..]), "{when}");
        assert_eq!(trailers.get("frames").map(|frames| frames.as_bytes()), Some(&b"3"[..]), "{when}");
    };
    speak("at first");

    let api = inside(&rung.app("shop"), "api");
    let load = network.inside(|| Load::start(api, "api.shop.internal", "/"));
    load.wait_for(50);
    for binary in [&newer, &older] {
        rung.cli(&["upgrade", binary.to_str().expect("UTF-8"), "-y"]).succeeds();
        eventually("the upgraded platform serves its API", || rung.api_get("/v1/health").map(drop));
        load.wait_for(50);
        speak("after an upgrade");
        Socket::open(&network, ledger).says_back();
    }
    assert!(rung.ended().is_none(), "the platform goes on in the same process");
    rung.wait_until_settled("shop", "api", 2);
    assert_eq!(rung.lives("shop"), lives, "an instance was restarted");
    load.stop().assert_none_lost("an upgrade and the way back");

    let mut socket = Socket::open(&network, ledger);
    rung.kill_9();
    socket.says_back();
    speak("without rung");
    rung.up(None, &[]);
}

#[test]
fn a_container_calls_a_service_on_another_machine() {
    let stage = stage();
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).set_env(stage.env());
    hosts.host_mut(1).serve();
    hosts.join_with(2, "worker", &["--label", "disk=ssd"]);
    let mut billing = billing("\"shop\"");
    billing.services[1].lines.push("place = { require = { disk = \"ssd\" } }".into());
    hosts.host(1).deploy(billing.directory()).succeeds();
    let file = "app = \"shop\"\n[build]\nimage = \"shop:1\"\n[services.worker]\nport = false\ncommand = \"exec sleep 1000\"\nstop_grace = \"1s\"\n";
    hosts.host(1).deploy(app(file).path()).succeeds();
    let at = |service: &str, app: &str| {
        let instances = hosts.host(1).instances(app).into_iter();
        instances
            .filter(|it| it.service.as_str() == service)
            .map(|it| it.node.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (at("ledger", "billing"), at("worker", "shop")),
        (vec!["host-2".to_owned()], vec!["host-1".to_owned()])
    );
    let ask = ["run", "--no-tty", "--app", "shop", "wget -qO- $RUNG_SERVICE_BILLING_LEDGER_URL/"];
    hosts.host(1).cli(&ask).succeeds().mentions("version 1");
    // The engine's bridge is another machine's here: what Rung tells its own kernel is of no use.
    eventually("doctor says so", || {
        let said = hosts.host(1).cli(&["doctor"]).everything();
        if said.contains("the engine's networks are not this machine's own") { Ok(()) } else { Err(said) }
    });
}
