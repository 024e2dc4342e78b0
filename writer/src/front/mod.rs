//! The front of the writer: the one short critical section in which callers take a seq, append to
//! the open group and insert in the memtable, and the view that readers see.
//!
//! **Invariants**
//! - Batches enter the open group, and the active memtable, in the order of their seqs.
//! - A memtable is frozen only between two groups, so its data end at a position of the chain.
//! - The view's seq is the last proven one: a durable reader never sees an unproven batch.
//! - A view never misses data between its tree and its memtables: a memtable leaves only when a
//!   tree that holds all of it enters, in the same swap.
//! - `dropped_seq` bounds every memtable that has left: a condition read at or above it can be
//!   checked again against the memtables alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use cairn_common::clock::Clock;
use cairn_common::error::Error;
use cairn_common::format::manifest::WalRange;
use cairn_common::format::wal::WalBuilder;
use cairn_common::lsm::memtable::Memtable;
use cairn_common::read::view::{OpenTree, View};
use cairn_common::types::{Batch, Epoch, Op, Seq, WalId};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::condition::Condition;
use crate::config::FrontLimits;

mod state;

use state::{Active, Freeze, OpenGroup, State};

/// What the front does with callers.
#[derive(Debug)]
pub struct Front {
    limits: FrontLimits,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    view: ArcSwap<View>,
    progress: watch::Sender<Progress>,
    /// Woken when the open group begins, is full, or must be sealed for a freeze.
    work: Notify,
    /// Woken when the open group has room again.
    room: Notify,
    /// Woken when a memtable may be ready to flush.
    flushable: Notify,
}

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
    /// Something that must not happen did; the log says what.
    Failed,
}

impl End {
    /// How this error ends a writer.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Fenced { found, .. } => Self::Fenced(*found),
            Error::Closed => Self::Closed,
            _ => Self::Failed,
        }
    }
}

/// A batch that has its place in the order.
#[derive(Debug)]
pub struct Ticket {
    seq: Seq,
    outcome: watch::Receiver<Outcome>,
}

/// Why a batch was not taken. Nothing of it is anywhere.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The open group is full and no PUT slot is free: wait for [`Front::room`].
    Full,
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
    /// SSTs in L0.
    pub l0_count: usize,
    /// Bytes in the open group.
    pub group_bytes: usize,
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

impl Front {
    /// A front over what was replayed; everything in `start` is proven.
    pub fn new(limits: FrontLimits, start: Start, clock: Arc<dyn Clock>) -> Self {
        let flushed = start.tree.manifest.flushed_seq;
        let memtables = vec![Arc::clone(&start.memtable)];
        let view = View::new(memtables, Arc::clone(&start.tree), start.last_seq);
        let progress = Progress { durable: start.last_seq, flushed, end: None };
        let state = State {
            next_seq: start.next_seq,
            group: OpenGroup::new(),
            active: Active {
                memtable: start.memtable,
                from: start.wal.from,
                to: start.wal.to,
                wal_objects: start.wal_objects,
                since: clock.boot(),
            },
            frozen: VecDeque::new(),
            tree: start.tree,
            // Nothing at or below the tree's last seq is in a memtable.
            dropped_seq: flushed,
            freeze: Freeze::WhenDue,
            end: None,
        };
        Self {
            limits,
            clock,
            state: Mutex::new(state),
            view: ArcSwap::from_pointee(view),
            progress: watch::Sender::new(progress),
            work: Notify::new(),
            room: Notify::new(),
            flushable: Notify::new(),
        }
    }

    /// Takes a batch: gives it a seq, appends it to the open group and inserts it in the memtable.
    ///
    /// The operations are on distinct keys and within the limits. A batch that was taken commits
    /// whether or not anybody waits for it.
    /// Leaves `ops` as they are where it refuses.
    ///
    /// # Errors
    /// A [`Refusal`], with nothing of the batch taken.
    pub fn submit(&self, ops: &mut Vec<Op>, known: Option<&Known<'_>>) -> Result<Ticket, Refusal> {
        let mut state = self.lock();
        if let Some(end) = state.end {
            return Err(Refusal::Ended(end));
        }
        if state.group.builder.bytes() >= self.limits.wal_bytes_max {
            return Err(Refusal::Full);
        }
        if let Some(known) = known {
            state.check(known)?;
        }
        let seq = state.next_seq;
        state.next_seq = seq.next();
        let batch = Batch { seq, ops: std::mem::take(ops) };
        let began = state.group.builder.is_empty();
        state.group.builder.push(&batch);
        state.active.memtable.insert(&batch);
        let outcome = state.group.outcome.subscribe();
        let full = state.group.builder.bytes() >= self.limits.wal_bytes_max;
        drop(state);
        if began || full {
            self.work.notify_one();
        }
        Ok(Ticket { seq, outcome })
    }

    /// The view of everything that is proven.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// A view that also has what is only in memory, up to the last batch taken.
    pub fn memory_view(&self) -> View {
        let state = self.lock();
        let seq = state.last_taken(self.progress.borrow().durable);
        state.view(seq)
    }

    /// Bytes of the open group; `None` when it is empty.
    pub fn open_group_bytes(&self) -> Option<usize> {
        let state = self.lock();
        (!state.group.builder.is_empty()).then(|| state.group.builder.bytes())
    }

    /// How far the writer is from its bounds.
    pub fn load(&self) -> Load {
        let state = self.lock();
        let frozen: u64 = state.frozen.iter().map(|frozen| frozen.memtable.bytes()).sum();
        Load {
            unflushed_bytes: state.active.memtable.bytes() + frozen,
            l0_count: state.tree.l0.len(),
            group_bytes: state.group.builder.bytes(),
        }
    }

