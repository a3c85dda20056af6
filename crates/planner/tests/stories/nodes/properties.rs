//! Whatever happens to the nodes, the invariants hold after every step, and everything comes to rest.

use std::time::Duration;

use proptest::prelude::*;
use rung_model::AppFile;
use rung_model::appfile::{Count, Priority, Spread};

use super::{MB, labels};
use crate::files::{add, app, service, web, worker};
use crate::scene::{Scene, name};

const NODES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Act {
    Deploy {
        app: usize,
        file: usize,
    },
    Scale {
        app: usize,
        count: u32,
    },
    Join(usize),
    Drain(usize),
    CutOff(usize),
    Back(usize),
    Label {
        node: usize,
        ssd: bool,
    },
    Beats(u8),
    /// Plans, and writes only so many steps.
    Write(usize),
    ChangeLeader,
}

fn files(of: &str) -> Vec<AppFile> {
    let mut heavy = app(of, "good", 3);
    web(&mut heavy).memory_bytes = Some(300 * MB);
    let mut urgent = app(of, "good", 2);
    web(&mut urgent).memory_bytes = Some(400 * MB);
    web(&mut urgent).place.priority = Priority::High;
    let mut picky = app(of, "good", 2);
    web(&mut picky).place.prefer = labels(&["disk=ssd"]);
    web(&mut picky).place.spread = Spread::Zone;
    let mut agent = worker("good", 1);
    agent.place.count = Count::PerNode;
    add(&mut picky, "agent", agent);
    let mut exclusive = app(of, "good", 1);
    web(&mut exclusive).exclusive = true;
    let mut packed = service("good", 2);
    packed.place.spread = Spread::Pack;
    packed.memory_bytes = Some(100 * MB);
    packed.place.priority = Priority::Low;
    add(&mut exclusive, "batch", packed);
    vec![app(of, "good", 4), heavy, urgent, picky, exclusive]
}

fn acts() -> impl Strategy<Value = Act> {
    let node = 0..NODES.len();
    prop_oneof![
        4 => (0..2_usize, 0..5_usize).prop_map(|(app, file)| Act::Deploy { app, file }),
        2 => (0..2_usize, 0..5_u32).prop_map(|(app, count)| Act::Scale { app, count }),
        3 => node.clone().prop_map(Act::Join),
        1 => node.clone().prop_map(Act::Drain),
        2 => node.clone().prop_map(Act::CutOff),
        2 => node.clone().prop_map(Act::Back),
        1 => (node, any::<bool>()).prop_map(|(node, ssd)| Act::Label { node, ssd }),
        12 => (1..60_u8).prop_map(Act::Beats),
        8 => (0..6_usize).prop_map(Act::Write),
        1 => Just(Act::ChangeLeader),
    ]
}

fn perform(scene: &mut Scene, act: &Act) {
    let apps = ["shop", "blog"];
    let knows = |scene: &Scene, node: &str| scene.world.nodes.keys().any(|known| known.as_str() == node);
    match act {
        Act::Deploy { app, file } if scene.world.active_deployment(&name(apps[*app])).is_none() => {
            scene.deploy(&files(apps[*app])[*file], "tree");
        }
        Act::Scale { app, count } => {
            let app = apps[*app];
            let current = scene.world.apps.get(&name(app)).and_then(|held| held.value.current);
            let exclusive = current
                .and_then(|number| scene.world.release(&name(app), number))
                .is_some_and(|release| release.file.services.values().any(|service| service.exclusive));
            if current.is_some() && !exclusive {
                scene.scale(app, "web", *count);
            }
        }
        Act::Join(node) if !knows(scene, NODES[*node]) => {
            let zone = if node % 2 == 0 { "zone=x" } else { "zone=y" };
            scene.join_as(NODES[*node], 1000 * MB, &[zone]);
        }
        Act::Drain(node) if knows(scene, NODES[*node]) => scene.drain(NODES[*node]),
        Act::CutOff(node) if knows(scene, NODES[*node]) => scene.cut_off(NODES[*node]),
        Act::Back(node) => scene.is_back(NODES[*node]),
        Act::Label { node, ssd } if knows(scene, NODES[*node]) => {
            scene.label(NODES[*node], if *ssd { "disk=ssd" } else { "disk=hdd" });
        }
        Act::Beats(count) => (0..*count).for_each(|_| scene.beat()),
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
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// Never more than a node has, never two of an exclusive service, stops in the handoff's order: after every step. And
    /// the index of what is placed equals one that is counted from scratch.
    #[test]
    fn nodes_may_come_and_go_as_they_like(acts in prop::collection::vec(acts(), 1..60)) {
        let mut scene = Scene::empty();
        scene.join_as("a", 1000 * MB, &["zone=x"]);
        for act in &acts {
            perform(&mut scene, act);
            prop_assert_eq!(&scene.world, &scene.listed_world());
        }
        NODES.iter().for_each(|node| scene.is_back(node));
        let mut quiet = 0;
        // A minute of steady nodes before anything is moved, and then a few moves, ten seconds apart.
        for _ in 0..2000 {
            scene.beat();
            quiet = if scene.plan().steps.is_empty() { quiet + 1 } else { 0 };
        }
        prop_assert!(quiet > 100, "it does not come to rest: {:?}", scene.plan().steps);
        let ended = scene.world.deployments.values().all(|of| of.values().all(|held| held.value.has_ended()));
        prop_assert!(ended, "a deployment did not end within {:?}", Duration::from_secs(400));
    }
}
