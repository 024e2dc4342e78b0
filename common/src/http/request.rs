//! What a request carries besides its key and its body: deadline, query parameters, headers of
//! ours.
//!
//! **Invariant**: whatever cannot be understood is refused with the name of the parameter or
//! header.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::header::{HeaderMap, HeaderName};
use http::request::Parts;
use tokio::time::{Instant, timeout_at};

use super::budget::Budgets;
use super::keys::percent_decode;
use super::places::Place;
use super::problem::{Answer, Code, Problem};
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

    /// A moment before it, so that what is there by then can still be sent: a tenth of what is
    /// left, a quarter of a second at most.
    pub(super) fn early(self) -> Instant {
        self.0 - (self.remaining() / 10).min(Duration::from_millis(250))
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

/// What the surface knows about a request; every handler can extract it.
#[derive(Clone, Debug)]
pub struct Arrival {
    deadline: Deadline,
    budgets: Budgets,
    place: Place,
}

impl Arrival {
    pub(super) fn new(headers: &HeaderMap, limits: &HttpLimits, budgets: &Budgets) -> Answer<Self> {
        let asked = match single(headers, &CAIRN_TIMEOUT)? {
            None => limits.request_timeout.0,
            Some(text) => match text.parse::<Span>() {
                Ok(Span(span)) if !span.is_zero() => span.min(limits.request_timeout_max.0),
                Ok(_) => return Err(Problem::argument("cairn-timeout", "is zero")),
                Err(what) => return Err(Problem::argument("cairn-timeout", what)),
            },
        };
        let place = Place::new(&budgets.places);
        Ok(Self { deadline: Deadline::after(asked), budgets: budgets.clone(), place })
    }

    /// When the answer is due.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Its place among the requests that are worked on.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// What its body and its reply are counted against.
    pub(super) fn budgets(&self) -> &Budgets {
        &self.budgets
    }
}

impl<S: Sync> FromRequestParts<S> for Arrival {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        let missing = || Problem::new(Code::Internal, "the route is outside its surface");
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
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

    fn arrival(headers: &HeaderMap) -> Answer<Arrival> {
        let limits = HttpLimits::default();
        Arrival::new(headers, &limits, &Budgets::new(&limits))
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_asked_for_within_the_maximum() {
        let remaining = |text: &'static str| {
            let headers = [(CAIRN_TIMEOUT, text.parse().unwrap())].into_iter().collect();
            arrival(&headers).map(|arrival| arrival.deadline().remaining())
        };
        assert_eq!(remaining("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(remaining("10min").unwrap(), Duration::from_mins(1));
        for wrong in ["0s", "2", "soon", ""] {
            assert_eq!(remaining(wrong).unwrap_err().code, Code::InvalidArgument, "{wrong}");
        }
        let unasked = arrival(&HeaderMap::new()).unwrap();
        assert_eq!(unasked.deadline().remaining(), Duration::from_secs(10));
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
