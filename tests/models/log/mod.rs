//! The log: takeover T1-T6, serving W1-W4, following R1-R4 and the collection of WAL objects. The
//! hold (T7) and the read lease are about time and live in [`crate::lease`].
//!
//! **Theft.** With [`Config::thefts`], somebody else deletes an acknowledged object of the chain
//! that a later object can prove (T2b, in [`hole`]): no takeover serves without it, and nothing is
//! called missing that is not.
//!
//! **Abstraction.** Writers take over in the order of their index, each once; a writer's index is
//! its epoch (a process that claims again is another writer). Writer 0 serves at id 1 from the
//! start. A PUT that was sent may land at any later time and any number of times, as long as the id
//! is empty: that covers delays, hedges, retries, lost and repeated responses, and the death or
//! stall of the sender (a process that takes no further step). A reply is a separate step. A claim
//! and a flush commit are one step each: an undecided swap of CURRENT is [`crate::commits`]'s
//! business, and everything after the swap can be delayed here. A datum is `(writer, n)`; the tree
//! is the list of flushed data. The follower is in [`follow`].
//!
//! **Bounds.** A [`Config`] names the writers, their windows K and numbers of writes, and the jump
//! J, scaled down from 1,024 to 2 or 3.
//!
//! **Refutes** every variant of [`Variant`].

mod follow;
mod hole;
mod laws;

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

use self::follow::{Follower, Said};

const NOT_LOST: &str = "no acknowledged write is lost";
const ONCE: &str = "no write is on the chain twice";
const NO_ZOMBIE: &str = "nothing of an older writer follows a newer one on the chain";
const ONE_WINNER: &str = "an id is won by one writer";
const PREFIX: &str = "a follower has applied a prefix";
const COMPLETE: &str = "no takeover serves on a chain that lost an acknowledged object";
const NO_FALSE_ALARM: &str = "a healthy bucket is never convicted";
const UNTOUCHED: &str = "nothing is written where an object is missing";
const FRESH: &str = "a view has what was acknowledged before the moment it is called fresh as of";

/// Position on the chain, and number of a WAL object.
type Id = u8;
/// Index of a writer.
type Epoch = u8;

/// One step of the protocol done wrong (or none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Correct,
    NextIsOne,
    JumpBelowWindow,
    JumpOfTakersWindow,
    JumpOfPredecessorsWindow,
    AcksOutOfOrder,
    WindowByOutstanding,
    BoundaryBeforeBump,
    NoRereadAfterFence,
    /// The boundary taken from the id of a fence, as if it were a datum: the id itself is a
    /// position on the chain (and is a boundary in the correct protocol too), the next one is not.
    BoundaryPastFenceId,
    /// The SST holds sent batches behind its boundary.
    FlushOfUnproven,
    /// Applies what it read, though replay may begin behind it.
    FollowerWithoutReread,
    /// When R3 fails it takes the tree, and goes on walking from its own position.
    FollowerGoesOn,
    /// Keeps an absent id beyond the look in which it was read.
    FollowerKeepsAbsents,
    /// Calls a view as fresh as the moment of R3.
    FollowerDatesByItsEnd,
    /// Takes an absent id before `replay_from` for the end: it may have been collected.
    FollowerTrustsPassedAbsent,
    CollectsOrphansBehindFence,
    CollectsFences,
    ExistsIsSuccess,
    ExistsIsNextId,
    StartsRightAfterFence,
    DropsObjectMetByFence,
    /// T2b: any later object convicts, whatever it says.
    ConvictsByPresence,
    /// T2b: what is proven must be above the end.
    ConvictsAboveTheEnd,
    /// T2b: the stamp says what was sent, not what was proven.
    StampsWhatWasSent,
    /// T2b: data in the window only, so that nothing proves a lost fence.
    LooksAtTheWindowOnly,
    /// T2b: the end is not read again before it is called missing.
    ConvictsWithoutSecondGet,
    /// T2b: CURRENT is not read again before the end is called missing.
    ConvictsWithoutReread,
    /// T2b, without a role: CURRENT must be behind the end of the walk, not behind its beginning.
    ConvictsByTheEndOfTheWalk,
    /// T2b: only at the first end, not at the next one after T5 met an object.
    LooksOnce,
    /// T2b: once the fence is there.
    LooksAfterTheFence,
    /// Not broken: an id counts as the end because it was absent once, before or after T1.
    ReadsAhead,
}

