//! Several machines on one bridge: joining, deploys over nodes, drained and lost nodes, more than one ingress. Root only.

use std::time::{Duration, Instant};

use rung_e2e::{Hosts, TestApp, eventually};

use crate::servers::load;

/// A server and so many workers.
fn cluster(workers: usize) -> Hosts {
    let mut hosts = Hosts::new(workers as u8 + 1);
    hosts.host_mut(1).serve();
    for number in 2..=workers + 1 {
        hosts.join(number, "worker");
    }
    hosts
}

#[test]
fn a_deploy_over_two_machines_loses_no_request_and_a_drained_machine_neither() {
    let mut hosts = cluster(1);
    let mut app = TestApp::new("shop", 2);
    hosts.host(1).deploy(app.directory()).succeeds();
    for node in ["host-1", "host-2"] {
        hosts.host(1).wait_until_routed("shop", 1, |on| on == node);
    }
    let load = load(&hosts, 1, "shop");
    load.wait_for(200);
    app.version = "2".into();
    hosts.host(1).deploy(app.directory()).succeeds();
    load.wait_for(100);
    hosts.host(1).cli(&["node", "drain", "host-2"]).succeeds().mentions("runs nothing any more");
    hosts.host(1).wait_until_routed("shop", 2, |on| on == "host-1");
    load.wait_for(100);
    hosts.host(1).cli(&["node", "drain", "host-2", "--undo"]).succeeds();
    hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-2");
    load.wait_for(100);
    let tally = load.stop();
    tally.assert_none_lost("a deploy over two machines, a drain and a restart");
    assert_eq!(tally.versions.len(), 2, "both versions have answered: {:?}", tally.versions);
    hosts.host(1).cli(&["logs", "--app", "shop"]).succeeds().mentions("listens on");
    hosts.power_off(2);
}

#[test]
fn what_ran_on_a_machine_that_lost_its_power_runs_elsewhere_within_fifteen_seconds() {
    let mut hosts = cluster(2);
    let app = TestApp::new("shop", 3);
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-3");
    let load = load(&hosts, 1, "shop");
    load.wait_for(100);
    hosts.power_off(3);
    let began = Instant::now();
    hosts.host(1).wait_until_routed("shop", 3, |on| on != "host-3");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(25), "replacing what ran there took {took:?}");
    let server = hosts.host(1);
    server.cli(&["ps", "--app", "shop"]).succeeds().mentions("lost").mentions("host-3 was not heard of");
    server.cli(&["scale", "web=2", "--app", "shop"]).succeeds().mentions("2 of 2 healthy");
    server.cli(&["restart", "--app", "shop"]).succeeds();
    server
        .cli(&["status", "--app", "shop"])
        .succeeds()
        .mentions("2 of 2 healthy")
        .mentions("rung node remove host-3");
    eventually("the list shows that it is lost", || {
        let said = hosts.host(1).cli(&["node", "list"]).succeeds();
        if said.out.contains("lost") { Ok(()) } else { Err(said.out) }
    });
    load.wait_for(100);
    let drain = server.cli(&["node", "drain", "host-3"]).ends_with(1);
    drain.mentions("was not heard of").mentions("rung node remove host-3");
    let tally = load.stop();
    // Requests that were on their way to it may fail; those after may not.
    assert!(tally.lost() <= 8, "{:?}\n{}", tally.outcomes, tally.troubles.join("\n"));
    hosts.host(1).cli(&["node", "remove", "host-3"]).succeeds();
}

