//! The inputs of a merge: SSTs fetched in large stretches, decoded where they are merged.
//!
//! A fetcher (async, one task per source) reads ahead of a cursor (sync, on the merging thread).
//! Between them goes a channel of one stretch, so that a source has two stretches ahead of the one
//! it is in: one waiting, one on its way.
//!
//! **Invariants**
//! - Every block is verified where it is decoded; metadata, where it is parsed.
//! - What a source holds in memory is at most three stretches, whatever its size.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use cairn_common::error::{Error, Result};
use cairn_common::format::Corrupt;
use cairn_common::format::block::{Block, BlockCursor};
use cairn_common::format::manifest::SstInfo;
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::sst::SstMeta;
use cairn_common::lsm::merge::{Cursor, Head};
use cairn_common::store::object::Bucket;
use cairn_common::types::DatabaseId;
use tokio::sync::mpsc;

/// Blocks that stand behind one another in an SST, as they are stored.
#[derive(Debug)]
pub struct Stretch {
    sst: OutputId,
    blocks: VecDeque<(u64, Bytes)>,
}

impl Stretch {
    /// Decodes every block.
    ///
    /// # Errors
    /// `Corrupt`: the first that is damaged.
    pub fn verify(&self) -> Result<(), Corrupt> {
        for (offset, stored) in &self.blocks {
            Block::parse(stored, &self.sst, *offset)?;
        }
        Ok(())
    }
}

/// Reads the SSTs of one source in order and sends them; ends when the receiver is gone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    /// Where the database is.
    pub bucket: Bucket,
    /// The database.
    pub database: DatabaseId,
    /// Bytes of one ranged GET, unless a block is larger.
    pub stretch_bytes: u64,
}

impl Fetcher {
    /// Sends every block of `ssts`; an error is the last thing it sends.
    pub async fn fetch(self, ssts: Vec<SstInfo>, sender: mpsc::Sender<Result<Stretch>>) {
        for sst in ssts {
            match self.fetch_sst(&sst, &sender).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    // A receiver that is gone does not want to know.
                    sender.send(Err(error)).await.unwrap_or_default();
                    return;
                }
            }
        }
    }

    /// Whether the receiver wants more.
    async fn fetch_sst(
        &self,
        sst: &SstInfo,
        sender: &mpsc::Sender<Result<Stretch>>,
    ) -> Result<bool> {
        let object = Object::Sst(sst.id);
        let bucket = match &sst.home {
            Some(home) => self.bucket.rooted(&home.root)?,
            None => self.bucket.clone(),
        };
        let database = sst.home.as_ref().map_or(self.database, |home| home.database);
        // A small SST is one GET, metadata and all.
        let is_small = sst.bytes <= self.stretch_bytes;
        let from = if is_small { 0 } else { sst.meta_offset };
        let parse = |mut whole: Bytes| {
            let meta = whole.split_off(length(sst.meta_offset - from));
            let meta = SstMeta::parse(meta, sst, database)?;
            if is_small {
                let blocks = whole.slice(length(meta.block_range(0).start)..);
                check(sst, &blocks_of(&meta, 0..meta.block_count(), &blocks))?;
            }
            Ok((whole, meta))
        };
        let (whole, meta) = bucket.read_parsed(&object, Some(from..sst.bytes), parse).await?;
        let mut next = 0;
        while next < meta.block_count() {
            let end = self.stretch_end(&meta, next);
            let (from, to) = (meta.block_range(next).start, meta.block_range(end - 1).end);
            let blocks = if is_small {
                blocks_of(&meta, next..end, &whole.slice(length(from)..length(to)))
            } else {
                let parse = |bytes: Bytes| {
                    let blocks = blocks_of(&meta, next..end, &bytes);
                    check(sst, &blocks).map(|()| blocks)
                };
                bucket.read_parsed(&object, Some(from..to), parse).await?
            };
            let stretch = Stretch { sst: sst.id, blocks: blocks.into() };
            if sender.send(Ok(stretch)).await.is_err() {
                return Ok(false);
            }
            next = end;
        }
        Ok(true)
    }

    /// The block after the last of the stretch that begins at `first`.
    fn stretch_end(&self, meta: &SstMeta, first: usize) -> usize {
        let start = meta.block_range(first).start;
        let fits = |block: &usize| meta.block_range(*block).end - start <= self.stretch_bytes;
        let further = (first + 1..meta.block_count()).take_while(fits).count();
        first + 1 + further
    }
}

