//! What is wrong with an app file: every error at once, each with its place and a way out.

use std::fmt;
use std::ops::Range;

use super::defaults::ERRORS_MAX;

/// One error, with the line it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppFileError {
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    pub message: String,
    /// The nearest known key, or another way out.
    pub suggestion: Option<String>,
    excerpt: Excerpt,
}

/// The part of the line that is shown: lines of generated files can be endless.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    /// Where the underline begins in `text`, in characters.
    from: usize,
    width: usize,
}

/// All that is wrong with an app file and its overlay, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppFileErrors {
    errors: Vec<AppFileError>,
    /// How many more there are than are kept.
    omitted: usize,
}

impl AppFileErrors {
    /// Never empty.
    pub fn errors(&self) -> &[AppFileError] {
        &self.errors
    }

    /// With the paths by which a person knows the files, in place of their bare names.
    #[must_use]
    pub fn named(mut self, path: impl Fn(&str) -> String) -> Self {
        self.errors.iter_mut().for_each(|error| error.file = path(&error.file));
        self
    }

    /// The files that have errors, each once.
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.errors.iter().map(|error| error.file.as_str()).collect();
        files.dedup();
        files
    }

    /// How many more there are than [`errors`](Self::errors) holds.
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl std::error::Error for AppFileErrors {}
impl std::error::Error for AppFileError {}

impl fmt::Display for AppFileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.errors {
            writeln!(f, "{error}\n")?;
        }
        let count = self.errors.len() + self.omitted;
        let plural = if count == 1 { "" } else { "s" };
        let files = self.files();
        let have = if files.len() == 1 { "has" } else { "have" };
        write!(f, "{} {have} {count} error{plural}", files.join(" and "))?;
        if self.omitted > 0 {
            write!(f, " (the first {} are shown)", self.errors.len())?;
        }
        Ok(())
    }
}

impl fmt::Display for AppFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, suggestion, excerpt } = self;
        let gutter = " ".repeat(line.to_string().len());
        let indent = " ".repeat(excerpt.from);
        let underline = "^".repeat(excerpt.width);
        writeln!(f, "{message}")?;
        writeln!(f, "{gutter}--> {file}:{line}:{column}")?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{line} | {}", excerpt.text)?;
        write!(f, "{gutter} | {indent}{underline}")?;
        if let Some(suggestion) = suggestion {
            write!(f, "\n{gutter} = {suggestion}")?;
        }
        Ok(())
    }
}

/// How sure an error is when the text is not TOML and was read as well as it could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Firmness {
    Syntax,
    /// About something that stands in the text.
    Present,
    /// About something that is missing, which may stand in the part that could not be read.
    Absent,
}

/// Gathers errors while a file is read.
#[derive(Debug)]
pub(super) struct Findings<'t> {
    sources: Vec<Source<'t>>,
    found: Vec<Finding>,
}

/// One of the texts that are read as one: a span from `start` on is about it.
#[derive(Debug)]
struct Source<'t> {
    file: &'t str,
    text: &'t str,
    start: usize,
}

#[derive(Debug)]
struct Finding {
    firmness: Firmness,
    span: Range<usize>,
    message: String,
    suggestion: Option<String>,
    /// Where the line begins that it is about; filled in when it is needed.
    line_start: usize,
}

impl<'t> Findings<'t> {
    pub fn new(file: &'t str, text: &'t str) -> Self {
        Self { sources: vec![Source { file, text, start: 0 }], found: Vec::new() }
    }

    /// Another text behind those before it; spans of what is read from it count from `start`.
    pub fn add_source(&mut self, file: &'t str, text: &'t str, start: usize) {
        self.sources.push(Source { file, text, start });
    }

