//! The collector: deletes what no reader, checkpoint or process can need any more.
//!
//! **Life of a pass**: read CURRENT and its manifest; sweep a local directory; list; read every
//! run and checkpoint body; delete what [`Evidence`](cairn_common::format::collect::Evidence)
//! allows, in bounded batches; then commit what this and time allow (expired checkpoints released,
//! `history_from` and `wal_from` moved forward, deleted objects forgotten), and if there was such
//! a commit, judge and delete once more.
//!
//! **Invariants**
//! - What is deleted is decided by `format::collect` only, from one read of CURRENT and the
//!   manifest it names. Each reason is true for ever, so a pass may stop anywhere, be as slow as it
//!   likes, and run in any number of processes at a time; it holds no epoch.
//! - Deleting comes before committing: on a full disk nothing can be committed until something was
//!   deleted.
//! - A checkpoint body or run that cannot be read keeps what it may refer to, and nothing else.
//! - No failure ends collection. A pass that met damage is tried again, less and less often.
//! - Times decide only how long things are kept, never whether they are needed.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::format::collect::{Grace, Stored};
use cairn_common::format::current::Current;
use cairn_common::format::edit::{Edit, Release, Retain};
use cairn_common::format::manifest::{Manifest, RetiredObject};
use cairn_common::format::path::{Object, ObjectKind, OutputId};
use cairn_common::format::wal::FENCE_BYTES;
use cairn_common::store::local::LocalDirectory;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::{Bucket, Listed};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::reading::Reading;
use crate::catalog::Catalog;
use crate::metrics::GcMetrics;

mod reading;

/// Objects of one batch: deleting them is one request, and a stop waits for no more.
const DELETE_BATCH: usize = 500;
/// Manifests that history must free to be worth a commit, which writes one itself.
const HISTORY_COUNT_MIN: u64 = 16;
/// Times that what CURRENT names may be gone before it counts as damage: each time another commit
/// and another collector came between our reads.
const MOVED_COUNT_MAX: u32 = 4;
/// The longest wait for one commit of a pass. A commit waits for the store without end, and on a
/// full disk it is the next pass, by deleting, that makes room for it.
const COMMIT_PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause after passes that met damage, unless `gc_interval` is longer: a restored
/// object is found within it.
const DAMAGE_PAUSE_MAX: Duration = Duration::from_mins(10);
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
    /// The store, if it is a directory: killed processes leave files in it.
    directory: Option<LocalDirectory>,
}

/// What a pass came to.
#[derive(Debug)]
pub struct Passed {
    /// What is there then.
    pub snapshot: Snapshot,
    /// The objects that could not be read, so that what they may refer to was kept.
    pub unread: Vec<Object>,
}

impl Collector {
    /// A collector that keeps what has left the tree for `retention`.
    pub fn new(bucket: Bucket, env: Env, retention: Duration, metrics: GcMetrics) -> Self {
        let manifests = Manifests::new(bucket.clone(), env.clone());
        let catalog = Catalog::new(bucket.clone());
        let directory = LocalDirectory::of_url(bucket.url());
        Self { bucket, env, manifests, catalog, retention, metrics, directory }
    }

