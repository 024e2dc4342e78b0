//! Whole lives over an in-memory store.

use std::time::Duration;

use bytes::Bytes;
use cairn_common::error::Error;
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::http::surface::Node as _;
use cairn_common::types::{Epoch, Payload, Role, WalId};
use tokio::time::sleep;
use uuid::Uuid;

use crate::board::{JobStatus, Stage};
use crate::config::{Config, PROGRAM};
use crate::kit::{Kit, Writer, run_paused};
use crate::life::Graces;
use crate::node::Phase;
use crate::withheld::Withheld;

/// Several flushes over the same few keys: the newest says which flush it was.
async fn flush_rounds(writer: &mut Writer<'_>, rounds: std::ops::Range<u32>) {
    for round in rounds {
        let value = format!("round {round}");
        let own = format!("key {round}");
        writer.flush(&[("a", Some(&value)), (&own, Some("x")), ("z", Some(&value))]).await;
    }
}

#[test]
fn waits_for_a_database_then_empties_l0() {
    run_paused(async {
        let kit = Kit::new();
        let started = kit.start(&[]);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(*started.node.phase.borrow(), Phase::Waiting);

        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..5).await;
        let now_ms = kit.env.clock.wall_ms();
        let before = kit.content(now_ms).await;
        sleep(Duration::from_secs(5)).await;
        let snapshot = kit.snapshot().await;
        assert!(matches!(*started.node.phase.borrow(), Phase::Working(Some(_))));
        assert_eq!((snapshot.manifest.l0.len(), snapshot.manifest.runs.len()), (0, 1));
        assert_eq!(kit.content(now_ms).await, before);
        assert_eq!(before.len(), 7);
        assert_eq!(started.node.board.jobs()[0].state, Stage::Done);
        started.stop().await;
    });
}

#[test]
fn compaction_rebases_on_flushes_that_come_meanwhile() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        let started = kit.start(&[("poll_interval", "20ms"), ("l0_count", "2")]);
        for round in 0..60 {
            flush_rounds(&mut writer, round..round + 1).await;
            sleep(Duration::from_millis(7)).await;
        }
        sleep(Duration::from_secs(2)).await;
        let snapshot = kit.snapshot().await;
        assert!(snapshot.manifest.l0.len() < 2, "{:?}", snapshot.manifest.l0);
        let content = kit.content(kit.env.clock.wall_ms()).await;
        assert_eq!(content.len(), 62);
        assert_eq!(content.get("a".as_bytes()).map(|v| &v[..]), Some(&b"round 59"[..]));
        let jobs = started.node.board.jobs();
        assert!(jobs.len() > 5 && jobs.iter().all(|job| job.state == Stage::Done), "{jobs:?}");
        started.stop().await;
    });
}

#[test]
fn zombie_is_fenced_and_changes_nothing() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        let started = kit.start(&[]);
        sleep(Duration::from_secs(2)).await;
        kit.claim(Role::Compactor).await;
        flush_rounds(&mut writer, 0..5).await;
        let ended = started.end().await;
        assert!(matches!(ended, Err(Error::Fenced { .. })), "{ended:?}");
        assert_eq!(kit.snapshot().await.manifest.l0.len(), 5);
    });
}

#[test]
fn full_job_leaves_one_run_without_tombstones() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..2).await;
        writer.flush(&[("a", None), ("none", None)]).await;
        let started = kit.start(&[]);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(kit.snapshot().await.manifest.l0.len(), 3, "too few for a job by itself");
        let id = started.node.board.request_full(Uuid::from_u128(9));
        sleep(Duration::from_secs(2)).await;
        let jobs = started.node.board.jobs();
        let job = jobs.iter().find(|job| job.id == id).unwrap();
        assert_eq!((job.state, job.kind, job.inputs), (Stage::Done, "full", 3));
        assert!(job.bytes_written > 0 && job.bytes_done <= job.bytes_to_do);
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.l0.len(), manifest.runs.len()), (0, 1));
        assert_eq!((manifest.runs[0].entries, manifest.runs[0].tombstones), (3, 0));
        // Once more: there is nothing to do, and it says so.
        let id = started.node.board.request_full(Uuid::from_u128(10));
        sleep(Duration::from_secs(2)).await;
        let jobs = started.node.board.jobs();
        assert_eq!(jobs.iter().find(|job| job.id == id).unwrap().state, Stage::Done);
        assert_eq!(kit.snapshot().await.manifest.runs, manifest.runs);
        started.stop().await;
    });
}

