//! The memtable: what has been written and is not in an SST yet, ordered, in memory.
//!
//! A lock-free skip list from (key, seq descending) to what that batch did to the key. One thread
//! inserts, any number read meanwhile. Look-ups go by borrowed key and allocate nothing.
//!
//! **Invariants**
//! - Batches come in the order of their seqs, each once.
//! - Nothing is ever changed or removed: a memtable grows, is frozen by whoever stops inserting,
//!   and goes away whole. So what a [`SeqWindow`] shows is the same for ever once its `up_to` is
//!   in.
//! - Several versions of a key live side by side; which one counts is for `visible` to say.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry as Slot;

use super::merge::{Cursor, Head};
use super::visible::{Compaction, Rules};
use crate::types::{Batch, Direction, Entry, EntryRef, KeyRange, Payload, Seq};

/// What an entry costs beyond its bytes: the node and its tower, the place, the handles of `Bytes`.
pub const ENTRY_OVERHEAD_BYTES: u64 = 160;
/// Entries that a cursor fetches at first: most scans read a page or less.
const FETCH_MIN: usize = 8;
/// Entries that a cursor fetches at most: what it holds beyond need.
const FETCH_MAX: usize = 128;

/// The seqs that a view shows of its memtables: `above < seq <= up_to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqWindow {
    /// Everything at or below is in the tree.
    pub above: Seq,
    /// The highest visible seq.
    pub up_to: Seq,
}

impl SeqWindow {
    /// Every seq.
    pub const ALL: Self = Self { above: Seq::ZERO, up_to: Seq::MAX };

    /// Whether the seq is shown.
    pub fn contains(self, seq: Seq) -> bool {
        self.above < seq && seq <= self.up_to
    }
}

/// Entries in order, in memory.
#[derive(Debug, Default)]
pub struct Memtable {
    map: SkipMap<Place, Version>,
    bytes: AtomicU64,
    entries: AtomicU64,
    /// 0 while there is none; seqs of batches begin at 1.
    first_seq: AtomicU64,
    last_seq: AtomicU64,
}

impl Memtable {
    /// An empty memtable.
    pub fn new() -> Self {
        Self::default()
    }

    /// Inserts a batch; its seq must be above every seq in here, and its keys distinct.
    pub fn insert(&self, batch: &Batch) {
        let last = self.last_seq.load(Relaxed);
        assert!(batch.seq.0 > last, "batch {} comes after batch {last}", batch.seq);
        let mut bytes = 0;
        for op in &batch.ops {
            let place = Place { key: op.key.clone(), seq: batch.seq };
            bytes += byte_count(op.key.len() + op.payload.bytes()) + ENTRY_OVERHEAD_BYTES;
            self.map
                .insert(place, Version { payload: op.payload.clone(), expires_ms: op.expires_ms });
        }
        self.bytes.fetch_add(bytes, Relaxed);
        self.entries.fetch_add(byte_count(batch.ops.len()), Relaxed);
        if last == 0 {
            self.first_seq.store(batch.seq.0, Relaxed);
        }
        self.last_seq.store(batch.seq.0, Release);
    }

    /// Memory in use, roughly: keys, values and the overhead of each entry.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Entries of all versions.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// The seq of the first batch.
    pub fn first_seq(&self) -> Option<Seq> {
        let _ordered_after_the_batch = self.last_seq()?;
        Some(Seq(self.first_seq.load(Relaxed)))
    }

    /// The seq of the last batch that is in as a whole.
    pub fn last_seq(&self) -> Option<Seq> {
        match self.last_seq.load(Acquire) {
            0 => None,
            seq => Some(Seq(seq)),
        }
    }

    /// Whether no batch is in.
    pub fn is_empty(&self) -> bool {
        self.last_seq().is_none()
    }

