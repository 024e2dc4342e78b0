//! A WAL object: one group commit, or a fence, on the chain of ids.
//!
//! **Layout**
//!
//! ```text
//! +-------- head, 28 bytes (codec) ---------+
//! | magic 8 | format 2 | kind 1 | 0 | database 16 |
//! +------------------- header, 64 bytes -----------------------------------------------+
//! | id 8 | writer 16 | epoch 4 | batches 4 | prev_seq 8 | first_seq 8 | next 8 | proven 8 |
//! +------------------------------------------------------------------------------------+
//! | batch | batch | …                                 none in a fence                  |
//! +------------------------------------------------------------------------------------+
//! | crc 4 |   CRC-32C of the batches, then of head and header                     |
//! +-------+
//!
//! data:   batches >= 1, first_seq > prev_seq, next = 0, id - 1024 <= proven < id
//!         batch i has seq first_seq + i
//! fence:  batches = 0,  first_seq = 0, next = id + 1024: where the chain goes on, proven = 0
//!
//! batch:  bytes u32 | operations
//! op:     tag u8 | key slice | [expires_ms varint] | payload       tag = kind | 0x10 if it expires
//!   kind 0 value      slice
//!   kind 1 tombstone  nothing
//!   kind 2 add, 3 max, 4 min, 5 append      written_ms varint | operand slice
//!
//! put "a" = "x", delete "b", as one batch:  08 00 00 00 | 00 01 61 01 78 | 01 01 62
//! ```
//!
//! The checksum takes the batches first, so that a group is summed up while it grows and sealing
//! one costs its header alone, whatever its size.
//!
//! **Invariants**
//! - One id holds one object for as long as it is at or after `replay_from`.
//! - Equal objects have equal bytes: a retry or a hedge sends exactly what was sent before.
//! - A fence has [`FENCE_BYTES`] bytes and data have more, so a listing tells them apart.
//! - `proven` is the highest own id that was proven when the object was sealed (before any: the
//!   first own id - 1). So an object that says `proven >= g` shows that `wal/g` was acknowledged.

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::Corrupt;
use super::codec::{self, Kind, Reader};
use super::manifest::law;
use crate::limits::{KEY_BYTES_MAX, SEQ_JUMP, VALUE_BYTES_MAX, WAL_JUMP};
use crate::types::{Batch, DatabaseId, Epoch, MergeOp, Op, Payload, Seq, WalId};

const HEADER_BYTES: usize = codec::HEAD_BYTES + 64;

/// The size of every fence; every data object is larger.
pub const FENCE_BYTES: usize = HEADER_BYTES + codec::SEAL_BYTES;

/// The most that a group may hold: one request's batch and more. Bounds the `u32` of a length.
const GROUP_BYTES_MAX: usize = 1 << 30;

const EXPIRES: u8 = 0x10;

/// What a WAL object says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// The database it belongs to.
    pub database: DatabaseId,
    /// Its own place.
    pub id: WalId,
    /// The epoch under which it was written.
    pub epoch: Epoch,
    /// The process that wrote it: the uuid of that epoch's claim.
    pub writer: Uuid,
    /// What it does to the chain.
    pub kind: WalKind,
    /// The highest seq before it on the chain.
    pub prev_seq: Seq,
    /// The seq of its first batch; 0 in a fence.
    pub first_seq: Seq,
    /// How many batches it holds; none in a fence.
    pub batches: u32,
    /// The highest id of its writer that was proven when it was sealed; 0 in a fence.
    pub proven: WalId,
}

/// What a WAL object does to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalKind {
    /// Holds batches; the chain goes on at the next id.
    Data,
    /// Ends what older epochs wrote; the chain jumps.
    Fence {
        /// The position after the fence.
        next: WalId,
    },
}

/// What the maker of a WAL object knows only when it seals it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalStamp {
    /// The database.
    pub database: DatabaseId,
    /// The place on the chain.
    pub id: WalId,
    /// The epoch of the writer.
    pub epoch: Epoch,
    /// The uuid of that epoch's claim.
    pub writer: Uuid,
    /// The highest seq before it on the chain.
    pub prev_seq: Seq,
    /// The highest id of this writer that is proven, its first id - 1 before any. Fences do not
    /// say it.
    pub proven: WalId,
}

