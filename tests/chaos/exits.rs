//! The exit codes: what a process that must not go on tells whoever started it. (0 and 3 are met
//! in the other files.)

use std::fs;
use std::path::Path;
use std::process::Command;

use cairn_common::format::current::Current;
use cairn_common::format::path::Object;
use harness::cluster::Cluster;
use harness::fake_s3::{BUCKET, Conditions, FakeS3};
use harness::process::{Kind, executable};
use reqwest::StatusCode;

use crate::view;

const KINDS: [Kind; 3] = [Kind::Writer, Kind::Reader, Kind::Compactor];

/// The last line on stderr is for people: it names the program.
fn says_why(log: &str, kind: Kind) -> bool {
    let start = format!("cairn-{}: ", kind.name());
    log.lines().last().is_some_and(|line| line.starts_with(&start))
}

#[tokio::test]
async fn a_wrong_setting_is_exit_2() {
    let cluster = Cluster::new();
    for kind in KINDS {
        for wrong in ["--listne=127.0.0.1:0", "--log-format=papyrus"] {
            let mut process = cluster.start(kind, &[wrong]);
            assert_eq!(process.announced("ready").await, None);
            assert_eq!(process.exit_code().await, 2, "{kind:?} {wrong}");
            assert!(process.log().contains("listen") || process.log().contains("text"));
        }
    }
}

#[tokio::test]
async fn settings_that_do_not_go_together_are_exit_2() {
    let cluster = Cluster::new();
    for (kind, wrong, said) in [
        (Kind::Writer, "--advertise=10.0.0.1:7001", "http://10.0.0.1:7001"),
        (Kind::Writer, "--wal-bytes-max=96", "wal_bytes_max"),
        (Kind::Writer, "--lease=2h", "lease: 2h is above the most, 60s"),
        (Kind::Writer, "--wal-interval=1h", "wal_interval"),
        (Kind::Writer, "--takeover-after=1us", "takeover_after"),
        (Kind::Reader, "--request-timeout=2d", "request_timeout"),
        (Kind::Compactor, "--retention=1000d", "retention"),
        (Kind::Writer, "--memtable-bytes=9223372036854775808", "unflushed_bytes_max"),
        (Kind::Reader, "--writer=10.0.0.1:7001", "http://10.0.0.1:7001"),
        (Kind::Reader, "--cache-disk=1GiB", "cache_dir"),
        (Kind::Compactor, "--advertise=10.0.0.1:7003", "http://10.0.0.1:7001"),
    ] {
        for more in [&[wrong][..], &[wrong, "--print-config"]] {
            let mut process = cluster.start(kind, more);
            assert_eq!(process.exit_code().await, 2, "{kind:?} {more:?}");
            assert!(says_why(&process.log(), kind) && process.log().contains(said), "{process:?}");
        }
    }
}

