//! The shim: the small parent of one instance, for one life. `rung shim` runs [`shim_main`] before anything else.
//!
//! It reads its [`Spec`] from standard input, leaves the agent's session, starts the life's init and serves its
//! socket until the life has ended, which it writes to `exit.json`. One thread, one poll loop, no runtime.
//!
//! ```text
//! agent ··(socket)·· shim ── init ── command ── …        the agent may come and go
//!                      │       └ first process of the PID namespace: dies with the shim, and takes all along
//!                      └ holds the output pipes, writes the logs
//! ```

mod attach;
mod cgroup;
mod client;
pub mod complaint;
pub mod filter;
mod init;
pub mod kernel;
pub mod lease;
pub mod logger;
pub mod protocol;
pub mod record;
mod sandbox;
mod serve;
mod start;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::unistd::{ForkResult, setsid};

pub use sandbox::APP;
pub use start::lock;

use protocol::{Ready, Spec};

/// The entry of `rung shim`. Called before any thread exists: it forks.
pub fn shim_main() -> ! {
    if let Err(error) = kernel::close_from(3) {
        refuse(&format!("closing what the agent left open: {error}"));
    }
    let spec = match read_spec() {
        Ok(spec) => spec,
        Err(reason) => refuse(&reason),
    };
    match kernel::fork() {
        // The agent collects this process; the child is nobody's but the machine's.
        Ok(ForkResult::Parent { .. }) => kernel::exit_now(0),
        Ok(ForkResult::Child) => {}
        Err(error) => refuse(&format!("starting the shim: {error}")),
    }
    let code =
        match setsid().map_err(|e| format!("leaving the agent's session: {e}")).and_then(|_| live(spec)) {
            Ok(()) => 0,
            Err(reason) => refuse(&reason),
        };
    std::process::exit(code)
}

fn refuse(reason: &str) -> ! {
    answer(&Ready::Failed { reason: reason.to_owned() });
    kernel::exit_now(1)
}

fn answer(ready: &Ready) {
    let mut line = serde_json::to_vec(ready).expect("answers serialize");
    line.push(b'\n');
    // An agent that is gone finds the socket when it comes back.
    let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
}

fn read_spec() -> Result<Spec, String> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).map_err(|e| format!("reading what to run: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("understanding what to run: {e}"))
}

fn live(spec: Spec) -> Result<(), String> {
    let Some(_lock) = lock(&spec.directory)? else {
        answer(&Ready::AlreadyAlive);
        return Ok(());
    };
    let (shim, life) = start::start(spec)?;
    answer(&Ready::Started(life));
    start::leave_standard_streams().map_err(|e| format!("closing standard streams: {e}"))?;
    shim.serve();
    Ok(())
}

/// Writes a small document whole or not at all, and durably.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// A command that becomes a shim when it is started: how the agent calls `program`.
pub fn shim_command(program: &Path, name: &str) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    // The name is for people who look at `ps`.
    command.arg0("rung").args(["shim", name]).env_clear().current_dir("/");
    command
}
