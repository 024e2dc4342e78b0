//! What small reads and liveness cost beside bulk reads: real processes on a local directory, with
//! a closed loop of small GETs and probes of `/livez`, while other clients stream everything, read
//! full pages, ask for many keys, or open connections and let them stand.
//!
//! `cargo build --release && cargo run --release -p cairn-tests --bin streams_and_points`
#![expect(clippy::print_stdout, reason = "a command that prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a measurement in real time")]
#![expect(clippy::cast_precision_loss, reason = "rates of small counts")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::cluster::{Cluster, Pace};
use harness::process::Kind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const ENTRIES: usize = 200_000;
const VALUE_BYTES: usize = 100;
const BATCH_ENTRIES: usize = 5_000;
/// Each measurement, after a second in which the load begins.
const SPAN: Duration = Duration::from_secs(5);
/// Closed loops of small GETs.
const POINT_CLIENTS: usize = 2;

/// What the other clients do.
#[derive(Clone, Copy, Debug)]
enum Load {
    Nothing,
    /// Stream the whole range, over and over.
    Streams(usize),
    /// Ask for the stream and read none of it.
    UnreadStreams(usize),
    /// Pages of 10,000 entries, over and over.
    Pages(usize),
    /// 1,000 keys at a time.
    ManyKeys(usize),
    /// Half a head.
    HalfHeads(usize),
    /// A read of a seq that is far away.
    FarSeqs(usize),
}

const LOADS: [Load; 10] = [
    Load::Nothing,
    Load::Streams(8),
    Load::Streams(64),
    Load::Streams(400),
    Load::UnreadStreams(400),
    Load::Pages(8),
    Load::Pages(32),
    Load::ManyKeys(8),
    Load::HalfHeads(2_000),
    Load::FarSeqs(4_200),
];

fn main() -> io::Result<()> {
    let runtime = |threads| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
    };
    let (loading, measuring) = (runtime(2)?, runtime(1)?);
    measuring.block_on(async {
        let cluster = Cluster::at(Pace::Usual);
        let mut writer = cluster.start(Kind::Writer, &[]);
        let at_writer = writer.ready().await;
        fill(&writer.url()).await;
        let mut reader = cluster.start(Kind::Reader, &[]);
        let at_reader = reader.ready().await;
        let bytes = Arc::new(AtomicU64::new(0));
        drop(stream(at_reader.listen, &bytes).await);
        println!("{ENTRIES} entries, {} MiB as a stream", bytes.load(Ordering::Relaxed) >> 20);
        for load in LOADS {
            let bytes = Arc::new(AtomicU64::new(0));
            let mut clients = JoinSet::new();
            start(load, at_reader.listen, &bytes, &mut clients, loading.handle());
            tokio::time::sleep(Duration::from_secs(1)).await;
            bytes.store(0, Ordering::Relaxed);
            let measured = tokio::join!(
                points(at_reader.listen),
                probes(at_reader.listen),
                probes(at_reader.ops),
                puts(at_writer.listen)
            );
            let rate = bytes.load(Ordering::Relaxed) as f64 / 1e6 / SPAN.as_secs_f64();
            println!("{load:?}: {rate:.0} MB/s of bulk");
            println!("  small GETs      {}", measured.0);
            println!("  /livez on data  {}", measured.1);
            println!("  /livez on ops   {}", measured.2);
            println!("  durable puts    {}", measured.3);
            clients.shutdown().await;
        }
    });
    Ok(())
}

