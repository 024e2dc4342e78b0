//! The compactor's own metric families.

use cairn_common::format::manifest::Manifest;
use cairn_common::format::path::ObjectKind;
use cairn_common::http::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::board::JobStatus;
use crate::pick::Reason;

/// Counters of jobs.
#[derive(Clone, Debug, Default)]
pub struct JobMetrics {
    jobs: Family<JobLabels, Counter>,
    read: Counter,
    written: Counter,
    running: Gauge,
    l0_ssts: Gauge,
    runs: Gauge,
    tree_bytes: Gauge,
    retired: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    reason: &'static str,
    result: &'static str,
}

impl JobMetrics {
    /// Counters that `/metrics` shows.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("compaction");
            registry.register("jobs", "Jobs that have ended", this.jobs.clone());
            registry.register("read_bytes", "Stored bytes merged", this.read.clone());
            registry.register("written_bytes", "Bytes of new SSTs", this.written.clone());
            registry.register("jobs_running", "Jobs in progress", this.running.clone());
        });
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("tree");
            registry.register("l0_ssts", "SSTs in L0", this.l0_ssts.clone());
            registry.register("runs", "Sorted runs", this.runs.clone());
            registry.register("bytes", "Size of L0 and runs", this.tree_bytes.clone());
            let help = "Objects that have left the tree and are kept for slow readers";
            registry.register("retired_objects", help, this.retired.clone());
        });
        this
    }

    /// This is there now, and so many jobs work on it.
    pub fn seen(&self, manifest: &Manifest, running: usize) {
        let l0_bytes: u64 = manifest.l0.iter().map(|sst| sst.bytes).sum();
        let run_bytes: u64 = manifest.runs.iter().map(|run| run.bytes).sum();
        self.running.set(gauge(running));
        self.l0_ssts.set(gauge(manifest.l0.len()));
        self.runs.set(gauge(manifest.runs.len()));
        self.tree_bytes.set(i64::try_from(l0_bytes + run_bytes).unwrap_or(i64::MAX));
        self.retired.set(gauge(manifest.retired.len()));
    }

    /// A job has ended.
    pub fn ended(&self, reason: Reason, result: JobResult, status: Option<&JobStatus>) {
        let result = match result {
            JobResult::Done => "done",
            JobResult::Failed => "failed",
        };
        self.jobs.get_or_create(&JobLabels { reason: reason.name(), result }).inc();
        if let Some(status) = status {
            self.read.inc_by(status.bytes_done);
            self.written.inc_by(status.bytes_written);
        }
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobResult {
    /// It is in the tree.
    Done,
    /// It had no effect.
    Failed,
}

/// Counters of collection.
#[derive(Clone, Debug, Default)]
pub struct GcMetrics {
    deleted: Family<KindLabel, Counter>,
    passes: Counter,
    failures: Counter,
    stopped: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

impl GcMetrics {
    /// Counters that `/metrics` shows.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("gc");
            registry.register("deleted_objects", "Objects deleted", this.deleted.clone());
            registry.register("passes", "Passes that went through", this.passes.clone());
            registry.register("failures", "Passes that were broken off", this.failures.clone());
            let help = "1 while damage keeps it from deleting all that it could";
            registry.register("stopped", help, this.stopped.clone());
        });
        this
    }

    /// What [`GcMetrics::met_damage`] was told last.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get() > 0
    }

    /// Objects of this kind were deleted.
    pub fn deleted(&self, kind: ObjectKind, count: u64) {
        self.deleted.get_or_create(&KindLabel { kind: kind.name() }).inc_by(count);
    }

    /// A pass went through.
    pub fn passed(&self) {
        self.passes.inc();
    }

    /// A pass was broken off.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// So many times the last pass was kept from deleting all that it could.
    pub fn met_damage(&self, count: usize) {
        self.stopped.set(gauge(count));
    }
}
