//! The words of the field as types: keys, sequence numbers, epochs, entries, batches, ranges.
//!
//! **Invariants**
//! - Within one database a `(key, seq)` pair names at most one entry, for ever.
//! - Entries are ordered by key ascending, then by seq descending: the newest version first.
//! - An entry whose `expires_ms` is at or before "now" *is* a tombstone.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A sequence number: the place of a batch in the one total order of a database.
///
/// 0 is "before every batch". Always below 2^53, so JSON numbers hold it exactly.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before every batch.
    pub const ZERO: Self = Self(0);
    /// Above every batch: "no upper bound".
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The seq right after this one.
    #[must_use]
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The seq `count` further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        let seq = self.0 + count;
        assert!(seq <= Self::MAX.0, "sequence numbers are used up");
        Self(seq)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a WAL object. The chain starts at 1; dense but for the jumps of fences.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WalId(pub u64);

impl WalId {
    /// The first position of every chain.
    pub const FIRST: Self = Self(1);
    /// The last id that an object may have: a count that no writer reaches, so far below the end
    /// of the numbers that no sum of an id and a jump overflows.
    pub const MAX: Self = Self(1 << 62);

    /// The id right after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The id `count` further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl fmt::Display for WalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a claim of a role. 0 is "never claimed"; the first claim makes 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch that the next claim makes.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A role that makes SSTs and is fenced by an epoch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Owns the WAL and makes L0.
    Writer,
    /// Makes sorted runs.
    Compactor,
}

impl Role {
    /// The letter that stands for the role in object names.
    pub fn letter(self) -> char {
        match self {
            Self::Writer => 'w',
            Self::Compactor => 'c',
        }
    }
}

/// What a database is called by its objects: drawn once, at its creation.
pub type DatabaseId = Uuid;

/// How an operand changes its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeOp {
    /// Decimal i64 text, wrapping addition; an absent base counts as the operand alone.
    Add,
    /// Decimal i64 text, the larger of the two.
    Max,
    /// Decimal i64 text, the smaller of the two.
    Min,
    /// Bytes, put behind the base.
    Append,
}

/// What an entry does to its key, borrowed from a block or a memtable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadRef<'a> {
    /// The key has this value.
    Value(&'a [u8]),
    /// The key is absent.
    Tombstone,
    /// The key's older state is combined with this operand when it is read.
    Operand {
        /// How to combine.
        op: MergeOp,
        /// Wall time of the write in Unix milliseconds: decides whether the base was live.
        written_ms: u64,
        /// The argument.
        operand: &'a [u8],
    },
}

/// What an entry does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The key has this value.
    Value(Bytes),
    /// The key is absent.
    Tombstone,
    /// The key's older state is combined with this operand when it is read.
    Operand {
        /// How to combine.
        op: MergeOp,
        /// Wall time of the write in Unix milliseconds.
        written_ms: u64,
        /// The argument.
        operand: Bytes,
    },
}

impl Payload {
    /// The same, borrowed.
    pub fn as_ref(&self) -> PayloadRef<'_> {
        match self {
            Self::Value(value) => PayloadRef::Value(value),
            Self::Tombstone => PayloadRef::Tombstone,
            Self::Operand { op, written_ms, operand } => {
                PayloadRef::Operand { op: *op, written_ms: *written_ms, operand }
            }
        }
    }

    /// Bytes of the value or operand.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Value(bytes) | Self::Operand { operand: bytes, .. } => bytes.len(),
            Self::Tombstone => 0,
        }
    }
}

impl PayloadRef<'_> {
    /// A copy that owns its bytes.
    pub fn to_payload(self) -> Payload {
        match self {
            Self::Value(value) => Payload::Value(Bytes::copy_from_slice(value)),
            Self::Tombstone => Payload::Tombstone,
            Self::Operand { op, written_ms, operand } => {
                Payload::Operand { op, written_ms, operand: Bytes::copy_from_slice(operand) }
            }
        }
    }
}

