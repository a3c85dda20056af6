//! What Debian's pebble does not have: advice on when to renew (RFC 9773, ACME renewal information).
//!
//! An [`Advisor`] stands before it, ends TLS, names itself in the directory, answers for what it is asked there, and takes note of
//! which certificate an order says that it replaces. Everything else goes through as it came: clients sign the address that they
//! ask at, which is the same on both sides.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// What is said of every certificate.
#[derive(Debug, Clone)]
pub enum Advice {
    Window {
        start: Timestamp,
        end: Timestamp,
    },
    /// The body of the answer, whatever it is.
    Nonsense(&'static str),
}

/// What it was asked and told.
#[derive(Debug, Clone, Default)]
pub struct Noted {
    /// Certificates that advice was asked for, by their identifiers.
    pub asked: Vec<String>,
    /// Certificates that an order took the place of.
    pub replaced: Vec<String>,
}

/// See the module's text. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Advisor {
    authority: SocketAddr,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    advice: Arc<Mutex<Advice>>,
    noted: Arc<Mutex<Noted>>,
}

struct Message {
    /// The first line and the headers, without the line that ends them.
    head: String,
    body: Vec<u8>,
}

impl Advisor {
    /// Before the authority at this address, with its certificate and key.
    pub fn new(authority: SocketAddr, certificate: &Path, key: &Path, advice: Advice) -> Self {
        let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("it vouches for itself");
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![certificate], key).expect("its own key");
        Self {
            authority,
            server: Arc::new(server),
            client: Arc::new(client),
            advice: Arc::new(Mutex::new(advice)),
            noted: Arc::default(),
        }
    }

    /// What it says from now on.
    pub fn say(&self, advice: Advice) {
        *self.advice.lock().unwrap_or_else(PoisonError::into_inner) = advice;
    }

    pub fn noted(&self) -> Noted {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Either side broke off.
    pub fn serve(&self, client: TcpStream) -> io::Result<()> {
        let session = ServerConnection::new(self.server.clone()).map_err(io::Error::other)?;
        let mut client = BufReader::new(StreamOwned::new(session, client));
        let asked = read_request(&mut client)?;
        let answer = self.answer(&asked)?;
        let mut client = client.into_inner();
        client.write_all(&answer)?;
        client.conn.send_close_notify();
        client.flush()
    }

    fn answer(&self, asked: &Message) -> io::Result<Vec<u8>> {
        let first = asked.head.lines().next().unwrap_or_default();
        if let Some(rest) = first.strip_prefix("GET /renewal/") {
            let whose = rest.split(' ').next().unwrap_or_default().to_owned();
            self.note(|noted| noted.asked.push(whose));
            return Ok(self.advise().into_bytes());
        }
        if first.starts_with("GET /dir ") {
            let at = header(&asked.head, "host").ok_or_else(|| io::Error::other("no host"))?;
            let directory = self.pass_on(asked)?;
            return with_field(directory, "renewalInfo", format!("https://{at}/renewal"));
        }
        let replaced = replaced(&asked.body);
        let answer = self.pass_on(asked)?;
        match replaced {
            // The authority would say it in its answer, if it bore it.
            Some(replaced) => {
                self.note(|noted| noted.replaced.push(replaced.clone()));
                with_field(answer, "replaces", replaced)
            }
            None => Ok([answer.head.as_bytes(), b"\r\n\r\n", &answer.body].concat()),
        }
    }

    fn note(&self, note: impl FnOnce(&mut Noted)) {
        note(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn advise(&self) -> String {
        let advice = self.advice.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let body = match advice {
            Advice::Window { start, end } => {
                let window = serde_json::json!({ "start": start.to_string(), "end": end.to_string() });
                serde_json::json!({ "suggestedWindow": window }).to_string()
            }
            Advice::Nonsense(body) => body.to_owned(),
        };
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRetry-After: 21600\r\n\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    /// In HTTP/1.0, so that the answer comes in one piece and ends with its connection.
    fn pass_on(&self, asked: &Message) -> io::Result<Message> {
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(self.client.clone(), name).map_err(io::Error::other)?;
        let mut server = StreamOwned::new(session, TcpStream::connect(self.authority)?);
        let head = asked.head.replacen("HTTP/1.1", "HTTP/1.0", 1);
        server.write_all(&[head.as_bytes(), b"\r\n\r\n", &asked.body].concat())?;
        let mut answer = Vec::new();
        match server.read_to_end(&mut answer) {
            Ok(_) => {}
            // Not every server says goodbye in TLS.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.ok_or_else(|| io::Error::other("the authority's answer has no head"))?;
        let body = answer.split_off(end + 4);
        answer.truncate(end);
        let head = String::from_utf8(answer).map_err(io::Error::other)?;
        Ok(Message { head, body })
    }
}

fn read_request(from: &mut impl BufRead) -> io::Result<Message> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if line.trim_end().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let head = head.trim_end().to_owned();
    let length = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Message { head, body })
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers.find(|(named, _)| named.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What a new order says that it replaces: in the signed part of the body.
fn replaced(body: &[u8]) -> Option<String> {
    let signed: Value = serde_json::from_slice(body).ok()?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(signed.get("payload")?.as_str()?).ok()?;
    let payload: Value = serde_json::from_slice(&payload).ok()?;
    Some(payload.get("replaces")?.as_str()?.to_owned())
}

/// The answer with one field more in its document.
fn with_field(answer: Message, name: &str, value: String) -> io::Result<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(&answer.body)?;
    if let Some(fields) = document.as_object_mut() {
        fields.insert(name.to_owned(), value.into());
    }
    let body = document.to_string();
    let is_length = |line: &&str| line.to_ascii_lowercase().starts_with("content-length:");
    let head: Vec<&str> = answer.head.lines().filter(|line| !is_length(line)).collect();
    let head = head.join("\r\n");
    Ok(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

/// By which an authority knows a certificate: from its serial number and its authority's key, both hexadecimal as openssl shows
/// them.
pub fn identifier(serial: &str, key: &str) -> String {
    let bytes = |text: &str| -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
        pairs.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect()
    };
    let mut serial = bytes(serial);
    // A number whose first bit is set is encoded with a zero before it, else it would be negative.
    if serial.first().is_some_and(|first| first & 0x80 != 0) {
        serial.insert(0, 0);
    }
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}", encode(&bytes(key)), encode(&serial))
}
