//! Two ingresses of one cluster, and what they share: limits and certificates. Root only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rung_e2e::authority::{Authority, Looks};
use rung_e2e::{Hosts, Load, Tally, TestApp, eventually, http};

use crate::certificates::{DOMAIN, page_at, serial_at, shop};
use crate::servers::{cluster, leader};

/// Where both serve HTTPS.
const HTTPS: u16 = 8443;

/// Deploys an app that may be asked so often a second, and waits until the ingresses of these machines know that.
fn deploy_limited(hosts: &Hosts, numbers: &[usize]) -> TestApp {
    let mut app = TestApp::new("shop", 1);
    app.sections.push(format!(
        "[[routes]]\npath = \"/*\"\nservice = \"web\"\nlimit = {{ total = \"{RATE}/s\", burst = 20 }}"
    ));
    hosts.host(1).deploy(app.directory()).succeeds();
    for number in numbers {
        let host = hosts.host(*number);
        let ask = || host.inside(|| http::get(host.http(), "shop.localhost", "/"));
        eventually("an ingress limits the app", || match ask() {
            Ok(answer) if answer.header("ratelimit-policy").is_some() => Ok(()),
            Ok(answer) => Err(format!("{}: {:?}", answer.status, answer.headers)),
            Err(failure) => Err(format!("{failure:?}")),
        });
    }
    app
}

const RATE: u32 = 100;

/// Asks each for more than all together may let pass, by so many clients of 50 requests a second.
fn load_all(hosts: &Hosts, numbers: &[usize], clients: usize) -> Vec<Load> {
    let begin = |number: &usize| {
        let host = hosts.host(*number);
        let pace = Duration::from_millis(20);
        host.inside(|| Load::start_clients(host.http(), "shop.localhost", "/", clients, pace))
    };
    numbers.iter().map(begin).collect()
}

/// How many came and how many passed in a second, over so many times a thousand requests to each.
fn rates_of(loads: &[Load], thousands: u64) -> (f64, f64) {
    let counted = || {
        let tallies: Vec<_> = loads.iter().map(Load::tally).collect();
        let passed = tallies.iter().map(Tally::answered).sum::<u64>();
        (passed + tallies.iter().map(Tally::lost).sum::<u64>(), passed)
    };
    let (began, before) = (Instant::now(), counted());
    for _ in 0..thousands {
        loads.iter().for_each(|load| load.wait_for(1000));
    }
    let (took, after) = (began.elapsed(), counted());
    let rate = |count: u64| count as f64 / took.as_secs_f64();
    let (came, passed) = (rate(after.0 - before.0), rate(after.1 - before.1));
    println!("of {came:.1}/s {passed:.1}/s passed, in {took:?}");
    (came, passed)
}

fn assert_they_hold_the_limit_together(hosts: &Hosts, numbers: &[usize]) {
    let loads = load_all(hosts, numbers, 4);
    // Until they know of each other, and what each let pass beyond its part is made up for.
    loads.iter().for_each(|load| load.wait_for(600));
    // A thousand to one of two take five seconds: more than a minute in all, or ten.
    let (thousands, tolerance) = if rung_e2e::long() { (7, 0.01) } else { (1, 0.1) };
    let (_, rate) = rates_of(&loads, thousands);
    let is_held = (rate / f64::from(RATE) - 1.0).abs() < tolerance;
    assert!(is_held, "{rate:.1} a second passed, of a limit of {RATE}/s");
    let each: Vec<u64> = loads.into_iter().map(|load| load.stop().answered()).collect();
    assert!(each.iter().all(|passed| *passed > 50), "one of them lets nobody pass: {each:?}");
}