    /// Passes, one each `interval`, until cancelled. After passes that met damage it waits longer,
    /// up to [`DAMAGE_PAUSE_MAX`].
    pub async fn run(
        &mut self,
        interval: Duration,
        seen: Option<&watch::Sender<Option<Snapshot>>>,
        cancel: &CancellationToken,
    ) {
        let mut damaged_in_a_row: u32 = 0;
        while !cancel.is_cancelled() {
            damaged_in_a_row = match self.pass(cancel).await {
                Ok(None) => 0,
                Ok(Some(Passed { snapshot, unread })) => {
                    self.metrics.passed();
                    if let Some(seen) = seen {
                        seen.send_replace(Some(snapshot));
                    }
                    let names: Vec<_> = unread.iter().map(Object::path).collect();
                    let damage = (!names.is_empty()).then(|| names.join(", "));
                    self.note_damage(damage, damaged_in_a_row)
                }
                Err(error @ (Error::Corrupt(_) | Error::Invalid(_))) => {
                    self.metrics.failed();
                    self.note_damage(Some(error.to_string()), damaged_in_a_row)
                }
                Err(error) => {
                    self.metrics.failed();
                    tracing::warn!(%error, "a pass of collection was broken off");
                    damaged_in_a_row
                }
            };
            let pause = pause_after(interval, damaged_in_a_row);
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Says once that damage holds collection up, and once that it is over; the number of passes in
    /// a row that met it.
    fn note_damage(&self, damage: Option<String>, before: u32) -> u32 {
        self.metrics.met_damage(usize::from(damage.is_some()));
        let Some(damage) = damage else {
            if before > 0 {
                tracing::info!("collection is complete again");
            }
            return 0;
        };
        if before == 0 {
            tracing::error!(%damage, "collection keeps all that unreadable objects may refer to");
        }
        before.saturating_add(1)
    }

    /// One pass; `None` if there is no database yet.
    ///
    /// Costs a LIST per thousand objects, two GETs, one for each run or checkpoint body not seen
    /// before, at most one commit beside those that release checkpoints, and the deletions.
    ///
    /// # Errors
    /// `Corrupt`: CURRENT or its manifest is damaged; `Unavailable`, `Indeterminate`: try again
    /// later.
    pub async fn pass(&mut self, cancel: &CancellationToken) -> Result<Option<Passed>> {
        let Some(loaded) = self.manifests.load().await? else { return Ok(None) };
        let grace = Grace {
            retention_ms: u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX),
            now_ms: self.env.clock.wall_ms(),
        };
        self.sweep().await;
        // SUBTLE: listed after `loaded`, so that what was retired there and is not listed is gone.
        let mut listed = Vec::new();
        for kind in KINDS {
            listed.extend(self.bucket.list(kind).await?);
        }
        let passed = self.delete(loaded.clone(), &mut listed, grace, cancel).await?;
        let version = passed.snapshot.current.version;
        let retain = retain(&loaded.current, &loaded.manifest, &listed, grace);
        let committing = self.commit_edits(passed.snapshot.clone(), retain, grace.now_ms);
        let committed = tokio::time::timeout(COMMIT_PATIENCE, committing).await;
        let snapshot = committed.map_err(|late| Error::unavailable("a commit", late))??;
        if snapshot.current.version == version {
            return Ok(Some(passed));
        }
        self.delete(snapshot, &mut listed, grace, cancel).await.map(Some)
    }

    /// Removes the files that killed processes have left in a directory.
    async fn sweep(&self) {
        let Some(directory) = &self.directory else { return };
        match directory.sweep().await {
            Ok((0, _)) => {}
            Ok((count, bytes)) => {
                tracing::info!(count, bytes, "removed files that killed processes had left");
            }
            Err(error) => tracing::warn!(%error, "the directory could not be swept"),
        }
    }

    /// Deletes of the listed objects what the snapshot allows, and takes them off the list.
    async fn delete(
        &mut self,
        snapshot: Snapshot,
        listed: &mut Vec<Listed>,
        grace: Grace,
        cancel: &CancellationToken,
    ) -> Result<Passed> {
        let runs: BTreeSet<_> = listed.iter().filter_map(listed_run).collect();
        let (snapshot, Reading { evidence, missed }) = self.read(snapshot, &runs).await?;
        let stored = listed.iter().map(|l| Stored { object: l.object, bytes: l.bytes });
        let deletable = evidence.deletable(stored, grace);
        for batch in deletable.chunks(DELETE_BATCH) {
            if cancel.is_cancelled() {
                break;
            }
            self.bucket.delete(batch).await?;
            self.count(batch);
            let batch: BTreeSet<_> = batch.iter().collect();
            listed.retain(|listed| !batch.contains(&listed.object));
        }
        let damaged = missed.damaged.into_iter().map(|(object, _)| object);
        Ok(Passed { snapshot, unread: damaged.chain(missed.unread).collect() })
    }

    async fn commit_edits(
        &self,
        mut snapshot: Snapshot,
        retain: Option<Retain>,
        now_ms: u64,
    ) -> Result<Snapshot> {
        let expired = snapshot.manifest.checkpoints.clone().into_iter();
        let expired = expired.filter(|pin| pin.expires_ms.is_some_and(|at| at <= now_ms));
        for checkpoint in expired {
            tracing::info!(name = checkpoint.name, "a checkpoint has expired");
            let release = Release { name: checkpoint.name, manifest: checkpoint.manifest };
            snapshot = self.manifests.commit(snapshot, &Edit::Release(release)).await?;
        }
        match retain {
            Some(retain) => self.manifests.commit(snapshot, &Edit::Retain(retain)).await,
            None => Ok(snapshot),
        }
    }

    /// Reads what the snapshot names; starts over from CURRENT if it has moved on meanwhile.
    async fn read(
        &mut self,
        mut snapshot: Snapshot,
        listed_runs: &BTreeSet<OutputId>,
    ) -> Result<(Snapshot, Reading)> {
        for _ in 0..MOVED_COUNT_MAX {
            let reading =
                reading::read(&self.bucket, &mut self.catalog, &snapshot, listed_runs).await?;
            if reading.missed.damaged.is_empty() {
                return Ok((snapshot, reading));
            }
            // Another commit and another collector may have come between our reads.
            let Some(newer) = self.manifests.refresh(&snapshot).await? else {
                for (object, cause) in &reading.missed.damaged {
                    self.bucket.damage().report(object, cause);
                }
                return Ok((snapshot, reading));
            };
            snapshot = newer;
        }
        Err(Error::unavailable("collection", "CURRENT moves on faster than it can be followed"))
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

fn listed_run(listed: &Listed) -> Option<OutputId> {
    match listed.object {
        Object::Run(id) => Some(id),
        _ => None,
    }
}

/// After this many passes in a row that met damage.
fn pause_after(interval: Duration, damaged_in_a_row: u32) -> Duration {
    let doublings = damaged_in_a_row.saturating_sub(1).min(16);
    let longer = interval.saturating_mul(1 << doublings);
    longer.min(DAMAGE_PAUSE_MAX.max(interval))
}

/// The edit that lets history go and forgets what was deleted; `None` if it is not worth a
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
