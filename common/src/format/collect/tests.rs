//! Each rule of deletion, and each near miss.

use std::slice;

use super::super::current::Claimant;
use super::super::manifest::Retired;
use super::super::samples::{
    compactor_output, current, l0, manifest, manifest_id, run, uuid, writer_output,
};
use super::super::unknown::Unknown;
use super::*;

const RETIRED_MS: u64 = 1_000_000;
const RETENTION_MS: u64 = 600;

fn wal(id: u64, bytes: usize) -> Stored {
    Stored { object: Object::Wal(WalId(id)), bytes: bytes as u64 }
}

fn stored(object: Object) -> Stored {
    Stored { object, bytes: 1 }
}

/// Version 7 of the samples under writer epoch 3 and compactor epoch 2, with a run of 0x31 and
/// 0x32; retired: 0x41, run 0x42 of 0x61 and 0x62, run 0x49 of 0x31 and 0x63, and later run 0x4a of
/// 0x62 and 0x64; a checkpoint of version 3 that holds 0x43 and run 0x44 of 0x45 and 0x46.
fn evidence() -> Evidence {
    evidence_with(|_| {})
}

fn evidence_with(change: impl FnOnce(&mut Current)) -> Evidence {
    let (current, manifest, body, runs) = samples(change);
    Evidence::new(&current, &manifest, &[body], &runs).unwrap()
}

/// The same without the objects of these runs, and with so many checkpoint bodies.
fn partial(missing_runs: &[u64], bodies_read: usize) -> Evidence {
    let (current, manifest, body, mut runs) = samples(|_| {});
    runs.retain(|run| !missing_runs.iter().any(|last| run.id.uuid == uuid(*last)));
    Evidence::new(&current, &manifest, &[body][..bodies_read], &runs).unwrap()
}

fn samples(change: impl FnOnce(&mut Current)) -> (Current, Manifest, Manifest, Vec<Run>) {
    let (live, live_info) = run(compactor_output(1, 0x21), (0x31, 0x32));
    let (pinned, pinned_info) = run(compactor_output(1, 0x44), (0x45, 0x46));
    let pinned_sst = l0(writer_output(1, 0x43), (1, 2), (1, 2));
    let body = Manifest {
        id: manifest_id(3),
        l0: vec![pinned_sst.clone()],
        runs: vec![pinned_info],
        retired: Vec::new(),
        checkpoints: Vec::new(),
        ..manifest()
    };
    let retired = [
        RetiredObject::Sst(writer_output(1, 0x41)),
        RetiredObject::Run(compactor_output(1, 0x42)),
        RetiredObject::Sst(pinned_sst.id),
        RetiredObject::Run(compactor_output(2, 0x49)),
        // Made under the epochs of now: retirement alone lets them go.
        RetiredObject::Sst(writer_output(3, 0x47)),
    ];
    let retire = |object, version, time_ms| {
        let unknown = Unknown::default();
        Retired { object, version, time_ms, unknown }
    };
    let mut retired: Vec<_> = retired.map(|object| retire(object, 6, RETIRED_MS)).into();
    let later = RetiredObject::Run(compactor_output(2, 0x4a));
    retired.push(retire(later, 7, RETIRED_MS + 100));
    let gone = [(1, 0x42, 0x61, 0x62), (2, 0x49, 0x31, 0x63), (2, 0x4a, 0x62, 0x64)];
    let gone = gone.map(|(epoch, last, left, right)| {
        let id = compactor_output(epoch, last);
        let mut run = run(id, (left, right)).0;
        // Its SSTs may be of any epoch; these are of the first.
        run.ssts.iter_mut().for_each(|sst| sst.id.epoch = Epoch(1));
        run
    });
    let manifest = Manifest { runs: vec![live_info], retired, ..manifest() };
    let mut current = current();
    current.writer.epoch = Epoch(3);
    current.compactor.epoch = Epoch(2);
    current.history_from = 5;
    change(&mut current);
    (current, manifest, body, [vec![live, pinned], gone.into()].concat())
}

fn verdicts(evidence: &Evidence, now_ms: u64, table: &[(Stored, &str)]) {
    let grace = Grace { retention_ms: RETENTION_MS, now_ms };
    for (stored, expected) in table {
        let deleted = evidence.deletable([*stored], grace);
        let verdict = if deleted.is_empty() { "keep" } else { "delete" };
        assert_eq!(verdict, expected.split_once(": ").unwrap().0, "{stored:?}: {expected}");
    }
}

fn sst(id: OutputId) -> Stored {
    stored(Object::Sst(id))
}

