//! What the front's critical section guards, and what is decided inside it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::format::wal::WalBuilder;
use cairn_common::lsm::memtable::{Memtable, SeqWindow};
use cairn_common::read::view::{OpenTree, View};
use cairn_common::types::{PayloadRef, Seq, WalId};
use tokio::sync::watch;

use super::{End, Frozen, Known, Load, Outcome, Refusal};
use crate::config::FrontLimits;

#[derive(Debug)]
pub(super) struct State {
    pub(super) next_seq: Seq,
    pub(super) group: OpenGroup,
    pub(super) active: Active,
    /// Oldest first.
    pub(super) frozen: VecDeque<Frozen>,
    pub(super) tree: Arc<OpenTree>,
    pub(super) dropped_seq: Seq,
    pub(super) freeze: Freeze,
    pub(super) end: Option<End>,
}

/// Whether the active memtable is to be frozen at the next boundary, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freeze {
    WhenDue,
    Next,
}

#[derive(Debug)]
pub(super) struct OpenGroup {
    pub(super) builder: WalBuilder,
    pub(super) outcome: watch::Sender<Outcome>,
}

#[derive(Debug)]
pub(super) struct Active {
    pub(super) memtable: Arc<Memtable>,
    pub(super) from: WalId,
    pub(super) to: WalId,
    /// Objects of the chain whose data it holds.
    pub(super) wal_objects: u64,
    pub(super) since: Duration,
}

impl State {
    /// The last seq that a batch has; before the first of this writer, the last proven one.
    pub(super) fn last_taken(&self, durable: Seq) -> Seq {
        let newest = self.frozen.iter().map(|frozen| &frozen.memtable);
        let taken = newest.chain([&self.active.memtable]).filter_map(|m| m.last_seq()).max();
        taken.unwrap_or(durable).max(durable)
    }

    pub(super) fn load(&self) -> Load {
        let frozen: u64 = self.frozen.iter().map(|frozen| frozen.memtable.bytes()).sum();
        Load {
            unflushed_bytes: self.active.memtable.bytes() + frozen,
            frozen_count: self.frozen.len(),
            l0_count: self.tree.l0.len(),
        }
    }

    pub(super) fn view(&self, seq: Seq) -> View {
        let frozen = self.frozen.iter().rev().map(|frozen| &frozen.memtable);
        let memtables = [&self.active.memtable].into_iter().chain(frozen).cloned().collect();
        let tree = Arc::clone(&self.tree);
        let seq = seq.max(tree.manifest.flushed_seq);
        View::new(memtables, tree, seq)
    }

    /// Checks a condition again against what was taken since it was read.
    pub(super) fn check(&self, known: &Known<'_>) -> Result<(), Refusal> {
        let misses = cairn_common::faults::planted("condition_misses_dropped_memtable");
        if self.dropped_seq > known.seq && !misses {
            return Err(Refusal::Reread);
        }
        let window = SeqWindow { above: known.seq, up_to: Seq::MAX };
        let newest_first = [&self.active]
            .into_iter()
            .map(|active| &active.memtable)
            .chain(self.frozen.iter().rev().map(|frozen| &frozen.memtable));
        let mut etag = known.etag;
        let mut decided_at = known.seq;
        for memtable in newest_first {
            let mut newest = None;
            let found = memtable.versions(&known.condition.key, window, |entry, _| {
                let absent = matches!(entry.payload, PayloadRef::Tombstone)
                    || entry.is_expired(known.now_ms);
                newest = Some((entry.seq, absent));
                ControlFlow::Break(())
            });
            if let (Some((seq, absent)), ControlFlow::Break(())) = (newest, found) {
                etag = (!absent).then_some(seq);
                decided_at = seq;
                break;
            }
        }
        if known.condition.holds(etag) { Ok(()) } else { Err(Refusal::Failed { etag, decided_at }) }
    }
}

impl OpenGroup {
    pub(super) fn new() -> Self {
        Self { builder: WalBuilder::new(), outcome: watch::Sender::new(Outcome::Pending) }
    }
}

impl Active {
    pub(super) fn is_due(&self, limits: &FrontLimits, now: Duration) -> bool {
        !self.memtable.is_empty()
            && (self.memtable.bytes() >= limits.memtable_bytes
                || self.wal_objects >= limits.memtable_wal_objects_max
                || now.saturating_sub(self.since) >= limits.memtable_age_max)
    }
}
