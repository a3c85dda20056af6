//! Every screen as a pure function: wire types in, text out.

pub mod audit;
pub mod certificates;
pub mod cluster;
pub mod config;
pub mod diff;
pub mod doctor;
pub mod explain;
pub mod instances;
pub mod jobs;
pub mod nodes;
pub mod paint;
pub mod progress;
pub mod release;
pub mod releases;
pub mod runs;
pub mod status;
pub mod stream;
pub mod table;
#[cfg(test)]
mod tests;
pub mod time;
pub mod tokens;
pub mod top;

/// `1 instance`, `2 instances`.
pub fn count(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

/// `1.2 MB`, `340 KB`.
pub fn bytes(n: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "KB")];
    match units.iter().find(|(factor, _)| n >= *factor) {
        Some((factor, unit)) if n / factor >= 100 => format!("{} {unit}", n / factor),
        Some((factor, unit)) => format!("{:.1} {unit}", n as f64 / *factor as f64),
        None => format!("{n} bytes"),
    }
}

/// Text that others wrote, without what a terminal would obey.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}
