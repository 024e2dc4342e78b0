//! The story of single faults: a calm cluster, one fault, and all laws of liveness hold again in
//! time; and so on, one after the other. In the end the history is judged, or the database is
//! damaged in a way that must be convicted.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::format::path::{Object, ObjectKind};
use cairn_writer::service::Durability;
use harness::faulty::{Fault, Faults, Odd};
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clients::{Client, PATIENCE};
use crate::cluster::{Cluster, Slot};
use crate::compactor::L0_COUNT_MAX;
use crate::laws::{
    Delay, LOOK_INTERVAL, Law, Laws, Pace, Pulse, REREAD, STOP_GRACE, merging_delay, probe, restart,
};
use crate::story::{Report, read_everything, reckon, recover};
use crate::world::{Phase, Tempo, World};
use crate::writer::LEASE;

/// Who writes and reads at a time.
const CLIENTS: usize = 3;
/// What a cluster has to begin with, until all laws hold.
const START: Duration = Duration::from_secs(12);
/// The calm before each fault, and after it.
const CALM: Duration = Duration::from_secs(3);
/// Faults in one story.
const FAULTS: usize = 5;
/// How long a process is stalled: longer than every lease and timeout, and until another writer has
/// taken over, flushed, and its log is collected.
const STALL: Duration = Duration::from_secs(18);
/// How long a fault that was asked for may wait for its request.
const TRAP_MAX: Duration = Duration::from_secs(8);
/// How long nobody writes before a burst.
const LULL: Duration = Duration::from_secs(3);
/// How long a burst lasts.
const BURST: Duration = Duration::from_secs(8);
/// Between two batches of a burst: 40 a second, twice what one GET of 60 ms at a time can follow.
const BURST_INTERVAL: Duration = Duration::from_millis(25);
/// Between two flushes of a burst.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// So many flushes of a burst in turn may pass the end of the log that a reader has found before it
/// has read CURRENT.
const PASSES: u32 = 2;
/// Below this L0 is at least now and then while flushes come in a burst.
const L0_BELOW_IN_BURST: usize = 12;
/// WAL objects behind the one that is destroyed: enough that they say it was proven.
const PROOF: usize = 8;
/// How long a damaged database is watched.
const DAMAGE_WATCHED: Duration = Duration::from_secs(15);

/// One fault.
#[derive(Clone, Copy, Debug)]
enum Trial {
    /// One answer is lost, or odd.
    Answer(Fault, ObjectKind),
    Crash(Slot),
    Stall(Slot),
    Stop(Slot),
    /// The store takes so long for a GET; nobody writes for a while, and then many do.
    Slow {
        get: Duration,
        burst: Burst,
    },
}

/// What is asked of a writer in a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Burst {
    Writes,
    WritesAndFlushes,
}

/// How a story ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finale {
    /// Everything that was ever told is checked.
    Reckoning,
    /// An object in the middle of the log is gone.
    LogHole,
    /// CURRENT is gone under a writer.
    CurrentGone,
}

/// Tells the story of one seed. Panics where a law or a promise is broken.
pub(crate) async fn tell(seed: u64) -> Report {
    let long = seed % 2 == 1;
    let world = World::new(seed, if long { Tempo::BriskLongLog } else { Tempo::Brisk });
    let mut cluster = Cluster::new(Arc::clone(&world));
    for slot in [Slot::Writer(0), Slot::Writer(1), Slot::Reader(0), Slot::Reader(1)] {
        cluster.start(slot);
    }
    cluster.start(Slot::Compactor);
    if world.draw(|rng| rng.random_bool(0.5)) {
        cluster.start(Slot::Collector);
    }
    let stop = CancellationToken::new();
    let pulse = Arc::new(Pulse::default());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(&world, &stop).run());
    }
    clients.spawn(probe(Arc::clone(&world), Arc::clone(&pulse), stop.clone()));
    let laws = Laws::new(&world, &pulse);
    let mut scene = Scene { world: Arc::clone(&world), cluster, laws };
    scene.laws.excuse_all(START);
    scene.watch(START + CALM).await;
    for _ in 0..FAULTS {
        let trial = draw(&world);
        world.events.count(name(trial));
        scene.laws.during = format!("after {trial:?} at {:?}", world.now());
        scene.run(trial).await;
    }
    let mut cluster = scene.cluster;
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client has failed");
    }
    match world.draw(|rng| rng.random_range(0..4)) {
        0 => end_with(Finale::LogHole, &world, &mut cluster).await,
        1 => end_with(Finale::CurrentGone, &world, &mut cluster).await,
        _ => end_with(Finale::Reckoning, &world, &mut cluster).await,
    }
    for (event, count) in world.store.counts() {
        world.events.add(format!("store: {event:?}"), count);
    }
    Report { events: world.events.counts(), fingerprint: world.store.fingerprint() }
}

