//! The small change of every binary format: integers, varints, checksums, the head of an object.
//!
//! **Layout**
//!
//! ```text
//! u16 u32 u64    little-endian
//! uuid           its 16 bytes in the order of its text
//! varint         u64 in LEB128: 7 bits a byte, lowest first, the high bit says "more follows"
//! slice          varint count, then that many bytes
//! head           28 bytes: magic 89 43 41 49 52 4e 0d 0a | format u16 | kind u8 | 0
//!                | database uuid
//! seal           CRC-32C (u32) of everything before it, at the very end
//!
//! varint    1 = 01        300 = ac 02        2^64-1 = ff ff ff ff ff ff ff ff ff 01
//! slice  "ab" = 02 61 62
//! ```
//!
//! **Invariants**
//! - Every number has one encoding: a varint with needless bytes is corrupt. So equal values have
//!   equal bytes, and a parser that accepts bytes accepts only what an encoder writes.
//! - A [`Reader`] never panics and never allocates, whatever it is fed, but for its errors.
//!
//! **Source**: the magic follows PNG's (a byte above 7f and a line end, so that a transfer as
//! "text" is seen); CRC-32C is RFC 3720 appendix B.4.

use bytes::BufMut;
use uuid::Uuid;

use super::{Corrupt, FORMAT};
use crate::types::DatabaseId;

/// The first bytes of every binary object.
pub const MAGIC: [u8; 8] = *b"\x89CAIRN\r\n";
/// Bytes of [`put_head`].
pub const HEAD_BYTES: usize = 28;
/// Bytes of [`seal`].
pub const SEAL_BYTES: usize = 4;
/// The longest varint.
pub const VARINT_BYTES_MAX: usize = 10;

/// What a binary object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One group commit, or a fence.
    Wal = 1,
    /// A sorted string table.
    Sst = 2,
}

/// Appends a varint.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(low_byte(value) | 0x80);
        value >>= 7;
    }
    out.put_u8(low_byte(value));
}

/// Appends a length as a varint.
pub fn put_len(out: &mut impl BufMut, len: usize) {
    put_varint(out, len as u64);
}

/// How many bytes [`put_varint`] appends.
pub fn varint_bytes(value: u64) -> usize {
    let bits = u64::BITS - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Appends 2 bytes.
pub fn put_u16(out: &mut impl BufMut, value: u16) {
    out.put_slice(&value.to_le_bytes());
}

/// Appends 4 bytes.
pub fn put_u32(out: &mut impl BufMut, value: u32) {
    out.put_slice(&value.to_le_bytes());
}

/// Appends 8 bytes.
pub fn put_u64(out: &mut impl BufMut, value: u64) {
    out.put_slice(&value.to_le_bytes());
}

/// Appends 16 bytes.
pub fn put_uuid(out: &mut impl BufMut, uuid: Uuid) {
    out.put_slice(uuid.as_bytes());
}

/// Appends the length of `bytes` as a varint, then `bytes`.
pub fn put_slice(out: &mut impl BufMut, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put_slice(bytes);
}

/// Appends the head of an object: magic, format, kind and database.
pub fn put_head(out: &mut impl BufMut, kind: Kind, database: DatabaseId) {
    out.put_slice(&MAGIC);
    put_u16(out, u16::try_from(FORMAT).expect("fewer formats than 2^16"));
    out.put_u8(kind as u8);
    out.put_u8(0);
    put_uuid(out, database);
}

/// The CRC-32C of the parts, as of one string of bytes.
pub fn checksum(parts: &[&[u8]]) -> u32 {
    parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part))
}

/// Appends the checksum of everything that `out` holds.
pub fn seal(out: &mut (impl BufMut + AsRef<[u8]>)) {
    let crc = checksum(&[out.as_ref()]);
    put_u32(out, crc);
}

/// What was sealed.
///
/// # Errors
/// `Corrupt` where the checksum is missing or another.
pub fn unseal(sealed: &[u8]) -> Result<&[u8], Corrupt> {
    let (body, crc) =
        sealed.split_last_chunk().ok_or_else(|| Corrupt::new("too short for its checksum"))?;
    if checksum(&[body]) != u32::from_le_bytes(*crc) {
        return Err(Corrupt::new("checksum mismatch"));
    }
    Ok(body)
}

