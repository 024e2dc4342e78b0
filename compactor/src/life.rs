//! The life of a compactor, without its HTTP surface: wait for a database, claim the epoch, work.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::format::sst::SstOptions;
use cairn_common::http::metrics::Metrics;
use cairn_common::store::claim::{Claim, Claimed};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::Bucket;
use cairn_common::types::{Epoch, Role};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::{Config, Only};
use crate::gc::Collector;
use crate::job::Tools;
use crate::job::merger::Making;
use crate::metrics::{GcMetrics, JobMetrics};
use crate::node::Phase;
use crate::schedule::{Links, Scheduler, Settings};

/// A compactor that has not begun.
#[derive(Debug)]
pub struct Life {
    /// Its settings.
    pub config: Config,
    /// Where the database is.
    pub bucket: Bucket,
    /// Clocks, randomness, CPU.
    pub env: Env,
    /// Where it answers.
    pub url: Option<String>,
    /// Its jobs.
    pub board: Arc<Board>,
    /// Told of each phase.
    pub phase: watch::Sender<Phase>,
    /// Told of each snapshot.
    pub seen: watch::Sender<Option<Snapshot>>,
    /// Its counters.
    pub counters: Counters,
}

/// What a compactor counts.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Jobs.
    pub jobs: JobMetrics,
    /// Collection.
    pub gc: GcMetrics,
}

impl Counters {
    /// Counters that `/metrics` shows.
    pub fn register(metrics: &Metrics) -> Self {
        Self { jobs: JobMetrics::register(metrics), gc: GcMetrics::register(metrics) }
    }
}

/// How `shutdown_grace` is shared out among what ends one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graces {
    /// For jobs to notice, and to delete what they have made.
    pub jobs: Duration,
    /// For a pass of collection, which is told at the same time as the jobs.
    pub collection: Duration,
    /// For requests in progress, once the work is over.
    pub requests: Duration,
}

impl Graces {
    /// The shares of what these settings give.
    pub fn of(config: &Config) -> Self {
        let quarter = config.shared.http.shutdown_grace.0 / 4;
        Self { jobs: 2 * quarter, collection: quarter, requests: quarter }
    }
}

impl Life {
    /// Works until cancelled. `ready` is called once, when it can work.
    ///
    /// # Errors
    /// `Fenced`; `Corrupt`: what CURRENT says is damaged, or a root with objects has no CURRENT;
    /// `Invalid`: the settings or the bucket cannot be used.
    pub async fn run(
        self,
        shutdown: CancellationToken,
        ready: impl FnOnce(Option<Epoch>),
    ) -> Result<()> {
        let manifests = Manifests::new(self.bucket.clone(), self.env.clone());
        let begun = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            begun = self.begin(&manifests) => begun?,
        };
        let epoch = begun.as_ref().map(|claimed| claimed.epoch);
        self.phase.send_replace(Phase::Working(epoch));
        ready(epoch);
        let worked = match begun {
            None => {
                self.collect(&shutdown).await;
                Ok(())
            }
            Some(claimed) => self.work(manifests, claimed, &shutdown).await,
        };
        self.phase.send_replace(Phase::Stopping);
        worked
    }

    /// Waits for a database, then claims the epoch, unless it is only to collect.
    async fn begin(&self, manifests: &Manifests) -> Result<Option<Claimed>> {
        self.wait_for_store().await?;
        self.wait_for_database(manifests).await?;
        if self.config.only == Some(Only::Gc) {
            return Ok(None);
        }
        let claim = Claim {
            role: Role::Compactor,
            uuid: self.env.random.uuid(),
            url: self.url.clone(),
            lease: Duration::ZERO,
        };
        let claimed = manifests.claim(&claim).await?;
        tracing::info!(epoch = %claimed.epoch, "claimed the compactor's role");
        Ok(Some(claimed))
    }

    async fn wait_for_store(&self) -> Result<()> {
        loop {
            match self.bucket.check().await {
                Err(Error::Unavailable(failure)) => {
                    tracing::warn!(%failure, "the store does not answer; trying again");
                    tokio::time::sleep(self.config.poll_interval.0).await;
                }
                checked => return checked,
            }
        }
    }

    async fn wait_for_database(&self, manifests: &Manifests) -> Result<()> {
        loop {
            match manifests.load().await {
                Ok(Some(snapshot)) => {
                    self.seen.send_replace(Some(snapshot));
                    return Ok(());
                }
                Ok(None) if *self.phase.borrow() != Phase::Waiting => {
                    tracing::info!(store = self.bucket.url(), "waiting for a database");
                    self.phase.send_replace(Phase::Waiting);
                }
                Ok(None) => {}
                Err(Error::Unavailable(failure)) => {
                    tracing::warn!(%failure, "the store does not answer; trying again");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(self.config.poll_interval.0).await;
        }
    }

    async fn collect(&self, shutdown: &CancellationToken) {
        let interval = self.config.gc.gc_interval.0;
        let mut collector = self.collector();
        let Graces { jobs, collection, .. } = Graces::of(&self.config);
        let cut = async {
            shutdown.cancelled().await;
            tokio::time::sleep(jobs + collection).await;
        };
        tokio::select! {
            () = collector.run(interval, Some(&self.seen), shutdown) => {}
            () = cut => tracing::warn!("a pass of collection was cut"),
        }
    }

    fn collector(&self) -> Collector {
        let metrics = self.counters.gc.clone();
        let retention = self.config.gc.retention.0;
        Collector::new(self.bucket.clone(), self.env.clone(), retention, metrics)
    }

    async fn work(
        &self,
        manifests: Manifests,
        claimed: Claimed,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        let mut collection = JoinSet::new();
        let stop = shutdown.child_token();
        if self.config.only.is_none() {
            let (mut collector, stop) = (self.collector(), stop.clone());
            let interval = self.config.gc.gc_interval.0;
            collection.spawn(async move { collector.run(interval, None, &stop).await });
        }
        let scheduler = self.scheduler(manifests, claimed, stop.clone());
        let mut scheduling = std::pin::pin!(scheduler.run());
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut scheduling => break ended,
                Some(ended) = collection.join_next() => if let Err(panic) = ended {
                    break Err(Error::unavailable("collection", panic));
                },
            }
        };
        stop.cancel();
        let rest = async { while collection.join_next().await.is_some() {} };
        let grace = Graces::of(&self.config).collection;
        if tokio::time::timeout(grace, rest).await.is_err() {
            tracing::warn!("a pass of collection was cut");
        }
        ended
    }

    fn scheduler(
        &self,
        manifests: Manifests,
        claimed: Claimed,
        cancel: CancellationToken,
    ) -> Scheduler {
        let jobs = &self.config.jobs;
        let making = Making {
            database: claimed.snapshot.current.database,
            epoch: claimed.epoch,
            random: Arc::clone(&self.env.random),
            options: SstOptions::default(),
            sst_bytes: jobs.sst_bytes.0,
        };
        let tools = Tools {
            bucket: self.bucket.clone(),
            env: self.env.clone(),
            making,
            read_ahead_bytes: jobs.read_ahead.0,
            cancel,
        };
        let settings = Settings {
            poll_interval: self.config.poll_interval.0,
            jobs_max: jobs.jobs_max,
            pick: jobs.pick(),
            stop_grace: Graces::of(&self.config).jobs,
        };
        let links = Links {
            board: Arc::clone(&self.board),
            metrics: self.counters.jobs.clone(),
            seen: self.seen.clone(),
        };
        Scheduler::new(manifests, tools, settings, links, claimed.snapshot)
    }
}
