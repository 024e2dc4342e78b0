//! Jobs over an in-memory store: what they make, what they leave behind, how they end.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_common::clock::TokioClock;
use cairn_common::env::{Cpu, SeededRandom};
use cairn_common::format::path::ObjectKind;
use cairn_common::format::sst::{SstBuilder, SstOptions};
use cairn_common::lsm::visible;
use cairn_common::store::object::StoreSettings;
use cairn_common::types::{Entry, Epoch, MergeOp, Payload, Role, Seq};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::kit::{read_sst, run_paused};
use crate::plan::plan;

const DATABASE: Uuid = Uuid::from_u128(1);

/// Tiny blocks, stretches and SSTs, so that every boundary is met.
fn tools() -> Tools {
    let env = Env {
        clock: Arc::new(TokioClock::starting_at(1_000)),
        random: Arc::new(SeededRandom::new(7)),
        cpu: Cpu::Inline,
    };
    let settings = StoreSettings { part_bytes: 512, ..StoreSettings::default() };
    let bucket = Bucket::open("memory://", settings, env.clone()).unwrap();
    let making = Making {
        database: DATABASE,
        epoch: Epoch(3),
        random: Arc::clone(&env.random),
        options: SstOptions { block_bytes: 64, ..SstOptions::default() },
        sst_bytes: 600,
    };
    Tools { bucket, env, making, read_ahead_bytes: 400, cancel: CancellationToken::new() }
}

/// Puts one SST with these entries into the bucket.
async fn put_sst(tools: &Tools, entries: &[Entry]) -> SstInfo {
    let id = OutputId { role: Role::Writer, epoch: Epoch(1), uuid: tools.env.random.uuid() };
    let mut builder = SstBuilder::new(DATABASE, id, tools.making.options);
    for entry in entries {
        builder.add(entry.as_ref());
    }
    let (bytes, info) = builder.finish();
    tools.bucket.put(&Object::Sst(id), bytes).await.unwrap();
    info
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40).prop_map(|v| Payload::Value(v.into())),
        1 => Just(Payload::Tombstone),
        2 => (0..9_i32, 1..4_u64).prop_map(|(operand, written_ms)| Payload::Operand {
            op: MergeOp::Add,
            written_ms,
            operand: operand.to_string().into(),
        }),
    ]
}

/// Sources, newest first, each at most one version of a key.
fn sources() -> impl Strategy<Value = Vec<BTreeMap<Vec<u8>, Payload>>> {
    let key = prop::collection::vec(0..8_u8, 1..3);
    prop::collection::vec(prop::collection::btree_map(key, payload(), 0..60), 1..5)
}

fn entries_of(sources: &[BTreeMap<Vec<u8>, Payload>]) -> Vec<Vec<Entry>> {
    let seqs = (1..=sources.len()).rev().map(|n| Seq(u64::try_from(n).unwrap()));
    let with_seqs = sources.iter().zip(seqs);
    with_seqs
        .map(|(source, seq)| {
            let entry = |(key, payload): (&Vec<u8>, &Payload)| Entry {
                key: key.clone().into(),
                seq,
                payload: payload.clone(),
                expires_ms: None,
            };
            source.iter().map(entry).collect()
        })
        .collect()
}

