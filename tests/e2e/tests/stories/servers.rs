//! Several servers over one etcd, on machines of their own: any of them may die, sleep, or be cut off. Root only.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rung_e2e::{Hosts, Load, TestApp, Webhook, eventually, process};
use serde_json::Value;

/// So many machines, the first `servers` of which are servers of one cluster.
pub fn cluster(servers: usize, machines: usize) -> Hosts {
    let mut hosts = Hosts::new(machines as u8);
    hosts.host_mut(1).serve();
    hosts.host(1).cli(&["cluster", "init"]).succeeds().mentions("the state is in etcd");
    for number in 2..=servers {
        join(&mut hosts, number);
    }
    hosts
}

fn join(hosts: &mut Hosts, number: usize) {
    hosts.join(number, "server");
    until_members_are_well(hosts, 1, number);
}

fn report(hosts: &Hosts, asked: usize) -> Result<Value, String> {
    let said = hosts.host(asked).cli(&["cluster", "--json"]);
    serde_json::from_str(&said.out)
        .map_err(|_| format!("{}\n{}", said.everything(), hosts.host(asked).output()))
}

pub fn until_members_are_well(hosts: &Hosts, asked: usize, count: usize) {
    eventually(&format!("{count} servers are full members"), || {
        let report = report(hosts, asked)?;
        let members = report["members"].as_array().cloned().unwrap_or_default();
        let is_well = |member: &Value| member["state"] == "follows" || member["state"] == "leads";
        let well = members.iter().filter(|member| is_well(member)).count();
        if (well, members.len()) == (count, count) { Ok(()) } else { Err(report.to_string()) }
    });
}

/// The number of the machine that plans, by what another one says.
pub fn leader(hosts: &Hosts, asked: usize) -> Result<usize, String> {
    let report = report(hosts, asked)?;
    let leader = report["leader"].as_str().and_then(|name| name.strip_prefix("host-"));
    leader.and_then(|number| number.parse().ok()).ok_or_else(|| format!("nobody plans: {report}"))
}

/// What befell the server that plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    Kill9,
    Sigstop,
    CutCable,
    PowerFailure,
}

impl Blow {
    /// How long nobody planned, at most: five seconds as long as etcd's own leader is there, ten otherwise, and on top what
    /// two busy cores and the asking cost.
    fn planned_within(self) -> Duration {
        match self {
            Self::Kill9 | Self::Sigstop => Duration::from_secs(5 + 3),
            Self::CutCable | Self::PowerFailure => Duration::from_secs(10 + 5),
        }
    }
}

pub fn until_another_plans(hosts: &Hosts, asked: usize, before: usize, after: Blow) -> usize {
    let began = Instant::now();
    let next = eventually(&format!("another server plans after {after:?}"), || match leader(hosts, asked) {
        Ok(next) if next != before => Ok(next),
        Ok(_) => Err("the same one still holds the key".to_owned()),
        Err(why) => Err(why),
    });
    let took = began.elapsed();
    println!("after {after:?} host-{next} plans, {took:?} later");
    assert!(took < after.planned_within(), "after {after:?} it took {took:?} until somebody planned");
    next
}

fn until_scaled(hosts: &Hosts, asked: usize, app: &str, count: usize) {
    let words = format!("web={count}");
    eventually("the change is accepted", || {
        let said = hosts.host(asked).cli(&["scale", &words, "--app", app]);
        if said.code == Some(0) { Ok(()) } else { Err(said.everything()) }
    });
    hosts.host(asked).wait_until_routed(app, count, |_| true);
}

/// From the machine whose ingress serves it.
pub fn load(hosts: &Hosts, ingress: usize, app: &str) -> Load {
    let (address, host) = (hosts.host(ingress).http(), format!("{app}.localhost"));
    hosts.host(ingress).inside(|| Load::start_clients(address, &host, "/", 4, Duration::from_millis(10)))
}

