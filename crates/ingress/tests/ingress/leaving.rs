//! A client leaves, and nobody works for it on: not its instance, not the place that it had.

use std::net::Shutdown;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use http::Method;
use rung_model::route::{Overload, RoutePolicy};
use socket2::SockRef;

use crate::application::{Application, Connection};
use crate::client::{Client, get};
use crate::http2;
use crate::routes::{shop_with, to_web};
use crate::stage::{Stage, backend, held, shop};

const PATIENCE: Duration = Duration::from_secs(20);
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n";

/// Begins a stream for whoever asks for `/stream`, answers nobody else, and then says nothing more. Tells each connection's end.
fn silent() -> (Application, Receiver<String>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let app = Application::start("a-1", move |connection| {
        let tell: Sender<String> = tell.lock().unwrap().clone();
        let Some(seen) = connection.request() else { return };
        if seen.path() == "/stream" {
            connection.write(STREAM).unwrap();
        }
        if has_ended(connection) {
            let _ = tell.send(seen.path().to_owned());
        }
    });
    (app, told)
}

/// Waits for it; nothing else shall come.
fn has_ended(connection: &mut Connection) -> bool {
    connection.take_exact(1).is_none()
}

fn await_end(told: &Receiver<String>, path: &str) {
    let ended = told.recv_timeout(PATIENCE);
    assert_eq!(ended.as_deref(), Ok(path), "the instance goes on to work for a client that has left");
}

fn await_counts(stage: &Stage) {
    stage.server.await_tally("/*", "ended", |tally| tally.in_flight == 0 && tally.requests() == 1);
    stage.server.await_tally("a-1", "nothing in flight", |tally| tally.in_flight == 0);
}

#[test]
fn a_stream_that_says_nothing_ends_with_its_client() {
    let (app, told) = silent();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("GET /stream HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    assert_eq!(client.head().expect("the stream has begun").status, 200);
    assert_eq!(client.chunk().expect("its first event"), b"hello\n");
    drop(client);
    await_end(&told, "/stream");
    await_counts(&stage);
}

#[test]
fn a_client_that_resets_its_connection_is_seen_at_once_also_before_the_answer() {
    let (app, told) = silent();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let mut client = Client::connect(stage.http);
    client.send("GET /poll HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    stage.server.await_tally("a-1", "one in flight", |tally| tally.in_flight == 1);
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    await_end(&told, "/poll");
    await_counts(&stage);
}

#[test]
fn a_client_that_leaves_after_a_long_upload_is_seen() {
    let (app, told) = silent();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    for path in ["/stream", "/poll"] {
        let mut client = Client::connect(stage.http);
        let length = 1 << 20;
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {length}\r\n\r\n"
        ));
        client.send(vec![b'x'; length]);
        if path == "/stream" {
            client.head().expect("the stream has begun");
        } else {
            while app.seen().len() < 2 {
                std::thread::yield_now();
            }
        }
        drop(client);
        await_end(&told, path);
    }
}

#[test]
fn a_stream_over_http2_ends_with_its_reset() {
    let (app, told) = silent();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    let to = stage.http;
    http2::story(async move {
        let mut connection = http2::connect(to).await;
        let (answer, _) = connection.send_request(http2::request(Method::GET, "/stream"), true).unwrap();
        let mut body = answer.await.expect("the stream has begun").into_body();
        assert_eq!(body.data().await.expect("its first event").unwrap(), "hello\n");
        // What a browser does that leaves the page: the connection stays.
        drop(body);
        tokio::task::spawn_blocking(move || await_end(&told, "/stream")).await.unwrap();
    });
    await_counts(&stage);
}

#[test]
fn who_ends_only_its_own_side_gets_the_whole_answer() {
    const SIZE: usize = 8 << 20;
    let (free, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let app = Application::answering("a-1", move |_| {
        let _ = wait.lock().unwrap().recv();
        vec![b'x'; SIZE]
    });
    // What the ingress tells of itself may take longer than the moment that such a client is given.
    let documents = vec![shop(backend(vec![app.endpoint()]))];
    let stage = Stage::with_arguments(documents, &["--half-closed-ms", "60000"]);
    let mut client = Client::connect(stage.http);
    client.send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    stage.server.await_tally("a-1", "one in flight", |tally| tally.in_flight == 1);
    free.send(()).unwrap();
    let answer = client.answer().expect("the answer to a client that still reads broke off");
    assert_eq!((answer.status, answer.body.len()), (200, SIZE));
}

#[test]
fn a_place_in_the_queue_is_free_when_its_client_leaves() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let inside = gate.clone();
    let app = Application::answering("a-1", move |_| {
        drop(inside.1.wait_while(inside.0.lock().unwrap(), |is_open| !*is_open).unwrap());
        b"done".to_vec()
    });
    let overload = Some(Overload { max: 1, queue: 1, wait: PATIENCE });
    let policy = RoutePolicy { overload, ..RoutePolicy::default() };
    let stage = Stage::start(vec![shop_with(&app, vec![to_web("/*", policy)])]);
    let in_flight = |count: u64| {
        stage.server.await_tally("/*", &format!("{count} in flight"), |tally| tally.in_flight == count);
    };
    let busy = std::thread::spawn({
        let http = stage.http;
        move || get(http, "/")
    });
    in_flight(1);
    // With and without more behind its head than is kept of what waits.
    for length in [0, 64 * 1024] {
        let mut waiting = Client::connect(stage.http);
        waiting.send(format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {length}\r\n\r\n"));
        waiting.send(vec![b'x'; length]);
        in_flight(2);
        let refused = get(stage.http, "/");
        assert_eq!((refused.status, refused.header("Rung-Error")), (503, Some("busy")), "{refused:?}");
        drop(waiting);
        in_flight(1);
    }
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert_eq!(busy.join().unwrap().text(), "done");
}

#[test]
fn a_place_among_the_held_is_free_when_its_client_leaves() {
    let stage = Stage::start(vec![shop(held(1, PATIENCE))]);
    for length in [0, 64 * 1024] {
        let mut waiting = Client::connect(stage.http);
        waiting.send(format!("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: {length}\r\n\r\n"));
        waiting.send(vec![b'x'; length]);
        stage.server.await_tally("/*", "one in flight", |tally| tally.in_flight == 1);
        let refused = get(stage.http, "/");
        assert_eq!((refused.status, refused.header("Rung-Error")), (503, Some("hold_full")), "{refused:?}");
        drop(waiting);
        stage.server.await_tally("/*", "none in flight", |tally| tally.in_flight == 0);
    }
}
