//! SIGTERM to the active writer while a standby waits and clients write: the standby takes over,
//! and nothing that was acknowledged is lost.

use std::time::Duration;

use harness::cluster::Cluster;
use harness::process::Kind;

use crate::load::Load;
use crate::view;

const ROUNDS: usize = 3;
const CLIENTS: u32 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_writer_that_leaves() {
    let cluster = Cluster::new();
    let load = Load::start(&cluster, CLIENTS, 7);
    // Nobody is to be taken for dead here.
    let patient = ["--takeover-after=20s"];
    let mut active = cluster.start(Kind::Writer, &patient);
    load.writer_at(Some(active.ready().await.listen));
    let mut reader = cluster.start(Kind::Reader, &[]);
    load.reader_at(Some(reader.ready().await.listen));
    for _ in 0..ROUNDS {
        let mut standby = cluster.start(Kind::Writer, &patient);
        assert!(standby.announced("standby").await.is_some(), "{standby:?}");
        let acked = tokio::time::sleep(Duration::from_millis(300));
        acked.await;
        assert_eq!(active.stop().await, 0, "a clean end");
        load.writer_at(Some(standby.ready().await.listen));
        active = standby;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let history = load.stop().await;
    let http = view::client();
    let (seq, at_writer) = view::everything(&http, &active.url(), history.seq()).await;
    assert_eq!(history.judge(&at_writer), Vec::<String>::new());
    let (_, at_reader) = view::everything(&http, &reader.url(), seq).await;
    assert!(at_writer == at_reader, "the reader shows something else than the writer");
    let (acked, refused, undecided) = history.counts();
    assert!(acked > 20, "{acked} acknowledged, {refused} refused, {undecided} undecided");
    assert_eq!((active.stop().await, reader.stop().await), (0, 0));
}
