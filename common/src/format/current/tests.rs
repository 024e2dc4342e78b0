//! The spelling of CURRENT, its checks, and what claims change.

use proptest::prelude::*;

use super::super::samples::{assert_all_damage_is_seen, current, uuid};
use super::*;

const GOLDEN: &str = r#"{
  "format": 1,
  "min_reader_format": 1,
  "database": "0198f2c4-0000-7000-8000-000000000001",
  "version": 7,
  "manifest": "00000000000000000007-0198f2c4-0000-7000-8000-000000000002",
  "manifest_digest": "000102030405060708090a0b0c0d0e0f",
  "replay_from": 1042,
  "history_from": 3,
  "lease_ms": 2000,
  "l0_stop": 24,
  "writer": {
    "epoch": 2,
    "uuid": "0198f2c4-0000-7000-8000-000000000003",
    "url": "http://10.0.0.1:7001",
    "root": "s3://bucket/db",
    "deposed": null,
    "strife": 0,
    "closed": false
  },
  "compactor": {
    "epoch": 1,
    "uuid": "0198f2c4-0000-7000-8000-000000000004",
    "url": null
  },
  "probed": true,
  "nonce": "0198f2c4-0000-7000-8000-000000000005",
  "crc": "f645da3d"
}
"#;

fn golden() -> Current {
    Current {
        manifest: ManifestId { version: 7, uuid: uuid(2) },
        manifest_digest: Digest(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f),
        ..current()
    }
}

/// The bytes of this JSON with a checksum that holds.
fn sealed(json: &str) -> Vec<u8> {
    let head = json.trim_end().strip_suffix("\n}").unwrap();
    format!("{head}{}", tail(head.as_bytes())).into_bytes()
}

fn golden_with(from: &str, to: &str) -> Result<Current, Corrupt> {
    let (head, _) = GOLDEN.rsplit_once(",\n  \"crc\"").unwrap();
    let changed = head.replace(from, to);
    assert_ne!(changed, head, "{from} is in it");
    Current::parse(&sealed(&format!("{changed}\n}}\n")))
}

#[test]
fn spelling_is_golden() {
    assert_eq!(std::str::from_utf8(&golden().encode()).unwrap(), GOLDEN);
    assert_eq!(Current::parse(GOLDEN.as_bytes()).unwrap(), golden());
}

#[test]
fn all_damage_is_seen() {
    assert_all_damage_is_seen(&current().encode(), |bytes| Current::parse(&bytes));
}

#[test]
fn a_newer_format_is_refused_in_words_or_read_only() {
    let newer = golden_with("\"format\": 1,\n  \"min_reader_format\": 1", NEEDS_2).unwrap_err();
    assert!(newer.0.contains("newer Cairn"), "{newer}");
    let readable = golden_with("\"format\": 1,", "\"format\": 2,\n  \"novelty\": [],").unwrap();
    assert!(readable.check_writable().is_err());
    assert!(golden().check_writable().is_ok());
}

const NEEDS_2: &str = "\"format\": 2,\n  \"min_reader_format\": 2";

#[test]
fn broken_invariants_are_refused() {
    for (from, to) in [
        ("\"version\": 7", "\"version\": 8"),
        ("\"history_from\": 3", "\"history_from\": 8"),
        ("\"history_from\": 3", "\"history_from\": 0"),
        ("\"replay_from\": 1042", "\"replay_from\": 0"),
        ("\"replay_from\": 1042", "\"replay_from\": 18446744073709551615"),
        ("\"epoch\": 2", "\"epoch\": 4294967295"),
        ("\"epoch\": 1", "\"epoch\": 4294967295"),
        ("\"min_reader_format\": 1", "\"min_reader_format\": 0,\n  \"format\": 1"),
        ("\"lease_ms\": 2000,", ""),
    ] {
        assert!(golden_with(from, to).is_err(), "{to}");
    }
}

#[test]
fn the_first_body_names_no_owner_and_is_closed() {
    let manifest = ManifestId { version: 1, uuid: uuid(9) };
    let first = Current::first(uuid(1), (manifest, Digest(0)), uuid(8));
    assert_eq!((first.writer.epoch, first.compactor.epoch), (Epoch(0), Epoch(0)));
    assert!(first.writer.closed);
    assert_eq!(Current::parse(&first.encode()).unwrap(), first);
}

