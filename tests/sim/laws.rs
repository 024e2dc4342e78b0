//! The laws of liveness: what must be true of a cluster whose store answers, by when.
//!
//! A story states how long a fault excuses each law ([`Laws::excuse`]); at every other moment all
//! of them hold. **Bounds** follow from the settings and from how long the store takes ([`Pace`]):
//!
//! - A reader's lag is at most a poll interval and two looks; a look is three GETs deep: the end of
//!   the log, CURRENT, the manifest. A flush that passes the end before CURRENT has vouched for it
//!   costs the same once more: nothing is known of the log behind it.
//! - A durable write is acknowledged within the pacing interval, a PUT, its repetition, and a wait
//!   for the window: four PUTs.
//! - A takeover ends within the standby's patience, the hold, and 25 requests; the hold itself
//!   within 1.1 leases. A hand-over has neither patience nor hold.
//! - A standby is ready, and a reader shows a view, within what it takes to start.
//! - WAL data before `replay_from`, and what left the tree, are gone within the retention, three
//!   passes of collection and the error of wall clocks.
//! - L0 is below its count again within a poll of the compactor and a job.
//! - A process that is told to stop has ended within its grace.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_common::format::path::Object;
use cairn_common::http::reads::{Level, ReadRequest, Views};
use cairn_common::http::request::{Deadline, Staleness};
use cairn_writer::service::Durability;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clients::{Client, PATIENCE};
use crate::cluster::{Cluster, RESTART_MAX, Slot};
use crate::compactor::{GC_INTERVAL, L0_COUNT_MAX, RETENTION_MAX};
use crate::reader::POLL_INTERVAL;
use crate::world::{ATTEMPT_TIMEOUT, Phase, RATE_ERROR_MAX, WALL_ERROR_MAX_MS, World};
use crate::writer::{LEASE, TAKEOVER_AFTER, WAL_INTERVAL};

/// Between two probes of the writer.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// Between two looks at the laws.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Between two looks at the bucket.
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);
/// What tasks lose against each other, timers and rounding.
const SLACK: Duration = Duration::from_millis(500);
/// Within this an object is read again, independently, twice.
pub(crate) const REREAD: Duration = Duration::from_secs(3);
/// The pause of a compactor after a job that failed for a reason that may pass.
const JOB_PAUSE: Duration = Duration::from_secs(5);
/// How long L0 may stay at its count or above while it is merged: a poll, and a job.
const DRAIN: Duration = Duration::from_secs(6);
/// The grace of a stop.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(3);

/// How long requests of the store take at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) get: Duration,
    pub(crate) put: Duration,
    /// How many flushes in turn pass the end of the log that a look has found.
    pub(crate) passes: u32,
}

impl Pace {
    /// Of a quiet store: 10 ms there and back, and seldom six times that.
    pub(crate) const QUIET: Self =
        Self { get: Duration::from_millis(60), put: Duration::from_millis(60), passes: 0 };

    /// The lag of a reader.
    pub(crate) fn lag(self) -> Duration {
        POLL_INTERVAL.mul_f64(1.0 + RATE_ERROR_MAX) + (6 + 3 * self.passes) * self.get + SLACK
    }

    /// A durable write.
    pub(crate) fn write(self) -> Duration {
        WAL_INTERVAL + 4 * self.put + SLACK
    }

    fn requests(self, count: u32) -> Duration {
        count * self.get.max(self.put)
    }

    /// From the death of a writer to the end of the takeover.
    pub(crate) fn takeover(self) -> Duration {
        let patience = TAKEOVER_AFTER.mul_f64(1.25 * (1.0 + RATE_ERROR_MAX)) + SLACK;
        patience + self.hold() + self.requests(25)
    }

    /// The hold.
    fn hold(self) -> Duration {
        LEASE.mul_f64(1.1 * (1.0 + RATE_ERROR_MAX)) + self.requests(5) + SLACK
    }

    /// From the end of a writer that has closed to the end of the takeover.
    pub(crate) fn hand_over(self) -> Duration {
        self.requests(25) + 2 * SLACK
    }

    /// From the start of a reader to its first view.
    pub(crate) fn first_view(self) -> Duration {
        self.requests(12) + self.lag()
    }

