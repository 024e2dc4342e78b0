//! Key bytes in JSON: a string where they are UTF-8, else `{"b64": "…"}`.
//!
//! ```text
//! users/42        "users/42"
//! 00 ff           {"b64": "AP8="}        standard base64, padded
//! ```
//!
//! **Invariant**: every byte string has exactly one spelling; any other is refused.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserializer, Serializer};

const BASE64_FIELD: &str = "b64";

pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return serializer.serialize_str(text);
    }
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(BASE64_FIELD, &STANDARD.encode(bytes))?;
    map.end()
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    deserializer.deserialize_any(TextOrBase64)
}

struct TextOrBase64;

impl<'de> Visitor<'de> for TextOrBase64 {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or {\"b64\": …}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Bytes, E> {
        Ok(Bytes::from(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bytes, A::Error> {
        let field: Option<String> = map.next_key()?;
        if field.as_deref() != Some(BASE64_FIELD) {
            return Err(A::Error::custom("expected the one field b64"));
        }
        let text: String = map.next_value()?;
        let bytes = STANDARD.decode(text).map_err(A::Error::custom)?;
        if std::str::from_utf8(&bytes).is_ok() {
            return Err(A::Error::custom("UTF-8 bytes are spelled as a string"));
        }
        match map.next_key::<String>()? {
            None => Ok(Bytes::from(bytes)),
            Some(other) => Err(A::Error::unknown_field(&other, &[BASE64_FIELD])),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Key(#[serde(with = "super")] Bytes);

    #[test]
    fn spelling_is_golden() {
        for (bytes, json) in [
            (&b"users/42"[..], r#""users/42""#),
            (b"", r#""""#),
            ("é\"\n".as_bytes(), r#""é\"\n""#),
            (b"\x00\xff", r#"{"b64":"AP8="}"#),
        ] {
            let key = Key(Bytes::copy_from_slice(bytes));
            assert_eq!(serde_json::to_string(&key).unwrap(), json);
            assert_eq!(serde_json::from_str::<Key>(json).unwrap(), key);
        }
    }

    #[test]
    fn second_spellings_are_refused() {
        for json in [
            r#"{"b64":"YQ=="}"#,
            r#"{"b64":"AP8"}"#,
            r#"{"b64":"AP8=","x":1}"#,
            r#"{"text":"a"}"#,
            "{}",
            "[97]",
            "7",
        ] {
            assert!(serde_json::from_str::<Key>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn every_key_survives(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let key = Key(Bytes::from(bytes));
            let json = serde_json::to_string(&key).unwrap();
            prop_assert_eq!(serde_json::from_str::<Key>(&json).unwrap(), key);
        }
    }
}
