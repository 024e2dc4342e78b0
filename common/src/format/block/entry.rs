//! One entry of a block: its head, and where its key and its value lie.

use bytes::BufMut;

use super::super::Corrupt;
use super::super::codec::{self, Reader};
use crate::types::{EntryRef, MergeOp, PayloadRef, Seq};

const KIND_BITS: u8 = 0b11;
const KIND_VALUE: u8 = 0;
const KIND_TOMBSTONE: u8 = 1;
const KIND_OPERAND: u8 = 2;
const EXPIRES: u8 = 1 << 2;
const OP_SHIFT: u32 = 3;
const OP_BITS: u8 = 0b11 << OP_SHIFT;

/// What stands in front of an entry's bytes, with offsets into the decoded block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Bytes of the key that are those of the key before.
    pub(super) shared: usize,
    /// The entry's seq.
    pub(super) seq: Seq,
    kind: Kind,
    expires_ms: Option<u64>,
    more_at: usize,
    value_at: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Value,
    Tombstone,
    Operand { op: MergeOp, written_ms: u64 },
}

impl Head {
    /// Reads the entry at `at`; everything that it names lies within `entries`.
    ///
    /// # Errors
    /// `Corrupt` where no encoder wrote this.
    #[inline]
    pub(super) fn read(entries: &[u8], at: usize, base: Seq) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(entries.get(at..).unwrap_or_default());
        let tag = reader.u8()?;
        let shared = reader.len(entries.len())?;
        let more_bytes = reader.len(entries.len())?;
        let seq = seq_from(reader.varint()?, base)?;
        let value_bytes = match tag & KIND_BITS {
            KIND_TOMBSTONE => 0,
            _ => reader.len(entries.len())?,
        };
        let expires_ms = if tag & EXPIRES == 0 { None } else { Some(reader.varint()?) };
        let kind = match (tag & KIND_BITS, tag & !(KIND_BITS | EXPIRES)) {
            (KIND_VALUE, 0) => Kind::Value,
            (KIND_TOMBSTONE, 0) => Kind::Tombstone,
            (KIND_OPERAND, op) if op & !OP_BITS == 0 => {
                Kind::Operand { op: op_from(op >> OP_SHIFT), written_ms: reader.varint()? }
            }
            _ => return Err(Corrupt::new(format!("unknown tag {tag:#04x}"))),
        };
        let more_at = at + reader.position();
        reader.take(more_bytes)?;
        reader.take(value_bytes)?;
        let value_at = more_at + more_bytes;
        Ok(Self { shared, seq, kind, expires_ms, more_at, value_at, end: value_at + value_bytes })
    }

    /// Where the next entry begins.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// The bytes of the key that are its own.
    #[inline]
    pub(super) fn more<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        data.get(self.more_at..self.value_at).unwrap_or_default()
    }

    /// The value or operand; empty for a tombstone.
    #[inline]
    pub(super) fn value<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        data.get(self.value_at..self.end).unwrap_or_default()
    }

    /// The entry, whose whole key is given.
    #[inline]
    pub(super) fn entry<'a>(&self, key: &'a [u8], data: &'a [u8]) -> EntryRef<'a> {
        let value = self.value(data);
        let payload = match self.kind {
            Kind::Value => PayloadRef::Value(value),
            Kind::Tombstone => PayloadRef::Tombstone,
            Kind::Operand { op, written_ms } => {
                PayloadRef::Operand { op, written_ms, operand: value }
            }
        };
        EntryRef { key, seq: self.seq, payload, expires_ms: self.expires_ms }
    }
}

/// Appends an entry whose key shares its first `shared` bytes with the key before.
pub(super) fn put(out: &mut Vec<u8>, entry: EntryRef<'_>, shared: usize, base: Seq) {
    let more = entry.key.get(shared..).unwrap_or_default();
    let (kind, value, written_ms) = match entry.payload {
        PayloadRef::Value(value) => (KIND_VALUE, Some(value), None),
        PayloadRef::Tombstone => (KIND_TOMBSTONE, None, None),
        PayloadRef::Operand { op, written_ms, operand } => {
            (KIND_OPERAND | op_to(op) << OP_SHIFT, Some(operand), Some(written_ms))
        }
    };
    out.put_u8(if entry.expires_ms.is_some() { kind | EXPIRES } else { kind });
    codec::put_len(out, shared);
    codec::put_len(out, more.len());
    codec::put_varint(out, seq_to(entry.seq, base));
    if let Some(value) = value {
        codec::put_len(out, value.len());
    }
    if let Some(expires_ms) = entry.expires_ms {
        codec::put_varint(out, expires_ms);
    }
    if let Some(written_ms) = written_ms {
        codec::put_varint(out, written_ms);
    }
    out.extend_from_slice(more);
    out.extend_from_slice(value.unwrap_or_default());
}

/// The most bytes that [`put`] appends.
pub(super) fn bytes_max(entry: EntryRef<'_>) -> usize {
    let value_bytes = match entry.payload {
        PayloadRef::Value(value) | PayloadRef::Operand { operand: value, .. } => value.len(),
        PayloadRef::Tombstone => 0,
    };
    1 + 6 * codec::VARINT_BYTES_MAX + entry.key.len() + value_bytes
}

/// The distance from the base, with the sign in the lowest bit.
fn seq_to(seq: Seq, base: Seq) -> u64 {
    if seq >= base { (seq.0 - base.0) << 1 } else { ((base.0 - seq.0) << 1) - 1 }
}

#[inline]
fn seq_from(zigzag: u64, base: Seq) -> Result<Seq, Corrupt> {
    let distance = zigzag >> 1;
    let seq = if zigzag & 1 == 0 {
        base.0.checked_add(distance)
    } else {
        base.0.checked_sub(distance + 1)
    };
    seq.map(Seq)
        .filter(|seq| *seq <= Seq::MAX)
        .ok_or_else(|| Corrupt::new(format!("a seq {zigzag} away from {base}")))
}

fn op_to(op: MergeOp) -> u8 {
    match op {
        MergeOp::Add => 0,
        MergeOp::Max => 1,
        MergeOp::Min => 2,
        MergeOp::Append => 3,
    }
}

fn op_from(op: u8) -> MergeOp {
    match op & 0b11 {
        0 => MergeOp::Add,
        1 => MergeOp::Max,
        2 => MergeOp::Min,
        _ => MergeOp::Append,
    }
}
