//! Scans: the live keys of a range, in order, from all sources at once.
//!
//! **Invariants**
//! - A scan answers from its view and at its one `now_ms`, however long it takes.
//! - Merging is synchronous, in steps that the caller counts; a scan waits only where a block or
//!   metadata is missing, and then fetches for every source that lacks something.
//! - Memory is bounded: the sources of a scan share [`FETCH_BYTES`], of which each may hold three
//!   times its part, see [`super::cursor`]. Values are shared with their block or memtable, not
//!   copied.
//! - A scan can always say how far it has come, also among keys that it does not show.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::ahead::ReadAhead;
use super::cursor::{Course, RunCursor, Ssts};
use super::view::View;
use crate::error::Result;
use crate::lsm::memtable::MemtableCursor;
use crate::lsm::merge::{Cursor, Head, Merge, Step};
use crate::lsm::visible::{Found, Resolver};
use crate::store::sst::{RunHandle, SstStore};
use crate::types::{Direction, Entry, EntryRef, KeyRange, Payload, PayloadRef, Seq};

/// Entries that [`Scan::next`] goes through before it lets other tasks run: about a millisecond.
const STEPS_PER_YIELD: u32 = 512;
/// Stored bytes that the sources of a scan fetch at a time, all together: with two more fetches
/// under way, 100 MB/s on a store that takes 20 ms for each.
const FETCH_BYTES: u64 = 4 << 20;

/// A live key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The newest entry that made it so.
    pub seq: Seq,
}

/// A scan under way. Dropping it ends it.
#[derive(Debug)]
pub struct Scan {
    merge: Merge<Source>,
    direction: Direction,
    resolver: Resolver,
    group: Group,
}