/// What must be left: every key's entries compacted by themselves.
fn expected(sources: &[Vec<Entry>], rules: Rules) -> Vec<Entry> {
    let mut keys: BTreeMap<Bytes, Vec<Entry>> = BTreeMap::new();
    for entry in sources.iter().flatten() {
        keys.entry(entry.key.clone()).or_default().push(entry.clone());
    }
    keys.values().flat_map(|versions| visible::compact(versions, rules)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn job_makes_what_each_key_compacts_to(sources in sources(), bottom: bool) {
        let rules = if bottom { Rules::bottom(5) } else { Rules::upper(5) };
        run_paused(async {
            let tools = tools();
            let entries = entries_of(&sources);
            let mut inputs = Vec::new();
            for entries in &entries {
                // Two SSTs a source, as runs have several.
                let (left, right) = entries.split_at(entries.len() / 2);
                let mut ssts = Vec::new();
                for entries in [left, right] {
                    if !entries.is_empty() {
                        ssts.push(put_sst(&tools, entries).await);
                    }
                }
                inputs.push(ssts);
            }
            let (progress, mut work) = (Progress::default(), Work::default());
            let plan = plan(&inputs, rules, 300);
            run(&tools, plan, &progress, &mut work).await.unwrap();
            let mut made = Vec::new();
            for sst in &work.ssts {
                made.extend(read_sst(&tools.bucket, DATABASE, sst).await);
            }
            prop_assert_eq!(made, expected(&entries, rules));
            prop_assert!(progress.bytes_done() <= progress.bytes_to_do());
            let new = work.ssts.iter().filter(|sst| sst.id.role == Role::Compactor);
            prop_assert_eq!(new.count(), work.begun.len());
            Ok(())
        })?;
    }
}

/// Two overlapping SSTs of this many keys.
async fn overlapping(tools: &Tools, count: u32) -> Vec<Vec<SstInfo>> {
    let mut inputs = Vec::new();
    for seq in [2, 1] {
        let entry = |n: u32| Entry {
            key: format!("key{n:05}").into(),
            seq: Seq(seq),
            payload: Payload::Value(format!("value{n:05}").into()),
            expires_ms: None,
        };
        let entries: Vec<_> = (0..count).map(entry).collect();
        inputs.push(vec![put_sst(tools, &entries).await]);
    }
    inputs
}

#[test]
fn ssts_are_cut_at_the_set_size_and_counters_add_up() {
    run_paused(async {
        let tools = tools();
        let plan = plan(&overlapping(&tools, 500).await, Rules::bottom(5), 300);
        let (progress, mut work) = (Progress::default(), Work::default());
        run(&tools, plan.clone(), &progress, &mut work).await.unwrap();
        assert!(work.ssts.len() > 5);
        assert_eq!(work.ssts.iter().map(|sst| sst.entries).sum::<u64>(), 500);
        let bytes: u64 = work.ssts.iter().map(|sst| sst.bytes).sum();
        assert_eq!(progress.bytes_written(), bytes);
        assert_eq!(progress.bytes_to_do(), plan.bytes());
        assert!(progress.bytes_done() > plan.bytes() / 2, "all but heads and metadata");
        assert!(work.ssts.iter().all(|sst| sst.id.epoch == Epoch(3)));
    });
}

#[test]
fn cancelled_job_says_closed_and_names_what_it_began() {
    run_paused(async {
        let tools = tools();
        let plan = plan(&overlapping(&tools, 500).await, Rules::upper(5), 300);
        tools.cancel.cancel();
        let (progress, mut work) = (Progress::default(), Work::default());
        let ended = run(&tools, plan, &progress, &mut work).await;
        assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        let listed = tools.bucket.list(ObjectKind::Sst).await.unwrap();
        let inputs = 2;
        assert!(listed.len() <= inputs + work.begun.len());
    });
}

#[test]
fn damaged_input_ends_the_job_and_is_named() {
    run_paused(async {
        let tools = tools();
        let inputs = overlapping(&tools, 200).await;
        let object = Object::Sst(inputs[1][0].id);
        let mut bytes = tools.bucket.get(&object).await.unwrap().to_vec();
        bytes[1_000] ^= 1;
        tools.bucket.put(&object, bytes.into()).await.unwrap();
        let plan = plan(&inputs, Rules::upper(5), 300);
        let ended = run(&tools, plan, &Progress::default(), &mut Work::default()).await;
        let Err(error @ Error::Corrupt(_)) = ended else { panic!("{ended:?}") };
        assert!(error.to_string().contains(&object.path()), "{error}");
    });
}

#[test]
fn missing_input_ends_the_job() {
    run_paused(async {
        let tools = tools();
        let inputs = overlapping(&tools, 10).await;
        tools.bucket.delete(&[Object::Sst(inputs[0][0].id)]).await.unwrap();
        let plan = plan(&inputs, Rules::upper(5), 300);
        let ended = run(&tools, plan, &Progress::default(), &mut Work::default()).await;
        assert!(matches!(ended, Err(Error::NotFound(_))), "{ended:?}");
    });
}