#[test]
fn full_job_takes_l0_first_where_there_are_runs() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        let started = kit.start(&[]);
        for first in [0, 2] {
            // Too few for a job by itself.
            flush_rounds(&mut writer, first..first + 2).await;
            let id = started.node.board.request_full(Uuid::from_u128(u128::from(first) + 9));
            sleep(Duration::from_secs(2)).await;
            let manifest = kit.snapshot().await.manifest;
            assert_eq!((manifest.l0.len(), manifest.runs.len()), (0, 1));
            let jobs = started.node.board.jobs();
            assert_eq!(jobs.iter().find(|job| job.id == id).unwrap().state, Stage::Done);
        }
        let kinds: Vec<_> = started.node.board.jobs().iter().map(|job| job.kind).collect();
        assert_eq!(kinds, ["full", "l0", "full"]);
        started.stop().await;
    });
}

#[test]
fn everything_deleted_leaves_no_run() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        writer.flush(&[("a", Some("1"))]).await;
        writer.flush(&[("a", None)]).await;
        let started = kit.start(&[]);
        started.node.board.request_full(Uuid::from_u128(9));
        sleep(Duration::from_secs(2)).await;
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.l0.len(), manifest.runs.len()), (0, 0));
        started.stop().await;
    });
}

#[test]
fn expiry_goes_by_the_time_of_the_manifest() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        let expires_ms = kit.env.clock.wall_ms() + 60_000;
        let value = Payload::Value(Bytes::from_static(b"v"));
        let entry = ("a".into(), value, Some(expires_ms));
        writer.flush_payloads(vec![entry]).await;
        writer.flush(&[("b", Some("1"))]).await;
        // An hour later by this process's clock, but nothing was flushed since.
        sleep(Duration::from_hours(1)).await;
        let started = kit.start(&[]);
        started.node.board.request_full(Uuid::from_u128(9));
        sleep(Duration::from_secs(2)).await;
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.runs.len(), manifest.runs[0].entries), (1, 2));
        assert_eq!(kit.content(expires_ms - 1).await.len(), 2);
        // The next flush brings the time along, and a full job drops what has expired.
        writer.flush(&[("b", Some("2"))]).await;
        started.node.board.request_full(Uuid::from_u128(10));
        sleep(Duration::from_secs(2)).await;
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.runs.len(), manifest.runs[0].entries), (1, 1));
        started.stop().await;
    });
}

#[test]
fn keys_in_order_move_without_being_rewritten() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        let big = "x".repeat(8_000);
        for prefix in ["a", "b", "c", "d"] {
            let keys: Vec<_> = (0..40).map(|n| format!("{prefix}{n:02}")).collect();
            let entries = keys.iter().map(|key| (&**key, Some(&*big)));
            writer.flush(&entries.collect::<Vec<_>>()).await;
        }
        let before = kit.bucket.list(ObjectKind::Sst).await.unwrap().len();
        let started = kit.start(&[("sst_bytes", "4KiB")]);
        sleep(Duration::from_secs(2)).await;
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.l0.len(), manifest.runs.len(), manifest.runs[0].ssts), (0, 1, 4));
        assert_eq!(kit.bucket.list(ObjectKind::Sst).await.unwrap().len(), before);
        assert_eq!(kit.content(kit.env.clock.wall_ms()).await.len(), 160);
        started.stop().await;
    });
}

/// Flips a bit of an object; returns what it was.
async fn damage(kit: &Kit, object: &Object) -> Bytes {
    let sound = kit.bucket.get(object).await.unwrap();
    let mut bytes = sound.to_vec();
    bytes[60] ^= 1;
    kit.bucket.put(object, bytes.into()).await.unwrap();
    sound
}

async fn l0_count(kit: &Kit) -> usize {
    kit.snapshot().await.manifest.l0.len()
}

