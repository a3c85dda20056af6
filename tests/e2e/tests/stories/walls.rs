//! The addresses that an engine gives to containers are for their own app. Root only, as `rung doctor` says.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rung_api::wire::InstanceStatus;
use rung_e2e::engine::Dockerd;
use rung_e2e::podman::Podman;
use rung_e2e::{Network, Rung, Start, TestApp, eventually, http};

use super::containers::{billing, call, network, one, shop, stage};
use super::images::{EXPOSE, SERVE, Stage, app, of_image};

/// Where the test images serve.
const PORT: u16 = 8080;
/// Nobody of the machine's people.
const SOMEBODY: u32 = 12_345;
/// What is not let through a bridge is not answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// The container of an app's only instance of the service.
fn container(engine: &Dockerd, app: &str, service: &str) -> String {
    let (app, service) = (format!("label=rung.app={app}"), format!("label=rung.service={service}"));
    let listed = engine.docker(&["ps", "-q", "--filter", &app, "--filter", &service]);
    assert_eq!(listed.lines().count(), 1, "containers of {app} {service}: {listed:?}");
    listed
}

fn address(engine: &Dockerd, app: &str, service: &str) -> Ipv4Addr {
    engine.address(&container(engine, app, service), "bridge")
}

fn at(address: Ipv4Addr) -> String {
    format!("http://{address}:{PORT}/")
}

/// What somebody of the machine gets who is neither root nor an app.
fn somebody_asks(address: Ipv4Addr) -> String {
    let mut wget = Command::new("busybox");
    let asked = wget.args(["timeout", "3", "busybox", "wget", "-qO-", &at(address)]).uid(SOMEBODY).output();
    let asked = asked.expect("busybox is installed");
    format!("{}{}", String::from_utf8_lossy(&asked.stdout), String::from_utf8_lossy(&asked.stderr))
}

/// What the process gets from there.
fn process_asks(rung: &Rung, address: Ipv4Addr, port: u16) -> String {
    let answer = rung.get("billing", &format!("/call?at=http://{address}:{port}/"));
    answer.unwrap_or_else(|failure| panic!("billing does not answer: {failure:?}")).text()
}

const SERVED: &str = "from a container";

/// `shop` in containers, another app's container, and `billing`, a process that `shop` may call.
fn deploy_all(rung: &Rung) {
    rung.deploy(billing("\"shop\"").directory()).succeeds();
    rung.deploy(shop("shop", 1).path()).succeeds();
    rung.deploy(shop("other", 0).path()).succeeds();
    settle(rung);
}

fn settle(rung: &Rung) -> Vec<InstanceStatus> {
    [("billing", "web"), ("billing", "ledger"), ("shop", "web"), ("shop", "api"), ("other", "web")]
        .map(|(app, service)| one(rung, app, service))
        .into()
}

/// Nobody but its own app, and root, gets to a container by its address; what is allowed works.
#[track_caller]
fn assert_apart(stage: &Stage, rung: &Rung, when: &str) {
    let (api, other) = (address(&stage.engine, "shop", "api"), address(&stage.engine, "other", "web"));
    let asked = call(rung, "shop", &at(api));
    assert!(asked.contains(SERVED), "{when}, its own app does not reach it: {asked}");
    let asked = call(rung, "other", &at(api));
    assert!(!asked.contains(SERVED), "{when}, another app's container reaches it");
    let asked = call(rung, "shop", &at(other));
    assert!(!asked.contains(SERVED), "{when}, a container reaches another app's");
    let asked = process_asks(rung, api, PORT);
    assert!(asked.contains("refused"), "{when}, another app's process reaches it, or is not told: {asked}");
    let asked = somebody_asks(api);
    assert!(asked.contains("refused"), "{when}, somebody on the machine reaches it, or is not told: {asked}");
    let asked = http::get(SocketAddr::from((api, PORT)), "root", "/").map(|answer| answer.status);
    assert!(matches!(asked, Ok(200)), "{when}, root does not reach it: {asked:?}");
    let ledger = rung.app("billing").services.into_iter().find(|it| it.name.as_str() == "ledger");
    let ledger = ledger.and_then(|ledger| ledger.inside).expect("it has an address");
    assert!(call(rung, "shop", &ledger).contains("version 1"), "{when}, shop is not let in by billing");
    assert!(call(rung, "other", &ledger).contains("403"), "{when}, other is let in by billing");
}

/// The kernel's tables of this Rung.
fn tables_of(rung: &Rung) -> Vec<String> {
    let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nftables is installed");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let data = rung.data().to_str().expect("temporary directories have names in UTF-8");
    let tables = listed.split("\ntable ").filter(|table| table.contains(data));
    tables
        .filter_map(|table| Some(table.split_once(" {")?.0.trim_start_matches("table ").to_owned()))
        .collect()
}

