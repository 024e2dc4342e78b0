//! One job from its inputs to the tree: plan, run, run object, commit. A job that met a damaged
//! input finds out whether it is.

use std::sync::Arc;

use cairn_common::error::{Error, Result};
use cairn_common::format::manifest::SstInfo;
use cairn_common::format::path::{Object, OutputId};
use cairn_common::lsm::visible::Rules;
use cairn_common::store::manifest::{Manifests, Snapshot};

use crate::check;
use crate::commit::{self, Inputs};
use crate::job::{self, Progress, Tools, Work};
use crate::plan::plan;
use crate::strikes::Says;

/// One job on its way into the tree.
#[derive(Debug)]
pub struct Task {
    /// CURRENT and manifests.
    pub manifests: Manifests,
    /// What it works with.
    pub tools: Tools,
    /// What it replaces.
    pub inputs: Inputs,
    /// What it may drop.
    pub rules: Rules,
    /// What was there when it was picked.
    pub snapshot: Snapshot,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// A job without effect.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// The input that it is about.
    pub about: Option<About>,
}

/// The input that a failed job is about.
#[derive(Debug)]
pub enum About {
    /// A second, independent read found it damaged too.
    Damaged(Damage),
    /// The store did not give it: it may be archived or forbidden, or the store is away.
    Unread(Object),
}

/// An input that cannot be read.
#[derive(Debug)]
pub struct Damage {
    /// What cannot be read.
    pub object: Object,
    /// What is wrong with it.
    pub cause: String,
}

impl Task {
    /// Runs it to its end; what is there then.
    ///
    /// # Errors
    /// As the job's reads and writes, and its commit.
    pub async fn run(self) -> Result<Snapshot, Failed> {
        let Self { manifests, tools, inputs, rules, snapshot, progress } = self;
        let plan = plan(&inputs.sources(), rules, tools.making.sst_bytes / 2);
        let run: OutputId = tools.making.fresh_id();
        let mut work = Work::default();
        let made = match job::run(&tools, plan, &progress, &mut work).await {
            Ok(()) => commit::put_run(&tools, run, &work.ssts).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(outputs) => {
                let committed =
                    commit::commit(&manifests, snapshot, &tools, &inputs, outputs).await;
                match committed {
                    Ok(snapshot) => Ok(snapshot),
                    Err(error) => Err(Failed { error, about: None }),
                }
            }
            Err(error) => {
                commit::discard(&tools, run, &work).await;
                let about = match named_by(&error, &inputs) {
                    Some(sst) if Says::of(&error) == Says::Damaged => {
                        confirm(&tools, &sst).await.map(About::Damaged)
                    }
                    Some(sst) => Some(About::Unread(Object::Sst(sst.id))),
                    None => None,
                };
                Err(Failed { error, about })
            }
        }
    }
}

/// The input that a failure is about.
fn named_by(error: &Error, inputs: &Inputs) -> Option<SstInfo> {
    let name = match error {
        Error::Corrupt(failure) | Error::Unavailable(failure) => &failure.what,
        Error::NotFound(object) => object,
        _ => return None,
    };
    let ssts = inputs.l0.iter().chain(inputs.runs.iter().flat_map(|run| &run.ssts));
    let named = |sst: &&SstInfo| name.contains(&Object::Sst(sst.id).path());
    ssts.into_iter().find(named).cloned()
}

/// The damage, if the SST cannot be read by itself either.
async fn confirm(tools: &Tools, sst: &SstInfo) -> Option<Damage> {
    match check::check(tools, sst).await {
        Err(error) if Says::of(&error) == Says::Damaged => {
            Some(Damage { object: Object::Sst(sst.id), cause: error.to_string() })
        }
        Ok(()) | Err(_) => None,
    }
}
