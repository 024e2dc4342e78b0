//! Random operations on a database against a model, over the real formats: the writer's engine, the
//! compactor's jobs and a reader of its own, on one bucket in memory, seed by seed.
//!
//! `MODEL_SEED=17 cargo test -p cairn-tests --test it model::` does one seed alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_common::format::block::Compression;
use cairn_common::format::sst::SstOptions;
use cairn_common::format::wal::WalKind;
use cairn_common::lsm::memtable::Memtable;
use cairn_common::lsm::visible::{Found, write_time_ms};
use cairn_common::read::scan::Row;
use cairn_common::read::view::{OpenTree, View};
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::Snapshot;
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::store::sst::{MetaBudget, SstStore};
use cairn_common::store::wal::Wal;
use cairn_common::types::{Batch, Direction, KeyRange, MergeOp, Op, Payload, Role, Seq};
use cairn_compactor::pick::PickConfig;
use cairn_writer::config::{Config, LogConfig, PROGRAM};
use cairn_writer::engine::{Engine, Parts};
use cairn_writer::service::{Durability, Write};
use harness::compaction::Compactions;
use harness::forest;
use harness::model::{Model, State, is_live, live};
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const SEEDS: u64 = 64;
const OPERATIONS: u64 = 10_000;
/// Keys: few, so that versions pile up and meet in every way.
const KEYS: u32 = 400;

/// How long what has left the tree is kept: the writer looks for a new tree every second.
const RETENTION: Duration = Duration::from_secs(5);

/// What is done, and in how many of a hundred operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Put,
    PutWithTtl,
    Delete,
    Merge,
    Batch,
    Get,
    GetMany,
    Scan,
    ScanInReverse,
    Flush,
    Compact,
    Collect,
    Reopen,
    Crash,
    Evict,
    ReadAtSeq,
}

const WEIGHTS: [(Kind, u32); 16] = [
    (Kind::Put, 24),
    (Kind::PutWithTtl, 6),
    (Kind::Delete, 9),
    (Kind::Merge, 9),
    (Kind::Batch, 6),
    (Kind::Get, 20),
    (Kind::GetMany, 3),
    (Kind::Scan, 4),
    (Kind::ScanInReverse, 4),
    (Kind::Flush, 3),
    (Kind::Compact, 2),
    (Kind::Collect, 2),
    (Kind::Reopen, 2),
    (Kind::Crash, 2),
    (Kind::Evict, 2),
    (Kind::ReadAtSeq, 2),
];

/// How often each kind was done.
type Tally = BTreeMap<Kind, u64>;

#[test]
fn a_database_equals_its_model() {
    if let Some(seed) = std::env::var("MODEL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        work_off(seed, &mut Tally::new());
        return;
    }
    let seeds = AtomicU64::new(0);
    let worker = || {
        let mut tally = Tally::new();
        loop {
            let seed = seeds.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return tally;
            }
            work_off(seed, &mut tally);
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut total = Tally::new();
    for (kind, count) in tallies.into_iter().flatten() {
        *total.entry(kind).or_default() += count;
    }
    assert_eq!(total.values().sum::<u64>(), SEEDS * OPERATIONS);
    for (kind, _) in WEIGHTS {
        let count = total.get(&kind).copied().unwrap_or(0);
        let least = SEEDS * OPERATIONS / 100;
        assert!(count >= least, "{kind:?}: {count} of {} operations", SEEDS * OPERATIONS);
    }
}

fn work_off(seed: u64, tally: &mut Tally) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(run(seed, tally));
}

async fn run(seed: u64, tally: &mut Tally) {
    let mut database = Database::create(seed).await;
    let weights = WEIGHTS.map(|(_, weight)| weight);
    let kinds = WeightedIndex::new(weights).unwrap();
    for step in 0..OPERATIONS {
        database.step = step;
        let pause = if database.rng.random_ratio(1, 200) { 2_000 } else { 20 };
        let pause = Duration::from_millis(database.rng.random_range(0..pause));
        tokio::time::sleep(pause).await;
        let kind = WEIGHTS[kinds.sample(&mut database.rng)].0;
        database.perform(kind).await;
        *tally.entry(kind).or_default() += 1;
    }
}

