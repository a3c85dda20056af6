//! Two ingresses of one cluster, and what they share: limits and certificates. Root only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rung_e2e::authority::{Authority, Looks};
use rung_e2e::{Hosts, Load, TestApp, eventually, http};

use crate::certificates::{DOMAIN, page_at, serial_at, shop};

/// Where both serve HTTPS.
const HTTPS: u16 = 8443;

#[test]
fn two_ingresses_together_let_pass_what_one_limit_allows() {
    const RATE: f64 = 100.0;
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).serve();
    hosts.join(2, "ingress");
    let mut app = TestApp::new("shop", 1);
    app.sections.push(
        "[[routes]]\npath = \"/*\"\nservice = \"web\"\nlimit = { total = \"100/s\", burst = 20 }".into(),
    );
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-1");
    let ask = |number: usize| {
        let address = hosts.host(number).http();
        let answer = hosts.host(number).inside(|| http::get(address, "shop.localhost", "/"));
        answer.map_err(|failure| format!("{failure:?}"))
    };
    for number in [1, 2] {
        eventually("an ingress limits the app", || match ask(number)? {
            answer if answer.header("ratelimit-policy").is_some() => Ok(()),
            answer => Err(format!("{}: {:?}", answer.status, answer.headers)),
        });
    }
    // Each is asked for more than both may let pass.
    let loads = [1, 2].map(|number| {
        let address = hosts.host(number).http();
        hosts
            .host(number)
            .inside(|| Load::start_clients(address, "shop.localhost", "/", 4, Duration::from_millis(20)))
    });
    let passed = || loads.iter().map(|load| load.tally().answered()).sum::<u64>();
    // Until they know of each other, and what each let pass beyond its part is made up for.
    loads.iter().for_each(|load| load.wait_for(600));
    let (began, before) = (Instant::now(), passed());
    let (requests, tolerance) = if rung_e2e::long() { (12_000, 0.01) } else { (1500, 0.1) };
    loads.iter().for_each(|load| load.wait_for(requests));
    let (took, passed) = (began.elapsed(), passed() - before);
    let rate = passed as f64 / took.as_secs_f64();
    println!("{passed} passed in {took:?}: {rate:.1}/s");
    assert!(
        (rate / RATE - 1.0).abs() < tolerance,
        "{rate:.1} a second passed, for {took:?}, of a limit of {RATE}/s"
    );
    let each: Vec<u64> = loads.into_iter().map(|load| load.stop().answered()).collect();
    assert!(each.iter().all(|passed| *passed > 50), "one of them lets nobody pass: {each:?}");
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
