//! Values as people write and read them (sizes, durations), and how a memory budget is divided. Pure; knows no option's name
//! but those that its messages tell the user to change.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// Most store requests at once, when nothing else is asked for.
pub const DEFAULT_REQUESTS: usize = 32;
/// Memory for the read cache and request buffers, when nothing else is asked for.
pub const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;
/// Most dirty data, when nothing else is asked for.
pub const DEFAULT_MAX_DIRTY_BYTES: u64 = 256 << 20;

/// Most for the read cache on the local disk, when nothing else is asked for.
pub const DEFAULT_CACHE_BYTES: u64 = 10 << 30;
/// Blocks that have to fit into the read cache on the local disk.
const LEAST_CACHED_BLOCKS: u64 = 16;

/// Suffixes of sizes and the power of two that each stands for.
const UNITS: [(&str, u32); 6] = [
    ("k", 10),
    ("m", 20),
    ("g", 30),
    ("t", 40),
    ("p", 50),
    ("e", 60),
];

/// A size in bytes from text such as `512`, `64k`, `100g`, `1MiB`, `1.5t`. Suffixes are binary: `1k` is 1024. `KB` and its kin,
/// which some read as 1000, are refused.
///
/// # Errors
/// `Usage`, for text that is not a size, is not a whole number of bytes, or is beyond 2^64 - 1.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = |why: &str| {
        let context =
            format!("'{text}' is not a size: {why}; write bytes or a binary suffix, as in 100g");
        Error::new(ErrorKind::Usage, context)
    };
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(bad("it has no proper number"));
    }
    let suffix = suffix.to_ascii_lowercase();
    let power = match suffix.as_str() {
        "" | "b" => 0,
        _ => UNITS
            .iter()
            .find(|(unit, _)| suffix == *unit || suffix == format!("{unit}ib"))
            .map(|(_, power)| *power)
            .ok_or_else(|| bad("its suffix is none of k, m, g, t, p, e (or KiB and so on)"))?,
    };
    let mantissa: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| bad("it is too large"))?;
    let scale = u32::try_from(fraction.len())
        .ok()
        .and_then(|places| 10u128.checked_pow(places))
        .ok_or_else(|| bad("it has too many decimal places"))?;
    let scaled = mantissa
        .checked_mul(1u128 << power)
        .ok_or_else(|| bad("it is too large"))?;
    if scaled % scale != 0 {
        return Err(bad("it is not a whole number of bytes"));
    }
    u64::try_from(scaled / scale).map_err(|_| bad("it is too large"))
}

/// A size for people: `0 B`, `512 B`, `100 GiB`, `1.5 GiB` (one decimal place, left out where the figure is whole).
pub fn format_size(bytes: u64) -> String {
    let (unit, power) = UNITS
        .iter()
        .rev()
        .find(|(_, power)| bytes >> power > 0)
        .map_or(("", 0), |(unit, power)| (*unit, *power));
    if power == 0 {
        return format!("{bytes} B");
    }
    let unit = unit.to_ascii_uppercase();
    let tenths = ((u128::from(bytes) * 10) >> power) as u64;
    match tenths % 10 {
        0 => format!("{} {unit}iB", tenths / 10),
        tenth => format!("{}.{tenth} {unit}iB", tenths / 10),
    }
}

/// A duration from text such as `30s`, `1m 30s`, `500ms`; longer than zero.
///
/// # Errors
/// `Usage`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let duration = humantime::parse_duration(text).map_err(|cause| {
        Error::new(
            ErrorKind::Usage,
            format!("'{text}' is not a duration: {cause}; write it as 30s or 5m"),
        )
    })?;
    if duration.is_zero() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("'{text}' is no time at all: give a duration such as 30s"),
        ));
    }
    Ok(duration)
}

/// A duration for people, in whole seconds from ten seconds up: `1m 30s`, `2.5s`.
pub fn format_duration(duration: Duration) -> String {
    if duration >= Duration::from_secs(10) {
        humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
    } else {
        format!("{:.1}s", duration.as_secs_f64())
    }
}

/// The smallest read cache on the local disk that is of any use, in bytes: 16 blocks, each with its header in a page of its own.
pub fn least_cache_bytes(block_bytes: u32) -> u64 {
    LEAST_CACHED_BLOCKS * (u64::from(block_bytes) + 4096)
}

/// Checks the size of the read cache on the local disk; 0 means none.
///
/// # Errors
/// `Usage`.
pub fn check_cache_size(cache_bytes: u64, block_bytes: u32) -> Result<()> {
    let least = least_cache_bytes(block_bytes);
    if cache_bytes == 0 || cache_bytes >= least {
        return Ok(());
    }
    let text = format!(
        "--cache-size {} is less than {LEAST_CACHED_BLOCKS} blocks of {} with their headers: give --cache-size at least {least}, or 0 for none",
        format_size(cache_bytes),
        format_size(u64::from(block_bytes)),
    );
    Err(Error::new(ErrorKind::Usage, text))
}