/// One bucket with a writer, a compactor, a reader, and the model of what is in it.
struct Database {
    seed: u64,
    step: u64,
    rng: SmallRng,
    parts: Parts,
    log: LogConfig,
    wal: Wal,
    engine: Option<Engine>,
    compactions: Compactions,
    /// The reader's own caches, and the tree that it opened last.
    reader: Arc<SstStore>,
    reader_tree: Option<OpenTree>,
    model: Model,
    /// Acknowledged as durable.
    durable: Seq,
}

impl Database {
    async fn create(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let env = forest::env(seed);
        let settings = StoreSettings::default();
        let bucket = Bucket::open("memory://", settings, env.clone()).unwrap();
        // From caches that hold next to nothing to caches that hold everything.
        let cache_bytes = *[0, 4_000, 40_000, 1 << 20].choose(&mut rng).unwrap();
        let meta = MetaBudget { bytes: *[0, 10_000, 1 << 20].choose(&mut rng).unwrap() };
        let compression = *[Compression::None, Compression::Lz4].choose(&mut rng).unwrap();
        let sst = SstOptions { block_bytes: 400, compression, filter_bits_per_key: 10 };
        let cache = BlockCache::memory_only(cache_bytes);
        let parts = Parts { env: env.clone(), bucket: bucket.clone(), cache, meta, sst };
        let snapshot = parts.manifests().create().await.unwrap();
        let database = snapshot.current.database;
        let log = PROGRAM.with::<Config>(&[
            ("store", "memory://"),
            // Compactions come when they are drawn, not when L0 asks for them.
            ("l0_slowdown", "1000"),
            ("l0_stop", "2000"),
            ("wal_interval", if rng.random() { "0ms" } else { "20ms" }),
        ]);
        let reader_cache = BlockCache::memory_only(cache_bytes);
        let reader = SstStore::new(bucket.clone(), database, reader_cache, meta, env.clone());
        let mut database = Self {
            seed,
            step: 0,
            rng,
            log: log.unwrap().log,
            wal: Wal::new(bucket.clone(), database),
            engine: None,
            compactions: Compactions::claim(&bucket, &env, (sst, 4_000), RETENTION).await.unwrap(),
            parts,
            reader: Arc::new(reader),
            reader_tree: None,
            model: Model::default(),
            durable: Seq::ZERO,
        };
        database.open().await;
        database
    }

    /// Where a failure is.
    fn place(&self) -> String {
        format!("seed {}, step {}", self.seed, self.step)
    }

    fn sound<T, E: std::fmt::Debug>(&self, outcome: Result<T, E>) -> T {
        outcome.unwrap_or_else(|error| panic!("{}: {error:?}", self.place()))
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("it is open between operations")
    }

    async fn open(&mut self) {
        let uuid = self.parts.env.random.uuid();
        let lease = Duration::from_secs(2);
        let claim = Claim { role: Role::Writer, uuid, url: None, lease };
        let database = self.reader.database();
        let opened = Engine::open(&self.parts, database, &self.log, &claim).await;
        let mut engine = self.sound(opened);
        let held = engine.hold().await;
        self.sound(held);
        self.engine = Some(engine);
    }

    async fn perform(&mut self, kind: Kind) {
        match kind {
            Kind::Put | Kind::PutWithTtl | Kind::Delete | Kind::Merge => {
                let op = self.op(kind);
                self.write(vec![op]).await;
            }
            Kind::Batch => self.write_batch().await,
            Kind::Get => self.get().await,
            Kind::GetMany => self.get_many().await,
            Kind::Scan => self.scan(Direction::Forward).await,
            Kind::ScanInReverse => self.scan(Direction::Reverse).await,
            Kind::Flush => self.flush().await,
            Kind::Compact => self.compact().await,
            Kind::Collect => {
                let collected = self.compactions.collect().await;
                self.sound(collected);
            }
            Kind::Reopen => self.reopen().await,
            Kind::Crash => self.crash().await,
            Kind::Evict => self.parts.cache.clear_memory(),
            Kind::ReadAtSeq => self.read_at_seq().await,
        }
    }

    fn key(&mut self) -> Bytes {
        let number = self.rng.random_range(0..KEYS);
        // Some are longer than the bounds in manifests.
        let width = if number.is_multiple_of(20) { 300 } else { 3 };
        format!("k{number:0width$}").into()
    }

