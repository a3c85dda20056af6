//! HTTP/2 to clients: streams side by side, and each as good as a request of its own.

use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::Application;
use crate::client::Client;
use crate::stage::{Stage, backend, held, shop};

/// Runs a story that needs a runtime, bounded in time.
pub fn story<F: Future<Output = ()>>(tell: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), tell).await });
    told.expect("the story did not come to its end within a minute");
}

/// A client that knows that the other side speaks HTTP/2.
pub async fn connect(to: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(to).await.expect("the ingress refused a connection");
    let (send, connection) = h2::client::handshake(socket).await.expect("no HTTP/2 is spoken");
    tokio::spawn(connection);
    send.ready().await.expect("the connection takes requests")
}

fn get(path: &str) -> Request<()> {
    request(Method::GET, path)
}

pub fn request(method: Method, path: &str) -> Request<()> {
    let uri = format!("http://shop.localhost{path}");
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

pub async fn text(mut body: RecvStream) -> String {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("the answer broke off");
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    String::from_utf8(all).unwrap()
}

/// Reads until it breaks off.
pub async fn broken(mut body: RecvStream) -> h2::Error {
    loop {
        match body.data().await {
            Some(Ok(data)) => body.flow_control().release_capacity(data.len()).unwrap(),
            Some(Err(error)) => return error,
            None => panic!("half an answer looks like a whole one"),
        }
    }
}

async fn answer(send: &mut SendRequest<Bytes>, request: Request<()>) -> (http::response::Parts, String) {
    let (response, _) = send.send_request(request, true).expect("the request can be sent");
    let (parts, body) = response.await.expect("there is an answer").into_parts();
    (parts, text(body).await)
}

fn echo() -> Application {
    Application::answering("a-1", |seen| format!("{} {}", seen.path(), seen.body.len()).into_bytes())
}

#[test]
fn requests_of_one_connection_are_answered_side_by_side() {
    let (free, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let app = Application::answering("a-1", move |seen| {
        if seen.path() == "/slow" {
            wait.lock().unwrap().recv().unwrap();
        }
        seen.path().as_bytes().to_vec()
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let (slow, _) = client.send_request(get("/slow"), true).unwrap();
        for n in 0..20 {
            let (head, body) = answer(&mut client, get(&format!("/{n}"))).await;
            assert_eq!((head.status.as_u16(), body), (200, format!("/{n}")), "behind a slow request");
        }
        free.send(()).unwrap();
        assert_eq!(text(slow.await.unwrap().into_body()).await, "/slow");
    });
}

#[test]
fn an_instance_sees_an_ordinary_request() {
    let app = echo();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let mut request = get("/a?b=c");
        for (name, value) in
            [("cookie", "a=1"), ("cookie", "b=2"), ("x-forwarded-for", "6.6.6.6"), ("te", "trailers")]
        {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let (head, _) = answer(&mut client, request).await;
        assert_eq!(head.status.as_u16(), 200);
        assert!(head.headers.get("connection").is_none(), "{head:?}");
    });
    let seen = &app.seen()[0];
    assert!(seen.head.starts_with("GET /a?b=c HTTP/1.1\r\nHost: shop.localhost\r\n"), "{}", seen.head);
    assert_eq!(seen.header("Cookie"), Some("a=1; b=2"));
    assert_eq!(seen.header("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(seen.header("X-Forwarded-Proto"), Some("http"));
    assert_eq!(seen.header("TE"), None);
}

#[test]
fn bodies_stream_both_ways_with_back_pressure() {
    const SIZE: usize = 8 << 20;
    let app = Application::answering("a-1", |seen| seen.body.clone());
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        for announced in [true, false] {
            let mut request = request(Method::POST, "/echo");
            if announced {
                request.headers_mut().insert("content-length", SIZE.into());
            }
            let (response, mut upload) = client.send_request(request, false).unwrap();
            let mut left = SIZE;
            while left > 0 {
                upload.reserve_capacity(left.min(64 * 1024));
                let room = std::future::poll_fn(|cx| upload.poll_capacity(cx)).await.expect("open").unwrap();
                let count = room.min(left);
                left -= count;
                upload.send_data(vec![b'x'; count].into(), left == 0).unwrap();
            }
            let body = text(response.await.unwrap().into_body()).await;
            assert_eq!(body.len(), SIZE, "announced: {announced}");
        }
    });
}

#[test]
fn what_an_instance_breaks_off_is_seen_as_broken() {
    let app = Application::start("a-1", |connection| {
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
        match connection.request() {
            Some(seen) if seen.path() == "/" => connection.write(half).unwrap(),
            Some(_) => connection.answer(b"whole").unwrap(),
            None => {}
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        // The reset may overtake what there was of the answer.
        let error = match response.await {
            Err(error) => error,
            Ok(response) => broken(response.into_body()).await,
        };
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "half an answer looks like a whole one");
        // The connection, and so everybody else on it, goes on.
        assert_eq!(answer(&mut client, get("/other")).await.1, "whole");
    });
}

#[test]
fn errors_of_rung_itself_are_told_on_the_stream() {
    let app = echo();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let elsewhere = Request::get("http://nobody.localhost/").body(()).unwrap();
        let (head, page) = answer(&mut client, elsewhere).await;
        assert_eq!((head.status.as_u16(), &head.headers["rung-error"]), (404, &"no_route".parse().unwrap()));
        assert!(page.contains("No application answers"), "{page}");
        let mut contradicting = get("/");
        contradicting.headers_mut().insert("host", "other.localhost".parse().unwrap());
        let (head, page) = answer(&mut client, contradicting).await;
        assert_eq!(head.status.as_u16(), 400, "{page}");
        let connect = Request::connect("shop.localhost:80").body(()).unwrap();
        assert_eq!(answer(&mut client, connect).await.0.status.as_u16(), 405);
        assert_eq!(answer(&mut client, get("/fine")).await.1, "/fine 0", "the connection goes on");
    });
}

