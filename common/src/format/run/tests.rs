//! The spelling of run objects and their invariants.

use proptest::prelude::*;

use super::super::samples::{
    assert_all_damage_is_seen, assert_golden, compactor_output, database, run, sst, uuid,
    writer_output,
};
use super::*;

fn sample() -> Run {
    run(compactor_output(1, 0x21), (0x31, 0x32)).0
}

#[test]
fn spelling_is_golden() {
    let json = serde_json::to_string_pretty(&sample()).unwrap();
    assert_golden("run/golden.json", &format!("{json}\n"));
}

#[test]
fn all_damage_is_seen() {
    let (bytes, digest) = sample().encode();
    assert_all_damage_is_seen(&bytes, |bytes| Run::parse(&bytes, &digest));
}

#[test]
fn info_adds_up_and_is_recognised() {
    let (run, info) = run(compactor_output(1, 0x21), (0x31, 0x32));
    assert_eq!((info.ssts, info.bytes, info.entries, info.tombstones), (2, 8192, 20, 2));
    assert_eq!((&info.first_key[..], &info.last_key[..]), (&b"a"[..], &b"z"[..]));
    assert_eq!(run.check_named_by(&info), Ok(()));
    for wrong in [
        RunInfo { id: compactor_output(1, 0x99), ..info.clone() },
        RunInfo { entries: 21, ..info.clone() },
        RunInfo { last_key: Bytes::from_static(b"y"), ..info },
    ] {
        assert!(run.check_named_by(&wrong).is_err(), "{wrong:?}");
    }
}

fn of_bounds(bounds: &[(&[u8], &[u8])]) -> Run {
    let ssts = bounds.iter().zip(0x31..).map(|((first, last), last_uuid)| SstInfo {
        first_key: Bytes::copy_from_slice(first),
        last_key: Bytes::copy_from_slice(last),
        ..sst(compactor_output(1, last_uuid), ("a", "a"), (1, 2))
    });
    Run::new(database(), compactor_output(1, 0x21), ssts.collect())
}

#[test]
fn ssts_ascend() {
    let cut = [b'k'; BOUND_BYTES_MAX];
    let cut_up = [&cut[..BOUND_BYTES_MAX - 1], b"l"].concat();
    let allowed: [&[(&[u8], &[u8])]; 4] = [
        &[(b"a", b"b"), (b"c", b"d")],
        // The last key `b…` was cut up to `c`, which is the next SST's first key.
        &[(b"a", b"c"), (b"c", b"d")],
        &[(b"a", b"a"), (b"b", b"b")],
        // Long keys of one beginning on both sides of the cut between two SSTs.
        &[(b"a", &cut_up), (&cut, b"z")],
    ];
    for bounds in allowed {
        assert_eq!(of_bounds(bounds).check(), Ok(()), "{bounds:?}");
    }
    let refused: [&[(&[u8], &[u8])]; 4] = [
        &[],
        &[(b"c", b"d"), (b"a", b"b")],
        &[(b"a", b"c"), (b"b", b"d")],
        &[(b"a", &cut_up), (&cut, b"b")],
    ];
    for bounds in refused {
        assert!(of_bounds(bounds).check().is_err(), "{bounds:?}");
    }
}

#[test]
fn impossible_runs_are_refused() {
    let mut twice = sample();
    twice.ssts[1].id = twice.ssts[0].id;
    let newer = Run { format: 2, ..sample() };
    let writers = Run { id: writer_output(1, 0x21), ..sample() };
    for broken in [twice, newer, writers] {
        let (bytes, digest) = frame::encode(&broken);
        assert!(Run::parse(&bytes, &digest).is_err(), "{broken:?}");
    }
}

#[test]
fn a_moved_sst_of_a_writer_may_stand_in_a_run() {
    let mut moved = sample();
    moved.ssts[0].id = writer_output(1, 0x12);
    assert_eq!(moved.check(), Ok(()));
    assert_ne!(moved.id.uuid, uuid(0x12));
}

proptest! {
    #[test]
    fn any_document_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut json = serde_json::to_vec(&sample()).unwrap();
        for (place, byte) in damage {
            let place = place.index(json.len());
            json[place] = byte;
        }
        let bytes = zstd::encode_all(&*json, 1).unwrap();
        if let Ok(parsed) = Run::parse(&bytes, &Digest::of(&bytes)) {
            // What is accepted can be written again.
            let (bytes, digest) = parsed.encode();
            prop_assert_eq!(Run::parse(&bytes, &digest).unwrap(), parsed);
        }
    }

    #[test]
    fn every_run_survives(keys in prop::collection::btree_set(
        prop::collection::vec(any::<u8>(), 1..20), 2..20,
    )) {
        let keys: Vec<_> = keys.into_iter().collect();
        let bounds: Vec<_> =
            keys.chunks_exact(2).map(|pair| (&pair[0][..], &pair[1][..])).collect();
        let run = of_bounds(&bounds);
        let (bytes, digest) = run.encode();
        prop_assert_eq!(Run::parse(&bytes, &digest).unwrap(), run);
    }
}