#[test]
fn a_containers_address_is_for_its_own_app_whatever_becomes_of_rung() {
    let mut stage = stage();
    let mut rung = stage.rung();
    deploy_all(&rung);
    rung.cli(&["doctor"]).mentions("ok  addresses of containers");
    assert_apart(&stage, &rung, "at first");
    let shop = container(&stage.engine, "shop", "web");
    let bounds = stage.engine.docker(&["exec", &shop, "grep", "CapBnd", "/proc/self/status"]);
    let bounds = bounds.rsplit_once('\t').map(|(_, hex)| u64::from_str_radix(hex, 16));
    let bounds = bounds.expect("a line of a status").expect("a number");
    assert_eq!(bounds >> 13 & 1, 0, "it can put a neighbour's address on: {bounds:x}");

    // Whoever loads the machine's own firewall anew flushes everything.
    let tables = tables_of(&rung);
    assert_eq!(tables.len(), 3, "{tables:?}");
    for table in &tables {
        let arguments: Vec<&str> = ["delete", "table"].into_iter().chain(table.split(' ')).collect();
        assert!(Command::new("nft").args(arguments).status().is_ok_and(|status| status.success()), "{table}");
    }
    eventually("the addresses are kept again", || {
        let tables = tables_of(&rung);
        if tables.len() == 3 { Ok(()) } else { Err(format!("{tables:?}")) }
    });
    assert_apart(&stage, &rung, "after a flush");

    rung.kill_9();
    assert_apart_without_rung(&stage);
    rung.up(None, &[]);
    settle(&rung);
    assert_apart(&stage, &rung, "after a kill of rung");

    // The engine takes its containers along, and gives addresses anew.
    stage.engine.down();
    stage.engine.up();
    eventually("instances run again", || {
        let all = ["shop", "other"].into_iter().flat_map(|app| rung.instances(app));
        let away: Vec<InstanceStatus> = all.filter(|it| !it.routed || it.restarts == 0).collect();
        if away.is_empty() { Ok(()) } else { Err(format!("{away:?}")) }
    });
    settle(&rung);
    assert_apart(&stage, &rung, "after a restart of the engine");
    assert!(rung.interrupt().success(), "{}", rung.output());
    assert_eq!(
        tables_of(&rung),
        Vec::<String>::new(),
        "instances have ended, and their tables are still there"
    );
}

/// Nobody is there to ask the pages: the containers' own networks are.
fn assert_apart_without_rung(stage: &Stage) {
    let inside = |app: &str| {
        let pid =
            stage.engine.docker(&["inspect", "-f", "{{.State.Pid}}", &container(&stage.engine, app, "web")]);
        Network::of(pid.parse().expect("a number"))
    };
    let api = address(&stage.engine, "shop", "api");
    let connect = || TcpStream::connect_timeout(&(api, PORT).into(), PATIENCE).is_ok();
    assert!(inside("shop").inside(connect), "without rung its own app does not reach it");
    assert!(!inside("other").inside(connect), "without rung another app's container reaches it");
    let asked = somebody_asks(api);
    assert!(asked.contains("refused"), "without rung somebody on the machine reaches it: {asked}");
}

#[test]
fn those_of_others_on_the_same_engine_are_reached_and_do_not_reach_in() {
    let stage = stage();
    let rung = stage.rung();
    stage.engine.import_with("database:1", &[SERVE, EXPOSE], &[("www/index.html", "a database")]);
    stage.engine.make_network("beside");
    let start = |name: &str, network: &str| {
        stage.engine.docker(&["run", "-d", "--name", name, "--network", network, "database:1"]);
        stage.engine.address(name, network)
    };
    let before = start("before", "bridge");
    rung.deploy(shop("shop", 1).path()).succeeds();
    rung.deploy(TestApp::new("billing", 1).directory()).succeeds();
    let web = one(&rung, "shop", "web");
    one(&rung, "billing", "web");
    let (near, far) = (start("near", "bridge"), start("far", "beside"));
    for (address, what) in
        [(before, "one that was there"), (near, "a new one"), (far, "one on another network")]
    {
        eventually(&format!("{what} is reached by an app's container"), || {
            let said = call(&rung, "shop", &at(address));
            if said.contains("a database") { Ok(()) } else { Err(said) }
        });
        eventually(&format!("{what} is reached by an app's process"), || {
            let said = process_asks(&rung, address, PORT);
            if said.contains("a database") { Ok(()) } else { Err(said) }
        });
    }
    let shop = stage.engine.address(&container(&stage.engine, "shop", "web"), "bridge");
    for name in ["before", "near", "far"] {
        let pid = stage.engine.docker(&["inspect", "-f", "{{.State.Pid}}", name]);
        let place = SocketAddr::from((shop, PORT));
        let reached = Network::of(pid.parse().expect("a number"))
            .inside(|| TcpStream::connect_timeout(&place, PATIENCE).is_ok());
        assert!(!reached, "{name}, which is nobody's app, reaches an app's container");
    }
    // The outside begins at the machine itself.
    let machine = std::net::TcpListener::bind("0.0.0.0:0").expect("a port is free");
    let port = machine.local_addr().expect("it has an address").port();
    let gateway = stage.engine.docker(&["inspect", "-f", "{{.NetworkSettings.Gateway}}", "before"]);
    let gateway: Ipv4Addr = gateway.parse().expect("an address");
    network(&web)
        .inside(|| TcpStream::connect_timeout(&(gateway, port).into(), PATIENCE))
        .expect("the machine is reached");
}

