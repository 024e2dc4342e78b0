//! Holes in the log: whether the end at which the reader stays is the chain's end, or an object
//! that somebody else deleted. PROTOCOL, "Holes".
//!
//! **Life of a doubt**: the position has not moved for ten seconds; or the reader has just begun,
//! or has not looked for as long (it was stopped, or the store was away), so that it has not seen
//! the log move to there. What lies behind it is looked through, beside the following (T2b); if
//! that proves that the position was acknowledged, the next look reads the position and CURRENT
//! once more. If it ends at the same position again, the object is missing.
//!
//! **Invariants**
//! - A verdict rests on a read of CURRENT that was sent after the proof was complete, and that
//!   shows `replay_from` at or before the position.
//! - A position that moves ends the doubt: the object is back, or a flush has passed it.

use std::time::Duration;

use cairn_common::error::Result;
use cairn_common::store::wal::{Behind, Wal};
use cairn_common::types::WalId;
use futures::FutureExt as _;
use tokio::task::JoinSet;

/// A position that has not moved for so long is doubted: a busy log moves many times as often.
const DOUBTED_AFTER: Duration = Duration::from_secs(10);
/// The longest between two looks behind a position that does not move: each costs a LIST, and the
/// time between them doubles.
const LOOK_INTERVAL_MAX: Duration = Duration::from_mins(10);

/// What is known of the place where the reader stays.
#[derive(Debug)]
pub(crate) struct Doubt {
    position: WalId,
    /// Boot time of the next look behind it.
    due: Duration,
    interval: Duration,
    /// Boot time of the last judgement.
    judged_at: Option<Duration>,
    look: JoinSet<Result<Behind>>,
    /// An object that proves that the position was acknowledged.
    proof: Option<WalId>,
}

impl Doubt {
    /// The doubt of a reader that begins at a position.
    pub(crate) fn new(position: WalId) -> Self {
        let (due, interval) = (Duration::ZERO, DOUBTED_AFTER);
        Self { position, due, interval, judged_at: None, look: JoinSet::new(), proof: None }
    }

    /// The position that is doubted.
    pub(crate) fn position(&self) -> WalId {
        self.position
    }

    /// Takes what a look behind the position has shown: before a look that reads CURRENT.
    pub(crate) fn take(&mut self) {
        match self.look.join_next().now_or_never().flatten() {
            Some(Ok(Ok(Behind::Proof(proof)))) => self.proof = Some(proof),
            Some(Ok(Ok(Behind::Nothing | Behind::Landed(_)))) => self.proof = None,
            Some(Ok(Err(error))) => {
                tracing::debug!(%error, "cannot look behind the end of the log");
            }
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) | None => {}
        }
    }

    /// Judges the position at which a look has ended: an object that proves that one is missing
    /// there, if any does.
    pub(crate) fn judge(&mut self, wal: &Wal, position: WalId, now: Duration) -> Option<WalId> {
        let judged_at = self.judged_at.replace(now);
        let was_away = judged_at.is_none_or(|at| now.saturating_sub(at) >= DOUBTED_AFTER);
        if position != self.position {
            *self = Self { judged_at: Some(now), due: now + DOUBTED_AFTER, ..Self::new(position) };
        }
        if was_away {
            (self.due, self.interval) = (now, DOUBTED_AFTER / 2);
        }
        if now >= self.due && self.look.is_empty() {
            self.interval = (2 * self.interval).min(LOOK_INTERVAL_MAX);
            self.due = now + self.interval;
            let wal = wal.clone();
            self.look.spawn(async move { wal.look_behind(position).await });
        }
        self.proof
    }
}
