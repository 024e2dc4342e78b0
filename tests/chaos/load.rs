//! Clients that write and keep a ledger, and observers that read meanwhile.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harness::cluster::Cluster;
use harness::ledger::{Change, History, Ledger, Outcome, WriteId, value};
use harness::process::Kind;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::view;

/// Keys of a client that are written one by one or in batches of any.
const SINGLE_KEYS: u32 = 40;
/// Keys of a client that only batches of all of them write.
const SET_KEYS: u32 = 6;
/// After a refusal, and while there is no writer.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks of an observer.
const LOOK_PAUSE: Duration = Duration::from_millis(3);

/// The newest batch of a client's whole set that a process may be asked for.
#[derive(Default)]
struct Newest {
    n: AtomicU64,
    seq: AtomicU64,
}

impl Newest {
    // The seq is written first and read last: a number is never ahead of its seq.

    fn raise(&self, n: u64, seq: u64) {
        self.seq.fetch_max(seq, Ordering::SeqCst);
        self.n.fetch_max(n, Ordering::SeqCst);
    }

    fn load(&self) -> (u64, u64) {
        let n = self.n.load(Ordering::SeqCst);
        (n, self.seq.load(Ordering::SeqCst))
    }
}

/// What clients and observers share.
struct Shared {
    ledger: Arc<Ledger>,
    /// Where the writer and the reader are now.
    writer: watch::Receiver<Option<SocketAddr>>,
    reader: watch::Receiver<Option<SocketAddr>>,
    /// By client: what was acknowledged, or read at the writer. The writer owes it to everyone.
    owed: Vec<Newest>,
    /// By client: what was read anywhere. A reader may be ahead of what the writer knows to be
    /// durable, and owes it to whoever asks for its seq.
    seen: Vec<Newest>,
    stop: CancellationToken,
    seed: u64,
}

/// Running clients and observers.
pub(crate) struct Load {
    writer: watch::Sender<Option<SocketAddr>>,
    reader: watch::Sender<Option<SocketAddr>>,
    path: PathBuf,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    observed: Arc<AtomicU64>,
}

impl Load {
    /// Starts clients that write, and observers that read their sets at the writer and the reader.
    pub(crate) fn start(cluster: &Cluster, clients: u32, seed: u64) -> Self {
        let path = cluster.folder().join("ledger");
        let (writer, writers) = watch::channel(None);
        let (reader, readers) = watch::channel(None);
        let shared = Arc::new(Shared {
            ledger: Arc::new(Ledger::create(&path)),
            writer: writers,
            reader: readers,
            owed: (0..clients).map(|_| Newest::default()).collect(),
            seen: (0..clients).map(|_| Newest::default()).collect(),
            stop: CancellationToken::new(),
            seed,
        });
        let observed = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for id in 0..clients {
            tasks.spawn(Arc::clone(&shared).write(id));
        }
        for at in [Kind::Writer, Kind::Reader] {
            tasks.spawn(Arc::clone(&shared).observe(at, Arc::clone(&observed)));
        }
        Self { writer, reader, path, shared, tasks, observed }
    }

    /// Says where the writer is.
    pub(crate) fn writer_at(&self, address: Option<SocketAddr>) {
        self.writer.send_replace(address);
    }

    /// Says where the reader is.
    pub(crate) fn reader_at(&self, address: Option<SocketAddr>) {
        self.reader.send_replace(address);
    }

    /// How many scans of a set an observer has found whole and fresh.
    pub(crate) fn observed(&self) -> u64 {
        self.observed.load(Ordering::Relaxed)
    }

    /// Ends clients and observers after their present requests; panics if one of them did.
    pub(crate) async fn stop(mut self) -> History {
        self.shared.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no client and no observer saw what it may not");
        }
        History::read(&self.path)
    }
}

fn single_key(client: u32, i: u32) -> String {
    format!("k{client}/{i:03}")
}

fn set_prefix(client: u32) -> String {
    format!("s{client}/")
}

/// What a client does next.
fn pick(client: u32, rng: &mut SmallRng) -> Change {
    let single = |rng: &mut SmallRng| single_key(client, rng.random_range(0..SINGLE_KEYS));
    match rng.random_range(0..10) {
        0..4 => Change::Put(vec![single(rng)]),
        4 => Change::Delete(single(rng)),
        5 | 6 => {
            let mut keys: Vec<_> = (0..rng.random_range(2..10)).map(|_| single(rng)).collect();
            keys.sort();
            keys.dedup();
            Change::Put(keys)
        }
        _ => Change::Put((0..SET_KEYS).map(|i| format!("{}{i}", set_prefix(client))).collect()),
    }
}

/// The request that asks for a write.
fn request(http: &Client, url: &str, id: WriteId, change: &Change) -> RequestBuilder {
    let path = |key: &str| format!("{url}/v1/kv/{key}");
    let request = match change {
        Change::Delete(key) => http.delete(path(key)),
        Change::Put(keys) if keys.len() == 1 => http.put(path(&keys[0])).body(value(id, &keys[0])),
        Change::Put(keys) => {
            let mut lines = String::new();
            for key in keys {
                let op = json!({"op": "put", "key": key, "value": value(id, key)});
                writeln!(lines, "{op}").expect("a string takes all");
            }
            let batch = http.post(format!("{url}/v1/batch"));
            batch.header("content-type", "application/x-ndjson").body(lines)
        }
    };
    request.header("cairn-timeout", "5s")
}

