//! SIGTERM to the active writer while a standby waits and clients write: the standby takes over,
//! and nothing that was acknowledged is lost.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::cluster::Cluster;
use harness::process::{Kind, Process};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

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

/// A request of which the rest never comes, or whose answer nobody takes.
async fn slow_client(writer: &Process, request: &str) -> TcpStream {
    let address = writer.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_do_not_delay_a_handover() {
    let cluster = Cluster::new();
    // Whoever waits for them waits for longer than this test does.
    let patient = [
        "--takeover-after=1min",
        "--header-timeout=10min",
        "--stall-timeout=10min",
        "--request-timeout=10min",
        "--request-timeout-max=10min",
        "--shutdown-grace=10min",
        "--wal-interval=60s",
        "--memtable-bytes=32MiB",
        "--unflushed-bytes-max=128MiB",
    ];
    let mut active = cluster.start(Kind::Writer, &patient);
    active.ready().await;
    let http = view::client();
    // More than the buffers of a connection take.
    let put = http.put(format!("{}/v1/kv/large", active.url())).body(vec![b'x'; 15 << 20]);
    assert_eq!(put.send().await.expect("it answers").status(), 204);
    let mut standby = cluster.start(Kind::Writer, &patient);
    assert!(standby.announced("standby").await.is_some(), "{standby:?}");
    let scan = "GET /v1/kv HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/x-ndjson\r\n\r\n";
    let body = "PUT /v1/kv/slow HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\nhalf";
    let mut slow = Vec::new();
    for request in ["GET /v1/kv/a HTT", body, scan] {
        slow.push(slow_client(&active, request).await);
    }
    let loose = http.put(format!("{}/v1/kv/loose?durable=false", active.url())).body("kept");
    assert_eq!(loose.send().await.expect("it answers").status(), 204);
    active.signal(Signal::TERM);
    standby.ready().await;
    assert!(!standby.log().contains("the hold"), "the old writer had closed: {standby:?}");
    let kept = http.get(format!("{}/v1/kv/loose", standby.url())).send().await;
    assert_eq!(kept.expect("it answers").text().await.expect("a value"), "kept");
    drop(slow);
    assert_eq!((active.exit_code().await, standby.stop().await), (0, 0));
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("an object");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_does_not_obey_the_original() {
    let cluster = Cluster::new();
    let http = view::client();
    let put = async |process: &Process| {
        let put = http.put(format!("{}/v1/kv/a", process.url())).body("x");
        put.send().await.expect("it answers")
    };
    let mut original = cluster.start(Kind::Writer, &[]);
    original.ready().await;
    assert_eq!(put(&original).await.status(), 204);
    let copy = cluster.folder().join("copy");
    copy_folder(&cluster.root(), &copy);
    let store = format!("file://{}", copy.display());
    let mut reader = cluster.start_on(Kind::Reader, &store, &[], &[]);
    reader.ready().await;
    let misdirected = put(&reader).await;
    assert_eq!((misdirected.status().as_u16(), misdirected.headers().get("location")), (421, None));
    let mut writer = cluster.start_on(Kind::Writer, &store, &["--takeover-after=500ms"], &[]);
    writer.ready().await;
    for each in [&writer, &original] {
        assert_eq!(put(each).await.status(), 204, "{each:?}");
    }
    assert_eq!((writer.stop().await, reader.stop().await, original.stop().await), (0, 0, 0));
}
