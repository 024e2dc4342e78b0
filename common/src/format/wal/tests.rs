//! The bytes of WAL objects.

use proptest::prelude::*;

use super::super::samples::{assert_all_damage_is_seen, database, uuid};
use super::*;

fn stamp() -> WalStamp {
    WalStamp {
        database: database(),
        id: WalId(1042),
        epoch: Epoch(2),
        writer: uuid(3),
        prev_seq: Seq(700),
        proven: WalId(1039),
    }
}

fn put(key: &'static str, value: &'static str) -> Op {
    Op { key: key.into(), payload: Payload::Value(value.into()), expires_ms: None }
}

fn delete(key: &'static str) -> Op {
    Op { key: key.into(), payload: Payload::Tombstone, expires_ms: None }
}

fn sample() -> Vec<Batch> {
    let operand = Payload::Operand { op: MergeOp::Add, written_ms: 300, operand: "7".into() };
    let merge = Op { key: "n".into(), payload: operand, expires_ms: Some(1000) };
    vec![
        Batch { seq: Seq(701), ops: vec![put("a", "x"), delete("b")] },
        Batch { seq: Seq(702), ops: vec![merge] },
        Batch { seq: Seq(703), ops: vec![put("a", "")] },
    ]
}

fn encode(batches: &[Batch], stamp: &WalStamp) -> Bytes {
    let mut builder = WalBuilder::new();
    for batch in batches {
        builder.push(batch);
    }
    let bytes = builder.bytes();
    let object = builder.finish(stamp);
    assert_eq!(object.len(), bytes);
    object
}

