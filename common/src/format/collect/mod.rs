//! What may be deleted, judged from a listing and one read of CURRENT and what it names.
//!
//! **Rules**
//! 1. an SST of L0 or a run in `retired` for longer than the retention, named by no checkpoint
//!    body; and the SSTs of such a run that no L0 and no run of the tree or of a checkpoint body
//!    names. The run's own object goes last, since it alone names its SSTs;
//! 2. an SST or run object that nothing refers to (tree, retired, checkpoint bodies), made under an
//!    epoch *below* its role's epoch in that CURRENT;
//! 3. WAL data before `wal_from`; never a fence;
//! 4. a manifest below `history_from` that no checkpoint names, and CURRENT does not.
//!
//! **Invariants**
//! - Each rule is true once and true for ever, however stale the evidence has become: a retired id
//!   never comes back (SSTs move between runs only within the tree), an old epoch commits nothing
//!   any more, positions move forward only. So the collector needs no epoch, no lease and no clock,
//!   and may be a zombie. (The retention is a courtesy to slow readers; no rule's safety rests on
//!   it.)
//! - CURRENT and manifest are one read: epochs of one and references of another prove nothing.
//! - What could not be read may refer to anything; but no run of the tree has an SST that
//!   `retired` names itself. So without a run of the tree only such SSTs go, without a run of a
//!   checkpoint no SST, and without a checkpoint body no SST and no run object. The other rules do
//!   not depend on it, so what they allow is a part of what complete evidence allows.
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
    /// The SSTs that `retired` names.
    retired_by_name: HashSet<OutputId>,
    /// When each retired object left the tree; an SST of retired runs, with the last of them.
    retired_ms: HashMap<RetiredObject, u64>,
    /// The SSTs of each retired run whose object was read.
    retired_runs: HashMap<OutputId, Vec<OutputId>>,
    /// Every SST and run of the tree and of the checkpoint bodies.
    referenced: HashSet<RetiredObject>,
    pinned: HashSet<ManifestId>,
    unseen: Unseen,
}

/// What the evidence does not show, and so keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unseen {
    /// It is complete.
    Nothing,
    /// A run of the tree could not be read: any SST may be in it that is not retired by its name.
    SstsOfTree,
    /// A run of a checkpoint could not be read: any SST may be in it.
    Ssts,
    /// A checkpoint body could not be read: any SST and any run may be in it.
    SstsAndRuns,
}