/// How many leading bytes `a` and `b` have in common.
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let (words_a, _) = a.as_chunks::<8>();
    let (words_b, _) = b.as_chunks::<8>();
    let mut same = 0;
    for (a, b) in words_a.iter().zip(words_b) {
        let differing = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differing != 0 {
            return same + differing.trailing_zeros() as usize / 8;
        }
        same += 8;
    }
    let tails = a.iter().zip(b).skip(same);
    same + tails.take_while(|(a, b)| a == b).count()
}

/// Takes values off the front of a byte string; whatever is missing or malformed is [`Corrupt`].
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, total: bytes.len() }
    }

    /// Bytes not taken yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Bytes taken so far.
    pub fn position(&self) -> usize {
        self.total - self.rest.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// `Corrupt` where bytes are left.
    pub fn finish(self) -> Result<(), Corrupt> {
        if self.is_empty() {
            return Ok(());
        }
        Err(Corrupt::new(format!("{} bytes too many", self.rest.len())))
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// `Corrupt` where fewer are left; likewise in all that follow.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// `Corrupt` where fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    ///
    /// # Errors
    /// `Corrupt` where none is left.
    pub fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array().map(|[byte]| byte)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// `Corrupt` where fewer are left.
    pub fn u16(&mut self) -> Result<u16, Corrupt> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// `Corrupt` where fewer are left.
    pub fn u32(&mut self) -> Result<u32, Corrupt> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// `Corrupt` where fewer are left.
    pub fn u64(&mut self) -> Result<u64, Corrupt> {
        self.array().map(u64::from_le_bytes)
    }

    /// Sixteen bytes.
    ///
    /// # Errors
    /// `Corrupt` where fewer are left.
    pub fn uuid(&mut self) -> Result<Uuid, Corrupt> {
        self.array().map(Uuid::from_bytes)
    }

    /// A varint.
    ///
    /// # Errors
    /// `Corrupt` where it is cut off, above 64 bits, or longer than it needs to be.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Corrupt> {
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Corrupt> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().enumerate().take(VARINT_BYTES_MAX) {
            let bits = u64::from(byte & 0x7f);
            let last = index == VARINT_BYTES_MAX - 1;
            if last && byte > 1 || index > 0 && byte == 0 {
                return Err(Corrupt::new("malformed varint"));
            }
            value |= bits << (7 * index);
            if byte < 0x80 {
                self.take(index + 1)?;
                return Ok(value);
            }
        }
        Err(truncated())
    }

    /// A varint that counts bytes or things, at most `max`.
    ///
    /// # Errors
    /// `Corrupt` as for a varint, or where it is above `max`.
    pub fn len(&mut self, max: usize) -> Result<usize, Corrupt> {
        let value = self.varint()?;
        match usize::try_from(value) {
            Ok(len) if len <= max => Ok(len),
            _ => Err(Corrupt::new(format!("{value} where at most {max} is possible"))),
        }
    }

    /// A length, at most `max`, and that many bytes.
    ///
    /// # Errors
    /// `Corrupt` where the length is above `max` or the bytes are missing.
    pub fn slice(&mut self, max: usize) -> Result<&'a [u8], Corrupt> {
        let len = self.len(max)?;
        self.take(len)
    }

    /// The head of an object of this kind and database.
    ///
    /// # Errors
    /// `Corrupt` where it is none, of another format or kind, or from another database.
    pub fn head(&mut self, kind: Kind, database: DatabaseId) -> Result<(), Corrupt> {
        if self.array()? != MAGIC {
            return Err(Corrupt::new("not an object of Cairn: wrong magic"));
        }
        let format = u32::from(self.u16()?);
        if format != FORMAT {
            return Err(Corrupt::new(format!("format {format}, this program reads {FORMAT}")));
        }
        if self.array()? != [kind as u8, 0] {
            return Err(Corrupt::new(format!("not an object of kind {kind:?}")));
        }
        let found = self.uuid()?;
        if found != database {
            return Err(Corrupt::new(format!("belongs to database {found}, not {database}")));
        }
        Ok(())
    }
}

