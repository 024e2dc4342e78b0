//! The scheduler: follows the manifest, starts the jobs that the picker names, and brings them into
//! the tree.
//!
//! **Life of a job**: picked -> planned -> run -> run object -> commit. One task each; nothing is
//! shared but the board.
//!
//! **Invariants**
//! - An input is in at most one job at a time.
//! - No object but CURRENT and its manifest ends the process: a damaged input is left alone, named,
//!   and looked at again; everything that does not need it goes on.
//! - A newer epoch in CURRENT, whoever sees it first, ends the process: `Fenced`.
//! - A full job starts when nothing else runs, and nothing starts beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cairn_common::error::{Error, REMEDY, Result};
use cairn_common::faults::planted;
use cairn_common::format::manifest::SstInfo;
use cairn_common::format::path::Object;
use cairn_common::format::run::Run;
use cairn_common::lsm::tree::{Stat, Tree};
use cairn_common::lsm::visible::Rules;
use cairn_common::store::commit::deposed;
use cairn_common::store::manifest::{Manifests, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::blacklist::Blacklist;
use crate::board::Board;
use crate::catalog::{Catalog, tree_of};
use crate::check;
use crate::commit::Inputs;
use crate::job::Tools;
use crate::metrics::{JobMetrics, JobResult};
use crate::pick::{Job, PickConfig, Reason, pick_full, pick_full_runs, pick_l0, pick_runs};
use crate::strikes::{Says, Strikes};
use crate::task::{About, Failed, Task};

/// Pause after a job that failed for a reason that may pass.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// How long the jobs that need no run wait for the object of one: it is small.
const RUN_PATIENCE: Duration = Duration::from_secs(10);

/// What a scheduler works with.
#[derive(Debug)]
pub struct Scheduler {
    manifests: Manifests,
    tools: Tools,
    settings: Settings,
    board: Arc<Board>,
    metrics: JobMetrics,
    /// What is there, for whoever asks.
    seen: watch::Sender<Option<Snapshot>>,
    snapshot: Snapshot,
    catalog: Catalog,
    running: BTreeMap<Uuid, Job>,
    tasks: JoinSet<Ended>,
    /// Sources that no job may read.
    blacklist: Blacklist,
    /// Objects that could not be read lately, and how often.
    strikes: Strikes,
    /// Whether a damaged SST is being looked at again.
    is_checking: bool,
    /// Boot time at which each source was first seen in the tree.
    first_seen: BTreeMap<Uuid, Duration>,
    /// The first step of a full compaction, begun or done.
    l0_first: Option<L0First>,
    /// Boot time before which nothing is started.
    paused_until: Duration,
}

/// What a task comes back with.
#[derive(Debug)]
enum Ended {
    Job(Uuid, Box<Result<Snapshot, Failed>>),
    /// A damaged SST was looked at again.
    Check(Object, Result<()>),
}

/// L0 is merged for a full compaction that was asked for.
#[derive(Clone, Copy, Debug)]
struct L0First {
    /// The full compaction.
    asked: Uuid,
    /// The job over L0.
    step: Uuid,
}

/// The settings of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between two looks at CURRENT.
    pub poll_interval: Duration,
    /// Jobs over runs at a time.
    pub jobs_max: usize,
    /// The shape of the tree.
    pub pick: PickConfig,
    /// How long jobs may take to end once they were cancelled.
    pub stop_grace: Duration,
}

/// How others follow and steer a scheduler.
#[derive(Debug)]
pub struct Links {
    /// Where jobs are told of and asked for.
    pub board: Arc<Board>,
    /// Counters of jobs.
    pub metrics: JobMetrics,
    /// Told of every snapshot.
    pub seen: watch::Sender<Option<Snapshot>>,
}

impl Scheduler {
    /// A scheduler that begins with this snapshot, under the epoch of `tools`.
    pub fn new(
        manifests: Manifests,
        tools: Tools,
        settings: Settings,
        links: Links,
        snapshot: Snapshot,
    ) -> Self {
        let Links { board, metrics, seen } = links;
        let catalog = Catalog::new(tools.bucket.clone());
        Self {
            manifests,
            tools,
            settings,
            board,
            metrics,
            seen,
            snapshot,
            catalog,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            blacklist: Blacklist::default(),
            strikes: Strikes::default(),
            is_checking: false,
            first_seen: BTreeMap::new(),
            l0_first: None,
            paused_until: Duration::ZERO,
        }
    }