    fn collection(self) -> Duration {
        let wall_error = Duration::from_millis(WALL_ERROR_MAX_MS);
        RETENTION_MAX + 3 * GC_INTERVAL + wall_error + self.requests(40) + SLACK
    }
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Law {
    /// Readers are fresh.
    Fresh(usize),
    /// Durable writes are acknowledged.
    Written,
    /// What nobody needs is deleted.
    Collected,
    /// L0 is merged.
    Drained,
}

impl Law {
    pub(crate) const ALL: [Self; 5] =
        [Self::Fresh(0), Self::Fresh(1), Self::Written, Self::Collected, Self::Drained];
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh(reader) => write!(f, "reader {reader} is fresh"),
            Self::Written => f.write_str("durable writes are acknowledged"),
            Self::Collected => f.write_str("what nobody needs is deleted"),
            Self::Drained => f.write_str("L0 is merged"),
        }
    }
}

/// How long a fault on one request may delay anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delay {
    /// An answer that is lost: an attempt is given up.
    Attempt,
    /// An answer that is odd: the object is read again.
    Reread,
}

impl Delay {
    /// At most so long.
    pub(crate) fn bound(self) -> Duration {
        match self {
            Self::Attempt => ATTEMPT_TIMEOUT.mul_f64(1.0 + RATE_ERROR_MAX) + SLACK,
            Self::Reread => REREAD + SLACK,
        }
    }
}

/// The newest writes that were acknowledged: when the probe of each began.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    written_at: Mutex<Duration>,
}

impl Pulse {
    /// When the last probe began that was acknowledged.
    pub(crate) fn written_at(&self) -> Duration {
        *self.written_at.lock().expect("no panic holds this lock")
    }

    fn beat(&self, began: Duration) {
        let mut written_at = self.written_at.lock().expect("no panic holds this lock");
        *written_at = began.max(*written_at);
    }
}

/// Writes a batch every [`PROBE_INTERVAL`] at whoever serves, until it is stopped.
pub(crate) async fn probe(world: Arc<World>, pulse: Arc<Pulse>, stop: CancellationToken) {
    let mut probes = JoinSet::new();
    while !stop.is_cancelled() {
        let newest = world.roster.serving().into_iter().max_by_key(|listed| listed.epoch);
        if let Some(listed) = newest.filter(|_| !world.is_lulled()) {
            let client = Client { world: Arc::clone(&world), stop: stop.clone() };
            let (pulse, began) = (Arc::clone(&pulse), world.now());
            probes.spawn(async move {
                let how = (Durability::Durable, PATIENCE);
                if client.write_as(&listed, None, how).await.is_some() {
                    pulse.beat(began);
                }
            });
        }
        while probes.try_join_next().is_some() {}
        sleep(PROBE_INTERVAL).await;
    }
    while probes.join_next().await.is_some() {}
}

/// Holds a cluster to the laws.
#[derive(Debug)]
pub(crate) struct Laws {
    world: Arc<World>,
    pulse: Arc<Pulse>,
    pub(crate) pace: Pace,
    /// What L0 is below at least once in [`DRAIN`].
    pub(crate) l0_below: usize,
    /// The fault that the cluster lives through, for whoever reads of a broken law.
    pub(crate) during: String,
    excused: BTreeMap<Law, Duration>,
    /// When each life of a reader was seen first.
    lives: BTreeMap<String, Duration>,
    audited_at: Duration,
    l0_low_at: Duration,
    /// WAL data before `replay_from`, and what has left the tree: when each was seen first.
    needless: BTreeMap<String, Duration>,
}

impl Laws {
    pub(crate) fn new(world: &Arc<World>, pulse: &Arc<Pulse>) -> Self {
        let now = world.now();
        Self {
            world: Arc::clone(world),
            pulse: Arc::clone(pulse),
            pace: Pace::QUIET,
            l0_below: L0_COUNT_MAX,
            during: "the start".to_owned(),
            excused: BTreeMap::new(),
            lives: BTreeMap::new(),
            audited_at: now,
            l0_low_at: now,
            needless: BTreeMap::new(),
        }
    }

    /// From now on, a law need not hold for so long.
    pub(crate) fn excuse(&mut self, law: Law, length: Duration) {
        let until = self.world.now() + length;
        let known = self.excused.entry(law).or_default();
        *known = until.max(*known);
    }

    /// Excuses every law.
    pub(crate) fn excuse_all(&mut self, length: Duration) {
        for law in Law::ALL {
            self.excuse(law, length);
        }
    }

    /// When every law must hold again.
    pub(crate) fn all_hold_from(&self) -> Duration {
        self.excused.values().max().copied().unwrap_or_default()
    }

    fn is_excused(&self, law: Law) -> bool {
        self.excused.get(&law).is_some_and(|until| self.world.now() < *until)
    }

    /// When, and after which fault.
    fn when(&self) -> String {
        format!("at {:?}, {}", self.world.now(), self.during)
    }

