//! The writer without its HTTP: what the process, the tests and the simulator drive.
//!
//! **Life of an engine**: take over the log; start the three tasks that own it (commit, flush,
//! lease); wait out the hold; serve; settle what was taken; record in CURRENT that it is closed;
//! only then wait for slow clients.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::faults::planted;
use cairn_common::format::sst::SstOptions;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::Manifests;
use cairn_common::store::object::Bucket;
use cairn_common::store::sst::{MetaBudget, SstStore};
use cairn_common::store::wal::Wal;
use cairn_common::types::{DatabaseId, Epoch, Role};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::commit::Committer;
use crate::config::{FrontLimits, LogConfig};
use crate::flush::{self, Flusher};
use crate::front::{End, Front};
use crate::lease::{self, Lease};
use crate::metrics::Counters;
use crate::open::{self, HeadStart, Holding, Taken, Takeover};
use crate::service::Writer;

/// What an engine is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The environment.
    pub env: Env,
    /// The bucket.
    pub bucket: Bucket,
    /// Blocks that reads need.
    pub cache: BlockCache,
    /// Memory for filters and indexes.
    pub meta: MetaBudget,
    /// How SSTs are built.
    pub sst: SstOptions,
}

/// A log that is ours, and the tasks that own it.
#[derive(Debug)]
pub struct Engine {
    writer: Arc<Writer>,
    tasks: JoinSet<(Task, Result<()>)>,
    drain: CancellationToken,
    stop: CancellationToken,
    hold: Holding,
}

/// What the tasks of an engine do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Commit,
    Flush,
    Lease,
}

impl Parts {
    /// CURRENT and manifests of the bucket.
    pub fn manifests(&self) -> Manifests {
        Manifests::new(self.bucket.clone(), self.env.clone())
    }

    fn takeover(&self, database: DatabaseId, limits: &FrontLimits) -> Takeover {
        let manifests = self.manifests();
        let ssts = SstStore::new(
            self.bucket.clone(),
            database,
            self.cache.clone(),
            self.meta,
            self.env.clone(),
        );
        Takeover {
            env: self.env.clone(),
            wal: Wal::new(self.bucket.clone(), database),
            ssts: Arc::new(ssts),
            flusher: Flusher {
                env: self.env.clone(),
                bucket: self.bucket.clone(),
                manifests: manifests.clone(),
                options: self.sst,
            },
            manifests,
            memtable_bytes: limits.memtable_bytes,
        }
    }
}

impl Engine {
    /// Takes over the log of `database` and starts its tasks. Nothing may be answered before
    /// [`Engine::hold`] has returned.
    ///
    /// Not cancel-safe: dropped halfway, the claim stands.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`.
    pub async fn open(
        parts: &Parts,
        database: DatabaseId,
        log: &LogConfig,
        claim: &Claim,
    ) -> Result<Self> {
        Self::open_from(HeadStart::none(), parts, database, log, claim).await
    }

