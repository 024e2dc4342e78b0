//! SSTs as readers use them: handles whose metadata is at hand or one GET away, and their blocks.
//!
//! ```text
//! view -> OpenTree -> SstHandle { info, slot -> metadata }     sync: read the slot
//!                          |                \
//!                     one GET, once      budget (moka): evicts by clearing the slot
//! (handle, block index) -> BlockCache -> disk tier -> one ranged GET for neighbours
//! ```
//!
//! **Invariants**
//! - Whoever holds metadata or a block keeps it, whatever is evicted meanwhile; so a reader that
//!   gathers what it was given gets on, however small the caches are.
//! - Concurrent misses of one block, or of one SST's metadata, make one GET. One who is cancelled
//!   fails no other.
//! - The first touch of an SST is one exact ranged GET: sizes are known from the manifest.
//! - Errors name the object. `Corrupt` is never retried; `NotFound` means "reload the manifest".

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::future::{join_all, try_join_all};

use self::budget::Budget;
pub use self::budget::MetaBudget;
use super::cache::{BlockCache, BlockKey};
use super::flights::{Flights, Planned, Ticket};
use super::object::Bucket;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::Corrupt;
use crate::format::block::Block;
use crate::format::manifest::{Home, RunInfo, SstInfo};
use crate::format::path::Object;
use crate::format::run::Run;
use crate::format::sst::SstMeta;
use crate::types::DatabaseId;

mod budget;

/// Stored bytes of blocks that one GET brings at most, unless one block alone is larger.
const STRETCH_BYTES_MAX: u64 = 8 << 20;
/// Stored bytes that are decoded on the calling task; more goes where CPU work goes. Decoding
/// runs at a gigabyte a second or more, so this is a fraction of a millisecond.
const INLINE_BYTES_MAX: u64 = 256 << 10;

/// One SST of an open tree, with a place for its metadata.
pub struct SstHandle {
    info: SstInfo,
    /// The database in which it lives; another one for the SSTs of a clone's parent.
    database: DatabaseId,
    /// Tells handles apart, also two of one SST.
    number: u64,
    slot: ArcSwapOption<SstMeta>,
    /// Read since the budget last looked.
    touched: AtomicBool,
    dropped: budget::Dropped,
}

impl SstHandle {
    /// What the tree knows of it.
    pub fn info(&self) -> &SstInfo {
        &self.info
    }

    /// Tells handles apart within one [`SstStore`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether the key lies within the bounds, which are cut: in no other case is it in the SST.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        key >= &*self.info.first_key && key <= &*self.info.last_key
    }

    /// Shows the metadata to `look`, if it is at hand. Does not allocate.
    pub fn with_meta<T>(&self, look: impl FnOnce(&Arc<SstMeta>) -> T) -> Option<T> {
        let meta = self.slot.load();
        let meta = meta.as_ref()?;
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
        Some(look(meta))
    }

    fn object(&self) -> Object {
        Object::Sst(self.info.id)
    }

    fn block_key(&self, offset: u64) -> BlockKey {
        BlockKey::new(self.database, &self.info.id, offset)
    }
}

impl fmt::Debug for SstHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SstHandle").field(&self.info.id).finish()
    }
}

/// Something that a reader found missing, with what it takes to get it.
#[derive(Clone, Debug)]
pub enum Need {
    /// The metadata of an SST.
    Meta(Arc<SstHandle>),
    /// A block of an SST.
    Block(Arc<SstHandle>, Arc<SstMeta>, usize),
}

/// The SSTs of one database in a bucket.
#[derive(Debug)]
pub struct SstStore {
    database: DatabaseId,
    source: Arc<Source>,
    budget: Budget,
    handles: AtomicU64,
    metas: Flights<(u128, usize), Arc<SstMeta>>,
    blocks: Flights<(u128, usize), Stretch>,
}

/// Where blocks come from.
#[derive(Debug)]
struct Source {
    bucket: Bucket,
    cache: BlockCache,
    env: Env,
}

/// Neighbouring blocks.
#[derive(Clone, Debug)]
struct Stretch {
    first: usize,
    blocks: Arc<[Block]>,
}

impl SstStore {
    /// The SSTs of `database`, with caches for their blocks and for their metadata.
    pub fn new(
        bucket: Bucket,
        database: DatabaseId,
        cache: BlockCache,
        budget: MetaBudget,
        env: Env,
    ) -> Self {
        Self {
            database,
            source: Arc::new(Source { bucket, cache, env }),
            budget: Budget::new(budget),
            handles: AtomicU64::new(0),
            metas: Flights::new(),
            blocks: Flights::new(),
        }
    }

