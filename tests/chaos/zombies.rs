//! A writer that is stopped, succeeded, and woken after its log has been flushed and collected: it
//! acknowledges nothing that is not there, answers no read, and ends with exit code 3.

use std::time::Duration;

use harness::cluster::Cluster;
use harness::ledger::{Change, History, Ledger, Outcome, WriteId};
use harness::process::{Kind, Process};
use reqwest::{Client, StatusCode};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::{load, view};

const ROUNDS: u32 = 5;
/// Requests in progress at the writer when it is stopped, and as many that come while it sleeps.
const REQUESTS: u32 = 16;

/// Writes of many clients at once, noted in a ledger.
struct Writes {
    http: Client,
    told: JoinSet<(WriteId, Change, Outcome)>,
}

impl Writes {
    /// Sends a write for each of these clients and does not wait for the answers.
    fn send(&mut self, url: &str, n: u32, clients: impl Iterator<Item = u32>) {
        for client in clients {
            let (http, url) = (self.http.clone(), url.to_owned());
            self.told.spawn(async move {
                let id = WriteId { client, n };
                let change = Change::Put(vec![format!("z{client:03}")]);
                let outcome = load::send(&http, &url, id, &change).await;
                (id, change, outcome)
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_slept_through_its_succession_is_harmless() {
    for round in 0..ROUNDS {
        sleep_through_a_succession(round).await;
    }
}

async fn sleep_through_a_succession(round: u32) {
    let cluster = Cluster::new();
    let ledger = Ledger::create(&cluster.folder().join("ledger"));
    let http = view::client();
    let mut old = cluster.start(Kind::Writer, &[]);
    old.ready().await;
    let mut compactor = cluster.start(Kind::Compactor, &[]);
    compactor.ready().await;
    let mut writes = Writes { http: http.clone(), told: JoinSet::new() };
    let (id, change) = (WriteId { client: 999, n: 1 }, Change::Put(vec!["old".to_owned()]));
    let outcome = load::send(&http, &old.url(), id, &change).await;
    assert!(matches!(outcome, Outcome::Acked(_)), "{outcome:?}");
    ledger.sent(id, &change);
    ledger.told(id, outcome);
    writes.send(&old.url(), 1, 0..REQUESTS);
    // Rounds stop it with more and more of them done.
    tokio::time::sleep(Duration::from_millis(u64::from(round) * 4)).await;
    old.signal(Signal::STOP);
    let mut new = cluster.start(Kind::Writer, &["--takeover=now"]);
    new.ready().await;
    // Nobody may be told that these are done; the old writer finds them when it wakes.
    let mut late = Writes { http: http.clone(), told: JoinSet::new() };
    late.send(&old.url(), 1, REQUESTS..2 * REQUESTS);
    let stale = http.get(format!("{}/v1/kv/new", old.url())).send();
    let promise = http.put(format!("{}/v1/kv/loose?durable=false", old.url())).body("x").send();
    let mut tasks = JoinSet::new();
    tasks.spawn(stale);
    tasks.spawn(promise);
    flush_and_collect(&cluster, &http, &new).await;
    old.signal(Signal::CONT);
    assert_eq!(old.exit_code().await, 3, "{old:?}");
    assert!(old.log().contains("fenced"), "it says why: {old:?}");
    while let Some(told) = late.told.join_next().await {
        let (id, _, outcome) = told.expect("a write of a late client");
        assert!(!matches!(outcome, Outcome::Acked(_)), "{id:?} was sent after the succession");
    }
    while let Some(answered) = tasks.join_next().await {
        let Ok(Ok(answer)) = answered else { continue };
        let status = answer.status();
        assert!(status.is_server_error(), "from memory, in its sleep, it answered with {status}");
    }
    judge(&cluster, &ledger, writes, &new).await;
    assert_eq!((new.stop().await, compactor.stop().await), (0, 0));
}

/// Writes and flushes at the new writer until WAL objects of the old one are gone.
async fn flush_and_collect(cluster: &Cluster, http: &Client, new: &Process) {
    let oldest = cluster.root().join("wal").join(format!("{:020}", 1025));
    assert!(oldest.exists(), "the first data object of the first writer");
    for n in 0..300 {
        let put = http.put(format!("{}/v1/kv/new", new.url())).body(format!("{n}")).send().await;
        assert_eq!(put.expect("the new writer answers").status(), StatusCode::NO_CONTENT);
        let flush = http.post(format!("{}/v1/flush", new.url())).send().await;
        assert_eq!(flush.expect("the new writer answers").status(), StatusCode::OK);
        if !oldest.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} is never collected", oldest.display());
}

/// What the old writer acknowledged, before or after its sleep, is there at the new one.
async fn judge(cluster: &Cluster, ledger: &Ledger, mut writes: Writes, new: &Process) {
    while let Some(told) = writes.told.join_next().await {
        let (id, change, outcome) = told.expect("a write of a client");
        ledger.sent(id, &change);
        ledger.told(id, outcome);
    }
    let history = History::read(&cluster.folder().join("ledger"));
    let (_, mut shown) = view::everything(&writes.http, &new.url(), history.seq()).await;
    shown.remove("new");
    assert_eq!(history.judge(&shown), Vec::<String>::new(), "{:?}", history.counts());
}
