//! SIGTERM while the store is away: the end comes in time, and says what was lost.

use std::time::Duration;

use harness::cluster::Cluster;
use harness::fake_s3::{BUCKET, FakeS3, Fault, Rule, Verb};
use harness::process::{Kind, Process};
use reqwest::StatusCode;
use rustix::process::Signal;

use crate::view;

/// Far below what a writer that waits for its store would take.
const SOON: Duration = Duration::from_secs(8);

/// A writer with an acknowledged write that cannot be made durable any more.
async fn cut_off(cluster: &Cluster, s3: &FakeS3, grace: &str) -> Process {
    let store = format!("s3://{BUCKET}/db");
    let grace = format!("--shutdown-grace={grace}");
    let mut writer = cluster.start_on(Kind::Writer, &store, &[&grace], &s3.environment());
    writer.ready().await;
    for verb in [Verb::Put, Verb::Get] {
        let fault = Fault::ErrorBefore(500);
        s3.faults().add(Rule { verb, key: String::new(), fault, times: usize::MAX });
    }
    let put = view::client().put(format!("{}/v1/kv/a?durable=false", writer.url())).body("x");
    assert_eq!(put.send().await.expect("it answers").status(), StatusCode::NO_CONTENT);
    writer
}

async fn ends_soon(writer: &mut Process) -> i32 {
    let ended = tokio::time::timeout(SOON, writer.exit_code()).await;
    ended.unwrap_or_else(|_| panic!("does not end soon: {writer:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_a_store_ends_in_its_grace_and_says_what_is_not_durable() {
    let cluster = Cluster::new();
    let s3 = FakeS3::start_anywhere(1).await;
    let mut writer = cut_off(&cluster, &s3, "1s").await;
    writer.signal(Signal::TERM);
    assert_eq!(ends_soon(&mut writer).await, 1, "{writer:?}");
    let log = writer.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("cairn-writer: ") && last.contains("not durable"), "{writer:?}");
    s3.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let cluster = Cluster::new();
    let s3 = FakeS3::start_anywhere(1).await;
    let mut writer = cut_off(&cluster, &s3, "10min").await;
    writer.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    writer.signal(Signal::TERM);
    assert_eq!(ends_soon(&mut writer).await, 1, "{writer:?}");
    assert!(writer.log().contains("SIGTERM came again"), "{writer:?}");
    s3.stop().await;
}
