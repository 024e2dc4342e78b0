//! Short keys that stand for long ones: separators of blocks, bounds of SSTs.

use bytes::Bytes;

use super::super::codec;
use crate::limits::BOUND_BYTES_MAX;

/// A shortest key that is at or above `last` and below `next`.
///
/// # Panics
/// Where `last` is not below `next`.
pub(super) fn separator(last: &[u8], next: &[u8]) -> Vec<u8> {
    let same = codec::common_prefix(last, next);
    assert!(last.get(same) < next.get(same), "entries are added in order");
    if last.len() > same + 1 {
        if let Some(longer) = next.get(..=same).filter(|start| start.len() < next.len()) {
            return longer.to_vec();
        }
        // `next` ends right where it begins to differ, so only a change of `last` stays below it.
        for len in same + 1..last.len() {
            let shorter = incremented(last.get(..len).unwrap_or_default());
            if let Some(shorter) = shorter.filter(|key| **key < *next) {
                return shorter;
            }
        }
    }
    last.to_vec()
}

/// At or below `first`, and at most [`BOUND_BYTES_MAX`] long.
pub(super) fn lower_bound(first: &[u8]) -> Bytes {
    Bytes::copy_from_slice(first.get(..BOUND_BYTES_MAX).unwrap_or(first))
}

/// At or above `last`, and at most [`BOUND_BYTES_MAX`] long, but where no such key is: above 256
/// bytes of ff there is nothing shorter, so that bound is the whole key.
pub(super) fn upper_bound(last: &[u8]) -> Bytes {
    if last.len() <= BOUND_BYTES_MAX {
        return Bytes::copy_from_slice(last);
    }
    let mut start = last.get(..BOUND_BYTES_MAX).unwrap_or_default();
    while let Some((&u8::MAX, shorter)) = start.split_last() {
        start = shorter;
    }
    incremented(start).map_or_else(|| Bytes::copy_from_slice(last), Bytes::from)
}

/// The key with its last byte one higher; `None` where there is none or it is ff.
fn incremented(key: &[u8]) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    let last = key.last_mut()?;
    *last = last.checked_add(1)?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn separators_are_short() {
        for (last, next, expected) in [
            ("abcdef", "abxyz", "abx"),
            ("abc", "abcd", "abc"),
            ("abcdef", "b", "ac"),
            ("abc", "d", "b"),
            ("a", "b", "a"),
            ("azz", "b", "a{"),
        ] {
            assert_eq!(separator(last.as_bytes(), next.as_bytes()), expected.as_bytes());
        }
        assert_eq!(separator(b"a\xff\xff1", b"b"), b"a\xff\xff1");
    }

    #[test]
    fn bounds_are_cut_outwards() {
        let long = [vec![b'k'; 255], b"\xff\xff".to_vec()].concat();
        assert_eq!(lower_bound(&long), long[..256]);
        assert_eq!(upper_bound(&long), [vec![b'k'; 254], b"l".to_vec()].concat());
        assert_eq!(upper_bound(&long[..256]), long[..256]);
        let highest = vec![u8::MAX; 300];
        assert_eq!(lower_bound(&highest), highest[..256]);
        assert_eq!(upper_bound(&highest), highest);
    }

    /// Every key of up to `len` bytes of this alphabet.
    fn keys(len: usize) -> Vec<Vec<u8>> {
        let mut all = vec![Vec::new()];
        let mut longest = all.clone();
        for _ in 0..len {
            let longer = |key: &Vec<u8>| {
                [0, 1, 2, 0xfe, 0xff].map(|byte| [key.as_slice(), &[byte]].concat())
            };
            longest = longest.iter().flat_map(longer).collect();
            all.extend(longest.iter().cloned());
        }
        all
    }

    proptest! {
        #[test]
        fn separator_is_a_shortest_key_between(
            last in vec(prop::sample::select(vec![0u8, 1, 0xfe, 0xff]), 1..4),
            next in vec(prop::sample::select(vec![0u8, 1, 0xfe, 0xff]), 1..4),
        ) {
            prop_assume!(last < next);
            let found = separator(&last, &next);
            prop_assert!(last <= found && found < next);
            let shortest = keys(3).into_iter().filter(|key| last <= *key && *key < next);
            prop_assert_eq!(found.len(), shortest.map(|key| key.len()).min().unwrap());
        }

        #[test]
        fn bounds_enclose(key in vec(prop::sample::select(vec![0u8, 0xff]), 1..600)) {
            prop_assert!(*lower_bound(&key) <= *key && *key <= *upper_bound(&key));
        }
    }
}
