//! An address that moves between the machines whose ingress answers. Root only; with Debian's keepalived.

use std::net::SocketAddr;

use rung_e2e::{Hosts, TestApp, eventually, http, process};

const ADDRESS: &str = "10.0.0.200";

/// A server, two ingresses that share an address, and an app.
fn stage() -> (Hosts, TestApp) {
    let mut hosts = Hosts::new(3);
    hosts.host_mut(1).serve();
    for number in [2, 3] {
        hosts.join_with(number, "ingress", &["--floating", ADDRESS]);
    }
    let app = TestApp::new("shop", 2);
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 2, |on| on == "host-1");
    (hosts, app)
}

/// The one machine of the two that has the address.
fn holder(hosts: &Hosts) -> usize {
    eventually("one of the ingresses has the address", || {
        match [2, 3].into_iter().filter(|number| hosts.host(*number).has_address(ADDRESS)).collect::<Vec<_>>()
            [..]
        {
            [one] => Ok(one),
            ref several => Err(format!("{several:?}\n{}", hosts.host(2).output())),
        }
    })
}

/// Asked from the server's machine, as a visitor would.
fn page(hosts: &Hosts) -> String {
    let address = SocketAddr::new(ADDRESS.parse().expect("it is an address"), 8080);
    eventually("the app answers at the floating address", || {
        match hosts.host(1).inside(|| http::get(address, "shop.localhost", "/")) {
            Ok(answer) if answer.status == 200 => Ok(answer.text()),
            other => Err(format!("{other:?}\n{}\n{}", hosts.host(2).output(), hosts.host(3).output())),
        }
    })
}

#[test]
fn the_address_moves_to_the_other_ingress_when_a_machine_is_lost_or_stopped() {
    let (mut hosts, _app) = stage();
    let first = holder(&hosts);
    let second = 5 - first;
    page(&hosts);
    let said = hosts.host(first).output();
    assert!(said.contains(&format!("this machine has the floating address {ADDRESS} now")), "{said}");

    hosts.power_off(first);
    page(&hosts);
    assert!(hosts.host(second).has_address(ADDRESS), "the other machine does not have the address");

    // It comes back and does not take the address away from who serves.
    hosts.mend(first);
    hosts.host_mut(first).run(&["join", "--floating", ADDRESS]);
    eventually("the machine that came back knows who has the address", || {
        let said = hosts.host(first).output();
        let heard = format!("this machine stands by for the floating address {ADDRESS}");
        if said.contains(&heard) { Ok(()) } else { Err(said) }
    });
    assert_eq!(holder(&hosts), second, "the address moved without need");

    // A machine that is stopped gives it up by itself.
    hosts.host_mut(second).stop();
    assert!(!hosts.host(second).has_address(ADDRESS), "it was stopped and still has the address");
    assert_eq!(holder(&hosts), first);
    page(&hosts);
}

fn keepalived(hosts: &Hosts, number: usize) -> Vec<process::Life> {
    let mut lives = hosts.host(number).processes();
    lives.retain(|life| process::describe(life.pid).contains("`keepalived"));
    assert!(!lives.is_empty(), "keepalived does not run:\n{}", hosts.host(number).output());
    lives
}

#[test]
fn a_killed_rung_keeps_the_address_and_one_whose_ingress_is_gone_too_loses_it() {
    let (mut hosts, _app) = stage();
    let first = holder(&hosts);
    let before = keepalived(&hosts, first);
    hosts.host_mut(first).kill_9();
    page(&hosts);
    assert_eq!(holder(&hosts), first, "the ingress goes on, so the address stays");
    hosts.host_mut(first).run(&["join", "--floating", ADDRESS]);
    eventually("the next rung finds keepalived again", || {
        let said = hosts.host(first).output();
        if said.contains("goes on from an earlier start") { Ok(()) } else { Err(said) }
    });
    assert_eq!(keepalived(&hosts, first), before, "it was started anew");
    assert_eq!(holder(&hosts), first, "the address stays");

    hosts.host_mut(first).kill_9();
    for life in hosts.host(first).processes() {
        if process::describe(life.pid).contains(" ingress ") {
            process::kill_9(life.pid);
        }
    }
    let second = 5 - first;
    eventually("the address is where an ingress is", || {
        if hosts.host(second).has_address(ADDRESS) && !hosts.host(first).has_address(ADDRESS) {
            Ok(())
        } else {
            Err(hosts.host(second).output())
        }
    });
    page(&hosts);
}

#[test]
fn what_can_not_work_is_said_at_once() {
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).serve();
    let up = |more: &[&str]| {
        hosts.host(2).cli(&[&["up", "--http", "127.0.0.1:0", "--api", "127.0.0.1:0"], more].concat())
    };
    up(&["--floating", ADDRESS]).ends_with(2).mentions("127.0.0.1:").mentions("--http 0.0.0.0:");
    let up = |more: &[&str]| {
        hosts.host(2).cli(&[&["up", "--http", "0.0.0.0:0", "--api", "127.0.0.1:0"], more].concat())
    };
    up(&["--floating", "192.0.2.9"])
        .ends_with(2)
        .mentions("no network of this machine")
        .mentions("10.0.0.2/24 on eth0");
    up(&["--floating", "nowhere"]).ends_with(2).mentions("nowhere");
}
