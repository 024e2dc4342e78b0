//! What a reader was given while it waited, kept until its answer is complete.
//!
//! A reader that looks again after a fetch must find what it fetched, even if the caches are so
//! small or so busy that it has been evicted already: each round then asks for something new, and
//! the rounds end.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt};

use crate::error::{Error, Result};
use crate::format::block::Block;
use crate::format::path::OutputId;
use crate::format::sst::SstMeta;
use crate::store::sst::{Need, RunHandle, SstHandle, SstStore};

/// Requests that one reader has under way at most.
const FETCH_COUNT_MAX: usize = 32;

/// Metadata and blocks by the number of their handle, and what cannot be had.
#[derive(Debug, Default)]
pub(super) struct Held {
    metas: BTreeMap<u64, Arc<SstMeta>>,
    blocks: BTreeMap<(u64, usize), Block>,
    failed: BTreeMap<Wanted, Error>,
}

/// What is wanted, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Run(OutputId),
    Meta(u64),
    Block(u64, usize),
}

/// One fetch: what can be had by one request.
enum Fetch {
    Run(Arc<RunHandle>),
    Meta(Arc<SstHandle>),
    Blocks(Arc<SstHandle>, Arc<SstMeta>, Range<usize>),
}

enum Fetched {
    Run,
    Meta(u64, Arc<SstMeta>),
    Blocks(u64, usize, Vec<Result<Block>>),
}

impl Held {
    pub(super) fn meta(&self, handle: &SstHandle) -> Option<&Arc<SstMeta>> {
        self.metas.get(&handle.number())
    }

    pub(super) fn block(&self, handle: &SstHandle, index: usize) -> Option<&Block> {
        self.blocks.get(&(handle.number(), index))
    }

    /// Why something that is needed cannot be had, if that is known.
    pub(super) fn failure(&self, need: &Need) -> Option<Error> {
        self.failed.get(&Wanted::of(need)).map(Error::repeat)
    }

    /// Fetches everything that is needed at once, neighbouring blocks together. Why something
    /// cannot be had is remembered, since it may turn out not to be needed.
    pub(super) async fn supply(&mut self, ssts: &SstStore, needs: Vec<Need>) {
        let mut fetched = stream::iter(plan(needs).into_iter().map(|fetch| fetch.run(ssts)))
            .buffer_unordered(FETCH_COUNT_MAX);
        while let Some((wanted, fetched)) = fetched.next().await {
            match fetched {
                Ok(Fetched::Run) => {}
                Ok(Fetched::Meta(number, meta)) => {
                    self.metas.insert(number, meta);
                }
                Ok(Fetched::Blocks(number, first, blocks)) => {
                    for (index, block) in (first..).zip(blocks) {
                        match block {
                            Ok(block) => drop(self.blocks.insert((number, index), block)),
                            Err(error) => {
                                self.failed.insert(Wanted::Block(number, index), error);
                            }
                        }
                    }
                }
                Err(error) => {
                    self.failed.insert(wanted, error);
                }
            }
        }
    }
}

impl Wanted {
    fn of(need: &Need) -> Self {
        match need {
            Need::Run(run) => Self::Run(run.info().id),
            Need::Meta(handle) => Self::Meta(handle.number()),
            Need::Block(handle, _, index) => Self::Block(handle.number(), *index),
        }
    }
}

impl Fetch {
    async fn run(self, ssts: &SstStore) -> (Wanted, Result<Fetched>) {
        match self {
            Self::Run(run) => {
                (Wanted::Run(run.info().id), ssts.open_run(&run).await.map(|()| Fetched::Run))
            }
            Self::Meta(handle) => {
                let number = handle.number();
                let meta = ssts.meta(&handle).await;
                (Wanted::Meta(number), meta.map(|meta| Fetched::Meta(number, meta)))
            }
            Self::Blocks(handle, meta, range) => {
                let (number, first) = (handle.number(), range.start);
                let blocks = ssts.blocks_each(&handle, &meta, range).await;
                (Wanted::Block(number, first), Ok(Fetched::Blocks(number, first, blocks)))
            }
        }
    }
}

/// Each thing once, neighbouring blocks of one SST in one fetch.
fn plan(needs: Vec<Need>) -> Vec<Fetch> {
    let mut runs = BTreeMap::new();
    let mut metas = BTreeMap::new();
    let mut blocks = BTreeMap::new();
    for need in needs {
        match need {
            Need::Run(run) => drop(runs.insert(run.info().id, run)),
            Need::Meta(handle) => drop(metas.insert(handle.number(), handle)),
            Need::Block(handle, meta, index) => {
                drop(blocks.insert((handle.number(), index), (handle, meta)));
            }
        }
    }
    let runs = runs.into_values().map(Fetch::Run);
    let mut fetches: Vec<Fetch> = runs.chain(metas.into_values().map(Fetch::Meta)).collect();
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
