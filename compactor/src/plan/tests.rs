//! The planner's laws over random inputs, and its choices as small cases.

use std::collections::HashSet;

use bytes::Bytes;
use cairn_common::format::manifest::ExpiryRange;
use cairn_common::format::path::OutputId;
use cairn_common::format::unknown::Unknown;
use cairn_common::types::{Epoch, Role, Seq};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn sst(id: u128, keys: (u8, u8)) -> SstInfo {
    SstInfo {
        id: OutputId { role: Role::Compactor, epoch: Epoch(1), uuid: Uuid::from_u128(id) },
        bytes: 100,
        meta_offset: 90,
        entries: 10,
        tombstones: 0,
        operands: 0,
        first_key: Bytes::copy_from_slice(&[keys.0]),
        last_key: Bytes::copy_from_slice(&[keys.1]),
        first_seq: Seq(1),
        last_seq: Seq(2),
        wal: None,
        expires: None,
        home: None,
        unknown: Unknown::default(),
    }
}

/// Sources of ascending, disjoint SSTs.
fn sources() -> impl Strategy<Value = Vec<Vec<SstInfo>>> {
    let cuts = prop::collection::btree_set(any::<u8>(), 0..12);
    prop::collection::vec((cuts, any::<u64>()), 0..5).prop_map(|sources| {
        let mut id = 0;
        let mut source = |(cuts, bits): (std::collections::BTreeSet<u8>, u64)| {
            let cuts: Vec<u8> = cuts.into_iter().collect();
            let pairs = cuts.chunks_exact(2);
            pairs
                .enumerate()
                .map(|(n, pair)| {
                    id += 1;
                    let mut sst = sst(id, (pair[0], pair[1]));
                    let bits = bits >> (n * 4);
                    sst.tombstones = bits & 1;
                    sst.bytes = if bits & 2 == 0 { 100 } else { 10 };
                    sst
                })
                .collect::<Vec<_>>()
        };
        sources.into_iter().map(&mut source).collect()
    })
}

fn bounds(piece: &Piece) -> (Bytes, Bytes) {
    let ssts: Vec<&SstInfo> = match piece {
        Piece::Move(sst) => vec![sst],
        Piece::Merge(sources) => sources.iter().flatten().collect(),
    };
    let first = ssts.iter().map(|sst| sst.first_key.clone()).min().unwrap();
    (first, ssts.iter().map(|sst| sst.last_key.clone()).max().unwrap())
}

proptest! {
    #[test]
    fn pieces_ascend_and_hold_each_input_once(sources in sources(), bottom: bool) {
        let rules = if bottom { Rules::bottom(5) } else { Rules::upper(5) };
        let plan = plan(&sources, rules, 50);
        let bounds: Vec<_> = plan.pieces.iter().map(bounds).collect();
        prop_assert!(bounds.is_sorted_by(|left, right| left.1 < right.0));
        let mut seen = HashSet::new();
        for piece in &plan.pieces {
            match piece {
                Piece::Move(sst) => {
                    prop_assert!(seen.insert(sst.id));
                    prop_assert!(!bottom || sst.tombstones == 0);
                }
                Piece::Merge(sources) => {
                    prop_assert!(sources.iter().all(|source| !source.is_empty()));
                    for source in sources {
                        prop_assert!(source.is_sorted_by(|a, b| a.last_key < b.first_key));
                    }
                    prop_assert!(sources.iter().flatten().all(|sst| seen.insert(sst.id)));
                }
            }
        }
        prop_assert_eq!(seen.len(), sources.iter().flatten().count());
    }
}

#[test]
fn disjoint_inputs_move_and_overlapping_ones_merge() {
    let (a, b, c) = (sst(1, (0, 9)), sst(2, (10, 19)), sst(3, (15, 29)));
    let inputs = [vec![c.clone()], vec![a.clone(), b.clone()]];
    let plan = plan(&inputs, Rules::upper(0), 50);
    assert_eq!(plan.pieces, [Piece::Move(Box::new(a)), Piece::Merge(vec![vec![c], vec![b]])]);
    assert_eq!(plan.bytes(), 200);
}

#[test]
fn touching_bounds_are_merged() {
    // Both may hold the key 9, or keys that were cut to it.
    let inputs = [vec![sst(1, (0, 9))], vec![sst(2, (9, 19))]];
    assert!(matches!(&*plan(&inputs, Rules::upper(0), 50).pieces, [Piece::Merge(_)]));
}

#[test]
fn small_neighbours_are_merged_and_a_small_one_alone_moves() {
    let small = |id, keys| SstInfo { bytes: 10, ..sst(id, keys) };
    let inputs = [vec![small(1, (0, 1)), small(2, (2, 3)), sst(3, (4, 5)), small(4, (6, 7))]];
    let plan = plan(&inputs, Rules::upper(0), 50);
    let [Piece::Merge(merged), Piece::Move(large), Piece::Move(alone)] = &*plan.pieces else {
        panic!("{plan:?}");
    };
    assert_eq!((merged[0].len(), large.bytes, alone.bytes), (2, 100, 10));
}

#[test]
fn what_must_not_stay_at_the_bottom_is_rewritten() {
    let dirty = [
        SstInfo { tombstones: 1, ..sst(1, (0, 1)) },
        SstInfo { operands: 1, ..sst(1, (0, 1)) },
        SstInfo { expires: Some(ExpiryRange { earliest_ms: 5, latest_ms: 9 }), ..sst(1, (0, 1)) },
    ];
    for sst in dirty {
        let pieces = |rules| plan(&[vec![sst.clone()]], rules, 50).pieces;
        assert!(matches!(&*pieces(Rules::bottom(5)), [Piece::Merge(_)]), "{sst:?}");
        assert!(matches!(&*pieces(Rules::upper(5)), [Piece::Move(_)]));
    }
    let later =
        SstInfo { expires: Some(ExpiryRange { earliest_ms: 6, latest_ms: 9 }), ..sst(1, (0, 1)) };
    let pieces = plan(&[vec![later]], Rules::bottom(5), 50).pieces;
    assert!(matches!(&*pieces, [Piece::Move(_)]));
}
