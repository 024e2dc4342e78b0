//! What an SST says of itself.

use bytes::BufMut;

use super::super::Corrupt;
use super::super::codec::{self, Reader};
use super::super::manifest::{ExpiryRange, SstInfo};
use super::super::path::OutputId;
use super::super::unknown::Unknown;
use super::{expect_identity, keys, put_identity};
use crate::limits::KEY_BYTES_MAX;
use crate::types::{DatabaseId, EntryRef, PayloadRef, Seq};

/// What is counted and noted while entries are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Properties {
    /// Where the metadata begins.
    pub(super) meta_offset: u64,
    /// Bytes of all blocks before compression.
    pub(super) decoded_bytes: u64,
    /// Entries of all kinds.
    pub(super) entries: u64,
    tombstones: u64,
    operands: u64,
    first_seq: Seq,
    last_seq: Seq,
    earliest_expiry_ms: u64,
    latest_expiry_ms: u64,
    /// The first key, whole.
    pub(super) first_key: Vec<u8>,
    /// The last key, whole.
    pub(super) last_key: Vec<u8>,
}

impl Properties {
    /// Of no entries.
    pub(super) fn new() -> Self {
        Self {
            meta_offset: 0,
            decoded_bytes: 0,
            entries: 0,
            tombstones: 0,
            operands: 0,
            first_seq: Seq::MAX,
            last_seq: Seq::ZERO,
            earliest_expiry_ms: u64::MAX,
            latest_expiry_ms: 0,
            first_key: Vec::new(),
            last_key: Vec::new(),
        }
    }

    /// Counts an entry. The last key is noted by whoever knows that it is the last.
    pub(super) fn add(&mut self, entry: EntryRef<'_>) {
        if self.entries == 0 {
            self.first_key = entry.key.to_vec();
        }
        self.entries += 1;
        match entry.payload {
            PayloadRef::Value(_) => {}
            PayloadRef::Tombstone => self.tombstones += 1,
            PayloadRef::Operand { .. } => self.operands += 1,
        }
        self.first_seq = self.first_seq.min(entry.seq);
        self.last_seq = self.last_seq.max(entry.seq);
        if let Some(at) = entry.expires_ms {
            self.earliest_expiry_ms = self.earliest_expiry_ms.min(at);
            self.latest_expiry_ms = self.latest_expiry_ms.max(at);
        }
    }

    /// Appends the properties.
    pub(super) fn put(&self, out: &mut impl BufMut, database: DatabaseId, id: &OutputId) {
        put_identity(out, database, id);
        for number in self.numbers() {
            codec::put_u64(out, number);
        }
        codec::put_slice(out, &self.first_key);
        codec::put_slice(out, &self.last_key);
    }

    /// Reads what [`put`](Self::put) wrote.
    ///
    /// # Errors
    /// `Corrupt` where it is malformed, or of another SST or database.
    pub(super) fn parse(
        bytes: &[u8],
        database: DatabaseId,
        id: &OutputId,
    ) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(bytes);
        expect_identity(&mut reader, database, id)?;
        let properties = Self {
            meta_offset: reader.u64()?,
            decoded_bytes: reader.u64()?,
            entries: reader.u64()?,
            tombstones: reader.u64()?,
            operands: reader.u64()?,
            first_seq: Seq(reader.u64()?),
            last_seq: Seq(reader.u64()?),
            earliest_expiry_ms: reader.u64()?,
            latest_expiry_ms: reader.u64()?,
            first_key: reader.slice(KEY_BYTES_MAX)?.to_vec(),
            last_key: reader.slice(KEY_BYTES_MAX)?.to_vec(),
        };
        reader.finish()?;
        Ok(properties)
    }

    /// What the tree is told, with the size of the whole SST.
    pub(super) fn info(&self, id: OutputId, bytes: u64) -> SstInfo {
        let (earliest_ms, latest_ms) = (self.earliest_expiry_ms, self.latest_expiry_ms);
        SstInfo {
            id,
            bytes,
            meta_offset: self.meta_offset,
            entries: self.entries,
            tombstones: self.tombstones,
            operands: self.operands,
            first_key: keys::lower_bound(&self.first_key),
            last_key: keys::upper_bound(&self.last_key),
            first_seq: self.first_seq,
            last_seq: self.last_seq,
            wal: None,
            expires: (earliest_ms <= latest_ms).then_some(ExpiryRange { earliest_ms, latest_ms }),
            home: None,
            unknown: Unknown::default(),
        }
    }

    fn numbers(&self) -> [u64; 9] {
        [
            self.meta_offset,
            self.decoded_bytes,
            self.entries,
            self.tombstones,
            self.operands,
            self.first_seq.0,
            self.last_seq.0,
            self.earliest_expiry_ms,
            self.latest_expiry_ms,
        ]
    }
}
