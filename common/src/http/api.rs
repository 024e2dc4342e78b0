//! JSON of replies: entries, and what `/v1/status` says.
//!
//! Keys and values stand as text where they are UTF-8 (`"key": "a"`), else as standard base64
//! (`"key_b64": "/w=="`). Etags are strings, seqs numbers below 2^53.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{self, HeaderValue};
use serde::Serialize;
use serde_json::Value;

use super::metrics::resident_bytes;
use super::problem::{Answer, Code, Problem};
use super::request::{CAIRN_LAG_MS, CAIRN_SEQ};
use crate::build::VERSION;
use crate::format::manifest::{Manifest, RunInfo, SstInfo};
use crate::store::cache::CacheStats;
use crate::store::damage::Damaged;
use crate::store::metrics::StoreSnapshot;
use crate::types::{Epoch, Seq};

/// The media type of a body with one JSON document a line.
pub const NDJSON: &str = "application/x-ndjson";
/// The media type of a value.
pub const OCTETS: &str = "application/octet-stream";
/// The media type of everything else.
pub const JSON: &str = "application/json";

/// One entry of a reply; a value that was not asked for is left out.
#[derive(Clone, Copy, Debug)]
pub struct EntryBody<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: Option<&'a [u8]>,
    /// Becomes the etag.
    pub seq: Seq,
}

impl EntryBody<'_> {
    /// Puts `{"key":…,"value":…,"etag":"…"}` behind what is there.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        write_bytes(out, "key", self.key);
        if let Some(value) = self.value {
            out.push(b',');
            write_bytes(out, "value", value);
        }
        out.extend_from_slice(b",\"etag\":\"");
        out.extend_from_slice(self.seq.to_string().as_bytes());
        out.extend_from_slice(b"\"}");
    }

    /// How many bytes that puts there: up to six for one, as control characters have names of six.
    pub fn written_bytes(&self) -> usize {
        let value = self.value.map_or(0, |value| 1 + field_bytes("value", value));
        let seq = self.seq.0.checked_ilog10().unwrap_or(0) + 1;
        let seq = usize::try_from(seq).unwrap_or(usize::MAX);
        let around = r#"{,"etag":""}"#.len();
        around + field_bytes("key", self.key) + value + seq
    }
}

/// How many bytes [`write_bytes`] puts.
fn field_bytes(name: &str, bytes: &[u8]) -> usize {
    let around = r#""":"""#.len() + name.len();
    match std::str::from_utf8(bytes) {
        Ok(_) => {
            around
                + bytes.iter().map(|byte| usize::from(ESCAPED[usize::from(*byte)])).sum::<usize>()
        }
        Err(_) => around + "_b64".len() + 4 * bytes.len().div_ceil(3),
    }
}

/// How many bytes each byte of text is in a JSON string.
const ESCAPED: [u8; 256] = {
    let mut bytes = [1; 256];
    let mut control = 0;
    while control < 0x20 {
        bytes[control] = 6;
        control += 1;
    }
    let mut short: &[u8] = b"\x08\t\n\x0c\r\"\\";
    while let [byte, rest @ ..] = short {
        bytes[*byte as usize] = 2;
        short = rest;
    }
    bytes
};

/// `"name":"text"`, or `"name_b64":"…"` for bytes that are no text.
pub fn write_bytes(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    if let Ok(text) = std::str::from_utf8(bytes) {
        out.extend_from_slice(b"\":");
        write_text(out, text);
    } else {
        out.extend_from_slice(b"_b64\":\"");
        out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
        out.push(b'"');
    }
}

/// A JSON string.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    // Writing text to a Vec cannot fail.
    let written = serde_json::to_writer(out, text);
    debug_assert!(written.is_ok());
}

/// The headers of a reply to a read.
#[derive(Clone, Copy, Debug)]
pub struct ReadHeaders {
    /// The highest seq that the answering view includes.
    pub seq: Seq,
    /// How old the view may be, at a reader.
    pub lag_ms: Option<u64>,
}

impl ReadHeaders {
    /// Puts them into a reply.
    pub fn put(self, headers: &mut HeaderMap) {
        headers.insert(CAIRN_SEQ, self.seq.0.into());
        if let Some(lag_ms) = self.lag_ms {
            headers.insert(CAIRN_LAG_MS, lag_ms.into());
        }
    }

    /// A problem that was found in a view carries them too.
    #[must_use]
    pub fn on(self, problem: Problem) -> Problem {
        let problem = problem.header(CAIRN_SEQ, self.seq);
        match self.lag_ms {
            Some(lag_ms) => problem.header(CAIRN_LAG_MS, lag_ms),
            None => problem,
        }
    }
}

