//! Moments as text: RFC 3339 in UTC, in exactly one spelling per moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::{format_rfc3339_nanos, format_rfc3339_seconds, parse_rfc3339};

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can spell, in seconds since 1970.
const LAST_SECOND: u64 = 253_402_300_799;

/// A moment in whole seconds: `2025-01-31T12:00:00Z`. A fraction is cut; a moment outside of 1970 to 9999 becomes the nearest
/// one inside.
pub fn to_seconds(time: SystemTime) -> String {
    format_rfc3339_seconds(spellable(time)).to_string()
}

/// A moment in nanoseconds: `2025-01-31T12:00:00.000000000Z`. Limits as for [`to_seconds`].
pub fn to_nanos(time: SystemTime) -> String {
    format_rfc3339_nanos(spellable(time)).to_string()
}

/// The moment that [`to_seconds`] spelled; `None` for any other text.
pub fn from_seconds(text: &str) -> Option<SystemTime> {
    let time = parse_rfc3339(text).ok()?;
    (to_seconds(time) == text).then_some(time)
}

/// The moment that [`to_nanos`] spelled; `None` for any other text.
pub fn from_nanos(text: &str) -> Option<SystemTime> {
    let time = parse_rfc3339(text).ok()?;
    (to_nanos(time) == text).then_some(time)
}

/// The nearest moment that has a spelling.
fn spellable(time: SystemTime) -> SystemTime {
    let last = UNIX_EPOCH + Duration::from_secs(LAST_SECOND);
    time.clamp(UNIX_EPOCH, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_one_spelling() {
        let time = UNIX_EPOCH + Duration::new(1_738_324_800, 5);
        assert_eq!(to_seconds(time), "2025-01-31T12:00:00Z");
        assert_eq!(to_nanos(time), "2025-01-31T12:00:00.000000005Z");
        assert_eq!(from_nanos(&to_nanos(time)), Some(time));
        assert_eq!(
            from_seconds("2025-01-31T12:00:00Z"),
            Some(UNIX_EPOCH + Duration::from_secs(1_738_324_800))
        );
        for other in ["", "2025-01-31 12:00:00Z", "2025-01-31T12:00:00.5Z", "now"] {
            assert_eq!(from_seconds(other), None, "{other}");
            assert_eq!(from_nanos(other), None, "{other}");
        }
    }

    #[test]
    fn a_moment_out_of_range_becomes_the_nearest_one_inside() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let after = UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 100);
        assert_eq!(to_seconds(before), "1970-01-01T00:00:00Z");
        assert_eq!(to_seconds(after), "9999-12-31T23:59:59Z");
    }
}
