//! Typed access to the tables of a TOML document, which gathers errors instead of stopping at the first.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Findings;
use super::schema::{Section, Why};
use super::values::{self, InvalidValue};

/// A table whose keys are known. Opening it reports those that are not.
pub(super) struct Table<'a, 'i> {
    /// As it is addressed in messages: `services.web`; empty for the whole file.
    pub name: String,
    section: &'static Section,
    entries: &'a DeTable<'i>,
    pub span: Range<usize>,
}

/// A key with its value.
pub(super) struct Field<'a, 'i> {
    /// The last part of `name`.
    pub key: String,
    pub name: String,
    pub key_span: Range<usize>,
    value: &'a DeValue<'i>,
    pub span: Range<usize>,
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

impl<'a, 'i> Table<'a, 'i> {
    pub fn open(
        name: String,
        section: &'static Section,
        entries: &'a DeTable<'i>,
        span: Range<usize>,
        findings: &mut Findings<'_>,
    ) -> Self {
        for key in entries.keys() {
            if !section.keys.contains(&key.get_ref().as_ref()) {
                report_unknown(&name, section, key, findings);
            }
        }
        Self { name, section, entries, span }
    }

    pub fn field(&self, key: &str) -> Option<Field<'a, 'i>> {
        debug_assert!(
            self.section.keys.contains(&key),
            "{key} is missing in the schema of {}",
            self.section.title
        );
        self.entries
            .iter()
            .find(|(found, _)| found.get_ref() == key)
            .map(|(k, v)| Field::of(&self.name, k, v))
    }
}

fn report_unknown(
    table: &str,
    section: &Section,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    findings: &mut Findings<'_>,
) {
    let name: &str = key.get_ref();
    if let Some(refused) = section.refused.iter().find(|refused| refused.key == name) {
        let shown = join(table, name);
        let message = match refused.why {
            Why::NotYet => format!("`{shown}` does not work yet"),
            Why::Elsewhere => format!("`{shown}` is not a key"),
        };
        findings.report(key.span(), message, refused.way_out);
        return;
    }
    let place = if table.is_empty() { String::new() } else { format!(" in `{table}`") };
    let way_out = match nearest(name, section.keys.iter().copied()) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("known keys are {}", list(section.keys)),
    };
    findings.report(key.span(), format!("unknown key `{}`{place}", clip(name)), way_out);
}

/// The known word that a person probably meant.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // Endless words are nobody's typing errors, and comparing them takes quadratic time.
    let word: String = word.chars().take(40).collect();
    known
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Words of the file in messages are kept to a length that people read.
pub(super) fn clip(text: &str) -> String {
    let mut out: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        out.push('…');
    }
    out
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

impl<'a, 'i> Field<'a, 'i> {
    fn of(table: &str, key: &Spanned<std::borrow::Cow<'i, str>>, value: &'a Spanned<DeValue<'i>>) -> Self {
        let name = join(table, key.get_ref());
        Self {
            key: key.get_ref().to_string(),
            name,
            key_span: key.span(),
            value: value.get_ref(),
            span: value.span(),
        }
    }

    pub fn report(
        &self,
        findings: &mut Findings<'_>,
        message: impl Into<String>,
        way_out: impl Into<String>,
    ) {
        findings.report(self.span.clone(), message, way_out);
    }

    fn wrong_type(&self, findings: &mut Findings<'_>, wanted: &str, way_out: String) {
        let message = format!("`{}` must be {wanted}, not {}", clip(&self.name), kind(self.value));
        self.report(findings, message, way_out);
    }

    pub fn value(&self) -> &'a DeValue<'i> {
        self.value
    }

