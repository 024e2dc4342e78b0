//! CURRENT: the one mutable object of a database, the authority on epochs and on where replay
//! begins.
//!
//! **Layout**: JSON to be read by people, one field a line; the last field is the CRC-32C of every
//! byte before it.
//!
//! ```text
//! {
//!   "format": 1,
//!   "min_reader_format": 1,
//!   "database": "0198f2c4-0000-7000-8000-000000000001",
//!   "version": 7,
//!   "manifest": "00000000000000000007-0198f2c4-0000-7000-8000-000000000002",
//!   "manifest_digest": "000102030405060708090a0b0c0d0e0f",
//!   "replay_from": 1042,
//!   "history_from": 3,
//!   "lease_ms": 2000,
//!   "l0_stop": 24,
//!   "writer": {
//!     "epoch": 2,
//!     "uuid": "0198f2c4-0000-7000-8000-000000000003",
//!     "url": "http://10.0.0.1:7001",
//!     "root": "s3://bucket/db",
//!     "deposed": null,
//!     "strife": 0,
//!     "closed": false
//!   },
//!   "compactor": {
//!     "epoch": 1,
//!     "uuid": "0198f2c4-0000-7000-8000-000000000004",
//!     "url": null
//!   },
//!   "probed": true,
//!   "nonce": "0198f2c4-0000-7000-8000-000000000005",
//!   "crc": "f645da3d"
//! }
//! ```
//! The tail from the comma before `crc` on always has the same length, so damage to it is as
//! visible as damage to what it covers.
//!
//! **Invariants**
//! - Only ever written by compare-and-swap; every body has a `nonce` of its own.
//! - `version` is the version of the manifest that it names, and `history_from` is not above it.
//! - A claim of an epoch changes this object alone and names the same manifest.
//! - A process changes it only if it may write the format that it names
//!   ([`Current::check_writable`]), and keeps the fields that it does not know ([`Unknown`]).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::path::ManifestId;
use super::unknown::Unknown;
use super::{Corrupt, FORMAT, frame::Digest};
use crate::types::{DatabaseId, Epoch, WalId};

/// Bytes of the tail that holds the checksum.
const TAIL_BYTES: usize = ",\n  \"crc\": \"01234567\"\n}\n".len();
/// The largest body: URLs and ids; bounds what is parsed.
const BYTES_MAX: usize = 64 * 1024;

/// The state of a database: its manifest, its owners, the start of its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// The format's version.
    pub format: u32,
    /// The oldest format that a process must know to read this database.
    pub min_reader_format: u32,
    /// The database.
    pub database: DatabaseId,
    /// Version of the manifest.
    pub version: u64,
    /// The manifest: the tree as it is now.
    pub manifest: ManifestId,
    /// Digest of its bytes.
    pub manifest_digest: Digest,
    /// Where replay begins: a position on the chain; everything before it is in SSTs.
    pub replay_from: WalId,
    /// Manifests below this version may be deleted, unless a checkpoint names them.
    pub history_from: u64,
    /// How long a writer that held the role may go on answering reads.
    pub lease_ms: u64,
    /// SSTs in L0 at which the writer takes no write any more, so that the compactor begins well
    /// before; 0 = no writer has said it.
    #[serde(default)]
    pub l0_stop: u64,
    /// Who owns the log.
    pub writer: WriterClaim,
    /// Who makes runs.
    pub compactor: CompactorClaim,
    /// Whether the store was seen to honour conditional writes.
    pub probed: bool,
    /// Drawn for this body alone, so that no two bodies are the same bytes.
    pub nonce: Uuid,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The newest claim of the writer's role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterClaim {
    /// Counts claims; 0 before the first.
    pub epoch: Epoch,
    /// The process that claimed.
    pub uuid: Uuid,
    /// Where it answers.
    pub url: Option<String>,
    /// The root at which it claimed. In a copy of the root's objects this names the original, whose
    /// writer does not write here.
    pub root: Option<String>,
    /// The URL of the writer that it replaced, if that one had not closed.
    pub deposed: Option<String>,
    /// How often in a row two writers have deposed each other, up to this claim.
    pub strife: u32,
    /// Whether it has ended, and starts no more reads.
    pub closed: bool,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl WriterClaim {
    /// Whether it was made at this root; one that names none may have been.
    pub fn is_of_root(&self, root: &str) -> bool {
        self.root.as_deref().is_none_or(|of| of == root)
    }
}

/// The newest claim of the compactor's role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactorClaim {
    /// Counts claims; 0 before the first.
    pub epoch: Epoch,
    /// The process that claimed.
    pub uuid: Uuid,
    /// Where it answers.
    pub url: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A process that claims a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// Drawn for this claim alone.
    pub uuid: Uuid,
    /// Where it answers.
    pub url: Option<String>,
    /// The root at which it claims.
    pub root: Option<String>,
}

/// The formats alone: what any version can read of any other.
#[derive(Deserialize)]
struct Formats {
    format: u32,
    min_reader_format: u32,
}

