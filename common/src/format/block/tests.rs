//! Tests of blocks: golden bytes, round trips, damage.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::BytesMut;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::types::{Entry, Epoch, MergeOp, Payload, Role};

pub(in crate::format) fn sst_id(n: u128) -> OutputId {
    OutputId { role: Role::Writer, epoch: Epoch(2), uuid: Uuid::from_u128(n) }
}

pub(in crate::format) fn any_payload() -> impl Strategy<Value = Payload> {
    let op = prop_oneof![
        Just(MergeOp::Add),
        Just(MergeOp::Max),
        Just(MergeOp::Min),
        Just(MergeOp::Append)
    ];
    let value = || prop_oneof![9 => vec(any::<u8>(), 0..40), 1 => vec(0u8..4, 0..3000)];
    prop_oneof![
        4 => value().prop_map(|value| Payload::Value(value.into())),
        1 => Just(Payload::Tombstone),
        2 => (op, any::<u64>(), value()).prop_map(|(op, written_ms, operand)| {
            Payload::Operand { op, written_ms, operand: operand.into() }
        }),
    ]
}

/// Keys that share prefixes, now and then a very long one.
pub(in crate::format) fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => vec(0u8..3, 1..7),
        5 => vec(any::<u8>(), 1..30),
        1 => (vec(0u8..3, 1..3), 200..=KEY_BYTES_MAX - 3).prop_map(|(tail, stem)| {
            [vec![7; stem], tail].concat()
        }),
    ]
}

/// Entries in order: any kinds, several versions of some keys, some that expire.
pub(in crate::format) fn any_entries(keys_max: usize) -> impl Strategy<Value = Vec<Entry>> {
    let version = (any_payload(), proptest::option::weighted(0.2, any::<u64>()));
    let versions = btree_map(0..=Seq::MAX.0, version, 1..4);
    btree_map(any_key(), versions, 1..keys_max).prop_map(|keys| {
        let entries = keys.into_iter().flat_map(|(key, versions)| {
            versions.into_iter().rev().map(move |(seq, (payload, expires_ms))| Entry {
                key: key.clone().into(),
                seq: Seq(seq),
                payload,
                expires_ms,
            })
        });
        entries.collect()
    })
}

fn build(entries: &[Entry], compression: Compression) -> Vec<u8> {
    let mut builder = BlockBuilder::new(compression);
    let mut out = BytesMut::new();
    for entry in entries {
        builder.add(entry.as_ref());
    }
    let bytes = builder.finish(&sst_id(1), 28, &mut out);
    assert_eq!(bytes, out.len() as u64);
    out.to_vec()
}

fn parse(stored: &[u8]) -> Result<Block, Corrupt> {
    Block::parse(stored, &sst_id(1), 28)
}

fn block_of(entries: &[Entry]) -> Block {
    parse(&build(entries, Compression::Lz4)).unwrap()
}

fn forward(cursor: &mut BlockCursor) -> Vec<Entry> {
    let mut found = Vec::new();
    while let Some(entry) = cursor.entry() {
        found.push(entry.to_entry());
        assert_eq!(cursor.value_bytes().len(), found.last().unwrap().payload.bytes());
        cursor.next();
    }
    found
}

fn backward(cursor: &mut BlockCursor) -> Vec<Entry> {
    let mut found = Vec::new();
    while let Some(entry) = cursor.entry() {
        found.push(entry.to_entry());
        cursor.prev();
    }
    found
}

fn versions(block: &Block, key: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let ended = block.find::<()>(key, |entry| {
        found.push(entry.to_entry());
        ControlFlow::Continue(())
    });
    assert!(ended.is_continue());
    found
}

fn value(key: &'static str, seq: u64, value: &'static str) -> Entry {
    let payload = Payload::Value(value.into());
    Entry { key: key.into(), seq: Seq(seq), payload, expires_ms: None }
}

fn car_and_cart() -> [Entry; 2] {
    [value("car", 7, "x"), Entry { payload: Payload::Tombstone, ..value("cart", 5, "") }]
}

#[test]
fn bytes_are_golden() {
    let decoded = b"\0\0\x03\0\x01carx\x01\x03\x01\x03t\0\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0";
    let stored = build(&car_and_cart(), Compression::None);
    assert_eq!(stored[..5], [0, 30, 0, 0, 0]);
    assert_eq!(&stored[5..35], decoded);
    assert_eq!(stored[35..], [208, 254, 77, 58]);
    assert_eq!(parse(&stored).unwrap().decoded(), &decoded[..]);
    // Too small to shrink: stored raw though LZ4 was asked for.
    assert_eq!(build(&car_and_cart(), Compression::Lz4), stored);

    let operand = Payload::Operand { op: MergeOp::Append, written_ms: 300, operand: "ab".into() };
    let entry = Entry { payload: operand, expires_ms: Some(1), ..value("k", 1, "") };
    let golden = b"\x1e\0\x01\0\x02\x01\xac\x02kab\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0";
    assert_eq!(block_of(&[entry]).decoded(), &golden[..]);
}

