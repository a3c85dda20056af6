//! Constant load that counts every single outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::http::{Answer, Connection, Failure, Stage};
use crate::wait::eventually;

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Answered,
    Refused,
    Reset,
    /// Closed before a byte of the answer.
    Closed,
    TimedOut,
    /// 500 and more.
    ServerError(u16),
    /// Neither an error of the server nor what was asked for.
    Unexpected(u16),
    /// The answer broke off, or was not HTTP.
    Broken,
}

/// Every request that was made, by outcome.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Which versions of the application answered.
    pub versions: BTreeSet<String>,
    /// The first few that went wrong, each with its time since the load's start.
    pub troubles: Vec<String>,
    /// Longest time from sending to the last byte of an answer.
    pub longest: Duration,
}

const TROUBLES_MAX: usize = 10;

impl Tally {
    pub fn answered(&self) -> u64 {
        self.outcomes.get(&Outcome::Answered).copied().unwrap_or(0)
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    pub fn lost(&self) -> u64 {
        self.outcomes.iter().filter(|(outcome, _)| **outcome != Outcome::Answered).map(|(_, n)| n).sum()
    }

    /// # Panics
    /// When a request was lost, with the first of them; or when there were too few to say anything.
    #[track_caller]
    pub fn assert_none_lost(&self, during: &str) {
        assert_eq!(
            self.lost(),
            0,
            "requests were lost during {during}: {:?}\n{}",
            self.outcomes,
            self.troubles.join("\n")
        );
        assert!(self.answered() >= 20, "too few requests during {during}: {:?}", self.outcomes);
    }
}

/// Clients that ask for one page over kept connections until they are stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    shared: Arc<Mutex<Tally>>,
    clients: Vec<JoinHandle<()>>,
}

/// What every client does.
#[derive(Debug, Clone)]
struct Order {
    address: SocketAddr,
    host: String,
    path: String,
    /// From one request's start to the next one's.
    pace: Duration,
}

impl Load {
    /// Four clients, each two hundred requests a second: as much as two cores bear that build and serve at once.
    pub fn start(address: SocketAddr, host: &str, path: &str) -> Self {
        Self::start_clients(address, host, path, 4, Duration::from_millis(5))
    }

    /// So many clients, each of which starts a request every `pace`, or at once when the last one took longer.
    pub fn start_clients(
        address: SocketAddr,
        host: &str,
        path: &str,
        clients: usize,
        pace: Duration,
    ) -> Self {
        let order = Order { address, host: host.to_owned(), path: path.to_owned(), pace };
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicU64::new(0));
        let shared = Arc::new(Mutex::new(Tally::default()));
        let clients = (0..clients)
            .map(|_| {
                let (order, stop, made, shared) = (order.clone(), stop.clone(), made.clone(), shared.clone());
                std::thread::spawn(move || go_on(&order, &stop, &made, &shared))
            })
            .collect();
        Self { stop, made, shared, clients }
    }

    /// Waits until so many more requests were made from now on: until the load was really there.
    pub fn wait_for(&self, more: u64) {
        let goal = self.made.load(Ordering::Relaxed) + more;
        eventually(&format!("{more} more requests were made"), || {
            let made = self.made.load(Ordering::Relaxed);
            if made >= goal { Ok(()) } else { Err(format!("{made} of {goal}; {:?}", self.tally().troubles)) }
        });
    }

    /// What came of the requests so far.
    pub fn tally(&self) -> Tally {
        self.shared.lock().expect("no client panics while it holds this").clone()
    }

    /// Ends the load after the requests that are in flight.
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("a client of the load panicked");
        }
        self.tally()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn go_on(order: &Order, stop: &AtomicBool, made: &AtomicU64, shared: &Mutex<Tally>) {
    let began = Instant::now();
    let mut kept = None;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if let Some(early) = next.checked_duration_since(now) {
            std::thread::sleep(early); // tidy: the pace of the load
        }
        next = next.max(now) + order.pace;
        let sent = Instant::now();
        let result = ask(order, &mut kept);
        let (outcome, trouble) = judge(&result);
        let mut tally = shared.lock().expect("no client panics while it holds this");
        *tally.outcomes.entry(outcome).or_default() += 1;
        tally.longest = tally.longest.max(sent.elapsed());
        if let Ok(answer) = &result
            && let Some(version) = answer.header("x-version")
            && !tally.versions.contains(version)
        {
            tally.versions.insert(version.to_owned());
        }
        if outcome != Outcome::Answered && tally.troubles.len() < TROUBLES_MAX {
            tally.troubles.push(format!("after {:?}: {trouble}", began.elapsed()));
        }
        made.fetch_add(1, Ordering::Relaxed);
    }
}

