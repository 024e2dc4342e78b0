//! The read path over trees of every shape: gets and scans equal the history, damage is an error,
//! and nothing is fetched twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::env::Env;
use cairn_common::format::block::Compression;
use cairn_common::format::manifest::Manifest;
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::format::sst::SstOptions;
use cairn_common::lsm::visible::{Found, Rules, resolve, write_time_ms};
use cairn_common::read::scan::Row;
use cairn_common::read::view::{OpenTree, View};
use cairn_common::store::metrics::Operation;
use cairn_common::store::object::Bucket;
use cairn_common::store::sst::SstStore;
use cairn_common::types::{Batch, Direction, Entry, KeyRange, MergeOp, Op, Payload, Role, Seq};
use harness::forest::{self, Forest, ORIGIN_MS, compacted, entries_of, memtable, numbered};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Blocks of a few entries, so that small trees have many.
const SMALL: SstOptions =
    SstOptions { block_bytes: 200, compression: Compression::Lz4, filter_bits_per_key: 10 };

/// A history, and a tree that holds it.
struct Planted {
    batches: Vec<Batch>,
    view: View,
    now_ms: u64,
}

fn random_key(rng: &mut StdRng) -> Bytes {
    let length = rng.random_range(1..4);
    let mut key: Vec<u8> = (0..length).map(|_| rng.random_range(b'a'..b'g')).collect();
    if rng.random_bool(0.1) {
        // Longer than the bounds in manifests, and different only behind their cut.
        key.truncate(1);
        key.resize(300, b'x');
        key.push(rng.random_range(b'a'..b'g'));
    }
    key.into()
}

fn random_op(rng: &mut StdRng, key: Bytes, time_ms: u64) -> Op {
    let written_ms = write_time_ms(time_ms);
    let number = |rng: &mut StdRng| Bytes::from(rng.random_range(-9..10_i64).to_string());
    let payload = match rng.random_range(0..10) {
        0..5 => Payload::Value(vec![rng.random(); rng.random_range(0..40)].into()),
        5 => Payload::Value(number(rng)),
        6..8 => Payload::Tombstone,
        8 => Payload::Operand { op: MergeOp::Add, written_ms, operand: number(rng) },
        _ => Payload::Operand { op: MergeOp::Append, written_ms, operand: number(rng) },
    };
    let lives = payload != Payload::Tombstone && rng.random_bool(0.2);
    let expires_ms = lives.then(|| time_ms + rng.random_range(1..60) * 1_000);
    Op { key, payload, expires_ms }
}

/// Batches of distinct keys; time passes between them, and seqs jump.
fn random_history(rng: &mut StdRng, count: u64) -> Vec<Batch> {
    let mut seq = Seq::ZERO;
    let batches = (0..count).map(|index| {
        seq = seq.plus(rng.random_range(1..4));
        let time_ms = ORIGIN_MS + index * 300;
        let keys: std::collections::BTreeSet<_> =
            (0..rng.random_range(1..6)).map(|_| random_key(rng)).collect();
        let ops = keys.into_iter().map(|key| random_op(rng, key, time_ms)).collect();
        Batch { seq, ops }
    });
    batches.collect()
}

