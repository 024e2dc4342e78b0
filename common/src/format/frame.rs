//! The frame that manifests and run objects share: JSON in one zstd frame, named with a digest.
//!
//! **Layout**
//!
//! ```text
//! +-------------------------------+
//! | zstd frame ( JSON document )  |     `zstd -dc < manifest/… | jq` reads it
//! +-------------------------------+
//! digest = XXH3-128 of exactly these bytes, kept by whoever names the object
//! ```
//!
//! **Invariant**: the digest is judged before the frame is opened, so damage, truncation and
//! swapped objects never reach the decompressor or the JSON parser.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_128;

use super::Corrupt;

/// Level of compression: JSON of ids and keys shrinks about fourfold; more levels gain little.
const ZSTD_LEVEL: i32 = 3;

/// The largest document: a run of a million SSTs with long keys. Bounds what a frame may unfold to.
const DOCUMENT_BYTES_MAX: u64 = 1 << 30;

/// A 128-bit digest (XXH3) of an object's bytes, as 32 hex digits in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxh3_128(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Digest {
    type Err = Corrupt;

    fn from_str(text: &str) -> Result<Self, Corrupt> {
        let digest = u128::from_str_radix(text, 16).map(Self).ok();
        digest
            .filter(|digest| digest.to_string() == text)
            .ok_or_else(|| Corrupt::new(format!("{text:?} is not a digest of 32 hex digits")))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The object of this document, and the digest of its bytes.
pub(super) fn encode<T: Serialize>(document: &T) -> (Bytes, Digest) {
    let json = serde_json::to_vec(document).expect("a record with string keys is JSON");
    let bytes = compress(&json).expect("memory to memory cannot fail");
    let digest = Digest::of(&bytes);
    (bytes.into(), digest)
}

/// With a checksum of the document at the end of the frame, for those that know no digest.
fn compress(json: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut frame = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    frame.include_checksum(true)?;
    frame.write_all(json)?;
    frame.finish()
}

/// The document of this object, if its bytes are those of the digest.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], digest: &Digest) -> Result<T, Corrupt> {
    let found = Digest::of(bytes);
    if found != *digest {
        return Err(Corrupt::new(format!(
            "the digest of its {} bytes is {found}, not {digest}",
            bytes.len()
        )));
    }
    let json = unfold(bytes).map_err(|error| Corrupt::new(format!("zstd: {error}")))?;
    serde_json::from_slice(&json).map_err(|error| Corrupt::new(format!("JSON: {error}")))
}

fn unfold(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut json = Vec::new();
    let mut frame = zstd::Decoder::with_buffer(bytes)?.single_frame().take(DOCUMENT_BYTES_MAX);
    frame.read_to_end(&mut json)?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digest_is_golden() {
        let digest = Digest::of(b"cairn");
        assert_eq!(digest.to_string(), format!("{:032x}", xxh3_128(b"cairn")));
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for wrong in ["", "00", "+0000000000000000000000000000001", &"F".repeat(32)] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // The right digest, so that the decompressor is reached.
            prop_assert!(parse::<Vec<u64>>(&bytes, &Digest::of(&bytes)).is_err());
        }

        #[test]
        fn any_document_never_panics(json in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = zstd::encode_all(&*json, ZSTD_LEVEL).unwrap();
            let expected = serde_json::from_slice::<Vec<u64>>(&json).ok();
            prop_assert_eq!(parse::<Vec<u64>>(&bytes, &Digest::of(&bytes)).ok(), expected);
        }
    }
}