#[test]
fn damaged_l0_is_merged_around_and_heals() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..4).await;
        let damaged = Object::Sst(kit.snapshot().await.manifest.l0[0].id);
        let sound = damage(&kit, &damaged).await;
        let started = kit.start(&[]);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(l0_count(&kit).await, 1, "the sound ones beneath it are merged");
        assert!(kit.bucket.damage().holds(&damaged));
        let jobs = started.node.board.jobs();
        assert!(jobs[0].error.as_ref().unwrap().contains(&damaged.path()), "{jobs:?}");

        // Once it is the oldest it is out of the way, and L0 is emptied as ever.
        for round in 4..40 {
            flush_rounds(&mut writer, round..round + 1).await;
            sleep(Duration::from_secs(2)).await;
            assert!(l0_count(&kit).await <= 4, "writes go on");
        }
        let failed = |job: &&JobStatus| job.state == Stage::Failed;
        assert_eq!(
            started.node.board.jobs().iter().filter(failed).count(),
            1,
            "not again and again"
        );
        assert!(kit.bucket.damage().holds(&damaged));
        started.node.board.request_full(Uuid::from_u128(9));
        sleep(Duration::from_secs(5)).await;
        let jobs = started.node.board.jobs();
        let full = jobs.iter().find(|job| job.id == Uuid::from_u128(9)).unwrap();
        assert!(full.error.as_ref().unwrap().contains("is damaged"), "{full:?}");

        kit.bucket.put(&damaged, sound).await.unwrap();
        sleep(Duration::from_mins(11)).await;
        assert_eq!(kit.bucket.damage().count(), 0, "found by itself");
        started.node.board.request_full(Uuid::from_u128(10));
        sleep(Duration::from_secs(5)).await;
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.l0.len(), manifest.runs.len()), (0, 1));
        let content = kit.content(kit.env.clock.wall_ms()).await;
        assert_eq!(content.len(), 42);
        assert_eq!(content.get("a".as_bytes()).map(|v| &v[..]), Some(&b"round 39"[..]));
        started.stop().await;
    });
}

#[test]
fn lost_l0_does_not_stop_the_others() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..4).await;
        let lost = Object::Sst(kit.snapshot().await.manifest.l0[3].id);
        kit.bucket.delete(&[lost]).await.unwrap();
        let started = kit.start(&[]);
        for round in 4..20 {
            flush_rounds(&mut writer, round..round + 1).await;
            sleep(Duration::from_secs(10)).await;
        }
        assert!(l0_count(&kit).await <= 4 && kit.bucket.damage().holds(&lost));
        started.stop().await;
    });
}

#[test]
fn damaged_run_object_does_not_end_the_process() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..4).await;
        let first = kit.start(&[]);
        sleep(Duration::from_secs(3)).await;
        first.stop().await;
        let run = Object::Run(kit.snapshot().await.manifest.runs[0].id);
        let sound = damage(&kit, &run).await;
        let started = kit.start(&[]);
        for round in 4..40 {
            flush_rounds(&mut writer, round..round + 1).await;
            sleep(Duration::from_secs(2)).await;
        }
        assert!(l0_count(&kit).await <= 4 && kit.bucket.damage().holds(&run));
        kit.bucket.put(&run, sound).await.unwrap();
        sleep(Duration::from_mins(11)).await;
        assert_eq!(kit.bucket.damage().count(), 0);
        assert_eq!(kit.content(kit.env.clock.wall_ms()).await.len(), 42);
        started.stop().await;
    });
}

#[test]
fn withheld_objects_stop_nobody() {
    run_paused(async {
        let store = Withheld::default();
        let kit = Kit::over(store.clone());
        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..4).await;
        let first = kit.start(&[]);
        sleep(Duration::from_secs(3)).await;
        first.stop().await;
        flush_rounds(&mut writer, 4..8).await;
        let manifest = kit.snapshot().await.manifest;
        let (run, sst) = (Object::Run(manifest.runs[0].id), Object::Sst(manifest.l0[1].id));
        for object in [run, sst] {
            store.withhold(&object);
        }
        let started = kit.start(&[]);
        let mut highest = 0;
        for round in 8..60 {
            flush_rounds(&mut writer, round..round + 1).await;
            sleep(Duration::from_secs(2)).await;
            highest = highest.max(l0_count(&kit).await);
        }
        assert!(highest <= 16 && l0_count(&kit).await <= 4, "L0 drains: {highest}");
        assert!([run, sst].iter().all(|object| kit.bucket.damage().holds(object)));
        store.give_all();
        sleep(Duration::from_mins(11)).await;
        assert_eq!(kit.bucket.damage().count(), 0, "found by itself");
        started.node.board.request_full(Uuid::from_u128(10));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(kit.content(kit.env.clock.wall_ms()).await.len(), 62);
        assert_eq!(kit.snapshot().await.manifest.runs.len(), 1);
        started.stop().await;
    });
}

