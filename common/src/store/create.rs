//! Creates: writes of an object where nothing may be, and their hedges.
//!
//! A create that takes longer than 95 % of the recent ones is sent again with the same bytes, and
//! the first definite answer counts. "Exists" may then be our own first sending, as it may be
//! after any uncertain create: callers tell by reading back. What is large, or would go over a link
//! that is full, is not sent twice: that would make it slower.

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::PutMode;

use super::answer::Failed;
use super::attempt::Call;
use super::metrics::Operation;
use super::object::{Bucket, Hedge};
use crate::format::path::{Object, ObjectKind};
use crate::{Error, Result};

/// Creates that the 95th percentile looks back on: some seconds of a busy writer.
const SAMPLES: usize = 128;
/// Fewer say nothing about the slowest twentieth.
const SAMPLES_MIN: usize = 20;

/// Larger objects are slow because of the link: sent twice they take twice as long.
const HEDGED_BYTES_MAX: usize = 256 << 10;

/// How long recent creates took.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    took: Vec<Duration>,
    oldest: usize,
}

impl Latencies {
    fn record(&self, took: Duration) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.took.len() < SAMPLES {
            recent.took.push(took);
        } else {
            let oldest = recent.oldest;
            recent.took[oldest] = took;
            recent.oldest = (oldest + 1) % SAMPLES;
        }
    }

    fn p95(&self) -> Option<Duration> {
        let mut took = self.recent.lock().unwrap_or_else(PoisonError::into_inner).took.clone();
        if took.len() < SAMPLES_MIN {
            return None;
        }
        let place = took.len() * 95 / 100;
        Some(*took.select_nth_unstable(place).1)
    }
}

impl Bucket {
    /// Writes an object where nothing is. One conditional PUT, two if the first is slow; tried
    /// again only if the store refused it without looking.
    ///
    /// # Errors
    /// `Conflict`: something is there, which may be these bytes; `Indeterminate`: read back;
    /// `Unavailable`.
    pub async fn create(&self, object: &Object, bytes: Bytes) -> Result<()> {
        let hedged = self.settings().hedge == Hedge::AfterP95
            && object.kind() == ObjectKind::Wal
            && bytes.len() <= HEDGED_BYTES_MAX;
        if !hedged {
            return self.retry_certain(|| self.create_once(object, bytes.clone())).await;
        }
        self.retry_certain(|| async {
            let started = self.env().clock.boot();
            let answer = self.create_twice_if_slow(object, &bytes).await;
            if answer.is_ok() {
                self.wal_creates().record(self.env().clock.boot().saturating_sub(started));
            }
            answer
        })
        .await
    }

    async fn create_once(&self, object: &Object, bytes: Bytes) -> Result<(), Failed> {
        let call = Call::new(Operation::Create, object);
        self.write(call, object, bytes, PutMode::Create).await.map(drop)
    }

    async fn create_twice_if_slow(&self, object: &Object, bytes: &Bytes) -> Result<(), Failed> {
        let mut first = pin!(self.create_once(object, bytes.clone()));
        let Some(usual) = self.wal_creates().p95() else { return first.await };
        if let Ok(answer) = tokio::time::timeout(usual, &mut first).await {
            return answer;
        }
        if !self.uplink().is_calm() {
            return first.await;
        }
        self.metrics().hedged();
        let mut second = pin!(self.create_once(object, bytes.clone()));
        tokio::select! {
            biased;
            answer = &mut first => definite(answer, second).await,
            answer = &mut second => {
                if answer.is_ok() {
                    self.metrics().hedge_won();
                }
                definite(answer, first).await
            }
        }
    }
}

/// The answer of one sending if it is definite, else what both together say.
async fn definite(
    answer: Result<(), Failed>,
    other: impl Future<Output = Result<(), Failed>>,
) -> Result<(), Failed> {
    let failed = match answer {
        Ok(()) => return Ok(()),
        Err(failed) if matches!(failed.error, Error::Conflict(_)) => return Err(failed),
        Err(failed) => failed,
    };
    // SUBTLE: where neither is definite, one that may have happened outweighs one that did not.
    match other.await {
        Err(second)
            if matches!(second.error, Error::Unavailable(_))
                && matches!(failed.error, Error::Indeterminate(_)) =>
        {
            Err(failed)
        }
        answer => answer,
    }
}
