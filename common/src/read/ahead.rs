//! Read-ahead: the fetches that a cursor sends ahead of itself.
//!
//! The first fetch brings one block, for most scans end within it, and each one after that twice as
//! many, up to the cursor's part of what its scan may fetch. From the second on, two are under way
//! while the blocks of one are consumed. They cross from SST to SST, metadata included.
//!
//! **Invariants**
//! - A fetch runs as a task that its cursor owns: dropping the cursor ends it.
//! - What is larger than [`FREE_BYTES`], and all that is ahead, is counted against the memory of
//!   all scans ([`SstStore::read_ahead`]) until it has been consumed. If there is none left, a
//!   scan continues with small fetches, one at a time: slower, never refused.

use std::fmt;
use std::ops::Range;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::cursor::Course;
use crate::error::{Error, Result};
use crate::format::block::Block;
use crate::format::sst::SstMeta;
use crate::store::sst::{SstHandle, SstStore};
use crate::types::Direction;

/// Stored bytes of one fetch at most: at 20 ms for each and two ahead, 100 MB/s.
const FETCH_BYTES_MAX: u64 = 1 << 20;
/// Stored bytes of a fetch that needs no share of the memory of all scans: a few blocks.
const FREE_BYTES: u64 = 64 << 10;

/// How much a cursor fetches at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAhead {
    /// Stored bytes of a fetch at most, unless one block is larger.
    bytes_max: u64,
}

impl ReadAhead {
    /// Blocks of the first fetch.
    pub(super) const BLOCKS_FIRST: usize = 1;

    /// For each of `count` cursors that share this many bytes.
    pub fn sharing(bytes: u64, count: usize) -> Self {
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        Self { bytes_max: (bytes / count).clamp(FREE_BYTES, FETCH_BYTES_MAX) }
    }
}

/// What a cursor wants to have fetched.
pub(super) struct Wanted {
    /// The place of the SST among the cursor's.
    pub(super) place: usize,
    pub(super) handle: Arc<SstHandle>,
    /// The metadata, and the blocks that are left of the SST, where that is known.
    pub(super) left: Option<(Arc<SstMeta>, Range<usize>)>,
    /// How many blocks at most.
    pub(super) blocks: usize,
}

/// What a fetch brought.
pub(super) struct Chunk {
    pub(super) meta: Arc<SstMeta>,
    /// The index of the first of the blocks, which ascend.
    pub(super) first: usize,
    pub(super) blocks: Vec<Block>,
}

/// One fetch: neighbouring blocks of one SST, and its metadata where that was not known.
pub(super) struct Fetch {
    place: usize,
    handle: Arc<SstHandle>,
    /// What it brings, and what of the SST is left before it; `None` until the metadata is there.
    extent: Option<Extent>,
    work: Work,
    share: Option<OwnedSemaphorePermit>,
}

struct Extent {
    meta: Arc<SstMeta>,
    brings: Range<usize>,
    left: Range<usize>,
}

type Landing = Pin<Box<dyn Future<Output = Result<Chunk>> + Send>>;

enum Work {
    /// Driven by who waits for it.
    Here(Landing),
    /// A task.
    Ahead(JoinSet<Result<Chunk>>),
}

impl Fetch {
    /// The fetch that the cursor waits for; small where there is no memory for a large one.
    pub(super) fn needed(store: &Arc<SstStore>, wanted: Wanted, course: &Course) -> Self {
        let bytes_max = course.read_ahead.bytes_max;
        let (plan, share) = match Self::plan(store, &wanted, course, bytes_max) {
            (plan, Some(share)) => (plan, Some(share)),
            (_, None) => (Plan::of(&wanted, course, FREE_BYTES), None),
        };
        let how = (plan.clone(), course.direction);
        let work = Work::Here(Box::pin(land(Arc::clone(store), Arc::clone(&wanted.handle), how)));
        Self::new(wanted, plan, work, share)
    }

    /// A fetch ahead of others; `None` where there is no memory for it. Needs a runtime.
    pub(super) fn ahead(store: &Arc<SstStore>, wanted: Wanted, course: &Course) -> Option<Self> {
        let (plan, share) = Self::plan(store, &wanted, course, course.read_ahead.bytes_max);
        let share = Some(share?);
        let mut task = JoinSet::new();
        let how = (plan.clone(), course.direction);
        task.spawn(land(Arc::clone(store), Arc::clone(&wanted.handle), how));
        Some(Self::new(wanted, plan, Work::Ahead(task), share))
    }

    fn plan(
        store: &SstStore,
        wanted: &Wanted,
        course: &Course,
        bytes_max: u64,
    ) -> (Plan, Option<OwnedSemaphorePermit>) {
        let plan = Plan::of(wanted, course, bytes_max);
        let share = store.read_ahead(plan.bytes());
        (plan, share)
    }

