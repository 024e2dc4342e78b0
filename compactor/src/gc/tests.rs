//! Collection over an in-memory store.

use bytes::Bytes;
use cairn_common::format::edit::Pin;
use cairn_common::format::path::{ManifestId, OutputId};
use cairn_common::types::{Epoch, Role, WalId};
use tokio::time::sleep;
use uuid::Uuid;

use super::*;
use crate::kit::{Kit, run_paused};
use crate::withheld::Withheld;

const RETENTION: Duration = Duration::from_mins(10);

fn collector(kit: &Kit) -> Collector {
    Collector::new(kit.bucket.clone(), kit.env.clone(), RETENTION, GcMetrics::default())
}

async fn pass(kit: &Kit) -> Result<Option<Passed>> {
    collector(kit).pass(&CancellationToken::new()).await
}

async fn count(kit: &Kit, kind: ObjectKind) -> usize {
    kit.bucket.list(kind).await.unwrap().len()
}

/// Four flushes, compacted into one run by a life that only compacts.
async fn compacted(kit: &Kit) {
    let mut writer = kit.writer().await;
    for round in 0..4 {
        writer.flush(&[("a", Some("x")), ("b", Some(&round.to_string()))]).await;
    }
    let started = kit.start(&[("only", "compact")]);
    sleep(Duration::from_secs(3)).await;
    started.stop().await;
    assert!(kit.snapshot().await.manifest.l0.is_empty());
}

#[test]
fn without_a_database_there_is_nothing_to_do() {
    run_paused(async {
        assert!(pass(&Kit::new()).await.unwrap().is_none());
    });
}

#[test]
fn retired_objects_go_after_the_retention_and_are_forgotten() {
    run_paused(async {
        let kit = Kit::new();
        compacted(&kit).await;
        pass(&kit).await.unwrap();
        assert_eq!(count(&kit, ObjectKind::Sst).await, 5, "kept for slow readers");
        sleep(RETENTION + Duration::from_secs(1)).await;
        pass(&kit).await.unwrap();
        assert_eq!(count(&kit, ObjectKind::Sst).await, 1);
        assert_eq!(kit.snapshot().await.manifest.retired.len(), 0);
        assert_eq!(kit.content(kit.env.clock.wall_ms()).await.len(), 2);
        let version = kit.snapshot().await.current.version;
        sleep(RETENTION * 3).await;
        pass(&kit).await.unwrap();
        assert_eq!(kit.snapshot().await.current.version, version, "an idle database rests");
    });
}

#[test]
fn orphans_go_once_their_epoch_has_passed() {
    run_paused(async {
        let kit = Kit::new();
        compacted(&kit).await;
        let orphan = |epoch| {
            let uuid = Uuid::from_u128(99);
            Object::Sst(OutputId { role: Role::Compactor, epoch: Epoch(epoch), uuid })
        };
        // Epoch 1 is the newest: what was made under it may still be committed.
        kit.bucket.put(&orphan(1), Bytes::from_static(b"x")).await.unwrap();
        sleep(RETENTION * 2).await;
        pass(&kit).await.unwrap();
        assert!(kit.bucket.get(&orphan(1)).await.is_ok());
        kit.claim(Role::Compactor).await;
        kit.bucket.put(&orphan(2), Bytes::from_static(b"x")).await.unwrap();
        pass(&kit).await.unwrap();
        assert!(matches!(kit.bucket.get(&orphan(1)).await, Err(Error::NotFound(_))));
        assert!(kit.bucket.get(&orphan(2)).await.is_ok());
    });
}

async fn pin(kit: &Kit, expires_ms: Option<u64>) -> ManifestId {
    let snapshot = kit.snapshot().await;
    let pinned = snapshot.current.manifest;
    let pin = Pin { name: "kept".into(), created_ms: 1, expires_ms };
    kit.manifests.commit(snapshot, &Edit::Pin(pin)).await.unwrap();
    pinned
}

#[test]
fn checkpoint_keeps_what_it_names_until_it_expires() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        for round in 0..4 {
            writer.flush(&[("a", Some(&round.to_string()))]).await;
        }
        let expires_ms = kit.env.clock.wall_ms() + 3_600_000;
        let pinned = pin(&kit, Some(expires_ms)).await;
        let started = kit.start(&[("only", "compact")]);
        sleep(Duration::from_secs(3)).await;
        started.stop().await;
        sleep(RETENTION * 2).await;
        pass(&kit).await.unwrap();
        assert_eq!(count(&kit, ObjectKind::Sst).await, 5, "one in the tree, four pinned");
        assert!(kit.bucket.get(&Object::Manifest(pinned)).await.is_ok());
        sleep(Duration::from_hours(1)).await;
        pass(&kit).await.unwrap();
        assert_eq!(count(&kit, ObjectKind::Sst).await, 1);
        assert!(kit.snapshot().await.manifest.checkpoints.is_empty());
    });
}

