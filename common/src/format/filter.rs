//! The filter of an SST: says of most absent keys that they are absent.
//!
//! A blocked Bloom filter: a key's hash picks one line of 512 bits and a few bits in it, so a probe
//! touches one cache line.
//!
//! **Layout**
//!
//! ```text
//! line 0 (64 bytes) | line 1 | … | probes u8       1 + 64 x lines bytes; no lines: "maybe" always
//!
//! line     (hash >> 32) x lines >> 32                 the high half, scaled
//! bit i    top 9 bits of (hash mod 2^32) x G^i        G = 9e3779b9, 0 <= i < probes
//!          bit b of a line: bit b mod 8 of byte b / 8
//! ```
//!
//! One key with the hash `00000000_00800001`, two probes, one line: the first product, `00800001`,
//! has bit 1 in its top 9 bits; the next product is `00800001 x 9e3779b9 = 7ab779b9`, bit 245. So
//! byte 0 is 02, byte 30 is 20, all others are 0, and the last, the probes, is 02.
//!
//! **Invariants**
//! - A key that was added is never denied.
//! - The hash is XXH3 (64 bits, no seed) of the key. It is a part of the format.
//!
//! At 10 bits a key (6 probes) about 1 % of absent keys pass; a test holds it under 1.3 %.
//!
//! **Source**: Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007);
//! the multiplicative probing within a line is that of `RocksDB`'s `FastLocalBloomImpl`.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use super::Corrupt;

const LINE_BYTES: usize = 64;
const LINE_WORDS: usize = LINE_BYTES / 8;
/// Most bits a key that a filter uses: beyond it the false positives stay as they are.
const BITS_PER_KEY_MAX: u32 = 40;
/// Most probes of a key.
const PROBES_MAX: u8 = 16;
/// 2^32 divided by the golden ratio: an odd number whose multiples spread well.
const GOLDEN: u32 = 0x9e37_79b9;

/// The one hash of a key, computed once per look-up and used for every filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    fn halves(self) -> (u64, u32) {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
        let low = self.0 as u32;
        (self.0 >> 32, low)
    }

    /// The line of this key among `lines`.
    fn line(self, lines: usize) -> usize {
        let (high, _) = self.halves();
        let line = (u128::from(high) * lines as u128) >> 32;
        usize::try_from(line).unwrap_or(usize::MAX)
    }

    /// The bits of this key in its line.
    fn bits(self, probes: u8) -> impl Iterator<Item = Bit> {
        let (_, mut product) = self.halves();
        (0..probes).map(move |_| {
            let bit = product >> (u32::BITS - 9);
            product = product.wrapping_mul(GOLDEN);
            Bit { word: bit as usize / 64, mask: 1 << (bit % 64) }
        })
    }
}

struct Bit {
    word: usize,
    mask: u64,
}

/// As large as a cache line, and aligned to one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Line([u64; LINE_WORDS]);

/// Gathers the hashes of an SST's keys, 8 bytes each, and makes its filter.
#[derive(Debug)]
pub struct FilterBuilder {
    hashes: Vec<KeyHash>,
    bits_per_key: u32,
}

impl FilterBuilder {
    /// A filter of `bits_per_key` bits (at most 40) for each distinct key; 0 makes one that denies
    /// nothing and costs one byte.
    pub fn new(bits_per_key: u32) -> Self {
        Self { hashes: Vec::new(), bits_per_key: bits_per_key.min(BITS_PER_KEY_MAX) }
    }

    /// Adds a key. Adding it again changes no answer but costs the space of another key.
    pub fn add(&mut self, hash: KeyHash) {
        if self.bits_per_key > 0 {
            self.hashes.push(hash);
        }
    }

    /// How many bytes `finish` would return now.
    pub fn bytes(&self) -> usize {
        self.lines() * LINE_BYTES + 1
    }

    fn lines(&self) -> usize {
        (self.hashes.len() * self.bits_per_key as usize).div_ceil(LINE_BYTES * 8)
    }

    /// The number of probes that lets the fewest absent keys pass. Lower than the ln 2 x bits of
    /// one large Bloom filter, since lines fill unevenly.
    fn probes(&self) -> u8 {
        u8::try_from(self.bits_per_key * 6 / 10).map_or(PROBES_MAX, |n| n.clamp(1, PROBES_MAX))
    }

    /// The filter of the keys that were added.
    pub fn finish(self) -> Bytes {
        let probes = self.probes();
        let mut lines = vec![Line::default(); self.lines()];
        for hash in &self.hashes {
            let index = hash.line(lines.len());
            if let Some(Line(words)) = lines.get_mut(index) {
                for bit in hash.bits(probes) {
                    if let Some(word) = words.get_mut(bit.word) {
                        *word |= bit.mask;
                    }
                }
            }
        }
        let mut out = BytesMut::with_capacity(self.bytes());
        for word in lines.iter().flat_map(|Line(words)| words) {
            out.put_u64_le(*word);
        }
        out.put_u8(probes);
        out.freeze()
    }
}

