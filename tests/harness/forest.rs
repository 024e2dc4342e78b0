//! Trees made by hand: entries put into SSTs, runs and manifests without any process, so that tests
//! and benchmarks choose the shape.

use std::sync::Arc;

use bytes::Bytes;
use cairn_common::clock::TokioClock;
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::format::manifest::{Manifest, RunInfo, SstInfo};
use cairn_common::format::path::{ManifestId, Object, OutputId};
use cairn_common::format::run::Run;
use cairn_common::format::sst::{SstBuilder, SstOptions};
use cairn_common::lsm::memtable::Memtable;
use cairn_common::lsm::visible::{Compaction, Rules};
use cairn_common::store::cache::BlockCache;
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::store::sst::{MetaBudget, SstStore};
use cairn_common::types::{Batch, DatabaseId, Entry, Epoch, Role, Seq};
use object_store::ObjectStore;
use uuid::Uuid;

/// The wall clock of tests begins here, Unix milliseconds: in the year 2100, so that what a store
/// in memory stamps with the machine's clock is old.
pub const ORIGIN_MS: u64 = 4_102_444_800_000;

/// An environment that depends on the seed and on tokio's clock alone. Needs a runtime.
pub fn env(seed: u64) -> Env {
    Env {
        clock: Arc::new(TokioClock::starting_at(ORIGIN_MS)),
        random: Arc::new(SeededRandom::new(seed)),
        cpu: Cpu::Inline,
    }
}

/// A bucket to plant trees in.
#[derive(Debug)]
pub struct Forest {
    bucket: Bucket,
    database: DatabaseId,
    options: SstOptions,
    env: Env,
}

impl Forest {
    /// An empty forest over a store.
    pub fn new(store: Arc<dyn ObjectStore>, options: SstOptions, env: Env) -> Self {
        let bucket = Bucket::new(store, "forest", StoreSettings::default(), env.clone());
        let database = Uuid::from_u128(7);
        Self { bucket: bucket.expect("a sound root"), database, options, env }
    }

    /// Where the objects are.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// SSTs with caches of these sizes.
    pub fn ssts(&self, cache_bytes: usize, meta_bytes: u64) -> Arc<SstStore> {
        Arc::new(SstStore::new(
            self.bucket.clone(),
            self.database,
            BlockCache::memory_only(cache_bytes),
            MetaBudget { bytes: meta_bytes },
            self.env.clone(),
        ))
    }

    fn output(&self, role: Role) -> OutputId {
        OutputId { role, epoch: Epoch(1), uuid: self.env.random.uuid() }
    }

    /// Stores an SST of these entries, which are in order.
    pub async fn sst(&self, role: Role, entries: &[Entry]) -> SstInfo {
        let id = self.output(role);
        let mut builder = SstBuilder::new(self.database, id, self.options);
        for entry in entries {
            builder.add(entry.as_ref());
        }
        let mut bytes = builder.take_bytes().to_vec();
        let (rest, info) = builder.finish();
        bytes.extend_from_slice(&rest);
        let stored = self.bucket.put(&Object::Sst(id), bytes.into()).await;
        stored.expect("a store that takes SSTs");
        info
    }

    /// Stores a run of these entries, which are in order, in about `ssts` SSTs.
    pub async fn run(&self, entries: &[Entry], ssts: usize) -> RunInfo {
        let mut infos = Vec::new();
        for part in cut(entries, ssts) {
            infos.push(self.sst(Role::Compactor, part).await);
        }
        self.run_of(infos).await
    }

    /// Stores a run of these SSTs.
    pub async fn run_of(&self, ssts: Vec<SstInfo>) -> RunInfo {
        let run = Run::new(self.database, self.output(Role::Compactor), ssts);
        let (bytes, digest) = run.encode();
        let object_bytes = u64::try_from(bytes.len()).expect("a small run");
        let stored = self.bucket.put(&Object::Run(run.id), bytes).await;
        stored.expect("a store that takes runs");
        run.info(digest, object_bytes)
    }

    /// A manifest that names these.
    pub fn manifest(&self, l0: Vec<SstInfo>, runs: Vec<RunInfo>, flushed: Seq) -> Arc<Manifest> {
        let id = ManifestId { version: 1, uuid: self.env.random.uuid() };
        let empty = Manifest::empty(self.database, id);
        Arc::new(Manifest { l0, runs, flushed_seq: flushed, ..empty })
    }
}

/// Entries in order as about `count` stretches; versions of one key stay together.
fn cut(entries: &[Entry], count: usize) -> Vec<&[Entry]> {
    let length = entries.len().div_ceil(count.max(1)).max(1);
    let mut parts = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut end = length.min(rest.len());
        while end < rest.len() && rest[end].key == rest[end - 1].key {
            end += 1;
        }
        let (part, behind) = rest.split_at(end);
        parts.push(part);
        rest = behind;
    }
    parts
}

/// The entries of batches in order, as they are.
pub fn entries_of(batches: &[Batch]) -> Vec<Entry> {
    let entries = batches.iter().flat_map(|batch| {
        batch.ops.iter().map(|op| Entry {
            key: op.key.clone(),
            seq: batch.seq,
            payload: op.payload.clone(),
            expires_ms: op.expires_ms,
        })
    });
    let mut entries: Vec<Entry> = entries.collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key).then(b.seq.cmp(&a.seq)));
    entries
}

/// What a compaction keeps of entries in order.
pub fn compacted(entries: &[Entry], rules: Rules) -> Vec<Entry> {
    let mut kept = Vec::new();
    let mut keep = |entry: cairn_common::types::EntryRef<'_>| {
        kept.push(entry.to_entry());
        Ok::<(), std::convert::Infallible>(())
    };
    let mut compaction = Compaction::new(rules);
    for entry in entries {
        let Ok(()) = compaction.push(entry.as_ref(), &mut keep);
    }
    let Ok(()) = compaction.finish(&mut keep);
    kept
}

/// A memtable of these batches.
pub fn memtable(batches: &[Batch]) -> Arc<Memtable> {
    let table = Memtable::new();
    for batch in batches {
        table.insert(batch);
    }
    Arc::new(table)
}

/// A key that sorts as its number does.
pub fn numbered(number: u64) -> Bytes {
    format!("key{number:012}").into()
}