    /// The database.
    pub fn database(&self) -> DatabaseId {
        self.database
    }

    /// The block cache.
    pub fn cache(&self) -> &BlockCache {
        &self.source.cache
    }

    /// The bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.source.bucket
    }

    /// Bytes of metadata at hand.
    pub fn meta_bytes(&self) -> u64 {
        self.budget.bytes()
    }

    /// A new handle for an SST, with nothing loaded.
    pub fn handle(&self, info: SstInfo) -> Arc<SstHandle> {
        Arc::new(SstHandle {
            database: info.home.as_ref().map_or(self.database, |home| home.database),
            info,
            number: self.handles.fetch_add(1, Ordering::Relaxed),
            slot: ArcSwapOption::empty(),
            touched: AtomicBool::new(false),
            dropped: self.budget.dropped(),
        })
    }

    /// Reads the object of a run: its SSTs by key, ascending. One GET.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn load_run(&self, info: &RunInfo) -> Result<Run> {
        let object = Object::Run(info.id);
        let parse = |bytes: Bytes| {
            let run = Run::parse(&bytes, &info.digest)?;
            run.check_named_by(info)?;
            Ok(run)
        };
        self.source.bucket_of(info.home.as_ref())?.read_parsed(&object, None, parse).await
    }

    /// The metadata of an SST: from its slot, or by one exact ranged GET.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn meta(&self, handle: &Arc<SstHandle>) -> Result<Arc<SstMeta>> {
        if let Some(meta) = handle.with_meta(Arc::clone) {
            return Ok(meta);
        }
        let plan = |keys: Vec<_>| -> Vec<Planned<_, _>> {
            let (source, handle) = (Arc::clone(&self.source), Arc::clone(handle));
            let act = async move { source.read_meta(&handle).await.map_err(Arc::new) };
            vec![(keys, Box::pin(act))]
        };
        let mut tickets = self.metas.board([(handle.info.id.uuid.as_u128(), 0)], plan);
        let ticket = tickets.pop().expect("one key has one ticket");
        let meta = ticket.wait().await?;
        self.budget.admit(handle, &meta).await;
        Ok(meta)
    }

    /// A block, if it is in memory. Does not allocate.
    pub fn block_now(&self, handle: &SstHandle, meta: &SstMeta, index: usize) -> Option<Block> {
        self.source.cache.get_now(&handle.block_key(meta.block_range(index).start))
    }

    /// One block: from memory, from disk, or by one exact ranged GET. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn block(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        index: usize,
    ) -> Result<Block> {
        let mut blocks = self.blocks(handle, meta, index..index + 1).await?;
        Ok(blocks.pop().expect("one block was asked for"))
    }

    /// Neighbouring blocks, in their order. Those that are missing come by one ranged GET, or by
    /// several if some between them are at hand or they are large. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn blocks(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        wanted: Range<usize>,
    ) -> Result<Vec<Block>> {
        let now = |index| self.block_now(handle, meta, index);
        let mut found: Vec<Option<Block>> = wanted.clone().map(now).collect();
        let sst = handle.info.id.uuid.as_u128();
        let missing = wanted.clone().zip(&found).filter(|(_, block)| block.is_none());
        let keys: Vec<_> = missing.map(|(index, _)| (sst, index)).collect();
        if !keys.is_empty() {
            let plan = |alone: Vec<_>| self.plan_stretches(handle, meta, &alone);
            let tickets = self.blocks.board(keys, plan);
            for stretch in try_join_all(tickets.into_iter().map(Ticket::wait)).await? {
                for (index, block) in (stretch.first..).zip(&*stretch.blocks) {
                    if wanted.contains(&index) {
                        found[index - wanted.start] = Some(block.clone());
                    }
                }
            }
        }
        let found = found.into_iter();
        Ok(found.map(|block| block.expect("each missing block had a ticket")).collect())
    }

    /// Puts blocks that nobody fetches yet into stretches of neighbours, each fetched by one act.
    fn plan_stretches(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        alone: &[(u128, usize)],
    ) -> Vec<Planned<(u128, usize), Stretch>> {
        let indexes: Vec<usize> = alone.iter().map(|(_, index)| *index).collect();
        let stretches = neighbours(meta, &indexes).into_iter().map(|stretch| {
            let keys = stretch.clone().map(|index| (handle.info.id.uuid.as_u128(), index));
            let keys = keys.collect();
            let source = Arc::clone(&self.source);
            let (handle, meta) = (Arc::clone(handle), Arc::clone(meta));
            let act =
                async move { source.read_stretch(&handle, &meta, stretch).await.map_err(Arc::new) };
            (keys, Box::pin(act) as super::flights::Act<Stretch>)
        });
        stretches.collect()
    }
}

