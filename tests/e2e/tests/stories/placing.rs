//! Labels of machines, and services that ask for them. Root only.

use rung_e2e::{Hosts, TestApp};

#[test]
fn a_service_runs_where_its_labels_are_and_follows_them() {
    let mut hosts = Hosts::new(3);
    hosts.host_mut(1).serve();
    hosts.join_with(2, "worker", &["--label", "zone=b", "--label", "disk=hdd"]);
    hosts.join(3, "worker");
    let mut app = TestApp::new("shop", 2);
    app.web().lines.push("place = { require = { disk = \"ssd\" } }".into());
    app.sections.push("[deploy]\ndeadline = \"3s\"".into());
    let server = hosts.host(1);
    server
        .deploy(app.directory())
        .ends_with(1)
        .mentions("its label disk is hdd, and ssd is asked for")
        .mentions("it has no label disk=ssd");
    server.cli(&["node", "label", "host-3", "disk=ssd", "zone=c"]).succeeds().mentions("disk=ssd, zone=c");
    server.cli(&["node", "list"]).succeeds().mentions("disk=hdd, zone=b");
    app.sections.clear();
    server.deploy(app.directory()).succeeds();
    server.wait_until_routed("shop", 2, |on| on == "host-3");
    server.cli(&["node", "label", "host-2", "disk=ssd"]).succeeds();
    server.cli(&["node", "label", "host-3", "disk="]).succeeds();
    server.wait_until_routed("shop", 2, |on| on == "host-2");
    server.cli(&["node", "label", "host-9", "disk=ssd"]).ends_with(1).mentions("no node host-9");
    server.cli(&["node", "label", "host-2", "disk"]).ends_with(2).mentions("write it like disk=ssd");
}

#[test]
fn a_drain_with_a_deadline_ends_what_has_no_other_place() {
    let mut hosts = Hosts::new(2);
    hosts.host_mut(1).serve();
    hosts.join_with(2, "worker", &["--label", "disk=ssd"]);
    let mut app = TestApp::new("shop", 1);
    app.web().lines.push("place = { require = { disk = \"ssd\" } }".into());
    let server = hosts.host(1);
    server.deploy(app.directory()).succeeds();
    let said = server.cli(&["node", "drain", "host-2", "--deadline", "3s"]).succeeds();
    let said = said.mentions("it has no label disk=ssd").mentions("runs nothing any more");
    assert!(said.took >= std::time::Duration::from_secs(3), "it ended before its time: {:?}", said.took);
}
