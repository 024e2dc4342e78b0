//! A cursor over SSTs with disjoint keys, one run or a single SST, that says when it lacks input.
//!
//! **Invariants**
//! - Entries come in the order of `lsm::merge`: forward by key ascending, newest first; reverse the
//!   exact opposite. Only keys of the range come.
//! - Moving is synchronous. Where the next block is in memory the cursor goes on by itself; else it
//!   stands at [`Head::NeedInput`] until [`RunCursor::feed`] has fetched it.
//! - It holds the blocks of one fetch, and two fetches ahead of it, see [`super::ahead`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::ahead::{Chunk, Fetch, ReadAhead, Wanted};
use crate::error::Result;
use crate::format::block::{Block, BlockCursor};
use crate::format::sst::SstMeta;
use crate::lsm::merge::{Cursor, Head};
use crate::store::sst::{RunHandle, SstHandle, SstStore};
use crate::types::{Direction, KeyRange, Seq};

/// Fetches that are under way while the blocks of one are consumed.
const FETCHES_AHEAD: usize = 2;

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
    /// Under way or landed, in the cursor's order.
    fetches: VecDeque<Fetch>,
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
    /// Its place among the SSTs.
    place: usize,
    handle: Arc<SstHandle>,
    meta: Arc<SstMeta>,
    /// Blocks that may hold keys of the range.
    blocks: Range<usize>,
    /// Of these, the ones that have not been entered.
    left: Range<usize>,
    /// Blocks fetched and not entered, in the cursor's order.
    fetched: VecDeque<Block>,
    /// What they take of the memory of all scans.
    share: Option<OwnedSemaphorePermit>,
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
        let mut cursor = Self {
            store: Arc::clone(store),
            ssts,
            course,
            ahead,
            current: None,
            block: None,
            left_block: None,
            state: State::Hungry,
            fetches: VecDeque::new(),
            fetch_blocks: ReadAhead::BLOCKS_FIRST,
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

    /// Fetches what the cursor waits for; nothing, if it does not. From the second fetch on, others
    /// are sent ahead of it. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`; the cursor stays hungry.
    pub async fn feed(&mut self) -> Result<()> {
        while self.state == State::Hungry {
            if !self.fetches.front().is_some_and(|fetch| self.is_needed(fetch)) {
                // What is under way is behind the cursor: blocks were in memory meanwhile.
                self.fetches.clear();
                let Some(wanted) = self.needed() else { break };
                let fetch = Fetch::needed(&self.store, wanted, &self.course);
                self.fetches.push_back(fetch);
            }
            if self.fetch_blocks > ReadAhead::BLOCKS_FIRST {
                self.fetch_ahead();
            }
            let Some(first) = self.fetches.front_mut() else { break };
            let place = first.place();
            match first.landed().await {
                Ok(chunk) => {
                    let share = self.fetches.pop_front().and_then(Fetch::into_share);
                    self.take_in(place, chunk, share);
                }
                Err(error) => {
                    self.fetches.clear();
                    return Err(error);
                }
            }
            self.fetch_blocks = self.fetch_blocks.saturating_mul(2);
            self.go_on();
        }
        Ok(())
    }

    /// Lets go of what was fetched ahead; the next fetch is a small one again.
    pub fn let_go(&mut self) {
        self.fetches.clear();
        self.fetch_blocks = ReadAhead::BLOCKS_FIRST;
        if let Some(open) = &mut self.current {
            open.fetched.clear();
            open.share = None;
        }
    }

    /// What the hungry cursor needs first.
    fn needed(&self) -> Option<Wanted> {
        let blocks = self.fetch_blocks;
        if let Some(open) = &self.current {
            let left = Some((Arc::clone(&open.meta), open.left.clone()));
            return Some(Wanted {
                place: open.place,
                handle: Arc::clone(&open.handle),
                left,
                blocks,
            });
        }
        let (place, handle) = self.next_sst()?;
        Some(Wanted { place, handle: Arc::clone(handle), left: None, blocks })
    }

    /// Whether a fetch brings what the hungry cursor needs first.
    fn is_needed(&self, fetch: &Fetch) -> bool {
        match &self.current {
            Some(open) => {
                fetch.place() == open.place
                    && fetch.brings(self.course.direction.first_of(&open.left))
            }
            None => self.next_sst().is_some_and(|(place, _)| place == fetch.place()),
        }
    }

    /// Sends fetches ahead of the first, as many and as large as there is memory for.
    fn fetch_ahead(&mut self) {
        while self.fetches.len() <= FETCHES_AHEAD {
            let doublings = u32::try_from(self.fetches.len()).unwrap_or(0);
            let blocks = self.fetch_blocks.saturating_mul(1 << doublings);
            let Some(wanted) = self.next_wanted(blocks) else { return };
            let Some(fetch) = Fetch::ahead(&self.store, wanted, &self.course) else { return };
            self.fetches.push_back(fetch);
        }
    }

    /// What lies behind the last fetch; `None` where that is not known yet, or nothing does.
    fn next_wanted(&self, blocks: usize) -> Option<Wanted> {
        let last = self.fetches.back()?;
        let (meta, left) = last.left_behind(self.course.direction)?;
        if !left.is_empty() {
            let handle = Arc::clone(last.handle());
            return Some(Wanted { place: last.place(), handle, left: Some((meta, left)), blocks });
        }
        let place = match self.course.direction {
            Direction::Forward => last.place() + 1,
            Direction::Reverse => last.place().checked_sub(1)?,
        };
        if !self.ahead.contains(&place) {
            return None;
        }
        let handle = Arc::clone(self.ssts.as_slice().get(place)?);
        Some(Wanted { place, handle, left: None, blocks })
    }

    /// Takes what a fetch brought of the SST in this place.
    fn take_in(&mut self, place: usize, chunk: Chunk, share: Option<OwnedSemaphorePermit>) {
        if self.current.is_none() {
            self.enter_sst(Arc::clone(&chunk.meta));
        }
        let Some(open) = self.current.as_mut().filter(|open| open.place == place) else { return };
        let blocks = (chunk.first..).zip(chunk.blocks);
        let left = blocks.filter(|(index, _)| open.left.contains(index)).map(|(_, block)| block);
        let mut left: VecDeque<Block> = left.collect();
        if self.course.direction == Direction::Reverse {
            left.make_contiguous().reverse();
        }
        open.fetched = left;
        open.share = share;
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
            let Some((_, handle)) = self.next_sst() else { break State::Ended };
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
        self.fetches.clear();
        State::Ended
    }

    /// The next SST on the way, and its place.
    fn next_sst(&self) -> Option<(usize, &Arc<SstHandle>)> {
        if self.ahead.is_empty() {
            return None;
        }
        let place = self.course.direction.first_of(&self.ahead);
        Some((place, self.ssts.as_slice().get(place)?))
    }

    fn enter_sst(&mut self, meta: Arc<SstMeta>) {
        let Some((place, handle)) = self.next_sst() else { return };
        let handle = Arc::clone(handle);
        self.course.direction.drop_first(&mut self.ahead, 1);
        let range = &self.course.range;
        let blocks = meta.blocks_between(&range.start, range.end.as_deref());
        let left = blocks.clone();
        let fetched = VecDeque::new();
        self.current = Some(Open { place, handle, meta, blocks, left, fetched, share: None });
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
        let index = way.first_of(&self.left);
        let block = match self.fetched.pop_front() {
            Some(block) => block,
            None => store.block_now(&self.handle, &self.meta, index)?,
        };
        way.drop_first(&mut self.left, 1);
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
