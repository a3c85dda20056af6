//! The person's terminal while a command runs in it.

use std::io;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rung_model::run::Terminal;

/// Every key goes to the command. Dropping it makes the terminal what it was.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub fn enter() -> nix::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// How large the terminal is; what terminals were when it does not say.
pub fn size() -> Terminal {
    let (rows, columns) = console::Term::stdout().size_checked().unwrap_or((24, 80));
    Terminal { rows, columns }
}
