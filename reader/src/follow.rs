//! The task that follows the bucket: it alone moves the reader's view.
//!
//! **Life of a look**: one step of the [`Follower`] (the log, then CURRENT); show what was applied
//! over the tree that is open; if the manifest is another one, open its tree, warm it, show it, and
//! let go of the memtables that it has swallowed.
//!
//! **Invariants**
//! - The first sight reaches the chain's end, so that a reader that says "ready" is fresh.
//! - After the log began anew, nothing is shown before the tree that goes with it is open.
//! - A store that does not answer costs freshness alone: the last sight stays.
//! - An object that CURRENT's manifest names and that is not there, though CURRENT has not changed
//!   since, is damage and not delay.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::{Error, REMEDY, Result};
use cairn_common::faults::planted;
use cairn_common::format::path::ManifestId;
use cairn_common::read::view::{OpenTree, View};
use cairn_common::store::follow::{Base, Follower, Reach};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::Bucket;
use cairn_common::store::sst::SstStore;
use cairn_common::store::wal::Wal;
use tokio_util::sync::CancellationToken;

use crate::config::FollowConfig;
use crate::sights::{Sight, Sights};
use crate::warm::warm;
use crate::watch::Watch;

/// The bucket is asked so many times as often while requests wait for a seq.
const EAGER: u32 = 4;
/// Least time between two looks at a store that charges for them.
const PAUSE: Duration = Duration::from_millis(50);
/// The same where the store is a directory, which tells of each change.
const PAUSE_LOCAL: Duration = Duration::from_millis(2);

/// Follows one database.
#[derive(Debug)]
pub struct Tail {
    env: Env,
    ssts: Arc<SstStore>,
    sights: Arc<Sights>,
    config: FollowConfig,
    follower: Follower,
    /// The tree that is shown, if any goes with the memtables.
    tree: Option<Arc<OpenTree>>,
    /// When the last look began that found the chain's end.
    fresh_at: Option<Duration>,
    /// The manifest of which an object was missing last time.
    missing: Option<ManifestId>,
}

/// Waits for a database to follow: for the store to answer, and for a writer to make one.
///
/// # Errors
/// `Corrupt` for a damaged root; `Invalid` for settings that the store refuses.
pub async fn find(bucket: &Bucket, env: &Env, poll_interval: Duration) -> Result<Snapshot> {
    let manifests = Manifests::new(bucket.clone(), env.clone());
    let mut told = false;
    loop {
        match manifests.load().await {
            Ok(Some(snapshot)) => return Ok(snapshot),
            Ok(None) if !told => {
                told = true;
                let store = bucket.url();
                tracing::info!(%store, "there is no database yet: waiting for a writer to make it");
            }
            Ok(None) => {}
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "cannot reach the store; trying again");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(poll_interval).await;
    }
}

impl Tail {
    /// A tail from where replay begins in `snapshot`; nothing is shown yet.
    pub fn new(
        env: Env,
        ssts: Arc<SstStore>,
        snapshot: Snapshot,
        config: FollowConfig,
        sights: Arc<Sights>,
    ) -> Self {
        let bucket = ssts.bucket().clone();
        let manifests = Manifests::new(bucket.clone(), env.clone());
        let wal = Wal::new(bucket, snapshot.current.database);
        let follower = Follower::new(manifests, wal, snapshot);
        Self { env, ssts, sights, config, follower, tree: None, fresh_at: None, missing: None }
    }

    /// Follows until `stop`.
    ///
    /// # Errors
    /// `Corrupt`: the database is damaged, and the reader cannot go on.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let mut watch = Watch::new(self.ssts.bucket().url(), Arc::clone(&self.sights));
        let pause = if watch.is_local() { PAUSE_LOCAL } else { PAUSE };
        let mut in_trouble = false;
        loop {
            watch.ensure();
            let reach = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                looked = self.look() => looked,
            };
            match reach {
                Ok(reach) => {
                    if std::mem::take(&mut in_trouble) {
                        tracing::info!("the store answers again");
                    }
                    if reach == Reach::Partway {
                        continue;
                    }
                }
                Err(error) if is_passing(&error) => {
                    if !std::mem::replace(&mut in_trouble, true) {
                        tracing::warn!(%error, "cannot follow the store; trying again");
                    }
                }
                Err(error) => return Err(error),
            }
            let interval = self.config.poll_interval.0;
            let interval = if self.sights.is_awaited() { interval / EAGER } else { interval };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(interval.max(pause)) => {}
                () = async {
                    self.sights.woken().await;
                    tokio::time::sleep(pause).await;
                } => {}
            }
        }
    }

    /// One look at the bucket; shows what it finds.
    ///
    /// # Errors
    /// Passing ones: what is shown stays. `Corrupt`: the database is damaged.
    pub async fn look(&mut self) -> Result<Reach> {
        let look = self.sights.begin();
        let began = self.env.clock.boot();
        let step = self.follower.step().await?;
        if step.base == Base::Anew && !planted("reader_keeps_the_tree_of_an_older_log") {
            self.tree = None;
        }
        if step.reach == Reach::End {
            let ended = planted("reader_dates_a_look_by_its_end").then(|| self.env.clock.boot());
            self.fresh_at = Some(ended.unwrap_or(began));
        }
        self.show();
        let manifest = &self.follower.snapshot().manifest;
        let is_open = self.tree.as_ref().is_some_and(|tree| tree.manifest.id == manifest.id);
        let reach = if is_open { step.reach } else { self.open_tree(step.reach).await? };
        if reach == Reach::End {
            self.sights.end(look);
        }
        Ok(reach)
    }

    async fn open_tree(&mut self, reach: Reach) -> Result<Reach> {
        let manifest = Arc::clone(&self.follower.snapshot().manifest);
        let id = manifest.id;
        // SUBTLE: after the log began anew no tree goes with the memtables, but the handles of the
        // one that is still shown are as good as before.
        let shown = self.sights.latest().map(|sight| Arc::clone(&sight.view.tree));
        let previous = self.tree.as_ref().or(shown.as_ref()).map(Arc::clone);
        let tree = match OpenTree::open(&self.ssts, manifest, previous.as_deref()).await {
            Ok(tree) => Arc::new(tree),
            Err(Error::NotFound(object)) if self.missing != Some(id) => {
                // Two worlds: the manifest was replaced and its run collected; or it is damaged.
                // The next look reads CURRENT and tells them apart.
                tracing::info!(%object, "a run is gone; looking for a newer manifest");
                self.missing = Some(id);
                return Ok(Reach::Partway);
            }
            Err(Error::NotFound(object)) => {
                let cause = format!("manifest {id} names it and it is not there: {REMEDY}");
                return Err(Error::corrupt(object, cause));
            }
            Err(error) => return Err(error),
        };
        warm(&tree, previous.as_deref(), self.config.warm_timeout.0).await;
        self.follower.forget_flushed(tree.manifest.flushed_seq);
        self.tree = Some(tree);
        self.missing = None;
        self.show();
        Ok(reach)
    }

    fn show(&self) {
        let (Some(tree), Some(fresh_at)) = (&self.tree, self.fresh_at) else { return };
        let Snapshot { current, .. } = self.follower.snapshot();
        let view = View::new(self.follower.memtables(), Arc::clone(tree), self.follower.seq());
        let current = Arc::new(current.clone());
        self.sights.show(Sight { view: Arc::new(view), fresh_at, current });
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unavailable(_) | Error::Indeterminate(_))
}