    /// A text that is not empty and can be handed to a process. `example` shows how to write it.
    pub fn text(&self, findings: &mut Findings<'_>, example: &str) -> Option<&'a str> {
        let DeValue::String(text) = self.value else {
            self.wrong_type(findings, "a text", format!("write {} = {example}", clip(&self.key)));
            return None;
        };
        if text.trim().is_empty() {
            self.report(
                findings,
                format!("`{}` is empty", clip(&self.name)),
                format!("write {} = {example}, or leave it out", clip(&self.key)),
            );
            return None;
        }
        if text.contains('\0') {
            self.report(
                findings,
                format!("`{}` contains a NUL character", clip(&self.name)),
                "take it out: no process can be given one",
            );
            return None;
        }
        Some(text.as_ref())
    }

    /// A text that `read` understands.
    pub fn parsed<T>(
        &self,
        findings: &mut Findings<'_>,
        example: &str,
        read: impl FnOnce(&str) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        let text = self.text(findings, example)?;
        match read(text) {
            Ok(value) => Some(value),
            Err(error) => {
                findings.report_with(
                    self.span.clone(),
                    format!("`{}`: {}", clip(&self.name), error.message),
                    error.way_out,
                );
                None
            }
        }
    }

    pub fn boolean(&self, findings: &mut Findings<'_>) -> Option<bool> {
        match self.value {
            DeValue::Boolean(value) => Some(*value),
            _ => {
                self.wrong_type(
                    findings,
                    "true or false",
                    format!("write {} = true, or {0} = false", clip(&self.key)),
                );
                None
            }
        }
    }

    pub fn integer(&self, findings: &mut Findings<'_>, bounds: RangeInclusive<i64>) -> Option<i64> {
        let DeValue::Integer(integer) = self.value else {
            self.wrong_type(
                findings,
                "a whole number",
                format!("write {} = {}", clip(&self.key), bounds.start().max(&1)),
            );
            return None;
        };
        let value = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let value = value.filter(|value| bounds.contains(value));
        if value.is_none() {
            let (low, high) = (bounds.start(), bounds.end());
            self.report(
                findings,
                format!("`{}` = {} is out of bounds", self.name, clip(integer.as_str())),
                format!("write a number from {low} to {high}"),
            );
        }
        value
    }

    /// A number of cores, in thousandths.
    pub fn cores(&self, findings: &mut Findings<'_>, bounds: RangeInclusive<u32>) -> Option<u32> {
        let number = match self.value {
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).map_or(f64::INFINITY, |n| n as f64)
            }
            DeValue::Float(float) => float.as_str().parse().unwrap_or(f64::NAN),
            _ => {
                self.wrong_type(
                    findings,
                    "a number of cores",
                    format!("write {} = 0.5 for half a core", self.key),
                );
                return None;
            }
        };
        let millis = (number * 1000.0).round();
        // NaN is in no range.
        if (f64::from(*bounds.start())..=f64::from(*bounds.end())).contains(&millis) {
            return Some(millis as u32);
        }
        let cores = |millis: u32| f64::from(millis) / 1000.0;
        let (low, high) = (cores(*bounds.start()), cores(*bounds.end()));
        self.report(
            findings,
            format!("`{}` is out of bounds", self.name),
            format!("write a number of cores from {low} to {high}"),
        );
        None
    }

    pub fn duration(
        &self,
        findings: &mut Findings<'_>,
        bounds: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        if let DeValue::Integer(integer) = self.value {
            let seconds = clip(integer.as_str());
            self.report(
                findings,
                format!("`{}` has no unit", self.name),
                format!("write \"{seconds}s\" for seconds, \"{seconds}ms\" for milliseconds"),
            );
            return None;
        }
        let value = self.parsed(findings, "\"30s\"", values::duration)?;
        if bounds.contains(&value) {
            return Some(value);
        }
        let (low, high) = (values::show_duration(*bounds.start()), values::show_duration(*bounds.end()));
        self.report(
            findings,
            format!("`{}` is out of bounds", self.name),
            format!("write a duration from {low} to {high}"),
        );
        None
    }

    pub fn size(&self, findings: &mut Findings<'_>, bounds: RangeInclusive<u64>) -> Option<u64> {
        if let DeValue::Integer(integer) = self.value {
            let number = clip(integer.as_str());
            self.report(
                findings,
                format!("`{}` has no unit", self.name),
                format!("write it like \"{number}MB\""),
            );
            return None;
        }
        let value = self.parsed(findings, "\"512MB\"", values::size)?;
        if bounds.contains(&value) {
            return Some(value);
        }
        let (low, high) = (values::show_size(*bounds.start()), values::show_size(*bounds.end()));
        self.report(
            findings,
            format!("`{}` is out of bounds", self.name),
            format!("write a size from {low} to {high}"),
        );
        None
    }

    /// A table with known keys.
    pub fn table(
        &self,
        section: &'static Section,
        findings: &mut Findings<'_>,
        example: &str,
    ) -> Option<Table<'a, 'i>> {
        match self.value {
            DeValue::Table(entries) => {
                Some(Table::open(self.name.clone(), section, entries, self.key_span.clone(), findings))
            }
            _ => {
                self.wrong_type(findings, "a table", format!("write {example}"));
                None
            }
        }
    }

    /// A table whose keys are names that the file chooses.
    pub fn entries(&self, findings: &mut Findings<'_>, example: &str) -> Vec<Field<'a, 'i>> {
        match self.value {
            DeValue::Table(entries) => entries.iter().map(|(k, v)| Field::of(&self.name, k, v)).collect(),
            _ => {
                self.wrong_type(findings, "a table", format!("write {example}"));
                Vec::new()
            }
        }
    }

    /// The elements of a list, each as a field of the same name.
    pub fn elements(&self, findings: &mut Findings<'_>, example: &str) -> Vec<Field<'a, 'i>> {
        let DeValue::Array(elements) = self.value else {
            self.wrong_type(findings, "a list", format!("write {example}"));
            return Vec::new();
        };
        let element = |value: &'a Spanned<DeValue<'i>>| Field {
            key: self.key.clone(),
            name: self.name.clone(),
            key_span: value.span(),
            value: value.get_ref(),
            span: value.span(),
        };
        elements.iter().map(element).collect()
    }
}
