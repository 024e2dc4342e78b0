//! The contract of the writer's routes: status, code, outcome and headers.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::limits::VALUE_BYTES_MAX;
use serde_json::json;
use tokio::time::Instant;

use super::site::Site;
use crate::node::Phase;

/// Method, target, headers, body, and what is told.
type Row = (&'static str, &'static str, &'static [Header], &'static str, &'static str);
type Header = (&'static str, &'static str);

/// Asks in this order, each on what the ones before have left.
const CONTRACT: &[Row] = &[
    ("PUT", "/v1/kv/a", &[], "1", "204"),
    ("PUT", "/v1/kv/a?durable=true", &[], "1", "204"),
    ("PUT", "/v1/kv/a?durable=false", &[], "1", "204"),
    ("PUT", "/v1/kv/a?durable=maybe", &[], "x", "400 invalid_argument not_applied"),
    ("PUT", "/v1/kv/a?ttl=90s", &[], "x", "400 invalid_argument not_applied"),
    ("PUT", "/v1/kv/a", &[("cairn-timeout", "soon")], "x", "400 invalid_argument not_applied"),
    ("PUT", "/v1/kv/", &[], "x", "400 invalid_key not_applied"),
    ("PUT", "/v1/kv/a/../b", &[], "x", "400 invalid_key not_applied"),
    ("PUT", "/v1/kv64/YS8uLi9i", &[], "1", "204"),
    ("PUT", "/v1/kv64/*", &[], "x", "400 invalid_key not_applied"),
    ("DELETE", "/v1/kv/a", &[], "", "204"),
    ("DELETE", "/v1/kv/never", &[], "", "204"),
    ("DELETE", "/v1/kv/a?durable=false", &[], "", "204"),
    ("DELETE", "/v1/kv/a?durable=x", &[], "", "400 invalid_argument not_applied"),
    ("GET", "/v1/kv/a", &[], "", "404 not_found"),
    // Conditions on what is not there.
    ("PUT", "/v1/kv/c", &[("if-match", "*")], "x", "412 precondition not_applied"),
    ("PUT", "/v1/kv/c", &[("if-match", "\"1\"")], "x", "412 precondition not_applied"),
    ("PUT", "/v1/kv/c", &[("if-match", "nonsense")], "x", "400 invalid_argument not_applied"),
    ("DELETE", "/v1/kv/c", &[("if-match", "*")], "", "412 precondition not_applied"),
    ("DELETE", "/v1/kv/c", &[("if-none-match", "*")], "", "204"),
    ("PUT", "/v1/kv/c", &[("if-none-match", "*")], "1", "204"),
    // And on what is.
    ("PUT", "/v1/kv/c", &[("if-none-match", "*")], "x", "412 precondition not_applied"),
    ("PUT", "/v1/kv/c", &[("if-match", "\"1\"")], "x", "412 precondition not_applied"),
    ("PUT", "/v1/kv/c", &[("if-none-match", "\"1\"")], "2", "204"),
    ("PUT", "/v1/kv/c", &[("if-match", "*")], "3", "204"),
    ("DELETE", "/v1/kv/c", &[("if-none-match", "*")], "", "412 precondition not_applied"),
    ("DELETE", "/v1/kv/c", &[("if-match", "\"1\"")], "", "412 precondition not_applied"),
    ("GET", "/v1/kv/c", &[("if-none-match", "*")], "", "304"),
    ("DELETE", "/v1/kv/c", &[("if-match", "*")], "", "204"),
    ("PUT", "/v1/kv/c", &[("if-match", "*")], "x", "412 precondition not_applied"),
    // Reads.
    ("PUT", "/v1/kv/r", &[], "1", "204"),
    ("GET", "/v1/kv/r?level=durable", &[], "", "200"),
    ("GET", "/v1/kv/r?level=memory", &[], "", "200"),
    ("GET", "/v1/kv/r?level=junk", &[], "", "400 invalid_argument"),
    ("GET", "/v1/kv/r", &[("cairn-min-seq", "1")], "", "200"),
    ("GET", "/v1/kv/r", &[("cairn-min-seq", "one")], "", "400 invalid_argument"),
    ("GET", "/v1/kv?prefix=r", &[], "", "200"),
    ("POST", "/v1/get", &[], r#"{"keys":["r","none"]}"#, "200"),
    // Batches and flushes.
    ("POST", "/v1/batch", &[], r#"{"ops":[{"op":"put","key":"b","value":"1"}]}"#, "200"),
    (
        "POST",
        "/v1/batch",
        &[],
        r#"{"ops":[{"op":"put","key":"half","value":"1"},{"op":"delete","key":""}]}"#,
        "400 invalid_key not_applied",
    ),
    (
        "POST",
        "/v1/batch",
        &[],
        r#"{"ops":[{"op":"put","key":"half","value":"1"},{"op":"burn","key":"x"}]}"#,
        "400 invalid_body not_applied",
    ),
    ("POST", "/v1/batch", &[], "{", "400 invalid_body not_applied"),
    ("POST", "/v1/batch?durable=x", &[], "{}", "400 invalid_argument not_applied"),
    ("POST", "/v1/batch", &[("content-type", "text/html")], "x", "415 media_type not_applied"),
    ("GET", "/v1/kv/half", &[], "", "404 not_found"),
    ("POST", "/v1/flush", &[], "", "200"),
    ("POST", "/v1/flush?now=1", &[], "", "400 invalid_argument"),
    // What is not there, or not like that.
    ("GET", "/v1/nothing", &[], "", "404 no_route"),
    ("PUT", "/v1/nothing", &[], "x", "404 no_route not_applied"),
    ("POST", "/v1/kv/r", &[], "1", "404 no_route not_applied"),
    ("POST", "/v1/kv/r?merge=add", &[], "1", "400 invalid_argument not_applied"),
    ("PATCH", "/v1/kv/r", &[], "", "405 method"),
    ("PUT", "/v1/kv", &[], "x", "405 method not_applied"),
    ("DELETE", "/v1/batch", &[], "", "405 method not_applied"),
    ("GET", "/v1/flush", &[], "", "405 method"),
    ("GET", "/readyz", &[], "", "200"),
    ("GET", "/v1/status", &[], "", "200"),
];

#[tokio::test(start_paused = true)]
async fn every_route_answers_as_the_contract_says() {
    let site = Site::new(&[]).await;
    for (method, uri, headers, body, want) in CONTRACT {
        let reply = site.ask(method, uri, headers, *body).await;
        assert_eq!(reply.told(), *want, "{method} {uri} {headers:?}: {reply:?}");
        let is_data = uri.starts_with("/v1/kv") || uri.starts_with("/v1/b");
        if matches!(reply.status, 200 | 204) && is_data {
            assert!(reply.header("cairn-seq").is_some(), "{method} {uri}: {reply:?}");
        }
        if reply.status == 405 {
            assert!(reply.header("allow").is_some_and(|allow| !allow.is_empty()), "{reply:?}");
        }
        if reply.status >= 400 {
            assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_tells_its_seq_and_a_condition_its_etag() {
    let site = Site::new(&[]).await;
    let first = site.put("/v1/kv/k", &[]).await;
    let seq = first.header("cairn-seq").unwrap().to_owned();
    let etag = format!("\"{seq}\"");
    assert_eq!(first.header("etag"), Some(&*etag));
    let found = site.get("/v1/kv/k", &[]).await;
    assert_eq!((found.header("etag"), found.body.as_str()), (Some(&*etag), "value"));
    assert_eq!(found.header("content-type"), Some("application/octet-stream"));

    let refused = site.put("/v1/kv/k", &[("if-none-match", "*")]).await;
    assert_eq!((refused.status, refused.header("etag")), (412, Some(&*etag)));
    let second = site.put("/v1/kv/k", &[("if-match", &etag)]).await;
    assert_eq!(second.status, 204);
    let stale = site.ask("DELETE", "/v1/kv/k", &[("if-match", &etag)], "").await;
    assert_eq!((stale.status, stale.header("etag")), (412, second.header("etag")));
    let absent = site.put("/v1/kv/none", &[("if-match", &etag)]).await;
    assert_eq!((absent.status, absent.header("etag")), (412, None));

    let gone = site.ask("DELETE", "/v1/kv/k", &[], "").await;
    assert_eq!((gone.status, gone.header("etag")), (204, None));
    let number = |reply: &str| reply.parse::<u64>().unwrap();
    assert!(number(gone.header("cairn-seq").unwrap()) > number(&seq));
    let batch = r#"{"ops":[{"op":"put","key":"x","value":"1"},{"op":"delete","key":"y"}]}"#;
    let batch = site.ask("POST", "/v1/batch", &[], batch).await;
    assert_eq!(batch.header("cairn-seq"), Some(&*batch.json()["seq"].to_string()));
    let flushed = site.ask("POST", "/v1/flush", &[], "").await;
    assert_eq!(flushed.json()["seq"], batch.json()["seq"]);
    let status = site.get("/v1/status", &[]).await.json();
    assert_eq!(status["tree"]["l0"].as_array().map(Vec::len), Some(1));
    assert_eq!(status["durable_seq"], batch.json()["seq"]);
}

#[tokio::test(start_paused = true)]
async fn a_value_beyond_the_limit_is_refused() {
    let site = Site::new(&[]).await;
    let reply = site.ask("PUT", "/v1/kv/k", &[], vec![b'x'; VALUE_BYTES_MAX + 1]).await;
    assert_eq!(reply.told(), "413 too_large not_applied");
    let reply = site.ask("PUT", "/v1/kv/k", &[], vec![b'x'; VALUE_BYTES_MAX]).await;
    assert_eq!(reply.told(), "204");
}

#[tokio::test(start_paused = true)]
async fn a_seq_that_was_never_given_is_not_waited_for() {
    let site = Site::new(&[]).await;
    let seq = site.put("/v1/kv/k", &[]).await.header("cairn-seq").unwrap().parse::<u64>().unwrap();
    for far in [seq + 1, (1 << 53) - 1] {
        let far = far.to_string();
        for level in ["durable", "memory"] {
            let uri = format!("/v1/kv/k?level={level}");
            let began = Instant::now();
            let reply = site.get(&uri, &[("cairn-min-seq", &*far), ("cairn-timeout", "3s")]).await;
            assert_eq!(reply.told(), "503 not_yet", "{level}: {reply:?}");
            assert_eq!(began.elapsed(), Duration::ZERO, "{level}");
            assert_eq!(reply.header("retry-after"), Some("1"));
            assert_eq!(reply.header("cairn-seq"), Some(&*seq.to_string()));
        }
    }
    let beyond = site.get("/v1/kv/k", &[("cairn-min-seq", "9007199254740992")]).await;
    assert_eq!(beyond.told(), "400 invalid_argument");
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_a_seq_that_was_given() {
    let site = Site::new(&[]).await;
    site.put("/v1/kv/k", &[]).await;
    // The pacing of the log is over by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    site.rig.slow_down();
    let written = site.put("/v1/kv/k?durable=false", &[]).await;
    let headers = [("cairn-min-seq", written.header("cairn-seq").unwrap())];
    let began = Instant::now();
    let (memory, durable) = tokio::join!(
        async { (site.get("/v1/kv/k?level=memory", &headers).await, began.elapsed()) },
        async { (site.get("/v1/kv/k", &headers).await, began.elapsed()) },
    );
    assert_eq!((memory.0.status, memory.1), (200, Duration::ZERO));
    assert_eq!((durable.0.status, durable.1), (200, super::PUT));
}

#[tokio::test(start_paused = true)]
async fn writes_to_a_store_that_is_away_say_what_is_certain() {
    let site = Site::new(&[("wal_window", "1"), ("wal_bytes_max", "1KiB")]).await;
    site.put("/v1/kv/flushed", &[]).await;
    site.ask("POST", "/v1/flush", &[], "").await;
    site.rig.take_away();
    // The key's block must be read before anything is sent.
    let conditional = [("if-match", "*"), ("cairn-timeout", "1s")];
    assert_eq!(site.put("/v1/kv/flushed", &conditional).await.told(), "504 timeout not_applied");
    let patient = [("if-match", "*"), ("cairn-timeout", "60s")];
    let told = site.put("/v1/kv/flushed", &patient).await.told();
    assert_eq!(told, "503 store_unavailable not_applied");
    // This one is sent, and may land.
    let hasty = [("cairn-timeout", "1s")];
    assert_eq!(site.put("/v1/kv/sent", &hasty).await.told(), "504 timeout unknown");
    // What is acknowledged from memory needs the lease, which has run out.
    let promise = site.ask("PUT", "/v1/kv/loose?durable=false", &hasty, "x").await;
    assert_eq!(promise.told(), "504 timeout not_applied");
    // The window is full: this one fills the open group, and the next finds no room.
    let filling = site.ask("PUT", "/v1/kv/group", &hasty, vec![b'x'; 2048]).await;
    assert_eq!(filling.told(), "504 timeout unknown");
    assert_eq!(site.put("/v1/kv/room", &hasty).await.told(), "504 timeout not_applied");
    let batch = r#"{"ops":[{"op":"put","key":"x","value":"1"}]}"#;
    let batch = site.ask("POST", "/v1/batch", &hasty, batch).await;
    assert_eq!(batch.told(), "504 timeout not_applied");
    assert_eq!(site.ask("DELETE", "/v1/kv/x", &hasty, "").await.told(), "504 timeout not_applied");
    // Reads need the lease, which has run out.
    assert_eq!(site.get("/v1/kv/sent", &hasty).await.told(), "504 timeout");
    assert_eq!(site.ask("POST", "/v1/flush", &hasty, "").await.told(), "504 timeout");
}

#[tokio::test(start_paused = true)]
async fn writes_to_a_writer_that_has_ended_say_what_is_certain() {
    let mut site = Site::new(&[]).await;
    let _new = site.rig.open(&[]).await;
    assert_eq!(site.put("/v1/kv/k", &[]).await.told(), "503 fenced unknown");
    site.engine.failed().await;
    assert_eq!(site.put("/v1/kv/k", &[]).await.told(), "503 fenced not_applied");
    assert_eq!(site.ask("DELETE", "/v1/kv/k", &[], "").await.told(), "503 fenced not_applied");
    assert_eq!(site.get("/v1/kv/k", &[]).await.told(), "503 fenced");

    let mut closed = Site::new(&[]).await;
    let Site { rig, engine, .. } = &mut closed;
    let engine = std::mem::replace(engine, rig.open(&[]).await);
    let writer = Arc::clone(engine.writer());
    closed.phase.send_replace(Phase::Leaving(writer));
    drop(engine);
    let told = closed.get("/readyz", &[]).await.told();
    assert!(told.starts_with("503 standby"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn metrics_and_status_tell_what_the_writer_does() {
    let site = Site::new(&[("wal_window", "3")]).await;
    site.rig.slow_down();
    for _ in 0..3 {
        site.put("/v1/kv/k", &[]).await;
    }
    site.ask("POST", "/v1/flush", &[], "").await;
    let newest = site.put("/v1/kv/k?durable=false", &[]).await;
    tokio::time::sleep(super::PUT / 2).await;
    let text = site.get("/ops/metrics", &[]).await.body;
    let status = site.get("/v1/status", &[]).await.json();
    let newest = newest.header("cairn-seq").unwrap();
    for line in [
        "cairn_writer_phase{phase=\"serving\"} 1".to_owned(),
        "cairn_writer_phase{phase=\"standby\"} 0".to_owned(),
        format!("cairn_writer_epoch {}", status["epoch"]),
        format!("cairn_writer_durable_seq {}", status["durable_seq"]),
        format!("cairn_writer_newest_seq {newest}"),
        "cairn_writer_unflushed_bytes_max 268435456".to_owned(),
        "cairn_writer_frozen_memtables 0".to_owned(),
        "cairn_writer_l0_ssts 1".to_owned(),
        "cairn_writer_l0_slowdown_ssts 12".to_owned(),
        "cairn_writer_l0_stop_ssts 24".to_owned(),
        "cairn_writer_wal_in_flight 1".to_owned(),
        "cairn_writer_wal_window 3".to_owned(),
        "cairn_writer_wal_groups_total 4".to_owned(),
        "cairn_writer_durable_write_seconds_count 3".to_owned(),
        "cairn_writer_flush_seconds_count 1".to_owned(),
        "cairn_cache_hits_total{tier=\"memory\"} 0".to_owned(),
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
    assert!(text.contains("cairn_writer_wal_bytes_total "), "{text}");
    let unflushed = text.lines().find(|line| line.starts_with("cairn_writer_unflushed_bytes "));
    assert!(unflushed.is_some_and(|line| !line.ends_with(" 0")), "{text}");
    assert_eq!((&status["phase"], &status["cache"]["memory_hits"]), (&json!("serving"), &json!(0)));

    site.phase.send_replace(Phase::Standby("http://10.0.0.1:7001".into()));
    let status = site.get("/v1/status", &[]).await.json();
    assert_eq!((&status["phase"], &status["epoch"]), (&json!("standby"), &json!(1)));
    assert!(status["seq"].is_u64() && status["tree"]["l0"].is_array(), "{status}");
    let text = site.get("/ops/metrics", &[]).await.body;
    assert!(text.contains("cairn_writer_phase{phase=\"standby\"} 1\n"), "{text}");
}
