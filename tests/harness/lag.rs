//! A reader over a slow store, while a writer writes and flushes: how old the views are that it
//! shows. Writer, reader and compactor run in this process, with their default settings.
//!
//! The lag that a reader says is held to what was acknowledged: whatever was, so long before a view
//! was taken, is in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::env::Env;
use cairn_common::format::sst::SstOptions;
use cairn_common::http::reads::{Level, ReadRequest, Views};
use cairn_common::http::request::{Deadline, Staleness};
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::store::sst::{MetaBudget, SstStore};
use cairn_common::types::{Op, Payload, Role, Seq};
use cairn_compactor::board::Board;
use cairn_compactor::life::{Counters, Life};
use cairn_compactor::node::Phase;
use cairn_reader::follow::{Tail, find};
use cairn_reader::node::ReaderNode;
use cairn_reader::sights::Sights;
use cairn_writer::engine::{Engine, Parts};
use cairn_writer::service::{Durability, Write, Writer};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

/// Between two looks at what the reader shows.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// Between two looks at whether another put is due.
const TICK: Duration = Duration::from_millis(5);
/// Distinct keys.
const KEYS: u64 = 2_000;
const VALUE: &[u8] = &[b'v'; 64];

/// What requests of the store take.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// A GET, also a conditional one.
    pub get: Duration,
    /// A PUT.
    pub put: Duration,
}

impl Latency {
    /// The most that the lag may be in all but one of a hundred reads: one poll interval, three
    /// GETs, and half a second.
    pub fn lag_max(&self) -> Duration {
        Duration::from_millis(1_500) + 3 * self.get
    }
}

/// A stretch of load.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Durable puts a second.
    pub rate: u32,
    /// Between two flushes, if any are asked for.
    pub flush_every: Option<Duration>,
    /// How long.
    pub span: Duration,
}

/// What the reader said during a stage.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// In milliseconds, ascending.
    pub lags_ms: Vec<u64>,
    /// Reads that were refused, by code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Puts that were acknowledged.
    pub puts: usize,
}

impl Seen {
    /// The lag below which so many of a hundred are.
    pub fn percentile(&self, percent: usize) -> u64 {
        let last = self.lags_ms.len().saturating_sub(1);
        self.lags_ms.get(last * percent / 100).copied().unwrap_or(u64::MAX)
    }
}

/// A cluster in this process.
struct Site {
    env: Env,
    writer: Arc<Writer>,
    node: ReaderNode,
    /// When each acknowledged seq was, by boot time; both ascend.
    acked: Mutex<Vec<(Duration, Seq)>>,
}

/// Runs the stages one after the other; says of each what a reader showed.
///
/// # Errors
/// Whatever ends one of the processes.
pub async fn measure(env: &Env, latency: Latency, stages: &[Stage]) -> Result<Vec<Seen>, Error> {
    let config = ThrottleConfig {
        wait_get_per_call: latency.get,
        wait_put_per_call: latency.put,
        ..ThrottleConfig::default()
    };
    let store = Arc::new(ThrottledStore::new(InMemory::new(), config));
    let bucket = |env: &Env| {
        Bucket::new(Arc::clone(&store) as _, "db", StoreSettings::default(), env.clone())
    };
    let (engine, bucket_of_reader) = (open(env, bucket(env)?).await?, bucket(env)?);
    let mut tasks = JoinSet::new();
    tasks.spawn(compact(env.clone(), bucket(env)?));
    let (tail, node) = follow(env, bucket_of_reader).await?;
    tasks.spawn(tail.run(CancellationToken::new()));
    node.sights().first().await;
    let writer = Arc::clone(engine.writer());
    let site = Arc::new(Site { env: env.clone(), writer, node, acked: Mutex::default() });
    let mut seen = Vec::new();
    for stage in stages {
        tokio::select! {
            Some(ended) = tasks.join_next() => ended.expect("no process panics")?,
            of_stage = site.run(stage) => seen.push(of_stage),
        }
    }
    assert_eq!(seen.len(), stages.len(), "a process has ended");
    tasks.shutdown().await;
    drop(site);
    engine.close().await?;
    Ok(seen)
}

async fn open(env: &Env, bucket: Bucket) -> Result<Engine, Error> {
    let (cache, meta) = (BlockCache::memory_only(64 << 20), MetaBudget { bytes: 64 << 20 });
    let parts = Parts { env: env.clone(), bucket, cache, meta, sst: SstOptions::default() };
    let config: cairn_writer::config::Config =
        cairn_writer::config::PROGRAM.with(&[("store", "memory://"), ("wal_interval", "50ms")])?;
    let snapshot = parts.manifests().create().await?;
    let (uuid, lease) = (env.random.uuid(), config.lease.0);
    let claim = Claim { role: Role::Writer, uuid, url: None, lease };
    let mut engine = Engine::open(&parts, snapshot.current.database, &config.log, &claim).await?;
    engine.hold().await?;
    Ok(engine)
}

