//! Compactors, collectors and a flushing writer over a bucket whose network lies.
//!
//! Compactors are started beside one another, fence each other, stall and are killed anywhere;
//! collectors keep nothing for anybody. In the end every key must read as its whole history does,
//! and nothing but the tree may be left. Operands are among the entries, since an input that was
//! merged twice, or an expired base that was dropped too early, shows in a sum. The story of whole
//! clusters has all of this too, but hardly ever a base that expires between an operand and the
//! merge that would join them; here that is what everybody writes.
//!
//! `CAIRN_SIM_FROM` and `CAIRN_SIM_SEEDS` choose the seeds; a failure prints its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::clock::{Clock, TokioClock};
use cairn_common::env::{Cpu, Env, Random, SeededRandom};
use cairn_common::error::Error;
use cairn_common::format::block::{Block, BlockCursor};
use cairn_common::format::current::Current;
use cairn_common::format::edit::{Edit, Flush};
use cairn_common::format::manifest::{SstInfo, WalRange};
use cairn_common::format::path::{Object, ObjectKind, OutputId};
use cairn_common::format::sst::{SstBuilder, SstMeta, SstOptions};
use cairn_common::lsm::visible::{resolve, write_time_ms};
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::{DatabaseId, Entry, Epoch, MergeOp, Payload, Role, Seq};
use cairn_compactor::board::Board;
use cairn_compactor::catalog::Catalog;
use cairn_compactor::config::{Config, PROGRAM};
use cairn_compactor::life::{Counters, Life};
use cairn_compactor::node::Phase;
use harness::faulty::{Faults, FaultyStore, Link, WALL_ORIGIN_MS};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const SEEDS: u64 = 48;
const STEPS: u64 = 60;
const KEYS: u64 = 24;

/// One simulated world.
pub(crate) struct World {
    store: FaultyStore,
    clock: Arc<dyn Clock>,
    random: Arc<SeededRandom>,
    processes: u64,
    seed: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let clock = TokioClock::starting_at(WALL_ORIGIN_MS);
        Self {
            store: FaultyStore::new(seed),
            clock: Arc::new(clock),
            random: Arc::new(SeededRandom::new(seed)),
            processes: 0,
            seed,
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    /// A process's own way to the bucket.
    fn process(&mut self) -> (Bucket, Env, Link) {
        self.processes += 1;
        let env = Env {
            clock: Arc::clone(&self.clock),
            random: Arc::new(SeededRandom::new(self.seed * 10_000 + self.processes)),
            cpu: Cpu::Inline,
        };
        let link = self.store.link();
        let settings = StoreSettings { part_bytes: 2_000, ..StoreSettings::default() };
        let bucket = Bucket::new(Arc::new(link.clone()), "db", settings, env.clone()).unwrap();
        (bucket, env, link)
    }

    fn compactor(&mut self, only: Option<&str>) -> Process {
        let only = only.map(|only| ("only", only));
        let counts = [("l0_count", "2"), ("tier_count", "2")];
        let settings: Vec<_> = counts.into_iter().chain(only).collect();
        self.compactor_with(&settings)
    }

    /// A compactor with these settings beside those of all.
    pub(crate) fn compactor_with(&mut self, further: &[(&str, &str)]) -> Process {
        let (bucket, env, link) = self.process();
        let mut settings = vec![
            ("store", "memory://"),
            ("sst_bytes", "4KiB"),
            ("read_ahead", "64KiB"),
            ("poll_interval", "200ms"),
            ("gc_interval", "2s"),
            ("retention", "0s"),
        ];
        settings.extend_from_slice(further);
        let config: Config = PROGRAM.with(&settings).unwrap();
        let (phase, _) = watch::channel(Phase::Starting);
        let (seen, _) = watch::channel(None);
        let (board, counters) = (Arc::new(Board::default()), Counters::default());
        let (url, shutdown) = (None, CancellationToken::new());
        let life = Life { config, bucket, env, url, board, phase, seen, counters };
        let mut task = JoinSet::new();
        task.spawn(life.run(shutdown.clone(), |_| {}));
        Process { link, shutdown, task }
    }
}

/// A compactor or collector that runs.
pub(crate) struct Process {
    link: Link,
    shutdown: CancellationToken,
    task: JoinSet<cairn_common::Result<()>>,
}

impl Process {
    /// Whether it has ended; only a fence may end it.
    fn has_ended(&mut self) -> bool {
        match self.task.try_join_next() {
            None => false,
            Some(ended) => {
                let ended = ended.unwrap();
                assert!(matches!(ended, Err(Error::Fenced { .. })), "{ended:?}");
                true
            }
        }
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.task.join_next().await {
            let ended = ended.unwrap();
            assert!(matches!(ended, Ok(()) | Err(Error::Fenced { .. })), "{ended:?}");
        }
    }
}

/// A writer that has nothing but memtables to flush.
pub(crate) struct Writer {
    bucket: Bucket,
    env: Env,
    manifests: Manifests,
    epoch: Epoch,
    seq: Seq,
    known: Snapshot,
    /// Every entry there ever was, by key, newest first.
    history: BTreeMap<Bytes, Vec<Entry>>,
}

impl Writer {
    pub(crate) async fn new(world: &mut World) -> Self {
        let (bucket, env, _) = world.process();
        let manifests = Manifests::new(bucket.clone(), env.clone());
        manifests.create().await.unwrap();
        let uuid = env.random.uuid();
        let claim = Claim { role: Role::Writer, uuid, url: None, lease: Duration::ZERO };
        let claimed = manifests.claim(&claim).await.unwrap();
        let (epoch, known) = (claimed.epoch, claimed.snapshot);
        Self { bucket, env, manifests, epoch, seq: Seq::ZERO, known, history: BTreeMap::new() }
    }

