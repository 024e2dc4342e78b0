//! The front of the writer: the one short critical section in which callers take a seq, append to
//! the open group and insert in the memtable, and the view that readers see.
//!
//! **Invariants**
//! - Batches enter the open group, and the active memtable, in the order of their seqs.
//! - A memtable is frozen only between two groups, so its data end at a position of the chain.
//! - The view's seq is the last proven one: a durable reader never sees an unproven batch. It is
//!   shown before anybody is told that the batch is proven.
//! - No batch is taken while unflushed memtables or L0 are at their bound: that is judged inside.
//! - A view never misses data between its tree and its memtables: a memtable leaves only when a
//!   tree that holds all of it enters, in the same swap.
//! - `dropped_seq` bounds every memtable that has left: a condition read at or above it can be
//!   checked again against the memtables alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use cairn_common::clock::Clock;
use cairn_common::format::manifest::WalRange;
use cairn_common::lsm::memtable::Memtable;
use cairn_common::read::view::{OpenTree, View};
use cairn_common::types::{Batch, Op, Seq, WalId};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::config::FrontLimits;
use crate::pressure::pressure;

mod exchange;
mod state;

pub use exchange::{End, Frozen, Known, Load, Outcome, Progress, Refusal, Sealed, Start, Ticket};
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
    /// Woken when a batch was taken.
    taken: Notify,
    /// Woken when a memtable may be ready to flush.
    flushable: Notify,
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
            taken: Notify::new(),
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
        let pressure = pressure(&state.load(), &self.limits);
        if pressure.is_refusal() {
            return Err(Refusal::Overloaded(pressure));
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
        self.taken.notify_waiters();
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
        self.lock().load()
    }

    /// The seq of the last batch taken, or above it where a fence follows.
    pub fn newest_seq(&self) -> Seq {
        let state = self.lock();
        state.last_taken(self.progress.borrow().durable)
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
        self.publish(state, self.progress.borrow().durable);
        self.flushable.notify_one();
    }

    /// Records that everything up to `last_seq` is proven, and shows it to durable readers.
    pub fn prove(&self, last_seq: Seq) {
        let state = self.lock();
        assert!(self.progress.borrow().durable < last_seq, "groups are proven in order");
        // INVARIANT: whoever is told of progress finds a view that has it.
        self.publish(&state, last_seq);
        self.progress.send_modify(|progress| progress.durable = last_seq);
        drop(state);
        self.flushable.notify_one();
    }

    /// The oldest frozen memtable with data behind `begun`, if everything in it is proven.
    pub fn next_to_flush(&self, begun: Seq) -> Option<Frozen> {
        let state = self.lock();
        let durable = self.progress.borrow().durable;
        let oldest = state.frozen.iter().find(|frozen| frozen.last_seq > begun)?;
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
        self.publish(&state, self.progress.borrow().durable);
        self.progress.send_modify(|progress| progress.flushed = progress.flushed.max(flushed));
    }

    /// SSTs in L0 at which writes are refused.
    pub fn l0_stop(&self) -> u64 {
        u64::try_from(self.limits.l0_stop_count).unwrap_or(u64::MAX)
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
        self.taken.notify_waiters();
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

    /// Resolves when a batch was taken after this call, or the front has ended.
    pub fn taken(&self) -> Notified<'_> {
        self.taken.notified()
    }

    fn publish(&self, state: &State, durable: Seq) {
        self.view.store(Arc::new(state.view(durable)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
