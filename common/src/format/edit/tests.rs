//! Every edit, every check of it, and how each is settled.

use super::super::samples::{
    compactor_output, current, database, l0, manifest, manifest_id, run, sst, uuid, writer_output,
};
use super::*;

fn fresh() -> Fresh {
    Fresh { manifest: uuid(0xf1), nonce: uuid(0xf2), now_ms: 77 }
}

/// The sample database, with runs whose bodies are known.
fn base() -> (Current, Manifest, [Run; 2]) {
    let (newer, newer_info) = run(compactor_output(1, 0x21), (0x31, 0x32));
    let (older, older_info) = run(compactor_output(1, 0x22), (0x33, 0x34));
    let manifest = Manifest { runs: vec![newer_info, older_info], ..manifest() };
    let current = Current { manifest_digest: manifest.encode().1, ..current() };
    (current, manifest, [newer, older])
}

fn apply_to_base(edit: &Edit) -> Result<Commit, Rejected> {
    let (current, manifest, _) = base();
    apply(&current, &manifest, edit, fresh())
}

fn applied(edit: &Edit) -> Commit {
    let commit = apply_to_base(edit).unwrap();
    assert_eq!(commit.manifest.check_named_by(&commit.current), Ok(()));
    let digest = commit.current.manifest_digest;
    assert_eq!(Manifest::parse(&commit.body, &digest).as_ref(), Ok(&commit.manifest));
    assert_eq!(commit.manifest.id, ManifestId { version: 8, uuid: uuid(0xf1) });
    assert_eq!(commit.current.nonce, uuid(0xf2));
    assert_eq!(edit.settle(&commit.current, &commit.manifest), Settled::Done);
    commit
}

fn invalid(edit: &Edit, expected: &str) {
    match apply_to_base(edit) {
        Err(Rejected::Invalid(what)) => assert!(what.contains(expected), "{what}: {expected}"),
        other => panic!("{other:?} instead of {expected}"),
    }
}

fn flush() -> Flush {
    Flush {
        epoch: Epoch(2),
        sst: Some(l0(writer_output(2, 0x13), (401, 500), (1042, 1050))),
        replay_from: WalId(1050),
        flushed_seq: Seq(500),
        time_ms: 1_700_000_000_500,
    }
}

#[test]
fn a_flush_puts_one_sst_in_front_and_moves_on() {
    let commit = applied(&Edit::Flush(flush()));
    let ids: Vec<_> = commit.manifest.l0.iter().map(|sst| sst.id.uuid).collect();
    assert_eq!(ids, [uuid(0x13), uuid(0x11), uuid(0x12)]);
    assert_eq!(commit.current.replay_from, WalId(1050));
    assert_eq!(commit.manifest.flushed_seq, Seq(500));
    assert_eq!(commit.manifest.time_ms, 1_700_000_000_500);
    assert_eq!(commit.current.writer, current().writer);
}

#[test]
fn a_flush_without_an_sst_moves_the_position_alone() {
    let moved = Flush { sst: None, flushed_seq: Seq(400), time_ms: 5, ..flush() };
    let commit = applied(&Edit::Flush(moved));
    assert_eq!(commit.manifest.l0, base().1.l0);
    assert_eq!(commit.manifest.time_ms, 1_700_000_000_000, "a slow clock takes nothing back");
}

#[test]
fn a_flush_that_breaks_a_law_is_refused() {
    let with = |change: fn(&mut SstInfo)| {
        let mut flush = flush();
        change(flush.sst.as_mut().unwrap());
        Edit::Flush(flush)
    };
    invalid(&Edit::Flush(Flush { flushed_seq: Seq(399), sst: None, ..flush() }), "flushed seq");
    invalid(&Edit::Flush(Flush { flushed_seq: Seq(499), ..flush() }), "not between");
    invalid(&with(|sst| sst.first_seq = Seq(400)), "not between");
    invalid(&with(|sst| sst.id = writer_output(1, 0x13)), "not made by");
    invalid(&with(|sst| sst.id = compactor_output(2, 0x13)), "not made by");
    invalid(&with(|sst| sst.id = writer_output(2, 0x11)), "committed before");
    invalid(&with(|sst| sst.wal = None), "of the chain");
    invalid(&with(|sst| sst.wal.as_mut().unwrap().from = WalId(1041)), "of the chain");
    invalid(&with(|sst| sst.wal.as_mut().unwrap().to = WalId(1051)), "of the chain");
    invalid(&with(|sst| sst.entries = 0), "no entries");
}

