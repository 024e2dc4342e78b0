//! The link to the store: how many bytes of objects may be under way at once, and how long a
//! transfer may take that makes no progress.
//!
//! A link that carries 4 MiB a second brings 64 MiB within 16 s, whoever sends them. If all are
//! sent at once and each is given up after a while, none arrives, and all are sent again. So the
//! bytes in flight are bounded by what the link is seen to carry:
//!
//! ```text
//! a large transfer ended within FAST, others waiting -> a little more in flight
//! a large one took longer than SLOW beside others    -> a quarter less
//! a large one timed out                              -> half, and twice the patience
//! a small one succeeded, CALM_AFTER after all that   -> twice, half the patience, each
//!                                                       RECOVERY_STEP, to the start
//! ```
//!
//! What goes down does so from what it was when that transfer began: several that were slow at once
//! say the same thing once, and what has recovered meanwhile is not what was too much.
//!
//! **Invariants**
//! - Small transfers never wait, count towards no bound, and are waited for at most twice the time
//!   that is asked for: CURRENT and small objects of the log go at once, and hang shortly. One that
//!   times out says that a request was lost, not that the link is slow.
//! - Of those that wait, the log goes before what is bulk (SSTs), each in its order; what is bulk
//!   leaves a quarter of the bound to others.
//! - The first of those that wait is admitted if no large transfer is under way, however large it
//!   is and however many small ones are: the bound never stops everything.
//! - An outage leaves no trace: a minute after its end bound and patience are what they were at the
//!   start, or what a large transfer since has measured, if anything at all succeeds. A large one
//!   that began in it and hangs keeps its own place until its time is over, and nobody else's.
//! - Reads and writes are bounded apart: links carry both ways at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Clock;

/// Bytes in flight at first: two WAL objects of the largest size.
const IN_FLIGHT_START: u64 = 16 << 20;
/// The bound is never less: a part of an upload is larger, and goes alone then.
const IN_FLIGHT_MIN: u64 = 1 << 20;
/// The bound is never more: 10 Gbit/s for a fifth of a second.
const IN_FLIGHT_MAX: u64 = 256 << 20;
/// Transfers up to this size never wait: a second of a link of 64 KiB/s.
const SMALL_BYTES: u64 = 64 << 10;
/// A transfer that takes no longer than this finds the link with room to spare.
const FAST: Duration = Duration::from_secs(1);
/// A transfer that takes longer has waited for others in the network, where nothing has an order.
const SLOW: Duration = Duration::from_secs(2);
/// What all transfers in flight together are expected to make at least, in bytes per second, until
/// a timeout or a measurement says otherwise.
const RATE_START: u64 = 1 << 20;
/// No link is expected to be slower: 1 MiB takes a minute.
const RATE_MIN: u64 = 16 << 10;
/// Smaller transfers measure latency, not the link.
const MEASURED_BYTES_MIN: u64 = 256 << 10;
/// So long after it was slow, a link is not calm.
const CALM_AFTER: Duration = Duration::from_secs(10);
/// How often a calm link is trusted with twice as much: from the lowest rate to the one at the
/// start are six steps, half a minute.
const RECOVERY_STEP: Duration = Duration::from_secs(5);
/// So long what a large transfer has measured counts for more than the success of small ones, which
/// a slow link carries as well.
const MEASURED_FOR: Duration = Duration::from_mins(5);

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// What somebody waits for: the log, CURRENT, manifests, runs, blocks.
    Urgent,
    /// Uploads of SSTs, and long stretches of them that are read.
    Bulk,
}

/// One direction of the link.
pub(super) struct Link {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    bound: u64,
    load: Load,
    rate: u64,
    /// The rate that the last large transfer made, and when.
    measured: Option<(u64, Duration)>,
    /// When the bound went down last.
    slowed_at: Option<Duration>,
    /// When bound and rate went up last because the link was calm.
    recovered_at: Duration,
    /// In the order in which they go; each by a number of its own.
    waiting: BTreeMap<(Class, u64), Waiting>,
    arrived: u64,
}

