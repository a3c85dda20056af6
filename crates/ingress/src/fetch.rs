//! One GET of a small document, over HTTP or HTTPS: no redirects, bounded in size and time.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::{Decoder, Framing};
use crate::head::parse_length;

const PATIENCE: Duration = Duration::from_secs(10);
/// Sets of keys have a few kilobytes.
const SIZE_MAX: usize = 256 * 1024;

/// The body of an answer with status 200. `Err` says why there is none.
pub(crate) async fn fetch(address: &str) -> Result<Vec<u8>, String> {
    match tokio::time::timeout(PATIENCE, ask(address)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("nothing was answered within {} s", PATIENCE.as_secs())),
    }
}

async fn ask(address: &str) -> Result<Vec<u8>, String> {
    let uri: http::Uri = address.parse().map_err(|_| "its address can't be read".to_owned())?;
    let authority = uri.authority().ok_or("its address has no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nAccept: application/json\r\nUser-Agent: rung\r\nConnection: close\r\n\r\n"
    );
    let connecting = TcpStream::connect((host.as_str(), port)).await;
    let stream = connecting.map_err(|error| format!("connecting to {host}:{port} failed: {error}"))?;
    if !is_tls {
        return exchange(stream, &request).await;
    }
    let name = ServerName::try_from(host.clone()).map_err(|_| format!("{host} is no name for TLS"))?;
    let trusted = rung_trust::machine_authorities().map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS can't be prepared: {error}"))?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    exchange(stream.map_err(|error| format!("TLS with {host}:{port} failed: {error}"))?, &request).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: &str,
) -> Result<Vec<u8>, String> {
    let broken = |error: std::io::Error| format!("the connection broke: {error}");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut answer = Vec::new();
    let mut part = [0; 8192];
    loop {
        // Servers often end TLS without a word.
        let count = match stream.read(&mut part).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
            read => read.map_err(broken)?,
        };
        answer.extend_from_slice(&part[..count]);
        if let Some(body) = body(&answer, count == 0)? {
            return Ok(body);
        }
        if count == 0 {
            return Err("the answer broke off".to_owned());
        }
        if answer.len() > SIZE_MAX {
            return Err(format!("the answer is larger than {} KiB", SIZE_MAX / 1024));
        }
    }
}

/// The body, once all of it is there.
fn body(answer: &[u8], has_ended: bool) -> Result<Option<Vec<u8>>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Response::new(&mut headers);
    let malformed = |_| "the answer is not HTTP".to_owned();
    let httparse::Status::Complete(length) = parsed.parse(answer).map_err(malformed)? else {
        return Ok(None);
    };
    match parsed.code {
        Some(200) => {}
        code => return Err(format!("it was answered with status {}", code.unwrap_or(0))),
    }
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value)
    };
    let framing = match (header("transfer-encoding"), header("content-length").and_then(parse_length)) {
        (Some(_), _) => Framing::Chunked,
        (None, Some(length)) => Framing::Length(length),
        (None, None) => Framing::UntilClose,
    };
    let mut decoder = Decoder::new(framing);
    let mut rest = &answer[length..];
    let mut body = Vec::new();
    loop {
        let piece = decoder.next(rest).map_err(|error| error.to_string())?;
        body.extend_from_slice(&rest[piece.skip..piece.skip + piece.data]);
        rest = &rest[piece.skip + piece.data..];
        if piece.end || (has_ended && decoder.ends_with_stream() && rest.is_empty()) {
            return Ok(Some(body));
        }
        if piece.data == 0 || rest.is_empty() {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_whole_or_it_is_awaited() {
        let read = |text: &str, has_ended| body(text.as_bytes(), has_ended);
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell";
        assert_eq!(read(length, false), Ok(None));
        assert_eq!(read(&format!("{length}o"), false), Ok(Some(b"hello".to_vec())));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        assert_eq!(read(chunked, false), Ok(None));
        assert_eq!(read(&format!("{chunked}0\r\n\r\n"), false), Ok(Some(b"hello".to_vec())));
        let close = "HTTP/1.1 200 OK\r\n\r\nhello";
        assert_eq!(read(close, false), Ok(None));
        assert_eq!(read(close, true), Ok(Some(b"hello".to_vec())));
        assert!(read("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", true).unwrap_err().contains("302"));
    }
}