#[test]
fn a_claim_counts_up_reopens_and_never_shortens_the_lease() {
    let mut old = golden();
    old.writer.closed = true;
    let me = Claimant { uuid: uuid(70), url: None, root: None };
    let short = old.claimed_by_writer(me.clone(), 500, uuid(71));
    assert_eq!((short.writer.epoch, short.writer.uuid), (Epoch(3), uuid(70)));
    assert_eq!((short.writer.closed, short.lease_ms, short.nonce), (false, 2000, uuid(71)));
    assert_eq!(old.claimed_by_writer(me.clone(), 9000, uuid(71)).lease_ms, 9000);

    let compactor = old.claimed_by_compactor(me, uuid(71));
    assert_eq!(compactor.compactor.epoch, Epoch(2));
    assert_eq!((&compactor.writer, compactor.manifest), (&old.writer, old.manifest));
}

#[test]
fn strife_counts_mutual_deposing() {
    let claimant = |last, port: u16| Claimant {
        uuid: uuid(last),
        url: Some(format!("http://10.0.0.1:{port}")),
        root: None,
    };
    let mut current = golden();
    let mut strife = Vec::new();
    for (turn, port) in (70..).zip([7001, 7002, 7001, 7002]) {
        current = current.claimed_by_writer(claimant(turn, port), 0, uuid(9));
        strife.push(current.writer.strife);
    }
    // The first meets a writer of its own URL, the second one that it has not been deposed by.
    assert_eq!(strife, [0, 0, 1, 2]);
    let third = current.claimed_by_writer(claimant(90, 7003), 0, uuid(9));
    assert_eq!((third.writer.strife, third.writer.deposed), (0, current.writer.url.clone()));
    current.writer.closed = true;
    let next = current.claimed_by_writer(claimant(91, 7001), 0, uuid(9));
    assert_eq!((next.writer.strife, next.writer.deposed), (0, None), "a hand-over is no strife");
}

/// Names and values that no version knows.
fn unknown_fields() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("null".to_owned()),
        any::<u64>().prop_map(|number| number.to_string()),
        any::<i32>().prop_map(|number| format!("[{number}, {{\"deep\": [true]}}]")),
        "[a-z ]{0,8}".prop_map(|text| format!("\"{text}\"")),
    ];
    prop::collection::btree_map("x_[a-z]{1,6}", value, 0..4).prop_map(|fields| {
        fields
            .iter()
            .fold(String::new(), |all, (name, value)| all + &format!("\"{name}\": {value},"))
    })
}

proptest! {
    #[test]
    fn unknown_fields_survive(fields in [unknown_fields(), unknown_fields(), unknown_fields()]) {
        let [top, writer, compactor] = fields;
        let json = GOLDEN.rsplit_once(",\n  \"crc\"").unwrap().0.to_owned() + "\n}\n";
        let json = json
            .replacen('{', &format!("{{{top}"), 1)
            .replacen("\"writer\": {", &format!("\"writer\": {{{writer}"), 1)
            .replacen("\"compactor\": {", &format!("\"compactor\": {{{compactor}"), 1);
        let parsed = Current::parse(&sealed(&json)).unwrap();
        let unknown = |body: &Current| {
            [body.unknown.clone(), body.writer.unknown.clone(), body.compactor.unknown.clone()]
        };
        let said: usize = unknown(&parsed).iter().map(|fields| fields.iter().count()).sum();
        prop_assert_eq!(said, json.matches("\"x_").count());

        let me = Claimant { uuid: uuid(70), url: None, root: None };
        let claimed = parsed.claimed_by_writer(me.clone(), 500, uuid(71));
        let claimed = Current::parse(&claimed.encode()).unwrap();
        let claimed = claimed.claimed_by_compactor(me, uuid(72));
        let claimed = Current::parse(&claimed.encode()).unwrap();
        prop_assert_eq!(unknown(&claimed), unknown(&parsed));
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Current::parse(&bytes).is_err());
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let _refused = Current::parse(&sealed(&format!("{text}\n}}")));
    }

    #[test]
    fn every_body_survives(
        numbers in any::<[u64; 4]>(),
        epochs in any::<[u32; 2]>(),
        url in prop::option::of(".{0,40}"),
        flags in any::<[bool; 2]>(),
    ) {
        let [version, replay_from, history_from, lease_ms] =
            numbers.map(|number| (number | 1).min(u64::MAX - 1));
        let mut body = golden();
        body.version = version;
        body.manifest.version = version;
        body.history_from = history_from.min(version);
        body.replay_from = WalId(replay_from.min(WalId::MAX.0));
        body.lease_ms = lease_ms;
        (body.writer.epoch, body.compactor.epoch) = (Epoch(epochs[0] / 2), Epoch(epochs[1] / 2));
        (body.writer.closed, body.probed) = (flags[0], flags[1]);
        body.compactor.url = url;
        prop_assert_eq!(Current::parse(&body.encode()).unwrap(), body);
    }
}