    async fn flush(&mut self, world: &World) {
        let keys: BTreeSet<u64> = (0..=world.below(8)).map(|_| world.below(KEYS)).collect();
        let entries: Vec<_> = keys.into_iter().map(|key| self.entry(key, world)).collect();
        self.flush_entries(entries).await;
    }

    /// The same payload under many keys; they expire after so long.
    pub(crate) async fn flush_many(
        &mut self,
        count: usize,
        payload: &Payload,
        expires_after: Option<Duration>,
    ) {
        let now_ms = self.env.clock.wall_ms();
        let expires_ms =
            expires_after.map(|after| now_ms + u64::try_from(after.as_millis()).unwrap());
        let entry = |number| Entry {
            key: Bytes::from(format!("key{number:05}")),
            seq: self.seq.next(),
            payload: payload.clone(),
            expires_ms,
        };
        let entries = (0..count).map(entry).collect();
        self.flush_entries(entries).await;
    }

    async fn flush_entries(&mut self, entries: Vec<Entry>) {
        self.seq = self.seq.next();
        let now_ms = self.env.clock.wall_ms();
        let (sst, from) = loop {
            let id =
                OutputId { role: Role::Writer, epoch: self.epoch, uuid: self.env.random.uuid() };
            let database = self.known.current.database;
            let mut builder = SstBuilder::new(database, id, SstOptions::default());
            for entry in &entries {
                builder.add(entry.as_ref());
            }
            let (bytes, info) = builder.finish();
            if self.bucket.put(&Object::Sst(id), bytes).await.is_ok() {
                break (info, self.known.current.replay_from);
            }
        };
        let flush = Flush {
            epoch: self.epoch,
            sst: Some(SstInfo { wal: Some(WalRange { from, to: from.next() }), ..sst }),
            replay_from: from.next(),
            flushed_seq: self.seq,
            time_ms: now_ms,
        };
        let edit = Edit::Flush(flush);
        self.known = self.manifests.commit(self.known.clone(), &edit).await.unwrap();
        for entry in entries {
            self.history.entry(entry.key.clone()).or_default().insert(0, entry);
        }
    }

    fn entry(&self, key: u64, world: &World) -> Entry {
        let now_ms = self.env.clock.wall_ms();
        let number = Bytes::from(world.below(100).to_string());
        let payload = match world.below(6) {
            0 => Payload::Tombstone,
            1 | 2 => Payload::Value(number),
            _ => Payload::Operand {
                op: MergeOp::Add,
                written_ms: write_time_ms(now_ms),
                operand: number,
            },
        };
        let may_expire = payload != Payload::Tombstone && world.below(3) == 0;
        let expires_ms = may_expire.then(|| now_ms + world.below(20_000));
        let key = Bytes::from(format!("key{key:02}"));
        Entry { key, seq: self.seq.next(), payload, expires_ms }
    }

    /// Says in CURRENT that writes stop at so many SSTs in L0.
    pub(crate) async fn publish_l0_stop(&mut self, l0_stop: u64) {
        let publish = |current: &Current| {
            let next = Current { l0_stop, ..current.clone() };
            Ok((next != *current).then_some(next))
        };
        self.known = self.manifests.amend(self.known.clone(), publish).await.unwrap();
    }

    async fn snapshot(&self) -> Snapshot {
        self.manifests.load().await.unwrap().unwrap()
    }

    /// How many SSTs are in L0, and how many runs there are.
    pub(crate) async fn shape(&self) -> (usize, usize) {
        let tree = self.snapshot().await.manifest;
        (tree.l0.len(), tree.runs.len())
    }

    /// An operand that is written now.
    pub(crate) fn operand(&self, number: &'static str) -> Payload {
        let written_ms = write_time_ms(self.env.clock.wall_ms());
        Payload::Operand { op: MergeOp::Add, written_ms, operand: number.into() }
    }

    /// Every key reads as its whole history does.
    pub(crate) async fn check(&self) {
        let now_ms = self.env.clock.wall_ms();
        let (found, _) = content(&self.bucket, &self.snapshot().await, now_ms).await;
        assert_eq!(found, self.expected(now_ms), "keys do not read as their histories do");
    }

