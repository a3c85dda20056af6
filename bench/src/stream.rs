//! A steady stream of requests, each on a connection of its own and due at its time, whatever became of those before.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rung_e2e::{eventually, http};

/// A hundred a second.
const EVERY: Duration = Duration::from_millis(10);

/// A request that was answered with 200, or not.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub due: Instant,
    pub ended: Instant,
    pub is_good: bool,
}

#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    pacer: JoinHandle<()>,
}

impl Stream {
    /// From the network of the thread that calls.
    pub fn start(address: SocketAddr, host: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stopped, list) = (stop.clone(), asked.clone());
        let pacer = std::thread::spawn(move || {
            let mut due = Instant::now();
            let mut waiting: Vec<JoinHandle<()>> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let (host, list) = (host.clone(), list.clone());
                waiting.push(std::thread::spawn(move || {
                    let is_good = http::get(address, &host, "/").is_ok_and(|answer| answer.status == 200);
                    let asked = Asked { due, ended: Instant::now(), is_good };
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
            let good = asked.iter().filter(|asked| asked.is_good && asked.due >= since).count();
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
