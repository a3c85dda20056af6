//! Pages of the documentation, followed word for word. Root only: their machines are network namespaces.

use rung_e2e::{Hosts, Page, TestApp, eventually};

#[test]
fn several_machines_are_what_their_page_says() {
    let mut hosts = Hosts::called("web", 5);
    let mut page = Page::open("cluster.md");
    page.follow(&mut hosts, "rung up");
    page.follow(&mut hosts, "rung token create");
    page.follow(&mut hosts, "rung node token");
    hosts.wait_until_joined(2);

    let app = TestApp::new("shop", 4);
    hosts.host(1).deploy(app.directory()).succeeds();
    page.follow(&mut hosts, "rung node label");
    waits_for_room(&mut page, &mut hosts);
    page.follow(&mut hosts, "rung node drain");
    hosts.host(1).cli(&["node", "drain", "web-2", "--undo"]).succeeds();

    page.follow(&mut hosts, "rung node token --role ingress");
    hosts.wait_until_joined(5);
    hosts.host_mut(5).stop();
    page.follow(&mut hosts, "apt-get install keepalived");

    hosts.join(3, "worker");
    hosts.join(4, "worker");
    (2..=4).for_each(|number| hosts.power_off(number));
    page.follow(&mut hosts, "rung node remove");
    page.was_followed();
}

/// An app that wants more than anybody has.
fn waits_for_room(page: &mut Page, hosts: &mut Hosts) {
    let mut app = TestApp::new("huge", 1);
    let lines = ["place = { require = { disk = \"ssd\" } }", "memory = \"900GB\""];
    app.web().lines.extend(lines.map(str::to_owned));
    let directory = app.directory().to_str().expect("temporary directories have names in UTF-8");
    hosts.host(1).cli(&["deploy", directory, "--no-wait"]).succeeds();
    page.follow(hosts, "rung status");
    hosts.host(1).cli(&["destroy", "--app", "huge", "-y"]).succeeds();
}

#[test]
fn several_servers_are_what_their_page_says() {
    let mut hosts = Hosts::called("web", 2);
    let mut page = Page::open("servers.md");
    hosts.host_mut(1).serve_with(&["--keep"]);
    let mut app = TestApp::new("shop", 2);
    hosts.host(1).deploy(app.directory()).succeeds();
    page.follow(&mut hosts, "rung cluster init");

    hosts.host(1).cli(&["cluster", "init", "--address", "10.0.0.1"]).succeeds();
    page.follow(&mut hosts, "rung node token --role server");
    hosts.wait_until_joined(2);
    let snapshot = hosts.host(1).cli(&["cluster", "snapshot"]).succeeds().out.trim().to_owned();
    app.version = "2".into();
    hosts.host(1).deploy(app.directory()).succeeds();
    eventually("the first release has ended", || {
        let instances = hosts.host(1).instances("shop");
        if instances.iter().all(|instance| instance.release.0 == 2) {
            Ok(())
        } else {
            Err(format!("{instances:?}"))
        }
    });
    hosts.power_off(2);
    page.means("/var/lib/rung/snapshots/20260304-110000-000-epoch2.db", snapshot);
    page.follow(&mut hosts, "rung cluster restore");
    page.follow(&mut hosts, "rung cluster approve");
    page.was_followed();
}