/// One object of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalObject {
    /// What it says of itself.
    pub header: WalHeader,
    /// Its batches, ascending by seq without gaps.
    pub batches: Vec<Batch>,
}

impl WalHeader {
    /// The highest seq on the chain up to and including this object.
    pub fn last_seq(&self) -> Seq {
        match self.kind {
            WalKind::Fence { .. } => seq_after_fence(self.prev_seq),
            WalKind::Data => Seq(self.first_seq.0 + u64::from(self.batches) - 1),
        }
    }

    /// The position on the chain after this object.
    pub fn next(&self) -> WalId {
        match self.kind {
            WalKind::Fence { next } => next,
            WalKind::Data => self.id.next(),
        }
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let next = match self.kind {
            WalKind::Data => WalId(0),
            WalKind::Fence { next } => next,
        };
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES);
        codec::put_head(&mut bytes, Kind::Wal, self.database);
        codec::put_u64(&mut bytes, self.id.0);
        codec::put_uuid(&mut bytes, self.writer);
        codec::put_u32(&mut bytes, self.epoch.0);
        codec::put_u32(&mut bytes, self.batches);
        codec::put_u64(&mut bytes, self.prev_seq.0);
        codec::put_u64(&mut bytes, self.first_seq.0);
        codec::put_u64(&mut bytes, next.0);
        codec::put_u64(&mut bytes, self.proven.0);
        assert_eq!(self.check(), Ok(()), "a WAL object that could not be read back");
        *bytes.first_chunk().expect("the layout adds up to HEADER_BYTES")
    }

    fn parse(bytes: &[u8], database: DatabaseId) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(bytes);
        reader.head(Kind::Wal, database)?;
        let id = WalId(reader.u64()?);
        let writer = reader.uuid()?;
        let epoch = Epoch(reader.u32()?);
        let batches = reader.u32()?;
        let prev_seq = Seq(reader.u64()?);
        let first_seq = Seq(reader.u64()?);
        let kind = match reader.u64()? {
            0 => WalKind::Data,
            next => WalKind::Fence { next: WalId(next) },
        };
        let proven = WalId(reader.u64()?);
        reader.finish()?;
        let header =
            Self { database, id, epoch, writer, kind, prev_seq, first_seq, batches, proven };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Corrupt> {
        law(self.id >= WalId::FIRST && self.id <= WalId::MAX, || {
            format!("id {} is not on any chain", self.id)
        })?;
        law(self.prev_seq <= Seq::MAX, || format!("prev_seq {} is no seq", self.prev_seq))?;
        match self.kind {
            WalKind::Fence { next } => {
                let bare = self.batches == 0 && self.first_seq == Seq::ZERO;
                law(bare && self.proven == WalId(0), || "a fence with data".into())?;
                // INVARIANT: every fence jumps over the largest window, whoever made it.
                law(next == self.id.plus(WAL_JUMP), || {
                    format!("a fence at {} to {next}, not {WAL_JUMP} further on", self.id)
                })?;
                law(self.prev_seq.0 < Seq::MAX.0 - SEQ_JUMP, || {
                    format!("a fence after seq {} leaves no seqs", self.prev_seq)
                })
            }
            WalKind::Data => {
                let room = Seq::MAX.0.checked_sub(self.first_seq.0);
                let fits = room.is_some_and(|room| u64::from(self.batches) <= room);
                law(self.batches >= 1 && self.first_seq > self.prev_seq && fits, || {
                    format!("{} batches from seq {}", self.batches, self.first_seq)
                })?;
                let window = self.id.0.checked_sub(self.proven.0);
                law(window.is_some_and(|window| (1..=WAL_JUMP).contains(&window)), || {
                    format!("object {} says that {} is proven", self.id, self.proven)
                })
            }
        }
    }
}

