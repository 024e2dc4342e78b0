//! What the reader shows: the newest view, how fresh it is, and how requests wait for news.
//!
//! **Invariants**
//! - A sight's view and its freshness are one value behind one swap: a view is never called
//!   fresher than it is.
//! - The seq of sights never goes back, nor does their freshness.
//! - `fresh_at` is when the GET of the log was *sent* that last found the chain's end: whatever was
//!   acknowledged before it is in the view.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cairn_common::format::current::Current;
use cairn_common::read::view::View;
use cairn_common::store::manifest::Snapshot;
use cairn_common::types::Seq;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

/// A view, and what is known about it.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The view.
    pub view: Arc<View>,
    /// Boot time from which on acknowledged batches may be missing.
    pub fresh_at: Duration,
    /// What CURRENT said.
    pub current: Arc<Current>,
}

impl Sight {
    /// A bound on the age of the view at boot time `now`, in milliseconds, rounded up.
    pub fn lag_ms(&self, now: Duration) -> u64 {
        let lag = now.saturating_sub(self.fresh_at);
        u64::try_from(lag.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// The newest sight, and the means to wait for a newer one.
#[derive(Debug)]
pub struct Sights {
    /// What the database was when it was found.
    base: OnceLock<Snapshot>,
    latest: ArcSwapOption<Sight>,
    /// Seq of the latest; `None` before the first.
    seq: watch::Sender<Option<Seq>>,
    wake: Notify,
    /// Requests that wait for a seq.
    waiting: AtomicUsize,
    /// Looks that have begun.
    begun: AtomicU64,
    /// The newest look of which the tree is shown that it found, or a newer one.
    done: watch::Sender<u64>,
}

impl Default for Sights {
    fn default() -> Self {
        Self {
            base: OnceLock::new(),
            latest: ArcSwapOption::empty(),
            seq: watch::Sender::new(None),
            wake: Notify::new(),
            waiting: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            done: watch::Sender::new(0),
        }
    }
}

/// A request counts as waiting for as long as this lives, also if its client goes away.
struct Waiting<'a>(&'a Sights);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sights {
    /// The newest; `None` before the first.
    pub fn latest(&self) -> Option<Arc<Sight>> {
        self.latest.load_full()
    }

    /// What the database was when it was found; `None` before.
    pub fn base(&self) -> Option<&Snapshot> {
        self.base.get()
    }

    /// Notes the database that is followed from now on.
    pub(crate) fn found(&self, base: Snapshot) {
        self.base.get_or_init(|| base);
    }

    /// Waits for the first.
    pub async fn first(&self) {
        let mut seq = self.seq.subscribe();
        // The sender lives as long as we do.
        let seen = seq.wait_for(Option::is_some).await;
        debug_assert!(seen.is_ok());
    }

    /// A sight whose view includes `seq`; `None` if there is none by the deadline.
    ///
    /// While it waits, the bucket is asked more often.
    pub async fn at_least(&self, seq: Seq, deadline: Instant) -> Option<Arc<Sight>> {
        let reached = |seen: &Option<Seq>| seen.is_some_and(|seen| seen >= seq);
        if !reached(&self.seq.borrow()) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let _waiting = Waiting(self);
            self.wake();
            let mut seen = self.seq.subscribe();
            timeout_at(deadline, seen.wait_for(reached)).await.ok()?.ok()?;
        }
        self.latest()
    }

    /// Waits until the tree is shown that a look finds which begins after this call, or a newer
    /// one; false if it is not by the deadline.
    pub async fn look_again(&self, deadline: Instant) -> bool {
        let wanted = self.begun.load(Ordering::Acquire) + 1;
        self.wake();
        let mut done = self.done.subscribe();
        matches!(timeout_at(deadline, done.wait_for(|done| *done >= wanted)).await, Ok(Ok(_)))
    }

    /// Asks for a look at the bucket before its time.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Notes that a look begins; returns its number.
    pub(crate) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Notes that the tree is shown that the look of this number found, or a newer one.
    pub(crate) fn end(&self, look: u64) {
        self.done.send_if_modified(|done| {
            let is_newer = look > *done;
            *done = look.max(*done);
            is_newer
        });
    }

    /// Shows a sight from now on.
    pub(crate) fn show(&self, sight: Sight) {
        let seq = sight.view.seq;
        if let Some(shown) = &*self.latest.load() {
            let forward = shown.view.seq <= seq && shown.fresh_at <= sight.fresh_at;
            assert!(forward, "a reader never goes back: {} after {}", seq, shown.view.seq);
        }
        self.latest.store(Some(Arc::new(sight)));
        self.seq.send_if_modified(|shown| {
            let changed = *shown != Some(seq);
            *shown = Some(seq);
            changed
        });
    }
}
