//! Attempts: one request within its time, counted, its answer judged; and calls, which try again
//! as long as that is safe and their deadline allows.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::answer::{Act, Again, Failed, Reason, judge};
use super::backoff::Backoff;
use super::link::{Class, Transfer};
use super::metrics::{Ended, Operation, Sample};
use super::object::Bucket;
use crate::format::path::{Object, ObjectKind};
use crate::{Error, Result};

/// Bytes of an SST that somebody waits for: blocks and metadata. More is a merge or a warm-up.
const URGENT_BYTES_MAX: usize = 1 << 20;

/// One attempt: what it does, and to what.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) kind: ObjectKind,
    pub(super) name: &'a (dyn fmt::Display + Sync),
}

impl Transfer {
    /// What an attempt says about the link.
    pub(super) fn of<T>(answer: &Result<T, Failed>) -> Self {
        match answer {
            Ok(_) => Self::Done,
            Err(Failed { reason: Reason::Timeout, .. }) => Self::TimedOut,
            Err(_) => Self::Failed,
        }
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: Operation, object: &'a Object) -> Self {
        Self { operation, kind: object.kind(), name: object }
    }

    pub(super) fn what(&self) -> String {
        format!("{} {}", self.operation.name(), self.name)
    }

    /// Who goes first on a link that is full.
    pub(super) fn class(&self, bytes: usize) -> Class {
        if self.kind == ObjectKind::Sst && bytes > URGENT_BYTES_MAX {
            Class::Bulk
        } else {
            Class::Urgent
        }
    }

    fn act(&self) -> Act {
        match self.operation {
            Operation::Get | Operation::List => Act::Read,
            Operation::Create | Operation::Swap => Act::Conditional,
            Operation::Put | Operation::Delete => Act::Write,
        }
    }
}

impl Bucket {
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
                Err(Failed { again: Again::Worthwhile, error, reason }) => {
                    if !backoff.pause().await {
                        return Err(error);
                    }
                    self.metrics().retried(reason);
                }
                Err(Failed { again: Again::Futile, error, .. }) => return Err(error),
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
