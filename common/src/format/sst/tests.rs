//! Tests of SSTs: golden bytes, round trips, damage.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::super::block::tests::{any_entries, any_key, sst_id};
use super::super::block::{Block, BlockCursor};
use super::super::filter::KeyHash;
use super::super::manifest::{ExpiryRange, SstInfo};
use super::*;
use crate::limits::BOUND_BYTES_MAX;
use crate::types::{Entry, EntryRef, MergeOp, Payload, Seq};

const DATABASE: DatabaseId = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

/// A finished SST.
struct Built {
    object: Bytes,
    info: SstInfo,
}

impl Built {
    fn new(id: OutputId, entries: &[Entry], options: SstOptions) -> Self {
        let mut builder = SstBuilder::new(DATABASE, id, options);
        assert!(builder.is_empty());
        let mut object = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            builder.add(entry.as_ref());
            if index % 7 == 0 {
                object.extend_from_slice(&builder.take_bytes());
            }
        }
        let (rest, info) = builder.finish();
        object.extend_from_slice(&rest);
        assert_eq!(info.bytes, object.len() as u64);
        Self { object: object.into(), info }
    }

    fn section(&self) -> Bytes {
        self.object.slice(usize::try_from(self.info.meta_offset).unwrap()..)
    }

    fn meta(&self) -> Result<SstMeta, Corrupt> {
        SstMeta::parse(self.section(), &self.info, DATABASE)
    }

    fn stored(&self, meta: &SstMeta, block: usize) -> Bytes {
        let range = meta.block_range(block);
        let at = |at: u64| usize::try_from(at).unwrap().min(self.object.len());
        self.object.slice(at(range.start)..at(range.end))
    }

    fn block(&self, meta: &SstMeta, block: usize) -> Result<Block, Corrupt> {
        Block::parse(&self.stored(meta, block), &self.info.id, meta.block_range(block).start)
    }

    /// What a reader finds of a key, by filter, index and block.
    fn versions(&self, meta: &SstMeta, key: &[u8]) -> Result<Vec<Entry>, Corrupt> {
        let mut found = Vec::new();
        if !meta.may_contain(KeyHash::of(key)) {
            return Ok(found);
        }
        if let Some(block) = meta.block_for(key) {
            let ended = self.block(meta, block)?.find::<()>(key, |entry| {
                found.push(entry.to_entry());
                ControlFlow::Continue(())
            });
            assert!(ended.is_continue());
        }
        Ok(found)
    }

    fn all(&self, meta: &SstMeta) -> Vec<Entry> {
        let mut found = Vec::new();
        for block in 0..meta.block_count() {
            let mut cursor = BlockCursor::new(self.block(meta, block).unwrap());
            cursor.first();
            while let Some(entry) = cursor.entry() {
                found.push(entry.to_entry());
                cursor.next();
            }
        }
        found
    }

    fn with_object(&self, object: Vec<u8>) -> Self {
        Self { object: object.into(), info: self.info.clone() }
    }
}

fn small_blocks() -> SstOptions {
    SstOptions { block_bytes: 256, ..SstOptions::default() }
}

fn entry(key: &str, seq: u64, payload: Payload) -> Entry {
    Entry { key: key.to_owned().into(), seq: Seq(seq), payload, expires_ms: None }
}

/// Values that shrink and values that do not, tombstones and operands, some with an expiry.
fn mixed_entries() -> Vec<Entry> {
    let ops = [MergeOp::Add, MergeOp::Max, MergeOp::Min, MergeOp::Append];
    let kind = |n: u64| match n % 4 {
        0 => Payload::Tombstone,
        1 => Payload::Operand {
            op: ops[usize::try_from(n / 4 % 4).unwrap()],
            written_ms: 1_000 + n,
            operand: n.to_string().into(),
        },
        _ => Payload::Value(format!("a value, a value, {n}").into()),
    };
    let entries = (0..40).map(|n| Entry {
        expires_ms: (n % 5 == 0).then_some(2_000 + n),
        ..entry(&format!("user/{n:04}"), 500 + n * 7 % 41, kind(n))
    });
    entries.collect()
}

fn by_key(entries: &[Entry]) -> BTreeMap<Vec<u8>, Vec<Entry>> {
    let mut keys: BTreeMap<Vec<u8>, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        keys.entry(entry.key.to_vec()).or_default().push(entry.clone());
    }
    keys
}

