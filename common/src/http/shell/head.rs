//! What hyper keeps from us of the heads of requests: what it refuses itself, and what it cuts off.
//!
//! **Refusals.** A head that cannot be parsed, a target above 65,534 bytes, a head above the read
//! buffer or of more than 100 fields never becomes a request: hyper answers with an empty 400, 414
//! or 431. That answer passes through our socket, and there becomes a problem like any other.
//! What is not possible: it is not counted by the metrics, it cannot say of which key it is, and
//! behind a pipelined reply that is still on its way it stays as hyper wrote it.
//!
//! **Fragments.** The `http` crate cuts a target off at a raw `#`, which a request may not have
//! (RFC 9112, section 3.2), so that `PUT /v1/kv/a#b` would write `a`. The bytes are seen by our
//! socket as well. What is not possible without a second parser: a line that comes in more than
//! one read, or in one with the request before it, is not looked at.

use http::{Request, StatusCode};

use crate::http::problem::{Code, MEDIA_TYPE, Outcome, Problem};

/// The longest answer that hyper gives by itself; its are about 100 bytes.
pub(super) const REFUSAL_BYTES_MAX: usize = 512;

/// What these begin with.
pub(super) const REFUSAL_BEGIN: &[u8] = b"HTTP/1.1 4";

/// The first line of a head, as far as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum RequestLine {
    /// Not at all.
    #[default]
    Unseen,
    /// In part.
    Begun,
    /// Whole.
    Ended,
}

impl RequestLine {
    /// Looks at more bytes of the head; returns the line up to a `#` in it.
    pub(super) fn push<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if *self == Self::Ended {
            return None;
        }
        let is_first = *self == Self::Unseen;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        *self = if end.is_some() { Self::Ended } else { Self::Begun };
        let line = bytes.get(..end?).filter(|_| is_first)?;
        let cut = line.iter().position(|byte| *byte == b'#')?;
        line.get(..=cut)
    }

    /// Whether the line has come whole.
    pub(super) fn has_ended(self) -> bool {
        self == Self::Ended
    }
}

/// Whether this request is what is left of the line that began so and went on.
pub(super) fn is_cut<B>(line: &[u8], request: &Request<B>) -> bool {
    let whole = || format!("{} {}#", request.method(), request.uri());
    !line.is_empty() && line == whole().as_bytes()
}

/// What to send in place of hyper's own refusal; `None` where `sent` is anything else. `sent` is
/// the beginning of an answer. None of ours is an empty refusal.
pub(super) fn refusal(sent: &[u8], line: RequestLine) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(sent).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    let is_empty = body.is_empty() && lines.clone().any(|line| line == "content-length: 0");
    let status: StatusCode = status.parse().ok().filter(|_| is_empty)?;
    let problem = match status {
        StatusCode::BAD_REQUEST => {
            Problem::new(Code::InvalidArgument, "the head of the request is not HTTP/1.1")
        }
        StatusCode::URI_TOO_LONG => too_long(),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if !line.has_ended() => too_long(),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            Problem::new(Code::HeadTooLarge, "the head of the request has too many fields or bytes")
        }
        _ => return None,
    };
    let date = lines.find(|line| line.starts_with("date: ")).unwrap_or("server: cairn");
    let status = problem.code.status();
    let json = problem.outcome(Outcome::NotApplied).to_json();
    let length = json.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{date}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n"
    );
    Some([head.into_bytes(), json].concat())
}

fn too_long() -> Problem {
    Problem::new(Code::UriTooLong, "the request target is longer than any that names a key")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> RequestLine {
        let mut line = RequestLine::default();
        line.push(bytes);
        line
    }

    #[test]
    fn only_an_empty_refusal_is_replaced() {
        let ours = |sent: &str| refusal(sent.as_bytes(), line(b"GET / HTTP/1.1\r\n"));
        let empty = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: now\r\n\r\n";
        let text = String::from_utf8(ours(empty).unwrap()).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\ndate: now\r\n"), "{text}");
        assert!(text.contains("\"code\":\"invalid_argument\""), "{text}");
        assert!(text.contains("\"outcome\":\"not_applied\""), "{text}");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\n\r\nx",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "value",
        ] {
            assert_eq!(ours(other), None, "{other}");
        }
    }

    #[test]
    fn a_head_that_never_ended_its_line_has_a_long_target() {
        let sent = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
        for (seen, code) in
            [(&b"GET /aaaa"[..], "uri_too_long"), (b"GET / HTTP/1.1\r\nx", "too_large")]
        {
            let text = String::from_utf8(refusal(sent, line(seen)).unwrap()).unwrap();
            assert!(text.contains(code), "{text}");
        }
    }

    #[test]
    fn a_cut_is_known_by_what_is_left() {
        let seen = |bytes: &'static [u8]| RequestLine::default().push(bytes).unwrap_or_default();
        let request = Request::put("/v1/kv/a").body(()).unwrap();
        assert!(is_cut(seen(b"PUT /v1/kv/a#b HTTP/1.1\r\n"), &request));
        assert!(!is_cut(seen(b"PUT /v1/kv/a HTTP/1.1\r\nx: #\r\n"), &request));
        assert!(!is_cut(seen(b"PUT /v1/kv/ab#c HTTP/1.1\r\n"), &request), "of another request");
        let mut in_pieces = RequestLine::default();
        assert_eq!((in_pieces.push(b"PUT /v1/"), in_pieces.push(b"a#b\r\n")), (None, None));
        assert!(in_pieces.has_ended());
    }
}
