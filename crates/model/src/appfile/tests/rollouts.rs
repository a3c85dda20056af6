//! What an app file may say about how the traffic moves over.

use super::super::rollout::{AbortIf, CanaryStep, Share, Strategy, WithoutTraffic};
use super::*;
use crate::routes::{Mark, SplitBy, Testers};

fn canary(steps: &str) -> String {
    web(&format!("[deploy]\nstrategy = \"canary\"\nsteps = {steps}"))
}

#[test]
fn a_rollout_is_read_with_everything_that_it_may_say() {
    let file = accepted(&web(r#"[deploy]
        strategy = "canary"
        steps = ["5% 5m", "25%", "100%"]
        split = { cookie = "session" }
        testers = { header = "X-Beta", is = "on" }
        abort_if = { error_rate = "2%", p95 = "800ms", requests = 50 }
        without_traffic = "continue"
        wait_at_most = "2h"
        keep = "1m"
        watch = "10m""#));
    let rollout = file.deploy.rollout;
    let step =
        |share, time: Option<u64>| CanaryStep { share: Share(share), time: time.map(Duration::from_secs) };
    let steps = vec![step(500, Some(300)), step(2500, None), step(10_000, None)];
    assert_eq!(rollout.strategy, Strategy::Canary { steps });
    assert_eq!(rollout.split, SplitBy::Mark(Mark::Cookie("session".into())));
    assert_eq!(rollout.testers, Some(Testers { mark: Mark::Header("X-Beta".into()), is: Some("on".into()) }));
    let p95 = Some(Duration::from_millis(800));
    assert_eq!(rollout.abort_if, Some(AbortIf { error_rate: Some(Share(200)), p95, requests: 50 }));
    assert_eq!(rollout.without_traffic, WithoutTraffic::Continue);
    let times = [rollout.wait_at_most, rollout.keep, rollout.watch].map(|time| time.as_secs());
    assert_eq!(times, [7200, 60, 600]);
    let bluegreen = accepted(&web("[deploy]\nstrategy = \"bluegreen\"")).deploy.rollout;
    assert_eq!(bluegreen.keep, defaults::KEEP_BLUEGREEN);
}

#[test]
fn what_contradicts_the_strategy_is_refused() {
    let cases = [
        (web("[deploy]\nstrategy = \"canary\""), "`strategy = \"canary\"` without `steps`"),
        (web("[deploy]\nsteps = [\"100%\"]"), "`steps` is of canary deployments"),
        (web("[deploy]\nstrategy = \"bluegreen\"\nbatch = 1"), "`batch` is of rolling deployments"),
        (web("[deploy]\nwatch = \"10m\""), "`watch` without `abort_if`: nothing says what a regression is"),
        (web("[deploy]\nabort_if = { p95 = \"1s\" }"), "`abort_if` has no time to judge in"),
        (canary("[\"5% 5m\"]"), "the last step is not \"100%\""),
        (canary("[\"5%\", \"2%\", \"100%\"]"), "each step's share is larger than the one before"),
        (canary("[\"100% 5m\"]"), "the step of everybody has no time: with it the deployment is done"),
        (canary("[\"0%\", \"100%\"]"), "a step of 0% without `testers` is for nobody"),
        (canary("[\"5 percent\", \"100%\"]"), "`deploy.steps`: \"5 percent\" is not a percentage"),
        (format!("{}\nabort_if = {{ requests = 5 }}", canary("[\"100%\"]")), "`abort_if` names no limit"),
        (format!("{}\nsplit = \"weather\"", canary("[\"100%\"]")), "`split = \"weather\"` is not known"),
        (
            format!("{}\ntesters = {{ is = \"x\" }}", canary("[\"100%\"]")),
            "`deploy.testers` is one of `header` and `cookie`",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(messages(&text), [message], "for the file\n{text}");
    }
}
