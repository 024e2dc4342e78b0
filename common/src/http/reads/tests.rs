//! Tests of the read routes over a made-up view.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::to_bytes;
use axum::extract::Request;
use futures::StreamExt as _;
use http::Response;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use uuid::Uuid;

use super::*;
use crate::clock::SystemClock;
use crate::config::{HttpLimits, Size, WaitLimits};
use crate::env::{Cpu, Env};
use crate::format::manifest::{Manifest, SstInfo};
use crate::format::path::{ManifestId, OutputId};
use crate::format::unknown::Unknown;
use crate::http::api::{NDJSON, Status};
use crate::http::budget::Budgets;
use crate::http::metrics::Metrics;
use crate::http::rows::{Form, Rows, Shows, Slices, Then};
use crate::http::surface::{Node, Surface};
use crate::lsm::memtable::Memtable;
use crate::read::scan::Position;
use crate::read::view::OpenTree;
use crate::store::cache::BlockCache;
use crate::store::damage::Damaged;
use crate::store::metrics::StoreSnapshot;
use crate::store::object::{Bucket, StoreSettings};
use crate::store::sst::{MetaBudget, SstStore};
use crate::types::{Batch, Epoch, Op, Payload, Role};

const NOW_MS: u64 = 1_700_000_000_000;

/// Views in the order in which reloads reveal them.
struct Fixed {
    views: Vec<Arc<View>>,
    reloads: AtomicUsize,
    asked: Mutex<Vec<ReadRequest>>,
}

#[async_trait]
impl Views for Fixed {
    async fn view(&self, request: ReadRequest) -> Answer<Answerable> {
        self.asked.lock().unwrap().push(request);
        let view = Arc::clone(&self.views[self.reloads.load(Ordering::Relaxed)]);
        if request.min_seq.is_some_and(|seq| seq > view.seq) {
            return Err(Problem::new(Code::NotYet, "not that far"));
        }
        Ok(Answerable { view, lag_ms: Some(7), now_ms: NOW_MS })
    }

