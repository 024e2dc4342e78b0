//! What a request carries besides its key: deadline, query parameters, headers of ours, body.
//!
//! **Invariants**
//! - Whatever cannot be understood is refused with the name of the parameter or header.
//! - A body is read up to a bound, out of a budget that all requests share, within the deadline.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName};
use http::request::Parts;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::keys::percent_decode;
use super::problem::{Answer, Code, Outcome, Problem};
use crate::config::{HttpLimits, Span};
use crate::types::Seq;

/// The number of the newest batch that a reply includes, and that a read asks for at least.
pub const CAIRN_SEQ: HeaderName = HeaderName::from_static("cairn-seq");
/// The lowest seq that the answering view may have.
pub const CAIRN_MIN_SEQ: HeaderName = HeaderName::from_static("cairn-min-seq");
/// The deadline of a request.
pub const CAIRN_TIMEOUT: HeaderName = HeaderName::from_static("cairn-timeout");
/// A bound on the age of the answering view.
pub const CAIRN_LAG_MS: HeaderName = HeaderName::from_static("cairn-lag-ms");
/// Whether a reader may answer beyond `max_staleness`.
pub const CAIRN_ALLOW_STALE: HeaderName = HeaderName::from_static("cairn-allow-stale");

/// When a request's answer is due.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// From now on. Needs a runtime.
    #[expect(clippy::disallowed_methods, reason = "deadlines follow the clock of timers")]
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// The moment itself, for timers.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left of it; zero once it has passed.
    #[expect(clippy::disallowed_methods, reason = "deadlines follow the clock of timers")]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The result of `work`, or a 504 that says what it was about.
    ///
    /// # Errors
    /// `timeout`, with `work` dropped at whatever point it had reached.
    pub async fn limit<T>(self, what: &str, work: impl Future<Output = T>) -> Answer<T> {
        timeout_at(self.0, work).await.map_err(|_| Problem::timeout(what))
    }
}

/// Bytes of request bodies that may be in memory, shared by all requests of a process.
#[derive(Clone, Debug)]
pub struct BodyBudget(Arc<Semaphore>);

/// Budgets are counted in units of this many bytes, since a semaphore counts in `u32`.
const BUDGET_UNIT_BYTES: usize = 1024;

impl BodyBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / BUDGET_UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(units)))
    }

    fn take(&self, bytes: usize) -> Answer<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.0).try_acquire_many_owned(units).map_err(|_| {
            Problem::new(Code::Overloaded, "too many bytes of requests in memory")
                .outcome(Outcome::NotApplied)
        })
    }
}

/// What the surface knows about a request; every handler can extract it.
#[derive(Clone, Debug)]
pub struct Arrival {
    deadline: Deadline,
    budget: BodyBudget,
}