#[test]
fn any_of_three_servers_may_die_sleep_or_be_cut_off_and_another_one_plans() {
    let mut hosts = cluster(3, 3);
    // Wherever an agent beats, each server knows that it does.
    eventually("every server finds every agent well", || {
        let said = [1, 2, 3].map(|asked| hosts.host(asked).cli(&["doctor"]).out);
        let well = |out: &String| (1..=3).all(|agent| out.contains(&format!("agent host-{agent}: beats")));
        if said.iter().all(well) { Ok(()) } else { Err(said.join("\n")) }
    });
    let app = TestApp::new("shared", 3);
    hosts.host(2).deploy(app.directory()).succeeds();
    for number in 1..=3 {
        hosts.host(number).wait_until_routed("shared", 3, |_| true);
        assert!(
            hosts.host(number).page("shared").contains("version"),
            "each server's ingress serves every app"
        );
    }

    // The process of the one that plans dies; it is started again and follows.
    let first = leader(&hosts, 1).expect("somebody plans");
    let asked = first % 3 + 1;
    hosts.host_mut(first).kill_9();
    let next = until_another_plans(&hosts, asked, first, Blow::Kill9);
    match first {
        1 => hosts.host_mut(1).serve(),
        _ => hosts.host_mut(first).run(&["join"]),
    }
    eventually("the one that was killed follows", || match leader(&hosts, first)? {
        plans if plans == next => Ok(()),
        plans => Err(format!("host-{plans} plans")),
    });
    until_scaled(&hosts, first, "shared", 4);

    // It sleeps for longer than its lease, and changes nothing when it wakes.
    let asked = next % 3 + 1;
    process::freeze(hosts.host(next).pid());
    let third = until_another_plans(&hosts, asked, next, Blow::Sigstop);
    process::signal(hosts.host(next).pid(), libc::SIGCONT);
    eventually("the one that slept follows", || match leader(&hosts, next)? {
        plans if plans == third => Ok(()),
        plans => Err(format!("host-{plans} plans")),
    });
    until_scaled(&hosts, next, "shared", 2);

    // Its cable is pulled, with its member of etcd and its ingress. The others go on, and it follows when it is back.
    let asked = third % 3 + 1;
    let load = load(&hosts, asked, "shared");
    load.wait_for(20);
    hosts.cut(third);
    until_another_plans(&hosts, asked, third, Blow::CutCable);
    eventually("it says that it knows nothing new", || {
        let said = hosts.host(third).cli(&["status", "--app", "shared"]);
        if said.out.contains("what is shown may be old: this server does not reach") {
            Ok(())
        } else {
            Err(said.everything())
        }
    });
    hosts.host(asked).cli(&["node", "token"]).succeeds();
    hosts.host(asked).wait_until_routed("shared", 2, |node| node != format!("host-{third}"));
    hosts.mend(third);
    until_members_are_well(&hosts, asked, 3);
    eventually("the one that was cut off knows what was decided without it", || {
        let (here, there) = (leader(&hosts, third)?, leader(&hosts, asked)?);
        if here == there { Ok(()) } else { Err(format!("{here} instead of {there}")) }
    });
    until_scaled(&hosts, third, "shared", 3);
    load.wait_for(50);
    drop(load.stop());
}

#[test]
fn each_rung_of_a_cluster_is_replaced_in_its_turn_and_no_request_is_lost() {
    let mut hosts = cluster(3, 5);
    hosts.join(4, "worker");
    hosts.join(5, "ingress");
    hosts.host(4).cli(&["service", "install", "--print"]).succeeds().mentions("\"join\"");
    let app = TestApp::new("lasting", 4);
    hosts.host(1).deploy(app.directory()).succeeds();
    (1..=3).for_each(|number| hosts.host(number).wait_until_routed("lasting", 4, |_| true));
    let loads: Vec<Load> = [1, 2, 3, 5].map(|ingress| load(&hosts, ingress, "lasting")).into();
    let go_on = || loads.iter().for_each(|load| load.wait_for(50));
    go_on();
    for number in 1..=5 {
        hosts.host(number).cli(&["upgrade", "-y"]).succeeds().mentions("instances and requests went on");
        if number <= 3 {
            eventually("it answers for itself", || leader(&hosts, number).map(drop));
        }
        until_members_are_well(&hosts, number % 3 + 1, 3);
        // Whatever was replaced takes part in what is changed next.
        let count = if number % 2 == 0 { 4 } else { 5 };
        until_scaled(&hosts, number % 3 + 1, "lasting", count);
        go_on();
    }
    for load in loads {
        load.stop().assert_none_lost("the replacement of every rung");
    }
}

