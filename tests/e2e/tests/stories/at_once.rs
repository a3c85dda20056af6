//! Things that happen at the same moment: each counts, one of two that exclude each other wins, and nothing is mixed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;

use rung_e2e::{Hosts, Rung, Said, TestApp, eventually};
use serde_json::Value;

use crate::servers;

/// Does the same so many times, each on a thread of its own, all from one moment on.
fn at_once<T: Send>(count: usize, act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(count);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (start, act) = (&start, &act);
                scope.spawn(move || {
                    start.wait();
                    act(number)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("its panic was told")).collect()
    })
}

#[track_caller]
fn all_succeed(said: Vec<Said>) {
    said.into_iter().for_each(|said| drop(said.succeeds()));
}

fn each_runs_one(hosts: &Hosts, asked: usize, app: &str, count: usize) {
    eventually(&format!("each of {count} nodes runs one instance"), || {
        let instances = hosts.host(asked).instances(app);
        let on: BTreeSet<String> = instances.iter().map(|instance| instance.node.to_string()).collect();
        let routed = instances.iter().filter(|instance| instance.routed).count();
        let seen = (instances.len(), on.len(), routed);
        if seen == (count, count, count) { Ok(()) } else { Err(format!("{seen:?}: {instances:#?}")) }
    });
}

#[test]
fn machines_that_join_at_the_same_moment_at_two_servers_run_one_instance_each() {
    let (servers, machines) = (2, 8);
    let mut hosts = servers::cluster(servers, machines);
    let mut app = TestApp::new("everywhere", 1);
    app.web().lines.push("instances = \"per-node\"".into());
    hosts.host(1).deploy(app.directory()).succeeds();
    let tokens: Vec<String> = (servers + 1..=machines)
        .map(|_| {
            let said = hosts.host(1).cli(&["node", "token", "--json"]).succeeds();
            said.json::<Value>()["token"].as_str().expect("a token is a text").to_owned()
        })
        .collect();
    let addresses = [1, 2].map(|server| hosts.host(server).address);
    // Each is a process of its own: they are started without waiting for any of them.
    for (number, token) in (servers + 1..=machines).zip(&tokens) {
        hosts.host_mut(number).join_with(token, addresses[number % servers], &[]);
    }
    (servers + 1..=machines).for_each(|number| hosts.wait_until_joined(number));
    for asked in 1..=servers {
        each_runs_one(&hosts, asked, "everywhere", machines);
    }
    let instances = hosts.host(1).instances("everywhere");
    let ids: BTreeSet<String> = instances.iter().map(|instance| instance.id.to_string()).collect();
    assert_eq!(ids.len(), machines, "ids are given twice: {instances:#?}");
    // By the letters of its node's number, after the last dash.
    let letters = |id: &String| {
        id.rsplit('-').next().map(|own| own.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned())
    };
    let numbers: BTreeSet<_> = ids.iter().map(letters).collect();
    assert_eq!(numbers.len(), machines, "nodes have one number: {ids:?}");
}

#[test]
fn settings_that_are_changed_at_the_same_moment_are_all_kept() {
    let rung = Rung::start();
    let count = 40;
    all_succeed(at_once(count, |n| rung.cli(&["config", "set", &format!("NAME_{n}={n}"), "--app", "shop"])));
    let kept: BTreeMap<String, String> =
        rung.cli(&["config", "get", "--app", "shop", "--json"]).succeeds().json();
    assert_eq!(kept.len(), count, "{kept:?}");
}

#[test]
fn of_secrets_that_are_set_at_the_same_moment_the_application_gets_the_one_that_was_accepted() {
    let rung = Rung::start();
    let app = TestApp::new("vault", 1);
    rung.deploy(app.directory()).succeeds();
    for round in 0..4 {
        let value = |n: usize| format!("value-of-{round}-{n}");
        let said = at_once(12, |n| {
            rung.cli_with_input(&["secret", "set", "TOKEN", "--app", "vault"], value(n).as_bytes())
        });
        let accepted: Vec<usize> =
            said.iter().enumerate().filter(|(_, said)| said.code == Some(0)).map(|(n, _)| n).collect();
        assert!(!accepted.is_empty(), "nobody's was accepted: {}", said[0].everything());
        rung.wait_until_settled("vault", "web", 1);
        let got = rung.page("vault", "/env?name=TOKEN");
        let accepted: Vec<String> = accepted.into_iter().map(value).collect();
        assert!(accepted.contains(&got), "the application got {got}, accepted were {accepted:?}");
    }
}