/// The name and bytes of an object, which is deleted.
async fn lose(kit: &Kit, object: Object) -> (Object, Bytes) {
    let bytes = kit.bucket.get(&object).await.unwrap();
    kit.bucket.delete(&[object]).await.unwrap();
    (object, bytes)
}

#[test]
fn lost_checkpoint_body_keeps_ssts_until_restored() {
    run_paused(async {
        let kit = Kit::new();
        compacted(&kit).await;
        let pinned = pin(&kit, None).await;
        let mut writer = kit.writer().await;
        for id in 1..=40 {
            kit.bucket
                .create(&Object::Wal(WalId(id)), vec![0; FENCE_BYTES + 1].into())
                .await
                .unwrap();
        }
        for _ in 0..30 {
            writer.flush(&[("c", Some("x"))]).await;
        }
        let started = kit.start(&[("only", "compact")]);
        sleep(Duration::from_secs(3)).await;
        started.stop().await;
        let (object, bytes) = lose(&kit, Object::Manifest(pinned)).await;
        sleep(RETENTION * 2).await;
        let before = (count(&kit, ObjectKind::Sst).await, count(&kit, ObjectKind::Run).await);
        let metrics = GcMetrics::default();
        let mut collector =
            Collector::new(kit.bucket.clone(), kit.env.clone(), RETENTION, metrics.clone());
        let cancel = CancellationToken::new();
        let minute = Duration::from_mins(1);
        let mut running = std::pin::pin!(collector.run(minute, None, &cancel));
        let advance = tokio::time::timeout(Duration::from_mins(5), &mut running).await;
        assert!(advance.is_err(), "no damage ends collection");
        let now = (count(&kit, ObjectKind::Sst).await, count(&kit, ObjectKind::Run).await);
        assert_eq!(now, before, "what it may refer to is kept");
        assert!(count(&kit, ObjectKind::Wal).await < 40, "the log does not depend on it");
        assert!(count(&kit, ObjectKind::Manifest).await < 5, "nor does history");
        assert!(kit.bucket.damage().holds(&object) && metrics.is_stopped());

        kit.bucket.put(&object, bytes).await.unwrap();
        let advance = tokio::time::timeout(DAMAGE_PAUSE_MAX * 2, &mut running).await;
        assert!(advance.is_err());
        assert!(count(&kit, ObjectKind::Sst).await < before.0, "it goes on by itself");
        assert!(!kit.bucket.damage().holds(&object) && !metrics.is_stopped());
    });
}

/// An SST that no manifest names, of an epoch that has passed.
async fn put_orphan(kit: &Kit) -> Object {
    let id = OutputId { role: Role::Compactor, epoch: Epoch(0), uuid: Uuid::from_u128(1) };
    let orphan = Object::Sst(id);
    kit.bucket.put(&orphan, Bytes::from_static(b"orphan")).await.unwrap();
    orphan
}

#[test]
fn withheld_run_keeps_ssts_and_is_no_damage() {
    run_paused(async {
        let store = Withheld::default();
        let kit = Kit::over(store.clone());
        compacted(&kit).await;
        let orphan = put_orphan(&kit).await;
        let run = Object::Run(kit.snapshot().await.manifest.runs[0].id);
        store.withhold(&run);
        sleep(RETENTION * 2).await;
        let passed = pass(&kit).await.unwrap().unwrap();
        assert_eq!(passed.unread, [run]);
        assert_eq!(count(&kit, ObjectKind::Sst).await, 2, "the SST of the run, and the orphan");
        assert!(kit.bucket.get(&orphan).await.is_ok(), "it may be in the run");
        assert_eq!(kit.bucket.damage().count(), 0, "the store may give it yet");
        store.give_all();
        let passed = pass(&kit).await.unwrap().unwrap();
        assert_eq!((passed.unread.len(), count(&kit, ObjectKind::Sst).await), (0, 1));
    });
}

#[test]
fn damaged_run_keeps_ssts_and_lets_runs_go() {
    run_paused(async {
        let kit = Kit::new();
        compacted(&kit).await;
        let orphan = put_orphan(&kit).await;
        let run = Object::Run(kit.snapshot().await.manifest.runs[0].id);
        let sound = kit.bucket.get(&run).await.unwrap();
        let mut bytes = sound.to_vec();
        bytes[20] ^= 1;
        kit.bucket.put(&run, bytes.into()).await.unwrap();
        sleep(RETENTION * 2).await;
        let passed = pass(&kit).await.unwrap().unwrap();
        assert_eq!(passed.unread, [run]);
        assert_eq!(count(&kit, ObjectKind::Sst).await, 2, "the SST of the run, and the orphan");
        assert!(kit.bucket.get(&orphan).await.is_ok(), "it may be in the run");
        kit.bucket.put(&run, sound).await.unwrap();
        let passed = pass(&kit).await.unwrap().unwrap();
        assert_eq!((passed.unread.len(), count(&kit, ObjectKind::Sst).await), (0, 1));
    });
}