/// A bounded configuration: one entry of `windows` and `writes` a writer.
#[derive(Clone, Debug)]
struct Config {
    variant: Variant,
    windows: Vec<u8>,
    writes: Vec<u8>,
    jump: u8,
    /// How many ids a follower asks for from its position on; 0 = no follower.
    stretch: u8,
    /// Most flush commits.
    flushes: u8,
    /// Most acknowledged objects that somebody else deletes; `None` = without T2b.
    thefts: Option<u8>,
    /// Whether a process without a role walks the chain and looks for holes.
    observer: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Datum {
    by: Epoch,
    n: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Object {
    Data(Datum),
    Fence { by: Epoch, next: Id },
}

impl Object {
    /// Before every other one.
    const MIN: Self = Self::Data(Datum { by: 0, n: 0 });

    fn by(self) -> Epoch {
        match self {
            Self::Data(datum) => datum.by,
            Self::Fence { by, .. } => by,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Waiting,
    /// Only [`Variant::BoundaryBeforeBump`]: has read CURRENT, not claimed yet.
    Peeked(Id),
    /// T2, about to GET its position.
    Walking,
    /// T2 met the end; T2b is next, or T4 in a model without it.
    AtEnd,
    /// T2b found an object that proves the end was acknowledged.
    Suspecting,
    /// T2b read the end again, and it is still absent: T4 decides.
    Accusing,
    /// T2b found nothing, T4 is next.
    Looked,
    /// T5, the fence is sent.
    Fencing,
    /// T5 is definite, T6 is next.
    Fenced,
    Serving,
    /// T2b: an acknowledged object is missing at its position.
    Convicted,
    Exited,
}

/// What became of a create, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome {
    Open,
    /// It succeeded: a reply that says so may arrive, or a GET may show it.
    Won,
    /// The writer knows.
    Proven,
}

/// A sent and not yet acknowledged object of a serving writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Own {
    id: Id,
    n: u8,
    outcome: Outcome,
    /// Only [`Variant::FlushOfUnproven`]: it is in an SST already.
    flushed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Writer {
    phase: Phase,
    /// Its position: of the walk, then its lowest unproven own id.
    at: Id,
    /// Id of its fence.
    fence: Id,
    /// Applied and proven, not flushed.
    memtable: Vec<(Id, Datum)>,
    own: Vec<Own>,
    next_id: Id,
    next_n: u8,
    /// Whether T2b was done: only [`Variant::LooksOnce`] asks.
    has_looked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    // CURRENT and what it names.
    epoch: Epoch,
    replay_from: Id,
    tree: Vec<Datum>,
    /// History: the highest epoch on the chain before `replay_from`.
    epoch_flushed: Epoch,
    flushes: u8,
    wal: BTreeMap<Id, Object>,
    /// Every PUT that was ever sent.
    sent: BTreeSet<(Id, Object)>,
    acked: BTreeSet<(Id, Datum)>,
    writers: Vec<Writer>,
    follower: Option<Follower>,
    /// What each datum says is proven (with T2b only).
    sealed: BTreeMap<Datum, Id>,
    /// What somebody else has deleted.
    stolen: BTreeSet<Id>,
    observer: Option<hole::Observer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A PUT reaches the store and finds the id empty.
    Land(Id, Object),
    /// The collector deletes an object.
    Collect(Id),
    Peek(Epoch),
    /// T1.
    Claim(Epoch),
    /// T2, one GET.
    Walk(Epoch),
    /// T2, the end as an earlier read found it.
    Assume(Epoch),
    /// T4, and the fence is sent.
    SendFence(Epoch),
    /// T5: the create's outcome is known.
    SettleFence(Epoch),
    /// T6.
    Confirm(Epoch),
    /// W1.
    Send(Epoch),
    /// W2: own object number `.1` is proven; W3: acknowledge what may be.
    Prove(Epoch, usize),
    /// W2: exists, and it is another's.
    Refuse(Epoch, usize),
    /// W4: commits the first `.1` data of the memtable, with this boundary.
    Flush(Epoch, usize, Id),
    /// R2, one GET.
    Fetch(Id),
    /// R3, then apply or re-base.
    Judge,
    /// T2b: LIST behind the end, and GET what may prove something.
    Look(Epoch),
    /// T2b: GET the end again.
    LookAgain(Epoch),
    /// T2b: T4, and the verdict.
    Accuse(Epoch),
    /// Somebody else deletes an acknowledged object.
    Steal(Id),
    /// One step of the observer.
    Observe,
}

/// One object along the chain, and where it leads.
fn step(at: Id, object: Object) -> Id {
    match object {
        Object::Data(_) => at + 1,
        Object::Fence { next, .. } => next,
    }
}

impl State {
    /// The chain from `from` up to its end.
    fn chain(&self, from: Id) -> Vec<(Id, Object)> {
        let (mut at, mut chain) = (from, Vec::new());
        while let Some(&object) = self.wal.get(&at) {
            chain.push((at, object));
            at = step(at, object);
        }
        chain
    }

    /// All data in order: the tree, then what the chain adds to it.
    fn data(&self) -> Vec<Datum> {
        let mut data = self.tree.clone();
        for (_, object) in self.chain(self.replay_from) {
            if let Object::Data(datum) = object
                && !self.tree.contains(&datum)
            {
                data.push(datum);
            }
        }
        data
    }

    fn send(&mut self, id: Id, object: Object) {
        self.sent.insert((id, object));
    }

    fn exit(&mut self, w: Epoch) {
        let writer = &mut self.writers[usize::from(w)];
        *writer = Writer { phase: Phase::Exited, ..Writer::waiting() };
    }
}

impl Writer {
    fn waiting() -> Self {
        Self {
            phase: Phase::Waiting,
            at: 0,
            fence: 0,
            memtable: Vec::new(),
            own: Vec::new(),
            next_id: 0,
            next_n: 0,
            has_looked: false,
        }
    }

    fn serve_from(&mut self, id: Id) {
        (self.phase, self.at, self.next_id) = (Phase::Serving, id, id);
    }

    /// Where a flush may put `replay_from`: with how much of the memtable before it.
    fn boundaries(&self) -> impl Iterator<Item = (usize, Id)> {
        let inner = self.memtable.iter().enumerate().map(|(i, &(id, _))| (i + 1, id + 1));
        inner.chain([(self.memtable.len(), self.at)])
    }
}

impl Config {
    fn jump(&self, taker: Epoch) -> u8 {
        let window = |w: Epoch| self.windows[usize::from(w)];
        match self.variant {
            Variant::NextIsOne => 1,
            Variant::JumpBelowWindow => self.windows[0] - 1,
            Variant::JumpOfTakersWindow => window(taker),
            Variant::JumpOfPredecessorsWindow => window(taker - 1),
            _ => self.jump,
        }
    }

    fn may_send(&self, w: Epoch, writer: &Writer) -> bool {
        let (w, k) = (usize::from(w), self.windows[usize::from(w)]);
        let room = if self.variant == Variant::WindowByOutstanding {
            writer.own.iter().filter(|own| own.outcome != Outcome::Proven).count() < usize::from(k)
        } else {
            writer.next_id < writer.at + k
        };
        writer.phase == Phase::Serving && writer.next_n < self.writes[w] && room
    }

    fn may_collect(&self, state: &State, id: Id) -> bool {
        let is_fence = matches!(state.wal[&id], Object::Fence { .. });
        let jumped = || {
            state.wal.iter().any(|(&fence, &object)| {
                matches!(object, Object::Fence { next, .. } if fence < id && id < next)
            })
        };
        match self.variant {
            Variant::CollectsFences => id < state.replay_from,
            Variant::CollectsOrphansBehindFence => {
                !is_fence && (id < state.replay_from || jumped())
            }
            _ => !is_fence && id < state.replay_from,
        }
    }

    fn writer_actions(&self, state: &State, w: Epoch, actions: &mut Vec<Action>) {
        let writer = &state.writers[usize::from(w)];
        let found = state.wal.get(&writer.at);
        match writer.phase {
            Phase::Waiting if self.variant == Variant::BoundaryBeforeBump => {
                actions.push(Action::Peek(w));
            }
            Phase::Waiting | Phase::Peeked(_) if state.epoch + 1 == w => {
                actions.push(Action::Claim(w));
            }
            Phase::Walking => {
                actions.push(Action::Walk(w));
                if self.variant == Variant::ReadsAhead {
                    actions.push(Action::Assume(w));
                }
            }
            Phase::AtEnd if self.looks_at_end(writer) => actions.push(Action::Look(w)),
            Phase::AtEnd | Phase::Looked => actions.push(Action::SendFence(w)),
            Phase::Suspecting => actions.push(Action::LookAgain(w)),
            Phase::Accusing => actions.push(Action::Accuse(w)),
            Phase::Fencing if found.is_some() => actions.push(Action::SettleFence(w)),
            Phase::Fenced => actions.push(Action::Confirm(w)),
            _ => {}
        }
        if self.may_send(w, writer) {
            actions.push(Action::Send(w));
        }
        for (i, own) in writer.own.iter().enumerate() {
            let exists = state.wal.get(&own.id);
            let blind = self.variant == Variant::ExistsIsSuccess && exists.is_some();
            if own.outcome == Outcome::Won || (own.outcome == Outcome::Open && blind) {
                actions.push(Action::Prove(w, i));
            }
            let others = exists.is_some_and(|object| object.by() != w);
            let blind = self.variant == Variant::ExistsIsNextId && exists.is_some();
            if own.outcome != Outcome::Proven && (others || blind) {
                actions.push(Action::Refuse(w, i));
            }
        }
        if w == state.epoch && state.flushes < self.flushes {
            for (count, boundary) in writer.boundaries() {
                if boundary > state.replay_from {
                    actions.push(Action::Flush(w, count, boundary));
                }
            }
            let unproven = self.variant == Variant::FlushOfUnproven && !writer.own.is_empty();
            let on_fence = self.variant == Variant::BoundaryPastFenceId
                && writer.fence > 0
                && writer.phase == Phase::Serving;
            if unproven {
                actions.push(Action::Flush(w, writer.memtable.len() + 1, writer.at));
            }
            if on_fence && writer.fence >= state.replay_from {
                actions.push(Action::Flush(w, writer.memtable.len(), writer.fence + 1));
            }
        }
    }

    fn take_over(&self, state: &mut State, action: Action, w: Epoch) {
        let current = state.epoch;
        let writer = &mut state.writers[usize::from(w)];
        match action {
            Action::Peek(_) => writer.phase = Phase::Peeked(state.replay_from),
            Action::Claim(_) => {
                writer.at = match writer.phase {
                    Phase::Peeked(from) => from,
                    _ => state.replay_from,
                };
                writer.phase = Phase::Walking;
                state.epoch = w;
            }
            Action::Walk(_) => match state.wal.get(&writer.at) {
                Some(&object) => Self::meet(state, w, object),
                None => writer.phase = Phase::AtEnd,
            },
            Action::Assume(_) => writer.phase = Phase::AtEnd,
            Action::SendFence(_) | Action::Confirm(_)
                if current != w
                    && !(writer.phase == Phase::Fenced
                        && self.variant == Variant::NoRereadAfterFence) =>
            {
                state.exit(w);
            }
            Action::SendFence(_) => {
                let fence = Object::Fence { by: w, next: writer.at + self.jump(w) };
                (writer.phase, writer.fence) = (Phase::Fencing, writer.at);
                let at = writer.at;
                state.send(at, fence);
            }
            Action::SettleFence(_) => match state.wal[&writer.at] {
                object if object.by() == w => {
                    writer.phase = Phase::Fenced;
                    if self.variant == Variant::LooksAfterTheFence {
                        self.look(state, w);
                    }
                }
                Object::Data(datum)
                    if datum.by < w && self.variant == Variant::DropsObjectMetByFence =>
                {
                    (writer.phase, writer.at) = (Phase::Walking, writer.at + 1);
                }
                object => Self::meet(state, w, object),
            },
            Action::Confirm(_) => {
                let first = match self.variant {
                    Variant::StartsRightAfterFence => writer.at + 1,
                    _ => writer.at + self.jump(w),
                };
                writer.serve_from(first);
            }
            other => unreachable!("{other:?} is not a step of a takeover"),
        }
    }

    /// T2: a walker meets an object at its position.
    fn meet(state: &mut State, w: Epoch, object: Object) {
        let writer = &mut state.writers[usize::from(w)];
        if object.by() > w {
            return state.exit(w);
        }
        if let Object::Data(datum) = object {
            writer.memtable.push((writer.at, datum));
        }
        (writer.phase, writer.at) = (Phase::Walking, step(writer.at, object));
    }

    fn serve(&self, state: &mut State, action: Action, w: Epoch) {
        let writer = &mut state.writers[usize::from(w)];
        match action {
            Action::Send(_) => {
                let (id, n) = (writer.next_id, writer.next_n);
                if self.thefts.is_some() {
                    let proven = match self.variant {
                        Variant::StampsWhatWasSent => id - 1,
                        _ => writer.at - 1,
                    };
                    state.sealed.insert(Datum { by: w, n }, proven);
                }
                writer.own.push(Own { id, n, outcome: Outcome::Open, flushed: false });
                (writer.next_id, writer.next_n) = (id + 1, n + 1);
                state.send(id, Object::Data(Datum { by: w, n }));
            }
            Action::Prove(_, i) => {
                writer.own[i].outcome = Outcome::Proven;
                if self.variant == Variant::AcksOutOfOrder {
                    let own = writer.own[i];
                    state.acked.insert((own.id, Datum { by: w, n: own.n }));
                }
                let proven = writer.own.iter().take_while(|own| own.outcome == Outcome::Proven);
                let proven = proven.count();
                for own in writer.own.drain(..proven) {
                    let datum = Datum { by: w, n: own.n };
                    state.acked.insert((own.id, datum));
                    if !own.flushed {
                        writer.memtable.push((own.id, datum));
                    }
                    writer.at = own.id + 1;
                }
            }
            Action::Refuse(_, i) if self.variant == Variant::ExistsIsNextId => {
                let (id, n) = (writer.next_id, writer.own[i].n);
                (writer.own[i].id, writer.own[i].outcome) = (id, Outcome::Open);
                writer.next_id += 1;
                state.send(id, Object::Data(Datum { by: w, n }));
            }
            Action::Refuse(..) => state.exit(w),
            other => unreachable!("{other:?} is not a step of serving"),
        }
    }

    fn flush(state: &mut State, w: Epoch, count: usize, boundary: Id) {
        let writer = &mut state.writers[usize::from(w)];
        let proven = count.min(writer.memtable.len());
        state.tree.extend(writer.memtable.drain(..proven).map(|(_, datum)| datum));
        if count > proven {
            for own in &mut writer.own {
                own.flushed = true;
                state.tree.push(Datum { by: w, n: own.n });
            }
        }
        let passed = state.chain(state.replay_from);
        let passed = passed.iter().take_while(|&&(id, _)| id < boundary);
        state.epoch_flushed =
            passed.map(|(_, object)| object.by()).fold(state.epoch_flushed, Epoch::max);
        state.replay_from = boundary;
        state.flushes += 1;
    }
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut writers = vec![Writer::waiting(); self.windows.len()];
        writers[0].serve_from(1);
        vec![State {
            epoch: 0,
            replay_from: 1,
            tree: Vec::new(),
            epoch_flushed: 0,
            flushes: 0,
            wal: BTreeMap::new(),
            sent: BTreeSet::new(),
            acked: BTreeSet::new(),
            writers,
            follower: (self.stretch > 0).then(Follower::new),
            sealed: BTreeMap::new(),
            stolen: BTreeSet::new(),
            observer: self.observer.then_some(hole::Observer::IDLE),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let empty = |id: &Id| !state.wal.contains_key(id);
        actions.extend(
            state.sent.iter().filter(|(id, _)| empty(id)).map(|&(id, put)| Action::Land(id, put)),
        );
        actions.extend(
            state
                .wal
                .keys()
                .filter(|&&id| self.may_collect(state, id))
                .map(|&id| Action::Collect(id)),
        );
        for w in (0..).take(self.windows.len()) {
            self.writer_actions(state, w, actions);
        }
        actions.extend(self.thefts(state).map(Action::Steal));
        if state.observer.is_some() {
            actions.push(Action::Observe);
        }
        if let Some(follower) = &state.follower {
            actions.extend(follower.asks(self, state).into_iter().map(Action::Fetch));
            if follower.may_judge(state.replay_from) {
                actions.push(Action::Judge);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Land(id, object) => {
                state.wal.insert(id, object);
                let writer = &mut state.writers[usize::from(object.by())];
                for own in writer.own.iter_mut().filter(|own| own.id == id) {
                    if own.outcome == Outcome::Open {
                        own.outcome = Outcome::Won;
                    }
                }
            }
            Action::Collect(id) => drop(state.wal.remove(&id)),
            Action::Peek(w)
            | Action::Claim(w)
            | Action::Walk(w)
            | Action::Assume(w)
            | Action::SendFence(w)
            | Action::SettleFence(w)
            | Action::Confirm(w) => self.take_over(&mut state, action, w),
            Action::Send(w) | Action::Prove(w, _) | Action::Refuse(w, _) => {
                self.serve(&mut state, action, w);
            }
            Action::Flush(w, count, boundary) => Self::flush(&mut state, w, count, boundary),
            Action::Fetch(id) => {
                let follower = state.follower.as_mut().expect("only a follower fetches");
                follower.fetch(id, last.wal.get(&id).copied(), &last.acked);
            }
            Action::Judge => {
                let follower = state.follower.as_mut().expect("only a follower judges");
                follower.judge(self.variant, last);
            }
            Action::Look(w) => self.look(&mut state, w),
            Action::LookAgain(w) => self.look_again(&mut state, w),
            Action::Accuse(w) => Self::accuse(&mut state, w),
            Action::Steal(id) => {
                state.wal.remove(&id);
                state.stolen.insert(id);
            }
            Action::Observe => self.observe(&mut state),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_LOST, |_: &Self, state: &State| {
                let data = state.data();
                let is_there = |&(_, datum): &(Id, Datum)| data.contains(&datum);
                !state.stolen.is_empty() || state.acked.iter().all(is_there)
            }),
            Property::always(ONCE, |_: &Self, state: &State| {
                let mut seen = BTreeSet::new();
                let chain = state.chain(state.replay_from);
                chain.iter().all(|(_, object)| seen.insert(*object))
            }),
            Property::always(NO_ZOMBIE, |_: &Self, state: &State| {
                let chain = state.chain(state.replay_from);
                let epochs = chain.iter().map(|(_, object)| object.by());
                [state.epoch_flushed].into_iter().chain(epochs).is_sorted()
            }),
            Property::always(ONE_WINNER, |_: &Self, state: &State| {
                let mut seen = BTreeSet::new();
                state.acked.iter().all(|&(id, _)| seen.insert(id))
            }),
            Property::always(PREFIX, |_: &Self, state: &State| {
                let follower = state.follower.as_ref();
                follower.is_none_or(|follower| state.data().starts_with(&follower.view))
            }),
            Property::always(COMPLETE, |_: &Self, state: &State| state.is_complete()),
            Property::always(NO_FALSE_ALARM, |_: &Self, state: &State| state.alarms_are_true()),
            Property::always(UNTOUCHED, |_: &Self, state: &State| state.holes_are_untouched()),
            Property::sometimes("a missing object is found", |model: &Self, state: &State| {
                model.thefts.unwrap_or(0) == 0 || state.has_alarm()
            }),
            Property::always(FRESH, |_: &Self, state: &State| {
                state.follower.as_ref().is_none_or(|follower| follower.said != Said::Lie)
            }),
            Property::sometimes(
                "a follower is fresh after R3 failed",
                |config: &Self, state: &State| {
                    let follower = state.follower.as_ref();
                    config.flushes == 0
                        || follower.is_none_or(|follower| follower.said == Said::FreshAfterRebase)
                },
            ),
            Property::sometimes("the last writer serves", |_: &Self, state: &State| {
                state.writers.last().is_some_and(|last| last.phase == Phase::Serving)
            }),
        ]
    }
}
