//! What is half broken on one machine of several: processes that stand still, cables that carry one way, a full disk. Root only.

use rung_e2e::{Hosts, SmallDisk, Tally, TestApp, Way, eventually, process};

use crate::servers::{cluster, leader, load, until_members_are_well};

/// Makes a token by this server, which is kept in the store; its name.
fn until_written(hosts: &Hosts, asked: usize, written: &mut Vec<String>) {
    let mut tries = 0;
    let name = eventually("a change is acknowledged", || {
        tries += 1;
        let name = format!("n{}-{tries}", written.len());
        let said = hosts.host(asked).cli(&["token", "create", &name, "--role", "viewer", "--app", "shop"]);
        if said.code == Some(0) { Ok(name) } else { Err(said.everything()) }
    });
    written.push(name);
}

fn assert_kept(hosts: &Hosts, asked: usize, written: &[String]) {
    let listed = hosts.host(asked).cli(&["token", "list"]).succeeds().out;
    for name in written {
        assert!(listed.contains(name.as_str()), "token {name} was acknowledged, and is not there:\n{listed}");
    }
}

/// Requests that were on their way to what stood still may fail, of each client one; those after may not.
fn assert_few_lost(tally: &Tally, most: u64, during: &str) {
    let troubles = tally.troubles.join("\n");
    assert!(tally.lost() <= most, "{during}: {:?}\n{troubles}", tally.outcomes);
}

#[test]
fn each_process_of_a_machine_may_stand_still_while_the_others_go_on() {
    let mut hosts = cluster(3, 4);
    hosts.join(4, "worker");
    let app = TestApp::new("shop", 4);
    let plans = leader(&hosts, 1).expect("somebody plans");
    let asked = plans % 3 + 1;
    hosts.host(asked).deploy(app.directory()).succeeds();
    hosts.host(asked).wait_until_routed("shop", 1, |on| on == "host-4");
    let load = load(&hosts, asked, "shop");
    load.wait_for(100);
    let mut written = Vec::new();
    for machine in [plans, 4] {
        let name = format!("host-{machine}");
        let instances =
            hosts.host(asked).instances("shop").into_iter().filter(|one| one.node.as_str() == name);
        let apps: Vec<_> = instances.filter_map(|one| one.pid.and_then(process::life)).collect();
        assert!(!apps.is_empty(), "nothing of the app runs on {name}");
        for life in hosts.host(machine).processes().into_iter().chain(apps) {
            if !life.goes_on() {
                continue; // Another one has taken its place while it, or what it belongs to, stood still.
            }
            let what = format!("{} of host-{machine}", process::describe(life.pid));
            let before = load.tally();
            process::freeze(life.pid);
            until_written(&hosts, asked, &mut written);
            load.wait_for(100);
            process::signal(life.pid, libc::SIGCONT);
            until_members_are_well(&hosts, asked, 3);
            hosts.host(asked).wait_until_routed("shop", 4, |_| true);
            let after = load.tally();
            println!(
                "{what}: {} requests lost, {} answered",
                after.lost() - before.lost(),
                after.answered() - before.answered()
            );
        }
    }
    let tally = load.stop();
    assert_few_lost(&tally, 12, "each process stood still in turn, two applications among them");
    assert_kept(&hosts, asked, &written);
}

#[test]
fn a_cable_that_carries_one_way_is_a_loss_that_ends() {
    let mut hosts = cluster(3, 5);
    for number in [4, 5] {
        hosts.join_with(number, "worker", &["--label", "kind=worker"]);
    }
    let mut app = TestApp::new("shop", 2);
    app.web().lines.push("place = { require = { kind = \"worker\" } }".into());
    hosts.host(1).deploy(app.directory()).succeeds();
    for node in ["host-4", "host-5"] {
        hosts.host(1).wait_until_routed("shop", 1, |on| on == node);
    }
    for way in [Way::In, Way::Out] {
        let load = load(&hosts, 1, "shop");
        load.wait_for(100);
        hosts.break_one_way(5, way);
        hosts.host(1).wait_until_routed("shop", 2, |on| on == "host-4");
        load.wait_for(100);
        hosts.mend_one_way(5);
        hosts.wait_until_joined(5);
        hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
        hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-5");
        load.wait_for(100);
        let tally = load.stop();
        assert_few_lost(&tally, 4, &format!("a cable that carried nothing {way:?}"));
    }
    let mut written = Vec::new();
    for way in [Way::In, Way::Out] {
        let plans = leader(&hosts, 1).expect("somebody plans");
        let asked = plans % 3 + 1;
        let load = load(&hosts, asked, "shop");
        load.wait_for(100);
        hosts.break_one_way(plans, way);
        eventually("another server plans", || match leader(&hosts, asked)? {
            other if other != plans => Ok(()),
            _ => Err("the same one still does".to_owned()),
        });
        until_written(&hosts, asked, &mut written);
        hosts.mend_one_way(plans);
        until_members_are_well(&hosts, asked, 3);
        until_written(&hosts, plans, &mut written);
        assert_kept(&hosts, plans, &written);
        load.wait_for(100);
        let tally = load.stop();
        assert_few_lost(&tally, 4, &format!("a cable that carried nothing {way:?}"));
    }
}

#[test]
fn a_full_disk_of_one_machine_is_told_and_harms_no_other() {
    let hosts = Hosts::new(3);
    let disk = SmallDisk::on(&hosts.host(3).data(), "48m");
    // Ended before the disk is: what runs on one that is gone is not found any more.
    let mut hosts = hosts;
    hosts.host_mut(1).serve();
    hosts.join(2, "worker");
    hosts.join(3, "worker");
    let mut app = TestApp::new("shop", 3);
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-3");
    let load = load(&hosts, 1, "shop");
    load.wait_for(100);
    disk.fill();
    eventually("the server knows that it is full", || {
        let said = hosts.host(1).cli(&["doctor"]).everything();
        if said.contains("disk of host-3: is full") { Ok(()) } else { Err(said) }
    });
    app.version = "2".into();
    std::fs::write(app.directory().join("ballast"), vec![7u8; 2_000_000]).expect("a file of the app");
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).wait_until_routed("shop", 3, |on| on != "host-3");
    load.wait_for(100);
    disk.free();
    eventually("the server knows that there is room again", || {
        let said = hosts.host(1).cli(&["doctor"]).everything();
        if said.contains("disk of host-3") { Err(said) } else { Ok(()) }
    });
    hosts.host(1).cli(&["restart", "--app", "shop"]).succeeds();
    hosts.host(1).wait_until_routed("shop", 1, |on| on == "host-3");
    assert!(hosts.host(1).page("shop").contains("version 2 "));
    load.stop().assert_none_lost("a full disk of one machine");
}
