//! What reads are answered from: memtables and a tree, taken together, immutable.
//!
//! **Invariants**
//! - A view shows exactly the batches up to its `seq`: from the tree those at or below the
//!   manifest's flushed seq, from the memtables those above it and up to `seq`. So no entry is seen
//!   twice, whatever stretch of the log a memtable happens to hold.
//! - Sources are ordered newest first: memtables, L0, runs. Every entry of a source is newer than
//!   every entry of the same key in the sources behind it.
//! - Views share handles: metadata that was at hand stays at hand, also of an SST that a compaction
//!   only moved.
//! - A tree is shown from its manifest: opening it asks nothing of the store. A run or an SST that
//!   is missing or damaged fails the keys within its bounds and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt;
use futures::stream::{self, StreamExt};

use crate::error::Result;
use crate::faults::planted;
use crate::format::manifest::Manifest;
use crate::lsm::memtable::{Memtable, SeqWindow};
use crate::store::sst::{Replaced, RunHandle, SstHandle, SstStore};
use crate::types::Seq;

/// Run objects that are read at a time.
const RUNS_TOGETHER: usize = 8;

/// Everything that a read at one seq needs.
#[derive(Clone, Debug)]
pub struct View {
    /// Newest first; a frozen one may overlap the tree, see [`View::window`].
    pub memtables: Vec<Arc<Memtable>>,
    /// What has been flushed.
    pub tree: Arc<OpenTree>,
    /// The highest visible seq.
    pub seq: Seq,
}

impl View {
    /// A view at `seq`, which must be at or above what the tree holds.
    pub fn new(memtables: Vec<Arc<Memtable>>, tree: Arc<OpenTree>, seq: Seq) -> Self {
        let flushed = tree.manifest.flushed_seq;
        assert!(seq >= flushed, "a view at {seq} of a tree that holds everything up to {flushed}");
        Self { memtables, tree, seq }
    }

    /// The seqs that the view shows of its memtables.
    pub fn window(&self) -> SeqWindow {
        let flushed = self.tree.manifest.flushed_seq;
        let above = if planted("view_shows_flushed_entries_twice") { Seq::ZERO } else { flushed };
        SeqWindow { above, up_to: self.seq }
    }
}

/// The tree of one manifest with handles to its SSTs.
#[derive(Debug)]
pub struct OpenTree {
    /// The manifest.
    pub manifest: Arc<Manifest>,
    /// Flushed memtables, newest first.
    pub l0: Vec<Arc<SstHandle>>,
    /// Sorted runs, newest first.
    pub runs: Vec<Arc<RunHandle>>,
    /// Where metadata and blocks come from.
    pub ssts: Arc<SstStore>,
}

impl OpenTree {
    /// The tree of a manifest; what `previous` has open is used again. Asks nothing of the store.
    pub fn new(ssts: &Arc<SstStore>, manifest: Arc<Manifest>, previous: Option<&Self>) -> Self {
        let l0 = manifest.l0.iter().map(|info| ssts.handle(info)).collect();
        let replaced = previous.map(|tree| tree.replaced_by(&manifest)).unwrap_or_default();
        let runs = manifest.runs.iter().map(|info| ssts.run(info, &replaced)).collect();
        let tree = Self { manifest, l0, runs, ssts: Arc::clone(ssts) };
        tree.forget_damage();
        tree
    }

    /// Reads the objects of the runs that were not read yet, eight at a time. What was replaced by
    /// runs keeps its metadata only until the next tree, so it pays to do this before that.
    ///
    /// Cancel-safe. Costs one GET for each.
    ///
    /// # Errors
    /// One of those met, once every run was tried: `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn load_runs(&self) -> Result<()> {
        let unread = self.runs.iter().filter(|run| run.ssts().is_none());
        let reads: Vec<_> = unread.map(|run| self.ssts.open_run(run).boxed()).collect();
        let reads = stream::iter(reads);
        let ended: Vec<Result<()>> = reads.buffer_unordered(RUNS_TOGETHER).collect().await;
        ended.into_iter().collect::<Result<()>>()?;
        self.forget_damage();
        Ok(())
    }

    /// Every SST that is known so far, L0 first: those of all runs once [`OpenTree::load_runs`] has
    /// succeeded.
    pub fn handles(&self) -> impl Iterator<Item = &Arc<SstHandle>> {
        let of_runs = self.runs.iter().filter_map(|run| run.ssts()).flatten();
        self.l0.iter().chain(of_runs)
    }

    /// The loaded handles of what `next` does not name any more: its new runs may have taken them
    /// over.
    fn replaced_by(&self, next: &Manifest) -> Replaced {
        let known: BTreeSet<_> = self.manifest.runs.iter().map(|run| run.id).collect();
        if next.runs.iter().all(|run| known.contains(&run.id)) {
            return Replaced::default();
        }
        let kept: BTreeSet<_> =
            next.l0.iter().map(|sst| sst.id).chain(next.runs.iter().map(|run| run.id)).collect();
        let l0 = self.l0.iter().filter(|sst| !kept.contains(&sst.info().id));
        let l0 = l0.filter(|sst| sst.is_loaded()).cloned();
        let runs = self.runs.iter().filter(|run| !kept.contains(&run.info().id));
        l0.chain(runs.flat_map(|run| run.loaded())).collect()
    }

    /// What is damaged and no longer in the tree harms nobody. A run that was not read may hold any
    /// SST.
    fn forget_damage(&self) {
        let all_are_read = self.runs.iter().all(|run| run.ssts().is_some());
        self.ssts.forget_damage(|id| {
            let is_run = self.runs.iter().any(|run| run.info().id == *id);
            is_run || !all_are_read || self.handles().any(|sst| sst.info().id == *id)
        });
    }
}