/// Sends a write; returns what the client knows then.
///
/// # Panics
/// If a refusal does not say what became of the write.
pub(crate) async fn send(http: &Client, url: &str, id: WriteId, change: &Change) -> Outcome {
    match request(http, url, id, change).send().await {
        Ok(response) if response.status().is_success() => {
            Outcome::Acked(view::number(&response, "cairn-seq").expect("a write has a seq"))
        }
        Ok(response) => refused(response).await,
        // Nobody listened there: nothing was sent.
        Err(error) if error.is_connect() => Outcome::NotApplied,
        Err(_) => Outcome::Unknown,
    }
}

async fn refused(response: Response) -> Outcome {
    let status = response.status();
    // The answer may be cut off like any other.
    let Ok(text) = response.text().await else { return Outcome::Unknown };
    let problem: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {error}: {text}"));
    match problem["outcome"].as_str() {
        Some("not_applied") => Outcome::NotApplied,
        Some("unknown") => Outcome::Unknown,
        _ => panic!("{status} says nothing of what became of the write: {text}"),
    }
}

fn url(address: &watch::Receiver<Option<SocketAddr>>) -> Option<String> {
    address.borrow().map(|address| format!("http://{address}"))
}

impl Shared {
    /// A client's life.
    async fn write(self: Arc<Self>, client: u32) {
        let http = view::client();
        let mut rng = SmallRng::seed_from_u64(self.seed ^ u64::from(client) << 32);
        let mut n = 0;
        while !self.stop.is_cancelled() {
            let Some(url) = url(&self.writer) else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            n += 1;
            let (id, change) = (WriteId { client, n }, pick(client, &mut rng));
            self.ledger.sent(id, &change);
            let outcome = send(&http, &url, id, &change).await;
            let ledger = Arc::clone(&self.ledger);
            let told = tokio::task::spawn_blocking(move || ledger.told(id, outcome));
            told.await.expect("the ledger is kept");
            let Outcome::Acked(seq) = outcome else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            if change.keys()[0].starts_with('s') {
                let client = usize::try_from(client).expect("a small number");
                self.owed[client].raise(n.into(), seq);
                self.seen[client].raise(n.into(), seq);
            }
            if rng.random_ratio(1, 8) {
                read_own(&http, &url, id, &change, seq).await;
            }
        }
    }

    /// An observer's life: the sets of all clients, in turn, at a process.
    async fn observe(self: Arc<Self>, at: Kind, observed: Arc<AtomicU64>) {
        let http = view::client();
        let mut rng = SmallRng::seed_from_u64(self.seed ^ u64::MAX);
        let (mut last_url, mut last_seq) = (None, 0);
        let (address, sets) = match at {
            Kind::Writer => (&self.writer, &self.owed),
            _ => (&self.reader, &self.seen),
        };
        while !self.stop.is_cancelled() {
            tokio::time::sleep(LOOK_PAUSE).await;
            let client = rng.random_range(0..sets.len());
            let Some(url) = url(address) else { continue };
            let (n, seq) = sets[client].load();
            let min_seq = if at == Kind::Writer { 0 } else { seq };
            let prefix = set_prefix(u32::try_from(client).expect("a small number"));
            let Some((seq, shown)) = view::scan(&http, &url, &prefix, min_seq).await else {
                continue;
            };
            let writes: BTreeSet<_> =
                shown.values().map(|(etag, text)| (id_of(text), *etag)).collect();
            assert!(writes.len() <= 1, "a torn batch at the {at:?}: {writes:?} at {seq}");
            let newest = writes.first().map_or(0, |(id, _)| u64::from(id.n));
            assert!(newest >= n, "the {at:?} shows {prefix}{newest} at {seq}: {n} was there");
            if last_url.as_ref() == Some(&url) {
                assert!(seq >= last_seq, "the {at:?} went back from {last_seq} to {seq}");
            }
            (last_url, last_seq) = (Some(url), seq);
            if let Some((id, etag)) = writes.first() {
                self.ledger.seen(*id, *etag);
                sets[client].raise(id.n.into(), *etag);
                self.seen[client].raise(id.n.into(), *etag);
                observed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The write that wrote a value.
fn id_of(value: &str) -> WriteId {
    let mut numbers = value.split('.').map_while(|part| part.parse().ok());
    let (client, n) = (numbers.next(), numbers.next());
    WriteId { client: client.expect("a value of ours"), n: n.expect("a value of ours") }
}

/// A client reads what it has just been told is there.
async fn read_own(http: &Client, url: &str, id: WriteId, change: &Change, seq: u64) {
    let key = &change.keys()[0];
    let sent = http.get(format!("{url}/v1/kv/{key}")).header("cairn-timeout", "5s").send().await;
    let Ok(response) = sent else { return };
    match (response.status(), change) {
        (StatusCode::OK, Change::Put(_)) => {
            let etag = view::number(&response, "etag");
            let Ok(text) = response.text().await else { return };
            assert_eq!((etag, text), (Some(seq), value(id, key)), "{id:?} at the writer");
        }
        (StatusCode::NOT_FOUND, Change::Delete(_)) => {}
        (status, _) => {
            assert!(status.is_server_error(), "{id:?} at the writer: {status} for {change:?}");
        }
    }
}