/// How far a scan has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position<'a> {
    /// Nothing was examined.
    Start,
    /// The first key that is not decided; every key before it is.
    At(&'a [u8]),
    /// The last key that is decided.
    After(&'a [u8]),
}

/// A source of a scan.
#[derive(Debug)]
enum Source {
    Memtable(MemtableCursor),
    Ssts(Box<RunCursor>),
    /// A run whose object was not read yet.
    Unread(Box<UnreadRun>),
}

/// A run that has to be read before a cursor can go through it.
#[derive(Debug)]
struct UnreadRun {
    store: Arc<SstStore>,
    run: Arc<RunHandle>,
    course: Course,
}

/// The key that a scan is at.
#[derive(Debug, Default)]
struct Group {
    key: Vec<u8>,
    /// The key, where it could be had without a copy.
    shared_key: Option<Bytes>,
    stage: Stage,
    /// Reverse alone: what has come of the key, oldest first, from its last base on.
    versions: Vec<Entry>,
    /// The entry that the merge stands on belongs to the next key and was not looked at.
    held_back: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// No key has begun.
    #[default]
    Empty,
    /// Older or newer entries of the key may come.
    Open,
    /// The key is decided: what may be left of it does not count.
    Decided,
}

/// How far a scan came without waiting.
#[derive(Debug)]
pub enum Progress {
    /// To the next live key.
    Row(Row),
    /// To where a source lacks input: [`Scan::feed`] it.
    NeedInput,
    /// As far as the steps allowed.
    Pause,
    /// To the end.
    End,
}

impl View {
    /// The live keys of a range at `now_ms`. Does nothing yet but to look into memory.
    pub fn scan(&self, range: &KeyRange, direction: Direction, now_ms: u64) -> Scan {
        let window = self.window();
        let tables = self
            .memtables
            .iter()
            .map(|table| Source::Memtable(table.cursor(range, direction, window)));
        let ssts = &self.tree.ssts;
        let read_ahead = ReadAhead::sharing(FETCH_BYTES, self.tree.l0.len() + self.tree.runs.len());
        let course = Course { range: range.clone(), direction, read_ahead };
        let l0 = self.tree.l0.iter().cloned().map(Ssts::One);
        let l0 = l0.map(|sst| Source::over(ssts, sst, course.clone()));
        // The bounds of a run are enough to tell that it has nothing of the range.
        let runs = self.tree.runs.iter().filter(|run| {
            let info = run.info();
            let is_behind = range.end.as_ref().is_some_and(|end| info.first_key >= *end);
            !range.is_empty() && !is_behind && info.last_key >= range.start
        });
        let runs = runs.map(|run| match run.ssts() {
            Some(_) => Source::over(ssts, Ssts::Run(Arc::clone(run)), course.clone()),
            None => Source::Unread(Box::new(UnreadRun {
                store: Arc::clone(ssts),
                run: Arc::clone(run),
                course: course.clone(),
            })),
        });
        let sources = tables.chain(l0).chain(runs);
        let sources = sources.filter(|source| source.head() != Head::End).collect();
        Scan {
            merge: Merge::new(sources, direction),
            direction,
            resolver: Resolver::new(now_ms),
            group: Group::default(),
        }
    }
}

impl Scan {
    /// The next live key; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound` where an object was collected: reload the manifest, and go on after the last row
    /// on a new view. `Unavailable`. `Corrupt`.
    pub async fn next(&mut self) -> Result<Option<Row>> {
        let mut steps = STEPS_PER_YIELD;
        loop {
            match self.advance(&mut steps) {
                Progress::Row(row) => return Ok(Some(row)),
                Progress::End => return Ok(None),
                Progress::NeedInput => self.feed().await?,
                Progress::Pause => {
                    tokio::task::yield_now().await;
                    steps = STEPS_PER_YIELD;
                }
            }
        }
    }

    /// Fetches for every source that lacks input, and ahead for those that were fetched for
    /// before. Cancel-safe.
    ///
    /// # Errors
    /// As [`Scan::next`].
    pub async fn feed(&mut self) -> Result<()> {
        let hungry = self.merge.cursors_mut().iter_mut().filter_map(|source| match source {
            Source::Ssts(cursor) if !cursor.is_hungry() => None,
            Source::Memtable(_) => None,
            source => Some(source.feed()),
        });
        try_join_all(hungry).await.map(drop)
    }

    /// Lets go of what was fetched ahead: for a scan that will not go on soon.
    pub fn let_go(&mut self) {
        for source in self.merge.cursors_mut() {
            if let Source::Ssts(cursor) = source {
                cursor.let_go();
            }
        }
    }

    /// How far the scan has come: what lies before it was shown, or is not live.
    pub fn position(&self) -> Position<'_> {
        match self.group.stage {
            Stage::Empty => Position::Start,
            Stage::Open => Position::At(&self.group.key),
            Stage::Decided => Position::After(&self.group.key),
        }
    }

    /// Goes on without waiting, for this many entries at most; counts them off.
    pub fn advance(&mut self, steps: &mut u32) -> Progress {
        loop {
            if *steps == 0 {
                return Progress::Pause;
            }
            if self.group.held_back {
                self.group.held_back = false;
            } else {
                match self.merge.step() {
                    Step::Entry => {}
                    Step::NeedInput(_) => return Progress::NeedInput,
                    Step::End => {
                        return self.close_group().map_or(Progress::End, Progress::Row);
                    }
                }
            }
            *steps -= 1;
            if let Some(row) = self.take_entry() {
                return Progress::Row(row);
            }
        }
    }

    /// Takes the entry that the merge stands on; returns the row that is complete by then.
    fn take_entry(&mut self) -> Option<Row> {
        let entry = self.merge.entry();
        let same_key = self.group.stage != Stage::Empty && self.group.key == entry.key;
        if !same_key {
            if self.group.stage == Stage::Open {
                self.group.held_back = true;
                let row = self.close_group();
                if row.is_some() {
                    return row;
                }
                self.group.held_back = false;
            }
            self.open_group();
        }
        if self.group.stage == Stage::Decided {
            return None;
        }
        let source = self.merge.cursor(self.merge.winner());
        let entry = self.merge.entry();
        match self.direction {
            Direction::Forward => {
                if self.resolver.push(entry, || source.value_bytes()).is_continue() {
                    return None;
                }
                self.close_group()
            }
            Direction::Reverse => {
                self.group.push(entry, || source.value_bytes());
                None
            }
        }
    }

    fn open_group(&mut self) {
        let source = self.merge.cursor(self.merge.winner());
        let group = &mut self.group;
        group.key.clear();
        group.key.extend_from_slice(self.merge.entry().key);
        group.shared_key = source.shared_key();
        group.stage = Stage::Open;
    }

    /// Ends the key that the scan is at; its row, if it is live.
    fn close_group(&mut self) -> Option<Row> {
        if self.group.stage != Stage::Open {
            return None;
        }
        self.group.stage = Stage::Decided;
        for version in self.group.versions.drain(..).rev() {
            let bytes = || match &version.payload {
                Payload::Value(bytes) | Payload::Operand { operand: bytes, .. } => bytes.clone(),
                Payload::Tombstone => Bytes::new(),
            };
            if self.resolver.push(version.as_ref(), bytes).is_break() {
                break;
            }
        }
        let Found { value, seq, .. } = self.resolver.finish()?;
        let shared_key = self.group.shared_key.take();
        let key = shared_key.unwrap_or_else(|| Bytes::copy_from_slice(&self.group.key));
        Some(Row { key, value, seq })
    }
}

