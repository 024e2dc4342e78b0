//! Sizes and durations as people write them: `64MiB`, `250ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `64MiB`, `8KiB`, `500MB`, `4096`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A length of time: `250ms`, `2s`, `10min`, `1h`, `7d`, `0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A unit and what it counts for, from large to small, so that text is the shortest exact one.
type Units = [(&'static str, u64)];

/// Binary units first: they are the ones that are written out.
const SIZES: &Units = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
    ("", 1),
];
/// How many of [`SIZES`] are used for writing.
const SIZES_WRITTEN: usize = 4;

/// In microseconds.
const SPANS: &Units = &[
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("min", 60_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// The number and its unit, multiplied; `None` where either is unknown or the product too large.
fn parse(text: &str, units: &Units) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit.trim_start_matches(' ');
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl Size {
    /// The same as a `usize`, for buffers in memory.
    pub fn to_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size (write it like 64MiB, 8KiB or 4096)");
        parse(text, SIZES).map(Self).ok_or_else(wrong)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration (write it like 250ms, 2s or 10min)");
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        parse(text, SPANS).map(|us| Self(Duration::from_micros(us))).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = SIZES.iter().take(SIZES_WRITTEN);
        for (unit, factor) in written {
            if self.0 >= *factor && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        for (unit, factor) in SPANS.iter().filter(|(unit, _)| *unit != "m") {
            if us >= *factor && us.is_multiple_of(*factor) {
                return write!(f, "{}{unit}", us / factor);
            }
        }
        f.write_str("0")
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(Size, Span);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_durations_are_read_as_people_write_them() {
        let sizes = [
            ("64MiB", 64 << 20),
            ("8 KiB", 8 << 10),
            ("500MB", 500_000_000),
            ("4096", 4096),
            ("0", 0),
            ("7B", 7),
        ];
        for (text, bytes) in sizes {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        let spans = [("250ms", 250_000), ("2s", 2_000_000), ("10min", 600_000_000), ("0", 0)];
        for (text, us) in spans {
            assert_eq!(text.parse(), Ok(Span(Duration::from_micros(us))), "{text}");
        }
        for wrong in ["", "MiB", "-1", "1.5MiB", "64mib", "99999999999TiB", "+1", "1MiB "] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
        for wrong in ["", "5", "2 weeks", "-1s", "1e3s", "999999999999999d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn they_are_written_in_the_largest_exact_unit() {
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
        assert_eq!(Size(1_000).to_string(), "1000B");
        assert_eq!(Span(Duration::from_mins(10)).to_string(), "10min");
        assert_eq!(Span(Duration::from_millis(1_500)).to_string(), "1500ms");
        assert_eq!(Span(Duration::ZERO).to_string(), "0");
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes: u64, us in 0u64..(1 << 50)) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            let span = Span(Duration::from_micros(us));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
