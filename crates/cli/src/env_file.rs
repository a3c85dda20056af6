//! `.env` files: `NAME=value` a line, with quotes, comments and `export`, as shells and their imitators read them.
//!
//! Nothing is expanded: a `$` in a password is a `$`. Errors name lines and names, never values.

use rung_model::SecretName;

/// Where a file is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {why}")]
pub struct InvalidLine {
    pub line: usize,
    pub why: &'static str,
}

/// The variables of a file, in its order; of a name that stands twice the later value counts.
///
/// # Errors
/// A line is none of a `.env` file.
pub fn parse(text: &str) -> Result<Vec<(SecretName, String)>, InvalidLine> {
    let mut found: Vec<(SecretName, String)> = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let trimmed = rest.trim_start_matches([' ', '\t']);
        if trimmed.starts_with(['\n', '\r', '#']) || trimmed.is_empty() {
            rest = trimmed.split_once('\n').map_or("", |(_, rest)| rest);
            line += 1;
            continue;
        }
        let fail = |why| InvalidLine { line, why };
        let trimmed = trimmed.strip_prefix("export ").unwrap_or(trimmed).trim_start();
        let first = trimmed.lines().next().unwrap_or_default();
        let (name, _) = first.split_once('=').ok_or(fail("is not NAME=value"))?;
        let after = &trimmed[name.len() + 1..];
        let name = SecretName::new(name.trim()).map_err(|_| fail("has no name that a variable can have"))?;
        let (value, behind) = value(after).map_err(fail)?;
        line += trimmed[..trimmed.len() - behind.len()].matches('\n').count();
        found.retain(|(known, _)| *known != name);
        found.push((name, value));
        rest = behind;
    }
    Ok(found)
}

/// A value with what stands behind its line.
fn value(text: &str) -> Result<(String, &str), &'static str> {
    let text = text.trim_start_matches([' ', '\t']);
    match text.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let (value, behind) = quoted(&text[1..], quote)?;
            let (remark, behind) = behind.split_once('\n').unwrap_or((behind, ""));
            let remark = remark.trim();
            if !remark.is_empty() && !remark.starts_with('#') {
                return Err("goes on behind its closing quote");
            }
            Ok((value, behind))
        }
        _ => {
            let (line, behind) = text.split_once('\n').unwrap_or((text, ""));
            let comment = line.find(" #").or_else(|| line.find("\t#"));
            Ok((line[..comment.unwrap_or(line.len())].trim_end().to_owned(), behind))
        }
    }
}

/// Up to the closing quote, over lines; between double quotes a backslash means something.
fn quoted(text: &str, quote: char) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            _ if character == quote => return Ok((value, &text[at + 1..])),
            '\\' if quote == '"' => match characters.next().map(|(_, escaped)| escaped) {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some(escaped @ ('"' | '\\' | '$' | '`')) => value.push(escaped),
                Some(other) => value.extend(['\\', other]),
                None => break,
            },
            _ => value.push(character),
        }
    }
    Err("begins a value whose quote is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let parsed = parse(text).unwrap_or_else(|error| panic!("{error}"));
        parsed.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    #[test]
    fn values_are_read_as_shells_read_them_and_nothing_is_expanded() {
        let text = "# database\nexport DB=postgres://a:p$w@h/db # local\n\nEMPTY=\nA = b \n\
                    SINGLE='it is \\n $HOME'\nDOUBLE=\"two\\nlines \\\"quoted\\\"\" # remark\nHASH=a#b\r\n\
                    KEY=\"-----BEGIN\nAAA=\n-----END\"\nLAST=1";
        let expected = [
            ("DB", "postgres://a:p$w@h/db"),
            ("EMPTY", ""),
            ("A", "b"),
            ("SINGLE", "it is \\n $HOME"),
            ("DOUBLE", "two\nlines \"quoted\""),
            ("HASH", "a#b"),
            ("KEY", "-----BEGIN\nAAA=\n-----END"),
            ("LAST", "1"),
        ];
        let expected: Vec<_> = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(read(text), expected);
        assert_eq!(read("A=1\nA=2"), [("A".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_never_by_its_value() {
        let wrong = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(wrong("A=1\nhunter2\n"), "line 2 is not NAME=value");
        assert_eq!(wrong("A=1\n\n1A=hunter2"), "line 3 has no name that a variable can have");
        assert_eq!(wrong("A=\"x\ny\"\nB='hunter2"), "line 3 begins a value whose quote is not closed");
        assert_eq!(wrong("A='x'hunter2"), "line 1 goes on behind its closing quote");
    }
}
