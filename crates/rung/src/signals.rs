//! What asks rung to end: Ctrl-C, SIGTERM, and a terminal that is closed.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// See the module's text.
#[derive(Debug)]
pub struct Signals {
    interrupts: Signal,
    terminations: Signal,
    /// `None`: whoever started it (`nohup`) wants it to outlive the terminal.
    hangups: Option<Signal>,
}

impl Signals {
    pub fn listen() -> std::io::Result<Self> {
        let outlives_terminal = is_hangup_ignored();
        Ok(Self {
            interrupts: signal(SignalKind::interrupt())?,
            terminations: signal(SignalKind::terminate())?,
            hangups: if outlives_terminal { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Returns when it shall end.
    pub async fn end(&mut self) {
        let Self { interrupts, terminations, hangups } = self;
        let hangup = async {
            match hangups {
                Some(hangups) => drop(hangups.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {}
            () = hangup => {}
        }
    }

    /// Returns when somebody presses Ctrl-C once more.
    pub async fn interrupt(&mut self) {
        self.interrupts.recv().await;
    }
}

/// The kernel shows which signals a process ignores, the first one as the lowest bit.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
