//! Commits: flush, compact, claim, checkpoint, release, retain, and what may be deleted.
//!
//! **Abstraction.** The WAL holds `data` units from the start; a flush puts the next few of them
//! into one L0 and moves `replay_from` behind them; a compaction replaces inputs by one output with
//! the union of their data. CURRENT is swapped atomically. The swap of a flush or a compaction may
//! stay in flight after its body was PUT and land at any time while CURRENT is what it was computed
//! from, whether or not its maker has given up on it; its maker is told nothing and settles by
//! reading back. Claims, checkpoints, releases and retains are one step each: for them a late
//! landing is the same as a late step. A body that nothing can name any more is forgotten. The
//! collector dooms what the rules allow at one reading and deletes it at any later time: one
//! collector that remembers all that it ever doomed is as bad as many. Retention is zero; WAL
//! objects and fences are [`crate::log`]'s business.
//!
//! **Bounds.** A [`Config`] names the processes, the claims, and how many of each act there are.
//!
//! **Refutes** every variant of [`Variant`].

mod act;
mod collect;
mod laws;

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

const REFERENCED: &str = "nothing that is referenced is deleted";
const ONCE: &str = "the tree holds what was flushed, each datum once";

/// Number of a manifest body, for as long as something can name it.
type BodyId = u8;

/// One rule done wrong (or none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Correct,
    SettleByNonce,
    SettleFlushById,
    DeleteBodiesAbove,
    DeleteBodiesByAge,
    DeleteOwnAfterReadBack,
    OutputGoneIsFailed,
    CheckpointOlder,
    TwoReads,
    NoEpochRule,
    EpochNotAbove,
    CommitUnderOtherEpoch,
    HistoryTwoPast,
    InputsNotChecked,
    UnreferencedByAge,
    CheckpointsNotRead,
}

/// A bounded configuration.
#[derive(Clone, Debug)]
struct Config {
    variant: Variant,
    /// Units of data in the WAL; also the most L0s that a writer uploads under one epoch.
    data: u8,
    /// Claims of each process, by role.
    claims: [Vec<u8>; 2],
    /// Compaction jobs that a compactor runs at a time.
    jobs: usize,
    /// Most commits of each kind: compactions picked, checkpoints, retains.
    compactions: u8,
    checkpoints: u8,
    retains: u8,
    /// Most swaps sent for one job.
    attempts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Role {
    Writer,
    Compactor,
}

const ROLES: [Role; 2] = [Role::Writer, Role::Compactor];

impl Role {
    fn index(self) -> usize {
        match self {
            Self::Writer => 0,
            Self::Compactor => 1,
        }
    }
}

/// The name of an SST: maker's role and epoch, and a number that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Sst {
    role: Role,
    epoch: u8,
    n: u8,
}

/// An SST in a tree, with the set of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Entry {
    sst: Sst,
    data: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Body {
    version: u8,
    l0: Vec<Entry>,
    runs: Vec<Entry>,
    retired: BTreeSet<Sst>,
    checkpoints: BTreeSet<BodyId>,
}

impl Body {
    fn tree(&self) -> impl Iterator<Item = &Entry> {
        self.l0.iter().chain(&self.runs)
    }

