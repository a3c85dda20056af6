//! Two releases side by side: who gets which, and what is counted of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rung_model::appfile::rollout::Share;
use rung_model::routes::{Mark, SplitBy, Testers};
use rung_model::{Backend, DeploymentNumber, RouteDocument, Split};

use crate::application::Application;
use crate::client::{Client, get};
use crate::stage::{Stage, backend, shop};

fn split(share: u32) -> Split {
    Split { candidate: DeploymentNumber(2), share: Share(share), by: SplitBy::Visitor, testers: None }
}

fn releases() -> (Application, Application) {
    (Application::answering("a-1", |_| b"old".to_vec()), Application::answering("a-2", |_| b"new".to_vec()))
}

fn side_by_side(old: &Application, new: &Application, split: Split) -> RouteDocument {
    let endpoints = vec![old.endpoint_of(1), new.endpoint_of(2)];
    RouteDocument { measured: true, ..shop(Backend { split: Some(split), ..backend(endpoints) }) }
}

fn cookie(answer: &crate::client::Answer) -> Option<String> {
    answer.header("Set-Cookie")?.split(';').next().map(str::to_owned)
}

fn ask(client: &mut Client, lines: &str) -> crate::client::Answer {
    client.send(format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\n{lines}\r\n"));
    client.answer().expect("an answer")
}

#[test]
fn over_ten_thousand_requests_a_share_holds_to_one_percent_and_is_counted() {
    for share in [500, 2500] {
        let (old, new) = releases();
        let stage = Stage::start(vec![side_by_side(&old, &new, split(share))]);
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let to = stage.http;
                std::thread::spawn(move || {
                    let mut client = Client::connect(to);
                    (0..2500).filter(|_| client.get("/").text() == "new").count()
                })
            })
            .collect();
        let got: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        let off = got.abs_diff(share as usize);
        assert!(off <= 100, "a share of {share} in 10,000 was {got}");
        let counts = stage
            .server
            .await_counts(2, "all requests of the new one", |counts| counts.requests as usize == got);
        assert_eq!(counts.times.values().sum::<u64>(), counts.requests);
        let of_old =
            stage.server.await_counts(1, "all of the old", |counts| counts.requests as usize == 10_000 - got);
        assert_eq!((counts.errors, of_old.errors), (0, 0));
    }
}

#[test]
fn a_visitor_stays_with_what_it_got_and_is_known_by_a_cookie() {
    let (old, new) = releases();
    let stage = Stage::start(vec![side_by_side(&old, &new, split(5000))]);
    let mut client = Client::connect(stage.http);
    let visitors: Vec<(String, String)> = (0..20)
        .map(|_| {
            let answer = ask(&mut client, "");
            let cookie = cookie(&answer).expect("a fresh visitor gets no cookie");
            assert!(answer.header("Set-Cookie").unwrap().contains("HttpOnly; SameSite=Lax"), "{answer:?}");
            (cookie, answer.text().to_owned())
        })
        .collect();
    assert_eq!(visitors.iter().filter(|(_, got)| got == "new").count(), 10);
    for (cookie, got) in &visitors {
        for _ in 0..5 {
            let again = ask(&mut client, &format!("Cookie: theme=dark; {cookie}\r\n"));
            assert_eq!(again.text(), got, "a visitor changed sides");
            assert_eq!(again.header("Set-Cookie"), None, "a known visitor gets another cookie");
        }
    }
    let generation = stage.server.publish(vec![side_by_side(&old, &new, split(9000))]);
    stage.server.await_acknowledged(generation);
    let stayed = visitors.iter().filter(|(_, got)| got == "new");
    for (cookie, _) in stayed {
        assert_eq!(
            ask(&mut client, &format!("Cookie: {cookie}\r\n")).text(),
            "new",
            "it fell out of a larger share"
        );
    }
}

#[test]
fn without_two_releases_nobody_gets_a_cookie() {
    let (old, _) = releases();
    let stage = Stage::start(vec![shop(backend(vec![old.endpoint_of(1)]))]);
    assert_eq!(get(stage.http, "/").header("Set-Cookie"), None);
}

#[test]
fn testers_see_the_new_release_before_anybody_else() {
    let (old, new) = releases();
    let mark = Mark::Header("X-Beta".into());
    let rule = Split { testers: Some(Testers { mark, is: Some("on".into()) }), ..split(0) };
    let stage = Stage::start(vec![side_by_side(&old, &new, rule)]);
    let mut client = Client::connect(stage.http);
    for _ in 0..50 {
        assert_eq!(ask(&mut client, "X-Beta: on\r\n").text(), "new");
        assert_eq!(ask(&mut client, "").text(), "old");
    }
}

#[test]
fn once_a_candidate_is_taken_away_it_gets_no_request_any_more() {
    let (old, new) = releases();
    let stage = Stage::start(vec![side_by_side(&old, &new, split(5000))]);
    let stop = Arc::new(AtomicBool::new(false));
    let (to, until) = (stage.http, stop.clone());
    let load = std::thread::spawn(move || {
        let mut client = Client::connect(to);
        let mut answered = 0;
        while !until.load(Ordering::Acquire) {
            assert_eq!(client.get("/").status, 200);
            answered += 1;
        }
        answered
    });
    stage.server.await_counts(2, "some requests", |counts| counts.requests > 20);
    let draining = vec![new.endpoint_of(2)];
    let alone = Backend { draining, ..backend(vec![old.endpoint_of(1)]) };
    let generation = stage.server.publish(vec![RouteDocument { measured: true, ..shop(alone) }]);
    stage.server.await_acknowledged(generation);
    stage.server.await_poll("that nothing is in flight", |poll| {
        poll.after >= generation && poll.draining.values().all(|count| *count == 0)
    });
    let before = new.seen().len();
    let seen = stage.server.await_counts(1, "more requests", |counts| counts.requests > 100).requests;
    stage.server.await_counts(1, "even more", |counts| counts.requests > seen + 100);
    stop.store(true, Ordering::Release);
    assert!(load.join().unwrap() > 0);
    assert_eq!(new.seen().len(), before, "requests were sent there after its un-routing was acknowledged");
}

#[test]
fn a_candidate_that_is_gone_is_stood_in_for_and_its_failures_count() {
    let (old, new) = releases();
    new.close();
    let stage = Stage::start(vec![side_by_side(&old, &new, split(5000))]);
    let mut client = Client::connect(stage.http);
    for _ in 0..20 {
        let answer = ask(&mut client, "");
        assert_eq!((answer.status, answer.text()), (200, "old"), "{answer:?}");
    }
    let counts = stage.server.await_counts(2, "failures", |counts| counts.errors > 0);
    assert_eq!(counts.errors, counts.requests);
}

#[test]
fn answers_of_the_application_count_by_status_and_time() {
    let old = Application::answering("a-1", |_| b"old".to_vec());
    let new = Application::start("a-2", |connection| {
        while connection.request().is_some() {
            std::thread::sleep(Duration::from_millis(60)); // tidy: an answer that takes its time
            let failed = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
            if connection.write(failed).is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![side_by_side(&old, &new, split(9900))]);
    let mut client = Client::connect(stage.http);
    (0..12).for_each(|_| drop(ask(&mut client, "")));
    let counts = stage.server.await_counts(2, "errors", |counts| counts.errors >= 10);
    assert_eq!(counts.errors, counts.requests);
    let p95 = counts.p95().unwrap();
    assert!(p95 >= Duration::from_millis(60), "answers after 60 ms have a p95 of {p95:?}");
}
