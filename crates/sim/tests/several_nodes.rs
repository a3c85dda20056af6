//! Stories of several servers and nodes. `RUNG_SIM_SEED=7` tells one of them; `RUNG_SIM_SEEDS=5000` tells so many, and with
//! `RUNG_SIM_FROM=10000` the ones from that seed on.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rung_sim::cluster::{Mistake, Summary, run};

/// How many stories a normal test run tells.
const SEEDS: u64 = 80;
/// And one with `--long`.
const SEEDS_LONG: u64 = 10_000;
/// A mistake that so many stories do not show would not be found in time.
const FOUND_WITHIN: u64 = 200;

fn usual() -> u64 {
    if std::env::var_os("RUNG_TEST_LONG").is_some() { SEEDS_LONG } else { SEEDS }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Tells the stories of these seeds on all cores.
fn tell(seeds: Range<u64>) -> (Summary, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let told = Mutex::new((Summary::default(), Vec::new()));
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds.end) {
            let outcome = run(seed, Mistake::None);
            let (all, failures) = &mut *told.lock().expect("no thread panics while it holds this");
            match outcome {
                Ok(summary) => {
                    all.starts += summary.starts;
                    all.requests += summary.requests;
                    all.leaders += summary.leaders;
                    all.faults += summary.faults;
                    all.ended_alone += summary.ended_alone;
                    all.moves += summary.moves;
                    all.side_by_side += summary.side_by_side;
                }
                Err(failure) => failures.push(failure),
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    told.into_inner().expect("all threads have ended")
}

#[test]
fn the_invariants_hold_in_every_story() {
    if let Some(seed) = number("RUNG_SIM_SEED") {
        println!("{:?}", run(seed, Mistake::None).unwrap_or_else(|failure| panic!("{failure}")));
        return;
    }
    let seeds = number("RUNG_SIM_SEEDS").unwrap_or_else(usual);
    let from = number("RUNG_SIM_FROM").unwrap_or(0);
    let (all, failures) = tell(from..from + seeds);
    let many = failures.len();
    assert!(failures.is_empty(), "{many} of {seeds} stories failed:\n{}", failures.join("\n"));
    println!("{seeds} stories: {all:?}");
    if seeds >= 80 {
        let is_full = all.starts > 10 * seeds
            && all.requests > 500 * seeds
            && all.leaders > 3 * seeds
            && all.ended_alone > seeds / 2
            && all.moves > seeds / 2
            && all.side_by_side > seeds;
        assert!(is_full, "the stories are nearly empty: {all:?}");
    }
}

#[test]
fn a_seed_tells_the_same_story_every_time() {
    for seed in 0..5 {
        assert_eq!(run(seed, Mistake::None), run(seed, Mistake::None), "seed {seed} told two stories");
    }
}

/// A simulator that finds nothing proves nothing.
#[test]
fn every_mistake_that_is_planted_is_found_for_what_it_breaks() {
    let look_for = |(mistake, words): (Mistake, &str)| {
        let found =
            (0..FOUND_WITHIN).find_map(|seed| run(seed, mistake).err().filter(|said| said.contains(words)));
        found.ok_or_else(|| format!("no story of {mistake:?} says {words:?}"))
    };
    let missed: Vec<String> = std::thread::scope(|scope| {
        let looking = Mistake::ALL.map(|mistake| (mistake, scope.spawn(move || look_for(mistake))));
        let found =
            looking.map(|((mistake, _), looked)| (mistake, looked.join().expect("a story does not panic")));
        for (mistake, found) in &found {
            println!(
                "{mistake:?}: {}",
                found.as_ref().map_or("missed", |said| said.lines().next().unwrap_or(said))
            );
        }
        found.into_iter().filter_map(|(_, found)| found.err()).collect()
    });
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
