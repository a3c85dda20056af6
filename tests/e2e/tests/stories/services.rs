//! Services that call each other: on one machine, on two, and those that may not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rung_api::wire::AppStatus;
use rung_e2e::{Hosts, Load, Rung, Service, TestApp, eventually, http, process};

fn service(name: &str, instances: u32, more: &[&str]) -> Service {
    let mut lines = vec!["health = { path = \"/up\", interval = \"200ms\", timeout = \"2s\" }".to_owned()];
    lines.push("drain = \"5s\"".to_owned());
    lines.extend(more.iter().map(|line| (*line).to_owned()));
    Service { name: name.into(), instances, lines }
}

/// `web` for visitors, and `api` for `web`.
fn shop(api: u32) -> TestApp {
    let mut app = TestApp::new("shop", 1);
    app.services.push(service("api", api, &[]));
    app
}

/// Where a service is called, on the server's machine.
fn inside(status: &AppStatus, service: &str) -> SocketAddr {
    let found = status.services.iter().find(|found| found.name.as_str() == service);
    let said = found.and_then(|found| found.inside.clone());
    let said = said.unwrap_or_else(|| panic!("{service} has no address inside: {status:?}"));
    said.trim_start_matches("http://").parse().unwrap_or_else(|error| panic!("{said}: {error}"))
}

#[test]
fn a_service_calls_another_one_by_the_address_in_its_environment() {
    let rung = Rung::start();
    let app = shop(2);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("shop", "api", 2);
    let answered_by = rung.page("shop", "/call?url=RUNG_SERVICE_API_URL&path=/env?name=RUNG_SERVICE");
    assert_eq!(answered_by, "api", "another service answered");
    let address = inside(&rung.app("shop"), "api");
    let told = rung.page("shop", "/env?name=RUNG_SERVICE_API_URL");
    assert_eq!(told, format!("http://{address}"), "the environment and `rung status` differ");
    rung.cli(&["status", "--app", "shop"]).succeeds().mentions(&format!("inside at http://{address}"));
    rung.cli(&["run", "--no-tty", "--app", "shop", "echo $RUNG_SERVICE_WEB_URL"])
        .succeeds()
        .mentions(&format!("http://{}", inside(&rung.app("shop"), "web")));
    let headers = rung.page("shop", "/call?url=RUNG_SERVICE_API_URL&path=/headers");
    assert!(headers.contains(&format!("host: {address}")), "{headers}");
    let nobody = SocketAddr::new("127.64.0.9".parse().expect("an address"), address.port());
    let answer = http::get(nobody, "nobody", "/").expect("an answer");
    assert_eq!((answer.status, answer.header("rung-error")), (404, Some("no_service")));
}

#[test]
fn a_service_calls_another_one_by_its_name() {
    let rung = Rung::start();
    let mut app = shop(1);
    app.sections.push("[environments.staging]".into());
    let staging = ["deploy", app.directory().to_str().expect("a name in UTF-8"), "--env", "staging"];
    rung.deploy(app.directory()).succeeds();
    rung.cli(&staging).succeeds();
    rung.wait_until_settled("shop", "api", 1);
    rung.wait_until_settled("shop@staging", "api", 1);
    let port = inside(&rung.app("shop"), "api").port();
    let call = |name: &str| format!("/call?at=http://{name}:{port}&path=/env?name=RUNG_ENVIRONMENT");
    assert_eq!(rung.page("shop", &call("api.shop.internal")), "production");
    assert_eq!(
        rung.page("shop-staging", &call("api.shop.internal")),
        "staging",
        "each in its own environment"
    );
    assert_eq!(rung.page("shop-staging", &call("api.staging.shop.internal")), "staging");
    let unknown = rung.get("shop", &call("api.staging.shop.internal")).expect("an answer");
    assert_eq!(unknown.status, 424, "another environment's service has a name: {}", unknown.text());
    let said = rung.cli(&[
        "run",
        "--no-tty",
        "--app",
        "shop",
        "getent hosts web.shop.internal; echo $RUNG_SERVICES_PORT",
    ]);
    said.succeeds().mentions("127.").mentions(&port.to_string());
}

