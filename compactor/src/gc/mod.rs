//! The collector: deletes what no reader, checkpoint or process can need any more.
//!
//! **Life of a pass**: read CURRENT and its manifest; list; move `history_from` and `wal_from`
//! forward and forget retired objects that are gone (one commit, if it is worth one); read every
//! run and checkpoint body; delete what [`Evidence`] allows, in bounded batches.
//!
//! **Invariants**
//! - What is deleted is decided by `format::collect` alone, from one read of CURRENT and the
//!   manifest it names. Each reason is true for ever, so a pass may stop anywhere, be as slow as it
//!   likes, and run in any number of processes at a time; it holds no epoch.
//! - A checkpoint body or run that cannot be read stops collection: references that cannot be seen
//!   may be to anything.
//! - Times decide only how long things are kept, never whether they are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::{Error, REMEDY, Result};
use cairn_common::format::collect::{Evidence, Grace, Stored};
use cairn_common::format::current::Current;
use cairn_common::format::edit::{Edit, Release, Retain};
use cairn_common::format::manifest::{Manifest, RetiredObject};
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::format::run::Run;
use cairn_common::format::wal::FENCE_BYTES;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::{Bucket, Listed};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::metrics::GcMetrics;

/// Objects of one batch: deleting them is one request, and a stop waits for no more.
const DELETE_BATCH: usize = 500;
/// Manifests that history must free to be worth a commit, which writes one itself.
const HISTORY_COUNT_MIN: u64 = 16;
/// Times that what CURRENT names may be gone before it counts as damage: each time another commit
/// and another collector came between our reads.
const MOVED_COUNT_MAX: u32 = 4;
/// The kinds that are collected.
const KINDS: [ObjectKind; 4] =
    [ObjectKind::Manifest, ObjectKind::Run, ObjectKind::Sst, ObjectKind::Wal];

/// Deletes what nobody needs.
#[derive(Debug)]
pub struct Collector {
    bucket: Bucket,
    env: Env,
    manifests: Manifests,
    catalog: Catalog,
    retention: Duration,
    metrics: GcMetrics,
}

impl Collector {
    /// A collector that keeps what has left the tree for `retention`.
    pub fn new(bucket: Bucket, env: Env, retention: Duration, metrics: GcMetrics) -> Self {
        let manifests = Manifests::new(bucket.clone(), env.clone());
        let catalog = Catalog::new(bucket.clone());
        Self { bucket, env, manifests, catalog, retention, metrics }
    }

