//! The engine on a paused runtime: time is virtual, so every duration here is exact.
#![expect(clippy::disallowed_methods, reason = "the paused clock of the runtime is the measure")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::clock::TokioClock;
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::error::Error;
use cairn_common::format::path::ObjectKind;
use cairn_common::format::sst::SstOptions;
use cairn_common::http::conditions::Conditions;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::store::sst::MetaBudget;
use cairn_common::types::{Op, Payload, Role, Seq};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::time::Instant;

use crate::condition::Condition;
use crate::config::{Config, LogConfig, PROGRAM};
use crate::engine::{Engine, Parts};
use crate::open::HeadStart;
use crate::service::{Durability, Unwritten, Write, Writer};

mod bounds;
mod holes;
mod role;
mod routes;
mod site;
mod standby;

/// What a PUT of the test store takes.
const PUT: Duration = Duration::from_millis(30);
const LEASE: Duration = Duration::from_secs(2);

/// One bucket, and writers that open it.
struct Rig {
    parts: Parts,
    store: Arc<ThrottledStore<Arc<InMemory>>>,
}

impl Rig {
    fn new() -> Self {
        let memory = Arc::new(InMemory::new());
        let store = Arc::new(ThrottledStore::new(memory, ThrottleConfig::default()));
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(1_700_000_000_000)),
            random: Arc::new(SeededRandom::new(7)),
            cpu: Cpu::Inline,
        };
        let bucket =
            Bucket::new(Arc::clone(&store) as _, "db", StoreSettings::default(), env.clone())
                .unwrap();
        let parts = Parts {
            env,
            bucket,
            cache: BlockCache::memory_only(1 << 20),
            meta: MetaBudget { bytes: 1 << 20 },
            sst: SstOptions::default(),
        };
        Self { parts, store }
    }

    /// Makes the store take every request and answer none from now on.
    fn take_away(&self) {
        let ages = Duration::from_hours(24);
        self.store.config_mut(|config| {
            (config.wait_put_per_call, config.wait_get_per_call) = (ages, ages);
        });
    }

    /// Makes every PUT take [`PUT`] from now on.
    fn slow_down(&self) {
        self.store.config_mut(|config| config.wait_put_per_call = PUT);
    }

    fn log(overrides: &[(&str, &str)]) -> LogConfig {
        let mut all = vec![("store", "memory://")];
        all.extend_from_slice(overrides);
        PROGRAM.with::<Config>(&all).unwrap().log
    }

    async fn open(&self, overrides: &[(&str, &str)]) -> Engine {
        self.open_with(HeadStart::none(), None, overrides).await
    }

    /// The same for a writer that others find at this URL.
    async fn open_at(&self, url: &str, overrides: &[(&str, &str)]) -> Engine {
        self.open_with(HeadStart::none(), Some(url), overrides).await
    }

    async fn open_with(
        &self,
        head: HeadStart,
        url: Option<&str>,
        overrides: &[(&str, &str)],
    ) -> Engine {
        let snapshot = self.parts.manifests().create().await.unwrap();
        let (uuid, url) = (self.parts.env.random.uuid(), url.map(str::to_owned));
        let claim = Claim { role: Role::Writer, uuid, url, lease: LEASE };
        let (database, log) = (snapshot.current.database, Self::log(overrides));
        let engine = Engine::open_from(head, &self.parts, database, &log, &claim).await;
        let mut engine = engine.unwrap();
        engine.hold().await.unwrap();
        engine
    }
}

fn put(key: &str, value: &str) -> Write {
    let payload = Payload::Value(Bytes::copy_from_slice(value.as_bytes()));
    let key = Bytes::copy_from_slice(key.as_bytes());
    Write {
        ops: vec![Op { key, payload, expires_ms: None }],
        condition: None,
        durability: Durability::Durable,
        deadline: Instant::now() + Duration::from_secs(10),
    }
}

async fn get(writer: &Writer, key: &str) -> Option<Bytes> {
    let view = writer.durable_view().await.unwrap();
    let now_ms = writer.env.clock.wall_ms();
    view.get(key.as_bytes(), now_ms).await.unwrap().map(|found| found.value)
}

#[tokio::test(start_paused = true)]
async fn an_isolated_durable_put_takes_one_put_and_no_timer() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    rig.slow_down();
    let writer = engine.writer();
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        writer.write(put("key", &round.to_string())).await.unwrap();
        assert_eq!(began.elapsed(), PUT);
    }
    assert_eq!(get(writer, "key").await.as_deref(), Some(&b"2"[..]));
}

