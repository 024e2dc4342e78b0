//! Who may answer when: the read lease, the hold of a taker (T7) and closing.
//!
//! **Abstraction.** Time is a number of ticks; every clock reads the same ticks, so the margins for
//! the *rate* of a clock (1.1 x lease, 100 ms) are left out: the hold lasts exactly the lease that
//! the claim replaced. Between two ticks anything may happen in any order, and any process may
//! stall for as long as it likes. What is stored is the age of each instant, up to the longest
//! lease, so time is unbounded. Writers claim in the order of their index, each once, and the index
//! is the epoch; a claim is sent, takes effect (conflicts and their repetition happen before that),
//! and is known by its reply or by a GET that starts, reads and is answered at three instants. The
//! log is its length: a PUT lands while no newer fence stands ([`crate::log`] says why that is
//! enough), replay and fence are one step. A read arrives and is answered in one step (one that
//! waited is owed less); an answer older than a write that anyone has seen acknowledged or read
//! before it is stale. A failed condition is answered like a read. A promise is an acknowledgement
//! from memory (W6): it writes nothing, so all that matters is when it is given. Suspension is a
//! tick that one writer's clock does not count: only the variant has it, since a boot-time clock
//! counts all. How long a client takes to send or to read is left out: it delays no step (W7).
//!
//! **Bounds.** A [`Config`] names each writer's own lease setting in ticks and its writes (at most
//! one in flight, as is a GET of CURRENT; none is sent during the hold).
//!
//! **Refutes** every variant of [`Variant`].

mod laws;

use std::collections::BTreeSet;

use stateright::{Model, Property};

const NO_STALE: &str = "no read is stale";
const ONE_ANSWERS: &str = "nothing is answered while an older writer may answer";
const NO_LATE_PROMISE: &str = "no promise from memory follows an answer of a newer writer";

/// Index of a writer.
type Epoch = u8;
/// Ticks since an instant, at most [`Config::age_max`].
type Age = u8;

/// One rule done wrong (or none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Correct,
    ReadsInHold,
    AcksInHold,
    VerifiedAtEndOfRead,
    HoldFromSend,
    HoldFromStartOfGet,
    BothSidesInclusive,
    JudgedBeforeArrival,
    ClosedDuringHold,
    ClosedFromEarlierRead,
    ClaimKeepsClosed,
    ReadsAfterClosing,
    ReadsWhileCloseUnknown,
    TakersOwnLease,
    PredecessorsLeaseAlone,
    ClockStopsInSuspension,
    PromisesWithoutLease,
}

/// A bounded configuration: one entry of `leases` and `writes` a writer.
#[derive(Clone, Debug)]
struct Config {
    variant: Variant,
    leases: Vec<u8>,
    writes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// Only [`Variant::ClosedFromEarlierRead`]: what it saw.
    Peeked {
        closed: bool,
    },
    /// T1, the claim is sent.
    Claiming {
        sent: Age,
        landed: bool,
    },
    /// The claim is known; T2-T6 are next.
    Replaying,
    /// T7.
    Holding,
    Serving,
    Exited,
}

