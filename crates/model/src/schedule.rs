//! When a job is due: a cron expression in a time zone.
//!
//! The time zones are those that are built in, not the machine's: every node must come to the same answer. Summer time
//! is handled as Vixie cron does it. A job at a fixed time (`30 2 * * *`) that falls into the missing hour runs when
//! that hour is over, and one in the doubled hour runs once. A job that repeats (`*/10 * * * *`) passes over the missing
//! hour and runs in both halves of the doubled one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex};

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

mod fields;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Expressions that were read lately. Reading one writes down ten thousand years, which costs more than finding its next
/// time; a thousand jobs have a few expressions between them, and each is asked for again and again.
static READ: Mutex<BTreeMap<String, Arc<Cron>>> = Mutex::new(BTreeMap::new());

/// Of some ten kilobytes each. When there are as many, all are forgotten and those in use are read again.
const READ_MAX: usize = 256;

/// Five fields, or six with seconds in front, or `@daily` and its like.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(value_type = String)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule(String);

/// An IANA name like `Europe/Vienna`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(value_type = String)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    #[error("{text:?} is not a schedule: {why}")]
    Expression { text: String, why: String },
    #[error("schedule {0:?} never comes: no date matches it")]
    Never(String),
    #[error("{0:?} is not a time zone")]
    Zone(String),
}

impl Schedule {
    /// What a person writes.
    ///
    /// # Errors
    /// It is not a cron expression, or no time matches it.
    pub fn new(text: &str) -> Result<Self, InvalidSchedule> {
        let schedule = Self::kept(text)?;
        if let Some(why) = fields::misplaced_name(&schedule.0) {
            return Err(InvalidSchedule::Expression { text: schedule.0, why });
        }
        // Any start will do: what does not come within the library's years of search never does.
        match schedule.next_after(Timestamp::UNIX_EPOCH, &Zone::utc()) {
            Some(_) => Ok(schedule),
            None => Err(InvalidSchedule::Never(schedule.0)),
        }
    }

    /// What stands in a release already: whatever was taken once is understood for ever.
    fn kept(text: &str) -> Result<Self, InvalidSchedule> {
        let schedule = Self(text.trim().to_owned());
        schedule.parse_expression()?;
        Ok(schedule)
    }

    fn parse_expression(&self) -> Result<Arc<Cron>, InvalidSchedule> {
        let mut known = READ.lock().expect("nothing panics while it is held");
        if let Some(cron) = known.get(&self.0) {
            return Ok(cron.clone());
        }
        let cron = read(&self.0)
            .map_err(|_| InvalidSchedule::Expression { text: self.0.clone(), why: why(&self.0) })?;
        let cron = Arc::new(cron);
        if known.len() >= READ_MAX {
            known.clear();
        }
        known.insert(self.0.clone(), cron.clone());
        Ok(cron)
    }

    /// The first time that is later than `after`; `None` when there is none.
    pub fn next_after(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        self.after(after, zone).next()
    }

