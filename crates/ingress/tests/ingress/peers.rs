//! What nginx and HAProxy make of the same requests, with the same strict server behind: the differences are listed in
//! `docs/hostile.md`, which this test keeps true (`UPDATE_DOCS=1` writes it anew).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::application::{Application, Connection};
use crate::corpus::{CORPUS, spelled};
use crate::stage::{Stage, backend, shop};

/// Silence that ends a look; a proxy that has begun to answer goes on at once.
const QUIET: Duration = Duration::from_millis(60);
/// Before anything came: longer than a proxy thinks on a busy machine.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A look that differs from the list is repeated as patiently as this before it counts.
const SECOND_QUIET: Duration = Duration::from_millis(700);

type Read_ = Arc<Mutex<Vec<String>>>;

/// A server that reads as the specification says and no other way.
struct Strict {
    application: Application,
    read: Read_,
}

impl Strict {
    fn start() -> Self {
        let read = Read_::default();
        let notes = read.clone();
        let application = Application::start("a-1", move |connection| serve(connection, &notes));
        Self { application, read }
    }
}

fn serve(connection: &mut Connection, notes: &Read_) {
    let mut input = Vec::new();
    loop {
        match strict_request(&input) {
            Ok(Some((said, length))) => {
                notes.lock().unwrap().push(said);
                input.drain(..length);
                if connection.answer(b"ok").is_err() {
                    return;
                }
            }
            Err(why) => {
                notes.lock().unwrap().push(format!("*ambiguous* ({why})"));
                let _ = connection
                    .write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                return;
            }
            Ok(None) => {
                let mut bytes = [0; 65536];
                match connection.stream.read(&mut bytes) {
                    Ok(count) if count > 0 => input.extend_from_slice(&bytes[..count]),
                    _ => return,
                }
            }
        }
    }
}

/// The first request of `input`, in words, and its length; `Err`: two servers could read it differently.
fn strict_request(input: &[u8]) -> Result<Option<(String, usize)>, &'static str> {
    let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = &input[..end + 2];
    let ends = head.windows(2).filter(|pair| pair == b"\r\n").count();
    let count = |wanted: u8| head.iter().filter(|byte| **byte == wanted).count();
    if count(b'\r') != ends || count(b'\n') != ends {
        return Err("a line's end of its own kind");
    }
    if head.iter().any(|byte| (*byte < b' ' && !b"\r\n\t".contains(byte)) || *byte == 0x7f) {
        return Err("a control character");
    }
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    let words: Vec<_> = first.split(|byte| *byte == b' ').collect();
    let &[method, target, version] = words.as_slice() else { return Err("its first line") };
    if !is_token(method) || !(version == b"HTTP/1.1" || version == b"HTTP/1.0") || target.is_empty() {
        return Err("its first line");
    }
    let (mut hosts, mut lengths, mut codings) = (0, Vec::new(), Vec::new());
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').ok_or("a line without a colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !is_token(name) {
            return Err("a header's name");
        }
        match name.to_ascii_lowercase().as_slice() {
            b"host" => hosts += 1,
            b"content-length" => lengths.push(value.to_vec()),
            b"transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            _ => {}
        }
    }
    if hosts != 1 {
        return Err("not one Host");
    }
    let body = &input[end + 4..];
    let (bytes, taken) = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => (0, 0),
        ([length], []) => {
            let digits =
                std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length: usize = digits.and_then(|text| text.parse().ok()).ok_or("a length that is none")?;
            if body.len() < length {
                return Ok(None);
            }
            (length, length)
        }
        ([], [coding]) if coding == b"chunked" => match strict_chunks(body)? {
            Some(read) => read,
            None => return Ok(None),
        },
        _ => return Err("how its body ends"),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let with = if bytes > 0 { format!(" with {bytes} bytes") } else { String::new() };
    Ok(Some((format!("`{} {}`{with}", text(method), text(target)), end + 4 + taken)))
}

/// How many bytes the chunks hold, and how many they take.
fn strict_chunks(body: &[u8]) -> Result<Option<(usize, usize)>, &'static str> {
    let (mut at, mut bytes) = (0, 0);
    loop {
        let Some(end) = body[at..].windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(&body[at..at + end]).map_err(|_| "a chunk's size")?;
        let size = line.split(';').next().unwrap_or_default();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("a chunk's size");
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| "a chunk's size")?;
        at += end + 2;
        if size == 0 {
            // Trailers mean nothing here; they end with an empty line.
            let Some(end) = body[at..].windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
            if end == 0 {
                return Ok(Some((bytes, at + 2)));
            }
            let Some(end) = body[at..].windows(4).position(|four| four == b"\r\n\r\n") else {
                return Ok(None);
            };
            return Ok(Some((bytes, at + end + 4)));
        }
        let Some(tail) = body.get(at + size..at + size + 2) else { return Ok(None) };
        if tail != b"\r\n" {
            return Err("a chunk's end");
        }
        (at, bytes) = (at + size + 2, bytes + size);
    }
}

fn is_token(name: &[u8]) -> bool {
    !name.is_empty()
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// What a proxy made of a request, in words.
fn look(proxy: SocketAddr, server: &Strict, raw: &str, quiet: Duration) -> String {
    server.read.lock().unwrap().clear();
    let mut stream = TcpStream::connect(proxy).expect("the proxy accepts connections");
    // One that is refused by its first bytes may be closed before the rest is sent.
    let _ = stream.write_all(raw.as_bytes());
    let mut answer = Vec::new();
    let mut is_closed = false;
    loop {
        let wait = if answer.is_empty() { PATIENCE.max(quiet) } else { quiet };
        stream.set_read_timeout(Some(wait)).unwrap();
        let mut bytes = [0; 65536];
        match stream.read(&mut bytes) {
            Ok(0) => is_closed = true,
            Ok(count) => {
                answer.extend_from_slice(&bytes[..count]);
                continue;
            }
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => is_closed = true,
        }
        break;
    }
    let read = server.read.lock().unwrap().join(", ");
    let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok());
    match (read.is_empty(), status) {
        (false, _) => format!("passes on {read}"),
        (true, Some(status)) => format!("answers {status}"),
        (true, None) if answer.is_empty() && !is_closed => "waits".to_owned(),
        (true, None) if answer.is_empty() => "closes".to_owned(),
        (true, None) => "answers without a head".to_owned(),
    }
}

