//! More comes than an instance can bear: what it can it does, and the rest is told so at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use rung_model::RouteDocument;
use rung_model::route::{Overload, RoutePolicy};

use crate::application::Application;
use crate::client::{Client, get};
use crate::routes::{shop_with, to_web};
use crate::stage::Stage;

fn bounded(app: &Application, max: u32, queue: u32, wait: Duration) -> RouteDocument {
    let overload = Some(Overload { max, queue, wait });
    shop_with(app, vec![to_web("/*", RoutePolicy { overload, ..RoutePolicy::default() })])
}

/// What an application with few workers sees of the requests that it has.
#[derive(Default)]
struct Workers {
    busy: Mutex<usize>,
    freed: Condvar,
    /// Requests that it has, those that wait inside it included.
    has: AtomicUsize,
    most: AtomicUsize,
}

impl Workers {
    /// Works on it for so long when one of four workers is free: it gets slower with each request beyond.
    fn work(&self, time: Duration) {
        let has = self.has.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(has, Ordering::SeqCst);
        let mut busy = self.freed.wait_while(self.busy.lock().unwrap(), |busy| *busy >= 4).unwrap();
        *busy += 1;
        drop(busy);
        std::thread::sleep(time); // tidy: the work that a request takes
        *self.busy.lock().unwrap() -= 1;
        self.freed.notify_one();
        self.has.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn an_instance_that_gets_slow_under_load_gets_no_more_than_it_does_well() {
    let workers = Arc::new(Workers::default());
    let inside = workers.clone();
    let app = Application::answering("a-1", move |_| {
        inside.work(Duration::from_millis(20));
        b"done".to_vec()
    });
    let stage = Stage::start(vec![bounded(&app, 10_000, 4, Duration::from_secs(5))]);
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let mut client = Client::connect(stage.http);
                while answered.load(Ordering::SeqCst) < 600 {
                    let answer = client.get("/");
                    if answer.status == 200 {
                        answered.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    let said = (answer.status, answer.header("Rung-Error"), answer.header("Retry-After"));
                    assert_eq!(said, (503, Some("busy"), Some("1")), "{answer:?}");
                    refused.fetch_add(1, Ordering::SeqCst);
                    // As a client that does what it is told, in small.
                    std::thread::sleep(Duration::from_millis(20)); // tidy: a client that was told to wait does
                }
            });
        }
    });
    let most = workers.most.load(Ordering::SeqCst);
    assert!(most < 80, "{most} of a hundred clients were inside an instance with four workers");
    assert!(refused.load(Ordering::SeqCst) > 0, "nobody was refused");
}

#[test]
fn who_finds_no_room_waits_in_the_queue() {
    let (working, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new((Mutex::new(false), Condvar::new())));
    let (inside, opened) = (working.clone(), gate.clone());
    let app = Application::answering("a-1", move |_| {
        let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
        let is_open = opened.0.lock().unwrap();
        drop(opened.1.wait_while(is_open, |is_open| !*is_open).unwrap());
        inside.fetch_sub(1, Ordering::SeqCst);
        now.to_string().into_bytes()
    });
    let stage = Stage::start(vec![bounded(&app, 1, 2, Duration::from_secs(20))]);
    let (told, answers) = mpsc::channel();
    for _ in 0..6 {
        let (told, http) = (told.clone(), stage.http);
        std::thread::spawn(move || told.send(get(http, "/")));
    }
    let next = || answers.recv_timeout(Duration::from_secs(20)).expect("a client got no answer");
    // One is inside and two are queued, whoever they are; the others are told at once.
    for _ in 0..3 {
        let answer = next();
        assert_eq!((answer.status, answer.header("Rung-Error")), (503, Some("busy")), "{answer:?}");
    }
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for _ in 0..3 {
        assert_eq!(next().text(), "1", "two were inside at once");
    }
}

#[test]
fn an_open_stream_takes_nobody_s_place() {
    let (end, ended) = mpsc::channel::<()>();
    let ended = Mutex::new(ended);
    let app = Application::start("a-1", move |connection| {
        while let Some(seen) = connection.request() {
            if seen.path() == "/stream" {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                connection.write(head).unwrap();
                let _ = ended.lock().unwrap().recv();
                return;
            }
            connection.answer(b"in").unwrap();
        }
    });
    let stage = Stage::start(vec![bounded(&app, 1, 0, Duration::ZERO)]);
    let mut stream = Client::connect(stage.http);
    stream.send("GET /stream HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    assert_eq!(stream.head().expect("the stream has begun").status, 200);
    assert_eq!(get(stage.http, "/").text(), "in", "a stream that is open is counted as work");
    // Else the ingress would wait for the stream's end before its own.
    drop(end);
}

#[test]
fn an_instance_that_only_fails_is_left_alone_until_it_answers_again() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let app = Application::start("a-1", move |connection| {
        while let Some(_seen) = connection.request() {
            if is_broken.load(Ordering::SeqCst) || connection.answer(b"well").is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![bounded(&app, 10_000, 100, Duration::from_secs(1))]);
    let errors: Vec<String> =
        (0..20).map(|_| get(stage.http, "/").header("Rung-Error").expect("an error").to_owned()).collect();
    assert_eq!(errors.last().map(String::as_str), Some("circuit_open"), "{errors:?}");
    let seen = app.seen().len();
    assert!(seen <= 12, "{seen} requests reached an instance that fails: {errors:?}");
    broken.store(false, Ordering::SeqCst);
    while get(stage.http, "/").status != 200 {
        std::thread::yield_now();
    }
    assert_eq!(get(stage.http, "/").text(), "well");
}
