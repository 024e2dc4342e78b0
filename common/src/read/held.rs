//! What a reader was given while it waited, kept until its answer is complete.
//!
//! A reader that looks again after a fetch must find what it fetched, even if the caches are so
//! small or so busy that it has been evicted already: each round then asks for something new, and
//! the rounds end.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::format::block::Block;
use crate::format::sst::SstMeta;
use crate::store::sst::{Need, SstHandle, SstStore};

/// Requests that one reader has under way at most.
const FETCH_COUNT_MAX: usize = 32;

/// Metadata and blocks by the number of their handle.
#[derive(Debug, Default)]
pub(super) struct Held {
    metas: BTreeMap<u64, Arc<SstMeta>>,
    blocks: BTreeMap<(u64, usize), Block>,
}

/// One fetch: what can be had by one request.
enum Fetch {
    Meta(Arc<SstHandle>),
    Blocks(Arc<SstHandle>, Arc<SstMeta>, Range<usize>),
}

enum Fetched {
    Meta(u64, Arc<SstMeta>),
    Blocks(u64, usize, Vec<Block>),
}

impl Held {
    pub(super) fn meta(&self, handle: &SstHandle) -> Option<&Arc<SstMeta>> {
        self.metas.get(&handle.number())
    }

    pub(super) fn block(&self, handle: &SstHandle, index: usize) -> Option<&Block> {
        self.blocks.get(&(handle.number(), index))
    }

    /// Fetches everything that is needed at once, neighbouring blocks together.
    pub(super) async fn supply(&mut self, ssts: &SstStore, needs: Vec<Need>) -> Result<()> {
        let mut fetched = stream::iter(plan(needs).into_iter().map(|fetch| async move {
            Ok::<_, Error>(match fetch {
                Fetch::Meta(handle) => Fetched::Meta(handle.number(), ssts.meta(&handle).await?),
                Fetch::Blocks(handle, meta, range) => {
                    let blocks = ssts.blocks(&handle, &meta, range.clone()).await?;
                    Fetched::Blocks(handle.number(), range.start, blocks)
                }
            })
        }))
        .buffer_unordered(FETCH_COUNT_MAX);
        while let Some(fetched) = fetched.try_next().await? {
            match fetched {
                Fetched::Meta(number, meta) => {
                    self.metas.insert(number, meta);
                }
                Fetched::Blocks(number, first, blocks) => {
                    let indexes = (first..).map(|index| (number, index));
                    self.blocks.extend(indexes.zip(blocks));
                }
            }
        }
        Ok(())
    }
}

/// Each thing once, neighbouring blocks of one SST in one fetch.
fn plan(needs: Vec<Need>) -> Vec<Fetch> {
    let mut metas = BTreeMap::new();
    let mut blocks = BTreeMap::new();
    for need in needs {
        match need {
            Need::Meta(handle) => drop(metas.insert(handle.number(), handle)),
            Need::Block(handle, meta, index) => {
                drop(blocks.insert((handle.number(), index), (handle, meta)));
            }
        }
    }
    let mut fetches: Vec<Fetch> = metas.into_values().map(Fetch::Meta).collect();
    for ((number, index), (handle, meta)) in blocks {
        match fetches.last_mut() {
            Some(Fetch::Blocks(last, _, range))
                if last.number() == number && range.end == index =>
            {
                range.end += 1;
            }
            _ => fetches.push(Fetch::Blocks(handle, meta, index..index + 1)),
        }
    }
    fetches
}