    /// The same with what a standby has at hand.
    ///
    /// Not cancel-safe: dropped halfway, the claim stands.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn open_from(
        head: HeadStart,
        parts: &Parts,
        database: DatabaseId,
        log: &LogConfig,
        claim: &Claim,
    ) -> Result<Self> {
        assert_eq!(claim.role, Role::Writer, "an engine claims the writer's role");
        let limits = log.front();
        let takeover = parts.takeover(database, &limits);
        let taken = open::take_over(&takeover, claim, head).await?;
        let Taken { identity, start, next, is_bare, snapshot, verified_at, hold, wal } = taken;
        let bare = is_bare.then_some(next);
        let front = Arc::new(Front::new(limits, start, Arc::clone(&parts.env.clock)));
        let (env, pacing) = (parts.env.clone(), log.pacing());
        let lease = Lease::new(takeover.manifests, env.clone(), claim.lease, snapshot, verified_at);
        let lease = Arc::new(lease);
        let counters = Counters::new(pacing.window);
        let writer = Arc::new(Writer { front, lease, env, limits, counters });
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let committer = Committer::new(Arc::clone(&writer), wal, pacing, identity, next);
        let committing = committer.run(drain.clone());
        tasks.spawn(async move { (Task::Commit, committing.await) });
        let (flushing, flusher, ssts) = (Arc::clone(&writer), takeover.flusher, takeover.ssts);
        let flush_ssts = Arc::clone(&ssts);
        let flush_stop = stop.clone();
        tasks.spawn(async move {
            (Task::Flush, flush::run(&flusher, &flushing, &flush_ssts, bare, flush_stop).await)
        });
        let leasing = Arc::clone(&writer);
        tasks.spawn(async move {
            (Task::Lease, lease::keep(&leasing.lease, &leasing.front, &ssts).await)
        });
        Ok(Self { writer, tasks, drain, stop, hold })
    }

    /// What serves requests, once the hold is over.
    pub fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }

    /// The epoch that is ours.
    pub fn epoch(&self) -> Epoch {
        self.writer.lease.epoch()
    }

    /// Until when the writer answers nothing, and why; `None` if it may at once.
    pub fn hold_reason(&self) -> Option<(Duration, String)> {
        let left = self.hold.until.saturating_sub(self.writer.env.clock.boot());
        let held = self.hold.after.as_ref().filter(|_| !left.is_zero())?;
        Some((left, held.to_string()))
    }

    /// Waits until the old writer's read lease has run out.
    ///
    /// # Errors
    /// Whatever ended a task meanwhile.
    pub async fn hold(&mut self) -> Result<()> {
        let left = self.hold.until.saturating_sub(self.writer.env.clock.boot());
        tokio::select! {
            biased;
            ended = self.failed() => return Err(ended),
            () = tokio::time::sleep(left) => {}
        }
        self.writer.lease.end_hold();
        Ok(())
    }

    /// Resolves when a task has ended, which none does by itself but in error. From then on nothing
    /// is taken, and whoever waits is told.
    ///
    /// Cancel-safe.
    pub async fn failed(&mut self) -> Error {
        let error = match self.tasks.join_next().await {
            Some(ended) => settled(ended).err().unwrap_or(Error::Closed),
            None => Error::Closed,
        };
        self.writer.front.end(End::of(&error));
        self.tasks.abort_all();
        error
    }

    /// Stops taking writes, makes everything taken durable, and records that it is closed. Reads
    /// are answered until the record is sent. A flush under way is given up: the log has its data.
    ///
    /// Costs the PUTs that are not proven yet, one of the open group, and one swap of CURRENT.
    ///
    /// # Errors
    /// `Fenced` and whatever else ended a task.
    pub async fn close(mut self) -> Result<()> {
        self.writer.front.stop_taking();
        self.drain.cancel();
        self.stop.cancel();
        self.settle().await?;
        self.tasks.shutdown().await;
        self.writer.lease.close().await
    }

    /// Closes, then waits for `clients`: how long they take keeps no successor waiting.
    ///
    /// # Errors
    /// As [`Engine::close`], then those of `clients`.
    pub async fn leave(self, clients: impl Future<Output = Result<()>>) -> Result<()> {
        if planted("close_waits_for_slow_clients") {
            clients.await?;
            return self.close().await;
        }
        self.close().await?;
        clients.await
    }

    /// Waits until everything that was taken is proven; the lease is kept meanwhile.
    async fn settle(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            match settled(ended) {
                Ok(Task::Commit) => return Ok(()),
                Ok(Task::Flush | Task::Lease) => {}
                Err(error) => {
                    self.writer.front.end(End::of(&error));
                    return Err(error);
                }
            }
        }
        Err(Error::Closed)
    }
}

/// How a task ended; its panic goes on here.
fn settled(ended: Result<(Task, Result<()>), JoinError>) -> Result<Task> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok((task, outcome)) => outcome.map(|()| task),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_aborted)) => Err(Error::Closed),
    }
}
