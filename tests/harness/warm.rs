//! A tree of the usual shape with everything in memory: 8 L0 over 4 runs, and a memtable on top.
//! What it costs to read from it is what the read path itself costs.

use std::sync::Arc;

use bytes::Bytes;
use cairn_common::format::sst::SstOptions;
use cairn_common::read::view::{OpenTree, View};
use cairn_common::types::{Batch, Entry, Op, Payload, Role, Seq};
use object_store::memory::InMemory;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::forest::{self, Forest};

/// Bytes of a value; half of them compress.
const VALUE_BYTES: usize = 256;
/// SSTs of L0.
const L0_COUNT: usize = 8;
/// Runs above the bottom one.
const UPPER_RUN_COUNT: usize = 3;

/// A warm view, and what to ask it.
#[derive(Debug)]
pub struct Warm {
    /// The view; reading from it waits for nothing.
    pub view: View,
    /// Keys that are there, shuffled; most of them in the bottom run alone.
    pub hits: Vec<Bytes>,
    /// Keys that are not there, between those that are.
    pub misses: Vec<Bytes>,
}

impl Warm {
    /// A view on `count` keys. Every 16th of them is in each SST of L0, every 4th in each of the
    /// upper runs, all of them in the bottom run.
    pub async fn plant(count: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(42);
        let options = SstOptions::default();
        let forest = Forest::new(Arc::new(InMemory::new()), options, forest::env(42));
        let mut seq = Seq::ZERO;
        let mut layer = |step: u64, rng: &mut SmallRng| -> Vec<Entry> {
            seq = seq.next();
            let first = rng.random_range(0..step);
            let numbers = (first..count).step_by(usize::try_from(step).expect("a small step"));
            numbers.map(|number| entry(number, seq, rng)).collect()
        };
        let mut runs = vec![forest.run(&layer(1, &mut rng), 4).await];
        for _ in 0..UPPER_RUN_COUNT {
            runs.insert(0, forest.run(&layer(4, &mut rng), 2).await);
        }
        let mut l0 = Vec::new();
        for _ in 0..L0_COUNT {
            l0.insert(0, forest.sst(Role::Writer, &layer(16, &mut rng)).await);
        }
        let newest = layer(64, &mut rng);
        let flushed = l0[0].last_seq;
        let ops = newest.into_iter().map(|Entry { key, payload, expires_ms, .. }| Op {
            key,
            payload,
            expires_ms,
        });
        let memtable = forest::memtable(&[Batch { seq: flushed.next(), ops: ops.collect() }]);

        let ssts = forest.ssts(1 << 30, 1 << 30);
        let manifest = forest.manifest(l0, runs, flushed);
        let tree = OpenTree::new(&ssts, manifest, None);
        tree.load_runs().await.expect("sound runs");
        for sst in tree.handles() {
            let meta = ssts.meta(sst).await.expect("sound metadata");
            let blocks = ssts.blocks(sst, &meta, 0..meta.block_count()).await;
            drop(blocks.expect("sound blocks"));
        }
        let view = View::new(vec![memtable], Arc::new(tree), flushed.next());
        let mut hits: Vec<Bytes> = (0..count).map(key).collect();
        hits.shuffle(&mut rng);
        let mut misses: Vec<Bytes> = (0..count - 1).map(absent_key).collect();
        misses.shuffle(&mut rng);
        Self { view, hits, misses }
    }
}

/// A key of 24 bytes.
pub fn key(number: u64) -> Bytes {
    format!("user{:020}", number * 2).into()
}

fn absent_key(number: u64) -> Bytes {
    format!("user{:020}", number * 2 + 1).into()
}

fn entry(number: u64, seq: Seq, rng: &mut SmallRng) -> Entry {
    let mut value = vec![b'v'; VALUE_BYTES];
    rng.fill(&mut value[..VALUE_BYTES / 2]);
    Entry { key: key(number), seq, payload: Payload::Value(value.into()), expires_ms: None }
}