/// A reply of this media type.
pub fn reply(media_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let value = HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// The etag of an entry.
pub fn etag(seq: Seq) -> HeaderValue {
    let text = format!("\"{seq}\"");
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("\"0\""))
}

/// What a body of JSON can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// One document.
    Json,
    /// One document a line.
    Ndjson,
}

/// The kind of a request's body by its content type; none given is JSON.
///
/// # Errors
/// `media_type` (415).
pub fn body_kind(headers: &HeaderMap) -> Answer<BodyKind> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(BodyKind::Json) };
    let text = value.to_str().unwrap_or("");
    let essence = text.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match essence.as_str() {
        // What `curl -d` says of every body; nothing here takes a form.
        JSON | "application/x-www-form-urlencoded" => Ok(BodyKind::Json),
        NDJSON | "application/ndjson" | "application/jsonl" => Ok(BodyKind::Ndjson),
        _ => {
            let detail = format!("{text:?} is neither {JSON} nor {NDJSON}");
            Err(Problem::new(Code::MediaType, detail))
        }
    }
}

/// What `/v1/status` says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// `writer`, `reader` or `compactor`.
    pub role: &'static str,
    /// The version of the binary.
    pub build: &'static str,
    /// The epoch that the process holds, or knows of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The highest seq that a read here includes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    /// At a writer: everything at or below it is in the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durable_seq: Option<Seq>,
    /// At a follower: everything at or below it was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_seq: Option<Seq>,
    /// At a follower: a bound on the age of its view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// L0 and runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeStatus>,
    /// Objects that are missing or damaged: requests that need one fail with `corrupt`.
    pub damaged: Vec<Damaged>,
    /// Hits, misses and bytes of the caches, by name.
    pub cache: BTreeMap<&'static str, u64>,
    /// Bytes by what holds them; `resident` is the whole process.
    pub memory: BTreeMap<&'static str, u64>,
    /// What was asked of the object store.
    pub store: StoreStatus,
    /// What one role alone has to say.
    #[serde(flatten)]
    pub more: BTreeMap<&'static str, Value>,
}

impl Status {
    /// What every process can say of itself.
    pub fn new(role: &'static str, store: &StoreSnapshot) -> Self {
        Self {
            role,
            build: VERSION,
            memory: BTreeMap::from([("resident", resident_bytes())]),
            store: StoreStatus::of(store),
            ..Self::default()
        }
    }

    /// Adds what the block cache has done, and what it holds.
    pub fn put_cache(&mut self, stats: &CacheStats) {
        self.memory.insert("block_cache", stats.memory_bytes);
        self.cache.extend([
            ("memory_hits", stats.memory_hits),
            ("memory_misses", stats.memory_misses),
            ("memory_bytes", stats.memory_bytes),
            ("memory_blocks", stats.memory_blocks),
            ("disk_hits", stats.disk_hits),
            ("disk_damaged", stats.disk_damaged),
            ("disk_dropped", stats.disk_dropped),
            ("disk_written_bytes", stats.disk_written_bytes),
        ]);
    }
}

/// The tree in figures.
#[derive(Clone, Debug, Serialize)]
pub struct TreeStatus {
    /// Of the manifest.
    pub version: u64,
    /// Everything at or below it is in the tree.
    pub flushed_seq: Seq,
    /// Newest first.
    pub l0: Vec<SstStatus>,
    /// Newest first.
    pub runs: Vec<RunStatus>,
}

/// An SST of L0 in figures.
#[derive(Clone, Debug, Serialize)]
pub struct SstStatus {
    /// Its name.
    pub id: String,
    /// Size of the object.
    pub bytes: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Of these, tombstones.
    pub tombstones: u64,
    /// The lowest seq in it.
    pub first_seq: Seq,
    /// The highest seq in it.
    pub last_seq: Seq,
}

/// A sorted run in figures.
#[derive(Clone, Debug, Serialize)]
pub struct RunStatus {
    /// Its name.
    pub id: String,
    /// SSTs in it.
    pub ssts: u64,
    /// Their sizes, added up.
    pub bytes: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Of these, tombstones.
    pub tombstones: u64,
}

impl TreeStatus {
    /// The tree of this manifest.
    pub fn of(manifest: &Manifest) -> Self {
        let sst = |info: &SstInfo| SstStatus {
            id: info.id.to_string(),
            bytes: info.bytes,
            entries: info.entries,
            tombstones: info.tombstones,
            first_seq: info.first_seq,
            last_seq: info.last_seq,
        };
        let run = |info: &RunInfo| RunStatus {
            id: info.id.to_string(),
            ssts: info.ssts,
            bytes: info.bytes,
            entries: info.entries,
            tombstones: info.tombstones,
        };
        Self {
            version: manifest.id.version,
            flushed_seq: manifest.flushed_seq,
            l0: manifest.l0.iter().map(sst).collect(),
            runs: manifest.runs.iter().map(run).collect(),
        }
    }
}

