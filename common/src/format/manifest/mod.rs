//! The manifest: the tree at one version, and what the collector must know.
//!
//! **Layout**: JSON in one zstd frame ([`frame`]). Whoever names a manifest carries the digest of
//! its bytes, so damage, truncation and swaps are detected. A small one, unfolded:
//!
//! ```text
//! {"format":1,"database":"0198f2c4-…-01","id":"00000000000000000007-0198f2c4-…-02",
//!  "copies":{"writer_epoch":2,"compactor_epoch":1,"replay_from":1042},
//!  "flushed_seq":900,"time_ms":1700000000000,"wal_from":1030,
//!  "l0":[{"id":"w00000002-0198f2c4-…-03","bytes":4096,"meta_offset":3000,"entries":10,
//!         "tombstones":1,"operands":0,"first_key":"a","last_key":{"b64":"/w=="},
//!         "first_seq":801,"last_seq":900,"wal":{"from":1030,"to":1042}}],
//!  "runs":[{"id":"c00000001-0198f2c4-…-04","digest":"0001…0e0f","object_bytes":310,"ssts":1,
//!           "bytes":65536,"entries":500,"tombstones":0,"operands":0,"first_key":"a",
//!           "last_key":"z"}],
//!  "retired":[{"object":{"sst":"w00000001-0198f2c4-…-05"},"version":6,"time_ms":1700000000000}],
//!  "checkpoints":[]}
//! ```
//!
//! **Invariants** ([`Manifest::check`] holds encode and parse to them)
//! - A manifest is never changed. A commit computes the next from the one it replaces.
//! - `l0` and `runs` are newest first; every entry of an element is newer than every entry of the
//!   same key in the elements behind it, and all of L0 is newer than all runs.
//! - So the seqs of L0 fall from one SST to the next without overlap, and so do their stretches of
//!   the chain; none reaches beyond `flushed_seq` and `replay_from`.
//! - No id stands twice in `l0`, `runs` and `retired` together.
//! - `retired` names runs, and SSTs of L0. The SSTs of a retired run are named by its object, which
//!   is the last of them to be deleted.
//! - L0 is made by writers and runs by compactors, under epochs not above the copies (but for
//!   objects that live in another database).
//! - `wal_from` is not after `replay_from`; checkpoints name older manifests, each by its own name.

use std::collections::HashSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use super::frame::Digest;
use super::path::{ManifestId, OutputId};
use super::unknown::Unknown;
use super::{Corrupt, FORMAT, current::Current, frame};
use crate::limits::{BOUND_BYTES_MAX, KEY_BYTES_MAX};
use crate::types::{DatabaseId, Epoch, Role, Seq, WalId};

/// The tree at one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's version.
    pub format: u32,
    /// The database it belongs to.
    pub database: DatabaseId,
    /// Its own name.
    pub id: ManifestId,
    /// Copies for repair alone; CURRENT is the authority.
    pub copies: Copies,
    /// Everything at or below this seq is in the tree.
    pub flushed_seq: Seq,
    /// The writer's wall time at its last flush, Unix milliseconds: compaction's "now".
    pub time_ms: u64,
    /// WAL data before this id may be deleted.
    pub wal_from: WalId,
    /// Flushed memtables, newest first.
    pub l0: Vec<SstInfo>,
    /// Sorted runs, newest first.
    pub runs: Vec<RunInfo>,
    /// What has left the tree and is kept a while for slow readers.
    pub retired: Vec<Retired>,
    /// Manifests that are pinned against collection.
    pub checkpoints: Vec<Checkpoint>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What CURRENT said when the manifest was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copies {
    /// The writer's epoch.
    pub writer_epoch: Epoch,
    /// The compactor's epoch.
    pub compactor_epoch: Epoch,
    /// Where replay begins.
    pub replay_from: WalId,
}

/// One SST as the tree knows it: enough to load its metadata with one exact ranged GET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SstInfo {
    /// Its name.
    pub id: OutputId,
    /// Size of the object.
    pub bytes: u64,
    /// Where the metadata (filter, index, properties, footer) begins; it reaches to the end.
    pub meta_offset: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Of these, tombstones.
    pub tombstones: u64,
    /// Of these, operands.
    pub operands: u64,
    /// At or below the first key: the key, cut down to 256 bytes.
    #[serde(with = "super::text")]
    pub first_key: Bytes,
    /// At or above the last key: the key, or where it is long, a shorter key above it.
    #[serde(with = "super::text")]
    pub last_key: Bytes,
    /// The lowest seq in it.
    pub first_seq: Seq,
    /// The highest seq in it.
    pub last_seq: Seq,
    /// The stretch of the chain whose data it holds (L0 alone).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalRange>,
    /// The earliest and latest expiry in it, where any entry expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<ExpiryRange>,
    /// Where it lives, if that is another database (clones).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Home>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A stretch of the chain, `from` inclusive to `to` exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalRange {
    /// The first position.
    pub from: WalId,
    /// The position after the last.
    pub to: WalId,
}