/// A body, and its share of the budget until it is dropped.
#[derive(Debug)]
pub struct HeldBody {
    bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl HeldBody {
    /// All of it.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Arrival {
    pub(super) fn new(
        headers: &HeaderMap,
        limits: &HttpLimits,
        budget: &BodyBudget,
    ) -> Answer<Self> {
        let asked = match single(headers, &CAIRN_TIMEOUT)? {
            None => limits.request_timeout.0,
            Some(text) => match text.parse::<Span>() {
                Ok(Span(span)) if !span.is_zero() => span.min(limits.request_timeout_max.0),
                Ok(_) => return Err(Problem::argument("cairn-timeout", "is zero")),
                Err(what) => return Err(Problem::argument("cairn-timeout", what)),
            },
        };
        Ok(Self { deadline: Deadline::after(asked), budget: budget.clone() })
    }

    /// When the answer is due.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The whole body, which is at most `bytes_max` long. Costs its length in memory.
    ///
    /// # Errors
    /// `too_large`; `overloaded` when the budget is used up; `timeout` (408) when the client is
    /// too slow; `invalid_body` when it breaks off. All with `not_applied`.
    pub async fn body(&self, body: Body, bytes_max: usize) -> Answer<HeldBody> {
        let mut chunks = self.chunks(body, bytes_max);
        let Some(first) = chunks.next().await? else {
            return Ok(HeldBody { bytes: Bytes::new(), _share: None });
        };
        let mut second = chunks.next().await?;
        if second.is_none() {
            return Ok(HeldBody { bytes: first, _share: chunks.share });
        }
        let mut whole = BytesMut::with_capacity(chunks.expected.max(2 * first.len()));
        whole.extend_from_slice(&first);
        while let Some(chunk) = second {
            whole.extend_from_slice(&chunk);
            second = chunks.next().await?;
        }
        Ok(HeldBody { bytes: whole.freeze(), _share: chunks.share })
    }

    /// The body piece by piece, under the same bounds and errors.
    pub fn chunks(&self, body: Body, bytes_max: usize) -> Chunks {
        let hint = http_body::Body::size_hint(&body);
        let expected = usize::try_from(hint.lower()).unwrap_or(usize::MAX);
        Chunks {
            body,
            expected: expected.min(bytes_max),
            too_large: expected > bytes_max,
            bytes: 0,
            bytes_max,
            arrival: self.clone(),
            share: None,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Arrival {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        let missing = || Problem::new(Code::Internal, "the route is outside its surface");
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

/// A body in pieces.
#[derive(Debug)]
pub struct Chunks {
    body: Body,
    expected: usize,
    too_large: bool,
    bytes: usize,
    bytes_max: usize,
    arrival: Arrival,
    share: Option<OwnedSemaphorePermit>,
}

impl Chunks {
    /// The next piece; `None` at the end. The pieces so far count against the budget until this
    /// is dropped.
    ///
    /// # Errors
    /// As [`Arrival::body`].
    pub async fn next(&mut self) -> Answer<Option<Bytes>> {
        let refused = |problem: Problem| problem.outcome(Outcome::NotApplied);
        if self.too_large {
            return Err(refused(self.refuse_large()));
        }
        let deadline = self.arrival.deadline.instant();
        loop {
            let frame = match timeout_at(deadline, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(refused(Problem::body(format!("the body broke off: {error}"))));
                }
                Err(_) => {
                    let detail = "the body did not come within the deadline";
                    return Err(refused(Problem::new(Code::SlowClient, detail)));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            self.bytes += bytes.len();
            if self.bytes > self.bytes_max {
                return Err(refused(self.refuse_large()));
            }
            self.reserve(bytes.len())?;
            return Ok(Some(bytes));
        }
    }

    fn refuse_large(&self) -> Problem {
        let bytes_max = self.bytes_max;
        Problem::new(Code::TooLarge, format!("the body is larger than {bytes_max} bytes"))
    }

    /// Takes the announced length at once, so that a body is refused at its start or not at all.
    fn reserve(&mut self, bytes: usize) -> Answer<()> {
        match &mut self.share {
            None => self.share = Some(self.arrival.budget.take(self.expected.max(bytes))?),
            Some(share) => {
                let held = share.num_permits() * BUDGET_UNIT_BYTES;
                if self.bytes > held {
                    share.merge(self.arrival.budget.take(self.bytes - held)?);
                }
            }
        }
        Ok(())
    }
}

/// The query parameters of a request, all of them known to its route.
#[derive(Debug, Default)]
pub struct Params(HashMap<String, Vec<u8>>);

impl Params {
    /// Parses the query; values are bytes, `+` is a space (it is a form, other than paths).
    ///
    /// # Errors
    /// `invalid_argument` for a parameter that the route does not know, one that is given twice,
    /// or a bad escape.
    pub fn parse(query: Option<&str>, known: &[&str]) -> Answer<Self> {
        let mut params = HashMap::new();
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = form_decode(name).and_then(|name| String::from_utf8(name).ok());
            let name = name.ok_or_else(|| Problem::argument("query", "a bad escape"))?;
            if !known.contains(&name.as_str()) {
                return Err(Problem::argument(&name, "this route has no such parameter"));
            }
            let value = form_decode(value).ok_or_else(|| Problem::argument(&name, "bad escape"))?;
            if params.insert(name.clone(), value).is_some() {
                return Err(Problem::argument(&name, "is given twice"));
            }
        }
        Ok(Self(params))
    }

    /// The bytes of a parameter.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The text of a parameter.
    ///
    /// # Errors
    /// `invalid_argument` where it is not UTF-8.
    pub fn text(&self, name: &str) -> Answer<Option<&str>> {
        let text =
            |bytes| std::str::from_utf8(bytes).map_err(|_| Problem::argument(name, "is not UTF-8"));
        self.bytes(name).map(text).transpose()
    }

    /// A parameter that is `true` or `false`; `None` where it is absent.
    ///
    /// # Errors
    /// `invalid_argument` for anything else.
    pub fn switch(&self, name: &str) -> Answer<Option<bool>> {
        match self.text(name)? {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(Problem::argument(name, format!("{other:?} is not true or false"))),
        }
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// `invalid_argument` for anything else.
    pub fn count(&self, name: &str) -> Answer<Option<usize>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match decimal(text).and_then(|count| usize::try_from(count).ok()) {
            Some(count) if count > 0 => Ok(Some(count)),
            _ => Err(Problem::argument(name, format!("{text:?} is not a number of at least 1"))),
        }
    }
}

fn form_decode(text: &str) -> Option<Vec<u8>> {
    percent_decode(text.replace('+', " ").as_bytes()).ok()
}

/// Digits alone: no sign, no blanks.
pub(super) fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The value of a header that may stand once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Answer<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::argument(name.as_str(), "is given twice"));
    }
    let text = value.to_str().map_err(|_| Problem::argument(name.as_str(), "is not ASCII"))?;
    Ok(Some(text.trim()))
}

/// The seq that the answering view must include.
///
/// # Errors
/// `invalid_argument` where the header is no seq.
pub fn min_seq(headers: &HeaderMap) -> Answer<Option<Seq>> {
    let Some(text) = single(headers, &CAIRN_MIN_SEQ)? else { return Ok(None) };
    match decimal(text) {
        Some(seq) if seq <= Seq::MAX.0 => Ok(Some(Seq(seq))),
        _ => Err(Problem::argument("cairn-min-seq", format!("{text:?} is no number below 2^53"))),
    }
}

/// What `cairn-allow-stale` says.
///
/// # Errors
/// `invalid_argument` for anything but `true` and `false`.
pub fn staleness(headers: &HeaderMap) -> Answer<Staleness> {
    match single(headers, &CAIRN_ALLOW_STALE)? {
        None | Some("false") => Ok(Staleness::Bounded),
        Some("true") => Ok(Staleness::Any),
        Some(other) => {
            let what = format!("{other:?} is not true or false");
            Err(Problem::argument("cairn-allow-stale", what))
        }
    }
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Staleness {
    /// At most `max_staleness`.
    #[default]
    Bounded,
    /// However old.
    Any,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(budget: usize) -> Arrival {
        let budget = BodyBudget::new(budget);
        Arrival::new(&HeaderMap::new(), &HttpLimits::default(), &budget).unwrap()
    }

    fn pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, std::io::Error>(*piece)).collect();
        Body::from_stream(futures::stream::iter(pieces))
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        let arrival = arrival(1 << 20);
        let body = arrival.body(pieces(&["ab", "cd", "e"]), 5).await.unwrap();
        assert_eq!(body.bytes(), "abcde");
        for body in [pieces(&["abc", "def"]), Body::from("abcdef")] {
            let problem = arrival.body(body, 5).await.unwrap_err();
            assert_eq!(problem.code, Code::TooLarge);
            assert_eq!(problem.outcome, Some(Outcome::NotApplied));
        }
        assert_eq!(arrival.body(Body::empty(), 0).await.unwrap().bytes(), "");
    }

    #[tokio::test]
    async fn bodies_share_a_budget_until_they_are_dropped() {
        let arrival = arrival(4 * BUDGET_UNIT_BYTES);
        let large = || Body::from(vec![0; 3 * BUDGET_UNIT_BYTES]);
        let held = arrival.body(large(), 1 << 20).await.unwrap();
        let problem = arrival.body(large(), 1 << 20).await.unwrap_err();
        assert_eq!(problem.code, Code::Overloaded);
        drop(held);
        assert!(arrival.body(large(), 1 << 20).await.is_ok());
        let chunk = Ok::<_, std::io::Error>(Bytes::from(vec![0; 3 * BUDGET_UNIT_BYTES]));
        let chunks = futures::stream::iter([chunk, Ok(vec![0; 2 * BUDGET_UNIT_BYTES].into())]);
        let problem = arrival.body(Body::from_stream(chunks), 1 << 20).await.unwrap_err();
        assert_eq!(problem.code, Code::Overloaded);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_told_so() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let problem = arrival(1 << 20).body(body, 10).await.unwrap_err();
        assert_eq!(problem.code, Code::SlowClient);
        assert_eq!(problem.code.status(), 408);
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_asked_for_within_the_maximum() {
        let remaining = |text: &'static str| {
            let headers = [(CAIRN_TIMEOUT, text.parse().unwrap())].into_iter().collect();
            Arrival::new(&headers, &HttpLimits::default(), &BodyBudget::new(0))
                .map(|arrival| arrival.deadline().remaining())
        };
        assert_eq!(remaining("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(remaining("10min").unwrap(), Duration::from_mins(1));
        for wrong in ["0s", "2", "soon", ""] {
            assert_eq!(remaining(wrong).unwrap_err().code, Code::InvalidArgument, "{wrong}");
        }
        assert_eq!(arrival(0).deadline().remaining(), Duration::from_secs(10));
    }

    #[test]
    fn parameters_are_bytes_and_known() {
        let known = ["prefix", "limit", "reverse"];
        let params = Params::parse(Some("prefix=a%2Fb+%ff&limit=10&reverse=true"), &known).unwrap();
        assert_eq!(params.bytes("prefix"), Some(&b"a/b \xff"[..]));
        assert_eq!(params.count("limit").unwrap(), Some(10));
        assert_eq!(params.switch("reverse").unwrap(), Some(true));
        assert!(params.text("prefix").is_err());
        assert_eq!(Params::parse(None, &known).unwrap().switch("reverse").unwrap(), None);
        for (query, named) in
            [("ttl=5", "ttl"), ("limit=1&limit=2", "limit"), ("prefix=%zz", "prefix")]
        {
            let problem = Params::parse(Some(query), &known).unwrap_err();
            assert_eq!(problem.code, Code::InvalidArgument);
            assert!(problem.detail.starts_with(named), "{}", problem.detail);
        }
        for wrong in ["limit=0", "limit=-1", "limit=x", "limit=", "limit=99999999999999999999"] {
            assert!(Params::parse(Some(wrong), &known).unwrap().count("limit").is_err(), "{wrong}");
        }
        assert!(Params::parse(Some("reverse=1"), &known).unwrap().switch("reverse").is_err());
    }

    #[test]
    fn headers_of_ours_are_understood_or_refused() {
        let of = |name: HeaderName, value: &'static str| {
            [(name, value.parse().unwrap())].into_iter().collect::<HeaderMap>()
        };
        assert_eq!(min_seq(&of(CAIRN_MIN_SEQ, "12")).unwrap(), Some(Seq(12)));
        assert_eq!(min_seq(&HeaderMap::new()).unwrap(), None);
        for wrong in ["-1", "9007199254740992", "x", "\"1\"", ""] {
            assert!(min_seq(&of(CAIRN_MIN_SEQ, wrong)).is_err(), "{wrong}");
        }
        assert_eq!(staleness(&of(CAIRN_ALLOW_STALE, "true")).unwrap(), Staleness::Any);
        assert!(staleness(&of(CAIRN_ALLOW_STALE, "yes")).is_err());
    }
}