    async fn reload(&self) -> Result<()> {
        self.reloads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl Node for Fixed {
    fn readiness(&self) -> Answer<()> {
        Ok(())
    }

    fn damaged(&self) -> Vec<Damaged> {
        Vec::new()
    }

    async fn status(&self) -> Status {
        Status::new("reader", &StoreSnapshot::default())
    }
}

/// A view of one memtable: one batch a pair, from seq 1 on.
fn view(pairs: &[(&[u8], &[u8])], l0: Vec<SstInfo>) -> Arc<View> {
    let env = Env { cpu: Cpu::Inline, ..Env::system() };
    let bucket = Bucket::open("memory://", StoreSettings::default(), env.clone()).unwrap();
    let (database, cache) = (Uuid::from_u128(1), BlockCache::memory_only(1 << 20));
    let ssts = Arc::new(SstStore::new(bucket, database, cache, MetaBudget { bytes: 1 << 20 }, env));
    let id = ManifestId { version: 1, uuid: Uuid::from_u128(2) };
    let manifest = Manifest { l0, ..Manifest::empty(database, id) };
    let tree = OpenTree::new(&ssts, Arc::new(manifest), None);
    let memtable = Memtable::new();
    let mut seq = Seq::ZERO;
    for (key, value) in pairs {
        seq = seq.next();
        let payload = Payload::Value(Bytes::copy_from_slice(value));
        let op = Op { key: Bytes::copy_from_slice(key), payload, expires_ms: None };
        memtable.insert(&Batch { seq, ops: vec![op] });
    }
    Arc::new(View::new(vec![Arc::new(memtable)], Arc::new(tree), seq))
}

/// An SST that is in no bucket.
fn gone() -> SstInfo {
    let id = OutputId { role: Role::Writer, epoch: Epoch(1), uuid: Uuid::from_u128(3) };
    SstInfo {
        id,
        bytes: 1000,
        meta_offset: 500,
        entries: 1,
        tombstones: 0,
        operands: 0,
        first_key: "a".into(),
        last_key: "z".into(),
        first_seq: Seq(1),
        last_seq: Seq(1),
        wal: None,
        expires: None,
        home: None,
        unknown: Unknown::default(),
    }
}

struct Site {
    views: Arc<Fixed>,
    router: Router,
}

impl Site {
    fn new(views: Vec<Arc<View>>) -> Self {
        Self::with_limits(views, HttpLimits::default())
    }

    fn with_limits(views: Vec<Arc<View>>, limits: HttpLimits) -> Self {
        let views =
            Arc::new(Fixed { views, reloads: AtomicUsize::new(0), asked: Mutex::default() });
        let metrics = Arc::new(Metrics::new("reader"));
        let clock = Arc::new(SystemClock::default());
        let surface = Surface::new(limits, metrics, clock);
        let router = surface.data(Arc::clone(&views), routes(Arc::clone(&views)));
        Self { views, router }
    }

    async fn ask(&self, request: http::request::Builder, body: &str) -> (Response<()>, Vec<u8>) {
        let request: Request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        (Response::from_parts(parts, ()), body)
    }

    async fn get(&self, uri: &str, headers: &[(&str, &str)]) -> (Response<()>, Vec<u8>) {
        let request = Request::get(uri);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.ask(request, "").await
    }

    async fn json(&self, uri: &str) -> (u16, Value) {
        let (response, body) = self.get(uri, &[]).await;
        (response.status().as_u16(), serde_json::from_slice(&body).unwrap())
    }

    async fn lines(&self, uri: &str) -> Vec<Value> {
        let (response, body) = self.get(uri, &[("accept", "application/x-ndjson")]).await;
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }
}

fn site() -> Site {
    let pairs: [(&[u8], &[u8]); 4] =
        [(b"a/1", b"one"), (b"a/2", b"\xff"), (b"b", b""), (b"\xfe", b"x")];
    Site::new(vec![view(&pairs, vec![])])
}

#[tokio::test]
async fn a_value_is_answered_raw_with_its_headers() {
    let site = site();
    let (response, body) = site.get("/v1/kv/a/1", &[]).await;
    assert_eq!((response.status().as_u16(), &body[..]), (200, &b"one"[..]));
    let headers = response.headers();
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("etag", "\"1\""),
        ("cairn-seq", "4"),
        ("cairn-lag-ms", "7"),
        ("content-length", "3"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    let (head, body) = site.ask(Request::head("/v1/kv/a/1"), "").await;
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-length"]),
        (200, &"3".parse().unwrap())
    );
    assert!(body.is_empty());
    let (head, body) = site.ask(Request::head("/v1/kv/none"), "").await;
    assert_eq!((head.status().as_u16(), body.len()), (404, 0));
}

#[tokio::test]
async fn a_missing_key_says_of_which_view() {
    let (response, body) = site().get("/v1/kv/none", &[("if-match", "*")]).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((response.status().as_u16(), &body["code"]), (404, &json!("not_found")));
    assert_eq!(response.headers()["cairn-seq"], "4");
    assert!(body.get("outcome").is_none());
}

#[tokio::test]
async fn conditions_are_judged_by_the_etag() {
    let site = site();
    for (name, value, status) in [
        ("if-none-match", "\"1\"", 304),
        ("if-none-match", "W/\"1\", \"9\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"2\"", 200),
        ("if-match", "\"1\"", 200),
        ("if-match", "*", 200),
        ("if-match", "\"2\"", 412),
        ("if-match", "1", 400),
    ] {
        let (response, body) = site.get("/v1/kv/a/1", &[(name, value)]).await;
        assert_eq!(response.status(), status, "{name}: {value}");
        assert!(status != 304 || body.is_empty());
        if status == 304 || status == 412 {
            assert_eq!(response.headers()["etag"], "\"1\"");
            assert_eq!(response.headers()["cairn-seq"], "4");
        }
    }
}

#[tokio::test]
async fn what_a_read_asks_reaches_the_views() {
    let site = site();
    let headers = [("cairn-min-seq", "4"), ("cairn-allow-stale", "true"), ("cairn-timeout", "2s")];
    assert_eq!(site.get("/v1/kv/b?level=memory", &headers).await.0.status(), 200);
    let asked = *site.views.asked.lock().unwrap().last().unwrap();
    assert_eq!(asked.min_seq, Some(Seq(4)));
    assert_eq!((asked.level, asked.staleness), (Level::Memory, Staleness::Any));
    assert!(asked.deadline.remaining() <= std::time::Duration::from_secs(2));
    let (response, _) = site.get("/v1/kv/b", &[("cairn-min-seq", "5")]).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    for uri in ["/v1/kv/b?level=both", "/v1/kv/b?ttl=1s", "/v1/kv?lim=1"] {
        assert_eq!(site.json(uri).await.1["code"], "invalid_argument", "{uri}");
    }
}

#[tokio::test]
async fn pages_follow_the_cursor() {
    let site = site();
    let (status, page) = site.json("/v1/kv").await;
    assert_eq!(status, 200);
    assert_eq!(
        page,
        json!({"seq": 4, "cursor": null, "entries": [
            {"key": "a/1", "value": "one", "etag": "1"},
            {"key": "a/2", "value_b64": "/w==", "etag": "2"},
            {"key": "b", "value": "", "etag": "3"},
            {"key_b64": "/g==", "value": "x", "etag": "4"},
        ]})
    );
    for reverse in ["false", "true"] {
        let mut keys = Vec::new();
        let mut uri = format!("/v1/kv?limit=1&keys_only=true&start=a&end_b64=_w&reverse={reverse}");
        let base = uri.clone();
        loop {
            let (_, page) = site.json(&uri).await;
            for entry in page["entries"].as_array().unwrap() {
                assert!(entry.get("value").is_none());
                keys.push(entry.get("key").or(entry.get("key_b64")).unwrap().clone());
            }
            let Some(cursor) = page["cursor"].as_str() else { break };
            uri = format!("{base}&cursor={cursor}");
        }
        if reverse == "true" {
            keys.reverse();
        }
        assert_eq!(keys, ["a/1", "a/2", "b", "/g=="]);
    }
}

#[tokio::test]
async fn a_page_that_ends_exactly_at_its_limit_has_no_cursor() {
    let (_, page) = site().json("/v1/kv?prefix=a/&limit=2").await;
    assert_eq!((page["entries"].as_array().unwrap().len(), &page["cursor"]), (2, &Value::Null));
}

#[tokio::test]
async fn bounds_are_understood_or_refused() {
    let site = site();
    let count = async |uri: &str| site.json(uri).await.1["entries"].as_array().unwrap().len();
    assert_eq!(count("/v1/kv?prefix=a%2F").await, 2);
    for encoded in ["_g", "_g==", "_g%3D%3D"] {
        assert_eq!(count(&format!("/v1/kv?prefix_b64={encoded}")).await, 1, "{encoded}");
    }
    assert_eq!(count("/v1/kv?start=a/2&end=b").await, 1);
    assert_eq!(count("/v1/kv?start=b&end=a").await, 0);
    assert_eq!(count("/v1/kv?limit=1000000").await, 4);
    let cursor = site.json("/v1/kv?limit=1").await.1["cursor"].as_str().unwrap().to_owned();
    for uri in [
        "/v1/kv?prefix=a&start=a",
        "/v1/kv?prefix=a&prefix_b64=YQ",
        "/v1/kv?start_b64=%2Fw",
        "/v1/kv?start_b64=_",
        "/v1/kv?limit=0",
        "/v1/kv?limit=x",
        "/v1/kv?reverse=yes",
        "/v1/kv?cursor=x",
        &format!("/v1/kv?prefix=a&cursor={cursor}"),
        &format!("/v1/kv?reverse=true&cursor={cursor}"),
    ] {
        let (status, body) = site.json(uri).await;
        assert_eq!((status, &body["code"]), (400, &json!("invalid_argument")), "{uri}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_end_line() {
    let site = site();
    let lines = site.lines("/v1/kv").await;
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0], json!({"key": "a/1", "value": "one", "etag": "1"}));
    assert_eq!(lines[4], json!({"end": true, "seq": 4, "cursor": null}));
    let lines = site.lines("/v1/kv?limit=2").await;
    let cursor = lines[2]["cursor"].as_str().unwrap();
    let rest = site.lines(&format!("/v1/kv?cursor={cursor}")).await;
    assert_eq!((lines.len(), rest.len(), &rest[0]["key"]), (3, 3, &json!("b")));
}

#[tokio::test]
async fn long_streams_come_in_pieces() {
    let keys: Vec<_> = (0..5_000).map(|index| format!("{index:05}").into_bytes()).collect();
    let pairs: Vec<_> = keys.iter().map(|key| (&key[..], &[b'v'; 100][..])).collect();
    let site = Site::new(vec![view(&pairs, vec![])]);
    let lines = site.lines("/v1/kv").await;
    assert_eq!(lines.len(), 5_001);
    assert_eq!(lines[4_999]["key"], "04999");
    assert_eq!(lines[5_000]["end"], true);
    assert_eq!(site.json("/v1/kv").await.1["entries"].as_array().unwrap().len(), 1_000);
}

#[tokio::test]
async fn many_keys_are_answered_in_order() {
    let site = site();
    let body = r#"{"keys":["b","none",{"b64":"/g=="},"b"]}"#;
    let (response, body) = site.ask(Request::post("/v1/get"), body).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["cairn-seq"]),
        (200, &"4".parse().unwrap())
    );
    let b = json!({"key": "b", "value": "", "etag": "3"});
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap(),
        json!({"seq": 4, "entries": [b, null, {"key_b64": "/g==", "value": "x", "etag": "4"}, b]})
    );
    let (response, _) = site.ask(Request::post("/v1/get"), "{").await;
    assert_eq!(response.status(), 400);
    let request = Request::post("/v1/get").header("content-type", "text/plain");
    assert_eq!(site.ask(request, "").await.0.status(), 415);
}

