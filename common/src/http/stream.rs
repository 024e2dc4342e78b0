//! NDJSON streams of scans: a task makes the pieces, the connection takes them, one at a time.
//!
//! **Invariants**
//! - A piece is made once the client has taken the one before. A stream whose client takes nothing
//!   holds one piece, its view, and, after [`IDLE_MAX`], nothing that was read ahead.
//! - A stream that is whole ends with `{"end":true,...}`. One that breaks off has no end line: the
//!   connection is cut, for the status has long been sent.
//! - The first piece decides the status. Where there is none by the deadline (a scan may go through
//!   many keys that are not live), the head is sent without it. From then on a stream has no
//!   deadline.

use std::io;
use std::panic::resume_unwind;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument as _, Span};

use super::budget::{Budget, Share};
use super::places::ScanSeat;
use super::reads::Unanswered;
use super::reply::Draft;
use super::rows::{END_BYTES_MAX, Slices, Then};
use super::scans::{Asked, cursor_field};
use crate::types::Seq;

/// How long a piece waits for room: as long as a client that takes nothing of its reply is given
/// by default.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);
/// A stream whose client takes nothing for so long lets go of what was read ahead.
const IDLE_MAX: Duration = Duration::from_secs(1);

type Piece = Result<Bytes, Unanswered>;

/// A stream under way.
pub(super) struct Lines {
    pub(super) asked: Asked,
    pub(super) slices: Slices,
    pub(super) seq: Seq,
    pub(super) room: Budget,
    pub(super) state: Phase,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was made.
    Fresh,
    /// Pieces are made.
    Open,
    /// The end line was made.
    Ended,
}

/// The body of a stream; waits for its first piece until `due`. Needs a runtime.
pub(super) async fn body(lines: Lines, due: Instant, seat: ScanSeat) -> Result<Body, Unanswered> {
    let (sender, mut pieces) = mpsc::channel(1);
    let mut task = JoinSet::new();
    task.spawn(lines.run(sender).instrument(Span::current()));
    let first = match timeout_at(due, pieces.recv()).await {
        Ok(Some(first)) => Some(Ok(first?)),
        Ok(None) => {
            ended(&mut task).await;
            None
        }
        Err(_) => None,
    };
    let rest = stream::unfold((pieces, task, seat), async |(mut pieces, mut task, seat)| {
        match pieces.recv().await {
            Some(Ok(piece)) => Some((Ok(piece), (pieces, task, seat))),
            Some(Err(why)) => {
                tracing::warn!(?why, "a stream of a scan broke off");
                Some((Err(io::Error::other("the scan broke off")), (pieces, task, seat)))
            }
            None => {
                ended(&mut task).await;
                None
            }
        }
    });
    Ok(Body::from_stream(stream::StreamExt::chain(stream::iter(first), rest)))
}

/// Waits for the end of the task; its panic goes on here.
async fn ended(task: &mut JoinSet<()>) {
    if let Some(Err(error)) = task.join_next().await
        && let Ok(panic) = error.try_into_panic()
    {
        resume_unwind(panic);
    }
}

/// Room for a piece. The first is refused where there is none, the others wait for it.
async fn share(room: &Budget, state: Phase, bytes: usize) -> Result<Share, Unanswered> {
    Ok(match state {
        Phase::Fresh => room.share(bytes)?,
        Phase::Open | Phase::Ended => room.share_within(bytes, ROOM_WAIT_MAX).await?,
    })
}

impl Lines {
    /// Makes pieces for as long as they are taken.
    async fn run(mut self, pieces: mpsc::Sender<Piece>) {
        loop {
            let place = if let Ok(place) = timeout(IDLE_MAX, pieces.reserve()).await {
                place
            } else {
                self.slices.rows().scan_mut().let_go();
                pieces.reserve().await
            };
            let Ok(place) = place else { return };
            match self.next_piece().await {
                Ok(Some(piece)) => place.send(Ok(piece)),
                Ok(None) => return,
                Err(why) => {
                    place.send(Err(why));
                    return;
                }
            }
        }
    }

    /// The next piece of whole lines; `None` after the end line.
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Unanswered> {
        while self.state != Phase::Ended {
            // Of a stream no turn is missed: it has no deadline.
            let Some(then) = self.slices.next(None).await? else { continue };
            let draft = self.slices.rows().take_draft();
            if let Then::End = then {
                return self.end(draft).await.map(Some);
            }
            if let Some(draft) = draft {
                self.state = Phase::Open;
                return Ok(Some(draft.into_bytes()));
            }
            match then {
                Then::NeedInput => self.slices.rows().scan_mut().feed().await?,
                Then::NoRoom(bytes) => {
                    let share = share(&self.room, self.state, bytes).await?;
                    self.slices.rows().give(share);
                }
                Then::Pause | Then::Full | Then::End => {}
            }
        }
        Ok(None)
    }

    /// The last piece: with a cursor where only the limit ended the scan.
    async fn end(&mut self, draft: Option<Draft>) -> Result<Bytes, Unanswered> {
        let mut draft = if let Some(draft) = draft {
            draft
        } else {
            let share = share(&self.room, self.state, END_BYTES_MAX).await?;
            Draft::with_room(END_BYTES_MAX, share)
        };
        let rows = self.slices.rows();
        let cursor = rows.is_cut_off().then(|| self.asked.cursor(rows.position()));
        let head = format!("{{\"end\":true,\"seq\":{},", self.seq);
        draft.frame([head.as_bytes(), &cursor_field(cursor.as_deref()), b"}\n"].concat())?;
        self.state = Phase::Ended;
        Ok(draft.into_bytes())
    }
}