    /// All times later than `after`, in order, without end for most schedules.
    pub fn after(&self, after: Timestamp, zone: &Zone) -> impl Iterator<Item = Timestamp> + use<> {
        let cron = self.parse_expression().expect("it was parsed when it was made");
        let start = after.to_zoned(zone.time_zone());
        cron.iter_after(start).map(|zoned| zoned.timestamp())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn read(expression: &str) -> Result<Cron, CronError> {
    CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build().parse(expression)
}

/// What is wrong with an expression that can't be read.
fn why(text: &str) -> String {
    let count = text.split_whitespace().count();
    if text.starts_with('@') {
        return "the short forms are @hourly, @daily, @weekly, @monthly and @yearly".to_owned();
    }
    if !(5..=6).contains(&count) {
        let count = if count == 1 { "1 field".to_owned() } else { format!("{count} fields") };
        return format!("it has {count}, and takes five, or six with seconds in front");
    }
    fields::explain(text, |expression| read(expression).is_ok())
        .unwrap_or_else(|| "its fields do not go together".to_owned())
}

impl Zone {
    /// # Errors
    /// No time zone has this name.
    pub fn new(text: &str) -> Result<Self, InvalidSchedule> {
        match ZONES.get(text) {
            // The database's own spelling.
            Ok(zone) => Ok(Self(zone.iana_name().unwrap_or(text).to_owned())),
            Err(_) => Err(InvalidSchedule::Zone(text.to_owned())),
        }
    }

    pub fn utc() -> Self {
        Self("UTC".to_owned())
    }

    fn time_zone(&self) -> TimeZone {
        // A name that an older version of the database does not have any more: better a known time than none.
        ZONES.get(&self.0).unwrap_or(TimeZone::UTC)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! as_text {
    ($name:ident, $kept:ident) => {
        impl FromStr for $name {
            type Err = InvalidSchedule;
            fn from_str(text: &str) -> Result<Self, InvalidSchedule> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidSchedule;
            fn try_from(text: String) -> Result<Self, InvalidSchedule> {
                Self::$kept(&text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

as_text!(Schedule, kept);
as_text!(Zone, new);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let (schedule, zone) = (Schedule::new(schedule).unwrap(), Zone::new(zone).unwrap());
        schedule.after(after.parse().unwrap(), &zone).take(count).map(|time| time.to_string()).collect()
    }

    #[test]
    fn a_daily_job_keeps_its_local_time_over_summer_time() {
        let times = times("0 3 * * *", "Europe/Vienna", "2026-03-27T12:00:00Z", 3);
        assert_eq!(times, ["2026-03-28T02:00:00Z", "2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"]);
    }

    #[test]
    fn a_fixed_time_in_the_missing_hour_runs_when_that_hour_is_over() {
        // Clocks go from 02:00 to 03:00 on 2026-03-29.
        let times = times("30 2 * * *", "Europe/Vienna", "2026-03-28T12:00:00Z", 2);
        assert_eq!(times, ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    }

    #[test]
    fn a_fixed_time_in_the_doubled_hour_runs_once_and_a_repeating_one_in_both_halves() {
        // Clocks go from 03:00 back to 02:00 on 2026-10-25, at 01:00 UTC.
        let fixed = times("30 2 * * *", "Europe/Vienna", "2026-10-24T12:00:00Z", 2);
        assert_eq!(fixed, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        let repeating = times("30 * * * *", "Europe/Vienna", "2026-10-24T23:45:00Z", 3);
        assert_eq!(repeating, ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"]);
    }

    #[test]
    fn seconds_are_optional_and_short_forms_are_understood() {
        assert_eq!(
            times("*/20 * * * * *", "UTC", "2026-01-01T00:00:10Z", 2),
            ["2026-01-01T00:00:20Z", "2026-01-01T00:00:40Z"]
        );
        assert_eq!(times("@daily", "UTC", "2026-01-01T00:00:10Z", 1), ["2026-01-02T00:00:00Z"]);
        assert_eq!(times("0 9 * * MON-FRI", "UTC", "2026-01-02T10:00:00Z", 1), ["2026-01-05T09:00:00Z"]);
    }

    #[test]
    fn the_schedules_of_the_documentation_are_due_when_it_says() {
        let first = |schedule: &str| times(schedule, "UTC", "2026-02-05T12:00:00Z", 1).remove(0);
        assert_eq!(first("*/10 * * * *"), "2026-02-05T12:10:00Z");
        assert_eq!(first("30 4 1 * *"), "2026-03-01T04:30:00Z");
        assert_eq!(first("0 0 L * *"), "2026-02-28T00:00:00Z");
        assert_eq!(first("*/15 * * * * *"), "2026-02-05T12:00:15Z");
        let short = ["@hourly", "@daily", "@weekly", "@monthly", "@yearly"].map(first);
        let long = ["0 * * * *", "0 0 * * *", "0 0 * * 0", "0 0 1 * *", "0 0 1 1 *"].map(first);
        assert_eq!(short, long);
    }

    #[test]
    fn a_repeating_job_passes_over_the_missing_hour() {
        let times = times("*/30 * * * *", "Europe/Vienna", "2026-03-29T00:15:00Z", 3);
        assert_eq!(times, ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]);
    }

    proptest! {
        /// What catching up relies on: it begins to search somewhere before the present.
        #[test]
        fn the_times_are_the_same_from_wherever_the_search_begins(
            schedule in prop::sample::select(vec![
                "30 2 * * *", "*/10 * * * *", "30 * * * *", "0 0 1 * *", "15,45 1-3 * * *", "*/20 * * * * *", "0 3 * * SUN",
            ]),
            zone in prop::sample::select(vec![
                "UTC", "Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "America/St_Johns",
            ]),
            // Around the nights of 2026 in which clocks change.
            day in prop::sample::select(vec!["2026-03-08", "2026-03-29", "2026-04-04", "2026-04-24", "2026-10-25", "2026-11-01"]),
            from in 0..200_000_i64,
            then in 0..100_000_i64,
        ) {
            let (schedule, zone) = (Schedule::new(schedule).unwrap(), Zone::new(zone).unwrap());
            let begin: Timestamp = format!("{day}T00:00:00Z").parse().unwrap();
            let start = begin + jiff::SignedDuration::from_secs(from - 86_400);
            let later = start + jiff::SignedDuration::from_secs(then);
            let from_start: Vec<_> = schedule.after(start, &zone).filter(|time| *time > later).take(5).collect();
            let from_later: Vec<_> = schedule.after(later, &zone).take(5).collect();
            prop_assert_eq!(&from_start, &from_later);
            prop_assert!(from_later.windows(2).all(|two| two[0] < two[1]), "{:?}", from_later);
            prop_assert!(from_later[0] > later);
        }
    }

    #[test]
    fn what_never_comes_and_what_is_no_schedule_is_refused() {
        assert!(matches!(Schedule::new("0 0 30 2 *"), Err(InvalidSchedule::Never(_))));
        for bad in ["", "* * * *", "61 * * * *", "now and then", "@sometimes", "0 0 1 1 * 2030 9"] {
            assert!(
                matches!(Schedule::new(bad), Err(InvalidSchedule::Expression { .. })),
                "{bad:?} was taken"
            );
        }
        let told = |bad: &str| Schedule::new(bad).expect_err(bad).to_string();
        assert!(told("* * *").contains("it has 3 fields, and takes five"), "{}", told("* * *"));
        assert!(told("@fortnightly").contains("the short forms are @hourly"), "{}", told("@fortnightly"));
        assert!(Zone::new("Europe/Atlantis").is_err());
    }

    #[test]
    fn a_field_that_can_not_be_read_is_named_with_what_it_may_hold_and_an_example() {
        let told = |bad: &str| {
            let told = Schedule::new(bad).expect_err(bad).to_string();
            told.strip_prefix(&format!("{bad:?} is not a schedule: its ")).expect("it begins so").to_owned()
        };
        let minute = "a minute is 0 to 59, like `30`, `0,30`, `10-20` or `*/10`";
        assert_eq!(told("61 * * * *"), format!("minute `61` can't be read: 61 is beyond 59; {minute}"));
        assert_eq!(told("soon * * * *"), format!("minute `soon` can't be read; {minute}"));
        assert_eq!(told("0,5-x * * * *"), format!("minute `0,5-x` can't be read; {minute}"));
        assert!(told("0 25 * * *").contains("25 is beyond 23; an hour is 0 to 23"), "{}", told("0 25 * * *"));
        assert!(told("99 0 3 * * *").starts_with("second `99` can't be read: 99 is beyond 59; a second is"));
        let starts = [
            ("0 0 0 * *", "day of the month `0` can't be read: 0 is below 1; "),
            ("0 0 * 1,13 *", "month `1,13` can't be read: 13 is beyond 12; "),
            ("0 0 * * MONDAY", "day of the week `MONDAY` can't be read; a day of the week is 0 to 7 or SUN"),
            (
                "0 0 * * FRI-MON",
                "day of the week `FRI-MON` can't be read: FRI-MON goes backwards; make it two",
            ),
            ("*/0 * * * *", "minute `*/0` can't be read: a step is 1 or more; "),
            ("*/x * * * *", "minute `*/x` can't be read: what stands behind the slash is no number; "),
            (
                "5/10 * * * *",
                "minute `5/10` can't be read: a step goes through a range, like `*/10` or `0-59/10`; ",
            ),
            ("0 9 MON-FRI * *", "day of the month `MON-FRI` can't be read: MON is a day of the week; "),
            ("0 9 * * mar", "day of the week `mar` can't be read: mar is a month; "),
        ];
        for (bad, start) in starts {
            assert!(told(bad).starts_with(start), "{bad}: {}", told(bad));
        }
    }

    #[test]
    fn every_example_that_a_message_gives_is_a_schedule() {
        for good in [
            "0,30 10-20 1,15 MAR,SEP MON-FRI",
            "*/15 */10 9,17 1-7 */3 SAT,SUN",
            "0 9-17 L 1 FRI#2",
            "0 */2 */2 JAN MON",
        ] {
            assert!(Schedule::new(good).is_ok(), "{good}: {}", Schedule::new(good).expect_err(good));
        }
    }

    #[test]
    fn a_schedule_that_was_taken_once_is_understood_in_the_releases_that_have_it() {
        assert!(Schedule::new("0 9 MON * *").is_err());
        let kept: Schedule = serde_json::from_str("\"0 9 MON * *\"").expect("a release of before has it");
        assert_eq!(kept.as_str(), "0 9 MON * *");
    }
}
