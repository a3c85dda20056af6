//! Lines of `rung logs` and `rung events`.

use rung_api::wire::{EventRecord, LogLine, Stream};
use rung_model::{AppName, NodeId};

use super::harmless;
use super::paint::Paint;
use super::time::Clock;

pub fn log_line(line: &LogLine, paint: Paint, clock: &Clock) -> String {
    let text = harmless(&line.text);
    let text = match line.stream {
        Stream::Stdout | Stream::Stderr => text,
        Stream::Rung => paint.dim(&format!("-- {text}")),
    };
    format!("{} {} {text}", paint.dim(&clock.of_line(line.at)), paint.name(&line.source))
}

/// A line of a build or a release command, below the phase that it belongs to.
pub fn run_line(line: &LogLine, paint: Paint) -> String {
    paint.dim(&format!("    | {}", harmless(&line.text)))
}

pub fn event(event: &EventRecord, paint: Paint, clock: &Clock) -> String {
    // Of an app it is no matter which server was asked.
    let of = event.app.as_ref().map(AppName::as_str).or(event.server.as_ref().map(NodeId::as_str));
    let app = of.map(|of| format!("{} ", paint.name(of))).unwrap_or_default();
    let at = paint.dim(&clock.of_line(event.at));
    format!("{at} {app}{}: {}", event.kind, harmless(&event.message))
}
