//! One simulated world: a bucket, its network, the processes that run, and what is known of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cairn_common::clock::{Clock, TokioClock};
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::Epoch;
use cairn_writer::service::Writer;
use harness::faulty::{FaultyStore, Link};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;

/// Wall time at which every world begins.
const WALL_ORIGIN_MS: u64 = 1_750_000_000_000;
/// Rates of two clocks differ by less than the protocol allows, about 9 %.
const RATE_ERROR_MAX: f64 = 0.04;
/// Wall clocks differ by up to so much.
const WALL_ERROR_MAX_MS: u64 = 5_000;

/// The world of one seed.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: FaultyStore,
    pub(crate) ledger: Ledger,
    pub(crate) events: Events,
    pub(crate) roster: Roster,
    clock: TokioClock,
    rng: Mutex<StdRng>,
}

/// What one life of a process runs on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) link: Link,
    pub(crate) env: Env,
    pub(crate) bucket: Bucket,
}

impl World {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            store: FaultyStore::new(seed),
            ledger: Ledger::default(),
            events: Events::default(),
            roster: Roster::default(),
            clock: TokioClock::starting_at(WALL_ORIGIN_MS),
            rng: Mutex::new(StdRng::seed_from_u64(seed ^ 0x5eed)),
        })
    }

    /// A machine with clocks of its own that differ a little from all others.
    pub(crate) fn machine(&self) -> Machine {
        let link = self.store.link();
        let clock = self.draw(|rng| SimClock {
            origin: TokioClock::starting_at(0),
            wall_ms: WALL_ORIGIN_MS
                + u64::try_from(self.now().as_millis()).unwrap()
                + rng.random_range(0..WALL_ERROR_MAX_MS),
            rate: 1.0 + rng.random_range(-RATE_ERROR_MAX..RATE_ERROR_MAX),
        });
        let random = SeededRandom::new(self.draw(Rng::random));
        let env = Env { clock: Arc::new(clock), random: Arc::new(random), cpu: Cpu::Inline };
        let settings = StoreSettings {
            attempt_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(8),
            ..StoreSettings::default()
        };
        let store = Arc::new(link.clone());
        let bucket = Bucket::new(store, "db", settings, env.clone()).unwrap();
        Machine { link, env, bucket }
    }

    /// Time since the world began.
    pub(crate) fn now(&self) -> Duration {
        self.clock.boot()
    }

    /// Takes something from the world's own randomness.
    pub(crate) fn draw<T>(&self, take: impl FnOnce(&mut StdRng) -> T) -> T {
        take(&mut self.rng.lock().expect("no panic holds this lock"))
    }

    /// A span between two, at random.
    pub(crate) fn span(&self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(self.draw(|rng| rng.random_range(from_ms..=to_ms)))
    }
}

/// A machine's clocks: boot time runs a little fast or slow, wall time is a little off.
#[derive(Debug)]
struct SimClock {
    origin: TokioClock,
    wall_ms: u64,
    rate: f64,
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        self.wall_ms + u64::try_from(self.origin.boot().as_millis()).unwrap()
    }

    fn boot(&self) -> Duration {
        self.origin.boot().mul_f64(self.rate)
    }
}

/// What was seen to happen, so that a run can tell whether it has tried anything.
#[derive(Debug, Default)]
pub(crate) struct Events {
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Events {
    pub(crate) fn count(&self, event: impl Into<String>) {
        self.add(event, 1);
    }

    pub(crate) fn add(&self, event: impl Into<String>, count: u64) {
        let mut counts = self.counts.lock().expect("no panic holds this lock");
        *counts.entry(event.into()).or_default() += count;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().expect("no panic holds this lock").clone()
    }
}

/// A writer as its clients know it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) epoch: Epoch,
    pub(crate) phase: Phase,
    pub(crate) writer: Arc<Writer>,
    pub(crate) link: Link,
    /// Cancelled when the process is gone: its connections break.
    pub(crate) gone: CancellationToken,
}

/// Where a writer is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Holding,
    Serving,
    Leaving,
}

/// Who answers at which address.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    writers: Mutex<BTreeMap<String, Listed>>,
}

impl Roster {
    pub(crate) fn enter(&self, url: &str, listed: Listed) {
        self.writers().insert(url.to_owned(), listed);
    }

    pub(crate) fn leave(&self, url: &str) {
        self.writers().remove(url);
    }

    pub(crate) fn look_up(&self, url: &str) -> Option<Listed> {
        self.writers().get(url).cloned()
    }

    /// Everybody who says that it serves, in the order of addresses.
    pub(crate) fn serving(&self) -> Vec<Listed> {
        let writers = self.writers();
        writers.values().filter(|listed| listed.phase == Phase::Serving).cloned().collect()
    }

    fn writers(&self) -> MutexGuard<'_, BTreeMap<String, Listed>> {
        self.writers.lock().expect("no panic holds this lock")
    }
}