#[test]
fn retired_names_runs_whose_objects_go_last() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        let started = kit.start(&[("only", "compact"), ("sst_bytes", "4KiB")]);
        let value = "x".repeat(900);
        for round in 0..4 {
            for batch in 0..4 {
                let keys: Vec<_> = (0..8).map(|key| format!("{round}{batch}{key}")).collect();
                let entries: Vec<_> = keys.iter().map(|key| (&**key, Some(&*value))).collect();
                writer.flush(&entries).await;
            }
            writer.flush(&[("0", Some(&value)), ("9", Some(&value))]).await;
            started.node.board.request_full(kit.env.random.uuid());
            sleep(Duration::from_secs(10)).await;
        }
        started.stop().await;
        let manifest = kit.snapshot().await.manifest;
        let runs = |object: &RetiredObject| matches!(object, RetiredObject::Run(_));
        let retired: Vec<_> = manifest.retired.iter().map(|retired| retired.object).collect();
        let (runs, l0): (Vec<_>, Vec<_>) = retired.into_iter().partition(runs);
        assert!(runs.len() > 3 && l0.len() <= 20, "{runs:?} {l0:?}");
        assert_eq!(kit.bucket.damage().count(), 0);
        let content = kit.content(kit.env.clock.wall_ms()).await;

        sleep(RETENTION * 2).await;
        pass(&kit).await.unwrap();
        pass(&kit).await.unwrap();
        let live = Catalog::new(kit.bucket.clone()).load(&manifest.runs).await.unwrap();
        let live: usize = live.iter().map(|run| run.ssts.len()).sum();
        assert_eq!(count(&kit, ObjectKind::Sst).await, live, "no SST of a retired run is left");
        assert_eq!(count(&kit, ObjectKind::Run).await, manifest.runs.len());
        assert!(kit.snapshot().await.manifest.retired.is_empty());
        assert_eq!(kit.content(kit.env.clock.wall_ms()).await, content);
    });
}

#[test]
fn old_data_of_the_log_go_and_fences_stay() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        for id in 1..=4 {
            let bytes = if id == 2 { vec![0; FENCE_BYTES] } else { vec![0; FENCE_BYTES + 1] };
            kit.bucket.create(&Object::Wal(WalId(id)), bytes.into()).await.unwrap();
        }
        writer.flush(&[("a", Some("1"))]).await;
        writer.flush(&[("b", Some("1"))]).await;
        writer.flush(&[("c", Some("1"))]).await;
        assert_eq!(kit.snapshot().await.current.replay_from, WalId(4));
        pass(&kit).await.unwrap();
        assert_eq!(count(&kit, ObjectKind::Wal).await, 4, "kept for slow followers");
        sleep(RETENTION * 2).await;
        pass(&kit).await.unwrap();
        let mut left: Vec<_> = kit.bucket.list(ObjectKind::Wal).await.unwrap();
        left.sort_by_key(|listed| listed.object);
        let left: Vec<_> = left.iter().map(|listed| listed.object).collect();
        assert_eq!(left, [Object::Wal(WalId(2)), Object::Wal(WalId(4))]);
        assert_eq!(kit.snapshot().await.manifest.wal_from, WalId(4));
    });
}

#[test]
fn old_manifests_go_when_there_are_enough_of_them() {
    run_paused(async {
        let kit = Kit::new();
        let mut writer = kit.writer().await;
        for round in 0..30 {
            writer.flush(&[("a", Some(&round.to_string()))]).await;
        }
        sleep(RETENTION * 2).await;
        pass(&kit).await.unwrap();
        let snapshot = kit.snapshot().await;
        assert_eq!(snapshot.current.history_from, 31);
        assert_eq!(count(&kit, ObjectKind::Manifest).await, 2, "the one before, and this one");
        assert_eq!(kit.content(kit.env.clock.wall_ms()).await.len(), 1);
    });
}

#[test]
fn collector_alone_claims_no_epoch_and_keeps_up() {
    run_paused(async {
        let kit = Kit::new();
        compacted(&kit).await;
        let epoch = kit.snapshot().await.current.compactor.epoch;
        let started = kit.start(&[("only", "gc")]);
        sleep(RETENTION + Duration::from_mins(3)).await;
        assert_eq!(count(&kit, ObjectKind::Sst).await, 1);
        assert_eq!(kit.snapshot().await.current.compactor.epoch, epoch);
        started.stop().await;
    });
}