/// Ascending indexes as stretches of neighbours, none above [`STRETCH_BYTES_MAX`].
fn neighbours(meta: &SstMeta, indexes: &[usize]) -> Vec<Range<usize>> {
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for &index in indexes {
        match stretches.last_mut() {
            Some(last)
                if last.end == index && bytes_of(meta, last.start, index) <= STRETCH_BYTES_MAX =>
            {
                last.end = index + 1;
            }
            _ => stretches.push(index..index + 1),
        }
    }
    stretches
}

/// Stored bytes from block `first` to block `last`, both included.
fn bytes_of(meta: &SstMeta, first: usize, last: usize) -> u64 {
    meta.block_range(last).end - meta.block_range(first).start
}

impl Source {
    async fn read_meta(&self, handle: &SstHandle) -> Result<Arc<SstMeta>> {
        let (info, object) = (&handle.info, handle.object());
        let parse = |bytes| SstMeta::parse(bytes, info, handle.database).map(Arc::new);
        let range = info.meta_offset..info.bytes;
        self.bucket_of(info.home.as_ref())?.read_parsed(&object, Some(range), parse).await
    }

    /// Reads blocks that were not in memory a moment ago: each from memory after all, from disk,
    /// or from the bucket.
    async fn read_stretch(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        wanted: Range<usize>,
    ) -> Result<Stretch> {
        let near = wanted.clone().map(|index| async move {
            let offset = meta.block_range(index).start;
            let key = handle.block_key(offset);
            // SUBTLE: another flight may have landed between the caller's look and this one.
            let block = self.cache.peek(&key);
            if block.is_some() {
                return block;
            }
            let parse = |stored: &[u8]| Block::parse(stored, &handle.info.id, offset);
            self.cache.load(&key, parse).await
        });
        let mut blocks: Vec<Option<Block>> = join_all(near).await;
        let missing = wanted.clone().zip(&blocks).filter(|(_, block)| block.is_none());
        let missing: Vec<usize> = missing.map(|(index, _)| index).collect();
        let far = neighbours(meta, &missing).into_iter().map(|stretch| async move {
            let fetched = self.fetch(handle, meta, stretch.clone()).await?;
            Ok::<_, Error>((stretch, fetched))
        });
        for (stretch, fetched) in try_join_all(far).await? {
            for (index, block) in stretch.zip(fetched) {
                blocks[index - wanted.start] = Some(block);
            }
        }
        let blocks = blocks.into_iter();
        let blocks = blocks.map(|block| block.expect("what was missing has been fetched"));
        Ok(Stretch { first: wanted.start, blocks: blocks.collect() })
    }

    /// Fetches neighbouring blocks by one ranged GET and puts them into the cache.
    async fn fetch(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        stretch: Range<usize>,
    ) -> Result<Vec<Block>> {
        let object = handle.object();
        let range = meta.block_range(stretch.start).start..meta.block_range(stretch.end - 1).end;
        let large = range.end - range.start > INLINE_BYTES_MAX;
        let bucket = self.bucket_of(handle.info.home.as_ref())?;
        let mut doubt = bucket.doubt(&object);
        loop {
            let bytes = bucket.get_range(&object, range.clone()).await?;
            let (stretch, stored) = (stretch.clone(), bytes.clone());
            let decode = {
                let (handle, meta) = (Arc::clone(handle), Arc::clone(meta));
                let cache = self.cache.clone();
                move || decode(&cache, &handle, &meta, (stretch, stored))
            };
            match if large { self.env.cpu.run(decode).await } else { decode() } {
                Ok(blocks) => return Ok(blocks),
                Err(cause) => doubt.consider(&bytes, cause).await?,
            }
        }
    }

    fn bucket_of(&self, home: Option<&Home>) -> Result<Bucket> {
        match home {
            Some(home) => self.bucket.rooted(&home.root),
            None => Ok(self.bucket.clone()),
        }
    }
}

/// Decodes the stored bytes of neighbouring blocks, and puts them into the cache.
fn decode(
    cache: &BlockCache,
    handle: &SstHandle,
    meta: &SstMeta,
    (stretch, bytes): (Range<usize>, Bytes),
) -> Result<Vec<Block>, Corrupt> {
    let mut rest = bytes;
    let blocks = stretch.map(|index| {
        let range = meta.block_range(index);
        let bytes = usize::try_from(range.end - range.start).expect("the stretch is in memory");
        let stored = rest.split_to(bytes);
        let block = Block::parse(&stored, &handle.info.id, range.start)?;
        cache.insert(handle.block_key(range.start), &block, &stored);
        Ok(block)
    });
    blocks.collect()
}
