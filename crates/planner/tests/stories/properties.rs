//! Properties with names, over random stories.

use std::time::Duration;

use proptest::prelude::*;
use rung_model::app::Destroying;
use rung_model::appfile::rollout::Strategy as RolloutStrategy;
use rung_model::{AppFile, DeploymentKind, InstanceState};

use crate::files::{add, app, canary, web, worker};
use crate::scene::{Scene, name};

#[derive(Debug, Clone)]
enum Act {
    Deploy {
        file: usize,
        source: u8,
    },
    Restart,
    Rollback,
    Scale(u32),
    Cancel,
    Continue,
    /// Requests to the newest cohort and the one before, of which so many of ten fail.
    Requests {
        failing: u64,
    },
    Destroy {
        volumes: bool,
    },
    Run,
    NodeMoves,
    FallsIll(usize),
    ProxyPolls,
    Pass(u16),
    /// Plans, and writes only so many steps.
    Write(usize),
    ChangeLeader,
}

fn files() -> Vec<AppFile> {
    let mut with_runs = app("shop", "good", 2);
    with_runs.build.command = Some("make".into());
    with_runs.deploy.release = Some("migrate".into());
    let mut exclusive = app("shop", "good", 1);
    web(&mut exclusive).exclusive = true;
    let mut wide = app("shop", "good", 1);
    add(&mut wide, "api", crate::files::service("good", 2));
    add(&mut wide, "mail", worker("good", 1));
    let mut no_port = app("shop", "good", 1);
    add(&mut no_port, "api", worker("good", 1));
    let mut bad_build = app("shop", "good", 1);
    bad_build.build.command = Some("break".into());
    let mut hanging = app("shop", "good", 1);
    hanging.deploy.release = Some("hang".into());
    let mut careful = app("shop", "good", 3);
    canary(&mut careful, &["10% 3s", "50%", "100%"]);
    careful.deploy.rollout.keep = Duration::from_secs(20);
    careful.deploy.rollout.watch = Duration::from_secs(10);
    let mut batched = app("shop", "good", 3);
    batched.deploy.rollout.strategy = RolloutStrategy::Rolling { batch: Some(1) };
    let mut bluegreen = app("shop", "good", 2);
    bluegreen.deploy.rollout.strategy = RolloutStrategy::BlueGreen;
    bluegreen.deploy.rollout.keep = Duration::from_secs(15);
    let mut two_kinds = careful.clone();
    let mut ledger = crate::files::service("good", 1);
    ledger.exclusive = true;
    add(&mut two_kinds, "ledger", ledger);
    vec![
        app("shop", "good", 3),
        app("shop", "crash", 2),
        app("shop", "never", 1),
        with_runs,
        exclusive,
        wide,
        no_port,
        bad_build,
        hanging,
        careful,
        batched,
        bluegreen,
        two_kinds,
    ]
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => (0..13_usize, 0..3_u8).prop_map(|(file, source)| Act::Deploy { file, source }),
        1 => Just(Act::Restart),
        1 => Just(Act::Rollback),
        1 => (0..4_u32).prop_map(Act::Scale),
        1 => Just(Act::Cancel),
        2 => Just(Act::Continue),
        3 => (0..10_u64).prop_map(|failing| Act::Requests { failing }),
        1 => any::<bool>().prop_map(|volumes| Act::Destroy { volumes }),
        1 => Just(Act::Run),
        12 => Just(Act::NodeMoves),
        1 => (0..4_usize).prop_map(Act::FallsIll),
        10 => Just(Act::ProxyPolls),
        4 => (0..9000_u16).prop_map(Act::Pass),
        20 => (0..6_usize).prop_map(Act::Write),
        1 => Just(Act::ChangeLeader),
    ]
}

