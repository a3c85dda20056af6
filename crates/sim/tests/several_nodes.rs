//! Stories of several servers and nodes. `RUNG_SIM_SEED=7` tells one of them; `RUNG_SIM_SEEDS=5000` tells so many.

use rung_sim::cluster::{Mistake, Summary, run};

/// How many stories a normal test run tells.
const SEEDS: u64 = 80;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn the_invariants_hold_in_every_story() {
    let seeds: Vec<u64> = match number("RUNG_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("RUNG_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let mut all = Summary::default();
    let mut failures = Vec::new();
    for seed in &seeds {
        match run(*seed, Mistake::None) {
            Ok(summary) => {
                all.starts += summary.starts;
                all.leaders += summary.leaders;
                all.faults += summary.faults;
                all.ended_alone += summary.ended_alone;
            }
            Err(failure) => failures.push(failure),
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} stories failed:\n{}",
        failures.len(),
        seeds.len(),
        failures.join("\n")
    );
    println!("{} stories: {all:?}", seeds.len());
    if seeds.len() >= 80 {
        let each = seeds.len() as u64;
        let is_full = all.starts > 10 * each && all.leaders > 3 * each && all.ended_alone > each / 2;
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
fn planted_mistakes_are_found_for_what_they_break() {
    for (mistake, words) in Mistake::FOUND {
        let mut failures = (0..500).filter_map(|seed| run(seed, mistake).err());
        let found = failures.find(|failure| failure.contains(words));
        println!(
            "{mistake:?}: {}",
            found.unwrap_or_else(|| panic!("no story of {mistake:?} says {words:?}"))
        );
    }
}