#[test]
fn names_of_services_are_answered_by_dns_also_while_the_proxy_is_replaced() {
    let mut hosts = Hosts::new(1);
    hosts.host_mut(1).serve();
    let app = shop(1);
    hosts.host(1).deploy(app.directory()).succeeds();
    let status: AppStatus = hosts.host(1).cli(&["status", "--app", "shop", "--json"]).succeeds().json();
    let api = inside(&status, "api").ip().to_string();
    let ask = |hosts: &Hosts, name: &str| hosts.host(1).inside(|| look_up(name)).expect("an answer by DNS");
    assert_eq!(ask(&hosts, "api.shop.internal"), (0, Some(api.clone())));
    assert_eq!(ask(&hosts, "nobody.shop.internal"), (3, None), "there is no such name");
    assert_eq!(ask(&hosts, "example.com"), (5, None), "that is for others to answer");
    hosts.host_mut(1).kill_9();
    assert_eq!(ask(&hosts, "api.shop.internal"), (0, Some(api.clone())), "the proxy goes on without rung");
    hosts.host_mut(1).serve();
    assert_eq!(ask(&hosts, "api.shop.internal"), (0, Some(api)), "and so does the next one");
}

/// Asks Rung's own address by DNS: what came of it, and the address.
fn look_up(name: &str) -> std::io::Result<(u8, Option<String>)> {
    let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("labels are short"));
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.connect("127.64.0.1:53")?;
    socket.send(&question)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    let address =
        (answer[7] == 1).then(|| answer[length - 4..length].iter().map(u8::to_string).collect::<Vec<_>>());
    Ok((answer[3] & 0xf, address.map(|bytes| bytes.join("."))))
}

#[test]
fn calls_go_on_while_instances_die_and_a_new_release_takes_over() {
    let mut rung = Rung::start();
    let mut app = shop(2);
    rung.deploy(app.directory()).succeeds();
    let before = rung.wait_until_settled("shop", "api", 2);
    let address = inside(&rung.app("shop"), "api");
    let load = Load::start(address, "api.shop.internal", "/");
    load.wait_for(100);
    process::kill_9(before[0].pid.expect("a healthy instance has a process"));
    load.wait_for(50);
    rung.wait_until_settled("shop", "api", 2);
    app.version = "2".into();
    rung.deploy(app.directory()).succeeds();
    load.wait_for(50);
    // The proxy is replaced under the calls, with the same listening socket.
    rung.kill_9();
    rung.up(None, &[]);
    rung.wait_until_settled("shop", "api", 2);
    assert_eq!(inside(&rung.app("shop"), "api"), address, "a service moved to another address");
    load.wait_for(100);
    let tally = load.stop();
    tally.assert_none_lost("a kill, a deploy and a restart of rung");
    assert_eq!(tally.versions.len(), 2, "both releases have answered: {:?}", tally.versions);
}

#[test]
fn a_service_that_is_not_there_yet_is_waited_for_by_whoever_calls() {
    let rung = Rung::start();
    let app = shop(0);
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    let answer = rung.get("shop", "/call?url=RUNG_SERVICE_API_URL").expect("an answer");
    assert_eq!((answer.status, answer.header("x-refused")), (503, Some("no_instance")), "{}", answer.text());
    rung.cli(&["scale", "api=1", "--app", "shop"]).succeeds();
    // The caller was started before: its address has not changed.
    rung.page("shop", "/call?url=RUNG_SERVICE_API_URL");
    rung.cli(&["destroy", "--app", "shop", "-y"]).succeeds();
}