/// When the entries of an SST expire, Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpiryRange {
    /// The first expiry.
    pub earliest_ms: u64,
    /// The last expiry.
    pub latest_ms: u64,
}

/// Another database in which an object of this tree lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Home {
    /// The database.
    pub database: DatabaseId,
    /// Its root in the same bucket.
    pub root: String,
}

/// One sorted run as the manifest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The object that lists its SSTs.
    pub id: OutputId,
    /// Digest of that object's bytes.
    pub digest: Digest,
    /// Size of that object.
    pub object_bytes: u64,
    /// SSTs in it.
    pub ssts: u64,
    /// Sizes of its SSTs, added up.
    pub bytes: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Of these, tombstones.
    pub tombstones: u64,
    /// Of these, operands.
    pub operands: u64,
    /// At or below its first key.
    #[serde(with = "super::text")]
    pub first_key: Bytes,
    /// At or above its last key.
    #[serde(with = "super::text")]
    pub last_key: Bytes,
    /// Where it lives, if that is another database (clones).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Home>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What left the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// An SST of L0 or a run.
    pub object: RetiredObject,
    /// The first version of the manifest without it.
    pub version: u64,
    /// Wall time of that commit, Unix milliseconds.
    pub time_ms: u64,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The name of what left the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetiredObject {
    /// An SST of L0.
    Sst(OutputId),
    /// A run: its object, and the SSTs that it names and nothing else does.
    Run(OutputId),
}

/// A manifest that is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What users call it.
    pub name: String,
    /// The pinned manifest.
    pub manifest: ManifestId,
    /// Digest of its bytes.
    pub digest: Digest,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// When it lets go by itself, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Manifest {
    /// The manifest of a database without entries.
    pub fn empty(database: DatabaseId, id: ManifestId) -> Self {
        let copies =
            Copies { writer_epoch: Epoch(0), compactor_epoch: Epoch(0), replay_from: WalId::FIRST };
        Self {
            format: FORMAT,
            database,
            id,
            copies,
            flushed_seq: Seq::ZERO,
            time_ms: 0,
            wal_from: WalId::FIRST,
            l0: Vec::new(),
            runs: Vec::new(),
            retired: Vec::new(),
            checkpoints: Vec::new(),
            unknown: Unknown::default(),
        }
    }

    /// The object's bytes, and their digest for whoever names it.
    pub fn encode(&self) -> (Bytes, Digest) {
        assert_eq!(self.check(), Ok(()), "a manifest that could not be read back");
        frame::encode(self)
    }

    /// The manifest of these bytes, if they are those of the digest.
    ///
    /// # Errors
    /// `Corrupt` where they are not, or break an invariant.
    pub fn parse(bytes: &[u8], digest: &Digest) -> Result<Self, Corrupt> {
        let manifest: Self = frame::parse(bytes, digest)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether this is the manifest that CURRENT names, and CURRENT has not lost what it knows.
    ///
    /// # Errors
    /// `Corrupt` where it is another's, or ahead of CURRENT.
    pub fn check_named_by(&self, current: &Current) -> Result<(), Corrupt> {
        let Copies { writer_epoch, compactor_epoch, replay_from } = self.copies;
        law(self.database == current.database, || "it belongs to another database".into())?;
        law(self.id == current.manifest, || format!("it calls itself {}", self.id))?;
        law(
            writer_epoch <= current.writer.epoch
                && compactor_epoch <= current.compactor.epoch
                && replay_from == current.replay_from,
            || "its copies are ahead of CURRENT".into(),
        )
    }

    /// The invariants that every manifest keeps.
    ///
    /// # Errors
    /// `Corrupt` names the first that is broken.
    pub fn check(&self) -> Result<(), Corrupt> {
        law(self.format == FORMAT, || {
            format!("format {}, this Cairn knows {FORMAT}", self.format)
        })?;
        law(self.id.version >= 1, || "version 0".into())?;
        law(self.wal_from >= WalId::FIRST && self.wal_from <= self.copies.replay_from, || {
            format!("wal_from {} after replay_from {}", self.wal_from, self.copies.replay_from)
        })?;
        self.check_l0()?;
        for run in &self.runs {
            run.check()?;
            law(run.home.is_some() || run.id.epoch <= self.copies.compactor_epoch, || {
                format!("run {} is of an epoch to come", run.id)
            })?;
        }
        self.check_ids()?;
        self.check_checkpoints()
    }

    fn check_l0(&self) -> Result<(), Corrupt> {
        let mut seq_max = self.flushed_seq;
        let mut wal_end = self.copies.replay_from;
        for sst in &self.l0 {
            let id = sst.id;
            sst.check()?;
            law(id.role == Role::Writer, || format!("SST {id} in L0 is not a writer's"))?;
            if sst.home.is_some() {
                continue; // Its seqs and positions are those of the database it came from.
            }
            law(id.epoch <= self.copies.writer_epoch, || {
                format!("SST {id} is of an epoch to come")
            })?;
            law(sst.last_seq <= seq_max, || {
                format!("the seqs of SST {id} are not below {seq_max}")
            })?;
            let wal =
                sst.wal.ok_or_else(|| Corrupt::new(format!("SST {id} in L0 lacks its range")))?;
            law(wal.from < wal.to && wal.to <= wal_end, || {
                format!(
                    "SST {id} holds {} to {} of the chain, not before {wal_end}",
                    wal.from, wal.to
                )
            })?;
            // `first_seq` is at least 1 (SstInfo::check).
            seq_max = Seq(sst.first_seq.0.saturating_sub(1));
            wal_end = wal.from;
        }
        Ok(())
    }

    fn check_ids(&self) -> Result<(), Corrupt> {
        let mut seen = HashSet::new();
        let tree = self.l0.iter().map(|sst| RetiredObject::Sst(sst.id));
        let tree = tree.chain(self.runs.iter().map(|run| RetiredObject::Run(run.id)));
        for object in tree.chain(self.retired.iter().map(|retired| retired.object)) {
            law(seen.insert(object), || format!("{object:?} stands in it twice"))?;
        }
        let late = self.retired.iter().find(|retired| retired.version > self.id.version);
        law(late.is_none(), || "something retired at a version to come".into())
    }

    fn check_checkpoints(&self) -> Result<(), Corrupt> {
        let mut names = HashSet::new();
        for checkpoint in &self.checkpoints {
            let name = &checkpoint.name;
            law(!name.is_empty() && names.insert(name), || format!("checkpoint {name:?} twice"))?;
            law(checkpoint.manifest.version < self.id.version, || {
                format!("checkpoint {name:?} is of a version to come")
            })?;
        }
        Ok(())
    }
}