#[test]
fn bytes_are_golden() {
    let entries =
        [entry("car", 7, Payload::Value("x".into())), entry("cart", 5, Payload::Tombstone)];
    let built = Built::new(sst_id(1), &entries, SstOptions::default());
    let identity = b"\x89CAIRN\r\n\x01\0\x02\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\
                     \x0e\x0f\x10\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    let object = &built.object[..];
    assert_eq!(&object[..49], identity);
    assert_eq!(object[53..58], [0, 30, 0, 0, 0]);
    assert_eq!(object[156], 6, "probes");
    assert_eq!(&object[157..168], b"\x01\0\0\0\x04cart\0\x27");
    assert_eq!(&object[168..217], identity);
    let mut numbers = object[217..289].chunks(8).map(|n| u64::from_le_bytes(n.try_into().unwrap()));
    let golden = [92, 30, 2, 1, 0, 5, 7, u64::MAX, 0];
    assert!(numbers.by_ref().eq(golden));
    assert_eq!(&object[289..298], b"\x03car\x04cart");
    assert_eq!(&object[298..322], b"\x41\0\0\0\0\0\0\0\x0b\0\0\0\0\0\0\0\x82\0\0\0\0\0\0\0");
    assert_eq!(object.len(), 326);
    // Every other byte is a filter's bit or a checksum: one number holds them all. (No CRC: that
    // of bytes which end with their own CRC does not depend on them.)
    assert_eq!(KeyHash::of(object), KeyHash(0xef8f_9320_9fb8_71b3));
    assert_eq!(verify(&built.object, &built.info, DATABASE), Ok(()));
}

#[test]
fn info_says_what_is_inside() {
    let built = Built::new(sst_id(1), &mixed_entries(), small_blocks());
    let info = &built.info;
    assert_eq!((info.entries, info.tombstones, info.operands), (40, 10, 10));
    assert_eq!((&*info.first_key, &*info.last_key), (&b"user/0000"[..], &b"user/0039"[..]));
    assert_eq!((info.first_seq, info.last_seq), (Seq(500), Seq(540)));
    assert_eq!(info.expires, Some(ExpiryRange { earliest_ms: 2_000, latest_ms: 2_035 }));
    assert_eq!((info.wal, &info.home), (None, &None));
    let meta = built.meta().unwrap();
    assert!(meta.block_count() >= 3);
    assert_eq!(meta.block_range(0).start, HEADER_BYTES as u64);
    assert_eq!(meta.block_range(meta.block_count() - 1).end, info.meta_offset);
    assert!(meta.bytes() > 64 && meta.bytes() < 4096);
}

#[test]
fn bounds_are_cut_and_keys_are_not() {
    let (low, high) = ("a".repeat(300), "z".repeat(300));
    let entries = [entry(&low, 1, Payload::Tombstone), entry(&high, 1, Payload::Tombstone)];
    let built = Built::new(sst_id(1), &entries, SstOptions::default());
    assert_eq!(built.info.first_key, "a".repeat(BOUND_BYTES_MAX));
    assert_eq!(built.info.last_key, "z".repeat(BOUND_BYTES_MAX - 1) + "{");
    let meta = built.meta().unwrap();
    assert_eq!((meta.first_key(), meta.last_key()), (low.as_bytes(), high.as_bytes()));
    assert_eq!(verify(&built.object, &built.info, DATABASE), Ok(()));
}

#[test]
fn a_last_key_with_nothing_above_it_keeps_its_length() {
    let highest = Bytes::from(vec![u8::MAX; 300]);
    let entries = [Entry { key: highest.clone(), ..entry("", 1, Payload::Tombstone) }];
    let built = Built::new(sst_id(1), &entries, SstOptions::default());
    assert_eq!(built.info.first_key, highest[..BOUND_BYTES_MAX]);
    assert_eq!(built.info.last_key, highest);
    assert_eq!(built.info.check(), Ok(()));
    assert_eq!(verify(&built.object, &built.info, DATABASE), Ok(()));
}

#[test]
fn a_value_larger_than_a_block_has_one_of_its_own() {
    let big = Payload::Value(vec![b'v'; 300_000].into());
    let entries =
        [entry("a", 1, Payload::Tombstone), entry("b", 1, big), entry("c", 1, Payload::Tombstone)];
    let built = Built::new(sst_id(1), &entries, SstOptions::default());
    let meta = built.meta().unwrap();
    assert_eq!(meta.block_count(), 3);
    assert_eq!(built.all(&meta), entries);
}

