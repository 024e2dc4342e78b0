//! A store in memory whose network lies, for simulations on one paused current-thread runtime.
//!
//! **Model**. A request that was sent lands, whatever becomes of the process that sent it: writes
//! are tasks of the store, not of the caller. For each, two things are drawn from one seed: what
//! happens in the bucket (nothing, the write, the write much later, the write twice), and what the
//! caller is told (the truth, a refusal, a broken connection, nothing until it gives up). Reads see
//! one moment between sending and answer. Every process has a [`Link`] of its own, which can stall.
//! A proxy on the way may put an answer of its own in place of the store's, see [`Odd`]. Beside
//! what is drawn, one fault can be asked for, which meets the next request that it fits
//! ([`Fault`]).
//!
//! **Source**: the four outcomes follow Materialize's `persist` crate, `src/unreliable.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use cairn_common::clock::{Clock, TokioClock};
use cairn_common::format::path::ObjectKind;
use cairn_common::store::answer::Refusal;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

pub use self::link::Link;
use self::odd::Trap;
pub use self::odd::{Fault, Odd};

mod link;
mod odd;
#[cfg(test)]
mod tests;

/// The longest single delay, whatever is drawn: an attempt of a bucket has long been given up.
const DELAY_MAX: Duration = Duration::from_secs(20);
/// Wall time at which every store begins, in Unix milliseconds: objects are stamped with it.
pub const WALL_ORIGIN_MS: u64 = 1_750_000_000_000;
/// In a storm, this share of requests is refused.
const STORM_SHARE: f64 = 0.8;

/// How often and how badly things go wrong. Shares are of all requests that the fault can meet.
#[derive(Clone, Debug)]
pub struct Faults {
    /// One way of a read; there and back takes about twice this.
    pub delay_median: Duration,
    /// One way of a write.
    pub write_delay_median: Duration,
    /// The spread of delays: of their logarithm, as a standard deviation.
    pub delay_spread: f64,
    /// Refused with 503 `SlowDown`: not done, and so told.
    pub refused: f64,
    /// The connection is refused: not done, and so told.
    pub unreached: f64,
    /// Lost on the way: not done, not told.
    pub request_lost: f64,
    /// Lost on the way back: done, not told.
    pub response_lost: f64,
    /// Not told, done later.
    pub parked: f64,
    /// Done and told, done again later.
    pub duplicated: f64,
    /// How much later.
    pub parked_max: Duration,
    /// A listing is that of an earlier moment.
    pub list_stale: f64,
    /// The request begins a storm, in which most requests are refused.
    pub storm: f64,
    /// How long a storm lasts.
    pub storm_length: Duration,
    /// Each kind of odd answer, as a share of the requests that can be answered so.
    pub odd: f64,
}

impl Faults {
    /// A network that works, and takes its time.
    pub fn quiet() -> Self {
        Self {
            delay_median: Duration::from_millis(5),
            write_delay_median: Duration::from_millis(5),
            delay_spread: 0.5,
            refused: 0.0,
            unreached: 0.0,
            request_lost: 0.0,
            response_lost: 0.0,
            parked: 0.0,
            duplicated: 0.0,
            parked_max: Duration::ZERO,
            list_stale: 0.0,
            storm: 0.0,
            storm_length: Duration::ZERO,
            odd: 0.0,
        }
    }

    /// A network that works and takes so long, there and back, for a read and for a write.
    pub fn slow(read: Duration, write: Duration) -> Self {
        Self {
            delay_median: read / 2,
            write_delay_median: write / 2,
            delay_spread: 0.1,
            ..Self::quiet()
        }
    }

    /// A network on which every fault is seen within some hundred requests.
    pub fn rough() -> Self {
        Self {
            delay_median: Duration::from_millis(8),
            write_delay_median: Duration::from_millis(8),
            delay_spread: 1.2,
            refused: 0.02,
            unreached: 0.01,
            request_lost: 0.02,
            response_lost: 0.03,
            parked: 0.02,
            duplicated: 0.02,
            parked_max: Duration::from_secs(30),
            list_stale: 0.2,
            storm: 0.001,
            storm_length: Duration::from_secs(2),
            odd: 0.0,
        }
    }
}

/// What went wrong, or was done late: counted, so that a simulation can tell what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// A request of any kind.
    Request,
    /// Refused with 503.
    Refused,
    /// A refused connection.
    Unreached,
    /// Not done, not told.
    RequestLost,
    /// Done, not told.
    ResponseLost,
    /// Not told, to be done later.
    Parked,
    /// Done, to be done again later.
    Duplicated,
    /// A parked or repeated write took effect.
    LandedLate,
    /// A parked or repeated write met a condition that no longer held.
    LandedInVain,
    /// A listing of the past.
    StaleList,
    /// The beginning of a storm.
    Storm,
    /// A request that waited for its process to be let on.
    Stalled,
    /// An object of this kind was there and is there no more.
    Deleted(ObjectKind),
    /// An answer that was not the store's.
    Odd(Odd),
}

