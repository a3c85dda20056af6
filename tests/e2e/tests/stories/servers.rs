//! Several servers over one etcd. They share this machine, each with an address of its own below 127.0.0.0/8.

use rung_e2e::{Load, Rung, Start, TestApp, eventually, process};

/// Servers of one cluster; the first one founded it.
struct Servers {
    all: Vec<Rung>,
    /// What makes one a server is handed over in files here.
    place: tempfile::TempDir,
    network: String,
}

impl Servers {
    fn found() -> Self {
        // Stories run side by side, each in a process of its own.
        let pid = std::process::id();
        let network = format!("127.{}.{}", 64 + pid / 250 % 128, pid % 250);
        let rung = Rung::start_with(Start { options: vec!["--keep".into()], ..Start::default() });
        rung.cli(&["cluster", "init", "--address", &format!("{network}.1")]).succeeds();
        let place = tempfile::tempdir().expect("a temporary directory");
        Self { all: vec![rung], place, network }
    }

    fn join(&mut self) {
        let number = self.all.len() + 1;
        let (name, address) = (format!("server-{number}"), format!("{}.{number}", self.network));
        let said = self.all[0].cli(&["cluster", "admit", &name, "--address", &address]).succeeds();
        let (file, data) = (self.place.path().join(&name), self.place.path().join(format!("{name}-data")));
        std::fs::write(&file, &said.out).expect("writing what admits a server");
        let (file, path) = (file.to_str().expect("UTF-8"), data.to_str().expect("UTF-8"));
        self.all[0].cli(&["cluster", "enter", file, "--data", path]).succeeds();
        let options = vec!["--keep".into()];
        let rung = Rung::start_with(Start { data: Some(data), options, ..Start::default() });
        self.all.push(rung);
        let full = self.all.len();
        eventually("the new server is a full member", || {
            let report = report(&self.all[0]);
            let states = report["members"].as_array().cloned().unwrap_or_default();
            let is_full =
                |member: &serde_json::Value| member["state"] == "follows" || member["state"] == "leads";
            if states.len() == full && states.iter().all(is_full) { Ok(()) } else { Err(report.to_string()) }
        });
    }

    /// The index of the server that plans, by what another one says.
    fn leader(&self, asked: usize) -> Result<usize, String> {
        let report = report(&self.all[asked]);
        let leader = report["leader"].as_str().unwrap_or_default();
        let named = |rung: &Rung| std::fs::read_to_string(rung.data().join("node-name")).unwrap_or_default();
        self.all
            .iter()
            .position(|rung| named(rung).trim() == leader)
            .ok_or_else(|| format!("{leader:?} plans: {report}"))
    }
}

impl Servers {
    fn until_another_plans(&self, asked: usize, before: usize) -> usize {
        eventually("another server plans", || match self.leader(asked) {
            Ok(next) if next != before => Ok(next),
            Ok(_) => Err("the same one still holds the key".to_owned()),
            Err(why) => Err(why),
        })
    }
}

fn report(rung: &Rung) -> serde_json::Value {
    rung.cli(&["cluster", "--json"]).json()
}

#[test]
fn three_servers_share_one_state_and_any_of_them_may_die_or_sleep() {
    let mut servers = Servers::found();
    let app = TestApp::new("shared", 3);
    servers.all[0].deploy(app.directory()).succeeds();
    servers.join();
    servers.join();
    for rung in &servers.all {
        rung.wait_until_settled("shared", "web", 3);
        assert!(rung.page("shared", "/").contains("version"), "each server's ingress serves every app");
    }
    let load = Load::start(servers.all[0].http(), "shared.localhost", "/");

    // The one that plans dies, with the node on which the instances are. Another one plans; they are served on.
    let first = servers.leader(1).expect("somebody plans");
    let asked = (first + 1) % 3;
    servers.all[first].kill_9();
    let next = servers.until_another_plans(asked, first);
    let options = ["--keep".into(), "--http".into(), load.address().to_string()];
    servers.all[first].up(None, if first == 0 { &options } else { &options[..1] });
    assert_eq!(
        servers.leader(first).expect("somebody plans"),
        next,
        "the one that came back took the lead away"
    );

    // What is asked of one server is planned by another; an instance goes when all servers' ingresses know of it.
    servers.all[first].cli(&["scale", "web=2", "--app", "shared"]).succeeds();
    for rung in &servers.all {
        rung.wait_until_settled("shared", "web", 2);
    }

    // One that sleeps for longer than its lease follows when it wakes.
    process::freeze(servers.all[next].pid());
    let asked = (next + 1) % 3;
    let third = servers.until_another_plans(asked, next);
    process::signal(servers.all[next].pid(), libc::SIGCONT);
    eventually("the one that slept follows", || {
        let leader = servers.leader(next)?;
        if leader == third { Ok(()) } else { Err(format!("{leader} plans")) }
    });
    servers.all[next].cli(&["scale", "web=1", "--app", "shared"]).succeeds();
    for rung in &servers.all {
        rung.wait_until_settled("shared", "web", 1);
    }
    load.stop().assert_none_lost("two changes of the one that plans, and two scale-downs");
}

#[test]
fn servers_come_and_go_and_what_is_not_allowed_is_said() {
    let mut servers = Servers::found();
    let address = format!("{}.2", servers.network);
    servers.all[0].cli(&["cluster", "admit", "server-2", "--address", &address]).succeeds();
    let other = format!("{}.3", servers.network);
    servers.all[0]
        .cli(&["cluster", "admit", "server-3", "--address", &other])
        .ends_with(1)
        .mentions("another server is awaited");
    servers.all[0].cli(&["cluster"]).succeeds().mentions("is awaited");
    // It is admitted already; the same again is no error.
    servers.join();
    servers.all[0].cli(&["cluster"]).ends_with(1).mentions("two servers bear no loss");
    servers.all[0].cli(&["cluster", "dissolve"]).ends_with(1).mentions("server-2");
    servers.all[1].cli(&["cluster", "remove", "server-2"]).ends_with(1).mentions("can't remove itself");
    servers.all[0].cli(&["cluster", "remove", "server-9"]).ends_with(1).mentions("no server server-9");

    // The second machine is lost, and with it the majority: only a snapshot helps.
    let app = TestApp::new("kept", 1);
    servers.all[0].deploy(app.directory()).succeeds();
    let snapshot = servers.all[0].cli(&["cluster", "snapshot"]).succeeds().out.trim().to_owned();
    drop(servers.all.pop());
    let rung = &mut servers.all[0];
    rung.cli(&["config", "set", "A=1", "--app", "kept"]).ends_with(1);
    rung.cli(&["cluster"]).ends_with(1).mentions("rung cluster restore");
    assert!(rung.page("kept", "/").contains("version"), "applications are served without a majority");
    rung.kill_9();
    rung.cli(&["cluster", "restore", &snapshot, "-y"]).succeeds().mentions("server-2");
    rung.up(None, &["--keep".into()]);
    rung.cli(&["cluster", "approve", "--without-silent", "-y"]).succeeds();
    rung.cli(&["cluster"]).succeeds().mentions("a cluster of one server");
    rung.cli(&["config", "set", "A=1", "--app", "kept"]).succeeds();
    rung.cli(&["cluster", "dissolve"]).succeeds();
    rung.cli(&["config", "get", "A", "--app", "kept"]).succeeds().mentions("1");
}