impl SstInfo {
    /// The invariants of an SST wherever it stands.
    pub(super) fn check(&self) -> Result<(), Corrupt> {
        let broken = |what: &str| format!("SST {}: {what}", self.id);
        law(self.meta_offset < self.bytes, || broken("its metadata lie beyond its end"))?;
        law(self.entries >= 1, || broken("no entries"))?;
        let special = self.tombstones.checked_add(self.operands);
        law(special.is_some_and(|count| count <= self.entries), || {
            broken("more kinds than entries")
        })?;
        check_bounds(&self.first_key, &self.last_key).map_err(broken).map_err(Corrupt::new)?;
        law(
            Seq::ZERO < self.first_seq
                && self.first_seq <= self.last_seq
                && self.last_seq <= Seq::MAX,
            || broken("its seqs are out of order"),
        )?;
        let expires = self.expires.is_none_or(|range| range.earliest_ms <= range.latest_ms);
        law(expires, || broken("its expiries are out of order"))
    }
}

impl RunInfo {
    fn check(&self) -> Result<(), Corrupt> {
        let broken = |what: &str| format!("run {}: {what}", self.id);
        law(self.id.role == Role::Compactor, || broken("not a compactor's"))?;
        law(self.ssts >= 1 && self.entries >= self.ssts, || broken("no SSTs, or empty ones"))?;
        let special = self.tombstones.checked_add(self.operands);
        law(special.is_some_and(|count| count <= self.entries), || {
            broken("more kinds than entries")
        })?;
        check_bounds(&self.first_key, &self.last_key).map_err(broken).map_err(Corrupt::new)
    }
}

fn check_bounds(first: &[u8], last: &[u8]) -> Result<(), &'static str> {
    // Nothing shorter is above 256 bytes of ff: such a last key keeps its length.
    let cut = last.get(..BOUND_BYTES_MAX).filter(|cut| cut.len() < last.len());
    let long = cut.is_some_and(|cut| cut.iter().any(|byte| *byte != u8::MAX));
    if first.is_empty() || first.len() > BOUND_BYTES_MAX || long || last.len() > KEY_BYTES_MAX {
        return Err("a key bound is empty or long");
    }
    if first <= last { Ok(()) } else { Err("its key bounds are out of order") }
}

/// `Corrupt`, in the words of `broken`, unless it holds.
#[expect(clippy::fn_params_excessive_bools, reason = "an assertion takes what it asserts")]
pub(super) fn law(holds: bool, broken: impl FnOnce() -> String) -> Result<(), Corrupt> {
    if holds { Ok(()) } else { Err(Corrupt(broken())) }
}

#[cfg(test)]
mod tests;