fn client(world: &Arc<World>, stop: &CancellationToken) -> Client {
    Client { world: Arc::clone(world), stop: stop.clone() }
}

fn draw(world: &World) -> Trial {
    let active = Slot::Writer(usize::from(!is_active(world, Slot::Writer(0))));
    world.draw(|rng| {
        let any = [
            active,
            active,
            Slot::Writer(rng.random_range(0..2)),
            Slot::Reader(rng.random_range(0..2)),
            Slot::Compactor,
        ];
        let slot = any[rng.random_range(0..any.len())];
        let kinds = [
            ObjectKind::Current,
            ObjectKind::Manifest,
            ObjectKind::Run,
            ObjectKind::Wal,
            ObjectKind::Wal,
            ObjectKind::Sst,
        ];
        let kind = kinds[rng.random_range(0..kinds.len())];
        // Beside flushes a GET of 100 ms and what it is repeated for fill a reader's staleness.
        let get = Duration::from_millis(rng.random_range(60..=150));
        let get_beside_flushes = get.min(Duration::from_millis(100));
        match rng.random_range(0..20) {
            0..2 => Trial::Answer(Fault::ResponseLost, kind),
            2..4 => Trial::Answer(Fault::Odd(Odd::Garbled), kind),
            4..6 => Trial::Answer(Fault::Odd(Odd::Shortened), kind),
            6..8 => Trial::Answer(Fault::Odd(Odd::NotFound), kind),
            8..10 => Trial::Answer(Fault::Odd(Odd::Precondition), kind),
            10..12 => Trial::Crash(slot),
            12..14 => Trial::Stall(slot),
            14..16 => Trial::Stop(slot),
            16..18 => Trial::Slow { get, burst: Burst::Writes },
            _ => Trial::Slow { get: get_beside_flushes, burst: Burst::WritesAndFlushes },
        }
    })
}

fn name(trial: Trial) -> String {
    let role = |slot: Slot| slot.name().trim_end_matches(|c: char| !c.is_alphabetic()).to_owned();
    match trial {
        Trial::Answer(Fault::ResponseLost, kind) => format!("fault: a lost answer, {kind:?}"),
        Trial::Answer(Fault::Odd(odd), kind) => format!("fault: {odd:?}, {kind:?}"),
        Trial::Crash(slot) => format!("fault: crash of a {}", role(slot)),
        Trial::Stall(slot) => format!("fault: stall of a {}", role(slot)),
        Trial::Stop(slot) => format!("fault: stop of a {}", role(slot)),
        Trial::Slow { burst: Burst::Writes, .. } => "fault: slow store".to_owned(),
        Trial::Slow { burst: Burst::WritesAndFlushes, .. } => {
            "fault: slow store and flushes".to_owned()
        }
    }
}

/// A cluster, and the laws that it is held to.
#[derive(Debug)]
struct Scene {
    world: Arc<World>,
    cluster: Cluster,
    laws: Laws,
}

