//! The table of results.

use std::time::Duration;

#[derive(Debug)]
pub struct Row {
    pub what: String,
    pub aim: String,
    pub rung: String,
    pub peer: String,
    pub ratio: String,
}

impl Row {
    /// Medians with their range, and how many times the peer's median Rung's is.
    pub fn of(what: &str, aim: &str, rung: &[f64], peer: &[f64], spell: impl Fn(f64) -> String) -> Self {
        let show = |values: &[f64]| match Spread::of(values) {
            None => "not measured".to_owned(),
            Some(spread) if values.len() == 1 => spell(spread.median),
            Some(spread) => {
                format!("{} ({} to {})", spell(spread.median), spell(spread.least), spell(spread.most))
            }
        };
        let ratio = match (Spread::of(rung), Spread::of(peer)) {
            (Some(ours), Some(theirs)) if theirs.median > 0.0 => {
                format!("{:.2}", ours.median / theirs.median)
            }
            _ => String::new(),
        };
        Self { what: what.into(), aim: aim.into(), rung: show(rung), peer: show(peer), ratio }
    }
}

#[derive(Debug, Clone, Copy)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { least: *sorted.first()?, median: sorted[sorted.len() / 2], most: *sorted.last()? })
    }
}

#[derive(Debug)]
pub struct Table {
    /// With whom it is compared; `None`: with its aims.
    peer: Option<&'static str>,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    pub fn new(start: Duration) -> Self {
        let notes = vec![
            format!(
                "The application's own start ({:.1} ms, the median of nine without any platform) is taken off deploys and kills.",
                start.as_secs_f64() * 1000.0
            ),
            "Swarm builds its image with `docker build` from a local base and updates with `start-first`, all tasks at once, \
             no monitoring time, no restart delay. Its tasks are asked one by one on ports of the host, for its routing mesh \
             needs IPVS, which not every kernel has; so no balancer is part of its numbers, which is to its advantage, and \
             its losses are not measured."
                .to_owned(),
        ];
        Self { peer: Some("Docker Swarm"), rows: Vec::new(), notes }
    }

    /// Of Rung alone.
    pub fn with_notes(notes: Vec<String>) -> Self {
        Self { peer: None, rows: Vec::new(), notes }
    }

    /// Of Rung, and of Docker Swarm where it can be had.
    pub fn beside_swarm(notes: Vec<String>) -> Self {
        Self { peer: Some("Docker Swarm"), ..Self::with_notes(notes) }
    }

    pub fn push(&mut self, row: Row) {
        println!("{}: {} | {} | {}", row.what, row.rung, row.peer, row.ratio);
        self.rows.push(row);
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub fn markdown(&self, bench: &str, machine: &str) -> String {
        let (heads, lines) = match self.peer {
            Some(peer) => (format!(" {peer} | ratio |"), " --- | --- |"),
            None => (String::new(), ""),
        };
        let mut text = format!(
            "`cargo xtask bench {bench}` writes this section. Rounds are interleaved; \
             medians, with the range of all rounds.\n\nMachine: {machine}.\n\n\
             | what | aim | Rung |{heads}\n| --- | --- | --- |{lines}\n"
        );
        for row in &self.rows {
            text.push_str(&format!("| {} | {} | {} |", row.what, row.aim, row.rung));
            if self.peer.is_some() {
                text.push_str(&format!(" {} | {} |", row.peer, row.ratio));
            }
            text.push('\n');
        }
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("- {note}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_medians_ranges_and_the_ratio() {
        let row = Row::of("x", "", &[3.0, 1.0, 2.0], &[8.0], |v| format!("{v}"));
        assert_eq!((row.rung.as_str(), row.peer.as_str(), row.ratio.as_str()), ("2 (1 to 3)", "8", "0.25"));
        let alone = Row::of("x", "", &[1.0], &[], |v| format!("{v}"));
        assert_eq!((alone.peer.as_str(), alone.ratio.as_str()), ("not measured", ""));
    }
}