fn perform(scene: &mut Scene, act: &Act, runs: &mut u32) {
    let app = scene.world.apps.get(&name("shop")).map(|held| held.value.clone());
    let is_free = scene.world.active_deployment(&name("shop")).is_none()
        && app.as_ref().is_none_or(|app| app.destroying.is_none());
    let serves = app.as_ref().and_then(|app| app.current).filter(|_| is_free);
    match act {
        Act::Deploy { file, source } if is_free => {
            scene.deploy(&files()[*file], &format!("tree {source}"));
        }
        Act::Restart if serves.is_some() => {
            scene.begin("shop", DeploymentKind::Restart, None, serves);
        }
        Act::Rollback if serves.is_some() => {
            let to = app.expect("it serves").succeeded[0];
            scene.redeploy("shop", DeploymentKind::Rollback, to);
        }
        Act::Scale(count) if serves.is_some() => {
            let release = scene.world.release(&name("shop"), serves.unwrap()).unwrap();
            let exclusive = release.file.services.values().any(|service| service.exclusive);
            scene.scale("shop", "web", if exclusive { (*count).min(1) } else { *count });
        }
        Act::Cancel if scene.world.active_deployment(&name("shop")).is_some() => scene.cancel("shop"),
        Act::Continue if scene.world.active_deployment(&name("shop")).is_some() => scene.go_on("shop"),
        Act::Requests { failing } if app.is_some() => {
            let newest = app.expect("it is there").last_deployment.0;
            scene.requests(newest, 10, *failing, Duration::from_millis(5));
            scene.requests(newest.saturating_sub(1), 30, 0, Duration::from_millis(5));
        }
        Act::Destroy { volumes } if app.is_some() => {
            scene.destroy("shop", if *volumes { Destroying::WithVolumes } else { Destroying::KeepVolumes });
        }
        Act::Run if serves.is_some() => {
            *runs += 1;
            scene.run("shop", &format!("shop-run-{runs}"), "echo");
        }
        Act::NodeMoves => scene.node_moves(),
        Act::FallsIll(nth) => {
            let ids = scene.observed().map(|o| o.instances.clone()).unwrap_or_default();
            if let Some((id, seen)) = ids.iter().nth(*nth)
                && seen.state == InstanceState::Healthy
            {
                scene.report_state(id, InstanceState::Unhealthy);
            }
        }
        Act::ProxyPolls => scene.proxy_polls(),
        Act::Pass(ms) => scene.pass(Duration::from_millis((*ms).into())),
        Act::Write(steps) => {
            for step in scene.plan().steps.iter().take(*steps) {
                scene.write(step);
            }
        }
        Act::ChangeLeader => scene.change_leader(),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// The invariants are asserted by the scene after every single step; here plans are cut off anywhere.
    #[test]
    fn any_prefix_of_any_plan_keeps_the_invariants_and_everything_ends(
        acts in prop::collection::vec(acts(), 1..120)
    ) {
        let mut scene = Scene::new();
        scene.failing_commands.insert("break".into());
        let mut runs = 0;
        for act in &acts {
            perform(&mut scene, act, &mut runs);
        }
        scene.play_within(Duration::from_secs(400), "everything at rest", |scene| {
            let deployed = scene.world.last_deployment(&name("shop")).is_none_or(|last| last.has_ended());
            let destroyed = scene.world.apps.values().all(|app| app.value.destroying.is_none());
            let leaving = scene.assignment().instances.into_values().any(|assigned| {
                Some(assigned.deployment) != scene.world.apps[&assigned.app].value.live
            });
            deployed && destroyed && !leaving && scene.assignment().runs.is_empty()
        });
        prop_assert_eq!(scene.plan().steps, vec![]);
    }

    #[test]
    fn a_world_kept_by_events_equals_one_that_is_listed(acts in prop::collection::vec(acts(), 1..80)) {
        let mut scene = Scene::new();
        let mut runs = 0;
        for act in &acts {
            perform(&mut scene, act, &mut runs);
            prop_assert_eq!(&scene.world, &scene.listed_world());
        }
    }
}
