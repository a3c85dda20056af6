//! Moments and spans, as people say them.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What time it is where the person is.
#[derive(Debug, Clone)]
pub struct Clock {
    pub now: Timestamp,
    pub zone: TimeZone,
}

impl Clock {
    /// `3 min ago (14:02)`, `2 days ago (Mar 3 14:02)`.
    pub fn ago(&self, at: Timestamp) -> String {
        let local = at.to_zoned(self.zone.clone());
        let today = self.now.to_zoned(self.zone.clone()).date() == local.date();
        let clock = local.strftime(if today { "%H:%M" } else { "%b %-d %H:%M" });
        format!("{} ({clock})", self.since(at))
    }

    /// `in 3 min (14:02)`, `in 2 days (Mar 3 14:02)`.
    pub fn ahead(&self, at: Timestamp) -> String {
        let seconds = at.as_second().saturating_sub(self.now.as_second());
        let span = match seconds {
            ..=1 => "now".to_owned(),
            2..=119 => format!("in {seconds} s"),
            120..=7199 => format!("in {} min", seconds / 60),
            7200..=172_799 => format!("in {} h", seconds / 3600),
            _ => format!("in {} days", seconds / 86_400),
        };
        format!("{span} ({})", self.short(at))
    }

    /// `14:02` of today, `Mar 3 14:02`, and with the year when it is another.
    pub fn short(&self, at: Timestamp) -> String {
        let (local, now) = (at.to_zoned(self.zone.clone()), self.now.to_zoned(self.zone.clone()));
        let format = match (now.date() == local.date(), now.year() == local.year()) {
            (true, _) => "%H:%M",
            (false, true) => "%b %-d %H:%M",
            (false, false) => "%b %-d %Y %H:%M",
        };
        local.strftime(format).to_string()
    }

    /// `just now`, `12 s ago`, `3 min ago`, `2 days ago`. What a faster clock dated into the future is just now.
    pub fn since(&self, at: Timestamp) -> String {
        let seconds = self.now.as_second().saturating_sub(at.as_second());
        match seconds {
            ..=1 => "just now".to_owned(),
            2..=119 => format!("{seconds} s ago"),
            120..=7199 => format!("{} min ago", seconds / 60),
            7200..=172_799 => format!("{} h ago", seconds / 3600),
            _ => format!("{} days ago", seconds / 86_400),
        }
    }

    /// How long ago `at` was; nothing for the future.
    pub fn elapsed(&self, at: Timestamp) -> Duration {
        Duration::try_from(self.now.duration_since(at)).unwrap_or_default()
    }

    /// For lines of a log: `14:02:11`, with the date when it is not today's.
    pub fn of_line(&self, at: Timestamp) -> String {
        let local = at.to_zoned(self.zone.clone());
        let today = self.now.to_zoned(self.zone.clone()).date() == local.date();
        local.strftime(if today { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" }).to_string()
    }
}

/// `0.3 s`, `12 s`, `2 min 5 s`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.1} s", duration.as_secs_f64()),
        10..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
