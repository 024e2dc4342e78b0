//! Visibility: what the versions of one key mean together, and which of them must be kept.
//!
//! **The meaning of a history.** A key has a *state*: absent, or a value with an optional expiry.
//! Its entries are applied from the oldest to the newest:
//!
//! - A value sets the state, a tombstone makes it absent.
//! - An operand written at `w` combines with a state that was live then (no expiry, or one after
//!   `w`) and hands on its expiry, or its own where that is earlier; an operand never prolongs a
//!   life. Over any other state it starts afresh: the operand alone, with its own expiry.
//! - At the end a state whose expiry is at or before the reader's "now" is absent.
//!
//! **Numbers.** `add`, `max` and `min` read decimal i64 text (`str::parse::<i64>`). No write reads,
//! so nothing can be refused for its base: as in `RocksDB`'s `UInt64AddOperator`, a base that is no
//! number counts as if it had no value (its expiry still goes on). An operand that is no number has
//! no effect at all, not even on expiry; [`fold_ops`] refuses it at the door. Results are written
//! canonically.
//!
//! **Folding.** Neighbours of one kind fold into one operand only if they were written at the same
//! time: between two write times the base may have expired, and then the newer starts afresh, which
//! no single operand could say. So that a hot counter does not pile up operands, writers stamp them
//! with [`write_time_ms`], whole seconds.
//!
//! **Ghosts.** A value that has expired loses its bytes but not its expiry: it becomes a tombstone
//! that expires. To a reader both are absent; but an operand written before that expiry, in a newer
//! source, still meets what was live when it was written, and dies with it. At the bottom a ghost
//! is dropped once no newer source can hold such an operand ([`Rules::newer_operands_from_ms`]).
//!
//! **Invariants**
//! - Compaction changes no read: for any history, cut into sources, any neighbouring sources of
//!   which are compacted at "now", every read at or after that "now" finds the same value, seq and
//!   expiry.
//! - The result depends on the history alone, not on how it was cut, folded or compacted.
//! - A plain value is resolved without a copy, and without an allocation.

use std::cmp::min;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::types::{Entry, EntryRef, MergeOp, PayloadRef, Seq};

mod batch;

pub use batch::fold_ops;

/// Operands of one such stretch of time fold into one: a hot counter grows by an entry a second.
pub const WRITE_TIME_GRAIN_MS: u64 = 1_000;

/// The write time to stamp an operand with: `now_ms` rounded up to [`WRITE_TIME_GRAIN_MS`].
///
/// Up, so that an operand never meets a base that had expired when it was written; a base that is
/// about to expire within that second counts as expired already.
pub fn write_time_ms(now_ms: u64) -> u64 {
    now_ms.next_multiple_of(WRITE_TIME_GRAIN_MS)
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The key's value.
    pub value: Bytes,
    /// The newest entry that made it so.
    pub seq: Seq,
    /// When it turns absent, in Unix milliseconds.
    pub expires_ms: Option<u64>,
}

/// An operand with what decides how it combines.
#[derive(Clone, Debug)]
struct Operand {
    op: MergeOp,
    written_ms: u64,
    bytes: Bytes,
    expires_ms: Option<u64>,
    seq: Seq,
}

/// The state of a key after some of its entries.
#[derive(Clone, Debug)]
struct State {
    /// `None`: absent; and a ghost, if it expires.
    value: Option<Bytes>,
    expires_ms: Option<u64>,
    /// The newest entry that had an effect.
    seq: Seq,
}

/// Two neighbouring operands, put together.
enum Pair {
    /// One operand does what both did.
    One(Operand),
    /// Whatever lies below them has no say any more.
    Base(State),
    /// They stay apart.
    Two(Operand, Operand),
}

impl State {
    const ABSENT: Self = Self { value: None, expires_ms: None, seq: Seq::ZERO };

    fn apply(self, operand: Operand) -> Self {
        let Operand { op, written_ms, bytes, expires_ms, seq } = operand;
        if !is_operand(op, &bytes) {
            return self;
        }
        let was_live = match (&self.value, self.expires_ms) {
            (_, Some(at)) => at > written_ms,
            (value, None) => value.is_some(),
        };
        if !was_live {
            return Self { value: Some(combine(op, None, bytes)), expires_ms, seq };
        }
        Self {
            value: self.value.map(|base| combine(op, Some(base), bytes)),
            expires_ms: earlier(self.expires_ms, expires_ms),
            seq,
        }
    }

    fn into_found(self, now_ms: u64) -> Option<Found> {
        let Self { value, expires_ms, seq } = self;
        let is_live = expires_ms.is_none_or(|at| at > now_ms);
        value.filter(|_| is_live).map(|value| Found { value, seq, expires_ms })
    }
}

/// Puts `newer` on top of `older`.
fn pair(older: Operand, newer: Operand) -> Pair {
    // Whatever `older` met, its result expires no later than `older` itself.
    if older.expires_ms.is_some_and(|at| at <= newer.written_ms) {
        return Pair::Base(State::ABSENT.apply(newer));
    }
    if older.op != newer.op || older.written_ms != newer.written_ms {
        return Pair::Two(older, newer);
    }
    Pair::One(Operand {
        bytes: combine(newer.op, Some(older.bytes), newer.bytes),
        expires_ms: earlier(older.expires_ms, newer.expires_ms),
        ..newer
    })
}