#[test]
fn blocks_stay_below_their_size_and_keep_versions_together() {
    let mut entries = Vec::new();
    for key in 0..30 {
        let versions = if key == 7 { 50 } else { 1 };
        for seq in (1..=versions).rev() {
            let value = Payload::Value("some bytes".into());
            entries.push(entry(&format!("key/{key:02}"), seq, value));
        }
    }
    let built = Built::new(sst_id(1), &entries, small_blocks());
    let meta = built.meta().unwrap();
    let large = (0..meta.block_count())
        .filter(|block| built.block(&meta, *block).unwrap().decoded().len() > 256);
    assert_eq!(large.count(), 1, "only the block of the key with 50 versions");
    assert_eq!(built.versions(&meta, b"key/07").unwrap().len(), 50);
}

#[test]
fn index_finds_blocks_both_ways() {
    let built = Built::new(sst_id(1), &mixed_entries(), small_blocks());
    let meta = built.meta().unwrap();
    let last = meta.block_count() - 1;
    assert_eq!((meta.block_for(b""), meta.block_for(b"user/0000")), (Some(0), Some(0)));
    assert_eq!((meta.block_for(b"user/0039"), meta.block_for(b"user/00390")), (Some(last), None));
    assert_eq!(meta.last_block_before(None), Some(last));
    assert_eq!(meta.last_block_before(Some(b"z")), Some(last));
    assert_eq!(meta.last_block_before(Some(b"user/0000")), None);
    assert_eq!(meta.last_block_before(Some(b"user/00000")), Some(0));
    assert_eq!(meta.blocks_between(b"", None), 0..last + 1);
    assert!(meta.blocks_between(b"z", None).is_empty());
    assert!(meta.blocks_between(b"", Some(b"a")).is_empty());
    assert_eq!(meta.blocks_between(b"user/0000", Some(b"user/00000")), 0..1);
}

/// A reader of damaged bytes gets an error or exactly what was written.
fn assert_never_wrong(damaged: &Built, entries: &BTreeMap<Vec<u8>, Vec<Entry>>) {
    assert!(verify(&damaged.object, &damaged.info, DATABASE).is_err());
    let meta_offset = usize::try_from(damaged.info.meta_offset).unwrap();
    if damaged.object.len() < meta_offset {
        return;
    }
    let Ok(meta) = damaged.meta() else { return };
    for (key, expected) in entries {
        if let Ok(found) = damaged.versions(&meta, key) {
            assert_eq!(found, *expected);
        }
    }
}

