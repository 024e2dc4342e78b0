//! Blocks near at hand: decoded in memory, and as they are stored on a local disk.
//!
//! **Invariants**
//! - A block enters memory through `parse` alone, from either tier, so it is verified and decoded
//!   exactly once on its way in. The disk keeps the very bytes of the object: their checksum also
//!   covers the SST and the offset, so it finds a damaged entry and an entry under a wrong key.
//! - The disk tier is a hint. What is damaged, dropped or missing there is a miss, counted, and
//!   never an error; what is slow there costs latency alone.
//! - Keys name immutable bytes (database, SST, offset), so nothing is ever invalidated, and what
//!   a process wrote before it was killed serves the next one.
//! - One process owns a cache directory, by a lock on a file in it.
//!
//! Without a disk tier the cache is plain memory: no thread, no task, no runtime, no clock.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use foyer::{
    BlockEngineConfig, Cache, CacheBuilder, Code, DeviceBuilder, FsDeviceBuilder, HybridCache,
    HybridCacheBuilder, HybridCachePolicy, HybridCacheProperties, Load, Location, RecoverMode,
    S3FifoConfig,
};

use self::key::KeyHashBuilder;
use self::metrics::{Drops, Striped};
use crate::error::{Error, Result};
use crate::format::Corrupt;
use crate::format::block::Block;

mod key;
mod metrics;
#[cfg(test)]
mod tests;

pub use self::key::BlockKey;

/// What an entry costs in memory beside its block: the record, its key and its place in the index.
const ENTRY_OVERHEAD_BYTES: usize = 192;
/// Memory is split into parts that are locked apart, none smaller than this: a part must hold
/// many blocks for its eviction to be worth anything.
const SHARD_BYTES_MIN: usize = 8 << 20;
/// The most parts: more than the cores of any machine that this is likely to run on.
const SHARD_COUNT_MAX: usize = 64;
/// Tasks that write to disk.
const FLUSHER_COUNT: usize = 4;
/// What one flusher gathers before it writes; there are two such buffers a flusher. Also the
/// largest block that is kept on disk.
const FLUSH_BYTES: usize = 8 << 20;
/// Bytes that may wait for a flusher; above it, insertions into the disk tier are dropped.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// The disk is reclaimed in regions of its capacity over this.
const REGION_COUNT: usize = 64;
/// The smallest region.
const REGION_BYTES_MIN: usize = 256 << 10;
/// The largest region: what one reclamation throws away.
const REGION_BYTES_MAX: usize = 64 << 20;
/// Of a region, the bytes that are foyer's own.
const REGION_INDEX_BYTES: usize = 4 << 10;
/// The smallest disk tier: fewer regions than that leave none to write to.
pub const DISK_BYTES_MIN: u64 = 16 << 20;

/// How much to keep, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Bytes of decoded blocks in memory.
    pub memory_bytes: usize,
    /// The disk tier, if there is to be one.
    pub disk: Option<DiskSettings>,
}

/// The disk tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSettings {
    /// A directory that no other process uses; made if it is missing.
    pub dir: PathBuf,
    /// What it may hold; at least [`DISK_BYTES_MIN`].
    pub bytes: u64,
}

/// What the cache has done since it was opened, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Look-ups answered from memory.
    pub memory_hits: u64,
    /// Look-ups that memory could not answer.
    pub memory_misses: u64,
    /// Of these, those that the disk answered.
    pub disk_hits: u64,
    /// Entries of the disk tier that failed their checksum or could not be read.
    pub disk_damaged: u64,
    /// Insertions that did not reach the disk: too large, or the disk too slow.
    pub disk_dropped: u64,
    /// Bytes written to disk.
    pub disk_written_bytes: u64,
    /// Bytes of blocks in memory.
    pub memory_bytes: u64,
    /// Blocks in memory.
    pub memory_blocks: u64,
}

