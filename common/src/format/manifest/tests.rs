//! The spelling of manifests and their invariants.

use proptest::prelude::*;

use super::super::samples::{
    assert_all_damage_is_seen, assert_golden, compactor_output, current, l0, manifest, uuid,
    writer_output,
};
use super::*;

/// Digest of `golden.zst`, which is the sample as the first release wrote it.
const GOLDEN_DIGEST: &str = "b5acf5de6de7375774344e8b665acc6f";

#[test]
fn spelling_is_golden() {
    let json = serde_json::to_string_pretty(&manifest()).unwrap();
    assert_golden("manifest/golden.json", &format!("{json}\n"));
    let (bytes, digest) = manifest().encode();
    assert_eq!(digest, Digest::of(&bytes));
    assert_eq!(bytes.get(..4), Some(&b"\x28\xb5\x2f\xfd"[..]), "a zstd frame");
    assert_eq!(zstd::decode_all(&*bytes).unwrap(), serde_json::to_vec(&manifest()).unwrap());
}

#[test]
fn golden_bytes_are_still_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/format/manifest/golden.zst");
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path, manifest().encode().0).unwrap();
    }
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(Digest::of(&bytes).to_string(), GOLDEN_DIGEST);
    let digest = GOLDEN_DIGEST.parse().unwrap();
    assert_eq!(Manifest::parse(&bytes, &digest).unwrap(), manifest());
}

#[test]
fn all_damage_is_seen() {
    let (bytes, digest) = manifest().encode();
    assert_all_damage_is_seen(&bytes, |bytes| Manifest::parse(&bytes, &digest));
}

#[test]
fn an_empty_one_keeps_the_invariants() {
    let empty = Manifest::empty(uuid(1), ManifestId { version: 1, uuid: uuid(2) });
    let (bytes, digest) = empty.encode();
    assert_eq!(Manifest::parse(&bytes, &digest).unwrap(), empty);
}

/// Asserts that the sample, changed so, is refused on parse with words that hold `expected`.
fn refused(expected: &str, change: impl FnOnce(&mut Manifest)) {
    let mut broken = manifest();
    change(&mut broken);
    let (bytes, digest) = frame::encode(&broken);
    let error = Manifest::parse(&bytes, &digest).expect_err(expected);
    assert!(error.0.contains(expected), "{error} instead of {expected}");
}

#[test]
fn disorder_of_l0_is_refused() {
    refused("are not below", |m| m.l0.reverse());
    refused("are not below", |m| m.l0[1].last_seq = Seq(300));
    refused("are not below", |m| m.flushed_seq = Seq(399));
    refused("of the chain", |m| m.copies.replay_from = WalId(1041));
    refused("of the chain", |m| m.l0[1].wal = Some(WalRange { from: WalId(9), to: WalId(1036) }));
    refused("lacks its range", |m| m.l0[0].wal = None);
    refused("not a writer's", |m| m.l0[0].id = compactor_output(1, 0x11));
    refused("epoch to come", |m| m.l0[0].id = writer_output(3, 0x11));
}

#[test]
fn repeated_ids_are_refused() {
    refused("twice", |m| m.l0[1] = l0(m.l0[0].id, (200, 299), (9, 11)));
    refused("twice", |m| m.runs[1] = m.runs[0].clone());
    refused("twice", |m| m.retired[0].object = RetiredObject::Sst(m.l0[0].id));
    refused("twice", |m| m.retired.push(m.retired[0].clone()));
    refused("twice", |m| m.checkpoints.push(m.checkpoints[0].clone()));
}

#[test]
fn impossible_records_are_refused() {
    refused("wal_from", |m| m.wal_from = WalId(1043));
    refused("format 2", |m| m.format = 2);
    refused("version to come", |m| m.retired[0].version = 8);
    refused("version to come", |m| m.checkpoints[0].manifest.version = 7);
    refused("beyond its end", |m| m.l0[0].meta_offset = 4096);
    refused("more kinds", |m| m.l0[0].tombstones = 9);
    refused("more kinds", |m| m.l0[0].tombstones = u64::MAX);
    refused("no entries", |m| m.l0[0].entries = 0);
    refused("seqs", |m| m.l0[1].first_seq = Seq(0));
    refused("expiries", |m| {
        m.l0[0].expires = Some(ExpiryRange { earliest_ms: 2, latest_ms: 1 });
    });
    refused("bounds", |m| m.l0[0].first_key = Bytes::from_static(b"\xff\xff"));
    refused("bound", |m| m.runs[0].first_key = Bytes::new());
    refused("bound", |m| m.runs[0].last_key = Bytes::from(vec![b'z'; 257]));
    refused("epoch to come", |m| m.runs[0].id = compactor_output(2, 0x21));
    refused("not a compactor's", |m| m.runs[0].id = writer_output(1, 0x21));
    refused("no SSTs", |m| m.runs[0].ssts = 0);
}

#[test]
fn an_sst_of_another_database_keeps_its_own_epoch_and_seqs() {
    let mut clone = manifest();
    clone.l0[1].id = writer_output(9, 0x12);
    clone.l0[1].home = Some(Home { database: uuid(99), root: "parent".into() });
    assert_eq!(clone.check(), Ok(()));
}

#[test]
fn current_names_exactly_one_manifest() {
    let named = manifest();
    assert_eq!(named.check_named_by(&current()), Ok(()));
    let mut behind = current();
    behind.writer.epoch = Epoch(1);
    let mut moved = current();
    moved.replay_from = WalId(1043);
    let mut alien = current();
    alien.database = uuid(99);
    let mut other = current();
    other.manifest.uuid = uuid(99);
    for wrong in [behind, moved, alien, other] {
        assert!(named.check_named_by(&wrong).is_err(), "{wrong:?}");
    }
    let mut claimed_since = current();
    claimed_since.writer.epoch = Epoch(3);
    assert_eq!(named.check_named_by(&claimed_since), Ok(()));
}

proptest! {
    #[test]
    fn any_document_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut json = serde_json::to_vec(&manifest()).unwrap();
        for (place, byte) in damage {
            let place = place.index(json.len());
            json[place] = byte;
        }
        let bytes = zstd::encode_all(&*json, 1).unwrap();
        if let Ok(parsed) = Manifest::parse(&bytes, &Digest::of(&bytes)) {
            // What is accepted can be written again.
            let (bytes, digest) = parsed.encode();
            prop_assert_eq!(Manifest::parse(&bytes, &digest).unwrap(), parsed);
        }
    }

    #[test]
    fn every_key_and_number_survives(
        first in prop::collection::vec(any::<u8>(), 1..40),
        more in prop::collection::vec(any::<u8>(), 0..40),
        numbers in any::<[u32; 4]>(),
    ) {
        let mut changed = manifest();
        let [entries, bytes, time_ms, expires] = numbers.map(u64::from);
        let sst = &mut changed.l0[0];
        sst.entries = 100 + entries;
        sst.bytes = 4096 + bytes;
        sst.last_key = [first.clone(), more].concat().into();
        sst.first_key = first.into();
        changed.time_ms = time_ms << 20;
        changed.checkpoints[0].expires_ms = Some(expires);
        let (bytes, digest) = changed.encode();
        prop_assert_eq!(Manifest::parse(&bytes, &digest).unwrap(), changed);
    }
}