    fn op(&mut self, kind: Kind) -> Op {
        let now_ms = self.parts.env.clock.wall_ms();
        let key = self.key();
        let number = Bytes::from(self.rng.random_range(-99..100_i64).to_string());
        let payload = match kind {
            Kind::Delete => Payload::Tombstone,
            Kind::Merge => Payload::Operand {
                op: *[MergeOp::Add, MergeOp::Max, MergeOp::Min, MergeOp::Append]
                    .choose(&mut self.rng)
                    .unwrap(),
                written_ms: write_time_ms(now_ms),
                operand: number,
            },
            _ if self.rng.random() => Payload::Value(number),
            _ => Payload::Value(vec![self.rng.random(); self.rng.random_range(0..60)].into()),
        };
        let ttl_ms = self.rng.random_range(20..5_000);
        let expires_ms = (kind == Kind::PutWithTtl).then(|| now_ms + ttl_ms);
        Op { key, payload, expires_ms }
    }

    async fn write_batch(&mut self) {
        let mut ops: BTreeMap<Bytes, Op> = BTreeMap::new();
        for _ in 0..self.rng.random_range(2..10) {
            let kinds = [Kind::Put, Kind::PutWithTtl, Kind::Delete, Kind::Merge];
            let kind = *kinds.choose(&mut self.rng).unwrap();
            let op = self.op(kind);
            ops.insert(op.key.clone(), op);
        }
        self.write(ops.into_values().collect()).await;
    }

    #[expect(clippy::disallowed_methods, reason = "deadlines count from tokio's clock")]
    async fn write(&mut self, ops: Vec<Op>) {
        let is_durable = self.rng.random_ratio(1, 4);
        let durability = if is_durable { Durability::Durable } else { Durability::Memory };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let write = Write { ops: ops.clone(), condition: None, durability, deadline };
        let written = self.engine().writer().write(write).await;
        let seq = self.sound(written);
        self.model.apply(Batch { seq, ops });
        if is_durable {
            self.durable = seq;
        }
    }

    /// A view of the writer, and what it must show.
    async fn view(&mut self) -> (Arc<View>, State, u64) {
        let writer = Arc::clone(self.engine().writer());
        let view = if self.rng.random() {
            let view = self.sound(writer.durable_view().await);
            assert!(view.seq >= self.durable, "{}: {} lags", self.place(), view.seq);
            view
        } else {
            let view = self.sound(writer.memory_view().await);
            assert!(view.seq >= self.model.last_seq(), "{}: {} lags", self.place(), view.seq);
            view
        };
        let state = self.model.at(view.seq).into_owned();
        (view, state, self.parts.env.clock.wall_ms())
    }

    async fn get(&mut self) {
        let (view, state, now_ms) = self.view().await;
        let key = self.key();
        let found = self.sound(view.get(&key, now_ms).await);
        assert_eq!(found.as_ref(), live(&state, &key, now_ms), "{}, {key:?}", self.place());
    }

    async fn get_many(&mut self) {
        let (view, state, now_ms) = self.view().await;
        let keys: Vec<Bytes> = (0..self.rng.random_range(1..20)).map(|_| self.key()).collect();
        let found = self.sound(view.get_many(&keys, now_ms).await);
        let wanted = keys.iter().map(|key| live(&state, key, now_ms).cloned());
        assert_eq!(found, wanted.collect::<Vec<Option<Found>>>(), "{}", self.place());
    }

    async fn scan(&mut self, direction: Direction) {
        let (view, state, now_ms) = self.view().await;
        let range = match self.rng.random_range(0..4) {
            0 => KeyRange::all(),
            1 => KeyRange::prefix(&self.key()[..2]),
            2 => KeyRange { start: self.key(), end: None },
            _ => KeyRange { start: self.key(), end: Some(self.key()) },
        };
        let limit = self.rng.random_range(1..50);
        self.compare_scan(&view, (&range, direction, limit), (&state, now_ms)).await;
    }

