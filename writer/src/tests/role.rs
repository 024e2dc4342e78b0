//! How a writer's role ends: what it may still answer, and when it must not go on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::error::Error;
use cairn_common::format::path::Object;
use tokio::time::{Instant, sleep, timeout};

use super::{LEASE, Rig, put};
use crate::front::End;
use crate::service::{Durability, Unwritten, Write};

/// A write that is acknowledged from memory, or refused within a second.
fn loose() -> Write {
    let deadline = Instant::now() + Duration::from_secs(1);
    Write { durability: Durability::Memory, deadline, ..put("key", "value") }
}

async fn replace_current(rig: &Rig, bytes: Option<Bytes>) {
    let bucket = &rig.parts.bucket;
    bucket.delete(&[Object::Current]).await.unwrap();
    if let Some(bytes) = bytes {
        bucket.create(&Object::Current, bytes).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn memory_acks_end_with_the_lease() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    rig.take_away();
    engine.writer().write(loose()).await.unwrap();
    sleep(LEASE).await;
    let late = engine.writer().write(loose()).await;
    assert!(matches!(late, Err(Unwritten::Late)), "not applied: {late:?}");
}

#[tokio::test(start_paused = true)]
async fn empty_flush_needs_the_lease() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    engine.writer().flush().await.unwrap();
    rig.take_away();
    sleep(LEASE).await;
    let flushed = timeout(Duration::from_secs(1), engine.writer().flush()).await;
    assert!(flushed.is_err(), "{flushed:?}");
}

#[tokio::test(start_paused = true)]
async fn fenced_writer_promises_nothing() {
    let rig = Rig::new();
    let mut old = rig.open(&[]).await;
    let _new = rig.open(&[]).await;
    let late = old.writer().write(loose()).await;
    let refused =
        matches!(&late, Err(Unwritten::Failed(Error::Fenced { .. }) | Unwritten::Ended(_)));
    assert!(refused, "{late:?}");
    assert!(matches!(old.failed().await, Error::Fenced { .. }));
}

#[tokio::test(start_paused = true)]
async fn missing_current_ends_the_writer() {
    let rig = Rig::new();
    let mut engine = rig.open(&[]).await;
    let writer = Arc::clone(engine.writer());
    writer.write(put("key", "value")).await.unwrap();
    replace_current(&rig, None).await;
    let gone_at = Instant::now();
    let error = engine.failed().await;
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("CURRENT"), "{error}");
    assert!(gone_at.elapsed() <= LEASE, "{:?}", gone_at.elapsed());
    let late = writer.write(put("key", "late")).await;
    assert!(matches!(late, Err(Unwritten::Ended(End::Damaged))), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn flush_that_misses_current_is_damage() {
    let rig = Rig::new();
    let mut engine = rig.open(&[]).await;
    let writer = Arc::clone(engine.writer());
    writer.write(put("key", "value")).await.unwrap();
    replace_current(&rig, None).await;
    let (flushed, error) = tokio::join!(writer.flush(), engine.failed());
    assert!(matches!(flushed, Err(Unwritten::Ended(End::Damaged))), "{flushed:?}");
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn one_miss_of_current_is_not_belief() {
    let rig = Rig::new();
    let engine = rig.open(&[]).await;
    let bytes = rig.parts.bucket.get(&Object::Current).await.unwrap();
    // The lease is renewed at half its length.
    sleep(LEASE.mul_f64(0.475)).await;
    replace_current(&rig, None).await;
    sleep(Duration::from_millis(100)).await;
    rig.parts.bucket.create(&Object::Current, bytes).await.unwrap();
    sleep(LEASE * 2).await;
    engine.writer().write(put("key", "value")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn restored_current_ends_the_writer() {
    let rig = Rig::new();
    rig.parts.manifests().create().await.unwrap();
    let before = rig.parts.bucket.get(&Object::Current).await.unwrap();
    let mut engine = rig.open(&[]).await;
    replace_current(&rig, Some(before)).await;
    let error = engine.failed().await;
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("went back"), "{error}");
}
