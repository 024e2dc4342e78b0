//! What values make sense: the least and the most of every duration, size and count.
//!
//! A value out of these bounds is a slip, as a lease of two hours or a timeout of a day in
//! microseconds: it would work, and harm much later. What settings mean together is checked by
//! [`super::Settings::check`].

use super::units::{Size, Span};
use super::{Kind, Setting, Values};
use crate::error::{Error, Result};

/// The name of a setting, its least and its most value; each with its reason.
const BOUNDS: &[(&str, &str, &str)] = &[
    // Of connections and requests: above the slowest link that is served, below what anybody waits.
    ("connections_max", "1", "1000000"),
    ("requests_max", "1", "1000000"),
    ("waiting_bodies_max", "1", "1000000"),
    ("waiting_reads_max", "1", "1000000"),
    ("waiting_writes_max", "1", "1000000"),
    ("scans_max", "1", "1000000"),
    ("request_memory", "4KiB", "1TiB"),
    ("reply_memory", "4KiB", "1TiB"),
    ("header_timeout", "10ms", "10min"),
    ("idle_timeout", "10ms", "1d"),
    ("stall_timeout", "10ms", "1h"),
    ("request_timeout", "1ms", "1h"),
    ("request_timeout_max", "1ms", "1h"),
    ("shutdown_grace", "10ms", "1h"),
    // The next writer waits 1.1 leases after a crash: a minute without service is the most.
    ("lease", "50ms", "60s"),
    // Nobody serves meanwhile.
    ("takeover_after", "10ms", "10min"),
    // What is acknowledged from memory may be lost for so long.
    ("wal_interval", "0ms", "60s"),
    ("memtable_bytes", "4KiB", "16GiB"),
    // A restart replays them.
    ("memtable_wal_objects", "1", "1000000"),
    ("memtable_age", "10ms", "7d"),
    ("unflushed_bytes_max", "8KiB", "64GiB"),
    // Every read looks at each of them.
    ("l0_slowdown", "1", "10000"),
    ("l0_stop", "2", "10000"),
    ("cache_memory", "0", "1TiB"),
    ("meta_memory", "0", "1TiB"),
    ("cache_disk", "0", "64TiB"),
    // Of readers and of the compactor.
    ("poll_interval", "1ms", "1h"),
    ("max_staleness", "2ms", "1d"),
    ("warm_timeout", "0ms", "10min"),
    // What has left the tree is paid for as long.
    ("retention", "0ms", "365d"),
    ("gc_interval", "1ms", "7d"),
    // A thread each.
    ("jobs_max", "1", "256"),
    ("sst_bytes", "4KiB", "4GiB"),
    ("read_ahead", "64KiB", "1GiB"),
    ("l0_count", "1", "1000"),
    ("tier_count", "2", "1000"),
    ("bottom_percent", "1", "10000"),
];

/// A number that two values of one kind are compared by.
fn measure(kind: Kind, text: &str) -> Option<u128> {
    match kind {
        Kind::Span => text.parse::<Span>().ok().map(|span| span.0.as_nanos()),
        Kind::Size => text.parse::<Size>().ok().map(|size| u128::from(size.0)),
        Kind::Count | Kind::Positive => text.replace('_', "").parse().ok(),
        _ => None,
    }
}

/// Refuses a value out of its bounds.
///
/// # Errors
/// `Invalid`, naming the setting, the bound, and where the value came from.
pub(super) fn check(settings: &[Setting], values: &Values) -> Result<()> {
    for &(name, least, most) in BOUNDS {
        let Some(setting) = settings.iter().find(|setting| setting.name == name) else { continue };
        let Some((text, source)) = values.get(name) else { continue };
        let [value, low, high] = [text, least, most].map(|text| measure(setting.kind, text));
        let broken = match (value, low, high) {
            (Some(value), Some(low), _) if value < low => format!("below the least, {least}"),
            (Some(value), _, Some(high)) if value > high => format!("above the most, {most}"),
            _ => continue,
        };
        let text = format!("{name}: {text} is {broken}, from {}", source.describe());
        return Err(Error::Invalid(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Fallback, SHARED};
    use super::*;

    #[test]
    fn bounds_hold_for_the_defaults() {
        for setting in SHARED {
            let Some((_, least, most)) = BOUNDS.iter().find(|(name, ..)| *name == setting.name)
            else {
                let measured = matches!(setting.kind, Kind::Span | Kind::Size | Kind::Positive);
                assert!(!measured, "{} has no bounds", setting.name);
                continue;
            };
            let Fallback::Is(default) = setting.fallback else { continue };
            let [least, default, most] =
                [least, default, most].map(|text| measure(setting.kind, text).unwrap());
            assert!(least <= default && default <= most, "{}", setting.name);
        }
    }
}
