//! How far behind the reader is, and what it holds, for Prometheus.

use std::fmt;
use std::sync::Arc;

use cairn_common::http::metrics::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use crate::node::ReaderNode;

/// Adds the families of a reader.
pub(crate) fn register(metrics: &Metrics, node: Arc<ReaderNode>) {
    metrics.register(|registry| registry.register_collector(Box::new(Families { node })));
}

#[derive(Debug)]
struct Families {
    node: Arc<ReaderNode>,
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(sight) = self.node.sights().latest() else { return Ok(()) };
        let view = &sight.view;
        let memtable_bytes: u64 = view.memtables.iter().map(|memtable| memtable.bytes()).sum();
        let manifest = &view.tree.manifest;
        let gauges = [
            ("lag_milliseconds", "Bound on the age of the view", sight.lag_ms(self.node.now())),
            ("seq", "Highest visible seq", view.seq.0),
            ("manifest_version", "Version of the tree shown", manifest.id.version),
            ("l0_ssts", "SSTs in L0", manifest.l0.len() as u64),
            ("runs", "Sorted runs", manifest.runs.len() as u64),
            ("memtable_bytes", "Bytes of the log in memory", memtable_bytes),
            ("metadata_bytes", "Bytes of filters and indexes", view.tree.ssts.meta_bytes()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("reader_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