    /// Passes, one each `interval`, until cancelled.
    ///
    /// # Errors
    /// `Corrupt`: something that must be read to know what is needed is damaged or gone.
    pub async fn run(
        &mut self,
        interval: Duration,
        seen: Option<&watch::Sender<Option<Snapshot>>>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        while !cancel.is_cancelled() {
            match self.pass(cancel).await {
                Ok(snapshot) => {
                    self.metrics.passed();
                    if let (Some(seen), Some(snapshot)) = (seen, snapshot) {
                        seen.send_replace(Some(snapshot));
                    }
                }
                Err(error @ (Error::Corrupt(_) | Error::Invalid(_))) => {
                    self.metrics.stopped();
                    return Err(error);
                }
                Err(error) => {
                    self.metrics.failed();
                    tracing::warn!(%error, "a pass of collection was broken off");
                }
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
        Ok(())
    }

    /// One pass; what is there then, or `None` where there is no database yet.
    ///
    /// Costs a LIST per thousand objects, two GETs, one for each run or checkpoint body not seen
    /// before, at most one commit beside those that release checkpoints, and the deletions.
    ///
    /// # Errors
    /// `Corrupt`, see [`Collector::run`]; `Unavailable`, `Indeterminate`: try again later.
    pub async fn pass(&mut self, cancel: &CancellationToken) -> Result<Option<Snapshot>> {
        let Some(mut snapshot) = self.manifests.load().await? else { return Ok(None) };
        let grace = Grace {
            retention_ms: u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX),
            now_ms: self.env.clock.wall_ms(),
        };
        snapshot = self.release_expired(snapshot, grace.now_ms).await?;
        let mut listed = Vec::new();
        for kind in KINDS {
            listed.extend(self.bucket.list(kind).await?);
        }
        if let Some(retain) = retain(&snapshot.current, &snapshot.manifest, &listed, grace) {
            snapshot = self.manifests.commit(snapshot, &Edit::Retain(retain)).await?;
        }
        let (snapshot, evidence) = self.evidence(snapshot).await?;
        let stored = listed.iter().map(|l| Stored { object: l.object, bytes: l.bytes });
        let deletable = evidence.deletable(stored, grace);
        for batch in deletable.chunks(DELETE_BATCH) {
            if cancel.is_cancelled() {
                break;
            }
            self.bucket.delete(batch).await?;
            self.count(batch);
        }
        Ok(Some(snapshot))
    }

    async fn release_expired(&self, mut snapshot: Snapshot, now_ms: u64) -> Result<Snapshot> {
        let expired = snapshot.manifest.checkpoints.clone().into_iter();
        let expired = expired.filter(|pin| pin.expires_ms.is_some_and(|at| at <= now_ms));
        for checkpoint in expired {
            tracing::info!(name = checkpoint.name, "a checkpoint has expired");
            let release = Release { name: checkpoint.name, manifest: checkpoint.manifest };
            snapshot = self.manifests.commit(snapshot, &Edit::Release(release)).await?;
        }
        Ok(snapshot)
    }

    /// Reads what the snapshot names; starts over from CURRENT where it has moved on meanwhile.
    async fn evidence(&mut self, mut snapshot: Snapshot) -> Result<(Snapshot, Evidence)> {
        for _ in 0..MOVED_COUNT_MAX {
            let missing = match self.read(&snapshot).await {
                Err(Error::NotFound(object)) => object,
                read => return read.map(|evidence| (snapshot, evidence)),
            };
            match self.manifests.refresh(&snapshot).await? {
                Some(newer) => snapshot = newer,
                None => return Err(gone(&missing)),
            }
        }
        Err(Error::unavailable("collection", "CURRENT moves on faster than it can be followed"))
    }

    async fn read(&mut self, snapshot: &Snapshot) -> Result<Evidence> {
        let manifest = &snapshot.manifest;
        let mut bodies = Vec::with_capacity(manifest.checkpoints.len());
        for checkpoint in &manifest.checkpoints {
            let object = Object::Manifest(checkpoint.manifest);
            let bytes = self.bucket.get(&object).await?;
            let body = Manifest::parse(&bytes, &checkpoint.digest);
            bodies.push(body.map_err(|cause| Error::corrupt(object.path(), cause))?);
        }
        let mut runs: BTreeMap<_, Run> = BTreeMap::new();
        for body in std::iter::once(&**manifest).chain(&bodies) {
            for run in self.catalog.load(&body.runs).await? {
                runs.insert(run.id, Run::clone(&run));
            }
        }
        self.catalog.keep(&runs.keys().copied().collect::<BTreeSet<_>>());
        let runs: Vec<Run> = runs.into_values().collect();
        Evidence::new(&snapshot.current, manifest, &bodies, &runs)
            .map_err(|cause| Error::corrupt("what CURRENT and its manifest refer to", cause))
    }

    fn count(&self, deleted: &[Object]) {
        for kind in KINDS {
            let count = deleted.iter().filter(|object| object.kind() == kind).count();
            if count > 0 {
                tracing::debug!(kind = kind.name(), count, "deleted");
                self.metrics.deleted(kind, u64::try_from(count).unwrap_or(u64::MAX));
            }
        }
    }
}

fn gone(object: &str) -> Error {
    let cause = format!(
        "CURRENT or a checkpoint refers to it and it is not there, so nothing is collected any \
         more: {REMEDY}"
    );
    Error::corrupt(object, cause)
}

/// The edit that lets history go and forgets what was deleted; `None` where it is not worth a
/// commit.
///
/// `listed` must be younger than the manifest: what was retired there and is not listed is gone.
fn retain(
    current: &Current,
    manifest: &Manifest,
    listed: &[Listed],
    grace: Grace,
) -> Option<Retain> {
    let is_old = |l: &&Listed| l.modified_ms.saturating_add(grace.retention_ms) <= grace.now_ms;
    let old = listed.iter().filter(is_old);
    let (mut history_from, mut wal_from) = (current.history_from, manifest.wal_from);
    for Listed { object, bytes, .. } in old {
        match object {
            // Its predecessors have been out of use for at least as long as it has been there.
            Object::Manifest(id) if id.version <= current.version => {
                history_from = history_from.max(id.version);
            }
            Object::Wal(id) if *id < current.replay_from && *bytes > FENCE_BYTES as u64 => {
                wal_from = wal_from.max(id.next());
            }
            _ => {}
        }
    }
    let there: BTreeSet<Object> = listed.iter().map(|listed| listed.object).collect();
    let retired = manifest.retired.iter().map(|retired| retired.object);
    let deleted: Vec<RetiredObject> = retired
        .filter(|object| match object {
            RetiredObject::Sst(id) => !there.contains(&Object::Sst(*id)),
            RetiredObject::Run(id) => !there.contains(&Object::Run(*id)),
        })
        .collect();
    let is_worth_it = !deleted.is_empty()
        || wal_from > manifest.wal_from
        || history_from - current.history_from >= HISTORY_COUNT_MIN;
    is_worth_it.then_some(Retain { history_from, wal_from, deleted })
}

#[cfg(test)]
mod tests;
