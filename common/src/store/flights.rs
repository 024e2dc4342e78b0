//! Single flight: of all who want the same thing at the same time, one act serves all.
//!
//! **Invariants**
//! - While an act for a key is under way, nobody starts another for that key.
//! - Everyone who waits drives the act, so one who is cancelled fails nobody: the act goes on for
//!   as long as one of them waits, and ends with the last.
//! - An act that failed is not joined any more: who comes later starts anew.
//! - The map holds only acts that somebody waits for.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{Shared, WeakShared};

use crate::error::{Error, Result};

/// Something to be done once for some keys; its value is shared by all who wait.
pub(super) type Act<V> = Pin<Box<dyn Future<Output = Result<V, Arc<Error>>> + Send>>;

/// An act, and the keys that it serves.
pub(super) type Planned<K, V> = (Vec<K>, Act<V>);

/// The acts under way.
pub(super) struct Flights<K: Ord + Copy, V: Clone> {
    under_way: Arc<Mutex<UnderWay<K, V>>>,
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

/// A place on an act under way. Dropping the last one ends the act.
pub(super) struct Ticket<K: Ord + Copy, V: Clone> {
    act: Option<Shared<Act<V>>>,
    number: u64,
    keys: Arc<[K]>,
    under_way: Arc<Mutex<UnderWay<K, V>>>,
}

impl<K: Ord + Copy, V: Clone> Flights<K, V> {
    pub(super) fn new() -> Self {
        let under_way = UnderWay { by_key: BTreeMap::new(), started: 0 };
        Self { under_way: Arc::new(Mutex::new(under_way)) }
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
        Ticket { act: Some(act), number, keys, under_way: Arc::clone(&self.under_way) }
    }
}

impl<K: Ord + Copy, V: Clone> Ticket<K, V> {
    /// The keys that the act serves.
    pub(super) fn keys(&self) -> &[K] {
        &self.keys
    }

    /// Waits for the act. Cancel-safe: the act goes on while another ticket is awaited.
    pub(super) async fn wait(mut self) -> Result<V> {
        let act = self.act.clone().expect("a ticket has its act until it is dropped");
        let outcome = act.await;
        drop(self.act.take());
        outcome.map_err(|error| error.repeat())
    }
}

impl<K: Ord + Copy, V: Clone> Drop for Ticket<K, V> {
    fn drop(&mut self) {
        let mut under_way = lock(&self.under_way);
        // Within the lock: whoever drops the last handle finds it to be the last.
        drop(self.act.take());
        for key in &*self.keys {
            let over = |flight: &Flight<K, V>| {
                flight.number == self.number && flight.act.upgrade().is_none()
            };
            if under_way.by_key.get(key).is_some_and(over) {
                under_way.by_key.remove(key);
            }
        }
    }
}

impl<K: Ord + Copy, V: Clone> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("keys", &lock(&self.under_way).by_key.len()).finish()
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
