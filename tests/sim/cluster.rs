//! The processes of a world: they are started, end, are crashed and started again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::types::Role;
use cairn_common::{Error, Result};
use cairn_writer::standby::TakeoverWhen;
use harness::faulty::Link;
use rand::Rng;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::compactor::CompactorProcess;
use crate::reader::ReaderProcess;
use crate::world::{Events, Machine, World};
use crate::writer::{WriterProcess, foreseen};

/// A place for one process at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// Waits while another writer is alive.
    Writer(usize),
    /// Takes over at once when it is started.
    Usurper,
    /// Follows, and answers reads.
    Reader(usize),
    /// Merges and collects.
    Compactor,
    /// Merges, beside another one: they fence each other.
    Rival,
    /// Collects, beside another one.
    Collector,
}

impl Slot {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Writer(number) => format!("writer-{number}"),
            Self::Usurper => "usurper".to_owned(),
            Self::Reader(number) => format!("reader-{number}"),
            Self::Compactor => "compactor".to_owned(),
            Self::Rival => "rival".to_owned(),
            Self::Collector => "collector".to_owned(),
        }
    }

    /// Whether it is started again when it has ended.
    fn is_kept(self) -> bool {
        !matches!(self, Self::Usurper | Self::Rival)
    }
}

/// A process that is kept is started again within this.
pub(crate) const RESTART_MAX: Duration = Duration::from_secs(4);

/// One life of a process.
#[derive(Debug)]
struct Running {
    abort: AbortHandle,
    stop: CancellationToken,
    /// When it was told to stop.
    stopped_at: Option<Duration>,
    link: Link,
    stall: Stall,
}

/// What became of the world while a process was stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    None,
    /// Since CURRENT had this version.
    Since(u64),
    /// What it took for its own has passed to another, or moved on.
    Overtaken,
}

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Cluster {
    world: Arc<World>,
    processes: JoinSet<Result<()>>,
    running: BTreeMap<Slot, Running>,
    /// When a slot is filled again.
    due: BTreeMap<Slot, Duration>,
    /// The database is damaged: processes end because of it. How often each has.
    damaged: Option<BTreeMap<Slot, u64>>,
}

impl Cluster {
    pub(crate) fn new(world: Arc<World>) -> Self {
        let (processes, running, due) = (JoinSet::new(), BTreeMap::new(), BTreeMap::new());
        Self { world, processes, running, due, damaged: None }
    }

    /// Starts a process where none runs.
    pub(crate) fn start(&mut self, slot: Slot) {
        if self.running.contains_key(&slot) {
            return;
        }
        self.due.remove(&slot);
        self.world.forget_epoch(&slot.name());
        let machine = self.world.machine();
        let link = machine.link.clone();
        let stop = CancellationToken::new();
        let abort = self.launch(slot, machine, stop.clone());
        self.running
            .insert(slot, Running { abort, stop, stopped_at: None, link, stall: Stall::None });
    }

    fn launch(&mut self, slot: Slot, machine: Machine, stop: CancellationToken) -> AbortHandle {
        let (world, name, gone) = (Arc::clone(&self.world), slot.name(), CancellationToken::new());
        match slot {
            Slot::Writer(_) | Slot::Usurper => {
                let usurps = slot == Slot::Usurper;
                let takeover = if usurps { TakeoverWhen::Now } else { TakeoverWhen::IfDead };
                let process = WriterProcess { world, name, takeover, stop, gone };
                self.processes.spawn(process.run(machine))
            }
            Slot::Reader(_) => {
                self.processes.spawn(ReaderProcess { world, name, stop, gone }.run(machine))
            }
            Slot::Compactor | Slot::Rival | Slot::Collector => {
                let only = match slot {
                    Slot::Collector => Some("gc"),
                    Slot::Rival => Some("compact"),
                    _ => None,
                };
                self.processes.spawn(CompactorProcess { world, name, only, stop }.run(machine))
            }
        }
    }

