//! Stories of one machine. `RUNG_SIM_SEED=7` tells one of them; `RUNG_SIM_SEEDS=5000` tells so many.

use rung_sim::{Wiring, run};

/// How many stories a normal test run tells.
const SEEDS: u64 = 400;
/// And one with `--long`.
const SEEDS_LONG: u64 = 10_000;

fn usual() -> u64 {
    if std::env::var_os("RUNG_TEST_LONG").is_some() { SEEDS_LONG } else { SEEDS }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn the_invariants_hold_in_every_story() {
    let seeds: Vec<u64> = match number("RUNG_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("RUNG_SIM_SEEDS").unwrap_or_else(usual)).collect(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let told = std::thread::scope(|scope| {
        let seeds = &seeds;
        let tell = |nth: usize| {
            move || seeds.iter().skip(nth).step_by(threads).map(|s| run(*s, Wiring::Right)).collect()
        };
        let threads: Vec<_> = (0..threads).map(|nth| scope.spawn(tell(nth))).collect();
        threads
            .into_iter()
            .flat_map(|thread| -> Vec<_> { thread.join().expect("no story panics") })
            .collect::<Vec<_>>()
    });
    let (mut deployments, mut requests, mut faults, mut aborts, mut scheduled) = (0, 0, 0, 0, 0);
    let mut failures = Vec::new();
    for story in told {
        match story {
            Ok(summary) => {
                deployments += summary.deployments;
                requests += summary.requests;
                faults += summary.faults;
                aborts += summary.aborts;
                scheduled += summary.scheduled;
            }
            Err(failure) => failures.push(failure),
        }
    }
    if let Some(first) = failures.first() {
        let seeds: Vec<u64> = failures.iter().map(|failure| failure.seed).collect();
        for failure in &failures {
            eprintln!("seed {} failed at step {}: {}", failure.seed, failure.step, failure.what);
        }
        panic!("{first}\n{} of {} stories failed: {seeds:?}", failures.len(), seeds.len());
    }
    println!(
        "{} stories: {deployments} deployments, {requests} requests, {faults} faults, {aborts} releases taken back, \
         {scheduled} scheduled times",
        seeds.len()
    );
    if seeds.len() > 100 {
        let each = seeds.len() as u64;
        assert!(
            deployments > 3 * each && requests > 50 * each && faults > each,
            "the stories are nearly empty"
        );
        assert!(aborts > 0 && scheduled > each, "no release was judged, or no job was due");
    }
}

#[test]
fn a_seed_tells_the_same_story_every_time() {
    for seed in 0..5 {
        let (first, second) = (run(seed, Wiring::Right), run(seed, Wiring::Right));
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "seed {seed} told two stories");
    }
}

/// A simulator that finds nothing proves nothing.
#[test]
fn planted_mistakes_are_found() {
    for mistake in Wiring::MISTAKES {
        let found = (0..1000).find_map(|seed| run(seed, mistake).err());
        let failure = found.unwrap_or_else(|| panic!("{mistake:?} was not found in 1000 stories"));
        println!("{mistake:?}: seed {} failed at step {}: {}", failure.seed, failure.step, failure.what);
        let again = run(failure.seed, mistake).expect_err("it failed before");
        assert_eq!(again.to_string(), failure.to_string(), "the failure is not told again exactly");
        assert!(failure.trace.len() > 10, "the failure comes without its story");
    }
}

/// What is planted for them is found for what it breaks.
#[test]
fn mistakes_about_rollouts_and_runs_are_found_for_what_they_break() {
    for (mistake, words) in Wiring::ABOUT_ROLLOUTS_AND_RUNS {
        let mut failures = (0..2000).filter_map(|seed| run(seed, mistake).err());
        let found = failures.find(|failure| failure.what.contains(words));
        let failure = found.unwrap_or_else(|| panic!("no story of {mistake:?} says {words:?}"));
        println!("{mistake:?}: seed {} failed at step {}: {}", failure.seed, failure.step, failure.what);
    }
}