#[test]
fn tokens_work_once_for_their_role_and_a_removed_node_is_refused() {
    let mut hosts = cluster(1);
    let server = hosts.host(1);
    let said = server.cli(&["node", "token", "--json"]).succeeds();
    let token = said.json::<serde_json::Value>()["token"].as_str().expect("it is a text").to_owned();
    let stranger = hosts.host(2);
    let try_join_at = |server: &str, token: &str, name: &str| {
        let data = stranger.data().with_file_name(format!("other-{name}"));
        stranger.cli(&[
            "join",
            server,
            token,
            "--name",
            name,
            "--data",
            data.to_str().expect("temporary directories have names in UTF-8"),
        ])
    };
    let try_join = |token: &str, name: &str| try_join_at("10.0.0.1:7864", token, name);
    try_join("worker.nonsense", "a").ends_with(2).mentions("no join token");
    let mut words: Vec<String> = token.split('.').map(str::to_owned).collect();
    words[0] = "ingress".into();
    try_join(&words.join("."), "b").ends_with(1).mentions("was changed");
    words[0] = "worker".into();
    let digits = words[3].clone();
    words[3] =
        if digits.starts_with('0') { digits.replacen('0', "1", 1) } else { format!("0{}", &digits[1..]) };
    try_join(&words.join("."), "c")
        .ends_with(1)
        .mentions("not the cluster")
        .mentions("nothing was sent there")
        .mentions("rung node token");
    try_join_at("10.0.0.1", &token, "d").ends_with(2).mentions("with its port, like 10.0.0.1:7864");
    try_join_at("10.0.0.1:8080", &token, "e").ends_with(1).mentions("the address and port of the API");
    try_join_at("10.0.0.1:9", &token, "f").ends_with(1).mentions("rung up --api 0.0.0.0:7864");
    try_join(&token, "host-2").ends_with(1).mentions("host-2 is taken");
    hosts.host_mut(2).kill_9();
    hosts.host(1).cli(&["node", "remove", "host-2", "--force"]).succeeds();
    hosts.host_mut(2).run(&["join"]);
    let began = Instant::now();
    eventually("the removed node is told", || {
        let output = hosts.host(2).output();
        if output.contains("taken out of its cluster") { Ok(()) } else { Err(output) }
    });
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    let nodes = hosts.host(1).nodes();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    hosts.host_mut(2).kill_9();
    let trust = hosts.host(2).data().join("trust");
    let again = hosts.host(2).cli(&["join", "10.0.0.1:7864", &token]).ends_with(1);
    again.mentions("when it was taken out of its cluster").mentions(&trust.display().to_string());
    std::fs::remove_dir_all(trust).expect("removing what the hint names");
    hosts.join(2, "worker");
}

#[test]
fn a_second_ingress_serves_the_same_apps_also_while_the_server_is_gone() {
    let mut hosts = Hosts::new(3);
    hosts.host_mut(1).serve();
    hosts.join(2, "worker");
    hosts.join(3, "ingress");
    let app = TestApp::new("shop", 2);
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-2");
    let load = load(&hosts, 3, "shop");
    load.wait_for(100);
    hosts.host_mut(1).kill_9();
    load.wait_for(200);
    load.stop().assert_none_lost("serving by a second ingress while the server is gone");

    // Its machine is lost in the midst of what comes next, which does not wait for it for ever, and says so.
    hosts.host_mut(1).serve();
    hosts.host(1).wait_until_routed("shop", 2, |_| true);
    eventually("the server has heard of the ingress again", || {
        let said = hosts.host(1).cli(&["doctor"]).out;
        if said.contains("3 follow the routes") { Ok(()) } else { Err(said) }
    });
    hosts.power_off(3);
    let said = hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
    said.mentions("proxy host-3.ingress was not heard of for 10 s and is not waited for");
    hosts.host(1).cli(&["doctor"]).mentions("not heard of: host-3.ingress");
}

#[test]
fn when_most_machines_fall_silent_at_once_nothing_is_moved_until_somebody_says_so() {
    let hosts = cluster(3);
    let app = TestApp::new("shop", 4);
    let server = hosts.host(1);
    server.deploy(app.directory()).succeeds();
    let ids = || {
        let mut ids: Vec<_> = server.instances("shop").into_iter().map(|instance| instance.id).collect();
        ids.sort();
        ids
    };
    for node in ["host-1", "host-2", "host-3", "host-4"] {
        server.wait_until_routed("shop", 1, |on| on == node);
    }
    let before = ids();

    // A switch fails, and comes back after longer than a machine may be silent.
    (2..=4).for_each(|number| hosts.cut(number));
    let began = Instant::now();
    eventually("the brake holds for longer than any loss takes to be seen", || {
        assert_eq!(ids(), before, "something was moved {:?} after the switch failed", began.elapsed());
        let said = server.cli(&["status", "--app", "shop"]).succeeds().out;
        let holds = said.contains("most nodes fell silent at once (host-2, host-3, host-4)");
        if holds && began.elapsed() > Duration::from_secs(12) { Ok(()) } else { Err(said) }
    });
    server.cli(&["node", "list"]).succeeds().mentions("silent");
    (2..=4).for_each(|number| hosts.mend(number));
    eventually("they are heard again", || {
        let said = server.cli(&["status", "--app", "shop"]).succeeds().out;
        if said.contains("silent") { Err(said) } else { Ok(()) }
    });
    server.wait_until_routed("shop", 4, |_| true);
    assert_eq!(ids(), before, "their return moved something");

    // This time two of them are gone for good, and a person knows.
    (2..=4).for_each(|number| hosts.cut(number));
    eventually("the brake holds", || {
        let said = server.cli(&["node", "list"]).succeeds().out;
        if said.matches("silent").count() == 3 { Ok(()) } else { Err(said) }
    });
    for node in ["host-2", "host-3"] {
        server.cli(&["node", "remove", node]).succeeds();
    }
    server.wait_until_routed("shop", 4, |on| on == "host-1");
    server.cli(&["node", "list"]).succeeds().mentions("lost");
}