impl WalObject {
    /// The object of these bytes, if they are those of this database's `wal/{id}`.
    ///
    /// Keys, values and operands are slices of `bytes` and keep it in memory.
    ///
    /// # Errors
    /// `Corrupt` where they are damaged, or another object's.
    #[expect(clippy::needless_pass_by_value, reason = "the batches keep the bytes in memory")]
    pub fn parse(bytes: Bytes, database: DatabaseId, id: WalId) -> Result<Self, Corrupt> {
        let short = || Corrupt::new(format!("{} bytes are too few", bytes.len()));
        let (sealed, crc) = bytes.split_last_chunk().ok_or_else(short)?;
        let (head, body) = sealed.split_at_checked(HEADER_BYTES).ok_or_else(short)?;
        law(codec::checksum(&[body, head]) == u32::from_le_bytes(*crc), || {
            "the checksum at its end does not hold".into()
        })?;
        let header = WalHeader::parse(head, database)?;
        law(header.id == id, || format!("it calls itself {}", header.id))?;

        let mut reader = Reader::new(body);
        let mut batches = Vec::new();
        for index in 0..u64::from(header.batches) {
            let length = reader.u32()? as usize;
            let operations = reader.take(length)?;
            let ops = parse_batch(&bytes, operations)?;
            batches.push(Batch { seq: header.first_seq.plus(index), ops });
        }
        reader.finish()?;
        Ok(Self { header, batches })
    }

    /// The highest seq on the chain up to and including this object.
    pub fn last_seq(&self) -> Seq {
        self.header.last_seq()
    }

    /// The position on the chain after this object.
    pub fn next(&self) -> WalId {
        self.header.next()
    }
}

/// The chain's seq after a fence that follows `prev_seq`.
///
/// A fence uses up [`SEQ_JUMP`] seqs, so that the writer behind it begins above whatever the one
/// before it gave out and lost. SUBTLE: it does so on the chain, not in the writer: of two
/// takeovers without data between them, the second must begin above what the first has lost, too.
pub fn seq_after_fence(prev_seq: Seq) -> Seq {
    Seq(prev_seq.0 + SEQ_JUMP - 1)
}

/// The bytes of a fence, which leads to [`WAL_JUMP`] ids further on.
pub fn encode_fence(stamp: &WalStamp) -> Bytes {
    let next = stamp.id.plus(WAL_JUMP);
    let bare = WalStamp { proven: WalId(0), ..*stamp };
    let header = bare.header(WalKind::Fence { next }, Seq::ZERO, 0);
    let head = header.encode();
    let mut bytes = BytesMut::with_capacity(FENCE_BYTES);
    bytes.extend_from_slice(&head);
    codec::put_u32(&mut bytes, codec::checksum(&[&head]));
    bytes.freeze()
}

impl WalStamp {
    fn header(&self, kind: WalKind, first_seq: Seq, batches: u32) -> WalHeader {
        let Self { database, id, epoch, writer, prev_seq, proven } = *self;
        WalHeader { database, id, epoch, writer, kind, prev_seq, first_seq, batches, proven }
    }
}

/// A group of batches that becomes one WAL object.
#[derive(Debug)]
pub struct WalBuilder {
    bytes: BytesMut,
    /// Checksum of the batches so far.
    crc: u32,
    first_seq: Seq,
    batches: u32,
}

impl Default for WalBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl WalBuilder {
    /// An empty group.
    pub fn new() -> Self {
        let bytes = BytesMut::zeroed(HEADER_BYTES);
        Self { bytes, crc: 0, first_seq: Seq::ZERO, batches: 0 }
    }

