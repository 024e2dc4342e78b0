//! A block: some neighbouring entries of an SST, the unit that is checked, compressed and cached.
//!
//! **Layout**
//!
//! ```text
//! stored    form u8 (0 raw, 1 lz4) | decoded bytes u32 | payload | crc u32
//!           crc: CRC-32C of sst uuid, offset of the block in the SST (u64), and all before it
//! decoded   entry … entry | restart u32 x n | base seq u64 | n u32
//! entry     tag u8 | shared varint | more varint | seq varint
//!           | value bytes varint (not tombstones) | expires_ms varint (if it expires)
//!           | written_ms varint (operands)
//!           | `more` bytes of the key | value or operand
//! tag       bits 0-1: 0 value, 1 tombstone, 2 operand (3 is kept for range tombstones)
//!           bit 2: expires   bits 3-4, operands: 0 add, 1 max, 2 min, 3 append   bits 5-7: 0
//! ```
//!
//! A key is the first `shared` bytes of the key before it and `more` bytes of its own. At a restart
//! (every 8th entry) `shared` is 0, so that a search can begin there; `restart` is its offset.
//! `seq` is the zigzag of its distance from the base, which is the seq of the first entry.
//!
//! The value "x" of "car" at seq 7, and a tombstone of "cart" at seq 5, decoded:
//!
//! ```text
//! 00 00 03 00 01 63 61 72 78       value, shares 0, 3 more, seq 7 + 0, 1 byte; "car", "x"
//! 01 03 01 03 74                   tombstone, shares 3, 1 more, seq 7 - 2; "t"
//! 00 00 00 00                      the only restart: the first entry
//! 07 00 00 00 00 00 00 00          base seq 7
//! 01 00 00 00                      one restart
//! ```
//!
//! **Invariants**
//! - Entries ascend by key, then descend by seq. All versions of one key lie in one block.
//! - A block holds at least one entry, and its first entry is a restart.
//! - A [`Block`] in memory has been walked once from end to end, so cursors and look-ups cannot
//!   fail: whoever holds one holds proof that its bytes are whole and in order.
//!
//! **Source**: prefix compression with restarts is `LevelDB`'s `doc/table_format.md`.

mod builder;
mod cursor;
mod entry;
#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::ops::ControlFlow;

use bytes::Bytes;

pub use self::builder::{BlockBuilder, Compression};
pub use self::cursor::BlockCursor;
use self::entry::Head;
use super::Corrupt;
use super::codec::{self, Reader};
use super::path::OutputId;
use crate::limits::KEY_BYTES_MAX;
use crate::types::{EntryRef, Seq};

/// Largest decoded block. One key's versions share a block, so this bounds them together: it is
/// room for tens of the largest values, and far below what a `u32` offset reaches.
pub const BLOCK_BYTES_MAX: usize = 1 << 30;

/// Entries from one restart to the next: a look-up walks at most this many.
const RESTART_INTERVAL: u32 = 8;
/// `form` of a block that is stored as it is.
const FORM_RAW: u8 = 0;
/// `form` of a block that is stored as an LZ4 block.
const FORM_LZ4: u8 = 1;
/// No LZ4 block decodes to more than this many times its size.
const LZ4_RATIO_MAX: usize = 255;
/// Base seq and number of restarts.
const TRAILER_BYTES: usize = 12;
const RESTART_BYTES: usize = 4;

/// A block in memory: verified, decompressed, walked. Cloning shares the bytes.
#[derive(Clone)]
pub struct Block {
    data: Bytes,
    /// Where the entries end and the restarts begin.
    entries_end: usize,
    restarts: usize,
    base: Seq,
}