    /// Closes the open group to be the WAL object `id`, and freezes the memtable behind it where
    /// that is due. `None` when the group is empty.
    pub fn seal(&self, id: WalId) -> Option<Sealed> {
        let mut state = self.lock();
        if state.group.builder.is_empty() {
            return None;
        }
        let group = std::mem::replace(&mut state.group, OpenGroup::new());
        let batches = group.builder.batches();
        let last_seq = Seq(state.next_seq.0 - 1);
        let first_seq = Seq(state.next_seq.0 - u64::from(batches));
        state.active.to = id.next();
        state.active.wal_objects += 1;
        if state.freeze == Freeze::Next || state.active.is_due(&self.limits, self.clock.boot()) {
            self.freeze(&mut state);
        }
        drop(state);
        self.room.notify_waiters();
        Some(Sealed { builder: group.builder, first_seq, last_seq, outcome: group.outcome })
    }

    /// Freezes the active memtable now where that is due and no open group keeps it from ending at
    /// a position of the chain. Returns the boot time at which it will be due by age alone.
    pub fn freeze_if_due(&self) -> Option<Duration> {
        let mut state = self.lock();
        if state.active.memtable.is_empty() {
            state.freeze = Freeze::WhenDue;
            return None;
        }
        let now = self.clock.boot();
        let wanted = state.freeze == Freeze::Next || state.active.is_due(&self.limits, now);
        if wanted {
            // An open group keeps it: the seal that ends the group freezes it.
            if state.group.builder.is_empty() {
                self.freeze(&mut state);
            }
            return None;
        }
        Some(state.active.since + self.limits.memtable_age_max)
    }

    fn freeze(&self, state: &mut State) {
        state.freeze = Freeze::WhenDue;
        let wal = WalRange { from: state.active.from, to: state.active.to };
        let next = Active {
            memtable: Arc::new(Memtable::new()),
            from: wal.to,
            to: wal.to,
            wal_objects: 0,
            since: self.clock.boot(),
        };
        let memtable = std::mem::replace(&mut state.active, next).memtable;
        let time_ms = self.clock.wall_ms();
        // No group is open, or the one that was is sealed into this memtable.
        let last_seq = Seq(state.next_seq.0 - 1);
        state.frozen.push_back(Frozen { memtable, wal, last_seq, time_ms });
        self.publish(state);
        self.flushable.notify_one();
    }

    /// Records that everything up to `last_seq` is proven, and shows it to durable readers.
    pub fn prove(&self, last_seq: Seq) {
        let state = self.lock();
        self.progress.send_modify(|progress| {
            assert!(progress.durable < last_seq, "groups are proven in order");
            progress.durable = last_seq;
        });
        self.publish(&state);
        drop(state);
        self.flushable.notify_one();
    }

    /// The oldest frozen memtable, where everything in it is proven.
    pub fn next_to_flush(&self) -> Option<Frozen> {
        let state = self.lock();
        let durable = self.progress.borrow().durable;
        let oldest = state.frozen.front()?;
        (oldest.last_seq <= durable).then(|| oldest.clone())
    }

    /// Shows a newer tree, and drops the memtables that it holds. An older tree is ignored.
    pub fn install(&self, tree: Arc<OpenTree>) {
        let mut state = self.lock();
        if tree.manifest.id.version <= state.tree.manifest.id.version {
            return;
        }
        let flushed = tree.manifest.flushed_seq;
        state.tree = tree;
        while let Some(oldest) = state.frozen.front() {
            let last_seq = oldest.last_seq;
            if last_seq > flushed {
                break;
            }
            state.dropped_seq = state.dropped_seq.max(last_seq);
            state.frozen.pop_front();
        }
        self.progress.send_modify(|progress| progress.flushed = progress.flushed.max(flushed));
        self.publish(&state);
    }

    /// The tree that views show now.
    pub fn tree(&self) -> Arc<OpenTree> {
        Arc::clone(&self.lock().tree)
    }

    /// Asks for everything taken so far to be flushed; returns the seq that tells when it is.
    pub fn request_flush(&self) -> Seq {
        let mut state = self.lock();
        let durable = self.progress.borrow().durable;
        let target = if state.active.memtable.is_empty() && state.frozen.is_empty() {
            state.tree.manifest.flushed_seq
        } else {
            state.freeze = Freeze::Next;
            state.last_taken(durable)
        };
        drop(state);
        self.work.notify_one();
        target
    }

    /// Ends the front: no batch is taken any more, and the open group was never sent.
    pub fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(end);
        }
        let group = std::mem::replace(&mut state.group, OpenGroup::new());
        group.outcome.send_replace(Outcome::NotApplied);
        self.progress.send_modify(|progress| progress.end = progress.end.or(Some(end)));
        drop(state);
        self.room.notify_waiters();
    }

    /// Refuses new batches from now on; those that were taken still commit.
    pub fn stop_taking(&self) {
        self.lock().end.get_or_insert(End::Closed);
        self.work.notify_one();
    }

    /// How far the writer is, and a way to wait for more.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Resolves when the open group may have changed since the last call.
    pub async fn work(&self) {
        self.work.notified().await;
    }

    /// Resolves when a memtable may be ready to flush.
    pub async fn flushable(&self) {
        self.flushable.notified().await;
    }

    /// Resolves when the open group was sealed after this call: make it before the submit that
    /// may find the group full.
    pub fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    fn publish(&self, state: &State) {
        let durable = self.progress.borrow().durable;
        self.view.store(Arc::new(state.view(durable)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
