//! A cursor over SSTs with disjoint keys, one run or a single SST, that says when it lacks input.
//!
//! **Invariants**
//! - Entries come in the order of `lsm::merge`: forward by key ascending, newest first; reverse the
//!   exact opposite. Only keys of the range come.
//! - Moving is synchronous. Where the next block is in memory the cursor goes on by itself; else it
//!   stands at [`Head::NeedInput`] until [`RunCursor::feed`] has fetched it.
//! - It holds the blocks of one fetch at most, see [`ReadAhead`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::format::block::{Block, BlockCursor};
use crate::format::sst::SstMeta;
use crate::lsm::merge::{Cursor, Head};
use crate::store::sst::{RunHandle, SstHandle, SstStore};
use crate::types::{Direction, KeyRange, Seq};

/// How many blocks one fetch brings: it doubles from fetch to fetch, between these bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAhead {
    /// Blocks of the first fetch.
    pub blocks_first: usize,
    /// Blocks of a fetch at most.
    pub blocks_max: usize,
    /// Stored bytes of a fetch at most, unless one block is larger.
    pub bytes_max: u64,
}

impl ReadAhead {
    /// For scans: most end within a block or two, and a long one should not wait for each block.
    pub const SCAN: Self = Self { blocks_first: 1, blocks_max: 8, bytes_max: 1 << 20 };
}

/// What a cursor goes through, and how.
#[derive(Clone, Debug)]
pub struct Course {
    /// The keys that it yields.
    pub range: KeyRange,
    /// The way it goes.
    pub direction: Direction,
    /// How far it reads ahead.
    pub read_ahead: ReadAhead,
}

/// SSTs whose keys are disjoint and ascend.
#[derive(Clone, Debug)]
pub enum Ssts {
    /// One of L0.
    One(Arc<SstHandle>),
    /// Those of a run whose object was read.
    Run(Arc<RunHandle>),
}

impl Ssts {
    fn as_slice(&self) -> &[Arc<SstHandle>] {
        match self {
            Self::One(sst) => std::slice::from_ref(sst),
            Self::Run(run) => run.ssts().unwrap_or_default(),
        }
    }
}

/// Goes through the entries of a run, or of one SST.
#[derive(Debug)]
pub struct RunCursor {
    store: Arc<SstStore>,
    ssts: Ssts,
    course: Course,
    /// The SSTs to come.
    ahead: Range<usize>,
    /// The SST that it is in.
    current: Option<Open>,
    /// The block that it is in.
    block: Option<BlockCursor>,
    /// The cursor of the block before, for its buffer.
    left_block: Option<BlockCursor>,
    state: State,
    /// Blocks that the next fetch brings.
    fetch_blocks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `block` stands on an entry of the range.
    AtEntry,
    /// The next block or metadata must be fetched.
    Hungry,
    /// Nothing is left.
    Ended,
}

/// An SST on the way.
#[derive(Debug)]
struct Open {
    handle: Arc<SstHandle>,
    meta: Arc<SstMeta>,
    /// Blocks that may hold keys of the range.
    blocks: Range<usize>,
    /// Of these, the ones that have not been entered.
    left: Range<usize>,
    /// Blocks fetched and not entered, in the cursor's order.
    fetched: VecDeque<Block>,
}

impl RunCursor {
    /// A cursor; goes as far as memory allows.
    pub fn new(store: &Arc<SstStore>, ssts: Ssts, course: Course) -> Self {
        let range = &course.range;
        let handles = ssts.as_slice();
        let first = handles.partition_point(|sst| *sst.info().last_key < *range.start);
        let end = range.end.as_ref().map_or(handles.len(), |end| {
            handles.partition_point(|sst| sst.info().first_key < *end)
        });
        let ahead = if range.is_empty() { 0..0 } else { first..end };
        let fetch_blocks = course.read_ahead.blocks_first;
        let mut cursor = Self {
            store: Arc::clone(store),
            ssts,
            course,
            ahead,
            current: None,
            block: None,
            left_block: None,
            state: State::Hungry,
            fetch_blocks,
        };
        cursor.go_on();
        cursor
    }

    /// The bytes of the value or operand that the cursor stands on, shared with the block.
    pub fn value_bytes(&self) -> Bytes {
        self.block.as_ref().map(BlockCursor::value_bytes).unwrap_or_default()
    }

    /// Whether the cursor waits for [`RunCursor::feed`].
    pub fn is_hungry(&self) -> bool {
        self.state == State::Hungry
    }

    /// Fetches what the cursor waits for; nothing, if it does not. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`; the cursor stays hungry.
    pub async fn feed(&mut self) -> Result<()> {
        while self.state == State::Hungry {
            match &self.current {
                None => {
                    let Some(handle) = self.next_sst() else { break };
                    let meta = self.store.meta(handle).await?;
                    self.enter_sst(meta);
                }
                Some(open) => {
                    let wanted = self.next_fetch(open);
                    let mut blocks = self.store.blocks(&open.handle, &open.meta, wanted).await?;
                    if self.course.direction == Direction::Reverse {
                        blocks.reverse();
                    }
                    self.fetch_blocks =
                        self.fetch_blocks.saturating_mul(2).min(self.course.read_ahead.blocks_max);
                    if let Some(open) = &mut self.current {
                        open.fetched.extend(blocks);
                    }
                }
            }
            self.go_on();
        }
        Ok(())
    }