    fn new(wanted: Wanted, plan: Plan, work: Work, share: Option<OwnedSemaphorePermit>) -> Self {
        let extent = match plan {
            Plan::Blocks { meta, brings, left } => Some(Extent { meta, brings, left }),
            Plan::Opening { .. } => None,
        };
        Self { place: wanted.place, handle: wanted.handle, extent, work, share }
    }

    /// The place of its SST.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Its SST.
    pub(super) fn handle(&self) -> &Arc<SstHandle> {
        &self.handle
    }

    /// Whether it brings this block; where that is not known yet, it begins with the SST's first.
    pub(super) fn brings(&self, block: usize) -> bool {
        self.extent.as_ref().is_none_or(|extent| extent.brings.contains(&block))
    }

    /// What it leaves of its SST, where that is known.
    pub(super) fn left_behind(&self, way: Direction) -> Option<(Arc<SstMeta>, Range<usize>)> {
        let Extent { meta, brings, left } = self.extent.as_ref()?;
        let mut left = left.clone();
        way.drop_first(&mut left, brings.len());
        Some((Arc::clone(meta), left))
    }

    /// Waits for what it brings. Cancel-safe; to be called until it returns once.
    pub(super) async fn landed(&mut self) -> Result<Chunk> {
        match &mut self.work {
            Work::Here(landing) => landing.await,
            Work::Ahead(task) => match task.join_next().await {
                Some(Ok(landed)) => landed,
                Some(Err(error)) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(_) => Err(Error::Closed),
                },
                None => Err(Error::Closed),
            },
        }
    }

    /// What it takes of the memory of all scans.
    pub(super) fn into_share(self) -> Option<OwnedSemaphorePermit> {
        self.share
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brings = self.extent.as_ref().map(|extent| &extent.brings);
        f.debug_struct("Fetch")
            .field("place", &self.place)
            .field("brings", &brings)
            .finish_non_exhaustive()
    }
}

/// What exactly is fetched.
#[derive(Clone)]
enum Plan {
    Blocks { meta: Arc<SstMeta>, brings: Range<usize>, left: Range<usize> },
    Opening { course: Course, blocks: usize, bytes_max: u64 },
}

impl Plan {
    fn of(wanted: &Wanted, course: &Course, bytes_max: u64) -> Self {
        let known = || {
            let meta = wanted.handle.with_meta(Arc::clone)?;
            let left = meta.blocks_between(&course.range.start, course.range.end.as_deref());
            Some((meta, left))
        };
        match wanted.left.clone().or_else(known) {
            Some((meta, left)) => {
                let brings = stretch(&meta, &left, course.direction, (wanted.blocks, bytes_max));
                Self::Blocks { meta, brings, left }
            }
            None => Self::Opening { course: course.clone(), blocks: wanted.blocks, bytes_max },
        }
    }

    /// Stored bytes that it brings at most, unless one block is larger.
    fn bytes(&self) -> u64 {
        match self {
            Self::Blocks { brings, .. } if brings.is_empty() => 0,
            Self::Blocks { meta, brings, .. } => bytes_of(meta, brings),
            Self::Opening { bytes_max, .. } => *bytes_max,
        }
    }
}

/// Fetches the blocks up to the first that cannot be had: only who comes to that one fails.
async fn land(
    store: Arc<SstStore>,
    handle: Arc<SstHandle>,
    (plan, way): (Plan, Direction),
) -> Result<Chunk> {
    let (meta, brings) = match plan {
        Plan::Blocks { meta, brings, .. } => (meta, brings),
        Plan::Opening { course, blocks, bytes_max } => {
            let meta = store.meta(&handle).await?;
            let left = meta.blocks_between(&course.range.start, course.range.end.as_deref());
            let brings = stretch(&meta, &left, course.direction, (blocks, bytes_max));
            (meta, brings)
        }
    };
    let mut found = store.blocks_each(&handle, &meta, brings.clone()).await;
    if way == Direction::Reverse {
        found.reverse();
    }
    let mut blocks = Vec::with_capacity(found.len());
    for block in found {
        match block {
            Ok(block) => blocks.push(block),
            Err(error) if blocks.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    let mut first = brings.start;
    if way == Direction::Reverse {
        first = brings.end - blocks.len();
        blocks.reverse();
    }
    Ok(Chunk { meta, first, blocks })
}

/// The first blocks on the way: so many, of so many bytes, at most; one at least, if any is left.
fn stretch(
    meta: &SstMeta,
    left: &Range<usize>,
    way: Direction,
    (blocks_max, bytes_max): (usize, u64),
) -> Range<usize> {
    let taken = |count: usize| match way {
        Direction::Forward => left.start..left.start + count,
        Direction::Reverse => left.end - count..left.end,
    };
    let mut count = left.len().min(1);
    while count < left.len().min(blocks_max) && bytes_of(meta, &taken(count + 1)) <= bytes_max {
        count += 1;
    }
    taken(count)
}

/// Stored bytes of neighbouring blocks, of which there is at least one.
fn bytes_of(meta: &SstMeta, blocks: &Range<usize>) -> u64 {
    meta.block_range(blocks.end - 1).end - meta.block_range(blocks.start).start
}
