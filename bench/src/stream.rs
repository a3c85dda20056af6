//! A steady stream of requests, each on a connection of its own and due at its time, whatever became of those before.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rung_e2e::{eventually, http};

/// A hundred a second.
const EVERY: Duration = Duration::from_millis(10);

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with 200 where it was asked first.
    First,
    /// That failed; it was answered with 200 by the second one.
    Second,
    Failed,
}

#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub due: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

impl Asked {
    pub fn is_good(&self) -> bool {
        self.outcome == Outcome::First
    }
}

/// Who is asked, for each request anew.
#[derive(Debug, Clone, Copy)]
pub struct Asking {
    pub first: SocketAddr,
    /// Somebody on another machine, for when the first one fails.
    pub second: Option<SocketAddr>,
}

#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    pacer: JoinHandle<()>,
}

impl Stream {
    /// To one address, from the network of the thread that calls.
    pub fn start(address: SocketAddr, host: &str) -> Self {
        Self::by_turns(host, move |_| Some(Asking { first: address, second: None }))
    }

    /// The same to whom `choose` names for a request, by its number. Where it names nobody, the request fails.
    pub fn by_turns(host: &str, choose: impl Fn(usize) -> Option<Asking> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stopped, list, host) = (stop.clone(), asked.clone(), host.to_owned());
        let pacer = std::thread::spawn(move || {
            let mut due = Instant::now();
            let mut waiting: Vec<JoinHandle<()>> = Vec::new();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (host, list, asking) = (host.clone(), list.clone(), choose(number));
                waiting.push(std::thread::spawn(move || {
                    let outcome = asking.map_or(Outcome::Failed, |asking| ask(asking, &host));
                    let asked = Asked { due, ended: Instant::now(), outcome };
                    list.lock().expect("nobody panics while holding it").push(asked);
                }));
                waiting.retain(|request| !request.is_finished());
                due += EVERY;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            for request in waiting {
                request.join().expect("a request of the stream panicked");
            }
        });
        Self { stop, asked, pacer }
    }

    fn so_far(&self) -> Vec<Asked> {
        self.asked.lock().expect("nobody panics while holding it").clone()
    }

    /// Waits until so many requests that were due after `since` were answered well.
    pub fn wait_for(&self, count: usize, since: Instant) {
        eventually(&format!("{count} requests of the stream are answered"), || {
            let asked = self.so_far();
            let good = asked.iter().filter(|asked| asked.is_good() && asked.due >= since).count();
            if good >= count { Ok(()) } else { Err(format!("{good} of {}", asked.len())) }
        });
    }

    /// Ends it after the requests that are under way; all of them.
    pub fn stop(self) -> Vec<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        self.pacer.join().expect("the stream panicked");
        std::mem::take(&mut *self.asked.lock().expect("nobody panics while holding it"))
    }
}

fn ask(asking: Asking, host: &str) -> Outcome {
    let answers = |address| http::get(address, host, "/").is_ok_and(|answer| answer.status == 200);
    if answers(asking.first) {
        Outcome::First
    } else if asking.second.is_some_and(answers) {
        Outcome::Second
    } else {
        Outcome::Failed
    }
}
