//! Read-ahead: a cold scan of a slow store is as fast as its fetches are large and many, and holds
//! no more than it may.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::format::manifest::{Manifest, RunInfo};
use cairn_common::format::path::ObjectKind;
use cairn_common::format::sst::SstOptions;
use cairn_common::read::view::{OpenTree, View};
use cairn_common::store::metrics::Operation;
use cairn_common::store::object::Bucket;
use cairn_common::store::sst::SstStore;
use cairn_common::types::{Direction, Entry, KeyRange, Payload, Seq};
use harness::forest::{self, Forest, numbered};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What a GET takes.
const LATENCY: Duration = Duration::from_millis(20);
const VALUE_BYTES: usize = 4 << 10;
/// 48 MiB of values.
const ENTRIES: u64 = 12 << 10;

/// Trees over a store that takes a while for each GET, and no time for bytes.
struct Slow {
    env: Env,
    forest: Forest,
}

impl Slow {
    fn new() -> Self {
        let config = ThrottleConfig { wait_get_per_call: LATENCY, ..ThrottleConfig::default() };
        let store = Arc::new(ThrottledStore::new(InMemory::new(), config));
        let env = forest::env(5);
        let forest = Forest::new(store, SstOptions::default(), env.clone());
        Self { env, forest }
    }

    /// Entries whose numbers are `offset` more than a multiple of `step`.
    async fn run(&self, offset: u64, step: usize, ssts: usize) -> RunInfo {
        let numbers = (offset..ENTRIES).step_by(step);
        let entries: Vec<Entry> = numbers.map(entry).collect();
        self.forest.run(&entries, ssts).await
    }

    async fn view(&self, ssts: &Arc<SstStore>, manifest: &Arc<Manifest>) -> View {
        let tree = OpenTree::new(ssts, Arc::clone(manifest), None);
        tree.load_runs().await.unwrap();
        View::new(Vec::new(), Arc::new(tree), Seq(1))
    }
}

fn entry(number: u64) -> Entry {
    // Random bytes: they do not compress.
    let mut value = vec![0; VALUE_BYTES];
    StdRng::seed_from_u64(number).fill(&mut value[..]);
    let payload = Payload::Value(value.into());
    Entry { key: numbered(number), seq: Seq(1), payload, expires_ms: None }
}

/// GETs of SSTs, and the bytes that they brought.
fn fetched(bucket: &Bucket) -> (u64, u64) {
    let rows = bucket.metrics().snapshot().rows;
    let of_ssts =
        rows.iter().filter(|row| row.operation == Operation::Get && row.kind == ObjectKind::Sst);
    of_ssts.fold((0, 0), |(gets, bytes), row| (gets + row.requests, bytes + row.bytes_in))
}

/// Scans this many entries at most; returns how many there were.
async fn scan(view: &View, direction: Direction, limit: u64) -> u64 {
    let mut scan = view.scan(&KeyRange::all(), direction, 0);
    let mut count = 0;
    while count < limit && scan.next().await.unwrap().is_some() {
        count += 1;
    }
    count
}

#[tokio::test(start_paused = true)]
async fn a_cold_scan_is_fast_on_a_slow_store() {
    let slow = Slow::new();
    let one = slow.forest.manifest(Vec::new(), vec![slow.run(0, 1, 6).await], Seq(1));
    let runs = [slow.run(0, 4, 2).await, slow.run(1, 4, 2).await];
    let more = [slow.run(2, 4, 2).await, slow.run(3, 4, 2).await];
    let four = slow.forest.manifest(Vec::new(), [runs, more].concat(), Seq(1));
    for (what, manifest) in [("one run", one), ("four runs", four)] {
        for direction in [Direction::Forward, Direction::Reverse] {
            // A cache that holds no block for long.
            let ssts = slow.forest.ssts(1 << 20, 8 << 20);
            let view = slow.view(&ssts, &manifest).await;
            let (began, before) = (slow.env.clock.boot(), fetched(ssts.bucket()).1);
            assert_eq!(scan(&view, direction, u64::MAX).await, ENTRIES);
            let took = slow.env.clock.boot().saturating_sub(began);
            let bytes = fetched(ssts.bucket()).1 - before;
            // In units of what a GET takes: 40 MB/s is 0.8 MB in each.
            let rounds = u64::try_from(took.as_millis() / LATENCY.as_millis()).unwrap();
            assert!(bytes / rounds >= 800_000, "{what}, {direction:?}: {bytes} in {rounds} rounds");
            let needed = ENTRIES * u64::try_from(VALUE_BYTES).unwrap();
            assert!(bytes < needed + needed / 10, "{what}: {bytes} bytes were fetched");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_scan_fetches_little() {
    let slow = Slow::new();
    let runs = vec![slow.run(0, 2, 2).await, slow.run(1, 2, 2).await];
    let manifest = slow.forest.manifest(Vec::new(), runs, Seq(1));
    for direction in [Direction::Forward, Direction::Reverse] {
        let ssts = slow.forest.ssts(1 << 20, 8 << 20);
        let view = slow.view(&ssts, &manifest).await;
        for sst in view.tree.handles() {
            ssts.meta(sst).await.unwrap();
        }
        let before = fetched(ssts.bucket());
        assert_eq!(scan(&view, direction, 10).await, 10);
        // What was sent ahead lands, or is given up with its scan.
        tokio::time::sleep(10 * LATENCY).await;
        let after = fetched(ssts.bucket());
        let (gets, bytes) = (after.0 - before.0, after.1 - before.1);
        assert!(gets <= 8 && bytes <= 512 << 10, "{direction:?}: {gets} GETs, {bytes} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn scans_share_the_memory_for_read_ahead() {
    let slow = Slow::new();
    let manifest = slow.forest.manifest(Vec::new(), vec![slow.run(0, 1, 3).await], Seq(1));
    let ssts = slow.forest.ssts(1 << 20, 8 << 20);
    let view = slow.view(&ssts, &manifest).await;
    let mib = 1 << 20;
    let everything = || ssts.read_ahead(32 * mib).is_some();
    let mut scan = view.scan(&KeyRange::all(), Direction::Forward, 0);
    for _ in 0..ENTRIES / 2 {
        scan.next().await.unwrap().unwrap();
    }
    assert!(ssts.read_ahead(28 * mib).is_some() && !everything(), "it holds a few MiB at most");
    scan.let_go();
    assert!(everything(), "and lets go of them");

    // Where others hold all of it, a scan goes on by small fetches, one at a time.
    let others = ssts.read_ahead(32 * mib).unwrap();
    let before = fetched(ssts.bucket());
    for _ in 0..200 {
        scan.next().await.unwrap().unwrap();
    }
    let after = fetched(ssts.bucket());
    let (gets, bytes) = (after.0 - before.0, after.1 - before.1);
    assert!(bytes <= (gets + 1) * (80 << 10), "{gets} GETs, {bytes} bytes");
    drop(others);
    let rest = ENTRIES - ENTRIES / 2 - 200;
    for _ in 0..rest {
        scan.next().await.unwrap().unwrap();
    }
    assert!(scan.next().await.unwrap().is_none());
    assert!(everything(), "nothing is held at the end");
}
