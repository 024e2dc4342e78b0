//! A run object: the SSTs of one sorted run, so that a manifest holds one line per run.
//!
//! **Layout**: JSON in one zstd frame, named with the digest of its bytes ([`super::frame`]).
//!
//! ```text
//! {"format":1,"database":"0198f2c4-…-01","id":"c00000001-0198f2c4-…-04",
//!  "ssts":[{"id":"c00000001-0198f2c4-…-06","bytes":65536, …,"first_key":"a","last_key":"m", …},
//!          {"id":"c00000001-0198f2c4-…-07","bytes":65536, …,"first_key":"n","last_key":"z", …}]}
//! ```
//!
//! **Invariants**
//! - Never changed, and at least one SST.
//! - The SSTs ascend and share no key. Their bounds may: bounds are cut to 256 bytes (the first
//!   down, the last up), so two long keys with one beginning make bounds that touch or cross.

use std::collections::HashSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::manifest::{Digest, RunInfo, SstInfo, law};
use super::path::OutputId;
use super::unknown::Unknown;
use super::{Corrupt, FORMAT, frame};
use crate::limits::BOUND_BYTES_MAX;
use crate::types::{DatabaseId, Role};

/// The SSTs of one sorted run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The format's version.
    pub format: u32,
    /// The database it belongs to.
    pub database: DatabaseId,
    /// Its own name.
    pub id: OutputId,
    /// Ascending by key; no key lies in two of them.
    pub ssts: Vec<SstInfo>,
}

impl Run {
    /// A run of these SSTs, ascending.
    pub fn new(database: DatabaseId, id: OutputId, ssts: Vec<SstInfo>) -> Self {
        Self { format: FORMAT, database, id, ssts }
    }

    /// The object's bytes, and their digest for the manifest that names it.
    pub fn encode(&self) -> (Bytes, Digest) {
        assert_eq!(self.check(), Ok(()), "a run that could not be read back");
        frame::encode(self)
    }

    /// The run of these bytes, if they are those of the digest.
    ///
    /// # Errors
    /// `Corrupt` where they are not, or break an invariant.
    pub fn parse(bytes: &[u8], digest: &Digest) -> Result<Self, Corrupt> {
        let run: Self = frame::parse(bytes, digest)?;
        run.check()?;
        Ok(run)
    }

    /// The run of this name, of which no digest is known any more since it has left the tree: the
    /// frame's own checksum is what it is held to.
    ///
    /// # Errors
    /// `Corrupt` if the bytes are another run's, or break an invariant.
    pub fn parse_retired(
        bytes: &[u8],
        id: OutputId,
        database: DatabaseId,
    ) -> Result<Self, Corrupt> {
        let run = Self::parse(bytes, &Digest::of(bytes))?;
        law(run.id == id && run.database == database, || {
            format!("it is run {} of database {}", run.id, run.database)
        })?;
        Ok(run)
    }

    /// What a manifest says of this run, whose object has this digest and size.
    pub fn info(&self, digest: Digest, object_bytes: u64) -> RunInfo {
        let sum =
            |field: fn(&SstInfo) -> u64| self.ssts.iter().map(field).fold(0, u64::saturating_add);
        RunInfo {
            id: self.id,
            digest,
            object_bytes,
            ssts: self.ssts.len() as u64,
            bytes: sum(|sst| sst.bytes),
            entries: sum(|sst| sst.entries),
            tombstones: sum(|sst| sst.tombstones),
            operands: sum(|sst| sst.operands),
            first_key: self.ssts.first().map(|sst| sst.first_key.clone()).unwrap_or_default(),
            last_key: self.ssts.last().map(|sst| sst.last_key.clone()).unwrap_or_default(),
            home: None,
            unknown: Unknown::default(),
        }
    }

    /// Whether this is the run that a manifest means by `info`.
    ///
    /// # Errors
    /// `Corrupt` where name, sums or bounds differ.
    pub fn check_named_by(&self, info: &RunInfo) -> Result<(), Corrupt> {
        let named = RunInfo {
            home: info.home.clone(),
            unknown: info.unknown.clone(),
            ..self.info(info.digest, info.object_bytes)
        };
        law(named == *info, || format!("it is not what the manifest says of {}", info.id))
    }

    /// The invariants that every run keeps.
    ///
    /// # Errors
    /// `Corrupt` names the first that is broken.
    pub fn check(&self) -> Result<(), Corrupt> {
        law(self.format == FORMAT, || {
            format!("format {}, this Cairn knows {FORMAT}", self.format)
        })?;
        law(self.id.role == Role::Compactor, || format!("run {} is not a compactor's", self.id))?;
        law(!self.ssts.is_empty(), || format!("run {} has no SSTs", self.id))?;
        let mut ids = HashSet::new();
        for sst in &self.ssts {
            sst.check()?;
            law(ids.insert(sst.id), || format!("SST {} stands in it twice", sst.id))?;
        }
        let neighbours = self.ssts.iter().zip(self.ssts.iter().skip(1));
        let crossed =
            neighbours.filter(|(left, right)| !ascends(left, right)).map(|(_, right)| right);
        match crossed.map(|right| right.id).next() {
            None => Ok(()),
            Some(id) => Err(Corrupt(format!("SST {id} is not above its predecessor"))),
        }
    }
}

/// Whether the bounds allow that every key of `left` is below every key of `right`.
fn ascends(left: &SstInfo, right: &SstInfo) -> bool {
    // A bound that was cut up is at most the next first key; only where that was cut down, too,
    // can the two cross.
    let may_cross = right.first_key.len() == BOUND_BYTES_MAX;
    left.first_key <= right.first_key
        && left.last_key <= right.last_key
        && (left.last_key <= right.first_key || may_cross)
}

#[cfg(test)]
mod tests;