#[test]
fn the_master_key_is_replaced_again_and_again_while_secrets_are_set_and_none_is_lost() {
    let rung = Rung::start();
    let count = 24;
    let said = at_once(count, |n| {
        if n % 3 == 0 {
            rung.cli(&["secret", "rotate-key"])
        } else {
            let app = format!("app-{n}");
            rung.cli_with_input(&["secret", "set", "TOKEN", "--app", &app], b"kept well, I hope")
        }
    });
    all_succeed(said);
    for n in (0..count).filter(|n| n % 3 != 0) {
        let app = TestApp::new(&format!("app-{n}"), 1);
        // A release is refused whose secrets can't be opened.
        let said = rung.cli(&["deploy", "--build-only", app.directory().to_str().expect("it is UTF-8")]);
        said.succeeds();
    }
}

fn with_the_domain(name: &str) -> TestApp {
    let mut app = TestApp::new(name, 1);
    app.sections.push("domains = [\"www.example.com\"]".into());
    app
}

#[track_caller]
fn one_got_the_domain(said: Vec<Said>) {
    let (won, lost): (Vec<_>, Vec<_>) = said.into_iter().partition(|said| said.code == Some(0));
    assert_eq!(won.len(), 1, "{} deploys were given the domain", won.len());
    for said in lost {
        said.ends_with(1).mentions("www.example.com belongs to app");
    }
}

#[test]
fn a_domain_that_apps_ask_for_at_the_same_moment_is_given_to_one_of_them() {
    let rung = Rung::start();
    let apps: Vec<TestApp> = (0..8).map(|n| with_the_domain(&format!("app-{n}"))).collect();
    let directories: Vec<_> = apps.iter().map(|app| app.directory().to_owned()).collect();
    one_got_the_domain(at_once(apps.len(), |n| rung.deploy(&directories[n])));
}

#[test]
fn what_is_asked_of_three_servers_at_the_same_moment_is_kept_once_and_whole() {
    let hosts = servers::cluster(3, 3);
    let asked = |n: usize| hosts.host(n % 3 + 1);
    let count = 30;
    all_succeed(at_once(count, |n| {
        asked(n).cli(&["config", "set", &format!("NAME_{n}={n}"), "--app", "settings"])
    }));
    eventually("every server has all of them", || {
        for server in 1..=3 {
            let said = hosts.host(server).cli(&["config", "get", "--app", "settings", "--json"]).succeeds();
            let kept: BTreeMap<String, String> = said.json();
            if kept.len() != count {
                return Err(format!("server {server} has {kept:?}"));
            }
        }
        Ok(())
    });

    let apps: Vec<TestApp> = (0..6).map(|n| with_the_domain(&format!("app-{n}"))).collect();
    let directories: Vec<_> = apps.iter().map(|app| app.directory().to_owned()).collect();
    one_got_the_domain(at_once(apps.len(), |n| asked(n).deploy(&directories[n])));

    let app = TestApp::new("vault", 1);
    hosts.host(1).deploy(app.directory()).succeeds();
    // What was done at one server is so for the next one that is asked, at once.
    hosts.host(2).cli(&["scale", "web=2", "--app", "vault", "--no-wait"]).succeeds();
    hosts.host(3).cli(&["scale", "web=1", "--app", "vault"]).succeeds();
    hosts.host(1).wait_until_routed("vault", 1, |_| true);
    let value = |n: usize| format!("value-of-{n}");
    let said = at_once(9, |n| {
        let line = format!("printf %s {} | rung secret set TOKEN --app vault", value(n));
        asked(n).shell(&line, &BTreeMap::new())
    });
    let accepted = said.iter().enumerate().filter(|(_, said)| said.code == Some(0));
    let accepted: Vec<String> = accepted.map(|(n, _)| value(n)).collect();
    assert!(!accepted.is_empty(), "nobody's was accepted: {}", said[0].everything());
    let got = hosts.host(1).cli(&["run", "--no-tty", "--app", "vault", "printenv", "TOKEN"]).succeeds().out;
    assert!(
        accepted.iter().any(|value| got.contains(value)),
        "the app got {got}, accepted were {accepted:?}"
    );

    // Labels are bounded, and a server that is asked at the same moment knows that.
    let said = at_once(9, |n| {
        let labels: Vec<String> = (0..8).map(|label| format!("label-{n}-{label}=x")).collect();
        let words: Vec<&str> =
            ["node", "label", "host-3"].into_iter().chain(labels.iter().map(String::as_str)).collect();
        asked(n).cli(&words)
    });
    let labelled = said.iter().filter(|said| said.code == Some(0)).count();
    let node = hosts.host(1).nodes().into_iter().find(|node| node.node.as_str() == "host-3");
    let labels = node.expect("it is there").labels.len();
    assert_eq!(labels, labelled * 8, "what was accepted is not what is there");
    assert!(labels <= 64, "{labels} labels are more than a node may have");
}

