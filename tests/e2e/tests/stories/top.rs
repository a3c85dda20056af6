//! What passes through, seen live: `rung top`, and the same numbers for Prometheus.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rung_e2e::{Hosts, Load, Rung, TestApp, eventually, http};
use serde_json::Value;

use crate::servers::cluster;

fn of<'f>(frame: &'f Value, what: &str, name: &str) -> Option<&'f Value> {
    let key = if what == "routes" { "route" } else { "instance" };
    frame[what].as_array()?.iter().find(|line| line[key] == name)
}

fn rate(line: &Value) -> f64 {
    line["requests_per_second"].as_f64().expect("a rate is a number")
}

#[test]
fn requests_errors_and_times_are_seen_by_route_and_by_instance() {
    let rung = Rung::start();
    let mut app = TestApp::new("shop", 2);
    app.sections.push(
        "[[routes]]\npath = \"/*\"\nservice = \"web\"\n\n[[routes]]\npath = \"/slow\"\nservice = \"web\""
            .into(),
    );
    app.set("BE_FAILING", "50");
    rung.deploy(app.directory()).succeeds();
    let instances = rung.wait_until_settled("shop", "web", 2);
    let quick = Load::start(rung.http(), "shop.localhost", "/");
    let slow =
        Load::start_clients(rung.http(), "shop.localhost", "/slow?ms=150", 1, Duration::from_millis(5));
    quick.wait_for(200);
    let frame: Value = rung.cli(&["top", "--app", "shop", "--once", "--json"]).succeeds().json();
    let all = of(&frame, "routes", "/*").unwrap_or_else(|| panic!("no line for /*: {frame}"));
    assert!(rate(all) > 10.0, "{all}");
    let failed = all["errors"].as_f64().unwrap() / all["requests"].as_f64().unwrap();
    assert!((0.35..0.65).contains(&failed), "every other request fails, and {failed} were seen: {all}");
    let of_slow = of(&frame, "routes", "/slow").unwrap_or_else(|| panic!("no line for /slow: {frame}"));
    assert!(of_slow["p50_ms"].as_f64().unwrap() >= 140.0, "{of_slow}");
    assert_eq!(of_slow["errors"], 0, "{of_slow}");
    let by_instance: Vec<&Value> = instances
        .iter()
        .map(|instance| of(&frame, "instances", instance.id.as_str()).unwrap_or_else(|| panic!("{frame}")))
        .collect();
    assert!(by_instance.iter().all(|line| rate(line) > 1.0), "{by_instance:?}");
    let together: f64 = by_instance.iter().map(|line| rate(line)).sum();
    let routes = rate(all) + rate(of_slow);
    assert!((together - routes).abs() < routes * 0.1, "instances had {together}/s, routes {routes}/s");

    rung.cli(&["top", "--app", "shop", "--once"]).succeeds().mentions("/slow").mentions("IN FLIGHT");
    let page = String::from_utf8(rung.api_get("/v1/metrics").expect("the page")).expect("text");
    let place = "ingress=\"ingress\",app=\"shop\",environment=\"production\",route=\"/*\"";
    for line in [
        format!("rung_http_requests_total{{{place},code=\"5xx\"}} "),
        format!("rung_http_response_seconds_bucket{{{place},le=\"+Inf\"}} "),
    ] {
        assert!(page.contains(&line), "no line {line} in\n{page}");
    }
    quick.stop();
    slow.stop();
}

#[test]
fn on_a_terminal_it_is_drawn_anew_and_in_a_pipe_each_line_stands_for_itself() {
    let rung = Rung::start();
    let app = TestApp::new("shop", 1);
    rung.deploy(app.directory()).succeeds();
    let load = Load::start(rung.http(), "shop.localhost", "/");
    load.wait_for(50);
    let words = ["top", "--app", "shop", "--interval", "1s"];
    let lines = watched(rung.cli_command(&words), |said| said.matches("shop /*").count() >= 2);
    assert!(!lines.contains('\x1b'), "a pipe is obeyed to as if it were a terminal: {lines:?}");
    assert!(lines.lines().all(|line| line.contains("requests/s")), "{lines}");

    let inner = rung.cli_command(&words);
    let mut terminal = Command::new("python3");
    terminal.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])"]).arg(inner.get_program());
    terminal.args(inner.get_args()).env("TERM", "xterm");
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    let drawn = watched(terminal, |said| said.matches("REQ/S").count() >= 6);
    assert!(drawn.contains("\x1b[J"), "nothing was drawn anew: {drawn:?}");
    load.stop();
}

