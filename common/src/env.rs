//! What a process takes from its machine: clocks, randomness and a place for CPU work.
//!
//! Every library takes an [`Env`], so that whole clusters run as tasks on one paused
//! current-thread runtime from one seed.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::clock::{Clock, SystemClock};
use crate::pool::Pool;

/// A source of randomness and of names that are never used twice.
pub trait Random: Debug + Send + Sync {
    /// A uniform 64-bit number.
    fn next_u64(&self) -> u64;
    /// A fresh uuid.
    fn uuid(&self) -> Uuid;

    /// A uniform number in `0.0..1.0`.
    fn unit(&self) -> f64 {
        // 53 bits fit an f64 exactly.
        let bits = u32::try_from(self.next_u64() >> 32).unwrap_or(0);
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }
}

/// Randomness of the operating system; uuids are version 7, so names sort by time.
#[derive(Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        Uuid::new_v4().as_u64_pair().0
    }

    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// Randomness from one seed.
pub struct SeededRandom {
    rng: Mutex<StdRng>,
}

impl SeededRandom {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self { rng: Mutex::new(StdRng::seed_from_u64(seed)) }
    }
}

impl Debug for SeededRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeededRandom").finish_non_exhaustive()
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).random()
    }

    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(self.next_u64(), self.next_u64())
    }
}

/// Where CPU work that takes longer than a few hundred microseconds runs.
#[derive(Clone, Debug)]
pub enum Cpu {
    /// On the calling task: deterministic, for tests.
    Inline,
    /// Work that others wait for on tokio's blocking threads, bulk work on a pool of its own.
    Threads(Pool),
}

impl Cpu {
    /// Runs `work` to its end and returns what it returns; a panic in it goes on in the caller.
    ///
    /// Not cancel-safe: on `Threads` the work goes on when the future is dropped.
    pub async fn run<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        match self {
            Self::Inline => work(),
            Self::Threads(_) => match tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        }
    }

    /// Runs one slice of bulk work, about a millisecond of it, behind everything else that the
    /// process does; a panic in it goes on in the caller.
    ///
    /// On `Threads`, slices wait for their turn, see [`Pool::run`]; on the calling task, others
    /// run first.
    pub async fn run_bulk<T, F>(&self, slice: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        match self {
            Self::Inline => {
                tokio::task::yield_now().await;
                slice()
            }
            Self::Threads(pool) => pool.run(slice).await,
        }
    }
}

/// What a process takes from its machine.
#[derive(Clone, Debug)]
pub struct Env {
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// Its randomness and ids.
    pub random: Arc<dyn Random>,
    /// Its place for CPU work.
    pub cpu: Cpu,
}

impl Env {
    /// The real machine.
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom),
            cpu: Cpu::Threads(Pool::of_machine()),
        }
    }
}
