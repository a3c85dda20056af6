//! Services that speak HTTP/2 themselves: gRPC, with its trailers and streams both ways.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response};
use rung_model::{Backend, Endpoint, InstanceId, Protocol, ReleaseNumber};

use crate::client::Client;
use crate::http2::{broken, connect, request, story, text};
use crate::stage::{Stage, backend, shop};

/// A service in a thread with a runtime of its own.
pub struct Service {
    pub endpoint: Endpoint,
    asked: Arc<AtomicUsize>,
}

impl Service {
    fn start<F, A>(id: &str, serve: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> A + Send + Clone + 'static,
        A: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let (serve, counted) = (serve.clone(), counted.clone());
                    tokio::task::spawn_local(async move {
                        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            counted.fetch_add(1, Ordering::AcqRel);
                            tokio::task::spawn_local(serve(request, respond));
                        }
                    });
                }
            });
        });
        Self { endpoint: endpoint(id, address), asked }
    }

    /// Sends every frame back as it comes, and how many there were in the trailers.
    pub fn echo(id: &str) -> Self {
        Self::start(id, |request, mut respond| async move {
            assert_eq!(request.headers()["te"], "trailers");
            assert_eq!(request.headers()["x-forwarded-for"], "127.0.0.1");
            let deadline = request.headers().get("grpc-timeout").cloned();
            let mut head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            if let Some(deadline) = deadline {
                head.headers_mut().insert("seen-timeout", deadline);
            }
            let mut to = respond.send_response(head, false).unwrap();
            let mut from = request.into_body();
            let mut frames = 0;
            while let Some(Ok(data)) = from.data().await {
                from.flow_control().release_capacity(data.len()).unwrap();
                frames += 1;
                to.send_data(data, false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("frames", frames.into());
            to.send_trailers(trailers).unwrap();
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Acquire)
    }
}

fn endpoint(id: &str, address: SocketAddr) -> Endpoint {
    Endpoint {
        instance: InstanceId::new(id).unwrap(),
        address,
        release: ReleaseNumber(1),
        node: None,
        proxy: None,
        cohort: rung_model::DeploymentNumber(1),
        weight: 1,
    }
}

fn speaking_h2c(endpoints: Vec<Endpoint>) -> Stage {
    Stage::start(vec![shop(Backend { protocol: Protocol::H2c, ..backend(endpoints) })])
}

#[test]
fn a_call_streams_both_ways_and_ends_with_its_trailers() {
    let service = Service::echo("a-1");
    let stage = speaking_h2c(vec![service.endpoint.clone()]);
    story(async {
        let mut client = connect(stage.http).await;
        let mut call = request(Method::POST, "/echo.Echo/Say");
        call.headers_mut().insert("grpc-timeout", "20S".parse().unwrap());
        let (response, mut to) = client.send_request(call, false).unwrap();
        let (head, mut from) = response.await.expect("the head comes before the request ends").into_parts();
        assert_eq!(head.headers["content-type"], "application/grpc");
        assert_eq!(head.headers["seen-timeout"], "20S", "the service keeps the deadline, so it must know it");
        for word in ["one", "two", "three"] {
            to.send_data(word.into(), false).unwrap();
            let data = from.data().await.expect("the word comes back").unwrap();
            from.flow_control().release_capacity(data.len()).unwrap();
            assert_eq!(data, word, "as it was sent, while the request goes on");
        }
        to.send_data(Bytes::new(), true).unwrap();
        while let Some(data) = from.data().await {
            assert!(data.unwrap().is_empty());
        }
        let trailers = from.trailers().await.unwrap().expect("the call ends with trailers");
        assert_eq!(trailers["grpc-status"], "0");
    });
}

#[test]
fn calls_of_many_clients_share_a_connection_to_the_instance() {
    let service = Service::echo("a-1");
    let stage = speaking_h2c(vec![service.endpoint.clone()]);
    story(async {
        for _ in 0..5 {
            let mut client = connect(stage.http).await;
            let calls: Vec<_> = (0..20)
                .map(|n| {
                    let (response, mut to) = client.send_request(request(Method::POST, "/x"), false).unwrap();
                    to.send_data(format!("call {n}").into(), true).unwrap();
                    response
                })
                .collect();
            for (n, call) in calls.into_iter().enumerate() {
                assert_eq!(text(call.await.unwrap().into_body()).await, format!("call {n}"));
            }
        }
    });
    assert_eq!(service.asked(), 100, "each call arrives once");
}

#[test]
fn who_speaks_http1_is_told_what_the_service_needs() {
    let service = Service::echo("a-1");
    let stage = speaking_h2c(vec![service.endpoint.clone()]);
    let answer = Client::connect(stage.http).get("/");
    assert_eq!((answer.status, answer.header("Rung-Error")), (426, Some("needs_http2")));
    assert_eq!(service.asked(), 0);
}

#[test]
fn a_call_that_an_instance_refuses_goes_to_another() {
    let refusing = Service::start("a-1", |_, mut respond| async move {
        respond.send_reset(Reason::REFUSED_STREAM);
    });
    let taking = Service::start("a-2", |_, mut respond| async move {
        respond.send_response(Response::new(()), true).unwrap();
    });
    let stage = speaking_h2c(vec![refusing.endpoint.clone(), taking.endpoint.clone()]);
    story(async {
        let mut client = connect(stage.http).await;
        // By chance each is asked first; whoever refused a call is not asked for it again, so none ends unanswered.
        while refusing.asked() < 40 {
            let (response, _) = client.send_request(request(Method::POST, "/"), true).unwrap();
            assert_eq!(response.await.expect("another takes it").status().as_u16(), 200);
        }
    });
}

#[test]
fn an_answer_that_breaks_off_is_a_reset_and_a_silent_death_an_error() {
    let service = Service::start("a-1", |request, mut respond| async move {
        if request.uri().path() == "/half" {
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            to.send_data("half".into(), false).unwrap();
            to.send_reset(Reason::INTERNAL_ERROR);
        } else {
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    });
    let stage = speaking_h2c(vec![service.endpoint.clone()]);
    story(async {
        let mut client = connect(stage.http).await;
        let (response, _) = client.send_request(request(Method::POST, "/half"), true).unwrap();
        match response.await {
            // The reset may overtake the head on either side: then it is an error of the gateway, or a reset.
            Ok(response) if response.status().as_u16() == 502 => {}
            Ok(response) => drop(broken(response.into_body()).await),
            Err(error) => assert!(error.is_reset(), "{error}"),
        }
        let (response, _) = client.send_request(request(Method::POST, "/dead"), true).unwrap();
        let response = response.await.expect("there is an answer");
        assert_eq!(response.status().as_u16(), 502, "a call that may have been done is not sent twice");
        assert_eq!(response.headers()["rung-error"], "connection_lost");
    });
    let told = stage.server.await_tally("a-1", "failed twice", |tally| tally.requests() == 2);
    assert_eq!(told.errors(), 2, "{told:?}");
}

#[test]
fn an_instance_that_speaks_something_else_is_named_as_the_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            use std::io::Write;
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let stage = speaking_h2c(vec![endpoint("a-1", address)]);
    story(async {
        let mut client = connect(stage.http).await;
        let (response, _) = client.send_request(request(Method::POST, "/"), true).unwrap();
        assert_eq!(response.await.expect("there is an answer").status().as_u16(), 502);
    });
}
