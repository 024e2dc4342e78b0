//! SSTs as readers use them: handles whose metadata is at hand or one GET away, and their blocks.
//!
//! ```text
//! view -> OpenTree -> RunHandle { info, ssts }                 sync: read the list
//!             |            |
//!             |       one GET, once, by the first who needs it
//!             +-----> SstHandle { info, slot -> metadata }     sync: read the slot
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
//! - Errors name the object. `NotFound` means "reload the manifest". What is certainly damaged or
//!   missing is in the bucket's damage registry, and is asked for again once a second.
//! - An SST or a run has one handle for as long as anybody holds it, also where it moves from L0 to
//!   a run or from one run to the next.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use futures::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::budget::Budget;
pub use self::budget::MetaBudget;
use self::failures::{Failures, Part, shared};
use self::live::Live;
pub(crate) use self::run::Replaced;
pub use self::run::{RunHandle, candidates};
use self::source::{Source, Stretch, neighbours};
use super::cache::{BlockCache, BlockKey};
use super::flights::{Flights, Planned};
use super::object::Bucket;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::block::Block;
use crate::format::manifest::{RunInfo, SstInfo};
use crate::format::path::{Object, OutputId};
use crate::format::run::Run;
use crate::format::sst::SstMeta;
use crate::types::DatabaseId;

mod budget;
mod failures;
mod live;
mod run;
mod source;