const JOBS: &str = r#"[jobs.slow]
command = "exec sleep 1000"

[jobs.quick]
schedule = "0 0 1 1 *"
overlap = "allow"
command = "true""#;

#[test]
fn of_runs_that_forbid_each_other_one_is_begun_at_whichever_server_they_are_asked_for() {
    let hosts = servers::cluster(3, 3);
    let mut app = TestApp::new("errand", 1);
    app.sections.push(JOBS.into());
    hosts.host(1).deploy(app.directory()).succeeds();
    let said =
        at_once(12, |n| hosts.host(n % 3 + 1).cli(&["job", "run", "slow", "--no-wait", "--app", "errand"]));
    let (begun, refused): (Vec<_>, Vec<_>) = said.into_iter().partition(|said| said.code == Some(0));
    assert_eq!(begun.len(), 1, "{} runs were begun", begun.len());
    for said in refused {
        said.ends_with(1).mentions("overlap is forbidden");
    }
    // Those that don't are all begun, each as a run of its own.
    all_succeed(at_once(12, |n| {
        hosts.host(n % 3 + 1).cli(&["job", "run", "quick", "--no-wait", "--app", "errand"])
    }));
    eventually("each of them has ended well", || {
        let said = hosts.host(2).cli(&["job", "history", "quick", "--app", "errand", "--json"]).succeeds();
        let runs: Vec<Value> = said.json();
        let well = runs.iter().filter(|run| run["state"].to_string().contains("succeeded")).count();
        if (runs.len(), well) == (12, 12) { Ok(()) } else { Err(said.out) }
    });
}

#[test]
fn an_app_that_is_destroyed_while_everything_is_asked_of_it_leaves_nothing_to_the_next_of_its_name() {
    let rung = Rung::start();
    let mut app = TestApp::new("brief", 1);
    app.sections.push(JOBS.into());
    rung.deploy(app.directory()).succeeds();
    let words: [&[&str]; 8] = [
        &["destroy", "-y", "--app", "brief"],
        &["job", "run", "quick", "--no-wait", "--app", "brief"],
        &["job", "pause", "quick", "--app", "brief"],
        &["scale", "web=3", "--no-wait", "--app", "brief"],
        &["maintenance", "on", "--app", "brief"],
        &["run", "--no-tty", "--app", "brief", "true"],
        &["restart", "--no-wait", "--app", "brief"],
        &["job", "pin", "quick", "v1", "--app", "brief"],
    ];
    let said = at_once(words.len() * 3, |n| rung.cli(words[n % words.len()]));
    assert!(said.iter().any(|said| said.words.contains("destroy") && said.code == Some(0)), "{said:#?}");
    eventually("the app is gone", || match rung.try_app("brief") {
        Ok(status) => Err(format!("{status:?}")),
        Err(_) => Ok(()),
    });
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("brief", "web", 1);
    assert_eq!(rung.get("brief", "/").expect("it answers").status, 200, "it is in maintenance still");
    let said = rung.cli(&["job", "list", "--app", "brief", "--json"]).succeeds();
    let jobs: Vec<Value> = said.json();
    for job in &jobs {
        let left = [&job["paused"], &job["pinned"], &job["last"]].map(Value::is_null);
        assert_eq!(left, [true; 3], "the job of the app before is left: {job}");
    }
}