    /// Takes note of processes that have ended, and starts those whose time has come.
    pub(crate) async fn tend(&mut self) {
        // Ends that have happened are there without waiting.
        while let Some(ended) = self.processes.try_join_next_with_id() {
            match ended {
                Ok((id, outcome)) => self.note_end(id, outcome),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        self.follow_stalls().await;
        let now = self.world.now();
        let due: Vec<_> = self.due.iter().filter(|(_, at)| **at <= now).map(|(s, _)| *s).collect();
        for slot in due {
            self.start(slot);
        }
        tokio::task::yield_now().await;
    }

    /// Counts those that wake up in a world that has gone on without them.
    async fn follow_stalls(&mut self) {
        let Some(snapshot) = self.world.auditor.look(&self.world.events).await else { return };
        let current = &snapshot.current;
        for (slot, running) in &mut self.running {
            let Stall::Since(version) = running.stall else { continue };
            let is_overtaken = match self.world.epoch_of(&slot.name()) {
                Some((Role::Writer, epoch)) => epoch < current.writer.epoch,
                Some((Role::Compactor, epoch)) => epoch < current.compactor.epoch,
                // Who holds no epoch goes by what it has read.
                None => {
                    matches!(slot, Slot::Reader(_) | Slot::Collector if version < current.version)
                }
            };
            if is_overtaken {
                running.stall = Stall::Overtaken;
            }
        }
        for (slot, running) in &mut self.running {
            if running.stall != Stall::None && !running.link.is_stalled() {
                count_wake(*slot, running.stall, &self.world.events);
                running.stall = Stall::None;
            }
        }
    }

    fn note_end(&mut self, id: Id, outcome: Result<()>) {
        let slot = self.running.iter().find(|(_, running)| running.abort.id() == id);
        let slot = slot.map(|(slot, _)| *slot);
        let name = slot.map_or_else(|| "a crashed process".to_owned(), Slot::name);
        if let Err(error) = outcome {
            if let (Error::Corrupt(_), Some(slot), Some(ended)) = (&error, slot, &mut self.damaged)
            {
                *ended.entry(slot).or_default() += 1;
                self.world.events.count("process ends over a damaged database");
            } else {
                assert!(foreseen(&error), "{name} ended with an error: {error}");
                self.world.events.count("fenced");
            }
        }
        let Some(slot) = slot else { return };
        if let Some(running) = self.running.remove(&slot) {
            count_wake(slot, running.stall, &self.world.events);
        }
        self.start_later(slot);
    }

    fn start_later(&mut self, slot: Slot) {
        if slot.is_kept() {
            let at = self.world.now() + RESTART_MAX.mul_f64(self.world.draw(Rng::random::<f64>));
            self.due.insert(slot, at);
        }
    }

    /// Ends a process wherever it is.
    pub(crate) fn crash(&mut self, slot: Slot) {
        if let Some(running) = self.running.remove(&slot) {
            running.abort.abort();
            self.world.events.count("crash");
            self.start_later(slot);
        }
    }

    /// Asks a process to stop.
    pub(crate) fn stop(&mut self, slot: Slot) {
        let now = self.world.now();
        if let Some(running) = self.running.get_mut(&slot) {
            running.stop.cancel();
            running.stopped_at.get_or_insert(now);
        }
    }

    /// A process that was told to stop so long ago and still runs, though nothing stalls it.
    pub(crate) fn overdue(&self, grace: Duration) -> Option<Slot> {
        let now = self.world.now();
        let is_overdue = |running: &Running| {
            running.stopped_at.is_some_and(|at| now > at + grace) && !running.link.is_stalled()
        };
        self.running.iter().find(|(_, running)| is_overdue(running)).map(|(slot, _)| *slot)
    }

    /// Whether a process runs here.
    pub(crate) fn runs(&self, slot: Slot) -> bool {
        self.running.contains_key(&slot)
    }

    /// From now on processes may end because the database is damaged.
    pub(crate) fn expect_damage(&mut self) {
        self.damaged.get_or_insert_default();
    }

    /// How often the process here has ended because the database is damaged.
    pub(crate) fn ends_over_damage(&self, slot: Slot) -> u64 {
        self.damaged.as_ref().and_then(|ended| ended.get(&slot).copied()).unwrap_or(0)
    }

    /// Stops the network of a process, for a while.
    pub(crate) async fn stall(&mut self, slot: Slot, length: Duration) {
        let snapshot = self.world.auditor.look(&self.world.events).await;
        if let Some(running) = self.running.get_mut(&slot) {
            running.link.stall(length);
            running.stall = Stall::Since(snapshot.map_or(0, |known| known.current.version));
            self.world.events.count("stall");
        }
    }

    /// A process that runs, at random.
    pub(crate) fn any(&self) -> Option<Slot> {
        let count = self.running.len();
        let chosen = self.world.draw(|rng| rng.random_range(0..count.max(1)));
        self.running.keys().nth(chosen).copied()
    }

    /// Lets every process be: no stalls, and all that are kept run.
    pub(crate) fn heal(&mut self) {
        for running in self.running.values() {
            running.link.stall(Duration::ZERO);
        }
        let now = self.world.now();
        self.due.values_mut().for_each(|at| *at = now);
    }

    /// Ends everything at once.
    pub(crate) async fn shut_down(&mut self) {
        self.processes.abort_all();
        while let Some(ended) = self.processes.join_next_with_id().await {
            match ended {
                Ok((id, outcome)) => self.note_end(id, outcome),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        self.running.clear();
        self.due.clear();
    }
}

fn count_wake(slot: Slot, stall: Stall, events: &Events) {
    if stall == Stall::Overtaken {
        events.count(match slot {
            Slot::Writer(_) | Slot::Usurper => "zombie writer wakes",
            Slot::Compactor | Slot::Rival => "zombie compactor wakes",
            Slot::Collector => "zombie collector wakes",
            Slot::Reader(_) => "reader wakes with an old view",
        });
    }
}
