//! Calls from inside the cluster: the address says which service is meant.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Method;
use rung_model::{Backend, Inside, Protocol, RouteDocument, ServiceName};

use crate::application::Application;
use crate::client::{Client, get};
use crate::grpc;
use crate::http2::{connect, request, story, text};
use crate::stage::{Stage, backend, shop};

const WEB: Ipv4Addr = Ipv4Addr::new(127, 65, 1, 1);
const API: Ipv4Addr = Ipv4Addr::new(127, 65, 1, 2);
const SOON: Ipv4Addr = Ipv4Addr::new(127, 65, 1, 3);

fn name(service: &str) -> ServiceName {
    ServiceName::new(service).unwrap()
}

/// `web`, which has the only route, `api`, and `soon`, of which nothing has run.
fn document(web: &Application, api: Backend) -> RouteDocument {
    let mut document = shop(backend(vec![web.endpoint()]));
    document.backends.insert(name("api"), api);
    for (service, address) in [("web", WEB), ("api", API), ("soon", SOON)] {
        document.inside.insert(name(service), Inside { address, callers: Vec::new() });
    }
    document
}

#[test]
fn each_service_answers_at_its_own_address_whatever_the_host_is() {
    let web = Application::answering("w-1", |_| b"web".to_vec());
    let api = Application::answering("a-1", |_| b"api".to_vec());
    let stage = Stage::start(vec![document(&web, backend(vec![api.endpoint()]))]);
    for (address, said) in [(WEB, "web"), (API, "api")] {
        assert_eq!(get(stage.inside(address), "/x").text(), said, "the service at {address}");
    }
    let seen = api.seen();
    assert_eq!((seen[0].path(), seen[0].header("host")), ("/x", Some("shop.localhost")));
    let soon = get(stage.inside(SOON), "/");
    assert_eq!((soon.status, soon.header("Rung-Error")), (503, Some("no_instance")), "{}", soon.text());
    let nobody = get(stage.inside(Ipv4Addr::new(127, 65, 1, 4)), "/");
    assert_eq!((nobody.status, nobody.header("Rung-Error")), (404, Some("no_service")), "{}", nobody.text());
    stage.server.await_tally("api (from inside)", "a call", |tally| tally.requests() > 0);
}

#[test]
fn nothing_is_served_at_addresses_that_no_service_has() {
    let web = Application::answering("w-1", |_| b"web".to_vec());
    let stage = Stage::start(vec![document(&web, backend(Vec::new()))]);
    let mut client = Client::connect(stage.inside(Ipv4Addr::LOCALHOST));
    assert!(client.is_closed(), "127.0.0.1 answered");
}

#[test]
fn whom_a_caller_speaks_for_is_passed_on() {
    let web = Application::answering("w-1", |_| b"web".to_vec());
    let api = Application::answering("a-1", |_| b"api".to_vec());
    let stage = Stage::start(vec![document(&web, backend(vec![api.endpoint()]))]);
    let mut client = Client::connect(stage.inside(API));
    client.send(
        "GET / HTTP/1.1\r\nHost: api\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\r\n",
    );
    assert_eq!(client.answer().unwrap().status, 200);
    let seen = &api.seen()[0];
    assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.7, 127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
}

#[test]
fn what_an_instance_refuses_goes_to_another_and_an_unrouted_one_gets_nothing() {
    let web = Application::answering("w-1", |_| b"web".to_vec());
    let (dead, alive) =
        (Application::answering("a-1", |_| b"1".to_vec()), Application::answering("a-2", |_| b"2".to_vec()));
    let stage = Stage::start(vec![document(&web, backend(vec![dead.endpoint(), alive.endpoint()]))]);
    dead.close();
    for _ in 0..20 {
        assert_eq!(get(stage.inside(API), "/").text(), "2", "a call failed");
    }
    let third = Application::answering("a-3", |_| b"3".to_vec());
    let generation = stage.server.publish(vec![document(&web, backend(vec![third.endpoint()]))]);
    stage.server.await_acknowledged(generation);
    let before = alive.seen().len();
    for _ in 0..20 {
        assert_eq!(get(stage.inside(API), "/").text(), "3", "not the one that is routed");
    }
    assert_eq!(alive.seen().len(), before, "it was called after its un-routing was acknowledged");
}

#[test]
fn a_websocket_and_a_grpc_call_pass() {
    let web = Application::start("w-1", |connection| {
        while connection.head().is_some() {
            let _ = connection
                .write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nwelcome");
        }
    });
    let api = grpc::Service::echo("a-1");
    let speaking_h2c = Backend { protocol: Protocol::H2c, ..backend(vec![api.endpoint.clone()]) };
    let stage = Stage::start(vec![document(&web, speaking_h2c)]);
    let mut client = Client::connect(stage.inside(WEB));
    client.send("GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 101);
    assert_eq!(client.take(7).unwrap(), b"welcome");
    let address = stage.inside(API);
    story(async {
        let mut client = connect(address).await;
        let (response, mut to) = client.send_request(request(Method::POST, "/x"), false).unwrap();
        to.send_data("said".into(), true).unwrap();
        assert_eq!(text(response.await.unwrap().into_body()).await, "said");
    });
}

#[test]
fn calls_go_on_when_rung_is_killed_and_started_again() {
    let web = Application::answering("w-1", |_| b"web".to_vec());
    let api = Application::answering("a-1", |_| b"api".to_vec());
    let mut stage = Stage::start(vec![document(&web, backend(vec![api.endpoint()]))]);
    let address = stage.inside(API);
    let is_over = Arc::new(AtomicBool::new(false));
    let told = is_over.clone();
    let calls = std::thread::spawn(move || {
        let mut made = 0;
        while made < 20 || !told.load(Ordering::Acquire) {
            assert_eq!(get(address, "/").text(), "api", "call {made} failed");
            made += 1;
        }
    });
    stage.lose_rung();
    stage.start_rung();
    stage.await_event("the earlier ingress ends its last requests");
    assert_eq!(stage.inside(API), address, "services are called at another port");
    is_over.store(true, Ordering::Release);
    calls.join().expect("every call was answered");
}