/// Cuts a history at random into runs, L0 and memtables, and opens a view on it.
async fn plant(rng: &mut StdRng, caches: (usize, u64)) -> Planted {
    let count = rng.random_range(1..120);
    let batches = random_history(rng, count);
    let now_ms = ORIGIN_MS + count * 300;
    let mut cuts: Vec<usize> =
        (0..rng.random_range(0..12)).map(|_| rng.random_range(0..=batches.len())).collect();
    cuts.extend([0, batches.len()]);
    cuts.sort_unstable();
    let parts: Vec<&[Batch]> = cuts
        .windows(2)
        .map(|cut| &batches[cut[0]..cut[1]])
        .filter(|part| !part.is_empty())
        .collect();
    let runs_end = rng.random_range(0..=parts.len());
    let l0_end = rng.random_range(runs_end..=parts.len());

    let forest = Forest::new(Arc::new(InMemory::new()), SMALL, forest::env(rng.random()));
    let (mut l0, mut runs, mut flushed) = (Vec::new(), Vec::new(), Seq::ZERO);
    for (index, part) in parts[..l0_end].iter().enumerate() {
        flushed = part.last().map_or(flushed, |batch| batch.seq);
        let rules = if index == 0 && index < runs_end {
            let newer = entries_of(&batches[part.len()..]);
            let written = newer.iter().filter_map(|entry| match entry.payload {
                Payload::Operand { written_ms, .. } => Some(written_ms),
                _ => None,
            });
            let newer_operands_from_ms = written.min().unwrap_or(now_ms).min(now_ms);
            Rules { bottom: true, now_ms, newer_operands_from_ms }
        } else {
            Rules::upper(now_ms)
        };
        let entries = compacted(&entries_of(part), rules);
        if entries.is_empty() {
            continue;
        }
        if index < runs_end {
            runs.insert(0, forest.run(&entries, rng.random_range(1..5)).await);
        } else {
            l0.insert(0, forest.sst(Role::Writer, &entries).await);
        }
    }
    // Memtables may hold what has been flushed already: views ignore it.
    let mut memtables: Vec<_> = parts[l0_end..].iter().rev().map(|part| memtable(part)).collect();
    if rng.random_bool(0.3) && l0_end > 0 {
        memtables.push(memtable(parts[l0_end - 1]));
    }
    let manifest = forest.manifest(l0, runs, flushed);
    let ssts = forest.ssts(caches.0, caches.1);
    let tree = Arc::new(OpenTree::new(&ssts, manifest, None));
    let last = batches.last().map_or(Seq::ZERO, |batch| batch.seq);
    let seq = Seq(rng.random_range(flushed.0..=last.0));
    Planted { view: View::new(memtables, tree, seq), batches, now_ms }
}

impl Planted {
    /// What every key holds, by the history alone.
    fn expected(&self, now_ms: u64) -> BTreeMap<Bytes, Found> {
        let visible = self.batches.partition_point(|batch| batch.seq <= self.view.seq);
        let mut by_key: BTreeMap<Bytes, Vec<Entry>> = BTreeMap::new();
        for entry in entries_of(&self.batches[..visible]) {
            by_key.entry(entry.key.clone()).or_default().push(entry);
        }
        let found = by_key.into_iter().filter_map(|(key, entries)| {
            Some((key, resolve(entries.iter().map(Entry::as_ref), now_ms)?))
        });
        found.collect()
    }
}

async fn collect(
    view: &View,
    range: &KeyRange,
    direction: Direction,
    now_ms: u64,
) -> Result<Vec<Row>, Error> {
    let mut scan = view.scan(range, direction, now_ms);
    let mut rows = Vec::new();
    while let Some(row) = scan.next().await? {
        rows.push(row);
    }
    Ok(rows)
}

fn random_range(rng: &mut StdRng) -> KeyRange {
    match rng.random_range(0..4) {
        0 => KeyRange::all(),
        1 => KeyRange::prefix(&random_key(rng)[..1]),
        2 => KeyRange { start: random_key(rng), end: None },
        _ => KeyRange { start: random_key(rng), end: Some(random_key(rng)) },
    }
}

#[tokio::test(start_paused = true)]
async fn reads_equal_the_history() {
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        // From caches that hold next to nothing to caches that hold everything.
        let caches = [(0, 0), (1_000, 3_000), (4_000, 1_000_000), (1 << 20, 1 << 20)];
        let caches = caches[rng.random_range(0..4)];
        let planted = plant(&mut rng, caches).await;
        let now_ms = planted.now_ms + rng.random_range(0..30) * 1_000;
        let expected = planted.expected(now_ms);
        let mut keys: Vec<Bytes> = expected.keys().cloned().collect();
        keys.extend((0..40).map(|_| random_key(&mut rng)));
        for key in &keys {
            let found = planted.view.get(key, now_ms).await.unwrap();
            assert_eq!(found.as_ref(), expected.get(key), "seed {seed}, key {key:?}");
        }
        let found = planted.view.get_many(&keys, now_ms).await.unwrap();
        let wanted: Vec<_> = keys.iter().map(|key| expected.get(key).cloned()).collect();
        assert_eq!(found, wanted, "seed {seed}");
        for _ in 0..12 {
            let range = random_range(&mut rng);
            let wanted = expected.iter().filter(|(key, _)| range.contains(key));
            let mut wanted: Vec<Row> = wanted
                .map(|(key, found)| Row {
                    key: key.clone(),
                    value: found.value.clone(),
                    seq: found.seq,
                })
                .collect();
            let forward = collect(&planted.view, &range, Direction::Forward, now_ms).await;
            assert_eq!(forward.unwrap(), wanted, "seed {seed}, {range:?}");
            wanted.reverse();
            let reverse = collect(&planted.view, &range, Direction::Reverse, now_ms).await;
            assert_eq!(reverse.unwrap(), wanted, "seed {seed}, {range:?} in reverse");
        }
    }
}