    async fn compare_scan(
        &self,
        view: &View,
        (range, direction, limit): (&KeyRange, Direction, usize),
        (state, now_ms): (&State, u64),
    ) {
        let wanted =
            state.iter().filter(|(key, found)| range.contains(key) && is_live(found, now_ms));
        let row = |(key, found): (&Bytes, &Found)| Row {
            key: key.clone(),
            value: found.value.clone(),
            seq: found.seq,
        };
        let wanted: Vec<Row> = match direction {
            Direction::Forward => wanted.map(row).take(limit).collect(),
            Direction::Reverse => wanted.rev().map(row).take(limit).collect(),
        };
        let mut scan = view.scan(range, direction, now_ms);
        let mut rows = Vec::new();
        while rows.len() < limit
            && let Some(row) = self.sound(scan.next().await)
        {
            rows.push(row);
        }
        assert_eq!(rows, wanted, "{}, {range:?} {direction:?}", self.place());
    }

    async fn flush(&mut self) {
        if self.engine().writer().front.load().unflushed_bytes == 0 {
            let op = self.op(Kind::Put);
            self.write(vec![op]).await;
        }
        let writer = Arc::clone(self.engine().writer());
        let flushed = self.sound(writer.flush().await);
        assert!(flushed >= self.model.last_seq(), "{}: {flushed} lags", self.place());
        self.durable = self.model.last_seq();
        self.model.settle(self.durable);
    }

    async fn compact(&mut self) {
        let config = PickConfig {
            l0_count: self.rng.random_range(1..4),
            tier_count: self.rng.random_range(2..4),
            inputs_max: self.rng.random_range(2..6),
            ..PickConfig::default()
        };
        let compacted = self.compactions.run_one(&config).await;
        if !self.sound(compacted) {
            self.flush().await;
            let compacted = self.compactions.run_one(&config).await;
            assert!(self.sound(compacted), "{}: L0 is not empty", self.place());
        }
    }

    async fn reopen(&mut self) {
        let engine = self.engine.take().expect("it is open between operations");
        let closed = engine.close().await;
        self.sound(closed);
        self.durable = self.model.last_seq();
        self.open().await;
    }

    /// Drops the writer as it is: what was not durable may be lost, from the newest back.
    async fn crash(&mut self) {
        drop(self.engine.take());
        // Aborted tasks are dropped when they would have run next.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (snapshot, log) = self.read_bucket().await;
        let recovered = log.last_seq().unwrap_or(snapshot.manifest.flushed_seq);
        let (durable, last) = (self.durable, self.model.last_seq());
        assert!(recovered >= durable, "{}: {durable} was lost", self.place());
        self.model.truncate(recovered.min(last));
        self.durable = self.model.last_seq();
        self.open().await;
    }

    /// What the bucket alone says: the manifest, and the log behind it.
    async fn read_bucket(&self) -> (Snapshot, Memtable) {
        let loaded = self.parts.manifests().load().await;
        let snapshot = self.sound(loaded).expect("a database that was created");
        let log = Memtable::new();
        let mut at = snapshot.current.replay_from;
        while let Some(object) = self.sound(self.wal.get(at).await) {
            object.batches.iter().for_each(|batch| log.insert(batch));
            at = match object.header.kind {
                WalKind::Data => at.next(),
                WalKind::Fence { next } => next,
            };
        }
        (snapshot, log)
    }

    async fn read_at_seq(&mut self) {
        let (snapshot, log) = self.read_bucket().await;
        let previous = self.reader_tree.as_ref();
        let tree = OpenTree::new(&self.reader, Arc::clone(&snapshot.manifest), previous);
        let flushed = snapshot.manifest.flushed_seq;
        let last = log.last_seq().unwrap_or(flushed).max(self.durable);
        let seq = Seq(self.rng.random_range(flushed.0..=last.0));
        let view = View::new(vec![Arc::new(log)], Arc::new(tree), seq);
        let state = self.model.at(seq).into_owned();
        let now_ms = self.parts.env.clock.wall_ms();
        for _ in 0..5 {
            let key = self.key();
            let found = self.sound(view.get(&key, now_ms).await);
            assert_eq!(found.as_ref(), live(&state, &key, now_ms), "{}, {key:?}", self.place());
        }
        let everything = (&KeyRange::all(), Direction::Forward, usize::MAX);
        self.compare_scan(&view, everything, (&state, now_ms)).await;
        self.reader_tree = Arc::into_inner(view.tree);
    }
}
