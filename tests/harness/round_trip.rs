//! A directory's way into a cluster and back, under everything that may befall it: `cairn load`,
//! every digest read at the reader; a full compaction, the same again; SIGKILL of all processes in
//! the middle of a second load, a restart, and once more.

use std::collections::BTreeSet;
use std::fmt;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cairn_common::store::metrics::{Operation, Prices};
use reqwest::Client;
use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::archive::{Archive, Compared, Version, second_version};
use crate::cluster::Cluster;
use crate::process::{Announced, Kind, Process, executable};

const KINDS: [Kind; 3] = [Kind::Writer, Kind::Reader, Kind::Compactor];
/// Writes in progress during the second load.
const LANES: usize = 16;
/// After a refusal, which says that the writer is overloaded.
const REFUSAL_PAUSE: Duration = Duration::from_millis(20);
/// Longer than any deadline of a server.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(70);

/// Where the database is, for processes: a URL and the variables that go with it.
#[derive(Clone, Debug)]
pub struct Place {
    /// `--store`
    pub url: String,
    /// Credentials and endpoint.
    pub environment: Vec<(String, String)>,
}

/// What was measured on the way.
#[derive(Debug)]
pub struct Report {
    files: usize,
    user_bytes: u64,
    load: Duration,
    first_read: Duration,
    /// When the first load was in, after it was read, and after the compaction.
    loaded: Vec<Status>,
    read: Vec<Status>,
    compacted: Vec<Status>,
    /// How many writes of the second load were acknowledged before everything was killed.
    second_acked: usize,
    /// How many of the second load's values are there after the restart.
    second_found: usize,
}

/// What one process said of itself.
#[derive(Clone, Debug)]
struct Status {
    kind: Kind,
    json: Value,
}

/// The processes, and one client of all of them.
struct Trip<'a> {
    cluster: &'a Cluster,
    place: &'a Place,
    archive: &'a Archive,
    client: Client,
    running: Vec<(Process, Announced)>,
}

/// Takes the directory through it all.
///
/// # Panics
/// If a value is lost, or anything else is not as promised.
#[expect(clippy::disallowed_methods, reason = "a measurement in real time")]
pub async fn round_trip(cluster: &Cluster, place: &Place, archive: &Archive) -> Report {
    let client = Client::builder().timeout(CLIENT_TIMEOUT).build().expect("a client");
    let mut trip = Trip { cluster, place, archive, client, running: Vec::new() };
    trip.start().await;

    let began = Instant::now();
    let (root, writer) = (archive.root().to_string_lossy(), trip.url(Kind::Writer));
    trip.command(&["load", &root, "--url", &writer]).await;
    let load = began.elapsed();
    let loaded = trip.statuses().await;
    let seq = trip.flush().await;
    let began = Instant::now();
    trip.reads_back(seq, |_| Version::First).await;
    let first_read = began.elapsed();
    let read = trip.statuses().await;

    trip.command(&["compact", "--url", &trip.url(Kind::Compactor)]).await;
    let compacted = trip.statuses().await;
    trip.reads_back(seq, |_| Version::First).await;

    let acked = trip.second_load_is_killed().await;
    trip.start().await;
    let seq = trip.flush().await;
    let is_acked = |at: usize| acked.contains(&at);
    let expected = |at| if is_acked(at) { Version::Second } else { Version::Either };
    trip.reads_back(seq, expected).await;
    let reader = trip.url(Kind::Reader);
    let missing = archive.compare(&trip.client, &reader, seq, |_| Version::Second).await;
    let second_found = archive.len() - missing.differences.len();
    assert!(second_found >= acked.len(), "{second_found} of {} acknowledged", acked.len());

    for (process, _) in trip.running.drain(..) {
        assert_eq!(process.stop().await, 0, "the exit code at SIGTERM");
    }
    let (files, user_bytes, second_acked) = (archive.len(), archive.user_bytes(), acked.len());
    Report {
        files,
        user_bytes,
        load,
        first_read,
        loaded,
        read,
        compacted,
        second_acked,
        second_found,
    }
}