/// Stored bytes that all scans of a process together may hold ahead of what they have consumed:
/// ten scans at full speed. What is decoded of them takes up to a few times as much.
const READ_AHEAD_BYTES_MAX: usize = 32 << 20;
/// The unit in which they are counted, since a semaphore counts in `u32`.
const READ_AHEAD_UNIT_BYTES: u64 = 1 << 10;

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

    /// Whether the metadata is at hand; does not count as a look at it.
    pub(crate) fn is_loaded(&self) -> bool {
        self.slot.load().is_some()
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
    /// The SSTs of a run.
    Run(Arc<RunHandle>),
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
    live_ssts: Live<SstHandle>,
    live_runs: Live<RunHandle>,
    runs: Flights<u128, Arc<Run>>,
    metas: Flights<(u128, usize), Arc<SstMeta>>,
    blocks: Flights<(u128, usize), Stretch>,
    /// Units of [`READ_AHEAD_BYTES_MAX`] that are free.
    read_ahead: Arc<Semaphore>,
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
            source: Arc::new(Source { bucket, cache, env, failures: Failures::default() }),
            budget: Budget::new(budget),
            handles: AtomicU64::new(0),
            live_ssts: Live::default(),
            live_runs: Live::default(),
            runs: Flights::new(),
            metas: Flights::new(),
            blocks: Flights::new(),
            read_ahead: Arc::new(Semaphore::new(READ_AHEAD_BYTES_MAX >> 10)),
        }
    }

    /// A share of the memory for read-ahead, given back when it is dropped; `None` where so many
    /// bytes are not free.
    pub fn read_ahead(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(READ_AHEAD_UNIT_BYTES)).ok()?;
        Arc::clone(&self.read_ahead).try_acquire_many_owned(units).ok()
    }

    /// What the process takes from its machine.
    pub fn env(&self) -> &Env {
        &self.source.env
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

    /// The handle of an SST: the one that somebody holds, or a new one with nothing loaded.
    pub fn handle(&self, info: &SstInfo) -> Arc<SstHandle> {
        // The stretch of the log is said of L0 only; all else must be the same.
        let is_same = |handle: &SstHandle| {
            let [a, b] = [&handle.info, info].map(|info| SstInfo { wal: None, ..info.clone() });
            a == b
        };
        self.live_ssts.get(info.id, is_same, || SstHandle {
            database: info.home.as_ref().map_or(self.database, |home| home.database),
            info: info.clone(),
            number: self.handles.fetch_add(1, Ordering::Relaxed),
            slot: ArcSwapOption::empty(),
            touched: AtomicBool::new(false),
            dropped: self.budget.dropped(),
        })
    }

    /// The handle of a run: the one that somebody holds, or a new one that keeps what it replaced
    /// until its object is read.
    pub(crate) fn run(&self, info: &RunInfo, replaced: &Replaced) -> Arc<RunHandle> {
        let is_same = |run: &RunHandle| run.info() == info;
        self.live_runs.get(info.id, is_same, || RunHandle::new(info.clone(), Arc::clone(replaced)))
    }

    /// Reads the object of a run, if that was not done yet; concurrent callers share one GET.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn open_run(&self, run: &Arc<RunHandle>) -> Result<()> {
        if run.ssts().is_some() {
            return Ok(());
        }
        let place = (run.object(), Part::Whole);
        if let Some(error) = self.source.recall(place) {
            return Err(error);
        }
        let plan = |keys: Vec<_>| -> Vec<Planned<_, _>> {
            let (source, run) = (Arc::clone(&self.source), Arc::clone(run));
            let act = async move {
                let read = source.read_run(run.info()).await.map(Arc::new);
                shared(source.settle(place, read))
            };
            vec![(keys, Box::pin(act))]
        };
        let mut tickets = self.runs.board([run.info().id.uuid.as_u128()], plan);
        let read = tickets.pop().expect("one key has one ticket").wait().await?;
        let handle = |sst: &SstInfo| {
            // The SSTs of a parent's run live where the run does.
            let home = sst.home.clone().or_else(|| run.info().home.clone());
            self.handle(&SstInfo { home, ..sst.clone() })
        };
        run.fill(|| read.ssts.iter().map(handle).collect());
        Ok(())
    }

    /// Takes note that this object is missing though the newest manifest names it: a second read
    /// after a reload came to the same. Returns what requests that need it fail with.
    pub fn believe_missing(&self, name: &str) -> Error {
        let Some(object) = Object::parse(name) else { return Error::NotFound(name.to_owned()) };
        let Source { bucket, env, failures, .. } = &*self.source;
        failures.believe(object, env.clock.boot(), bucket.damage())
    }

    /// Forgets damage of SSTs and runs for which `is_needed` is false.
    pub(crate) fn forget_damage(&self, is_needed: impl Fn(&OutputId) -> bool) {
        let is_needed = |object: &Object| match object {
            Object::Run(id) | Object::Sst(id) => is_needed(id),
            _ => true,
        };
        self.source.failures.retain(is_needed, self.bucket().damage());
    }

    /// Reads the object of a run: its SSTs by key, ascending. One GET.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn load_run(&self, info: &RunInfo) -> Result<Run> {
        self.source.read_run(info).await
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
        let place = (handle.object(), Part::Meta);
        if let Some(error) = self.source.recall(place) {
            return Err(error);
        }
        let plan = |keys: Vec<_>| -> Vec<Planned<_, _>> {
            let (source, handle) = (Arc::clone(&self.source), Arc::clone(handle));
            let act = async move {
                let read = source.read_meta(&handle).await;
                shared(source.settle(place, read))
            };
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
    /// `NotFound`, `Unavailable`, `Corrupt`, if one of them cannot be had.
    pub async fn blocks(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        wanted: Range<usize>,
    ) -> Result<Vec<Block>> {
        self.blocks_each(handle, meta, wanted).await.into_iter().collect()
    }

    /// Like [`SstStore::blocks`], but one that cannot be had fails no other: each block, or its
    /// error. Cancel-safe.
    pub async fn blocks_each(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        wanted: Range<usize>,
    ) -> Vec<Result<Block>> {
        let object = handle.object();
        let now = |index| {
            let failed = || self.source.recall((object, Part::Block(index))).map(Err);
            self.block_now(handle, meta, index).map(Ok).or_else(failed)
        };
        let mut found: Vec<Option<Result<Block>>> = wanted.clone().map(now).collect();
        let sst = handle.info.id.uuid.as_u128();
        let missing = wanted.clone().zip(&found).filter(|(_, block)| block.is_none());
        let keys: Vec<_> = missing.map(|(index, _)| (sst, index)).collect();
        if !keys.is_empty() {
            let plan = |alone: Vec<_>| self.plan_stretches(handle, meta, &alone);
            let tickets = self.blocks.board(keys, plan);
            let stretches = tickets.into_iter().map(async |ticket| {
                let indexes: Vec<usize> = ticket.keys().iter().map(|(_, index)| *index).collect();
                (indexes, ticket.wait().await)
            });
            for (indexes, landed) in join_all(stretches).await {
                for index in indexes.into_iter().filter(|index| wanted.contains(index)) {
                    let block = match &landed {
                        Ok(stretch) => match &stretch.blocks[index - stretch.first] {
                            Ok(block) => Ok(block.clone()),
                            Err(error) => Err(error.repeat()),
                        },
                        Err(error) => Err(error.repeat()),
                    };
                    found[index - wanted.start].get_or_insert(block);
                }
            }
        }
        let found = found.into_iter();
        found.map(|block| block.expect("each missing block had a ticket")).collect()
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
