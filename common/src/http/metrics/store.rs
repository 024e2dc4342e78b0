//! What the object store was asked, as metrics: requests, errors, bytes, time and dollars.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::store::metrics::{LATENCY_BOUNDS_SECONDS, RetryRow, StoreRow};
use crate::store::object::Bucket;

/// Reads the counters of one bucket at each scrape.
#[derive(Debug)]
pub(super) struct StoreCollector {
    pub(super) bucket: Bucket,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    operation: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    reason: &'static str,
}

impl Labels {
    fn of(row: &StoreRow) -> Self {
        Self { operation: row.operation.name(), kind: row.kind.name() }
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    count: u64,
) -> fmt::Result {
    let counter = ConstCounter::new(count);
    let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    counter.encode(metric)
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    rows: &[StoreRow],
    count: impl Fn(&StoreRow) -> u64,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for row in rows {
        let labels = Labels::of(row);
        ConstCounter::new(count(row)).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn latency(metric: &mut MetricEncoder<'_>, row: &StoreRow) -> fmt::Result {
    let bounds = LATENCY_BOUNDS_SECONDS.into_iter().chain([f64::MAX]);
    let buckets: Vec<_> = bounds.zip(row.buckets).collect();
    let labels = Labels::of(row);
    let mut of_row = metric.encode_family(&labels)?;
    of_row.encode_histogram::<NoLabelSet>(row.took.as_secs_f64(), row.requests, &buckets, None)
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.bucket.metrics().snapshot();
        let rows = &snapshot.rows;
        let encoder = &mut encoder;
        let requests = ("store_requests", "Requests to the object store, each attempt counted");
        family(encoder, requests, rows, |row| row.requests)?;
        let errors = ("store_errors", "Requests to the object store that failed");
        family(encoder, errors, rows, |row| row.errors)?;
        let sent = ("store_sent_bytes", "Bytes of objects sent");
        family(encoder, sent, rows, |row| row.bytes_out)?;
        let received = ("store_received_bytes", "Bytes of objects received");
        family(encoder, received, rows, |row| row.bytes_in)?;
        let help = "Duration of requests to the object store";
        let mut seconds = encoder.encode_descriptor(
            "store_request_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        rows.iter().try_for_each(|row| latency(&mut seconds, row))?;
        let help = "Attempts after a failed one";
        let mut retries =
            encoder.encode_descriptor("store_retries", help, None, MetricType::Counter)?;
        for RetryRow { reason, count } in &snapshot.retries {
            let labels = RetryLabels { reason: reason.name() };
            ConstCounter::new(*count).encode(retries.encode_family(&labels)?)?;
        }
        counter(encoder, ("store_hedges", "Creates sent a second time"), snapshot.hedges)?;
        let won = ("store_hedges_won", "Hedges that were answered first");
        counter(encoder, won, snapshot.hedges_won)?;
        let dollars = ConstCounter::new(snapshot.dollars());
        let help = "What all requests cost at list prices";
        let metric =
            encoder.encode_descriptor("store_dollars", help, None, dollars.metric_type())?;
        dollars.encode(metric)?;
        let damaged = i64::try_from(self.bucket.damage().count()).unwrap_or(i64::MAX);
        let help = "Objects known to be missing or damaged: should be 0, the status names them";
        let name = "store_damaged_objects";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(damaged).encode(metric)
    }
}