fn ask(order: &Order, kept: &mut Option<Connection>) -> Result<Answer, Failure> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(order.address)?,
    };
    let answer = connection.get(&order.host, &order.path)?;
    if !answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        *kept = Some(connection);
    }
    Ok(answer)
}

fn judge(result: &Result<Answer, Failure>) -> (Outcome, String) {
    match result {
        Ok(answer) => match answer.status {
            200..=399 => (Outcome::Answered, String::new()),
            status @ 500.. => (Outcome::ServerError(status), format!("{status}: {}", answer.text().trim())),
            status => (Outcome::Unexpected(status), format!("{status}: {}", answer.text().trim())),
        },
        Err(Failure { stage, source }) => {
            let outcome = match source.kind() {
                io::ErrorKind::ConnectionRefused => Outcome::Refused,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Outcome::Reset,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Outcome::TimedOut,
                io::ErrorKind::UnexpectedEof if *stage == Stage::Waiting => Outcome::Closed,
                _ => Outcome::Broken,
            };
            (outcome, format!("{outcome:?} while {stage:?}: {source}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout, Command, Stdio};

    use super::*;
    use crate::TestApp;

    /// The test application without a platform. The pipe stays open: it goes on to write there.
    struct Bare(Child, BufReader<ChildStdout>);

    impl Drop for Bare {
        fn drop(&mut self) {
            // It may have ended by itself.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn bare(app: &TestApp) -> (Bare, SocketAddr) {
        let mut command = Command::new("python3");
        command.args(["-B", "app.py"]).current_dir(app.directory()).env("PORT", "0").stdout(Stdio::piped());
        let mut child = command.spawn().expect("starting python3");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut bare = Bare(child, out);
        let mut line = String::new();
        bare.1.read_line(&mut line).expect("it says where it listens");
        let port = line.split("listens on ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a port");
        (bare, SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a number"))))
    }

    #[test]
    fn a_load_counts_every_answer_and_nothing_is_lost_on_a_healthy_server() {
        let (_bare, address) = bare(&TestApp::new("bare", 1));
        let load = Load::start(address, "bare", "/");
        load.wait_for(100);
        let tally = load.stop();
        tally.assert_none_lost("nothing at all");
        assert_eq!(tally.versions.iter().collect::<Vec<_>>(), ["1"]);
    }

    #[test]
    fn errors_and_refused_connections_are_losses() {
        let (bare, address) = bare(&TestApp::new("bare", 1));
        assert_eq!(
            crate::http::get(address, "bare", "/become?flag=BE_UNHEALTHY").expect("an answer").status,
            200
        );
        let load = Load::start(address, "bare", "/up");
        load.wait_for(20);
        drop(bare);
        eventually("connections are refused", || {
            let tally = load.tally();
            if tally.count(Outcome::Refused) > 0 { Ok(()) } else { Err(format!("{tally:?}")) }
        });
        let tally = load.stop();
        assert!(tally.count(Outcome::ServerError(503)) >= 20, "{tally:?}");
        assert_eq!(tally.answered(), 0, "{tally:?}");
    }

    #[test]
    fn the_test_application_streams_and_echoes() {
        let (_bare, address) = bare(&TestApp::new("bare", 1));
        let mut connection = Connection::open(address).expect("connecting");
        let streamed = connection.get("bare", "/stream?chunks=3&ms=1").expect("an answer");
        assert_eq!(streamed.body.len(), 3 * 1024);
        let echoed =
            connection.ask("POST", "bare", "/", &[], b"hello").expect("an answer on the same connection");
        assert_eq!(echoed.text(), "hello");
    }
}
