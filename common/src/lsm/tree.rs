//! The tree as compaction sees it: L0 and the sorted runs, by size, keys and what could be dropped.
//!
//! A projection of the manifest without names and digests, so that what decides about the tree is
//! pure and can be told in small tables. The edits of the tree itself are in `format::edit`.
//!
//! **Invariants**
//! - `l0` and `runs` are newest first; every element is newer than those behind it, and all of L0
//!   is newer than all runs. A job takes neighbours, so its output has one place in that order.

use bytes::Bytes;
use uuid::Uuid;

/// What a database's entries are spread over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Flushed memtables, newest first.
    pub l0: Vec<Stat>,
    /// Sorted runs, newest first.
    pub runs: Vec<Stat>,
    /// The manifest's time in Unix milliseconds: what expired by then may be dropped.
    pub now_ms: u64,
}

/// An SST of L0 or a sorted run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Names it within the tree.
    pub id: Uuid,
    /// Size of its SSTs.
    pub bytes: u64,
    /// SSTs in it.
    pub ssts: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Of these, tombstones.
    pub tombstones: u64,
    /// Of these, operands.
    pub operands: u64,
    /// At or below its first key.
    pub first_key: Bytes,
    /// At or above its last key.
    pub last_key: Bytes,
    /// Size of those of its SSTs that hold entries which expire, all of which have by the tree's
    /// time.
    pub expired_bytes: u64,
    /// How long it has been known to be in the tree, at least.
    pub age_ms: u64,
    /// Whether something of it cannot be read: it can be moved, and not be merged.
    pub damaged: bool,
}

impl Stat {
    /// Whether a key can be in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first_key <= other.last_key && other.first_key <= self.last_key
    }

    /// The part of the entries that are tombstones, in percent.
    pub fn tombstone_percent(&self) -> u64 {
        (self.tombstones * 100).checked_div(self.entries).unwrap_or(0)
    }
}

impl Tree {
    /// L0 and runs in one order, newest first.
    pub fn sources(&self) -> impl DoubleEndedIterator<Item = &Stat> + Clone {
        self.l0.iter().chain(&self.runs)
    }

    /// Size of everything.
    pub fn bytes(&self) -> u64 {
        self.sources().map(|source| source.bytes).sum()
    }

    /// L0 and runs in one order, newest first, to be marked.
    pub fn sources_mut(&mut self) -> impl Iterator<Item = &mut Stat> {
        self.l0.iter_mut().chain(&mut self.runs)
    }

    /// How many places a look-up of an absent key would have to ask.
    pub fn depth(&self) -> usize {
        self.l0.len() + self.runs.len()
    }

    /// Whether nothing older than `oldest` can hold a key of the given sources: a job over them
    /// is at the bottom. False if `oldest` is not in the tree.
    pub fn is_bottom(&self, oldest: Uuid, inputs: &[&Stat]) -> bool {
        let mut below = self.sources().skip_while(|source| source.id != oldest);
        below.next().is_some()
            && below.all(|older| !inputs.iter().any(|input| input.overlaps(older)))
    }

    /// Whether a source newer than `newest` can hold an operand for a key of the given sources.
    pub fn has_operands_above(&self, newest: Uuid, inputs: &[&Stat]) -> bool {
        self.sources()
            .take_while(|source| source.id != newest)
            .any(|newer| newer.operands > 0 && inputs.iter().any(|input| input.overlaps(newer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(id: u128, keys: &str, operands: u64) -> Stat {
        let (first, last) = keys.split_once('-').unwrap();
        Stat {
            id: Uuid::from_u128(id),
            bytes: 10,
            ssts: 1,
            entries: 4,
            tombstones: 1,
            operands,
            first_key: Bytes::copy_from_slice(first.as_bytes()),
            last_key: Bytes::copy_from_slice(last.as_bytes()),
            expired_bytes: 0,
            age_ms: 0,
            damaged: false,
        }
    }

    #[test]
    fn bottom_is_where_nothing_older_overlaps() {
        let tree = Tree {
            l0: vec![stat(1, "a-c", 0), stat(2, "k-m", 1)],
            runs: vec![stat(3, "b-l", 0), stat(4, "x-z", 0)],
            now_ms: 0,
        };
        let [newest, second, upper, last] =
            [&tree.l0[0], &tree.l0[1], &tree.runs[0], &tree.runs[1]];
        assert!(!tree.is_bottom(second.id, &[newest, second]));
        assert!(tree.is_bottom(upper.id, &[newest, second, upper]), "the last run is elsewhere");
        assert!(tree.is_bottom(last.id, &[upper, last]));
        assert!(!tree.is_bottom(Uuid::nil(), &[newest]), "an input that has left the tree");
        assert!(tree.has_operands_above(upper.id, &[upper]));
        assert!(!tree.has_operands_above(last.id, &[last]));
        assert_eq!((tree.depth(), tree.bytes(), last.tombstone_percent()), (4, 40, 25));
    }
}