#[test]
fn what_was_deployed_by_a_server_that_is_lost_is_started_by_the_others() {
    let mut hosts = Hosts::new(4);
    hosts.host_mut(1).serve();
    hosts.host(1).cli(&["node", "token", "--role", "server"]).ends_with(1).mentions("rung cluster init");
    // The worker knows of one server when it joins, and hears of the others.
    hosts.join(4, "worker");
    hosts.host(1).cli(&["cluster", "init"]).succeeds();
    join(&mut hosts, 2);
    join(&mut hosts, 3);
    let mut app = TestApp::new("shop", 2);
    hosts.host(1).deploy(app.directory()).succeeds();
    app.version = "2".into();
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(3).wait_until_routed("shop", 2, |_| true);
    hosts.host(3).cli(&["logs", "--app", "shop"]).succeeds().mentions("listens on");
    hosts.host(3).cli(&["events", "--app", "shop"]).succeeds().mentions("d2");

    hosts.power_off(1);
    eventually("the others plan", || match leader(&hosts, 3)? {
        1 => Err("host-1 holds the key".to_owned()),
        _ => Ok(()),
    });
    hosts.host(3).wait_until_routed("shop", 2, |node| node != "host-1");
    // Its artifacts came from the machine that is gone; the worker's server is gone, too.
    hosts.host(2).cli(&["rollback", "v1", "--app", "shop"]).succeeds();
    assert!(hosts.host(3).page("shop").contains("version 1 "), "the artifact of v1 was lost with its server");
    hosts.host(2).cli(&["scale", "web=3", "--no-wait", "--app", "shop"]).succeeds();
    hosts.host(2).wait_until_routed("shop", 3, |node| node != "host-1");
    hosts.host(3).wait_until_routed("shop", 1, |node| node == "host-4");

    // It is taken out, and another machine is let in under its name. What the old one still has is worth nothing.
    hosts.host(2).cli(&["cluster"]).ends_with(1).mentions("host-1 can't be reached");
    hosts.host(2).cli(&["node", "remove", "host-1"]).succeeds();
    until_members_are_well(&hosts, 2, 2);
    hosts.host(2).cli(&["cluster"]).ends_with(1).mentions("two servers bear no loss");
}

#[test]
fn a_webhook_that_refused_is_told_again_by_another_server_when_the_one_that_plans_is_lost() {
    let mut hosts = cluster(3, 3);
    let plans = leader(&hosts, 1).expect("somebody plans");
    let asked = plans % 3 + 1;
    let address = hosts.host(asked).address;
    let hook = hosts.host(asked).inside(|| Webhook::listening(address, &[503, 503, 503]));
    let mut app = TestApp::new("loud", 1);
    app.sections.push(format!("[notify]\nwebhook = {:?}", hook.address));
    hosts.host(asked).deploy(app.directory()).succeeds();
    let (_, first) = hook.next();
    assert_eq!((&first["id"], &first["outcome"]), (&"loud.d1".into(), &"succeeded".into()));
    hosts.power_off(plans);
    until_another_plans(&hosts, asked, plans, Blow::PowerFailure);
    let (_, again) = hook.next();
    assert_eq!(first, again, "a double is told by its id, and says the same");
    eventually("it is known that the webhook was told", || {
        let said = hosts.host(asked).cli(&["explain", "--app", "loud"]).succeeds();
        if said.out.contains("was told") { Ok(()) } else { Err(said.out) }
    });
}

#[test]
fn without_a_majority_applications_are_served_and_a_snapshot_brings_the_servers_back() {
    let mut hosts = cluster(2, 2);
    let mut app = TestApp::new("kept", 1);
    hosts.host(1).deploy(app.directory()).succeeds();
    hosts.host(1).cli(&["cluster", "dissolve"]).ends_with(1).mentions("host-2");
    let snapshot = hosts.host(1).cli(&["cluster", "snapshot"]).succeeds().out.trim().to_owned();
    hosts.host(1).cli(&["scale", "web=2", "--app", "kept"]).succeeds();
    hosts.host(1).wait_until_routed("kept", 2, |_| true);
    hosts.power_off(2);
    hosts.host(1).cli(&["config", "set", "A=1", "--app", "kept"]).ends_with(1);
    hosts
        .host(1)
        .cli(&["cluster"])
        .ends_with(1)
        .mentions("start the other servers")
        .mentions("rung cluster restore");
    assert!(hosts.host(1).page("kept").contains("version"), "applications are served without a majority");

    hosts.host_mut(1).kill_9();
    assert!(hosts.host(1).page("kept").contains("version"), "applications are served without any server");
    hosts.host(1).cli(&["cluster", "restore", &snapshot, "-y"]).succeeds().mentions("host-2");
    hosts.host_mut(1).serve();
    hosts.host(1).cli(&["cluster"]).ends_with(1).mentions("rung cluster approve");
    hosts.host(1).cli(&["cluster", "approve", "-y"]).ends_with(1).mentions("host-2");
    hosts.host(1).cli(&["cluster", "approve", "--without-silent", "-y"]).succeeds();
    app.version = "2".into();
    hosts.host(1).deploy(app.directory()).succeeds();
    assert!(hosts.host(1).page("kept").contains("version 2 "));
    hosts.host(1).cli(&["cluster", "dissolve"]).succeeds();
    assert!(hosts.host(1).page("kept").contains("version 2 "));
}

