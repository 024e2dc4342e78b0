//! Edits of the tree as pure functions: a commit is computed from the bodies that it replaces.
//!
//! | edit | epoch that must be mine | what it may do |
//! |---|---|---|
//! | [`Flush`] | writer | put one L0 in front; move `replay_from`, flushed seq and time forward |
//! | [`Compact`] | compactor | replace inputs that are all still there; they are retired |
//! | [`Pin`], [`Release`] | none | name, or stop naming, the very manifest being replaced |
//! | [`Retain`] | none | move `history_from` and `wal_from` forward; forget what was deleted |
//!
//! **Life of a commit** ([`apply`], then `store`): read CURRENT and its manifest; apply the edit;
//! PUT the new body under its new name; swap CURRENT. Conflict: start over. Unknown outcome: read
//! back and ask [`Edit::settle`]. Two worlds are possible then, and only the effect tells them
//! apart: the swap landed (and others may have built on it), or it has not landed *yet*.
//!
//! **Invariants**
//! - No edit adds an id that is in the tree or in `retired`.
//! - An id's epoch is the epoch under which it is committed: nobody adopts an upload of an older
//!   epoch, not even its maker after claiming again.
//! - Positions, seqs and times only move forward. Where two makers may race in good faith (times,
//!   `history_from`, `wal_from`) the further one wins; where a step back shows that the edit is
//!   over (`replay_from`) it is refused.

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

use super::Corrupt;
use super::current::Current;
use super::manifest::{Checkpoint, Copies, Manifest, RetiredObject, RunInfo, SstInfo, WalRange};
use super::path::{ManifestId, OutputId};
use super::run::Run;
use super::unknown::Unknown;
use crate::types::{Epoch, Role, Seq, WalId};

mod compact;
mod settle;

pub use settle::Settled;

/// A change of the tree that can be computed anew from whatever is there.
#[expect(clippy::large_enum_variant, reason = "one is made for a flush or a job, and not stored")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A memtable became an SST of L0, or only the position moved.
    Flush(Flush),
    /// Sources became runs.
    Compact(Compact),
    /// The manifest being replaced gets a name that keeps it.
    Pin(Pin),
    /// A checkpoint lets go.
    Release(Release),
    /// History is given up, and what was deleted is forgotten.
    Retain(Retain),
}

/// A memtable became an SST of L0, or only the position moved (fences, empty memtables).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flush {
    /// The writer's epoch, under which the SST was made.
    pub epoch: Epoch,
    /// Exactly the chain's data before `replay_from` that the tree does not hold yet.
    pub sst: Option<SstInfo>,
    /// Where replay begins from now on: a position on the chain.
    pub replay_from: WalId,
    /// Everything at or below it is in the tree.
    pub flushed_seq: Seq,
    /// The writer's wall time when the memtable was frozen, Unix milliseconds. Not later: nothing
    /// that is still unflushed may have been written before it, for compaction drops what has
    /// expired by then, and a later operand may have met it live.
    pub time_ms: u64,
}

/// Neighbouring sources became runs that stand where they stood.
///
/// An SST of an input may be in an output as it is (a trivial move). What leaves the tree is
/// retired: the input runs by their names, which stand for all of their SSTs, and the SSTs of L0
/// that were not moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compact {
    /// The compactor's epoch, under which runs and new SSTs were made.
    pub epoch: Epoch,
    /// Inputs from L0, newest first: its oldest SSTs.
    pub l0: Vec<OutputId>,
    /// Input runs, newest first; the newest of all runs if there are inputs from L0.
    pub runs: Vec<Run>,
    /// What replaces them, newest first; none where nothing was left.
    pub outputs: Vec<Output>,
}

/// A run that is in the bucket but not yet in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its SSTs.
    pub run: Run,
    /// What the manifest will say of it.
    pub info: RunInfo,
}

/// The manifest being replaced gets a name that keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// What users call the checkpoint.
    pub name: String,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// When it may let go by itself, Unix milliseconds.
    pub expires_ms: Option<u64>,
}

/// A checkpoint lets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// What users call it.
    pub name: String,
    /// What it names: another checkpoint that took the name since is left alone.
    pub manifest: ManifestId,
}