    /// Shows the versions of a key in the window, newest first, until `visit` breaks.
    ///
    /// Returns `Break` if it did. Allocates nothing.
    pub fn versions(
        &self,
        key: &[u8],
        window: SeqWindow,
        mut visit: impl FnMut(EntryRef<'_>, &Payload) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let newest = BorrowedPlace { key, seq: window.up_to };
        let mut slot = self.map.lower_bound(Bound::Included(&newest as &dyn Placed));
        while let Some(at) = slot {
            let place = at.key();
            if place.key != key || place.seq <= window.above {
                break;
            }
            visit(entry_of(&at), &at.value().payload)?;
            slot = at.next();
        }
        ControlFlow::Continue(())
    }

    /// A cursor over the entries of a range in a window, which never waits for input.
    ///
    /// It owns what it needs, and sees batches inserted meanwhile only if the window shows them.
    pub fn cursor(
        self: &Arc<Self>,
        range: &KeyRange,
        direction: Direction,
        window: SeqWindow,
    ) -> MemtableCursor {
        let mut cursor = MemtableCursor {
            table: Arc::clone(self),
            range: range.clone(),
            direction,
            window,
            fetched: Vec::new(),
            position: 0,
            fetch_count: FETCH_MIN,
        };
        if !range.is_empty() {
            cursor.fetch();
        }
        cursor
    }

    /// Hands to `emit`, in order, what an SST of this memtable must hold: per key the newest value
    /// or tombstone and the operands above it, folded. Nothing is dropped for being at the bottom.
    ///
    /// # Errors
    /// The first error of `emit`, which ends it.
    pub fn flush_entries<E>(
        &self,
        now_ms: u64,
        mut emit: impl FnMut(EntryRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut compaction = Compaction::new(Rules::upper(now_ms));
        for slot in &self.map {
            compaction.push(entry_of(&slot), &mut emit)?;
        }
        compaction.finish(&mut emit)
    }

    /// The first slot after `last` on the way through the range, or the first of the range.
    fn slot_after(
        &self,
        last: Option<&Place>,
        range: &KeyRange,
        direction: Direction,
    ) -> Option<Slot<'_, Place, Version>> {
        match (direction, last, &range.end) {
            (Direction::Forward, Some(last), _) => self.map.lower_bound(Bound::Excluded(last)),
            (Direction::Forward, None, _) => {
                let start = BorrowedPlace { key: &range.start, seq: Seq::MAX };
                self.map.lower_bound(Bound::Included(&start as &dyn Placed))
            }
            (Direction::Reverse, Some(last), _) => self.map.upper_bound(Bound::Excluded(last)),
            (Direction::Reverse, None, Some(end)) => {
                let end = BorrowedPlace { key: end, seq: Seq::MAX };
                self.map.upper_bound(Bound::Excluded(&end as &dyn Placed))
            }
            (Direction::Reverse, None, None) => self.map.back(),
        }
    }
}

fn byte_count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn entry_of<'a>(slot: &'a Slot<'_, Place, Version>) -> EntryRef<'a> {
    let (place, version) = (slot.key(), slot.value());
    EntryRef {
        key: &place.key,
        seq: place.seq,
        payload: version.payload.as_ref(),
        expires_ms: version.expires_ms,
    }
}

/// What a batch did to a key.
#[derive(Debug)]
struct Version {
    payload: Payload,
    expires_ms: Option<u64>,
}

/// Where an entry stands: by key, then by seq descending.
#[derive(Clone, Debug)]
struct Place {
    key: Bytes,
    seq: Seq,
}

/// A place to look for, without owning its key.
struct BorrowedPlace<'a> {
    key: &'a [u8],
    seq: Seq,
}

/// What both kinds of places have; as a trait object it is what the map is asked with, because
/// [`Borrow`] can lend a trait object where it cannot lend a struct that holds a reference.
trait Placed {
    fn parts(&self) -> (&[u8], Seq);
}

impl Placed for Place {
    fn parts(&self) -> (&[u8], Seq) {
        (&self.key, self.seq)
    }
}

impl Placed for BorrowedPlace<'_> {
    fn parts(&self) -> (&[u8], Seq) {
        (self.key, self.seq)
    }
}

