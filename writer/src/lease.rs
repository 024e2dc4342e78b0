//! The read lease: until when this writer may answer reads without asking CURRENT.
//!
//! **Invariants**
//! - `verified_at` is the *start* of the last read of CURRENT whose answer showed our epoch.
//! - A read is answered only if `now - verified_at < lease`, judged after the request arrived.
//! - Once `closed` has been sent, no read starts under this epoch again, whatever became of it.
//! - Nobody waits for the store to learn what is known already.
//! - Only the rate of the boot-time clock matters, and it counts suspension.
//! - CURRENT only goes forward under a writer. If it is gone (two reads in a row), or goes back to
//!   an older epoch or version, somebody has damaged or restored the bucket: the writer ends with
//!   `Corrupt`, and acknowledges nothing from then on.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::faults::planted;
use cairn_common::format::current::Current;
use cairn_common::read::view::OpenTree;
use cairn_common::store::commit::deposed;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::pause::Pause;
use cairn_common::store::sst::SstStore;
use cairn_common::types::Epoch;
use tokio::sync::{Mutex, Notify};

use crate::front::Front;

/// The first pause between tries while the store is unavailable.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest: what a store that was away for long may cost once it is back.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// CURRENT is read at least this often, however long the lease: it shows that another writer has
/// taken the role, or that the database is gone.
const RENEW_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// The pauses of a task that goes on while the store is unavailable; `what` failed, for the log.
pub fn pause(what: &'static str) -> Pause {
    Pause::new(what, PAUSE_FIRST, PAUSE_MAX)
}

/// What the writer knows of CURRENT under its epoch.
#[derive(Debug)]
pub struct Lease {
    manifests: Manifests,
    env: Env,
    epoch: Epoch,
    /// Ours; never above the one in CURRENT, which a taker waits out.
    length: Duration,
    verified_at_ns: AtomicU64,
    closed: AtomicBool,
    /// CURRENT as it says that we are closed.
    closed_as: OnceLock<Snapshot>,
    /// Whether our own hold is over: until then the lease in CURRENT is not ours to lower.
    hold_is_over: AtomicBool,
    /// The newest snapshot.
    known: ArcSwap<Snapshot>,
    /// Held while CURRENT is asked: of those who wait for the same answer, one asks.
    asking: Mutex<()>,
}

impl Lease {
    /// A lease that was last proven by `snapshot`, whose read or swap began at `verified_at`.
    pub fn new(
        manifests: Manifests,
        env: Env,
        lease: Duration,
        snapshot: Snapshot,
        verified_at: Duration,
    ) -> Self {
        Self {
            manifests,
            env,
            epoch: snapshot.current.writer.epoch,
            length: lease,
            verified_at_ns: AtomicU64::new(nanos(verified_at)),
            closed: AtomicBool::new(false),
            closed_as: OnceLock::new(),
            hold_is_over: AtomicBool::new(false),
            known: ArcSwap::from_pointee(snapshot),
            asking: Mutex::new(()),
        }
    }

    /// The epoch of this writer.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How long a proof lasts.
    pub fn duration(&self) -> Duration {
        self.length
    }

    /// Whether a read that has arrived may be answered at this moment.
    pub fn holds(&self) -> bool {
        let age = self.env.clock.boot().saturating_sub(self.verified_at());
        let is_young = age < self.length || planted("lease_never_runs_out");
        is_young && !self.closed.load(Ordering::Acquire)
    }

    /// Returns when a read may be answered; asks CURRENT where the lease has run out.
    ///
    /// Costs nothing while the lease holds, else one conditional GET.
    ///
    /// # Errors
    /// `Fenced`, `Closed`.
    pub async fn ensure(&self) -> Result<()> {
        while !self.holds() {
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
            let _turn = self.asking.lock().await;
            // Another request may have asked while this one waited for its turn.
            if !self.holds() {
                self.verify().await?;
            }
        }
        Ok(())
    }

    /// What CURRENT says, read after the call began, by whomever; renews the lease.
    ///
    /// Costs one conditional GET, and one more where the manifest is new; of those who call while
    /// it is under way, one pays.
    ///
    /// # Errors
    /// `Fenced`.
    pub async fn renew(&self) -> Result<Snapshot> {
        let called_at = self.env.clock.boot();
        let _turn = self.asking.lock().await;
        if self.verified_at() <= called_at {
            self.verify().await?;
        }
        Ok(self.snapshot())
    }