impl Trip<'_> {
    async fn start(&mut self) {
        for kind in KINDS {
            let Place { url, environment } = self.place;
            let mut process = self.cluster.start_on(kind, url, &[], environment);
            let announced = process.ready().await;
            self.running.push((process, announced));
        }
    }

    fn announced(&self, kind: Kind) -> &Announced {
        let found = self.running.iter().find(|(process, _)| process.kind() == kind);
        &found.expect("it runs").1
    }

    fn url(&self, kind: Kind) -> String {
        format!("http://{}", self.announced(kind).listen)
    }

    /// Runs `cairn` to its end.
    async fn command(&self, args: &[&str]) {
        let mut command = Command::new(executable("cairn"));
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.expect("the command starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cairn {args:?}: {} {said}", output.status);
    }

    async fn statuses(&self) -> Vec<Status> {
        let mut statuses = Vec::new();
        for kind in KINDS {
            let reply = self.client.get(format!("{}/v1/status", self.url(kind))).send().await;
            let json = reply.expect("it answers").json().await.expect("a status is JSON");
            statuses.push(Status { kind, json });
        }
        statuses
    }

    /// Empties the memtable; returns the seq that everything acknowledged is at or below.
    async fn flush(&self) -> u64 {
        let reply = self.client.post(format!("{}/v1/flush", self.url(Kind::Writer))).send().await;
        let reply = reply.expect("it answers").error_for_status().expect("a flush succeeds");
        let json: Value = reply.json().await.expect("a flush answers JSON");
        json["seq"].as_u64().expect("a flush has a seq")
    }

    async fn reads_back(&self, seq: u64, expected: impl Fn(usize) -> Version) {
        let reader = self.url(Kind::Reader);
        let Compared { differences, .. } =
            self.archive.compare(&self.client, &reader, seq, expected).await;
        let count = differences.len();
        assert!(differences.is_empty(), "{count} differ: {:?}", &differences[..count.min(20)]);
    }

    /// Writes the second version of one file after the other; kills all processes when a third of
    /// them is acknowledged. Returns what was acknowledged.
    async fn second_load_is_killed(&mut self) -> BTreeSet<usize> {
        let count = self.archive.len();
        let (next, acked) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(BTreeSet::new())));
        let mut lanes = JoinSet::new();
        for _ in 0..LANES {
            let (next, acked) = (Arc::clone(&next), Arc::clone(&acked));
            let (archive, client) = (self.archive.clone(), self.client.clone());
            let writer = self.url(Kind::Writer);
            lanes.spawn(async move {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let value = second_version(&archive.read(at).await.expect("a file"));
                    let path = format!("{writer}{}", archive.path_of(at));
                    loop {
                        let reply = client.put(&path).body(value.clone()).send().await;
                        // Without an answer the writer is no more.
                        let Ok(reply) = reply else { return };
                        if reply.status().is_success() {
                            acked.lock().expect("no lane panics here").insert(at);
                            break;
                        }
                        let status = reply.status();
                        assert!(status.is_server_error(), "a put is answered {status}");
                        tokio::time::sleep(REFUSAL_PAUSE).await;
                    }
                }
            });
        }
        let so_far = || acked.lock().expect("no lane panics here").len();
        while so_far() < count / 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for (process, _) in self.running.drain(..) {
            process.kill().await;
        }
        while let Some(lane) = lanes.join_next().await {
            lane.expect("a lane ends");
        }
        let acked = acked.lock().expect("no lane panics here").clone();
        assert!(acked.len() < count, "the second load was over before the kill");
        acked
    }
}

impl Status {
    fn number(&self, pointer: &str) -> u64 {
        self.json.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    /// The requests so far at the list prices of S3, whatever the store.
    fn nanodollars(&self) -> u64 {
        let kinds = self.json["store"]["by_kind"].as_object().into_iter().flatten();
        kinds.map(|(name, kind)| price(name) * kind["requests"].as_u64().unwrap_or(0)).sum()
    }

    /// Bytes of L0 and runs.
    fn tree_bytes(&self) -> u64 {
        let of = |part: &str| {
            let parts = self.json["tree"][part].as_array().into_iter().flatten();
            parts.map(|part| part["bytes"].as_u64().unwrap_or(0)).sum::<u64>()
        };
        of("l0") + of("runs")
    }
}

/// The list price on S3 of an operation on a kind of object, such as `create wal`.
fn price(name: &str) -> u64 {
    let operation = name.split(' ').next().unwrap_or_default();
    let operation = Operation::ALL.into_iter().find(|known| known.name() == operation);
    Prices::S3.of(operation.unwrap_or_else(|| panic!("an unknown operation: {name}")))
}

#[expect(clippy::cast_precision_loss, reason = "rates of small counts")]
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (files, seconds) = (self.files as f64, self.load.as_secs_f64());
        let user = self.user_bytes as f64;
        writeln!(f, "{} files, {:.0} MiB with their names", self.files, mib(self.user_bytes))?;
        writeln!(
            f,
            "load         {seconds:.1} s: {:.1} MiB/s, {:.0} files/s",
            mib(self.user_bytes) / seconds,
            files / seconds
        )?;
        let read_seconds = self.first_read.as_secs_f64();
        writeln!(
            f,
            "read back    {read_seconds:.1} s: {:.0} gets/s, digests compared",
            files / read_seconds
        )?;
        for (what, statuses) in
            [("loaded", &self.loaded), ("read", &self.read), ("compacted", &self.compacted)]
        {
            write!(f, "{what:<12} requests and resident MiB:")?;
            for status in statuses {
                let resident = mib(status.number("/memory/resident"));
                let requests = status.number("/store/requests");
                write!(f, "  {} {requests}, {resident:.0}", status.kind.name())?;
            }
            writeln!(f)?;
        }
        let dollars = |statuses: &[Status]| {
            statuses.iter().map(Status::nanodollars).sum::<u64>() as f64 / 1e9
        };
        let reader = |statuses: &[Status]| {
            let of = statuses.iter().filter(|status| status.kind == Kind::Reader);
            of.map(Status::nanodollars).sum::<u64>() as f64 / 1e9
        };
        let reads = reader(&self.read) - reader(&self.loaded);
        writeln!(
            f,
            "requests at the list prices of S3: ${:.2} per million puts, ${:.2} per million gets",
            dollars(&self.loaded) / files * 1e6,
            reads / files * 1e6
        )?;
        let sent: u64 = self.compacted.iter().map(|status| status.number("/store/bytes_out")).sum();
        let tree = self.compacted.iter().map(Status::tree_bytes).max().unwrap_or(0);
        writeln!(
            f,
            "bytes sent to the store, the compaction included, over bytes of users: {:.2}",
            sent as f64 / user
        )?;
        writeln!(f, "bytes of the compacted tree over bytes of users: {:.2}", tree as f64 / user)?;
        write!(
            f,
            "second load  killed after {} acknowledged writes: all there, {} in all",
            self.second_acked, self.second_found
        )
    }
}
