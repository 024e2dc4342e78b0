//! The trace context of a request: the header `traceparent`, logged and handed back.
//!
//! **Layout**: `version - trace id - parent id - flags`, lowercase hex of 2, 32, 16 and 2 digits.
//! Version `00` ends there; a later one may go on after a `-`. Whatever is not of this form is
//! ignored, as the standard asks: a broken tracer must not break requests.
//!
//! **Source**: W3C Trace Context, section 3.2.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

/// The context that a request is part of.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A valid `traceparent`.
#[derive(Clone, Debug)]
pub(super) struct TraceParent(HeaderValue);

impl TraceParent {
    /// The context in these headers; `None` where there is none, more than one, or a wrong one.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        ids(value.to_str().ok()?)?;
        Some(Self(value.clone()))
    }

    /// What the log lines of the request stand in.
    pub(super) fn span(&self) -> Span {
        let ids = self.0.to_str().ok().and_then(ids);
        let (trace_id, parent_id) = ids.unwrap_or_default();
        // As a lower level, it would be off with the lines that it is for on.
        tracing::error_span!("request", trace_id, parent_id)
    }

    /// Puts it into the reply.
    pub(super) fn put(self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.0);
    }
}

/// The trace id and the parent id.
fn ids(text: &str) -> Option<(&str, &str)> {
    let mut fields = text.splitn(5, '-');
    let mut hex = |digits: usize| {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        fields.next().filter(|field| field.len() == digits && field.bytes().all(is_hex))
    };
    let (version, trace_id, parent_id, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
    let is_known = version != "ff" && (version != "00" || fields.next().is_none());
    (is_known && !is_zero(trace_id) && !is_zero(parent_id)).then_some((trace_id, parent_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn a_context_is_of_the_form_of_the_standard_or_ignored() {
        for text in [
            format!("00-{TRACE}-{PARENT}-01"),
            format!("cc-{TRACE}-{PARENT}-00"),
            format!("cc-{TRACE}-{PARENT}-00-what-is-to-come"),
        ] {
            assert_eq!(ids(&text), Some((TRACE, PARENT)), "{text}");
        }
        for text in [
            String::new(),
            TRACE.to_owned(),
            format!("00-{TRACE}-{PARENT}"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}0-{PARENT}-01"),
            format!("0x-{TRACE}-{PARENT}-01"),
        ] {
            assert_eq!(ids(&text), None, "{text}");
        }
    }

    #[test]
    fn one_that_is_given_twice_is_none() {
        let value: HeaderValue = format!("00-{TRACE}-{PARENT}-01").parse().unwrap();
        let mut headers = HeaderMap::new();
        assert!(TraceParent::of(&headers).is_none());
        headers.append(TRACEPARENT, value.clone());
        assert!(TraceParent::of(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert!(TraceParent::of(&headers).is_none());
    }
}