fn run_object(id: OutputId) -> Stored {
    stored(Object::Run(id))
}

#[test]
fn retired_objects_go_after_the_retention() {
    let late = RETIRED_MS + RETENTION_MS + 1;
    verdicts(
        &evidence(),
        late,
        &[
            (sst(writer_output(1, 0x41)), "delete: retired for longer than the retention"),
            (run_object(compactor_output(1, 0x42)), "delete: likewise"),
            (sst(compactor_output(1, 0x61)), "delete: in a run that is retired for long"),
            (sst(compactor_output(1, 0x31)), "keep: in one, and in a run of the tree too"),
            (sst(compactor_output(1, 0x62)), "keep: in another that was retired later"),
            (sst(compactor_output(1, 0x64)), "keep: in that one only"),
            (run_object(compactor_output(2, 0x4a)), "keep: that one"),
            (sst(writer_output(3, 0x47)), "delete: an epoch of now makes no difference"),
            (sst(writer_output(1, 0x43)), "keep: a checkpoint body has it in L0"),
            (sst(compactor_output(1, 0x45)), "keep: a checkpoint body has it in a run"),
            (sst(compactor_output(1, 0x42)), "delete: not the run, but unreferenced and of old"),
        ],
    );
    verdicts(
        &evidence(),
        late - 1,
        &[(sst(writer_output(1, 0x41)), "keep: exactly the retention is not longer")],
    );
    verdicts(
        &evidence(),
        0,
        &[(sst(writer_output(1, 0x41)), "keep: a clock behind that of the retirement")],
    );
}

#[test]
fn retired_run_goes_after_its_ssts() {
    let grace = Grace { retention_ms: RETENTION_MS, now_ms: u64::MAX };
    let run = run_object(compactor_output(2, 0x49));
    let (own, moved_on) = (sst(compactor_output(1, 0x63)), sst(compactor_output(1, 0x31)));
    let deletable = |listing: &[Stored]| evidence().deletable(listing.iter().copied(), grace);
    assert_eq!(deletable(&[run, own, moved_on]), [own.object], "it alone names this SST");
    assert_eq!(deletable(&[run, moved_on]), [run.object], "a run of the tree names that one");
}

#[test]
fn what_was_not_read_keeps_what_it_may_refer_to() {
    let (keep, delete) = ("keep: x", "delete: x");
    let table = |named: &'static str, ssts: &'static str, runs: &'static str| {
        [
            (sst(writer_output(1, 0x41)), named),
            (sst(writer_output(1, 0x43)), "keep: a checkpoint has it"),
            (sst(compactor_output(1, 0x61)), ssts),
            (sst(compactor_output(1, 0x91)), ssts),
            (run_object(compactor_output(1, 0x42)), runs),
            (run_object(compactor_output(1, 0x91)), runs),
            (wal(1029, FENCE_BYTES + 1), "delete: x"),
            (stored(Object::Manifest(manifest_id(4))), "delete: x"),
        ]
    };
    verdicts(&partial(&[], 1), u64::MAX, &table(delete, delete, delete));
    verdicts(&partial(&[0x21], 1), u64::MAX, &table(delete, keep, delete));
    verdicts(&partial(&[0x44], 1), u64::MAX, &table(keep, keep, delete));
    verdicts(&partial(&[0x21], 0), u64::MAX, &table(keep, keep, keep));
    verdicts(&partial(&[], 0), u64::MAX, &table(keep, keep, keep));
    assert!(partial(&[0x21], 1).is_partial() && !partial(&[], 1).is_partial());
    // A retired run that cannot be read: its SSTs go by their epoch.
    verdicts(&partial(&[0x42], 1), u64::MAX, &table(delete, delete, delete));
}

#[test]
fn unreferenced_objects_go_once_their_epoch_has_passed() {
    verdicts(
        &evidence(),
        u64::MAX,
        &[
            (sst(writer_output(2, 0x91)), "delete: nobody names it, epoch 2 < 3"),
            (sst(writer_output(3, 0x91)), "keep: its maker may be about to commit it"),
            (sst(writer_output(4, 0x91)), "keep: of an epoch after this evidence"),
            (sst(compactor_output(1, 0x91)), "delete: nobody names it, epoch 1 < 2"),
            (sst(compactor_output(2, 0x91)), "keep: the compactor's epoch counts for it"),
            (run_object(compactor_output(1, 0x91)), "delete: a run of an epoch that passed"),
            (run_object(compactor_output(2, 0x91)), "keep: a run about to be committed"),
        ],
    );
}

