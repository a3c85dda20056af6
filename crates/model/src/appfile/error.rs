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

/// All that is wrong with an app file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppFileErrors {
    file: String,
    errors: Vec<AppFileError>,
    /// How many more there are than are kept.
    omitted: usize,
}

impl AppFileErrors {
    /// Never empty.
    pub fn errors(&self) -> &[AppFileError] {
        &self.errors
    }

    /// With the path by which a person knows the file, in place of its bare name.
    #[must_use]
    pub fn named(mut self, path: &str) -> Self {
        path.clone_into(&mut self.file);
        self.errors.iter_mut().for_each(|error| path.clone_into(&mut error.file));
        self
    }

    pub fn file(&self) -> &str {
        &self.file
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
        write!(f, "{} has {count} error{plural}", self.file)?;
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
    file: &'t str,
    text: &'t str,
    found: Vec<Finding>,
}

#[derive(Debug)]
struct Finding {
    firmness: Firmness,
    span: Range<usize>,
    message: String,
    suggestion: Option<String>,
}

impl<'t> Findings<'t> {
    pub fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, found: Vec::new() }
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
        self.found.push(Finding { firmness, span, message, suggestion });
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
        let errors = self.found.iter().map(|finding| locate(self.file, self.text, finding)).collect();
        Err(AppFileErrors { file: self.file.to_owned(), errors, omitted })
    }

    /// Keeps of a broken file only what is sure: the first syntax error of a line (the others follow from it), and
    /// what stands on other lines.
    fn drop_guesses(&mut self) {
        let text = self.text;
        let line_start = |at: usize| text[..floor(text, at)].rfind('\n').map_or(0, |newline| newline + 1);
        self.found.sort_by_key(|finding| (finding.firmness != Firmness::Syntax, finding.span.start));
        let mut broken = std::collections::BTreeSet::new();
        self.found.retain(|finding| match finding.firmness {
            Firmness::Syntax => broken.insert(line_start(finding.span.start)),
            Firmness::Present => !broken.contains(&line_start(finding.span.start)),
            Firmness::Absent => false,
        });
    }
}

/// A file of a single error that is about its bytes.
pub(super) fn unreadable(file: &str, text: &str, at: usize, message: &str, way_out: &str) -> AppFileErrors {
    let finding = Finding {
        firmness: Firmness::Syntax,
        span: at..at + 1,
        message: message.to_owned(),
        suggestion: Some(way_out.to_owned()),
    };
    AppFileErrors { file: file.to_owned(), errors: vec![locate(file, text, &finding)], omitted: 0 }
}

/// The start of the character that `at` lies in.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

/// What is shown of a line, at most: it fits a terminal with its gutter.
const EXCERPT_MAX: usize = 100;
/// How much of a long line is shown before the error.
const EXCERPT_BEFORE: usize = 40;

fn locate(file: &str, text: &str, finding: &Finding) -> AppFileError {
    let start = floor(text, finding.span.start);
    let end = floor(text, finding.span.end).max(start);
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
