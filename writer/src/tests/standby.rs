//! Who takes over from whom, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::routing::get;
use axum::{Json, Router};
use cairn_common::format::current::{Current, WriterClaim};
use cairn_common::format::path::Object;
use cairn_common::http::shell;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::types::{Role, WalId};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{LEASE, Rig, get as get_value, put};
use crate::engine::Engine;
use crate::open::{HeadStart, Hold};
use crate::peers::HttpPeers;
use crate::serve::is_unique;
use crate::service::{Durability, Write, Writer};
use crate::standby::{Answer, Asked, Peers, Standby};

const PATIENCE: Duration = Duration::from_secs(1);
const URL: &str = "http://10.0.0.1:7001";

/// Answers for whoever holds the role, while it lives.
#[derive(Debug, Default)]
struct Holder {
    lives: AtomicBool,
}

#[async_trait]
impl Peers for Holder {
    async fn ask(&self, _: &str, _: Asked<'_>) -> Answer {
        if self.lives.load(Ordering::SeqCst) { Answer::Active } else { Answer::Silent }
    }
}

/// A database whose writer claimed with this URL, and was not closed.
async fn claimed(rig: &Rig, url: &str) -> Snapshot {
    let manifests = rig.parts.manifests();
    manifests.create().await.unwrap();
    let uuid = rig.parts.env.random.uuid();
    let claim = Claim { role: Role::Writer, uuid, url: Some(url.into()), lease: LEASE };
    manifests.claim(&claim).await.unwrap().snapshot
}

/// How long a process waits that has this URL.
async fn waits(rig: &Rig, own: Option<&str>, peers: &Holder) -> Duration {
    let snapshot = claimed(rig, URL).await;
    let manifests = rig.parts.manifests();
    let standby = Standby {
        env: &rig.parts.env,
        manifests: &manifests,
        peers,
        takeover_after: PATIENCE,
        url: own.map(str::to_owned),
        own_url: own.map(str::to_owned),
    };
    let began = Instant::now();
    let dies = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        peers.lives.store(false, Ordering::SeqCst);
    };
    let (free, ()) = tokio::join!(
        async {
            standby.wait(snapshot, |_| {}).await.unwrap();
            began.elapsed()
        },
        dies
    );
    free
}

#[tokio::test(start_paused = true)]
async fn an_earlier_life_is_taken_over_at_once_and_a_living_namesake_is_not() {
    let rig = Rig::new();
    let (dead, alive) = (Holder::default(), || Holder { lives: AtomicBool::new(true) });
    assert_eq!(waits(&rig, Some(URL), &dead).await, Duration::ZERO);
    let namesake = waits(&rig, Some(URL), &alive()).await;
    assert!(namesake >= Duration::from_secs(5), "{namesake:?}");
    let patient = PATIENCE..PATIENCE * 3 / 2;
    let stranger = waits(&rig, Some("http://10.0.0.2:7001"), &dead).await;
    assert!(patient.contains(&stranger), "{stranger:?}");
    let nameless = waits(&rig, None, &dead).await;
    assert!(patient.contains(&nameless), "{nameless:?}");
    let stranger = waits(&rig, None, &alive()).await;
    assert!(stranger >= Duration::from_secs(5) + PATIENCE, "{stranger:?}");
}

#[test]
fn a_loopback_address_is_unique_only_where_the_store_is_of_this_host() {
    for (url, store, want) in [
        ("http://127.0.0.1:7001", "file:///data", true),
        ("http://127.0.0.1:7001", "s3://bucket/db", false),
        ("http://localhost:7001", "gs://bucket/db", false),
        ("http://[::1]:7001", "az://container/db", false),
        ("http://10.0.0.1:7001", "s3://bucket/db", true),
        ("http://writer:7001", "s3://bucket/db", true),
    ] {
        assert_eq!(is_unique(url, store), want, "{url} {store}");
    }
}

/// Serves this status, as a process would.
async fn process(status: serde_json::Value) -> (String, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let status = Arc::new(status);
    let router =
        Router::new().route("/v1/status", get(async move || Json(Arc::unwrap_or_clone(status))));
    let mut serving = tokio::task::JoinSet::new();
    let limits = cairn_common::config::HttpLimits::default();
    serving.spawn(shell::serve(listener, router, limits, CancellationToken::new()));
    (url, serving)
}

