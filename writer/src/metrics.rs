//! What the writer counts, and how far it is, for Prometheus.
//!
//! A write costs one observation of a histogram; everything else is counted once a group or a
//! flush, or read at the scrape.

use std::fmt;
use std::time::Duration;

use cairn_common::http::metrics::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use crate::node::{PHASES, Phase};
use crate::pressure::Bound;
use crate::service::Writer;

/// From a PUT to a local disk to one that was tried for long, in seconds.
const WRITE_BOUNDS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0, 30.0];
/// From a small memtable on a local disk to a large one on a slow store, in seconds.
const FLUSH_BOUNDS: [f64; 10] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// Why a write is refused whose deadline passes before there is room for it.
const LATE: &str = "late";

/// What one writer counts. A cheap handle.
#[derive(Clone, Debug)]
pub struct Counters {
    delayed: Family<Reason, Counter>,
    refused: Family<Reason, Counter>,
    durable_writes: Histogram,
    wal_groups: Counter,
    wal_bytes: Counter,
    wal_in_flight: Gauge,
    wal_window: u64,
    flushes: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Counters {
    /// Of a writer with this window.
    pub fn new(wal_window: u64) -> Self {
        let this = Self {
            delayed: Family::default(),
            refused: Family::default(),
            durable_writes: Histogram::new(WRITE_BOUNDS),
            wal_groups: Counter::default(),
            wal_bytes: Counter::default(),
            wal_in_flight: Gauge::default(),
            wal_window,
            flushes: Histogram::new(FLUSH_BOUNDS),
        };
        // A rate is seen from its first step on only where there was a zero before.
        for reason in [Bound::Unflushed.name(), Bound::L0.name()] {
            this.delayed.get_or_create(&Reason { reason }).inc_by(0);
            this.refused.get_or_create(&Reason { reason }).inc_by(0);
        }
        this.refused.get_or_create(&Reason { reason: LATE }).inc_by(0);
        this
    }

    /// A write had to wait for what lags.
    pub fn delayed(&self, bound: Bound) {
        self.delayed.get_or_create(&Reason { reason: bound.name() }).inc();
    }

    /// A write was refused because of what lags.
    pub fn refused(&self, bound: Option<Bound>) {
        let reason = bound.map_or(LATE, Bound::name);
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// A durable write was acknowledged so long after it came.
    pub fn durable(&self, took: Duration) {
        self.durable_writes.observe(took.as_secs_f64());
    }

    /// A group of so many bytes was sent.
    pub fn sent(&self, bytes: usize) {
        self.wal_groups.inc();
        self.wal_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.wal_in_flight.inc();
    }

    /// A group was proven, and all before it.
    pub fn proven(&self) {
        self.wal_in_flight.dec();
    }

    /// A memtable became L0 in so long.
    pub fn flushed(&self, took: Duration) {
        self.flushes.observe(took.as_secs_f64());
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let families: [(&str, &str, &dyn EncodeMetric); 6] = [
            ("delayed_writes", "Writes that had to wait for what lags", &self.delayed),
            ("refused_writes", "Writes that were refused, by what lags", &self.refused),
            ("durable_write_seconds", "From a durable write to its ack", &self.durable_writes),
            ("wal_groups", "Groups sent to the log", &self.wal_groups),
            ("wal_bytes", "Bytes of groups sent to the log", &self.wal_bytes),
            ("flush_seconds", "From a frozen memtable to a tree that has it", &self.flushes),
        ];
        for (name, help, family) in families {
            let name = format!("writer_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, family.metric_type())?;
            family.encode(metric)?;
        }
        let in_flight = u64::try_from(self.wal_in_flight.get()).unwrap_or(0);
        gauges(
            encoder,
            [
                ("wal_in_flight", "WAL objects sent and not proven", in_flight),
                ("wal_window", "Most of these", self.wal_window),
            ],
        )
    }
}

/// Adds the families of a writer.
pub(crate) fn register(metrics: &Metrics, phase: watch::Receiver<Phase>) {
    metrics.register(|registry| registry.register_collector(Box::new(Families { phase })));
}

#[derive(Debug)]
struct Families {
    phase: watch::Receiver<Phase>,
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let phase = self.phase.borrow().clone();
        let help = "1 for what the writer does now";
        let mut metric =
            encoder.encode_descriptor("writer_phase", help, None, MetricType::Gauge)?;
        for name in PHASES {
            let here = ConstGauge::new(i64::from(name == phase.name()));
            here.encode(metric.encode_family(&[("phase", name)])?)?;
        }
        match phase.writer() {
            Some(writer) => encode_writer(writer, &mut encoder),
            None => Ok(()),
        }
    }
}

fn encode_writer(writer: &Writer, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (load, limits) = (writer.front.load(), &writer.limits);
    let durable = writer.front.progress().borrow().durable;
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    gauges(
        encoder,
        [
            ("epoch", "The epoch under which it writes", u64::from(writer.lease.epoch().0)),
            ("durable_seq", "Everything at or below is in the bucket", durable.0),
            ("newest_seq", "The last seq given", writer.front.newest_seq().0),
            ("unflushed_bytes", "Bytes in memtables", load.unflushed_bytes),
            ("unflushed_bytes_max", "Where writes are refused", limits.unflushed_bytes_max),
            ("frozen_memtables", "Memtables that wait to be flushed", count(load.frozen_count)),
            ("l0_ssts", "SSTs in L0", count(load.l0_count)),
            ("l0_slowdown_ssts", "Where writes are delayed", count(limits.l0_slowdown_count)),
            ("l0_stop_ssts", "Where writes are refused", count(limits.l0_stop_count)),
        ],
    )?;
    writer.counters.encode(encoder)
}

fn gauges<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    gauges: [(&str, &str, u64); N],
) -> fmt::Result {
    for (name, help, value) in gauges {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let name = format!("writer_{name}");
        let metric = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
        gauge.encode(metric)?;
    }
    Ok(())
}
