//! Runs a command to its end: the one place that does, for every program of the stories.

use std::io::{Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::rung::LOOK_EVERY;
use crate::said::Said;

/// Longer than the longest command: the first deploy of an application that installs a few hundred packages.
const PATIENCE: Duration = Duration::from_secs(240);

/// # Panics
/// When it can't be started, or does not end within [`PATIENCE`], with what it has said until then.
#[track_caller]
pub fn run(words: String, command: Command) -> Said {
    end(words, command, None)
}

/// The same of a command that gets this on its standard input.
///
/// # Panics
/// As [`run`] does.
#[track_caller]
pub fn run_with_input(words: String, command: Command, input: &[u8]) -> Said {
    end(words, command, Some(input))
}

#[track_caller]
fn end(words: String, mut command: Command, input: Option<&[u8]>) -> Said {
    let started = Instant::now();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap_or_else(|error| panic!("starting `{words}`: {error}"));
    let out = read_all(child.stdout.take().expect("it is piped"));
    let err = read_all(child.stderr.take().expect("it is piped"));
    let status = std::thread::scope(|scope| {
        if let Some(input) = input {
            let mut pipe = child.stdin.take().expect("it is piped");
            // Whoever refuses its arguments does not read it.
            scope.spawn(move || drop(pipe.write_all(input)));
        }
        wait_at_most(&mut child, PATIENCE)
    });
    let said = Said {
        words,
        code: status.and_then(|status| status.code()),
        out: out.join().expect("reading does not panic"),
        err: err.join().expect("reading does not panic"),
        took: started.elapsed(),
    };
    assert!(status.is_some(), "`{}` did not end; {}", said.words, said.everything());
    said
}

/// `None`: it did not end in time, and was killed.
fn wait_at_most(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("asking for a child's status") {
            return Some(status);
        }
        std::thread::sleep(LOOK_EVERY); // tidy: the end is looked for, and what did not end must still be read
    }
    child.kill().expect("it is a child of ours");
    child.wait().expect("it is a child of ours");
    None
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is to show.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
