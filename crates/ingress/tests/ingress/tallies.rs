//! What is counted of requests, by route and by instance.

use std::net::TcpListener;
use std::time::Duration;

use rung_model::{AppName, Endpoint, Route, RouteDocument, ServiceName};

use crate::application::Application;
use crate::client::{Client, get};
use crate::stage::{Stage, backend, shop};

fn two_routes(endpoints: Vec<Endpoint>) -> RouteDocument {
    let web = ServiceName::new("web").unwrap();
    RouteDocument {
        rules: vec![Route::to_service("/*", web.clone()), Route::to_service("/api/*", web)],
        ..shop(backend(endpoints))
    }
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn each_request_counts_for_its_route_and_its_instance() {
    let app = Application::start("a-1", |connection| {
        while let Some(seen) = connection.request() {
            let said = match seen.path() {
                "/api/broken" => answer("500 Internal Server Error", "no"),
                "/api/slow" => {
                    std::thread::sleep(Duration::from_millis(60)); // tidy: what it takes is measured
                    answer("200 OK", "slow")
                }
                _ => answer("404 Not Found", "nothing"),
            };
            if connection.write(said).is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![two_routes(vec![app.endpoint()])]);
    for path in ["/api/broken", "/api/slow", "/api/slow", "/", "/else"] {
        get(stage.http, path);
    }
    let api = stage.server.await_tally("/api/*", "three requests", |tally| tally.requests() == 3);
    assert_eq!((api.ended, api.errors()), ([0, 0, 2, 0, 0, 1], 1));
    assert_eq!((api.bytes, api.in_flight), (10, 0));
    let (median, fastest) = (api.quantile(0.9).unwrap(), api.quantile(0.1).unwrap());
    assert!(
        median >= Duration::from_millis(55),
        "nine of ten of fast, slow and slow took {median:?} at most"
    );
    assert!(fastest < median, "the fast one took {fastest:?}");
    let rest = stage.server.await_tally("/*", "two requests", |tally| tally.requests() == 2);
    assert_eq!(rest.ended, [0, 0, 0, 0, 2, 0]);
    let instance = stage.server.await_tally("a-1", "five requests", |tally| tally.requests() == 5);
    assert_eq!((instance.ended, instance.bytes), ([0, 0, 2, 0, 2, 1], 24));
    assert_eq!(instance.times.values().sum::<u64>(), 5, "an answer has no time");
}

#[test]
fn a_request_in_flight_is_seen_while_it_is() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let app = Application::start("a-1", move |connection| {
        while connection.request().is_some() {
            let _ = held.lock().unwrap().recv();
            if connection.answer(b"at last").is_err() {
                return;
            }
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    for of in ["/*", "a-1"] {
        let tally = stage.server.await_tally(of, "one in flight", |tally| tally.in_flight == 1);
        assert_eq!(tally.requests(), 0);
    }
    release.send(()).unwrap();
    assert_eq!(client.answer().expect("an answer").text(), "at last");
    for of in ["/*", "a-1"] {
        stage.server.await_tally(of, "none in flight", |tally| tally.in_flight == 0 && tally.requests() == 1);
    }
}

#[test]
fn an_instance_that_is_gone_fails_by_itself_while_the_route_goes_on() {
    // Its port is nobody's from here on.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let there = Application::answering("a-1", |_| b"here".to_vec());
    let other = Endpoint { address: gone, ..there.endpoint() };
    let other = Endpoint { instance: rung_model::InstanceId::new("a-2").unwrap(), ..other };
    let stage = Stage::start(vec![shop(backend(vec![there.endpoint(), other]))]);
    let mut client = Client::connect(stage.http);
    let mut asked = 0;
    // Which of the two is asked first is drawn.
    for _ in 0..40 {
        assert_eq!(client.get("/").text(), "here");
        asked += 1;
    }
    stage.server.await_tally("/*", "all requests answered", |tally| tally.ended == [0, 0, asked, 0, 0, 0]);
    let gone = stage.server.await_tally("a-2", "failed", |tally| tally.errors() > 0);
    assert_eq!(gone.ended[0], gone.requests(), "an instance that nobody reached has answered");
}

#[test]
fn a_server_that_knows_nothing_is_told_everything_and_what_is_gone_is_forgotten() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let stage = Stage::start(vec![two_routes(vec![app.endpoint()])]);
    get(stage.http, "/api/");
    stage.server.await_tally("/api/*", "a request", |tally| tally.requests() == 1);
    stage.server.forget_tallies();
    get(stage.http, "/");
    stage.server.await_tally("/*", "a request", |tally| tally.requests() == 1);
    stage.server.await_tally("/api/*", "its request of before", |tally| tally.requests() == 1);

    let next = Application::answering("a-2", |_| b"hello".to_vec());
    for app in [&next, &next] {
        // What a table had is forgotten with the one after the next.
        let generation = stage.server.publish(vec![two_routes(vec![app.endpoint()])]);
        stage.server.await_acknowledged(generation);
    }
    get(stage.http, "/");
    stage.server.await_tally("a-2", "a request", |tally| tally.requests() == 1);
    stage.server.await_forgotten("a-1");
}

#[test]
fn routes_of_one_path_are_told_apart_by_what_else_they_ask_for() {
    let app = Application::answering("a-1", |_| b"hello".to_vec());
    let mut document = two_routes(vec![app.endpoint()]);
    let mut posts = Route::to_service("/api/*", ServiceName::new("web").unwrap());
    posts.when.methods.insert("POST".into());
    posts.when.headers.insert("x-key".into(), Some("a-secret".into()));
    document.rules.push(posts);
    assert_eq!(document.app, AppName::new("shop").unwrap());
    let stage = Stage::start(vec![document]);
    let mut client = Client::connect(stage.http);
    client
        .send("POST /api/ HTTP/1.1\r\nHost: shop.localhost\r\nX-Key: a-secret\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer().expect("an answer").status, 200);
    client.get("/api/");
    stage.server.await_tally("POST /api/* +x-key", "a request", |tally| tally.requests() == 1);
    stage.server.await_tally("/api/*", "a request", |tally| tally.requests() == 1);
}