/// As many times the key `a`.
fn keys(count: usize) -> String {
    format!("{{\"keys\":[{}]}}", vec!["\"a\""; count].join(","))
}

async fn status_of_get(site: &Site, body: &str) -> u16 {
    site.ask(Request::post("/v1/get"), body).await.0.status().as_u16()
}

#[tokio::test]
async fn a_multi_get_has_a_bound_on_its_reply() {
    let value = vec![b'x'; GET_REPLY_BYTES_MAX / 2];
    let site = Site::new(vec![view(&[(b"a", &value)], vec![])]);
    assert_eq!(status_of_get(&site, &keys(2)).await, 200);
    assert_eq!(status_of_get(&site, &keys(3)).await, 413);
}

#[tokio::test]
async fn escapes_count_against_the_bound_of_a_multi_get() {
    // Six bytes each as JSON.
    let value = vec![0; GET_REPLY_BYTES_MAX / 12];
    let site = Site::new(vec![view(&[(b"a", &value)], vec![])]);
    assert_eq!(status_of_get(&site, &keys(2)).await, 200);
    assert_eq!(status_of_get(&site, &keys(64)).await, 413);
}

#[test]
fn keys_are_looked_up_together_as_far_as_their_values_are_small() {
    let found = |bytes| {
        let value = Bytes::from(vec![0; bytes]);
        Some(Found { value, seq: Seq(1), expires_ms: None })
    };
    let mut together = Together::default();
    let mut learn = |found| {
        together.learn(&[found, None]);
        together.keys
    };
    assert_eq!(learn(None), 16);
    assert_eq!([learn(found(1)), learn(None), learn(None)], [32, 64, 64]);
    assert_eq!(learn(found(GET_TOGETHER_BYTES / 3)), 3);
    assert_eq!(learn(found(1)), 3);
    assert_eq!(learn(found(2 * GET_TOGETHER_BYTES)), 1);
}

