//! What callers and the tasks of the writer exchange with the front.

use std::sync::Arc;

use cairn_common::error::Error;
use cairn_common::format::manifest::WalRange;
use cairn_common::format::wal::WalBuilder;
use cairn_common::lsm::memtable::Memtable;
use cairn_common::read::view::OpenTree;
use cairn_common::types::{Epoch, Seq};
use tokio::sync::watch;

use crate::condition::Condition;
use crate::pressure::Pressure;

/// A memtable that takes no more entries, and the stretch of the chain whose data it holds.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The entries.
    pub memtable: Arc<Memtable>,
    /// The stretch of the chain; its end is what a flush moves `replay_from` to.
    pub wal: WalRange,
    /// The chain's seq at its end: of the last batch, or above it where a fence follows.
    pub last_seq: Seq,
    /// Wall time at the freeze, Unix milliseconds: nothing that is still unflushed was written
    /// before it.
    pub time_ms: u64,
}

/// What becomes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not decided yet.
    Pending,
    /// Its WAL object and all before it are proven.
    Durable,
    /// It was never sent.
    NotApplied,
    /// It was sent and not proven before this writer stopped.
    Unknown,
}

/// How far the writer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything at or below is proven.
    pub durable: Seq,
    /// Everything at or below is in the tree.
    pub flushed: Seq,
    /// Whether the front has ended, and how.
    pub end: Option<End>,
}

/// Why a writer takes no more writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to stop.
    Closed,
    /// Another writer holds this epoch now.
    Fenced(Epoch),
    /// The database is damaged: an object that must be there is gone, or is not what was written.
    Damaged,
    /// Something that must not happen did; the log says what.
    Failed,
}

impl End {
    /// How this error ends a writer.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Fenced { found, .. } => Self::Fenced(*found),
            Error::Closed => Self::Closed,
            Error::Corrupt(_) => Self::Damaged,
            _ => Self::Failed,
        }
    }
}

/// A batch that has its place in the order.
#[derive(Debug)]
pub struct Ticket {
    pub(super) seq: Seq,
    pub(super) outcome: watch::Receiver<Outcome>,
}

/// Why a batch was not taken. Nothing of it is anywhere.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The open group is full and no PUT slot is free: wait for room.
    Full,
    /// The writer is at one of its bounds.
    Overloaded(Pressure),
    /// A memtable that the condition needs has left: read again.
    Reread,
    /// The condition does not hold.
    Failed {
        /// The entry's etag now.
        etag: Option<Seq>,
        /// The seq at which this was decided.
        decided_at: Seq,
    },
    /// The writer has ended.
    Ended(End),
}

/// A condition with what was read outside the critical section.
#[derive(Debug)]
pub struct Known<'a> {
    /// The condition.
    pub condition: &'a Condition,
    /// The key's etag in a view of everything at or below `seq`.
    pub etag: Option<Seq>,
    /// The seq of that view.
    pub seq: Seq,
    /// The wall time at which it was read: what has expired by then is absent.
    pub now_ms: u64,
}

/// A group that is ready to be PUT.
#[derive(Debug)]
pub struct Sealed {
    /// The batches.
    pub builder: WalBuilder,
    /// The seq of the first.
    pub first_seq: Seq,
    /// The seq of the last.
    pub last_seq: Seq,
    /// Told what becomes of the group.
    pub outcome: watch::Sender<Outcome>,
}

/// What a pressure gauge reads: how far the writer is from its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes in memtables that are not in the tree.
    pub unflushed_bytes: u64,
    /// Memtables that wait to be flushed.
    pub frozen_count: usize,
    /// SSTs in L0.
    pub l0_count: usize,
}

/// Where a front begins: what the takeover replayed.
#[derive(Debug)]
pub struct Start {
    /// The tree.
    pub tree: Arc<OpenTree>,
    /// The replayed entries that are not in the tree.
    pub memtable: Arc<Memtable>,
    /// The chain's stretch of these, up to the first own id.
    pub wal: WalRange,
    /// WAL objects replayed into `memtable`.
    pub wal_objects: u64,
    /// The last seq on the chain.
    pub last_seq: Seq,
    /// The first seq of this writer.
    pub next_seq: Seq,
}

impl Ticket {
    /// The batch's seq.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Waits until the group's fate is known.
    ///
    /// Cancel-safe: the batch commits all the same.
    pub async fn outcome(mut self) -> Outcome {
        match self.outcome.wait_for(|outcome| *outcome != Outcome::Pending).await {
            Ok(outcome) => *outcome,
            // The commit task is gone without a word: it may have sent the group.
            Err(_) => Outcome::Unknown,
        }
    }
}
