//! From the SSTs that a job made to the tree: the run object, the edit, the commit; and what is
//! deleted of a job that will never be committed.
//!
//! **Invariants**
//! - The edit says which inputs are replaced; a commit recomputes it from what is there, so flushes
//!   that came meanwhile stay in front. It is settled by its effect: the inputs are gone.
//! - SUBTLE: nothing is deleted once a commit was begun. A swap without an answer may still land,
//!   and what it names must be there then. What such a job leaves behind, the collector finds when
//!   the epoch has passed.

use std::sync::Arc;

use cairn_common::error::Result;
use cairn_common::format::edit::{Compact, Edit, Output};
use cairn_common::format::manifest::SstInfo;
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::run::Run;
use cairn_common::store::manifest::{Manifests, Snapshot};

use crate::job::{Tools, Work};

/// The sources that a job replaces.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// SSTs of L0, newest first.
    pub l0: Vec<SstInfo>,
    /// Runs, newest first.
    pub runs: Vec<Arc<Run>>,
}

impl Inputs {
    /// The SSTs of each source, newest source first.
    pub fn sources(&self) -> Vec<Vec<SstInfo>> {
        let l0 = self.l0.iter().map(|sst| vec![sst.clone()]);
        l0.chain(self.runs.iter().map(|run| run.ssts.clone())).collect()
    }
}

/// Puts the run object of what a job made into the bucket; none where nothing was left.
///
/// # Errors
/// `Unavailable`, `Indeterminate`: the job is to be given up; `id` may be in the bucket.
pub async fn put_run(tools: &Tools, id: OutputId, ssts: &[SstInfo]) -> Result<Vec<Output>> {
    if ssts.is_empty() {
        return Ok(Vec::new());
    }
    let run = Run::new(tools.making.database, id, ssts.to_vec());
    let (bytes, digest) = run.encode();
    let object_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    tools.bucket.put(&Object::Run(id), bytes).await?;
    let info = run.info(digest, object_bytes);
    Ok(vec![Output { run, info }])
}

/// Replaces the inputs by the outputs, and returns what is there then.
///
/// Goes on while the store is unavailable.
///
/// # Errors
/// `Fenced`; `Corrupt`; `Invalid` for a defect of ours.
pub async fn commit(
    manifests: &Manifests,
    known: Snapshot,
    tools: &Tools,
    inputs: &Inputs,
    outputs: Vec<Output>,
) -> Result<Snapshot> {
    let edit = Edit::Compact(Compact {
        epoch: tools.making.epoch,
        l0: inputs.l0.iter().map(|sst| sst.id).collect(),
        runs: inputs.runs.iter().map(|run| Run::clone(run)).collect(),
        outputs,
    });
    // What is known may be as old as the job: to look first saves a body that could not land.
    let known = manifests.refresh(&known).await.ok().flatten().unwrap_or(known);
    manifests.commit(known, &edit).await
}

/// Deletes what a job made that was never named in a body, as far as the store answers.
pub async fn discard(tools: &Tools, run: OutputId, work: &Work) {
    let ssts = work.begun.iter().map(|id| Object::Sst(*id));
    let objects: Vec<_> = ssts.chain([Object::Run(run)]).collect();
    if let Err(error) = tools.bucket.delete(&objects).await {
        tracing::warn!(%error, count = objects.len(), "unfinished outputs are left to collection");
    }
}