/// A filter in memory.
pub struct Filter {
    lines: Box<[Line]>,
    probes: u8,
}

impl Filter {
    /// Reads what [`FilterBuilder::finish`] wrote, into aligned memory.
    ///
    /// # Errors
    /// `Corrupt` where the length or the number of probes is impossible. The bits carry no checksum
    /// of their own: the metadata section of an SST does.
    pub fn parse(bytes: &[u8]) -> Result<Self, Corrupt> {
        let (&probes, bits) = bytes.split_last().ok_or_else(|| Corrupt::new("an empty filter"))?;
        let (lines, rest) = bits.as_chunks::<LINE_BYTES>();
        if !rest.is_empty() || !(1..=PROBES_MAX).contains(&probes) {
            return Err(Corrupt::new(format!(
                "a filter of {} bytes with {probes} probes",
                bytes.len()
            )));
        }
        let line = |bytes: &[u8; LINE_BYTES]| {
            let (words, _) = bytes.as_chunks::<8>();
            let mut line = Line::default();
            for (to, from) in line.0.iter_mut().zip(words) {
                *to = u64::from_le_bytes(*from);
            }
            line
        };
        Ok(Self { lines: lines.iter().map(line).collect(), probes })
    }

    /// False if the key was certainly not added. Touches one cache line.
    #[inline]
    pub fn may_contain(&self, hash: KeyHash) -> bool {
        // SUBTLE: a filter without lines stands for "not filtered", not for "no keys".
        let Some(Line(words)) = self.lines.get(hash.line(self.lines.len())) else { return true };
        hash.bits(self.probes)
            .all(|bit| words.get(bit.word).is_some_and(|word| word & bit.mask != 0))
    }

    /// Memory in use.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of::<Self>()
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("lines", &self.lines.len())
            .field("probes", &self.probes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(bits_per_key: u32, hashes: impl IntoIterator<Item = KeyHash>) -> Filter {
        let mut builder = FilterBuilder::new(bits_per_key);
        hashes.into_iter().for_each(|hash| builder.add(hash));
        let expected = builder.bytes();
        let bytes = builder.finish();
        assert_eq!(bytes.len(), expected);
        Filter::parse(&bytes).unwrap()
    }

    fn key_hash(n: u64) -> KeyHash {
        KeyHash::of(format!("user/{n:08}").as_bytes())
    }

    #[test]
    fn bytes_are_golden() {
        // The check value of XXH3 for no bytes, and one of our own.
        assert_eq!(KeyHash::of(b"").0, 0x2d06_8005_38d3_94c2);
        assert_eq!(KeyHash::of(b"cairn").0, 0x0019_2f35_82df_1eee);
        let mut builder = FilterBuilder::new(4);
        builder.add(KeyHash(0x0080_0001));
        let bytes = builder.finish();
        let set: Vec<_> = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).collect();
        assert_eq!(set, [(0, &0x02), (30, &0x20), (64, &2)]);
        assert_eq!(bytes.len(), 65);
    }

    #[test]
    fn few_absent_keys_pass() {
        let keys = 20_000;
        for (bits_per_key, pass_max) in [(5, 0.12), (10, 0.013), (16, 0.002)] {
            let filter = filter(bits_per_key, (0..keys).map(key_hash));
            let passed = (keys..11 * keys).filter(|n| filter.may_contain(key_hash(*n))).count();
            let share = f64::from(u32::try_from(passed).unwrap()) / 200_000.0;
            assert!(share < pass_max, "{share} pass at {bits_per_key} bits a key");
            assert!(share > pass_max / 10.0, "{share} is too good to be true");
        }
    }

    #[test]
    fn no_bits_deny_nothing() {
        let filter = filter(0, (0..100).map(key_hash));
        assert!((0..1000).all(|n| filter.may_contain(key_hash(n))));
    }

    #[test]
    fn impossible_filters_are_corrupt() {
        for wrong in [&[][..], &[0], &[17], &[1; 64], &[1; 66]] {
            assert!(Filter::parse(wrong).is_err(), "{} bytes", wrong.len());
        }
    }

    proptest! {
        #[test]
        fn no_added_key_is_denied(
            hashes in proptest::collection::vec(any::<u64>().prop_map(KeyHash), 1..300),
            bits_per_key in 0u32..60,
        ) {
            let filter = filter(bits_per_key, hashes.iter().copied());
            for hash in hashes {
                prop_assert!(filter.may_contain(hash));
            }
        }

        #[test]
        fn any_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            hash: u64,
        ) {
            if let Ok(filter) = Filter::parse(&bytes) {
                filter.may_contain(KeyHash(hash));
                prop_assert!(filter.bytes() >= bytes.len());
            }
        }
    }
}
