//! Attempts: one request within its time, counted, its answer judged; and calls, which try again
//! as long as that is safe and their deadline allows.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::answer::{Act, Again, Failed, judge};
use super::backoff::Backoff;
use super::metrics::{Ended, Operation, Sample};
use super::object::Bucket;
use crate::format::path::{Object, ObjectKind};
use crate::{Error, Result};

/// One attempt: what it does, and to what.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) kind: ObjectKind,
    pub(super) name: &'a (dyn fmt::Display + Sync),
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: Operation, object: &'a Object) -> Self {
        Self { operation, kind: object.kind(), name: object }
    }

    pub(super) fn what(&self) -> String {
        format!("{} {}", self.operation.name(), self.name)
    }

    fn act(&self) -> Act {
        match self.operation {
            Operation::Get | Operation::List => Act::Read,
            _ => Act::Write,
        }
    }
}

impl Bucket {
    /// How long an attempt that carries so many bytes may take.
    pub(super) fn attempt_timeout(&self, bytes: usize) -> Duration {
        let settings = self.settings();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let seconds = bytes / settings.bytes_per_second_min.max(1);
        settings.attempt_timeout + Duration::from_secs(seconds)
    }

    /// One request: within its time, counted, and its answer judged.
    pub(super) async fn attempt<T>(
        &self,
        call: Call<'_>,
        limit: Duration,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failed> {
        let started = self.env().clock.boot();
        let answer = self.within(call, limit, work).await;
        let ended = match &answer {
            Ok(_) | Err(Failed { error: Error::NotFound(_) | Error::Conflict(_), .. }) => {
                Ended::Answered
            }
            Err(_) => Ended::Failed,
        };
        let took = self.env().clock.boot().saturating_sub(started);
        let Call { operation, kind, .. } = call;
        self.metrics().record(&Sample { operation, kind, took, ended });
        answer
    }

    /// Work on a request within a time, its answer judged.
    pub(super) async fn within<T>(
        &self,
        call: Call<'_>,
        limit: Duration,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failed> {
        match tokio::time::timeout(limit, work).await {
            Ok(answer) => answer
                .map_err(|error| judge(call.act(), &call.name.to_string(), call.what(), error)),
            Err(_) => Err(Failed::timed_out(call.act(), call.what())),
        }
    }

    /// Tries again after everything that may pass: for what may be done twice.
    pub(super) async fn retry<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut backoff = Backoff::new(self.env(), self.settings());
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(Failed { again: Again::Worthwhile, error }) => {
                    if !backoff.pause().await {
                        return Err(error);
                    }
                    self.metrics().retried();
                }
                Err(Failed { again: Again::Futile, error }) => return Err(error),
            }
        }
    }

    /// Tries again only after attempts that certainly did nothing.
    pub(super) async fn retry_certain<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        self.retry(|| {
            let attempt = attempt();
            async {
                attempt.await.map_err(|failed| match failed.error {
                    Error::Unavailable(_) => failed,
                    error => Failed::futile(error),
                })
            }
        })
        .await
    }
}