/// One operation of a batch: what is done to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// 1 B to 16 KiB.
    pub key: Bytes,
    /// What is done to it.
    pub payload: Payload,
    /// When the entry turns into a tombstone, in Unix milliseconds.
    pub expires_ms: Option<u64>,
}

/// What is committed whole or not at all: operations on distinct keys under one seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its place in the total order.
    pub seq: Seq,
    /// Distinct keys, in the order in which they were given.
    pub ops: Vec<Op>,
}

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The batch that wrote it.
    pub seq: Seq,
    /// What it does.
    pub payload: Payload,
    /// When it turns into a tombstone, in Unix milliseconds.
    pub expires_ms: Option<u64>,
}

/// One version of one key, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The batch that wrote it.
    pub seq: Seq,
    /// What it does.
    pub payload: PayloadRef<'a>,
    /// When it turns into a tombstone, in Unix milliseconds.
    pub expires_ms: Option<u64>,
}

impl Entry {
    /// The same, borrowed.
    pub fn as_ref(&self) -> EntryRef<'_> {
        EntryRef {
            key: &self.key,
            seq: self.seq,
            payload: self.payload.as_ref(),
            expires_ms: self.expires_ms,
        }
    }
}

impl EntryRef<'_> {
    /// A copy that owns its bytes.
    pub fn to_entry(self) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(self.key),
            seq: self.seq,
            payload: self.payload.to_payload(),
            expires_ms: self.expires_ms,
        }
    }

    /// Whether the entry counts as a tombstone at `now_ms`.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= now_ms)
    }
}

/// The way a scan goes through keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending, bytewise.
    Forward,
    /// Descending.
    Reverse,
}

impl Direction {
    /// Which of these places, of which there is at least one, comes first on this way.
    pub fn first_of(self, places: &Range<usize>) -> usize {
        match self {
            Self::Forward => places.start,
            Self::Reverse => places.end - 1,
        }
    }

    /// Leaves out the first `count` places on this way.
    pub fn drop_first(self, places: &mut Range<usize>, count: usize) {
        match self {
            Self::Forward => places.start += count,
            Self::Reverse => places.end -= count,
        }
    }
}

/// Keys from `start` (inclusive) to `end` (exclusive; `None` is unbounded), bytewise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key that may be in the range; empty is "from the first".
    pub start: Bytes,
    /// The first key past the range.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { start: Bytes::copy_from_slice(prefix), end: successor_of_prefix(prefix) }
    }

    /// Whether the key lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &*self.start && self.end.as_ref().is_none_or(|end| key < &**end)
    }

    /// Whether no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether any key from `first` to `last`, both inclusive, can lie in the range.
    pub fn overlaps(&self, first: &[u8], last: &[u8]) -> bool {
        last >= &*self.start && self.end.as_ref().is_none_or(|end| first < &**end)
    }
}

/// The smallest key above every key that starts with `prefix`; `None` when there is none.
fn successor_of_prefix(prefix: &[u8]) -> Option<Bytes> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix.get(..=kept)?.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_range_ends_at_the_next_prefix() {
        let range = KeyRange::prefix(b"a\xff");
        assert_eq!(range.end.as_deref(), Some(&b"b"[..]));
        assert!(range.contains(b"a\xff\xff") && !range.contains(b"b") && !range.contains(b"a"));
        assert_eq!(KeyRange::prefix(b"\xff\xff").end, None);
        assert_eq!(KeyRange::prefix(b"").end, None);
    }

    #[test]
    fn overlap_counts_both_bounds() {
        let range = KeyRange { start: "b".into(), end: Some("d".into()) };
        assert!(range.overlaps(b"a", b"b"));
        assert!(range.overlaps(b"c", b"z"));
        assert!(!range.overlaps(b"d", b"z"));
        assert!(!range.overlaps(b"a", b"az"));
    }
}
