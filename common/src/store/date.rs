//! What time the store says it is: bounds what a machine's wall clock may claim.
//!
//! Wall time is written to the bucket (`time_ms` of a flush, the time at which a run was retired)
//! and judges expiry, so a clock that is a year ahead for a minute would be believed for a year.
//! Each HTTP answer of a store carries its `Date`; the machine's wall time counts only within
//! [`TOLERANCE`] of it. A `Date` is noted when its answer arrives, and believed once the answer is
//! known to be the store's.
//!
//! **Invariants**
//! - One odd `Date` moves nothing: the median of the last [`SAMPLES`] counts, once there are three.
//! - Between two answers the store's time goes on with boot time, which nobody sets.
//! - If the store tells no time (a directory, memory), or has told none yet, the machine's counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::env::Env;

/// How far a machine's wall clock may be off the store's: a `Date` is in whole seconds and takes up
/// to an attempt to arrive, and machines whose clocks are kept agree within a second.
pub const TOLERANCE: Duration = Duration::from_secs(10);
/// Answers that the median looks back on.
const SAMPLES: usize = 15;
/// Fewer cannot outvote an odd one.
const SAMPLES_MIN: usize = 3;
/// More than any number of milliseconds since 1970 is away from boot time.
const UNKNOWN: u64 = u64::MAX;

/// The store's wall clock, as its answers tell it.
#[derive(Debug)]
pub struct StoreClock {
    clock: Arc<dyn Clock>,
    recent: Mutex<Recent>,
    /// The store's time when boot time was zero, in Unix milliseconds.
    origin_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Recent {
    origins_ms: Vec<u64>,
    oldest: usize,
}

/// A `Date` as it arrived: the store's time when boot time was zero, in Unix milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Told(u64);

impl StoreClock {
    /// A store that has told no time yet; `clock` counts the time between its answers.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, recent: Mutex::default(), origin_ms: AtomicU64::new(UNKNOWN) }
    }

    /// The `Date` of an answer that came just now; `None` if it is no date.
    pub fn told(&self, date: &str) -> Option<Told> {
        Some(Told(date_ms(date)?.saturating_sub(millis(self.clock.boot()))))
    }

    /// Counts the `Date` of an answer that is the store's own.
    pub fn believe(&self, Told(origin_ms): Told) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.origins_ms.len() < SAMPLES {
            recent.origins_ms.push(origin_ms);
        } else {
            let oldest = recent.oldest;
            recent.origins_ms[oldest] = origin_ms;
            recent.oldest = (oldest + 1) % SAMPLES;
        }
        let mut sorted = recent.origins_ms.clone();
        if sorted.len() < SAMPLES_MIN {
            return;
        }
        let middle = sorted.len() / 2;
        self.origin_ms.store(*sorted.select_nth_unstable(middle).1, Ordering::Relaxed);
    }

    /// The store's wall time now, in Unix milliseconds; `None` until it has told one.
    pub fn wall_ms(&self) -> Option<u64> {
        let origin_ms = self.origin_ms.load(Ordering::Relaxed);
        (origin_ms != UNKNOWN).then(|| origin_ms.saturating_add(millis(self.clock.boot())))
    }
}

/// The wall time that counts: the machine's if it is within [`TOLERANCE`] of the store's, else the
/// store's. Everything that writes a wall time to the bucket, or judges expiry, goes through here.
pub fn bounded_wall_ms(machine_ms: u64, store_ms: Option<u64>) -> u64 {
    match store_ms {
        Some(store_ms) if machine_ms.abs_diff(store_ms) > millis(TOLERANCE) => store_ms,
        _ => machine_ms,
    }
}

/// A machine's clocks, with its wall time bounded by the store's.
#[derive(Debug)]
struct BoundedClock {
    machine: Arc<dyn Clock>,
    store: Arc<StoreClock>,
    /// The newest wall time given while the store's was known: expiry never goes back.
    newest_ms: AtomicU64,
}