/// The same over Podman, which names networks and gives cards in its own way.
#[test]
fn podmans_containers_call_services_and_are_for_their_own_app() {
    let podman = Podman::start();
    podman.import("localhost/base:1", &["sh", "httpd", "wget", "timeout", "echo", "sleep"]);
    let environment = vec![("DOCKER_HOST".into(), podman.host())];
    let mut rung = Rung::start_with(Start { environment, ..Start::default() });
    let serve = "command = \"echo from a container > /tmp/index.html; exec httpd -f -p $PORT -h /tmp\"\n";
    for name in ["shop", "other"] {
        let directory = app(&(of_image(name, "localhost/base:1", "") + serve));
        rung.deploy(directory.path()).succeeds();
    }
    rung.deploy(TestApp::new("billing", 1).directory()).succeeds();
    one(&rung, "billing", "web");
    let run = |rung: &Rung, app: &str, line: &str| {
        rung.cli(&["run", "--no-tty", "--app", app, line]).everything().contains(SERVED)
    };
    assert!(run(&rung, "shop", "wget -qO- $RUNG_SERVICE_WEB_URL/"), "a container finds no service");
    let other = one(&rung, "other", "web");
    for when in ["at first", "after a kill of rung"] {
        let web = one(&rung, "shop", "web");
        // No port is exposed by the image: inside it is what it is outside.
        let port = web.endpoint.expect("a healthy instance has an endpoint").port();
        let name = podman.podman(&["ps", "-q", "--filter", "label=rung.app=shop"]);
        let place = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address: Ipv4Addr = podman.podman(&["inspect", "-f", place, &name]).parse().expect("an address");
        let ask = format!("timeout 3 wget -qO- http://{address}:{port}/");
        assert!(run(&rung, "shop", &ask), "{when}, its own app does not reach it");
        assert!(!run(&rung, "other", &ask), "{when}, another app's container reaches it");
        let asked = process_asks(&rung, address, port);
        assert!(asked.contains("refused"), "{when}, another app's process reaches it: {asked}");
        rung.cli(&["doctor"]).mentions("ok  addresses of containers");
        if when == "at first" {
            rung.kill_9();
            let connect = || TcpStream::connect_timeout(&(address, port).into(), PATIENCE).is_ok();
            assert!(!network(&other).inside(connect), "without rung another app's container reaches it");
            rung.up(None, &[]);
        }
    }
}

#[test]
fn nobody_gets_to_a_container_in_its_first_moments() {
    let stage = stage();
    let rung = stage.rung();
    rung.deploy(shop("other", 0).path()).succeeds();
    let spy = one(&rung, "other", "web");
    let own = address(&stage.engine, "other", "web");
    let [a, b, c, _] = own.octets();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // All addresses that come next, over and over.
        let spying: Vec<_> = (2..10)
            .map(|last| Ipv4Addr::new(a, b, c, last))
            .filter(|address| *address != own)
            .map(|address| {
                let (network, is_over) = (network(&spy), &is_over);
                scope.spawn(move || {
                    network.inside(|| {
                        let (mut reached, mut tries) = (0, 0);
                        while !is_over.load(Ordering::Relaxed) {
                            let tried = TcpStream::connect_timeout(
                                &(address, PORT).into(),
                                Duration::from_millis(20),
                            );
                            reached += u32::from(tried.is_ok());
                            tries += 1;
                        }
                        (reached, tries)
                    })
                })
            })
            .collect();
        for _ in 0..3 {
            rung.deploy(shop("shop", 1).path()).succeeds();
            rung.cli(&["restart", "--app", "shop"]).succeeds();
        }
        is_over.store(true, Ordering::Relaxed);
        for spy in spying {
            let (reached, tries) = spy.join().expect("it does not panic");
            assert!(tries > 20, "it tried {tries} times only");
            assert_eq!(reached, 0, "another app's container was reached in {tries} tries");
        }
    });
}
