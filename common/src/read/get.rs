//! Point reads: synchronous and without allocation where everything is at hand.
//!
//! **Life of a get.** The key is hashed once. Memtables are probed, then L0, then the runs, newest
//! first: of an SST the filter, the index and one block, or its bounds alone while its metadata is
//! not at hand. The first value or tombstone ends the walk; operands go on to their base. At the
//! first source that is not at hand the walk turns into a collection of what the sources from there
//! on need; all of it is fetched together, and the walk begins anew, with what was fetched in hand.
//! So a cold get waits once for metadata and once for blocks, and before that once for the objects
//! of runs that nobody has read yet.
//!
//! **Damage.** What cannot be had fails a key only if no newer source decides it: the answer does
//! not depend on what happens to be at hand.
//!
//! **Costs.** Nothing is boxed and nothing is spawned. A warm miss does not allocate; a warm hit
//! allocates at most once (a memtable's or a block's bytes are shared, not copied).

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::held::Held;
use super::view::View;
use crate::error::{Error, Result};
use crate::format::block::Block;
use crate::format::filter::KeyHash;
use crate::format::sst::SstMeta;
use crate::lsm::visible::{Found, Resolver};
use crate::store::sst::{Need, SstHandle, candidates};
use crate::types::{Payload, PayloadRef};

/// Keys of a multi-get that are looked up together: bounds the blocks that it holds.
const GROUP_KEYS: usize = 128;

/// What a look at what is at hand came to.
#[derive(Debug)]
pub enum Answer {
    /// The key's state.
    Ready(Option<Found>),
    /// What must be fetched first.
    Missing(Missing),
}

/// What a read needs and is not at hand.
#[derive(Debug)]
pub struct Missing {
    needs: Vec<Need>,
    /// Why there is no answer, if nothing more is needed to know that.
    failed: Option<Box<Error>>,
}

impl Missing {
    fn needs(self) -> Result<Vec<Need>> {
        self.failed.map_or(Ok(self.needs), |error| Err(*error))
    }
}

/// One key on its way through the sources.
struct Walk<'a> {
    view: &'a View,
    key: &'a [u8],
    hash: KeyHash,
    held: Option<&'a Held>,
    resolver: Resolver,
    missing: Vec<Need>,
    /// The newest source that cannot be asked, if all newer ones were.
    failed: Option<Box<Error>>,
}

/// What one SST says of a key.
enum Probe {
    /// Nothing.
    Absent,
    /// It may, in this block.
    Block(Block),
    /// It has to be asked again with this at hand.
    Missing(Need),
}

impl View {
    /// The key's state at `now_ms`. Answers without waiting if everything is at hand.
    ///
    /// Cancel-safe. A cold get costs one GET for each SST whose metadata is missing and may hold
    /// the key, and one for each missing block, in two rounds at most unless caches thrash.
    ///
    /// # Errors
    /// `NotFound` where an object was collected: reload the manifest. `Unavailable`. `Corrupt`.
    pub async fn get(&self, key: &[u8], now_ms: u64) -> Result<Option<Found>> {
        let mut missing = match self.look(key, now_ms, None) {
            Answer::Ready(found) => return Ok(found),
            Answer::Missing(missing) => missing,
        };
        let mut held = Held::default();
        loop {
            held.supply(&self.tree.ssts, missing.needs()?).await;
            missing = match self.look(key, now_ms, Some(&held)) {
                Answer::Ready(found) => return Ok(found),
                Answer::Missing(missing) => missing,
            };
        }
    }

    /// The key's state at `now_ms`, if everything that it takes is at hand.
    pub fn get_now(&self, key: &[u8], now_ms: u64) -> Answer {
        self.look(key, now_ms, None)
    }

