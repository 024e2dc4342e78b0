//! Bodies that name keys: batches of operations, and the keys of a multi-get.
//!
//! **Layout** of a batch: `{"ops":[OP,…]}`, or NDJSON with one OP a line. An OP is
//! `{"op":"put","key":"a","value":"b"}` or `{"op":"delete","key":"a"}`; `key_b64` and `value_b64`
//! (standard base64) stand for bytes that are no text.
//!
//! **Invariants**
//! - Nothing is guessed: an unknown or repeated field, an unknown op, a key in both forms is
//!   refused with the number of its line.
//! - Operations are counted while they are parsed, and keys and values are copied into one
//!   allocation, so a small body cannot become a large heap.
//! - What was parsed stays counted against the budget of requests for as long as it is held.

use std::fmt;
use std::ops::Range;

use axum::body::Body;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::api::{BodyKind, NDJSON, body_kind};
use super::budget::{Held, Share};
use super::json::{Object, Text, at_line, parse_list, words};
use super::keys;
use super::problem::{Answer, Code, Problem};
use super::request::Arrival;
use crate::limits::{
    BATCH_BODY_BYTES_MAX, BATCH_BYTES_MAX, BATCH_OPS_MAX, GET_BODY_BYTES_MAX, GET_KEYS_MAX,
    VALUE_BYTES_MAX,
};
use crate::types::{Op, Payload};

/// Standard base64; padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the body of `POST /v1/batch`: operations in the order given, keys as given (one key may
/// stand twice). Costs the body's bytes and a copy of its keys and values; then that copy alone.
///
/// # Errors
/// `media_type`; `invalid_body` and `invalid_key`, with the line; `too_large`; those of
/// [`Arrival::body`].
pub async fn read_batch(
    arrival: &Arrival,
    headers: &HeaderMap,
    body: Body,
) -> Answer<Held<Vec<Op>>> {
    let mut ops = Ops::default();
    let share = match body_kind(headers)? {
        BodyKind::Json => {
            let body = arrival.body(body, BATCH_BODY_BYTES_MAX).await?;
            parse_list(body.bytes(), "ops", |Object(op)| ops.push(op))?;
            body.into_parts().1
        }
        BodyKind::Ndjson => read_lines(arrival, body, &mut ops).await?,
    };
    ops.finish(share)
}

async fn read_lines(arrival: &Arrival, body: Body, ops: &mut Ops) -> Answer<Share> {
    let mut chunks = arrival.chunks(body, BATCH_BODY_BYTES_MAX);
    let mut rest = BytesMut::new();
    let mut number = 0;
    while let Some(chunk) = chunks.next().await? {
        let mut seen = rest.len();
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().skip(seen).position(|byte| *byte == b'\n') {
            let line = rest.split_to(seen + end + 1);
            number += 1;
            ops.push_line(&line, number)?;
            seen = 0;
        }
    }
    ops.push_line(&rest, number + 1)?;
    Ok(chunks.into_share())
}

/// Reads the body of `POST /v1/get`: `{"keys":["a",{"b64":"…"}]}`.
///
/// # Errors
/// As [`read_batch`].
pub async fn read_keys(
    arrival: &Arrival,
    headers: &HeaderMap,
    body: Body,
) -> Answer<Held<Vec<Bytes>>> {
    if body_kind(headers)? == BodyKind::Ndjson {
        let detail = format!("this route does not take {NDJSON}");
        return Err(Problem::new(Code::MediaType, detail));
    }
    let body = arrival.body(body, GET_BODY_BYTES_MAX).await?;
    let mut keys = Vec::new();
    let mut bytes = 0;
    parse_list(body.bytes(), "keys", |key: KeyName| {
        if keys.len() == GET_KEYS_MAX {
            let detail = format!("more than {GET_KEYS_MAX} keys in one request");
            return Err(Problem::new(Code::TooLarge, detail));
        }
        let key = match key {
            KeyName::Text(text) => text.into_bytes(),
            KeyName::Base64(b64) => decode("b64", &b64)?,
        };
        keys::check(&key)?;
        bytes += key.len() + size_of::<Bytes>();
        keys.push(Bytes::from(key.into_boxed_slice()));
        Ok(())
    })?;
    let (_, mut share) = body.into_parts();
    share.resize(bytes)?;
    Ok(Held::new(keys, share))
}

/// A key as a multi-get names it.
enum KeyName {
    Text(String),
    Base64(String),
}

