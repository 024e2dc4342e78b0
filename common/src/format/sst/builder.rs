//! Makes an SST from entries in order, handing out its bytes while it grows.

use bytes::{Bytes, BytesMut};

use super::super::block::BlockBuilder;
use super::super::codec;
use super::super::filter::{FilterBuilder, KeyHash};
use super::super::manifest::SstInfo;
use super::super::path::OutputId;
use super::index::IndexBuilder;
use super::properties::Properties;
use super::{FOOTER_BYTES, HEADER_BYTES, IDENTITY_BYTES, SstOptions, keys, put_identity};
use crate::types::{DatabaseId, EntryRef};

/// Makes one SST.
///
/// ```text
/// new -> (add … take_bytes)* -> finish
/// ```
/// The SST is what all `take_bytes` and then `finish` returned, one behind the other. Memory: the
/// bytes not taken, one block, 8 bytes a key for the filter, and the index.
#[derive(Debug)]
pub struct SstBuilder {
    database: DatabaseId,
    id: OutputId,
    block_bytes: usize,
    block: BlockBuilder,
    filter: FilterBuilder,
    index: IndexBuilder,
    properties: Properties,
    /// Finished bytes that nobody took yet.
    out: BytesMut,
    /// Where the next block goes: all finished bytes, taken or not.
    offset: u64,
}

impl SstBuilder {
    /// An SST of this name, without entries.
    pub fn new(database: DatabaseId, id: OutputId, options: SstOptions) -> Self {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + options.block_bytes);
        put_identity(&mut out, database, &id);
        codec::seal(&mut out);
        let offset = out.len() as u64;
        assert_eq!(offset, HEADER_BYTES as u64);
        Self {
            database,
            id,
            block_bytes: options.block_bytes,
            block: BlockBuilder::new(options.compression),
            filter: FilterBuilder::new(options.filter_bits_per_key),
            index: IndexBuilder::default(),
            properties: Properties::new(),
            out,
            offset,
        }
    }

    /// Adds an entry behind all others.
    ///
    /// # Panics
    /// Where the order or a limit is violated: key ascending, then seq descending; a key of 1 B to
    /// 16 KiB; all versions of one key together at most `BLOCK_BYTES_MAX`.
    pub fn add(&mut self, entry: EntryRef<'_>) {
        if self.block.is_empty() || self.block.last_key() != entry.key {
            // INVARIANT: all versions of one key lie in one block.
            if !self.block.is_empty() && self.block.bytes_with(entry) > self.block_bytes {
                let separator = keys::separator(self.block.last_key(), entry.key);
                self.end_block(&separator);
            }
            self.filter.add(KeyHash::of(entry.key));
        }
        self.properties.add(entry);
        self.block.add(entry);
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.properties.entries == 0
    }

    /// About the size of the SST, if it were finished now: too high by what the open block will
    /// shrink.
    pub fn bytes(&self) -> u64 {
        let open = if self.block.is_empty() { 0 } else { self.block.bytes() };
        let keys = self.properties.first_key.len() + self.block.last_key().len();
        let meta = self.filter.bytes() + self.index.bytes() + IDENTITY_BYTES + FOOTER_BYTES;
        self.offset + (open + keys + meta) as u64
    }

    /// The bytes finished since the last time, perhaps none: what is uploaded next.
    pub fn take_bytes(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    /// How many bytes `take_bytes` would return now.
    pub fn finished_bytes(&self) -> usize {
        self.out.len()
    }

    /// The bytes that nobody took, up to the end of the SST, and what the tree is told of it
    /// (`wal` and `home` are for the caller to fill in).
    ///
    /// # Panics
    /// Where nothing was added: the tree holds no empty SST.
    pub fn finish(mut self) -> (Bytes, SstInfo) {
        assert!(!self.is_empty(), "an SST holds an entry");
        self.properties.last_key = self.block.last_key().to_vec();
        let last_key = self.block.last_key().to_vec();
        self.end_block(&last_key);
        self.properties.meta_offset = self.offset;

        let mut meta = BytesMut::with_capacity(self.filter.bytes() + self.index.bytes());
        meta.extend_from_slice(&self.filter.finish());
        let filter_bytes = meta.len();
        self.index.finish(&mut meta);
        let index_bytes = meta.len() - filter_bytes;
        self.properties.put(&mut meta, self.database, &self.id);
        let properties_bytes = meta.len() - index_bytes - filter_bytes;
        for part in [filter_bytes, index_bytes, properties_bytes] {
            codec::put_u64(&mut meta, part as u64);
        }
        codec::seal(&mut meta);

        let bytes = self.offset + meta.len() as u64;
        self.out.unsplit(meta);
        (self.out.freeze(), self.properties.info(self.id, bytes))
    }

    fn end_block(&mut self, separator: &[u8]) {
        self.properties.decoded_bytes += self.block.bytes() as u64;
        let bytes = self.block.finish(&self.id, self.offset, &mut self.out);
        self.index.add(separator, bytes);
        self.offset += bytes;
    }
}