#[test]
fn a_retired_sst_never_comes_back() {
    let (mut current, mut manifest, _) = base();
    let mut again = flush();
    again.sst.as_mut().unwrap().id = writer_output(2, 0x42);
    manifest.retired[0].object = RetiredObject::Sst(writer_output(2, 0x42));
    current.manifest_digest = manifest.encode().1;
    let refused = apply(&current, &manifest, &Edit::Flush(again), fresh());
    assert!(matches!(refused, Err(Rejected::Invalid(_))), "{refused:?}");
}

#[test]
fn a_flush_is_settled_by_its_position_and_epoch() {
    let (current, manifest, _) = base();
    let edit = Edit::Flush(flush());
    assert_eq!(edit.settle(&current, &manifest), Settled::Open);
    // Its SST was compacted away and forgotten, and replay has moved on: it is in.
    let later = Current { replay_from: WalId(2000), ..current.clone() };
    assert_eq!(edit.settle(&later, &manifest), Settled::Done);
    let repeated = Edit::Flush(Flush { replay_from: WalId(1042), sst: None, ..flush() });
    assert!(matches!(apply_to_base(&repeated), Err(Rejected::Gone(_))));

    let mut taken = later;
    taken.writer.epoch = Epoch(3);
    let fenced = Settled::Fenced { held: Epoch(2), found: Epoch(3) };
    assert_eq!(edit.settle(&taken, &manifest), fenced);
}

#[test]
fn edits_of_another_epoch_are_fenced() {
    let stale = [
        Edit::Flush(Flush { epoch: Epoch(1), ..flush() }),
        Edit::Compact(Compact { epoch: Epoch(0), ..compact_all() }),
    ];
    for edit in stale {
        assert!(matches!(apply_to_base(&edit), Err(Rejected::Fenced { .. })), "{edit:?}");
    }
}

fn output(id: OutputId, ssts: Vec<SstInfo>) -> Output {
    let run = Run::new(database(), id, ssts);
    let (bytes, digest) = run.encode();
    let info = run.info(digest, bytes.len() as u64);
    Output { run, info }
}

fn new_output(last: u64) -> Output {
    let merged = sst(compactor_output(1, 0x100 + last), ("a", "z"), (1, 400));
    output(compactor_output(1, last), vec![merged])
}

/// All of L0 and both runs become one run.
fn compact_all() -> Compact {
    let (_, manifest, runs) = base();
    Compact {
        epoch: Epoch(1),
        l0: manifest.l0.iter().map(|sst| sst.id).collect(),
        runs: runs.into(),
        outputs: vec![new_output(0x51)],
    }
}

fn run_ids(manifest: &Manifest) -> Vec<Uuid> {
    manifest.runs.iter().map(|run| run.id.uuid).collect()
}

#[test]
fn a_compaction_retires_its_l0_and_its_runs() {
    let commit = applied(&Edit::Compact(compact_all()));
    assert!(commit.manifest.l0.is_empty());
    assert_eq!(run_ids(&commit.manifest), [uuid(0x51)]);
    let retired: Vec<_> = commit.manifest.retired.iter().skip(1).collect();
    let objects: Vec<_> = retired.iter().map(|retired| retired.object).collect();
    let expected = [
        RetiredObject::Sst(writer_output(2, 0x11)),
        RetiredObject::Sst(writer_output(1, 0x12)),
        RetiredObject::Run(compactor_output(1, 0x21)),
        RetiredObject::Run(compactor_output(1, 0x22)),
    ];
    assert_eq!(objects, expected);
    assert!(retired.iter().all(|retired| (retired.version, retired.time_ms) == (8, 77)));
    assert_eq!(commit.current.replay_from, WalId(1042));
}

