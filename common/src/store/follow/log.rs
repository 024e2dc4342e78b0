//! What a follower has applied of the chain: a position, a seq, and memtables.
//!
//! **Invariants**
//! - Objects are applied in the order of the chain; each continues the seq of the one before.
//! - The memtables hold every batch with `from < seq <= last_seq`.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::REMEDY;
use crate::format::Corrupt;
use crate::format::wal::WalObject;
use crate::lsm::memtable::Memtable;
use crate::types::{Seq, WalId};

/// A memtable of this size is frozen: half a writer's, so that flushed ones can go soon, and few,
/// since every read asks each.
pub(super) const MEMTABLE_BYTES: u64 = 32 << 20;

/// What was applied of the chain and is not known to be in the tree.
#[derive(Debug)]
pub(super) struct Log {
    /// The next id on the chain.
    pub(super) position: WalId,
    /// Everything at or below it was applied, or is in the tree.
    pub(super) last_seq: Seq,
    /// The memtables hold everything above it.
    pub(super) from: Seq,
    active: Arc<Memtable>,
    /// Newest first.
    frozen: VecDeque<Arc<Memtable>>,
}

impl Log {
    /// A log that begins at a position, before which everything up to `last_seq` is in the tree.
    pub(super) fn new(position: WalId, last_seq: Seq) -> Self {
        let active = Arc::new(Memtable::new());
        Self { position, last_seq, from: last_seq, active, frozen: VecDeque::new() }
    }

    /// Applies the object at the position and moves past it.
    pub(super) fn apply(&mut self, object: &WalObject) -> Result<(), Corrupt> {
        assert_eq!(object.header.id, self.position, "objects come in the order of the chain");
        let prev_seq = object.header.prev_seq;
        if prev_seq != self.last_seq {
            return Err(Corrupt(format!(
                "it continues seq {prev_seq}, but the chain before it ends at {}: an object of \
                 the log is missing; {REMEDY}",
                self.last_seq
            )));
        }
        if self.active.bytes() >= MEMTABLE_BYTES {
            self.frozen.push_front(std::mem::replace(&mut self.active, Arc::new(Memtable::new())));
        }
        for batch in &object.batches {
            self.active.insert(batch);
        }
        self.last_seq = object.last_seq();
        self.position = object.next();
        Ok(())
    }

    /// Lets go of the memtables whose data a tree holds up to `flushed_seq`.
    pub(super) fn forget(&mut self, flushed_seq: Seq) {
        self.from = self.from.max(flushed_seq);
        self.frozen.retain(|memtable| memtable.last_seq() > Some(flushed_seq));
        if self.active.last_seq().is_some_and(|last| last <= flushed_seq) {
            self.active = Arc::new(Memtable::new());
        }
    }

    /// The memtables that hold anything, newest first.
    pub(super) fn memtables(&self) -> Vec<Arc<Memtable>> {
        let all = std::iter::once(&self.active).chain(&self.frozen);
        all.filter(|memtable| !memtable.is_empty()).map(Arc::clone).collect()
    }
}
