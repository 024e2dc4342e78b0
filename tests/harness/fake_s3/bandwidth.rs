//! How much a link carries: shared by all connections, in slices, as by a network.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cairn_common::clock::{Clock, SystemClock};
use futures::{StreamExt, stream};
use http::header::CONTENT_LENGTH;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Response;
use hyper::body::Frame;

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Bytes that are carried at a time: some packets.
const SLICE_BYTES: usize = 16 << 10;

/// One direction of a link.
#[derive(Debug, Default)]
pub(super) struct Bandwidth {
    /// Zero: no bound.
    bytes_per_second: AtomicU64,
    clock: SystemClock,
    free_at: Mutex<Duration>,
}

impl Bandwidth {
    pub(super) fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Waits until so many bytes have been carried, behind all that came before.
    pub(super) async fn carry(&self, bytes: usize) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let takes = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        let wait = {
            let now = self.clock.boot();
            let mut free_at = self.free_at.lock().expect("no panic holds this lock");
            *free_at = (*free_at).max(now) + takes;
            free_at.saturating_sub(now)
        };
        tokio::time::sleep(wait).await;
    }

    /// The answer, of which each slice is carried in its turn.
    pub(super) fn slow_down(self: &Arc<Self>, answer: Response<Full<Bytes>>) -> Response<Body> {
        if self.bytes_per_second.load(Ordering::Relaxed) == 0 {
            return answer.map(BodyExt::boxed_unsync);
        }
        let (mut head, body) = answer.into_parts();
        // A body in memory is there at once.
        let body = futures::FutureExt::now_or_never(body.collect());
        let body =
            body.and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| body.len().into());
        let slices: Vec<_> = (0..body.len().div_ceil(SLICE_BYTES))
            .map(|slice| {
                let from = slice * SLICE_BYTES;
                body.slice(from..body.len().min(from + SLICE_BYTES))
            })
            .collect();
        let link = Arc::clone(self);
        let carried = stream::iter(slices).then(move |slice| {
            let link = Arc::clone(&link);
            async move {
                link.carry(slice.len()).await;
                Ok(Frame::data(slice))
            }
        });
        Response::from_parts(head, BodyExt::boxed_unsync(StreamBody::new(carried)))
    }
}