/// The value that `operand`, which must satisfy [`is_operand`], makes of `base`.
fn combine(op: MergeOp, base: Option<Bytes>, operand: Bytes) -> Bytes {
    let number = |with: fn(i64, i64) -> i64| {
        let operand = number_of(&operand).unwrap_or_default();
        let base = base.as_deref().and_then(number_of);
        Bytes::from(base.map_or(operand, |base| with(base, operand)).to_string())
    };
    match op {
        MergeOp::Add => number(i64::wrapping_add),
        MergeOp::Max => number(i64::max),
        MergeOp::Min => number(i64::min),
        MergeOp::Append => match base {
            Some(base) if !base.is_empty() => [base, operand].concat().into(),
            _ => operand,
        },
    }
}

fn is_operand(op: MergeOp, bytes: &[u8]) -> bool {
    match op {
        MergeOp::Add | MergeOp::Max | MergeOp::Min => number_of(bytes).is_some(),
        MergeOp::Append => true,
    }
}

fn number_of(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(min(a, b)),
        (a, b) => a.or(b),
    }
}

/// Resolves one key after the other from their entries, newest first.
#[derive(Debug)]
pub struct Resolver {
    now_ms: u64,
    /// Newest first; empty for a key without operands.
    operands: Vec<Operand>,
    base: Option<State>,
}

impl Resolver {
    /// A resolver for a reader whose time is `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        Self { now_ms, operands: Vec::new(), base: None }
    }

    /// Takes the next older entry of the key; `bytes` gives its value or operand, without a copy
    /// where that can be had. `Break`: the key is decided, and takes no more entries.
    pub fn push(&mut self, entry: EntryRef<'_>, bytes: impl FnOnce() -> Bytes) -> ControlFlow<()> {
        assert!(self.base.is_none(), "a decided key takes no more entries");
        let EntryRef { seq, expires_ms, .. } = entry;
        let value = match entry.payload {
            PayloadRef::Operand { op, written_ms, .. } => {
                self.operands.push(Operand { op, written_ms, bytes: bytes(), expires_ms, seq });
                return ControlFlow::Continue(());
            }
            PayloadRef::Value(_) => Some(bytes()),
            PayloadRef::Tombstone => None,
        };
        self.base = Some(State { value, expires_ms, seq });
        ControlFlow::Break(())
    }

    /// What the key holds; there are no older entries. The resolver is ready for the next key.
    pub fn finish(&mut self) -> Option<Found> {
        let base = self.base.take().unwrap_or(State::ABSENT);
        let state = self.operands.drain(..).rev().fold(base, State::apply);
        state.into_found(self.now_ms)
    }
}

/// Resolves the entries of one key, newest first.
///
/// Copies the value: for tests and tools. The read path feeds a [`Resolver`].
pub fn resolve<'a>(entries: impl IntoIterator<Item = EntryRef<'a>>, now_ms: u64) -> Option<Found> {
    let mut resolver = Resolver::new(now_ms);
    for entry in entries {
        let bytes = || match entry.payload {
            PayloadRef::Value(bytes) | PayloadRef::Operand { operand: bytes, .. } => {
                Bytes::copy_from_slice(bytes)
            }
            PayloadRef::Tombstone => Bytes::new(),
        };
        if resolver.push(entry, bytes).is_break() {
            break;
        }
    }
    resolver.finish()
}

/// What a compaction may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Nothing that is older than the inputs is left: what is absent needs no entry.
    pub bottom: bool,
    /// "Now": the manifest's `time_ms`, never a clock of one's own.
    pub now_ms: u64,
    /// No operand in a source newer than the inputs was written before this. A ghost that had
    /// expired by then can be met by no operand any more, so at the bottom it goes.
    pub newer_operands_from_ms: u64,
}

impl Rules {
    /// Above the bottom, or at a flush.
    pub fn upper(now_ms: u64) -> Self {
        Self { bottom: false, now_ms, newer_operands_from_ms: 0 }
    }

    /// At the bottom, when no newer source holds an operand written before `now_ms`.
    pub fn bottom(now_ms: u64) -> Self {
        Self { bottom: true, now_ms, newer_operands_from_ms: now_ms }
    }
}

/// Keeps what must be kept of entries that come in merge order (key ascending, newest first).
///
/// A key whose newest entry is a value or a tombstone, which is the rule, passes without a copy.
#[derive(Debug)]
pub struct Compaction {
    rules: Rules,
    key: Vec<u8>,
    stage: Stage,
    /// Operands of the key, newest first, whose base has not come yet.
    operands: Vec<Operand>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No key has begun.
    Fresh,
    /// Older entries of the key still count.
    Open,
    /// What is left of the key is shadowed.
    Decided,
}

impl Compaction {
    /// A compaction under these rules.
    pub fn new(rules: Rules) -> Self {
        Self { rules, key: Vec::new(), stage: Stage::Fresh, operands: Vec::new() }
    }

