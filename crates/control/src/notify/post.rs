//! One POST, over HTTP or HTTPS: no redirects, no second look at the answer, bounded in time.

use std::time::Duration;

use axum::body::Body;
use hyper::{Request, Uri, header};
use rung_trust::NoAuthorities;
use tokio_rustls::rustls::RootCertStore;

use crate::outbound;

/// From the first packet to the answer's status.
const PATIENCE: Duration = Duration::from_secs(10);

/// `Err` says why it was not taken: whoever listens must answer with a status from 200 to 299.
pub(super) async fn post(address: &str, headers: &[(&str, String)], body: Vec<u8>) -> Result<(), String> {
    let sent = tokio::time::timeout(PATIENCE, send(address, headers, body, rung_trust::machine_authorities));
    match sent.await {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(format!("it was answered with status {}", status.as_u16())),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(format!("nothing was answered within {} s", PATIENCE.as_secs())),
    }
}

async fn send(
    address: &str,
    headers: &[(&str, String)],
    body: Vec<u8>,
    trusted: impl FnOnce() -> Result<RootCertStore, NoAuthorities>,
) -> Result<hyper::StatusCode, String> {
    let uri: Uri = address.parse().map_err(|_| "its address can't be read".to_owned())?;
    let mut request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, body.len());
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Body::from(body)).map_err(|error| format!("it can't be asked: {error}"))?;
    let (answer, _held) = outbound::send(request, trusted).await.map_err(|error| error.to_string())?;
    Ok(answer.status())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// Takes one request and answers with a status; says what it heard.
    async fn listen<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &str) -> String {
        let mut heard = Vec::new();
        while !heard.ends_with(b"{}") {
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the request was cut off: {}", String::from_utf8_lossy(&heard));
            heard.extend(&buffer[..read]);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8(heard).unwrap()
    }

    #[tokio::test]
    async fn a_status_of_success_is_taken_for_an_answer_and_nothing_else_is() {
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", Err("it was answered with status 302".to_owned())),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
            let listening =
                tokio::spawn(async move { listen(listener.accept().await.unwrap().0, answer).await });
            let headers = [("rung-delivery", "shop.d7".to_owned())];
            assert_eq!(post(&address, &headers, b"{}".to_vec()).await, expected);
            let heard = listening.await.unwrap();
            assert!(
                heard.starts_with("POST /hook?a=b HTTP/1.1") && heard.contains("rung-delivery: shop.d7"),
                "{heard}"
            );
        }
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let refused = post(&format!("http://{nobody}/"), &[], Vec::new()).await.unwrap_err();
        assert!(refused.contains("connecting to 127.0.0.1"), "{refused}");
    }

    #[tokio::test]
    async fn over_tls_only_a_server_that_is_trusted_is_told() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
        let listening = tokio::spawn(async move {
            let strangers = acceptor.accept(listener.accept().await.unwrap().0).await.map(drop);
            assert!(strangers.is_err(), "it was told although nobody vouches for it");
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            listen(stream, "HTTP/1.1 200 OK\r\n\r\n").await
        });
        let none = || Ok(RootCertStore::empty());
        let refused = send(&address, &[], b"{}".to_vec(), none).await.unwrap_err();
        assert!(refused.contains("TLS with localhost"), "{refused}");
        let trusted = || {
            let mut roots = RootCertStore::empty();
            roots.add(certificate.clone()).unwrap();
            Ok(roots)
        };
        let status = send(&address, &[], b"{}".to_vec(), trusted).await.unwrap();
        assert!(status.is_success());
        assert!(listening.await.unwrap().starts_with("POST /hook HTTP/1.1"));
    }
}
