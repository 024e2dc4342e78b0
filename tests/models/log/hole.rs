//! T2b: whether the end of a walk is the chain's end, or a hole that somebody else made.
//!
//! **The thief** deletes an acknowledged object, or a fence that was confirmed, at or after
//! `replay_from`, as long as something remains that proves it; and not within the few requests
//! between a taker's look and its fence, which nothing can close; nor where another object is on
//! its way to the same id and would hide the hole, nor a fence that an older writer still runs
//! into.
//!
//! **The evidence** at an end g: a data object in (g, g+J) that says proven >= g; any fence behind
//! g; any object at or behind g+J. A taker, or an observer without a role (a reader, the command
//! line), then reads g again, and CURRENT after it: g may have landed meanwhile, and may have been
//! collected.

use super::{Config, Id, Object, Phase, State, Variant, Writer, step};

/// A process without a role that walks the chain from `replay_from` and looks for holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Observer {
    phase: Watching,
    /// Where its walk began.
    from: Id,
}

impl Observer {
    pub(super) const IDLE: Self = Self { phase: Watching::Idle, from: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Watching {
    Idle,
    Walking(Id),
    AtEnd(Id),
    Suspecting(Id),
    Accusing(Id),
    Convicted(Id),
}

impl State {
    /// Whether what lies behind `end` proves that it was acknowledged.
    fn convicts(&self, end: Id, config: &Config) -> bool {
        let behind = || self.wal.range(end + 1..);
        let beyond = behind()
            .any(|(&id, object)| matches!(object, Object::Fence { .. }) || id >= end + config.jump);
        let window = self.wal.range(end + 1..end + config.jump);
        let highest = window.rev().find_map(|(_, object)| match object {
            Object::Data(datum) => Some(self.sealed[datum]),
            Object::Fence { .. } => None,
        });
        match config.variant {
            Variant::ConvictsByPresence => beyond || highest.is_some(),
            Variant::ConvictsAboveTheEnd => beyond || highest.is_some_and(|proven| proven > end),
            Variant::LooksAtTheWindowOnly => highest.is_some_and(|proven| proven >= end),
            _ => beyond || highest.is_some_and(|proven| proven >= end),
        }
    }

    /// Whether the writer that serves has every acknowledged write.
    pub(super) fn is_complete(&self) -> bool {
        let w = self.epoch;
        let writer = &self.writers[usize::from(w)];
        let has = |datum: super::Datum| {
            datum.by == w
                || self.tree.contains(&datum)
                || writer.memtable.iter().any(|&(_, own)| own == datum)
        };
        writer.phase != Phase::Serving || self.acked.iter().all(|&(_, datum)| has(datum))
    }

    /// The positions that somebody calls holes.
    fn alarms(&self) -> impl Iterator<Item = Id> {
        let convicted = |writer: &&Writer| writer.phase == Phase::Convicted;
        let observed = match self.observer {
            Some(Observer { phase: Watching::Convicted(at), .. }) => Some(at),
            _ => None,
        };
        self.writers.iter().filter(convicted).map(|writer| writer.at).chain(observed)
    }

    pub(super) fn has_alarm(&self) -> bool {
        self.alarms().next().is_some()
    }

    pub(super) fn alarms_are_true(&self) -> bool {
        self.alarms().all(|at| self.stolen.contains(&at))
    }

    /// Whether every taker that found a hole left it as it was, so that it can be filled.
    pub(super) fn holes_are_untouched(&self) -> bool {
        let fenced = |w: u8, at: Id| {
            let by_w = |&(id, put): &(Id, Object)| {
                id == at && matches!(put, Object::Fence { by, .. } if by == w)
            };
            self.sent.iter().any(by_w)
        };
        let mut writers = (0..).zip(&self.writers);
        writers.all(|(w, writer)| writer.phase != Phase::Convicted || !fenced(w, writer.at))
    }
}

impl Config {
    pub(super) fn looks_at_end(&self, writer: &Writer) -> bool {
        match self.variant {
            Variant::LooksAfterTheFence => false,
            Variant::LooksOnce => self.thefts.is_some() && !writer.has_looked,
            _ => self.thefts.is_some(),
        }
    }

    /// What the thief may take now.
    pub(super) fn thefts(&self, state: &State) -> impl Iterator<Item = Id> {
        let taker = state.writers[usize::from(state.epoch)].phase;
        let is_closing = matches!(taker, Phase::Looked | Phase::Fencing | Phase::Fenced);
        let left = usize::from(self.thefts.unwrap_or(0)).saturating_sub(state.stolen.len());
        let chain =
            if left == 0 || is_closing { Vec::new() } else { state.chain(state.replay_from) };
        let proven = |&(id, object): &(Id, Object)| match object {
            Object::Data(datum) => {
                let beyond = |(&other, later): (&Id, &Object)| match later {
                    Object::Data(later) => state.sealed[later] >= id || other >= id + self.jump,
                    Object::Fence { .. } => true,
                };
                state.acked.contains(&(id, datum)) && state.wal.range(id + 1..).any(beyond)
            }
            Object::Fence { by, next } => {
                let older = state.writers.iter().zip(&self.writes).take(usize::from(by));
                let mut older = older.filter(|(writer, _)| writer.phase == Phase::Serving);
                let is_needed = older.any(|(writer, writes)| writer.next_n < *writes);
                !is_needed && state.wal.range(next..).next().is_some()
            }
        };
        let is_only =
            |id: Id| state.sent.range((id, Object::MIN)..(id + 1, Object::MIN)).count() == 1;
        let chain = chain.into_iter().filter(|&(id, _)| is_only(id));
        chain.filter(proven).map(|(id, _)| id).collect::<Vec<_>>().into_iter()
    }

    /// T2b: LIST behind the end, and GET what may prove something.
    pub(super) fn look(&self, state: &mut State, w: u8) {
        let at = state.writers[usize::from(w)].at;
        let convicts = state.convicts(at, self);
        let writer = &mut state.writers[usize::from(w)];
        writer.has_looked = true;
        writer.phase = match (convicts, self.variant) {
            (true, Variant::LooksAfterTheFence) => Phase::Convicted,
            (true, Variant::ConvictsWithoutSecondGet) => Phase::Accusing,
            (true, _) => Phase::Suspecting,
            (false, Variant::LooksAfterTheFence) => Phase::Fenced,
            (false, _) => Phase::Looked,
        };
    }

    /// T2b: GET the end again; it may have landed while we looked behind it.
    pub(super) fn look_again(&self, state: &mut State, w: u8) {
        let at = state.writers[usize::from(w)].at;
        match state.wal.get(&at) {
            Some(&object) => Self::meet(state, w, object),
            None if self.variant == Variant::ConvictsWithoutReread => Self::convict(state, w),
            None => state.writers[usize::from(w)].phase = Phase::Accusing,
        }
    }

    /// T2b: only under our own epoch is an absent object missing: nobody else has moved
    /// `replay_from` past it.
    pub(super) fn accuse(state: &mut State, w: u8) {
        if state.epoch == w { Self::convict(state, w) } else { state.exit(w) }
    }

    fn convict(state: &mut State, w: u8) {
        let writer = &mut state.writers[usize::from(w)];
        *writer = Writer { phase: Phase::Convicted, at: writer.at, ..Writer::waiting() };
    }

    /// One request of the observer.
    pub(super) fn observe(&self, state: &mut State) {
        let Observer { phase, from } = state.observer.expect("only an observer observes");
        let walk = |at, object| Watching::Walking(step(at, object));
        let phase = match phase {
            Watching::Idle => {
                let from = state.replay_from;
                state.observer = Some(Observer { phase: Watching::Walking(from), from });
                return;
            }
            Watching::Walking(at) => match state.wal.get(&at) {
                Some(&object) => walk(at, object),
                None => Watching::AtEnd(at),
            },
            Watching::AtEnd(at) if !state.convicts(at, self) => Watching::Idle,
            Watching::AtEnd(at) if self.variant == Variant::ConvictsWithoutSecondGet => {
                Watching::Accusing(at)
            }
            Watching::AtEnd(at) => Watching::Suspecting(at),
            Watching::Suspecting(at) => match state.wal.get(&at) {
                Some(&object) => walk(at, object),
                None if self.variant == Variant::ConvictsWithoutReread => Watching::Convicted(at),
                None => Watching::Accusing(at),
            },
            // SUBTLE: where the walk began, not where it ended: behind what was collected
            // meanwhile a late fence may have led it off the chain.
            Watching::Accusing(at) => {
                let mark = match self.variant {
                    Variant::ConvictsByTheEndOfTheWalk => at,
                    _ => from,
                };
                if state.replay_from > mark { Watching::Idle } else { Watching::Convicted(at) }
            }
            Watching::Convicted(at) => Watching::Convicted(at),
        };
        // Where an idle one began does not matter.
        let from = if phase == Watching::Idle { 0 } else { from };
        state.observer = Some(Observer { phase, from });
    }
}
