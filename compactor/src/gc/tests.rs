//! Collection over an in-memory store.

use bytes::Bytes;
use cairn_common::format::edit::Pin;
use cairn_common::format::path::{ManifestId, OutputId};
use cairn_common::types::{Epoch, Role, WalId};
use tokio::time::sleep;
use uuid::Uuid;

use super::*;
use crate::kit::{Kit, run_paused};

const RETENTION: Duration = Duration::from_mins(10);

fn collector(kit: &Kit) -> Collector {
    Collector::new(kit.bucket.clone(), kit.env.clone(), RETENTION, GcMetrics::default())
}

async fn pass(kit: &Kit) -> Result<Option<Snapshot>> {
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
        assert_eq!(kit.snapshot().await.manifest.retired.len(), 4);
        pass(&kit).await.unwrap();
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

#[test]
fn checkpoint_without_a_body_stops_collection() {
    run_paused(async {
        let kit = Kit::new();
        compacted(&kit).await;
        let pinned = pin(&kit, None).await;
        kit.bucket.delete(&[Object::Manifest(pinned)]).await.unwrap();
        sleep(RETENTION * 2).await;
        let before = count(&kit, ObjectKind::Sst).await;
        let metrics = GcMetrics::default();
        let mut collector = Collector::new(kit.bucket.clone(), kit.env.clone(), RETENTION, metrics);
        let cancel = CancellationToken::new();
        let ended = collector.run(Duration::from_secs(1), None, &cancel).await;
        let Err(error @ Error::Corrupt(_)) = ended else { panic!("{ended:?}") };
        assert!(error.to_string().contains(&Object::Manifest(pinned).path()), "{error}");
        assert_eq!(count(&kit, ObjectKind::Sst).await, before, "nothing was deleted");
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