#[test]
fn every_flip_is_found() {
    let entries = mixed_entries();
    let built = Built::new(sst_id(1), &entries, small_blocks());
    let meta = built.meta().unwrap();
    assert!(meta.block_count() >= 3);
    let keys = by_key(&entries);
    for bit in 0..built.object.len() * 8 {
        let mut object = built.object.to_vec();
        object[bit / 8] ^= 1 << (bit % 8);
        let damaged = built.with_object(object);
        let at = (bit / 8) as u64;
        if at >= built.info.meta_offset {
            assert!(damaged.meta().is_err(), "bit {bit}");
        } else if let Some(block) =
            (0..meta.block_count()).find(|block| meta.block_range(*block).contains(&at))
        {
            assert!(damaged.block(&meta, block).is_err(), "bit {bit}");
        }
        // One bit of each byte is enough for the long way.
        if bit % 8 == at.wrapping_mul(5) as usize % 8 {
            assert_never_wrong(&damaged, &keys);
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let entries = mixed_entries();
    let built = Built::new(sst_id(1), &entries, small_blocks());
    let keys = by_key(&entries);
    for end in 0..built.object.len() {
        assert_never_wrong(&built.with_object(built.object[..end].to_vec()), &keys);
    }
    let longer = built.with_object([&built.object[..], b"\0"].concat());
    assert!(longer.meta().is_err());
    let section = built.section();
    for end in 0..section.len() {
        let cut = SstMeta::parse(section.slice(..end), &built.info, DATABASE);
        assert!(cut.is_err(), "cut at {end}");
    }
}

#[test]
fn swapped_blocks_are_found() {
    // Blocks of equal size, so that nothing but the checksum's knowledge of places can tell.
    let value = |n: u64| entry(&format!("key/{n:02}"), 9, Payload::Value(vec![b'v'; 200].into()));
    let entries: Vec<_> = (0..6).map(value).collect();
    let options = SstOptions { compression: Compression::None, ..small_blocks() };
    let built = Built::new(sst_id(1), &entries, options);
    let meta = built.meta().unwrap();
    assert_eq!(meta.block_count(), 6);
    let (first, second) = (built.stored(&meta, 0), built.stored(&meta, 1));
    assert_eq!(first.len(), second.len());
    let at = meta.block_range(0).start;
    assert!(Block::parse(&first, &built.info.id, at).is_ok());
    assert!(Block::parse(&second, &built.info.id, at).is_err());

    let other = Built::new(sst_id(2), &entries, options);
    assert_eq!(other.stored(&meta, 0).len(), first.len());
    assert!(Block::parse(&other.stored(&meta, 0), &built.info.id, at).is_err());
}

#[test]
fn metadata_of_another_sst_or_database_is_refused() {
    let entries = mixed_entries();
    let built = Built::new(sst_id(1), &entries, small_blocks());
    let other = Built::new(sst_id(2), &entries, small_blocks());
    assert_eq!(built.section().len(), other.section().len());
    let refused = |section: Bytes, info: &SstInfo, database: DatabaseId| {
        SstMeta::parse(section, info, database).unwrap_err().0
    };
    let wrong = refused(other.section(), &built.info, DATABASE);
    assert!(wrong.contains("not of the SST"), "{wrong}");
    let wrong = refused(built.section(), &built.info, Uuid::nil());
    assert!(wrong.contains("belongs to database"), "{wrong}");
    let role = OutputId { role: Role::Compactor, ..built.info.id };
    let wrong = refused(built.section(), &SstInfo { id: role, ..built.info.clone() }, DATABASE);
    assert!(wrong.contains("not of the SST"), "{wrong}");
    let more = SstInfo { entries: 41, ..built.info.clone() };
    let wrong = refused(built.section(), &more, DATABASE);
    assert!(wrong.contains("manifest"), "{wrong}");
}

/// A metadata section with a right seal, whatever is in its parts.
fn sealed(filter: &[u8], index: &[u8], properties: &[u8]) -> Bytes {
    let mut section = [filter, index, properties].concat();
    for part in [filter, index, properties] {
        codec::put_u64(&mut section, part.len() as u64);
    }
    codec::seal(&mut section);
    section.into()
}

#[test]
fn verify_finds_an_index_that_lies_and_a_filter_that_denies() {
    let built = Built::new(sst_id(1), &mixed_entries(), small_blocks());
    let section = built.section();
    let parts = section.len() - FOOTER_BYTES;
    let mut lengths = Reader::new(&section[parts..]);
    let filter = usize::try_from(lengths.u64().unwrap()).unwrap();
    let index = usize::try_from(lengths.u64().unwrap()).unwrap();
    let (filter, rest) = section[..parts].split_at(filter);
    let (index, properties) = rest.split_at(index);

    let with = |filter: &[u8], index: &[u8]| {
        let section = sealed(filter, index, properties);
        assert_eq!(section.len(), built.section().len());
        let start = usize::try_from(built.info.meta_offset).unwrap();
        let object = [&built.object[..start], &section].concat();
        verify(&object.into(), &built.info, DATABASE).map_err(|corrupt| corrupt.0)
    };
    assert_eq!(with(filter, index), Ok(()));
    let nothing = [&vec![0; filter.len() - 1][..], &[6]].concat();
    assert!(with(&nothing, index).unwrap_err().contains("denies"));
    // The last byte of the index belongs to the last separator, the last key.
    let mut lower = index.to_vec();
    *lower.last_mut().unwrap() -= 1;
    assert!(with(filter, &lower).unwrap_err().contains("another block"));
}

#[test]
#[should_panic(expected = "in order")]
fn builder_refuses_disorder_between_blocks() {
    let value = || Payload::Value(vec![0; 300].into());
    let entries = [entry("b", 1, value()), entry("a", 1, value())];
    Built::new(sst_id(1), &entries, small_blocks());
}

#[test]
#[should_panic(expected = "holds an entry")]
fn builder_makes_no_empty_sst() {
    Built::new(sst_id(1), &[], small_blocks());
}

#[test]
fn estimate_is_close() {
    let mut builder = SstBuilder::new(DATABASE, sst_id(1), SstOptions::default());
    for n in 0..5_000 {
        let value = format!("{:0400}", n * 7919);
        builder.add(entry(&format!("{n:08}"), n, Payload::Value(value.into())).as_ref());
    }
    let estimate = builder.bytes();
    let (_, info) = builder.finish();
    assert!(estimate.abs_diff(info.bytes) < 20_000, "{estimate}, {}", info.bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn entries_round_trip(
        entries in any_entries(60),
        strangers in vec(any_key(), 0..20),
        block_bytes in 1usize..2_000,
        lz4: bool,
        filter_bits_per_key in 0u32..14,
    ) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let options = SstOptions { block_bytes, compression, filter_bits_per_key };
        let built = Built::new(sst_id(1), &entries, options);
        prop_assert_eq!(verify(&built.object, &built.info, DATABASE), Ok(()));
        let meta = built.meta().unwrap();
        prop_assert_eq!(&built.all(&meta), &entries);
        let keys = by_key(&entries);
        let none = Vec::new();
        for key in keys.keys().chain(&strangers) {
            let found = built.versions(&meta, key).unwrap();
            prop_assert_eq!(&found, keys.get(key).unwrap_or(&none));
        }
    }

    /// Scans that start at `block_for` and `last_block_before` miss nothing, and step over at most
    /// one block in vain.
    #[test]
    fn searches_begin_at_the_right_block(
        entries in any_entries(60),
        strangers in vec(any_key(), 1..20),
        block_bytes in 1usize..500,
    ) {
        let built = Built::new(
            sst_id(1), &entries, SstOptions { block_bytes, ..SstOptions::default() },
        );
        let meta = built.meta().unwrap();
        let cursor = |block: usize| BlockCursor::new(built.block(&meta, block).unwrap());
        for key in &strangers {
            let sought = entries.iter().find(|entry| *entry.key >= **key).cloned();
            let found = meta.block_for(key).and_then(|block| {
                let mut here = cursor(block);
                here.seek(key);
                if here.entry().is_none() && block + 1 < meta.block_count() {
                    here = cursor(block + 1);
                    here.first();
                }
                here.entry().map(EntryRef::to_entry)
            });
            prop_assert_eq!(found, sought);

            let sought = entries.iter().rfind(|entry| *entry.key < **key).cloned();
            let found = meta.last_block_before(Some(key)).and_then(|block| {
                let mut here = cursor(block);
                here.seek_before(key);
                if here.entry().is_none() && block > 0 {
                    here = cursor(block - 1);
                    here.last();
                }
                here.entry().map(EntryRef::to_entry)
            });
            prop_assert_eq!(found, sought);
        }
    }

    #[test]
    fn any_metadata_never_panics(
        filter in vec(any::<u8>(), 0..70),
        index in vec(any::<u8>(), 0..70),
        properties in vec(any::<u8>(), 0..70),
        section in vec(any::<u8>(), 0..200),
    ) {
        let built = Built::new(sst_id(1), &mixed_entries(), small_blocks());
        for section in [sealed(&filter, &index, &properties), section.into()] {
            let bytes = built.info.meta_offset + section.len() as u64;
            let info = SstInfo { bytes, ..built.info.clone() };
            prop_assert!(SstMeta::parse(section, &info, DATABASE).is_err());
        }
    }

    /// Damage that the seal does not see, in an index that is otherwise sound.
    #[test]
    fn any_change_of_an_index_never_panics(
        entries in any_entries(20),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        key in any_key(),
    ) {
        let mut builder = index::IndexBuilder::default();
        for key in by_key(&entries).keys() {
            builder.add(key, 40);
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes);
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        if let Ok(index) = index::Index::parse(&bytes) {
            prop_assert!(index.blocks_below(&key) <= index.blocks());
            prop_assert!((0..index.blocks()).all(|block| index.range(block).is_some()));
        }
    }

    #[test]
    fn index_agrees_with_a_sorted_list(
        keys in proptest::collection::btree_set(any_key(), 1..60),
        strangers in vec(any_key(), 0..30),
    ) {
        let mut builder = index::IndexBuilder::default();
        for key in &keys {
            builder.add(key, 40);
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes);
        let index = index::Index::parse(&bytes).unwrap();
        for key in keys.iter().chain(&strangers).map(|key| &**key).chain([&b""[..]]) {
            let below = keys.iter().filter(|separator| ***separator < *key).count();
            prop_assert_eq!(index.blocks_below(key), below);
        }
        for (block, key) in keys.iter().enumerate() {
            prop_assert_eq!(&index.separator(block), key);
        }
    }
}