#[tokio::test]
async fn replies_are_counted_until_they_are_taken() {
    let value = vec![b'x'; 600 << 10];
    let view = view(&[(b"a", &value), (b"b", &value)], vec![]);
    let limits = HttpLimits { reply_memory: Size(1 << 20), ..HttpLimits::default() };
    let site = Site::with_limits(vec![view], limits);
    let ask = async |uri: &str| {
        let request = Request::get(uri).header("accept", NDJSON).body(Body::empty()).unwrap();
        site.router.clone().oneshot(request).await.unwrap()
    };
    for uri in ["/v1/kv/a", "/v1/kv?prefix=a"] {
        let reply = ask(uri).await;
        assert_eq!(reply.status(), 200, "{uri}");
        assert_eq!(ask("/v1/kv/b").await.status(), 503, "{uri}");
        assert_eq!(ask("/v1/kv?prefix=b").await.status(), 503, "{uri}");
        assert_eq!(status_of_get(&site, &keys(1)).await, 503, "{uri}");
        assert_eq!(site.json("/v1/kv?prefix=b").await.1["code"], "overloaded");
        // What a connection has not sent yet is all that is left of a reply.
        let bytes: Vec<_> = reply.into_body().into_data_stream().collect().await;
        assert_eq!(ask("/v1/kv/b").await.status(), 503, "{uri}");
        drop(bytes);
    }
    assert_eq!(site.json("/v1/kv?limit=1").await.0, 200);
    let (status, page) = site.json("/v1/kv").await;
    assert_eq!(status, 200, "both are more than there may be: the page ends early");
    assert_eq!(page["entries"].as_array().unwrap().len(), 1);
    let rest = format!("/v1/kv?cursor={}", page["cursor"].as_str().unwrap());
    assert_eq!(site.json(&rest).await.1["entries"][0]["key"], "b");
}

