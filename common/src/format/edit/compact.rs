//! How a compaction changes the tree: which sources it may take, and what becomes of their SSTs.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::super::current::Current;
use super::super::manifest::{Manifest, Retired, RetiredObject, SstInfo};
use super::super::unknown::Unknown;
use super::{Compact, Output, Rejected, check_epoch, check_made_by, in_tree, is_known, require};
use crate::types::Role;

/// Where the inputs stand in the tree.
struct Place {
    /// First of the inputs from L0; they reach to its end.
    l0_from: usize,
    /// The input runs; empty, at the front, where there are none.
    runs: Range<usize>,
}

impl Compact {
    pub(super) fn apply(
        &self,
        current: &Current,
        next: &mut Manifest,
        now_ms: u64,
    ) -> Result<(), Rejected> {
        check_epoch(self.epoch, current.compactor.epoch)?;
        let place = self.locate(next)?;
        self.check_outputs(next)?;
        let retired = self.retired(&place, next)?;

        next.l0.truncate(place.l0_from);
        next.runs.splice(place.runs, self.outputs.iter().map(|output| output.info.clone()));
        let (version, time_ms) = (next.id.version, now_ms);
        let retired = retired.into_iter().map(|object| Retired {
            object,
            version,
            time_ms,
            unknown: Unknown::default(),
        });
        next.retired.extend(retired);
        Ok(())
    }

    /// The inputs by name, newest first.
    pub(super) fn inputs(&self) -> impl Iterator<Item = RetiredObject> {
        let l0 = self.l0.iter().map(|id| RetiredObject::Sst(*id));
        l0.chain(self.runs.iter().map(|run| RetiredObject::Run(run.id)))
    }

    /// Whether an input has left the tree, so that this edit can never be applied (again).
    pub(super) fn misses_an_input(&self, manifest: &Manifest) -> bool {
        self.inputs().any(|input| !in_tree(manifest, input))
    }

    fn locate(&self, manifest: &Manifest) -> Result<Place, Rejected> {
        if let Some(gone) = self.inputs().find(|input| !in_tree(manifest, *input)) {
            return Err(Rejected::Gone(format!("the input {gone:?} has left the tree")));
        }
        require(self.inputs().next().is_some(), || "a compaction of nothing".into())?;
        // New L0 may have arrived in front of the inputs; behind them nothing can.
        let l0_from = manifest.l0.len().saturating_sub(self.l0.len());
        let oldest = manifest.l0.iter().skip(l0_from).map(|sst| sst.id);
        require(oldest.eq(self.l0.iter().copied()), || {
            "the inputs from L0 are not its oldest, newest first".into()
        })?;
        let first = self.runs.first().map(|run| run.id);
        let runs_from = first.and_then(|id| manifest.runs.iter().position(|run| run.id == id));
        let runs_from = runs_from.unwrap_or(0);
        let runs = runs_from..runs_from + self.runs.len();
        let neighbours = manifest.runs.iter().skip(runs.start).take(runs.len()).map(|run| run.id);
        require(neighbours.eq(self.runs.iter().map(|run| run.id)), || {
            "the input runs are not neighbours, newest first".into()
        })?;
        require(self.l0.is_empty() || runs.start == 0, || {
            "a run that is newer than the input runs lies between them and L0".into()
        })?;
        let infos = manifest.runs.iter().skip(runs.start);
        for (run, info) in self.runs.iter().zip(infos) {
            run.check_named_by(info).map_err(|corrupt| Rejected::Invalid(corrupt.0))?;
        }
        Ok(Place { l0_from, runs })
    }

    fn check_outputs(&self, manifest: &Manifest) -> Result<(), Rejected> {
        for Output { run, info } in &self.outputs {
            check_made_by(run.id, Role::Compactor, self.epoch)?;
            require(run.database == manifest.database && info.home.is_none(), || {
                format!("run {} lives in another database", run.id)
            })?;
            require(!is_known(manifest, RetiredObject::Run(run.id)), || {
                format!("run {} was committed before", run.id)
            })?;
            let sound = run.check().and_then(|()| run.check_named_by(info));
            sound.map_err(|corrupt| Rejected::Invalid(corrupt.0))?;
        }
        Ok(())
    }

    /// What leaves the tree: the input runs, and the SSTs of L0 that no output took over. The SSTs
    /// of a run are not named: its object does, for as long as the run is in `retired`.
    fn retired(&self, place: &Place, manifest: &Manifest) -> Result<Vec<RetiredObject>, Rejected> {
        let from_l0 = manifest.l0.iter().skip(place.l0_from);
        let inputs: Vec<&SstInfo> =
            from_l0.chain(self.runs.iter().flat_map(|run| &run.ssts)).collect();
        let known: HashMap<_, _> = inputs.iter().map(|sst| (sst.id, *sst)).collect();
        let mut kept = HashSet::new();
        for sst in self.outputs.iter().flat_map(|output| &output.run.ssts) {
            require(kept.insert(sst.id), || format!("SST {} stands in two outputs", sst.id))?;
            if let Some(input) = known.get(&sst.id) {
                require(*input == sst, || format!("SST {} was changed by being moved", sst.id))?;
                continue;
            }
            check_made_by(sst.id, Role::Compactor, self.epoch)?;
            require(!is_known(manifest, RetiredObject::Sst(sst.id)), || {
                format!("SST {} was committed before", sst.id)
            })?;
        }
        let l0 = self.l0.iter().filter(|id| !kept.contains(*id)).copied();
        let runs = self.runs.iter().map(|run| RetiredObject::Run(run.id));
        Ok(l0.map(RetiredObject::Sst).chain(runs).collect())
    }
}
