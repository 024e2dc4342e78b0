//! Operations as lines of NDJSON: `dump` writes them, `load` reads them.
//!
//! **Invariants**
//! - Every entry that a server can hold fits a line, whoever wrote the line: in the worst case each
//!   byte is escaped as `\u0000`.
//! - A line that is written here takes at most four bytes for three of its key and value: text that
//!   escaping would make longer stands as base64.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cairn_common::http::api::write_bytes;
use cairn_common::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use serde::{Deserialize, Deserializer};

use crate::failure::{Failure, Outcome};

/// The longest line: every byte of the largest entry escaped, and the JSON around them.
pub(super) const LINE_BYTES_MAX: usize = 6 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) + 1024;

/// Standard base64; padding may be left out, as servers allow.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Bytes that stand as base64 in JSON.
#[derive(Debug)]
pub(super) struct Bytes64(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Bytes64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        BASE64.decode(&*text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// The key of an operation; the rest is the server's to judge.
#[derive(Deserialize)]
struct KeyOf<'a> {
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    key_b64: Option<Bytes64>,
}

/// A whole operation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    key: Option<String>,
    key_b64: Option<Bytes64>,
    value: Option<String>,
    value_b64: Option<Bytes64>,
}

/// The key of the operation in this line.
pub(super) fn key_of(line: &[u8]) -> Outcome<Vec<u8>> {
    let named: KeyOf<'_> = serde_json::from_slice(line).map_err(|error| no_operation(&error))?;
    match (named.key, named.key_b64) {
        (Some(text), None) => Ok(text.into_owned().into_bytes()),
        (None, Some(bytes)) => Ok(bytes.0),
        _ => Err(Failure::new("the operation has not one of key and key_b64")),
    }
}

/// Key and value of the put in this line; `None` for anything else, which the server judges.
pub(super) fn put_of(line: &[u8]) -> Outcome<Option<(Vec<u8>, Vec<u8>)>> {
    let operation: Operation<'_> =
        serde_json::from_slice(line).map_err(|error| no_operation(&error))?;
    let one = |text: Option<String>, base64: Option<Bytes64>| match (text, base64) {
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(bytes)) => Some(bytes.0),
        _ => None,
    };
    let key = one(operation.key, operation.key_b64);
    let value = one(operation.value, operation.value_b64);
    Ok(key.zip(value).filter(|_| operation.op == "put"))
}

fn no_operation(error: &serde_json::Error) -> Failure {
    Failure::new(format!("no operation: {error}"))
}

/// Appends the put of this entry, without the end of the line.
pub(super) fn write_put(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(b"{\"op\":\"put\",");
    write_shorter(out, "key", key);
    out.push(b',');
    write_shorter(out, "value", value);
    out.push(b'}');
}

/// `"name":"text"` or `"name_b64":"..."`, whichever is shorter.
fn write_shorter(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    let base64_bytes = bytes.len().div_ceil(3) * 4 + "_b64".len();
    if escaped_bytes(bytes) <= base64_bytes {
        return write_bytes(out, name, bytes);
    }
    let text = BASE64.encode(bytes);
    out.extend_from_slice(format!("\"{name}_b64\":\"{text}\"").as_bytes());
}

/// How long the bytes are as a JSON string, without its quotes.
fn escaped_bytes(bytes: &[u8]) -> usize {
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    bytes.iter().map(escaped).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(key: &[u8], value: &[u8]) -> String {
        let mut line = Vec::new();
        write_put(&mut line, key, value);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn the_shorter_form_is_written_and_read_back() {
        let cases: [(&[u8], &[u8], &str); 4] = [
            (b"a", b"say \"hi\"\n", r#"{"op":"put","key":"a","value":"say \"hi\"\n"}"#),
            (b"\xff", b"", r#"{"op":"put","key_b64":"/w==","value":""}"#),
            (b"\x01", b"\x02", r#"{"op":"put","key":"\u0001","value":"\u0002"}"#),
            (b"a", &[0; 6], r#"{"op":"put","key":"a","value_b64":"AAAAAAAA"}"#),
        ];
        for (key, value, expected) in cases {
            assert_eq!(line_of(key, value), expected);
            assert_eq!(key_of(expected.as_bytes()).unwrap(), key);
            let read = put_of(expected.as_bytes()).unwrap();
            assert_eq!(read, Some((key.to_vec(), value.to_vec())));
        }
    }

    #[test]
    fn escaped_text_is_as_long_as_it_is_counted() {
        let all: String = (0..=0x24fu32).filter_map(char::from_u32).collect();
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(escaped_bytes(all.as_bytes()) + 2, json.len());
    }

    #[test]
    fn the_largest_entry_stays_within_its_bounds() {
        let (key, value) = (vec![1; KEY_BYTES_MAX], vec![1; VALUE_BYTES_MAX]);
        let ours = line_of(&key, &value);
        assert!(ours.len() < (KEY_BYTES_MAX + VALUE_BYTES_MAX) / 3 * 4 + 100);
        let mut longest = b"{\"op\":\"put\",".to_vec();
        write_bytes(&mut longest, "key", &key);
        longest.push(b',');
        write_bytes(&mut longest, "value", &value);
        longest.push(b'}');
        assert!(longest.len() > 32 << 20 && longest.len() <= LINE_BYTES_MAX);
        assert_eq!(put_of(&longest).unwrap(), Some((key, value)));
    }

    #[test]
    fn what_is_no_put_is_left_to_the_server() {
        for line in [
            r#"{"op":"delete","key":"a"}"#,
            r#"{"op":"pot","key":"a","value":"b"}"#,
            r#"{"op":"put","key":"a","value":"b","value_b64":"Yg"}"#,
            r#"{"op":"put","key":"a"}"#,
        ] {
            assert_eq!(put_of(line.as_bytes()).unwrap(), None, "{line}");
        }
        for line in ["nonsense", r#"{"op":"put","key":"a","value":"b","ttl":"1s"}"#] {
            let failure = put_of(line.as_bytes()).unwrap_err();
            assert!(failure.text.starts_with("no operation: "), "{failure}");
        }
        assert_eq!(key_of(br#"{"key_b64":"/w"}"#).unwrap(), b"\xff", "padding may be left out");
    }
}