#[cold]
fn truncated() -> Corrupt {
    Corrupt::new("ends too early")
}

#[expect(clippy::cast_possible_truncation, reason = "the lowest byte is what is asked for")]
fn low_byte(value: u64) -> u8 {
    value as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        out
    }

    #[test]
    fn encodings_are_golden() {
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(1), [1]);
        assert_eq!(varint(127), [0x7f]);
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(varint(u64::MAX), [[0xff; 9].as_slice(), &[1]].concat());
        let mut out = Vec::new();
        put_slice(&mut out, b"ab");
        put_u16(&mut out, 0x0102);
        put_u32(&mut out, 0x0102_0304);
        put_u64(&mut out, 5);
        assert_eq!(out, b"\x02ab\x02\x01\x04\x03\x02\x01\x05\0\0\0\0\0\0\0");
        // The check value of CRC-32C.
        assert_eq!(checksum(&[b"12345", b"6789"]), 0xe306_9283);
    }

    #[test]
    fn head_is_golden_and_refuses_other_objects() {
        let database = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let mut head = Vec::new();
        put_head(&mut head, Kind::Sst, database);
        let golden = b"\x89CAIRN\r\n\x01\0\x02\0\x01\x02\x03\x04\x05\x06\x07\x08\
                       \x09\x0a\x0b\x0c\x0d\x0e\x0f\x10";
        assert_eq!(head, golden);
        assert_eq!(head.len(), HEAD_BYTES);
        assert!(Reader::new(&head).head(Kind::Sst, database).is_ok());
        assert!(Reader::new(&head).head(Kind::Wal, database).is_err());
        assert!(Reader::new(&head).head(Kind::Sst, Uuid::nil()).is_err());
        for bit in 0..head.len() * 8 {
            let mut damaged = head.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Reader::new(&damaged).head(Kind::Sst, database).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn varints_have_one_encoding() {
        for wrong in [&[0x80, 0][..], &[0x81, 0x80, 0], &[0xff; 10], &[0x80; 11], &[0x80], &[]] {
            assert!(Reader::new(wrong).varint().is_err(), "{wrong:x?}");
        }
        let too_large = [[0xff; 9].as_slice(), &[2]].concat();
        assert!(Reader::new(&too_large).varint().is_err());
    }

    #[test]
    fn seal_detects_every_flip_and_truncation() {
        let mut sealed = b"some bytes".to_vec();
        seal(&mut sealed);
        assert_eq!(unseal(&sealed).unwrap(), b"some bytes");
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(&damaged).is_err(), "bit {bit}");
        }
        for end in 0..sealed.len() {
            assert!(unseal(&sealed[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn lengths_are_bounded_and_nothing_may_follow() {
        let mut reader = Reader::new(b"\x02abz");
        assert!(reader.clone().slice(1).is_err());
        assert_eq!(reader.slice(2).unwrap(), b"ab");
        assert_eq!((reader.position(), reader.rest()), (3, &b"z"[..]));
        assert!(reader.clone().finish().is_err());
        assert_eq!(reader.u8().unwrap(), b'z');
        assert!(reader.finish().is_ok());
    }

    proptest! {
        #[test]
        fn varint_round_trips(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let bytes = varint(value);
            prop_assert_eq!(bytes.len(), varint_bytes(value));
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint().unwrap(), value);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_accepted_varint_is_what_the_encoder_writes(bytes: [u8; 12]) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                prop_assert_eq!(&bytes[..reader.position()], &varint(value)[..]);
            }
        }

        #[test]
        fn common_prefix_is_the_naive_one(
            stem in proptest::collection::vec(0u8..3, 0..40),
            a in proptest::collection::vec(0u8..3, 0..20),
            b in proptest::collection::vec(0u8..3, 0..20),
        ) {
            let (a, b) = ([stem.clone(), a].concat(), [stem, b].concat());
            let naive = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(common_prefix(&a, &b), naive);
        }
    }
}
