//! One simulated world: a bucket, its network, the processes that run, and what is known of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cairn_common::clock::{Clock, TokioClock};
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::{Epoch, Role};
use cairn_reader::node::ReaderNode;
use cairn_writer::service::Writer;
use harness::faulty::{FaultyStore, Link, WALL_ORIGIN_MS};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::audit::Auditor;
use crate::ledger::Ledger;

/// Rates of two clocks differ by less than the protocol allows, about 9 %.
pub(crate) const RATE_ERROR_MAX: f64 = 0.04;
/// What a process that is not patient waits for one answer.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Wall clocks differ by up to so much.
pub(crate) const WALL_ERROR_MAX_MS: u64 = 5_000;

/// The world of one seed.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: FaultyStore,
    pub(crate) ledger: Ledger,
    pub(crate) events: Events,
    pub(crate) roster: Roster<Listed>,
    pub(crate) readers: Roster<Shown>,
    pub(crate) auditor: Auditor,
    pub(crate) tempo: Tempo,
    epochs: Mutex<BTreeMap<String, (Role, Epoch)>>,
    lives: AtomicU64,
    lulled: AtomicBool,
    clock: TokioClock,
    rng: Mutex<StdRng>,
}

/// How long the processes of a world wait for an answer, and how often writers flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tempo {
    /// Some are patient: they wake from a stall in the middle of what they did.
    Mixed,
    /// All give an attempt up after [`ATTEMPT_TIMEOUT`]; memtables are small.
    Brisk,
    /// The same, with memtables that are flushed when somebody asks.
    BriskLongLog,
}

/// What one life of a process runs on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) link: Link,
    pub(crate) env: Env,
    pub(crate) bucket: Bucket,
}

impl World {
    pub(crate) fn new(seed: u64, tempo: Tempo) -> Arc<Self> {
        let store = FaultyStore::new(seed);
        Arc::new(Self {
            auditor: Auditor::new(&store),
            store,
            ledger: Ledger::default(),
            events: Events::default(),
            roster: Roster::default(),
            readers: Roster::default(),
            tempo,
            epochs: Mutex::default(),
            lives: AtomicU64::new(0),
            lulled: AtomicBool::new(false),
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
        // SUBTLE: who is patient wakes from a stall in the middle of what it did, with what it had
        // read before; who is not has given up, and begins anew.
        let is_patient = self.tempo == Tempo::Mixed && self.draw(|rng| rng.random_bool(0.4));
        let patience = if is_patient { ATTEMPT_TIMEOUT * 6 } else { ATTEMPT_TIMEOUT };
        let settings = StoreSettings {
            attempt_timeout: patience,
            deadline: Duration::from_secs(8) + patience,
            part_bytes: 16 << 10,
            ..StoreSettings::default()
        };
        let store = Arc::new(link.clone());
        let bucket = Bucket::new(store, "db", settings, env.clone()).unwrap();
        Machine { link, env, bucket }
    }

    /// Notes under which epoch a process lives.
    pub(crate) fn enter_epoch(&self, name: &str, role: Role, epoch: Epoch) {
        let mut epochs = self.epochs.lock().expect("no panic holds this lock");
        epochs.insert(name.to_owned(), (role, epoch));
    }

    /// A process of this name begins anew, without an epoch.
    pub(crate) fn forget_epoch(&self, name: &str) {
        self.epochs.lock().expect("no panic holds this lock").remove(name);
    }

    /// The role and epoch that the process of this name had last.
    pub(crate) fn epoch_of(&self, name: &str) -> Option<(Role, Epoch)> {
        self.epochs.lock().expect("no panic holds this lock").get(name).copied()
    }

    /// A number that tells lives of one process apart.
    pub(crate) fn next_life(&self) -> u64 {
        self.lives.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets clients rest.
    pub(crate) fn begin_lull(&self) {
        self.lulled.store(true, Ordering::Relaxed);
    }

    /// Lets clients work again.
    pub(crate) fn end_lull(&self) {
        self.lulled.store(false, Ordering::Relaxed);
    }

    /// Whether clients rest.
    pub(crate) fn is_lulled(&self) -> bool {
        self.lulled.load(Ordering::Relaxed)
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
    /// When it entered this phase.
    pub(crate) since: Duration,
    pub(crate) writer: Arc<Writer>,
    /// Who waits for a flush: one at a time, as with [`Shown::turn`].
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
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

/// A reader as its clients know it.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// Tells this life from others of the same process.
    pub(crate) life: String,
    /// Who waits for a view. SUBTLE: one at a time, since tokio's `watch` wakes several in an order
    /// that no seed decides, and each goes on with a question of its own.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    pub(crate) node: Arc<ReaderNode>,
    pub(crate) link: Link,
    /// Cancelled when the process is gone: its connections break.
    pub(crate) gone: CancellationToken,
}

/// Who answers at which address.
#[derive(Debug)]
pub(crate) struct Roster<T> {
    entries: Mutex<BTreeMap<String, T>>,
}

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

impl<T: Clone> Roster<T> {
    pub(crate) fn enter(&self, address: &str, entry: T) {
        self.entries().insert(address.to_owned(), entry);
    }

    pub(crate) fn leave(&self, address: &str) {
        self.entries().remove(address);
    }

    pub(crate) fn look_up(&self, address: &str) -> Option<T> {
        self.entries().get(address).cloned()
    }

    /// Everybody, in the order of addresses.
    pub(crate) fn all(&self) -> Vec<T> {
        self.entries().values().cloned().collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        self.entries.lock().expect("no panic holds this lock")
    }
}

impl Roster<Listed> {
    /// Everybody who says that it serves, in the order of addresses.
    pub(crate) fn serving(&self) -> Vec<Listed> {
        let all = self.all().into_iter();
        all.filter(|listed| listed.phase == Phase::Serving).collect()
    }
}