/// How `--memory` is divided between the read cache and the buffers of requests in flight. A quarter of what the buffers leave is
/// kept for what the allocator takes beyond what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// For cached clean blocks, in bytes.
    pub cache_bytes: u64,
    /// Most requests at once: what was asked for, or fewer where their buffers would not leave the cache a quarter of the budget.
    pub requests: usize,
}

impl MemoryPlan {
    /// Divides a budget. A request in flight takes two blocks (the block, and its encoded form).
    ///
    /// # Errors
    /// `Usage`, where the budget is below eight blocks or the dirty limit below four.
    pub fn divide(
        memory_bytes: u64,
        max_dirty_bytes: u64,
        requests: usize,
        block_bytes: u32,
    ) -> Result<MemoryPlan> {
        let block = u64::from(block_bytes);
        let at_least = |option: &str, given: u64, blocks: u64| {
            if given >= blocks * block {
                return Ok(());
            }
            let context = format!(
                "{option} {} is less than {blocks} blocks of {}: give {option} at least {}",
                format_size(given),
                format_size(block),
                format_size(blocks * block),
            );
            Err(Error::new(ErrorKind::Usage, context))
        };
        at_least("--memory", memory_bytes, 8)?;
        at_least("--max-dirty", max_dirty_bytes, 4)?;
        let per_request = 2 * block;
        let most = (memory_bytes - memory_bytes / 4) / per_request;
        let requests = requests
            .min(usize::try_from(most).unwrap_or(usize::MAX))
            .max(1);
        Ok(MemoryPlan {
            cache_bytes: (memory_bytes - requests as u64 * per_request) / 4 * 3,
            requests,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes() {
        let accepted = [
            ("512", 512),
            ("0", 0),
            ("1k", 1024),
            ("1K", 1024),
            ("1KiB", 1024),
            ("100g", 100 << 30),
            ("1MiB", 1 << 20),
            ("1.5t", 3 << 39),
            ("7b", 7),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in accepted {
            assert_eq!(parse_size(text).expect(text), bytes, "{text}");
        }
    }

    #[test]
    fn malformed_sizes_are_usage_errors_that_quote_them() {
        let refused = [
            "",
            "g",
            "-1",
            "+1",
            "1kb",
            "1 k",
            "1.k",
            ".5k",
            "1.2.3g",
            "0.1k",
            "16e",
            "1x",
            "1e3",
            "0x10",
            "99999999999999999999999999999999999999999",
            "١k",
        ];
        for text in refused {
            let error = parse_size(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn sizes_read_well() {
        let shown = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1 MiB"),
            (100 << 30, "100 GiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (bytes, text) in shown {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn durations_are_humantime_and_never_zero() {
        assert_eq!(
            parse_duration("1m 30s").expect("duration"),
            Duration::from_secs(90)
        );
        for text in ["0s", "", "5", "soon", "-1s"] {
            let error = parse_duration(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
        assert_eq!(format_duration(Duration::from_millis(2500)), "2.5s");
        assert_eq!(format_duration(Duration::from_millis(90_400)), "1m 30s");
    }

    #[test]
    fn a_memory_budget_keeps_a_quarter_for_the_cache() {
        let plan = MemoryPlan::divide(256 << 20, 256 << 20, 32, 256 << 10).expect("plan");
        assert_eq!(plan.requests, 32);
        assert_eq!(plan.cache_bytes, 180 << 20);
        let tight = MemoryPlan::divide(8 << 20, 4 << 20, 32, 1 << 20).expect("plan");
        assert_eq!(tight.requests, 3);
        assert_eq!(tight.cache_bytes, (2 << 20) / 4 * 3);
    }

    #[test]
    fn a_cache_that_is_too_small_is_told_the_bytes_that_would_do() {
        let least = least_cache_bytes(256 << 10);
        let error = check_cache_size(4 << 20, 256 << 10).expect_err("4 MiB");
        for part in ["4 MiB", &least.to_string(), "headers"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        for bytes in [0, least] {
            check_cache_size(bytes, 256 << 10).expect("will do");
        }
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_budget_of_too_few_blocks_is_refused_with_the_least_that_would_do() {
        let error = MemoryPlan::divide(7 << 20, 256 << 20, 1, 1 << 20).expect_err("memory");
        assert!(
            error.to_string().contains("--memory at least 8 MiB"),
            "{error}"
        );
        let error = MemoryPlan::divide(8 << 20, 3 << 20, 1, 1 << 20).expect_err("dirty");
        assert!(
            error.to_string().contains("--max-dirty at least 4 MiB"),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}
