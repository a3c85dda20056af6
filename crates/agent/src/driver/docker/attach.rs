//! A person's terminal at a container: the engine's raw connection on one side, frames of `rung_api::attach` on the
//! other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use rung_api::attach::{Decoder, Frame};
use rung_api::wire::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::spec::Record;
use super::{Containers, RETRY, judge, read_record};
use crate::driver::TalkError;
use crate::driver::read_exit;
use crate::engine::{Frames, Query};

/// The output of a command that has ended waits so long for the person who asked for it.
const VISIT_WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// After the container's end its output is on its way for a moment.
const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(500);
const CHUNK: usize = 32 * 1024;
/// Frames on their way to a person who reads slowly.
const FRAMES: usize = 16;

/// How many have come to each life, and how many of them are still there.
#[derive(Debug, Default)]
pub(super) struct Visits(BTreeMap<PathBuf, usize>);

impl Containers {
    pub async fn attach(&self, directory: &Path) -> Result<UnixStream, TalkError> {
        let Some(record) = read_record(directory) else {
            return Err(TalkError::Silent { directory: directory.display().to_string() });
        };
        let state = self.engine.container(&record.name).await?.state;
        if !state.was_started() {
            return Err(TalkError::Silent { directory: directory.display().to_string() });
        }
        let io_error = |source| TalkError::Io { directory: directory.display().to_string(), source };
        let (ours, theirs) = UnixStream::pair().map_err(io_error)?;
        *self.visits().0.entry(directory.to_owned()).or_default() += 1;
        let (this, directory) = (self.clone(), directory.to_owned());
        tokio::spawn(async move {
            this.serve_visit(&directory, &record, ours).await;
            if let Some(present) = this.visits().0.get_mut(&directory) {
                *present -= 1;
            }
        });
        Ok(theirs)
    }

    fn visits(&self) -> std::sync::MutexGuard<'_, Visits> {
        self.attached.lock().expect("no panic while held")
    }

    /// Whoever attaches to a command that was quick finds its output.
    pub async fn left(&self, directory: &Path) {
        let until = tokio::time::Instant::now() + VISIT_WAIT;
        loop {
            let present = self.visits().0.get(directory).copied();
            let waits_for_visit = present.is_none() && tokio::time::Instant::now() < until;
            if !waits_for_visit && present.unwrap_or(0) == 0 {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.visits().0.remove(directory);
    }

    async fn serve_visit(&self, directory: &Path, record: &Record, person: UnixStream) {
        let (from_person, to_person) = person.into_split();
        let (frames, outgoing) = mpsc::channel::<Frame>(FRAMES);
        let writing = tokio::spawn(write_frames(outgoing, to_person));
        let is_over = self.engine.container(&record.name).await.is_ok_and(|found| !found.state.is_running());
        let served =
            if is_over { None } else { Some(self.serve_running(record, from_person, &frames).await) };
        if !matches!(served, Some(Ok(()))) {
            self.replay(record, &frames).await;
        }
        let code = self.exit_code(directory, record).await;
        let _ = frames.send(Frame::Exit(code)).await;
        drop(frames);
        let _ = writing.await;
    }

    async fn serve_running(
        &self,
        record: &Record,
        from_person: OwnedReadHalf,
        frames: &mpsc::Sender<Frame>,
    ) -> Result<(), crate::engine::EngineError> {
        let query = ["logs", "stream", "stdin", "stdout", "stderr"];
        let query = query.into_iter().fold(Query::default(), |query, name| query.with(name, "1"));
        let path = query.on(&format!("/containers/{}/attach", record.name));
        let connection = self.engine.hijack(&path).await?;
        let (output, input) = tokio::io::split(connection);
        let reading = tokio::spawn(self.clone().pass_input(record.name.clone(), from_person, input));
        let mut passing = tokio::spawn(pass_output(record.terminal, output, frames.clone()));
        tokio::select! {
            _ = &mut passing => {}
            _ = self.engine.wait(&record.name) => {
                // An engine may keep the connection of a container open that has ended meanwhile.
                let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, &mut passing).await;
            }
        }
        passing.abort();
        reading.abort();
        Ok(())
    }

    /// What a container has printed that does not run any more.
    async fn replay(&self, record: &Record, frames: &mpsc::Sender<Frame>) {
        let query = Query::default().with("stdout", "1").with("stderr", "1");
        let path = query.on(&format!("/containers/{}/logs", record.name));
        let Ok(mut body) = self.engine.stream(Method::GET, &path).await else { return };
        let mut decoder = Frames::default();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(bytes) = frame.into_data() else { continue };
            for frame in output_frames(record.terminal, &mut decoder, &bytes) {
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn exit_code(&self, directory: &Path, record: &Record) -> i32 {
        loop {
            if let Some(exit) = read_exit(directory) {
                return exit.shell_code().unwrap_or(1);
            }
            match self.engine.container(&record.name).await {
                Ok(found) if found.state.is_running() => {
                    let _ = self.engine.wait(&record.name).await;
                }
                Ok(found) => return judge::exit_of(record, &found.state).shell_code().unwrap_or(1),
                Err(error) if error.is_not_found() => return 1,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn pass_input(
        self,
        name: String,
        mut from_person: OwnedReadHalf,
        mut input: impl AsyncWrite + Unpin + Send + 'static,
    ) {
        let mut decoder = Decoder::default();
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = from_person.read(&mut chunk).await {
            let Ok(frames) = decoder.push(&chunk[..count]) else { return };
            for frame in frames {
                let written = match frame {
                    Frame::Stdin(bytes) => input.write_all(&bytes).await,
                    Frame::StdinEof => input.shutdown().await,
                    Frame::Resize { rows, columns } => {
                        self.resize(&name, rows, columns).await;
                        Ok(())
                    }
                    Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) => Ok(()),
                };
                if written.is_err() {
                    return;
                }
            }
        }
    }

    pub(super) async fn resize(&self, name: &str, rows: u16, columns: u16) {
        let query = Query::default().with("h", &rows.to_string()).with("w", &columns.to_string());
        let path = query.on(&format!("/containers/{name}/resize"));
        // A terminal of another size is a terminal.
        let _ = self.engine.post(&path, None).await;
    }
}

async fn pass_output(terminal: bool, mut output: impl AsyncRead + Unpin, frames: mpsc::Sender<Frame>) {
    let mut decoder = Frames::default();
    let mut chunk = vec![0; CHUNK];
    while let Ok(count @ 1..) = output.read(&mut chunk).await {
        for frame in output_frames(terminal, &mut decoder, &chunk[..count]) {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    }
}

fn output_frames(terminal: bool, decoder: &mut Frames, bytes: &[u8]) -> Vec<Frame> {
    if terminal {
        return vec![Frame::Stdout(bytes.to_vec())];
    }
    let pieces = decoder.push(bytes).into_iter();
    pieces
        .map(|piece| match piece.stream {
            Stream::Stderr => Frame::Stderr(piece.bytes),
            Stream::Stdout | Stream::Rung => Frame::Stdout(piece.bytes),
        })
        .collect()
}

async fn write_frames(mut frames: mpsc::Receiver<Frame>, mut to_person: OwnedWriteHalf) {
    while let Some(frame) = frames.recv().await {
        if to_person.write_all(&frame.encode()).await.is_err() {
            return;
        }
    }
    let _ = to_person.shutdown().await;
}
