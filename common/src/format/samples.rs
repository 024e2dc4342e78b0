//! Sample objects for the tests, and the damage that every parser must see.

use std::fmt::Debug;

use bytes::Bytes;
use uuid::Uuid;

use super::current::{CompactorClaim, Current, WriterClaim};
use super::manifest::{
    Checkpoint, Copies, Digest, ExpiryRange, Manifest, Retired, RetiredObject, RunInfo, SstInfo,
    WalRange,
};
use super::path::{ManifestId, OutputId};
use super::run::Run;
use super::unknown::Unknown;
use super::{Corrupt, FORMAT};
use crate::types::{DatabaseId, Epoch, Role, Seq, WalId};

/// The uuid `0198f2c4-0000-7000-8000-{last:012x}`.
pub(crate) fn uuid(last: u64) -> Uuid {
    Uuid::from_u128(0x0198_f2c4_0000_7000_8000_0000_0000_0000 | u128::from(last))
}

pub(crate) fn database() -> DatabaseId {
    uuid(1)
}

pub(crate) fn writer_output(epoch: u32, last: u64) -> OutputId {
    OutputId { role: Role::Writer, epoch: Epoch(epoch), uuid: uuid(last) }
}

pub(crate) fn compactor_output(epoch: u32, last: u64) -> OutputId {
    OutputId { role: Role::Compactor, epoch: Epoch(epoch), uuid: uuid(last) }
}

pub(crate) fn manifest_id(version: u64) -> ManifestId {
    ManifestId { version, uuid: uuid(0x1000 + version) }
}

/// An SST over these keys and seqs.
pub(crate) fn sst(id: OutputId, keys: (&str, &str), seqs: (u64, u64)) -> SstInfo {
    SstInfo {
        id,
        bytes: 4096,
        meta_offset: 3000,
        entries: 10,
        tombstones: 1,
        operands: 2,
        first_key: Bytes::copy_from_slice(keys.0.as_bytes()),
        last_key: Bytes::copy_from_slice(keys.1.as_bytes()),
        first_seq: Seq(seqs.0),
        last_seq: Seq(seqs.1),
        wal: None,
        expires: None,
        home: None,
        unknown: Unknown::default(),
    }
}

/// An SST of L0 over these seqs and this stretch of the chain.
pub(crate) fn l0(id: OutputId, seqs: (u64, u64), wal: (u64, u64)) -> SstInfo {
    let wal = Some(WalRange { from: WalId(wal.0), to: WalId(wal.1) });
    SstInfo { wal, ..sst(id, ("a", "z"), seqs) }
}

/// A run of two SSTs, with what a manifest says of it.
pub(crate) fn run(id: OutputId, ssts: (u64, u64)) -> (Run, RunInfo) {
    let left = sst(OutputId { uuid: uuid(ssts.0), ..id }, ("a", "m"), (1, 90));
    let right = sst(OutputId { uuid: uuid(ssts.1), ..id }, ("n", "z"), (2, 100));
    let run = Run::new(database(), id, vec![left, right]);
    let (bytes, digest) = run.encode();
    let info = run.info(digest, bytes.len() as u64);
    (run, info)
}

/// Version 7: two SSTs in L0, two runs, one retired SST, one checkpoint.
pub(crate) fn manifest() -> Manifest {
    let mut newest = l0(writer_output(2, 0x11), (300, 400), (1035, 1042));
    newest.expires = Some(ExpiryRange { earliest_ms: 5, latest_ms: 9 });
    newest.last_key = Bytes::from_static(b"\xff");
    Manifest {
        format: FORMAT,
        database: database(),
        id: manifest_id(7),
        copies: Copies {
            writer_epoch: Epoch(2),
            compactor_epoch: Epoch(1),
            replay_from: WalId(1042),
        },
        flushed_seq: Seq(400),
        time_ms: 1_700_000_000_000,
        wal_from: WalId(1030),
        l0: vec![newest, l0(writer_output(1, 0x12), (200, 299), (9, 11))],
        runs: vec![
            with_fixed_digest(run(compactor_output(1, 0x21), (0x31, 0x32)).1),
            with_fixed_digest(run(compactor_output(1, 0x22), (0x33, 0x34)).1),
        ],
        retired: vec![Retired {
            object: RetiredObject::Sst(writer_output(1, 0x41)),
            version: 6,
            time_ms: 1_700_000_000_000,
            unknown: Unknown::default(),
        }],
        checkpoints: vec![Checkpoint {
            name: "nightly".into(),
            manifest: manifest_id(3),
            digest: Digest(3),
            created_ms: 1_690_000_000_000,
            expires_ms: None,
            unknown: Unknown::default(),
        }],
        unknown: Unknown::default(),
    }
}

/// Golden bytes must not depend on how well zstd compresses.
fn with_fixed_digest(run: RunInfo) -> RunInfo {
    RunInfo { digest: Digest(0xd1), object_bytes: 189, ..run }
}

/// The CURRENT that names [`manifest`].
pub(crate) fn current() -> Current {
    let manifest = manifest();
    Current {
        format: FORMAT,
        min_reader_format: FORMAT,
        database: database(),
        version: 7,
        manifest: manifest.id,
        manifest_digest: manifest.encode().1,
        replay_from: WalId(1042),
        history_from: 3,
        lease_ms: 2000,
        l0_stop: 24,
        writer: WriterClaim {
            epoch: Epoch(2),
            uuid: uuid(3),
            url: Some("http://10.0.0.1:7001".into()),
            root: Some("s3://bucket/db".into()),
            deposed: None,
            strife: 0,
            closed: false,
            unknown: Unknown::default(),
        },
        compactor: CompactorClaim {
            epoch: Epoch(1),
            uuid: uuid(4),
            url: None,
            unknown: Unknown::default(),
        },
        probed: true,
        nonce: uuid(5),
        unknown: Unknown::default(),
    }
}

/// Asserts that the golden file holds this text; `REWRITE=1` writes it instead.
pub(crate) fn assert_golden(file: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/format").join(file);
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{file}: REWRITE=1 regenerates it");
}

/// Asserts that `parse` refuses every cut, every flipped bit and every zeroed byte of `bytes`, and
/// bytes put behind them, and that it takes `bytes` as they are.
pub(crate) fn assert_all_damage_is_seen<T: Debug>(
    bytes: &Bytes,
    parse: impl Fn(Bytes) -> Result<T, Corrupt>,
) {
    assert!(parse(bytes.clone()).is_ok(), "undamaged");
    for end in 0..bytes.len() {
        assert!(parse(bytes.slice(..end)).is_err(), "cut to {end} bytes");
    }
    let longer = [&bytes[..], b"\0"].concat();
    assert!(parse(longer.into()).is_err(), "one byte longer");
    for place in 0..bytes.len() {
        let with = |byte: u8| {
            let mut damaged = bytes.to_vec();
            damaged[place] = byte;
            Bytes::from(damaged)
        };
        for bit in 0..8 {
            assert!(parse(with(bytes[place] ^ 1 << bit)).is_err(), "bit {bit} of byte {place}");
        }
        if bytes[place] != 0 {
            assert!(parse(with(0)).is_err(), "byte {place} zeroed");
        }
    }
}
