//! Sorted runs as readers use them: a tree is shown before the objects that list their SSTs are
//! read.
//!
//! **Life of a run handle**: made from what a manifest says of the run; its object is read when the
//! first key within the run's bounds is asked for, or when a tree is warmed; from then on it holds
//! handles to the SSTs. Trees that name the same run share the handle.
//!
//! **Invariants**
//! - A run that cannot be read fails the keys within its bounds and nothing else; the bounds are
//!   cut outwards, so a key outside is certainly in no SST of it.
//! - Until its object is read, a run keeps the loaded handles of what it replaced: an SST that a
//!   compaction only moved keeps its metadata. They are within the budget of metadata.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::SstHandle;
use crate::format::manifest::RunInfo;
use crate::format::path::Object;

/// One sorted run, with a place for its SSTs.
pub struct RunHandle {
    info: RunInfo,
    ssts: OnceLock<Box<[Arc<SstHandle>]>>,
    replaced: Mutex<Replaced>,
}

/// Loaded handles of what the runs of a new tree replaced.
pub(crate) type Replaced = Arc<[Arc<SstHandle>]>;

impl RunHandle {
    pub(super) fn new(info: RunInfo, replaced: Replaced) -> Self {
        Self { info, ssts: OnceLock::new(), replaced: Mutex::new(replaced) }
    }

    /// What the manifest says of it.
    pub fn info(&self) -> &RunInfo {
        &self.info
    }

    /// Its SSTs by key, ascending; their keys are disjoint, their bounds, which are cut, may touch.
    /// `None` until its object was read.
    pub fn ssts(&self) -> Option<&[Arc<SstHandle>]> {
        self.ssts.get().map(|ssts| &**ssts)
    }

    /// Whether the key lies within the bounds: in no other case is it in the run.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        key >= &*self.info.first_key && key <= &*self.info.last_key
    }

    /// The loaded handles of its SSTs or, until its object was read, of those that it replaced.
    pub(crate) fn loaded(&self) -> Vec<Arc<SstHandle>> {
        let is_loaded = |sst: &&Arc<SstHandle>| sst.is_loaded();
        match self.ssts() {
            Some(ssts) => ssts.iter().filter(is_loaded).cloned().collect(),
            None => self.lock().iter().filter(is_loaded).cloned().collect(),
        }
    }

    /// Takes in what its object says, once.
    pub(super) fn fill(&self, ssts: impl FnOnce() -> Box<[Arc<SstHandle>]>) {
        self.ssts.get_or_init(ssts);
        *self.lock() = Replaced::default();
    }

    pub(super) fn object(&self) -> Object {
        Object::Run(self.info.id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Replaced> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The SSTs of a run, by key, whose bounds include the key; one of them at most has it.
pub fn candidates<'a>(
    ssts: &'a [Arc<SstHandle>],
    key: &[u8],
) -> impl Iterator<Item = &'a Arc<SstHandle>> {
    let first = ssts.partition_point(|sst| &*sst.info().last_key < key);
    let behind = ssts.get(first..).unwrap_or_default();
    behind.iter().take_while(move |sst| &*sst.info().first_key <= key)
}

impl fmt::Debug for RunHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RunHandle").field(&self.info.id).finish()
    }
}
