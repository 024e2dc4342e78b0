//! What reads are answered from: memtables and a tree, taken together, immutable.
//!
//! **Invariants**
//! - A view shows exactly the batches up to its `seq`: from the tree those at or below the
//!   manifest's flushed seq, from the memtables those above it and up to `seq`. So no entry is seen
//!   twice, whatever stretch of the log a memtable happens to hold.
//! - Sources are ordered newest first: memtables, L0, runs. Every entry of a source is newer than
//!   every entry of the same key in the sources behind it.
//! - Views share handles: opening the tree of the next manifest costs one GET for each run that is
//!   new, and metadata that was at hand stays at hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;

use crate::error::Result;
use crate::faults::planted;
use crate::format::manifest::{Manifest, RunInfo};
use crate::format::path::OutputId;
use crate::lsm::memtable::{Memtable, SeqWindow};
use crate::store::sst::{SstHandle, SstStore};
use crate::types::Seq;

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
    pub runs: Vec<Arc<OpenRun>>,
    /// Where metadata and blocks come from.
    pub ssts: Arc<SstStore>,
}

/// A sorted run with handles to its SSTs.
#[derive(Debug)]
pub struct OpenRun {
    /// What the manifest says of it.
    pub info: RunInfo,
    /// By key, ascending; their keys are disjoint, their bounds, which are cut, may touch.
    pub ssts: Vec<Arc<SstHandle>>,
}

impl OpenTree {
    /// Opens the tree of a manifest; what `previous` has open is used again.
    ///
    /// Costs one GET for each run that `previous` does not have; loads no metadata. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound` where a run was collected meanwhile, `Unavailable`, `Corrupt`.
    pub async fn open(
        ssts: &Arc<SstStore>,
        manifest: Arc<Manifest>,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let open_l0: BTreeMap<OutputId, &Arc<SstHandle>> =
            previous.iter().flat_map(|tree| &tree.l0).map(|sst| (sst.info().id, sst)).collect();
        let open_runs: BTreeMap<OutputId, &Arc<OpenRun>> =
            previous.iter().flat_map(|tree| &tree.runs).map(|run| (run.info.id, run)).collect();
        let l0 = manifest.l0.iter().map(|info| match open_l0.get(&info.id) {
            Some(handle) => Arc::clone(handle),
            None => ssts.handle(info.clone()),
        });
        let l0 = l0.collect();
        let runs = manifest.runs.iter().map(|info| async {
            match open_runs.get(&info.id) {
                Some(run) => Ok(Arc::clone(run)),
                None => OpenRun::open(ssts, info).await.map(Arc::new),
            }
        });
        let runs = try_join_all(runs).await?;
        Ok(Self { manifest, l0, runs, ssts: Arc::clone(ssts) })
    }

    /// Every SST, L0 first.
    pub fn handles(&self) -> impl Iterator<Item = &Arc<SstHandle>> {
        self.l0.iter().chain(self.runs.iter().flat_map(|run| &run.ssts))
    }
}

impl OpenRun {
    /// Opens a run. One GET; loads no metadata.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn open(ssts: &SstStore, info: &RunInfo) -> Result<Self> {
        let run = ssts.load_run(info).await?;
        let handle = |mut sst: crate::format::manifest::SstInfo| {
            // The SSTs of a parent's run live where the run does.
            sst.home = sst.home.or_else(|| info.home.clone());
            ssts.handle(sst)
        };
        Ok(Self { info: info.clone(), ssts: run.ssts.into_iter().map(handle).collect() })
    }

    /// The SSTs whose bounds include the key; one of them at most has it.
    pub fn candidates(&self, key: &[u8]) -> impl Iterator<Item = &Arc<SstHandle>> {
        let first = self.ssts.partition_point(|sst| &*sst.info().last_key < key);
        let behind = self.ssts.get(first..).unwrap_or_default();
        behind.iter().take_while(move |sst| &*sst.info().first_key <= key)
    }
}