    /// The blocks to fetch next: from where the cursor is, as far as it reads ahead.
    fn next_fetch(&self, open: &Open) -> Range<usize> {
        let Range { start, end } = open.left.clone();
        let bytes_max = self.course.read_ahead.bytes_max;
        let bytes = |first: usize, last: usize| {
            open.meta.block_range(last).end - open.meta.block_range(first).start
        };
        let mut count = 1;
        match self.course.direction {
            Direction::Forward => {
                while count < self.fetch_blocks.min(end - start)
                    && bytes(start, start + count) <= bytes_max
                {
                    count += 1;
                }
                start..start + count
            }
            Direction::Reverse => {
                while count < self.fetch_blocks.min(end - start)
                    && bytes(end - count - 1, end - 1) <= bytes_max
                {
                    count += 1;
                }
                end - count..end
            }
        }
    }

    /// Goes on, as far as memory allows, until it stands on an entry.
    fn go_on(&mut self) {
        self.state = loop {
            if let Some(block) = &self.block {
                match block.entry() {
                    None => self.left_block = self.block.take(),
                    Some(entry) if self.is_past(entry.key) => break self.end(),
                    Some(_) => break State::AtEntry,
                }
            }
            if let Some(open) = &mut self.current {
                if let Some((index, block)) = open.next_block(&self.store, self.course.direction) {
                    self.enter_block(index, block);
                    continue;
                }
                if !open.left.is_empty() {
                    break State::Hungry;
                }
                self.current = None;
            }
            let Some(handle) = self.next_sst() else { break State::Ended };
            match handle.with_meta(Arc::clone) {
                Some(meta) => self.enter_sst(meta),
                None => break State::Hungry,
            }
        };
    }

    fn end(&mut self) -> State {
        self.ahead = 0..0;
        self.current = None;
        self.block = None;
        State::Ended
    }

    fn next_sst(&self) -> Option<&Arc<SstHandle>> {
        let ahead = self.ssts.as_slice().get(self.ahead.clone())?;
        match self.course.direction {
            Direction::Forward => ahead.first(),
            Direction::Reverse => ahead.last(),
        }
    }

    fn enter_sst(&mut self, meta: Arc<SstMeta>) {
        let Some(handle) = self.next_sst().cloned() else { return };
        match self.course.direction {
            Direction::Forward => self.ahead.start += 1,
            Direction::Reverse => self.ahead.end -= 1,
        }
        let range = &self.course.range;
        let blocks = meta.blocks_between(&range.start, range.end.as_deref());
        let left = blocks.clone();
        self.current = Some(Open { handle, meta, blocks, left, fetched: VecDeque::new() });
    }

    fn enter_block(&mut self, index: usize, block: Block) {
        let Some(open) = &self.current else { return };
        let range = &self.course.range;
        let mut cursor = match self.left_block.take() {
            Some(mut cursor) => {
                cursor.reset(block);
                cursor
            }
            None => BlockCursor::new(block),
        };
        match (self.course.direction, &range.end) {
            (Direction::Forward, _) if index == open.blocks.start => cursor.seek(&range.start),
            (Direction::Forward, _) => cursor.first(),
            (Direction::Reverse, Some(end)) if index + 1 == open.blocks.end => {
                cursor.seek_before(end);
            }
            (Direction::Reverse, _) => cursor.last(),
        }
        self.block = Some(cursor);
    }

    /// Whether a key that the cursor came to lies past the range.
    fn is_past(&self, key: &[u8]) -> bool {
        // Only the last block on the way can hold such a key.
        if self.current.as_ref().is_some_and(|open| !open.left.is_empty()) {
            return false;
        }
        let range = &self.course.range;
        match self.course.direction {
            Direction::Forward => range.end.as_ref().is_some_and(|end| key >= &**end),
            Direction::Reverse => key < &*range.start,
        }
    }
}

impl Open {
    /// The next block on the way and its index, if it is at hand.
    fn next_block(&mut self, store: &SstStore, way: Direction) -> Option<(usize, Block)> {
        if self.left.is_empty() {
            return None;
        }
        let index = match way {
            Direction::Forward => self.left.start,
            Direction::Reverse => self.left.end - 1,
        };
        let block = match self.fetched.pop_front() {
            Some(block) => block,
            None => store.block_now(&self.handle, &self.meta, index)?,
        };
        match way {
            Direction::Forward => self.left.start += 1,
            Direction::Reverse => self.left.end -= 1,
        }
        Some((index, block))
    }
}

impl Cursor for RunCursor {
    fn head(&self) -> Head<'_> {
        match self.state {
            State::AtEntry => {
                let entry = self.block.as_ref().and_then(BlockCursor::entry);
                entry.map_or(Head::End, Head::Entry)
            }
            State::Hungry => Head::NeedInput,
            State::Ended => Head::End,
        }
    }

    #[inline]
    fn place(&self) -> Option<(&[u8], Seq)> {
        match self.state {
            State::AtEntry => self.block.as_ref().and_then(BlockCursor::place),
            State::Hungry | State::Ended => None,
        }
    }

    fn advance(&mut self) {
        if let Some(block) = &mut self.block {
            match self.course.direction {
                Direction::Forward => block.next(),
                Direction::Reverse => block.prev(),
            }
        }
        self.go_on();
    }
}
