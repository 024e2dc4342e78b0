//! What the clients did and were told, in the one order of the simulation.
//!
//! Every batch writes a marker, a key of its own that nothing else ever writes. So the last scan
//! tells for every batch whether it is in the database, and under which seq; everything that was
//! ever told or shown is then checked against that one history.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use cairn_common::types::{Epoch, Seq};

/// A moment: everything that is recorded is given the next one.
pub(crate) type Tick = u64;

/// What one batch does to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Gives it a value that names the batch.
    Put,
    /// The same, until this moment of wall time.
    PutUntil(u64),
    /// Removes it.
    Delete,
    /// Adds to what is live at a moment of wall time, and hands on its end; else starts afresh.
    Add {
        /// How much.
        amount: i64,
        /// The moment.
        written_ms: u64,
    },
}

/// What a batch was conditioned on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) key: Bytes,
    /// This etag, or that there is no entry.
    pub(crate) etag: Option<Seq>,
}

/// What a client was told of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// In the bucket.
    Durable(Seq),
    /// In memory.
    Memory(Seq),
    /// Not applied.
    NotApplied,
    /// Not applied: the key has this etag.
    Precondition(Option<Seq>),
    /// Once and whole, or never.
    Unknown,
}

/// One batch and its fate.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) changes: Vec<(Bytes, Change)>,
    pub(crate) wanted: Option<Wanted>,
    /// The epoch of the writer that was asked.
    pub(crate) asked: Epoch,
    pub(crate) began: Tick,
    pub(crate) ended: Tick,
    pub(crate) told: Told,
}

/// Who answered a read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Whoever says that it is the writer.
    Writer,
    /// One life of one reader.
    Reader(String),
}

/// What was found under a key: its value and etag.
pub(crate) type Entry = (Bytes, Seq);

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Of single keys.
    Keys(Vec<(Bytes, Option<Entry>)>),
    /// Everything that begins with this.
    Prefix(Bytes, Vec<(Bytes, Entry)>),
}

/// One read.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) place: Place,
    pub(crate) began: Tick,
    pub(crate) ended: Tick,
    /// The seq of the view.
    pub(crate) seq: Seq,
    /// By which wall time entries were expired.
    pub(crate) now_ms: u64,
    pub(crate) found: Found,
    /// Everything acknowledged before this tick must be there, says the reader's lag.
    pub(crate) fresh_as_of: Option<Tick>,
}

/// Everything that was recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    tick: Tick,
    pub(crate) batches: BTreeMap<u64, Batch>,
    pub(crate) reads: Vec<Read>,
    /// At which moment each tick was given: for claims about time.
    moments: Vec<(Duration, Tick)>,
    /// When the writer of each epoch began to serve.
    pub(crate) reigns: BTreeMap<Epoch, Tick>,
}

/// The recorder.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    history: Mutex<History>,
}

impl Ledger {
    /// Records that a batch is sent; the number is its marker's.
    pub(crate) fn begin(
        &self,
        asked: Epoch,
        changes: Vec<(Bytes, Change)>,
        wanted: Option<Wanted>,
    ) -> u64 {
        let mut history = self.history();
        let began = history.next();
        let id = u64::try_from(history.batches.len()).unwrap() + 1;
        let (ended, told) = (Tick::MAX, Told::Unknown);
        let mut batch = Batch { changes, wanted, asked, began, ended, told };
        batch.changes.push((marker(id), Change::Put));
        history.batches.insert(id, batch);
        id
    }

    /// Everything that the batch does, its marker with it.
    pub(crate) fn changes(&self, id: u64) -> Vec<(Bytes, Change)> {
        self.history().batches[&id].changes.clone()
    }

    /// Records what was told of a batch.
    pub(crate) fn end(&self, id: u64, told: Told, now: Duration) {
        let mut history = self.history();
        let ended = history.next();
        history.moments.push((now, ended));
        let batch = history.batches.get_mut(&id).expect("a batch that was begun");
        (batch.ended, batch.told) = (ended, told);
    }

    /// Records that the writer of this epoch begins to serve.
    pub(crate) fn reign(&self, epoch: Epoch) {
        let mut history = self.history();
        let began = history.next();
        history.reigns.insert(epoch, began);
    }

    /// The tick at which a read begins.
    pub(crate) fn tick(&self) -> Tick {
        self.history().next()
    }

    /// The tick before which everything had ended by a moment.
    pub(crate) fn tick_at(&self, moment: Duration) -> Tick {
        let history = self.history();
        let later = history.moments.partition_point(|(at, _)| *at < moment);
        later.checked_sub(1).map_or(0, |last| history.moments[last].1)
    }

    /// Records a read.
    pub(crate) fn read(&self, read: Read) {
        let mut history = self.history();
        let ended = history.next();
        history.reads.push(Read { ended, ..read });
    }

    /// Everything so far.
    pub(crate) fn snapshot(&self) -> History {
        self.history().clone()
    }

    /// How many batches were acknowledged as durable.
    pub(crate) fn durable_count(&self) -> usize {
        let history = self.history();
        history.batches.values().filter(|batch| matches!(batch.told, Told::Durable(_))).count()
    }

    /// The highest seq that was acknowledged as durable.
    pub(crate) fn newest_durable(&self) -> Option<Seq> {
        let history = self.history();
        let durable = history.batches.values().filter_map(|batch| match batch.told {
            Told::Durable(seq) => Some(seq),
            _ => None,
        });
        durable.max()
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no panic holds this lock")
    }
}

impl History {
    fn next(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }
}

/// The key that tells of a batch.
pub(crate) fn marker(id: u64) -> Bytes {
    format!("m/{id:08}").into()
}

/// The value that a batch puts: its number, and padding that depends on it.
pub(crate) fn value(id: u64) -> Bytes {
    let padding = usize::try_from(id * 37 % 300).unwrap();
    format!("{id}:{}", "x".repeat(padding)).into()
}

/// The batch that a value names.
pub(crate) fn batch_of(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    text.split_once(':')?.0.parse().ok()
}