/// What a command says until it is enough; it is ended then.
fn watched(mut command: Command, is_enough: impl Fn(&str) -> bool) -> String {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut out = child.stdout.take().expect("it is piped");
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    while !is_enough(&String::from_utf8_lossy(&said)) {
        let count = out.read(&mut piece).expect("reading a pipe");
        assert!(count > 0, "it ended by itself after {}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&piece[..count]);
    }
    child.kill().expect("it runs");
    child.wait().expect("it is a child");
    let said = String::from_utf8_lossy(&said).into_owned();
    said[..said.rfind('\n').map_or(0, |at| at + 1)].to_owned()
}

#[test]
fn who_may_see_one_app_sees_the_requests_of_that_app_alone() {
    let rung = Rung::start();
    for name in ["shop", "blog"] {
        rung.deploy(TestApp::new(name, 1).directory()).succeeds();
        rung.wait_until_settled(name, "web", 1);
        assert_eq!(rung.get(name, "/").expect("an answer").status, 200);
    }
    let routes = |said: rung_e2e::Said| {
        let frame: Value = said.json();
        let routes = frame["routes"].as_array().expect("a list").clone();
        routes.iter().map(|line| line["app"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let once = ["top", "--once", "--json", "--interval", "1s"];
    eventually("both apps are seen", || {
        let seen = routes(rung.cli(&once));
        if seen == ["blog", "shop"] { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let made =
        rung.cli(&["token", "create", "ada", "--role", "viewer", "--apps", "shop", "--json"]).succeeds();
    let token = made.json::<Value>()["token"].as_str().expect("a token is a text").to_owned();
    let as_ada = |words: &[&str]| rung.cli(&[words, &["--token", &token]].concat());
    assert_eq!(routes(as_ada(&once)), ["shop"]);
    as_ada(&["top", "--once", "--app", "blog"]).ends_with(1);
}

/// A little load for the ingresses of these machines.
fn load_each(hosts: &Hosts, numbers: &[usize]) -> Vec<Load> {
    let begin = |number: &usize| {
        let host = hosts.host(*number);
        let ask =
            || host.inside(|| http::get(host.http(), "shop.localhost", "/").map(|answer| answer.status));
        eventually(&format!("{} serves the app", host.name()), || match ask() {
            Ok(200) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let pace = Duration::from_millis(20);
        host.inside(|| Load::start_clients(host.http(), "shop.localhost", "/", 1, pace))
    };
    let loads: Vec<Load> = numbers.iter().map(begin).collect();
    loads.iter().for_each(|load| load.wait_for(20));
    loads
}

/// Waits until a machine's `rung top` shows more than any one of these ingresses serves: that of several, added up.
fn sees_all_of(hosts: &Hosts, asked: usize, loads: &[Load]) -> Value {
    let answered = || loads.iter().map(|load| load.tally().answered()).collect::<Vec<_>>();
    eventually(&format!("requests of all ingresses are seen at host-{asked}"), || {
        let before = answered();
        let words = ["top", "--app", "shop", "--once", "--json", "--interval", "3s"];
        let said = hosts.host(asked).cli(&words);
        if said.code != Some(0) {
            return Err(said.everything());
        }
        let frame: Value = said.json();
        let served: Vec<u64> = answered().iter().zip(before).map(|(after, before)| after - before).collect();
        let seen = of(&frame, "routes", "/*").and_then(|line| line["requests"].as_u64()).unwrap_or(0);
        // Each is told with a delay of up to a second.
        let most = served.iter().max().copied().unwrap_or(0);
        if seen > most + most / 4 { Ok(frame) } else { Err(format!("{seen} of {served:?}: {frame}")) }
    })
}

#[test]
fn what_two_ingresses_serve_is_seen_together() {
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).serve();
    hosts.join(2, "ingress");
    hosts.host(1).deploy(TestApp::new("shop", 1).directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-1");
    let loads = load_each(&hosts, &[1, 2]);
    sees_all_of(&hosts, 1, &loads);
    for load in loads {
        load.stop().assert_none_lost("being looked at");
    }
}

/// The page for Prometheus, as a role of the machine gets it.
fn metrics(data: &Path) -> String {
    let mut socket = UnixStream::connect(data.join("api.sock")).expect("the server listens");
    let asked = b"GET /v1/metrics HTTP/1.1\r\nHost: rung\r\nConnection: close\r\n\r\n";
    socket.write_all(asked).expect("the server reads");
    let mut page = String::new();
    socket.read_to_string(&mut page).expect("the page is a text");
    page
}

#[test]
fn any_of_several_servers_shows_what_the_ingresses_of_all_serve_and_names_one_that_does_not_answer() {
    let mut hosts = cluster(2, 2);
    let app = TestApp::new("shop", 2);
    hosts.host(2).deploy(app.directory()).succeeds();
    hosts.host(2).wait_until_routed("shop", 2, |_| true);
    let loads = load_each(&hosts, &[1, 2]);
    for asked in [1, 2] {
        let frame = sees_all_of(&hosts, asked, &loads);
        assert_eq!(frame["silent"], Value::Null, "{frame}");
        let page = metrics(&hosts.host(asked).data());
        for ingress in ["host-1.ingress", "host-2.ingress"] {
            assert!(page.contains(&format!("ingress=\"{ingress}")), "no {ingress} at host-{asked}: {page}");
        }
    }

    // Its process is gone, and what its ingress told it; the ingress goes on.
    hosts.host_mut(2).kill_9();
    eventually("the server that is gone is named", || {
        let words = ["top", "--app", "shop", "--once", "--interval", "1s"];
        let said = hosts.host(1).cli(&words).succeeds().everything();
        if said.contains("host-2 does not answer") { Ok(()) } else { Err(said) }
    });
    hosts.host_mut(2).run(&["join"]);
    let frame = sees_all_of(&hosts, 2, &loads);
    assert_eq!(frame["silent"], Value::Null, "{frame}");
    loads.into_iter().for_each(|load| drop(load.stop()));
}