#[test]
fn outputs_stand_where_their_inputs_stood() {
    let (_, manifest, [newer, older]) = base();
    let oldest_l0 = vec![manifest.l0[1].id];
    let all = compact_all();
    for (name, edit, l0_left, runs) in [
        ("L0 alone", Compact { runs: vec![], ..all.clone() }, 0, vec![0x51, 0x21, 0x22]),
        (
            "the oldest of L0",
            Compact { l0: oldest_l0.clone(), runs: vec![], ..all.clone() },
            1,
            vec![0x51, 0x21, 0x22],
        ),
        (
            "the oldest of L0 and the newest run",
            Compact { l0: oldest_l0, runs: vec![newer.clone()], ..all.clone() },
            1,
            vec![0x51, 0x22],
        ),
        (
            "the last run, into two",
            Compact {
                l0: vec![],
                runs: vec![older],
                outputs: vec![new_output(0x51), new_output(0x52)],
                ..all.clone()
            },
            2,
            vec![0x21, 0x51, 0x52],
        ),
        (
            "a run of which nothing is left",
            Compact { l0: vec![], runs: vec![newer], outputs: vec![], ..all },
            2,
            vec![0x22],
        ),
    ] {
        let commit = applied(&Edit::Compact(edit));
        assert_eq!(commit.manifest.l0.len(), l0_left, "{name}");
        let expected: Vec<_> = runs.into_iter().map(uuid).collect();
        assert_eq!(run_ids(&commit.manifest), expected, "{name}");
    }
}

#[test]
fn l0_that_arrived_meanwhile_stays_in_front() {
    let flushed = applied(&Edit::Flush(flush()));
    let edit = Edit::Compact(compact_all());
    let commit = apply(&flushed.current, &flushed.manifest, &edit, fresh()).unwrap();
    let l0: Vec<_> = commit.manifest.l0.iter().map(|sst| sst.id.uuid).collect();
    assert_eq!((l0, run_ids(&commit.manifest)), (vec![uuid(0x13)], vec![uuid(0x51)]));
}

#[test]
fn a_moved_sst_is_not_retired() {
    let (_, manifest, [newer, _]) = base();
    let l0 = manifest.l0[1].clone();
    let edit = Compact {
        l0: vec![l0.id],
        runs: vec![],
        outputs: vec![output(compactor_output(1, 0x51), vec![l0])],
        ..compact_all()
    };
    let commit = applied(&Edit::Compact(edit));
    assert_eq!(commit.manifest.retired, manifest.retired);

    let mut kept = newer.ssts.clone();
    kept.truncate(1);
    let edit = Compact {
        l0: vec![],
        runs: vec![newer.clone()],
        outputs: vec![output(compactor_output(1, 0x51), kept)],
        ..compact_all()
    };
    let commit = applied(&Edit::Compact(edit));
    let retired: Vec<_> = commit.manifest.retired.iter().skip(1).map(|r| r.object).collect();
    assert_eq!(retired, [RetiredObject::Run(newer.id)]);
}

#[test]
fn a_compaction_that_breaks_a_law_is_refused() {
    let (_, manifest, [newer, older]) = base();
    let all = compact_all();
    let with_output = |output: Output| Compact { outputs: vec![output], ..all.clone() };
    let alone = |l0: &[OutputId], runs: &[&Run]| Compact {
        l0: l0.to_vec(),
        runs: runs.iter().map(|run| (*run).clone()).collect(),
        ..all.clone()
    };
    let [front, back] = [manifest.l0[0].id, manifest.l0[1].id];

    let mut changed_sst = older.ssts[0].clone();
    changed_sst.entries += 1;
    let mut other_body = older.clone();
    other_body.ssts.pop();
    let mut misnamed = new_output(0x51);
    misnamed.info.entries += 1;
    let two_of_one = Compact { outputs: vec![new_output(0x51), new_output(0x51)], ..all.clone() };
    let stale_sst = sst(compactor_output(0, 0x61), ("a", "z"), (1, 2));
    let retired_sst = sst(writer_output(1, 0x41), ("a", "z"), (1, 2));
    let new_run = |sst| output(compactor_output(1, 0x51), vec![sst]);
    for (edit, expected) in [
        (alone(&[], &[]), "nothing"),
        (alone(&[front], &[]), "not its oldest"),
        (alone(&[back, front], &[]), "not its oldest"),
        (alone(&[back], &[&older]), "between them and L0"),
        (alone(&[], &[&older, &newer]), "not neighbours"),
        (alone(&[], &[&newer, &newer]), "not neighbours"),
        (alone(&[], &[&newer, &other_body]), "not what the manifest says"),
        (with_output(misnamed), "not what the manifest says"),
        (with_output(output(compactor_output(0, 0x51), older.ssts.clone())), "not made by"),
        (with_output(output(compactor_output(1, 0x21), older.ssts.clone())), "committed before"),
        (with_output(new_run(stale_sst)), "not made by"),
        (with_output(new_run(retired_sst)), "not made by"),
        (with_output(new_run(changed_sst)), "changed by being moved"),
        (two_of_one, "two outputs"),
    ] {
        invalid(&Edit::Compact(edit), expected);
    }
}