/// What was asked of the object store since the process started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreStatus {
    /// All requests.
    pub requests: u64,
    /// Bytes of objects received.
    pub bytes_in: u64,
    /// Bytes of objects sent.
    pub bytes_out: u64,
    /// What it cost at list prices.
    pub dollars: f64,
    /// The same by operation and kind of object, such as `create wal`.
    pub by_kind: BTreeMap<String, StoreKindStatus>,
}

/// One operation on one kind of object.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreKindStatus {
    /// Requests, each attempt counted.
    pub requests: u64,
    /// Of these, the ones that failed.
    pub errors: u64,
    /// Bytes of objects, received and sent.
    pub bytes: u64,
    /// What they cost at list prices.
    pub dollars: f64,
}

impl StoreStatus {
    fn of(snapshot: &StoreSnapshot) -> Self {
        let mut status = Self { dollars: snapshot.dollars(), ..Self::default() };
        for row in &snapshot.rows {
            status.requests += row.requests;
            status.bytes_in += row.bytes_in;
            status.bytes_out += row.bytes_out;
            let kind = StoreKindStatus {
                requests: row.requests,
                errors: row.errors,
                bytes: row.bytes_in + row.bytes_out,
                dollars: dollars(row.nanodollars),
            };
            let name = format!("{} {}", row.operation.name(), row.kind.name());
            status.by_kind.insert(name, kind);
        }
        status
    }
}

#[expect(clippy::cast_precision_loss, reason = "a sum of money for people to read")]
fn dollars(nanodollars: u64) -> f64 {
    nanodollars as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_are_text_where_they_can_be() {
        let entry = |key, value| {
            let mut out = Vec::new();
            EntryBody { key, value, seq: Seq(12) }.write(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            entry(b"a\"b", Some("\u{e9}".as_bytes())),
            "{\"key\":\"a\\\"b\",\"value\":\"\u{e9}\",\"etag\":\"12\"}"
        );
        assert_eq!(
            entry(&[0xff], Some(&[0xfe, 0])),
            r#"{"key_b64":"/w==","value_b64":"/gA=","etag":"12"}"#
        );
        assert_eq!(entry(b"k", None), r#"{"key":"k","etag":"12"}"#);
    }

    fn bytes(each: impl Strategy<Value = u8>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(each, 1..99)
    }

    proptest! {
        #[test]
        fn an_entry_is_as_long_as_it_was_measured(
            key in prop_oneof![bytes(any::<u8>()), bytes(0..128_u8)],
            value in prop::option::of(prop_oneof![
                "\\PC{0,9}".prop_map(String::into_bytes),
                bytes(any::<u8>()),
            ]),
            seq in prop_oneof![0..100_u64, 0..=Seq::MAX.0],
        ) {
            let entry = EntryBody { key: &key, value: value.as_deref(), seq: Seq(seq) };
            let mut out = Vec::new();
            entry.write(&mut out);
            prop_assert_eq!(entry.written_bytes(), out.len());
        }
    }

    #[test]
    fn every_character_is_as_long_as_it_was_measured() {
        for byte in 0..128 {
            let entry = EntryBody { key: &[byte], value: None, seq: Seq(9) };
            let mut out = Vec::new();
            entry.write(&mut out);
            assert_eq!(entry.written_bytes(), out.len(), "{byte}");
        }
    }

    #[test]
    fn content_types_are_known_or_refused() {
        let kind = |text: &'static str| {
            let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(text))];
            body_kind(&headers.into_iter().collect())
        };
        assert_eq!(kind("application/json; charset=utf-8").unwrap(), BodyKind::Json);
        assert_eq!(kind("Application/X-NDJSON").unwrap(), BodyKind::Ndjson);
        assert_eq!(body_kind(&HeaderMap::new()).unwrap(), BodyKind::Json);
        assert_eq!(kind("text/plain").unwrap_err().code.status(), 415);
    }

    #[test]
    fn status_names_what_applies() {
        let mut status = Status::new("reader", &StoreSnapshot::default());
        status.seq = Some(Seq(7));
        status.put_cache(&CacheStats { memory_hits: 5, ..CacheStats::default() });
        status.more.insert("writer_url", Value::Null);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["role"], &json["seq"]), (&"reader".into(), &7.into()));
        assert!(json.get("durable_seq").is_none());
        assert!(json["memory"]["resident"].as_u64().unwrap() > 0);
        assert_eq!(
            (&json["store"]["requests"], &json["cache"]["memory_hits"]),
            (&0.into(), &5.into())
        );
        assert!(json.get("writer_url").is_some());
    }
}