impl Scene {
    /// Lets time pass, and holds the cluster to the laws.
    async fn watch(&mut self, length: Duration) {
        let until = self.world.now() + length;
        while self.world.now() < until {
            self.cluster.tend().await;
            self.laws.check(&self.cluster).await;
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// One fault, and the time until all laws hold again.
    async fn run(&mut self, trial: Trial) {
        let takeover = self.laws.pace.takeover();
        match trial {
            Trial::Answer(fault, kind) => self.spoil_answer(fault, kind).await,
            Trial::Crash(slot) => {
                self.excuse(slot, Duration::ZERO, takeover);
                self.cluster.crash(slot);
            }
            Trial::Stall(slot) => {
                self.excuse(slot, STALL + Delay::Attempt.bound(), takeover);
                self.cluster.stall(slot, STALL).await;
                self.watch(STALL).await;
            }
            Trial::Stop(slot) => {
                let hand_over = STOP_GRACE + self.laws.pace.hand_over();
                self.excuse(slot, STOP_GRACE, hand_over);
                self.cluster.stop(slot);
            }
            Trial::Slow { get, burst } => self.slow_down(get, burst).await,
        }
        let until = self.laws.all_hold_from().saturating_sub(self.world.now()) + CALM;
        self.watch(until).await;
        // The next fault meets a whole cluster.
        let kept = [Slot::Writer(0), Slot::Writer(1), Slot::Compactor];
        while !kept.into_iter().all(|slot| self.cluster.runs(slot)) {
            self.watch(LOOK_INTERVAL).await;
        }
        self.watch(CALM).await;
    }

    /// What a fault of so long at one process excuses.
    fn excuse(&mut self, slot: Slot, fault: Duration, takeover: Duration) {
        let (pace, is_active) = (self.laws.pace, is_active(&self.world, slot));
        let laws = &mut self.laws;
        match slot {
            Slot::Reader(number) => laws.excuse(Law::Fresh(number), fault + restart(pace)),
            Slot::Compactor => {
                laws.excuse(Law::Drained, merging_delay(fault + restart(pace)));
                laws.excuse(Law::Collected, fault + restart(pace));
            }
            // Readers and compactors need no writer, and nobody needs one that stands by.
            _ if is_active => laws.excuse(Law::Written, takeover + pace.write()),
            _ => {}
        }
    }

    /// The next request about an object of this kind is answered in this way, or not at all.
    async fn spoil_answer(&mut self, fault: Fault, kind: ObjectKind) {
        self.world.store.set_trap(fault, kind);
        let until = self.world.now() + TRAP_MAX;
        while self.world.store.trap_sprung_at().is_none() && self.world.now() < until {
            self.watch(LOOK_INTERVAL).await;
        }
        if self.world.store.trap_sprung_at().is_some() {
            self.world.events.count("fault met its request");
            let delay = match fault {
                Fault::ResponseLost => Delay::Attempt,
                Fault::Odd(_) => Delay::Reread,
            };
            let (bound, pace) = (delay.bound(), self.laws.pace);
            for reader in 0..2 {
                self.laws.excuse(Law::Fresh(reader), bound + pace.lag());
            }
            self.laws.excuse(Law::Written, bound + pace.write());
            self.laws.excuse(Law::Collected, bound);
            self.laws.excuse(Law::Drained, merging_delay(bound));
        }
        self.world.store.clear_trap();
    }

    /// A store that takes its time, a lull, and a burst of writes: no law is excused but that
    /// nobody writes in the lull.
    async fn slow_down(&mut self, get: Duration, burst: Burst) {
        let put = Duration::from_millis(30);
        // With this spread one in thirty thousand takes half as long again.
        let passes = match burst {
            // Clients ask for a flush now and then.
            Burst::Writes => 1,
            Burst::WritesAndFlushes => PASSES,
        };
        self.laws.pace = Pace { get: get.mul_f64(1.5), put: put.mul_f64(1.5), passes };
        self.laws.l0_below = L0_BELOW_IN_BURST;
        self.world.store.set_faults(Faults::slow(get, put));
        self.laws.excuse(Law::Written, LULL + self.laws.pace.write());
        self.world.begin_lull();
        self.watch(LULL).await;
        self.world.end_lull();
        let (over, mut work) = (CancellationToken::new(), JoinSet::new());
        work.spawn(write_often(Arc::clone(&self.world), over.clone()));
        if burst == Burst::WritesAndFlushes {
            work.spawn(flush_often(Arc::clone(&self.world), over.clone()));
        }
        self.watch(BURST).await;
        over.cancel();
        while !work.is_empty() {
            while work.try_join_next().is_some() {}
            self.watch(LOOK_INTERVAL).await;
        }
        self.world.store.set_faults(Faults::quiet());
        self.watch(CALM).await;
        self.laws.excuse(Law::Drained, merging_delay(Duration::ZERO));
        (self.laws.pace, self.laws.l0_below) = (Pace::QUIET, L0_COUNT_MAX);
    }
}

fn is_active(world: &World, slot: Slot) -> bool {
    let at = world.roster.look_up(&format!("http://{}", slot.name()));
    at.is_some_and(|listed| listed.phase != Phase::Leaving)
}

async fn write_often(world: Arc<World>, over: CancellationToken) {
    let mut writes = JoinSet::new();
    while !over.is_cancelled() {
        if let Some(listed) = world.roster.serving().pop() {
            let client = client(&world, &over);
            let how = (Durability::Durable, PATIENCE);
            writes.spawn(async move { client.write_as(&listed, None, how).await });
        }
        while writes.try_join_next().is_some() {}
        sleep(BURST_INTERVAL).await;
    }
    while writes.join_next().await.is_some() {}
}

async fn flush_often(world: Arc<World>, over: CancellationToken) {
    while !over.is_cancelled() {
        if let Some(listed) = world.roster.serving().pop() {
            client(&world, &over).flush(&listed).await;
        }
        sleep(FLUSH_INTERVAL).await;
    }
}

async fn end_with(finale: Finale, world: &Arc<World>, cluster: &mut Cluster) {
    world.events.count(format!("story ends: {finale:?}"));
    match finale {
        Finale::Reckoning => {
            recover(world, cluster).await;
            for number in 0..2 {
                read_everything(world, cluster, Slot::Reader(number)).await;
            }
            reckon(world, cluster).await;
        }
        Finale::LogHole => lose_wal_object(world, cluster).await,
        Finale::CurrentGone => lose_current(world, cluster).await,
    }
}

/// An object in the middle of the log is lost while no writer runs: none ever serves again.
async fn lose_wal_object(world: &Arc<World>, cluster: &mut Cluster) {
    let client = client(world, &CancellationToken::new());
    let how = (Durability::Durable, PATIENCE);
    let listed = world.roster.serving().pop().expect("a calm cluster has a writer");
    let mut acknowledged = 0;
    while acknowledged < 2 * PROOF {
        acknowledged += usize::from(client.write_as(&listed, None, how).await.is_some());
        cluster.tend().await;
    }
    let writers = [Slot::Writer(0), Slot::Writer(1)];
    for slot in writers {
        cluster.crash(slot);
    }
    while world.store.is_anything_under_way() {
        sleep(LOOK_INTERVAL).await;
    }
    let snapshot = world.auditor.look(&world.events).await.expect("a database");
    let data = world.auditor.wal_data().await;
    let Some(lost) = data.iter().rev().nth(PROOF).copied() else { return };
    if lost < snapshot.current.replay_from {
        // A flush came between: what was lost is in an SST.
        return;
    }
    world.events.count("a WAL object is lost");
    world.auditor.destroy(Object::Wal(lost)).await;
    cluster.expect_damage();
    let until = world.now() + DAMAGE_WATCHED;
    while world.now() < until {
        cluster.tend().await;
        let serving = world.roster.serving();
        assert!(serving.is_empty(), "epoch {} serves without {lost}", serving[0].epoch);
        sleep(LOOK_INTERVAL).await;
    }
    for slot in writers {
        let ends = cluster.ends_over_damage(slot);
        assert!(ends > 0, "{} did not say that {lost} is lost", slot.name());
    }
    cluster.shut_down().await;
}

/// CURRENT is deleted under a writer: it ends, and acknowledges nothing after a lease from its
/// second read that missed it.
async fn lose_current(world: &Arc<World>, cluster: &mut Cluster) {
    let (stop, pulse) = (CancellationToken::new(), Arc::new(Pulse::default()));
    let mut probes = JoinSet::new();
    probes.spawn(probe(Arc::clone(world), Arc::clone(&pulse), stop.clone()));
    let active =
        [Slot::Writer(0), Slot::Writer(1)].into_iter().find(|slot| is_active(world, *slot));
    let active = active.expect("a calm cluster has a writer");
    let serving = world.roster.serving().pop().expect("a calm cluster has a writer");
    cluster.expect_damage();
    world.auditor.destroy(Object::Current).await;
    world.events.count("CURRENT is lost");
    // It reads CURRENT at half its lease; then again, twice.
    let bound = LEASE / 2 + REREAD + LEASE.mul_f64(1.1);
    let lost_at = world.now();
    while world.now() < lost_at + bound + DAMAGE_WATCHED {
        cluster.tend().await;
        let last = pulse.written_at();
        assert!(last <= lost_at + bound, "a write of {last:?} was acknowledged");
        let serves = world.roster.serving().iter().any(|other| other.epoch == serving.epoch);
        let is_late = world.now() > lost_at + bound;
        assert!(!(serves && is_late), "it serves without CURRENT, {bound:?} after");
        sleep(LOOK_INTERVAL).await;
    }
    assert!(cluster.ends_over_damage(active) > 0, "it did not say that CURRENT is lost");
    stop.cancel();
    cluster.shut_down().await;
    while probes.join_next().await.is_some() {}
}
