//! Compactions and collections one after the other, in process: the compactor's own parts without
//! its schedule.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::Result;
use cairn_common::format::sst::SstOptions;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::Manifests;
use cairn_common::store::object::Bucket;
use cairn_common::types::Role;
use cairn_compactor::catalog::{Catalog, tree_of};
use cairn_compactor::commit::{self, Inputs};
use cairn_compactor::gc::Collector;
use cairn_compactor::job::merger::Making;
use cairn_compactor::job::{self, Progress, Tools, Work};
use cairn_compactor::metrics::GcMetrics;
use cairn_compactor::pick::{PickConfig, pick, pick_full};
use cairn_compactor::plan::plan;
use cairn_compactor::schedule::rules_of;
use tokio_util::sync::CancellationToken;

/// A compactor that does what it is told.
#[derive(Debug)]
pub struct Compactions {
    manifests: Manifests,
    tools: Tools,
    catalog: Catalog,
    collector: Collector,
}

impl Compactions {
    /// Claims the compactor's role. SSTs are cut at `sst_bytes`; what has left the tree is kept for
    /// `retention`.
    ///
    /// # Errors
    /// As [`Manifests::claim`].
    pub async fn claim(
        bucket: &Bucket,
        env: &Env,
        (options, sst_bytes): (SstOptions, u64),
        retention: Duration,
    ) -> Result<Self> {
        let manifests = Manifests::new(bucket.clone(), env.clone());
        let uuid = env.random.uuid();
        let lease = Duration::from_secs(2);
        let claim = Claim { role: Role::Compactor, uuid, url: None, lease };
        let claimed = manifests.claim(&claim).await?;
        let making = Making {
            database: claimed.snapshot.current.database,
            epoch: claimed.epoch,
            random: Arc::clone(&env.random),
            options,
            sst_bytes,
        };
        let tools = Tools {
            bucket: bucket.clone(),
            env: env.clone(),
            making,
            read_ahead_bytes: 4 * sst_bytes,
            cancel: CancellationToken::new(),
        };
        let metrics = GcMetrics::default();
        let collector = Collector::new(bucket.clone(), env.clone(), retention, metrics);
        Ok(Self { manifests, tools, catalog: Catalog::new(bucket.clone()), collector })
    }

    /// Runs the job that `config` picks, or one over everything if it picks none, and commits it;
    /// false where there was nothing to do.
    ///
    /// # Errors
    /// As the job's reads and writes, and its commit.
    pub async fn run_one(&mut self, config: &PickConfig) -> Result<bool> {
        let snapshot = self.manifests.load().await?.expect("a database that was created");
        let manifest = &snapshot.manifest;
        let runs = self.catalog.load(&manifest.runs).await?;
        let tree = tree_of(manifest, &runs);
        let picked = pick(&tree, &BTreeSet::new(), config);
        let Some(job) = picked.or_else(|| pick_full(&tree)) else { return Ok(false) };

        let l0 = manifest.l0.iter().filter(|sst| job.l0.contains(&sst.id.uuid)).cloned();
        let runs = runs.into_iter().filter(|run| job.runs.contains(&run.id.uuid));
        let inputs = Inputs { l0: l0.collect(), runs: runs.collect() };
        let plan = plan(&inputs.sources(), rules_of(&job, &tree), self.tools.making.sst_bytes / 2);
        let mut work = Work::default();
        job::run(&self.tools, plan, &Progress::default(), &mut work).await?;
        let id = self.tools.making.fresh_id();
        let outputs = commit::put_run(&self.tools, id, &work.ssts).await?;
        commit::commit(&self.manifests, snapshot, &self.tools, &inputs, outputs).await?;
        Ok(true)
    }

    /// Deletes what nobody needs.
    ///
    /// # Errors
    /// As [`Collector::pass`].
    pub async fn collect(&mut self) -> Result<()> {
        self.collector.pass(&self.tools.cancel).await.map(drop)
    }
}
