//! The frames of an attached run, between the person's terminal (or pipes) and the server.

use std::io::{self, Read as _, Write as _};

use anyhow::Context as _;
use rung_api::attach::{Decoder, Frame};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::size;
use crate::screen::Screen;

/// How the connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    /// Ctrl-C where there is no terminal to hand it to.
    Interrupted,
    /// Without a word about the command.
    BrokenOff,
}

/// What is read at once.
const CHUNK: usize = 16 * 1024;
/// Frames on their way to the server; more input waits in its pipe.
const FRAMES: usize = 16;

pub async fn attached<C>(connection: C, terminal: bool, screen: &mut Screen) -> anyhow::Result<Ended>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut output, input) = tokio::io::split(connection);
    let (frames, queue) = mpsc::channel(FRAMES);
    // Input is sent by a task of its own: when both sides wrote and neither read, both would wait for ever.
    let sending = tokio::spawn(send(queue, input));
    read_stdin(frames.clone());
    let mut resized = signal(SignalKind::window_change()).context("watching the terminal's size")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("watching for Ctrl-C")?;
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; CHUNK];
    let ended = loop {
        tokio::select! {
            read = output.read(&mut chunk) => {
                // A connection that breaks is asked about afterwards: the server knows how the run ended.
                let Ok(length @ 1..) = read else { break Ended::BrokenOff };
                if let Some(code) = show(&mut decoder, &chunk[..length], screen)? {
                    break Ended::Exited(code);
                }
            }
            _ = resized.recv(), if terminal => {
                let now = size();
                // A full queue is behind anyway; the next change tells the newest size.
                let _ = frames.try_send(Frame::Resize { rows: now.rows, columns: now.columns });
            }
            _ = interrupted.recv(), if !terminal => break Ended::Interrupted,
        }
    };
    sending.abort();
    Ok(ended)
}

/// Writes what came; the exit code when that was the last of it.
fn show(decoder: &mut Decoder, chunk: &[u8], screen: &mut Screen) -> anyhow::Result<Option<i32>> {
    for frame in decoder.push(chunk)? {
        match frame {
            Frame::Stdout(bytes) => screen.bytes(&bytes)?,
            Frame::Stderr(bytes) => {
                // Nobody is left to be told when this fails.
                let _ = io::stderr().write_all(&bytes);
            }
            Frame::Exit(code) => return Ok(Some(code)),
            Frame::Stdin(_) | Frame::Resize { .. } | Frame::StdinEof => {}
        }
    }
    Ok(None)
}

async fn send<W: AsyncWrite + Unpin>(mut queue: mpsc::Receiver<Frame>, mut input: W) {
    while let Some(frame) = queue.recv().await {
        // The reading side notices, and says so.
        if input.write_all(&frame.encode()).await.is_err() || input.flush().await.is_err() {
            return;
        }
    }
}

/// Reads standard input on a thread of its own, which is left behind: a read from a terminal cannot be called off.
fn read_stdin(frames: mpsc::Sender<Frame>) {
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        loop {
            let frame = match stdin.read(&mut chunk) {
                Ok(0) | Err(_) => Frame::StdinEof,
                Ok(length) => Frame::Stdin(chunk[..length].to_vec()),
            };
            let last = frame == Frame::StdinEof;
            if frames.blocking_send(frame).is_err() || last {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until<C: AsyncRead + Unpin>(connection: &mut C, wanted: &Frame) {
        let mut decoder = Decoder::default();
        let mut chunk = [0; 1024];
        loop {
            let length = connection.read(&mut chunk).await.unwrap();
            assert!(length > 0, "the connection ended before {wanted:?} came");
            if decoder.push(&chunk[..length]).unwrap().contains(wanted) {
                return;
            }
        }
    }

    #[tokio::test]
    async fn output_is_shown_and_the_exit_code_is_passed_on() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut screen, captured) = Screen::captured();
        let server = tokio::spawn(async move {
            let text = vec![b'x'; 5000];
            for frame in [Frame::Stdout(b"hello ".to_vec()), Frame::Stdout(text), Frame::Exit(3)] {
                theirs.write_all(&frame.encode()).await.unwrap();
            }
            theirs
        });
        let ended = attached(ours, false, &mut screen).await.unwrap();
        assert_eq!(ended, Ended::Exited(3));
        assert_eq!(captured.text().len(), 5006, "all of the output came before the end");
        drop(server.await);
    }

    #[tokio::test]
    async fn a_connection_that_breaks_off_is_not_taken_for_an_exit() {
        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        let (mut screen, _) = Screen::captured();
        assert_eq!(attached(ours, false, &mut screen).await.unwrap(), Ended::BrokenOff);
    }

    #[tokio::test]
    async fn input_is_sent_in_frames_until_its_end() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let (frames, queue) = mpsc::channel(4);
        let sending = tokio::spawn(send(queue, ours));
        frames.send(Frame::Stdin(b"ls\n".to_vec())).await.unwrap();
        frames.send(Frame::StdinEof).await.unwrap();
        until(&mut theirs, &Frame::StdinEof).await;
        drop(frames);
        sending.await.unwrap();
    }
}