#[test]
fn compression_shrinks_what_repeats() {
    let text = "to and fro, to and fro";
    let entries: Vec<_> = (1..9).rev().map(|seq| value("key", seq, text)).collect();
    let stored = build(&entries, Compression::Lz4);
    assert_eq!(stored[0], FORM_LZ4);
    assert!(stored.len() < build(&entries, Compression::None).len() / 2);
    assert_eq!(forward_of(&parse(&stored).unwrap()), entries);
}

fn forward_of(block: &Block) -> Vec<Entry> {
    let mut cursor = BlockCursor::new(block.clone());
    cursor.first();
    forward(&mut cursor)
}

#[test]
fn every_flip_truncation_and_wrong_place_is_corrupt() {
    let entries: Vec<_> = (0..20).map(|n| value("a-key", 100 - n, "and its value")).collect();
    for stored in [build(&car_and_cart(), Compression::None), build(&entries, Compression::Lz4)] {
        assert!(parse(&stored).is_ok());
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
        }
        for end in 0..stored.len() {
            assert!(parse(&stored[..end]).is_err(), "cut at {end}");
        }
        assert!(Block::parse(&stored, &sst_id(1), 29).is_err());
        assert!(Block::parse(&stored, &sst_id(2), 28).is_err());
    }
}

/// A stored block with a right checksum, whatever is in it.
fn sealed(form: u8, decoded_bytes: u32, payload: &[u8]) -> Vec<u8> {
    let mut stored = vec![form];
    codec::put_u32(&mut stored, decoded_bytes);
    stored.extend_from_slice(payload);
    let crc = checksum(&stored, &sst_id(1), 28);
    codec::put_u32(&mut stored, crc);
    stored
}

#[test]
fn declared_size_is_checked_before_memory_is_taken() {
    for declared in [u32::MAX, 1 << 30, 256 * 9, 1000] {
        let wrong = parse(&sealed(FORM_LZ4, declared, b"\x40abcd\x01\x02\x03")).unwrap_err();
        assert!(wrong.0.contains("declares"), "{wrong}");
    }
    assert!(parse(&sealed(FORM_RAW, 9, b"12345678")).is_err());
    assert!(parse(&sealed(2, 8, b"12345678")).is_err());
}

#[test]
fn order_and_restarts_are_proven() {
    let sound = block_of(&car_and_cart()).decoded().to_vec();
    let damaged = |at: usize, byte: u8| {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        Block::from_decoded(bytes.into()).map_err(|corrupt| corrupt.0)
    };
    assert!(damaged(0, 0).is_ok());
    for (at, byte, why) in [
        (0, 3, "unknown tag"),
        (0, 8, "unknown tag"),
        (1, 1, "shares its key"),
        (2, 0x7f, "at most 14"),
        (3, 0xff, "away from"),
        (10, 4, "shares too much"),
        (11, 2, "too early"),
        (14, 9, "no restart"),
        (24, 0x20, "impossible trailer"),
        (26, 0, "impossible trailer"),
        (26, 2, "no restart"),
        (29, 0xff, "more restarts"),
    ] {
        let found = damaged(at, byte).map(|_| ());
        assert!(found.as_ref().is_err_and(|text| text.contains(why)), "{at}: {found:?}, {why}");
    }
    let mut disordered = block_of(&[value("b", 1, ""), value("c", 1, "")]).decoded().to_vec();
    disordered[5] = b'd';
    assert!(Block::from_decoded(disordered.into()).unwrap_err().0.contains("out of order"));
}

#[test]
fn seek_finds_the_newest_version_and_seek_before_the_oldest() {
    let entries = [value("b", 9, "1"), value("b", 4, "2"), value("d", 7, "3"), value("d", 6, "4")];
    let mut cursor = BlockCursor::new(block_of(&entries));
    let mut at = |place: fn(&mut BlockCursor, &[u8]), key: &str| {
        place(&mut cursor, key.as_bytes());
        cursor.entry().map(|entry| entry.seq.0)
    };
    let seek: Vec<_> = ["a", "b", "c", "d", "e"].map(|key| at(BlockCursor::seek, key)).into();
    assert_eq!(seek, [Some(9), Some(9), Some(7), Some(7), None]);
    let before = ["a", "b", "c", "d", "e"].map(|key| at(BlockCursor::seek_before, key));
    assert_eq!(before, [None, None, Some(4), Some(4), Some(6)]);
}

