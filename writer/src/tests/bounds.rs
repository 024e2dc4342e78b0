//! What waiters find when they are woken, and how far a crowd of writes can go.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use bytes::Bytes;
use cairn_common::format::path::ObjectKind;
use cairn_common::store::metrics::Operation;
use cairn_common::types::{Op, Payload, Seq};
use tokio::time::Instant;

use super::site::Site;
use super::{PUT, Rig, put};
use crate::front::Front;
use crate::service::{Durability, Unwritten, Write};

/// Looks at the view at the very moment at which it is woken.
struct Glance {
    front: Arc<Front>,
    seen: AtomicU64,
}

impl Wake for Glance {
    fn wake(self: Arc<Self>) {
        self.seen.store(self.front.view().seq.0, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_told_that_a_seq_is_durable_finds_a_view_that_has_it() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    rig.slow_down();
    let writer = engine.writer();
    let loose = Write { durability: Durability::Memory, ..put("key", "value") };
    let Seq(seq) = writer.write(loose).await.unwrap();
    let front = Arc::clone(&writer.front);
    assert!(front.view().seq.0 < seq);
    let glance = Arc::new(Glance { front, seen: AtomicU64::new(0) });
    let waker = Arc::clone(&glance).into();
    let mut waits = pin!(writer.durable(Seq(seq)));
    let polled = waits.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(matches!(polled, Poll::Pending));
    tokio::time::sleep(2 * PUT).await;
    assert_eq!(glance.seen.load(Ordering::SeqCst), seq, "woken before the view was there");
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_waits_for_room_stays_within_the_bound() {
    const VALUE: usize = 8 * 1024;
    const MAX: u64 = 128 * 1024;
    let rig = Rig::new();
    let settings = [
        ("memtable_bytes", "64KiB"),
        ("unflushed_bytes_max", "128KiB"),
        ("wal_bytes_max", "1KiB"),
        ("wal_window", "64"),
    ];
    let engine = rig.open(&settings).await;
    // Flushes take three PUTs, so none is done before the crowd has gone through.
    rig.slow_down();
    let mut crowd = tokio::task::JoinSet::new();
    for n in 0..64 {
        let writer = Arc::clone(engine.writer());
        crowd.spawn(async move {
            let payload = Payload::Value(Bytes::from(vec![b'x'; VALUE]));
            let key = Bytes::from(format!("{n}"));
            let ops = vec![Op { key, payload, expires_ms: None }];
            let written =
                writer.write(Write { ops, durability: Durability::Memory, ..put("", "") }).await;
            (written, writer.front.load().unflushed_bytes)
        });
    }
    let told = crowd.join_all().await;
    let highest = told.iter().map(|(_, unflushed)| *unflushed).max().unwrap();
    assert!(highest < MAX + 2 * VALUE as u64, "{highest} bytes are unflushed");
    let refused = |written: &Result<Seq, Unwritten>| match written {
        Err(Unwritten::Overloaded(pressure)) => pressure.is_refusal(),
        _ => false,
    };
    assert!(told.iter().any(|(written, _)| written.is_ok()));
    assert!(told.iter().any(|(written, _)| refused(written)));
}

#[tokio::test(start_paused = true)]
async fn what_is_delayed_or_refused_is_counted_by_its_reason() {
    let settings = [("memtable_bytes", "4KiB"), ("unflushed_bytes_max", "8KiB")];
    let site = Site::new(&settings).await;
    site.rig.take_away();
    let mut last = String::new();
    for _ in 0..10 {
        let reply = site.ask("PUT", "/v1/kv/k?durable=false", &[], vec![b'x'; 1500]).await;
        last = reply.told();
        if reply.status == 503 {
            assert_eq!(reply.header("retry-after"), Some("1"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(last, "503 overloaded not_applied");
    let text = site.get("/ops/metrics", &[]).await.body;
    for name in ["delayed", "refused"] {
        let line = format!("cairn_writer_{name}_writes_total{{reason=\"unflushed\"}} ");
        let found = text.lines().find_map(|told| told.strip_prefix(&line));
        assert!(found.is_some_and(|count| count != "0"), "{line} in {text}");
    }
}

/// GETs of CURRENT so far.
fn reads_of_current(rig: &Rig) -> u64 {
    let rows = rig.parts.bucket.metrics().snapshot().rows;
    let of_current = rows
        .iter()
        .filter(|row| row.kind == ObjectKind::Current && row.operation == Operation::Get);
    of_current.map(|row| row.requests).sum()
}

#[tokio::test(start_paused = true)]
async fn reloads_at_one_time_share_a_read() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    let writer = engine.writer();
    let get = Duration::from_millis(20);
    rig.store.config_mut(|config| config.wait_get_per_call = get);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (before, began) = (reads_of_current(&rig), Instant::now());
    let reloads = (0..300).map(|_| writer.reload());
    futures::future::try_join_all(reloads).await.unwrap();
    assert!(reads_of_current(&rig) - before <= 2, "one under way, and one for who came later");
    assert!(began.elapsed() <= 2 * get);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_told_while_the_store_is_silent() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    let writer = engine.writer();
    rig.take_away();
    let mut asking = Box::pin(writer.reload());
    assert!(futures::poll!(&mut asking).is_pending());
    let began = Instant::now();
    let known = writer.lease.snapshot();
    assert_eq!(known.current.writer.epoch, writer.lease.epoch());
    writer.lease.note(known);
    assert_eq!(began.elapsed(), Duration::ZERO);
}
