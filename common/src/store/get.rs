//! Reading objects: whole ones, ranges, and only what has changed.
//!
//! **Invariants**
//! - Past [`BODY_RESERVE_MAX`], memory for a body is taken as it arrives, whatever is announced.
//! - A body counts as read if all announced bytes came; each piece has the time of an attempt, and
//!   all of them together what the slowest link takes, see [`Permit::lasts`].

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::{GetOptions, GetRange, GetResult};

use super::answer::{Failed, Reason};
use super::attempt::Call;
use super::link::{Permit, Transfer};
use super::metrics::Operation;
use super::object::{Bucket, Version};
use crate::format::path::Object;
use crate::{Error, Result};

/// Memory for a body is taken at once up to here, whatever an answer announces.
const BODY_RESERVE_MAX: usize = 64 << 20;

impl Bucket {
    /// The bytes of an object. One GET.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn get(&self, object: &Object) -> Result<Bytes> {
        Ok(self.get_versioned(object).await?.0)
    }

    /// The bytes of an object and the version that they are. One GET.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn get_versioned(&self, object: &Object) -> Result<(Bytes, Version)> {
        let call = Call::new(Operation::Get, object);
        self.retry(|| self.fetch(call, object, GetOptions::default())).await
    }

    /// The bytes and version of an object, or `None` where it still is the version given. One
    /// conditional GET.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn get_if_changed(
        &self,
        object: &Object,
        known: &Version,
    ) -> Result<Option<(Bytes, Version)>> {
        let call = Call::new(Operation::Get, object);
        let attempt = || async {
            let options =
                GetOptions { if_none_match: known.e_tag.clone(), ..GetOptions::default() };
            match self.fetch_or_unmodified(call, object, options).await? {
                Some((_, version)) if version == *known => Ok(None),
                answer => Ok(answer),
            }
        };
        self.retry(attempt).await
    }

    /// The bytes of an object and its version, asked for as a range, so that the store tells how
    /// many there are beside them.
    pub(super) async fn get_counted(&self, object: &Object) -> Result<(Bytes, Version)> {
        let call = Call::new(Operation::Get, object);
        let attempt = || {
            let range = Some(GetRange::Offset(0));
            self.fetch(call, object, GetOptions { range, ..GetOptions::default() })
        };
        self.retry(attempt).await
    }

    /// Exactly the bytes of a range of an object. One ranged GET, several if it is too short.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`; `Corrupt` where the object is shorter than the range's end.
    pub async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes> {
        self.read_parsed(object, Some(range), Ok).await
    }

    /// Exactly the bytes of a range of an object, as one answer has them.
    pub(super) async fn range_once(&self, object: &Object, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let call = Call::new(Operation::Get, object);
        let want = range.end - range.start;
        let attempt = || async {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                ..GetOptions::default()
            };
            match self.fetch(call, object, options).await {
                Ok((bytes, _)) if u64::try_from(bytes.len()) == Ok(want) => Ok(bytes),
                Ok(_) => Err(short(call, &range)),
                Err(failed) => Err(self.failed_or_short(call, object, &range, failed).await),
            }
        };
        self.retry(attempt).await
    }

    /// Tells an object that is too short from a store that is in trouble, where the store does not.
    async fn failed_or_short(
        &self,
        call: Call<'_>,
        object: &Object,
        range: &Range<u64>,
        failed: Failed,
    ) -> Failed {
        if self.is_over_http() || !matches!(failed.error, Error::Unavailable(_)) {
            return failed;
        }
        let options = GetOptions { head: true, ..GetOptions::default() };
        let path = self.path(object);
        let head = self.store().get_opts(&path, options);
        match self.attempt(call, self.settings().attempt_timeout, head).await {
            Ok(result) if result.meta.size < range.end => short(call, range),
            _ => failed,
        }
    }

    pub(super) async fn fetch(
        &self,
        call: Call<'_>,
        object: &Object,
        options: GetOptions,
    ) -> Result<(Bytes, Version), Failed> {
        match self.fetch_or_unmodified(call, object, options).await? {
            Some(answer) => Ok(answer),
            None => Err(Failed::futile(Error::Conflict(object.path()))),
        }
    }

    async fn fetch_or_unmodified(
        &self,
        call: Call<'_>,
        object: &Object,
        options: GetOptions,
    ) -> Result<Option<(Bytes, Version)>, Failed> {
        let path = self.path(object);
        let is_whole = options.range.is_none();
        let asked = match &options.range {
            Some(GetRange::Bounded(range)) => {
                usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
            }
            // Not known before the answer: what is read whole is small as a rule.
            _ => 0,
        };
        let mut permit = self.downlink().enter(call.class(asked), asked).await;
        let patience = permit.patience(self.settings().attempt_timeout);
        let head = async {
            match self.store().get_opts(&path, options).await {
                Ok(result) => Ok(Some(result)),
                Err(object_store::Error::NotModified { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let head = self.attempt(call, patience, head).await.map_err(|failed| {
            // No range was asked for, so none can be beyond the object's end.
            if is_whole { failed.not_of_object() } else { failed }
        });
        if let Err(Failed { reason: Reason::Timeout, .. }) = &head {
            permit.end(Transfer::TimedOut);
            return head.map(|_| None);
        }
        let Some(result) = head? else { return Ok(None) };
        let version = version_of(&result);
        let announced = result.range.end - result.range.start;
        permit.resize(usize::try_from(announced).unwrap_or(usize::MAX));
        let bytes = self.body_of(call, result, &permit).await;
        permit.end(Transfer::of(&bytes));
        let bytes = bytes?;
        self.metrics().received(call.operation, call.kind, bytes.len());
        Ok(Some((bytes, version)))
    }

    /// The bytes of an answer, each piece of which comes in time.
    async fn body_of(
        &self,
        call: Call<'_>,
        result: GetResult,
        permit: &Permit,
    ) -> Result<Bytes, Failed> {
        let at_least = self.settings().attempt_timeout;
        let clock = &self.env().clock;
        let started = clock.boot();
        let announced = result.range.end - result.range.start;
        let length = usize::try_from(announced).unwrap_or(usize::MAX);
        let mut pieces = result.into_stream();
        let mut first: Option<Bytes> = None;
        let mut bytes = BytesMut::new();
        loop {
            let received = first.as_ref().map_or(bytes.len(), Bytes::len);
            let elapsed = clock.boot().saturating_sub(started);
            let limit = permit.lasts(at_least, received).saturating_sub(elapsed).min(at_least);
            let next = async { pieces.next().await.transpose() };
            let Some(piece) = self.within(call, limit, next).await? else { break };
            if first.is_none() && bytes.is_empty() && piece.len() == length {
                // All of it: nothing is copied.
                first = Some(piece);
                continue;
            }
            if bytes.is_empty() {
                bytes.reserve(length.min(BODY_RESERVE_MAX));
            }
            bytes.extend_from_slice(&piece);
        }
        let bytes = first.unwrap_or_else(|| bytes.freeze());
        if bytes.len() != length {
            return Err(Failed::cut_short(call.what(), bytes.len(), announced));
        }
        Ok(bytes)
    }
}

fn short(call: Call<'_>, range: &Range<u64>) -> Failed {
    let cause = format!("the object ends before byte {} of the range {range:?}", range.end);
    Failed::futile(Error::corrupt(call.what(), cause))
}

fn version_of(result: &GetResult) -> Version {
    Version { e_tag: result.meta.e_tag.clone(), generation: result.meta.version.clone() }
}