/// One run of numbered keys with values of 100 bytes in one SST, over a store with this latency.
struct Orchard {
    env: Env,
    forest: Forest,
    store: Arc<ThrottledStore<InMemory>>,
    manifest: Arc<Manifest>,
}

const LATENCY: Duration = Duration::from_millis(10);
const ORCHARD_KEYS: u64 = 400;

impl Orchard {
    async fn plant() -> Self {
        let config = ThrottleConfig { wait_get_per_call: LATENCY, ..ThrottleConfig::default() };
        let store = Arc::new(ThrottledStore::new(InMemory::new(), config));
        let options = SstOptions { block_bytes: 1_000, ..SMALL };
        let env = forest::env(1);
        let forest = Forest::new(Arc::clone(&store) as _, options, env.clone());
        let entries: Vec<Entry> = (0..ORCHARD_KEYS).map(orchard_entry).collect();
        let run = forest.run(&entries, 1).await;
        let manifest = forest.manifest(Vec::new(), vec![run], Seq(1));
        Self { env, forest, store, manifest }
    }

    async fn view(&self, ssts: &Arc<SstStore>) -> View {
        let tree = OpenTree::new(ssts, Arc::clone(&self.manifest), None);
        tree.load_runs().await.unwrap();
        View::new(Vec::new(), Arc::new(tree), Seq(1))
    }
}

fn orchard_entry(number: u64) -> Entry {
    // Random bytes: they do not compress.
    let mut value = vec![0; 100];
    StdRng::seed_from_u64(number).fill(&mut value[..]);
    let payload = Payload::Value(value.into());
    Entry { key: numbered(number), seq: Seq(1), payload, expires_ms: None }
}

fn gets(bucket: &Bucket) -> u64 {
    let rows = bucket.metrics().snapshot().rows;
    let of_ssts = |row: &&cairn_common::store::metrics::StoreRow| {
        row.operation == Operation::Get && row.kind == ObjectKind::Sst
    };
    rows.iter().filter(of_ssts).map(|row| row.requests).sum()
}

#[tokio::test(start_paused = true)]
async fn first_touch_costs_two_gets_and_the_next_costs_none() {
    let orchard = Orchard::plant().await;
    let ssts = orchard.forest.ssts(1 << 20, 1 << 20);
    let view = orchard.view(&ssts).await;
    assert_eq!(gets(ssts.bucket()), 0, "opening a tree reads no SST");
    assert!(view.get(&numbered(7), 0).await.unwrap().is_some());
    assert_eq!(gets(ssts.bucket()), 2, "metadata and one block");
    assert!(view.get(&numbered(7), 0).await.unwrap().is_some());
    assert!(view.get(b"absent", 0).await.unwrap().is_none());
    assert!(view.get(&numbered(ORCHARD_KEYS), 0).await.unwrap().is_none());
    assert_eq!(gets(ssts.bucket()), 2);

    // The tree of the next manifest uses the same handles.
    let next = OpenTree::new(&ssts, Arc::clone(&orchard.manifest), Some(&view.tree));
    let next = View::new(Vec::new(), Arc::new(next), Seq(1));
    assert!(next.get(&numbered(7), 0).await.unwrap().is_some());
    assert_eq!(gets(ssts.bucket()), 2);
}