#[test]
fn the_same_inputs_are_never_merged_twice() {
    let first = applied(&Edit::Compact(compact_all()));
    let again = Edit::Compact(Compact { outputs: vec![new_output(0x59)], ..compact_all() });
    let refused = apply(&first.current, &first.manifest, &again, fresh());
    assert!(matches!(refused, Err(Rejected::Gone(_))), "{refused:?}");
}

#[test]
fn a_compaction_whose_output_is_gone_too_is_over() {
    let (current, manifest, _) = base();
    let edit = Edit::Compact(compact_all());
    assert_eq!(edit.settle(&current, &manifest), Settled::Open);
    let first = applied(&edit);
    let mut on = first.manifest.clone();
    on.runs.clear();
    assert_eq!(edit.settle(&first.current, &on), Settled::Done);
    let mut claimed = first.current;
    claimed.compactor.epoch = Epoch(2);
    assert!(matches!(edit.settle(&claimed, &on), Settled::Fenced { .. }));
}

fn pin(name: &str) -> Edit {
    Edit::Pin(Pin { name: name.into(), created_ms: 9, expires_ms: Some(10) })
}

#[test]
fn a_checkpoint_names_exactly_the_manifest_being_replaced() {
    let commit = applied(&pin("weekly"));
    let made = commit.manifest.checkpoints.last().unwrap();
    assert_eq!((made.manifest, made.digest), (base().0.manifest, base().0.manifest_digest));
    assert_eq!((made.created_ms, made.expires_ms), (9, Some(10)));
    invalid(&pin("nightly"), "already");
    invalid(&pin(""), "checkpoint");
}

#[test]
fn a_release_lets_go_of_what_it_means_alone() {
    let release =
        |version| Edit::Release(Release { name: "nightly".into(), manifest: manifest_id(version) });
    assert!(applied(&release(3)).manifest.checkpoints.is_empty());
    let another = apply_to_base(&release(4));
    assert!(matches!(another, Err(Rejected::Gone(_))), "{another:?}");
}

#[test]
fn retention_moves_forward_and_forgets_what_was_deleted() {
    let gone = base().1.retired[0].object;
    let edit = Edit::Retain(Retain { history_from: 7, wal_from: WalId(1042), deleted: vec![gone] });
    let commit = applied(&edit);
    assert_eq!((commit.current.history_from, commit.manifest.wal_from), (7, WalId(1042)));
    assert!(commit.manifest.retired.is_empty());

    let behind = applied(&Edit::Retain(Retain::default()));
    assert_eq!((behind.current.history_from, behind.manifest.wal_from), (3, WalId(1030)));
    invalid(&Edit::Retain(Retain { history_from: 8, ..Retain::default() }), "above version");
    let beyond = Retain { wal_from: WalId(1043), ..Retain::default() };
    invalid(&Edit::Retain(beyond), "after replay_from");
}

#[test]
fn a_newer_format_is_left_alone() {
    let (current, manifest, _) = base();
    let newer = Current { format: 2, ..current };
    let refused = apply(&newer, &manifest, &pin("weekly"), fresh());
    assert!(matches!(refused, Err(Rejected::Invalid(_))), "{refused:?}");
}

#[test]
fn a_claim_is_settled_by_its_uuid() {
    assert!(current().is_writer(uuid(3)) && !current().is_writer(uuid(4)));
    assert!(current().is_compactor(uuid(4)) && !current().is_compactor(uuid(3)));
}
