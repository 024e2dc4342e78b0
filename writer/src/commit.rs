//! The commit task: seals groups into WAL objects, sends them in a window, proves them in order.
//!
//! **Life of a group**: callers fill it; it is sealed when a PUT slot is free and the pacing
//! interval since the last PUT has passed, or at once when it is full; its object is PUT until
//! its fate is certain; it is proven, and its callers answered, once all before it are.
//!
//! **Invariants** (PROTOCOL W1 to W3)
//! - Id n is sent only if n < (lowest own id not yet proven) + window.
//! - A group is proven only when its own PUT and those of all lower ids are.
//! - An object says what was proven when it was sealed, never more: else a healthy log could be
//!   taken for one that lost an object (T2b).
//! - Another writer's object at one of our ids fences us: everything unproven is unknown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::error::{Error, Result};
use cairn_common::faults::planted;
use cairn_common::format::wal::WalStamp;
use cairn_common::store::wal::{Appended, Wal};
use cairn_common::types::{DatabaseId, Epoch, Seq, WalId};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::front::{End, Outcome};
use crate::service::Writer;

/// How groups become WAL objects.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    /// At least this long between two PUTs, unless a group is full.
    pub interval: Duration,
    /// Most WAL objects that are sent and not proven.
    pub window: u64,
    /// A group of this many bytes is sent without waiting for the interval.
    pub wal_bytes_max: usize,
}

/// Whose objects these are.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The database.
    pub database: DatabaseId,
    /// The epoch of this writer.
    pub epoch: Epoch,
    /// This writer.
    pub writer: Uuid,
}

impl Identity {
    /// What an object of ours at `position` says of itself, when everything before `unproven` is
    /// proven.
    pub fn stamp(&self, position: Position, unproven: WalId) -> WalStamp {
        let Self { database, epoch, writer } = *self;
        let Position { id, seq: prev_seq } = position;
        WalStamp { database, id, epoch, writer, prev_seq, proven: WalId(unproven.0 - 1) }
    }
}

/// Where the log goes on.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The next id.
    pub id: WalId,
    /// The highest seq before it on the chain.
    pub seq: Seq,
}

/// The task that owns the end of the log.
#[derive(Debug)]
pub struct Committer {
    writer: Arc<Writer>,
    wal: Wal,
    pacing: Pacing,
    identity: Identity,
    next: Position,
    /// Sent and not yet proven, lowest id first.
    window: VecDeque<Sent>,
    /// Boot time of the last PUT.
    sent_at: Option<Duration>,
}

#[derive(Debug)]
struct Sent {
    id: WalId,
    last_seq: Seq,
    landed: bool,
    outcome: watch::Sender<Outcome>,
}

impl Committer {
    /// A committer that continues at `next`.
    pub fn new(
        writer: Arc<Writer>,
        wal: Wal,
        pacing: Pacing,
        identity: Identity,
        next: Position,
    ) -> Self {
        assert!(pacing.window >= 1, "a window of at least one");
        Self { writer, wal, pacing, identity, next, window: VecDeque::new(), sent_at: None }
    }

    /// Commits groups until `drain` is cancelled and everything taken before is proven.
    ///
    /// # Errors
    /// `Fenced`; `Corrupt` where something else stands at one of our ids. On an error the open
    /// group is `NotApplied` and what was sent is `Unknown`.
    pub async fn run(mut self, drain: CancellationToken) -> Result<()> {
        let outcome = self.turn(&drain).await;
        self.writer.front.end(outcome.as_ref().err().map_or(End::Closed, End::of));
        for sent in &self.window {
            sent.outcome.send_replace(Outcome::Unknown);
        }
        outcome
    }

    async fn turn(&mut self, drain: &CancellationToken) -> Result<()> {
        let mut puts = FuturesUnordered::new();
        loop {
            let now = self.writer.env.clock.boot();
            let freeze_at = self.writer.front.freeze_if_due();
            // The last group is not paced: a writer that stops has promised what is in it.
            let is_last = drain.is_cancelled();
            let interval = if is_last { Duration::ZERO } else { self.pacing.interval };
            let due = self.due_in(now, interval);
            if due == Some(Duration::ZERO) {
                if let Some((id, bytes)) = self.seal(now) {
                    let wal = self.wal.clone();
                    puts.push(async move { (id, wal.append(id, &bytes).await) });
                }
                continue;
            }
            let pending = self.writer.front.open_group_bytes().is_some();
            if drain.is_cancelled() && puts.is_empty() && !pending {
                return Ok(());
            }
            let freeze_in = freeze_at.map(|at| at.saturating_sub(now));
            let wake_in = due.into_iter().chain(freeze_in).min();
            tokio::select! {
                biased;
                Some((id, appended)) = puts.next(), if !puts.is_empty() => {
                    self.land(id, appended?)?;
                }
                () = sleep_or_never(wake_in) => {}
                () = self.writer.front.work() => {}
                () = drain.cancelled(), if !drain.is_cancelled() => {}
            }
        }
    }

    /// How long until the open group may be sent, at this pace; `None` while it is empty or no slot
    /// is free.
    fn due_in(&self, now: Duration, interval: Duration) -> Option<Duration> {
        let bytes = self.writer.front.open_group_bytes()?;
        if self.next.id >= self.lowest_unproven().plus(self.pacing.window) {
            return None;
        }
        if bytes >= self.pacing.wal_bytes_max {
            return Some(Duration::ZERO);
        }
        let since = self.sent_at.map(|sent_at| now.saturating_sub(sent_at));
        Some(since.map_or(Duration::ZERO, |since| interval.saturating_sub(since)))
    }

    /// The lowest of our ids that is not proven yet.
    fn lowest_unproven(&self) -> WalId {
        self.window.front().map_or(self.next.id, |sent| sent.id)
    }

    fn seal(&mut self, now: Duration) -> Option<(WalId, Bytes)> {
        let id = self.next.id;
        let sealed = self.writer.front.seal(id)?;
        let unproven = self.lowest_unproven();
        let bytes = sealed.builder.finish(&self.identity.stamp(self.next, unproven));
        let (last_seq, outcome) = (sealed.last_seq, sealed.outcome);
        if planted("visible_before_durable") {
            outcome.send_replace(Outcome::Durable);
        }
        self.writer.counters.sent(bytes.len());
        self.window.push_back(Sent { id, last_seq, landed: false, outcome });
        self.next = Position { id: id.next(), seq: last_seq };
        self.sent_at = Some(now);
        Some((id, bytes))
    }

    /// Records what stands at `id`, and proves every group whose turn has come.
    fn land(&mut self, id: WalId, appended: Appended) -> Result<()> {
        if let Appended::Taken(object) = appended {
            let found = object.header.epoch;
            return Err(Error::Fenced { held: self.identity.epoch, found });
        }
        let sent = self.window.iter_mut().find(|sent| sent.id == id);
        let sent = sent.expect("an object that lands was sent");
        sent.landed = true;
        if planted("acknowledged_out_of_order") {
            sent.outcome.send_replace(Outcome::Durable);
        }
        while let Some(lowest) = self.window.pop_front_if(|sent| sent.landed) {
            self.writer.front.prove(lowest.last_seq);
            lowest.outcome.send_replace(Outcome::Durable);
            self.writer.counters.proven();
        }
        Ok(())
    }
}

async fn sleep_or_never(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