#[test]
fn outage_is_no_damage() {
    run_paused(async {
        let store = Withheld::default();
        let kit = Kit::over(store.clone());
        let mut writer = kit.writer().await;
        let started = kit.start(&[]);
        sleep(Duration::from_secs(2)).await;
        flush_rounds(&mut writer, 0..8).await;
        for sst in &kit.snapshot().await.manifest.l0 {
            store.withhold(&Object::Sst(sst.id));
        }
        sleep(Duration::from_secs(2)).await;
        assert!(started.node.board.jobs().iter().any(|job| job.state == Stage::Failed));
        store.withhold(&Object::Current);
        sleep(Duration::from_mins(10)).await;
        assert_eq!(kit.bucket.damage().count(), 0);
        store.give_all();
        sleep(Duration::from_mins(1)).await;
        assert_eq!((l0_count(&kit).await, kit.bucket.damage().count()), (0, 0));
        started.stop().await;
    });
}

#[test]
fn l0_of_tombstones_and_old_l0_are_merged() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        let keys: Vec<String> = (0..1_000).map(|key| format!("{key:04}")).collect();
        let all = |value| keys.iter().map(|key| (&**key, value)).collect::<Vec<_>>();
        writer.flush(&all(Some("x"))).await;
        let started = kit.start(&[]);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(l0_count(&kit).await, 1);
        writer.flush(&all(None)).await;
        sleep(Duration::from_secs(5)).await;
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.l0.len(), manifest.runs.len()), (0, 0), "no dead key is left");
        writer.flush(&[("a", Some("1"))]).await;
        sleep(Duration::from_mins(59)).await;
        assert_eq!(l0_count(&kit).await, 1);
        sleep(Duration::from_mins(2)).await;
        assert_eq!(l0_count(&kit).await, 0, "an hour is enough");
        started.stop().await;
    });
}

#[test]
fn l0_is_merged_before_the_writer_stops() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        kit.publish_l0_stop(6).await;
        let started = kit.start(&[("l0_count", "100")]);
        for round in 0..12 {
            flush_rounds(&mut writer, round..round + 1).await;
            sleep(Duration::from_secs(2)).await;
            assert!(l0_count(&kit).await < 4, "half of the bound");
        }
        started.stop().await;
    });
}

#[test]
fn root_with_objects_and_no_current_is_damage() {
    run_paused(async {
        let kit = Kit::new();
        kit.bucket.create(&Object::Wal(WalId(1)), Bytes::from_static(b"data")).await.unwrap();
        let ended = kit.start(&[]).end().await;
        assert!(matches!(ended, Err(Error::Corrupt(_))), "{ended:?}");
    });
}

#[test]
fn killed_anywhere_it_leaves_the_inputs_and_the_next_life_goes_on() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..8).await;
        let now_ms = kit.env.clock.wall_ms();
        let before = kit.content(now_ms).await;
        for turns in 0..40 {
            let started = kit.start(&[]);
            for _ in 0..turns * 3 {
                tokio::task::yield_now().await;
            }
            drop(started);
            assert_eq!(kit.content(now_ms).await, before, "killed after {turns} turns");
        }
        let started = kit.start(&[("retention", "0s")]);
        sleep(Duration::from_mins(3)).await;
        assert_eq!(kit.content(now_ms).await, before);
        let manifest = kit.snapshot().await.manifest;
        assert_eq!((manifest.l0.len(), manifest.runs.len()), (0, 1));
        // Everything that the killed ones left behind is gone: their epochs have passed.
        let ssts = kit.bucket.list(ObjectKind::Sst).await.unwrap();
        assert_eq!(u64::try_from(ssts.len()).unwrap(), manifest.runs[0].ssts);
        assert_eq!(kit.bucket.list(ObjectKind::Run).await.unwrap().len(), 1);
        started.stop().await;
    });
}

#[test]
fn a_collector_alone_tells_the_epoch_that_it_knows() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        flush_rounds(&mut writer, 0..1).await;
        kit.claim(Role::Compactor).await;
        let started = kit.start(&[("only", "gc")]);
        sleep(Duration::from_secs(2)).await;
        let status = started.node.status().await;
        assert_eq!(*started.node.phase.borrow(), Phase::Working(None));
        assert_eq!(status.epoch, Some(Epoch(1)));
        assert!(status.seq.is_some() && status.tree.is_some());
        started.stop().await;
    });
}

#[test]
fn what_ends_one_after_the_other_shares_one_grace() {
    for grace in ["20s", "1s", "7ms"] {
        let settings = [("store", "memory://"), ("shutdown_grace", grace)];
        let config: Config = PROGRAM.with(&settings).unwrap();
        let Graces { jobs, collection, requests } = Graces::of(&config);
        assert!(jobs + collection + requests <= config.shared.http.shutdown_grace.0);
        assert!(!jobs.is_zero() && !collection.is_zero() && !requests.is_zero());
    }
}