#[tokio::test]
async fn only_the_process_that_made_the_claim_answers_for_it() {
    let holder = Uuid::from_u128(7);
    let rig = Rig::new();
    let Current { writer, database, .. } = claimed(&rig, URL).await.current;
    let claim = WriterClaim { uuid: holder, url: None, ..writer };
    let root = "s3://bucket/db";
    let asked = Asked { claim: &claim, database, root };
    let other = Uuid::from_u128(8);
    let peers = HttpPeers::new().unwrap();
    let told = async |role: &str, instance: Uuid, phase: &str, database: Uuid, root: &str| {
        let status = json!({
            "role": role, "instance": instance, "phase": phase, "database": database, "root": root,
        });
        let (url, _serving) = process(status).await;
        name(&peers.ask(&url, asked).await)
    };
    let ours: Uuid = serde_json::from_value(json!(database)).unwrap();
    for (role, instance, phase, want) in [
        ("writer", holder, "serving", "active"),
        ("writer", holder, "holding", "active"),
        // It claims, or replays a long log: no reason to depose it.
        ("writer", holder, "starting", "active"),
        ("writer", holder, "leaving", "leaving"),
        ("writer", holder, "ended", "silent"),
        // A standby, or ourselves: it knows the epoch, and does not hold it.
        ("writer", other, "standby", "silent"),
        ("writer", other, "serving", "silent"),
        ("reader", holder, "serving", "silent"),
    ] {
        let answer = told(role, instance, phase, ours, root).await;
        assert_eq!(answer, want, "{role} {instance} {phase}");
    }
    // The original of what is a copy here, by another name or of another kind.
    assert_eq!(told("writer", holder, "serving", ours, "s3://other/db").await, "silent");
    assert_eq!(told("writer", holder, "serving", other, root).await, "silent");
    assert_eq!(name(&peers.ask("http://127.0.0.1:1", asked).await), "silent");
}

fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Active => "active",
        Answer::Leaving => "leaving",
        Answer::Closed(_) => "closed",
        Answer::Silent => "silent",
    }
}

#[tokio::test(start_paused = true)]
async fn copy_does_not_wait_for_the_original() {
    let rig = Rig::new();
    let snapshot = claimed(&rig, URL).await;
    let manifests = rig.parts.manifests();
    let elsewhere = |current: &Current| {
        let mut copy = current.clone();
        copy.writer.root = Some("s3://original/db".into());
        Ok((copy.writer != current.writer).then_some(copy))
    };
    let copied = manifests.amend(snapshot, elsewhere).await.unwrap();
    let began = Instant::now();
    let living = Holder { lives: AtomicBool::new(true) };
    let standby = standby(&rig, &manifests, &living, "http://10.0.0.2:7001");
    standby.wait(copied, |_| panic!("nobody is active here")).await.unwrap();
    assert!(began.elapsed() < PATIENCE * 2, "{:?}", began.elapsed());
}

fn standby<'a>(
    rig: &'a Rig,
    manifests: &'a Manifests,
    peers: &'a dyn Peers,
    own: &str,
) -> Standby<'a> {
    let own = Some(own.to_owned());
    let (url, own_url) = (own.clone(), own);
    Standby { env: &rig.parts.env, manifests, peers, takeover_after: PATIENCE, url, own_url }
}

#[tokio::test(start_paused = true)]
async fn unreachable_writer_with_life_is_let_be() {
    let rig = Rig::new();
    let engine = rig.open_at(URL, &[]).await;
    let manifests = rig.parts.manifests();
    let snapshot = manifests.load().await.unwrap().unwrap();
    let silent = Holder::default();
    let standby = standby(&rig, &manifests, &silent, "http://10.0.0.2:7001");
    let writes = async {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(600)).await;
            engine.writer().write(put("key", "value")).await.unwrap();
        }
    };
    let began = Instant::now();
    let (free, ()) = tokio::join!(
        async {
            standby.wait(snapshot, |_| {}).await.unwrap();
            began.elapsed()
        },
        writes
    );
    let quiet = free.saturating_sub(Duration::from_mins(1));
    assert!(quiet > Duration::from_secs(10) && quiet < Duration::from_secs(30), "{free:?}");
}

/// What a standby would read next is flushed and collected when the writer dies.
#[tokio::test(start_paused = true)]
async fn collected_log_is_no_sign_of_life() {
    let rig = Rig::new();
    let engine = rig.open_at(URL, &[]).await;
    let manifests = rig.parts.manifests();
    engine.writer().write(put("key", "first")).await.unwrap();
    let snapshot = manifests.load().await.unwrap().unwrap();
    let holder = Holder { lives: AtomicBool::new(true) };
    let standby = standby(&rig, &manifests, &holder, "http://10.0.0.2:7001");
    let dies = async {
        // Between two looks of the standby.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let begin = snapshot.current.replay_from;
        engine.writer().write(put("key", "flushed")).await.unwrap();
        engine.writer().flush().await.unwrap();
        let end = manifests.load().await.unwrap().unwrap().current.replay_from;
        let flushed: Vec<_> = (begin.0..end.0).map(|id| Object::Wal(WalId(id))).collect();
        assert!(flushed.len() >= 2, "{begin} to {end}");
        rig.parts.bucket.delete(&flushed).await.unwrap();
        engine.writer().write(put("key", "last")).await.unwrap();
        holder.lives.store(false, Ordering::SeqCst);
        Instant::now()
    };
    let free = async {
        standby.wait(snapshot.clone(), |_| {}).await.unwrap();
        Instant::now()
    };
    let (free, died) = tokio::join!(free, dies);
    assert!(free - died < PATIENCE * 2, "{:?}", free - died);
}