impl<'de> Deserialize<'de> for KeyName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Base64 {
            b64: String,
        }

        struct KeyVisitor;

        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = KeyName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key as text or as {\"b64\":\"...\"}")
            }

            fn visit_str<E>(self, text: &str) -> Result<KeyName, E> {
                Ok(KeyName::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<KeyName, A::Error> {
                let Base64 { b64 } = Base64::deserialize(MapAccessDeserializer::new(map))?;
                Ok(KeyName::Base64(b64))
            }
        }

        deserializer.deserialize_any(KeyVisitor)
    }
}

/// An operation as it stands in a body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOp<'a> {
    #[serde(borrow)]
    op: Text<'a>,
    #[serde(borrow)]
    key: Option<Text<'a>>,
    #[serde(borrow)]
    key_b64: Option<Text<'a>>,
    #[serde(borrow)]
    value: Option<Text<'a>>,
    #[serde(borrow)]
    value_b64: Option<Text<'a>>,
}

/// The operations so far: places in one allocation.
#[derive(Debug, Default)]
struct Ops {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    key: Range<usize>,
    /// `None` deletes.
    value: Option<Range<usize>>,
}

impl Ops {
    fn push(&mut self, raw: RawOp<'_>) -> Answer<()> {
        if self.places.len() == BATCH_OPS_MAX {
            let detail = format!("more than {BATCH_OPS_MAX} operations in one batch");
            return Err(Problem::new(Code::TooLarge, detail));
        }
        let key = self.put("key", raw.key, raw.key_b64)?;
        let key = key.ok_or_else(|| Problem::body("the operation has no key"))?;
        keys::check(self.bytes.get(key.clone()).unwrap_or_default())?;
        let value = self.put("value", raw.value, raw.value_b64)?;
        match (&*raw.op.0, &value) {
            ("put", Some(value)) if value.len() > VALUE_BYTES_MAX => {
                let detail = format!("a value is larger than {VALUE_BYTES_MAX} bytes");
                return Err(Problem::new(Code::TooLarge, detail));
            }
            ("put", Some(_)) | ("delete", None) => {}
            ("put", None) => return Err(Problem::body("the put has no value")),
            ("delete", Some(_)) => return Err(Problem::body("the delete has a value")),
            (other, _) => return Err(Problem::body(format!("unknown op {other:?}"))),
        }
        if self.bytes.len() > BATCH_BYTES_MAX {
            let detail = format!("a batch is larger than {BATCH_BYTES_MAX} bytes");
            return Err(Problem::new(Code::TooLarge, detail));
        }
        self.places.push(Place { key, value });
        Ok(())
    }

    /// Copies the bytes that stand in one of two forms.
    fn put(
        &mut self,
        name: &str,
        text: Option<Text<'_>>,
        base64: Option<Text<'_>>,
    ) -> Answer<Option<Range<usize>>> {
        let start = self.bytes.len();
        match (text, base64) {
            (None, None) => return Ok(None),
            (Some(text), None) => self.bytes.extend_from_slice(text.0.as_bytes()),
            (None, Some(base64)) => {
                let wrong = |_| Problem::body(format!("{name}_b64 is not base64"));
                BASE64.decode_vec(&*base64.0, &mut self.bytes).map_err(wrong)?;
            }
            (Some(_), Some(_)) => {
                return Err(Problem::body(format!("both {name} and {name}_b64 are given")));
            }
        }
        Ok(Some(start..self.bytes.len()))
    }

    fn push_line(&mut self, line: &[u8], number: usize) -> Answer<()> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let raw = serde_json::from_slice(line).map_err(|error| Problem::body(words(&error)));
        raw.and_then(|Object(raw)| self.push(raw)).map_err(|problem| at_line(problem, number))
    }

    fn finish(mut self, mut share: Share) -> Answer<Held<Vec<Op>>> {
        if self.places.is_empty() {
            return Err(Problem::body("a batch has at least one operation"));
        }
        // Whoever keeps an operation keeps all of the allocation.
        self.bytes.shrink_to_fit();
        share.resize(self.bytes.len() + self.places.len() * size_of::<Op>())?;
        let bytes = Bytes::from(self.bytes);
        let op = |place: Place| Op {
            key: bytes.slice(place.key),
            payload: match place.value {
                Some(value) => Payload::Value(bytes.slice(value)),
                None => Payload::Tombstone,
            },
            expires_ms: None,
        };
        Ok(Held::new(self.places.into_iter().map(op).collect(), share))
    }
}

