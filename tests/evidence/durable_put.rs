//! How long a durable put takes on a store whose PUTs take 30 ms: alone, and with 64 clients, with
//! the default pacing and without. In process, over an in-memory store, in real time.
//!
//! `cargo run --release -p cairn-tests --bin durable_put`
#![expect(clippy::print_stdout, reason = "a command that prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a measurement in real time")]
#![expect(clippy::cast_precision_loss, reason = "rates of small counts")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_common::env::Env;
use cairn_common::format::sst::SstOptions;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::store::sst::MetaBudget;
use cairn_common::types::{Op, Payload, Role};
use cairn_writer::config::{Config, PROGRAM};
use cairn_writer::engine::{Engine, Parts};
use cairn_writer::service::{Durability, Write, Writer};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::task::JoinSet;

/// What a PUT of the store takes.
const PUT: Duration = Duration::from_millis(30);
const ALONE: usize = 50;
const CLIENTS: usize = 64;
const SPAN: Duration = Duration::from_secs(5);
const VALUE: &[u8] = &[b'v'; 256];

#[tokio::main]
async fn main() -> Result<(), cairn_common::Error> {
    for interval in ["50ms", "0ms"] {
        let engine = open(interval).await?;
        let alone = alone(engine.writer()).await;
        let together = together(engine.writer()).await;
        println!("wal_interval {interval}, window 8, PUT {PUT:?}");
        report("alone, 200 ms apart", alone, None);
        report("64 clients", together, Some(SPAN));
        engine.close().await?;
    }
    Ok(())
}

async fn open(interval: &str) -> Result<Engine, cairn_common::Error> {
    let config = ThrottleConfig { wait_put_per_call: PUT, ..ThrottleConfig::default() };
    let store = Arc::new(ThrottledStore::new(InMemory::new(), config));
    let env = Env::system();
    let bucket = Bucket::new(store, "db", StoreSettings::default(), env.clone())?;
    let cache = BlockCache::memory_only(64 << 20);
    let meta = MetaBudget { bytes: 64 << 20 };
    let parts = Parts { env, bucket, cache, meta, sst: SstOptions::default() };
    let settings = [("store", "memory://"), ("wal_interval", interval)];
    let config: Config = PROGRAM.with(&settings)?;
    let snapshot = parts.manifests().create().await?;
    let uuid = parts.env.random.uuid();
    let claim = Claim { role: Role::Writer, uuid, url: None, lease: config.lease.0 };
    let mut engine = Engine::open(&parts, snapshot.current.database, &config.log, &claim).await?;
    engine.hold().await?;
    Ok(engine)
}

async fn put(writer: &Writer, key: String) -> Duration {
    let op = Op {
        key: key.into(),
        payload: Payload::Value(Bytes::from_static(VALUE)),
        expires_ms: None,
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let write = Write { ops: vec![op], condition: None, durability: Durability::Durable, deadline };
    let began = Instant::now();
    let seq = writer.write(write).await;
    assert!(seq.is_ok(), "{seq:?}");
    began.elapsed()
}

async fn alone(writer: &Writer) -> Vec<Duration> {
    let mut took = Vec::with_capacity(ALONE);
    for count in 0..ALONE {
        tokio::time::sleep(Duration::from_millis(200)).await;
        took.push(put(writer, format!("alone-{count:08}")).await);
    }
    took
}

async fn together(writer: &Arc<Writer>) -> Vec<Duration> {
    let until = Instant::now() + SPAN;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let writer = Arc::clone(writer);
        clients.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                took.push(put(&writer, format!("client-{client:03}-{:08}", took.len())).await);
            }
            took
        });
    }
    clients.join_all().await.concat()
}

fn report(what: &str, mut took: Vec<Duration>, span: Option<Duration>) {
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    print!("  {what}: p50 {:.1?}, p99 {:.1?}", at(50), at(99));
    match span {
        Some(span) => println!(", {:.0} puts/s", took.len() as f64 / span.as_secs_f64()),
        None => println!(),
    }
}