    /// Appends a batch; its seq must follow that of the batch before. Costs one copy of its bytes.
    pub fn push(&mut self, batch: &Batch) {
        if self.batches == 0 {
            self.first_seq = batch.seq;
        }
        let expected = self.first_seq.plus(u64::from(self.batches));
        assert_eq!(batch.seq, expected, "the seqs of a group have no gaps");
        assert!(!batch.ops.is_empty(), "a batch does something");

        let start = self.bytes.len();
        codec::put_u32(&mut self.bytes, 0);
        let body = self.bytes.len();
        for op in &batch.ops {
            put_op(&mut self.bytes, op);
        }
        assert!(self.bytes.len() <= GROUP_BYTES_MAX, "a group is sealed long before this");
        let length = u32::try_from(self.bytes.len() - body).expect("below GROUP_BYTES_MAX");
        let appended = self.bytes.get_mut(start..).expect("within what was just written");
        if let Some(prefix) = appended.first_chunk_mut() {
            *prefix = length.to_le_bytes();
        }
        self.crc = crc32c::crc32c_append(self.crc, appended);
        self.batches += 1;
    }

    /// Size of the object so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + codec::SEAL_BYTES
    }

    /// Batches so far.
    pub fn batches(&self) -> u32 {
        self.batches
    }

    /// Whether no batch was pushed.
    pub fn is_empty(&self) -> bool {
        self.batches == 0
    }

    /// The object's bytes. Costs the header alone; the group must not be empty.
    pub fn finish(mut self, stamp: &WalStamp) -> Bytes {
        let header = stamp.header(WalKind::Data, self.first_seq, self.batches).encode();
        let front = self.bytes.first_chunk_mut().expect("reserved by new");
        *front = header;
        let crc = crc32c::crc32c_append(self.crc, &header);
        codec::put_u32(&mut self.bytes, crc);
        self.bytes.freeze()
    }
}

fn put_op(out: &mut BytesMut, op: &Op) {
    let fits = (1..=KEY_BYTES_MAX).contains(&op.key.len()) && op.payload.bytes() <= VALUE_BYTES_MAX;
    assert!(fits, "keys and values are refused at the door");
    let kind = match &op.payload {
        Payload::Value(_) => 0,
        Payload::Tombstone => 1,
        Payload::Operand { op: MergeOp::Add, .. } => 2,
        Payload::Operand { op: MergeOp::Max, .. } => 3,
        Payload::Operand { op: MergeOp::Min, .. } => 4,
        Payload::Operand { op: MergeOp::Append, .. } => 5,
    };
    let flag = if op.expires_ms.is_some() { EXPIRES } else { 0 };
    out.extend_from_slice(&[kind | flag]);
    codec::put_slice(out, &op.key);
    if let Some(expires_ms) = op.expires_ms {
        codec::put_varint(out, expires_ms);
    }
    match &op.payload {
        Payload::Value(value) => codec::put_slice(out, value),
        Payload::Tombstone => {}
        Payload::Operand { written_ms, operand, .. } => {
            codec::put_varint(out, *written_ms);
            codec::put_slice(out, operand);
        }
    }
}

/// The operations of one batch, as slices of `object`, in which `operations` lies.
fn parse_batch(object: &Bytes, operations: &[u8]) -> Result<Vec<Op>, Corrupt> {
    let mut reader = Reader::new(operations);
    let mut ops = Vec::new();
    while !reader.is_empty() {
        let tag = reader.u8()?;
        let key = object.slice_ref(reader.slice(KEY_BYTES_MAX)?);
        law(!key.is_empty(), || "an empty key".into())?;
        let expires_ms = if tag & EXPIRES == 0 { None } else { Some(reader.varint()?) };
        let payload = match tag & !EXPIRES {
            0 => Payload::Value(object.slice_ref(reader.slice(VALUE_BYTES_MAX)?)),
            1 => Payload::Tombstone,
            kind => {
                let op = match kind {
                    2 => MergeOp::Add,
                    3 => MergeOp::Max,
                    4 => MergeOp::Min,
                    5 => MergeOp::Append,
                    _ => return Err(Corrupt::new(format!("operation of unknown kind {kind}"))),
                };
                let written_ms = reader.varint()?;
                Payload::Operand {
                    op,
                    written_ms,
                    operand: object.slice_ref(reader.slice(VALUE_BYTES_MAX)?),
                }
            }
        };
        ops.push(Op { key, payload, expires_ms });
    }
    law(!ops.is_empty(), || "a batch that does nothing".into())?;
    Ok(ops)
}

#[cfg(test)]
mod tests;
