//! Where the parts of SSTs and runs come from: memory, the disk tier, the bucket.
//!
//! A damaged block fails no other: a stretch that does not parse is fetched again block by block.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{FutureExt, join_all, try_join_all};
use futures::stream::{self, StreamExt};

use super::SstHandle;
use super::failures::{Failures, Part, Place, shared};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::Corrupt;
use crate::format::block::Block;
use crate::format::manifest::{Home, RunInfo};
use crate::format::path::Object;
use crate::format::run::Run;
use crate::format::sst::SstMeta;
use crate::store::cache::BlockCache;
use crate::store::object::Bucket;

/// Stored bytes of blocks that one GET brings at most, unless one block alone is larger.
const STRETCH_BYTES_MAX: u64 = 8 << 20;
/// Blocks of a damaged stretch that are fetched one by one at a time.
const SINGLES_TOGETHER: usize = 8;
/// Stored bytes that are decoded on the calling task; more goes where CPU work goes. Decoding
/// runs at a gigabyte a second or more, so this is a fraction of a millisecond.
const INLINE_BYTES_MAX: u64 = 256 << 10;

/// Where blocks come from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) bucket: Bucket,
    pub(super) cache: BlockCache,
    pub(super) env: Env,
    pub(super) failures: Failures,
}

/// Neighbouring blocks.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    pub(super) first: usize,
    pub(super) blocks: Arc<[Result<Block, Arc<Error>>]>,
}

/// Ascending indexes as stretches of neighbours, none above [`STRETCH_BYTES_MAX`].
pub(super) fn neighbours(meta: &SstMeta, indexes: &[usize]) -> Vec<Range<usize>> {
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
    pub(super) fn recall(&self, place: Place) -> Option<Error> {
        self.failures.recall(place, self.env.clock.boot())
    }

    pub(super) fn settle<T>(&self, place: Place, read: Result<T>) -> Result<T> {
        self.failures.settle(place, read, self.env.clock.boot(), self.bucket.damage())
    }

    pub(super) async fn read_run(&self, info: &RunInfo) -> Result<Run> {
        let object = Object::Run(info.id);
        let parse = |bytes: Bytes| {
            let run = Run::parse(&bytes, &info.digest)?;
            run.check_named_by(info)?;
            Ok(run)
        };
        self.bucket_of(info.home.as_ref())?.read_parsed(&object, None, parse).await
    }

    pub(super) async fn read_meta(&self, handle: &SstHandle) -> Result<Arc<SstMeta>> {
        let (info, object) = (&handle.info, handle.object());
        let parse = |bytes| SstMeta::parse(bytes, info, handle.database).map(Arc::new);
        let range = info.meta_offset..info.bytes;
        self.bucket_of(info.home.as_ref())?.read_parsed(&object, Some(range), parse).await
    }

    /// Reads blocks that were not in memory a moment ago: each from memory after all, from disk,
    /// or from the bucket.
    pub(super) async fn read_stretch(
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
        let near = join_all(near).await.into_iter();
        let mut blocks: Vec<Option<Result<Block>>> = near.map(|block| block.map(Ok)).collect();
        let missing = wanted.clone().zip(&blocks).filter(|(_, block)| block.is_none());
        let missing: Vec<usize> = missing.map(|(index, _)| index).collect();
        let far = neighbours(meta, &missing).into_iter().map(|stretch| async move {
            let fetched = self.fetch_each(handle, meta, stretch.clone()).await?;
            Ok::<_, Error>((stretch, fetched))
        });
        for (stretch, fetched) in try_join_all(far).await? {
            for (index, block) in stretch.zip(fetched) {
                blocks[index - wanted.start] = Some(block);
            }
        }
        let blocks = blocks.into_iter();
        let blocks = blocks.map(|block| block.expect("what was missing has been fetched"));
        Ok(Stretch { first: wanted.start, blocks: blocks.map(shared).collect() })
    }

    /// Fetches neighbouring blocks; if one of them is damaged, each by a GET of its own.
    async fn fetch_each(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        stretch: Range<usize>,
    ) -> Result<Vec<Result<Block>>> {
        let place = |index| (handle.object(), Part::Block(index));
        match self.fetch(handle, meta, stretch.clone()).await {
            Ok(blocks) => {
                let blocks = stretch.zip(blocks);
                Ok(blocks.map(|(index, block)| self.settle(place(index), Ok(block))).collect())
            }
            Err(Error::Corrupt(_)) if stretch.len() > 1 => {
                let singles = stretch.map(|index| self.fetch_single(handle, meta, index).boxed());
                let singles = stream::iter(singles.collect::<Vec<_>>());
                let blocks: Vec<_> = singles.buffered(SINGLES_TOGETHER).collect().await;
                if blocks.iter().all(Result::is_ok) {
                    self.failures.acquit(&handle.object(), self.bucket.damage());
                }
                Ok(blocks)
            }
            Err(error @ Error::Corrupt(_)) => {
                Ok(vec![self.settle(place(stretch.start), Err(error))])
            }
            Err(error) => self.settle(place(stretch.start), Err(error)),
        }
    }

    async fn fetch_single(
        &self,
        handle: &Arc<SstHandle>,
        meta: &Arc<SstMeta>,
        index: usize,
    ) -> Result<Block> {
        let block = self.fetch(handle, meta, index..index + 1).await;
        let block = block.map(|mut blocks| blocks.pop().expect("one block"));
        self.settle((handle.object(), Part::Block(index)), block)
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

    pub(super) fn bucket_of(&self, home: Option<&Home>) -> Result<Bucket> {
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
