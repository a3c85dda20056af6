//! The section of the table.

use super::peers::Kind;

/// One row: what each proxy showed, turn by turn.
#[derive(Debug)]
pub struct Series {
    what: String,
    unit: &'static str,
    values: Vec<(Kind, Vec<f64>)>,
}

impl Series {
    pub fn new(what: String, unit: &'static str) -> Self {
        Self { what, unit, values: Vec::new() }
    }

    pub fn add(&mut self, kind: Kind, value: f64) {
        match self.values.iter_mut().find(|(of, _)| *of == kind) {
            Some((_, values)) => values.push(value),
            None => self.values.push((kind, vec![value])),
        }
    }

    fn sorted(&self, kind: Kind) -> Vec<f64> {
        let mut values = self
            .values
            .iter()
            .find(|(of, _)| *of == kind)
            .map(|(_, values)| values.clone())
            .unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, kind: Kind) -> Option<f64> {
        let sorted = self.sorted(kind);
        sorted.get(sorted.len() / 2).copied()
    }

    fn is_more_better(&self) -> bool {
        self.unit.ends_with("/s")
    }

    fn cell(&self, kind: Kind) -> String {
        let sorted = self.sorted(kind);
        let (Some(median), Some(least), Some(most)) = (self.median(kind), sorted.first(), sorted.last())
        else {
            return "not measured".to_owned();
        };
        let range = if sorted.len() > 1 {
            format!(" ({} to {})", spell(*least), spell(*most))
        } else {
            String::new()
        };
        format!("{} {}{range}", spell(median), self.unit)
    }

    /// Rung's median against the better of nginx's and HAProxy's, as a ratio below 1 where Rung is better.
    fn ratio(&self) -> Option<f64> {
        let rung = self.median(Kind::Rung)?;
        let peers = [Kind::Nginx, Kind::HaProxy].into_iter().filter_map(|kind| self.median(kind));
        let cost = |value: f64| if self.is_more_better() { 1.0 / value } else { value };
        let better = peers.map(cost).min_by(f64::total_cmp)?;
        Some(cost(rung) / better).filter(|ratio| ratio.is_finite())
    }
}

fn spell(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[derive(Debug, Default)]
pub struct Report {
    series: Vec<Series>,
    proxies: Vec<(Kind, String)>,
    notes: Vec<String>,
}

impl Report {
    pub fn proxies(&mut self, proxies: impl Iterator<Item = (Kind, String)>) {
        self.proxies = proxies.collect();
    }

    pub fn push(&mut self, series: Series) {
        let cells: Vec<String> =
            self.proxies.iter().map(|(kind, _)| format!("{} {}", kind.name(), series.cell(*kind))).collect();
        let ratio = series.ratio().map_or(String::new(), |ratio| format!(" | {ratio:.2}"));
        println!("{}: {}{ratio}", series.what, cells.join(" | "));
        self.series.push(series);
    }

    pub fn note(&mut self, note: String) {
        println!("{note}");
        self.notes.push(note);
    }

    /// Requests a second with bodies of this name.
    pub fn capacity(&self, body: &str, kind: Kind) -> Option<f64> {
        let is_it = |series: &&Series| series.is_more_better() && series.what.ends_with(&format!(", {body}"));
        self.series.iter().find(is_it)?.median(kind)
    }

    pub fn markdown(&self, machine: &str) -> String {
        let mut text = format!(
            "`cargo xtask bench ingress` writes this section. Each proxy has one worker on one core; applications and \
             clients ({} connections) share an event loop on another. Rounds are interleaved; medians, with the range \
             of all rounds. CPU is user and system time of all the proxy's processes over the requests it answered. The ratio is \
             Rung's median against the better of nginx and HAProxy: below 1 Rung is better, also where more is better. \
             Requests are due at random times in the rows of p50 and p99, and a late one counts from when it was due.\n\n\
             Machine: {machine}.\n\n",
            super::CONNECTIONS
        );
        let heads = self.proxies.iter().map(|(kind, version)| format!("{} {version}", kind.name()));
        let heads: Vec<String> = heads.collect();
        text.push_str(&format!(
            "| what | {} | ratio |\n|{} --- |\n",
            heads.join(" | "),
            " --- |".repeat(heads.len() + 1)
        ));
        for series in &self.series {
            let cells: Vec<String> = self.proxies.iter().map(|(kind, _)| series.cell(*kind)).collect();
            let ratio = series.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
            text.push_str(&format!("| {} | {} | {ratio} |\n", series.what, cells.join(" | ")));
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
    fn the_ratio_is_below_one_where_rung_is_better() {
        let mut fewer = Series::new("cost".into(), "us");
        let mut more = Series::new("speed".into(), "/s");
        for (kind, value) in [(Kind::Rung, 8.0), (Kind::Nginx, 12.0), (Kind::HaProxy, 10.0)] {
            fewer.add(kind, value);
            more.add(kind, 1.0 / value);
        }
        assert_eq!(fewer.ratio().map(|ratio| (ratio * 100.0).round()), Some(80.0));
        assert_eq!(more.ratio().map(|ratio| (ratio * 100.0).round()), Some(80.0));
    }
}
