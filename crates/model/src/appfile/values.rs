//! Values that are written as text: durations, sizes, host names, paths. Each says how to write it when it is wrong.

use std::time::Duration;

use super::rollout::{CanaryStep, Share};
use crate::image::ImageName;
use crate::schedule::{Schedule, Zone};

/// Why a value was refused, and how to write it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidValue {
    pub message: String,
    pub way_out: Option<String>,
}

impl InvalidValue {
    /// The way out where an address is for something of its own.
    pub fn with_example(self, example: &str) -> Self {
        Self { way_out: Some(format!("write it like {example}")), ..self }
    }
}

fn invalid(message: impl Into<String>, way_out: impl Into<String>) -> InvalidValue {
    InvalidValue { message: message.into(), way_out: Some(way_out.into()) }
}

/// Units of durations in milliseconds, the longest first.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads `10m`, `1h30m`, `500ms`: whole numbers with a unit, the longer units first.
pub fn duration(text: &str) -> Result<Duration, InvalidValue> {
    let bad = || {
        invalid(
            format!("{text:?} is not a duration"),
            "write it like \"30s\", \"10m\", \"1h30m\" or \"500ms\"",
        )
    };
    let too_long = || invalid(format!("{text:?} is longer than anything lasts"), "write it like \"30d\"");
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid(
            format!("{text:?} has no unit"),
            format!("write \"{text}s\" for seconds, \"{text}ms\" for milliseconds"),
        ));
    }
    let mut total: u64 = 0;
    let mut shortest_yet = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(bad());
        }
        let number: u64 = number.parse().map_err(|_| too_long())?;
        let (_, millis) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        if *millis >= shortest_yet {
            return Err(bad());
        }
        shortest_yet = *millis;
        total = number.checked_mul(*millis).and_then(|part| total.checked_add(part)).ok_or_else(too_long)?;
        rest = tail;
    }
    if shortest_yet == u64::MAX { Err(bad()) } else { Ok(Duration::from_millis(total)) }
}

/// Writes a duration as [`duration`] reads it.
pub fn show_duration(value: Duration) -> String {
    let mut rest = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, millis) in DURATION_UNITS {
        if rest >= millis {
            out.push_str(&format!("{}{unit}", rest / millis));
            rest %= millis;
        }
    }
    out
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("KB", 1000),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads `512MB`, `1GiB`, `1.5GB` as bytes. Letters may be of either case.
pub fn size(text: &str) -> Result<u64, InvalidValue> {
    let bad = || invalid(format!("{text:?} is not a size"), "write it like \"512MB\", \"10GB\" or \"1GiB\"");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), &text[split..]);
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && number.starts_with(|c: char| c.is_ascii_digit());
    if !plain {
        return Err(bad());
    }
    let number: f64 = number.parse().map_err(|_| bad())?;
    let Some((_, bytes)) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        let fixed = match unit.to_ascii_uppercase().as_str() {
            "" | "M" => format!("{number}MB"),
            "G" => format!("{number}GB"),
            "K" => format!("{number}KB"),
            "T" => format!("{number}TB"),
            _ => return Err(bad()),
        };
        return Err(invalid(format!("{text:?} has no unit that is known"), format!("write \"{fixed}\"")));
    };
    let total = number * (*bytes as f64);
    // Everything below 2^53 is exact; everything above is out of every bound.
    if total.is_finite() && total < 9e15 {
        Ok(total.round() as u64)
    } else {
        Err(invalid(format!("{text:?} is more than any machine has"), "write it like \"512MB\" or \"2TB\""))
    }
}

