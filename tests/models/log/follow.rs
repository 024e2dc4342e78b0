//! The follower of the log (R1 to R4): what it keeps of what it reads, and what it may say of it.
//!
//! **Abstraction.** GETs run ahead of the position by any id and in any order, each is one moment;
//! what they showed is kept by id: an object, or that there was none and what had been acknowledged
//! by then. R3 and what follows from it is one step: if replay begins behind the position, the
//! follower takes the tree and walks from the *new* `replay_from`; it applies what it kept, and
//! where it kept an absent id it says that the view is as fresh as that GET.
//!
//! In this model freshness is what was acknowledged by then: [`FRESH`] is broken by a view that is
//! called as fresh as a moment and lacks what was acknowledged before it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Config, Datum, Id, Object, State, Variant, step};

/// What had been acknowledged at some moment.
type Acked = BTreeSet<(Id, Datum)>;

/// What a GET showed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Read {
    Object(Object),
    /// Nothing, when so much had been acknowledged.
    Absent(Acked),
}

/// What it has said of its freshness; the worst of it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Said {
    NothingOfNote,
    /// That it is fresh, by a walk from the `replay_from` that had passed it.
    FreshAfterRebase,
    /// That a view is fresher than it was.
    Lie,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Follower {
    at: Id,
    pub(super) view: Vec<Datum>,
    kept: BTreeMap<Id, Read>,
    /// Only [`Variant::FollowerKeepsAbsents`]: what was acknowledged when its look began.
    look: Acked,
    /// History.
    pub(super) said: Said,
}

impl Follower {
    pub(super) fn new() -> Self {
        Self {
            at: 1,
            view: Vec::new(),
            kept: BTreeMap::new(),
            look: Acked::new(),
            said: Said::NothingOfNote,
        }
    }

    /// The ids that may be asked for: some from the position on, and where nothing was found
    /// there before, again.
    pub(super) fn asks(&self, config: &Config, state: &State) -> Vec<Id> {
        let changed = |id: &Id| match self.kept.get(id) {
            None => true,
            Some(Read::Object(_)) => false,
            Some(Read::Absent(acked)) => state.wal.contains_key(id) || *acked != state.acked,
        };
        let again = |id: &Id| {
            config.variant != Variant::FollowerKeepsAbsents || !self.kept.contains_key(id)
        };
        (self.at..self.at + config.stretch).filter(changed).filter(again).collect()
    }

    /// R2, one GET.
    pub(super) fn fetch(&mut self, id: Id, found: Option<Object>, acked: &Acked) {
        let absent = || Read::Absent(acked.clone());
        self.kept.insert(id, found.map_or_else(absent, Read::Object));
    }

    /// Whether there is anything to judge.
    pub(super) fn may_judge(&self, replay_from: Id) -> bool {
        replay_from > self.at || self.kept.contains_key(&self.at)
    }

    /// R3, then apply.
    pub(super) fn judge(&mut self, variant: Variant, state: &State) {
        let State { replay_from, tree, acked, .. } = state;
        let from = self.at;
        let passed = *replay_from > from
            && (variant != Variant::FollowerWithoutReread || !self.kept.contains_key(&from));
        if passed {
            self.view.clone_from(tree);
            self.at = *replay_from;
        }
        if passed && variant == Variant::FollowerGoesOn {
            self.at = from;
        }
        while let Some(Read::Object(object)) = self.kept.get(&self.at) {
            let is_passed = passed && self.at < *replay_from;
            if let Object::Data(datum) = object
                && !self.view.contains(datum)
                && !is_passed
            {
                self.view.push(*datum);
            }
            self.at = step(self.at, *object);
        }
        self.at = self.at.max(if passed { *replay_from } else { 0 });
        let end = match variant {
            Variant::FollowerTrustsPassedAbsent if passed => self.kept.get(&from),
            _ => self.kept.get(&self.at),
        };
        if let Some(Read::Absent(then)) = end.cloned() {
            let fresh_as_of = match variant {
                Variant::FollowerDatesByItsEnd => acked,
                Variant::FollowerKeepsAbsents => &self.look,
                _ => &then,
            };
            let lies = fresh_as_of.iter().any(|(_, datum)| !self.view.contains(datum));
            let said = match (lies, passed) {
                (true, _) => Said::Lie,
                (false, true) => Said::FreshAfterRebase,
                (false, false) => Said::NothingOfNote,
            };
            self.said = self.said.max(said);
            if variant == Variant::FollowerKeepsAbsents {
                self.look.clone_from(acked);
            } else {
                self.kept.retain(|_, read| matches!(read, Read::Object(_)));
            }
        }
        let at = self.at;
        self.kept.retain(|id, _| *id >= at);
    }
}