    /// The newest snapshot, without a request.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::clone(&self.known.load())
    }

    /// Records the outcome of a commit of ours.
    pub fn note(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        self.known.rcu(|known| {
            let is_newer = snapshot.current.version >= known.current.version;
            Arc::clone(if is_newer { &snapshot } else { known })
        });
    }

    /// When the last read of CURRENT began that showed our epoch.
    fn verified_at(&self) -> Duration {
        Duration::from_nanos(self.verified_at_ns.load(Ordering::Acquire))
    }

    /// Asks CURRENT. For whoever has the turn.
    async fn verify(&self) -> Result<()> {
        let known = self.known.load_full();
        let asked_at = self.env.clock.boot();
        let changed = self.manifests.refresh(&known).await?;
        let found = changed.as_ref().unwrap_or(&known).current.writer.epoch;
        if let Some(changed) = changed {
            self.note(changed);
        }
        if found != self.epoch {
            return Err(Error::Fenced { held: self.epoch, found });
        }
        self.verified_at_ns.fetch_max(nanos(asked_at), Ordering::AcqRel);
        Ok(())
    }

    /// Notes that the hold is over.
    pub fn end_hold(&self) {
        self.hold_is_over.store(true, Ordering::Release);
    }

    fn is_to_be_lowered(&self) -> bool {
        self.hold_is_over.load(Ordering::Acquire)
            && !self.closed.load(Ordering::Acquire)
            && self.known.load().current.lease_ms > self.length_ms()
    }

    fn length_ms(&self) -> u64 {
        u64::try_from(self.length.as_millis()).unwrap_or(u64::MAX)
    }

    /// Lowers the lease in CURRENT to ours, after the hold: it was the larger of two.
    ///
    /// # Errors
    /// `Fenced`, and whatever else keeps CURRENT from being swapped.
    pub async fn lower(&self) -> Result<()> {
        let lease_ms = self.length_ms();
        self.amend(|current| {
            (current.lease_ms > lease_ms).then(|| Current { lease_ms, ..current.clone() })
        })
        .await
    }

    /// Says in CURRENT at how many SSTs in L0 this writer stops, so that the compactor begins
    /// before.
    /// Costs nothing if CURRENT says so already, as after every restart with the same settings.
    ///
    /// # Errors
    /// `Fenced`, and whatever else keeps CURRENT from being swapped.
    pub async fn publish(&self, l0_stop: u64) -> Result<()> {
        self.amend(|current| {
            (current.l0_stop != l0_stop).then(|| Current { l0_stop, ..current.clone() })
        })
        .await
    }

    /// Records in CURRENT that this writer is closed, so that the next need not wait.
    ///
    /// From the call on no read is answered here.
    ///
    /// # Errors
    /// `Fenced`.
    pub async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.amend(|current| {
            let mut closed = current.clone();
            closed.writer.closed = true;
            (!current.writer.closed).then_some(closed)
        })
        .await?;
        self.closed_as.get_or_init(|| self.snapshot());
        Ok(())
    }

    /// CURRENT as it says that this writer is closed; `None` until that is certain.
    pub fn closed_as(&self) -> Option<&Snapshot> {
        self.closed_as.get()
    }

    async fn amend<C>(&self, mut change: C) -> Result<()>
    where
        C: FnMut(&Current) -> Option<Current> + Send,
    {
        let known = self.snapshot();
        let held = self.epoch;
        let snapshot = self
            .manifests
            .amend(known, |current| match current.writer.epoch {
                found if found != held => Err(deposed(held, found)),
                _ => Ok(change(current)),
            })
            .await?;
        self.note(snapshot);
        Ok(())
    }
}

/// Renews the lease at half its length, for ever, and shows each new tree at the front. Between two
/// renewals it reads the runs that the tree has and nobody has read yet.
///
/// Renewing does not wait for a tree to be opened. Lowers the lease in CURRENT once the hold is
/// over, if it is longer than ours.
///
/// # Errors
/// `Fenced`, and what damages CURRENT or its manifest. An unavailable store is not an error here:
/// reads wait for it, writes go on. Nor is damage of a run: reads that need it fail.
pub async fn keep(lease: &Lease, front: &Front, ssts: &Arc<SstStore>) -> Result<()> {
    let news = Notify::new();
    let renewing = async {
        loop {
            tokio::time::sleep((lease.duration() / 2).min(RENEW_INTERVAL_MAX)).await;
            pass(lease.renew().await.map(drop))?;
            news.notify_one();
            pass(lease.publish(front.l0_stop()).await)?;
            if lease.is_to_be_lowered() {
                pass(lease.lower().await)?;
            }
        }
    };
    let showing = async {
        loop {
            let tree = front.tree();
            tokio::select! {
                () = news.notified() => {}
                _never = warm(&tree) => {}
            }
            show(&lease.snapshot(), front, ssts);
        }
    };
    tokio::select! {
        biased;
        ended = renewing => ended,
        never = showing => never,
    }
}

/// Reads the runs of a tree, ahead of the reads that need them; waits for ever once that is done.
async fn warm(tree: &OpenTree) -> Infallible {
    if let Err(error) = tree.load_runs().await {
        tracing::debug!(%error, "a run was not read ahead of the reads that need it");
    }
    std::future::pending().await
}

/// Lets what may pass be tried again at the next turn.
fn pass(settled: Result<()>) -> Result<()> {
    match settled {
        // NotFound: an object of the tree is gone, so the manifest has moved on; the next turn sees
        // it.
        Err(error @ (Error::NotFound(_) | Error::Unavailable(_) | Error::Indeterminate(_))) => {
            tracing::warn!(%error, "cannot follow CURRENT; reads wait when the lease runs out");
            Ok(())
        }
        settled => settled,
    }
}

/// Renews the lease once, and shows the tree where it is a new one.
///
/// # Errors
/// `Fenced`, and what damages CURRENT or its manifest.
pub async fn follow_tree(lease: &Lease, front: &Front, ssts: &Arc<SstStore>) -> Result<()> {
    show(&lease.renew().await?, front, ssts);
    Ok(())
}

/// Shows the newest known tree. Asks nothing of the store.
pub fn show_tree(lease: &Lease, front: &Front, ssts: &Arc<SstStore>) {
    show(&lease.snapshot(), front, ssts);
}

fn show(snapshot: &Snapshot, front: &Front, ssts: &Arc<SstStore>) {
    let shown = front.tree();
    if snapshot.manifest.id.version > shown.manifest.id.version {
        let opened = OpenTree::new(ssts, Arc::clone(&snapshot.manifest), Some(&shown));
        front.install(Arc::new(opened));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
