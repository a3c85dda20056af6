//! When a job is due: a cron expression in a time zone.
//!
//! The time zones are those that are built in, not the machine's: every node must come to the same answer. Summer time
//! is handled as Vixie cron does it. A job at a fixed time (`30 2 * * *`) that falls into the missing hour runs when
//! that hour is over, and one in the doubled hour runs once. A job that repeats (`*/10 * * * *`) passes over the missing
//! hour and runs in both halves of the doubled one.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

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
    /// # Errors
    /// It is not a cron expression, or no time matches it.
    pub fn new(text: &str) -> Result<Self, InvalidSchedule> {
        let schedule = Self(text.trim().to_owned());
        schedule.parse_expression()?;
        // Any start will do: what does not come within the library's years of search never does.
        match schedule.next_after(Timestamp::UNIX_EPOCH, &Zone::utc()) {
            Some(_) => Ok(schedule),
            None => Err(InvalidSchedule::Never(schedule.0)),
        }
    }

    fn parse_expression(&self) -> Result<Cron, InvalidSchedule> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        parser
            .parse(&self.0)
            .map_err(|error| InvalidSchedule::Expression { text: self.0.clone(), why: error.to_string() })
    }

    /// The first time that is later than `after`; `None` when there is none.
    pub fn next_after(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        self.after(after, zone).next()
    }

    /// The last time that is not later than `until`.
    pub fn last_before(&self, until: Timestamp, zone: &Zone) -> Option<Timestamp> {
        let cron = self.parse_expression().expect("it was parsed when it was made");
        let until = until.to_zoned(zone.time_zone());
        cron.find_previous_occurrence(&until, true).ok().map(|zoned| zoned.timestamp())
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
    ($name:ident) => {
        impl FromStr for $name {
            type Err = InvalidSchedule;
            fn from_str(text: &str) -> Result<Self, InvalidSchedule> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidSchedule;
            fn try_from(text: String) -> Result<Self, InvalidSchedule> {
                Self::new(&text)
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

as_text!(Schedule);
as_text!(Zone);

#[cfg(test)]
mod tests {
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
    fn what_never_comes_and_what_is_no_schedule_is_refused() {
        assert!(matches!(Schedule::new("0 0 30 2 *"), Err(InvalidSchedule::Never(_))));
        for bad in ["", "* * * *", "61 * * * *", "now and then", "@sometimes", "0 0 1 1 * 2030 9"] {
            assert!(
                matches!(Schedule::new(bad), Err(InvalidSchedule::Expression { .. })),
                "{bad:?} was taken"
            );
        }
        assert!(Zone::new("Europe/Atlantis").is_err());
    }
}