impl Evidence {
    /// The evidence of CURRENT, its manifest, the body of every checkpoint, and the objects of
    /// their runs and of the retired runs that are still there. What could not be read is left out;
    /// the evidence is [partial](Evidence::is_partial) then.
    ///
    /// # Errors
    /// `Corrupt` if they do not belong together: then nothing is deletable.
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
        let mut unseen = match add_references(&mut referenced, manifest, &runs)? {
            Seen::All => Unseen::Nothing,
            Seen::NotAll => Unseen::SstsOfTree,
        };
        for checkpoint in &manifest.checkpoints {
            let of_checkpoint = match bodies.get(&checkpoint.manifest) {
                None => Unseen::SstsAndRuns,
                Some(body) => match add_references(&mut referenced, body, &runs)? {
                    Seen::All => Unseen::Nothing,
                    Seen::NotAll => Unseen::Ssts,
                },
            };
            unseen = unseen.max(of_checkpoint);
        }
        let (retired_ms, retired_runs) = retired(manifest, &runs);
        let retired_by_name = manifest.retired.iter().filter_map(|retired| match retired.object {
            RetiredObject::Sst(id) => Some(id),
            RetiredObject::Run(_) => None,
        });
        Ok(Self {
            current: current.manifest,
            epochs: HashMap::from([
                (Role::Writer, current.writer.epoch),
                (Role::Compactor, current.compactor.epoch),
            ]),
            history_from: current.history_from,
            wal_from: manifest.wal_from.min(current.replay_from),
            retired_by_name: retired_by_name.collect(),
            retired_ms,
            retired_runs,
            referenced,
            pinned: manifest.checkpoints.iter().map(|checkpoint| checkpoint.manifest).collect(),
            unseen,
        })
    }

    /// Whether something could not be read, so that what depends on it is kept.
    pub fn is_partial(&self) -> bool {
        self.unseen > Unseen::Nothing
    }

    /// Of the listed objects, those that may be deleted, in the order listed. The listing must hold
    /// every SST that exists.
    pub fn deletable(
        &self,
        listing: impl IntoIterator<Item = Stored> + Clone,
        grace: Grace,
    ) -> Vec<Object> {
        let ssts = listing.clone().into_iter().filter_map(|stored| match stored.object {
            Object::Sst(id) => Some(id),
            _ => None,
        });
        let ssts: HashSet<OutputId> = ssts.collect();
        let judged = listing.into_iter().filter(|stored| self.is_deletable(stored, &ssts, grace));
        judged.map(|stored| stored.object).collect()
    }

    fn is_deletable(&self, stored: &Stored, ssts: &HashSet<OutputId>, grace: Grace) -> bool {
        match stored.object {
            Object::Sst(id) => {
                let is_seen = match self.unseen {
                    Unseen::Nothing => true,
                    Unseen::SstsOfTree => self.retired_by_name.contains(&id),
                    Unseen::Ssts | Unseen::SstsAndRuns => false,
                };
                is_seen && self.is_output_deletable(RetiredObject::Sst(id), id, grace)
            }
            Object::Run(id) => {
                self.unseen < Unseen::SstsAndRuns
                    && self.is_output_deletable(RetiredObject::Run(id), id, grace)
                    && !self.is_last_to_name(id, ssts)
            }
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

    /// Whether an SST that is still there would be forgotten with this run. One that the tree or a
    /// checkpoint has is named by another run, which is retired in its turn.
    fn is_last_to_name(&self, run: OutputId, ssts: &HashSet<OutputId>) -> bool {
        let of_run = self.retired_runs.get(&run).map(Vec::as_slice).unwrap_or_default();
        of_run
            .iter()
            .any(|id| ssts.contains(id) && !self.referenced.contains(&RetiredObject::Sst(*id)))
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

/// Whether all runs of a body could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    All,
    NotAll,
}

fn add_references(
    referenced: &mut HashSet<RetiredObject>,
    manifest: &Manifest,
    runs: &HashMap<OutputId, &Run>,
) -> Result<Seen, Corrupt> {
    referenced.extend(manifest.l0.iter().map(|sst| RetiredObject::Sst(sst.id)));
    let mut seen = Seen::All;
    for info in &manifest.runs {
        referenced.insert(RetiredObject::Run(info.id));
        let Some(run) = runs.get(&info.id) else {
            seen = Seen::NotAll;
            continue;
        };
        law(run.ssts.len() as u64 == info.ssts, || format!("run {} is another one", info.id))?;
        referenced.extend(run.ssts.iter().map(|sst| RetiredObject::Sst(sst.id)));
    }
    Ok(seen)
}

/// When each object left the tree, the SSTs of retired runs among them; and these by run.
fn retired(
    manifest: &Manifest,
    runs: &HashMap<OutputId, &Run>,
) -> (HashMap<RetiredObject, u64>, HashMap<OutputId, Vec<OutputId>>) {
    let (mut times, mut by_run) = (HashMap::new(), HashMap::new());
    for retired in &manifest.retired {
        times.insert(retired.object, retired.time_ms);
        let RetiredObject::Run(id) = retired.object else { continue };
        // One that could not be read: its SSTs go by rule 2, once their epoch has passed.
        let Some(run) = runs.get(&id) else { continue };
        for sst in &run.ssts {
            // Moved from one run to the next: kept for as long as the last that had it.
            let time_ms = times.entry(RetiredObject::Sst(sst.id)).or_insert(0);
            *time_ms = retired.time_ms.max(*time_ms);
        }
        by_run.insert(id, run.ssts.iter().map(|sst| sst.id).collect());
    }
    (times, by_run)
}

#[cfg(test)]
mod tests;
