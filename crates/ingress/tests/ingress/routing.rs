//! Which instance a request reaches, and what is said when there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rung_model::Backend;

use crate::application::Application;
use crate::client::{Client, get};
use crate::stage::{Stage, backend, held, shop};

#[test]
fn an_unknown_host_is_told_so_and_learns_nothing_else() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("GET / HTTP/1.1\r\nHost: other.example.com\r\nAccept: application/json\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("Rung-Error")), (404, Some("no_route")));
    let page: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(page["failed"], "rung");
    assert_eq!(page["request_id"].as_str(), answer.header("X-Request-Id"));
    assert!(!answer.text().contains("shop"), "the page names an app: {page}");
    assert_eq!(client.get("/").text(), "hello", "the connection could not be used again");
}

#[test]
fn the_only_app_answers_to_the_address_itself() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", stage.http));
    assert_eq!(client.answer().unwrap().text(), "hello");
}

#[test]
fn without_an_instance_the_explanation_is_shown() {
    let none = Backend { explanation: "web crashed: exit code 3 <b>".into(), ..backend(Vec::new()) };
    let stage = Stage::start(vec![shop(none)]);
    let answer = get(stage.http, "/");
    assert_eq!((answer.status, answer.header("Rung-Error")), (503, Some("no_instance")));
    assert!(answer.text().contains("exit code 3 &lt;b&gt;"), "{}", answer.text());
    assert!(answer.text().contains("The application failed"), "{}", answer.text());
}

#[test]
fn held_requests_go_on_when_an_instance_is_there() {
    let stage = Stage::start(vec![shop(held(2, Duration::from_secs(20)))]);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(stage.http)).collect();
    for client in &mut clients {
        client.send("POST /order HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 2\r\n\r\nok");
    }
    // Two places for three: one of them, whichever came last, is answered at once.
    let (last, full) = loop {
        let answered = clients.iter_mut().enumerate().find_map(|(n, client)| {
            client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            client.answer().map(|answer| (n, answer))
        });
        if let Some(answered) = answered {
            break answered;
        }
    };
    assert_eq!((full.status, full.header("Rung-Error")), (503, Some("hold_full")));
    clients.remove(last);
    let app = Application::answering("a-1", |seen| seen.body.clone());
    stage.server.publish(vec![shop(backend(vec![app.endpoint()]))]);
    for client in &mut clients {
        client.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let answer = client.answer().expect("a held request was dropped");
        assert_eq!((answer.status, answer.text()), (200, "ok"), "a held request did not go on");
    }
}

#[test]
fn a_request_is_not_held_for_ever() {
    let stage = Stage::start(vec![shop(held(5, Duration::from_millis(100)))]);
    let answer = get(stage.http, "/");
    assert_eq!((answer.status, answer.header("Rung-Error")), (503, Some("held_too_long")));
}

#[test]
fn after_the_acknowledgement_nothing_reaches_the_old_instance_and_nothing_is_lost() {
    let is_over = Arc::new(AtomicBool::new(false));
    let late = Arc::new(AtomicBool::new(false));
    let (over, was_late) = (is_over.clone(), late.clone());
    let old = Application::answering("a-1", move |_| {
        if over.load(Ordering::SeqCst) {
            was_late.store(true, Ordering::SeqCst);
        }
        b"old".to_vec()
    });
    let new = Application::answering("a-2", |_| b"new".to_vec());
    let stage = Stage::start(vec![shop(backend(vec![old.endpoint()]))]);
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (stop, http) = (stop.clone(), stage.http);
            std::thread::spawn(move || {
                let mut client = Client::connect(http);
                let mut answers = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.get("/");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    answers.push(answer.body);
                }
                answers
            })
        })
        .collect();
    for round in 0..10 {
        let (to, from) = if round % 2 == 0 { (&new, &old) } else { (&old, &new) };
        if round % 2 == 1 {
            is_over.store(false, Ordering::SeqCst);
        }
        let draining = vec![from.endpoint()];
        let generation =
            stage.server.publish(vec![shop(Backend { draining, ..backend(vec![to.endpoint()]) })]);
        stage.server.await_acknowledged(generation);
        stage.server.await_poll("that the old instance has drained", |poll| {
            poll.after >= generation && poll.draining.get(&from.id) == Some(&0)
        });
        if round % 2 == 0 {
            is_over.store(true, Ordering::SeqCst);
        }
        let before = to.seen().len();
        while to.seen().len() < before + 20 {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::SeqCst);
    let answers: usize = load.into_iter().map(|thread| thread.join().unwrap().len()).sum();
    assert!(answers > 100, "only {answers} requests were made");
    assert!(!late.load(Ordering::SeqCst), "a request reached the old instance after it had drained");
}

#[test]
fn the_end_of_the_last_request_of_a_draining_instance_is_reported_at_once() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let old = Application::answering("a-1", move |_| {
        let _ = wait.lock().unwrap().recv();
        b"done".to_vec()
    });
    let new = Application::answering("a-2", |_| b"new".to_vec());
    let stage = Stage::start(vec![shop(backend(vec![old.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    while old.seen().is_empty() {
        std::thread::yield_now();
    }
    let draining = vec![old.endpoint()];
    stage.server.publish(vec![shop(Backend { draining, ..backend(vec![new.endpoint()]) })]);
    stage.server.await_poll("that one request is in flight", |poll| poll.draining.get(&old.id) == Some(&1));
    assert_eq!(get(stage.http, "/").text(), "new");
    go.send(()).unwrap();
    assert_eq!(client.answer().unwrap().text(), "done", "the request in flight was cut off");
    stage.server.await_poll("that nothing is in flight", |poll| poll.draining.get(&old.id) == Some(&0));
}