    /// The states of several keys, in their order. What they need is fetched together.
    ///
    /// # Errors
    /// As [`View::get`]; one failure fails all.
    pub async fn get_many(&self, keys: &[Bytes], now_ms: u64) -> Result<Vec<Option<Found>>> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by(|a, b| keys[*a].cmp(&keys[*b]));
        let mut found = vec![None; keys.len()];
        // In the order of keys: a group's keys share blocks, and neighbouring blocks share GETs.
        for group in order.chunks(GROUP_KEYS) {
            let mut held = Held::default();
            let mut open = group.to_vec();
            while !open.is_empty() {
                let (mut needs, mut failed) = (Vec::new(), None);
                open.retain(|index| match self.look(&keys[*index], now_ms, Some(&held)) {
                    Answer::Ready(state) => {
                        found[*index] = state;
                        false
                    }
                    Answer::Missing(missing) => {
                        if missing.failed.is_some() {
                            failed = missing.failed;
                        } else {
                            needs.extend(missing.needs);
                        }
                        true
                    }
                });
                if let Some(error) = failed {
                    return Err(*error);
                }
                if !needs.is_empty() {
                    held.supply(&self.tree.ssts, needs).await;
                }
            }
        }
        Ok(found)
    }

    fn look(&self, key: &[u8], now_ms: u64, held: Option<&Held>) -> Answer {
        let mut walk = Walk {
            view: self,
            key,
            hash: KeyHash::of(key),
            held,
            resolver: Resolver::new(now_ms),
            missing: Vec::new(),
            failed: None,
        };
        let _decided = walk.memtables().is_break() || walk.ssts().is_break();
        if walk.missing.is_empty() && walk.failed.is_none() {
            Answer::Ready(walk.resolver.finish())
        } else {
            Answer::Missing(Missing { needs: walk.missing, failed: walk.failed })
        }
    }
}

impl Walk<'_> {
    fn memtables(&mut self) -> ControlFlow<()> {
        let window = self.view.window();
        for table in &self.view.memtables {
            let resolver = &mut self.resolver;
            table.versions(self.key, window, |entry, payload| {
                resolver.push(entry, || bytes_of(payload))
            })?;
        }
        ControlFlow::Continue(())
    }

    fn ssts(&mut self) -> ControlFlow<()> {
        let tree = &self.view.tree;
        for sst in &tree.l0 {
            self.sst(sst)?;
        }
        for run in &tree.runs {
            match run.ssts() {
                Some(ssts) => candidates(ssts, self.key).try_for_each(|sst| self.sst(sst))?,
                None if run.may_hold(self.key) => self.miss(Need::Run(Arc::clone(run)))?,
                None => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// Asks one SST. `Break`: no older source can say anything that counts.
    fn sst(&mut self, sst: &Arc<SstHandle>) -> ControlFlow<()> {
        match self.probe(sst) {
            Probe::Absent => ControlFlow::Continue(()),
            Probe::Missing(need) => self.miss(need),
            // What is older than something missing cannot be resolved yet; but a base in it ends
            // the collection.
            Probe::Block(block) => self.block(&block),
        }
    }

    /// Takes note of something that is not at hand. `Break`: it cannot be had, and nothing newer
    /// can make it unnecessary.
    #[cold]
    fn miss(&mut self, need: Need) -> ControlFlow<()> {
        match self.held.and_then(|held| held.failure(&need)) {
            None => self.missing.push(need),
            Some(error) if self.missing.is_empty() => {
                self.failed = Some(Box::new(error));
                return ControlFlow::Break(());
            }
            // What is newer comes first: it may hold the answer.
            Some(_) => {}
        }
        ControlFlow::Continue(())
    }

    fn probe(&self, sst: &Arc<SstHandle>) -> Probe {
        if let Some(meta) = self.held.and_then(|held| held.meta(sst)) {
            return self.probe_with(sst, meta);
        }
        match sst.with_meta(|meta| self.probe_with(sst, meta)) {
            Some(probe) => probe,
            // The bounds are asked last: the filter, where it is at hand, is quicker and knows
            // more.
            None if sst.may_hold(self.key) => Probe::Missing(Need::Meta(Arc::clone(sst))),
            None => Probe::Absent,
        }
    }

    fn probe_with(&self, sst: &Arc<SstHandle>, meta: &Arc<SstMeta>) -> Probe {
        if !meta.may_contain(self.hash) {
            return Probe::Absent;
        }
        let Some(index) = meta.block_for(self.key) else { return Probe::Absent };
        let held = self.held.and_then(|held| held.block(sst, index));
        let now = || self.view.tree.ssts.block_now(sst, meta, index);
        match held.cloned().or_else(now) {
            Some(block) => Probe::Block(block),
            None => Probe::Missing(Need::Block(Arc::clone(sst), Arc::clone(meta), index)),
        }
    }

    fn block(&mut self, block: &Block) -> ControlFlow<()> {
        let resolver = &mut self.resolver;
        block.find(self.key, |entry| {
            resolver.push(entry, || match entry.payload {
                PayloadRef::Value(bytes) | PayloadRef::Operand { operand: bytes, .. } => {
                    block.share(bytes)
                }
                PayloadRef::Tombstone => Bytes::new(),
            })
        })
    }
}

fn bytes_of(payload: &Payload) -> Bytes {
    match payload {
        Payload::Value(bytes) | Payload::Operand { operand: bytes, .. } => bytes.clone(),
        Payload::Tombstone => Bytes::new(),
    }
}