/// A GET of CURRENT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Check {
    started: Age,
    /// What it read: is the epoch mine?
    mine: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Put {
    None,
    Sent,
    Landed { version: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Closing {
    Open,
    Sent,
    Landed,
    Replied,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Writer {
    phase: Phase,
    /// Since when it holds, and for how long.
    held: Age,
    hold: u8,
    verified: Age,
    check: Option<Check>,
    /// The newest write that its reads show.
    view: u8,
    put: Put,
    writes: u8,
    closing: Closing,
    /// Only [`Variant::JudgedBeforeArrival`]: the flag that a poll keeps.
    polled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    // CURRENT.
    epoch: Epoch,
    lease: u8,
    closed: bool,
    /// Length of the chain, and the highest fence on it.
    chain: u8,
    fence: Epoch,
    /// History: the newest write that a client has seen, and what went wrong.
    seen: u8,
    /// History: the newest writer that has answered or acknowledged anything.
    answered: Epoch,
    broken: BTreeSet<&'static str>,
    writers: Vec<Writer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Tick,
    /// A tick that this writer's clock does not count.
    TickSuspended(Epoch),
    Peek(Epoch),
    SendClaim(Epoch),
    ClaimLands(Epoch),
    ClaimReply(Epoch),
    StartCheck(Epoch),
    CheckReads(Epoch),
    CheckReply(Epoch),
    /// Replay, T4-T6.
    Fence(Epoch),
    /// The hold is over.
    Serve(Epoch),
    /// A claim's lease setting replaces a predecessor's longer one.
    LowerLease(Epoch),
    SendPut(Epoch),
    PutLands(Epoch),
    /// The PUT is proven and acknowledged.
    Ack(Epoch),
    Poll(Epoch),
    /// A read arrives and is answered.
    Answer(Epoch),
    /// W6: a write is acknowledged from memory.
    Promise(Epoch),
    SendClose(Epoch),
    CloseLands(Epoch),
    CloseReply(Epoch),
}

impl Writer {
    fn new(writes: u8, never: Age) -> Self {
        Self {
            phase: Phase::Idle,
            held: never,
            hold: 0,
            verified: never,
            check: None,
            view: 0,
            put: Put::None,
            writes,
            closing: Closing::Open,
            polled: false,
        }
    }

    fn exit(&mut self, never: Age) {
        *self = Self { phase: Phase::Exited, ..Self::new(0, never) };
    }

    /// T1's claim is proven by a reply that arrived now, to a request of the age `started`.
    fn claimed(&mut self, started: Age, held: Age) {
        (self.phase, self.verified, self.held) = (Phase::Replaying, started, held);
    }

    fn tick(&mut self, max: Age) {
        let older = |age: &mut Age| *age = (*age + 1).min(max);
        older(&mut self.held);
        older(&mut self.verified);
        if let Phase::Claiming { sent, .. } = &mut self.phase {
            older(sent);
        }
        if let Some(check) = &mut self.check {
            older(&mut check.started);
        }
    }
}

impl Config {
    /// Ages from here on are all the same: beyond every lease, inclusive or not.
    fn age_max(&self) -> Age {
        self.leases.iter().max().expect("at least one writer") + 1
    }

    fn is(&self, variant: Variant) -> bool {
        self.variant == variant
    }

    fn lease_valid(&self, w: Epoch, writer: &Writer) -> bool {
        let lease = self.leases[usize::from(w)];
        writer.verified < lease
            || (self.is(Variant::BothSidesInclusive) && writer.verified == lease)
    }

    /// Would a read that waits at this writer be answered now?
    fn may_answer(&self, w: Epoch, writer: &Writer) -> bool {
        let phase = writer.phase == Phase::Serving
            || (self.is(Variant::ReadsInHold) && writer.phase == Phase::Holding);
        let open = match writer.closing {
            Closing::Open => true,
            Closing::Sent | Closing::Landed => {
                self.is(Variant::ReadsAfterClosing) || self.is(Variant::ReadsWhileCloseUnknown)
            }
            Closing::Replied => self.is(Variant::ReadsAfterClosing),
        };
        let valid = match self.variant {
            Variant::JudgedBeforeArrival => writer.polled,
            _ => self.lease_valid(w, writer),
        };
        phase && open && valid
    }

    /// Would a write be acknowledged from memory now?
    fn may_promise(&self, w: Epoch, writer: &Writer) -> bool {
        let blind = self.is(Variant::PromisesWithoutLease) && writer.phase == Phase::Serving;
        blind || self.may_answer(w, writer)
    }

    fn takeover_actions(&self, state: &State, w: Epoch, actions: &mut Vec<Action>) {
        let writer = &state.writers[usize::from(w)];
        match writer.phase {
            Phase::Idle if self.is(Variant::ClosedFromEarlierRead) => {
                actions.push(Action::Peek(w));
            }
            Phase::Idle | Phase::Peeked { .. } => actions.push(Action::SendClaim(w)),
            Phase::Claiming { landed: true, .. } => actions.push(Action::ClaimReply(w)),
            Phase::Claiming { .. } if state.epoch + 1 == w => actions.push(Action::ClaimLands(w)),
            Phase::Replaying => actions.push(Action::Fence(w)),
            Phase::Holding if writer.held >= writer.hold => actions.push(Action::Serve(w)),
            _ => {}
        }
        match writer.check {
            Some(Check { mine: None, .. }) => actions.push(Action::CheckReads(w)),
            Some(_) => actions.push(Action::CheckReply(w)),
            None => match writer.phase {
                Phase::Claiming { .. } => actions.push(Action::StartCheck(w)),
                Phase::Serving if writer.closing == Closing::Open => {
                    actions.push(Action::StartCheck(w));
                }
                _ => {}
            },
        }
    }

    fn serving_actions(&self, state: &State, w: Epoch, actions: &mut Vec<Action>) {
        let writer = &state.writers[usize::from(w)];
        let (holding, serving) = (writer.phase == Phase::Holding, writer.phase == Phase::Serving);
        let mine = state.epoch == w;
        if serving && mine && state.lease > self.leases[usize::from(w)] {
            actions.push(Action::LowerLease(w));
        }
        match writer.put {
            Put::None if (holding || serving) && writer.writes > 0 => {
                actions.push(Action::SendPut(w));
            }
            Put::Sent if state.fence <= w => actions.push(Action::PutLands(w)),
            Put::Landed { .. } if serving || (holding && self.is(Variant::AcksInHold)) => {
                actions.push(Action::Ack(w));
            }
            _ => {}
        }
        if self.may_answer(w, writer) {
            actions.push(Action::Answer(w));
        }
        // Where it breaks nothing it changes nothing.
        if self.may_promise(w, writer) && state.answered > w {
            actions.push(Action::Promise(w));
        }
        if serving && self.is(Variant::JudgedBeforeArrival) {
            actions.push(Action::Poll(w));
        }
        match writer.closing {
            Closing::Open if serving || (holding && self.is(Variant::ClosedDuringHold)) => {
                actions.push(Action::SendClose(w));
            }
            Closing::Sent if mine => actions.push(Action::CloseLands(w)),
            Closing::Landed if self.is(Variant::ReadsWhileCloseUnknown) => {
                actions.push(Action::CloseReply(w));
            }
            _ => {}
        }
    }

    fn take_over(&self, state: &mut State, action: Action, w: Epoch) {
        let own_lease = self.leases[usize::from(w)];
        let writer = &mut state.writers[usize::from(w)];
        match (action, writer.phase) {
            (Action::Peek(_), _) => writer.phase = Phase::Peeked { closed: state.closed },
            (Action::SendClaim(_), phase) => {
                // SUBTLE: until the claim lands, `hold` = 0 says that an earlier read saw `closed`.
                writer.hold = u8::from(phase != (Phase::Peeked { closed: true }));
                writer.phase = Phase::Claiming { sent: 0, landed: false };
            }
            (Action::ClaimLands(_), Phase::Claiming { sent, .. }) => {
                let closed = match self.variant {
                    Variant::ClosedFromEarlierRead => writer.hold == 0,
                    _ => state.closed,
                };
                writer.hold = match self.variant {
                    _ if closed => 0,
                    Variant::TakersOwnLease => own_lease,
                    _ => state.lease,
                };
                writer.phase = Phase::Claiming { sent, landed: true };
                state.epoch = w;
                state.lease = match self.variant {
                    Variant::PredecessorsLeaseAlone => own_lease,
                    _ => state.lease.max(own_lease),
                };
                state.closed &= self.is(Variant::ClaimKeepsClosed);
            }
            (Action::ClaimReply(_), Phase::Claiming { sent, .. }) => {
                writer.check = None;
                writer.claimed(sent, if self.is(Variant::HoldFromSend) { sent } else { 0 });
            }
            (Action::Fence(_), _) if state.epoch != w => writer.exit(self.age_max()),
            (Action::Fence(_), _) => {
                (writer.phase, writer.view) = (Phase::Holding, state.chain);
                state.fence = w;
            }
            (Action::Serve(_), _) => {
                (writer.phase, writer.held, writer.hold) = (Phase::Serving, self.age_max(), 0);
            }
            other => unreachable!("{other:?} is not a step of a takeover"),
        }
    }

    fn check(&self, state: &mut State, action: Action, w: Epoch) {
        let writer = &mut state.writers[usize::from(w)];
        match (action, writer.check) {
            (Action::StartCheck(_), _) => writer.check = Some(Check { started: 0, mine: None }),
            (Action::CheckReads(_), Some(check)) => {
                writer.check = Some(Check { mine: Some(state.epoch == w), ..check });
            }
            (Action::CheckReply(_), Some(Check { started, mine })) => {
                let (mine, claiming) =
                    (mine == Some(true), matches!(writer.phase, Phase::Claiming { .. }));
                writer.check = None;
                if mine && claiming {
                    let from_start = self.is(Variant::HoldFromStartOfGet);
                    writer.claimed(started, if from_start { started } else { 0 });
                } else if mine {
                    let at_end = self.is(Variant::VerifiedAtEndOfRead);
                    writer.verified = writer.verified.min(if at_end { 0 } else { started });
                } else if !claiming {
                    writer.exit(self.age_max());
                }
            }
            other => unreachable!("{other:?} is not a step of a check"),
        }
    }

    fn serve(&self, state: &mut State, action: Action, w: Epoch) {
        let older = state.writers.iter().zip(0..w).any(|(writer, e)| self.may_answer(e, writer));
        let writer = &mut state.writers[usize::from(w)];
        match action {
            Action::LowerLease(_) => state.lease = self.leases[usize::from(w)],
            Action::SendPut(_) => writer.put = Put::Sent,
            Action::PutLands(_) => {
                state.chain += 1;
                writer.put = Put::Landed { version: state.chain };
            }
            Action::Ack(_) => {
                if let Put::Landed { version } = writer.put {
                    (writer.view, writer.put) = (version, Put::None);
                }
                writer.writes -= 1;
                state.answered = state.answered.max(w);
                state.seen = state.seen.max(writer.view);
                if older {
                    state.broken.insert(ONE_ANSWERS);
                }
            }
            Action::Poll(_) => writer.polled = self.lease_valid(w, writer),
            Action::Answer(_) => {
                if writer.view < state.seen {
                    state.broken.insert(NO_STALE);
                }
                state.seen = state.seen.max(writer.view);
                state.answered = state.answered.max(w);
                if older {
                    state.broken.insert(ONE_ANSWERS);
                }
            }
            Action::Promise(_) => drop(state.broken.insert(NO_LATE_PROMISE)),
            Action::SendClose(_) => writer.closing = Closing::Sent,
            Action::CloseLands(_) => {
                writer.closing = Closing::Landed;
                state.closed = true;
            }
            Action::CloseReply(_) => writer.closing = Closing::Replied,
            other => unreachable!("{other:?} is not a step of serving"),
        }
    }
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let never = self.age_max();
        let mut writers: Vec<_> =
            self.writes.iter().map(|&writes| Writer::new(writes, never)).collect();
        writers[0].phase = Phase::Serving;
        vec![State {
            epoch: 0,
            lease: self.leases[0],
            closed: false,
            chain: 0,
            fence: 0,
            seen: 0,
            answered: 0,
            broken: BTreeSet::new(),
            writers,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        for w in (0..).take(self.leases.len()) {
            if self.is(Variant::ClockStopsInSuspension) {
                actions.push(Action::TickSuspended(w));
            }
            self.takeover_actions(state, w, actions);
            self.serving_actions(state, w, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => state.writers.iter_mut().for_each(|writer| writer.tick(self.age_max())),
            Action::TickSuspended(w) => {
                for (e, writer) in (0..).zip(&mut state.writers) {
                    if e != w {
                        writer.tick(self.age_max());
                    }
                }
            }
            Action::Peek(w)
            | Action::SendClaim(w)
            | Action::ClaimLands(w)
            | Action::ClaimReply(w)
            | Action::Fence(w)
            | Action::Serve(w) => self.take_over(&mut state, action, w),
            Action::StartCheck(w) | Action::CheckReads(w) | Action::CheckReply(w) => {
                self.check(&mut state, action, w);
            }
            Action::LowerLease(w)
            | Action::SendPut(w)
            | Action::PutLands(w)
            | Action::Ack(w)
            | Action::Poll(w)
            | Action::Answer(w)
            | Action::Promise(w)
            | Action::SendClose(w)
            | Action::CloseLands(w)
            | Action::CloseReply(w) => self.serve(&mut state, action, w),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_STALE, |_: &Self, state: &State| !state.broken.contains(NO_STALE)),
            Property::always(ONE_ANSWERS, |_: &Self, state: &State| {
                !state.broken.contains(ONE_ANSWERS)
            }),
            Property::always(NO_LATE_PROMISE, |_: &Self, state: &State| {
                !state.broken.contains(NO_LATE_PROMISE)
            }),
            Property::sometimes("the last writer answers", |config: &Self, state: &State| {
                let last = config.leases.len() - 1;
                let (writer, w) = (&state.writers[last], (0..).nth(last).unwrap_or_default());
                config.may_answer(w, writer)
            }),
        ]
    }
}