    /// Keeps the tree in shape until the tools' token is cancelled; then ends its jobs and returns.
    ///
    /// # Errors
    /// `Fenced`; `Corrupt` if CURRENT or its manifest is damaged.
    pub async fn run(mut self) -> Result<()> {
        let ended = self.serve().await;
        self.tools.cancel.cancel();
        let grace = self.settings.stop_grace;
        if tokio::time::timeout(grace, self.end_all()).await.is_err() {
            tracing::warn!(jobs = self.running.len(), "compactions were cut");
        }
        ended
    }

    /// Waits for every job; what they meet now changes nothing any more.
    async fn end_all(&mut self) {
        while let Some(task) = self.tasks.join_next().await {
            let Ok(Ended::Job(id, ended)) = task else { continue };
            let error = ended.err().map(|failed| failed.error.to_string());
            self.board.end(id, self.tools.env.clock.wall_ms(), error);
            self.running.remove(&id);
        }
    }

    async fn serve(&mut self) -> Result<()> {
        let cancel = self.tools.cancel.clone();
        loop {
            self.check_epoch()?;
            self.seen.send_replace(Some(self.snapshot.clone()));
            if let Err(error) = self.start_jobs().await {
                tolerate(error, "the runs of the manifest could not be read")?;
            }
            self.metrics.seen(&self.snapshot.manifest, self.running.len());
            let board = Arc::clone(&self.board);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                Some(ended) = self.tasks.join_next() => {
                    match ended.map_err(|error| Error::unavailable("a job", error))? {
                        Ended::Job(id, ended) => self.end_job(id, *ended).await?,
                        Ended::Check(object, ended) => self.end_check(object, ended),
                    }
                }
                () = board.asked() => self.poll().await?,
                () = tokio::time::sleep(self.settings.poll_interval) => self.poll().await?,
            }
        }
    }

    fn check_epoch(&self) -> Result<()> {
        let (held, found) = (self.tools.making.epoch, self.snapshot.current.compactor.epoch);
        if held == found { Ok(()) } else { Err(deposed(held, found)) }
    }

    async fn poll(&mut self) -> Result<()> {
        match self.manifests.refresh(&self.snapshot).await {
            Ok(newer) => {
                self.strikes.store_answered(self.tools.env.clock.boot());
                self.snapshot = newer.unwrap_or_else(|| self.snapshot.clone());
            }
            Err(error) => tolerate(error, "CURRENT could not be read")?,
        }
        Ok(())
    }

    /// Starts every job that the tree needs and that has a place.
    async fn start_jobs(&mut self) -> Result<()> {
        let manifest = Arc::clone(&self.snapshot.manifest);
        let runs = self.load_runs().await?;
        let mut tree = tree_of(&manifest, &runs);
        self.mark(&mut tree, &runs);
        self.start_check(&runs);
        // A full compaction waits for all runs, or fails over those that are damaged.
        let is_whole = runs.len() == manifest.runs.len();
        let waiting = self.board.waiting();
        if let Some(id) = waiting.filter(|_| is_whole || self.blacklist.first().is_some()) {
            if !self.running.is_empty() {
                return Ok(());
            }
            if let Some(object) = self.blacklist.first() {
                let error = format!("{} is damaged: {REMEDY}", object.path());
                self.board.end(id, self.tools.env.clock.wall_ms(), Some(error));
                return Ok(());
            }
            let l0_is_merged = self.l0_first.is_some_and(|first| first.asked == id);
            match if l0_is_merged { pick_full_runs(&tree) } else { pick_full(&tree) } {
                Some(job) if job.reason == Reason::L0 => {
                    let step = self.tools.env.random.uuid();
                    self.l0_first = Some(L0First { asked: id, step });
                    self.start(step, job, &tree, &runs);
                    return Ok(());
                }
                Some(job) => self.start(id, job, &tree, &runs),
                None => self.board.end(id, self.tools.env.clock.wall_ms(), None),
            }
        }
        if self.tools.env.clock.boot() < self.paused_until {
            return Ok(());
        }
        while let Some(job) = self.pick(&tree) {
            let id = self.tools.env.random.uuid();
            self.start(id, job, &tree, &runs);
        }
        Ok(())
    }

    /// The objects of the runs of the tree, but for those that cannot be read. One that fails
    /// again and again, with looks at CURRENT between, is damaged.
    async fn load_runs(&mut self) -> Result<Vec<Arc<Run>>> {
        let manifest = Arc::clone(&self.snapshot.manifest);
        self.catalog.keep(&manifest.runs.iter().map(|run| run.id).collect());
        let mut runs = Vec::with_capacity(manifest.runs.len());
        for info in &manifest.runs {
            let object = Object::Run(info.id);
            let now = self.tools.env.clock.boot();
            let is_due = self.blacklist.is_due(&object, now) && self.strikes.is_due(&object, now);
            if !self.catalog.holds(info.id) && !is_due {
                continue;
            }
            let look = tokio::time::timeout(RUN_PATIENCE, self.catalog.load_one(info));
            let late = |late| Err(Error::unavailable(format!("reading {object}"), late));
            match look.await.unwrap_or_else(late) {
                Ok(run) => {
                    self.strikes.forget(&object);
                    self.blacklist.heal(&object, self.tools.bucket.damage());
                    runs.push(run);
                }
                Err(error) => {
                    let is_believed = self.note_unread(object, &error);
                    if !is_believed && Says::of(&error) == Says::Damaged {
                        // Perhaps another compactor has replaced it.
                        return Err(Error::unavailable(
                            format!("the first look at {object}"),
                            error,
                        ));
                    }
                }
            }
        }
        Ok(runs)
    }

    /// An object of the tree could not be read; whether it counts as damaged from now on, or did
    /// before.
    fn note_unread(&mut self, object: Object, error: &Error) -> bool {
        let (now, damage) = (self.tools.env.clock.boot(), self.tools.bucket.damage());
        let is_believed = self.strikes.add(object, Says::of(error), now);
        if is_believed || self.blacklist.holds(&object) {
            self.blacklist.add(object, &error.to_string(), damage, now);
            return true;
        }
        tracing::warn!(%object, %error, "an object of the tree could not be read; trying again");
        false
    }

    /// What the picker must know of each source and the manifest does not say.
    fn mark(&mut self, tree: &mut Tree, runs: &[Arc<Run>]) {
        let now = self.tools.env.clock.boot();
        let ids: BTreeSet<Uuid> = tree.sources().map(|source| source.id).collect();
        self.first_seen.retain(|id, _| ids.contains(id));
        let damaged = self.damaged_sources(runs);
        // No job can be made of a run whose object was not had, whatever the reason.
        let loaded: BTreeSet<Uuid> = runs.iter().map(|run| run.id.uuid).collect();
        for run in &mut tree.runs {
            run.damaged |= !loaded.contains(&run.id);
        }
        for source in tree.sources_mut() {
            let since = *self.first_seen.entry(source.id).or_insert(now);
            let age = now.saturating_sub(since).as_millis();
            source.age_ms = u64::try_from(age).unwrap_or(u64::MAX);
            source.damaged |= damaged.contains(&source.id);
        }
    }

    /// The SSTs of L0 and the runs that cannot be read, or hold an SST that cannot.
    fn damaged_sources(&mut self, runs: &[Arc<Run>]) -> BTreeSet<Uuid> {
        if self.blacklist.is_empty() {
            return BTreeSet::new();
        }
        let manifest = &self.snapshot.manifest;
        let l0 = manifest.l0.iter().map(|sst| (Object::Sst(sst.id), sst.id.uuid));
        let infos = manifest.runs.iter().map(|info| (Object::Run(info.id), info.id.uuid));
        let in_run = |run: &Arc<Run>| {
            let source = run.id.uuid;
            run.ssts.iter().map(|sst| (Object::Sst(sst.id), source)).collect::<Vec<_>>()
        };
        let places = l0.chain(infos).chain(runs.iter().flat_map(in_run));
        let sources: BTreeMap<Object, Uuid> = places.collect();
        self.blacklist.keep(|object| sources.contains_key(object), self.tools.bucket.damage());
        let is_damaged = |(object, _): &(&Object, &Uuid)| self.blacklist.holds(object);
        sources.iter().filter(is_damaged).map(|(_, source)| *source).collect()
    }

    /// Looks again at a damaged SST for which it is time; one at a time.
    fn start_check(&mut self, runs: &[Arc<Run>]) {
        if self.is_checking {
            return;
        }
        let due: Vec<Object> = self.blacklist.due(self.tools.env.clock.boot()).collect();
        let ssts = self.snapshot.manifest.l0.iter().chain(runs.iter().flat_map(|run| &run.ssts));
        let is_due = |sst: &&SstInfo| due.contains(&Object::Sst(sst.id));
        let Some(sst) = ssts.into_iter().find(is_due).cloned() else { return };
        self.is_checking = true;
        let tools = Tools { cancel: self.tools.cancel.child_token(), ..self.tools.clone() };
        self.tasks.spawn(async move {
            let checked = tokio::select! {
                () = tools.cancel.cancelled() => Err(Error::Closed),
                checked = check::check(&tools, &sst) => checked,
            };
            Ended::Check(Object::Sst(sst.id), checked)
        });
    }

    fn end_check(&mut self, object: Object, ended: Result<()>) {
        self.is_checking = false;
        let (now, damage) = (self.tools.env.clock.boot(), self.tools.bucket.damage());
        match ended {
            Ok(()) => self.blacklist.heal(&object, damage),
            Err(Error::Closed) => {}
            Err(error) => {
                if self.blacklist.holds(&object) {
                    self.blacklist.add(object, &error.to_string(), damage, now);
                }
            }
        }
    }

    fn pick(&self, tree: &Tree) -> Option<Job> {
        let busy: BTreeSet<Uuid> = self.running.values().flat_map(Job::inputs).collect();
        let config = &self.settings.pick.within(self.snapshot.current.l0_stop);
        pick_l0(tree, &busy, config).or_else(|| {
            let reasons = self.running.values().map(|job| job.reason);
            let has_place = has_place_over_runs(reasons, self.settings.jobs_max);
            has_place.then(|| pick_runs(tree, &busy, config)).flatten()
        })
    }

    fn start(&mut self, id: Uuid, job: Job, tree: &Tree, runs: &[Arc<Run>]) {
        let input_count = job.inputs().count();
        let now_ms = self.tools.env.clock.wall_ms();
        let progress = self.board.begin(id, job.reason, input_count, now_ms);
        let reason = job.reason.name();
        tracing::info!(%id, reason, inputs = input_count, "a compaction begins");
        let l0 = self.snapshot.manifest.l0.iter().filter(|sst| job.l0.contains(&sst.id.uuid));
        let runs = runs.iter().filter(|run| job.runs.contains(&run.id.uuid));
        let task = Task {
            manifests: self.manifests.clone(),
            tools: Tools { cancel: self.tools.cancel.child_token(), ..self.tools.clone() },
            inputs: Inputs { l0: l0.cloned().collect(), runs: runs.cloned().collect() },
            rules: rules_of(&job, tree),
            snapshot: self.snapshot.clone(),
            progress,
        };
        assert_eq!(task.inputs.sources().len(), input_count, "a job over what is in the tree");
        self.running.insert(id, job);
        self.tasks.spawn(async move { Ended::Job(id, Box::new(task.run().await)) });
    }

    /// Takes note of a job's end. An error means that this process must end.
    async fn end_job(&mut self, id: Uuid, ended: Result<Snapshot, Failed>) -> Result<()> {
        let now_ms = self.tools.env.clock.wall_ms();
        let error = ended.as_ref().err().map(|failed| failed.error.to_string());
        if error.is_some()
            && let Some(first) = self.l0_first.take_if(|first| first.step == id)
        {
            self.board.end(first.asked, now_ms, error.clone());
        }
        self.board.end(id, now_ms, error);
        let Some(job) = self.running.remove(&id) else { return Ok(()) };
        let status = self.board.jobs().into_iter().find(|status| status.id == id);
        let result = if ended.is_ok() { JobResult::Done } else { JobResult::Failed };
        self.metrics.ended(job.reason, result, status.as_ref());
        match ended {
            Ok(snapshot) => {
                tracing::info!(%id, reason = job.reason.name(), "a compaction is in the tree");
                if snapshot.current.version > self.snapshot.current.version {
                    self.snapshot = snapshot;
                }
                Ok(())
            }
            Err(Failed { error: error @ Error::Fenced { .. }, .. }) => Err(error),
            Err(Failed { error, about: Some(About::Damaged(damage)) }) => {
                // SUBTLE: under a newer epoch inputs are deleted: this is the end, not damage.
                self.poll().await?;
                self.check_epoch()?;
                let (now, registry) = (self.tools.env.clock.boot(), self.tools.bucket.damage());
                self.blacklist.add(damage.object, &damage.cause, registry, now);
                tracing::warn!(%error, %id, "a compaction met damage; it goes on around it");
                Ok(())
            }
            Err(Failed { error, about: Some(About::Unread(object)) }) => {
                // Whether it is this object or the whole store.
                self.poll().await?;
                self.check_epoch()?;
                if !self.note_unread(object, &error) {
                    self.paused_until = self.tools.env.clock.boot() + FAILURE_PAUSE;
                }
                Ok(())
            }
            Err(Failed { error, about: None }) => {
                tracing::warn!(%error, %id, "a compaction failed; trying again later");
                self.paused_until = self.tools.env.clock.boot() + FAILURE_PAUSE;
                Ok(())
            }
        }
    }
}

