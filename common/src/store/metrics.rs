//! What the store was asked, how long it took, and what that costs at list prices.
//!
//! **Source**: list prices per request of the standard classes in the cheapest American regions,
//! January 2026: aws.amazon.com/s3/pricing, cloud.google.com/storage/pricing,
//! azure.microsoft.com/pricing/details/storage/blobs (hot, LRS). Bytes stored and bytes that leave
//! the region are not counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::answer::Reason;
use crate::format::path::ObjectKind;

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// A read of a whole object or of a range.
    Get,
    /// A create: a write where nothing may be.
    Create,
    /// A compare-and-swap.
    Swap,
    /// An unconditional write, and each request of a multipart upload.
    Put,
    /// One page of a listing, or one listing where the store does not tell its pages.
    List,
    /// A deletion, of one object or of many.
    Delete,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 6] =
        [Self::Get, Self::Create, Self::Swap, Self::Put, Self::List, Self::Delete];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create => "create",
            Self::Swap => "swap",
            Self::Put => "put",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// Prices of requests in billionths of a dollar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// One write or one listing.
    pub write_nanodollars: u64,
    /// One read.
    pub read_nanodollars: u64,
    /// One deletion.
    pub delete_nanodollars: u64,
}

impl Prices {
    /// Nothing costs anything: a directory, memory.
    pub const FREE: Self =
        Self { write_nanodollars: 0, read_nanodollars: 0, delete_nanodollars: 0 };
    /// S3 standard: $0.005 per 1,000 writes and listings, $0.0004 per 1,000 reads.
    pub const S3: Self =
        Self { write_nanodollars: 5_000, read_nanodollars: 400, delete_nanodollars: 0 };
    /// Google Cloud Storage standard, one region: as S3.
    pub const GCS: Self = Self::S3;
    /// Azure hot block blobs: $0.05 per 10,000 writes and listings, $0.004 per 10,000 reads.
    pub const AZURE: Self = Self::S3;

    /// The price of one request.
    pub fn of(self, operation: Operation) -> u64 {
        match operation {
            Operation::Create | Operation::Swap | Operation::Put | Operation::List => {
                self.write_nanodollars
            }
            Operation::Get => self.read_nanodollars,
            Operation::Delete => self.delete_nanodollars,
        }
    }
}

/// Upper bounds of the latency histogram, in seconds: from a local directory to a stalled network.
pub const LATENCY_BOUNDS_SECONDS: [f64; 13] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

const BUCKETS: usize = LATENCY_BOUNDS_SECONDS.len() + 1;
const ROWS: usize = Operation::ALL.len() * ObjectKind::ALL.len();

/// The counters of one bucket; shared by all clones of it.
#[derive(Debug)]
pub struct StoreMetrics {
    prices: Prices,
    rows: [Row; ROWS],
    /// By reason.
    retries: [AtomicU64; Reason::ALL.len()],
    hedges: AtomicU64,
    hedges_won: AtomicU64,
}

#[derive(Debug, Default)]
struct Row {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// One request as it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) operation: Operation,
    pub(super) kind: ObjectKind,
    pub(super) took: Duration,
    pub(super) ended: Ended,
}

/// How a request ended, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With an answer that its caller reckons with: also "not there", "exists", "not modified".
    Answered,
    /// Without one.
    Failed,
}

/// What the counters say at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreSnapshot {
    /// One row for every operation and kind that was ever asked for, in the order of the enums.
    pub rows: Vec<StoreRow>,
    /// Attempts that were made because an earlier one had failed: one row for every reason.
    pub retries: Vec<RetryRow>,
    /// Creates that were sent a second time because the first was slow.
    pub hedges: u64,
    /// Of these, the ones whose second sending was answered first.
    pub hedges_won: u64,
    /// What all requests cost at list prices, in billionths of a dollar.
    pub nanodollars: u64,
}

/// Attempts after a failed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryRow {
    /// Why the earlier attempt failed.
    pub reason: Reason,
    /// How many.
    pub count: u64,
}

/// The counters of one operation on one kind of object.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreRow {
    /// The operation.
    pub operation: Operation,
    /// The kind of object.
    pub kind: ObjectKind,
    /// Requests sent, each attempt counted.
    pub requests: u64,
    /// Of these, the ones that failed; "not there", "exists" and "not modified" are answers.
    pub errors: u64,
    /// Bytes of objects received.
    pub bytes_in: u64,
    /// Bytes of objects sent.
    pub bytes_out: u64,
    /// Time spent in requests, added up.
    pub took: Duration,
    /// Requests by latency; bucket `i` holds those up to `LATENCY_BOUNDS_SECONDS[i]` and above the
    /// bound before it, the last one the rest.
    pub buckets: [u64; BUCKETS],
    /// What these requests cost at list prices, in billionths of a dollar.
    pub nanodollars: u64,
}

