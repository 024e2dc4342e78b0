//! Makes blocks, one after the other, in memory that it keeps.

use std::fmt;

use bytes::{BufMut, BytesMut};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::super::codec;
use super::super::path::OutputId;
use super::{
    BLOCK_BYTES_MAX, FORM_LZ4, FORM_RAW, RESTART_BYTES, RESTART_INTERVAL, TRAILER_BYTES, checksum,
    entry,
};
use crate::limits::KEY_BYTES_MAX;
use crate::types::{EntryRef, Seq};

/// How blocks are stored. A block that does not shrink is stored as it is in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// As LZ4 blocks.
    Lz4,
}

/// Makes blocks, one after the other.
pub struct BlockBuilder {
    compression: Compression,
    /// Encoded entries; `finish` appends restarts and trailer.
    data: Vec<u8>,
    restarts: Vec<u32>,
    since_restart: u32,
    base: Seq,
    last_key: Vec<u8>,
    last_seq: Seq,
    table: CompressTable,
}

impl BlockBuilder {
    /// An empty block.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            data: Vec::new(),
            restarts: Vec::new(),
            since_restart: 0,
            base: Seq::ZERO,
            last_key: Vec::new(),
            last_seq: Seq::ZERO,
            table: CompressTable::small(),
        }
    }

    /// Adds an entry behind all others.
    ///
    /// # Panics
    /// Where the order or a limit is violated: key ascending, then seq descending; a key of 1 B to
    /// 16 KiB; at most `BLOCK_BYTES_MAX` in all.
    pub fn add(&mut self, entry: EntryRef<'_>) {
        assert!((1..=KEY_BYTES_MAX).contains(&entry.key.len()), "a key of impossible length");
        assert!(entry.seq <= Seq::MAX, "a seq above all");
        let bytes = self.bytes_with(entry);
        assert!(bytes <= BLOCK_BYTES_MAX, "the versions of one key reach {bytes} bytes");
        let mut shared = 0;
        if self.is_empty() {
            self.base = entry.seq;
        } else {
            shared = codec::common_prefix(&self.last_key, entry.key);
            let same = shared == entry.key.len() && shared == self.last_key.len();
            let above = self.last_key.get(shared) < entry.key.get(shared);
            assert!(above || same && entry.seq < self.last_seq, "entries are added in order");
        }
        if self.is_empty() || self.since_restart == RESTART_INTERVAL {
            let offset = u32::try_from(self.data.len()).expect("BLOCK_BYTES_MAX is below 2^32");
            self.restarts.push(offset);
            self.since_restart = 0;
            entry::put(&mut self.data, entry, 0, self.base);
        } else {
            entry::put(&mut self.data, entry, shared, self.base);
        }
        self.since_restart += 1;
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(entry.key.get(shared..).unwrap_or_default());
        self.last_seq = entry.seq;
    }

    /// Whether nothing was added since the last `finish`.
    pub fn is_empty(&self) -> bool {
        self.restarts.is_empty()
    }

    /// The size of the decoded block, if it were finished now.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.restarts.len() * RESTART_BYTES + TRAILER_BYTES
    }

    /// The size of the decoded block with this entry in it, at most.
    pub fn bytes_with(&self, entry: EntryRef<'_>) -> usize {
        self.bytes() + RESTART_BYTES + entry::bytes_max(entry)
    }

    /// The key that was added last.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Appends the block to `out` as it is stored at `offset` of an SST, and begins the next.
    /// Returns how many bytes it takes.
    ///
    /// # Panics
    /// Where nothing was added.
    pub fn finish(&mut self, sst: &OutputId, offset: u64, out: &mut BytesMut) -> u64 {
        assert!(!self.is_empty(), "a block holds an entry");
        for restart in &self.restarts {
            codec::put_u32(&mut self.data, *restart);
        }
        let restarts = u32::try_from(self.restarts.len()).expect("fewer restarts than bytes");
        codec::put_u64(&mut self.data, self.base.0);
        codec::put_u32(&mut self.data, restarts);

        let start = out.len();
        if self.compression == Compression::None || !self.put_compressed(out) {
            put_form(out, FORM_RAW, self.data.len());
            out.put_slice(&self.data);
        }
        let crc = checksum(out.get(start..).unwrap_or_default(), sst, offset);
        codec::put_u32(out, crc);

        self.data.clear();
        self.restarts.clear();
        self.since_restart = 0;
        (out.len() - start) as u64
    }

    /// Appends form and payload of the compressed block and returns true, or leaves `out` as it was
    /// where that is not smaller.
    fn put_compressed(&mut self, out: &mut BytesMut) -> bool {
        let start = out.len();
        put_form(out, FORM_LZ4, self.data.len());
        let payload_at = out.len();
        out.resize(payload_at + get_maximum_output_size(self.data.len()), 0);
        let payload = out.get_mut(payload_at..).unwrap_or_default();
        match compress_into_with_table(&self.data, payload, &mut self.table) {
            Ok(bytes) if bytes < self.data.len() => {
                out.truncate(payload_at + bytes);
                true
            }
            _ => {
                out.truncate(start);
                false
            }
        }
    }
}

fn put_form(out: &mut BytesMut, form: u8, decoded_bytes: usize) {
    out.put_u8(form);
    codec::put_u32(out, u32::try_from(decoded_bytes).expect("BLOCK_BYTES_MAX is below 2^32"));
}

impl fmt::Debug for BlockBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockBuilder")
            .field("compression", &self.compression)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}
