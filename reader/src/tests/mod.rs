//! The reader on a paused runtime, over a bucket whose writer is played by hand.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use cairn_common::error::Error;
use cairn_common::format::path::Object;
use cairn_common::http::reads;
use cairn_common::http::request::Deadline;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::follow::Reach;
use cairn_common::store::metrics::Operation;
use cairn_common::types::{Seq, WalId};
use http::Response;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::author::{Author, POLL};
use crate::config::{Config, PROGRAM};
use crate::follow::{Tail, find};
use crate::node::ReaderNode;
use crate::sights::{Sight, Sights};

mod author;

/// Looks until the chain's end, as `Tail::run` does between two pauses; then waits for trees.
async fn look(tail: &mut Tail) {
    for _ in 0..10 {
        if tail.look().await.unwrap() != Reach::Partway {
            tail.settle().await;
            return;
        }
    }
    panic!("no end of the chain");
}

async fn shown(sights: &Sights, key: &str) -> Option<String> {
    let sight = sights.latest().expect("a sight");
    let found = sight.view.get(key.as_bytes(), 0).await.unwrap();
    found.map(|found| String::from_utf8(found.value.to_vec()).unwrap())
}

fn seq(sights: &Sights) -> u64 {
    sights.latest().expect("a sight").view.seq.0
}