/// Writes a size in the largest decimal unit that loses nothing.
pub fn show_size(bytes: u64) -> String {
    for (unit, factor) in SIZE_UNITS {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// Longer names of branches are no names; git itself stops at the length of a path.
const BRANCH_MAX: usize = 200;

/// Reads the name of a branch of git, by git's own rules.
pub fn branch(text: &str) -> Result<String, InvalidValue> {
    let wrong = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    let forbidden = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let name = text.strip_prefix("refs/heads/").unwrap_or(text);
    if name.len() > BRANCH_MAX
        || name.starts_with('-')
        || name.ends_with('.')
        || name.contains("..")
        || name.contains("@{")
        || name.contains(forbidden)
        || name.split('/').any(wrong)
    {
        return Err(invalid(format!("{text:?} is not the name of a branch"), "write it like \"main\""));
    }
    Ok(name.to_owned())
}

/// Reads a host name, or `*.` and a host name, into lower case.
pub fn domain(text: &str) -> Result<String, InvalidValue> {
    let lower = text.to_lowercase();
    let stripped = lower.trim_start_matches("https://").trim_start_matches("http://");
    let host = stripped.split(['/', ':', '?', '#']).next().unwrap_or_default();
    if host != lower && host_is_valid(host) {
        return Err(invalid(
            format!("{text:?} is more than a host name"),
            format!("write only the host name: {host:?}"),
        ));
    }
    if lower == "*" {
        return Err(invalid(
            "\"*\" would take every host name",
            "name the domains, or write \"*.example.com\"",
        ));
    }
    if host_is_valid(&lower) {
        return Ok(lower);
    }
    if !text.is_ascii() {
        return Err(invalid(
            format!("{text:?} has letters outside of ASCII"),
            "write its punycode form, which starts with \"xn--\"",
        ));
    }
    Err(invalid(
        format!("{text:?} is not a host name"),
        "write it like \"shop.example.com\" or \"*.example.com\"; labels use a to z, 0 to 9 and -",
    ))
}

fn host_is_valid(host: &str) -> bool {
    // 253 and 63 are DNS's own limits.
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label_is_valid = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && name.split('.').all(label_is_valid)
}

/// An address that takes POST requests: `https://host/path`, perhaps with a port and a query.
pub fn web_address(text: &str) -> Result<String, InvalidValue> {
    let example = "write it like \"https://example.com/deployed\"";
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(invalid(format!("{text:?} does not begin with https:// or http://"), example));
    };
    if text.len() > PATH_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains('#') {
        return Err(invalid(
            "address is too long, or has spaces, a fragment or characters outside of ASCII",
            example,
        ));
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        let way_out = "what must stay secret can be named with `secret`, which signs the message";
        return Err(invalid("address has a user or a password in it", way_out));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    let host_is_good = is_ip || (host_is_valid(&host.to_lowercase()) && !host.starts_with('*'));
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if host_is_good && port_is_good {
        Ok(text.to_owned())
    } else {
        Err(invalid(format!("{text:?} has no host that can be asked"), example))
    }
}

/// Longer paths are nobody's routes.
const PATH_MAX: usize = 1024;

/// A path of a URL: starts with `/`, printable, without query and fragment.
fn url_path(text: &str) -> Result<(), InvalidValue> {
    if !text.starts_with('/') {
        return Err(invalid(format!("{text:?} does not start with /"), format!("write \"/{text}\"")));
    }
    if text.len() > PATH_MAX {
        return Err(invalid(format!("path is longer than {PATH_MAX} characters"), "shorten it"));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid(
            format!("{text:?} has spaces or characters outside of ASCII"),
            "write them percent-encoded: \"/a%20b\"",
        ));
    }
    if text.contains('#') {
        return Err(invalid(
            format!("{text:?} has a fragment"),
            "fragments are never sent to a server: leave out the # and what follows",
        ));
    }
    Ok(())
}

/// What a health check asks for: a path, a query allowed.
pub fn health_path(text: &str) -> Result<String, InvalidValue> {
    url_path(text).map(|()| text.to_owned())
}

/// A route's path: exact (`/health`), or everything below (`/assets/*`).
pub fn route_path(text: &str) -> Result<String, InvalidValue> {
    url_path(text)?;
    if text.contains('?') {
        return Err(invalid(
            format!("{text:?} has a query"),
            "routes look at the path only: leave out the ? and what follows",
        ));
    }
    let fixed = text.strip_suffix("/*").unwrap_or(text);
    if let Some((before, _)) = fixed.split_once('*') {
        let before = before.trim_end_matches('/');
        return Err(invalid(
            format!("{text:?} has a * that is not the whole last part"),
            format!("write \"{before}/*\" for everything below {before}/"),
        ));
    }
    if fixed.contains("//") || fixed.split('/').any(|part| part == "." || part == "..") {
        return Err(invalid(
            format!("{text:?} has empty parts, . or .. in it"),
            "write the path as it is after cleaning: \"/a/b\"",
        ));
    }
    Ok(text.to_owned())
}

/// Where a redirect goes: a path or an address, with `/*` at its end for what follows.
pub fn redirect_target(text: &str) -> Result<String, InvalidValue> {
    if text.starts_with("//") {
        return Err(invalid(
            format!("{text:?} has a host without a scheme"),
            format!("write \"https:{text}\""),
        ));
    }
    let fixed = text.strip_suffix('*').unwrap_or(text);
    if fixed.contains('*') || (fixed.len() < text.len() && !fixed.ends_with('/')) {
        let message = format!("{text:?} has a * that is not the whole last part");
        return Err(invalid(message, "write it like \"/new/*\" or \"https://example.com/*\""));
    }
    if text.starts_with('/') {
        return url_path(text).map(|()| text.to_owned());
    }
    if !text.contains("://") {
        let message = format!("{text:?} is neither a path nor an address");
        return Err(invalid(message, "write it like \"/new/*\" or \"https://example.com/*\""));
    }
    let error = |error: InvalidValue| error.with_example("\"https://example.com/*\"");
    web_address(fixed).map(|_| text.to_owned()).map_err(error)
}

/// Where pages come from, as browsers say it: scheme, host, and a port that is not the usual one.
pub fn origin(text: &str) -> Result<String, InvalidValue> {
    let lower = text.to_ascii_lowercase();
    let example = "write it like \"https://app.example.com\"";
    web_address(&lower).map_err(|error| invalid(error.message, example))?;
    let rest = lower.split_once("://").map_or("", |(_, rest)| rest);
    match rest.find('/') {
        Some(at) => {
            let fixed = &lower[..lower.len() - rest.len() + at];
            Err(invalid(format!("{text:?} is more than an origin"), format!("write {fixed:?}")))
        }
        None => without_usual_port(text, lower),
    }
}

/// Browsers leave the usual port out, so that an origin that has it is nobody's.
fn without_usual_port(text: &str, origin: String) -> Result<String, InvalidValue> {
    let usual = if origin.starts_with("https:") { ":443" } else { ":80" };
    match origin.strip_suffix(usual) {
        Some(plain) => {
            Err(invalid(format!("{text:?} has the port that browsers leave out"), format!("write {plain:?}")))
        }
        None => Ok(origin),
    }
}

/// Units of rates, in milliseconds.
const RATE_UNITS: [(&str, u64); 4] = [("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads `100/s`, `20/m`: so many in that time.
pub fn rate(text: &str) -> Result<(u32, Duration), InvalidValue> {
    let bad =
        || invalid(format!("{text:?} is not a rate"), "write it like \"10/s\", \"100/m\" or \"5000/h\"");
    let (number, unit) = text.split_once('/').ok_or_else(bad)?;
    let (number, unit) = (number.trim(), unit.trim());
    let requests: u32 = number.parse().map_err(|_| bad())?;
    let (_, millis) = RATE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    // Below one in a day nothing is a rate; above a million a second nothing is a limit.
    if requests == 0 || u64::from(requests) * 1000 / millis > 1_000_000 {
        return Err(invalid(format!("{text:?} is out of bounds"), "write at least 1, at most 1000000/s"));
    }
    Ok((requests, Duration::from_millis(*millis)))
}

/// Directories without which a process does not start, or which Rung fills itself.
const SYSTEM_DIRECTORIES: [&str; 13] = [
    "/app", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys",
    "/usr",
];

/// The name of an image.
pub fn image(text: &str) -> Result<ImageName, InvalidValue> {
    ImageName::new(text).map_err(|error| {
        let message = format!("{text:?} is not {}: {}", error.what, error.why);
        invalid(message, "write it like \"ghcr.io/acme/shop:2.1\"")
    })
}

/// A file of the deployed tree.
pub fn path_inside(text: &str) -> Result<String, InvalidValue> {
    let is_inside = |part: &str| !matches!(part, "" | "." | "..");
    let path = text.strip_prefix("./").unwrap_or(text);
    if path.split('/').all(is_inside) {
        return Ok(path.to_owned());
    }
    let message = format!("{text:?} is not a file of the directory that is deployed");
    Err(invalid(message, "write its path from there, like \"deploy/Dockerfile\""))
}

/// Where a volume is seen: an absolute path that hides nothing of the system.
pub fn mount_path(text: &str) -> Result<String, InvalidValue> {
    if !text.starts_with('/') {
        return Err(invalid(format!("{text:?} is not an absolute path"), "write it like \"/data\""));
    }
    let path = text.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(text);
    if path.len() > PATH_MAX || path.chars().any(char::is_control) {
        return Err(invalid("path is too long or has control characters in it", "write it like \"/data\""));
    }
    let clean = path.split('/').skip(1).all(|part| !part.is_empty() && part != "." && part != "..");
    if !clean {
        return Err(invalid(format!("{text:?} has empty parts, . or .. in it"), "write it like \"/data\""));
    }
    // Below the application's own tree is where many applications keep their files; the tree itself is not hidden.
    let hides = |dir: &str| {
        path == dir || (dir != "/app" && path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
    };
    if let Some(dir) = SYSTEM_DIRECTORIES.iter().find(|dir| hides(dir)) {
        return Err(invalid(
            format!("a volume at {text:?} would hide what is in {dir}"),
            "choose a directory of its own, like \"/data\"",
        ));
    }
    Ok(path.to_owned())
}

/// Reads `5%` or `0.5%`: from 0 to 100, at most two digits behind the point.
pub fn share(text: &str) -> Result<Share, InvalidValue> {
    let bad = || invalid(format!("{text:?} is not a percentage"), "write it like \"5%\" or \"0.5%\"");
    let number = text.strip_suffix('%').map(str::trim_end).ok_or_else(bad)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return Err(bad());
    }
    let hundredths: u32 = format!("{part:0<2}").parse().map_err(|_| bad())?;
    let share = Share(whole.parse::<u32>().map_err(|_| bad())? * 100 + hundredths);
    if share > Share::ALL { Err(bad()) } else { Ok(share) }
}

/// A limit of an error rate: above nothing, below everything.
pub fn error_rate(text: &str) -> Result<Share, InvalidValue> {
    let rate = share(text)?;
    if rate == Share::NONE || rate == Share::ALL {
        return Err(invalid(format!("{text:?} is no limit"), "write it like \"2%\""));
    }
    Ok(rate)
}

/// Reads `5% 5m`, or `25%` for a step that waits for a person's word.
pub fn canary_step(text: &str) -> Result<CanaryStep, InvalidValue> {
    let (share_text, time) = match text.split_once('%') {
        Some((number, rest)) => (format!("{number}%"), rest.trim()),
        None => (text.to_owned(), ""),
    };
    let share = share(share_text.trim())?;
    if time.is_empty() {
        return Ok(CanaryStep { share, time: None });
    }
    let time = duration(time)?;
    if !super::defaults::STEP_BOUNDS.contains(&time) {
        let (low, high) = (super::defaults::STEP_BOUNDS.start(), super::defaults::STEP_BOUNDS.end());
        let way_out = format!("write a duration from {} to {}", show_duration(*low), show_duration(*high));
        return Err(invalid(format!("the time of {text:?} is out of bounds"), way_out));
    }
    Ok(CanaryStep { share, time: Some(time) })
}

/// The name of a header or a cookie: RFC 9110's token.
pub fn header_name(text: &str) -> Result<String, InvalidValue> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if (1..=100).contains(&text.len()) && text.bytes().all(is_token) {
        return Ok(text.to_owned());
    }
    Err(invalid(format!("{text:?} is not the name of a header or a cookie"), "write it like \"X-User\""))
}

/// A cron expression that comes some day.
pub fn schedule(text: &str) -> Result<Schedule, InvalidValue> {
    let way_out = "minute, hour, day, month, weekday like \"0 3 * * *\", or \"@daily\"";
    Schedule::new(text).map_err(|error| invalid(error.to_string(), way_out))
}

/// A time zone's name.
pub fn zone(text: &str) -> Result<Zone, InvalidValue> {
    Zone::new(text).map_err(|error| invalid(error.to_string(), "write it like \"Europe/Vienna\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_they_are_written() {
        let cases = [
            ("500ms", 500),
            ("30s", 30_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1h1s5ms", 3_601_005),
            ("0s", 0),
        ];
        for (text, millis) in cases {
            let value = duration(text).unwrap_or_else(|error| panic!("{text} was refused: {error}"));
            assert_eq!(value, Duration::from_millis(millis), "{text}");
            assert_eq!(show_duration(value), text, "written back");
        }
    }

    #[test]
    fn durations_that_could_mean_something_else_are_refused() {
        for text in [
            "",
            "10",
            "m",
            "1.5h",
            "-1s",
            "30s10m",
            "1s1s",
            "10 m",
            "1w",
            "99999999999999999999s",
            "999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text:?} was taken for a duration");
        }
        assert_eq!(
            duration("10").unwrap_err().way_out.as_deref(),
            Some("write \"10s\" for seconds, \"10ms\" for milliseconds")
        );
    }

    #[test]
    fn sizes_are_decimal_or_binary_as_they_say() {
        assert_eq!(size("512MB"), Ok(512_000_000));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("1.5GB"), Ok(1_500_000_000));
        assert_eq!(size("10gb"), Ok(10_000_000_000));
        assert_eq!(size("512M").unwrap_err().way_out.as_deref(), Some("write \"512MB\""));
        for text in ["", "MB", "-1GB", "1e3MB", "1 parsec", "inf", "nan", ".5GB", "1..5GB", "999999999999TB"]
        {
            assert!(size(text).is_err(), "{text:?} was taken for a size");
        }
        assert_eq!(show_size(512_000_000), "512MB");
        assert_eq!(show_size(1 << 30), "1GiB");
    }

    #[test]
    fn steps_are_a_share_and_perhaps_a_time() {
        let step = |share, time: Option<u64>| {
            Ok(CanaryStep { share: Share(share), time: time.map(Duration::from_secs) })
        };
        assert_eq!(canary_step("5% 5m"), step(500, Some(300)));
        assert_eq!(canary_step("0.25% 10s"), step(25, Some(10)));
        assert_eq!(canary_step("100%"), step(10_000, None));
        for bad in ["", "5", "5m", "5% 5", "101%", "-1%", "5%5%", "1.234% 5m", "% 5m", "5% 0s", "5% 99d"] {
            assert!(canary_step(bad).is_err(), "{bad:?} was taken for a step");
        }
        assert!(error_rate("0%").is_err() && error_rate("100%").is_err() && error_rate("2%").is_ok());
    }

    #[test]
    fn host_names_are_told_from_addresses() {
        assert_eq!(domain("Shop.Example.COM"), Ok("shop.example.com".to_owned()));
        assert_eq!(domain("*.example.com"), Ok("*.example.com".to_owned()));
        let error = domain("https://shop.example.com/cart").unwrap_err();
        assert_eq!(error.way_out.as_deref(), Some("write only the host name: \"shop.example.com\""));
        assert!(domain("shop.example.com:8080").unwrap_err().way_out.unwrap().contains("only the host name"));
        let long = format!("{}.com", "a".repeat(64));
        for bad in ["", "*", "a..b", "-a.com", "a_b.com", "bücher.example", "a.*.com", ".", &long] {
            assert!(domain(bad).is_err(), "{bad:?} was taken for a host name");
        }
    }

    #[test]
    fn an_origin_is_what_browsers_say() {
        for good in ["https://app.example.com", "http://localhost:3000", "https://app.example.com:8443"] {
            assert_eq!(origin(good), Ok(good.to_owned()));
        }
        let error = origin("https://App.example.com:443").unwrap_err();
        assert_eq!(error.way_out.as_deref(), Some("write \"https://app.example.com\""));
        for bad in ["http://a.b:80", "https://a.b/", "a.b", "null"] {
            assert!(origin(bad).is_err(), "{bad:?} was taken for an origin");
        }
    }

    #[test]
    fn a_webhook_is_an_address_without_a_password() {
        for good in ["https://example.com/a?b=c", "http://127.0.0.1:8080", "http://[::1]:80/x", "https://a.b"]
        {
            assert_eq!(web_address(good), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "example.com",
            "ftp://a.b",
            "https://",
            "https://a:b@c.d/",
            "https://a b",
            "http://a:0",
            "https://*.a",
        ] {
            assert!(web_address(bad).is_err(), "{bad:?} was taken for an address");
        }
    }

    #[test]
    fn a_route_s_star_stands_for_everything_below() {
        for good in ["/", "/*", "/health", "/assets/*", "/a/b.c"] {
            assert!(route_path(good).is_ok(), "{good} was refused");
        }
        let error = route_path("/assets*").unwrap_err();
        assert_eq!(error.way_out.as_deref(), Some("write \"/assets/*\" for everything below /assets/"));
        for bad in ["", "assets", "/a//b", "/../b", "/a?b", "/a#b", "/a b", "/*/b", "/ä"] {
            assert!(route_path(bad).is_err(), "{bad:?} was taken for a route");
        }
    }

    #[test]
    fn a_volume_hides_nothing_of_the_system() {
        assert_eq!(mount_path("/data/"), Ok("/data".to_owned()));
        assert_eq!(mount_path("/app/uploads"), Ok("/app/uploads".to_owned()));
        assert_eq!(mount_path("/variable"), Ok("/variable".to_owned()));
        for bad in ["", "/", "data", "/etc", "/etc/x", "/app", "/app/", "/a/../etc", "//", "/a\0b"] {
            assert!(mount_path(bad).is_err(), "{bad:?} was taken for a place of a volume");
        }
    }
}