#[tokio::test(start_paused = true)]
async fn moved_sst_keeps_its_metadata() {
    let orchard = Orchard::plant().await;
    let forest = &orchard.forest;
    let l0 = forest.sst(Role::Writer, &[orchard_entry(ORCHARD_KEYS)]).await;
    let of_l0 = numbered(ORCHARD_KEYS);
    let before = forest.manifest(vec![l0.clone()], orchard.manifest.runs.clone(), Seq(1));
    let ssts = forest.ssts(1 << 20, 1 << 20);
    let tree = Arc::new(OpenTree::new(&ssts, before, None));
    let view = View::new(Vec::new(), Arc::clone(&tree), Seq(1));
    for key in [&numbered(7), &of_l0] {
        assert!(view.get(key, 0).await.unwrap().is_some());
    }
    assert_eq!(gets(ssts.bucket()), 4, "metadata and one block of each");
    // A compaction moves both into one run; nobody holds the old tree when that run is read.
    let mut moved = vec![tree.runs[0].ssts().unwrap()[0].info().clone()];
    moved.push(l0);
    let run = forest.run_of(moved).await;
    let next =
        Arc::new(OpenTree::new(&ssts, forest.manifest(vec![], vec![run], Seq(1)), Some(&tree)));
    drop((view, tree));
    let view = View::new(Vec::new(), next, Seq(1));
    for key in [&numbered(7), &of_l0] {
        assert!(view.get(key, 0).await.unwrap().is_some());
    }
    assert_eq!(gets(ssts.bucket()), 4, "none again");
}