#[tokio::test(start_paused = true)]
async fn the_first_sight_is_the_end_of_the_chain() {
    let mut author = Author::of_database().await;
    author.put("a", "1").await;
    author.flush().await;
    author.put("b", "2").await;
    let (mut tail, sights) = author.tail().await;
    assert!(sights.latest().is_none());
    look(&mut tail).await;
    assert_eq!(seq(&sights), 2);
    assert_eq!(shown(&sights, "a").await.as_deref(), Some("1"));
    assert_eq!(shown(&sights, "b").await.as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn every_batch_counts_once_while_its_memtable_becomes_l0() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    for round in 1..=6 {
        author.add("n", "1").await;
        look(&mut tail).await;
        assert_eq!(shown(&sights, "n").await, Some(round.to_string()));
        if round % 2 == 0 {
            author.flush().await;
            look(&mut tail).await;
            assert_eq!(shown(&sights, "n").await, Some(round.to_string()));
            assert!(sights.latest().unwrap().view.memtables.is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_fell_behind_begins_anew_and_never_goes_back() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.add("n", "1").await;
    look(&mut tail).await;
    let before = sights.latest().unwrap();
    for _ in 0..5 {
        author.add("n", "1").await;
    }
    author.flush().await;
    author.collect_log().await;
    author.add("n", "1").await;
    look(&mut tail).await;
    assert_eq!(seq(&sights), 7);
    assert_eq!(shown(&sights, "n").await.as_deref(), Some("7"));
    let old = before.view.get(b"n", 0).await.unwrap().unwrap();
    assert_eq!(old.value, "1", "a view that is still held shows what it showed");
}

#[tokio::test(start_paused = true)]
async fn lag_counts_from_the_begin_of_the_look() {
    let author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.store.config_mut(|config| config.wait_get_per_call = Duration::from_millis(100));
    look(&mut tail).await;
    let lag = || sights.latest().unwrap().lag_ms(author.env.clock.boot());
    assert!((200..300).contains(&lag()), "the GETs of the log and of CURRENT: {}", lag());
    tokio::time::advance(Duration::from_secs(3)).await;
    assert!(lag() >= 3200, "{}", lag());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_costs_freshness_alone() {
    let mut author = Author::of_database().await;
    author.put("a", "1").await;
    let (mut tail, sights) = author.tail().await;
    look(&mut tail).await;
    let fresh_at = sights.latest().unwrap().fresh_at;
    author.store.config_mut(|config| config.wait_get_per_call = Duration::from_hours(1));
    let error = tail.look().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(shown(&sights, "a").await.as_deref(), Some("1"));
    assert_eq!(sights.latest().unwrap().fresh_at, fresh_at);
}

#[tokio::test(start_paused = true)]
async fn new_trees_are_warm_when_they_are_shown() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.put("a", "1").await;
    author.flush().await;
    look(&mut tail).await;
    let is_warm = || {
        let sight = sights.latest().unwrap();
        sight.view.tree.handles().all(|handle| handle.with_meta(|_| ()).is_some())
    };
    assert!(is_warm());
    author.compact("a", "1").await;
    look(&mut tail).await;
    assert_eq!(sights.latest().unwrap().view.tree.runs.len(), 1);
    assert!(is_warm());
}

#[tokio::test(start_paused = true)]
async fn following_goes_on_while_a_tree_opens() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.add("n", "1").await;
    look(&mut tail).await;
    author.add("n", "1").await;
    tail.look().await.unwrap();
    author.flush().await;
    author.compact("n", "2").await;
    tail.look().await.unwrap();
    // Its run is asked for, and does not come for a while.
    author.store.config_mut(|config| config.wait_get_per_call = Duration::from_secs(3));
    tokio::task::yield_now().await;
    author.store.config_mut(|config| config.wait_get_per_call = Duration::from_millis(10));
    let began = author.env.clock.boot();
    for round in 3..=10 {
        author.add("n", "1").await;
        tail.look().await.unwrap();
        let sight = sights.latest().unwrap();
        assert!(sight.view.tree.runs.is_empty() && !sight.view.memtables.is_empty());
        assert!(sight.lag_ms(author.env.clock.boot()) <= 60);
        assert_eq!(shown(&sights, "n").await, Some(round.to_string()));
    }
    assert!(author.env.clock.boot().saturating_sub(began) < Duration::from_secs(1));
    tail.settle().await;
    assert_eq!(sights.latest().unwrap().view.tree.runs.len(), 1);
    assert_eq!(shown(&sights, "n").await.as_deref(), Some("10"));
}

#[tokio::test(start_paused = true)]
async fn an_opening_is_finished_before_the_next() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.put("a", "1").await;
    look(&mut tail).await;
    author.flush().await;
    author.compact("a", "1").await;
    tail.look().await.unwrap();
    let first = author.snapshot().await.manifest.id;
    author.put("a", "2").await;
    tail.look().await.unwrap();
    author.flush().await;
    tail.look().await.unwrap();
    assert_ne!(author.snapshot().await.manifest.id, first);
    tail.settle().await;
    assert_eq!(sights.latest().unwrap().view.tree.manifest.id, first);
    look(&mut tail).await;
    assert_eq!(sights.latest().unwrap().view.tree.manifest.id, author.snapshot().await.manifest.id);
}

#[tokio::test(start_paused = true)]
async fn a_tree_that_replay_requires_is_shown_at_once() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.put("a", "1").await;
    look(&mut tail).await;
    author.put("a", "2").await;
    author.flush().await;
    author.put("a", "3").await;
    assert_ne!(tail.look().await.unwrap(), Reach::Partway);
    let sight = sights.latest().unwrap();
    let is_warm =
        |sight: &Sight| sight.view.tree.handles().all(|handle| handle.with_meta(|_| ()).is_some());
    assert_eq!((sight.view.seq.0, sight.view.tree.l0.len()), (3, 1), "in the same look");
    assert!(!is_warm(&sight), "it does not wait for metadata");
    tail.settle().await;
    assert!(is_warm(&sight), "which comes after that");
}

#[tokio::test(start_paused = true)]
async fn a_reader_shows_what_came_of_a_long_log() {
    let mut site = Site::new().await;
    let _tasks = site.follow();
    site.sights.first().await;
    tokio::time::sleep(3 * POLL).await;
    for _ in 0..2_000 {
        site.author.put("a", "1").await;
    }
    site.author.store.config_mut(|config| config.wait_get_per_call = Duration::from_millis(60));
    let mut steps = Vec::new();
    while seq(&site.sights) < 2_000 {
        let before = site.author.env.clock.boot();
        let shown = seq(&site.sights);
        let next = Deadline::after(2 * POLL).instant();
        site.sights.at_least(Seq(shown + 1), next).await.expect("more of the log");
        steps.push(site.author.env.clock.boot().saturating_sub(before));
    }
    let longest = steps.iter().skip(1).max().unwrap();
    assert!(*longest <= Duration::from_millis(200), "{longest:?}");
    assert!(steps.len() >= 10, "{}", steps.len());
}

#[tokio::test(start_paused = true)]
async fn a_missing_run_does_not_stop_following() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.put("a", "1").await;
    author.flush().await;
    look(&mut tail).await;
    author.compact("a", "1").await;
    let run = Object::Run(author.snapshot().await.manifest.runs[0].id);
    author.bucket.delete(&[run]).await.unwrap();
    look(&mut tail).await;
    author.put("b", "2").await;
    look(&mut tail).await;
    assert_eq!(shown(&sights, "b").await.as_deref(), Some("2"));
    let error = sights.latest().unwrap().view.get(b"a", 0).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound(name) if *name == run.path()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_replaced_meanwhile_is_no_damage() {
    let mut author = Author::of_database().await;
    let (mut tail, sights) = author.tail().await;
    author.put("a", "1").await;
    author.flush().await;
    author.compact("a", "1").await;
    look(&mut tail).await;
    author.put("a", "2").await;
    author.flush().await;
    author.compact("a", "2").await;
    let run = author.newest_run().await;
    author.bucket.delete(&[Object::Run(run.id)]).await.unwrap();
    tail.look().await.unwrap();
    tail.settle().await;
    author.replace_run(run, "a", "2").await;
    look(&mut tail).await;
    assert_eq!(shown(&sights, "a").await.as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn an_empty_root_is_waited_on_and_a_damaged_one_is_not() {
    let author = Author::nowhere();
    let began = author.env.clock.boot();
    let create = async {
        tokio::time::sleep(5 * POLL / 2).await;
        author.create().await;
    };
    let (found, ()) = tokio::join!(find(&author.bucket, &author.env, POLL), create);
    assert_eq!(found.unwrap().current.writer.epoch.0, 1);
    assert!(author.env.clock.boot().saturating_sub(began) <= 4 * POLL);

    author.bucket.put(&Object::Wal(WalId(1)), "x".into()).await.unwrap();
    author.bucket.delete(&[Object::Current]).await.unwrap();
    let error = find(&author.bucket, &author.env, POLL).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("restore it from"), "{error}");
}

/// A reader with its HTTP surface.
struct Site {
    author: Author,
    sights: Arc<Sights>,
    tail: Option<Tail>,
    router: axum::Router,
}

impl Site {
    async fn new() -> Self {
        let author = Author::of_database().await;
        let (tail, sights) = author.tail().await;
        let config: Config = PROGRAM.with(&[("store", "memory://")]).unwrap();
        let cache = BlockCache::memory_only(1 << 20);
        let (env, bucket) = (author.env.clone(), author.bucket.clone());
        let parts = (&bucket, &cache);
        let sights_of_node = Arc::clone(&sights);
        let node =
            ReaderNode::new(env.clone(), bucket.clone(), cache.clone(), &config, sights_of_node);
        let node = Arc::new(node);
        let surface = crate::surface(&node, parts, &env, config.shared.http);
        let reads = reads::routes(Arc::clone(&node));
        let routes = reads.merge(crate::routes::writes(Arc::clone(&node)));
        let ops = surface.ops(Arc::clone(&node), axum::Router::new());
        let router = surface.data(node, routes).nest("/ops", ops);
        Self { author, sights, tail: Some(tail), router }
    }

    /// Follows in the background, as the process does.
    fn follow(&mut self) -> tokio::task::JoinSet<()> {
        let mut tasks = tokio::task::JoinSet::new();
        let tail = self.tail.take().unwrap();
        tasks.spawn(async move { tail.run(CancellationToken::new()).await.unwrap() });
        tasks
    }

    async fn look(&mut self) {
        look(self.tail.as_mut().unwrap()).await;
    }

    async fn ask(&self, request: http::request::Builder) -> (Response<()>, String) {
        let request: Request = request.body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        (Response::from_parts(parts, ()), String::from_utf8(body).unwrap())
    }

    async fn get(&self, uri: &str, headers: &[(&str, &str)]) -> (u16, Response<()>, String) {
        let request = Request::get(uri);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let (response, body) = self.ask(request).await;
        (response.status().as_u16(), response, body)
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_with_its_first_view() {
    let mut site = Site::new().await;
    for uri in ["/readyz", "/v1/kv/a"] {
        let (status, _, body) = site.get(uri, &[]).await;
        assert_eq!(status, 503, "{uri}");
        assert!(body.contains("not_yet"), "{body}");
    }
    assert_eq!(site.get("/livez", &[]).await.0, 200);
    site.author.put("a", "1").await;
    site.look().await;
    assert_eq!(site.get("/readyz", &[]).await.0, 200);
    let (status, response, body) = site.get("/v1/kv/a", &[]).await;
    assert_eq!((status, body.as_str()), (200, "1"));
    assert_eq!(response.headers()["cairn-seq"], "1");
    assert_eq!(response.headers()["etag"], "\"1\"");
    assert!(response.headers().contains_key("cairn-lag-ms"));
}

#[tokio::test(start_paused = true)]
async fn status_and_metrics_tell_how_far_it_is() {
    let mut site = Site::new().await;
    site.author.put("a", "1").await;
    site.author.flush().await;
    site.look().await;
    let (_, _, body) = site.get("/v1/status", &[]).await;
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status["role"], "reader");
    assert_eq!((&status["seq"], &status["applied_seq"]), (&1.into(), &1.into()));
    assert_eq!((&status["epoch"], &status["lag_ms"]), (&1.into(), &0.into()));
    assert_eq!(status["tree"]["l0"].as_array().unwrap().len(), 1);
    assert_eq!(status["writer_url"], "http://writer:7001");
    let (_, _, text) = site.get("/ops/metrics", &[]).await;
    assert!(text.contains("cairn_reader_seq 1\n"), "{text}");
    assert!(text.contains("cairn_reader_lag_milliseconds 0\n"), "{text}");
    assert!(text.contains("cairn_cache_hits_total{tier=\"memory\"} 0\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn status_tells_what_is_known_before_the_first_view() {
    let mut site = Site::new().await;
    site.author.put("a", "1").await;
    site.author.flush().await;
    let status = |body: &str| serde_json::from_str::<serde_json::Value>(body).unwrap();
    let nothing = status(&site.get("/v1/status", &[]).await.2);
    assert!(nothing.get("epoch").is_none(), "{nothing}");
    site.sights.found(site.author.snapshot().await);
    let known = status(&site.get("/v1/status", &[]).await.2);
    assert_eq!((&known["epoch"], &known["seq"]), (&1.into(), &1.into()), "{known}");
    assert_eq!(known["tree"]["l0"].as_array().map(Vec::len), Some(1));
    assert!(known.get("applied_seq").is_none(), "nothing was applied");
}

#[tokio::test(start_paused = true)]
async fn a_read_with_a_seq_waits_for_the_first_view_too() {
    let mut site = Site::new().await;
    site.author.put("a", "1").await;
    let clock = Arc::clone(&site.author.env.clock);
    let began = clock.boot();
    let headers = [("cairn-min-seq", "1"), ("cairn-timeout", "3s")];
    let (status, response, body) = site.get("/v1/kv/a", &headers).await;
    assert_eq!((status, clock.boot().saturating_sub(began)), (503, Duration::from_secs(3)));
    assert!(body.contains("not_yet") && response.headers().contains_key("retry-after"), "{body}");
    let mut tail = site.tail.take().unwrap();
    let first = async {
        tokio::time::sleep(POLL).await;
        look(&mut tail).await;
    };
    let (answer, ()) = tokio::join!(site.get("/v1/kv/a", &headers), first);
    assert_eq!((answer.0, answer.2.as_str()), (200, "1"));
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_its_seq_and_the_bucket_is_asked_more_often() {
    let mut site = Site::new().await;
    let _tasks = site.follow();
    site.sights.first().await;
    tokio::time::sleep(POLL / 10).await;
    let clock = Arc::clone(&site.author.env.clock);
    let began = clock.boot();
    let write = async {
        tokio::time::sleep(POLL / 2).await;
        site.author.put("a", "1").await;
    };
    let deadline = Deadline::after(10 * POLL).instant();
    let (sight, ()) = tokio::join!(site.sights.at_least(Seq(1), deadline), write);
    assert_eq!(sight.unwrap().view.seq, Seq(1));
    let took = clock.boot().saturating_sub(began);
    assert!(took < POLL * 4 / 5, "{took:?}");

    let headers = [("cairn-min-seq", "2"), ("cairn-timeout", "3s")];
    let began = clock.boot();
    let (status, response, body) = site.get("/v1/kv/a", &headers).await;
    assert_eq!((status, clock.boot().saturating_sub(began)), (503, Duration::from_secs(3)));
    assert!(body.contains("not_yet"), "{body}");
    assert_eq!(response.headers()["cairn-seq"], "1");
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(!site.sights.is_awaited());
}

#[tokio::test(start_paused = true)]
async fn a_seq_out_of_reach_is_not_waited_for() {
    let mut site = Site::new().await;
    let _tasks = site.follow();
    site.sights.first().await;
    let clock = Arc::clone(&site.author.env.clock);
    let began = clock.boot();
    let headers = [("cairn-min-seq", "9007199254740991"), ("cairn-timeout", "60s")];
    let (status, _, body) = site.get("/v1/kv/a", &headers).await;
    assert_eq!((status, clock.boot().saturating_sub(began)), (503, Duration::ZERO));
    assert!(body.contains("not_yet"), "{body}");
    // Of a seq that a takeover may have jumped to, it is not known.
    let headers = [("cairn-min-seq", "16777216"), ("cairn-timeout", "3s")];
    let (status, _, _) = site.get("/v1/kv/a", &headers).await;
    assert_eq!((status, clock.boot().saturating_sub(began)), (503, Duration::from_secs(3)));
}

#[tokio::test(start_paused = true)]
async fn the_bucket_is_polled_at_its_interval() {
    let mut site = Site::new().await;
    let _tasks = site.follow();
    site.sights.first().await;
    let requests = || {
        let rows = site.author.bucket.metrics().snapshot().rows;
        rows.iter().map(|row| row.requests).sum::<u64>()
    };
    let before = requests();
    tokio::time::sleep(21 * POLL / 2).await;
    assert_eq!(requests() - before, 21, "two GETs each second, and a LIST after ten seconds");
}

#[tokio::test(start_paused = true)]
async fn a_reader_at_a_hole_calls_nothing_fresh() {
    let mut site = Site::new().await;
    let hole = Object::Wal(WalId(2));
    for value in ["1", "2", "3"] {
        site.author.put("a", value).await;
    }
    let bytes = site.author.bucket.get(&hole).await.unwrap();
    site.author.bucket.delete(&[hole]).await.unwrap();
    let _tasks = site.follow();
    site.sights.first().await;
    let (status, _, body) = site.get("/v1/kv/a", &[]).await;
    assert_eq!((status, body.as_str()), (200, "1"));
    tokio::time::sleep(3 * POLL).await;
    assert_eq!(site.author.bucket.damage().count(), 1, "one that begins looks behind at once");
    tokio::time::sleep(10 * POLL).await;
    let (status, _, body) = site.get("/v1/kv/a", &[]).await;
    assert!(status == 503 && body.contains("too_stale"), "{status} {body}");
    let damaged = site.author.bucket.damage().list();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].object, hole.path());

    site.author.bucket.put(&hole, bytes).await.unwrap();
    tokio::time::sleep(2 * POLL).await;
    assert_eq!(site.get("/v1/kv/a", &[]).await.2, "3");
    assert_eq!(site.author.bucket.damage().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_log_is_not_a_hole() {
    let mut site = Site::new().await;
    site.author.put("a", "1").await;
    let _tasks = site.follow();
    site.sights.first().await;
    tokio::time::sleep(300 * POLL).await;
    assert_eq!(site.get("/v1/kv/a", &[]).await.0, 200);
    assert_eq!(site.author.bucket.damage().count(), 0);
    let rows = site.author.bucket.metrics().snapshot().rows;
    let lists = rows.iter().filter(|row| row.operation == Operation::List);
    let lists: u64 = lists.map(|row| row.requests).sum();
    assert!(lists <= 6, "{lists} lists in five minutes");
}

#[tokio::test(start_paused = true)]
async fn a_view_that_may_be_too_old_is_shown_only_if_that_is_allowed() {
    let mut site = Site::new().await;
    site.author.put("a", "1").await;
    site.look().await;
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(site.get("/v1/kv/a", &[]).await.0, 200);
    tokio::time::advance(Duration::from_millis(1)).await;
    let (status, response, body) = site.get("/v1/kv/a", &[]).await;
    assert_eq!(status, 503);
    assert!(body.contains("too_stale"), "{body}");
    assert_eq!(response.headers()["cairn-lag-ms"], "10001");
    let (status, response, body) = site.get("/v1/kv/a", &[("cairn-allow-stale", "true")]).await;
    assert_eq!((status, body.as_str()), (200, "1"));
    assert_eq!(response.headers()["cairn-lag-ms"], "10001");
    assert_eq!(site.get("/readyz", &[]).await.0, 200, "an outage does not remove every reader");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_meets_a_collected_sst_is_restarted_on_the_new_tree() {
    let mut site = Site::new().await;
    site.author.put("a", "1").await;
    site.author.flush().await;
    let _tasks = site.follow();
    site.sights.first().await;
    // Compacted and collected between two polls, before the SST's block was ever read.
    let inputs = site.author.compact("a", "1").await;
    site.author.bucket.delete(&inputs).await.unwrap();
    let (status, _, body) = site.get("/v1/kv/a", &[]).await;
    assert_eq!((status, body.as_str()), (200, "1"));
}

#[tokio::test(start_paused = true)]
async fn an_sst_that_is_missing_for_good_is_no_missing_key() {
    let mut site = Site::new().await;
    site.author.put("a", "1").await;
    site.author.flush().await;
    let _tasks = site.follow();
    site.sights.first().await;
    let sst = site.author.snapshot().await.manifest.l0[0].id;
    site.author.bucket.delete(&[Object::Sst(sst)]).await.unwrap();
    let (status, _, body) = site.get("/v1/kv/a", &[]).await;
    assert_eq!(status, 500);
    assert!(body.contains("corrupt") && body.contains(&Object::Sst(sst).path()), "{body}");
}

#[tokio::test(start_paused = true)]
async fn writes_are_shown_the_way_to_the_writer() {
    let mut site = Site::new().await;
    site.look().await;
    for (method, uri) in [
        ("PUT", "/v1/kv/a%2Fb?durable=false"),
        ("DELETE", "/v1/kv64/YQ"),
        ("POST", "/v1/batch"),
        ("POST", "/v1/flush"),
    ] {
        let request = Request::builder().method(method).uri(uri);
        let (response, body) = site.ask(request).await;
        assert_eq!(response.status(), 421, "{method} {uri}");
        assert_eq!(response.headers()["location"], format!("http://writer:7001{uri}"));
        let outcome = body.contains("\"outcome\":\"not_applied\"");
        assert_eq!(outcome, uri != "/v1/flush", "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_process_offers_is_no_route_here_either() {
    let mut site = Site::new().await;
    site.look().await;
    for method in ["GET", "POST"] {
        let request = Request::builder().method(method).uri("/v1/txn");
        let (response, body) = site.ask(request).await;
        assert_eq!(response.status(), 404, "{method}");
        assert!(body.contains("\"code\":\"no_route\""), "{body}");
    }
}
