//! Each scheduled time has one record, and no time has two runs.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rung_model::{CatchUp, Overlap, RunId};

use super::{job, of, outcome, serving, with_job};
use crate::scene::Scene;

#[derive(Debug, Clone)]
enum Act {
    Pass(u32),
    Step(i32),
    ChangeLeader,
    /// Plans, and writes only so many steps: the others met a conflict.
    Write(usize),
    NodeMoves,
    Pause,
    Resume,
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1..90_000_u32).prop_map(Act::Pass),
        1 => (1..500_u32).prop_map(|minutes| Act::Pass(minutes * 60_000)),
        1 => (-4000..4000_i32).prop_map(Act::Step),
        1 => (0..700_000_i32).prop_map(Act::Step),
        1 => Just(Act::ChangeLeader),
        10 => (0..4_usize).prop_map(Act::Write),
        8 => Just(Act::NodeMoves),
        1 => Just(Act::Pause),
    ]
    .prop_flat_map(|act| match act {
        Act::Pause => prop_oneof![Just(Act::Pause), Just(Act::Resume)].boxed(),
        act => Just(act).boxed(),
    })
}

/// What was ever recorded: the store forgets old records, this does not.
#[derive(Default)]
struct Chronicle {
    /// By run, the times that its record stands for.
    covered: BTreeMap<RunId, (Timestamp, Timestamp)>,
    launched: Vec<RunId>,
}

impl Chronicle {
    fn note(&mut self, scene: &Scene) {
        for run in scene.records() {
            let first = of(&run).scheduled.expect("all are scheduled here");
            let stretch = (first, of(&run).through.unwrap_or(first));
            let known = *self.covered.entry(run.id.clone()).or_insert(stretch);
            assert_eq!(known, stretch, "the record of {} was written over: {}", run.id, outcome(&run));
        }
        for run in scene.assignment().runs.keys() {
            if self.launched.last() != Some(run) && !self.launched.contains(run) {
                self.launched.push(run.clone());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn each_scheduled_time_is_in_one_record_and_never_has_two_runs(
        schedule in prop::sample::select(vec!["* * * * *", "*/7 * * * *", "*/20 * * * * *", "5 * * * *"]),
        overlap in prop::sample::select(vec![Overlap::Forbid, Overlap::Allow, Overlap::Replace]),
        catch_up in prop::sample::select(vec![CatchUp::None, CatchUp::Last, CatchUp::All]),
        acts in prop::collection::vec(acts(), 1..80),
    ) {
        let mut file = job(schedule, "report");
        (file.overlap, file.catch_up) = (overlap, catch_up);
        let (times, zone) = (file.schedule.clone().unwrap(), file.timezone.clone());
        let mut scene = serving(&with_job(file));
        let begin = scene.job_state().handled_until;
        let mut chronicle = Chronicle::default();
        let mut handled = begin;
        for act in &acts {
            match act {
                Act::Pass(ms) => scene.pass(Duration::from_millis((*ms).into())),
                Act::Step(seconds) => scene.step_clock(SignedDuration::from_secs((*seconds).into())),
                Act::ChangeLeader => scene.change_leader(),
                Act::Write(steps) => for step in scene.plan().steps.iter().take(*steps) {
                    scene.write(step);
                    chronicle.note(&scene);
                },
                Act::NodeMoves => scene.node_moves(),
                Act::Pause => scene.pause_job(),
                // Not of a clock that was ahead: that a person takes back.
                Act::Resume if scene.job_state().handled_until <= scene.wall() => {
                    scene.change_job(rung_model::JobState::resume);
                }
                Act::Resume => {}
            }
            prop_assert!(scene.job_state().handled_until >= handled, "handled times went back");
            handled = scene.job_state().handled_until;
        }
        for _ in 0..200 {
            if scene.plan().steps.is_empty() {
                break;
            }
            for step in scene.plan().steps {
                scene.write(&step);
                chronicle.note(&scene);
            }
            scene.node_moves();
        }
        let through = scene.job_state().handled_until;
        let mut stretches: Vec<_> = chronicle.covered.into_values().collect();
        stretches.sort();
        prop_assert!(stretches.windows(2).all(|two| two[0].1 < two[1].0), "a time has two records: {stretches:?}");
        let mut at = 0;
        for time in times.after(begin, &zone).take_while(|time| *time <= through) {
            while stretches.get(at).is_some_and(|stretch| stretch.1 < time) {
                at += 1;
            }
            let in_record = stretches.get(at).is_some_and(|stretch| stretch.0 <= time);
            prop_assert!(in_record, "nothing is recorded for {time}");
        }
        let mut launched = chronicle.launched.clone();
        launched.sort();
        launched.dedup();
        prop_assert_eq!(launched.len(), chronicle.launched.len());
    }
}
