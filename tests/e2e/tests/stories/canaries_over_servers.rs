//! Canaries where there are several servers and several ingresses: every one of them shows a visitor the same release, and
//! what any of them counts is weighed by the one that plans. Root only.

use std::collections::BTreeMap;
use std::time::Duration;

use rung_e2e::http::Connection;
use rung_e2e::{Hosts, Load, Outcome, TestApp, eventually};
use rung_model::rollout::Stage;
use rung_model::{Deployment, Phase};

use crate::servers::{Blow, cluster, leader, until_another_plans};

fn last(hosts: &Hosts, asked: usize) -> Result<Deployment, String> {
    let said = hosts.host(asked).cli(&["explain", "--app", "shop", "--json"]);
    serde_json::from_str(&said.out).map_err(|error| format!("{error}: {}", said.everything()))
}

fn wait_until_it_waits(hosts: &Hosts, asked: usize) {
    eventually("the canary waits for a word", || {
        let deployment = last(hosts, asked)?;
        let stage = deployment.rollout.as_ref().map(|rollout| rollout.stage);
        if stage == Some(Stage::AwaitingWord) { Ok(()) } else { Err(format!("{deployment:?}")) }
    });
}

/// Which version these visitors get from an ingress.
fn shown(hosts: &Hosts, ingress: usize, visitors: &[u32]) -> BTreeMap<u32, String> {
    let address = hosts.host(ingress).http();
    let ask = |visitor: &u32| {
        let user = visitor.to_string();
        let mut connection = Connection::open(address).expect("connecting");
        let answer =
            connection.ask("GET", "shop.localhost", "/", &[("X-User", &user)], b"").expect("an answer");
        assert_eq!(answer.status, 200, "host-{ingress}: {}", answer.text());
        (*visitor, answer.header("x-version").expect("every page says its version").to_owned())
    };
    hosts.host(ingress).inside(|| visitors.iter().map(ask).collect())
}

/// Fifty requests a second.
fn load(hosts: &Hosts, ingress: usize) -> Load {
    let address = hosts.host(ingress).http();
    let begin = || Load::start_clients(address, "shop.localhost", "/", 5, Duration::from_millis(100));
    hosts.host(ingress).inside(begin)
}

#[test]
fn a_canary_is_the_same_for_a_visitor_at_every_ingress_and_outlives_the_server_that_plans() {
    let mut hosts = cluster(3, 3);
    let mut app = TestApp::new("shop", 2);
    app.sections.push(
        "[deploy]\nstrategy = \"canary\"\nsteps = [\"50%\", \"100%\"]\nsplit = { header = \"X-User\" }"
            .into(),
    );
    hosts.host(1).deploy(app.directory()).succeeds();
    let plans = leader(&hosts, 1).expect("somebody plans");
    let (other, third) = (plans % 3 + 1, (plans + 1) % 3 + 1);
    hosts.host(other).wait_until_routed("shop", 2, |_| true);
    let load = load(&hosts, third);
    load.wait_for(20);

    app.version = "2".into();
    let directory = app.directory().to_str().expect("UTF-8").to_owned();
    hosts.host(other).cli(&["deploy", "--no-wait", &directory]).succeeds();
    wait_until_it_waits(&hosts, other);
    let visitors: Vec<u32> = (0..60).collect();
    let got = shown(&hosts, 1, &visitors);
    let new = got.values().filter(|version| *version == "2").count();
    assert!((15..=45).contains(&new), "half of sixty visitors were {new}");
    for ingress in [2, 3] {
        assert_eq!(shown(&hosts, ingress, &visitors), got, "host-{ingress} shows visitors another release");
    }

    hosts.host_mut(plans).kill_9();
    until_another_plans(&hosts, other, plans, Blow::Kill9);
    wait_until_it_waits(&hosts, other);
    assert_eq!(shown(&hosts, third, &visitors), got, "a change of servers changed what a visitor gets");
    load.wait_for(50);
    hosts.host(third).cli(&["continue", "--no-wait", "--app", "shop"]).succeeds();
    eventually("the canary has succeeded", || {
        let deployment = last(&hosts, other)?;
        if deployment.phase == Phase::Succeeded { Ok(()) } else { Err(format!("{deployment:?}")) }
    });
    for ingress in [other, third] {
        assert!(hosts.host(ingress).page("shop").contains("version 2 "), "host-{ingress}");
    }
    load.wait_for(20);
    load.stop().assert_none_lost("a canary during which the server that planned died");
}

#[test]
fn what_the_ingress_beside_another_server_counts_takes_a_canary_back() {
    let hosts = cluster(2, 2);
    let mut app = TestApp::new("shop", 2);
    app.sections.push(
        "[deploy]\nstrategy = \"canary\"\nsteps = [\"20% 10m\", \"100%\"]\nabort_if = { error_rate = \"2%\" }"
            .into(),
    );
    hosts.host(1).deploy(app.directory()).succeeds();
    let plans = leader(&hosts, 1).expect("somebody plans");
    let other = 3 - plans;
    hosts.host(other).wait_until_routed("shop", 2, |_| true);
    // Nobody asks the ingress that reports to the one that plans.
    let load = load(&hosts, other);
    load.wait_for(20);
    app.set("BE_FAILING", "30");
    app.version = "2".into();
    let said = hosts.host(plans).deploy(app.directory()).ends_with(3);
    let said = said.mentions("fails more often than v1").mentions("the limit is 2 %");
    load.wait_for(20);
    let tally = load.stop();
    let failed = tally.count(Outcome::ServerError(500));
    assert_eq!(tally.lost(), failed, "more was lost than what version 2 failed by itself: {tally:?}");
    assert!(failed > 0, "{}", said.everything());
    assert!(hosts.host(other).page("shop").contains("version 1 "));
}
