//! Counters of the cache: one for hot paths, and a registry that picks the two counts out of
//! foyer's metrics that nothing else tells, the insertions that it dropped.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mixtrics::metrics::{
    BoxedCounter, BoxedCounterVec, BoxedGaugeVec, BoxedHistogramVec, CounterOps, CounterVecOps,
    RegistryOps,
};
use mixtrics::registry::noop::NoopMetricsRegistry;

/// A counter on cache lines of its own, several of them, so that cores do not fight over one.
#[derive(Debug, Default)]
pub(super) struct Striped {
    stripes: [Stripe; 16],
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(AtomicU64);

impl Striped {
    /// Adds one; `hash` chooses the stripe.
    pub(super) fn add(&self, hash: u64) {
        // The top bits: the low ones choose the part of the cache.
        let stripe = usize::from((hash >> 60) as u8);
        self.stripes[stripe % self.stripes.len()].0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count.
    pub(super) fn sum(&self) -> u64 {
        self.stripes.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
    }
}

/// Counts the insertions that foyer drops silently; every other metric of foyer goes nowhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Drops(Arc<AtomicU64>);

/// The operations of foyer under which it counts them.
const DROPS: [&str; 2] = ["buffer_overflow", "channel_overflow"];

impl Drops {
    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl CounterOps for Drops {
    fn increase(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

impl CounterVecOps for Drops {
    fn counter(&self, labels: &[Cow<'static, str>]) -> BoxedCounter {
        if labels.iter().any(|label| DROPS.contains(&&**label)) {
            Box::new(self.clone())
        } else {
            Box::new(NoopMetricsRegistry)
        }
    }
}

impl RegistryOps for Drops {
    fn register_counter_vec(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
    ) -> BoxedCounterVec {
        Box::new(self.clone())
    }

    fn register_gauge_vec(
        &self,
        name: Cow<'static, str>,
        about: Cow<'static, str>,
        labels: &'static [&'static str],
    ) -> BoxedGaugeVec {
        NoopMetricsRegistry.register_gauge_vec(name, about, labels)
    }

    fn register_histogram_vec(
        &self,
        name: Cow<'static, str>,
        about: Cow<'static, str>,
        labels: &'static [&'static str],
    ) -> BoxedHistogramVec {
        NoopMetricsRegistry.register_histogram_vec(name, about, labels)
    }

    fn register_histogram_vec_with_buckets(
        &self,
        name: Cow<'static, str>,
        about: Cow<'static, str>,
        labels: &'static [&'static str],
        buckets: Vec<f64>,
    ) -> BoxedHistogramVec {
        NoopMetricsRegistry.register_histogram_vec_with_buckets(name, about, labels, buckets)
    }
}