    fn holds(&self, sst: Sst) -> bool {
        self.tree().any(|entry| entry.sst == sst)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Current {
    body: BodyId,
    version: u8,
    replay_from: u8,
    history_from: u8,
    /// By role.
    epochs: [u8; 2],
}

/// A flush or a compaction whose output is uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Job {
    out: Entry,
    /// A flush: where `replay_from` goes.
    boundary: u8,
    /// A compaction: what it replaces.
    inputs: BTreeSet<Sst>,
    /// How many bodies named its output, and the last of them (kept only where it is looked at).
    attempts: u8,
    body: BodyId,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    /// The epoch it believes to hold; 0 = none.
    epoch: u8,
    claims: u8,
    /// Uploads under this epoch.
    made: u8,
    /// A writer: where it believes `replay_from` to be.
    flushed: u8,
    jobs: Vec<Job>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Target {
    Sst(Sst),
    Body(BodyId),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Collector {
    doomed: BTreeSet<Target>,
    /// Only where age decides: what an earlier reading found unreferenced.
    aged: BTreeSet<Target>,
    /// Only [`Variant::TwoReads`]: the body of the first read.
    body: Option<BodyId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    current: Current,
    /// Bodies that something can still name, and which of them are deleted.
    bodies: BTreeMap<BodyId, Body>,
    bodies_gone: BTreeSet<BodyId>,
    ssts: BTreeSet<Sst>,
    /// Swaps that were computed from CURRENT as it is, and sent.
    in_flight: BTreeSet<Current>,
    /// By role.
    processes: [Vec<Process>; 2],
    collector: Collector,
    compactions: u8,
    checkpoints: u8,
    retains: u8,
}

impl State {
    fn body(&self) -> &Body {
        &self.bodies[&self.current.body]
    }

    fn put_body(&mut self, body: Body) -> BodyId {
        let doomed = self.collector.doomed.iter().map(|target| match target {
            Target::Body(id) => *id,
            Target::Sst(_) => 0,
        });
        let id = self.bodies.keys().copied().chain(doomed).max().unwrap_or(0) + 1;
        self.bodies.insert(id, body);
        id
    }

    /// CURRENT is swapped: every other swap that was computed from the old one fails.
    fn swap(&mut self, current: Current) {
        self.current = current;
        self.in_flight.clear();
    }

    /// A commit whose swap lands at once.
    fn commit(&mut self, body: Body, history_from: u8) {
        let version = body.version;
        let body = self.put_body(body);
        self.swap(Current { body, version, history_from, ..self.current.clone() });
    }

    /// Forgets the bodies that nothing can name any more.
    fn forget(&mut self) {
        let in_flight = self.in_flight.iter().map(|current| current.body);
        let mut named: BTreeSet<_> =
            in_flight.chain([self.current.body]).chain(self.collector.body).collect();
        let checkpoints: Vec<_> =
            named.iter().flat_map(|id| self.bodies[id].checkpoints.iter().copied()).collect();
        named.extend(checkpoints);
        self.bodies.retain(|id, _| named.contains(id));
        self.bodies_gone.retain(|id| named.contains(id));
        let keep = |target: &Target| match target {
            Target::Body(id) => named.contains(id),
            Target::Sst(_) => true,
        };
        self.collector.doomed.retain(keep);
        self.collector.aged.retain(keep);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pick {
    L0,
    Everything,
}

/// One job of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct JobAt {
    role: Role,
    process: usize,
    job: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Claim(Role, usize),
    /// A writer uploads an L0 up to a boundary.
    Flush(usize, u8),
    /// A compactor picks inputs from CURRENT's tree, and uploads the output.
    Compact(usize, Pick),
    /// The maker reads CURRENT: done, fenced, or a swap is sent (again).
    Commit(JobAt),
    /// The maker gives a job up and deletes its output.
    Abandon(JobAt),
    Land(Current),
    Checkpoint(BodyId),
    Release(BodyId),
    Retain,
    /// Only [`Variant::TwoReads`].
    ReadBody,
    Judge,
    Delete(Target),
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let process =
            |&claims: &u8| Process { epoch: 0, claims, made: 0, flushed: 0, jobs: Vec::new() };
        let body = Body {
            version: 1,
            l0: Vec::new(),
            runs: Vec::new(),
            retired: BTreeSet::new(),
            checkpoints: BTreeSet::new(),
        };
        let current =
            Current { body: 1, version: 1, replay_from: 0, history_from: 1, epochs: [0, 0] };
        vec![State {
            current,
            bodies: BTreeMap::from([(1, body)]),
            bodies_gone: BTreeSet::new(),
            ssts: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            processes: ROLES.map(|role| self.claims[role.index()].iter().map(process).collect()),
            collector: Collector::default(),
            compactions: 0,
            checkpoints: 0,
            retains: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for role in ROLES {
            for (p, process) in state.processes[role.index()].iter().enumerate() {
                self.process_actions(state, (role, p), process, actions);
            }
        }
        actions.extend(state.in_flight.iter().cloned().map(Action::Land));
        self.admin_actions(state, actions);
        self.collector_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Claim(role, process) => self.claim(&mut state, role, process),
            Action::Flush(process, boundary) => Self::flush(&mut state, process, boundary),
            Action::Compact(process, pick) => Self::compact(&mut state, process, pick),
            Action::Commit(at) => self.commit(&mut state, at),
            Action::Abandon(at) => {
                let job = state.processes[at.role.index()][at.process].jobs.remove(at.job);
                state.ssts.remove(&job.out.sst);
            }
            Action::Land(current) => state.swap(current),
            Action::Checkpoint(_) | Action::Release(_) | Action::Retain => {
                self.administer(&mut state, &action);
            }
            Action::ReadBody => state.collector.body = Some(state.current.body),
            Action::Judge => state.collector = self.judge(&state),
            Action::Delete(target) => {
                state.collector.doomed.remove(&target);
                match target {
                    Target::Sst(sst) => drop(state.ssts.remove(&sst)),
                    Target::Body(id) => drop(state.bodies_gone.insert(id)),
                }
            }
        }
        if self.variant != Variant::CheckpointOlder {
            state.forget();
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(REFERENCED, |_: &Self, state: &State| {
                let named = &state.body().checkpoints;
                [state.current.body].iter().chain(named).all(|id| {
                    !state.bodies_gone.contains(id)
                        && state.bodies[id].tree().all(|entry| state.ssts.contains(&entry.sst))
                })
            }),
            Property::always(ONCE, |_: &Self, state: &State| {
                let flushed = (1 << state.current.replay_from) - 1;
                let count: u32 = state.body().tree().map(|entry| entry.data.count_ones()).sum();
                let union = state.body().tree().fold(0, |union, entry| union | entry.data);
                union == flushed && count == flushed.count_ones()
            }),
            Property::sometimes("all data is in one run", |config: &Self, state: &State| {
                let full = (1 << config.data) - 1;
                config.compactions == 0 || state.body().runs.iter().any(|run| run.data == full)
            }),
            Property::sometimes(
                "an input of a compaction is deleted",
                |config: &Self, state: &State| {
                    let gone = |sst: &Sst| !state.ssts.contains(sst);
                    config.compactions == 0 || state.body().retired.iter().any(gone)
                },
            ),
        ]
    }
}
