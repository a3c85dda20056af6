//! The fields of a cron expression: what each may hold, and what is wrong with one that can't be read.
//!
//! The library decides what can be read; it is asked for each field alone, and for each part of a list. What it says of the
//! others speaks of its own insides, so the words are ours: which field, which part of it, why, and how it is written.

/// In the order in which they are written; without seconds the first is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Weekday,
}

use Field::{Day, Hour, Minute, Month, Second, Weekday};

const FIELDS: [Field; 6] = [Second, Minute, Hour, Day, Month, Weekday];
const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl Field {
    fn name(self) -> &'static str {
        match self {
            Second => "second",
            Minute => "minute",
            Hour => "hour",
            Day => "day of the month",
            Month => "month",
            Weekday => "day of the week",
        }
    }

    fn bounds(self) -> (u32, u32) {
        match self {
            Second | Minute => (0, 59),
            Hour => (0, 23),
            Day => (1, 31),
            Month => (1, 12),
            Weekday => (0, 7),
        }
    }

    /// What it may hold, with an example of each form.
    fn holds(self) -> &'static str {
        match self {
            Second => "0 to 59, like `30`, `0,30`, `10-20` or `*/15`",
            Minute => "0 to 59, like `30`, `0,30`, `10-20` or `*/10`",
            Hour => "0 to 23, like `3`, `9,17`, `9-17` or `*/2`",
            Day => "1 to 31, like `1`, `1,15`, `1-7` or `*/2`, or `L` for the month's last",
            Month => "1 to 12 or JAN to DEC, like `1`, `MAR,SEP` or `*/3`",
            Weekday => {
                "0 to 7 or SUN to SAT, like `MON`, `MON-FRI`, `SAT,SUN` or `FRI#2` for the second Friday"
            }
        }
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Month => &MONTHS,
            Weekday => &WEEKDAYS,
            Second | Minute | Hour | Day => &[],
        }
    }

    /// A number, or a name that stands for one.
    fn number(self, text: &str) -> Option<u32> {
        let first = self.bounds().0.min(1);
        let by_name = || {
            let at = self.names().iter().position(|name| name.eq_ignore_ascii_case(text))?;
            Some(first + u32::try_from(at).expect("there are twelve at most"))
        };
        text.parse().ok().or_else(by_name)
    }

    /// An expression of this field alone.
    fn alone(self, text: &str) -> String {
        FIELDS.map(|field| if field == self { text } else { "*" }).join(" ")
    }
}

fn in_order(expression: &str) -> impl Iterator<Item = (Field, &str)> {
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let first = FIELDS.len().saturating_sub(fields.len());
    FIELDS.into_iter().skip(first).zip(fields)
}

/// The first field that can't be read, in words.
pub fn explain(expression: &str, can_be_read: impl Fn(&str) -> bool) -> Option<String> {
    let is_wrong = |field: Field, text: &str| !can_be_read(&field.alone(text));
    let (field, text) = in_order(expression).find(|(field, text)| is_wrong(*field, text))?;
    let part = text.split(',').find(|part| !part.is_empty() && is_wrong(field, part));
    Some(told(field, text, part.and_then(|part| why(field, part))))
}

/// A name in a field that has other names, or none.
///
/// The library takes `MON` for a 1 wherever it stands: `0 9 MON-FRI * *`, for working days and with its fields in the wrong
/// order, would run on the first five days of each month.
pub fn misplaced_name(expression: &str) -> Option<String> {
    in_order(expression).find_map(|(field, text)| Some(told(field, text, Some(foreign_name(field, text)?))))
}

fn told(field: Field, text: &str, why: Option<String>) -> String {
    let (name, why) = (field.name(), why.map(|why| format!(": {why}")).unwrap_or_default());
    let article = if field == Hour { "an" } else { "a" };
    format!("its {name} `{text}` can't be read{why}; {article} {name} is {}", field.holds())
}

fn foreign_name(field: Field, text: &str) -> Option<String> {
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic());
    words.find_map(|word| {
        let has = |of: &Field| of.names().iter().any(|name| name.eq_ignore_ascii_case(word));
        let of = [Month, Weekday].into_iter().find(|of| *of != field && has(of))?;
        Some(format!("{word} is a {}", of.name()))
    })
}

/// What is wrong with a part of a list; `None` when there is no more to say than that it is.
fn why(field: Field, part: &str) -> Option<String> {
    if let Some(foreign) = foreign_name(field, part) {
        return Some(foreign);
    }
    let (low, high) = field.bounds();
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    match step.map(str::parse::<u32>) {
        Some(Err(_)) => return Some("what stands behind the slash is no number".to_owned()),
        Some(Ok(0)) => return Some("a step is 1 or more".to_owned()),
        Some(Ok(step)) if range != "*" && !range.contains('-') => {
            return Some(format!("a step goes through a range, like `*/{step}` or `{low}-{high}/{step}`"));
        }
        Some(Ok(_)) | None => {}
    }
    let numbers: Vec<u32> = range.split('-').map(|end| field.number(end)).collect::<Option<_>>()?;
    if let Some(beyond) = numbers.iter().find(|number| **number > high) {
        return Some(format!("{beyond} is beyond {high}"));
    }
    if let Some(below) = numbers.iter().find(|number| **number < low) {
        return Some(format!("{below} is below {low}"));
    }
    match numbers[..] {
        [from, to] if from > to => Some(format!("{range} goes backwards; make it two, with a comma between")),
        _ => None,
    }
}