async fn compact(env: Env, bucket: Bucket) -> Result<(), Error> {
    let config = cairn_compactor::config::PROGRAM.with(&[("store", "memory://")])?;
    let (phase, _) = watch::channel(Phase::Starting);
    let (seen, _) = watch::channel(None);
    let (board, counters) = (Arc::new(Board::default()), Counters::default());
    let life = Life { config, bucket, env, url: None, board, phase, seen, counters };
    life.run(CancellationToken::new(), |_| ()).await
}

async fn follow(env: &Env, bucket: Bucket) -> Result<(Tail, ReaderNode), Error> {
    let config: cairn_reader::config::Config =
        cairn_reader::config::PROGRAM.with(&[("store", "memory://")])?;
    let found = find(&bucket, env, config.follow.poll_interval.0).await?;
    let cache = BlockCache::memory_only(64 << 20);
    let (database, meta) = (found.current.database, MetaBudget { bytes: 64 << 20 });
    let ssts = SstStore::new(bucket.clone(), database, cache.clone(), meta, env.clone());
    let sights = Arc::new(Sights::default());
    let node = ReaderNode::new(env.clone(), bucket, cache, &config, Arc::clone(&sights));
    Ok((Tail::new(env.clone(), Arc::new(ssts), found, config.follow, sights), node))
}

impl Site {
    async fn run(self: &Arc<Self>, stage: &Stage) -> Seen {
        let before = self.acked.lock().expect("no panic holds it").len();
        let ends = self.env.clock.boot() + stage.span;
        let (mut seen, (), ()) = tokio::join!(
            self.sample(ends),
            self.load(stage.rate, ends),
            self.flush(stage.flush_every, ends),
        );
        seen.puts = self.acked.lock().expect("no panic holds it").len() - before;
        seen
    }

    /// Puts at a rate, each as soon as it is due.
    async fn load(self: &Arc<Self>, rate: u32, ends: Duration) {
        let began = self.env.clock.boot();
        let (mut sent, mut puts) = (0, JoinSet::new());
        while self.env.clock.boot() < ends {
            let passed = self.env.clock.boot().saturating_sub(began);
            let due = passed.as_millis() * u128::from(rate) / 1_000;
            while u128::from(sent) < due {
                puts.spawn(Arc::clone(self).put(sent % KEYS));
                sent += 1;
            }
            while let Some(put) = puts.try_join_next() {
                put.expect("no put panics");
            }
            sleep(TICK).await;
        }
        puts.join_all().await;
    }

    async fn flush(&self, every: Option<Duration>, ends: Duration) {
        let Some(every) = every else { return };
        let mut due = interval(every);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.env.clock.boot() < ends {
            due.tick().await;
            assert!(self.writer.flush().await.is_ok(), "a flush was refused");
        }
    }

    async fn put(self: Arc<Self>, key: u64) {
        let payload = Payload::Value(Bytes::from_static(VALUE));
        let ops = vec![Op { key: format!("key {key}").into(), payload, expires_ms: None }];
        let deadline = Deadline::after(Duration::from_secs(10)).instant();
        let write = Write { ops, condition: None, durability: Durability::Durable, deadline };
        let Ok(seq) = self.writer.write(write).await else { panic!("a put was refused") };
        let mut acked = self.acked.lock().expect("no panic holds it");
        let newest = acked.last().map_or(seq, |(_, newest)| seq.max(*newest));
        acked.push((self.env.clock.boot(), newest));
    }

    async fn sample(&self, ends: Duration) -> Seen {
        let mut seen = Seen::default();
        while self.env.clock.boot() < ends {
            let (level, staleness) = (Level::Durable, Staleness::Bounded);
            let deadline = Deadline::after(Duration::from_secs(1));
            let request = ReadRequest { min_seq: None, deadline, level, staleness };
            let now = self.env.clock.boot();
            match self.node.view(request).await {
                Ok(answer) => {
                    let lag_ms = answer.lag_ms.expect("a reader says how far it is behind");
                    seen.lags_ms.push(lag_ms);
                    self.check(now.saturating_sub(Duration::from_millis(lag_ms)), answer.view.seq);
                }
                Err(problem) => *seen.refused.entry(problem.code.name()).or_default() += 1,
            }
            sleep(SAMPLE_INTERVAL).await;
        }
        seen.lags_ms.sort_unstable();
        seen
    }

    /// Whatever was acknowledged before `as_of` is in a view at `seq`.
    fn check(&self, as_of: Duration, seq: Seq) {
        let acked = self.acked.lock().expect("no panic holds it");
        let before = acked.partition_point(|(at, _)| *at < as_of);
        let newest = before.checked_sub(1).map_or(Seq::ZERO, |last| acked[last].1);
        assert!(seq >= newest, "a view at {seq} is called as fresh as {as_of:?}, without {newest}");
    }
}