fn decode(name: &str, text: &str) -> Answer<Vec<u8>> {
    BASE64.decode(text).map_err(|_| Problem::body(format!("{name} is not base64")))
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{HttpLimits, Size};
    use crate::http::budget::Budgets;

    fn arrival() -> Arrival {
        with_memory(1 << 30)
    }

    fn with_memory(bytes: u64) -> Arrival {
        let limits = HttpLimits { request_memory: Size(bytes), ..HttpLimits::default() };
        Arrival::new(&HeaderMap::new(), &limits, &Budgets::new(&limits)).unwrap()
    }

    fn ndjson() -> HeaderMap {
        [(header::CONTENT_TYPE, NDJSON.parse().unwrap())].into_iter().collect()
    }

    async fn json_batch(body: &str) -> Answer<Vec<Op>> {
        let held = read_batch(&arrival(), &HeaderMap::new(), Body::from(body.to_owned())).await?;
        Ok(held.into_parts().0)
    }

    async fn line_batch(body: &str) -> Answer<Vec<Op>> {
        let held = read_batch(&arrival(), &ndjson(), Body::from(body.to_owned())).await?;
        Ok(held.into_parts().0)
    }

    fn put(key: &'static [u8], value: &'static [u8]) -> Op {
        Op { key: key.into(), payload: Payload::Value(value.into()), expires_ms: None }
    }

    fn delete(key: &'static [u8]) -> Op {
        Op { key: key.into(), payload: Payload::Tombstone, expires_ms: None }
    }

    #[tokio::test]
    async fn both_forms_give_the_same_operations() {
        let expected = vec![put(b"a\"", b"1"), delete(b"b"), put(b"\xff", b"\xfe"), put(b"c", b"")];
        let lines = [
            r#"{"op":"put","key":"a\"","value":"1"}"#,
            r#"{"op":"delete","key":"b"}"#,
            r#"{"value_b64":"/g==","key_b64":"/w","op":"put"}"#,
            r#"{"op":"put","key":"c","value":""}"#,
        ];
        let json = format!("{{\"ops\":[{}]}}", lines.join(","));
        assert_eq!(json_batch(&json).await.unwrap(), expected);
        assert_eq!(line_batch(&lines.join("\n")).await.unwrap(), expected);
        assert_eq!(line_batch(&format!("\r\n{}\n", lines.join("\r\n"))).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn lines_may_come_in_any_pieces() {
        let text = b"{\"op\":\"delete\",\"key\":\"a\"}\n{\"op\":\"delete\",\"key\":\"b\"}\n";
        for size in 1..text.len() {
            let pieces: Vec<_> = text.chunks(size).map(Ok::<_, std::io::Error>).collect();
            let body = Body::from_stream(futures::stream::iter(pieces));
            let ops = read_batch(&arrival(), &ndjson(), body).await.unwrap();
            assert_eq!(ops.into_parts().0, [delete(b"a"), delete(b"b")]);
        }
    }

    #[tokio::test]
    async fn nothing_is_guessed() {
        let cases = [
            (r#"{"op":"put","key":"a"}"#, "no value"),
            (r#"{"op":"delete","key":"a","value":"b"}"#, "has a value"),
            (r#"{"op":"delete"}"#, "no key"),
            (r#"{"op":"delete","key":"a","key_b64":"YQ=="}"#, "both key and key_b64"),
            (r#"{"op":"delete","key":"a","key":"a"}"#, "duplicate field"),
            (r#"{"op":"put","key":"a","value":"b","ttl":"1s"}"#, "unknown field"),
            (r#"{"op":"increment","key":"a"}"#, "unknown op"),
            (r#"{"op":"delete","key_b64":"?"}"#, "not base64"),
            (r#"{"op":"delete","key":7}"#, "expected a string"),
            (r#"{"op":"delete","key":"a"} x"#, "trailing"),
            ("[]", "expected an object"),
            (r#"["put","a",null,"v",null]"#, "expected an object"),
        ];
        for (line, expected) in cases {
            let problem = line_batch(&format!("\n{line}")).await.unwrap_err();
            assert_eq!(problem.code, Code::InvalidBody, "{line}");
            assert!(problem.detail.starts_with("line 2: "), "{}", problem.detail);
            assert!(problem.detail.contains(expected), "{}", problem.detail);
            let body = format!("{{\"ops\":[\n{line}]}}");
            let problem = json_batch(&body).await.unwrap_err();
            assert_eq!(problem.code, Code::InvalidBody, "{body}");
            assert!(problem.detail.starts_with("line 2: "), "{}", problem.detail);
        }
        for body in ["", "{}", r#"{"ops":[]}"#, r#"{"ops":[],"ops":[]}"#, r#"{"op":[]}"#, "[]"] {
            assert_eq!(json_batch(body).await.unwrap_err().code, Code::InvalidBody, "{body}");
        }
        assert_eq!(line_batch("\n\n").await.unwrap_err().code, Code::InvalidBody);
        let empty = json_batch(r#"{"ops":[{"op":"delete","key":""}]}"#).await.unwrap_err();
        assert_eq!(empty.code, Code::InvalidKey);
    }

    #[tokio::test]
    async fn batches_have_bounds() {
        let line = "{\"op\":\"delete\",\"key\":\"a\"}\n";
        assert_eq!(line_batch(&line.repeat(BATCH_OPS_MAX)).await.unwrap().len(), BATCH_OPS_MAX);
        let problem = line_batch(&line.repeat(BATCH_OPS_MAX + 1)).await.unwrap_err();
        assert_eq!(problem.code, Code::TooLarge);
        let value = "x".repeat(VALUE_BYTES_MAX);
        let put = |extra: &str| format!(r#"{{"op":"put","key":"a","value":"{value}{extra}"}}"#);
        assert!(line_batch(&put("")).await.is_ok());
        assert_eq!(line_batch(&put("y")).await.unwrap_err().code, Code::TooLarge);
        let problem = line_batch(&format!("{}\n", put("")).repeat(2)).await.unwrap_err();
        assert_eq!(problem.code, Code::TooLarge);
    }

    #[tokio::test]
    async fn keys_of_a_multi_get_are_text_or_base64() {
        let keys = async |body: &str| {
            let body = Body::from(body.to_owned());
            let held = read_keys(&arrival(), &HeaderMap::new(), body).await?;
            Ok::<_, Problem>(held.into_parts().0)
        };
        let found = keys(r#"{"keys":["a",{"b64":"/w=="},"a"]}"#).await.unwrap();
        assert_eq!(found, [&b"a"[..], b"\xff", b"a"]);
        assert_eq!(keys(r#"{"keys":[]}"#).await.unwrap(), Vec::<Bytes>::new());
        for (body, code) in [
            (r#"{"keys":[""]}"#, Code::InvalidKey),
            (r#"{"keys":[1]}"#, Code::InvalidBody),
            (r#"{"keys":[{"b64":"?"}]}"#, Code::InvalidBody),
            (r#"{"keys":[{"b65":""}]}"#, Code::InvalidBody),
            (r#"{"keys":[["YQ=="]]}"#, Code::InvalidBody),
            (r#"["a"]"#, Code::InvalidBody),
        ] {
            assert_eq!(keys(body).await.unwrap_err().code, code, "{body}");
        }
        let many = format!("{{\"keys\":[{}]}}", vec!["\"a\""; GET_KEYS_MAX + 1].join(","));
        assert_eq!(keys(&many).await.unwrap_err().code, Code::TooLarge);
        let problem = read_keys(&arrival(), &ndjson(), Body::empty()).await.unwrap_err();
        assert_eq!(problem.code, Code::MediaType);
    }

    #[tokio::test]
    async fn what_was_parsed_stays_counted_and_no_more_of_it() {
        let arrival = with_memory(8 << 10);
        let line = format!("{{\"op\":\"put\",\"key\":\"a\",\"value\":\"{}\"}}", "v".repeat(5_000));
        let batch = async || read_batch(&arrival, &ndjson(), Body::from(line.clone())).await;
        let held = batch().await.unwrap();
        assert_eq!(batch().await.unwrap_err().code, Code::Overloaded);
        drop(held);
        let escaped = format!("{{\"keys\":[\"{}\"]}}", "\\u0061".repeat(1_000));
        let keys =
            async || read_keys(&arrival, &HeaderMap::new(), Body::from(escaped.clone())).await;
        let held = keys().await.unwrap();
        assert!(keys().await.is_ok(), "a body of 6,000 bytes left a key of 1,000");
        drop(held);
        let many = "{\"op\":\"delete\",\"key\":\"a\"}\n".repeat(200);
        let problem = read_batch(&arrival, &ndjson(), Body::from(many)).await.unwrap_err();
        assert_eq!(problem.code, Code::Overloaded, "operations are larger than their text");
    }

    #[tokio::test]
    async fn a_batch_holds_no_more_than_its_bytes() {
        let line = format!(r#"{{"op":"put","key":"a","value":"{}"}}"#, "v".repeat(999));
        let mut ops = line_batch(&line).await.unwrap();
        let Some(Op { key, payload: Payload::Value(value), .. }) = ops.pop() else {
            panic!("a put has a value")
        };
        drop(key);
        assert_eq!(value.try_into_mut().unwrap().capacity(), 999, "of the one allocation");
    }

    proptest! {
        #[test]
        fn any_line_is_answered(line in "[\\{\\}\":,a-z0-9 \\[\\]]{0,60}") {
            let mut ops = Ops::default();
            if let Err(problem) = ops.push_line(line.as_bytes(), 1) {
                prop_assert!(problem.detail.starts_with("line 1: "));
            }
        }
    }
}