fn parse(bytes: Bytes) -> Result<WalObject, Corrupt> {
    WalObject::parse(bytes, database(), WalId(1042))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn data_bytes_are_golden() {
    let bytes = encode(&sample(), &stamp());
    let golden = concat!(
        "89434149524e0d0a01000100",         // magic, format 1, kind 1, 0
        "0198f2c4000070008000000000000001", // database
        "1204000000000000",                 // id 1042
        "0198f2c4000070008000000000000003", // writer
        "0200000003000000",                 // epoch 2, 3 batches
        "bc02000000000000bd02000000000000", // prev_seq 700, first_seq 701
        "00000000000000000f04000000000000", // next 0, proven 1039
        "08000000000161017801",             // batch 1 begins: put a = x, delete
        "0162",                             // b
        "0900000012016ee807ac020137",       // n: add 7 written at 300, expires at 1000
        "0400000000016100",                 // put a = ""
        "e33e8d56",
    );
    assert_eq!(hex(&bytes), golden);
    let object = parse(bytes).unwrap();
    assert_eq!(object.batches, sample());
    assert_eq!((object.last_seq(), object.next()), (Seq(703), WalId(1043)));
}

#[test]
fn fence_bytes_are_golden() {
    let bytes = encode_fence(&stamp());
    let golden = concat!(
        "89434149524e0d0a01000100",
        "0198f2c4000070008000000000000001",
        "1204000000000000",
        "0198f2c4000070008000000000000003",
        "0200000000000000",                 // epoch 2, no batches
        "bc020000000000000000000000000000", // prev_seq 700, first_seq 0
        "12080000000000000000000000000000", // next 2066, proven 0
        "a4bc2500",
    );
    assert_eq!(hex(&bytes), golden);
    assert_eq!(bytes.len(), FENCE_BYTES);
    let fence = parse(bytes).unwrap();
    assert_eq!(fence.header.kind, WalKind::Fence { next: WalId(2066) });
    assert_eq!((fence.last_seq(), fence.next()), (seq_after_fence(Seq(700)), WalId(2066)));
}

#[test]
fn the_smallest_data_are_larger_than_a_fence() {
    let smallest = Batch { seq: Seq(701), ops: vec![delete("k")] };
    assert!(encode(&[smallest], &stamp()).len() > FENCE_BYTES);
}

#[test]
fn all_damage_is_seen() {
    assert_all_damage_is_seen(&encode(&sample(), &stamp()), parse);
    assert_all_damage_is_seen(&encode_fence(&stamp()), parse);
}

#[test]
fn an_object_of_another_place_or_database_is_refused() {
    let bytes = encode(&sample(), &stamp());
    assert!(WalObject::parse(bytes.clone(), database(), WalId(1043)).is_err());
    assert!(WalObject::parse(bytes, uuid(99), WalId(1042)).is_err());
}

#[test]
fn values_are_slices_of_the_object() {
    let bytes = encode(&sample(), &stamp());
    let within = bytes.as_ptr_range();
    let object = parse(bytes.clone()).unwrap();
    let key = &object.batches[0].ops[0].key;
    assert!(within.contains(&key.as_ptr()));
}

/// The bytes of a header that `check` would refuse, with a checksum that holds.
fn forged(header: WalHeader) -> Bytes {
    let valid = WalHeader { batches: 1, first_seq: Seq(701), prev_seq: Seq(700), ..stamp_header() };
    let mut bytes = valid.encode().to_vec();
    let next = match header.kind {
        WalKind::Data => 0,
        WalKind::Fence { next } => next.0,
    };
    let numbers = [header.prev_seq.0, header.first_seq.0, next, header.proven.0];
    bytes[56..60].copy_from_slice(&header.batches.to_le_bytes());
    for (place, number) in bytes[60..92].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let crc = codec::checksum(&[&bytes]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.into()
}

fn stamp_header() -> WalHeader {
    stamp().header(WalKind::Data, Seq(701), 1)
}

#[test]
fn impossible_headers_are_refused() {
    let data = stamp_header();
    let fence = WalHeader {
        kind: WalKind::Fence { next: WalId(2066) },
        first_seq: Seq::ZERO,
        batches: 0,
        proven: WalId(0),
        ..data
    };
    assert!(parse(forged(fence)).is_ok(), "the forger works");
    for header in [
        WalHeader { batches: 0, ..data },
        WalHeader { first_seq: Seq(700), ..data },
        WalHeader { first_seq: Seq::MAX, batches: 2, ..data },
        WalHeader { first_seq: Seq(u64::MAX), ..data },
        WalHeader { prev_seq: Seq(u64::MAX), ..fence },
        WalHeader { kind: WalKind::Fence { next: WalId(1042) }, ..fence },
        WalHeader { kind: WalKind::Fence { next: WalId(2065) }, ..fence },
        WalHeader { kind: WalKind::Fence { next: WalId(2067) }, ..fence },
        WalHeader { kind: WalKind::Fence { next: WalId(u64::MAX) }, ..fence },
        WalHeader { proven: WalId(1041), ..fence },
        WalHeader { proven: WalId(1042), ..data },
        WalHeader { proven: WalId(17), ..data },
        WalHeader { proven: WalId(u64::MAX), ..data },
        WalHeader { batches: 1, ..fence },
        WalHeader { first_seq: Seq(1), ..fence },
    ] {
        assert!(parse(forged(header)).is_err(), "{header:?}");
    }
}

#[test]
#[should_panic(expected = "no gaps")]
fn a_gap_between_seqs_is_a_bug() {
    let mut builder = WalBuilder::new();
    builder.push(&Batch { seq: Seq(1), ops: vec![put("a", "b")] });
    builder.push(&Batch { seq: Seq(3), ops: vec![put("a", "b")] });
}

fn any_bytes(length: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..length).prop_map(Bytes::from)
}

fn any_op() -> impl Strategy<Value = Op> {
    let kind =
        prop::sample::select(vec![MergeOp::Add, MergeOp::Max, MergeOp::Min, MergeOp::Append]);
    let operand = (kind, any::<u64>(), any_bytes(12))
        .prop_map(|(op, written_ms, operand)| Payload::Operand { op, written_ms, operand });
    let payload =
        prop_oneof![any_bytes(300).prop_map(Payload::Value), Just(Payload::Tombstone), operand,];
    let key = (any::<u8>(), any_bytes(200))
        .prop_map(|(first, rest)| Bytes::from([&[first], &rest[..]].concat()));
    (key, payload, prop::option::of(any::<u64>())).prop_map(|(key, payload, expires_ms)| Op {
        key,
        payload,
        expires_ms,
    })
}

fn any_batches() -> impl Strategy<Value = Vec<Batch>> {
    let batch = prop::collection::vec(any_op(), 1..6);
    (1_u64..1 << 52, prop::collection::vec(batch, 1..6)).prop_map(|(first, batches)| {
        let seqs = (first..).map(Seq);
        seqs.zip(batches).map(|(seq, ops)| Batch { seq, ops }).collect()
    })
}

proptest! {
    #[test]
    fn every_group_survives(batches in any_batches()) {
        let prev_seq = Seq(batches[0].seq.0 - 1);
        let bytes = encode(&batches, &WalStamp { prev_seq, ..stamp() });
        let object = parse(bytes).unwrap();
        prop_assert_eq!(object.header.prev_seq, prev_seq);
        prop_assert_eq!(object.batches, batches);
    }

    #[test]
    fn any_bytes_never_panic(bytes in any_bytes(300)) {
        prop_assert!(parse(bytes).is_err());
    }

    #[test]
    fn any_body_with_a_checksum_that_holds_never_panics(
        batches in any_batches(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let prev_seq = Seq(batches[0].seq.0 - 1);
        let mut bytes = encode(&batches, &WalStamp { prev_seq, ..stamp() }).to_vec();
        bytes.truncate(bytes.len() - codec::SEAL_BYTES);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let (head, body) = bytes.split_at(HEADER_BYTES);
        let crc = codec::checksum(&[body, head]);
        bytes.extend_from_slice(&crc.to_le_bytes());
        if let Ok(object) = parse(bytes.into()) {
            // What is accepted is what an encoder would write.
            prop_assert_eq!(object.last_seq().0 - object.header.first_seq.0 + 1,
                object.batches.len() as u64);
        }
    }
}