#[test]
fn referenced_objects_stay_however_old_their_epoch() {
    verdicts(
        &evidence(),
        u64::MAX,
        &[
            (sst(writer_output(2, 0x11)), "keep: L0"),
            (sst(writer_output(1, 0x12)), "keep: L0"),
            (run_object(compactor_output(1, 0x21)), "keep: a run of the tree"),
            (sst(compactor_output(1, 0x31)), "keep: in a run of the tree"),
            (sst(compactor_output(1, 0x32)), "keep: in a run of the tree"),
            (run_object(compactor_output(1, 0x44)), "keep: a run of a checkpoint"),
            (sst(compactor_output(1, 0x46)), "keep: in a run of a checkpoint"),
        ],
    );
}

#[test]
fn wal_data_go_before_wal_from_and_fences_never() {
    verdicts(
        &evidence(),
        u64::MAX,
        &[
            (wal(1029, FENCE_BYTES + 1), "delete: data before wal_from 1030"),
            (wal(1, 5000), "delete: data before wal_from"),
            (wal(1030, 5000), "keep: data at wal_from"),
            (wal(1041, 5000), "keep: replayed already, but held back for the change feed"),
            (wal(1029, FENCE_BYTES), "keep: a fence"),
            (wal(1, FENCE_BYTES), "keep: a fence"),
            (wal(1, 0), "keep: too small for data"),
        ],
    );
}

#[test]
fn manifests_go_below_history_from() {
    let other_uuid = ManifestId { version: 7, uuid: uuid(0x99) };
    verdicts(
        &evidence(),
        u64::MAX,
        &[
            (stored(Object::Manifest(manifest_id(4))), "delete: version 4 < 5"),
            (stored(Object::Manifest(manifest_id(5))), "keep: history begins with it"),
            (stored(Object::Manifest(manifest_id(3))), "keep: a checkpoint"),
            (stored(Object::Manifest(manifest_id(7))), "keep: CURRENT names it"),
            (stored(Object::Manifest(other_uuid)), "keep: a lost commit, for now"),
            (stored(Object::Manifest(manifest_id(8))), "keep: about to be committed"),
        ],
    );
    let all_given_up = evidence_with(|current| current.history_from = 7);
    verdicts(
        &all_given_up,
        u64::MAX,
        &[
            (stored(Object::Manifest(manifest_id(6))), "delete: version 6 < 7"),
            (stored(Object::Manifest(manifest_id(7))), "keep: CURRENT names it"),
        ],
    );
}

#[test]
fn current_and_probes_are_nobodys_garbage() {
    verdicts(
        &evidence(),
        u64::MAX,
        &[
            (stored(Object::Current), "keep: never"),
            (stored(Object::Probe(uuid(1))), "keep: whoever probes deletes it"),
        ],
    );
}

#[test]
fn a_claim_alone_lets_the_orphans_of_its_predecessor_go() {
    let orphan = sst(writer_output(3, 0x91));
    let claimed = evidence_with(|current| {
        let successor = Claimant { uuid: uuid(0x77), url: None, root: None };
        *current = current.claimed_by_writer(successor, 0, uuid(0x78));
    });
    verdicts(&evidence(), 0, &[(orphan, "keep: epoch 3 is the epoch of now")]);
    verdicts(&claimed, 0, &[(orphan, "delete: epoch 4 is")]);
}

#[test]
fn the_listing_keeps_its_order() {
    let listing = [wal(9, 500), wal(2000, 500), wal(3, 500)];
    let grace = Grace { retention_ms: 0, now_ms: 0 };
    let expected = [Object::Wal(WalId(9)), Object::Wal(WalId(3))];
    assert_eq!(evidence().deletable(listing, grace), expected);
}

#[test]
fn foreign_evidence_proves_nothing() {
    let (live, info) = run(compactor_output(1, 0x21), (0x31, 0x32));
    let bare = Manifest { runs: vec![info], checkpoints: vec![], ..manifest() };
    let refused = |current: &Current, manifest: &Manifest, runs: &[Run]| {
        Evidence::new(current, manifest, &[], runs).unwrap_err().0
    };
    assert!(Evidence::new(&current(), &bare, &[], slice::from_ref(&live)).is_ok());

    let another_read = Current { manifest: manifest_id(8), version: 8, ..current() };
    assert!(refused(&another_read, &bare, slice::from_ref(&live)).contains("calls itself"));
    let newer = Current { format: 2, ..current() };
    assert!(refused(&newer, &bare, &[live]).contains("newer version"));
}
