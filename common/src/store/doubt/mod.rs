//! Doubt: when a read that makes no sense counts.
//!
//! A link flips bits, a proxy cuts bodies or answers with a page of its own; the object is sound.
//! So what does not parse is read again, and only bytes that come back the same count as the
//! object's:
//!
//! ```text
//! read -> parses                                   -> the value
//!      -> does not, the same bytes AGREEING times  -> Corrupt: this is what is stored
//!         (AGREEING_IF_KNOWN times, if the object is known to be damaged)
//!      -> does not, other bytes each time          -> a bad link: read again, to the deadline
//!                                                     of the call, then Unavailable
//! ```
//!
//! **Invariants**
//! - `Corrupt` is returned only for bytes (or a length) that [`AGREEING`] reads have shown, over a
//!   second or more; for an object that is known to be damaged, that [`AGREEING_IF_KNOWN`] have.
//!   The reads are requests of their own; over HTTP all but the first also ask for a range, so that
//!   a body that was cut does not agree with the length that the store tells.
//! - What is believed to be damaged is reported to the bucket's [`Damage`](super::damage::Damage)
//!   (but for the log, where only CURRENT knows what belongs to it, and for what a probe wrote,
//!   which nobody misses), and believed sooner from then on. A whole object that parses again is
//!   cleared; one that was read in part may be damaged in another.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::answer::Reason;
use super::metrics::Operation;
use super::object::{Bucket, Version};
use crate::error::{Error, Result};
use crate::faults::planted;
use crate::format::Corrupt;
use crate::format::path::{Object, ObjectKind};

/// Reads that must show the same bytes. A fault that always does the same to the bytes and meets
/// three reads in ten is taken for damage in one of 15,000 doubts; in all, the pauses take about a
/// second and a half.
const AGREEING: u32 = 8;
/// The same for an object that is known to be damaged: a request that needs it need not wait.
const AGREEING_IF_KNOWN: u32 = 2;
/// The first pause: a broken connection or a proxy that restarts needs about that.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Most different contents that are kept apart; more than fit into a call's deadline.
const SEEN_MAX: usize = 256;

/// The reads of one object that did not parse.
#[derive(Debug)]
pub struct Doubt<'a> {
    bucket: &'a Bucket,
    object: &'a Object,
    started: Duration,
    pause: Duration,
    /// Digests of what was read, and how often.
    seen: Vec<(u128, u32)>,
}

impl<'a> Doubt<'a> {
    pub(super) fn new(bucket: &'a Bucket, object: &'a Object) -> Self {
        let started = bucket.env().clock.boot();
        Self { bucket, object, started, pause: PAUSE_FIRST, seen: Vec::new() }
    }

    /// Whether nothing was doubtful yet.
    pub(super) fn is_first_read(&self) -> bool {
        self.seen.is_empty()
    }

    /// The whole object was read, and parsed.
    pub(super) fn dispel(&self) {
        self.bucket.damage().clear(self.object);
    }

    /// Notes bytes that do not parse, and waits before the next read.
    ///
    /// # Errors
    /// `Corrupt`, with this cause, if the bytes are those of the object; `Unavailable` if the
    /// call's deadline has passed and too few reads agree.
    pub async fn consider(&mut self, bytes: &[u8], cause: impl fmt::Display) -> Result<()> {
        self.weigh(xxh3_128(bytes), cause).await
    }

    async fn weigh(&mut self, digest: u128, cause: impl fmt::Display) -> Result<()> {
        let times = self.count(digest);
        let damage = self.bucket.damage();
        let agreeing = if damage.holds(self.object) { AGREEING_IF_KNOWN } else { AGREEING };
        if times >= agreeing || planted("one_odd_answer_is_believed") {
            if !matches!(self.object.kind(), ObjectKind::Wal | ObjectKind::Probe) {
                damage.report(self.object, &cause);
            }
            return Err(Error::corrupt(self.object.path(), cause.to_string()));
        }
        let env = self.bucket.env();
        if env.clock.boot().saturating_sub(self.started) >= self.bucket.settings().deadline {
            let what = format!("{} {}", Operation::Get.name(), self.object);
            let cause = format!("the link damages what is read: {cause}");
            return Err(Error::unavailable(what, cause));
        }
        let object = &self.object;
        tracing::debug!(%object, %cause, times, "a read does not parse; reading it again");
        self.bucket.metrics().retried(Reason::Garbled);
        tokio::time::sleep(self.pause.mul_f64(f64::midpoint(1.0, env.random.unit()))).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    fn count(&mut self, digest: u128) -> u32 {
        if let Some((_, times)) = self.seen.iter_mut().find(|(seen, _)| *seen == digest) {
            *times += 1;
            return *times;
        }
        if self.seen.len() < SEEN_MAX {
            self.seen.push((digest, 1));
        }
        1
    }
}

impl Bucket {
    /// Doubt of an object, for a caller that parses elsewhere; others use [`Bucket::read_parsed`].
    pub fn doubt<'a>(&'a self, object: &'a Object) -> Doubt<'a> {
        Doubt::new(self, object)
    }

