//! The metadata of an SST in memory: what a reader must know before it reads a block.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use super::super::Corrupt;
use super::super::codec::{self, Reader};
use super::super::filter::{Filter, KeyHash};
use super::super::manifest::SstInfo;
use super::FOOTER_BYTES;
use super::index::Index;
use super::properties::Properties;
use crate::types::DatabaseId;

/// Filter, index and properties of one SST.
pub struct SstMeta {
    filter: Filter,
    index: Index,
    pub(super) properties: Properties,
}

impl SstMeta {
    /// Reads the metadata section: the bytes of the SST from `info.meta_offset` to its end.
    /// `database` is the one that the SST was made for (of a clone's foreign SST: its home).
    ///
    /// # Errors
    /// `Corrupt` where the bytes are damaged, cut off, of another SST or database, or do not say
    /// what `info` says.
    // Copies what it keeps, so that the bytes do not stay in memory beside it.
    #[expect(clippy::needless_pass_by_value, reason = "the section is not used after this")]
    pub fn parse(bytes: Bytes, info: &SstInfo, database: DatabaseId) -> Result<Self, Corrupt> {
        let wrong = |corrupt: Corrupt| Corrupt::new(format!("metadata: {corrupt}"));
        Self::parse_section(&bytes, info, database).map_err(wrong)
    }

    fn parse_section(bytes: &[u8], info: &SstInfo, database: DatabaseId) -> Result<Self, Corrupt> {
        if info.bytes.checked_sub(info.meta_offset) != Some(bytes.len() as u64) {
            return Err(Corrupt::new(format!("{} bytes is not its length", bytes.len())));
        }
        let body = codec::unseal(bytes)?;
        let (parts, lengths) = body
            .len()
            .checked_sub(FOOTER_BYTES - codec::SEAL_BYTES)
            .and_then(|at| body.split_at_checked(at))
            .ok_or_else(|| Corrupt::new("too short for its footer"))?;
        let (mut parts, mut lengths) = (Reader::new(parts), Reader::new(lengths));
        let mut next_part = || {
            let len = usize::try_from(lengths.u64()?).unwrap_or(usize::MAX);
            parts.take(len)
        };
        let (filter, index, properties) = (next_part()?, next_part()?, next_part()?);
        parts.finish()?;

        let properties = Properties::parse(properties, database, &info.id)?;
        let meta = Self { filter: Filter::parse(filter)?, index: Index::parse(index)?, properties };
        let said = SstInfo {
            wal: info.wal,
            home: info.home.clone(),
            unknown: info.unknown.clone(),
            ..meta.properties.info(info.id, info.bytes)
        };
        if said != *info || meta.index.end() != info.meta_offset {
            return Err(Corrupt::new("does not say what the manifest says"));
        }
        Ok(meta)
    }

    /// False if the SST certainly holds no entry of this key. Touches one cache line.
    #[inline]
    pub fn may_contain(&self, hash: KeyHash) -> bool {
        self.filter.may_contain(hash)
    }

    /// How many blocks there are; at least one.
    pub fn block_count(&self) -> usize {
        self.index.blocks()
    }

    /// The bytes of a block in the SST, as `Block::parse` takes them (with the range's start).
    ///
    /// # Panics
    /// Where there is no such block.
    pub fn block_range(&self, block: usize) -> Range<u64> {
        self.index.range(block).expect("a block below block_count")
    }

    /// The first block that may hold `key` or keys above it; `None` where all keys are below. All
    /// versions of `key` are in this block or nowhere in the SST.
    ///
    /// Separators are short, so the block may end just below `key`: a cursor that finds nothing in
    /// it goes on with the first entry of the next block.
    #[inline]
    pub fn block_for(&self, key: &[u8]) -> Option<usize> {
        let block = self.index.blocks_below(key);
        (block < self.block_count()).then_some(block)
    }

    /// The last block that may hold keys below `key` (`None`: any keys); `None` where all keys are
    /// at or above it.
    ///
    /// Separators are short, so the block may begin at or above `key`: a cursor that finds nothing
    /// in it goes on with the last entry of the block before.
    pub fn last_block_before(&self, key: Option<&[u8]>) -> Option<usize> {
        let last = self.block_count() - 1;
        match key {
            None => Some(last),
            Some(key) if key <= self.first_key() => None,
            Some(key) => Some(self.index.blocks_below(key).min(last)),
        }
    }

    /// The blocks that may hold keys from `start` (inclusive) to `end` (exclusive), for read-ahead
    /// and warming.
    pub fn blocks_between(&self, start: &[u8], end: Option<&[u8]>) -> Range<usize> {
        let first = self.block_for(start).unwrap_or(self.block_count());
        let end = self.last_block_before(end).map_or(0, |last| last + 1);
        first..end.max(first)
    }

    /// The first key, whole, where `SstInfo` may have it cut.
    pub fn first_key(&self) -> &[u8] {
        &self.properties.first_key
    }

    /// The last key, whole, where `SstInfo` may have it rounded up.
    pub fn last_key(&self) -> &[u8] {
        &self.properties.last_key
    }

    /// Bytes of all blocks before compression.
    pub fn decoded_bytes(&self) -> u64 {
        self.properties.decoded_bytes
    }

    /// A key at or above every key of the block and below every key of the next.
    pub(super) fn separator(&self, block: usize) -> Vec<u8> {
        self.index.separator(block)
    }

    /// Memory in use.
    pub fn bytes(&self) -> usize {
        let keys = self.properties.first_key.capacity() + self.properties.last_key.capacity();
        size_of::<Self>() + keys + self.filter.bytes() + self.index.bytes()
    }
}

impl fmt::Debug for SstMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SstMeta")
            .field("blocks", &self.block_count())
            .field("properties", &self.properties)
            .finish_non_exhaustive()
    }
}
