//! Errors as clients meet them: `application/problem+json` (RFC 9457) with a `code` that programs
//! branch on and, for writes, an honest `outcome`.
//!
//! **Invariants**
//! - A code has one status and one title; they are spelled here and nowhere else.
//! - Every 429 and 503 carries `retry-after`.
//! - A refused write says `not_applied` or `unknown`, never nothing: the shell adds
//!   `not_applied` where a handler was never reached.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use crate::error::Error;

/// The result of a handler.
pub type Answer<T = Response> = Result<T, Problem>;

/// How long a client waits before it tries again, where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The media type of every problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What went wrong, by what the client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The key is empty, too long, badly escaped, or needs the other form.
    InvalidKey,
    /// A query parameter or a header.
    InvalidArgument,
    /// The body.
    InvalidBody,
    /// No such key.
    NotFound,
    /// No such route.
    NoRoute,
    /// The route does not take this method.
    Method,
    /// The route does not take this content type.
    MediaType,
    /// A write came to a process that does not write.
    NotTheWriter,
    /// The client was too slow to send.
    SlowClient,
    /// The deadline passed while we worked.
    Timeout,
    /// The history that was asked for is gone.
    Compacted,
    /// A condition failed.
    Precondition,
    /// The body, or what was asked for, is too large.
    TooLarge,
    /// The request target is too long.
    UriTooLong,
    /// The head of the request is too large for another reason.
    HeadTooLarge,
    /// The client's share is used up.
    RateLimited,
    /// Stored bytes are not what was written.
    Corrupt,
    /// A defect of ours.
    Internal,
    /// More work than can be taken on.
    Overloaded,
    /// No view at or above `cairn-min-seq` yet.
    NotYet,
    /// The view is older than `max_staleness`.
    TooStale,
    /// The object store does not answer.
    StoreUnavailable,
    /// Another process took the role.
    Fenced,
    /// This process waits for the role, or is leaving it.
    Standby,
}

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It certainly did not happen and never will.
    NotApplied,
    /// It may happen, whole, or never.
    Unknown,
}

/// An error as it is answered.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What programs branch on.
    pub code: Code,
    /// What people read.
    pub detail: String,
    /// For writes.
    pub outcome: Option<Outcome>,
    /// Sent beside the body, over what the code implies.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct ProblemBody<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
}

impl Code {
    /// What stands in the body.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The status that goes with it.
    pub fn status(self) -> StatusCode {
        self.row().0
    }

    fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::InvalidKey => (S::BAD_REQUEST, "invalid_key", "The key is not valid"),
            Self::InvalidArgument => {
                (S::BAD_REQUEST, "invalid_argument", "A parameter or header is not valid")
            }
            Self::InvalidBody => (S::BAD_REQUEST, "invalid_body", "The body is not valid"),
            Self::NotFound => (S::NOT_FOUND, "not_found", "No such key"),
            Self::NoRoute => (S::NOT_FOUND, "no_route", "No such route"),
            Self::Method => {
                (S::METHOD_NOT_ALLOWED, "method", "The route does not take this method")
            }
            Self::MediaType => (
                S::UNSUPPORTED_MEDIA_TYPE,
                "media_type",
                "The route does not take this content type",
            ),
            Self::NotTheWriter => {
                (S::MISDIRECTED_REQUEST, "not_the_writer", "This process does not write")
            }
            Self::SlowClient => (S::REQUEST_TIMEOUT, "timeout", "The request came too slowly"),
            Self::Timeout => (S::GATEWAY_TIMEOUT, "timeout", "The deadline passed"),
            Self::Compacted => (S::GONE, "compacted", "That history is gone"),
            Self::Precondition => (S::PRECONDITION_FAILED, "precondition", "A condition failed"),
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "too_large", "Too large"),
            Self::UriTooLong => (S::URI_TOO_LONG, "uri_too_long", "The request target is too long"),
            Self::HeadTooLarge => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", "The head is too large")
            }
            Self::RateLimited => (S::TOO_MANY_REQUESTS, "rate_limited", "Too many requests"),
            Self::Corrupt => (S::INTERNAL_SERVER_ERROR, "corrupt", "Stored data are damaged"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "A defect of the server"),
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", "Too much work at a time"),
            Self::NotYet => (S::SERVICE_UNAVAILABLE, "not_yet", "Not that far yet"),
            Self::TooStale => (S::SERVICE_UNAVAILABLE, "too_stale", "The view is too old"),
            Self::StoreUnavailable => {
                (S::SERVICE_UNAVAILABLE, "store_unavailable", "The object store does not answer")
            }
            Self::Fenced => (S::SERVICE_UNAVAILABLE, "fenced", "Another process took over"),
            Self::Standby => (S::SERVICE_UNAVAILABLE, "standby", "Another process is active"),
        }
    }
}

