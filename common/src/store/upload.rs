//! Objects that are written piece by piece: one PUT where they stay small, else multipart.
//!
//! **Invariants**
//! - Exactly one of `finish` and `abort` ends an upload. One that is dropped leaves its parts to
//!   the bucket's lifecycle rule for incomplete uploads, and no object.
//! - Multipart writes are never conditional: only names that are never used twice come here.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use object_store::retry::{RetryContext, RetryPolicy};
use object_store::{MultipartUpload, PutMultipartOptions, PutPayload};

use super::answer::{Failed, Reason};
use super::attempt::Call;
use super::link::Transfer;
use super::metrics::Operation;
use super::object::Bucket;
use crate::format::path::Object;
use crate::{Error, Result};

/// Attempts of one part: seconds in all.
const PART_ATTEMPTS_MAX: usize = 6;

/// An object that is being written.
pub struct Upload {
    bucket: Bucket,
    object: Object,
    /// What is not sent yet; shorter than one part, but within `write`.
    pending: VecDeque<Bytes>,
    pending_bytes: usize,
    multipart: Option<Box<dyn MultipartUpload>>,
    in_flight: FuturesUnordered<BoxFuture<'static, Result<(), Failed>>>,
}

impl Upload {
    pub(super) fn new(bucket: Bucket, object: Object) -> Self {
        Self {
            bucket,
            object,
            pending: VecDeque::new(),
            pending_bytes: 0,
            multipart: None,
            in_flight: FuturesUnordered::new(),
        }
    }

    /// Adds bytes. Sends full parts; waits where too many are in flight.
    ///
    /// Not cancel-safe: abort the upload if the future was dropped.
    ///
    /// # Errors
    /// `Unavailable`, `Indeterminate`: abort, and begin again under another name.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.pending_bytes += bytes.len();
        self.pending.push_back(bytes);
        // A part is sent only when more follows, so that what fits one part is one PUT.
        while self.pending_bytes > self.bucket.settings().part_bytes {
            let part = self.take(self.bucket.settings().part_bytes);
            self.send_part(part).await?;
        }
        Ok(())
    }

    /// Sends what is left and makes the object appear. Aborts where a part cannot be sent.
    ///
    /// # Errors
    /// `Unavailable`: there is no object; `Indeterminate`: there may be one.
    pub async fn finish(mut self) -> Result<()> {
        let rest = self.take(self.pending_bytes);
        if self.multipart.is_none() {
            return self.bucket.put_whole(&self.object, rest).await;
        }
        if let Err(error) = self.send_last(rest).await {
            self.abort().await;
            return Err(error);
        }
        let Some(mut multipart) = self.multipart.take() else { return Err(Error::Closed) };
        let call = Call::new(Operation::Put, &self.object);
        let limit = self.bucket.uplink().patience(self.bucket.settings().attempt_timeout * 4);
        let completed = self.bucket.attempt(call, limit, multipart.complete()).await;
        completed.map(drop).map_err(|failed| failed.error)
    }

    /// Gives the upload up, and frees its parts as far as the store answers.
    pub async fn abort(mut self) {
        self.in_flight.clear();
        if let Some(mut multipart) = self.multipart.take() {
            let call = Call::new(Operation::Delete, &self.object);
            let limit = self.bucket.settings().attempt_timeout;
            if let Err(failed) = self.bucket.attempt(call, limit, multipart.abort()).await {
                tracing::debug!(error = %failed.error, "parts are left to the lifecycle rule");
            }
        }
    }

    /// Sends the last part and waits for all of them.
    async fn send_last(&mut self, part: Bytes) -> Result<()> {
        self.send_part(part).await?;
        while let Some(done) = self.in_flight.next().await {
            done.map_err(|failed| failed.error)?;
        }
        Ok(())
    }

    async fn send_part(&mut self, part: Bytes) -> Result<()> {
        if self.multipart.is_none() {
            self.multipart = Some(begin(&self.bucket, &self.object).await?);
        }
        while self.in_flight.len() >= self.bucket.settings().parts_in_flight_max.max(1) {
            if let Some(done) = self.in_flight.next().await {
                done.map_err(|failed| failed.error)?;
            }
        }
        let Some(multipart) = &mut self.multipart else { return Err(Error::Closed) };
        let length = part.len();
        let sending = multipart.put_part(PutPayload::from(part));
        let (bucket, object) = (self.bucket.clone(), self.object);
        self.in_flight.push(Box::pin(async move {
            let call = Call::new(Operation::Put, &object);
            let permit = bucket.uplink().enter(call.class(length), length).await;
            // A part cannot be begun again from here, only the whole upload.
            let limit = permit.patience(bucket.settings().attempt_timeout) * 4;
            let sent = bucket.attempt(call, limit, sending).await;
            permit.end(Transfer::of(&sent));
            sent?;
            bucket.metrics().sent(call.operation, call.kind, length);
            Ok(())
        }));
        Ok(())
    }

    /// The first `count` bytes of what is pending, in one piece.
    fn take(&mut self, count: usize) -> Bytes {
        self.pending_bytes -= count;
        match self.pending.front_mut() {
            Some(first) if first.len() > count => return first.split_to(count),
            Some(first) if first.len() == count => {
                return self.pending.pop_front().unwrap_or_default();
            }
            _ => {}
        }
        let mut taken = BytesMut::with_capacity(count);
        while taken.len() < count
            && let Some(mut piece) = self.pending.pop_front()
        {
            let missing = count - taken.len();
            if piece.len() > missing {
                let rest = piece.split_off(missing);
                self.pending.push_front(rest);
            }
            taken.extend_from_slice(&piece);
        }
        taken.freeze()
    }
}

async fn begin(bucket: &Bucket, object: &Object) -> Result<Box<dyn MultipartUpload>> {
    let call = Call::new(Operation::Put, object);
    let path = bucket.path(object);
    let policy = Arc::new(PartRetry { bucket: bucket.clone() });
    bucket
        .retry(|| {
            let policy = Arc::clone(&policy) as Arc<dyn RetryPolicy>;
            let options = PutMultipartOptions::default().with_retry_policy(policy);
            let begin = bucket.store().put_multipart_opts(&path, options);
            let limit = bucket.uplink().patience(bucket.settings().attempt_timeout);
            bucket.attempt(call, limit, begin)
        })
        .await
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("object", &self.object).finish_non_exhaustive()
    }
}

/// Sends a failed part again: it is the same bytes at the same place.
#[derive(Debug)]
struct PartRetry {
    bucket: Bucket,
}

#[async_trait]
impl RetryPolicy for PartRetry {
    async fn retry(&self, context: RetryContext) -> bool {
        if context.attempt >= PART_ATTEMPTS_MAX {
            return false;
        }
        let settings = self.bucket.settings();
        let doubling = u32::try_from(context.attempt).unwrap_or(1).min(16);
        let pause = settings.backoff_min.saturating_mul(1 << doubling).min(settings.backoff_max);
        tokio::time::sleep(jittered(pause, &self.bucket)).await;
        self.bucket.metrics().retried(Reason::Refused);
        true
    }
}

fn jittered(pause: Duration, bucket: &Bucket) -> Duration {
    pause.mul_f64(f64::midpoint(1.0, bucket.env().random.unit()))
}
