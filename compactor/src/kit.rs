//! What the tests share: a database in memory, a writer that only flushes, and lives to start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::clock::{Clock, SystemClock, TokioClock};
use cairn_common::config::Settings as _;
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::error::Result;
use cairn_common::format::block::{Block, BlockCursor};
use cairn_common::format::current::Current;
use cairn_common::format::edit::{Edit, Flush};
use cairn_common::format::manifest::{SstInfo, WalRange};
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::sst::{SstBuilder, SstMeta, SstOptions};
use cairn_common::lsm::visible;
use cairn_common::store::claim::{Claim, Claimed};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::{DatabaseId, Entry, Epoch, Payload, Role, Seq};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::catalog::Catalog;
use crate::config::{Config, PROGRAM};
use crate::life::{Counters, Life};
use crate::node::{CompactorNode, Phase};
use crate::withheld::Withheld;

/// Runs a test on a paused current-thread runtime.
pub(crate) fn run_paused<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(work)
}

/// Everything that the database holds at a time: key to value.
pub(crate) type Content = BTreeMap<Bytes, Bytes>;

/// A bucket in memory, and the writer of the database in it.
pub(crate) struct Kit {
    pub(crate) bucket: Bucket,
    pub(crate) env: Env,
    pub(crate) manifests: Manifests,
}

impl Kit {
    /// An empty bucket. Wall time begins at the real one, since the store stamps with that.
    pub(crate) fn new() -> Self {
        Self::over(Withheld::default())
    }

    /// The same over this store.
    pub(crate) fn over(store: Withheld) -> Self {
        let clock = TokioClock::starting_at(SystemClock::default().wall_ms());
        let env = Env {
            clock: Arc::new(clock),
            random: Arc::new(SeededRandom::new(7)),
            cpu: Cpu::Inline,
        };
        let bucket = Bucket::new(Arc::new(store), "db", StoreSettings::default(), env.clone());
        let bucket = bucket.unwrap();
        let manifests = Manifests::new(bucket.clone(), env.clone());
        Self { bucket, env, manifests }
    }

    /// The database, made if it is not there, and its writer.
    pub(crate) async fn writer(&self) -> Writer<'_> {
        self.manifests.create().await.unwrap();
        let claimed = self.claim(Role::Writer).await;
        Writer { kit: self, epoch: claimed.epoch, seq: claimed.snapshot.manifest.flushed_seq }
    }

    /// Claims a role for nobody in particular.
    pub(crate) async fn claim(&self, role: Role) -> Claimed {
        let uuid = self.env.random.uuid();
        let claim = Claim { role, uuid, url: None, lease: Duration::ZERO };
        self.manifests.claim(&claim).await.unwrap()
    }

    /// Says in CURRENT where the writer stops.
    pub(crate) async fn publish_l0_stop(&self, l0_stop: u64) {
        let publish = |current: &Current| {
            let next = Current { l0_stop, ..current.clone() };
            Ok((next != *current).then_some(next))
        };
        self.manifests.amend(self.snapshot().await, publish).await.unwrap();
    }

    /// What is there now.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        self.manifests.load().await.unwrap().unwrap()
    }

    /// A life with these settings beside those of tests, its node, and its end.
    pub(crate) fn start(&self, settings: &[(&str, &str)]) -> Started {
        let mut all = vec![("store", "memory://"), ("sst_bytes", "4KiB"), ("read_ahead", "64KiB")];
        all.extend_from_slice(settings);
        let config: Config = PROGRAM.with(&all).unwrap();
        config.check().unwrap();
        let (phase, phase_seen) = watch::channel(Phase::Starting);
        let (seen, snapshot_seen) = watch::channel(None);
        let board = Arc::new(Board::default());
        let node = CompactorNode {
            phase: phase_seen,
            seen: snapshot_seen,
            board: Arc::clone(&board),
            bucket: self.bucket.clone(),
            random: Arc::clone(&self.env.random),
        };
        let counters = Counters::default();
        let (bucket, env) = (self.bucket.clone(), self.env.clone());
        let life = Life { config, bucket, env, url: None, board, phase, seen, counters };
        let shutdown = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(life.run(shutdown.clone(), |_| {}));
        Started { node: Arc::new(node), shutdown, task }
    }

    /// Every key and value of the tree at this time.
    pub(crate) async fn content(&self, now_ms: u64) -> Content {
        let snapshot = self.snapshot().await;
        let runs = Catalog::new(self.bucket.clone()).load(&snapshot.manifest.runs).await.unwrap();
        let l0 = snapshot.manifest.l0.iter();
        let mut keys: BTreeMap<Bytes, Vec<Entry>> = BTreeMap::new();
        for sst in l0.chain(runs.iter().flat_map(|run| &run.ssts)) {
            for entry in read_sst(&self.bucket, snapshot.current.database, sst).await {
                keys.entry(entry.key.clone()).or_default().push(entry);
            }
        }
        let resolve = |(key, versions): (Bytes, Vec<Entry>)| {
            assert!(versions.is_sorted_by(|a, b| a.seq > b.seq), "newest source first");
            let found = visible::resolve(versions.iter().map(Entry::as_ref), now_ms)?;
            Some((key, found.value))
        };
        keys.into_iter().filter_map(resolve).collect()
    }
}

