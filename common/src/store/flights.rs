//! Single flight: of all who want the same thing at the same time, one act serves all.
//!
//! **Invariants**
//! - While an act for a key is under way, nobody starts another for that key.
//! - Everyone who waits drives the act, so one who is cancelled fails nobody.
//! - An act that was begun and that nobody waits for any more runs to its end all the same, up to
//!   [`LEFT_MAX`] of them: those whose patience is shorter than the act find its value when they
//!   ask again, and do not begin it over and over.
//! - An act that failed is not joined any more: who comes later starts anew.
//! - The map holds only acts under way.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{Shared, WeakShared};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// Something to be done once for some keys; its value is shared by all who wait.
pub(super) type Act<V> = Pin<Box<dyn Future<Output = Result<V, Arc<Error>>> + Send>>;

/// An act, and the keys that it serves.
pub(super) type Planned<K, V> = (Vec<K>, Act<V>);

/// Acts that run on though nobody waits for them; each holds what it fetches, some MiB at most.
/// Beyond it an act ends with the last who waits.
const LEFT_MAX: usize = 16;

/// The acts under way.
pub(super) struct Flights<K: Ord + Copy, V: Clone> {
    under_way: Arc<Mutex<UnderWay<K, V>>>,
    left: Arc<Semaphore>,
}

struct UnderWay<K, V: Clone> {
    by_key: BTreeMap<K, Flight<K, V>>,
    started: u64,
}

struct Flight<K, V: Clone> {
    act: WeakShared<Act<V>>,
    number: u64,
    keys: Arc<[K]>,
}

/// A place on an act under way.
pub(super) struct Ticket<K: Key, V: Value> {
    act: Option<Shared<Act<V>>>,
    number: u64,
    keys: Arc<[K]>,
    under_way: Arc<Mutex<UnderWay<K, V>>>,
    /// Places for acts that nobody waits for; `None` once this ticket is such an act's.
    left: Option<Arc<Semaphore>>,
    /// Whether it was waited for.
    is_begun: bool,
}

/// What an act is known by.
pub(super) trait Key: Ord + Copy + Send + Sync + 'static {}
impl<K: Ord + Copy + Send + Sync + 'static> Key for K {}

/// What an act comes to.
pub(super) trait Value: Clone + Send + Sync + 'static {}
impl<V: Clone + Send + Sync + 'static> Value for V {}

impl<K: Key, V: Value> Flights<K, V> {
    pub(super) fn new() -> Self {
        let under_way = UnderWay { by_key: BTreeMap::new(), started: 0 };
        let left = Arc::new(Semaphore::new(LEFT_MAX));
        Self { under_way: Arc::new(Mutex::new(under_way)), left }
    }

    /// Joins the acts under way for `keys`, and starts the acts that `plan` makes of the others.
    ///
    /// Nothing runs before a ticket is awaited. One ticket may serve several of the keys.
    pub(super) fn board(
        &self,
        keys: impl IntoIterator<Item = K>,
        plan: impl FnOnce(Vec<K>) -> Vec<Planned<K, V>>,
    ) -> Vec<Ticket<K, V>> {
        let mut under_way = lock(&self.under_way);
        let mut tickets: Vec<Ticket<K, V>> = Vec::new();
        let mut alone = Vec::new();
        for key in keys {
            if tickets.iter().any(|ticket| ticket.keys.contains(&key)) {
                continue;
            }
            match under_way.by_key.get(&key).and_then(|flight| self.join(flight)) {
                Some(ticket) => tickets.push(ticket),
                None => alone.push(key),
            }
        }
        if !alone.is_empty() {
            for (keys, act) in plan(alone) {
                tickets.push(self.start(&mut under_way, keys, act));
            }
        }
        tickets
    }

    fn join(&self, flight: &Flight<K, V>) -> Option<Ticket<K, V>> {
        let act = flight.act.upgrade()?;
        let failed = act.peek().is_some_and(Result::is_err);
        (!failed).then(|| Ticket {
            act: Some(act),
            number: flight.number,
            keys: Arc::clone(&flight.keys),
            under_way: Arc::clone(&self.under_way),
            left: Some(Arc::clone(&self.left)),
            is_begun: false,
        })
    }

    fn start(&self, under_way: &mut UnderWay<K, V>, keys: Vec<K>, act: Act<V>) -> Ticket<K, V> {
        under_way.started += 1;
        let (number, keys) = (under_way.started, Arc::<[K]>::from(keys));
        let act = act.shared();
        if let Some(weak) = act.downgrade() {
            for key in &*keys {
                let flight = Flight { act: weak.clone(), number, keys: Arc::clone(&keys) };
                under_way.by_key.insert(*key, flight);
            }
        }
        Ticket {
            act: Some(act),
            number,
            keys,
            under_way: Arc::clone(&self.under_way),
            left: Some(Arc::clone(&self.left)),
            is_begun: false,
        }
    }
}

impl<K: Key, V: Value> Ticket<K, V> {
    /// The keys that the act serves.
    pub(super) fn keys(&self) -> &[K] {
        &self.keys
    }

    /// Waits for the act. Cancel-safe.
    pub(super) async fn wait(mut self) -> Result<V> {
        let act = self.act.clone().expect("a ticket has its act until it is dropped");
        self.is_begun = true;
        let outcome = act.await;
        drop(self.act.take());
        outcome.map_err(|error| error.repeat())
    }