/// The blocks of any number of databases, in memory and on disk. A clone is the same cache.
#[derive(Clone, Debug)]
pub struct BlockCache {
    tiers: Arc<Tiers>,
}

#[derive(Debug)]
struct Tiers {
    memory: Memory,
    /// What is larger would not fit its part of the memory.
    memory_entry_bytes_max: usize,
    disk: Option<Disk>,
    hits: Striped,
    misses: Striped,
}

#[derive(Debug)]
struct Disk {
    hybrid: HybridCache<BlockKey, Cached, KeyHashBuilder>,
    entry_bytes_max: usize,
    hits: AtomicU64,
    damaged: AtomicU64,
    too_large: AtomicU64,
    drops: Drops,
    /// Held for as long as the cache lives.
    _lock: File,
}

type Memory = Cache<BlockKey, Cached, KeyHashBuilder, HybridCacheProperties>;

/// What a tier keeps under a key: memory only ever the first kind, the disk only the second.
#[derive(Clone, Debug)]
enum Cached {
    Decoded(Block),
    Stored(Bytes),
}

impl BlockCache {
    /// A cache without a disk tier: deterministic, and free of any runtime.
    pub fn memory_only(bytes: usize) -> Self {
        let memory = CacheBuilder::new(bytes)
            .with_shards(shard_count(bytes))
            .with_eviction_config(S3FifoConfig::default())
            .with_hash_builder(KeyHashBuilder)
            .with_weighter(weight)
            .build();
        Self::over(memory, None)
    }

    /// Opens a cache, with what its directory still holds from before.
    ///
    /// Must be called within a runtime where there is a disk tier: its flushers are tasks. A disk
    /// tier that does not open is left out, with a line in the log.
    ///
    /// # Errors
    /// `Invalid` where the directory cannot be used, or is in use by another process.
    pub async fn open(settings: CacheSettings) -> Result<Self> {
        let Some(disk) = &settings.disk else {
            return Ok(Self::memory_only(settings.memory_bytes));
        };
        if disk.bytes < DISK_BYTES_MIN {
            let least = DISK_BYTES_MIN >> 20;
            return Err(Error::Invalid(format!("a disk cache needs at least {least} MiB")));
        }
        let lock = lock_dir(&disk.dir)?;
        let drops = Drops::default();
        match open_disk(&settings, disk, &drops).await {
            Ok((hybrid, entry_bytes_max)) => {
                let memory = hybrid.memory().clone();
                let disk = Disk {
                    hybrid,
                    entry_bytes_max,
                    hits: AtomicU64::new(0),
                    damaged: AtomicU64::new(0),
                    too_large: AtomicU64::new(0),
                    drops,
                    _lock: lock,
                };
                Ok(Self::over(memory, Some(disk)))
            }
            Err(error) => {
                let dir = disk.dir.display();
                tracing::warn!(%dir, %error, "the disk cache cannot be opened: going on without");
                Ok(Self::memory_only(settings.memory_bytes))
            }
        }
    }

    fn over(memory: Memory, disk: Option<Disk>) -> Self {
        let memory_entry_bytes_max = memory.capacity() / memory.shards();
        let (hits, misses) = (Striped::default(), Striped::default());
        Self { tiers: Arc::new(Tiers { memory, memory_entry_bytes_max, disk, hits, misses }) }
    }

    /// The block, if it is in memory. Does not allocate.
    pub fn get_now(&self, key: &BlockKey) -> Option<Block> {
        let entry = self.tiers.memory.get(key);
        if let Some(entry) = &entry
            && let Cached::Decoded(block) = entry.value()
        {
            self.tiers.hits.add(key.mix());
            return Some(block.clone());
        }
        self.tiers.misses.add(key.mix());
        None
    }

    /// The block, if it is in memory; counts as no look-up.
    pub(super) fn peek(&self, key: &BlockKey) -> Option<Block> {
        match self.tiers.memory.get(key)?.value() {
            Cached::Decoded(block) => Some(block.clone()),
            Cached::Stored(_) => None,
        }
    }