    /// Takes the next entry and hands to `emit`, in merge order, what is decided by then.
    ///
    /// # Errors
    /// The first error of `emit`; the compaction is of no use after it.
    pub fn push<E>(
        &mut self,
        entry: EntryRef<'_>,
        emit: &mut impl FnMut(EntryRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.stage == Stage::Fresh || self.key != entry.key {
            self.close_key(emit)?;
            self.key.clear();
            self.key.extend_from_slice(entry.key);
            self.stage = Stage::Open;
        }
        if self.stage == Stage::Decided {
            return Ok(());
        }
        let EntryRef { seq, expires_ms, .. } = entry;
        let value = match entry.payload {
            PayloadRef::Operand { op, written_ms, operand } => {
                if is_operand(op, operand) {
                    let bytes = Bytes::copy_from_slice(operand);
                    self.operands.push(Operand { op, written_ms, bytes, expires_ms, seq });
                }
                return Ok(());
            }
            PayloadRef::Value(value) => Some(value),
            PayloadRef::Tombstone => None,
        };
        self.stage = Stage::Decided;
        if self.operands.is_empty() {
            return match kept(entry, self.rules) {
                Some(entry) => emit(entry),
                None => Ok(()),
            };
        }
        let value = value.map(Bytes::copy_from_slice);
        self.resolve_over(State { value, expires_ms, seq }, emit)
    }

    /// Ends the last key.
    ///
    /// # Errors
    /// The first error of `emit`.
    pub fn finish<E>(
        mut self,
        emit: &mut impl FnMut(EntryRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.close_key(emit)
    }

    /// No older entry of the key is among the inputs.
    fn close_key<E>(
        &mut self,
        emit: &mut impl FnMut(EntryRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.operands.is_empty() {
            return Ok(());
        }
        if self.rules.bottom {
            return self.resolve_over(State::ABSENT, emit);
        }
        let mut operands = std::mem::take(&mut self.operands);
        match fold(operands.drain(..).rev()) {
            (Some(base), _) => self.emit_state(base, emit)?,
            (None, folded) => {
                for operand in folded.into_iter().rev() {
                    let Operand { op, written_ms, bytes, expires_ms, seq } = operand;
                    let payload = PayloadRef::Operand { op, written_ms, operand: &bytes };
                    emit(EntryRef { key: &self.key, seq, payload, expires_ms })?;
                }
            }
        }
        self.operands = operands;
        Ok(())
    }

    fn resolve_over<E>(
        &mut self,
        base: State,
        emit: &mut impl FnMut(EntryRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let state = self.operands.drain(..).rev().fold(base, State::apply);
        self.emit_state(state, emit)
    }

    fn emit_state<E>(
        &self,
        state: State,
        emit: &mut impl FnMut(EntryRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let State { value, expires_ms, seq } = state;
        let payload = value.as_deref().map_or(PayloadRef::Tombstone, PayloadRef::Value);
        match kept(EntryRef { key: &self.key, seq, payload, expires_ms }, self.rules) {
            Some(entry) => emit(entry),
            None => Ok(()),
        }
    }
}

/// What is kept of a value or tombstone that is the newest of its key.
fn kept(entry: EntryRef<'_>, rules: Rules) -> Option<EntryRef<'_>> {
    let is_tombstone = entry.payload == PayloadRef::Tombstone;
    if !is_tombstone && !entry.is_expired(rules.now_ms) {
        return Some(entry);
    }
    let needed_by_operands = entry.expires_ms.is_some_and(|at| at > rules.newer_operands_from_ms);
    let needed = !rules.bottom || needed_by_operands;
    needed.then_some(EntryRef { payload: PayloadRef::Tombstone, ..entry })
}

/// Folds operands, oldest first: the state they make whatever lies below, or what is left of them.
fn fold(operands: impl Iterator<Item = Operand>) -> (Option<State>, Vec<Operand>) {
    let mut base: Option<State> = None;
    let mut folded: Vec<Operand> = Vec::new();
    for newer in operands {
        if let Some(state) = base.take() {
            base = Some(state.apply(newer));
            continue;
        }
        let Some(older) = folded.pop() else {
            folded.push(newer);
            continue;
        };
        match pair(older, newer) {
            Pair::One(operand) => folded.push(operand),
            Pair::Base(state) => base = Some(state),
            Pair::Two(older, newer) => folded.extend([older, newer]),
        }
    }
    (base, folded)
}

/// What is kept of the entries of one key, newest first: for tests and tools.
pub fn compact(entries: &[Entry], rules: Rules) -> Vec<Entry> {
    let mut kept = Vec::new();
    let mut emit = |entry: EntryRef<'_>| {
        kept.push(entry.to_entry());
        Ok::<_, std::convert::Infallible>(())
    };
    let mut compaction = Compaction::new(rules);
    let done = entries.iter().try_for_each(|entry| compaction.push(entry.as_ref(), &mut emit));
    match done.and_then(|()| compaction.finish(&mut emit)) {
        Ok(()) => kept,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests;
