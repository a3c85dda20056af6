//! `Duration` inside, milliseconds on the wire: `#[serde(with = "duration::ms")]` on a field named `…_ms`.

use std::time::Duration;

/// For messages: `250 ms`, `1.5 s`, `5 min`, `1 h 30 min`.
pub fn in_words(duration: Duration) -> String {
    let ms = duration.as_millis();
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{ms} ms"),
        1..=59 if ms.is_multiple_of(1000) => format!("{seconds} s"),
        1..=59 => format!("{:.1} s", duration.as_secs_f64()),
        60..=3599 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ if (seconds / 60).is_multiple_of(60) => format!("{} h", seconds / 3600),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

pub mod ms {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Wire values are whole milliseconds; 584 million years fit, so the cast loses nothing that is used.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

pub mod optional_ms {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        let said = |ms| in_words(Duration::from_millis(ms));
        assert_eq!([said(250), said(1500), said(5000)], ["250 ms", "1.5 s", "5 s"]);
        assert_eq!([said(300_000), said(90_000), said(5_400_000)], ["5 min", "1 min 30 s", "1 h 30 min"]);
    }
}