impl Group {
    /// Takes a version that is newer than all before it.
    fn push(&mut self, entry: EntryRef<'_>, bytes: impl FnOnce() -> Bytes) {
        let payload = match entry.payload {
            PayloadRef::Value(_) => Payload::Value(bytes()),
            PayloadRef::Tombstone => Payload::Tombstone,
            PayloadRef::Operand { op, written_ms, .. } => {
                Payload::Operand { op, written_ms, operand: bytes() }
            }
        };
        if !matches!(payload, Payload::Operand { .. }) {
            self.versions.clear();
        }
        let EntryRef { seq, expires_ms, .. } = entry;
        self.versions.push(Entry { key: Bytes::new(), seq, payload, expires_ms });
    }
}

impl Source {
    fn over(store: &Arc<SstStore>, ssts: Ssts, course: Course) -> Self {
        Self::Ssts(Box::new(RunCursor::new(store, ssts, course)))
    }

    /// Fetches what the source waits for. Cancel-safe.
    async fn feed(&mut self) -> Result<()> {
        if let Self::Unread(unread) = self {
            let UnreadRun { store, run, course } = &**unread;
            store.open_run(run).await?;
            *self = Self::over(store, Ssts::Run(Arc::clone(run)), course.clone());
        }
        match self {
            Self::Ssts(cursor) => cursor.feed().await,
            Self::Memtable(_) | Self::Unread(_) => Ok(()),
        }
    }

    /// The bytes of the value or operand that the source stands on, shared.
    fn value_bytes(&self) -> Bytes {
        match self {
            Self::Memtable(cursor) => match cursor.entry().map(|entry| &entry.payload) {
                Some(Payload::Value(bytes) | Payload::Operand { operand: bytes, .. }) => {
                    bytes.clone()
                }
                _ => Bytes::new(),
            },
            Self::Ssts(cursor) => cursor.value_bytes(),
            Self::Unread(_) => Bytes::new(),
        }
    }

    /// The key that the source stands on, where it is shared; keys in blocks are not, as they are
    /// stored without what they have in common.
    fn shared_key(&self) -> Option<Bytes> {
        match self {
            Self::Memtable(cursor) => cursor.entry().map(|entry| entry.key.clone()),
            Self::Ssts(_) | Self::Unread(_) => None,
        }
    }
}

impl Cursor for Source {
    fn head(&self) -> Head<'_> {
        match self {
            Self::Memtable(cursor) => cursor.head(),
            Self::Ssts(cursor) => cursor.head(),
            Self::Unread(_) => Head::NeedInput,
        }
    }

    #[inline]
    fn place(&self) -> Option<(&[u8], Seq)> {
        match self {
            Self::Memtable(cursor) => cursor.place(),
            Self::Ssts(cursor) => cursor.place(),
            Self::Unread(_) => None,
        }
    }

    fn advance(&mut self) {
        match self {
            Self::Memtable(cursor) => cursor.advance(),
            Self::Ssts(cursor) => cursor.advance(),
            Self::Unread(_) => {}
        }
    }
}
