//! Plays the server for an ingress: has its documents, and says at once when one changes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rung_api::wire::{ProxyDocuments, ProxyPoll};
use rung_model::{Generation, RouteDocument};

/// A question is waited with for so long, and asked again then.
const WAIT: Duration = Duration::from_secs(5);

/// See the module's text.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    documents: Mutex<(u64, Vec<RouteDocument>)>,
    changed: Condvar,
}

impl Server {
    /// Its thread ends with the process.
    pub fn start(mut documents: Vec<RouteDocument>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        for document in &mut documents {
            document.generation = Generation::new(1, 1);
        }
        let state = Arc::new(State { documents: Mutex::new((1, documents)), changed: Condvar::new() });
        let server = Self { address: listener.local_addr()?, state: state.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let state = state.clone();
                // A proxy that hangs up asks again.
                std::thread::spawn(move || drop(state.serve(stream)));
            }
        });
        Ok(server)
    }

    /// A document of an app that there is already.
    pub fn say(&self, mut document: RouteDocument) {
        let mut documents = self.state.documents.lock().unwrap_or_else(PoisonError::into_inner);
        documents.0 += 1;
        document.generation = Generation::new(1, documents.0);
        documents.1.retain(|other| other.app != document.app);
        documents.1.push(document);
        self.state.changed.notify_all();
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line)? > 0 {
            let is_poll = line.split(' ').nth(1).is_some_and(|target| target.contains("/poll"));
            let mut length = 0;
            while line.trim_end() != "" {
                line.clear();
                stream.read_line(&mut line)?;
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse()?;
                }
            }
            line.clear();
            let mut body = vec![0; length];
            stream.read_exact(&mut body)?;
            let (status, body) = if is_poll {
                ("200 OK", serde_json::to_vec(&self.answer(&serde_json::from_slice(&body)?))?)
            } else {
                // As a server of an older version: of the rest nothing is needed here.
                ("404 Not Found", b"{}".to_vec())
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.get_mut().write_all(&[head.as_bytes(), &body].concat())?;
        }
        Ok(())
    }

    fn answer(&self, poll: &ProxyPoll) -> ProxyDocuments {
        let held = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old =
            |held: &mut (u64, Vec<RouteDocument>)| !poll.whole && poll.after >= Generation::new(1, held.0);
        let waited = self.changed.wait_timeout_while(held, WAIT, is_old);
        let (held, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_wanted = |document: &&RouteDocument| poll.whole || document.generation > poll.after;
        ProxyDocuments {
            generation: Generation::new(1, held.0),
            whole: poll.whole,
            documents: held.1.iter().filter(is_wanted).cloned().collect(),
            removed: Vec::new(),
        }
    }
}
