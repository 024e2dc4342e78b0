//! One connection under watch: slow heads, stalled readers, and closing without losing the answer.
//!
//! **Life of a connection**
//!
//! ```text
//! idle --first byte--> head --request parsed--> serving --reply's body ends--> idle
//! ```
//!
//! - `head` lasts at most `header_timeout`; `idle` is bounded by hyper's own timer.
//! - A write that makes no progress for `stall_timeout` ends the connection.
//! - A client that takes bytes as fast as they come would keep a thread of the runtime for
//!   megabytes on end: after [`BURST_BYTES_MAX`] its connection lets others go first.
//! - When a reply is sent before the request's body was read to its end, closing at once would
//!   make the kernel reset the connection and the client lose the reply. So the closing side
//!   sends its FIN and discards a bounded rest first ("lingering close", as nginx does).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::head::{REFUSAL_BEGIN, REFUSAL_BYTES_MAX, RequestLine, is_cut, refusal};
use crate::config::HttpLimits;

/// The rest of a body that is discarded after the reply, at most.
const LINGER_BYTES_MAX: usize = 64 << 20;
/// How long it is discarded for, at most.
const LINGER_TIME_MAX: Duration = Duration::from_secs(5);
/// How much is discarded in one go.
const LINGER_CHUNK_BYTES: usize = 16 << 10;

/// Bytes that a connection sends before it lets others go first: a tenth of a millisecond.
const BURST_BYTES_MAX: usize = 256 << 10;

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const SERVING: u8 = 2;

/// What the two halves of a connection tell each other.
#[derive(Debug, Default)]
pub(super) struct Phase {
    now: AtomicU8,
    touched: AtomicBool,
    unread: AtomicBool,
    /// The line of the head that is being read, up to a `#` in it.
    cut: Mutex<Vec<u8>>,
}

impl Phase {
    /// Whether the client has sent any byte at all.
    pub(super) fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }

    /// A request's head is complete, and with it the body before; says whether its target was cut.
    pub(super) fn serving<B>(&self, request: &Request<B>) -> bool {
        self.now.store(SERVING, Ordering::Relaxed);
        self.unread.store(false, Ordering::Relaxed);
        is_cut(&std::mem::take(&mut *self.cut()), request)
    }

    fn cut(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The socket of one connection.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    phase: Arc<Phase>,
    header_timeout: Duration,
    stall_timeout: Duration,
    head_timer: Option<Pin<Box<Sleep>>>,
    stall_timer: Option<Pin<Box<Sleep>>>,
    line: RequestLine,
    answers: Answers,
    linger: Linger,
    /// Bytes sent since others could go first.
    burst: usize,
}

/// Where in the answers the connection is.
#[derive(Debug)]
enum Answers {
    /// Everything before was sent whole: the next bytes begin an answer.
    Between,
    /// Some of an answer was sent.
    Within,
    /// This is sent in place of an answer of hyper's.
    Refusal(Bytes),
}

