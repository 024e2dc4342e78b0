//! The run objects of a manifest, read once each, and the tree that the picker sees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cairn_common::error::Result;
use cairn_common::format::manifest::{Manifest, RunInfo, SstInfo};
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::run::Run;
use cairn_common::lsm::tree::{Stat, Tree};
use cairn_common::store::object::Bucket;
use cairn_common::types::DatabaseId;

/// Run objects that were read. They never change, so nothing here grows stale.
#[derive(Debug)]
pub struct Catalog {
    bucket: Bucket,
    runs: BTreeMap<OutputId, Arc<Run>>,
}

impl Catalog {
    /// A catalog that has read nothing.
    pub fn new(bucket: Bucket) -> Self {
        Self { bucket, runs: BTreeMap::new() }
    }

    /// The objects of these runs, in order. One GET for each that was not read before.
    ///
    /// # Errors
    /// `NotFound`: the manifest is an old one; `Corrupt`; `Unavailable`.
    pub async fn load(&mut self, infos: &[RunInfo]) -> Result<Vec<Arc<Run>>> {
        let mut loaded = Vec::with_capacity(infos.len());
        for info in infos {
            loaded.push(self.load_one(info).await?);
        }
        Ok(loaded)
    }

    /// The object of this run. One GET if it was not read before.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    pub async fn load_one(&mut self, info: &RunInfo) -> Result<Arc<Run>> {
        if let Some(run) = self.runs.get(&info.id) {
            return Ok(Arc::clone(run));
        }
        let run = Arc::new(self.read(info).await?);
        self.runs.insert(info.id, Arc::clone(&run));
        Ok(run)
    }

    /// Whether the object of this run was read.
    pub fn holds(&self, id: OutputId) -> bool {
        self.runs.contains_key(&id)
    }

    /// The object of a run that has left the tree, of which only the name is left. One GET if it
    /// was not read before.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    pub async fn load_retired(&mut self, id: OutputId, database: DatabaseId) -> Result<Arc<Run>> {
        if let Some(run) = self.runs.get(&id) {
            return Ok(Arc::clone(run));
        }
        let object = Object::Run(id);
        let parse = |bytes: Bytes| Run::parse_retired(&bytes, id, database);
        let run = Arc::new(self.bucket.read_parsed(&object, None, parse).await?);
        self.runs.insert(id, Arc::clone(&run));
        Ok(run)
    }

    /// Forgets every run but these.
    pub fn keep(&mut self, runs: &BTreeSet<OutputId>) {
        self.runs.retain(|id, _| runs.contains(id));
    }

    async fn read(&self, info: &RunInfo) -> Result<Run> {
        let object = Object::Run(info.id);
        let parse = |bytes: Bytes| {
            let run = Run::parse(&bytes, &info.digest)?;
            run.check_named_by(info)?;
            Ok(run)
        };
        match &info.home {
            Some(home) => self.bucket.rooted(&home.root)?.read_parsed(&object, None, parse).await,
            None => self.bucket.read_parsed(&object, None, parse).await,
        }
    }
}

/// The tree of a manifest and its run objects, as the picker sees it. A run whose object is not
/// among them counts as damaged.
pub fn tree_of(manifest: &Manifest, runs: &[Arc<Run>]) -> Tree {
    let now_ms = manifest.time_ms;
    let runs: BTreeMap<_, _> = runs.iter().map(|run| (run.id, &**run)).collect();
    let stat = |info: &RunInfo| stat_of_run(info, runs.get(&info.id).copied(), now_ms);
    Tree {
        l0: manifest.l0.iter().map(|sst| stat_of_sst(sst, now_ms)).collect(),
        runs: manifest.runs.iter().map(stat).collect(),
        now_ms,
    }
}

fn stat_of_sst(sst: &SstInfo, now_ms: u64) -> Stat {
    Stat {
        id: sst.id.uuid,
        bytes: sst.bytes,
        ssts: 1,
        entries: sst.entries,
        tombstones: sst.tombstones,
        operands: sst.operands,
        first_key: sst.first_key.clone(),
        last_key: sst.last_key.clone(),
        expired_bytes: expired_bytes(sst, now_ms),
        age_ms: 0,
        damaged: false,
    }
}

fn stat_of_run(info: &RunInfo, run: Option<&Run>, now_ms: u64) -> Stat {
    let ssts = run.map(|run| run.ssts.as_slice()).unwrap_or_default();
    Stat {
        id: info.id.uuid,
        bytes: info.bytes,
        ssts: info.ssts,
        entries: info.entries,
        tombstones: info.tombstones,
        operands: info.operands,
        first_key: info.first_key.clone(),
        last_key: info.last_key.clone(),
        expired_bytes: ssts.iter().map(|sst| expired_bytes(sst, now_ms)).sum(),
        age_ms: 0,
        damaged: run.is_none(),
    }
}

fn expired_bytes(sst: &SstInfo, now_ms: u64) -> u64 {
    match sst.expires {
        Some(expires) if expires.latest_ms <= now_ms => sst.bytes,
        _ => 0,
    }
}
