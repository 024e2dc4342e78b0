//! The task that follows the bucket: it alone moves the reader's view.
//!
//! **Life of a look**: one step of the [`Follower`] (the log, then CURRENT), then what was applied
//! is shown, a few times a second while there is much to read. Beside it, the tree of a newer
//! manifest is opened and warmed ([`crate::opening`]); it is shown when it is ready, and the
//! memtables that it has swallowed are dropped.
//!
//! **Invariants**
//! - The first sight reaches the chain's end, so that a reader that says "ready" is fresh.
//! - A tree is shown only if it fits the memtables: it holds everything up to where they begin.
//!   If the log moved to another manifest, its tree is opened at once, and warmed later.
//! - An opening that has begun is finished before the next one begins, unless its tree no longer
//!   fits: so trees are shown under any rate of flushes.
//! - A store that does not answer costs freshness alone: the last sight stays.
//! - A reader that stays before an object of the log that is missing calls its view fresh no more
//!   ([`crate::hole`]).
//! - An object that CURRENT's manifest names and that is not there, though CURRENT has not changed
//!   since, is damage and not delay.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::{Error, REMEDY, Result};
use cairn_common::faults::planted;
use cairn_common::format::manifest::Manifest;
use cairn_common::format::path::{ManifestId, Object};
use cairn_common::read::view::{OpenTree, View};
use cairn_common::store::follow::{Follower, Reach};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::Bucket;
use cairn_common::store::sst::SstStore;
use cairn_common::store::wal::Wal;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::config::FollowConfig;
use crate::hole::Doubt;
use crate::opening::{Opening, ended};
use crate::sights::{Sight, Sights};
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
    wal: Wal,
    doubt: Doubt,
    /// The newest tree that is open.
    tree: Option<Arc<OpenTree>>,
    opening: Option<Opening>,
    /// Boot time before which everything acknowledged is included.
    fresh_at: Option<Duration>,
    /// The newest look that has read CURRENT.
    seen: u64,
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
        let follower = Follower::new(manifests, wal.clone(), snapshot);
        let doubt = Doubt::at(follower.position(), env.clock.boot());
        Self {
            env,
            ssts,
            sights,
            config,
            follower,
            wal,
            doubt,
            tree: None,
            opening: None,
            fresh_at: None,
            seen: 0,
            missing: None,
        }
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
            let looked = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                looked = self.look() => looked,
            };
            let as_of = match looked {
                Ok(reach) => {
                    if std::mem::take(&mut in_trouble) {
                        tracing::info!("the store answers again");
                    }
                    match reach {
                        Reach::End { as_of } => as_of,
                        Reach::Partway => continue,
                    }
                }
                Err(error) if is_passing(&error) => {
                    if !std::mem::replace(&mut in_trouble, true) {
                        tracing::warn!(%error, "cannot follow the store; trying again");
                    }
                    self.env.clock.boot()
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                rested = self.rest(as_of, pause) => rested?,
            }
        }
    }

    /// Waits for the next look, which is due one interval after the last was fresh, or earlier if
    /// something woke it; shows a tree that is ready meanwhile.
    async fn rest(&mut self, as_of: Duration, pause: Duration) -> Result<()> {
        let interval = self.config.poll_interval.0;
        let interval = if self.sights.is_awaited() { interval / EAGER } else { interval };
        let passed = self.env.clock.boot().saturating_sub(as_of);
        let sights = Arc::clone(&self.sights);
        let mut due = pin!(tokio::time::sleep(interval.saturating_sub(passed).max(pause)));
        let mut woken = pin!(async {
            sights.woken().await;
            tokio::time::sleep(pause).await;
        });
        loop {
            tokio::select! {
                biased;
                () = &mut due => return Ok(()),
                () = &mut woken => return Ok(()),
                opened = ended(self.opening.as_mut()) => match self.take(opened) {
                    // The next look opens it again.
                    Err(error) if is_passing(&error) => tracing::debug!(%error, "no newer tree"),
                    taken => taken?,
                }
            }
        }
    }

    /// One look at the bucket; shows what it finds.
    ///
    /// # Errors
    /// Passing ones: what is shown stays. `Corrupt`: the database is damaged.
    pub async fn look(&mut self) -> Result<Reach> {
        let look = self.sights.begin();
        self.doubt.take();
        let reach = self.follower.step().await?;
        self.seen = look;
        if let Reach::End { as_of } = reach
            && !self.is_at_hole()
        {
            let ended = planted("reader_dates_a_look_by_its_end").then(|| self.env.clock.boot());
            self.fresh_at = Some(ended.unwrap_or(as_of));
        }
        let opened = ended(self.opening.as_mut()).now_or_never();
        let taken = opened.map_or(Ok(()), |opened| self.take(opened));
        if self.fresh_at.is_some() && self.fitting().is_none() {
            self.open_now().await?;
            if self.fitting().is_none() {
                return Ok(Reach::Partway);
            }
        } else {
            self.show();
        }
        self.open_beside();
        taken.map(|()| reach)
    }

    /// Whether an object of the log is missing at the end that a look has found; says so if it is.
    fn is_at_hole(&mut self) -> bool {
        let (damage, before) = (self.ssts.bucket().damage(), self.doubt.position());
        let position = self.follower.position();
        let proof = self.doubt.judge(&self.wal, position, self.env.clock.boot());
        if position != before || proof.is_none() {
            damage.clear(&Object::Wal(before));
        }
        let Some(proof) = proof else { return false };
        let cause = format!(
            "it was acknowledged, as {} shows, and it is not there: somebody else deleted it, or a \
             copy left it out. The view stays as it is and grows old; put the object back from a \
             version or a backup of the bucket",
            Object::Wal(proof)
        );
        damage.report(&Object::Wal(position), &cause);
        true
    }

    /// Waits until no tree is on its way.
    ///
    /// # Errors
    /// As for [`Tail::look`].
    pub async fn settle(&mut self) -> Result<()> {
        while self.opening.is_some() {
            let opened = ended(self.opening.as_mut()).await;
            self.take(opened)?;
        }
        Ok(())
    }

    /// The tree that is open, if it and the memtables together hold everything.
    fn fitting(&self) -> Option<&Arc<OpenTree>> {
        self.tree.as_ref().filter(|tree| self.fits(&tree.manifest))
    }

    fn fits(&self, manifest: &Manifest) -> bool {
        manifest.flushed_seq >= self.follower.covers_from()
            || planted("reader_keeps_the_tree_of_an_older_log")
    }

    fn begin_opening(&self, limit: Duration) -> Opening {
        let newest = Arc::clone(&self.follower.snapshot().manifest);
        Opening::begin(&self.ssts, (newest, self.seen), self.tree.clone(), limit)
    }

    /// Opens the newest tree, waits for it and shows it: what is open does not fit. Only the first
    /// one is warmed before that.
    async fn open_now(&mut self) -> Result<()> {
        let limit = self.config.warm_timeout.0;
        let previous = self.tree.clone();
        let is_on_its_way =
            self.opening.as_ref().is_some_and(|opening| self.fits(&opening.manifest));
        if previous.is_some() {
            self.opening = Some(self.begin_opening(Duration::ZERO));
        } else if !is_on_its_way {
            self.opening = Some(self.begin_opening(limit));
        }
        let opened = ended(self.opening.as_mut()).await;
        self.take(opened)?;
        if let (Some(tree), Some(_)) = (self.fitting(), &previous) {
            let warming = Opening::warming(Arc::clone(tree), self.seen, previous, limit);
            self.opening = Some(warming);
        }
        Ok(())
    }

    /// Begins to open the newest tree if it is not the one that is open and none is on its way.
    fn open_beside(&mut self) {
        let newest = self.follower.snapshot().manifest.id;
        if self.tree.as_ref().is_some_and(|tree| tree.manifest.id == newest) {
            self.sights.end(self.seen);
            return;
        }
        match &mut self.opening {
            Some(opening) if opening.manifest.id == newest => opening.look = self.seen,
            Some(opening) if opening.manifest.flushed_seq >= self.follower.covers_from() => {}
            Some(_) | None => self.opening = Some(self.begin_opening(self.config.warm_timeout.0)),
        }
    }

    /// Takes what became of the opening: its tree is shown if it is newer and fits.
    fn take(&mut self, opened: Result<Arc<OpenTree>>) -> Result<()> {
        let Some(Opening { manifest, look, .. }) = self.opening.take() else { return Ok(()) };
        match opened {
            Ok(tree) => {
                let is_newer = self
                    .tree
                    .as_ref()
                    .is_none_or(|shown| shown.manifest.id.version < manifest.id.version);
                if is_newer && self.fits(&manifest) {
                    self.follower.forget_flushed(manifest.flushed_seq);
                    (self.tree, self.missing) = (Some(tree), None);
                    self.show();
                    self.sights.end(look);
                }
                Ok(())
            }
            Err(Error::NotFound(object)) if self.missing != Some(manifest.id) => {
                // Two worlds: the manifest was replaced and its run collected; or it is damaged.
                // The next look reads CURRENT and tells them apart.
                tracing::info!(%object, "a run is gone; looking for a newer manifest");
                self.missing = Some(manifest.id);
                self.sights.wake();
                Ok(())
            }
            Err(Error::NotFound(object)) => {
                let id = manifest.id;
                let cause = format!("manifest {id} names it and it is not there: {REMEDY}");
                Err(Error::corrupt(object, cause))
            }
            Err(error) => Err(error),
        }
    }

    fn show(&self) {
        let (Some(tree), Some(fresh_at)) = (self.fitting(), self.fresh_at) else { return };
        let Snapshot { current, .. } = self.follower.snapshot();
        let view = View::new(self.follower.memtables(), Arc::clone(tree), self.follower.seq());
        let current = Arc::new(current.clone());
        self.sights.show(Sight { view: Arc::new(view), fresh_at, current });
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unavailable(_) | Error::Indeterminate(_))
}