#[test]
fn find_stops_where_the_visitor_breaks() {
    let entries = [value("b", 9, "1"), value("b", 4, "2")];
    let block = block_of(&entries);
    let found = block.find(b"b", |entry| ControlFlow::Break(entry.seq));
    assert_eq!(found, ControlFlow::Break(Seq(9)));
}

#[test]
fn values_are_shared_with_the_block() {
    let block = block_of(&[value("k", 1, "value")]);
    let mut cursor = BlockCursor::new(block.clone());
    assert!(cursor.entry().is_none() && cursor.value_bytes().is_empty());
    cursor.first();
    let shared = cursor.value_bytes();
    assert_eq!(shared, "value");
    assert!(block.decoded().as_ptr_range().contains(&shared.as_ptr()));
    cursor.next();
    cursor.next();
    cursor.prev();
    assert!(cursor.entry().is_none(), "off the block until placed again");
}

#[test]
#[should_panic(expected = "in order")]
fn builder_refuses_disorder() {
    build(&[value("b", 1, ""), value("a", 2, "")], Compression::None);
}

#[test]
#[should_panic(expected = "in order")]
fn builder_refuses_an_older_version_first() {
    build(&[value("a", 1, ""), value("a", 2, "")], Compression::None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn entries_round_trip_both_ways(entries in any_entries(40), lz4: bool) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let block = parse(&build(&entries, compression)).unwrap();
        prop_assert_eq!(&forward_of(&block), &entries);
        let mut cursor = BlockCursor::new(block.clone());
        cursor.last();
        let mut reversed = backward(&mut cursor);
        reversed.reverse();
        prop_assert_eq!(&reversed, &entries);
        let again = Block::from_decoded(block.decoded().clone()).unwrap();
        prop_assert_eq!(forward_of(&again), entries);
    }

    #[test]
    fn searches_agree_with_a_sorted_list(
        entries in any_entries(40),
        strangers in vec(any_key(), 0..10),
    ) {
        let block = block_of(&entries);
        let mut by_key: BTreeMap<&[u8], Vec<Entry>> = BTreeMap::new();
        for entry in &entries {
            by_key.entry(&entry.key).or_default().push(entry.clone());
        }
        let mut cursor = BlockCursor::new(block.clone());
        for key in by_key.keys().copied().chain(strangers.iter().map(|key| &**key)) {
            let expected = by_key.get(key).cloned().unwrap_or_default();
            prop_assert_eq!(versions(&block, key), expected);
            cursor.seek(key);
            prop_assert_eq!(
                cursor.entry(),
                entries.iter().map(Entry::as_ref).find(|entry| entry.key >= key)
            );
            cursor.seek_before(key);
            prop_assert_eq!(
                cursor.entry(),
                entries.iter().map(Entry::as_ref).rfind(|entry| entry.key < key)
            );
        }
    }

    #[test]
    fn any_bytes_never_panic(
        bytes in vec(any::<u8>(), 0..80),
        form in 0u8..3,
        declared in 0u32..99,
    ) {
        prop_assert!(parse(&bytes).is_err());
        if let Ok(block) = Block::from_decoded(bytes.clone().into()) {
            forward_of(&block);
        }
        if let Ok(block) = parse(&sealed(form, declared, &bytes)) {
            forward_of(&block);
        }
    }

    /// Damage that a checksum does not see is refused, or leaves a block that is sound in itself.
    #[test]
    fn any_change_of_decoded_bytes_never_panics(
        entries in any_entries(12),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        key in any_key(),
    ) {
        let mut bytes = block_of(&entries).decoded().to_vec();
        for (index, byte) in changes {
            *index.get_mut(&mut bytes) = byte;
        }
        if let Ok(block) = Block::from_decoded(bytes.into()) {
            let found = forward_of(&block);
            let order = |entry: &Entry| (entry.key.clone(), Seq::MAX.0 - entry.seq.0);
            prop_assert!(found.is_sorted_by_key(order));
            let mut cursor = BlockCursor::new(block.clone());
            cursor.last();
            prop_assert_eq!(backward(&mut cursor).len(), found.len());
            cursor.seek(&key);
            cursor.seek_before(&key);
            versions(&block, &key);
        }
    }
}