/// What is in flight.
#[derive(Debug, Default)]
struct Load {
    /// All of it, in bytes.
    bytes: u64,
    /// Of which those of transfers that are not small, which alone are bounded.
    large_bytes: u64,
}

impl Load {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.large_bytes = self.large_bytes.saturating_add(large(bytes));
    }

    fn remove(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.large_bytes = self.large_bytes.saturating_sub(large(bytes));
    }
}

/// The part of a transfer that is bounded: all or nothing.
fn large(bytes: u64) -> u64 {
    if bytes > SMALL_BYTES { bytes } else { 0 }
}

struct Waiting {
    bytes: u64,
    granted: oneshot::Sender<Permit>,
}

/// A place for some bytes. Dropping it frees them.
pub(super) struct Permit {
    link: Arc<Link>,
    bytes: u64,
    began_at: Duration,
    /// Bytes in flight when it began, its own included.
    in_flight: u64,
    /// Others waited when it began.
    was_full: bool,
    /// The bound and the rate when it began.
    bound: u64,
    rate: u64,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// All bytes have arrived.
    Done,
    /// It made no progress in time.
    TimedOut,
    /// Otherwise: it says nothing about the link.
    Failed,
}

impl Link {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            bound: IN_FLIGHT_START,
            load: Load::default(),
            rate: RATE_START,
            measured: None,
            slowed_at: None,
            recovered_at: Duration::ZERO,
            waiting: BTreeMap::new(),
            arrived: 0,
        };
        Self { clock, state: Mutex::new(state) }
    }

    /// Waits for a place for so many bytes. Cancel-safe.
    pub(super) async fn enter(self: &Arc<Self>, class: Class, bytes: usize) -> Permit {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let granted = {
            let mut state = self.lock();
            if bytes <= SMALL_BYTES || state.waiting.is_empty() && state.has_room(class, bytes) {
                return self.admit(&mut state, bytes);
            }
            let (sender, granted) = oneshot::channel();
            state.arrived += 1;
            let place = (class, state.arrived);
            state.waiting.insert(place, Waiting { bytes, granted: sender });
            granted
        };
        // SUBTLE: somebody who goes away leaves his entry; what is granted to it comes back.
        self.grant();
        granted.await.expect("a place is given to everybody who waits")
    }

    /// How long a request without a body may take: longer while others are in flight before it.
    pub(super) fn patience(&self, at_least: Duration) -> Duration {
        let state = self.lock();
        at_least + state.expected(state.load.bytes).min(at_least)
    }

    /// Whether a request sent twice takes nothing from others.
    pub(super) fn is_calm(&self) -> bool {
        let state = self.lock();
        let now = self.clock.boot();
        let was_slow =
            state.slowed_at.is_some_and(|slowed_at| now.saturating_sub(slowed_at) < CALM_AFTER);
        state.waiting.is_empty() && state.load.bytes < state.bound / 2 && !was_slow
    }

    fn admit(self: &Arc<Self>, state: &mut State, bytes: u64) -> Permit {
        state.load.add(bytes);
        Permit {
            link: Arc::clone(self),
            bytes,
            began_at: self.clock.boot(),
            in_flight: state.load.bytes,
            was_full: !state.waiting.is_empty(),
            bound: state.bound,
            rate: state.rate,
        }
    }

    /// Gives places to those who wait, in their order, as far as there is room.
    fn grant(self: &Arc<Self>) {
        loop {
            let (granted, permit) = {
                let mut state = self.lock();
                let Some(first) = state.waiting.first_entry() else { return };
                let (class, bytes) = (first.key().0, first.get().bytes);
                let is_gone = first.get().granted.is_closed();
                if is_gone {
                    first.remove();
                    continue;
                }
                if !state.has_room(class, bytes) {
                    return;
                }
                let Some((_, waiting)) = state.waiting.pop_first() else { return };
                (waiting.granted, self.admit(&mut state, bytes))
            };
            // Where nobody takes it, it is dropped here, outside the lock.
            drop(granted.send(permit));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, class: Class, bytes: u64) -> bool {
        let bound = match class {
            Class::Urgent => self.bound,
            Class::Bulk => self.bound / 4 * 3,
        };
        // Small ones are not counted: a steady stream of them must not keep a large one out.
        self.load.large_bytes == 0 || self.load.large_bytes.saturating_add(bytes) <= bound
    }

    fn expected(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1_000) / self.rate)
    }

    /// Learns from a transfer that has ended.
    fn learn(&mut self, permit: &Permit, ended: Transfer, now: Duration) {
        let took = now.saturating_sub(permit.began_at);
        let is_small = permit.bytes <= SMALL_BYTES;
        match ended {
            Transfer::TimedOut if !is_small => {
                self.slow_down(permit.bound / 2, now);
                // One that has arrived since says more of the link than one that has not.
                if self.measured.is_none_or(|(_, at)| at <= permit.began_at) {
                    self.rate = self.rate.min(permit.rate / 2).max(RATE_MIN);
                }
            }
            Transfer::Done => {
                if permit.bytes >= MEASURED_BYTES_MIN {
                    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
                    let rate = permit.bytes.saturating_mul(1_000) / millis;
                    self.rate = (rate / 4).clamp(RATE_MIN, RATE_START);
                    self.measured = Some((self.rate, now));
                } else {
                    self.recover(now);
                }
                if is_small {
                    return;
                }
                if took <= FAST && (permit.was_full || !self.waiting.is_empty()) {
                    self.bound = (self.bound + permit.bytes / 4).min(IN_FLIGHT_MAX);
                } else if took > SLOW && permit.in_flight > permit.bytes {
                    self.slow_down(permit.bound / 4 * 3, now);
                }
            }
            Transfer::TimedOut | Transfer::Failed => {}
        }
    }

    fn slow_down(&mut self, bound: u64, now: Duration) {
        self.bound = self.bound.min(bound).max(IN_FLIGHT_MIN);
        self.slowed_at = Some(now);
    }

    /// Lets bound and rate return towards their start, if nothing has been slow for a while.
    fn recover(&mut self, now: Duration) {
        let since = |at: Duration| now.saturating_sub(at);
        let was_slow = self.slowed_at.is_some_and(|slowed_at| since(slowed_at) < CALM_AFTER);
        if was_slow || since(self.recovered_at) < RECOVERY_STEP {
            return;
        }
        let measured = self.measured.filter(|(_, at)| since(*at) < MEASURED_FOR);
        let rate_goal = measured.map_or(RATE_START, |(rate, _)| rate);
        self.rate = self.rate.max(rate_goal.min(self.rate.saturating_mul(2)));
        self.bound = self.bound.max(IN_FLIGHT_START.min(self.bound.saturating_mul(2)));
        self.recovered_at = now;
    }
}

