//! What the answer of an object store says about the world: it did not happen, it may have
//! happened, something else is there, nothing is there, or the bytes are wrong.
//!
//! **Invariants**
//! - `Unavailable` is told of a write only where the store said that it refused it, or was never
//!   reached. Everything that is not certain is `Indeterminate`.
//! - A read changes nothing, so a read that failed is `Unavailable`.
//!
//! **Traps** (`object_store` 0.14)
//! - A 409 is reported as `AlreadyExists`, also where S3 means `ConditionalRequestConflict` (two
//!   conditional writes met, the outcome of neither is told). The wire keeps the status and the
//!   code, see [`Refusal`], and this 409 is `Indeterminate`.
//! - A 503 is a throttle only where its code says so; one of a proxy says nothing about a write.
//! - A 404 is also the answer of a bucket that does not exist: never "the object is absent".
//!
//! **Source**: S3 API, "Error responses"; Azure, "Blob service error codes".

use std::error::Error as StdError;
use std::fmt;

use object_store::client::{HttpError, HttpErrorKind};

use crate::Error;

/// An HTTP answer other than success, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The store's own code, as `SlowDown`, where it gave one.
    pub code: Option<String>,
}

/// A failure before anything could have changed: of a local write before it was published.
#[derive(Debug)]
pub struct NothingHappened(pub std::io::Error);

/// Whether an attempt changes the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Read,
    Write,
}

/// Whether the same request may fare better in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Worthwhile,
    Futile,
}

/// A failed attempt: the error for the caller, and whether to try again.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) again: Again,
}

impl Failed {
    pub(super) fn futile(error: Error) -> Self {
        Self { error, again: Again::Futile }
    }

    fn transient(error: Error) -> Self {
        Self { error, again: Again::Worthwhile }
    }

    /// The attempt took longer than it may.
    pub(super) fn timed_out(act: Act, what: String) -> Self {
        Self::transient(undecided(act, what, "no answer in time"))
    }
}

/// What a failed attempt says. `name` is the object's, `what` the act and the object for a person.
pub(super) fn judge(act: Act, name: &str, what: String, error: object_store::Error) -> Failed {
    use object_store::Error as Told;
    match error {
        Told::NotFound { .. } if act == Act::Read => Failed::futile(Error::NotFound(name.into())),
        Told::AlreadyExists { .. } | Told::Precondition { .. } => {
            Failed::futile(Error::Conflict(name.into()))
        }
        Told::PermissionDenied { .. } | Told::Unauthenticated { .. } => {
            Failed::futile(Error::unavailable(format!("{what}: the credentials"), error))
        }
        Told::NotImplemented { .. }
        | Told::NotSupported { .. }
        | Told::InvalidPath { .. }
        | Told::UnknownConfigurationKey { .. } => {
            Failed::futile(Error::Invalid(format!("{what}: {error}")))
        }
        error => judge_cause(act, what, error),
    }
}

/// Looks for what is certain along the causes of an error.
fn judge_cause(act: Act, what: String, error: object_store::Error) -> Failed {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(link) = cause {
        if let Some(refusal) = link.downcast_ref::<Refusal>() {
            let refusal = refusal.clone();
            return refusal.judge(act, what);
        }
        if let Some(http) = link.downcast_ref::<HttpError>()
            && http.kind() == HttpErrorKind::Connect
        {
            return Failed::transient(Error::unavailable(what, error));
        }
        if link.is::<NothingHappened>() {
            return Failed::transient(Error::unavailable(what, error));
        }
        cause = link.source();
    }
    Failed::transient(undecided(act, what, error))
}

fn undecided(act: Act, what: String, cause: impl Into<crate::error::Cause>) -> Error {
    match act {
        Act::Read => Error::unavailable(what, cause),
        Act::Write => Error::indeterminate(what, cause),
    }
}

impl Refusal {
    /// Whether the bucket or container itself is missing.
    pub(super) fn is_missing_bucket(&self) -> bool {
        matches!(self.code.as_deref(), Some("NoSuchBucket" | "ContainerNotFound"))
    }

    /// Whether the store said that it is too busy, before it did anything.
    fn is_throttle(&self) -> bool {
        const CODES: [&str; 5] =
            ["SlowDown", "ServerBusy", "RequestLimitExceeded", "TooManyRequests", "Throttling"];
        self.status == 429
            || self.status == 503 && self.code.as_deref().is_some_and(|code| CODES.contains(&code))
    }

    fn judge(self, act: Act, what: String) -> Failed {
        if self.is_throttle() {
            return Failed::transient(Error::unavailable(what, self));
        }
        match (self.status, act) {
            (416, Act::Read) => Failed::futile(Error::corrupt(what, "the object is too short")),
            // SUBTLE: either another conditional write won and ours did nothing, or a duplicate of
            // ours won. The caller reads back.
            (408 | 409 | 500.., _) => Failed::transient(undecided(act, what, self)),
            _ => Failed::futile(Error::unavailable(what, self)),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP status {}", self.status)?;
        match &self.code {
            Some(code) => write!(f, ", {code}"),
            None => Ok(()),
        }
    }
}

impl StdError for Refusal {}

impl fmt::Display for NothingHappened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for NothingHappened {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl StdError + Send + Sync + 'static) -> object_store::Error {
        object_store::Error::Generic { store: "test", source: Box::new(source) }
    }

    fn http(kind: HttpErrorKind) -> object_store::Error {
        generic(HttpError::new(kind, std::io::Error::other("test")))
    }

    fn refused(status: u16, code: &str) -> object_store::Error {
        let code = (!code.is_empty()).then(|| code.to_owned());
        generic(HttpError::new(HttpErrorKind::Unknown, Refusal { status, code }))
    }

    fn told(act: Act, error: object_store::Error) -> &'static str {
        match judge(act, "wal/1", "write wal/1".into(), error).error {
            Error::Unavailable(_) => "unavailable",
            Error::Indeterminate(_) => "indeterminate",
            Error::Conflict(_) => "conflict",
            Error::NotFound(_) => "not found",
            Error::Corrupt(_) => "corrupt",
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_write_is_unavailable_only_where_nothing_can_have_happened() {
        assert_eq!(told(Act::Write, http(HttpErrorKind::Connect)), "unavailable");
        for kind in [
            HttpErrorKind::Request,
            HttpErrorKind::Timeout,
            HttpErrorKind::Interrupted,
            HttpErrorKind::Decode,
            HttpErrorKind::Unknown,
        ] {
            assert_eq!(told(Act::Write, http(kind)), "indeterminate", "{kind:?}");
            assert_eq!(told(Act::Read, http(kind)), "unavailable", "{kind:?}");
        }
    }

    #[test]
    fn status_and_code_decide() {
        let rows = [
            (429, "", "unavailable"),
            (503, "SlowDown", "unavailable"),
            (503, "ServerBusy", "unavailable"),
            (503, "", "indeterminate"),
            (500, "InternalError", "indeterminate"),
            (502, "", "indeterminate"),
            (409, "ConditionalRequestConflict", "indeterminate"),
            (400, "ExpiredToken", "unavailable"),
            (404, "NoSuchBucket", "unavailable"),
        ];
        for (status, code, want) in rows {
            assert_eq!(told(Act::Write, refused(status, code)), want, "{status} {code}");
        }
        assert_eq!(told(Act::Read, refused(416, "InvalidRange")), "corrupt");
        assert_eq!(told(Act::Read, refused(500, "InternalError")), "unavailable");
    }
}
