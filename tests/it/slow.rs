//! Slow links: what is sent arrives, about once, however long it takes.

use std::time::Duration;

use bytes::Bytes;
use cairn_common::env::Env;
use cairn_common::format::path::Object;
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::WalId;
use futures::future::join_all;
use harness::fake_s3::{BUCKET, FakeS3};

use crate::conformance::settings;

const MIB: usize = 1 << 20;
/// Of the link, per second: what is sent below takes four times the patience with one attempt.
const RATE: usize = 4 * MIB;

fn open(fake: &FakeS3) -> Bucket {
    let attempt_timeout = Duration::from_millis(500);
    let settings = StoreSettings { attempt_timeout, part_bytes: 8 * MIB, ..settings() };
    let url = format!("s3://{BUCKET}/db");
    Bucket::open_with(&url, &fake.variables(), settings, Env::system()).unwrap()
}

fn wal(id: u64) -> Object {
    Object::Wal(WalId(id))
}

fn retries(bucket: &Bucket) -> u64 {
    bucket.metrics().snapshot().retries.iter().map(|row| row.count).sum()
}

#[tokio::test]
async fn a_slow_uplink_carries_each_byte_about_once() {
    let fake = FakeS3::start_anywhere(1).await;
    fake.set_bandwidth(u64::try_from(RATE).unwrap());
    let bucket = open(&fake);
    let creates = (1..=4).map(|id| {
        let bucket = bucket.clone();
        async move { bucket.create(&wal(id), vec![7; 4 * MIB].into()).await }
    });
    for answer in join_all(creates).await {
        answer.unwrap();
    }
    let sent = fake.faults().bytes_in();
    assert!(sent <= u64::try_from(16 * MIB + MIB).unwrap(), "{sent} bytes for 16 MiB");
}

#[tokio::test]
async fn a_slow_downlink_brings_each_byte_about_once() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake);
    let content = Bytes::from(vec![7; 8 * MIB]);
    for id in 1..=2 {
        bucket.put(&wal(id), content.clone()).await.unwrap();
    }
    fake.set_bandwidth(u64::try_from(RATE).unwrap());
    let reads = (1..=2).map(|id| {
        let bucket = bucket.clone();
        async move { bucket.get_range(&wal(id), 0..8 << 20).await }
    });
    for bytes in join_all(reads).await {
        assert!(bytes.unwrap() == content);
    }
    assert_eq!(retries(&bucket), 0);
}