/// The bucket and the network around it.
#[derive(Clone)]
pub struct FaultyStore {
    shared: Arc<Shared>,
}

struct Shared {
    objects: InMemory,
    clock: TokioClock,
    state: Mutex<State>,
    /// Requests on their way. They land even if their sender is gone.
    under_way: Mutex<JoinSet<()>>,
}

struct State {
    rng: StdRng,
    faults: Faults,
    storm_until: Duration,
    counts: BTreeMap<Event, u64>,
    /// A digest of everything that was decided: equal for equal runs.
    fingerprint: u64,
    /// Listings given before, by prefix.
    listings: BTreeMap<String, Vec<ObjectMeta>>,
    /// When each object was written, by the store's wall clock.
    written_ms: BTreeMap<Path, u64>,
    /// When the last odd answer was given about each object.
    odd_at: BTreeMap<String, Duration>,
    /// The one fault that was asked for.
    trap: Option<Trap>,
}

/// What is drawn for one request.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Drawn {
    there: Duration,
    back: Duration,
    fate: Fate,
    /// How a caller that is told nothing learns of it.
    silence: Silence,
    /// Where and how a body is spoilt.
    point: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Done,
    Refused,
    Unreached,
    RequestLost,
    ResponseLost,
    Parked(Duration),
    Duplicated(Duration),
    Odd(Odd),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// The connection breaks.
    Break,
    /// Nothing, until the caller gives up.
    Hang,
}

/// What a request is to the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Get,
    /// A listing, or a step of an upload that shows nothing yet.
    Step,
    Put,
    Delete,
}

impl Act {
    fn is_write(self) -> bool {
        matches!(self, Self::Put | Self::Delete)
    }
}

impl FaultyStore {
    /// An empty bucket on a quiet network. Must be called within a runtime.
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            faults: Faults::quiet(),
            storm_until: Duration::ZERO,
            counts: BTreeMap::new(),
            fingerprint: seed,
            listings: BTreeMap::new(),
            written_ms: BTreeMap::new(),
            odd_at: BTreeMap::new(),
            trap: None,
        };
        let shared = Shared {
            objects: InMemory::new(),
            clock: TokioClock::starting_at(WALL_ORIGIN_MS),
            state: Mutex::new(state),
            under_way: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The way of one process to the bucket.
    pub fn link(&self) -> Link {
        Link::new(Arc::clone(&self.shared))
    }

    /// What goes wrong from now on. Writes that are parked stay so.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.shared.state();
        state.faults = faults;
        state.storm_until = Duration::ZERO;
    }

    /// Asks for one fault: it meets the next request about an object of this kind that it fits.
    /// Replaces one that was asked for before.
    pub fn set_trap(&self, fault: Fault, kind: ObjectKind) {
        self.shared.state().trap = Some(Trap { fault, kind, sprung_at: None });
    }

    /// When the fault that was asked for last met its request, since the store began.
    pub fn trap_sprung_at(&self) -> Option<Duration> {
        self.shared.state().trap.and_then(|trap| trap.sprung_at)
    }

    /// Asks for no fault any more.
    pub fn clear_trap(&self) {
        self.shared.state().trap = None;
    }

    /// The bucket itself, past all faults.
    pub fn objects(&self) -> &InMemory {
        &self.shared.objects
    }

    /// What was seen so far.
    pub fn counts(&self) -> BTreeMap<Event, u64> {
        self.shared.state().counts.clone()
    }

    /// A digest of everything that was decided so far.
    pub fn fingerprint(&self) -> u64 {
        self.shared.state().fingerprint
    }

    /// Whether any write is still on its way.
    pub fn is_anything_under_way(&self) -> bool {
        let mut under_way = self.shared.under_way();
        while under_way.try_join_next().is_some() {}
        !under_way.is_empty()
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds this lock")
    }

    fn under_way(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.under_way.lock().expect("no panic holds this lock")
    }

    fn count(&self, event: Event) {
        self.state().count(event);
    }

    /// Runs work that goes on without its caller.
    fn launch(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut under_way = self.under_way();
        while under_way.try_join_next().is_some() {}
        under_way.spawn(work);
    }

    fn draw(&self, act: Act, path: &str) -> Drawn {
        let now = self.clock.boot();
        let mut state = self.state();
        state.count(Event::Request);
        let (there, back) = (state.delay(act), state.delay(act));
        let mut fate = state.fate(act, now);
        if let Some(asked) = state.spring(now, |trap| trap.awaits(act, path)) {
            fate = asked;
        }
        if let Fate::Odd(odd) = fate
            && !odd.is_of_body()
            && !state.may_be_odd(odd, act, path, now)
        {
            fate = Fate::Done;
        }
        let silence = if state.rng.random_bool(0.5) { Silence::Break } else { Silence::Hang };
        let drawn = Drawn { there, back, fate, silence, point: state.rng.random() };
        state.remember(path, &drawn);
        drawn
    }
}

