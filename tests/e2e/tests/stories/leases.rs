//! Exclusive services over several machines: one that nobody hears of ends by itself before another begins. Root only.

use std::time::{Duration, Instant};

use rung_api::wire::InstanceStatus;
use rung_e2e::{Hosts, TestApp, eventually, process};
use rung_model::InstanceState;

/// A server that runs nothing of it, and two workers.
fn ledger() -> (Hosts, TestApp) {
    let mut hosts = Hosts::new(3);
    hosts.host_mut(1).serve();
    for number in [2, 3] {
        hosts.join_with(number, "worker", &["--label", "kind=worker"]);
    }
    let mut app = TestApp::new("ledger", 1);
    let lines = ["exclusive = true", "stop_grace = \"1s\"", "place = { require = { kind = \"worker\" } }"];
    app.web().lines.extend(lines.map(str::to_owned));
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("ledger", 1, |_| true);
    (hosts, app)
}

fn only(hosts: &Hosts) -> InstanceStatus {
    let mut instances = hosts.host(1).instances("ledger");
    assert_eq!(instances.len(), 1, "{instances:?}");
    instances.remove(0)
}

fn number(of: &InstanceStatus) -> usize {
    if of.node.as_str() == "host-2" { 2 } else { 3 }
}

fn fence(hosts: &Hosts) -> u64 {
    let host = hosts.host(1);
    let page = host.inside(|| rung_e2e::http::get(host.http(), "ledger.localhost", "/env?name=RUNG_FENCE"));
    page.expect("an answer").text().trim().parse().expect("the fencing token is a number")
}

#[test]
fn on_a_machine_that_is_cut_off_it_ends_by_itself_before_another_begins_elsewhere() {
    let (hosts, _app) = ledger();
    let (first, token) = (only(&hosts), fence(&hosts));
    let old = first.pid.and_then(process::life).expect("it runs");
    hosts.cut(number(&first));
    let began = Instant::now();
    let second = eventually("another one runs elsewhere", || {
        let found = hosts.host(1).instances("ledger").into_iter().find(|other| other.node != first.node);
        if found.is_some() && old.goes_on() {
            panic!("two are alive, {:?} after the cable was pulled", began.elapsed());
        }
        found.filter(|other| other.state == InstanceState::Healthy).ok_or_else(|| "not yet".to_owned())
    });
    let took = began.elapsed();
    assert!(took > Duration::from_secs(14), "its lease can't have been over after {took:?}");
    assert!(fence(&hosts) > token, "the token did not rise");
    hosts.mend(number(&first));
    eventually("the first one is forgotten", || {
        let instances = hosts.host(1).instances("ledger");
        if instances.len() == 1 { Ok(()) } else { Err(format!("{instances:?}")) }
    });
    assert_eq!(only(&hosts).id, second.id, "it moved once more");
}

#[test]
fn without_any_server_for_a_while_it_stops_and_comes_back_with_the_server() {
    let (mut hosts, _app) = ledger();
    let first = only(&hosts);
    let old = first.pid.and_then(process::life).expect("it runs");
    hosts.host_mut(1).kill_9();
    process::wait_until_gone(old);
    hosts.host_mut(1).serve();
    eventually("it serves again", || {
        let instances = hosts.host(1).instances("ledger");
        let serves = |one: &InstanceStatus| one.state == InstanceState::Healthy && one.routed;
        let is_new = |one: &InstanceStatus| one.pid.and_then(process::life).is_some_and(|life| life != old);
        match instances.as_slice() {
            [one] if serves(one) && is_new(one) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}
