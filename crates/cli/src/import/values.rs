//! Values as Compose writes them, as the app file takes them.

use super::draft::Check;
use crate::verb::command::quoted;

/// A text with `${NAME}` in it, as far as it can be told without anybody's environment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filled {
    pub text: String,
    /// Names that had no default.
    pub missing: Vec<String>,
    /// Names whose default was taken.
    pub defaulted: Vec<String>,
}

/// Fills `$NAME`, `${NAME}`, `${NAME:-default}` and `$$`.
pub fn fill(text: &str) -> Filled {
    let mut filled = Filled::default();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            filled.text.push('$');
            rest = after;
        } else if let Some((inside, after)) = rest.strip_prefix('{').and_then(closed) {
            variable(inside, &mut filled);
            rest = after;
        } else {
            let length = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
            if length == 0 {
                filled.text.push('$');
            } else {
                filled.missing.push(rest[..length].to_owned());
                rest = &rest[length..];
            }
        }
    }
    filled.text.push_str(rest);
    filled
}

/// What stands before the brace that closes, and what follows it; braces nest in defaults.
fn closed(text: &str) -> Option<(&str, &str)> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&text[..at], &text[at + 1..]));
        }
    }
    None
}

fn variable(inside: &str, filled: &mut Filled) {
    let length = inside.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let (name, operator) = inside.split_at(length);
    let default = operator.strip_prefix(":-").or_else(|| operator.strip_prefix('-'));
    match default {
        Some(default) => {
            let inner = fill(default);
            filled.text.push_str(&inner.text);
            filled.missing.extend(inner.missing);
            filled.defaulted.push(name.to_owned());
        }
        None => filled.missing.push(name.to_owned()),
    }
}

/// Whether a variable's name says that its value is nobody's business.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "CREDENTIAL", "ACCESS_KEY"]
        .iter()
        .any(|word| name.contains(word))
}

/// `512m`, `1.5g`, `1073741824`: units of 1024, as Docker has them.
pub fn size(text: &str) -> Option<String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let number: f64 = lower[..digits].parse().ok()?;
    let factor: f64 = match lower[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = (number * factor).round();
    if !(1.0..1e16).contains(&bytes) {
        return None;
    }
    let bytes = bytes as u64;
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.iter().find(|(factor, _)| bytes.is_multiple_of(*factor));
    Some(whole.map_or_else(|| format!("{bytes}B"), |(factor, unit)| format!("{}{unit}", bytes / factor)))
}

/// `1m30s`, `1.5s`, `30`: as the app file writes it.
pub fn duration(text: &str) -> Option<String> {
    let text = text.trim();
    let units = [("ms", 1.0), ("us", 0.001), ("h", 3_600_000.0), ("m", 60_000.0), ("s", 1000.0)];
    let mut rest = text;
    let mut total = 0.0;
    if let Ok(seconds) = text.parse::<f64>() {
        total = seconds * 1000.0;
        rest = "";
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number: f64 = rest[..digits].parse().ok()?;
        let (unit, factor) = units.iter().find(|(unit, _)| rest[digits..].starts_with(unit))?;
        total += number * factor;
        rest = &rest[digits + unit.len()..];
    }
    if !(0.0..1e12).contains(&total) {
        return None;
    }
    let millis = total.round() as u64;
    let whole = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let unit = whole.iter().find(|(_, factor)| millis > 0 && millis.is_multiple_of(*factor));
    Some(unit.map_or_else(|| format!("{millis}ms"), |(unit, factor)| format!("{}{unit}", millis / factor)))
}