/// A life that was started.
pub(crate) struct Started {
    pub(crate) node: Arc<CompactorNode>,
    pub(crate) shutdown: CancellationToken,
    task: JoinSet<Result<()>>,
}

impl Started {
    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.task.join_next().await.unwrap().unwrap()
    }

    /// Tells it to stop and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.end().await.unwrap();
    }
}

/// A writer that has nothing but memtables to flush.
pub(crate) struct Writer<'a> {
    kit: &'a Kit,
    epoch: Epoch,
    seq: Seq,
}

impl Writer<'_> {
    /// Flushes one memtable with these values, or tombstones, at the present wall time.
    pub(crate) async fn flush(&mut self, entries: &[(&str, Option<&str>)]) {
        let entries = entries.iter().map(|(key, value)| {
            let payload = value.map_or(Payload::Tombstone, |value| {
                Payload::Value(Bytes::copy_from_slice(value.as_bytes()))
            });
            (Bytes::copy_from_slice(key.as_bytes()), payload, None)
        });
        self.flush_payloads(entries.collect()).await;
    }

    /// Flushes one memtable with these entries.
    pub(crate) async fn flush_payloads(&mut self, entries: Vec<(Bytes, Payload, Option<u64>)>) {
        self.seq = self.seq.next();
        let snapshot = self.kit.snapshot().await;
        let (env, database) = (&self.kit.env, snapshot.current.database);
        let uuid = env.random.uuid();
        let id = OutputId { role: Role::Writer, epoch: self.epoch, uuid };
        let mut builder = SstBuilder::new(database, id, SstOptions::default());
        let mut entries = entries;
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (key, payload, expires_ms) in entries {
            builder.add(Entry { key, seq: self.seq, payload, expires_ms }.as_ref());
        }
        let (bytes, info) = builder.finish();
        self.kit.bucket.put(&Object::Sst(id), bytes).await.unwrap();
        let from = snapshot.current.replay_from;
        let sst = SstInfo { wal: Some(WalRange { from, to: from.next() }), ..info };
        let flush = Flush {
            epoch: self.epoch,
            sst: Some(sst),
            replay_from: from.next(),
            flushed_seq: self.seq,
            time_ms: env.clock.wall_ms(),
        };
        self.kit.manifests.commit(snapshot, &Edit::Flush(flush)).await.unwrap();
    }
}

/// Every entry of an SST, in order.
pub(crate) async fn read_sst(bucket: &Bucket, database: DatabaseId, sst: &SstInfo) -> Vec<Entry> {
    let bytes = bucket.get(&Object::Sst(sst.id)).await.unwrap();
    let at = usize::try_from(sst.meta_offset).unwrap();
    let meta = SstMeta::parse(bytes.slice(at..), sst, database).unwrap();
    let mut entries = Vec::new();
    for block in 0..meta.block_count() {
        let range = meta.block_range(block);
        let stored = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let block = Block::parse(&bytes[stored], &sst.id, range.start).unwrap();
        let mut cursor = BlockCursor::new(block);
        cursor.first();
        while let Some(entry) = cursor.entry() {
            entries.push(entry.to_entry());
            cursor.next();
        }
    }
    entries
}