#[tokio::test(start_paused = true)]
async fn concurrent_misses_make_one_get_and_a_cancelled_leader_fails_nobody() {
    let orchard = Orchard::plant().await;
    let ssts = orchard.forest.ssts(1 << 20, 1 << 20);
    let view = orchard.view(&ssts).await;
    for expected in [2, 3] {
        // The same block for all: with its metadata at first, without it next time.
        let key = numbered(expected * 100);
        let mut leader = Box::pin(view.get(&key, 0));
        assert!(futures::poll!(&mut leader).is_pending());
        let followers = futures::future::join_all((0..20).map(|_| view.get(&key, 0)));
        let ((), found) = tokio::join!(
            async {
                tokio::time::sleep(LATENCY / 2).await;
                drop(leader);
            },
            followers
        );
        assert!(found.into_iter().all(|found| found.unwrap().is_some()));
        assert_eq!(gets(ssts.bucket()), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn candidates_of_all_sources_are_fetched_together() {
    let orchard = Orchard::plant().await;
    let forest = &orchard.forest;
    let mut l0 = Vec::new();
    for seq in 2..8 {
        let operand = Payload::Operand {
            op: MergeOp::Append,
            written_ms: 0,
            operand: Bytes::from(seq.to_string()),
        };
        let entry = Entry { key: numbered(7), seq: Seq(seq), payload: operand, expires_ms: None };
        l0.insert(0, forest.sst(Role::Writer, &[entry]).await);
    }
    let manifest = forest.manifest(l0, orchard.manifest.runs.clone(), Seq(7));
    let ssts = forest.ssts(1 << 20, 1 << 20);
    let tree = Arc::new(OpenTree::new(&ssts, manifest, None));
    let view = View::new(Vec::new(), tree, Seq(7));
    let began = orchard.env.clock.boot();
    let found = view.get(&numbered(7), 0).await.unwrap().unwrap();
    assert!(found.value.ends_with(b"234567") && found.seq == Seq(7));
    assert_eq!(
        orchard.env.clock.boot(),
        began + 3 * LATENCY,
        "one wait for the objects of runs, one for metadata, one for blocks"
    );
    assert_eq!(gets(ssts.bucket()), 14);
}

#[tokio::test(start_paused = true)]
async fn a_multi_get_shares_fetches() {
    let orchard = Orchard::plant().await;
    let ssts = orchard.forest.ssts(1 << 20, 1 << 20);
    let view = orchard.view(&ssts).await;
    let keys: Vec<Bytes> = (100..160).rev().map(numbered).collect();
    let began = orchard.env.clock.boot();
    let found = view.get_many(&keys, 0).await.unwrap();
    assert_eq!(orchard.env.clock.boot(), began + 2 * LATENCY);
    assert_eq!(gets(ssts.bucket()), 2, "metadata, and neighbouring blocks at once");
    for (key, found) in keys.iter().zip(found) {
        assert_eq!(found, view.get(key, 0).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn scans_read_ahead_and_fetch_no_more_than_they_need() {
    let orchard = Orchard::plant().await;
    for direction in [Direction::Forward, Direction::Reverse] {
        let ssts = orchard.forest.ssts(1 << 20, 1 << 20);
        let view = orchard.view(&ssts).await;
        let before = gets(ssts.bucket());
        let mut scan = view.scan(&KeyRange::all(), direction, 0);
        scan.next().await.unwrap().unwrap();
        assert_eq!(gets(ssts.bucket()) - before, 2, "metadata and one block");
        drop(scan);
        let rows = collect(&view, &KeyRange::all(), direction, 0).await.unwrap();
        assert_eq!(u64::try_from(rows.len()).unwrap(), ORCHARD_KEYS);
        // About 50 blocks: 1, and again 1, 2, 4, 8, 16 and the rest.
        let spent = gets(ssts.bucket()) - before;
        assert!((7..10).contains(&spent), "{spent} GETs");
        let again = gets(ssts.bucket());
        collect(&view, &KeyRange::all(), direction, 0).await.unwrap();
        assert_eq!(gets(ssts.bucket()), again, "everything is at hand");
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_stays_within_its_budget_and_what_is_read_stays() {
    let env = forest::env(3);
    let forest = Forest::new(Arc::new(InMemory::new()), SMALL, env);
    let entries: Vec<Entry> = (0..4_000).map(orchard_entry).collect();
    let run = forest.run(&entries, 20).await;
    let manifest = forest.manifest(Vec::new(), vec![run], Seq(1));
    let generous = forest.ssts(0, 1 << 30);
    let tree = OpenTree::new(&generous, Arc::clone(&manifest), None);
    tree.load_runs().await.unwrap();
    for sst in tree.handles() {
        generous.meta(sst).await.unwrap();
    }
    let all = generous.meta_bytes();

    let ssts = forest.ssts(0, all / 2);
    let tree = OpenTree::new(&ssts, manifest, None);
    tree.load_runs().await.unwrap();
    let handles: Vec<_> = tree.handles().cloned().collect();
    let at_hand = || handles.iter().filter(|sst| sst.with_meta(|_| ()).is_some()).count();
    for sst in &handles[..8] {
        ssts.meta(sst).await.unwrap();
    }
    for round in 0..5 {
        for sst in &handles[8..] {
            // A reader looks at these two, whatever else is loaded.
            for favourite in &handles[..2] {
                assert!(favourite.with_meta(|_| ()).is_some(), "round {round}");
            }
            let held = ssts.meta(sst).await.unwrap();
            assert!(ssts.meta_bytes() <= all / 2);
            assert!(held.block_count() > 0);
        }
    }
    // `at_hand` marks all of them as read, and still the budget holds.
    assert!((8..12).contains(&at_hand()), "{} of 20", at_hand());
    for sst in &handles {
        ssts.meta(sst).await.unwrap();
    }
    assert!(ssts.meta_bytes() <= all / 2 && at_hand() < 12);
    drop((tree, handles));
    let sst = ssts.handle(&forest.sst(Role::Writer, &[orchard_entry(1)]).await);
    ssts.meta(&sst).await.unwrap();
    assert!(ssts.meta_bytes() < all / 10, "handles that are gone take their share with them");
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_is_an_error_that_names_it() {
    let orchard = Orchard::plant().await;
    let ssts = orchard.forest.ssts(0, 1 << 20);
    let view = orchard.view(&ssts).await;
    let sst = Object::Sst(view.tree.runs[0].ssts().unwrap()[0].info().id);
    // First with nothing at hand, then with the metadata at hand and no block.
    for warm in [false, true] {
        let view = orchard.view(&ssts).await;
        let bytes = orchard.forest.bucket().get(&sst).await.unwrap();
        if warm {
            view.get(&numbered(7), 0).await.unwrap().unwrap();
        }
        orchard.forest.bucket().delete(&[sst]).await.unwrap();
        for error in [
            view.get(&numbered(300), 0).await.unwrap_err(),
            view.get_many(&[numbered(300)], 0).await.unwrap_err(),
            collect(&view, &KeyRange::all(), Direction::Forward, 0).await.unwrap_err(),
        ] {
            assert!(matches!(&error, Error::NotFound(name) if *name == sst.path()), "{error}");
        }
        orchard.forest.bucket().put(&sst, bytes).await.unwrap();
        assert!(view.get(&numbered(300), 0).await.unwrap().is_some(), "errors are not kept");
    }
    let run = Object::Run(view.tree.runs[0].info().id);
    orchard.forest.bucket().delete(&[run]).await.unwrap();
    let ssts = orchard.forest.ssts(0, 1 << 20);
    let opened = OpenTree::new(&ssts, Arc::clone(&orchard.manifest), None).load_runs().await;
    assert!(matches!(opened, Err(Error::NotFound(name)) if name == run.path()));
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_an_error_that_names_its_object() {
    let orchard = Orchard::plant().await;
    orchard.store.config_mut(|config| config.wait_get_per_call = Duration::ZERO);
    let forest = &orchard.forest;
    let ssts = forest.ssts(0, 1 << 20);
    let whole = orchard.view(&ssts).await;
    let expected = collect(&whole, &KeyRange::all(), Direction::Forward, 0).await.unwrap();
    let sst = Object::Sst(whole.tree.runs[0].ssts().unwrap()[0].info().id);
    let sound = forest.bucket().get(&sst).await.unwrap();
    let mut rng = StdRng::seed_from_u64(11);
    let mut detected = 0;
    for _ in 0..300 {
        let mut bytes = sound.to_vec();
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
        forest.bucket().put(&sst, bytes.into()).await.unwrap();
        let ssts = forest.ssts(0, 1 << 20);
        let view = orchard.view(&ssts).await;
        let before = gets(ssts.bucket());
        match collect(&view, &KeyRange::all(), Direction::Forward, 0).await {
            // The header in front of the first block is for repair; scans do not read it.
            Ok(rows) => assert!(rows == expected && at < 100, "byte {at}"),
            Err(Error::Corrupt(failure)) => {
                detected += 1;
                assert!(failure.to_string().contains(&sst.path()), "{failure}");
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
        let blocks = u64::try_from(sound.len()).unwrap() / 1_000 + 10;
        assert!(gets(ssts.bucket()) - before <= blocks, "damage is not asked for again");
    }
    assert!(detected > 290, "{detected} of 300");
}

#[tokio::test(start_paused = true)]
async fn a_scan_reaches_a_damaged_block_from_both_ends() {
    let orchard = Orchard::plant().await;
    let forest = &orchard.forest;
    let ssts = forest.ssts(1 << 20, 0);
    let tree = orchard.view(&ssts).await.tree;
    let handle = Arc::clone(tree.handles().next().unwrap());
    let meta = ssts.meta(&handle).await.unwrap();
    let sst = Object::Sst(handle.info().id);
    let mut bytes = forest.bucket().get(&sst).await.unwrap().to_vec();
    let damaged = meta.block_count() / 2;
    let range = meta.block_range(damaged);
    bytes[usize::try_from(range.start).unwrap() + 10] ^= 1;
    forest.bucket().put(&sst, bytes.into()).await.unwrap();
    let mut shown = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse] {
        // Nothing is at hand: read-ahead meets the damage long before the scan does.
        let view = orchard.view(&forest.ssts(1 << 20, 1 << 20)).await;
        let mut scan = view.scan(&KeyRange::all(), direction, 0);
        let error = loop {
            match scan.next().await {
                Ok(row) => shown.push(row.expect("the damage comes first").key),
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    }
    shown.sort_unstable();
    let kept: Vec<Bytes> =
        (0..ORCHARD_KEYS).map(numbered).filter(|key| shown.contains(key)).collect();
    assert_eq!(shown, kept, "each once");
    let lost = usize::try_from(ORCHARD_KEYS).unwrap() - shown.len();
    assert!((1..=12).contains(&lost), "a block holds about nine entries, {lost} are missing");
}
