//! A canary that fails every fifth request: how soon it is taken back, and how many visitors saw it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use rung_e2e::{Rung, eventually, http};

use crate::payload::Payload;
use crate::table::{Row, Table};

/// Together with [`BETWEEN`] 50 requests a second, each on a connection of its own and without a cookie: a visitor each.
const VISITORS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(100);

const POLICY: &str = "[deploy]\nstrategy = \"canary\"\nsteps = [\"5% 10m\", \"100%\"]\n\
                      abort_if = { error_rate = \"2%\" }\n";

/// Of one canary that was taken back.
#[derive(Debug, Clone, Copy)]
struct Abort {
    /// From the moment that its share was given to the moment that nobody gets it any more.
    took: Duration,
    /// The part of the visitors who got it, until the deployment's end.
    share: f64,
}

pub fn measure(rung: &Rung, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut app = Payload::new("canary", 2)?;
    app.declare(POLICY)?;
    crate::deploys::begin(rung, &app)?;
    app.declare(&format!("{POLICY}\n[env]\nFAILING = \"20\"\n"))?;
    let mut aborts = Vec::new();
    for round in 1..=rounds {
        println!("canary {round} of {rounds}");
        app.next()?;
        aborts.push(abort(rung, &app)?);
    }
    let took: Vec<f64> = aborts.iter().map(|abort| abort.took.as_secs_f64()).collect();
    table.push(Row::of(
        "a canary of 5 % that fails every fifth request, each drawn on its own, against none, at 50 requests a second: \
         until nobody gets it any more",
        "10 s",
        &took,
        &[],
        |seconds| format!("{seconds:.1} s"),
    ));
    let shares: Vec<f64> = aborts.iter().map(|abort| abort.share * 100.0).collect();
    table.push(Row::of(
        "the same: the part of the visitors who got it, until it was rolled back",
        "5 % at the most",
        &shares,
        &[],
        |percent| format!("{percent:.1} %"),
    ));
    Ok(())
}

fn abort(rung: &Rung, app: &Payload) -> anyhow::Result<Abort> {
    let visitors = Visitors::start(rung.http(), format!("{}.localhost", app.name));
    rung.deploy(app.directory()).ends_with(3);
    let deployments = rung.deployments(&app.name);
    let deployment = deployments.into_iter().max_by_key(|deployment| deployment.number);
    let deployment = deployment.context("the canary has no deployment")?;
    let step = deployment.timeline.iter().find(|entry| entry.message.contains("of visitors get"));
    let began = step.context("the canary had no step")?.at;
    // The last answers of the canary are those that were in flight when it was un-routed.
    visitors.wait_until_later_than(Timestamp::now());
    let seen = visitors.stop();
    let is_new = |visit: &&Visit| visit.version.as_deref() == Some(app.spelled().as_str());
    let last = seen.iter().filter(is_new).map(|visit| visit.at).max().context("nobody saw the canary")?;
    let ended = deployment.timeline.last().context("the canary has no end")?.at.max(last);
    let meanwhile: Vec<&Visit> = seen.iter().filter(|visit| (began..=ended).contains(&visit.at)).collect();
    let got = meanwhile.iter().copied().filter(is_new).count();
    Ok(Abort {
        took: Duration::try_from(last.duration_since(began)).unwrap_or_default(),
        share: got as f64 / meanwhile.len().max(1) as f64,
    })
}

#[derive(Debug, Clone)]
struct Visit {
    at: Timestamp,
    /// Of the release that answered, whether well or not.
    version: Option<String>,
}

/// Fresh visitors at a steady pace, and what each of them got.
struct Visitors {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Visit>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Visitors {
    fn start(address: SocketAddr, host: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let visit = |_| {
            let (stop, seen, host) = (stop.clone(), seen.clone(), host.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answer = http::get(address, &host, "/").ok();
                    let version = answer.and_then(|answer| answer.header("x-version").map(str::to_owned));
                    let visit = Visit { at: Timestamp::now(), version };
                    seen.lock().expect("nobody panics while holding this").push(visit);
                    std::thread::sleep(BETWEEN);
                }
            })
        };
        let threads = (0..VISITORS).map(visit).collect();
        Self { stop, seen, threads }
    }

    fn wait_until_later_than(&self, time: Timestamp) {
        eventually("the visitors have gone on", || {
            let last = self.seen.lock().expect("nobody panics while holding this").last().cloned();
            last.filter(|visit| visit.at > time).map(drop).ok_or_else(|| "no later visit".to_owned())
        });
    }

    fn stop(self) -> Vec<Visit> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a visitor panicked");
        }
        self.seen.lock().expect("nobody panics while holding this").clone()
    }
}