/// History is given up, and what was deleted is forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retain {
    /// Manifests below this version may go; at most the version being replaced.
    pub history_from: u64,
    /// WAL data before this id may go; at most `replay_from`.
    pub wal_from: WalId,
    /// Retired objects that are no longer in the bucket.
    pub deleted: Vec<RetiredObject>,
}

/// Names that were never used before, drawn for one attempt of a commit, and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// For the manifest.
    pub manifest: Uuid,
    /// For CURRENT.
    pub nonce: Uuid,
    /// Wall time of this attempt, Unix milliseconds: from when what it retires is kept a while.
    pub now_ms: u64,
}

/// What to PUT, and what to swap in after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The tree from now on.
    pub manifest: Manifest,
    /// The object's bytes.
    pub body: Bytes,
    /// The CURRENT that names it.
    pub current: Current,
}

/// Why an edit cannot be applied, by what its maker does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Another process holds the role: stop this one.
    Fenced {
        /// The epoch of the edit.
        held: Epoch,
        /// The epoch in CURRENT.
        found: Epoch,
    },
    /// What it builds on is not there any more: settle it by its effect, or drop it.
    Gone(String),
    /// No later state will take it either: a request to refuse, or a bug of its maker.
    Invalid(String),
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced { held, found } => {
                write!(f, "fenced: made under epoch {held}, CURRENT says {found}")
            }
            Self::Gone(what) | Self::Invalid(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Rejected {}

/// What an edit changes in CURRENT besides the manifest.
struct Moved {
    replay_from: WalId,
    history_from: u64,
}

/// The commit that makes this edit, computed from CURRENT and the manifest that it names.
///
/// # Errors
/// `Rejected` by the reaction of the edit's maker; nothing else can go wrong.
pub fn apply(
    current: &Current,
    manifest: &Manifest,
    edit: &Edit,
    fresh: Fresh,
) -> Result<Commit, Rejected> {
    assert_eq!(manifest.check_named_by(current), Ok(()), "a manifest that CURRENT does not name");
    let invalid = |corrupt: Corrupt| Rejected::Invalid(corrupt.0);
    current.check_writable().map_err(invalid)?;

    let version = current.version + 1;
    let mut next = manifest.clone();
    next.id = ManifestId { version, uuid: fresh.manifest };
    let mut moved = Moved { replay_from: current.replay_from, history_from: current.history_from };
    match edit {
        Edit::Flush(flush) => flush.apply(current, &mut next, &mut moved)?,
        Edit::Compact(compact) => compact.apply(current, &mut next, fresh.now_ms)?,
        Edit::Pin(pin) => pin.apply(current, &mut next)?,
        Edit::Release(release) => release.apply(&mut next)?,
        Edit::Retain(retain) => retain.apply(current, &mut next, &mut moved)?,
    }
    next.copies = Copies {
        writer_epoch: current.writer.epoch,
        compactor_epoch: current.compactor.epoch,
        replay_from: moved.replay_from,
    };
    next.check().map_err(invalid)?;

    let (body, manifest_digest) = next.encode();
    let current = Current {
        version,
        manifest: next.id,
        manifest_digest,
        replay_from: moved.replay_from,
        history_from: moved.history_from,
        nonce: fresh.nonce,
        ..current.clone()
    };
    Ok(Commit { manifest: next, body, current })
}

impl Flush {
    fn apply(
        &self,
        current: &Current,
        next: &mut Manifest,
        moved: &mut Moved,
    ) -> Result<(), Rejected> {
        check_epoch(self.epoch, current.writer.epoch)?;
        if self.replay_from <= current.replay_from {
            let at = current.replay_from;
            return Err(Rejected::Gone(format!(
                "replay already begins at {at}, a flush to {} is over",
                self.replay_from
            )));
        }
        require(self.flushed_seq >= next.flushed_seq, || {
            format!("flushed seq {} after {}", self.flushed_seq, next.flushed_seq)
        })?;
        if let Some(sst) = &self.sst {
            self.check_sst(sst, current, next)?;
            next.l0.insert(0, sst.clone());
        }
        next.flushed_seq = self.flushed_seq;
        next.time_ms = next.time_ms.max(self.time_ms);
        moved.replay_from = self.replay_from;
        Ok(())
    }

    fn check_sst(
        &self,
        sst: &SstInfo,
        current: &Current,
        manifest: &Manifest,
    ) -> Result<(), Rejected> {
        check_made_by(sst.id, Role::Writer, self.epoch)?;
        require(!is_known(manifest, RetiredObject::Sst(sst.id)), || {
            format!("SST {} was committed before", sst.id)
        })?;
        require(manifest.flushed_seq < sst.first_seq && sst.last_seq <= self.flushed_seq, || {
            format!("SST {} is not between {} and the flush", sst.id, manifest.flushed_seq)
        })?;
        let within = |wal: &WalRange| {
            current.replay_from <= wal.from && wal.from < wal.to && wal.to <= self.replay_from
        };
        require(sst.wal.as_ref().is_some_and(within), || {
            format!("SST {} is not of the chain from {} on", sst.id, current.replay_from)
        })
    }
}

impl Pin {
    fn apply(&self, current: &Current, next: &mut Manifest) -> Result<(), Rejected> {
        let taken = next.checkpoints.iter().any(|checkpoint| checkpoint.name == self.name);
        require(!taken, || format!("there is a checkpoint {:?} already", self.name))?;
        // INVARIANT: it names the manifest being replaced and never an older one, which a
        // collector may already have given up.
        next.checkpoints.push(Checkpoint {
            name: self.name.clone(),
            manifest: current.manifest,
            digest: current.manifest_digest,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            unknown: Unknown::default(),
        });
        Ok(())
    }
}

impl Release {
    fn names(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.name == self.name && checkpoint.manifest == self.manifest
    }

    fn apply(&self, next: &mut Manifest) -> Result<(), Rejected> {
        let before = next.checkpoints.len();
        next.checkpoints.retain(|checkpoint| !self.names(checkpoint));
        if next.checkpoints.len() == before {
            return Err(Rejected::Gone(format!("there is no checkpoint {:?}", self.name)));
        }
        Ok(())
    }
}

impl Retain {
    fn apply(
        &self,
        current: &Current,
        next: &mut Manifest,
        moved: &mut Moved,
    ) -> Result<(), Rejected> {
        // INVARIANT: not above the version being replaced, for that one can still be pinned by
        // the commit that replaces it.
        require(self.history_from <= current.version, || {
            format!("history_from {} is above version {}", self.history_from, current.version)
        })?;
        require(self.wal_from <= current.replay_from, || {
            format!("wal_from {} is after replay_from {}", self.wal_from, current.replay_from)
        })?;
        moved.history_from = moved.history_from.max(self.history_from);
        next.wal_from = next.wal_from.max(self.wal_from);
        let deleted: HashSet<_> = self.deleted.iter().collect();
        next.retired.retain(|retired| !deleted.contains(&retired.object));
        Ok(())
    }
}

fn check_epoch(held: Epoch, found: Epoch) -> Result<(), Rejected> {
    if held == found { Ok(()) } else { Err(Rejected::Fenced { held, found }) }
}

fn check_made_by(id: OutputId, role: Role, epoch: Epoch) -> Result<(), Rejected> {
    require(id.role == role && id.epoch == epoch, || {
        format!("{id} was not made by the {role:?} of epoch {epoch} that commits it")
    })
}

/// Whether the manifest itself names this object in the tree.
fn in_tree(manifest: &Manifest, object: RetiredObject) -> bool {
    match object {
        RetiredObject::Sst(id) => manifest.l0.iter().any(|sst| sst.id == id),
        RetiredObject::Run(id) => manifest.runs.iter().any(|run| run.id == id),
    }
}

/// Whether the manifest itself names this object, in the tree or as retired.
fn is_known(manifest: &Manifest, object: RetiredObject) -> bool {
    in_tree(manifest, object) || manifest.retired.iter().any(|retired| retired.object == object)
}

#[expect(clippy::fn_params_excessive_bools, reason = "an assertion takes what it asserts")]
fn require(holds: bool, broken: impl FnOnce() -> String) -> Result<(), Rejected> {
    if holds { Ok(()) } else { Err(Rejected::Invalid(broken())) }
}

#[cfg(test)]
mod tests;
