//! The laws of the block cache, over real files.

use std::fs;

use uuid::Uuid;

use super::*;
use crate::format::block::{BlockBuilder, Compression};
use crate::format::path::OutputId;
use crate::types::{EntryRef, Epoch, PayloadRef, Role, Seq};

const DATABASE: Uuid = Uuid::from_u128(7);

fn sst() -> OutputId {
    OutputId { role: Role::Writer, epoch: Epoch(1), uuid: Uuid::from_u128(1 << 100) }
}

fn key(offset: u64) -> BlockKey {
    BlockKey::new(DATABASE, &sst(), offset)
}

/// A block whose only value tells its offset, and its stored bytes.
fn block(offset: u64, value_bytes: usize) -> (Block, Bytes) {
    let mut value = vec![0; value_bytes];
    value[..8].copy_from_slice(&offset.to_le_bytes());
    let mut builder = BlockBuilder::new(Compression::None);
    builder.add(EntryRef {
        key: b"key",
        seq: Seq(1),
        payload: PayloadRef::Value(&value),
        expires_ms: None,
    });
    let mut stored = bytes::BytesMut::new();
    builder.finish(&sst(), offset, &mut stored);
    (parse(offset)(&stored).unwrap(), stored.freeze())
}

fn parse(offset: u64) -> impl Fn(&[u8]) -> Result<Block, Corrupt> {
    move |stored| Block::parse(stored, &sst(), offset)
}

fn settings(dir: &Path) -> CacheSettings {
    let disk = DiskSettings { dir: dir.into(), bytes: DISK_BYTES_MIN };
    CacheSettings { memory_bytes: 1 << 20, disk: Some(disk) }
}

async fn open(dir: &Path) -> BlockCache {
    BlockCache::open(settings(dir)).await.unwrap()
}

/// Fills a cache on disk with `count` blocks and closes it.
async fn fill(dir: &Path, count: u64) {
    let cache = open(dir).await;
    for offset in 0..count {
        let (block, stored) = block(offset, 3000);
        cache.insert(key(offset), &block, &stored);
    }
    cache.flush().await;
    assert_eq!(cache.stats().disk_dropped, 0);
    cache.close().await;
}

#[test]
fn memory_needs_no_runtime_and_evicts() {
    let cache = BlockCache::memory_only(64 << 10);
    for offset in 0..100 {
        let (block, stored) = block(offset, 1000);
        cache.insert(key(offset), &block, &stored);
        let found = cache.get_now(&key(offset)).unwrap();
        assert_eq!(found.decoded(), block.decoded());
    }
    let stats = cache.stats();
    assert_eq!(stats.memory_hits, 100);
    assert!(stats.memory_bytes <= 64 << 10 && stats.memory_blocks < 64, "{stats:?}");
    let left = (0..100).filter(|offset| cache.get_now(&key(*offset)).is_some()).count();
    assert_eq!(u64::try_from(left).unwrap(), stats.memory_blocks);
    cache.clear_memory();
    assert!(cache.get_now(&key(99)).is_none());
}

#[test]
fn memory_takes_nothing_that_does_not_fit() {
    for bytes in [0, 2_000] {
        let cache = BlockCache::memory_only(bytes);
        let (block, stored) = block(1, 3_000);
        cache.insert(key(1), &block, &stored);
        assert_eq!(cache.stats().memory_bytes, 0);
    }
}

#[tokio::test]
async fn disk_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 100).await;
    let cache = open(dir.path()).await;
    for offset in 0..100 {
        assert!(cache.get_now(&key(offset)).is_none(), "memory begins empty");
        let found = cache.load(&key(offset), parse(offset)).await.expect("it is on disk");
        assert_eq!(found.decoded(), block(offset, 3000).0.decoded());
        assert!(cache.get_now(&key(offset)).is_some(), "what was loaded is in memory");
    }
    let stats = cache.stats();
    assert_eq!((stats.disk_hits, stats.disk_damaged), (100, 0));
    assert!(cache.load(&key(100), parse(100)).await.is_none());
    cache.close().await;
}

#[tokio::test]
async fn a_directory_serves_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let Err(Error::Invalid(text)) = BlockCache::open(settings(dir.path())).await else {
        panic!("two caches share a directory");
    };
    assert!(text.contains("another process") && text.contains(&*dir.path().to_string_lossy()));
    first.close().await;
    drop(first);
}

#[tokio::test]
async fn a_sound_entry_under_a_wrong_key_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path()).await;
    let (wrong, stored) = block(1, 3000);
    cache.insert(key(2), &wrong, &stored);
    cache.flush().await;
    cache.clear_memory();
    assert!(cache.load(&key(2), parse(2)).await.is_none());
    assert_eq!(cache.stats().disk_damaged, 1);
    assert!(cache.get_now(&key(2)).is_none(), "nothing damaged enters memory");
    cache.close().await;
}

#[tokio::test]
async fn damage_costs_hits_and_nothing_else() {
    for damage in [flip, truncate, zero] {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), 200).await;
        for file in fs::read_dir(dir.path().join("blocks")).unwrap() {
            damage(&file.unwrap().path());
        }
        let cache = open(dir.path()).await;
        let mut hits = 0;
        for offset in 0..200 {
            if let Some(found) = cache.load(&key(offset), parse(offset)).await {
                assert_eq!(found.decoded(), block(offset, 3000).0.decoded());
                hits += 1;
            }
        }
        assert!(hits < 200, "the damage was seen");
        let (fresh, stored) = block(500, 3000);
        cache.insert(key(500), &fresh, &stored);
        assert!(cache.get_now(&key(500)).is_some(), "the cache goes on");
        cache.close().await;
    }
}

/// Flips one bit in every 2,000 bytes.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    for at in (100..bytes.len()).step_by(2000) {
        bytes[at] ^= 1;
    }
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2 - 777]).unwrap();
}

fn zero(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let half = bytes.len() / 2;
    bytes[..half].fill(0);
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_missing_directory_is_made_and_an_impossible_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir.path().join("a/b")).await.close().await;
    fs::write(dir.path().join("file"), "").unwrap();
    let refused = BlockCache::open(settings(&dir.path().join("file"))).await;
    assert!(matches!(refused, Err(Error::Invalid(_))));
    let small = DiskSettings { dir: dir.path().into(), bytes: DISK_BYTES_MIN - 1 };
    let refused = BlockCache::open(CacheSettings { memory_bytes: 0, disk: Some(small) }).await;
    assert!(matches!(refused, Err(Error::Invalid(text)) if text.contains("16 MiB")));
}

#[tokio::test]
async fn what_does_not_fit_the_disk_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path()).await;
    let (block, stored) = block(1, 400 << 10);
    cache.insert(key(1), &block, &stored);
    assert_eq!(cache.stats().disk_dropped, 1);
    assert!(cache.get_now(&key(1)).is_some());
    cache.close().await;
}