/// All visitors go from one to the other, and back: the five seconds behind that.
fn assert_it_holds_when_the_load_moves(hosts: &Hosts) {
    for (from, to) in [(1, 2), (2, 1)] {
        let before = load_all(hosts, &[from], 8);
        before.iter().for_each(|load| load.wait_for(1200));
        before.into_iter().for_each(|load| drop(load.stop()));
        let (came, passed) = rates_of(&load_all(hosts, &[to], 8), 2);
        // Clients on a machine that has no time for them do not ask for what they may have.
        let most = came.min(f64::from(RATE));
        let is_held = passed > most * 0.9 && passed < f64::from(RATE) * 1.1;
        assert!(is_held, "{passed:.1} a second passed of {came:.1} that came, after all moved to host-{to}");
    }
}

#[test]
fn two_ingresses_together_let_pass_what_one_limit_allows() {
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).serve();
    hosts.join(2, "ingress");
    let _app = deploy_limited(&hosts, &[1, 2]);
    assert_they_hold_the_limit_together(&hosts, &[1, 2]);
    assert_it_holds_when_the_load_moves(&hosts);
}

#[test]
fn a_limit_holds_over_ingresses_of_several_servers_and_what_is_left_of_it_when_one_is_lost() {
    let mut hosts = cluster(3, 3);
    let _app = deploy_limited(&hosts, &[1, 2, 3]);
    assert_they_hold_the_limit_together(&hosts, &[1, 2, 3]);
    // With its ingress. The others let pass what three did, and not two thirds of it.
    hosts.power_off(3);
    eventually("the others plan", || match leader(&hosts, 1)? {
        3 => Err("host-3 holds the key".to_owned()),
        _ => Ok(()),
    });
    hosts.host(1).wait_until_routed("shop", 1, |on| on != "host-3");
    assert_they_hold_the_limit_together(&hosts, &[1, 2]);
}

#[test]
fn one_certificate_is_ordered_and_both_ingresses_show_it() {
    let mut hosts = Hosts::new(2);
    let served = format!("0.0.0.0:{HTTPS}");
    hosts.host_mut(1).serve_with(&["--https", &served]);
    hosts.join_with(2, "ingress", &["--https", &served]);
    // The name leads to the machine that has no server: its ingress is the one that is asked for the proof.
    let looks = Looks { at: hosts.host(2).address, http: hosts.host(2).http().port(), https: HTTPS };
    let server = hosts.host(1);
    let authority = server.inside(|| Authority::start(looks));
    let root = server.inside(|| authority.root());
    server.deploy(shop().directory()).succeeds();
    server.wait_until_routed("shop", 1, |on| on == "host-1");
    let (directory, trust) = (authority.directory_url(), authority.trust());
    let trust = trust.to_str().expect("temporary directories have names in UTF-8");
    let enable = ["certificate", "enable", "--email", "ops@example.com", "--agree-to-terms"];
    server.cli(&[&enable[..], &["--directory", &directory, "--trust", trust]].concat()).succeeds();
    let at = |number: usize| SocketAddr::from((hosts.host(number).address, HTTPS));
    let shown = |number: usize| {
        let page = || hosts.host(number).inside(|| page_at(at(number), &root));
        let page = eventually(&format!("a stranger reaches the shop by host-{number}"), page);
        assert!(page.contains("version 1"), "{page}");
        hosts.host(number).inside(|| serial_at(at(number)))
    };
    let first = shown(2);
    assert!(!first.is_empty(), "no certificate is shown");
    assert_eq!(shown(1), first, "each ingress has one of its own");

    // A renewed one replaces it on both.
    server.cli(&["certificate", "renew", DOMAIN]).succeeds();
    let renewed = [1, 2].map(|number| {
        eventually(&format!("host-{number} shows the renewed one"), || match shown(number) {
            serial if serial != first => Ok(serial),
            serial => Err(serial),
        })
    });
    assert_eq!(renewed[0], renewed[1], "each ingress has one of its own");
    let events = server.cli(&["events"]).succeeds().everything();
    let issued = events.matches("shop.example.com has a certificate until").count();
    assert_eq!(issued, 2, "one was ordered and once renewed: {events}");
}