impl Block {
    /// Reads the block that is stored at `offset` of an SST: checks, decompresses and walks it.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are not those that were written there: damaged, cut off, from
    /// another place or another SST.
    pub fn parse(stored: &[u8], sst: &OutputId, offset: u64) -> Result<Self, Corrupt> {
        let wrong = |what: &str| Corrupt::new(format!("block at {offset}: {what}"));
        let body = checked_body(stored, sst, offset)?;
        let mut reader = Reader::new(body);
        let form = reader.u8()?;
        let decoded_bytes = reader.u32()? as usize;
        let payload = reader.rest();
        let decoded = match form {
            FORM_RAW if payload.len() == decoded_bytes => payload.to_vec(),
            FORM_LZ4 => decompress(payload, decoded_bytes)
                .ok_or_else(|| wrong("does not decompress to what it declares"))?,
            _ => return Err(wrong("impossible form or length")),
        };
        // An owner, not a vector: a vector would be moved to the heap again by the first slice.
        Self::from_decoded(Bytes::from_owner(decoded)).map_err(|corrupt| wrong(&corrupt.0))
    }

    /// Only judges the checksum of the block that is stored at `offset` of an SST.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are not those that were written there.
    pub fn check(stored: &[u8], sst: &OutputId, offset: u64) -> Result<(), Corrupt> {
        checked_body(stored, sst, offset).map(drop)
    }

    /// Takes decoded bytes, such as [`decoded`](Self::decoded) gave, and walks them. Whoever kept
    /// them vouches for them: they have no checksum.
    ///
    /// # Errors
    /// `Corrupt` where they are no block.
    pub fn from_decoded(data: Bytes) -> Result<Self, Corrupt> {
        let trailer_at = data.len().checked_sub(TRAILER_BYTES);
        let (body, trailer) = trailer_at
            .and_then(|at| data.split_at_checked(at))
            .ok_or_else(|| Corrupt::new("too short for a block"))?;
        let mut trailer = Reader::new(trailer);
        let base = Seq(trailer.u64()?);
        let restarts = trailer.u32()? as usize;
        let entries_end = restarts
            .checked_mul(RESTART_BYTES)
            .and_then(|bytes| body.len().checked_sub(bytes))
            .ok_or_else(|| Corrupt::new("more restarts than bytes"))?;
        if restarts == 0 || base > Seq::MAX || data.len() > BLOCK_BYTES_MAX {
            return Err(Corrupt::new("impossible trailer"));
        }
        let block = Self { data, entries_end, restarts, base };
        block.walk()?;
        Ok(block)
    }

    /// What [`from_decoded`](Self::from_decoded) takes; shared, not copied.
    pub fn decoded(&self) -> &Bytes {
        &self.data
    }

    /// Memory in use.
    pub fn bytes(&self) -> usize {
        self.data.len() + size_of::<Self>()
    }

    /// A part of this block that came out of an [`EntryRef`] of it, shared and not copied. It keeps
    /// the whole block in memory.
    ///
    /// # Panics
    /// Where `part` is not a part of this block.
    pub fn share(&self, part: &[u8]) -> Bytes {
        self.data.slice_ref(part)
    }

    /// Visits the versions of one key, newest first, until `visit` breaks. Allocates nothing.
    pub fn find<'a, B>(
        &'a self,
        key: &'a [u8],
        mut visit: impl FnMut(EntryRef<'a>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut at = self.restart(self.restart_before(key));
        // How much of `key` the entry before has: that entry is below `key`, or is its newer
        // version. So an entry that shares more than this with it is below `key` as well.
        let mut matched = 0;
        while at < self.entries_end {
            let head = self.head(at);
            at = head.end();
            if head.shared > matched {
                continue;
            }
            let more = head.more(&self.data);
            let rest = key.get(head.shared..).unwrap_or_default();
            let same = codec::common_prefix(more, rest);
            match (more.get(same), rest.get(same)) {
                (None, None) => visit(head.entry(key, &self.data))?,
                (found, sought) if found > sought => break,
                _ => {}
            }
            matched = head.shared + same;
        }
        ControlFlow::Continue(())
    }

    /// The last restart whose key is below `key`, or the first restart.
    fn restart_before(&self, key: &[u8]) -> usize {
        let (mut below, mut not_below) = (0, self.restarts);
        while not_below - below > 1 {
            let middle = below.midpoint(not_below);
            if self.head(self.restart(middle)).more(&self.data) < key {
                below = middle;
            } else {
                not_below = middle;
            }
        }
        below
    }