    /// What lets the act run on by itself, if it was begun, is not over and nobody else waits.
    fn leave(&mut self) -> Option<Leaving<K, V>> {
        let left = self.left.take().filter(|_| self.is_begun)?;
        let (place, runtime) = (left.try_acquire_owned().ok()?, Handle::try_current().ok()?);
        let is_last = |act: &Shared<Act<V>>| act.peek().is_none() && act.strong_count() == Some(1);
        let act = Some(self.act.take_if(|act| is_last(act))?);
        let (number, keys) = (self.number, Arc::clone(&self.keys));
        let under_way = Arc::clone(&self.under_way);
        let ticket = Ticket { act, number, keys, under_way, left: None, is_begun: true };
        Some(Leaving { ticket, place, runtime })
    }
}

/// An act that runs on though nobody waits for it.
struct Leaving<K: Key, V: Value> {
    ticket: Ticket<K, V>,
    place: OwnedSemaphorePermit,
    runtime: Handle,
}

impl<K: Key, V: Value> Leaving<K, V> {
    fn run(self) {
        let Self { ticket, place, runtime } = self;
        runtime.spawn(async move {
            // Its value is in a cache by then, or its failure is remembered.
            drop(ticket.wait().await);
            drop(place);
        });
    }
}

impl<K: Key, V: Value> Drop for Ticket<K, V> {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.under_way);
        let mut under_way = lock(&shared);
        // Within the lock: whoever drops the last handle finds it to be the last.
        let leaving = self.leave();
        drop(self.act.take());
        for key in &*self.keys {
            let over = |flight: &Flight<K, V>| {
                flight.number == self.number && flight.act.upgrade().is_none()
            };
            if under_way.by_key.get(key).is_some_and(over) {
                under_way.by_key.remove(key);
            }
        }
        drop(under_way);
        // SUBTLE: a runtime that shuts down drops the act, and its ticket, within this call.
        if let Some(leaving) = leaving {
            leaving.run();
        }
    }
}

impl<K: Ord + Copy, V: Clone> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = lock(&self.under_way).by_key.len();
        f.debug_struct("Flights").field("keys", &keys).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    fn slow(runs: &Arc<AtomicU64>, keys: Vec<u8>) -> Vec<Planned<u8, u8>> {
        let runs = Arc::clone(runs);
        let act = async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            runs.fetch_add(1, Ordering::Relaxed);
            Ok(7)
        };
        vec![(keys, Box::pin(act))]
    }

    #[tokio::test(start_paused = true)]
    async fn one_act_serves_all_and_survives_its_leader() {
        let (flights, runs) = (Flights::new(), Arc::new(AtomicU64::new(0)));
        let leader = flights.board([1, 2], |keys| slow(&runs, keys));
        let follower = flights.board([2, 3], |keys| {
            assert_eq!(keys, [3], "2 is under way");
            slow(&runs, keys)
        });
        assert_eq!((leader.len(), follower.len()), (1, 2));
        let mut leading = Box::pin(futures::future::join_all(leader.into_iter().map(Ticket::wait)));
        assert!(futures::poll!(&mut leading).is_pending());
        drop(leading);
        for ticket in follower {
            assert_eq!(ticket.wait().await.unwrap(), 7);
        }
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        assert!(lock(&flights.under_way).by_key.is_empty(), "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn those_in_a_hurry_find_the_value_in_the_end() {
        let (flights, runs) = (Flights::new(), Arc::new(AtomicU64::new(0)));
        let mut begun = 0;
        for _ in 0..4 {
            let ticket = flights.board([1], |keys| {
                begun += 1;
                slow(&runs, keys)
            });
            let waiting = ticket.into_iter().next().unwrap().wait();
            drop(tokio::time::timeout(Duration::from_millis(3), waiting).await);
        }
        assert_eq!((begun, runs.load(Ordering::Relaxed)), (1, 1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(lock(&flights.under_way).by_key.is_empty());
    }

    /// Would hang if an act were left to the runtime under the lock.
    #[test]
    fn act_ends_with_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (flights, runs) = (Flights::new(), Arc::new(AtomicU64::new(0)));
        let ticket = flights.board([1], |keys| slow(&runs, keys)).remove(0);
        runtime.spawn(async move { drop(ticket.wait().await) });
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
        assert!(lock(&flights.under_way).by_key.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn acts_that_nobody_waits_for_are_few() {
        let (flights, runs) = (Flights::new(), Arc::new(AtomicU64::new(0)));
        for key in 0..3 * u8::try_from(LEFT_MAX).unwrap() {
            let mut waiting =
                Box::pin(flights.board([key], |keys| slow(&runs, keys)).remove(0).wait());
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        assert_eq!(lock(&flights.under_way).by_key.len(), LEFT_MAX);
        drop(flights.board([99], |keys| slow(&runs, keys)));
        assert_eq!(lock(&flights.under_way).by_key.len(), LEFT_MAX, "it was not begun");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(runs.load(Ordering::Relaxed), u64::try_from(LEFT_MAX).unwrap());
        assert!(lock(&flights.under_way).by_key.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_act_fails_all_who_wait_and_nobody_later() {
        let flights: Flights<u8, u8> = Flights::new();
        let fails = |keys| {
            let act: Act<u8> = Box::pin(async { Err(Arc::new(Error::NotFound("sst/x".into()))) });
            vec![(keys, act)]
        };
        let first = flights.board([1], fails).remove(0);
        let second = flights.board([1], |_| unreachable!()).remove(0);
        assert!(matches!(first.wait().await, Err(Error::NotFound(object)) if object == "sst/x"));
        let runs = Arc::new(AtomicU64::new(0));
        let third = flights.board([1], |keys| slow(&runs, keys)).remove(0);
        assert_eq!(third.wait().await.unwrap(), 7);
        assert!(second.wait().await.is_err());
        assert!(lock(&flights.under_way).by_key.is_empty());
    }
}