impl State {
    fn count(&mut self, event: Event) {
        *self.counts.entry(event).or_default() += 1;
    }

    fn delay(&mut self, act: Act) -> Duration {
        // A logarithm that is normally distributed (Box and Muller).
        let (radius, angle): (f64, f64) = (self.rng.random(), self.rng.random());
        let normal = (-2.0 * (1.0 - radius).ln()).sqrt() * (angle * std::f64::consts::TAU).cos();
        let factor = (normal * self.faults.delay_spread).exp();
        let Faults { delay_median, write_delay_median, .. } = self.faults;
        let median = if act.is_write() { write_delay_median } else { delay_median };
        median.mul_f64(factor.min(1e6)).min(DELAY_MAX)
    }

    fn fate(&mut self, act: Act, now: Duration) -> Fate {
        let faults = self.faults.clone();
        if now < self.storm_until && self.rng.random_bool(STORM_SHARE) {
            self.count(Event::Refused);
            return Fate::Refused;
        }
        let late = faults.parked_max.mul_f64(self.rng.random::<f64>().powi(2));
        let of_writes = |share| if act.is_write() { share } else { 0.0 };
        let shares = [
            (faults.refused, Event::Refused, Fate::Refused),
            (faults.unreached, Event::Unreached, Fate::Unreached),
            (faults.request_lost, Event::RequestLost, Fate::RequestLost),
            (faults.response_lost, Event::ResponseLost, Fate::ResponseLost),
            (of_writes(faults.parked), Event::Parked, Fate::Parked(late)),
            (of_writes(faults.duplicated), Event::Duplicated, Fate::Duplicated(late)),
            (faults.storm, Event::Storm, Fate::Refused),
        ];
        let odd = Odd::ALL.map(|odd| {
            let share = if odd.meets(act) { faults.odd } else { 0.0 };
            (share, Event::Odd(odd), Fate::Odd(odd))
        });
        let mut point: f64 = self.rng.random();
        for (share, event, fate) in shares.into_iter().chain(odd) {
            point -= share;
            if point < 0.0 {
                if !matches!(event, Event::Odd(_)) {
                    self.count(event);
                }
                if event == Event::Storm {
                    self.storm_until = now + faults.storm_length;
                }
                return fate;
            }
        }
        Fate::Done
    }

    /// The listing with the times of this world: the store beneath stamps with real time.
    fn stamp(&self, found: &mut [ObjectMeta]) {
        for meta in found {
            if let Some(written_ms) = self.written_ms.get(&meta.location) {
                meta.last_modified = (UNIX_EPOCH + Duration::from_millis(*written_ms)).into();
            }
        }
    }

    /// FNV-1a over what was decided.
    fn remember(&mut self, path: &str, drawn: &Drawn) {
        for byte in path.bytes().chain(format!("{drawn:?}").bytes()) {
            self.fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The kind of the object at a path below a root of one name.
fn kind_of(path: &Path) -> ObjectKind {
    use ObjectKind::{Current, Manifest, Probe, Run, Sst, Wal};
    let name = path.parts().nth(1);
    let kinds = [Manifest, Run, Wal, Sst, Probe].into_iter();
    let mut kinds = kinds.filter(|kind| name.as_ref().is_some_and(|n| n.as_ref() == kind.name()));
    kinds.next().unwrap_or(Current)
}

/// What a caller is told where the truth is not told.
fn refused() -> object_store::Error {
    let refusal = Refusal { status: 503, code: Some("SlowDown".to_owned()) };
    http(HttpErrorKind::Unknown, refusal)
}

fn unreached() -> object_store::Error {
    http(HttpErrorKind::Connect, std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
}

/// Told that the connection broke, or never told anything.
async fn silence<T>(silence: Silence) -> Result<T> {
    if silence == Silence::Hang {
        std::future::pending::<()>().await;
    }
    let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    Err(http(HttpErrorKind::Interrupted, reset))
}

fn http(
    kind: HttpErrorKind,
    cause: impl std::error::Error + Send + Sync + 'static,
) -> object_store::Error {
    let source = Box::new(HttpError::new(kind, cause));
    object_store::Error::Generic { store: "simulated", source }
}