    fn source_at(&self, at: usize) -> &Source<'t> {
        let begun = self.sources.iter().rev().find(|source| source.start <= at);
        begun.expect("the first source begins at zero")
    }

    pub fn syntax(&mut self, span: Range<usize>, message: impl Into<String>, suggestion: Option<String>) {
        self.push(Firmness::Syntax, span, message.into(), suggestion);
    }

    pub fn report(&mut self, span: Range<usize>, message: impl Into<String>, way_out: impl Into<String>) {
        self.push(Firmness::Present, span, message.into(), Some(way_out.into()));
    }

    pub fn report_with(&mut self, span: Range<usize>, message: impl Into<String>, way_out: Option<String>) {
        self.push(Firmness::Present, span, message.into(), way_out);
    }

    pub fn missing(&mut self, span: Range<usize>, message: impl Into<String>, way_out: impl Into<String>) {
        self.push(Firmness::Absent, span, message.into(), Some(way_out.into()));
    }

    fn push(&mut self, firmness: Firmness, span: Range<usize>, message: String, suggestion: Option<String>) {
        self.found.push(Finding { firmness, span, message, suggestion, line_start: 0 });
    }

    pub fn has_syntax_errors(&self) -> bool {
        self.found.iter().any(|finding| finding.firmness == Firmness::Syntax)
    }

    /// `Ok` when nothing was found.
    pub fn finish(mut self) -> Result<(), AppFileErrors> {
        if self.found.is_empty() {
            return Ok(());
        }
        if self.has_syntax_errors() {
            self.drop_guesses();
        }
        self.found.sort_by_key(|finding| finding.span.start);
        let omitted = self.found.len().saturating_sub(ERRORS_MAX);
        self.found.truncate(ERRORS_MAX);
        let errors = self.found.iter().map(|finding| locate(self.source_at(finding.span.start), finding));
        Err(AppFileErrors { errors: errors.collect(), omitted })
    }

    /// Keeps of a broken file only what is sure: the first syntax error of a line (the others follow from it), and
    /// what stands on other lines.
    fn drop_guesses(&mut self) {
        let lines: Vec<usize> =
            self.found.iter().map(|finding| self.line_start(finding.span.start)).collect();
        for (finding, line) in self.found.iter_mut().zip(lines) {
            finding.line_start = line;
        }
        self.found.sort_by_key(|finding| (finding.firmness != Firmness::Syntax, finding.span.start));
        let mut broken = std::collections::BTreeSet::new();
        self.found.retain(|finding| match finding.firmness {
            Firmness::Syntax => broken.insert(finding.line_start),
            Firmness::Present => !broken.contains(&finding.line_start),
            Firmness::Absent => false,
        });
    }

    fn line_start(&self, at: usize) -> usize {
        let Source { text, start, .. } = self.source_at(at);
        let before = &text[..floor(text, at - start)];
        start + before.rfind('\n').map_or(0, |newline| newline + 1)
    }
}

/// A file of a single error that is about its bytes.
pub(super) fn unreadable(file: &str, text: &str, at: usize, message: &str, way_out: &str) -> AppFileErrors {
    let finding = Finding {
        firmness: Firmness::Syntax,
        span: at..at + 1,
        message: message.to_owned(),
        suggestion: Some(way_out.to_owned()),
        line_start: 0,
    };
    AppFileErrors { errors: vec![locate(&Source { file, text, start: 0 }, &finding)], omitted: 0 }
}

/// The start of the character that `at` lies in.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

/// What is shown of a line, at most: it fits a terminal with its gutter.
const EXCERPT_MAX: usize = 100;
/// How much of a long line is shown before the error.
const EXCERPT_BEFORE: usize = 40;

fn locate(source: &Source<'_>, finding: &Finding) -> AppFileError {
    let Source { file, text, start: offset } = *source;
    let start = floor(text, finding.span.start - offset);
    let end = floor(text, finding.span.end.saturating_sub(offset)).max(start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let line = text[..line_start].bytes().filter(|&b| b == b'\n').count() + 1;
    let before = text[line_start..start].chars().count();
    let width = text[start..end.min(line_end).max(start)].trim_end().chars().count().max(1);

    let skipped = if before > EXCERPT_MAX - EXCERPT_BEFORE { before - EXCERPT_BEFORE } else { 0 };
    let shown = text[line_start..line_end].trim_end().chars().skip(skipped).take(EXCERPT_MAX).map(printable);
    let shown = shown.collect::<String>().trim_end().to_owned();
    let from = before - skipped;
    let width = width.min(shown.chars().count().saturating_sub(from).max(1));
    AppFileError {
        file: file.to_owned(),
        line,
        column: before + 1,
        message: finding.message.clone(),
        suggestion: finding.suggestion.clone(),
        excerpt: Excerpt { text: shown, from, width },
    }
}

/// One character wide, and harmless to a terminal.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}