impl Ord for dyn Placed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((key, seq), (other_key, other_seq)) = (self.parts(), other.parts());
        key.cmp(other_key).then_with(|| other_seq.cmp(&seq))
    }
}

impl PartialOrd for dyn Placed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Placed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for dyn Placed + '_ {}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        (self as &dyn Placed).cmp(other)
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

impl<'a> Borrow<dyn Placed + 'a> for Place {
    fn borrow(&self) -> &(dyn Placed + 'a) {
        self
    }
}

/// Goes through a range of a memtable, a few entries at a time.
#[derive(Debug)]
pub struct MemtableCursor {
    table: Arc<Memtable>,
    range: KeyRange,
    direction: Direction,
    window: SeqWindow,
    /// Handles of the entries at hand; keys and values are shared, not copied.
    fetched: Vec<Entry>,
    position: usize,
    fetch_count: usize,
}

impl MemtableCursor {
    /// The entry that the cursor stands on, owned: handles alone are copied.
    pub fn entry(&self) -> Option<&Entry> {
        self.fetched.get(self.position)
    }

    /// Replaces what is at hand by what comes after it; nothing, at the end.
    fn fetch(&mut self) {
        let last = self.fetched.last().map(|last| Place { key: last.key.clone(), seq: last.seq });
        self.fetched.clear();
        self.position = 0;
        let mut slot = self.table.slot_after(last.as_ref(), &self.range, self.direction);
        while let Some(at) = slot {
            let entry = entry_of(&at);
            if !self.range.contains(entry.key) {
                break;
            }
            if self.window.contains(entry.seq) {
                self.fetched.push(Entry {
                    key: at.key().key.clone(),
                    seq: entry.seq,
                    payload: at.value().payload.clone(),
                    expires_ms: entry.expires_ms,
                });
            }
            if self.fetched.len() == self.fetch_count {
                break;
            }
            slot = match self.direction {
                Direction::Forward => at.next(),
                Direction::Reverse => at.prev(),
            };
        }
        self.fetch_count = (self.fetch_count * 2).min(FETCH_MAX);
    }
}