/// What one client did at one server, in its order.
#[derive(Debug)]
struct Deed {
    name: String,
    verb: &'static str,
    /// What the server said; without an answer it may have been done or not.
    is_acknowledged: bool,
}

#[test]
fn what_three_servers_acknowledged_under_faults_is_there_afterwards() {
    let mut hosts = cluster(3, 3);
    let is_over = AtomicBool::new(false);
    let history: Vec<Deed> = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=3)
            .map(|number| {
                let (hosts, is_over) = (&hosts, &is_over);
                scope.spawn(move || write_until(hosts, number, is_over))
            })
            .collect();
        let faults = scope.spawn(|| {
            for round in 0..3 {
                let plans = (1..=3).find_map(|asked| leader(&hosts, asked).ok()).unwrap_or(1);
                match round {
                    0 => {
                        hosts.cut(plans);
                        until_another_plans(&hosts, plans % 3 + 1, plans, Blow::CutCable);
                        hosts.mend(plans);
                    }
                    1 => {
                        process::freeze(hosts.host(plans).pid());
                        until_another_plans(&hosts, plans % 3 + 1, plans, Blow::Sigstop);
                        process::signal(hosts.host(plans).pid(), libc::SIGCONT);
                    }
                    _ => {
                        // Its member of etcd dies in the middle of everything.
                        let etcd = hosts.host(plans).processes().into_iter();
                        etcd.filter(|life| process::describe(life.pid).contains("--listen-peer-urls"))
                            .for_each(|life| process::kill_9(life.pid));
                    }
                }
                until_members_are_well(&hosts, plans % 3 + 1, 3);
            }
        });
        let ended = faults.join();
        is_over.store(true, Ordering::Release);
        let history = clients.into_iter().flat_map(|client| client.join().expect("a client does not panic"));
        let history = history.collect();
        ended.expect("the faults come and go");
        history
    });
    let acknowledged = history.iter().filter(|deed| deed.is_acknowledged).count();
    println!("{acknowledged} of {} deeds were acknowledged", history.len());
    assert!(acknowledged > 30, "hardly anything was acknowledged: {history:?}");
    for number in 1..=3 {
        eventually(&format!("host-{number} knows what was acknowledged"), || {
            let said = hosts.host(number).cli(&["token", "list", "--json"]);
            let listed: Vec<Value> = serde_json::from_str(&said.out).map_err(|_| said.everything())?;
            let names: BTreeSet<&str> = listed.iter().filter_map(|token| token["name"].as_str()).collect();
            let wrong: Vec<&Deed> = history
                .iter()
                .filter(|deed| {
                    deed.is_acknowledged && names.contains(deed.name.as_str()) != is_there(&history, deed)
                })
                .filter(|deed| !is_doubtful(&history, deed))
                .collect();
            if wrong.is_empty() { Ok(()) } else { Err(format!("lost or undone: {wrong:?}")) }
        });
    }
    hosts.host_mut(1).kill_9();
}

/// Makes tokens, each with a name of its own, and revokes every third one again.
fn write_until(hosts: &Hosts, number: usize, is_over: &AtomicBool) -> Vec<Deed> {
    let mut deeds = Vec::new();
    for turn in 0..2000 {
        if is_over.load(Ordering::Acquire) {
            break;
        }
        let name = format!("t{number}-{turn}");
        let mut act = |verb: &'static str, arguments: &[&str]| {
            let said = hosts.host(number).cli(arguments);
            deeds.push(Deed { name: name.clone(), verb, is_acknowledged: said.code == Some(0) });
        };
        act("create", &["token", "create", &name, "--role", "viewer", "--apps", "shop"]);
        if turn % 3 == 0 {
            act("revoke", &["token", "revoke", &name]);
        }
    }
    deeds
}

/// Whether a token must be there: made, and not revoked after that.
fn is_there(history: &[Deed], deed: &Deed) -> bool {
    !history.iter().any(|other| other.name == deed.name && other.verb == "revoke" && other.is_acknowledged)
}

/// One whose revocation was asked for and not answered may be there or not.
fn is_doubtful(history: &[Deed], deed: &Deed) -> bool {
    history.iter().any(|other| other.name == deed.name && other.verb == "revoke" && !other.is_acknowledged)
}
