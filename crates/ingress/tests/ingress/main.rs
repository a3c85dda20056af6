//! Stories of the ingress: a real process behind a real supervisor, a server that is played, applications on sockets.

// The lint knows test functions only; here everything is a test.
#![allow(clippy::unwrap_used)]

mod application;
mod client;
mod compression;
mod corpus;
mod forwarding;
mod gateway;
mod grpc;
mod hostile;
mod http2;
mod inside;
mod leaving;
mod lifetimes;
mod load_balancers;
mod overload;
mod peers;
mod responses;
mod routes;
mod routing;
mod siege;
mod split;
mod stage;
mod tallies;
mod tls;

/// Not a story: the other stories start this binary again, and then it is the ingress.
#[test]
fn ingress_process() {
    let Ok(args) = std::env::var("RUNG_INGRESS_TEST_ARGS") else { return };
    let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
    match rung_ingress::run_process(&args) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("the ingress failed: {error:?}");
            std::process::exit(1)
        }
    }
}
