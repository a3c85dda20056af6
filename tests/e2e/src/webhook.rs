//! A webhook's other end: hears what is told, and answers as a story wants.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

/// Answers with the statuses that it was given, one after the other, then with 204.
#[derive(Debug)]
pub struct Webhook {
    pub address: String,
    heard: mpsc::Receiver<String>,
}

impl Webhook {
    /// On loopback.
    pub fn answering(statuses: &'static [u16]) -> Self {
        Self::listening(Ipv4Addr::LOCALHOST, statuses)
    }

    /// At an address of the machine that it is started on.
    pub fn listening(address: Ipv4Addr, statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a port of its own");
        let address = format!("http://{}/hook", listener.local_addr().expect("its address"));
        let (told, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut statuses = statuses.iter().copied();
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let request = read_request(&mut stream);
                let status = statuses.next().unwrap_or(204);
                // A sender that was killed meanwhile does not read it.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} Noted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                if told.send(request).is_err() {
                    return;
                }
            }
        });
        Self { address, heard }
    }

    /// The next message: its head in lower case, and its body.
    pub fn next(&self) -> (String, serde_json::Value) {
        let request =
            self.heard.recv_timeout(Duration::from_secs(60)).expect("the webhook is told within a minute");
        let (head, body) = request.split_once("\r\n\r\n").expect("a request has a head");
        (head.to_lowercase(), serde_json::from_str(body).expect("the body is JSON"))
    }
}

fn read_request(stream: &mut impl Read) -> String {
    let mut heard = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&heard).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0usize) {
                return text;
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => heard.extend(&buffer[..read]),
            other => panic!("the request was cut off ({other:?}): {text}"),
        }
    }
}