impl Current {
    /// The body of a database that nobody has claimed yet, over its first manifest.
    ///
    /// It says `closed`: no writer was before the first, so the first has nobody to wait for.
    pub fn first(database: DatabaseId, manifest: (ManifestId, Digest), nonce: Uuid) -> Self {
        let (nobody, unknown) = (Uuid::nil(), Unknown::default());
        let (manifest, manifest_digest) = manifest;
        Self {
            format: FORMAT,
            min_reader_format: FORMAT,
            database,
            version: manifest.version,
            manifest,
            manifest_digest,
            replay_from: WalId::FIRST,
            history_from: manifest.version,
            lease_ms: 0,
            l0_stop: 0,
            writer: WriterClaim {
                epoch: Epoch(0),
                uuid: nobody,
                url: None,
                root: None,
                deposed: None,
                strife: 0,
                closed: true,
                unknown: unknown.clone(),
            },
            compactor: CompactorClaim {
                epoch: Epoch(0),
                uuid: nobody,
                url: None,
                unknown: unknown.clone(),
            },
            probed: false,
            nonce,
            unknown,
        }
    }

    /// The body by which `claimant` becomes the writer under the next epoch (takeover, T1).
    ///
    /// The lease is the longer of the stored and the claimant's: its predecessor may still answer
    /// reads under the stored one, and its successor will wait for what this body says.
    #[must_use]
    pub fn claimed_by_writer(&self, claimant: Claimant, lease_ms: u64, nonce: Uuid) -> Self {
        let Claimant { uuid, url, root } = claimant;
        let old = &self.writer;
        let deposed = if old.closed { None } else { old.url.clone() };
        let strikes_back = !old.closed && url.is_some() && old.deposed == url;
        let strife = if strikes_back { old.strife.saturating_add(1) } else { 0 };
        let (epoch, unknown) = (old.epoch.next(), old.unknown.clone());
        let writer =
            WriterClaim { epoch, uuid, url, root, deposed, strife, closed: false, unknown };
        Self { writer, lease_ms: self.lease_ms.max(lease_ms), nonce, ..self.clone() }
    }

    /// The body by which `claimant` becomes the compactor under the next epoch.
    #[must_use]
    pub fn claimed_by_compactor(&self, claimant: Claimant, nonce: Uuid) -> Self {
        let Claimant { uuid, url, .. } = claimant;
        let epoch = self.compactor.epoch.next();
        let compactor = CompactorClaim { epoch, uuid, url, ..self.compactor.clone() };
        Self { compactor, nonce, ..self.clone() }
    }

    /// The bytes of this body.
    pub fn encode(&self) -> Bytes {
        assert_eq!(self.check(), Ok(()), "a body of CURRENT that could not be read back");
        let mut json = serde_json::to_string_pretty(self).expect("a record of JSON types");
        // Without the closing "\n}", which the tail brings.
        json.truncate(json.len() - 2);
        let tail = tail(json.as_bytes());
        json.push_str(&tail);
        json.into()
    }

    /// The body of these bytes.
    ///
    /// # Errors
    /// `Corrupt` where they are damaged, or where the database needs a newer Cairn.
    pub fn parse(bytes: &[u8]) -> Result<Self, Corrupt> {
        let split = bytes.len().checked_sub(TAIL_BYTES).filter(|_| bytes.len() <= BYTES_MAX);
        let Some((head, found)) = split.and_then(|at| bytes.split_at_checked(at)) else {
            return Err(Corrupt::new(format!("a body of {} bytes", bytes.len())));
        };
        if found != tail(head).as_bytes() {
            return Err(Corrupt::new("the checksum at its end does not hold"));
        }
        let wrong = |error| Corrupt::new(format!("JSON: {error}"));
        let formats: Formats = serde_json::from_slice(bytes).map_err(wrong)?;
        if formats.min_reader_format > FORMAT {
            return Err(Corrupt::new(format!(
                "format {} (readable from {} on) is a newer Cairn's; this one knows {FORMAT}",
                formats.format, formats.min_reader_format
            )));
        }
        let mut current: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        // Of this body only; another one has its own.
        current.unknown.remove("crc");
        current.check()?;
        Ok(current)
    }

    /// Whether this process knows the whole format and so may swap in another body.
    ///
    /// # Errors
    /// `Corrupt` where the format is newer: what this process does not know, it would drop.
    pub fn check_writable(&self) -> Result<(), Corrupt> {
        if self.format == FORMAT {
            return Ok(());
        }
        Err(Corrupt::new(format!(
            "CURRENT says format {}, of a newer version of Cairn than this one, which reads it but \
             writes format {FORMAT} only: upgrade this process",
            self.format
        )))
    }

    /// The invariants that every body keeps.
    ///
    /// # Errors
    /// `Corrupt` names the first that is broken.
    pub fn check(&self) -> Result<(), Corrupt> {
        let laws = [
            (self.min_reader_format <= self.format, "min_reader_format is above format"),
            (self.format >= 1, "format 0"),
            (self.version >= 1 && self.version < u64::MAX, "version 0, or none after it"),
            (
                self.writer.epoch.0 < u32::MAX && self.compactor.epoch.0 < u32::MAX,
                "an epoch after which there is none",
            ),
            (self.version == self.manifest.version, "version is not its manifest's"),
            (
                self.replay_from >= WalId::FIRST && self.replay_from <= WalId::MAX,
                "replay_from is not on any chain",
            ),
            (self.history_from >= 1, "history_from is before the first version"),
            (self.history_from <= self.version, "history_from is above version"),
        ];
        match laws.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, broken)) => Err(Corrupt::new(*broken)),
        }
    }
}

/// The tail behind these bytes.
fn tail(head: &[u8]) -> String {
    format!(",\n  \"crc\": \"{:08x}\"\n}}\n", crc32c::crc32c(head))
}

#[cfg(test)]
mod tests;
