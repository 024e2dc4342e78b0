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
//! - A run or an SST that is missing or damaged fails the reads that need it, not the following.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::faults::planted;
use cairn_common::format::manifest::Manifest;
use cairn_common::format::path::Object;
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
        let doubt = Doubt::new(follower.position());
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
                () = self.rest(as_of, pause) => {}
            }
        }
    }

    /// Waits for the next look, which is due one interval after the last was fresh, or earlier if
    /// something woke it; shows a tree that is ready meanwhile.
    async fn rest(&mut self, as_of: Duration, pause: Duration) {
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
                () = &mut due => return,
                () = &mut woken => return,
                tree = ended(self.opening.as_mut()) => self.take(tree),
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
        if let Some(tree) = ended(self.opening.as_mut()).now_or_never() {
            self.take(tree);
        }
        if self.fresh_at.is_some() && self.fitting().is_none() {
            self.open_now().await;
            if self.fitting().is_none() {
                return Ok(Reach::Partway);
            }
        } else {
            self.show();
        }
        self.open_beside();
        Ok(reach)
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
    pub async fn settle(&mut self) {
        while self.opening.is_some() {
            let tree = ended(self.opening.as_mut()).await;
            self.take(tree);
        }
    }

    /// The tree that is open, if it and the memtables together hold everything.
    fn fitting(&self) -> Option<&Arc<OpenTree>> {
        self.tree.as_ref().filter(|tree| self.fits(&tree.manifest))
    }

    fn fits(&self, manifest: &Manifest) -> bool {
        manifest.flushed_seq >= self.follower.covers_from()
            || planted("reader_keeps_the_tree_of_an_older_log")
    }

    /// Opens the newest tree; warms it for at most the configured time.
    fn begin_opening(&self) -> Opening {
        let newest = Arc::clone(&self.follower.snapshot().manifest);
        let tree = Arc::new(OpenTree::new(&self.ssts, newest, self.tree.as_deref()));
        Opening::begin(tree, self.seen, self.tree.clone(), self.config.warm_timeout.0)
    }

    /// Opens the newest tree and shows it: what is open does not fit. Only the first tree is warmed
    /// before it is shown.
    async fn open_now(&mut self) {
        let is_on_its_way =
            self.opening.as_ref().is_some_and(|opening| self.fits(&opening.tree.manifest));
        if self.tree.is_some() {
            let opening = self.begin_opening();
            self.accept(Arc::clone(&opening.tree), self.seen);
            self.opening = Some(opening);
            return;
        }
        if !is_on_its_way {
            self.opening = Some(self.begin_opening());
        }
        let tree = ended(self.opening.as_mut()).await;
        self.take(tree);
    }

    /// Begins to open the newest tree if it is not the one that is open and none is on its way.
    fn open_beside(&mut self) {
        let newest = self.follower.snapshot().manifest.id;
        if self.tree.as_ref().is_some_and(|tree| tree.manifest.id == newest) {
            self.sights.end(self.seen);
            return;
        }
        match &mut self.opening {
            Some(opening) if opening.tree.manifest.id == newest => opening.look = self.seen,
            Some(opening) if opening.tree.manifest.flushed_seq >= self.follower.covers_from() => {}
            Some(_) | None => self.opening = Some(self.begin_opening()),
        }
    }

    /// Takes the tree whose opening ended.
    fn take(&mut self, tree: Arc<OpenTree>) {
        if let Some(Opening { look, .. }) = self.opening.take() {
            self.accept(tree, look);
        }
    }

    /// Shows the tree if it is newer than the one that is open and fits.
    fn accept(&mut self, tree: Arc<OpenTree>, look: u64) {
        let version = tree.manifest.id.version;
        let is_newer = self.tree.as_ref().is_none_or(|open| open.manifest.id.version < version);
        if is_newer && self.fits(&tree.manifest) {
            self.follower.forget_flushed(tree.manifest.flushed_seq);
            self.tree = Some(tree);
            self.show();
            self.sights.end(look);
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
