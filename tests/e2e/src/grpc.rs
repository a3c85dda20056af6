//! gRPC as far as stories need it: a service that says everything back, and a call that streams both ways.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};

/// No call takes longer that is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says every frame back as it comes, and in its trailers how many there were. It goes on as long as the test's process does.
#[derive(Debug)]
pub struct Echo {
    pub address: SocketAddr,
}

impl Echo {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        listener.set_nonblocking(true).expect("a socket can be told so");
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            tokio::spawn(echo(request, respond));
                        }
                    });
                }
            });
        });
        Self { address }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

/// Who leaves in the middle is not answered.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let mut to = respond.send_response(head, false)?;
    let mut from = request.into_body();
    let mut frames = 0_u32;
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        if !data.is_empty() {
            frames += 1;
            to.send_data(data, false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    trailers.insert("frames", frames.into());
    to.send_trailers(trailers)
}

/// Says one word after the other, each when the one before it has come back; answers with what came back, and the trailers.
///
/// # Panics
/// When the call does not come to its end in time.
pub fn call(address: SocketAddr, words: &[&str]) -> Result<(Vec<String>, HeaderMap), h2::Error> {
    runtime().block_on(async {
        let told = tokio::time::timeout(PATIENCE, converse(address, words)).await;
        told.expect("the call comes to its end")
    })
}

async fn converse(address: SocketAddr, words: &[&str]) -> Result<(Vec<String>, HeaderMap), h2::Error> {
    let socket = tokio::net::TcpStream::connect(address).await.expect("somebody listens there");
    let (send, connection) = h2::client::handshake(socket).await?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/echo.Echo/Say"));
    let request = request.header("te", "trailers").header("content-type", "application/grpc").body(());
    let (response, mut to) = send.ready().await?.send_request(request.expect("a request"), false)?;
    let mut from = response.await?.into_body();
    let mut heard = Vec::new();
    for word in words {
        to.send_data(Bytes::copy_from_slice(word.as_bytes()), false)?;
        let data = from.data().await.expect("the word comes back")?;
        from.flow_control().release_capacity(data.len())?;
        heard.push(String::from_utf8_lossy(&data).into_owned());
    }
    to.send_data(Bytes::new(), true)?;
    while let Some(data) = from.data().await {
        data?;
    }
    Ok((heard, from.trailers().await?.unwrap_or_default()))
}
