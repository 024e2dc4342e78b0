//! An SST: the entries of a flush, or of a stretch of a sorted run, with what finds them.
//!
//! **Layout**
//!
//! ```text
//! SST          head (28 bytes, kind 2) | own id | seal | block … block | metadata
//! own id       role u8 (0 writer, 1 compactor) | epoch u32 | uuid
//! metadata     filter | index | properties | footer
//! filter       see filter.rs
//! index        blocks u32 | prefix slice | per block: more varint, stored bytes varint
//!              | per block: `more` bytes
//! properties   head and own id again | metadata offset u64 | decoded bytes u64 | entries u64
//!              | tombstones u64 | operands u64 | first seq u64 | last seq u64
//!              | earliest expiry u64 | latest expiry u64 | first key slice | last key slice
//! footer       filter bytes u64 | index bytes u64 | properties bytes u64 | seal of the metadata
//! ```
//!
//! Integers, slices, head and seal are those of codec.rs, blocks those of block. Blocks touch one
//! another, so their sizes give their places. The separator of a block is `prefix` and its `more`
//! bytes: at or above the block's last key, below the next block's first key, and as short as that
//! allows; the last separator is the last key. Where nothing expires the earliest expiry is 2^64-1
//! and the latest 0.
//!
//! The SST with the one block that block/mod.rs shows ("car", "cart"), 10 bits a key:
//!
//! ```text
//!   0  89 43 41 49 52 4e 0d 0a 01 00 02 00 …16 bytes     head
//!  28  00 02 00 00 00 …16 bytes                          own id: writer, epoch 2
//!  49  …4 bytes                                          seal
//!  53  00 1e 00 00 00 …30 bytes …4 bytes                 the block: raw, 30 bytes, crc
//!  92  …64 bytes 06                                      filter: one line, six probes
//! 157  01 00 00 00  04 63 61 72 74  00 27                index: one block; "cart"; 0, 39 bytes
//! 168  head, own id; 5c 00 … , 1e 00 …, 02 00 …, …       properties: 49 + 9 x 8 + 4 + 5 bytes
//! 298  41 00 …  0b 00 …  82 00 …  …4 bytes               footer: 65, 11, 130; seal
//! ```
//!
//! **Invariants**
//! - Entries ascend by key, then descend by seq; all versions of one key lie in one block.
//! - Every byte is under a checksum that also knows the SST: a block's covers uuid and place, the
//!   metadata holds database and id. So damage, truncation, and bytes from another place, SST or
//!   database are found by whoever reads them.
//! - [`SstInfo`](super::manifest::SstInfo) and metadata say the same, or the metadata is refused.

mod builder;
mod index;
mod keys;
mod meta;
mod properties;
#[cfg(test)]
mod tests;
mod verify;

use bytes::BufMut;

pub use self::builder::SstBuilder;
pub use self::meta::SstMeta;
pub use self::verify::verify;
use super::Corrupt;
pub use super::block::Compression;
use super::codec::{self, Kind, Reader};
use super::path::OutputId;
use crate::types::{DatabaseId, Role};

/// Bytes in front of the first block.
const HEADER_BYTES: usize = IDENTITY_BYTES + codec::SEAL_BYTES;
/// Head and own id.
const IDENTITY_BYTES: usize = codec::HEAD_BYTES + 21;
/// Three lengths and the seal.
const FOOTER_BYTES: usize = 3 * 8 + codec::SEAL_BYTES;

/// How an SST is made. Whatever is chosen, every SST can be read without knowing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SstOptions {
    /// A block is ended before it would grow beyond this size, before compression. Default 16 KiB:
    /// one read fetches it, and it still compresses. Larger means fewer index entries and more
    /// bytes read for one key. (Versions of one key, or one large value, may make a larger block.)
    pub block_bytes: usize,
    /// How blocks are stored. Default LZ4: it decodes faster than any store delivers.
    pub compression: Compression,
    /// Bits of filter for each key. Default 10: one absent key in a hundred costs a block. 0 makes
    /// no filter.
    pub filter_bits_per_key: u32,
}

impl Default for SstOptions {
    fn default() -> Self {
        Self { block_bytes: 16 * 1024, compression: Compression::Lz4, filter_bits_per_key: 10 }
    }
}

fn put_identity(out: &mut impl BufMut, database: DatabaseId, id: &OutputId) {
    codec::put_head(out, Kind::Sst, database);
    out.put_u8(match id.role {
        Role::Writer => 0,
        Role::Compactor => 1,
    });
    codec::put_u32(out, id.epoch.0);
    codec::put_uuid(out, id.uuid);
}

/// Reads past head and own id, which must be these.
fn expect_identity(
    reader: &mut Reader<'_>,
    database: DatabaseId,
    id: &OutputId,
) -> Result<(), Corrupt> {
    reader.clone().head(Kind::Sst, database)?;
    let mut expected = Vec::with_capacity(IDENTITY_BYTES);
    put_identity(&mut expected, database, id);
    if reader.take(IDENTITY_BYTES)? == expected {
        return Ok(());
    }
    Err(Corrupt::new(format!("not of the SST {id}")))
}
