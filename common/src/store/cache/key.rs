//! What a cached block is called: database, SST and offset, so a directory may serve several
//! databases one after the other, and its entries outlive the process.

use std::hash::{BuildHasher, Hash, Hasher};
use std::io::{Read, Write};

use foyer::Code;
use uuid::Uuid;

use crate::format::path::OutputId;
use crate::types::DatabaseId;

/// The name of one block, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockKey {
    /// The database in which the SST lives.
    pub database: u128,
    /// The uuid of the SST.
    pub sst: u128,
    /// Where the block begins in the SST.
    pub offset: u64,
}

impl BlockKey {
    const BYTES: usize = 40;

    /// The block at `offset` of this SST.
    pub fn new(database: DatabaseId, sst: &OutputId, offset: u64) -> Self {
        Self { database: database.as_u128(), sst: sst.uuid.as_u128(), offset }
    }

    /// A hash that is the same in every process: the disk tier is indexed by it.
    pub(super) fn mix(&self) -> u64 {
        // Uuids are random already, the offset is not; the finalizer of MurmurHash3 spreads it.
        let fold = |id: u128| {
            let (high, low) = Uuid::from_u128(id).as_u64_pair();
            high.rotate_left(32) ^ low
        };
        let mut hash = fold(self.sst) ^ fold(self.database).rotate_left(17);
        hash ^= self.offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

impl Hash for BlockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mix());
    }
}

impl Code for BlockKey {
    fn encode(&self, writer: &mut impl Write) -> foyer::Result<()> {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.database.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.sst.to_le_bytes());
        bytes[32..].copy_from_slice(&self.offset.to_le_bytes());
        writer.write_all(&bytes).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> foyer::Result<Self> {
        let (mut database, mut sst, mut offset) = ([0; 16], [0; 16], [0; 8]);
        reader.read_exact(&mut database).map_err(foyer::Error::io_error)?;
        reader.read_exact(&mut sst).map_err(foyer::Error::io_error)?;
        reader.read_exact(&mut offset).map_err(foyer::Error::io_error)?;
        Ok(Self {
            database: u128::from_le_bytes(database),
            sst: u128::from_le_bytes(sst),
            offset: u64::from_le_bytes(offset),
        })
    }

    fn estimated_size(&self) -> usize {
        Self::BYTES
    }
}

/// Passes on the hash that the key computes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyHashBuilder;

/// See [`KeyHashBuilder`].
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl BuildHasher for KeyHashBuilder {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher::default()
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_stable_and_spreads_neighbours() {
        let key = BlockKey { database: 1, sst: 2, offset: 0 };
        assert_eq!(key.mix(), BlockKey { database: 1, sst: 2, offset: 0 }.mix());
        let low_bits: std::collections::BTreeSet<_> =
            (0..64).map(|block| BlockKey { offset: block * 4096, ..key }.mix() % 1024).collect();
        assert!(low_bits.len() > 55, "{} of 64 differ in their low bits", low_bits.len());
    }

    #[test]
    fn code_round_trips() {
        let key = BlockKey { database: u128::MAX - 7, sst: 3 << 90, offset: 0x0102_0304_0506 };
        let mut bytes = Vec::new();
        key.encode(&mut bytes).unwrap();
        assert_eq!(bytes.len(), key.estimated_size());
        assert_eq!(BlockKey::decode(&mut &*bytes).unwrap(), key);
    }
}
