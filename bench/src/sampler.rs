//! Asks again and again, on a new connection each time, and remembers when which version answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rung_e2e::{eventually, http};

/// Between two questions: the resolution of what is measured.
const EVERY: Duration = Duration::from_millis(1);

/// So many answers of one kind in a row say that it stays so.
const ENOUGH: usize = 100;

#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    /// `None`: it failed, or was no 200.
    version: Option<String>,
    pid: Option<String>,
}

#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub fn start(address: SocketAddr, host: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stopped, list) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let answer = http::get(address, &host, "/").ok().filter(|answer| answer.status == 200);
                let header = |name| answer.as_ref().and_then(|answer| answer.header(name)).map(str::to_owned);
                let seen = Seen { at: Instant::now(), version: header("x-version"), pid: header("x-pid") };
                list.lock().expect("nobody panics while holding this").push(seen);
                std::thread::sleep(EVERY);
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    fn list(&self) -> Vec<Seen> {
        self.seen.lock().expect("nobody panics while holding this").clone()
    }

    /// When the last of an unbroken row of answers of this version began.
    pub fn all_on(&self, version: &str) -> Instant {
        self.steady(&format!("all answers are of version {version}"), |seen| {
            seen.version.as_deref() == Some(version)
        })
    }

    /// The first answer after `since` by another process than `pid`.
    pub fn back_after(&self, since: Instant, pid: &str) -> Instant {
        eventually("the instance answers again", || {
            let list = self.list();
            let fresh =
                |seen: &&Seen| seen.at > since && seen.version.is_some() && seen.pid.as_deref() != Some(pid);
            list.iter().find(fresh).map(|seen| seen.at).ok_or_else(|| format!("{:?}", list.last()))
        })
    }

    pub fn current_pid(&self) -> String {
        eventually("somebody answers", || {
            self.list().last().and_then(|seen| seen.pid.clone()).ok_or_else(|| "no answer".to_owned())
        })
    }

    fn steady(&self, what: &str, is_it: impl Fn(&Seen) -> bool) -> Instant {
        eventually(what, || {
            let list = self.list();
            let row = list.iter().rev().take_while(|seen| is_it(seen)).count();
            if row >= ENOUGH { Ok(list[list.len() - row].at) } else { Err(format!("{:?}", list.last())) }
        })
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has told what it saw.
            let _ = thread.join();
        }
    }
}
