//! Prometheus metrics: the families that every process has, and a registry for its own.
//!
//! Names begin with `cairn_`; text is `OpenMetrics` on `/metrics`. Labels never hold what clients
//! choose (keys, unknown paths), so the number of series is bounded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
pub use prometheus_client::registry::Registry;

use super::places::Places;
use crate::build::VERSION;
use crate::store::cache::BlockCache;
use crate::store::object::Bucket;

mod cache;
mod places;
mod store;

/// The content type of `/metrics`.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// From a warm get to the longest deadline, in seconds.
const LATENCY_BOUNDS: [f64; 16] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 10.0,
    60.0,
];

/// The metrics of a process.
pub struct Metrics {
    registry: Mutex<Registry>,
    http: HttpMetrics,
}

/// Requests by route.
#[derive(Clone, Debug)]
struct HttpMetrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    problems: Family<ProblemCode, Counter>,
    in_progress: Gauge,
}

/// A request as it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemCode {
    code: &'static str,
}

/// One request, for the counters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) route: &'static str,
    pub(super) method: &'static str,
    pub(super) status: u16,
    pub(super) took: Duration,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// The families that every process has; `role` is `writer`, `reader` or `compactor`.
    pub fn new(role: &'static str) -> Self {
        let mut registry = Registry::with_prefix("cairn");
        let build = Info::new(vec![("version", VERSION), ("role", role)]);
        registry.register("build", "What runs here", build);
        registry.register_collector(Box::new(ProcessMemory));
        let http = HttpMetrics::register(&mut registry);
        Self { registry: Mutex::new(registry), http }
    }

    /// Adds the counters of the object store.
    pub fn register_store(&self, bucket: Bucket) {
        let collector = Box::new(store::StoreCollector { bucket });
        self.register(|registry| registry.register_collector(collector));
    }

    /// Adds the counters of the block cache.
    pub fn register_cache(&self, cache: BlockCache) {
        let collector = Box::new(cache::CacheCollector { cache });
        self.register(|registry| registry.register_collector(collector));
    }

    /// Adds how many requests are worked on, and how many wait.
    pub(super) fn register_places(&self, places: Arc<Places>) {
        let collector = Box::new(places::PlacesCollector { places });
        self.register(|registry| registry.register_collector(collector));
    }

    /// Adds families of the process's own.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything as `OpenMetrics` text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if encode(&mut text, &registry).is_err() {
            tracing::error!("metrics could not be written as text");
        }
        text
    }

    pub(super) fn started(&self) {
        self.http.in_progress.inc();
    }

    pub(super) fn answered(&self, sample: Sample) {
        let Sample { route, method, status, took } = sample;
        let answered = Answered { route, method, status };
        self.http.requests.get_or_create(&answered).inc();
        let seconds = self.http.seconds.get_or_create(&Route { route, method });
        seconds.observe(took.as_secs_f64());
        self.http.in_progress.dec();
    }

    pub(super) fn problem(&self, code: &'static str) {
        self.http.problems.get_or_create(&ProblemCode { code }).inc();
    }
}

impl HttpMetrics {
    fn register(registry: &mut Registry) -> Self {
        let this = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(LATENCY_BOUNDS)),
            problems: Family::default(),
            in_progress: Gauge::default(),
        };
        let http = registry.sub_registry_with_prefix("http");
        http.register("requests", "Requests answered", this.requests.clone());
        http.register("request_seconds", "From head to head of the reply", this.seconds.clone());
        http.register("problems", "Problems answered, by code", this.problems.clone());
        http.register("requests_in_progress", "Without a reply yet", this.in_progress.clone());
        this
    }
}

/// Memory of this process as the kernel counts it.
#[derive(Debug)]
struct ProcessMemory;

/// Resident bytes of this process; 0 where the kernel does not tell.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

impl Collector for ProcessMemory {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from(resident_bytes()).unwrap_or(i64::MAX));
        let name = "memory_resident_bytes";
        let metric =
            encoder.encode_descriptor(name, "Resident memory", None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;
    use crate::format::path::Object;
    use crate::store::object::StoreSettings;

    #[test]
    fn families_of_every_process_are_there() {
        let metrics = Metrics::new("writer");
        metrics.started();
        let took = Duration::from_micros(150);
        metrics.answered(Sample { route: "/v1/kv/{key}", method: "GET", status: 200, took });
        metrics.problem("not_found");
        metrics.register(|registry| {
            registry.register("flushes", "Memtables made L0", Counter::<u64>::default());
        });
        let text = metrics.encode();
        let request = "{route=\"/v1/kv/{key}\",method=\"GET\"";
        for line in [
            format!("cairn_http_requests_total{request},status=\"200\"}} 1\n"),
            format!("cairn_http_request_seconds_count{request}}} 1\n"),
            "cairn_http_problems_total{code=\"not_found\"} 1\n".into(),
            "cairn_http_requests_in_progress 0\n".into(),
            "cairn_flushes_total 0\n".into(),
            format!("cairn_build_info{{version=\"{VERSION}\",role=\"writer\"}} 1\n"),
            "# EOF\n".into(),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(resident_bytes() > 0);
    }

    #[test]
    fn hits_and_bytes_of_the_cache_are_there() {
        let metrics = Metrics::new("reader");
        metrics.register_cache(BlockCache::memory_only(1 << 20));
        let text = metrics.encode();
        for line in ["cairn_cache_hits_total{tier=\"memory\"} 0\n", "cairn_cache_memory_bytes 0\n"]
        {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn requests_to_the_store_are_there() {
        let bucket = Bucket::open("memory://", StoreSettings::default(), Env::system()).unwrap();
        bucket.create(&Object::Current, "x".into()).await.unwrap();
        bucket.damage().report(&Object::Current, &"x is no JSON");
        let metrics = Metrics::new("reader");
        metrics.register_store(bucket);
        let text = metrics.encode();
        let labels = "{operation=\"create\",kind=\"CURRENT\"}";
        for line in [
            format!("cairn_store_requests_total{labels} 1\n"),
            format!("cairn_store_sent_bytes_total{labels} 1\n"),
            format!("cairn_store_request_seconds_count{labels} 1\n"),
            "cairn_store_dollars_total 0.0\n".into(),
            "cairn_store_damaged_objects 1\n".into(),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
