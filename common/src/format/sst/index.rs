//! The index of an SST: which block may hold a key, and where that block lies.

use std::ops::Range;

use bytes::BufMut;

use super::super::Corrupt;
use super::super::codec::{self, Reader};
use super::HEADER_BYTES;
use crate::limits::KEY_BYTES_MAX;

/// Gathers the separators and sizes of blocks.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    /// Separators, one behind the other.
    keys: Vec<u8>,
    blocks: Vec<Written>,
}

#[derive(Debug)]
struct Written {
    /// Where its separator ends in `keys`.
    key_end: usize,
    /// Its size in the SST.
    bytes: u64,
}

impl IndexBuilder {
    /// Adds the next block.
    pub(super) fn add(&mut self, separator: &[u8], bytes: u64) {
        self.keys.extend_from_slice(separator);
        self.blocks.push(Written { key_end: self.keys.len(), bytes });
    }

    /// About how many bytes `finish` appends.
    pub(super) fn bytes(&self) -> usize {
        self.keys.len() + self.blocks.len() * 4 + 8
    }

    /// Appends the index.
    pub(super) fn finish(&self, out: &mut impl BufMut) {
        let mut separators = Vec::with_capacity(self.blocks.len());
        let mut start = 0;
        for block in &self.blocks {
            separators.push(self.keys.get(start..block.key_end).unwrap_or_default());
            start = block.key_end;
        }
        let first = separators.first().copied().unwrap_or_default();
        let last = separators.last().copied().unwrap_or_default();
        // Separators ascend, so what the outermost two share is shared by all.
        let shared = codec::common_prefix(first, last);
        let more = |key: &'_ [u8]| key.len() - shared;

        codec::put_u32(out, u32::try_from(self.blocks.len()).expect("fewer blocks than 2^32"));
        codec::put_slice(out, last.get(..shared).unwrap_or_default());
        for (block, key) in self.blocks.iter().zip(&separators) {
            codec::put_len(out, more(key));
            codec::put_varint(out, block.bytes);
        }
        for key in separators {
            out.put_slice(key.get(shared..).unwrap_or_default());
        }
    }
}

/// The index in memory: flat arrays, so that a search touches few cache lines.
pub(super) struct Index {
    /// What all separators begin with.
    prefix: Box<[u8]>,
    /// The first 8 bytes of each separator behind the prefix, as a number that sorts like them.
    heads: Box<[u64]>,
    /// Where each separator ends in `keys`.
    key_ends: Box<[u32]>,
    /// What follows the prefix in each separator.
    keys: Box<[u8]>,
    /// Where each block begins, and behind them where the last one ends.
    offsets: Box<[u64]>,
}

impl Index {
    /// Reads what [`IndexBuilder::finish`] wrote.
    ///
    /// # Errors
    /// `Corrupt` where it is malformed or its separators do not ascend.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(bytes);
        let blocks = reader.u32()? as usize;
        let prefix = reader.slice(KEY_BYTES_MAX)?;
        // Each block takes two bytes at least: no count makes this allocate more than it read.
        if blocks == 0 || blocks > reader.rest().len() / 2 {
            return Err(Corrupt::new(format!("an index of {blocks} blocks")));
        }
        let mut key_ends = Vec::with_capacity(blocks);
        let mut offsets = Vec::with_capacity(blocks + 1);
        let (mut key_end, mut offset) = (0_usize, HEADER_BYTES as u64);
        offsets.push(offset);
        for _ in 0..blocks {
            key_end += reader.len(KEY_BYTES_MAX - prefix.len())?;
            key_ends.push(u32::try_from(key_end).map_err(|_| Corrupt::new("an index too large"))?);
            offset = offset
                .checked_add(reader.varint()?)
                .ok_or_else(|| Corrupt::new("a block of impossible size"))?;
            offsets.push(offset);
        }
        let keys = reader.take(key_end)?;
        reader.finish()?;
        let mut index = Self {
            prefix: prefix.into(),
            heads: Box::default(),
            key_ends: key_ends.into(),
            keys: keys.into(),
            offsets: offsets.into(),
        };
        index.heads = (0..blocks).map(|block| head(index.key(block))).collect();
        if (1..blocks).all(|block| index.key(block - 1) < index.key(block)) {
            return Ok(index);
        }
        Err(Corrupt::new("separators out of order"))
    }

    /// How many blocks there are; at least one.
    pub(super) fn blocks(&self) -> usize {
        self.key_ends.len()
    }

    /// The bytes of a block in the SST.
    pub(super) fn range(&self, block: usize) -> Option<Range<u64>> {
        Some(*self.offsets.get(block)?..*self.offsets.get(block + 1)?)
    }

    /// Where the last block ends.
    pub(super) fn end(&self) -> u64 {
        self.offsets.last().copied().unwrap_or_default()
    }

    /// How many blocks have a separator below `key`: also the block that may hold it.
    pub(super) fn blocks_below(&self, key: &[u8]) -> usize {
        let Some(more) = key.strip_prefix(&*self.prefix) else {
            return if *key < *self.prefix { 0 } else { self.blocks() };
        };
        let sought = head(more);
        let (mut below, mut not_below) = (
            self.heads.partition_point(|head| *head < sought),
            self.heads.partition_point(|head| *head <= sought),
        );
        while below < not_below {
            let middle = below.midpoint(not_below);
            if self.key(middle) < more { below = middle + 1 } else { not_below = middle }
        }
        below
    }

    /// The whole separator of a block.
    pub(super) fn separator(&self, block: usize) -> Vec<u8> {
        [&self.prefix, self.key(block)].concat()
    }

    /// Memory in use.
    pub(super) fn bytes(&self) -> usize {
        self.prefix.len()
            + size_of_val(&*self.heads)
            + size_of_val(&*self.key_ends)
            + self.keys.len()
            + size_of_val(&*self.offsets)
    }

    /// The separator of a block behind the prefix.
    fn key(&self, block: usize) -> &[u8] {
        let end = |block: usize| self.key_ends.get(block).map_or(0, |end| *end as usize);
        let start = block.checked_sub(1).map_or(0, end);
        self.keys.get(start..end(block)).unwrap_or_default()
    }
}

/// The first 8 bytes, the first one highest, with zeros behind a shorter key. Keys that differ here
/// differ in the same way; keys that do not must be compared.
fn head(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(key) {
        *to = *from;
    }
    u64::from_le_bytes(bytes).swap_bytes()
}