#[tokio::test(start_paused = true)]
async fn mutual_deposing_backs_off() {
    let rig = Rig::new();
    let (one, two) = ("http://10.0.0.1:7001", "http://10.0.0.2:7001");
    let manifests = rig.parts.manifests();
    let silent = Holder::default();
    let mut reigns = Vec::new();
    let mut snapshot = claimed(&rig, one).await;
    for (turn, own) in [two, one, two, one, two].into_iter().enumerate() {
        let began = Instant::now();
        standby(&rig, &manifests, &silent, own).wait(snapshot, |_| {}).await.unwrap();
        reigns.push((turn, began.elapsed()));
        snapshot = claimed(&rig, own).await;
    }
    let seconds: Vec<u64> = reigns.iter().map(|(_, reign)| reign.as_secs()).collect();
    // Nobody was deposed before the first; from then on each waits twice as long as the other.
    assert_eq!(seconds, [1, 5, 10, 20, 40], "{reigns:?}");
}

/// Answers for a writer of this process.
#[derive(Debug)]
struct Neighbour {
    writer: Arc<Writer>,
    leaves: AtomicBool,
}

#[async_trait]
impl Peers for Neighbour {
    async fn ask(&self, _: &str, _: Asked<'_>) -> Answer {
        match self.writer.lease.closed_as() {
            Some(known) => Answer::Closed(Box::new((known.current.clone(), known.version.clone()))),
            None if self.leaves.load(Ordering::SeqCst) => Answer::Leaving,
            None => Answer::Active,
        }
    }
}

/// What every request takes in the test of hand-overs.
const LATENCY: Duration = Duration::from_millis(200);

#[tokio::test(start_paused = true)]
async fn handover_takes_few_serial_requests() {
    let rig = Rig::new();
    let old = rig.open_at(URL, &[("wal_interval", "60s")]).await;
    old.writer().write(put("key", "first")).await.unwrap();
    rig.store.config_mut(|config| {
        config.wait_put_per_call = LATENCY;
        config.wait_get_per_call = LATENCY;
        config.wait_list_per_call = LATENCY;
    });
    let manifests = rig.parts.manifests();
    let snapshot = manifests.load().await.unwrap().unwrap();
    let database = snapshot.current.database;
    let peers = Neighbour { writer: Arc::clone(old.writer()), leaves: AtomicBool::new(false) };
    let standby = standby(&rig, &manifests, &peers, "http://10.0.0.2:7001");
    let takes_over = async {
        let head = standby.wait(snapshot, |_| {}).await.unwrap();
        let uuid = rig.parts.env.random.uuid();
        let claim = Claim { role: Role::Writer, uuid, url: None, lease: LEASE };
        let log = Rig::log(&[]);
        let mut new = Engine::open_from(head, &rig.parts, database, &log, &claim).await.unwrap();
        new.hold().await.unwrap();
        new.writer().write(put("key", "last")).await.unwrap();
        (new, Instant::now())
    };
    let leaves = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        // In the open group, which nothing would seal for a minute.
        let loose = Write { durability: Durability::Memory, ..put("other", "loose") };
        old.writer().write(loose).await.unwrap();
        peers.leaves.store(true, Ordering::SeqCst);
        let told_at = Instant::now();
        old.leave(std::future::ready(Ok(()))).await.unwrap();
        told_at
    };
    let ((new, acknowledged_at), told_at) = tokio::join!(takes_over, leaves);
    let took = acknowledged_at - told_at;
    assert!(took <= LATENCY * SERIAL_REQUESTS + Duration::from_millis(150), "{took:?}");
    assert!(get_value(new.writer(), "other").await.is_some(), "what was promised is there");
}

/// The open group, `closed`, the claim, T2b beside T4, the fence, T6, and the write itself.
const SERIAL_REQUESTS: u32 = 7;

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_slow_clients() {
    let rig = Rig::new();
    let old = rig.open(&[]).await;
    let began = Instant::now();
    let slow = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(())
    };
    let (left, next) = tokio::join!(old.leave(slow), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let next = rig.open(&[]).await;
        (next, began.elapsed())
    });
    left.unwrap();
    assert!(next.1 < Duration::from_secs(1), "no hold: {:?}", next.1);
    assert!(began.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn assumed_death_skips_the_hold() {
    let rig = Rig::new();
    let _old = rig.open(&[]).await;
    let snapshot = rig.parts.manifests().load().await.unwrap().unwrap();
    let began = Instant::now();
    let head = HeadStart { hold: Hold::Never, ..HeadStart::at(snapshot) };
    let new = rig.open_with(head, Some(URL), &[]).await;
    assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
    assert_eq!(new.hold_reason(), None);
}