    /// The block, if it is on disk and `parse` accepts it; from then on it is in memory too.
    ///
    /// Cancel-safe.
    pub async fn load(
        &self,
        key: &BlockKey,
        parse: impl FnOnce(&[u8]) -> Result<Block, Corrupt>,
    ) -> Option<Block> {
        let disk = self.tiers.disk.as_ref()?;
        let stored = match disk.hybrid.storage().load(key).await {
            Ok(Load::Entry { value: Cached::Stored(stored), .. }) => stored,
            Ok(Load::Piece { piece, .. }) => match piece.value() {
                Cached::Stored(stored) => stored.clone(),
                Cached::Decoded(block) => return Some(block.clone()),
            },
            Ok(_) => return None,
            Err(error) => {
                disk.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "an entry of the disk cache cannot be read");
                return None;
            }
        };
        match parse(&stored) {
            Ok(block) => {
                disk.hits.fetch_add(1, Ordering::Relaxed);
                self.keep(*key, &block);
                Some(block)
            }
            Err(error) => {
                disk.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "an entry of the disk cache is damaged");
                None
            }
        }
    }

    /// Takes in a block that was just read and verified, and the bytes it was decoded from.
    pub fn insert(&self, key: BlockKey, block: &Block, stored: &Bytes) {
        if let Some(disk) = &self.tiers.disk {
            if stored.len() <= disk.entry_bytes_max {
                // SUBTLE: an entry that goes to disk alone displaces its key from memory, so
                // this comes before the insertion into memory.
                let to_disk = HybridCacheProperties::default().with_location(Location::OnDisk);
                let stored = Cached::Stored(stored.clone());
                drop(disk.hybrid.insert_with_properties(key, stored, to_disk));
            } else {
                disk.too_large.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.keep(key, block);
    }

    fn keep(&self, key: BlockKey, block: &Block) {
        let in_memory = HybridCacheProperties::default().with_location(Location::InMem);
        let decoded = Cached::Decoded(block.clone());
        if weight(&key, &decoded) > self.tiers.memory_entry_bytes_max {
            return;
        }
        drop(self.tiers.memory.insert_with_properties(key, decoded, in_memory));
    }

    /// Forgets what is in memory; the disk keeps what it has.
    pub fn clear_memory(&self) {
        self.tiers.memory.evict_all();
    }

    /// Waits until what was inserted is on disk.
    pub async fn flush(&self) {
        if let Some(disk) = &self.tiers.disk {
            disk.hybrid.storage().wait().await;
        }
    }

    /// Writes out what is under way and stops the disk tier. The cache goes on in memory.
    pub async fn close(&self) {
        if let Some(disk) = &self.tiers.disk
            && let Err(error) = disk.hybrid.close().await
        {
            tracing::warn!(%error, "the disk cache did not close cleanly");
        }
    }

    /// What the cache has done, and what it holds.
    pub fn stats(&self) -> CacheStats {
        let tiers = &*self.tiers;
        let mut stats = CacheStats {
            memory_hits: tiers.hits.sum(),
            memory_misses: tiers.misses.sum(),
            memory_bytes: tiers.memory.usage().try_into().unwrap_or(u64::MAX),
            memory_blocks: tiers.memory.entries().try_into().unwrap_or(u64::MAX),
            ..CacheStats::default()
        };
        if let Some(disk) = &tiers.disk {
            let written = disk.hybrid.statistics().disk_write_bytes();
            stats.disk_hits = disk.hits.load(Ordering::Relaxed);
            stats.disk_damaged = disk.damaged.load(Ordering::Relaxed);
            stats.disk_dropped = disk.too_large.load(Ordering::Relaxed) + disk.drops.count();
            stats.disk_written_bytes = written.try_into().unwrap_or(u64::MAX);
        }
        stats
    }
}

fn weight(_: &BlockKey, cached: &Cached) -> usize {
    let bytes = match cached {
        Cached::Decoded(block) => block.bytes(),
        Cached::Stored(stored) => stored.len(),
    };
    bytes + ENTRY_OVERHEAD_BYTES
}

fn shard_count(memory_bytes: usize) -> usize {
    (memory_bytes / SHARD_BYTES_MIN).clamp(1, SHARD_COUNT_MAX)
}

/// Makes the directory and takes it for this process, until the file is dropped.
fn lock_dir(dir: &Path) -> Result<File> {
    let refuse = |cause: &dyn std::fmt::Display| {
        Error::Invalid(format!("the cache directory {} cannot be used: {cause}", dir.display()))
    };
    fs::create_dir_all(dir).map_err(|error| refuse(&error))?;
    let mut options = File::options();
    let path = dir.join("LOCK");
    let file = options.create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|error| refuse(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(refuse(&"another process uses it")),
        Err(TryLockError::Error(error)) => Err(refuse(&error)),
    }
}

type Opened = (HybridCache<BlockKey, Cached, KeyHashBuilder>, usize);

async fn open_disk(
    settings: &CacheSettings,
    disk: &DiskSettings,
    drops: &Drops,
) -> Result<Opened, foyer::Error> {
    let capacity = usize::try_from(disk.bytes).unwrap_or(usize::MAX);
    let region_bytes = (capacity / REGION_COUNT).clamp(REGION_BYTES_MIN, REGION_BYTES_MAX);
    let entry_bytes_max = (region_bytes - REGION_INDEX_BYTES).min(FLUSH_BYTES) / 2;
    let device = FsDeviceBuilder::new(disk.dir.join("blocks")).with_capacity(capacity).build()?;
    let engine = BlockEngineConfig::new(device)
        .with_block_size(region_bytes)
        .with_blob_index_size(REGION_INDEX_BYTES)
        .with_flushers(FLUSHER_COUNT)
        .with_buffer_pool_size(FLUSHER_COUNT * FLUSH_BYTES)
        .with_submit_queue_size_threshold(QUEUE_BYTES_MAX);
    let hybrid = HybridCacheBuilder::new()
        .with_policy(HybridCachePolicy::WriteOnInsertion)
        .with_flush_on_close(false)
        .with_metrics_registry(Box::new(drops.clone()))
        .memory(settings.memory_bytes)
        .with_shards(shard_count(settings.memory_bytes))
        .with_eviction_config(S3FifoConfig::default())
        .with_hash_builder(KeyHashBuilder)
        .with_weighter(weight)
        .storage()
        .with_engine_config(engine)
        .with_recover_mode(RecoverMode::Quiet)
        .build()
        .await?;
    Ok((hybrid, entry_bytes_max))
}

impl Code for Cached {
    fn encode(&self, writer: &mut impl Write) -> foyer::Result<()> {
        let Self::Stored(stored) = self else {
            return Err(foyer::Error::new(
                foyer::ErrorKind::Parse,
                "a decoded block does not go to disk",
            ));
        };
        let bytes = u32::try_from(stored.len())
            .map_err(|error| foyer::Error::new(foyer::ErrorKind::OutOfRange, error.to_string()))?;
        writer.write_all(&bytes.to_le_bytes()).map_err(foyer::Error::io_error)?;
        writer.write_all(stored).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> foyer::Result<Self> {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(foyer::Error::io_error)?;
        let bytes = u32::from_le_bytes(bytes);
        let mut stored = Vec::new();
        // The reader is a slice of one entry: a damaged length cannot make this grow beyond it.
        reader.take(bytes.into()).read_to_end(&mut stored).map_err(foyer::Error::io_error)?;
        Ok(Self::Stored(stored.into()))
    }

    fn estimated_size(&self) -> usize {
        4 + match self {
            Self::Decoded(block) => block.bytes(),
            Self::Stored(stored) => stored.len(),
        }
    }
}