/// A proxy of Debian's in front of a server of its own.
struct Peer {
    child: Child,
    address: SocketAddr,
    server: Strict,
    _directory: tempfile::TempDir,
}

impl Peer {
    fn start(program: &str, configure: impl Fn(&Path, SocketAddr, SocketAddr) -> Vec<String>) -> Self {
        let server = Strict::start();
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
        let arguments = configure(directory.path(), address, server.application.address);
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {program}: {error}"));
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "{program} does not listen on {address}");
            std::thread::yield_now();
        }
        Self { child, address, server, _directory: directory }
    }

    fn nginx() -> Self {
        Self::start("/usr/sbin/nginx", |directory, address, server| {
            let place = directory.display();
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {place}/{kind};"))
                .join(" ");
            let text = format!(
                "daemon off; worker_processes 1; pid {place}/pid; error_log /dev/null; events {{}}\n\
                 http {{ access_log off; {temporary}\n server {{ listen {address}; location / {{\n\
                 proxy_pass http://{server}; proxy_http_version 1.1; proxy_request_buffering off;\n\
                 proxy_set_header Host $host; proxy_set_header Connection \"\"; }} }} }}\n"
            );
            let file = directory.join("nginx.conf");
            std::fs::write(&file, text).unwrap();
            ["-p", &place.to_string(), "-c", &file.display().to_string()].map(str::to_owned).to_vec()
        })
    }

    fn haproxy() -> Self {
        Self::start("/usr/sbin/haproxy", |directory, address, server| {
            let text = format!(
                "defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n\
                 frontend all\n bind {address}\n default_backend echo\nbackend echo\n server one {server}\n"
            );
            let file = directory.join("haproxy.cfg");
            std::fs::write(&file, text).unwrap();
            ["-db", "-f", &file.display().to_string()].map(str::to_owned).to_vec()
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // In order, so that nginx takes its worker along.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A line of the list, when they differ.
fn row(name: &str, [rung, nginx, haproxy]: &[String; 3]) -> Option<String> {
    let is_same = |other: &String| other == rung || (is_refusal(rung) && is_refusal(other));
    let differ = !(is_same(nginx) && is_same(haproxy));
    differ.then(|| format!("| {name} | {rung} | {nginx} | {haproxy} |\n"))
}

fn list(found: &[[String; 3]]) -> String {
    let rows: Vec<String> =
        CORPUS.iter().zip(found).filter_map(|((name, ..), looks)| row(name, looks)).collect();
    let (differing, rows) = (rows.len(), rows.concat());
    format!(
        "# Hostile requests, and what others make of them\n\n\
         {} requests that two readers could understand differently, or that look as if they could\n\
         ([corpus.rs](../crates/ingress/tests/ingress/corpus.rs)), are sent to Rung, nginx 1.22 and HAProxy 2.6 with the same strict\n\
         server behind. Listed are the {differing} on which they differ; one way of refusing counts as good as another. What the server\n\
         calls ambiguous it would read in one way and another server in another. Kept true by\n\
         [peers.rs](../crates/ingress/tests/ingress/peers.rs).\n\n\
         | request | Rung | nginx | HAProxy |\n| --- | --- | --- | --- |\n{rows}",
        CORPUS.len()
    )
}

/// The request came to nothing.
fn is_refusal(made: &str) -> bool {
    made.starts_with("answers 4") || made.starts_with("answers 5") || made == "closes"
}

#[test]
fn the_list_of_differences_to_nginx_and_haproxy_is_true_and_rung_passes_nothing_ambiguous_on() {
    let own = Strict::start();
    let stage = Stage::start(vec![shop(backend(vec![own.application.endpoint()]))]);
    let (nginx, haproxy) = (Peer::nginx(), Peer::haproxy());
    let proxies = [(stage.http, &own), (nginx.address, &nginx.server), (haproxy.address, &haproxy.server)];
    let look_at = |raw: &str, quiet: Duration| {
        let raw = spelled(raw);
        std::thread::scope(|scope| {
            let looks = proxies.map(|(proxy, server)| {
                scope.spawn({
                    let raw = &raw;
                    move || look(proxy, server, raw, quiet)
                })
            });
            looks.map(|look| look.join().expect("a look ends"))
        })
    };
    let mut found: Vec<[String; 3]> = CORPUS.iter().map(|(_, raw, _)| look_at(raw, QUIET)).collect();
    for (index, (name, _, _)) in CORPUS.iter().enumerate() {
        let [rung, ..] = &found[index];
        assert!(!rung.contains("ambiguous"), "{name}: {rung}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hostile.md");
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    for ((name, raw, _), looks) in CORPUS.iter().zip(&mut found) {
        let is_kept = match row(name, looks) {
            Some(row) => kept.contains(&row),
            None => !kept.contains(&format!("| {name} |")),
        };
        if !is_kept {
            *looks = look_at(raw, SECOND_QUIET);
        }
    }
    let list = list(&found);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &list).unwrap();
    } else {
        assert_eq!(list, kept, "docs/hostile.md is not true any more; UPDATE_DOCS=1 writes it anew");
    }
}
