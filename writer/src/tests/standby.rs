//! Who takes over from whom, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::routing::get;
use axum::{Json, Router};
use cairn_common::format::current::WriterClaim;
use cairn_common::http::shell;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::Snapshot;
use cairn_common::types::Role;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{LEASE, Rig};
use crate::peers::HttpPeers;
use crate::serve::unique_url;
use crate::standby::{Answer, Peers, Standby};

const PATIENCE: Duration = Duration::from_secs(1);
const URL: &str = "http://10.0.0.1:7001";

/// Answers for whoever holds the role, while it lives.
#[derive(Debug, Default)]
struct Holder {
    lives: AtomicBool,
}

#[async_trait]
impl Peers for Holder {
    async fn ask(&self, _: &str, _: &WriterClaim) -> Answer {
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
    for (url, store, is_unique) in [
        ("http://127.0.0.1:7001", "file:///data", true),
        ("http://127.0.0.1:7001", "s3://bucket/db", false),
        ("http://localhost:7001", "gs://bucket/db", false),
        ("http://[::1]:7001", "az://container/db", false),
        ("http://10.0.0.1:7001", "s3://bucket/db", true),
        ("http://writer:7001", "s3://bucket/db", true),
    ] {
        assert_eq!(unique_url(url, store).is_some(), is_unique, "{url} {store}");
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
    let WriterClaim { epoch, .. } = claimed(&rig, URL).await.current.writer;
    let claim = WriterClaim { epoch, uuid: holder, url: None, closed: false };
    let other = Uuid::from_u128(8);
    let peers = HttpPeers::new().unwrap();
    for (role, instance, phase, want) in [
        ("writer", holder, "serving", Answer::Active),
        ("writer", holder, "holding", Answer::Active),
        // It claims, or replays a long log: no reason to depose it.
        ("writer", holder, "starting", Answer::Active),
        ("writer", holder, "leaving", Answer::Leaving),
        ("writer", holder, "ended", Answer::Silent),
        // A standby, or ourselves: it knows the epoch, and does not hold it.
        ("writer", other, "standby", Answer::Silent),
        ("writer", other, "serving", Answer::Silent),
        ("reader", holder, "serving", Answer::Silent),
    ] {
        let status = json!({"role": role, "instance": instance, "phase": phase, "epoch": epoch});
        let (url, _serving) = process(status).await;
        assert_eq!(peers.ask(&url, &claim).await, want, "{role} {instance} {phase}");
    }
    assert_eq!(peers.ask("http://127.0.0.1:1", &claim).await, Answer::Silent);
}