#[tokio::test]
async fn loopback_url_on_a_network_store_is_exit_2() {
    let cluster = Cluster::new();
    // An address of the documentation: nothing is asked of it.
    let environment = harness::fake_s3::environment_of("192.0.2.1:9000".parse().unwrap());
    for more in [&[][..], &["--advertise=http://localhost:7001"]] {
        let mut writer = cluster.start_on(Kind::Writer, "s3://cairn/db", more, &environment);
        assert_eq!(writer.exit_code().await, 2, "{writer:?}");
        let log = writer.log();
        assert!(says_why(&log, Kind::Writer) && log.contains("--advertise"), "{writer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_exit_2() {
    let cluster = Cluster::new();
    let s3 = FakeS3::start_anywhere(1).await;
    for kind in KINDS {
        let mut process = cluster.start_on(kind, "s3://nowhere/db", &[], &s3.environment());
        assert_eq!(process.exit_code().await, 2, "{process:?}");
        assert!(says_why(&process.log(), kind), "{process:?}");
    }
    s3.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_exit_1() {
    let cluster = Cluster::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--ops-listen={}", taken.local_addr().unwrap());
    for kind in KINDS {
        let mut process = cluster.start(kind, &[&listen]);
        assert_eq!(process.exit_code().await, 1, "{kind:?}");
        assert!(says_why(&process.log(), kind), "{process:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_conditions_is_exit_4() {
    let cluster = Cluster::new();
    let s3 = FakeS3::start_anywhere(1).await;
    s3.faults().set_conditions(Conditions::Ignored);
    let store = format!("s3://{BUCKET}/db");
    let mut writer = cluster.start_on(Kind::Writer, &store, &[], &s3.environment());
    assert_eq!(writer.announced("ready").await, None);
    assert_eq!(writer.exit_code().await, 4, "{writer:?}");
    assert!(says_why(&writer.log(), Kind::Writer), "{writer:?}");
    s3.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_went_bad_is_exit_4_at_each_claim() {
    let cluster = Cluster::new();
    let s3 = FakeS3::start_anywhere(1).await;
    let store = format!("s3://{BUCKET}/db");
    let mut writer = cluster.start_on(Kind::Writer, &store, &[], &s3.environment());
    writer.ready().await;
    assert_eq!(writer.stop().await, 0);
    let before = s3.object("db/CURRENT");
    // One request at a time it still does what it should.
    s3.faults().set_conditions(Conditions::JudgedEarly);
    let mut writer = cluster.start_on(Kind::Writer, &store, &[], &s3.environment());
    assert_eq!(writer.announced("ready").await, None);
    assert_eq!(writer.exit_code().await, 4, "{writer:?}");
    assert!(says_why(&writer.log(), Kind::Writer), "{writer:?}");
    assert_eq!(s3.object("db/CURRENT"), before, "nothing is claimed");
    s3.stop().await;
}

/// Replaces CURRENT by one that a newer version wrote, which this one may read.
fn upgrade(cluster: &Cluster) {
    let path = cluster.root().join(Object::Current.path());
    let current = Current { format: 2, ..cluster.current().expect("there is one") };
    fs::write(path, current.encode()).expect("the root can be written to");
}

#[tokio::test]
async fn a_newer_format_is_exit_2_and_untouched() {
    let cluster = crashed().await;
    upgrade(&cluster);
    let before = cluster.current();
    for kind in [Kind::Writer, Kind::Compactor] {
        let mut process = cluster.start(kind, &[]);
        assert_eq!(process.announced("ready").await, None, "{process:?}");
        assert_eq!(process.exit_code().await, 2, "{process:?}");
        assert!(process.log().contains("upgrade"), "{process:?}");
    }
    assert_eq!(cluster.current(), before, "nothing is claimed");
}

/// A database with some flushed and some unflushed data, whose writer was killed.
async fn crashed() -> Cluster {
    let cluster = Cluster::new();
    let mut writer = cluster.start(Kind::Writer, &[]);
    writer.ready().await;
    let http = view::client();
    for n in 0..10 {
        let put = http.put(format!("{}/v1/kv/{n}", writer.url())).body("x".repeat(100));
        assert_eq!(put.send().await.expect("it answers").status(), StatusCode::NO_CONTENT);
        if n == 5 {
            let flush =
                http.post(format!("{}/v1/flush", writer.url())).send().await.expect("it answers");
            assert_eq!(flush.status(), StatusCode::OK);
        }
    }
    writer.kill().await;
    cluster
}

async fn refuses_to_run(cluster: &Cluster, kind: Kind) {
    let mut process = cluster.start(kind, &[]);
    assert_eq!(process.announced("ready").await, None, "{process:?}");
    assert_eq!(process.exit_code().await, 5, "{process:?}");
    assert!(says_why(&process.log(), kind), "{process:?}");
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).expect("an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("an object");
}

#[tokio::test]
async fn a_root_without_current_is_exit_5() {
    let cluster = crashed().await;
    fs::remove_file(cluster.root().join(Object::Current.path())).unwrap();
    for kind in KINDS {
        refuses_to_run(&cluster, kind).await;
    }
    assert_eq!(cluster.current(), None, "nobody takes it for an empty database");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_current_that_is_lost_ends_all_with_5() {
    let cluster = Cluster::new();
    let mut processes = Vec::new();
    for kind in KINDS {
        let mut process = cluster.start(kind, &[]);
        process.ready().await;
        processes.push(process);
    }
    let put = || view::client().put(format!("{}/v1/kv/a", processes[0].url())).body("x").send();
    assert_eq!(put().await.expect("it answers").status(), StatusCode::NO_CONTENT);
    fs::remove_file(cluster.root().join(Object::Current.path())).unwrap();
    for (process, kind) in processes.iter_mut().zip(KINDS) {
        assert_eq!(process.exit_code().await, 5, "{process:?}");
        assert!(says_why(&process.log(), kind), "{process:?}");
        let log = process.log();
        assert!(log.lines().last().is_some_and(|line| line.contains("CURRENT")), "{process:?}");
    }
}

#[tokio::test]
async fn a_damaged_current_is_exit_5() {
    let cluster = crashed().await;
    flip_a_bit(&cluster.root().join(Object::Current.path()));
    for kind in KINDS {
        refuses_to_run(&cluster, kind).await;
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_exit_5() {
    let cluster = crashed().await;
    let manifest = cluster.current().unwrap().manifest;
    flip_a_bit(&cluster.root().join(Object::Manifest(manifest).path()));
    for kind in KINDS {
        refuses_to_run(&cluster, kind).await;
    }
}

#[tokio::test]
async fn a_damaged_object_on_the_chain_is_exit_5() {
    let cluster = crashed().await;
    flip_a_bit(&cluster.newest_wal_object().unwrap());
    for kind in [Kind::Writer, Kind::Reader] {
        refuses_to_run(&cluster, kind).await;
    }
}

/// A killed writer's log, from which somebody deleted an object in the middle.
#[tokio::test]
async fn a_lost_wal_object_is_exit_5() {
    let cluster = crashed().await;
    let wal = cluster.root().join("wal");
    let names = || {
        let files = fs::read_dir(&wal).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    };
    // The last groups are after the flush; the one before the last is proven by the last.
    let all = names();
    let (lost, bytes) = &all[all.len() - 3];
    fs::remove_file(lost).unwrap();
    let before = names();
    for _ in 0..2 {
        let mut writer = cluster.start(Kind::Writer, &[]);
        assert_eq!(writer.announced("ready").await, None, "{writer:?}");
        assert_eq!(writer.exit_code().await, 5, "{writer:?}");
        let name = lost.file_name().unwrap().to_str().unwrap();
        assert!(writer.log().contains(&format!("wal/{name}")), "{writer:?}");
        assert!(says_why(&writer.log(), Kind::Writer), "{writer:?}");
        assert_eq!(names(), before, "nothing is written to the log");
    }
    let store = format!("--store=file://{}", cluster.root().display());
    for command in ["wal", "status"] {
        let ended = Command::new(executable("cairn")).args([command, &store]).output().unwrap();
        assert_eq!(ended.status.code(), Some(5), "{command}: {ended:?}");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains(lost.file_name().unwrap().to_str().unwrap()), "{command}: {said}");
    }
    fs::write(lost, bytes).unwrap();
    let mut writer = cluster.start(Kind::Writer, &[]);
    writer.ready().await;
    for n in 0..10 {
        let got = view::client().get(format!("{}/v1/kv/{n}", writer.url())).send().await.unwrap();
        assert_eq!(got.status(), StatusCode::OK, "{n}");
    }
}