#[tokio::test(start_paused = true)]
async fn a_stream_waits_for_room_and_not_for_ever() {
    let value = vec![b'x'; 600 << 10];
    let view = view(&[(b"a", &value), (b"b", &value)], vec![]);
    let limits = HttpLimits { reply_memory: Size(1 << 20), ..HttpLimits::default() };
    let site = Site::with_limits(vec![view], limits);
    let ask = async || {
        let request = Request::get("/v1/kv").header("accept", NDJSON).body(Body::empty()).unwrap();
        let response = site.router.clone().oneshot(request).await.unwrap();
        response.into_body().into_data_stream()
    };
    let mut stream = ask().await;
    let first = stream.next().await.unwrap().unwrap();
    let later = async {
        tokio::time::sleep(std::time::Duration::from_secs(9)).await;
        drop(first);
    };
    let (second, ()) = futures::join!(stream.next(), later);
    assert!(second.unwrap().is_ok());
    drop(stream);
    let mut stream = ask().await;
    let first = stream.next().await.unwrap().unwrap();
    assert!(stream.next().await.unwrap().is_err(), "nobody takes the first piece");
    drop(first);
}

#[tokio::test]
async fn a_request_is_restarted_once_when_an_object_is_gone() {
    // Each has a memory of its own of what is missing.
    let damaged = || view(&[], vec![gone()]);
    let sound = view(&[(b"k", b"v")], vec![]);
    for uri in ["/v1/kv/k", "/v1/kv?prefix=k"] {
        let site = Site::new(vec![damaged(), Arc::clone(&sound)]);
        assert_eq!(site.get(uri, &[]).await.0.status(), 200, "{uri}");
        assert_eq!(site.views.reloads.load(Ordering::Relaxed), 1);
        let site = Site::new(vec![damaged(), damaged(), Arc::clone(&sound)]);
        let (status, body) = site.json(uri).await;
        assert_eq!((status, &body["code"]), (500, &json!("corrupt")), "{uri}");
    }
    let site = Site::new(vec![damaged(), sound]);
    assert_eq!(site.lines("/v1/kv").await.len(), 2);
    let site = Site::new(vec![damaged(), damaged()]);
    let body = r#"{"keys":["k"]}"#;
    assert_eq!(site.ask(Request::post("/v1/get"), body).await.0.status(), 500);
}

/// A view whose one SST never answers.
fn silent(pairs: &[(&[u8], &[u8])]) -> Arc<View> {
    let env = Env { cpu: Cpu::Inline, ..Env::system() };
    let day = std::time::Duration::from_hours(24);
    let wait = ThrottleConfig { wait_get_per_call: day, ..ThrottleConfig::default() };
    let store = Arc::new(ThrottledStore::new(InMemory::new(), wait));
    let bucket = Bucket::new(store, "db", StoreSettings::default(), env.clone()).unwrap();
    let (database, cache) = (Uuid::from_u128(1), BlockCache::memory_only(1 << 20));
    let ssts = Arc::new(SstStore::new(bucket, database, cache, MetaBudget { bytes: 1 << 20 }, env));
    let view = view(pairs, vec![]);
    let id = ManifestId { version: 1, uuid: Uuid::from_u128(2) };
    let first_key = Bytes::from("m");
    let l0 = vec![SstInfo { first_key, ..gone() }];
    let manifest = Manifest { l0, ..Manifest::empty(database, id) };
    let tree = OpenTree::new(&ssts, Arc::new(manifest), None);
    Arc::new(View::new(view.memtables.clone(), Arc::new(tree), view.seq))
}

