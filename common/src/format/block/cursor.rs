//! Goes through the entries of a block, both ways.

use std::fmt;

use bytes::Bytes;

use super::Block;
use super::entry::Head;
use crate::types::{EntryRef, Seq};

/// A place in a block: on an entry, or off the block.
///
/// It begins off the block; `first`, `last`, `seek` and `seek_before` place it. A cursor that runs
/// off either end stays off until it is placed again. Its key's buffer is all that it allocates.
pub struct BlockCursor {
    block: Block,
    /// Offset of the entry, meaningless while off the block.
    at: usize,
    head: Option<Head>,
    key: Vec<u8>,
}

impl BlockCursor {
    /// A cursor off the block.
    pub fn new(block: Block) -> Self {
        Self { block, at: 0, head: None, key: Vec::new() }
    }

    /// Goes over to another block, off it, keeping the buffer.
    pub fn reset(&mut self, block: Block) {
        self.block = block;
        self.head = None;
    }

    /// The block that it goes through.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// To the first entry.
    pub fn first(&mut self) {
        self.load(0);
    }

    /// To the last entry.
    pub fn last(&mut self) {
        self.load(self.block.restart(self.block.restarts - 1));
        self.walk_to_entry_ending_at(self.block.entries_end);
    }

    /// To the first entry whose key is `key` or above it (the newest version of that key); off the
    /// block where none is.
    pub fn seek(&mut self, key: &[u8]) {
        self.load(self.block.restart(self.block.restart_before(key)));
        while self.head.is_some() && *self.key < *key {
            self.next();
        }
    }

    /// To the last entry whose key is below `key` (the oldest version of that key); off the block
    /// where none is.
    pub fn seek_before(&mut self, key: &[u8]) {
        self.seek(key);
        if self.head.is_some() { self.prev() } else { self.last() }
    }

    /// To the next entry: key ascending, then seq descending.
    #[inline]
    pub fn next(&mut self) {
        let Some(head) = self.head else { return };
        if head.end() < self.block.entries_end {
            self.load(head.end());
        } else {
            self.head = None;
        }
    }

    /// To the entry before: key descending, then seq ascending.
    pub fn prev(&mut self) {
        if self.head.is_none() {
            return;
        }
        if self.at == 0 {
            self.head = None;
            return;
        }
        let end = self.at;
        self.load(self.block.restart(self.block.restart_in_front_of(end)));
        self.walk_to_entry_ending_at(end);
    }

    /// The entry; `None` off the block.
    #[inline]
    pub fn entry(&self) -> Option<EntryRef<'_>> {
        self.head.map(|head| head.entry(&self.key, &self.block.data))
    }

    /// Key and seq of the entry alone; `None` off the block.
    #[inline]
    pub fn place(&self) -> Option<(&[u8], Seq)> {
        self.head.map(|head| (&*self.key, head.seq))
    }

    /// The entry's value or operand, shared with the block and not copied; empty for a tombstone
    /// and off the block.
    pub fn value_bytes(&self) -> Bytes {
        self.head.map(|head| self.block.share(head.value(&self.block.data))).unwrap_or_default()
    }

    fn walk_to_entry_ending_at(&mut self, end: usize) {
        while self.head.is_some_and(|head| head.end() < end) {
            self.next();
        }
    }

    /// To the entry at `at`, which is a restart or the one behind the current.
    #[inline]
    fn load(&mut self, at: usize) {
        let head = self.block.head(at);
        self.key.truncate(head.shared);
        self.key.extend_from_slice(head.more(&self.block.data));
        self.at = at;
        self.head = Some(head);
    }
}

impl fmt::Debug for BlockCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCursor")
            .field("block", &self.block)
            .field("entry", &self.entry())
            .finish_non_exhaustive()
    }
}