/// Root only, as `rung doctor` says: without it apps have the same user.
#[test]
fn an_app_calls_another_apps_service_where_that_allows_it() {
    let rung = Rung::start();
    let mut billing = TestApp::new("billing", 1);
    billing.services.push(service("ledger", 1, &["allow = [\"reports\"]"]));
    rung.deploy(billing.directory()).succeeds();
    for name in ["reports", "shop"] {
        rung.deploy(TestApp::new(name, 1).directory()).succeeds();
        rung.wait_until_settled(name, "web", 1);
    }
    let ledger = format!("http://{}", inside(&rung.app("billing"), "ledger"));
    let call = "/call?url=RUNG_SERVICE_BILLING_LEDGER_URL";
    assert_eq!(rung.page("reports", "/env?name=RUNG_SERVICE_BILLING_LEDGER_URL"), ledger);
    assert!(rung.page("reports", call).contains("version 1"), "reports is allowed");
    let by_name =
        format!("/call?at=http://ledger.billing.internal:{}", inside(&rung.app("billing"), "ledger").port());
    assert!(rung.page("reports", &by_name).contains("version 1"), "reports finds it by its name");
    assert_eq!(rung.get("shop", &by_name).expect("an answer").status, 424, "shop was told its name");
    let answer = rung.get("shop", "/env?name=RUNG_SERVICE_BILLING_LEDGER_URL").expect("an answer");
    assert_eq!(answer.status, 404, "shop was told where the ledger is");

    // Whoever knows the address all the same.
    let mut shop = TestApp::new("shop", 1);
    shop.set("LEDGER", &ledger);
    rung.deploy(shop.directory()).succeeds();
    let refused = eventually("shop is refused", || match rung.get("shop", "/call?url=LEDGER") {
        Ok(answer) if answer.status == 403 => Ok(answer),
        Ok(answer) => Err(format!("{}: {}", answer.status, answer.text())),
        Err(failure) => Err(format!("{failure:?}")),
    });
    assert_eq!(refused.header("x-refused"), Some("caller_refused"));
    assert!(refused.text().contains("ledger of billing does not allow shop"), "{}", refused.text());

    billing.services[1].lines.retain(|line| !line.starts_with("allow"));
    billing.services[1].lines.push("allow = [\"reports\", \"shop\"]".into());
    rung.deploy(billing.directory()).succeeds();
    assert!(rung.page("shop", "/call?url=LEDGER").contains("version 1"), "shop is allowed now");
    billing.services[1].lines.retain(|line| !line.starts_with("allow"));
    rung.deploy(billing.directory()).succeeds();
    eventually("reports is not allowed any more", || {
        let answer = rung.get("reports", call).map_err(|failure| format!("{failure:?}"))?;
        if answer.status == 403 { Ok(()) } else { Err(answer.text()) }
    });
}

/// Where an instance of the service listens itself.
fn own_port(rung: &Rung, app: &str, service: &str) -> SocketAddr {
    let instances = rung.wait_until_settled(app, service, 1);
    instances[0].endpoint.expect("a healthy instance has an endpoint")
}

/// The kernel's table that keeps the ports of this Rung's instances.
fn table_of(rung: &Rung) -> Option<String> {
    let listed =
        Command::new("nft").args(["list", "ruleset", "inet"]).output().expect("nftables is installed");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let data = rung.data().to_str().expect("temporary directories have names in UTF-8");
    let mut tables = listed.split("table inet ").filter(|table| table.contains(data));
    tables.next().and_then(|table| Some(table.split_once(' ')?.0.to_owned()))
}