    /// What every key should read as.
    fn expected(&self, now_ms: u64) -> BTreeMap<Bytes, Bytes> {
        let read = |(key, versions): (&Bytes, &Vec<Entry>)| {
            let found = resolve(versions.iter().map(Entry::as_ref), now_ms)?;
            Some((key.clone(), found.value))
        };
        self.history.iter().filter_map(read).collect()
    }
}

/// What every key reads as in the tree, and the SSTs of the tree.
async fn content(
    bucket: &Bucket,
    snapshot: &Snapshot,
    now_ms: u64,
) -> (BTreeMap<Bytes, Bytes>, BTreeSet<Object>) {
    let runs = Catalog::new(bucket.clone()).load(&snapshot.manifest.runs).await.unwrap();
    let ssts = snapshot.manifest.l0.iter().chain(runs.iter().flat_map(|run| &run.ssts));
    let mut keys: BTreeMap<Bytes, Vec<Entry>> = BTreeMap::new();
    let mut objects = BTreeSet::new();
    for sst in ssts {
        objects.insert(Object::Sst(sst.id));
        for entry in read_sst(bucket, snapshot.current.database, sst).await {
            keys.entry(entry.key.clone()).or_default().push(entry);
        }
    }
    let read = |(key, versions): (Bytes, Vec<Entry>)| {
        let found = resolve(versions.iter().map(Entry::as_ref), now_ms)?;
        Some((key, found.value))
    };
    (keys.into_iter().filter_map(read).collect(), objects)
}

async fn read_sst(bucket: &Bucket, database: DatabaseId, sst: &SstInfo) -> Vec<Entry> {
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

async fn simulate(seed: u64) {
    let mut world = World::new(seed);
    let mut writer = Writer::new(&mut world).await;
    world.store.set_faults(Faults::rough());
    let mut processes: Vec<Process> = Vec::new();
    for _ in 0..STEPS {
        match world.below(10) {
            0 | 1 if processes.len() < 4 => {
                let only = [None, None, Some("compact"), Some("gc")];
                let chosen = only[usize::try_from(world.below(4)).unwrap()];
                processes.push(world.compactor(chosen));
            }
            2 if !processes.is_empty() => {
                let chosen = world.below(u64::try_from(processes.len()).unwrap());
                drop(processes.remove(usize::try_from(chosen).unwrap()));
            }
            3 => {
                for process in &processes {
                    process.link.stall(Duration::from_millis(world.below(8_000)));
                }
            }
            4 => sleep(Duration::from_millis(world.below(10_000))).await,
            _ => writer.flush(&world).await,
        }
        sleep(Duration::from_millis(world.below(500))).await;
        processes.retain_mut(|process| !process.has_ended());
    }
    for process in processes {
        process.stop().await;
    }
    settle(&mut world, &writer).await;
}

/// Lets everything land, and one last compactor put the bucket in order.
async fn settle(world: &mut World, writer: &Writer) {
    world.store.set_faults(Faults::quiet());
    while world.store.is_anything_under_way() {
        sleep(Duration::from_secs(1)).await;
    }
    let last = world.compactor(None);
    sleep(Duration::from_mins(2)).await;
    last.stop().await;

    let (bucket, env, _) = world.process();
    let snapshot = Manifests::new(bucket.clone(), env).load().await.unwrap().unwrap();
    let now_ms = world.clock.wall_ms();
    let (found, ssts) = content(&bucket, &snapshot, now_ms).await;
    assert_eq!(found, writer.expected(now_ms), "seed {}", world.seed);
    assert!(snapshot.manifest.l0.len() < 2, "seed {}: L0 is not emptied", world.seed);
    let listed = bucket.list(ObjectKind::Sst).await.unwrap();
    let left: BTreeSet<Object> = listed.iter().map(|listed| listed.object).collect();
    assert!(left.is_superset(&ssts), "seed {}: an SST of the tree is gone", world.seed);
    let orphans: Vec<_> = left.difference(&ssts).collect();
    // What the last one itself gave up on stays until the next claims.
    let own = |object: &&&Object| match object {
        Object::Sst(id) => {
            id.role == Role::Compactor && id.epoch == snapshot.current.compactor.epoch
        }
        _ => false,
    };
    // The writer's epoch has not passed: SSTs whose PUT it was not sure of are its own to keep.
    let writers = |object: &&&Object| matches!(object, Object::Sst(id) if id.role == Role::Writer);
    let foreign = orphans.iter().filter(|object| !own(object) && !writers(object));
    assert_eq!(foreign.count(), 0, "seed {}: {orphans:?}", world.seed);
}

#[test]
fn compactors_and_collectors_lose_nothing_and_leave_nothing() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let from = number("CAIRN_SIM_FROM").unwrap_or(1);
    for seed in from..from + number("CAIRN_SIM_SEEDS").unwrap_or(SEEDS) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(simulate(seed));
        }));
        assert!(outcome.is_ok(), "seed {seed} failed: CAIRN_SIM_FROM={seed} CAIRN_SIM_SEEDS=1");
    }
}
