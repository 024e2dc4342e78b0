//! Bodies of requests: read up to a bound, out of a budget that all requests share, within the
//! deadline.
//!
//! **Invariant**: bytes are counted as they arrive, and room for a body is made as it fills. What
//! a client announces and does not send takes nothing from the others; while its next bytes are
//! awaited, the request has no place among those that are worked on.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::timeout_at;

use super::budget::{Held, Share};
use super::places::Wait;
use super::problem::{Answer, Code, Outcome, Problem};
use super::request::Arrival;

impl Arrival {
    /// The whole body, which is at most `bytes_max` long. Costs up to twice its length in memory
    /// while it comes, its length afterwards.
    ///
    /// # Errors
    /// `too_large`; `overloaded` when the budget is used up; `timeout` (408) when the client is
    /// too slow; `invalid_body` when it breaks off. All with `not_applied`.
    pub async fn body(&self, body: Body, bytes_max: usize) -> Answer<Held<Bytes>> {
        let mut chunks = self.chunks(body, bytes_max);
        let Some(first) = chunks.next().await? else {
            return Ok(Held::new(Bytes::new(), chunks.share));
        };
        let Some(second) = chunks.next().await? else {
            return Ok(Held::new(first, chunks.share));
        };
        let mut whole = Vec::new();
        put(&mut whole, &first, chunks.expected);
        drop(first);
        put(&mut whole, &second, chunks.expected);
        drop(second);
        while let Some(chunk) = chunks.next().await? {
            put(&mut whole, &chunk, chunks.expected);
        }
        whole.shrink_to_fit();
        Ok(Held::new(whole.into(), chunks.share))
    }

    /// The body piece by piece, under the same bounds and errors.
    pub fn chunks(&self, body: Body, bytes_max: usize) -> Chunks {
        let hint = http_body::Body::size_hint(&body);
        let expected = usize::try_from(hint.lower()).unwrap_or(usize::MAX);
        Chunks {
            body,
            expected,
            bytes: 0,
            bytes_max,
            arrival: self.clone(),
            share: self.budgets().requests.empty(),
        }
    }
}

/// Puts a piece behind the others: room doubles, but not beyond what was announced.
fn put(whole: &mut Vec<u8>, piece: &[u8], expected: usize) {
    let needed = whole.len() + piece.len();
    if needed > whole.capacity() {
        let doubled = needed.max(2 * whole.capacity());
        let room = if expected < needed { doubled } else { doubled.min(expected) };
        whole.reserve_exact(room - whole.len());
    }
    whole.extend_from_slice(piece);
}

/// A body in pieces.
#[derive(Debug)]
pub struct Chunks {
    body: Body,
    expected: usize,
    bytes: usize,
    bytes_max: usize,
    arrival: Arrival,
    share: Share,
}

impl Chunks {
    /// The next piece; `None` at the end. The pieces so far count against the budget until this
    /// is dropped.
    ///
    /// # Errors
    /// As [`Arrival::body`].
    pub async fn next(&mut self) -> Answer<Option<Bytes>> {
        self.read().await.map_err(|problem| problem.outcome(Outcome::NotApplied))
    }

    async fn read(&mut self) -> Answer<Option<Bytes>> {
        let bytes_max = self.bytes_max;
        let too_large =
            || Problem::new(Code::TooLarge, format!("the body is larger than {bytes_max} bytes"));
        if self.expected > bytes_max {
            return Err(too_large());
        }
        let deadline = self.arrival.deadline().instant();
        loop {
            let frame = timeout_at(deadline, self.body.frame());
            let frame = match self.arrival.aside(Wait::Body, frame).await? {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(Problem::body(format!("the body broke off: {error}")));
                }
                Err(_) => {
                    let detail = "the body did not come within the deadline";
                    return Err(Problem::new(Code::SlowClient, detail));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            self.bytes += bytes.len();
            if self.bytes > bytes_max {
                return Err(too_large());
            }
            self.share.resize(self.bytes)?;
            return Ok(Some(bytes));
        }
    }

    /// What the pieces took of the budget.
    pub fn into_share(self) -> Share {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http::HeaderMap;
    use http_body::{Body as HttpBody, Frame, SizeHint};

    use super::*;
    use crate::config::{HttpLimits, Size};
    use crate::http::budget::Budgets;

    fn arrival(budget: u64) -> Arrival {
        let limits = HttpLimits { request_memory: Size(budget), ..HttpLimits::default() };
        Arrival::new(&HeaderMap::new(), &limits, &Budgets::new(&limits)).unwrap()
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
        let arrival = arrival(4 << 10);
        let large = || Body::from(vec![0; 3 << 10]);
        let held = arrival.body(large(), 1 << 20).await.unwrap();
        let problem = arrival.body(large(), 1 << 20).await.unwrap_err();
        assert_eq!((problem.code, problem.outcome), (Code::Overloaded, Some(Outcome::NotApplied)));
        drop(held);
        assert!(arrival.body(large(), 1 << 20).await.is_ok());
        let chunk = Ok::<_, std::io::Error>(Bytes::from(vec![0; 3 << 10]));
        let chunks = futures::stream::iter([chunk, Ok(vec![0; 2 << 10].into())]);
        let problem = arrival.body(Body::from_stream(chunks), 1 << 20).await.unwrap_err();
        assert_eq!(problem.code, Code::Overloaded);
    }

    /// A client that announces more than it sends.
    struct Announced {
        bytes: u64,
        sent: Option<Bytes>,
    }

    impl HttpBody for Announced {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.sent.take() {
                Some(sent) => Poll::Ready(Some(Ok(Frame::data(sent)))),
                None => Poll::Pending,
            }
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.bytes)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_announced_and_not_sent_costs_the_others_nothing() {
        let arrival = arrival(4 << 10);
        let slow = || Body::new(Announced { bytes: 4 << 10, sent: Some("x".into()) });
        let mut slow = [arrival.chunks(slow(), 1 << 20), arrival.chunks(slow(), 1 << 20)];
        for chunks in &mut slow {
            assert_eq!(chunks.next().await.unwrap().unwrap(), "x");
        }
        assert!(arrival.body(Body::from(vec![0; 2 << 10]), 1 << 20).await.is_ok());
    }

    #[tokio::test]
    async fn room_for_a_body_doubles_up_to_what_was_announced() {
        let mut whole = Vec::new();
        for (expected, room) in [(7, 7), (0, 12), (4, 8)] {
            for piece in [&[1_u8; 3][..], &[2], &[3], &[4, 5]] {
                put(&mut whole, piece, expected);
            }
            assert_eq!((whole.len(), whole.capacity()), (7, room), "{expected} announced");
            whole = Vec::new();
        }
        let body = arrival(1 << 20).body(pieces(&["ab", "c", "d", "efg"]), 9).await.unwrap();
        let (whole, _share) = body.into_parts();
        assert_eq!(whole.try_into_mut().unwrap().capacity(), 7, "and then it is cut to size");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_told_so() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let problem = arrival(1 << 20).body(body, 10).await.unwrap_err();
        assert_eq!(problem.code, Code::SlowClient);
        assert_eq!(problem.code.status(), 408);
    }
}