#[derive(Debug)]
struct Linger {
    timer: Option<Pin<Box<Sleep>>>,
    bytes_left: usize,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, phase: Arc<Phase>, limits: &HttpLimits) -> Self {
        Self {
            stream,
            phase,
            header_timeout: limits.header_timeout.0,
            stall_timeout: limits.stall_timeout.0,
            head_timer: None,
            stall_timer: None,
            line: RequestLine::default(),
            answers: Answers::Between,
            linger: Linger { timer: None, bytes_left: LINGER_BYTES_MAX },
            burst: 0,
        }
    }

    /// Passes a finished write on; a pending one fails once it has made no progress for too long.
    fn progress<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stall_timer = None;
            return poll;
        }
        let timeout = self.stall_timeout;
        let timer = self.stall_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(timed_out("the client takes no bytes of the reply")))
    }

    /// How many bytes may be sent before others go first; pending where they do.
    fn poll_burst(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if self.burst < BURST_BYTES_MAX {
            return Poll::Ready(BURST_BYTES_MAX - self.burst);
        }
        self.burst = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends up to this many of the bytes.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let poll = if bytes <= bytes_max {
            Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
        } else {
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |s| s);
            let first = first.get(..bytes_max).unwrap_or(first);
            Pin::new(&mut self.stream).poll_write(cx, first)
        };
        match &poll {
            Poll::Ready(Ok(sent)) => self.burst += sent,
            Poll::Ready(Err(_)) | Poll::Pending => self.burst = 0,
        }
        self.progress(cx, poll)
    }

    /// Notes the first line of a head as it comes in.
    fn look_at(&mut self, bytes: &[u8]) {
        if let Some(cut) = self.line.push(bytes) {
            cut.clone_into(&mut self.phase.cut());
        }
    }

    /// Sends our refusal where these bytes are all of hyper's; `None` where they are not.
    fn poll_refusal(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Option<Poll<io::Result<usize>>> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if matches!(self.answers, Answers::Between)
            && self.phase.now.load(Ordering::Relaxed) != SERVING
            && bytes <= REFUSAL_BYTES_MAX
            && slices.first().is_some_and(|first| first.starts_with(REFUSAL_BEGIN))
            && let sent = slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>()
            && let Some(refusal) = refusal(&sent, self.line)
        {
            // The rest of the head, at least, may be on its way.
            self.phase.unread.store(true, Ordering::Relaxed);
            self.answers = Answers::Refusal(refusal.into());
        }
        let Answers::Refusal(rest) = &mut self.answers else { return None };
        while !rest.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(sent)) => rest.advance(sent),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(self.progress(cx, Poll::Pending)),
            }
        }
        self.answers = Answers::Within;
        Some(self.progress(cx, Poll::Ready(Ok(bytes))))
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let timer = self.linger.timer.get_or_insert_with(|| Box::pin(sleep(LINGER_TIME_MAX)));
        let mut chunk = [0; LINGER_CHUNK_BYTES];
        while self.linger.bytes_left > 0 {
            if timer.as_mut().poll(cx).is_ready() {
                break;
            }
            let mut buffer = ReadBuf::new(&mut chunk);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    let read = buffer.filled().len();
                    self.linger.bytes_left = self.linger.bytes_left.saturating_sub(read);
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before && self.phase.now.load(Ordering::Relaxed) == IDLE {
            self.phase.now.store(HEAD, Ordering::Relaxed);
            self.phase.touched.store(true, Ordering::Relaxed);
            self.head_timer = Some(Box::pin(sleep(self.header_timeout)));
            self.line = RequestLine::default();
        }
        // What follows an unread body may be the rest of it.
        if self.phase.now.load(Ordering::Relaxed) == HEAD
            && !self.phase.unread.load(Ordering::Relaxed)
            && let Some(read) = buffer.filled().get(before..)
        {
            self.look_at(read);
        }
        if self.phase.now.load(Ordering::Relaxed) != HEAD {
            self.head_timer = None;
        }
        if poll.is_pending()
            && let Some(timer) = &mut self.head_timer
        {
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Err(timed_out("the head of a request came too slowly")));
        }
        poll
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(poll) = self.poll_refusal(cx, &[io::IoSlice::new(bytes)]) {
            return poll;
        }
        let bytes_max = ready!(self.poll_burst(cx));
        self.answers = Answers::Within;
        self.poll_send(cx, &[io::IoSlice::new(bytes)], bytes_max)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(poll) = self.poll_refusal(cx, slices) {
            return poll;
        }
        let bytes_max = ready!(self.poll_burst(cx));
        self.answers = Answers::Within;
        self.poll_send(cx, slices, bytes_max)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once it has written all it has.
        self.answers = Answers::Between;
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.timer.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if !self.phase.unread.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.poll_linger(cx)
    }
}

/// The body of a request: notes whether it was read to its end.
#[derive(Debug)]
pub(super) struct RequestBody {
    incoming: Incoming,
    phase: Arc<Phase>,
    ended: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, phase: Arc<Phase>) -> Self {
        Self { incoming, phase, ended: false }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        self.ended = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        // hyper itself never says so of a chunked body.
        if !self.ended && !self.incoming.is_end_stream() {
            self.phase.unread.store(true, Ordering::Relaxed);
        }
    }
}

/// The body of a reply: its end makes the connection idle.
#[derive(Debug)]
pub(super) struct ReplyBody {
    body: Body,
    phase: Arc<Phase>,
}

impl ReplyBody {
    pub(super) fn new(body: Body, phase: Arc<Phase>) -> Self {
        Self { body, phase }
    }
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        self.phase.now.store(IDLE, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_lets_others_go_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let stream = accepted.unwrap().0;
        stream.writable().await.unwrap();
        let mut watched = Watched::new(stream, Arc::default(), &HttpLimits::default());
        let reply = vec![0; 8 << 20];
        let mut cx = Context::from_waker(Waker::noop());
        let mut sent = 0;
        while let Poll::Ready(more) = Pin::new(&mut watched).poll_write(&mut cx, &reply) {
            sent += more.unwrap();
        }
        assert!((1..=BURST_BYTES_MAX).contains(&sent), "{sent} bytes in one go");
        assert!(watched.stall_timer.is_none() || sent < BURST_BYTES_MAX, "that is no stall");
        drop(client);
    }
}
