//! What the collector may delete: rules 1, 2 and 4 (3 is about the WAL), and how they can be got
//! wrong.

use super::*;

impl Config {
    pub(super) fn collector_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.variant == Variant::TwoReads && state.collector.body != Some(state.current.body) {
            actions.push(Action::ReadBody);
        }
        if self.judge(state) != state.collector {
            actions.push(Action::Judge);
        }
        actions.extend(state.collector.doomed.iter().copied().map(Action::Delete));
    }

    /// The collector after one more reading of CURRENT and a list of what exists.
    pub(super) fn judge(&self, state: &State) -> Collector {
        let mut collector = state.collector.clone();
        let id = match self.variant {
            Variant::TwoReads => collector.body.unwrap_or(state.current.body),
            _ => state.current.body,
        };
        let gone = |id: &BodyId| state.bodies_gone.contains(id);
        let body = &state.bodies[&id];
        if gone(&id) || body.checkpoints.iter().any(gone) {
            return collector;
        }
        let bodies = state.bodies.keys().filter(|id| !gone(id)).map(|&id| Target::Body(id));
        let listed: Vec<_> = state.ssts.iter().map(|&sst| Target::Sst(sst)).chain(bodies).collect();
        let named: BTreeSet<_> = body
            .checkpoints
            .iter()
            .flat_map(|id| state.bodies[id].tree().map(|entry| entry.sst))
            .collect();
        let mut aged = BTreeSet::new();
        for target in listed {
            let is_named = |sst| named.contains(&sst) && !self.is(Variant::CheckpointsNotRead);
            let doomed = match target {
                Target::Sst(sst) if is_named(sst) => Verdict::Keep,
                // Before the tree is asked: what is retired goes also if its runs are not read.
                Target::Sst(sst) if body.retired.contains(&sst) => Verdict::Delete,
                Target::Sst(sst) if body.holds(sst) => Verdict::Keep,
                Target::Sst(sst) => self.judge_unreferenced(sst, &state.current),
                Target::Body(id) if id == state.current.body => Verdict::Keep,
                Target::Body(id) if body.checkpoints.contains(&id) => Verdict::Keep,
                Target::Body(id) => self.judge_body(&state.bodies[&id], &state.current),
            };
            match doomed {
                Verdict::Keep => {}
                Verdict::Delete => drop(collector.doomed.insert(target)),
                Verdict::DeleteOnceAged if collector.aged.contains(&target) => {
                    collector.doomed.insert(target);
                }
                Verdict::DeleteOnceAged => drop(aged.insert(target)),
            }
        }
        collector.aged.extend(aged);
        collector
    }

    /// Rule 2.
    fn judge_unreferenced(&self, sst: Sst, current: &Current) -> Verdict {
        let epoch = current.epochs[sst.role.index()];
        match self.variant {
            Variant::NoEpochRule => Verdict::Delete,
            Variant::UnreferencedByAge => Verdict::DeleteOnceAged,
            Variant::EpochNotAbove if sst.epoch <= epoch => Verdict::Delete,
            _ if sst.epoch < epoch => Verdict::Delete,
            _ => Verdict::Keep,
        }
    }

    /// Rule 4.
    fn judge_body(&self, body: &Body, current: &Current) -> Verdict {
        match self.variant {
            Variant::DeleteBodiesAbove if body.version > current.version => Verdict::Delete,
            Variant::DeleteBodiesByAge => Verdict::DeleteOnceAged,
            _ if body.version < current.history_from => Verdict::Delete,
            _ => Verdict::Keep,
        }
    }
}

enum Verdict {
    Keep,
    Delete,
    DeleteOnceAged,
}
