//! The only place that writes: to a terminal with colours and one line that moves, else plain lines.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::edge::OutputClosed;
use crate::render::paint::Paint;
use crate::render::time::Clock;

/// What the person wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    People,
    Json,
}

/// Where output goes, and what it may look like.
pub struct Screen {
    out: Box<dyn Write + Send>,
    pub format: Format,
    pub paint: Paint,
    zone: TimeZone,
    /// Only on a terminal.
    moving: Option<ProgressBar>,
    terminal: bool,
    /// Lines of what is drawn anew.
    drawn: usize,
    /// What is being done goes on when nobody reads of it any more.
    outlives_reader: bool,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen")
            .field("format", &self.format)
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}

impl Screen {
    /// The process's standard output.
    pub fn stdout(format: Format) -> Self {
        let terminal = console::Term::stdout().is_term() && !console::is_dumb();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            out: Box::new(io::stdout()),
            format,
            paint: if terminal && !plain { Paint::Color } else { Paint::Plain },
            zone: TimeZone::system(),
            moving: None,
            terminal: terminal && format == Format::People,
            drawn: 0,
            outlives_reader: false,
        }
    }

    /// Plain lines into memory, times in UTC: for tests, and for whoever shows them elsewhere.
    pub fn captured() -> (Self, Captured) {
        let captured = Captured::default();
        let screen = Self {
            out: Box::new(captured.clone()),
            format: Format::People,
            paint: Paint::Plain,
            zone: TimeZone::UTC,
            moving: None,
            terminal: false,
            drawn: 0,
            outlives_reader: false,
        };
        (screen, captured)
    }

    /// For what changes something: a reader that has gone (`| head`), or an output that can't be written, does not stop it.
    pub fn outlives_reader(&mut self) {
        self.outlives_reader = true;
    }

    /// What becomes of words that could not be written.
    fn written(&mut self, written: io::Result<()>) -> anyhow::Result<()> {
        match written {
            Err(_) if self.outlives_reader => {
                self.out = Box::new(io::sink());
                Ok(())
            }
            written => written.map_err(closed),
        }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    pub fn clock(&self) -> Clock {
        Clock { now: Timestamp::now(), zone: self.zone.clone() }
    }

    /// Prints text with a line end, above the line that moves.
    ///
    /// # Errors
    /// The reader has gone, or the output can't be written.
    pub fn line(&mut self, text: &str) -> anyhow::Result<()> {
        let out = &mut self.out;
        let mut write = || writeln!(out, "{text}").and_then(|()| out.flush());
        let written = match &self.moving {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        self.written(written)
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// The reader has gone, or the output can't be written.
    pub fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self.out.write_all(bytes).and_then(|()| self.out.flush());
        self.written(written)
    }

    /// Prints what a screen shows: JSON for programs, what `people` makes of it for people.
    ///
    /// # Errors
    /// The reader has gone, or the output can't be written.
    pub fn show<T: Serialize>(
        &mut self,
        value: &T,
        people: impl FnOnce(&T, Paint, &Clock) -> String,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::People => people(value, self.paint, &self.clock()),
        };
        self.line(text.trim_end())
    }

    /// Like [`show`](Self::show), for one element of a stream.
    ///
    /// # Errors
    /// The reader has gone, or the output can't be written.
    pub fn show_one<T: Serialize>(
        &mut self,
        value: &T,
        people: impl FnOnce(&T, Paint, &Clock) -> String,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => serde_json::to_string(value)?,
            Format::People => people(value, self.paint, &self.clock()),
        };
        self.line(&text)
    }

    /// A line for people; programs do not get it.
    ///
    /// # Errors
    /// The reader has gone, or the output can't be written.
    pub fn say(&mut self, text: &str) -> anyhow::Result<()> {
        match self.format {
            Format::People => self.line(text),
            Format::Json => Ok(()),
        }
    }

    /// Changes the line that moves; without a terminal there is none.
    pub fn moving(&mut self, text: &str) {
        if !self.terminal {
            return;
        }
        let bar = self.moving.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {wide_msg}").expect("the template is well-formed"),
            );
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_message(text.to_owned());
    }

    /// How many lines the terminal shows; `None` without one.
    pub fn height(&self) -> Option<usize> {
        self.terminal.then(|| usize::from(console::Term::stdout().size().0))
    }

    /// Shows text in place of what this has shown before. Only on a terminal, which cuts lines that are too long.
    ///
    /// # Errors
    /// The reader has gone, or the output can't be written.
    pub fn redraw(&mut self, text: &str) -> anyhow::Result<()> {
        let back = match self.drawn {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        };
        self.drawn = text.lines().count();
        self.bytes(format!("{back}\x1b[?7l{text}\n\x1b[?7h").as_bytes())
    }

    /// Takes the line that moves away.
    pub fn still(&mut self) {
        if let Some(bar) = self.moving.take() {
            bar.finish_and_clear();
        }
    }
}

fn closed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::from(error).context("writing the output"),
    }
}

/// What a captured screen shows.
#[derive(Debug, Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic while held")).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while held").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