impl Problem {
    /// A problem with this code; `detail` says what about this very request.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut problem = Self { code, detail: detail.into(), outcome: None, headers: Vec::new() };
        if matches!(code.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
        {
            problem = problem.retry_after(RETRY_AFTER);
        }
        problem
    }

    /// `invalid_argument`, naming the parameter or header.
    pub fn argument(name: &str, what: impl fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, format!("{name}: {what}"))
    }

    /// `invalid_body`.
    pub fn body(what: impl Into<String>) -> Self {
        Self::new(Code::InvalidBody, what)
    }

    /// The deadline passed while `what` was going on.
    pub fn timeout(what: &str) -> Self {
        Self::new(Code::Timeout, format!("the deadline passed while {what}"))
    }

    /// The same with this outcome.
    #[must_use]
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// The same with this `retry-after`, rounded up to whole seconds.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        let whole = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.header(header::RETRY_AFTER, whole)
    }

    /// The same with this header, in place of any other of the name; a value that cannot stand in
    /// a header is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: impl fmt::Display) -> Self {
        if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
            self.headers.retain(|(other, _)| *other != name);
            self.headers.push((name, value));
        }
        self
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Fenced { .. } => Code::Fenced,
            Error::Closed => Code::Standby,
            // A missing object is never "not found" to a client: the view is behind, which asks for
            // another try. What is missing from the newest tree is `Corrupt`.
            Error::NotFound(_)
            | Error::Conflict(_)
            | Error::Unavailable(_)
            | Error::Indeterminate(_)
            | Error::Unfit(_) => Code::StoreUnavailable,
            Error::Corrupt(_) => Code::Corrupt,
        };
        if code == Code::Corrupt {
            // The damage registry logs each object once, as an error.
            tracing::debug!(%error, "stored bytes are not what was written");
        }
        Self::new(code, error.to_string())
    }
}

impl Problem {
    /// The document.
    pub fn to_json(&self) -> Vec<u8> {
        let body = ProblemBody {
            r#type: &format!("urn:cairn:problem:{}", self.code.name()),
            title: self.code.row().2,
            status: self.code.status().as_u16(),
            code: self.code.name(),
            detail: &self.detail,
            outcome: self.outcome,
        };
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.code.status();
        let headers: &mut HeaderMap = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        // Kept beside the body, so that the shell can count it and complete its outcome.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn json(problem: Problem) -> (Response<()>, serde_json::Value) {
        let (parts, body) = problem.into_response().into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (Response::from_parts(parts, ()), serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn body_has_the_fields_of_the_contract() {
        let (response, body) = json(Problem::argument("limit", "is not a number")).await;
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()["content-type"], MEDIA_TYPE);
        assert_eq!(body["code"], "invalid_argument");
        assert_eq!(body["status"], 400);
        assert_eq!(body["detail"], "limit: is not a number");
        assert!(body["type"].is_string() && body["title"].is_string());
        assert!(body.get("outcome").is_none());
    }

    #[tokio::test]
    async fn unavailability_asks_for_another_try_and_writes_name_their_outcome() {
        let lost = Error::indeterminate("PUT wal/1", "connection reset");
        let (response, body) = json(Problem::from(lost).outcome(Outcome::Unknown)).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(body["outcome"], "unknown");
        let (_, body) = json(Problem::from(Error::Closed).outcome(Outcome::NotApplied)).await;
        assert_eq!(body["outcome"], "not_applied");
        assert_eq!(body["code"], "standby");
        let slow = Problem::new(Code::RateLimited, "x").retry_after(Duration::from_millis(1_200));
        assert_eq!(json(slow).await.0.headers()["retry-after"], "2");
    }

    #[tokio::test]
    async fn a_missing_object_is_never_a_missing_key() {
        let (response, body) = json(Error::NotFound("sst/00/x".into()).into()).await;
        assert_eq!((response.status().as_u16(), &body["code"]), (503, &"store_unavailable".into()));
    }
}