    /// What `parse` makes of an object, or of exactly a range of it; read again, independently,
    /// until it parses or is known to be damaged. One GET, [`AGREEING`] if it is damaged.
    ///
    /// # Errors
    /// `NotFound`: the store itself says so. `Corrupt`: the stored bytes do not parse, or end
    /// before the range does. `Unavailable`.
    pub async fn read_parsed<T, P>(
        &self,
        object: &Object,
        range: Option<Range<u64>>,
        mut parse: P,
    ) -> Result<T>
    where
        P: FnMut(Bytes) -> Result<T, Corrupt>,
    {
        let mut doubt = self.doubt(object);
        loop {
            let read = match &range {
                Some(range) => self.range_once(object, range.clone()).await,
                None => self.whole_once(object, &doubt).await.map(|(bytes, _)| bytes),
            };
            match read {
                Ok(bytes) => match parse(bytes.clone()) {
                    Ok(value) => {
                        if range.is_none() {
                            doubt.dispel();
                        }
                        return Ok(value);
                    }
                    Err(cause) => doubt.consider(&bytes, cause).await?,
                },
                Err(error) => self.consider_short(&mut doubt, error).await?,
            }
        }
    }

    /// Like [`Bucket::read_parsed`] for a whole object, with the version that was parsed.
    ///
    /// # Errors
    /// As `read_parsed`.
    pub async fn read_versioned<T, P>(&self, object: &Object, mut parse: P) -> Result<(T, Version)>
    where
        P: FnMut(Bytes) -> Result<T, Corrupt>,
    {
        let mut doubt = self.doubt(object);
        self.read_on(&mut doubt, &mut parse).await
    }

    /// Like [`Bucket::read_versioned`]; `None` if the object still is the version given, by one
    /// conditional GET.
    ///
    /// # Errors
    /// As `read_parsed`.
    pub async fn read_if_changed<T, P>(
        &self,
        object: &Object,
        known: &Version,
        mut parse: P,
    ) -> Result<Option<(T, Version)>>
    where
        P: FnMut(Bytes) -> Result<T, Corrupt>,
    {
        let Some((bytes, version)) = self.get_if_changed(object, known).await? else {
            return Ok(None);
        };
        let mut doubt = self.doubt(object);
        match parse(bytes.clone()) {
            Ok(value) => {
                doubt.dispel();
                return Ok(Some((value, version)));
            }
            Err(cause) => doubt.consider(&bytes, cause).await?,
        }
        let (value, version) = self.read_on(&mut doubt, &mut parse).await?;
        Ok((version != *known).then_some((value, version)))
    }

    async fn read_on<T, P>(&self, doubt: &mut Doubt<'_>, parse: &mut P) -> Result<(T, Version)>
    where
        P: FnMut(Bytes) -> Result<T, Corrupt>,
    {
        loop {
            match self.whole_once(doubt.object, doubt).await {
                Ok((bytes, version)) => match parse(bytes.clone()) {
                    Ok(value) => {
                        doubt.dispel();
                        return Ok((value, version));
                    }
                    Err(cause) => doubt.consider(&bytes, cause).await?,
                },
                Err(error) => self.consider_short(doubt, error).await?,
            }
        }
    }

    async fn whole_once(&self, object: &Object, doubt: &Doubt<'_>) -> Result<(Bytes, Version)> {
        if doubt.is_first_read() || !self.is_over_http() {
            self.get_versioned(object).await
        } else {
            self.get_counted(object).await
        }
    }

    /// An object that ends too early is doubted like one that does not parse.
    async fn consider_short(&self, doubt: &mut Doubt<'_>, error: Error) -> Result<()> {
        let Error::Corrupt(failure) = error else { return Err(error) };
        let cause = failure.cause.map_or(failure.what, |cause| cause.to_string());
        doubt.weigh(xxh3_128(cause.as_bytes()), cause).await
    }
}

#[cfg(test)]
mod tests;
