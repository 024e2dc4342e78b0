//! What may be deleted, judged from a listing and one read of CURRENT and what it names.
//!
//! **Rules**
//! 1. an SST or run object in `retired` for longer than the retention, named by no checkpoint body;
//! 2. an SST or run object that nothing refers to (tree, retired, checkpoint bodies), made under an
//!    epoch *below* its role's epoch in that CURRENT;
//! 3. WAL data before `wal_from`; never a fence;
//! 4. a manifest below `history_from` that no checkpoint names, and CURRENT does not.
//!
//! **Invariants**
//! - Each rule is true once and true for ever, however stale the evidence has become: a retired id
//!   never comes back, an old epoch commits nothing any more, positions move forward only. So the
//!   collector needs no epoch, no lease and no clock, and may be a zombie. (The retention is a
//!   courtesy to slow readers; no rule's safety rests on it.)
//! - CURRENT and manifest are one read: epochs of one and references of another prove nothing.
//! - Fences are told from data by their size in the listing ([`FENCE_BYTES`]), never by their
//!   number: an id that a stale fence seems to jump may hold data.

use std::collections::{HashMap, HashSet};

use super::Corrupt;
use super::current::Current;
use super::manifest::{Manifest, RetiredObject, law};
use super::path::{ManifestId, Object, OutputId};
use super::run::Run;
use super::wal::FENCE_BYTES;
use crate::faults::planted;
use crate::types::{Epoch, Role, WalId};

/// One line of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The object.
    pub object: Object,
    /// Its size.
    pub bytes: u64,
}

/// How long retired objects stay for readers that are slow to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// How long.
    pub retention_ms: u64,
    /// The collector's wall time, Unix milliseconds.
    pub now_ms: u64,
}

/// What one read of CURRENT, its manifest and all that these name says about every object.
#[derive(Debug)]
pub struct Evidence {
    current: ManifestId,
    epochs: HashMap<Role, Epoch>,
    history_from: u64,
    wal_from: WalId,
    /// When each retired object left the tree.
    retired_ms: HashMap<RetiredObject, u64>,
    /// Every SST and run of the tree and of the checkpoint bodies.
    referenced: HashSet<RetiredObject>,
    pinned: HashSet<ManifestId>,
}

impl Evidence {
    /// The evidence of CURRENT, its manifest, the body of every checkpoint and every run of these.
    ///
    /// # Errors
    /// `Corrupt` where they do not belong together or one is missing: then nothing is deletable.
    pub fn new(
        current: &Current,
        manifest: &Manifest,
        checkpoints: &[Manifest],
        runs: &[Run],
    ) -> Result<Self, Corrupt> {
        // A newer format may refer to objects in ways that this process cannot see.
        current.check_writable()?;
        manifest.check_named_by(current)?;
        let bodies: HashMap<_, _> = checkpoints.iter().map(|body| (body.id, body)).collect();
        let runs: HashMap<_, _> = runs.iter().map(|run| (run.id, run)).collect();
        let mut referenced = HashSet::new();
        add_references(&mut referenced, manifest, &runs)?;
        for checkpoint in &manifest.checkpoints {
            let body = bodies.get(&checkpoint.manifest).ok_or_else(|| {
                Corrupt(format!("the body of checkpoint {:?} was not read", checkpoint.name))
            })?;
            add_references(&mut referenced, body, &runs)?;
        }
        let retired = manifest.retired.iter().map(|retired| (retired.object, retired.time_ms));
        Ok(Self {
            current: current.manifest,
            epochs: HashMap::from([
                (Role::Writer, current.writer.epoch),
                (Role::Compactor, current.compactor.epoch),
            ]),
            history_from: current.history_from,
            wal_from: manifest.wal_from.min(current.replay_from),
            retired_ms: retired.collect(),
            referenced,
            pinned: manifest.checkpoints.iter().map(|checkpoint| checkpoint.manifest).collect(),
        })
    }

    /// Of the listed objects, those that may be deleted, in the order listed.
    pub fn deletable(
        &self,
        listing: impl IntoIterator<Item = Stored>,
        grace: Grace,
    ) -> Vec<Object> {
        let judged = listing.into_iter().filter(|stored| self.is_deletable(stored, grace));
        judged.map(|stored| stored.object).collect()
    }

    fn is_deletable(&self, stored: &Stored, grace: Grace) -> bool {
        match stored.object {
            Object::Sst(id) => self.is_output_deletable(RetiredObject::Sst(id), id, grace),
            Object::Run(id) => self.is_output_deletable(RetiredObject::Run(id), id, grace),
            Object::Wal(id) => {
                let is_data =
                    stored.bytes > FENCE_BYTES as u64 || planted("collector_deletes_fences");
                id < self.wal_from && is_data
            }
            Object::Manifest(id) => {
                let is_history = id.version < self.history_from
                    || planted("collector_deletes_bodies_that_are_not_named");
                is_history && !self.pinned.contains(&id) && id != self.current
            }
            Object::Current | Object::Probe(_) => false,
        }
    }

    fn is_output_deletable(&self, object: RetiredObject, id: OutputId, grace: Grace) -> bool {
        if self.referenced.contains(&object) {
            return false;
        }
        match self.retired_ms.get(&object) {
            Some(retired_ms) => grace.now_ms.saturating_sub(*retired_ms) > grace.retention_ms,
            None => self
                .epochs
                .get(&id.role)
                .is_some_and(|epoch| id.epoch < *epoch || planted("collector_ignores_epochs")),
        }
    }
}

fn add_references(
    referenced: &mut HashSet<RetiredObject>,
    manifest: &Manifest,
    runs: &HashMap<OutputId, &Run>,
) -> Result<(), Corrupt> {
    referenced.extend(manifest.l0.iter().map(|sst| RetiredObject::Sst(sst.id)));
    for info in &manifest.runs {
        let run = runs.get(&info.id);
        let run = run.ok_or_else(|| Corrupt(format!("run {} was not read", info.id)))?;
        law(run.ssts.len() as u64 == info.ssts, || format!("run {} is another one", info.id))?;
        referenced.insert(RetiredObject::Run(info.id));
        referenced.extend(run.ssts.iter().map(|sst| RetiredObject::Sst(sst.id)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