#[tokio::test(start_paused = true)]
async fn clients_share_groups_and_the_interval_bounds_the_puts() {
    let rig = Rig::new();
    let engine = rig.open(&[("wal_interval", "50ms"), ("wal_window", "8")]).await;
    rig.slow_down();
    let began = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..64 {
        let writer = Arc::clone(engine.writer());
        clients.spawn(async move {
            for round in 0..10 {
                writer.write(put(&format!("{client}"), &format!("{round}"))).await.unwrap();
            }
        });
    }
    clients.join_all().await;
    // A client's rounds: the first joins the group at 0 or 50 ms, each next one the group after.
    assert!(began.elapsed() <= Duration::from_millis(50) * 12, "{:?}", began.elapsed());
    let wal = rig.parts.bucket.list(ObjectKind::Wal).await.unwrap();
    assert!(wal.len() <= 1 + 12, "640 puts took {} objects", wal.len() - 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_is_not_visible_before_it_is_durable() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    rig.slow_down();
    let writer = Arc::clone(engine.writer());
    let pending = Write { durability: Durability::Memory, ..put("key", "value") };
    let seq = writer.write(pending).await.unwrap();
    assert_eq!(get(&writer, "key").await, None);
    let memory = writer.memory_view().await.unwrap();
    assert!(memory.seq >= seq);
    assert!(memory.get(b"key", 0).await.unwrap().is_some());
    tokio::time::sleep(PUT + Duration::from_millis(1)).await;
    assert_eq!(get(&writer, "key").await.as_deref(), Some(&b"value"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_takeover_keeps_every_write_waits_out_the_lease_and_fences_the_old_writer() {
    let rig = Rig::new();
    let mut old = rig.open(&[]).await;
    old.writer().write(put("key", "old")).await.unwrap();
    let began = Instant::now();
    let new = rig.open(&[]).await;
    let hold = LEASE.mul_f64(1.1);
    assert!(began.elapsed() >= hold && began.elapsed() < hold + Duration::from_millis(50));
    assert_eq!(get(new.writer(), "key").await.as_deref(), Some(&b"old"[..]));
    new.writer().write(put("key", "new")).await.unwrap();
    let late = old.writer().write(put("key", "zombie")).await;
    assert!(matches!(late, Err(Unwritten::Unknown | Unwritten::Ended(_))), "{late:?}");
    assert!(matches!(old.failed().await, Error::Fenced { .. }));
    assert_eq!(get(new.writer(), "key").await.as_deref(), Some(&b"new"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_closed_writer_is_followed_without_a_hold() {
    let rig = Rig::new();
    let old = rig.open(&[]).await;
    let pending = Write { durability: Durability::Memory, ..put("key", "value") };
    old.writer().write(pending).await.unwrap();
    old.close().await.unwrap();
    let began = Instant::now();
    let new = rig.open(&[]).await;
    assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
    assert_eq!(get(new.writer(), "key").await.as_deref(), Some(&b"value"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_flush_moves_data_to_l0_and_the_next_writer_replays_nothing() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    for key in ["a", "b", "c"] {
        engine.writer().write(put(key, key)).await.unwrap();
    }
    let flushed = engine.writer().flush().await.unwrap();
    let tree = engine.writer().front.tree();
    assert_eq!((tree.l0.len(), tree.manifest.flushed_seq), (1, flushed));
    engine.close().await.unwrap();
    let next = rig.open(&[]).await;
    assert_eq!(next.writer().front.load().unflushed_bytes, 0);
    for key in ["a", "b", "c"] {
        assert_eq!(get(next.writer(), key).await.as_deref(), Some(key.as_bytes()));
    }
}

#[tokio::test(start_paused = true)]
async fn flushes_upload_together_and_commit_in_order() {
    let rig = Rig::new();
    let engine = rig.open(&[("memtable_bytes", "64KiB")]).await;
    let manifests = rig.parts.manifests();
    let second = Duration::from_secs(1);
    // The commit that moves replay past the fence comes first.
    tokio::time::sleep(second).await;
    rig.store.config_mut(|config| config.wait_put_per_call = second);
    let writer = engine.writer();
    let value = "v".repeat(70_000);
    for key in ["a", "b", "c"] {
        writer.write(Write { durability: Durability::Memory, ..put(key, &value) }).await.unwrap();
        tokio::time::sleep(second / 10).await;
    }
    // The log takes a second, the SSTs take another one; each commit takes two.
    tokio::time::sleep(second * 5 / 2).await;
    let ssts = rig.parts.bucket.list(ObjectKind::Sst).await.unwrap();
    let l0 = manifests.load().await.unwrap().unwrap().manifest.l0.clone();
    assert_eq!((ssts.len(), l0.len()), (3, 0), "uploaded together, none committed yet");
    tokio::time::sleep(second * 10).await;
    let manifest = Arc::clone(&manifests.load().await.unwrap().unwrap().manifest);
    let logs: Vec<_> = manifest.l0.iter().rev().map(|sst| sst.wal.unwrap()).collect();
    assert_eq!(logs.len(), 3);
    assert!(logs.windows(2).all(|pair| pair[0].to == pair[1].from), "{logs:?}");
    engine.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_racing_creates_exactly_one_is_applied() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    rig.slow_down();
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..16 {
        let writer = Arc::clone(engine.writer());
        racers.spawn(async move {
            let key = Bytes::from_static(b"key");
            let mut headers = http::HeaderMap::new();
            headers.insert("if-none-match", "*".parse().unwrap());
            let tests = Conditions::parse(&headers).unwrap();
            let condition = Some(Condition { key, tests });
            writer.write(Write { condition, ..put("key", &racer.to_string()) }).await
        });
    }
    let outcomes = racers.join_all().await;
    let winners: Vec<Seq> = outcomes.iter().filter_map(|o| o.as_ref().ok().copied()).collect();
    assert_eq!(winners.len(), 1);
    for outcome in &outcomes {
        if let Err(refused) = outcome {
            assert!(matches!(refused, Unwritten::Precondition(Some(etag)) if *etag == winners[0]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_memtable_that_is_due_is_flushed_by_itself() {
    let rig = Rig::new();
    let engine = rig.open(&[("memtable_wal_objects", "3")]).await;
    for round in 0..7 {
        engine.writer().write(put("key", &round.to_string())).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(engine.writer().front.tree().l0.len(), 2);
    assert_eq!(get(engine.writer(), "key").await.as_deref(), Some(&b"6"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_seq_that_was_lost_is_never_given_again() {
    let rig = Rig::new();
    let mut given = Vec::new();
    // Nothing of the first two writers reaches the log but their fences.
    for _ in 0..3 {
        let engine = rig.open(&[]).await;
        rig.slow_down();
        let loose = Write { durability: Durability::Memory, ..put("key", "value") };
        given.push(engine.writer().write(loose).await.unwrap());
        drop(engine);
    }
    assert!(given.is_sorted_by(|one, next| one < next), "{given:?}");
}
