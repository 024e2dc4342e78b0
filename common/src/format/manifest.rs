//! The manifest: the tree at one version, and what the collector must know.
//!
//! **Layout**: JSON in one zstd frame (`zstd -d < manifest/… | jq` reads it). Whoever names a
//! manifest carries the digest of its bytes, so damage, truncation and swaps are detected.
//!
//! **Invariants**
//! - A manifest is never changed. A commit computes the next from the one it replaces.
//! - `l0` and `runs` are newest first; every entry of an element is newer than every entry of the
//!   same key in the elements behind it, and all of L0 is newer than all runs.
//! - No id stands twice in `l0`, `runs` and `retired` together.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::path::{ManifestId, OutputId};
use crate::types::{DatabaseId, Epoch, Seq, WalId};

/// The tree at one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
}

/// What left the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    /// An SST or a run.
    pub object: RetiredObject,
    /// The first version of the manifest without it.
    pub version: u64,
    /// Wall time of that commit, Unix milliseconds.
    pub time_ms: u64,
}

/// The name of what left the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetiredObject {
    /// An SST.
    Sst(OutputId),
    /// A run object.
    Run(OutputId),
}

/// A manifest that is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
}

/// A 128-bit digest (XXH3) of an object's bytes, as 32 hex digits in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub u128);