#[test]
fn a_held_request_goes_on_when_the_service_has_changed_hands() {
    let app = echo();
    let stage = Stage::start(vec![shop(held(10, Duration::from_secs(30)))]);
    story(async {
        let mut client = connect(stage.http).await;
        let (response, _) = client.send_request(get("/held"), true).unwrap();
        stage.server.publish(vec![shop(backend(vec![app.endpoint()]))]);
        assert_eq!(text(response.await.unwrap().into_body()).await, "/held 0");
    });
}

#[test]
fn a_stream_that_is_reset_frees_its_instance() {
    let (say, heard) = channel();
    let say = std::sync::Mutex::new(say);
    let app = Application::start("a-1", move |connection| {
        if connection.request().is_some() {
            // Ends when the ingress gives the connection up.
            let ended = connection.take_exact(1).is_none();
            say.lock().unwrap().send(ended).unwrap();
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let (response, mut upload) = client.send_request(get("/"), true).unwrap();
        while app.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        upload.send_reset(Reason::CANCEL);
        assert!(response.await.is_err(), "it was given up");
        while heard.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_websocket_goes_through_a_stream() {
    let app = Application::start("a-1", |connection| {
        let seen = connection.request().expect("a request");
        assert_eq!(seen.header("Upgrade"), Some("websocket"));
        assert_eq!(seen.header("Sec-WebSocket-Key").map(str::len), Some(24), "{}", seen.head);
        connection.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n").unwrap();
        while let Some(bytes) = connection.take_exact(4) {
            connection.write(bytes).unwrap();
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        // The server says that it can in its settings, which arrive with the first answer at the latest.
        while !client.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut request = request(Method::CONNECT, "/socket");
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
        let (response, mut to) = client.send_request(request, false).unwrap();
        let (head, mut from): (http::response::Parts, _) = response.await.unwrap().into_parts();
        assert_eq!(head.status.as_u16(), 200, "{head:?}");
        for word in ["ping", "pong"] {
            to.send_data(word.into(), false).unwrap();
            let data = from.data().await.expect("an echo").unwrap();
            from.flow_control().release_capacity(data.len()).unwrap();
            assert_eq!(data, word);
        }
        to.send_data(Bytes::new(), true).unwrap();
        assert_eq!(text(from).await, "", "it ends well when both sides have ended");
    });
}

#[test]
fn interim_answers_reach_the_client_before_the_final_one() {
    let app = Application::start("a-1", |connection| {
        while let Some(head) = connection.head() {
            assert!(head.contains("xpect: 100-continue"), "{head}");
            connection.write("HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let body = connection.take_exact(4).expect("the body");
            connection.answer(&body).unwrap();
        }
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let mut request = request(Method::POST, "/");
        request.headers_mut().insert("expect", "100-continue".parse().unwrap());
        request.headers_mut().insert("content-length", "4".parse().unwrap());
        let (mut response, mut upload) = client.send_request(request, false).unwrap();
        let interim: Option<Response<()>> =
            std::future::poll_fn(|cx| response.poll_informational(cx)).await.transpose().expect("no error");
        assert_eq!(interim.map(|head| head.status().as_u16()), Some(100));
        upload.send_data("body".into(), true).unwrap();
        assert_eq!(text(response.await.unwrap().into_body()).await, "body");
    });
}

#[test]
fn a_drain_lets_streams_end_and_takes_no_new_ones() {
    let (free, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let app = Application::answering("a-1", move |_| {
        wait.lock().unwrap().recv().unwrap();
        b"late".to_vec()
    });
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        while app.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        nix::sys::signal::kill(stage.pid(), nix::sys::signal::Signal::SIGTERM).unwrap();
        // Told by GOAWAY: the client must not send anything new here.
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
        free.send(()).unwrap();
        assert_eq!(text(response.await.unwrap().into_body()).await, "late", "what was in flight is lost");
    });
}

/// Sends frames as they are, and waits for the connection's end.
async fn flood(to: SocketAddr, frames: Vec<u8>) {
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut from, mut into) = socket.split();
    let mut said = Vec::new();
    // Written until the other side has enough: then the write fails, or its end is read.
    let write = async {
        for _ in 0..2_000 {
            if into.write_all(&frames).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(write, async { drop(from.read_to_end(&mut said).await) });
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn floods_end_their_connection_and_nobody_elses() {
    let app = echo();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    // GET / with :authority shop.localhost, in HPACK by hand.
    let mut head = vec![0x82, 0x86, 0x84, 0x41, 14];
    head.extend_from_slice(b"shop.localhost");
    let mut rapid_reset = Vec::new();
    for n in 0..1_000 {
        rapid_reset.extend(frame(1, 5, 2 * n + 1, &head));
        rapid_reset.extend(frame(3, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    let mut continuation = frame(1, 0, 1, &head);
    for _ in 0..1_000 {
        continuation.extend(frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(100)));
    }
    let mut bomb = vec![0x82, 0x86, 0x84, 0x41, 14];
    bomb.extend_from_slice(b"shop.localhost");
    bomb.extend_from_slice(&[
        0x40,
        1,
        b'x',
        0x7f,
        0x80 + (3900 - 127) as u8 % 128,
        ((3900 - 127) / 128) as u8,
    ]);
    bomb.extend(vec![b'y'; 3900]);
    bomb.extend(vec![0xbe; 10_000]);
    let nonsense = frame(1, 5, 2, b"\xff\xff\xff");
    story(async {
        let mut bystander = connect(stage.http).await;
        for (name, frames) in [
            ("rapid reset", rapid_reset),
            ("continuation", continuation),
            ("a header that unpacks to 40 MB", frame(1, 5, 1, &bomb)),
            ("nonsense", nonsense),
        ] {
            flood(stage.http, frames).await;
            let (head, body) = answer(&mut bystander, get("/fine")).await;
            assert_eq!((head.status.as_u16(), body.as_str()), (200, "/fine 0"), "after {name}");
        }
    });
    assert!(Client::connect(stage.http).get("/still").status == 200);
}

#[test]
fn trailers_of_requests_do_no_harm() {
    let app = echo();
    let stage = Stage::start(vec![shop(backend(vec![app.endpoint()]))]);
    story(async {
        let mut client = connect(stage.http).await;
        let (response, mut upload) = client.send_request(request(Method::POST, "/t"), false).unwrap();
        upload.send_data("four".into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("content-length", "99".parse().unwrap());
        upload.send_trailers(trailers).unwrap();
        assert_eq!(text(response.await.unwrap().into_body()).await, "/t 4");
    });
}