impl Permit {
    /// How long the transfer may make no progress that can be seen. A small one shares the link
    /// with large ones, but does not wait for their end.
    pub(super) fn patience(&self, at_least: Duration) -> Duration {
        let expected = self.link.lock().expected(self.in_flight);
        let is_small = self.bytes <= SMALL_BYTES;
        at_least + if is_small { expected.min(at_least) } else { expected }
    }

    /// Counts so many bytes, now that they are known. Does not wait.
    pub(super) fn resize(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let is_less = {
            let mut state = self.link.lock();
            state.load.remove(self.bytes);
            state.load.add(bytes);
            self.in_flight = state.load.bytes;
            bytes < self.bytes
        };
        self.bytes = bytes;
        if is_less {
            self.link.grant();
        }
    }

    /// How long after its beginning a body may end, of which so many bytes have come: no link is
    /// slower, but whoever sends a byte now and then would be waited for without end.
    pub(super) fn lasts(&self, at_least: Duration, received: usize) -> Duration {
        let received = u64::try_from(received).unwrap_or(u64::MAX);
        let slowest = Duration::from_millis(received.saturating_mul(1_000) / RATE_MIN);
        self.patience(at_least) + slowest
    }

    /// Frees its bytes, and lets the link learn from how it went.
    pub(super) fn end(self, ended: Transfer) {
        let now = self.link.clock.boot();
        self.link.lock().learn(&self, ended, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.link.lock();
            state.load.remove(self.bytes);
        }
        self.link.grant();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Link")
            .field("bound", &state.bound)
            .field("load", &state.load)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
