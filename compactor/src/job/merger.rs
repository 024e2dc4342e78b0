//! The merge itself: from cursors over the inputs to the bytes of new SSTs. Synchronous.
//!
//! It goes on until it lacks input or has made enough to upload, and is then handed back, so that
//! whoever drives it may wait without a thread.
//!
//! **Invariants**
//! - All entries that are kept of one key go to one SST: SSTs are cut between keys.
//! - It holds at most one unfinished SST, of which the bytes not taken are about [`OUTPUT_BYTES`].

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use cairn_common::env::Random;
use cairn_common::error::{Error, Result};
use cairn_common::format::manifest::SstInfo;
use cairn_common::format::path::OutputId;
use cairn_common::format::sst::{SstBuilder, SstOptions};
use cairn_common::lsm::merge::{Merge, Step};
use cairn_common::lsm::visible::{Compaction, Rules};
use cairn_common::types::{DatabaseId, Direction, EntryRef, Epoch, Role};

use super::input::{InputCursor, Stretch};

/// Finished bytes after which the merge pauses to have them uploaded.
pub const OUTPUT_BYTES: usize = 1024 * 1024;

/// What new SSTs are and how they are called.
#[derive(Clone, Debug)]
pub struct Making {
    /// The database.
    pub database: DatabaseId,
    /// The epoch under which they are made, and must be committed.
    pub epoch: Epoch,
    /// Draws their names.
    pub random: Arc<dyn Random>,
    /// How they are built.
    pub options: SstOptions,
    /// A new one is begun at the first key after so many bytes.
    pub sst_bytes: u64,
}

impl Making {
    /// A name that was never used.
    pub fn fresh_id(&self) -> OutputId {
        OutputId { role: Role::Compactor, epoch: self.epoch, uuid: self.random.uuid() }
    }
}

/// Part of what a merge made, in order.
#[derive(Debug)]
pub enum Made {
    /// The next bytes of the SST of this name.
    Bytes(OutputId, Bytes),
    /// Its last bytes, and what the tree is told of it.
    Sst(Bytes, Box<SstInfo>),
}

/// Why a merge paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The source of this index must be fed.
    Input(usize),
    /// There is something to upload.
    Output,
    /// It is over; there may be something to upload still.
    End,
}

/// A merge on its way.
#[derive(Debug)]
pub struct Merger {
    merge: Merge<InputCursor>,
    /// `None` once it is over.
    compaction: Option<Compaction>,
    outputs: Outputs,
}

impl Merger {
    /// A merge of so many sources.
    pub fn new(sources: usize, rules: Rules, making: Making) -> Self {
        let cursors = (0..sources).map(|_| InputCursor::default()).collect();
        Self {
            merge: Merge::new(cursors, Direction::Forward),
            compaction: Some(Compaction::new(rules)),
            outputs: Outputs { making, open: None, made: Vec::new() },
        }
    }

    /// Feeds the source that the last pause named.
    pub fn feed(&mut self, source: usize, stretch: Option<Stretch>) {
        self.merge.cursor_mut(source).feed(stretch);
    }

    /// Stored bytes of the inputs that were decoded.
    pub fn bytes_read(&self, sources: usize) -> u64 {
        (0..sources).map(|source| self.merge.cursor(source).bytes_read()).sum()
    }

    /// What was made since the last time.
    pub fn take_made(&mut self) -> Vec<Made> {
        if let Some(open) = &mut self.outputs.open {
            let bytes = open.builder.take_bytes();
            if !bytes.is_empty() {
                self.outputs.made.push(Made::Bytes(open.id, bytes));
            }
        }
        std::mem::take(&mut self.outputs.made)
    }

    /// Goes on to the next pause.
    ///
    /// # Errors
    /// `Corrupt`, naming the SST.
    pub fn run(&mut self) -> Result<Pause> {
        let outputs = &mut self.outputs;
        while let Some(compaction) = &mut self.compaction {
            if outputs.wants_taking() {
                return Ok(Pause::Output);
            }
            match self.merge.step() {
                Step::Entry => {
                    never(compaction.push(self.merge.entry(), &mut outputs.sink()));
                }
                Step::NeedInput(source) => {
                    return match self.merge.cursor_mut(source).take_corrupt() {
                        Some(error) => Err(error),
                        None => Ok(Pause::Input(source)),
                    };
                }
                Step::End => {
                    if let Some(compaction) = self.compaction.take() {
                        never(compaction.finish(&mut outputs.sink()));
                    }
                    outputs.cut();
                }
            }
        }
        Ok(Pause::End)
    }
}

/// Building an SST cannot fail.
fn never(result: Result<(), Infallible>) {
    match result {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

/// The SSTs that are being made.
#[derive(Debug)]
struct Outputs {
    making: Making,
    open: Option<Open>,
    /// What was finished and not taken, but for the bytes that the open builder still holds.
    made: Vec<Made>,
}

#[derive(Debug)]
struct Open {
    id: OutputId,
    builder: SstBuilder,
    /// Set once it is large enough: the first other key goes to another SST.
    last_key: Option<Vec<u8>>,
}

impl Outputs {
    fn wants_taking(&self) -> bool {
        let finished = |open: &Open| open.builder.finished_bytes() >= OUTPUT_BYTES;
        !self.made.is_empty() || self.open.as_ref().is_some_and(finished)
    }

    fn sink(&mut self) -> impl FnMut(EntryRef<'_>) -> Result<(), Infallible> {
        |entry| {
            self.add(entry);
            Ok(())
        }
    }

    fn add(&mut self, entry: EntryRef<'_>) {
        let is_full = |open: &Open| open.last_key.as_ref().is_some_and(|last| last != entry.key);
        if self.open.as_ref().is_some_and(is_full) {
            self.cut();
        }
        let making = &self.making;
        let open = self.open.get_or_insert_with(|| {
            let id = making.fresh_id();
            let builder = SstBuilder::new(making.database, id, making.options);
            Open { id, builder, last_key: None }
        });
        open.builder.add(entry);
        if open.last_key.is_none() && open.builder.bytes() >= making.sst_bytes {
            open.last_key = Some(entry.key.to_vec());
        }
    }

    /// Finishes the open SST.
    fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            let (rest, info) = open.builder.finish();
            self.made.push(Made::Sst(rest, Box::new(info)));
        }
    }
}

/// An error that ends a merge because its job was cancelled.
pub fn cancelled() -> Error {
    Error::Closed
}
