//! Damage of one object of a live database: it fails the keys within its bounds and nothing else,
//! is named by whatever an operator looks at, and is over once the object is back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cairn_common::format::path::Object;
use harness::cluster::{Cluster, Pace};
use harness::process::{Kind, Process};
use reqwest::{Client, StatusCode};
use serde_json::Value;

/// More than a failure is remembered, and than a reader waits between two looks.
const SOON: Duration = Duration::from_millis(1_500);

/// A writer, a reader that knows nothing of the tree but its manifest, and a client of both.
struct Site {
    cluster: Cluster,
    writer: Process,
    client: Client,
}

impl Site {
    async fn new() -> Self {
        let cluster = Cluster::at(Pace::Usual);
        let mut writer = cluster.start(Kind::Writer, &[]);
        writer.ready().await;
        Self { cluster, writer, client: Client::new() }
    }

    async fn reader(&self) -> (Process, SocketAddr) {
        let more = ["--poll-interval=50ms", "--warm-timeout=0ms"];
        let mut reader = self.cluster.start(Kind::Reader, &more);
        let ops = reader.ready().await.ops;
        (reader, ops)
    }

    async fn put(&self, key: &str) -> u64 {
        let url = format!("{}/v1/kv/{key}", self.writer.url());
        let reply = self.client.put(url).body(key.to_owned()).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::NO_CONTENT);
        reply.headers()["cairn-seq"].to_str().unwrap().parse().unwrap()
    }

    async fn flush(&self) {
        let url = format!("{}/v1/flush", self.writer.url());
        let reply = self.client.post(url).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK, "{:?}", reply.text().await);
    }

    /// Status and body of a read.
    async fn read(&self, process: &Process, path: &str) -> (u16, String) {
        let reply = self.client.get(format!("{}/v1/kv{path}", process.url())).send().await.unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }

    /// Whether reads of the key are 500 `corrupt` and name the object.
    async fn is_corrupt(&self, process: &Process, path: &str, object: &str) -> bool {
        let (status, body) = self.read(process, path).await;
        status == 500 && body.contains("\"corrupt\"") && body.contains(object)
    }

    /// The damaged objects, as status, readyz and the metric agree to say.
    async fn damaged(&self, process: &Process, ops: SocketAddr) -> Vec<String> {
        let get = async |url: String| self.client.get(url).send().await.unwrap();
        let status: Value = get(format!("{}/v1/status", process.url())).await.json().await.unwrap();
        let name = |damaged: &Value| damaged["object"].as_str().unwrap().to_owned();
        let damaged: Vec<_> = status["damaged"].as_array().unwrap().iter().map(name).collect();
        let ready = get(format!("{}/readyz", process.url())).await;
        assert_eq!(ready.status(), StatusCode::OK);
        let text = ready.text().await.unwrap();
        assert!(damaged.iter().all(|object| text.contains(object)), "{text}");
        let metrics = get(format!("http://{ops}/metrics")).await.text().await.unwrap();
        let line = format!("cairn_store_damaged_objects {}\n", damaged.len());
        assert!(metrics.contains(&line), "{metrics}");
        damaged
    }

    /// The file of an object of the tree, and the object's name.
    fn file_of(&self, object: &Object) -> (PathBuf, String) {
        (self.cluster.root().join(object.path()), object.path())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_sst_fails_the_keys_within_its_bounds() {
    let site = Site::new().await;
    for keys in [["a1", "a2"], ["z1", "z2"]] {
        for key in keys {
            site.put(key).await;
        }
        site.flush().await;
    }
    // The newest SST comes first.
    let (file, object) = site.file_of(&Object::Sst(site.cluster.tree().l0[1].id));
    let aside = site.cluster.folder().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    let (reader, ops) = site.reader().await;
    for _ in 0..2 {
        for process in [&reader, &site.writer] {
            assert!(site.is_corrupt(process, "/a1", &object).await, "{process:?}");
            assert!(site.is_corrupt(process, "?prefix=a", &object).await, "{process:?}");
            assert_eq!(site.read(process, "/z1").await, (200, "z1".to_owned()));
            assert_eq!(site.read(process, "/m").await.0, 404, "outside of all bounds");
            assert_eq!(site.read(process, "?prefix=z").await.0, 200);
        }
    }
    // A newer value decides the key, and writes and flushes go on.
    site.put("a1").await;
    site.flush().await;
    tokio::time::sleep(SOON).await;
    assert_eq!(site.read(&reader, "/a1").await, (200, "a1".to_owned()));
    assert!(site.is_corrupt(&reader, "/a2", &object).await);
    assert_eq!(site.damaged(&reader, ops).await, [object.as_str()]);
    let errors = |log: &str| log.lines().filter(|line| line.contains("\"ERROR\"")).count();
    assert_eq!(errors(&reader.log()), 1, "{}", reader.log());

    std::fs::rename(&aside, &file).unwrap();
    tokio::time::sleep(SOON).await;
    assert_eq!(site.read(&reader, "/a2").await, (200, "a2".to_owned()));
    assert_eq!(site.damaged(&reader, ops).await, [""; 0]);
    assert_eq!(site.read(&site.writer, "/a2").await.0, 200);
    assert_eq!((reader.stop().await, site.writer.stop().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_run_stops_nobody() {
    let mut site = Site::new().await;
    let more = ["--l0-count=2", "--poll-interval=50ms"];
    let mut compactor = site.cluster.start(Kind::Compactor, &more);
    compactor.ready().await;
    for key in ["b1", "b2", "b3"] {
        site.put(key).await;
        site.flush().await;
    }
    let url = format!("{}/v1/compactions", compactor.url());
    let asked = site.client.post(url).json(&serde_json::json!({"kind": "full"})).send().await;
    assert_eq!(asked.unwrap().status(), StatusCode::ACCEPTED);
    while site.cluster.tree().runs.len() != 1 || !site.cluster.tree().l0.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(compactor.stop().await, 0);
    let (file, object) = site.file_of(&Object::Run(site.cluster.tree().runs[0].id));
    let sound = std::fs::read(&file).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    std::fs::write(&file, &flipped).unwrap();
    // Neither a takeover, nor a reader's start, nor a flush needs the run.
    let old = std::mem::replace(&mut site.writer, site.cluster.start(Kind::Writer, &[]));
    assert_eq!(old.stop().await, 0);
    site.writer.ready().await;
    let (reader, ops) = site.reader().await;
    for process in [&reader, &site.writer] {
        assert!(site.is_corrupt(process, "/b2", &object).await, "{}", process.log());
        assert_eq!(site.read(process, "/a").await.0, 404);
    }
    for key in ["b2", "c"] {
        site.put(key).await;
    }
    site.flush().await;
    tokio::time::sleep(SOON).await;
    for key in ["b2", "c"] {
        assert_eq!(site.read(&reader, &format!("/{key}")).await, (200, key.to_owned()));
    }
    assert!(site.is_corrupt(&reader, "/b3", &object).await);
    assert_eq!(site.damaged(&reader, ops).await, [object.as_str()]);
    std::fs::write(&file, &sound).unwrap();
    tokio::time::sleep(SOON).await;
    assert_eq!(site.read(&reader, "/b3").await, (200, "b3".to_owned()));
    assert_eq!(site.damaged(&reader, ops).await, [""; 0]);
    assert_eq!((reader.stop().await, site.writer.stop().await), (0, 0));
}