/// Whether one more job over runs may begin. A job that rewrites the bottom can take hours, and the
/// runs above it must be kept few meanwhile: they always have a place.
fn has_place_over_runs(running: impl Iterator<Item = Reason>, jobs_max: usize) -> bool {
    let (mut all, mut upper) = (0, 0);
    for reason in running.filter(|reason| *reason != Reason::L0) {
        all += 1;
        upper += usize::from(matches!(reason, Reason::Tier | Reason::Depth));
    }
    all < jobs_max || upper == 0
}

/// Goes on after what may pass.
fn tolerate(error: Error, what: &str) -> Result<()> {
    match error {
        Error::Unavailable(_) | Error::Indeterminate(_) | Error::NotFound(_) => {
            tracing::warn!(%error, "{what}; trying again");
            Ok(())
        }
        error => Err(error),
    }
}

/// What the job may drop, judged from the tree that it was picked from. What comes later is newer
/// than its inputs, and written at or after the manifest's time.
pub fn rules_of(job: &Job, tree: &Tree) -> Rules {
    if job.reason == Reason::Quarantine {
        // It is moved as it is.
        return Rules::upper(tree.now_ms);
    }
    let ids: Vec<Uuid> = job.inputs().collect();
    let inputs: Vec<&Stat> = tree.sources().filter(|source| ids.contains(&source.id)).collect();
    let (Some(newest), Some(oldest)) = (ids.first(), ids.last()) else {
        return Rules::upper(tree.now_ms);
    };
    let has_operands_above =
        tree.has_operands_above(*newest, &inputs) && !planted("compaction_forgets_operands_above");
    Rules {
        bottom: tree.is_bottom(*oldest, &inputs) || planted("compaction_is_always_bottom"),
        now_ms: tree.now_ms,
        newer_operands_from_ms: if has_operands_above { 0 } else { tree.now_ms },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_runs_have_a_place_beside_the_bottom() {
        let has_place =
            |running: &[Reason], jobs_max| has_place_over_runs(running.iter().copied(), jobs_max);
        assert!(has_place(&[], 1) && has_place(&[Reason::L0], 1));
        assert!(has_place(&[Reason::Bottom], 1) && has_place(&[Reason::L0, Reason::Full], 1));
        assert!(!has_place(&[Reason::Tier], 1) && !has_place(&[Reason::Bottom, Reason::Depth], 2));
        assert!(has_place(&[Reason::Tier], 2));
    }
}