/// Root only, as `rung doctor` says.
#[test]
fn an_instances_own_port_is_for_the_proxy_and_for_its_own_app() {
    let mut rung = Rung::start();
    let mut billing = TestApp::new("billing", 1);
    billing.services.push(service("ledger", 1, &[]));
    rung.deploy(billing.directory()).succeeds();
    rung.deploy(TestApp::new("shop", 1).directory()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    let call = format!("/call?at=http://{}", own_port(&rung, "billing", "ledger"));
    assert!(rung.page("billing", &call).contains("version 1"), "its own app reaches it");
    let ask = |rung: &Rung| {
        let answer = rung.get("shop", &call).map_err(|failure| format!("{failure:?}"))?;
        if answer.status == 424 {
            Ok(answer.text())
        } else {
            Err(format!("{}: {}", answer.status, answer.text()))
        }
    };
    let refused = ask(&rung).expect("another app reached the port of an instance");
    assert!(refused.contains("refused"), "it is told at once: {refused}");
    rung.cli(&["doctor"]).mentions("ok  ports of instances");

    // Whoever loads the machine's own firewall anew flushes everything.
    let table = table_of(&rung).expect("rung has a table");
    let flushed = Command::new("nft").args(["delete", "table", "inet", &table]).status();
    assert!(flushed.expect("nftables is installed").success(), "{table} was there");
    eventually("the ports are kept again", || ask(&rung));

    rung.kill_9();
    ask(&rung).expect("without rung another app reached the port of an instance");
    rung.up(None, &[]);
    rung.wait_until_settled("billing", "ledger", 1);
    ask(&rung).expect("after a restart of rung another app reached the port of an instance");
    assert!(rung.interrupt().success());
    assert_eq!(table_of(&rung), None, "instances have ended, and their table is still there");
}

#[test]
fn an_instance_that_listens_everywhere_is_not_reached_from_other_machines() {
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).serve();
    let mut app = TestApp::new("open", 1);
    app.set("BE_LISTENING_AT", "0.0.0.0");
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("open", 1, |_| true);
    let instance = hosts.host(1).instances("open").remove(0);
    let port = instance.endpoint.expect("a healthy instance has an endpoint").port();
    let address = SocketAddr::new(hosts.host(1).http().ip(), port);
    let ask = |from: usize| hosts.host(from).inside(|| http::get(address, "open", "/"));
    assert_eq!(ask(1).expect("root of its machine reaches it").status, 200, "it listens everywhere");
    assert!(ask(2).is_err(), "another machine reached the port of an instance");
}

#[test]
fn over_two_machines_calls_reach_the_other_one_and_none_fails_when_instances_die() {
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).serve();
    hosts.join_with(2, "worker", &["--label", "disk=ssd"]);
    let mut app = TestApp::new("shop", 1);
    app.services.push(service("api", 2, &["place = { require = { disk = \"ssd\" } }"]));
    app.services.push(service("near", 2, &[]));
    hosts.host(1).deploy(app.directory()).succeeds();
    let status: AppStatus = hosts.host(1).cli(&["status", "--app", "shop", "--json"]).succeeds().json();
    let nodes = |service: &str| {
        let instances = hosts.host(1).instances("shop").into_iter();
        let of_it = instances.filter(|instance| instance.service.as_str() == service);
        of_it.map(|instance| instance.node.to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(nodes("api"), ["host-2".to_owned()].into(), "the label was not minded");
    assert_eq!(nodes("near").len(), 2, "there is one beside each caller");
    let (api, near) = (inside(&status, "api"), inside(&status, "near"));
    let load = |from: usize, address: SocketAddr| {
        hosts.host(from).inside(|| Load::start_clients(address, "inside", "/", 4, Duration::from_millis(10)))
    };
    // From the machine that has none of it, and from the one that has all.
    let (far, beside, close) = (load(1, api), load(2, api), load(1, near));
    for load in [&far, &beside, &close] {
        load.wait_for(100);
    }
    let victim =
        hosts.host(1).instances("shop").into_iter().find(|instance| instance.service.as_str() == "api");
    let pid = victim.and_then(|victim| victim.pid).expect("a healthy instance has a process");
    process::kill_9(pid);
    far.wait_for(100);
    app.version = "2".into();
    hosts.host(1).deploy(app.directory()).succeeds();
    for load in [&far, &beside, &close] {
        load.wait_for(100);
    }
    far.stop().assert_none_lost("calls from the other machine");
    beside.stop().assert_none_lost("calls from the same machine");
    close.stop().assert_none_lost("calls that have an instance beside them");
    hosts.power_off(2);
}
