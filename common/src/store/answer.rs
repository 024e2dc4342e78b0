//! What the answer of an object store says about the world: it did not happen, it may have
//! happened, something else is there, nothing is there, or the bytes are wrong.
//!
//! **Invariants**
//! - `Unavailable` is told of a write only where the store said that it refused it, or was never
//!   reached. Everything that is not certain is `Indeterminate`.
//! - A read changes nothing, so a read that failed is `Unavailable`.
//! - Only the store's own words count. An answer without the store's code (an ingress, a proxy, a
//!   captive portal) says nothing about an object: a read is `Unavailable`, a write
//!   `Indeterminate`, and both are tried again.
//!
//! | verb | answer | the store's own words | anything else |
//! |---|---|---|---|
//! | GET, LIST | 404 | `NoSuchKey`, `BlobNotFound`: absent; `NoSuchBucket`: unavailable, not retried | unavailable |
//! | GET | 304 | carries the ETag that was asked about: unchanged | unavailable |
//! | GET | 200 with HTML, or without ETag | - | unavailable |
//! | GET | 416 | to a range: the object is too short, asked again; else unavailable | unavailable |
//! | GET | 200 with other bytes | what does not parse is read again, see [`super::doubt`] | the same |
//! | LIST, bulk DELETE | 200 | the document that was asked for | another one: unavailable, undecided |
//! | create, swap | 200 | an empty body with an ETag: done | a page: undecided, read back |
//! | create, swap | 412 | `PreconditionFailed`, `ConditionNotMet`: conflict | undecided |
//! | create, swap | 409 | `BlobAlreadyExists`: conflict; else undecided | undecided |
//! | create, swap | 404 | `NoSuchKey`: conflict (a swap) | undecided |
//! | PUT | 412, 409, 304 | never asked for: undecided | undecided |
//! | any | 401, 403 | the credentials: unavailable, not retried | unavailable, undecided |
//! | any | 429, 503 with a code of throttling | refused, retried | undecided |
//!
//! **Traps** (`object_store` 0.14)
//! - A 409 is reported as `AlreadyExists`, also where S3 means `ConditionalRequestConflict` (two
//!   conditional writes met, the outcome of neither is told). The wire keeps the status and the
//!   code, see [`Refusal`], and this 409 is `Indeterminate`.
//! - A 503 is a throttle only where its code says so; one of a proxy says nothing about a write.
//! - A 404 is also the answer of a bucket that does not exist: never "the object is absent".
//! - The client reports any 404 as `NotFound`, any 412 as `Precondition`, whoever answered; the
//!   wire lets only those with the store's code through.
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

/// The object ends before the range that was asked for begins: of stores that are no HTTP servers.
#[derive(Debug)]
pub struct TooShort(pub String);

/// A failure before anything could have changed: of a local write before it was published.
#[derive(Debug)]
pub struct NothingHappened(pub std::io::Error);

/// Whether an attempt changes the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Read,
    /// Under a condition, so that a conflict is an answer.
    Conditional,
    Write,
}

/// Whether the same request may fare better in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Worthwhile,
    Futile,
}

/// Why an attempt was made again, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No progress in time.
    Timeout,
    /// The store asked for less.
    Throttled,
    /// No connection.
    Unreached,
    /// The connection broke, or the answer was cut short.
    Broken,
    /// The store failed: 5xx, 408, 409.
    Refused,
    /// Somebody between us and the store answered.
    Foreign,
    /// The bytes do not parse.
    Garbled,
    /// What is named by something else was not there.
    Missing,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Timeout,
        Self::Throttled,
        Self::Unreached,
        Self::Broken,
        Self::Refused,
        Self::Foreign,
        Self::Garbled,
        Self::Missing,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Throttled => "throttled",
            Self::Unreached => "unreached",
            Self::Broken => "broken",
            Self::Refused => "refused",
            Self::Foreign => "foreign",
            Self::Garbled => "garbled",
            Self::Missing => "missing",
        }
    }
}

/// A failed attempt: the error for the caller, whether to try again, and why that is.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) again: Again,
    pub(super) reason: Reason,
}

impl Failed {
    pub(super) fn futile(error: Error) -> Self {
        Self { error, again: Again::Futile, reason: Reason::Refused }
    }

    fn transient(reason: Reason, error: Error) -> Self {
        Self { error, again: Again::Worthwhile, reason }
    }