impl Cursor for MemtableCursor {
    fn head(&self) -> Head<'_> {
        self.entry().map_or(Head::End, |entry| Head::Entry(entry.as_ref()))
    }

    fn place(&self) -> Option<(&[u8], Seq)> {
        self.entry().map(|entry| (&*entry.key, entry.seq))
    }

    fn advance(&mut self) {
        self.position += 1;
        if self.position == self.fetched.len() {
            self.fetch();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::Op;

    type Model = BTreeMap<(Vec<u8>, std::cmp::Reverse<u64>), u8>;

    /// Batches of distinct keys; the n-th has seq 2n, so that windows can end between two.
    fn batches() -> impl Strategy<Value = Vec<BTreeMap<Vec<u8>, u8>>> {
        let key = prop::collection::vec(0..4_u8, 1..4);
        prop::collection::vec(prop::collection::btree_map(key, any::<u8>(), 0..5), 0..40)
    }

    fn build(batches: &[BTreeMap<Vec<u8>, u8>]) -> (Arc<Memtable>, Model) {
        let (table, mut model) = (Memtable::new(), Model::new());
        for (seq, batch) in (1..).map(|n| n * 2).zip(batches) {
            let ops = batch.iter().map(|(key, value)| Op {
                key: Bytes::copy_from_slice(key),
                payload: Payload::Value(Bytes::copy_from_slice(&[*value])),
                expires_ms: None,
            });
            table.insert(&Batch { seq: Seq(seq), ops: ops.collect() });
            for (key, value) in batch {
                model.insert((key.clone(), std::cmp::Reverse(seq)), *value);
            }
        }
        (Arc::new(table), model)
    }

    fn flat(entry: EntryRef<'_>) -> (Vec<u8>, u64, u8) {
        let Entry { key, seq, payload: Payload::Value(value), .. } = entry.to_entry() else {
            panic!("only values were inserted");
        };
        (key.to_vec(), seq.0, value[0])
    }

    proptest! {
        #[test]
        fn memtable_equals_a_btree_map(
            batches in batches(),
            (above, length) in (0..80_u64, 0..80_u64),
            (start, end) in (prop::collection::vec(0..4_u8, 0..3),
                             prop::option::of(prop::collection::vec(0..4_u8, 0..3))),
            key in prop::collection::vec(0..4_u8, 1..4),
        ) {
            let (table, model) = build(&batches);
            let window = SeqWindow { above: Seq(above), up_to: Seq(above + length) };
            let range = KeyRange { start: start.into(), end: end.map(Into::into) };
            let mut expected: Vec<_> = model
                .iter()
                .map(|((key, seq), value)| (key.clone(), seq.0, *value))
                .filter(|(key, seq, _)| range.contains(key) && window.contains(Seq(*seq)))
                .collect();

            let mut found = Vec::new();
            let flow = table.versions(&key, window, |entry, payload| {
                assert_eq!(entry.payload, payload.as_ref());
                found.push(flat(entry));
                ControlFlow::Continue(())
            });
            prop_assert_eq!(flow, ControlFlow::Continue(()));
            let of_key: Vec<_> = model
                .iter()
                .map(|((key, seq), value)| (key.clone(), seq.0, *value))
                .filter(|(at, seq, _)| *at == key && window.contains(Seq(*seq)))
                .collect();
            prop_assert_eq!(found, of_key);

            for direction in [Direction::Forward, Direction::Reverse] {
                let mut cursor = table.cursor(&range, direction, window);
                let mut seen = Vec::new();
                while let Head::Entry(entry) = cursor.head() {
                    seen.push(flat(entry));
                    cursor.advance();
                }
                prop_assert_eq!(&seen, &expected);
                expected.reverse();
            }
        }

        #[test]
        fn flush_keeps_the_newest_of_each_key(batches in batches()) {
            let (table, model) = build(&batches);
            let mut newest: BTreeMap<Vec<u8>, (u64, u8)> = BTreeMap::new();
            for ((key, seq), value) in &model {
                newest.entry(key.clone()).or_insert((seq.0, *value));
            }
            let expected: Vec<_> = newest.into_iter().map(|(k, (seq, v))| (k, seq, v)).collect();
            let mut flushed = Vec::new();
            let done = table.flush_entries(0, |entry| {
                flushed.push(flat(entry));
                Ok::<_, ()>(())
            });
            prop_assert_eq!(done, Ok(()));
            prop_assert_eq!(flushed, expected);
        }
    }

    #[test]
    fn counts_and_seqs_follow_the_batches() {
        let table = Memtable::new();
        assert!(table.is_empty() && table.first_seq().is_none() && table.last_seq().is_none());
        let op =
            Op { key: "key".into(), payload: Payload::Value("12345".into()), expires_ms: None };
        table.insert(&Batch { seq: Seq(7), ops: vec![op.clone()] });
        table.insert(&Batch { seq: Seq(9), ops: vec![op] });
        assert_eq!((table.first_seq(), table.last_seq()), (Some(Seq(7)), Some(Seq(9))));
        assert_eq!((table.entries(), table.bytes()), (2, 2 * (8 + ENTRY_OVERHEAD_BYTES)));
    }

    #[test]
    #[should_panic(expected = "batch 3 comes after batch 3")]
    fn insert_refuses_a_batch_out_of_order() {
        let table = Memtable::new();
        table.insert(&Batch { seq: Seq(3), ops: Vec::new() });
        table.insert(&Batch { seq: Seq(3), ops: Vec::new() });
    }

    #[test]
    fn visit_stops_where_it_breaks() {
        let (table, _) = build(&vec![BTreeMap::from([(b"k".to_vec(), 1)]); 5]);
        let mut seen = Vec::new();
        let flow = table.versions(b"k", SeqWindow::ALL, |entry, _| {
            seen.push(entry.seq.0);
            if seen.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((flow, seen), (ControlFlow::Break(()), vec![10, 8]));
    }
}
