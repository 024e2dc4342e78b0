//! Cursors: where the next page of a scan begins.
//!
//! **Layout**: base64url of `version (1 byte) | digest of the bounds (8 bytes) | last key`. Opaque
//! to clients; the digest ties a cursor to its bounds and direction, so that one of another scan
//! is refused instead of answered with something else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::problem::{Answer, Problem};
use crate::types::{Direction, KeyRange};

const VERSION: u8 = 1;
const DIGEST_BYTES: usize = 8;

/// What a scan goes over, and which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) range: KeyRange,
    pub(super) direction: Direction,
}

impl Bounds {
    /// The cursor of a page that ended with this key.
    pub(super) fn cursor(&self, last_key: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode([&[VERSION][..], &self.digest(), last_key].concat())
    }

    /// What is left of the range behind a cursor.
    pub(super) fn resume(&self, cursor: &str) -> Answer<KeyRange> {
        let foreign = || Problem::argument("cursor", "does not belong to these bounds");
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| foreign())?;
        let last_key = bytes.strip_prefix(&[VERSION]).and_then(|rest| {
            let (digest, last_key) = rest.split_at_checked(DIGEST_BYTES)?;
            (digest == self.digest()).then_some(last_key)
        });
        let last_key = last_key.filter(|key| self.range.contains(key)).ok_or_else(foreign)?;
        Ok(match self.direction {
            // The smallest key above another is the same with a zero behind it.
            Direction::Forward => {
                KeyRange { start: [last_key, &[0]].concat().into(), end: self.range.end.clone() }
            }
            Direction::Reverse => KeyRange {
                start: self.range.start.clone(),
                end: Some(Bytes::copy_from_slice(last_key)),
            },
        })
    }

    fn digest(&self) -> [u8; DIGEST_BYTES] {
        let mut hash = Xxh3::new();
        let start = &self.range.start;
        hash.update(&start.len().to_le_bytes());
        hash.update(start);
        if let Some(end) = &self.range.end {
            hash.update(&[1]);
            hash.update(end);
        }
        hash.update(match self.direction {
            Direction::Forward => b"forward",
            Direction::Reverse => b"reverse",
        });
        hash.digest().to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(start: &'static str, end: Option<&'static str>, direction: Direction) -> Bounds {
        let range = KeyRange { start: start.into(), end: end.map(Bytes::from) };
        Bounds { range, direction }
    }

    #[test]
    fn a_page_goes_on_right_behind_the_last_key() {
        let forward = bounds("a", Some("c"), Direction::Forward);
        let rest = forward.resume(&forward.cursor(b"b")).unwrap();
        assert!(!rest.contains(b"b") && rest.contains(b"b\0") && !rest.contains(b"c"));
        let reverse = bounds("a", Some("c"), Direction::Reverse);
        let rest = reverse.resume(&reverse.cursor(b"b")).unwrap();
        assert!(!rest.contains(b"b") && rest.contains(b"az") && rest.contains(b"a"));
    }

    #[test]
    fn a_cursor_goes_with_its_bounds_alone() {
        let cursor = bounds("a", Some("c"), Direction::Forward).cursor(b"b");
        for other in [
            bounds("a", Some("c"), Direction::Reverse),
            bounds("a", Some("d"), Direction::Forward),
            bounds("a", None, Direction::Forward),
            bounds("", Some("c"), Direction::Forward),
        ] {
            assert!(other.resume(&cursor).is_err(), "{other:?}");
        }
        let forward = bounds("a", Some("c"), Direction::Forward);
        for wrong in ["", "?", "AQ", &forward.cursor(b"z"), &forward.cursor(b"")] {
            assert!(forward.resume(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[A-Za-z0-9_-]{0,40}") {
            prop_assert!(bounds("a", None, Direction::Forward).resume(&text).is_err());
        }
    }
}
