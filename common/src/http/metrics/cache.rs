//! Hits, misses and bytes of the block cache, as metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::store::cache::BlockCache;

/// Reads the counters of one cache at each scrape.
#[derive(Debug)]
pub(super) struct CacheCollector {
    pub(super) cache: BlockCache,
}

impl Collector for CacheCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.cache.stats();
        let tiers = [
            ("cache_hits", "Blocks found", [stats.memory_hits, stats.disk_hits]),
            (
                "cache_misses",
                "Blocks not found",
                [stats.memory_misses, stats.memory_misses.saturating_sub(stats.disk_hits)],
            ),
        ];
        for (name, help, [memory, disk]) in tiers {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (tier, count) in [("memory", memory), ("disk", disk)] {
                ConstCounter::new(count).encode(metric.encode_family(&[("tier", tier)])?)?;
            }
        }
        for (name, help, count) in [
            (
                "cache_disk_damaged",
                "Entries on disk that failed their checksum",
                stats.disk_damaged,
            ),
            ("cache_disk_dropped", "Insertions that did not reach the disk", stats.disk_dropped),
            ("cache_disk_written_bytes", "Bytes written to disk", stats.disk_written_bytes),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(metric)?;
        }
        for (name, help, count) in [
            ("cache_memory_bytes", "Bytes of blocks in memory", stats.memory_bytes),
            ("cache_memory_blocks", "Blocks in memory", stats.memory_blocks),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}
