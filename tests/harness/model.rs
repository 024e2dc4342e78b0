//! What a database must hold, in the plainest words: every batch applied to one ordered map, kept
//! so that the map can be had as of any seq since the last flush.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_common::lsm::visible::Found;
use cairn_common::types::{Batch, MergeOp, Op, Payload, Seq};

/// What keys hold. A value that has expired stays: an operand that was written while it lived still
/// counts on it.
pub type State = BTreeMap<Bytes, Found>;

/// The history of a database, as far as it matters.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// As of `settled`.
    base: State,
    settled: Seq,
    /// What came after, in order.
    batches: Vec<Batch>,
    newest: State,
}

impl Model {
    /// Takes the next batch.
    pub fn apply(&mut self, batch: Batch) {
        assert!(batch.seq > self.last_seq(), "batches come in order");
        apply(&mut self.newest, &batch);
        self.batches.push(batch);
    }

    /// The seq of the last batch.
    pub fn last_seq(&self) -> Seq {
        self.batches.last().map_or(self.settled, |batch| batch.seq)
    }

    /// Everything up to here will never be asked for again.
    pub fn settle(&mut self, seq: Seq) {
        if seq <= self.settled {
            return;
        }
        let count = self.batches.partition_point(|batch| batch.seq <= seq);
        for batch in self.batches.drain(..count) {
            apply(&mut self.base, &batch);
        }
        self.settled = seq;
    }

    /// Batches above `seq` never happened.
    pub fn truncate(&mut self, seq: Seq) {
        assert!(seq >= self.settled, "what is settled cannot be lost");
        self.batches.retain(|batch| batch.seq <= seq);
        self.newest = self.replay(seq);
    }

    /// What the database holds as of `seq`, which must not be below what is settled.
    pub fn at(&self, seq: Seq) -> Cow<'_, State> {
        assert!(seq >= self.settled, "{seq} was settled at {}", self.settled);
        if seq >= self.last_seq() {
            Cow::Borrowed(&self.newest)
        } else {
            Cow::Owned(self.replay(seq))
        }
    }

    fn replay(&self, seq: Seq) -> State {
        let mut state = self.base.clone();
        for batch in self.batches.iter().take_while(|batch| batch.seq <= seq) {
            apply(&mut state, batch);
        }
        state
    }
}

/// The live value of a key.
pub fn live<'a>(state: &'a State, key: &[u8], now_ms: u64) -> Option<&'a Found> {
    state.get(key).filter(|found| is_live(found, now_ms))
}

/// Whether what a key holds has not expired.
pub fn is_live(found: &Found, now_ms: u64) -> bool {
    found.expires_ms.is_none_or(|at| at > now_ms)
}

fn apply(state: &mut State, batch: &Batch) {
    for op in &batch.ops {
        let before = state.remove(&op.key);
        if let Some(after) = after(before, op, batch.seq) {
            state.insert(op.key.clone(), after);
        }
    }
}

/// What a key holds after one operation.
fn after(before: Option<Found>, op: &Op, seq: Seq) -> Option<Found> {
    let (kind, written_ms, operand) = match &op.payload {
        Payload::Value(value) => {
            return Some(Found { value: value.clone(), seq, expires_ms: op.expires_ms });
        }
        Payload::Tombstone => return None,
        Payload::Operand { op, written_ms, operand } => (*op, *written_ms, operand),
    };
    if kind != MergeOp::Append && number(operand).is_none() {
        return before;
    }
    let base = before.filter(|found| is_live(found, written_ms));
    let ends = base.as_ref().and_then(|found| found.expires_ms);
    let value = match (base, kind) {
        (Some(base), MergeOp::Append) => [&*base.value, &**operand].concat().into(),
        (base, _) => match (base.as_ref().and_then(|base| number(&base.value)), number(operand)) {
            (Some(base), Some(operand)) => combined(kind, base, operand).to_string().into(),
            (None, Some(operand)) if kind != MergeOp::Append => operand.to_string().into(),
            _ => operand.clone(),
        },
    };
    Some(Found { value, seq, expires_ms: ends.into_iter().chain(op.expires_ms).min() })
}

fn combined(kind: MergeOp, base: i64, operand: i64) -> i64 {
    match kind {
        MergeOp::Add | MergeOp::Append => base.wrapping_add(operand),
        MergeOp::Max => base.max(operand),
        MergeOp::Min => base.min(operand),
    }
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
