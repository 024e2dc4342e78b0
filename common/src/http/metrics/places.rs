//! How many requests are worked on, how many wait for what, and how many may, as metrics.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::http::places::Places;

/// Reads the places of one process at each scrape.
#[derive(Debug)]
pub(super) struct PlacesCollector {
    pub(super) places: Arc<Places>,
}

impl Collector for PlacesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usage = self.places.usage();
        let families = [
            ("http_places", "Requests by what they do or wait for", usage.map(|u| u.count)),
            (
                "http_places_max",
                "How many requests may do or wait for it",
                usage.map(|u| u.count_max),
            ),
        ];
        for (name, help, counts) in families {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (usage, count) in usage.iter().zip(counts) {
                let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                gauge.encode(metric.encode_family(&[("kind", usage.what)])?)?;
            }
        }
        Ok(())
    }
}