    /// The last restart in front of the entry at `at`, which is not the first.
    fn restart_in_front_of(&self, at: usize) -> usize {
        let (mut in_front, mut behind) = (0, self.restarts);
        while behind - in_front > 1 {
            let middle = in_front.midpoint(behind);
            if self.restart(middle) < at { in_front = middle } else { behind = middle }
        }
        in_front
    }

    /// The offset of a restart.
    fn restart(&self, index: usize) -> usize {
        let at = self.entries_end + index * RESTART_BYTES;
        let chunk = self.data.get(at..).and_then(<[u8]>::first_chunk);
        u32::from_le_bytes(*chunk.expect("the walk has seen every restart")) as usize
    }

    /// The head of the entry at an offset that the walk has passed.
    #[inline]
    fn head(&self, at: usize) -> Head {
        self.read_head(at).expect("the walk has read every entry")
    }

    #[inline]
    fn read_head(&self, at: usize) -> Result<Head, Corrupt> {
        let entries = self.data.get(..self.entries_end).unwrap_or_default();
        Head::read(entries, at, self.base)
    }

    /// Reads every entry once, so that nobody after it can fail.
    fn walk(&self) -> Result<(), Corrupt> {
        let mut key = Vec::new();
        let mut newer = Seq::MAX;
        let (mut at, mut restarts_seen) = (0, 0);
        while at < self.entries_end {
            let head = self.read_head(at)?;
            if restarts_seen < self.restarts && self.restart(restarts_seen) == at {
                restarts_seen += 1;
                if head.shared != 0 {
                    return Err(Corrupt::new(format!("the restart at {at} shares its key")));
                }
            }
            let more = head.more(&self.data);
            let tail = key
                .get(head.shared..)
                .ok_or_else(|| Corrupt::new(format!("the entry at {at} shares too much")))?;
            let in_order = more > tail || more == tail && at > 0 && head.seq < newer;
            if !in_order || !(1..=KEY_BYTES_MAX).contains(&(head.shared + more.len())) {
                return Err(Corrupt::new(format!("the entry at {at} is out of order")));
            }
            key.truncate(head.shared);
            key.extend_from_slice(more);
            newer = head.seq;
            at = head.end();
            // INVARIANT: the first entry is a restart.
            if restarts_seen == 0 {
                return Err(Corrupt::new("the first entry is no restart"));
            }
        }
        if restarts_seen == self.restarts {
            return Ok(());
        }
        Err(Corrupt::new("a restart points at no entry"))
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("bytes", &self.data.len())
            .field("restarts", &self.restarts)
            .finish_non_exhaustive()
    }
}

/// A stored block without its checksum, which is right.
fn checked_body<'a>(stored: &'a [u8], sst: &OutputId, offset: u64) -> Result<&'a [u8], Corrupt> {
    let wrong = |what: &str| Corrupt::new(format!("block at {offset}: {what}"));
    let (body, crc) = stored.split_last_chunk().ok_or_else(|| wrong("ends too early"))?;
    if checksum(body, sst, offset) == u32::from_le_bytes(*crc) {
        Ok(body)
    } else {
        Err(wrong("checksum mismatch"))
    }
}

/// The checksum of a stored block: of its bytes and of its place, so that a sound block in a wrong
/// place is found as well.
fn checksum(body: &[u8], sst: &OutputId, offset: u64) -> u32 {
    codec::checksum(&[sst.uuid.as_bytes(), &offset.to_le_bytes(), body])
}

/// Exactly `decoded_bytes` bytes; `None` where the payload does not hold that.
fn decompress(payload: &[u8], decoded_bytes: usize) -> Option<Vec<u8>> {
    let possible = payload.len().saturating_mul(LZ4_RATIO_MAX).min(BLOCK_BYTES_MAX);
    if decoded_bytes > possible {
        return None;
    }
    let mut decoded = vec![0; decoded_bytes];
    let written = lz4_flex::block::decompress_into(payload, &mut decoded).ok()?;
    (written == decoded_bytes).then_some(decoded)
}