/// The stored blocks of a stretch, each with its offset.
fn blocks_of(meta: &SstMeta, blocks: Range<usize>, stretch: &Bytes) -> Vec<(u64, Bytes)> {
    let from = meta.block_range(blocks.start).start;
    let stored = |block| {
        let range = meta.block_range(block);
        let bytes = length(range.start - from)..length(range.end - from);
        (range.start, stretch.slice(bytes))
    };
    blocks.map(stored).collect()
}

/// Whether the stored blocks are what was written: told while they can still be read again.
fn check(sst: &SstInfo, blocks: &[(u64, Bytes)]) -> Result<(), Corrupt> {
    blocks.iter().try_for_each(|(offset, stored)| Block::check(stored, &sst.id, *offset))
}

/// Bytes in memory: of a stretch or of a metadata section, which fit.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Goes through the entries of one source as they are fed.
#[derive(Debug, Default)]
pub struct InputCursor {
    block: Option<BlockCursor>,
    at_entry: bool,
    stretch: Option<Stretch>,
    fed: Fed,
    corrupt: Option<(OutputId, Corrupt)>,
    bytes_read: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fed {
    /// More may come.
    #[default]
    SoFar,
    /// Nothing comes any more.
    Wholly,
}

impl InputCursor {
    /// Takes the next stretch, or (`None`) the news that there is none.
    ///
    /// Decodes a block, so it belongs on the merging thread.
    pub fn feed(&mut self, stretch: Option<Stretch>) {
        assert!(!self.at_entry && self.stretch.is_none(), "only a cursor in need is fed");
        match stretch {
            Some(stretch) => self.stretch = Some(stretch),
            None => self.fed = Fed::Wholly,
        }
        self.next_block();
    }

    /// Stored bytes that were decoded.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// What was found wrong with the input, if that is why it goes no further.
    pub fn take_corrupt(&mut self) -> Option<Error> {
        let (sst, cause) = self.corrupt.take()?;
        Some(Error::corrupt(Object::Sst(sst).path(), cause))
    }

    fn next_block(&mut self) {
        self.at_entry = false;
        let Some(stretch) = &mut self.stretch else { return };
        let Some((offset, stored)) = stretch.blocks.pop_front() else {
            self.stretch = None;
            return;
        };
        match Block::parse(&stored, &stretch.sst, offset) {
            Ok(block) => {
                let cursor = match self.block.take() {
                    Some(mut cursor) => {
                        cursor.reset(block);
                        cursor
                    }
                    None => BlockCursor::new(block),
                };
                let cursor = self.block.insert(cursor);
                cursor.first();
                self.at_entry = cursor.entry().is_some();
                self.bytes_read += u64::try_from(stored.len()).unwrap_or(0);
            }
            Err(cause) => {
                self.corrupt = Some((stretch.sst, cause));
                self.stretch = None;
            }
        }
    }
}

impl Cursor for InputCursor {
    fn head(&self) -> Head<'_> {
        match self.block.as_ref().filter(|_| self.at_entry).and_then(BlockCursor::entry) {
            Some(entry) => Head::Entry(entry),
            None if self.fed == Fed::Wholly => Head::End,
            None => Head::NeedInput,
        }
    }

    fn advance(&mut self) {
        let Some(cursor) = &mut self.block else { return };
        cursor.next();
        if cursor.entry().is_none() {
            self.next_block();
        }
    }
}