impl Clock for BoundedClock {
    fn wall_ms(&self) -> u64 {
        let machine_ms = self.machine.wall_ms();
        let Some(store_ms) = self.store.wall_ms() else { return machine_ms };
        let bounded_ms = bounded_wall_ms(machine_ms, Some(store_ms));
        self.newest_ms.fetch_max(bounded_ms, Ordering::Relaxed).max(bounded_ms)
    }

    fn boot(&self) -> Duration {
        self.machine.boot()
    }
}

/// The environment with its wall clock bounded by `store`.
pub(super) fn bounded(env: Env, store: &Arc<StoreClock>) -> Env {
    let machine = Arc::clone(&env.clock);
    let store = Arc::clone(store);
    let clock = BoundedClock { machine, store, newest_ms: AtomicU64::new(0) };
    Env { clock: Arc::new(clock), ..env }
}

fn date_ms(text: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(text).ok()?;
    let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(millis(since))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TokioClock;
    use crate::env::{Cpu, SeededRandom};

    /// Mon, 01 Jan 2024 00:00:00 GMT.
    const TRUE_MS: u64 = 1_704_067_200_000;
    const YEAR_MS: u64 = 365 * 86_400_000;

    fn machine(wall_ms: u64) -> Env {
        Env {
            clock: Arc::new(TokioClock::starting_at(wall_ms)),
            random: Arc::new(SeededRandom::new(1)),
            cpu: Cpu::Inline,
        }
    }

    fn store_of(env: &Env, dates: &[&str]) -> Arc<StoreClock> {
        let store = Arc::new(StoreClock::new(Arc::clone(&env.clock)));
        for date in dates {
            store.told(date).into_iter().for_each(|told| store.believe(told));
        }
        store
    }

    const TRUE: &str = "Mon, 01 Jan 2024 00:00:00 GMT";
    const AHEAD: &str = "Tue, 31 Dec 2024 00:00:00 GMT";

    #[tokio::test(start_paused = true)]
    async fn a_clock_far_off_gives_the_stores_time() {
        for wall_ms in [TRUE_MS + YEAR_MS, TRUE_MS - YEAR_MS] {
            let env = machine(wall_ms);
            let store = store_of(&env, &[TRUE; 3]);
            let env = bounded(env.clone(), &store);
            assert_eq!(env.clock.wall_ms(), TRUE_MS);
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert_eq!(env.clock.wall_ms(), TRUE_MS + 60_000);
        }
        let env = machine(TRUE_MS + 3_000);
        let store = store_of(&env, &[TRUE; 3]);
        let env = bounded(env.clone(), &store);
        assert_eq!(env.clock.wall_ms(), TRUE_MS + 3_000, "within the tolerance");
    }

    #[tokio::test(start_paused = true)]
    async fn one_odd_date_moves_nothing() {
        let env = machine(TRUE_MS);
        for dates in [&[TRUE, AHEAD][..], &[AHEAD, TRUE, TRUE], &[TRUE, "yesterday", TRUE, AHEAD]] {
            let store = store_of(&env, dates);
            let env = bounded(env.clone(), &store);
            assert_eq!(env.clock.wall_ms(), TRUE_MS, "{dates:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn date_counts_from_when_it_came() {
        let env = machine(TRUE_MS);
        let store = StoreClock::new(Arc::clone(&env.clock));
        for _ in 0..SAMPLES_MIN {
            let told = store.told(TRUE).unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
            store.believe(told);
        }
        assert_eq!(store.wall_ms(), Some(TRUE_MS + 60_000), "the median came 60 s ago");
    }

    #[tokio::test(start_paused = true)]
    async fn bounded_time_never_goes_back() {
        let env = machine(TRUE_MS + 9_000);
        let store = store_of(&env, &[TRUE; 3]);
        let env = bounded(env, &store);
        let before = env.clock.wall_ms();
        // The store's answers take turns at being a second older.
        for _ in 0..SAMPLES {
            store.believe(store.told("Sun, 31 Dec 2023 23:59:50 GMT").unwrap());
        }
        assert!(env.clock.wall_ms() >= before);
    }
}
