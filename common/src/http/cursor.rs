//! Cursors: where the next page of a scan begins.
//!
//! **Layout**: base64url of `version (1 byte) | digest of the bounds (8 bytes) | position`. Opaque
//! to clients; the digest ties a cursor to its bounds and direction, so that one of another scan
//! is refused instead of answered with something else.
//!
//! A position is a key, whether or not any entry has it: forward, the rest of the scan begins with
//! it; in reverse, it ends just below it. An empty one is the beginning of the scan.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::problem::{Answer, Problem};
use crate::read::scan::Position;
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
    /// The cursor of a page over `rest` of the bounds that came this far.
    pub(super) fn cursor(&self, rest: &KeyRange, position: Position<'_>) -> String {
        // The smallest key above another is the same with a zero behind it.
        let (key, zero): (&[u8], &[u8]) = match (self.direction, position) {
            (Direction::Forward, Position::Start) => (&rest.start, &[]),
            (Direction::Reverse, Position::Start) => (rest.end.as_deref().unwrap_or(&[]), &[]),
            (Direction::Forward, Position::At(key))
            | (Direction::Reverse, Position::After(key)) => (key, &[]),
            (Direction::Forward, Position::After(key))
            | (Direction::Reverse, Position::At(key)) => (key, &[0]),
        };
        URL_SAFE_NO_PAD.encode([&[VERSION][..], &self.digest(), key, zero].concat())
    }

    /// What is left of the range from a cursor on.
    pub(super) fn resume(&self, cursor: &str) -> Answer<KeyRange> {
        let foreign = || Problem::argument("cursor", "does not belong to these bounds");
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| foreign())?;
        let position = bytes.strip_prefix(&[VERSION]).and_then(|rest| {
            let (digest, position) = rest.split_at_checked(DIGEST_BYTES)?;
            (digest == self.digest()).then_some(position)
        });
        let position = position.ok_or_else(foreign)?;
        let KeyRange { start, end } = self.range.clone();
        if position.is_empty() {
            return Ok(self.range.clone());
        }
        if position < &*start || end.as_ref().is_some_and(|end| position > &**end) {
            return Err(foreign());
        }
        let position = Bytes::copy_from_slice(position);
        Ok(match self.direction {
            Direction::Forward => KeyRange { start: position, end },
            Direction::Reverse => KeyRange { start, end: Some(position) },
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

    impl Bounds {
        fn rest(&self, position: Position<'_>) -> KeyRange {
            self.resume(&self.cursor(&self.range, position)).unwrap()
        }
    }

    #[test]
    fn a_page_goes_on_where_the_last_one_came_to() {
        let forward = bounds("a", Some("c"), Direction::Forward);
        let after = forward.rest(Position::After(b"b"));
        assert!(!after.contains(b"b") && after.contains(b"b\0") && !after.contains(b"c"));
        let at = forward.rest(Position::At(b"b"));
        assert!(!at.contains(b"az") && at.contains(b"b") && !at.contains(b"c"));
        let reverse = bounds("a", Some("c"), Direction::Reverse);
        let after = reverse.rest(Position::After(b"b"));
        assert!(!after.contains(b"b") && after.contains(b"az") && after.contains(b"a"));
        let at = reverse.rest(Position::At(b"b"));
        assert!(!at.contains(b"b\0") && at.contains(b"b") && at.contains(b"a"));
    }

    #[test]
    fn a_page_that_came_nowhere_is_asked_again() {
        for direction in [Direction::Forward, Direction::Reverse] {
            for bounds in [bounds("a", Some("c"), direction), bounds("", None, direction)] {
                assert_eq!(bounds.rest(Position::Start), bounds.range);
                let rest = bounds.rest(Position::After(b"b"));
                let again = bounds.resume(&bounds.cursor(&rest, Position::Start));
                assert_eq!(again.unwrap(), rest);
            }
        }
    }

    #[test]
    fn a_cursor_goes_with_its_bounds_alone() {
        let of = |bounds: &Bounds, key| bounds.cursor(&bounds.range, Position::At(key));
        let cursor = of(&bounds("a", Some("c"), Direction::Forward), b"b");
        for other in [
            bounds("a", Some("c"), Direction::Reverse),
            bounds("a", Some("d"), Direction::Forward),
            bounds("a", None, Direction::Forward),
            bounds("", Some("c"), Direction::Forward),
        ] {
            assert!(other.resume(&cursor).is_err(), "{other:?}");
        }
        let forward = bounds("a", Some("c"), Direction::Forward);
        for wrong in ["", "?", "AQ", &of(&forward, b"z"), &of(&forward, b"Z")] {
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
