//! What people did at several servers, and what happened there: each server tells of all of them, and of one that is lost.

use std::path::PathBuf;

use rung_e2e::{Host, Hosts, eventually};
use serde_json::Value;

use crate::servers::{cluster, until_members_are_well};

fn token(host: &Host, name: &str) {
    host.cli(&["token", "create", name, "--role", "viewer", "--app", "shop"]).succeeds();
}

/// Up to which record one server has copied the trail of another.
fn copied(hosts: &Hosts, at: usize, of: usize) -> u64 {
    let said = hosts.host(at).cli(&["audit", "verify", "--json"]);
    let trails: Vec<Value> =
        serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{}", said.everything()));
    let name = hosts.host(of).name();
    let trail = trails.iter().find(|trail| trail["server"] == name);
    trail.and_then(|trail| trail["copied"]["sequence"].as_u64()).unwrap_or(0)
}

/// A token is made in two records, and the last one is the end of it.
fn until_copied(hosts: &Hosts, at: usize, of: usize) {
    let trail = std::fs::read_to_string(trail(hosts, of)).expect("a trail");
    let last = trail.lines().count() as u64;
    eventually(&format!("host-{at} has copied the trail of host-{of}"), || match copied(hosts, at, of) {
        found if found == last => Ok(()),
        found => Err(format!("up to {found} of {last}")),
    });
}

/// The first file of a server's own trail.
fn trail(hosts: &Hosts, of: usize) -> PathBuf {
    hosts.host(of).data().join("audit/audit-000000000001.log")
}

#[test]
fn what_was_done_and_what_happened_at_any_server_is_told_by_all_of_them_also_of_a_lost_one() {
    let mut hosts = cluster(3, 3);
    token(hosts.host(2), "made-before");
    token(hosts.host(2), "made-at-two");
    token(hosts.host(3), "made-at-three");
    token(hosts.host(1), "made-at-one");
    for number in 1..=3 {
        let told = hosts.host(number).cli(&["audit"]).succeeds();
        let lines: Vec<&str> = told.out.lines().collect();
        assert!(lines[0].starts_with("SERVER"), "{}", told.everything());
        let line = |text: &str| {
            let found = lines.iter().position(|line| line.contains(text));
            found.unwrap_or_else(|| panic!("{text} is not told: {}", told.everything()))
        };
        let places = [line("made-at-two"), line("made-at-three"), line("made-at-one")];
        assert!(places.is_sorted(), "not in their order: {}", told.everything());
        assert!(lines[places[0]].starts_with("host-2 "), "{}", lines[places[0]]);
        assert_eq!(told.err, "", "something is missing");
        eventually("events of the other servers are told", || {
            let told = hosts.host(number).cli(&["events"]).succeeds();
            let places = ["made-at-two", "made-at-three", "made-at-one"].map(|text| told.out.find(text));
            let in_order = places.is_sorted() && places[0].is_some();
            if in_order && told.out.contains("host-3 ") { Ok(()) } else { Err(told.out) }
        });
    }
    until_copied(&hosts, 1, 3);
    until_copied(&hosts, 1, 2);
    let whole = hosts.host(1).cli(&["audit", "verify"]).succeeds().mentions("trail of host-2 is whole");
    let seen = whole.out.lines().next_back().expect("what is to be kept elsewhere").to_owned();
    assert!(seen.starts_with("host-3:"), "{seen}");

    // A machine is lost with what people did at it.
    hosts.power_off(3);
    for number in 1..=2 {
        let told = hosts.host(number).cli(&["audit"]).succeeds().mentions("made-at-three");
        told.mentions("server host-3 can't be asked").mentions("have copied of its trail goes to record");
        let verified = hosts.host(number).cli(&["audit", "verify", "--seen", &seen]).ends_with(1);
        verified.mentions("copy here of the audit trail of host-3 is whole").mentions("can't be asked");
    }
    hosts.host(2).cli(&["events"]).succeeds().mentions("made-at-three");
    hosts.host(1).cli(&["node", "remove", "host-3"]).succeeds();
    hosts.host(1).cli(&["audit"]).succeeds().mentions("made-at-three").mentions("is no server any more");
    hosts.host(1).cli(&["audit", "verify", "--seen", &seen]).succeeds();

    // Whoever takes the last records away at one server is found out at the other.
    hosts.host_mut(2).kill_9();
    let whole = std::fs::read_to_string(trail(&hosts, 2)).expect("a trail");
    let lines: Vec<&str> = whole.lines().collect();
    std::fs::write(trail(&hosts, 2), lines[..lines.len() - 2].join("\n") + "\n").expect("it can be cut");
    hosts.host_mut(2).run(&["join"]);
    until_members_are_well(&hosts, 1, 2);
    eventually("it answers again, and finds its own trail whole", || {
        let said = hosts.host(2).cli(&["audit", "verify", "--seen", &seen]);
        if said.out.contains("trail of host-2 is whole") { Ok(()) } else { Err(said.everything()) }
    });
    let found = hosts.host(1).cli(&["audit", "verify"]).ends_with(1);
    found.mentions("the audit trail of server host-2 is not whole").mentions("was seen before");
    // What it says after that does not follow, and the copy stays as it was.
    for turn in 0..3 {
        token(hosts.host(2), &format!("after-{turn}"));
    }
    eventually("it is told that the trail is another one", || {
        let told = hosts.host(1).cli(&["audit"]);
        if told.err.contains("not copied any more") { Ok(()) } else { Err(told.everything()) }
    });
    hosts.host(1).cli(&["events"]).succeeds().mentions("the audit trail of server host-2 is not copied");
}
