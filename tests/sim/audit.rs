//! The auditor: reads the bucket itself, past all faults, and holds it to what must be true at
//! every moment, whoever has just crashed or woken up.
//!
//! **Invariants** that it checks
//! - Everything that CURRENT's tree refers to is in the bucket.
//! - The version, the flushed seq and the replay position only move forward.
//! - What a process found missing had left the tree: only then may it have been deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_common::Error;
use cairn_common::clock::TokioClock;
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::format::manifest::Manifest;
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::format::wal::FENCE_BYTES;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::WalId;
use cairn_compactor::catalog::Catalog;
use harness::faulty::{FaultyStore, WALL_ORIGIN_MS};
use tokio::sync::Mutex;

use crate::world::Events;

/// Manifests that collection leaves until there are enough of them to be worth a commit.
const HISTORY_MAX: u64 = 20;

/// Who looks past all faults.
#[derive(Debug)]
pub(crate) struct Auditor {
    bucket: Bucket,
    manifests: Manifests,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: Option<Snapshot>,
    catalog: Catalog,
    /// Something was destroyed: CURRENT may be gone.
    destroyed: bool,
}

impl Auditor {
    pub(crate) fn new(store: &FaultyStore) -> Self {
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(WALL_ORIGIN_MS)),
            random: Arc::new(SeededRandom::new(0)),
            cpu: Cpu::Inline,
        };
        let objects = Arc::new(store.objects().clone());
        let bucket = Bucket::new(objects, "db", StoreSettings::default(), env.clone()).unwrap();
        let manifests = Manifests::new(bucket.clone(), env);
        let catalog = Catalog::new(bucket.clone());
        Self {
            bucket,
            manifests,
            state: Mutex::new(State { known: None, catalog, destroyed: false }),
        }
    }

    /// What CURRENT says now; counts what is new in it.
    pub(crate) async fn look(&self, events: &Events) -> Option<Snapshot> {
        let mut state = self.state.lock().await;
        let newer = match &state.known {
            None => self.manifests.load().await.expect("a root that can be read"),
            Some(known) => match self.manifests.refresh(known).await {
                Err(Error::NotFound(_) | Error::Corrupt(_)) if state.destroyed => None,
                refreshed => refreshed.expect("a CURRENT that can be read"),
            },
        };
        if let Some(newer) = newer {
            if let Some(known) = &state.known {
                count_news(known, &newer, events);
            }
            state.known = Some(newer);
        }
        state.known.clone()
    }

    /// Everything that the tree refers to is there. Returns the version of the manifest.
    pub(crate) async fn check_tree(&self, events: &Events) -> Option<u64> {
        let snapshot = self.look(events).await?;
        let needed = self.references(&snapshot.manifest).await;
        let mut there = BTreeSet::new();
        for kind in [ObjectKind::Run, ObjectKind::Sst] {
            there.extend(self.list(kind).await);
        }
        let missing: Vec<_> = needed.difference(&there).collect();
        let id = snapshot.manifest.id;
        assert!(missing.is_empty(), "CURRENT names {id}, which needs {missing:?}: they are gone");
        Some(id.version)
    }

    /// A process found an object missing that the manifest of `version` refers to.
    pub(crate) async fn check_missing(&self, version: u64, who: &str, events: &Events) {
        let newest = self.check_tree(events).await.expect("a database");
        assert!(
            version < newest,
            "{who} found an object missing of manifest {version}, the newest"
        );
    }

    /// After a collection with nothing left to wait for: what is in the bucket is needed.
    pub(crate) async fn check_collected(&self, events: &Events) {
        self.check_tree(events).await;
        let snapshot = self.look(events).await.expect("a database");
        let Snapshot { current, manifest, .. } = &snapshot;
        let needed = self.references(manifest).await;
        for kind in [ObjectKind::Run, ObjectKind::Sst] {
            let orphans: Vec<_> = self.list(kind).await.difference(&needed).copied().collect();
            assert!(orphans.is_empty(), "nobody needs {orphans:?}, and they are still there");
        }
        for listed in self.bucket.list(ObjectKind::Wal).await.unwrap() {
            let is_data = listed.bytes > FENCE_BYTES as u64;
            let needed = !matches!(listed.object, Object::Wal(id) if id < current.replay_from);
            assert!(needed || !is_data, "{} is flushed, and still there", listed.object);
        }
        for object in self.list(ObjectKind::Manifest).await {
            let Object::Manifest(id) = object else { continue };
            let needed = id.version + HISTORY_MAX >= current.version;
            assert!(needed, "manifest {id} is history, and still there");
        }
    }

    /// Data objects of the log below `id`.
    pub(crate) async fn wal_data_before(&self, id: WalId) -> Vec<WalId> {
        let data = self.wal_data().await;
        data.into_iter().filter(|found| *found < id).collect()
    }

    /// Data objects of the log, in order.
    pub(crate) async fn wal_data(&self) -> Vec<WalId> {
        let listed = self.bucket.list(ObjectKind::Wal).await.expect("a listing past all faults");
        let data = listed.iter().filter(|listed| listed.bytes > FENCE_BYTES as u64);
        let ids = data.filter_map(|listed| match listed.object {
            Object::Wal(id) => Some(id),
            _ => None,
        });
        let ids: BTreeSet<_> = ids.collect();
        ids.into_iter().collect()
    }

    /// Deletes an object past all faults, as somebody else would.
    pub(crate) async fn destroy(&self, object: Object) {
        self.state.lock().await.destroyed = true;
        self.bucket.delete(&[object]).await.expect("a deletion past all faults");
    }

    async fn references(&self, manifest: &Manifest) -> BTreeSet<Object> {
        let mut state = self.state.lock().await;
        let runs = state.catalog.load(&manifest.runs).await;
        let runs = runs.unwrap_or_else(|error| panic!("a run of {} is gone: {error}", manifest.id));
        state.catalog.keep(&runs.iter().map(|run| run.id).collect());
        let l0 = manifest.l0.iter().map(|sst| Object::Sst(sst.id));
        let of_runs = runs.iter().flat_map(|run| {
            let ssts = run.ssts.iter().map(|sst| Object::Sst(sst.id));
            ssts.chain([Object::Run(run.id)])
        });
        l0.chain(of_runs).collect()
    }

    async fn list(&self, kind: ObjectKind) -> BTreeSet<Object> {
        let listed = self.bucket.list(kind).await.expect("a listing past all faults");
        listed.into_iter().map(|listed| listed.object).collect()
    }
}

fn count_news(known: &Snapshot, newer: &Snapshot, events: &Events) {
    let (old, new) = (&known.manifest, &newer.manifest);
    let forward = old.id.version <= new.id.version
        && old.flushed_seq <= new.flushed_seq
        && known.current.replay_from <= newer.current.replay_from;
    assert!(forward, "CURRENT went back from {:?} to {:?}", known.current, newer.current);
    if old.flushed_seq < new.flushed_seq {
        events.count("flush");
    }
    if new.runs.iter().any(|run| old.runs.iter().all(|other| other.id != run.id)) {
        events.count("merge");
    }
}