async fn fill(url: &str) {
    let client = reqwest::Client::new();
    let value = "v".repeat(VALUE_BYTES);
    let numbers: Vec<usize> = (0..ENTRIES).collect();
    for batch in numbers.chunks(BATCH_ENTRIES) {
        let mut body = String::new();
        for number in batch {
            writeln!(body, r#"{{"op":"put","key":"{}","value":"{value}"}}"#, key(*number))
                .expect("writing to a String");
        }
        let request = client.post(format!("{url}/v1/batch")).body(body);
        let sent = request.header("content-type", "application/x-ndjson").send().await;
        assert!(sent.is_ok_and(|answer| answer.status().is_success()), "a batch is taken");
    }
    let flushed = client.post(format!("{url}/v1/flush")).send().await;
    assert!(flushed.is_ok_and(|answer| answer.status().is_success()), "a flush");
}

fn key(number: usize) -> String {
    format!("key-{number:08}")
}

fn start(
    load: Load,
    at: SocketAddr,
    bytes: &Arc<AtomicU64>,
    clients: &mut JoinSet<()>,
    runtime: &tokio::runtime::Handle,
) {
    let (count, request) = match load {
        Load::Nothing => return,
        Load::Streams(count) | Load::UnreadStreams(count) => (count, head("/v1/kv", NDJSON)),
        Load::Pages(count) => (count, head("/v1/kv?limit=10000", "")),
        Load::ManyKeys(count) => (count, many_keys()),
        Load::HalfHeads(count) => {
            (count, "GET /v1/kv/x HTTP/1.1\r\nhost: x\r\nx-half: ".to_owned())
        }
        Load::FarSeqs(count) => {
            let far = "cairn-min-seq: 9007199254740991\r\ncairn-timeout: 60s\r\n";
            (count, head("/v1/kv/x", far))
        }
    };
    for _ in 0..count {
        let (request, bytes) = (request.clone(), Arc::clone(bytes));
        let reads = !matches!(load, Load::UnreadStreams(_));
        clients.spawn_on(
            async move {
                loop {
                    let taken = async {
                        let stream = ask(at, &request).await?;
                        if !reads {
                            std::future::pending::<()>().await;
                        }
                        take(stream, &bytes).await
                    };
                    if taken.await.is_err() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            },
            runtime,
        );
    }
}

const NDJSON: &str = "accept: application/x-ndjson\r\n";

fn head(target: &str, more: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n")
}

fn many_keys() -> String {
    let keys: Vec<_> = (0..1_000).map(|number| format!("{:?}", key(number * 197))).collect();
    let body = format!(r#"{{"keys":[{}]}}"#, keys.join(","));
    format!(
        "POST /v1/get HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn stream(at: SocketAddr, bytes: &AtomicU64) -> io::Result<()> {
    take(ask(at, &head("/v1/kv", NDJSON)).await?, bytes).await
}

async fn ask(at: SocketAddr, request: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// Takes all that comes.
async fn take(mut stream: TcpStream, bytes: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => drop(bytes.fetch_add(read as u64, Ordering::Relaxed)),
        }
    }
}

/// What a closed loop of requests came to.
#[derive(Default)]
struct Measured {
    took: Vec<Duration>,
    statuses: BTreeMap<String, usize>,
    lag_ms_max: u64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut took = self.took.clone();
        took.sort_unstable();
        if let Some(last) = took.len().checked_sub(1) {
            let at = |per_mille: usize| took[last * per_mille / 1_000].as_secs_f64() * 1e3;
            write!(f, "p50 {:.2} ms, p99 {:.2} ms, most {:.1} ms", at(500), at(990), at(1_000))?;
        }
        write!(f, ", {:?}, lag at most {} ms", self.statuses, self.lag_ms_max)
    }
}

impl Measured {
    fn merge(mut self, other: Self) -> Self {
        self.took.extend(other.took);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.lag_ms_max = self.lag_ms_max.max(other.lag_ms_max);
        self
    }
}

async fn points(at: SocketAddr) -> Measured {
    let clients = (0..POINT_CLIENTS).map(|client| {
        let request = move |count: usize| {
            let number = (count * 7_919 + client * 104_729) % ENTRIES;
            format!("GET /v1/kv/{} HTTP/1.1\r\nhost: x\r\n\r\n", key(number))
        };
        requests(at, Duration::ZERO, request)
    });
    futures::future::join_all(clients).await.into_iter().fold(Measured::default(), Measured::merge)
}

async fn probes(at: SocketAddr) -> Measured {
    let request = |_| "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".to_owned();
    requests(at, Duration::from_millis(5), request).await
}

/// Something to follow for the reader.
async fn puts(at: SocketAddr) -> Measured {
    let request =
        |count| format!("PUT /v1/kv/zz-{count} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx");
    requests(at, Duration::from_millis(100), request).await
}

async fn requests(at: SocketAddr, pause: Duration, request: impl Fn(usize) -> String) -> Measured {
    let mut measured = Measured::default();
    let until = Instant::now() + SPAN;
    let mut connection = None;
    let mut count = 0;
    while Instant::now() < until {
        let began = Instant::now();
        let asked = async {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => TcpStream::connect(at).await?,
            };
            stream.set_nodelay(true)?;
            stream.write_all(request(count).as_bytes()).await?;
            let head = reply(&mut stream).await?;
            Ok::<_, io::Error>((stream, head))
        };
        let asked = tokio::time::timeout(Duration::from_secs(30), asked).await;
        count += 1;
        measured.took.push(began.elapsed());
        let status = match asked {
            Ok(Ok((stream, head))) => {
                connection = Some(stream);
                let lag = head
                    .split("cairn-lag-ms: ")
                    .nth(1)
                    .and_then(|rest| rest.split('\r').next().and_then(|text| text.parse().ok()));
                measured.lag_ms_max = measured.lag_ms_max.max(lag.unwrap_or(0));
                head.split(' ').nth(1).unwrap_or("?").to_owned()
            }
            Ok(Err(error)) => error.kind().to_string(),
            Err(_) => "no answer in 30 s".to_owned(),
        };
        *measured.statuses.entry(status).or_default() += 1;
        tokio::time::sleep(pause).await;
    }
    measured
}

/// Reads one reply with a length; returns its head.
async fn reply(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| {
                rest.split('\r').next().and_then(|text| text.parse::<usize>().ok())
            });
            if bytes.len() >= end + 4 + length.unwrap_or(0) {
                return Ok(head);
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}
