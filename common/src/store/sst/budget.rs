//! The memory that metadata may take: a budget in bytes that covers all handles.
//!
//! Metadata sits in the slots of handles, where readers look without asking anybody. The budget
//! knows which slots are full; `moka` keeps the count and the order, and says which is to go.
//!
//! **Invariants**
//! - A full slot is in the budget, but for the moment of its admission.
//! - What was read since it was admitted gets a second chance before its slot is cleared (CLOCK):
//!   readers mark a flag and never touch the budget.
//! - A handle that goes away takes its metadata with it; its share is given back at the next
//!   admission.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use moka::future::Cache;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;

use super::SstHandle;
use crate::format::sst::SstMeta;

/// Bytes of decoded metadata that may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaBudget {
    /// What grows with it is the number of SSTs that are read without a GET for their metadata:
    /// about 5 bytes for each key.
    pub bytes: u64,
}

/// What an entry costs beside the metadata: the handle's share, and the budget's own books.
const ENTRY_OVERHEAD_BYTES: u64 = 512;
/// Rounds of second chances in one admission: readers that keep marking must not keep it going.
const ROUNDS_MAX: usize = 4;

#[derive(Clone, Debug)]
struct Loaded {
    handle: Weak<SstHandle>,
    bytes: u32,
}

/// Which slots are full.
#[derive(Debug)]
pub(super) struct Budget {
    loaded: Cache<u64, Loaded>,
    /// What moka has put out and nobody has judged yet.
    evicted: Arc<Mutex<Vec<(u64, Loaded)>>>,
    dropped: Arc<Mutex<Vec<u64>>>,
}

/// Tells the budget of a handle that goes away.
#[derive(Clone, Debug)]
pub(super) struct Dropped(Arc<Mutex<Vec<u64>>>);

impl Budget {
    pub(super) fn new(budget: MetaBudget) -> Self {
        let evicted: Arc<Mutex<Vec<(u64, Loaded)>>> = Arc::default();
        let listener = {
            let evicted = Arc::clone(&evicted);
            move |number: Arc<u64>, loaded: Loaded, cause: RemovalCause| {
                if cause == RemovalCause::Size {
                    lock(&evicted).push((*number, loaded));
                }
            }
        };
        let loaded = Cache::builder()
            .max_capacity(budget.bytes)
            .weigher(|_, loaded: &Loaded| loaded.bytes)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(listener)
            .build();
        Self { loaded, evicted, dropped: Arc::default() }
    }

    pub(super) fn dropped(&self) -> Dropped {
        Dropped(Arc::clone(&self.dropped))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.loaded.weighted_size()
    }

    /// Puts metadata into its slot, and clears others until the budget holds.
    pub(super) async fn admit(&self, handle: &Arc<SstHandle>, meta: &Arc<SstMeta>) {
        let dropped = std::mem::take(&mut *lock(&self.dropped));
        for number in dropped {
            self.loaded.invalidate(&number).await;
        }
        let bytes = u64::try_from(meta.bytes()).unwrap_or(u64::MAX);
        let bytes = bytes.saturating_add(ENTRY_OVERHEAD_BYTES);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let loaded = Loaded { handle: Arc::downgrade(handle), bytes };
        // Before the slot is filled: if this future is dropped in between, the budget counts too
        // much until the handle goes, never too little.
        self.loaded.insert(handle.number, loaded).await;
        handle.touched.store(false, Ordering::Relaxed);
        handle.slot.store(Some(Arc::clone(meta)));
        for _ in 0..ROUNDS_MAX {
            self.loaded.run_pending_tasks().await;
            let evicted = std::mem::take(&mut *lock(&self.evicted));
            if evicted.is_empty() {
                return;
            }
            for (number, loaded) in evicted {
                self.judge(number, loaded).await;
            }
        }
        self.loaded.run_pending_tasks().await;
        for (_, loaded) in std::mem::take(&mut *lock(&self.evicted)) {
            clear(&loaded);
        }
    }

    /// A second chance for what was read meanwhile; an empty slot for the rest.
    async fn judge(&self, number: u64, loaded: Loaded) {
        let touched = loaded
            .handle
            .upgrade()
            .is_some_and(|handle| handle.touched.swap(false, Ordering::Relaxed));
        if touched && u64::from(loaded.bytes) <= self.capacity() {
            self.loaded.insert(number, loaded).await;
        } else {
            clear(&loaded);
        }
    }

    fn capacity(&self) -> u64 {
        self.loaded.policy().max_capacity().unwrap_or(u64::MAX)
    }
}

fn clear(loaded: &Loaded) {
    if let Some(handle) = loaded.handle.upgrade() {
        handle.slot.store(None);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for SstHandle {
    fn drop(&mut self) {
        if self.slot.load().is_some() {
            lock(&self.dropped.0).push(self.number);
        }
    }
}