    /// The attempt made no progress for longer than it may.
    pub(super) fn timed_out(act: Act, what: String) -> Self {
        Self::transient(Reason::Timeout, undecided(act, what, "no progress in time"))
    }

    /// The same, where the object cannot be what is wrong.
    pub(super) fn not_of_object(self) -> Self {
        match self.error {
            Error::Corrupt(failure) => {
                Self::transient(Reason::Refused, Error::Unavailable(failure))
            }
            _ => self,
        }
    }

    /// Fewer bytes came than the answer announced.
    pub(super) fn cut_short(what: String, came: usize, announced: u64) -> Self {
        let cause = format!("{came} of {announced} bytes came");
        Self::transient(Reason::Broken, Error::unavailable(what, cause))
    }
}

/// What a failed attempt says. `name` is the object's, `what` the act and the object for a person.
pub(super) fn judge(act: Act, name: &str, what: String, error: object_store::Error) -> Failed {
    use object_store::Error as Told;
    match error {
        Told::NotFound { .. } if act == Act::Read => Failed::futile(Error::NotFound(name.into())),
        Told::AlreadyExists { .. } | Told::Precondition { .. } if act == Act::Conditional => {
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
            return Failed::transient(Reason::Unreached, Error::unavailable(what, error));
        }
        if link.is::<NothingHappened>() {
            return Failed::transient(Reason::Unreached, Error::unavailable(what, error));
        }
        if let Some(short) = link.downcast_ref::<TooShort>() {
            return Failed::futile(Error::corrupt(what, short.0.clone()));
        }
        cause = link.source();
    }
    Failed::transient(Reason::Broken, undecided(act, what, error))
}

fn undecided(act: Act, what: String, cause: impl Into<crate::error::Cause>) -> Error {
    match act {
        Act::Read => Error::unavailable(what, cause),
        Act::Conditional | Act::Write => Error::indeterminate(what, cause),
    }
}

impl Refusal {
    /// Whether the store itself says that the object is not there.
    pub(super) fn is_absence(&self) -> bool {
        const CODES: [&str; 2] = ["NoSuchKey", "BlobNotFound"];
        self.status == 404 && self.code.as_deref().is_some_and(|code| CODES.contains(&code))
    }

    /// Whether the store itself says that the condition of a write does not hold.
    pub(super) fn is_conflict(&self) -> bool {
        match self.status {
            412 => self.code.is_some(),
            // Azure's answer to a create of something that is there: as definite as a 412.
            409 => self.code.as_deref() == Some("BlobAlreadyExists"),
            _ => false,
        }
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
            return Failed::transient(Reason::Throttled, Error::unavailable(what, self));
        }
        if self.code.is_none() && self.status < 500 {
            return Failed::transient(Reason::Foreign, undecided(act, what, self));
        }
        match (self.status, act) {
            (416, Act::Read) => Failed::futile(Error::corrupt(what, "the object is too short")),
            // SUBTLE: either another conditional write won and ours did nothing, or a duplicate of
            // ours won. The caller reads back.
            (200..400 | 408 | 409 | 412 | 500.., _) => {
                Failed::transient(Reason::Refused, undecided(act, what, self))
            }
            _ => Failed::futile(Error::unavailable(what, self)),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP status {}", self.status)?;
        match &self.code {
            Some(code) => write!(f, ", {code}"),
            None => f.write_str(", which is not in the words of the store"),
        }
    }
}

impl StdError for Refusal {}

impl fmt::Display for TooShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for TooShort {}

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
            (404, "", "indeterminate"),
            (403, "", "indeterminate"),
            (412, "", "indeterminate"),
            (200, "", "indeterminate"),
        ];
        for (status, code, want) in rows {
            assert_eq!(told(Act::Write, refused(status, code)), want, "{status} {code}");
        }
        assert_eq!(told(Act::Read, refused(416, "InvalidRange")), "corrupt");
        assert_eq!(told(Act::Read, refused(500, "InternalError")), "unavailable");
        for status in [200, 304, 403, 404, 412, 416] {
            assert_eq!(told(Act::Read, refused(status, "")), "unavailable", "{status}");
        }
    }

    #[test]
    fn only_a_condition_can_conflict() {
        let refused = || object_store::Error::Precondition {
            path: "sst/1".into(),
            source: "a proxy says so".into(),
        };
        assert_eq!(told(Act::Conditional, refused()), "conflict");
        assert_eq!(told(Act::Write, refused()), "indeterminate");
        assert_eq!(told(Act::Read, refused()), "unavailable");
    }
}