#[tokio::test(start_paused = true)]
async fn a_page_that_meets_its_deadline_ends_with_a_cursor() {
    let site = Site::new(vec![silent(&[(b"a", b"1"), (b"b", b"2")])]);
    for reverse in [false, true] {
        let uri = format!("/v1/kv?reverse={reverse}");
        let (status, page) = site.json(&uri).await;
        assert_eq!((status, &page["entries"]), (200, &json!([])), "{page}");
        // Nothing was examined: the rest is all of it.
        let cursor = page["cursor"].as_str().unwrap();
        let (status, again) = site.json(&format!("{uri}&cursor={cursor}")).await;
        assert_eq!((status, &again["cursor"]), (200, &page["cursor"]));
    }
    let bounded = site.json("/v1/kv?end=m").await.1;
    assert_eq!(
        (bounded["entries"].as_array().unwrap().len(), &bounded["cursor"]),
        (2, &Value::Null)
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_row_by_its_deadline_has_a_head() {
    let site = Site::new(vec![silent(&[])]);
    let request = Request::get("/v1/kv").header("accept", NDJSON).body(Body::empty()).unwrap();
    let reply = site.router.clone().oneshot(request).await.unwrap();
    assert_eq!(reply.status(), 200);
    let mut pieces = reply.into_body().into_data_stream();
    assert!(pieces.next().await.unwrap().is_err(), "and breaks off when the store is given up");
}

#[tokio::test]
async fn pages_go_on_through_keys_that_are_not_live() {
    let dead = |number: u64| {
        let op = Op { key: forest_key(number), payload: Payload::Tombstone, expires_ms: None };
        Batch { seq: Seq(number + 1), ops: vec![op] }
    };
    let memtable = Memtable::new();
    for number in 0..5_000 {
        memtable.insert(&dead(number));
    }
    let op = Op { key: "z".into(), payload: Payload::Value("x".into()), expires_ms: None };
    memtable.insert(&Batch { seq: Seq(5_001), ops: vec![op] });
    let empty = view(&[], vec![]);
    let view = View::new(vec![Arc::new(memtable)], Arc::clone(&empty.tree), Seq(5_001));
    let mut rows = Rows::new(
        view.scan(&crate::types::KeyRange::all(), crate::types::Direction::Forward, 0),
        (Shows::KeysAndValues, Form::Page),
        10,
        Budgets::new(&HttpLimits::default()).replies,
    );
    rows.begin("[").unwrap();
    let env = Env { cpu: Cpu::Inline, ..Env::system() };
    let mut slices = Slices::new(rows, env.cpu.clone(), Arc::clone(&env.clock));
    let mut last = 0;
    loop {
        let then = slices.next(None).await.unwrap().unwrap();
        if matches!(then, Then::End) {
            break;
        }
        assert!(matches!(then, Then::Pause), "{then:?}");
        let Position::After(key) = slices.rows().position() else {
            panic!("it has come somewhere")
        };
        if key[..] == *b"z" {
            continue;
        }
        let seen: u64 = std::str::from_utf8(&key[1..]).unwrap().parse().unwrap();
        assert!(seen > last, "each slice gets on");
        last = seen;
    }
    assert!(last > 0);
    let draft = slices.rows().take_draft().unwrap();
    assert!(draft.into_bytes().ends_with(b"\"etag\":\"5001\"}"));
}

fn forest_key(number: u64) -> Bytes {
    format!("k{number:08}").into()
}

#[tokio::test]
async fn scans_have_no_place_and_a_bound_of_their_own() {
    let waits = WaitLimits { scans_max: 1, ..WaitLimits::default() };
    let limits = HttpLimits { requests_max: 1, waits, ..HttpLimits::default() };
    let site = Site::with_limits(vec![view(&[(b"a", b"1")], vec![])], limits);
    let request = Request::get("/v1/kv").header("accept", NDJSON).body(Body::empty()).unwrap();
    let stream = site.router.clone().oneshot(request).await.unwrap();
    assert_eq!(site.json("/v1/kv").await.1["code"], "overloaded", "one scan is under way");
    assert_eq!(site.get("/v1/kv/a", &[]).await.0.status(), 200);
    drop(stream);
    assert_eq!(site.json("/v1/kv").await.0, 200);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_key_can_be_read_back(key in prop::collection::vec(any::<u8>(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let site = Site::new(vec![view(&[(&key, b"v")], vec![])]);
            let (response, body) = site.get(&Key::to_path(&key), &[]).await;
            assert_eq!((response.status().as_u16(), &body[..]), (200, &b"v"[..]));
            let (_, page) = site.json("/v1/kv").await;
            assert_eq!(page["entries"].as_array().unwrap().len(), 1);
        });
    }
}
