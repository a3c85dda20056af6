//! Columns that line up.

use super::paint::{Mood, Paint};

#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    mood: Mood,
}

pub fn cell(text: impl ToString) -> Cell {
    colored(text, Mood::Neutral)
}

pub fn colored(text: impl ToString, mood: Mood) -> Cell {
    Cell { text: super::harmless(&text.to_string()), mood }
}

/// Rows below dim headings; an empty column is left out.
pub fn table(headings: &[&str], rows: &[Vec<Cell>], paint: Paint) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].text.chars().count()).max().unwrap_or(0);
    let columns: Vec<(usize, usize)> = (0..headings.len())
        .filter(|&column| width(column) > 0)
        .map(|column| (column, width(column).max(headings[column].chars().count())))
        .collect();
    let mut out = String::new();
    let heading =
        columns.iter().map(|&(column, width)| format!("{:width$}", headings[column])).collect::<Vec<_>>();
    out.push_str(&paint.dim(heading.join("  ").trim_end()));
    for row in rows {
        out.push('\n');
        let mut line = String::new();
        for (at, &(column, width)) in columns.iter().enumerate() {
            let Cell { text, mood } = &row[column];
            line.push_str(&paint.mood(*mood, text));
            if at + 1 < columns.len() {
                line.push_str(&" ".repeat(width - text.chars().count() + 2));
            }
        }
        out.push_str(line.trim_end());
    }
    out
}