/// The words of an `exec` form, as a line for the shell.
pub fn line(words: &[&str]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A check by `curl` or `wget` of the instance itself asks for a path, which Rung does without a program.
pub fn check(command: &str) -> Check {
    let asks =
        ["curl", "wget"].iter().any(|program| command.split_whitespace().any(|word| word.ends_with(program)));
    let is_plain = !["-X", "--request", "-d ", "--data", "-H", "--header", "--post", "grep", "jq"]
        .iter()
        .any(|word| command.contains(word));
    let local = ["http://localhost", "http://127.0.0.1", "http://0.0.0.0", "http://[::1]"];
    let url = command.split([' ', '\'', '"', '\t', ';', ')']).find_map(|word| {
        let rest = local.iter().find_map(|start| word.strip_prefix(start))?;
        let rest =
            rest.strip_prefix(':').map_or(rest, |port| port.trim_start_matches(|c: char| c.is_ascii_digit()));
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    });
    match url {
        Some(path) if asks && is_plain && !path.contains('$') => {
            Check::Path(if path.is_empty() { "/".to_owned() } else { path.to_owned() })
        }
        _ => Check::Command(command.to_owned()),
    }
}

/// What a line of `ports` publishes.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// `None`: any free one.
    pub outside: Option<String>,
    pub inside: u16,
    pub is_tcp: bool,
}

/// `8080:80`, `127.0.0.1:8080:80/tcp`, `80`; of a range the first.
pub fn port(text: &str) -> Option<Published> {
    let (addresses, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let (outside, inside) = match addresses.rsplit_once(':') {
        Some((outside, inside)) => (Some(outside.to_owned()), inside),
        None => (None, addresses),
    };
    let inside = inside.split('-').next()?.parse().ok()?;
    Some(Published { outside, inside, is_tcp: protocol == "tcp" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_as_far_as_they_can_be_known() {
        let filled = fill("a$$b ${X:-1${Y}} $Z ${W?needed} 5$");
        assert_eq!(filled.text, "a$b 1   5$");
        assert_eq!(
            (filled.missing, filled.defaulted),
            (vec!["Y".into(), "Z".into(), "W".into()], vec!["X".into()])
        );
        assert_eq!(fill("${open").text, "${open");
    }

    #[test]
    fn sizes_and_durations_are_written_as_the_app_file_takes_them() {
        for (given, taken) in
            [("512m", "512MiB"), ("1.5g", "1536MiB"), ("1073741824", "1GiB"), ("1000b", "1000B")]
        {
            assert_eq!(size(given).as_deref(), Some(taken), "{given}");
        }
        assert_eq!(size("lots"), None);
        for (given, taken) in
            [("1m30s", "90s"), ("1.5s", "1500ms"), ("30", "30s"), ("2h", "2h"), ("0s", "0ms")]
        {
            assert_eq!(duration(given).as_deref(), Some(taken), "{given}");
        }
        assert_eq!(duration("soon"), None);
    }

    #[test]
    fn a_check_that_only_asks_for_a_page_becomes_its_path() {
        let path = |command: &str| match check(command) {
            Check::Path(path) => Some(path),
            Check::Command(_) => None,
        };
        assert_eq!(path("curl -f http://localhost:8080/health || exit 1").as_deref(), Some("/health"));
        assert_eq!(path("wget -qO- 'http://127.0.0.1/up?deep=1'").as_deref(), Some("/up?deep=1"));
        assert_eq!(path("curl http://localhost:8080").as_deref(), Some("/"));
        assert_eq!(path("curl -X POST http://localhost/x"), None);
        assert_eq!(path("curl http://db:9200/"), None);
        assert_eq!(path("pg_isready -U shop"), None);
    }

    #[test]
    fn ports_are_read_in_all_their_short_forms() {
        let read = |text: &str| port(text).map(|p| (p.outside, p.inside, p.is_tcp));
        assert_eq!(read("8080:80"), Some((Some("8080".into()), 80, true)));
        assert_eq!(read("127.0.0.1:8080:80/udp"), Some((Some("127.0.0.1:8080".into()), 80, false)));
        assert_eq!(read("3000-3005"), Some((None, 3000, true)));
        assert_eq!(read("web"), None);
    }
}
