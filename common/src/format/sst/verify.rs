//! Reads an SST from end to end: for checks and repair, and what tests hold the formats to.

use super::super::Corrupt;
use super::super::block::{Block, BlockCursor};
use super::super::codec::{self, Reader};
use super::super::filter::KeyHash;
use super::super::manifest::SstInfo;
use super::properties::Properties;
use super::{HEADER_BYTES, SstMeta, expect_identity};
use crate::types::DatabaseId;

/// Proves that `object` is the whole SST of this name and database, byte for byte what a builder
/// wrote: every checksum, every entry's place, filter, index, counts and bounds. `database` is the
/// one that it was made for.
///
/// # Errors
/// `Corrupt` with the first thing that is wrong.
pub fn verify(object: &bytes::Bytes, info: &SstInfo, database: DatabaseId) -> Result<(), Corrupt> {
    let header = object.get(..HEADER_BYTES).ok_or_else(|| Corrupt::new("no header"))?;
    expect_identity(&mut Reader::new(codec::unseal(header)?), database, &info.id)?;
    let meta_at = usize::try_from(info.meta_offset).unwrap_or(usize::MAX);
    if object.len() < meta_at {
        return Err(Corrupt::new("ends before its metadata"));
    }
    let meta = SstMeta::parse(object.slice(meta_at..), info, database)?;

    let mut counted = Properties::new();
    counted.meta_offset = info.meta_offset;
    for index in 0..meta.block_count() {
        let range = meta.block_range(index);
        let bytes = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let stored = object
            .get(bytes(range.start)..bytes(range.end))
            .ok_or_else(|| Corrupt::new("a block beyond the end"))?;
        let block = Block::parse(stored, &info.id, range.start)?;
        counted.decoded_bytes += block.decoded().len() as u64;
        count(block, index, &meta, &mut counted)?;
    }
    if counted == meta.properties {
        return Ok(());
    }
    Err(Corrupt::new("the properties are not those of the entries"))
}

/// Counts a block's entries, each of which must be where index and filter say.
fn count(
    block: Block,
    index: usize,
    meta: &SstMeta,
    counted: &mut Properties,
) -> Result<(), Corrupt> {
    let above = index.checked_sub(1).map(|before| meta.separator(before)).unwrap_or_default();
    let up_to = meta.separator(index);
    let mut cursor = BlockCursor::new(block);
    cursor.first();
    while let Some(entry) = cursor.entry() {
        if *entry.key <= *above || *entry.key > *up_to {
            return Err(Corrupt::new(format!("block {index} holds a key of another block")));
        }
        if !meta.may_contain(KeyHash::of(entry.key)) {
            return Err(Corrupt::new(format!("the filter denies a key of block {index}")));
        }
        counted.add(entry);
        counted.last_key.clear();
        counted.last_key.extend_from_slice(entry.key);
        cursor.next();
    }
    Ok(())
}