impl StoreMetrics {
    pub(super) fn new(prices: Prices) -> Self {
        Self {
            prices,
            rows: std::array::from_fn(|_| Row::default()),
            retries: Default::default(),
            hedges: AtomicU64::new(0),
            hedges_won: AtomicU64::new(0),
        }
    }

    /// The counters now. Rows are read one after another, so they may differ by requests in flight.
    pub fn snapshot(&self) -> StoreSnapshot {
        let mut snapshot = StoreSnapshot {
            retries: self.retries(),
            hedges: self.hedges.load(Ordering::Relaxed),
            hedges_won: self.hedges_won.load(Ordering::Relaxed),
            ..StoreSnapshot::default()
        };
        for operation in Operation::ALL {
            for kind in ObjectKind::ALL {
                let row = self.row(operation, kind).read(operation, kind, self.prices);
                if row.requests > 0 {
                    snapshot.nanodollars += row.nanodollars;
                    snapshot.rows.push(row);
                }
            }
        }
        snapshot
    }

    pub(super) fn record(&self, sample: &Sample) {
        let row = self.row(sample.operation, sample.kind);
        add(&row.requests, 1);
        if sample.ended == Ended::Failed {
            add(&row.errors, 1);
        }
        add(&row.micros, u64::try_from(sample.took.as_micros()).unwrap_or(u64::MAX));
        let seconds = sample.took.as_secs_f64();
        let bucket = LATENCY_BOUNDS_SECONDS.partition_point(|bound| *bound < seconds);
        add(&row.buckets[bucket], 1);
    }

    pub(super) fn received(&self, operation: Operation, kind: ObjectKind, bytes: usize) {
        add(&self.row(operation, kind).bytes_in, count(bytes));
    }

    pub(super) fn sent(&self, operation: Operation, kind: ObjectKind, bytes: usize) {
        add(&self.row(operation, kind).bytes_out, count(bytes));
    }

    pub(super) fn retried(&self, reason: Reason) {
        let place = Reason::ALL.iter().position(|other| *other == reason);
        add(&self.retries[place.expect("ALL lists every variant")], 1);
    }

    fn retries(&self) -> Vec<RetryRow> {
        let row = |(reason, count): (Reason, &AtomicU64)| RetryRow {
            reason,
            count: count.load(Ordering::Relaxed),
        };
        Reason::ALL.into_iter().zip(&self.retries).map(row).collect()
    }

    pub(super) fn hedged(&self) {
        add(&self.hedges, 1);
    }

    pub(super) fn hedge_won(&self) {
        add(&self.hedges_won, 1);
    }

    fn row(&self, operation: Operation, kind: ObjectKind) -> &Row {
        let place = |found: Option<usize>| found.expect("ALL lists every variant");
        let operation = place(Operation::ALL.iter().position(|other| *other == operation));
        let kind = place(ObjectKind::ALL.iter().position(|other| *other == kind));
        &self.rows[operation * ObjectKind::ALL.len() + kind]
    }
}

impl Row {
    fn read(&self, operation: Operation, kind: ObjectKind, prices: Prices) -> StoreRow {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests = load(&self.requests);
        StoreRow {
            operation,
            kind,
            requests,
            errors: load(&self.errors),
            bytes_in: load(&self.bytes_in),
            bytes_out: load(&self.bytes_out),
            took: Duration::from_micros(load(&self.micros)),
            buckets: std::array::from_fn(|bucket| load(&self.buckets[bucket])),
            nanodollars: requests * prices.of(operation),
        }
    }
}

impl StoreSnapshot {
    /// What all requests cost at list prices.
    #[expect(clippy::cast_precision_loss, reason = "a sum of money for people to read")]
    pub fn dollars(&self) -> f64 {
        self.nanodollars as f64 / 1e9
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_and_priced() {
        let metrics = StoreMetrics::new(Prices::S3);
        let sample = Sample {
            operation: Operation::Create,
            kind: ObjectKind::Wal,
            took: Duration::from_millis(30),
            ended: Ended::Answered,
        };
        for _ in 0..1000 {
            metrics.record(&sample);
        }
        metrics.record(&Sample {
            operation: Operation::Get,
            took: Duration::from_secs(11),
            ended: Ended::Failed,
            ..sample
        });
        metrics.sent(Operation::Create, ObjectKind::Wal, 10);
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.nanodollars, 5_000_000 + 400);
        assert!((snapshot.dollars() - 0.005_000_4).abs() < 1e-9);
        let [get, create] = &snapshot.rows[..] else { panic!("{:?}", snapshot.rows) };
        assert_eq!((get.operation, get.requests, get.errors), (Operation::Get, 1, 1));
        assert_eq!(get.buckets[LATENCY_BOUNDS_SECONDS.len()], 1);
        assert_eq!((create.requests, create.errors, create.bytes_out), (1000, 0, 10));
        assert_eq!(create.buckets[5], 1000, "20 to 50 ms");
        assert_eq!(create.took, Duration::from_secs(30));
    }
}