    /// Panics where a law does not hold.
    pub(crate) async fn check(&mut self, cluster: &Cluster) {
        self.check_freshness().await;
        self.check_writes();
        self.check_holds();
        if let Some(slot) = cluster.overdue(STOP_GRACE) {
            let (name, when) = (slot.name(), self.when());
            panic!("{when}: {name} was told to stop, and has not ended within {STOP_GRACE:?}");
        }
        if self.world.now() >= self.audited_at + AUDIT_INTERVAL {
            self.audited_at = self.world.now();
            self.check_bucket().await;
        }
    }

    async fn check_freshness(&mut self) {
        let now = self.world.now();
        for number in 0..2 {
            let (law, slot) = (Law::Fresh(number), Slot::Reader(number));
            let shown = self.world.readers.look_up(&slot.name());
            let Some(shown) = shown else {
                assert!(self.is_excused(law), "{law}: {}: it is not there", self.when());
                continue;
            };
            let deadline = Deadline::after(PATIENCE);
            let (level, staleness) = (Level::Durable, Staleness::Any);
            let request = ReadRequest { min_seq: None, deadline, level, staleness };
            let seen_at = *self.lives.entry(shown.life.clone()).or_insert(now);
            let bound = self.pace.lag();
            match shown.node.view(request).await {
                Err(_) if now < seen_at + self.pace.first_view() || self.is_excused(law) => {}
                Err(problem) => {
                    panic!("{law}: {}: no view since {seen_at:?}: {problem:?}", self.when())
                }
                Ok(view) => {
                    let lag = Duration::from_millis(view.lag_ms.unwrap_or(u64::MAX));
                    let is_fresh = lag <= bound || self.is_excused(law);
                    assert!(
                        is_fresh,
                        "{law}: {}: it is {lag:?} behind, more than {bound:?}",
                        self.when()
                    );
                }
            }
        }
    }

    fn check_writes(&self) {
        let age = self.world.now().saturating_sub(self.pulse.written_at());
        let bound = self.pace.write() + PROBE_INTERVAL + LOOK_INTERVAL;
        let (law, when) = (Law::Written, self.when());
        let is_young = age <= bound || self.is_excused(law);
        assert!(is_young, "{law}: {when}: the last began {age:?} ago, more than {bound:?}");
    }

    fn check_holds(&self) {
        for listed in self.world.roster.all() {
            let held = self.world.now().saturating_sub(listed.since);
            let is_over = listed.phase != Phase::Holding || held <= self.pace.hold();
            let excused = self.is_excused(Law::Written) && listed.link.is_stalled();
            let (epoch, when) = (listed.epoch, self.when());
            assert!(is_over || excused, "{when}: epoch {epoch} holds for {held:?}");
        }
    }

    async fn check_bucket(&mut self) {
        let world = Arc::clone(&self.world);
        let (now, within) = (world.now(), self.pace.collection());
        let Some(snapshot) = world.auditor.look(&world.events).await else { return };
        let l0 = snapshot.manifest.l0.len();
        if l0 < self.l0_below || self.is_excused(Law::Drained) {
            self.l0_low_at = now;
        }
        let (law, below) = (Law::Drained, self.l0_below);
        let is_drained = now <= self.l0_low_at + DRAIN;
        let (low_at, when) = (self.l0_low_at, self.when());
        assert!(is_drained, "{law}: {when}: {l0} since {low_at:?}, not below {below}");

        // SUBTLE: each is dated by when it was seen first, since a stalled writer's may land long
        // after replay has passed its id.
        let passed = world.auditor.wal_data_before(snapshot.current.replay_from).await;
        let passed = passed.into_iter().map(|id| Object::Wal(id).to_string());
        let retired = snapshot.manifest.retired.iter();
        let retired = retired.map(|retired| format!("{:?}", retired.object));
        let needless: Vec<_> = passed.chain(retired).collect();
        self.needless.retain(|object, _| needless.contains(object));
        for object in needless {
            self.needless.entry(object).or_insert(now);
        }
        if self.is_excused(Law::Collected) {
            self.needless.values_mut().for_each(|seen_at| *seen_at = now);
        }
        let (law, when) = (Law::Collected, self.when());
        let overdue = self.needless.iter().find(|(_, seen_at)| now > **seen_at + within);
        assert_eq!(overdue, None, "{law}: {when}: within {within:?}");
    }
}

/// From a crash of a process to its next start, and from there to its first look.
pub(crate) fn restart(pace: Pace) -> Duration {
    RESTART_MAX + pace.first_view()
}

/// How long merging may be delayed by a fault of so long.
pub(crate) fn merging_delay(fault: Duration) -> Duration {
    fault + JOB_PAUSE + DRAIN
}
