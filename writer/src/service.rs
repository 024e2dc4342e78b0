//! What the writer does for a request: taking a write and waiting for its fate, and handing out
//! views that may be answered from.
//!
//! **Life of a write**: wait while the debt is high; read the condition's key outside the critical
//! section; submit, which judges the debt again; wait for the group. A failed condition tells the
//! client something too: it is answered once the seq at which it was decided is durable, and under
//! the read lease.
//!
//! **Invariants**
//! - A durable acknowledgement needs no clock: the log itself proves it (PROTOCOL W3).
//! - Whatever is answered from memory needs the read lease (PROTOCOL W6): reads, failed conditions,
//!   acknowledgements of `durable=false`, a flush that found nothing to do. So what a fenced writer
//!   promises ends with its lease.

use std::sync::Arc;

use cairn_common::env::Env;
use cairn_common::error::Error;
use cairn_common::faults::planted;
use cairn_common::read::restart::Restart;
use cairn_common::read::view::View;
use cairn_common::types::{Op, Seq};
use tokio::time::Instant;

use crate::condition::Condition;
use crate::config::FrontLimits;
use crate::front::{End, Front, Known, Outcome, Progress, Refusal, Ticket};
use crate::lease::{self, Lease};
use crate::metrics::Counters;
use crate::pressure::{Pressure, pressure};

/// Times that a condition is read again because a memtable left meanwhile. Each time a flush came
/// between two reads of one key.
const CONDITION_READS_MAX: u32 = 8;

/// The serving writer.
#[derive(Debug)]
pub struct Writer {
    /// The front.
    pub front: Arc<Front>,
    /// The read lease.
    pub lease: Arc<Lease>,
    /// The environment.
    pub env: Env,
    /// The bounds of back-pressure.
    pub limits: FrontLimits,
    /// What is counted.
    pub counters: Counters,
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once its bytes are in the bucket.
    Durable,
    /// Once it is in memory; a crash may lose it.
    Memory,
}

/// One batch, and how it is wanted.
#[derive(Debug)]
pub struct Write {
    /// Operations on distinct keys, within the limits.
    pub ops: Vec<Op>,
    /// What must hold for it to be applied.
    pub condition: Option<Condition>,
    /// When it is answered.
    pub durability: Durability,
    /// When waiting ends.
    pub deadline: Instant,
}

/// Why a write was not acknowledged.
#[derive(Debug)]
pub enum Unwritten {
    /// Not applied: the writer is at one of its bounds.
    Overloaded(Pressure),
    /// Not applied: the condition does not hold; the etag that the key has.
    Precondition(Option<Seq>),
    /// Not applied: the deadline passed before the batch was taken.
    Late,
    /// Not applied: the writer has ended.
    Ended(End),
    /// Not applied: the condition could not be read.
    Failed(Error),
    /// It may be applied, once and whole, or never.
    Unknown,
}

impl Writer {
    /// Takes a batch and returns its seq when it is as durable as was asked.
    ///
    /// Cancel-safe: a batch that was taken commits all the same.
    ///
    /// # Errors
    /// What is certain of the batch, and why: [`Unwritten`].
    pub async fn write(&self, write: Write) -> Result<Seq, Unwritten> {
        let (began, durability) = (self.env.clock.boot(), write.durability);
        let written = self.settle(write).await;
        match &written {
            Ok(_) if durability == Durability::Durable => {
                self.counters.durable(self.env.clock.boot().saturating_sub(began));
            }
            Err(Unwritten::Overloaded(pressure)) => self.counters.refused(pressure.bound()),
            Err(Unwritten::Late) => self.counters.refused(None),
            Ok(_) | Err(_) => {}
        }
        written
    }

    async fn settle(&self, mut write: Write) -> Result<Seq, Unwritten> {
        let (deadline, durability) = (write.deadline, write.durability);
        let taken = async {
            if durability == Durability::Memory {
                // Before it is taken, so that a writer without a lease has not applied it.
                self.may_promise().await.map_err(Unwritten::Failed)?;
            }
            self.take(&mut write).await
        };
        let ticket = match tokio::time::timeout_at(deadline, taken).await {
            Ok(ticket) => ticket?,
            Err(_) => return Err(Unwritten::Late),
        };
        let seq = ticket.seq();
        let answered = async {
            match durability {
                Durability::Durable => ticket.outcome().await,
                Durability::Memory => self.promised(ticket).await,
            }
        };
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Outcome::Durable) => Ok(seq),
            Ok(Outcome::NotApplied) => Err(Unwritten::Ended(self.end())),
            Ok(Outcome::Unknown | Outcome::Pending) | Err(_) => Err(Unwritten::Unknown),
        }
    }

    /// W6: whether something may be answered from memory; asks CURRENT if the lease has run out.
    async fn may_promise(&self) -> Result<(), Error> {
        if planted("memory_ack_without_lease") {
            return Ok(());
        }
        self.lease.ensure().await
    }

    /// Waits until a batch that was taken may be acknowledged from memory, or its fate is known:
    /// the lease may have run out while it waited for room.
    async fn promised(&self, ticket: Ticket) -> Outcome {
        tokio::select! {
            biased;
            Ok(()) = self.may_promise() => Outcome::Durable,
            outcome = ticket.outcome() => outcome,
        }
    }

    async fn take(&self, write: &mut Write) -> Result<Ticket, Unwritten> {
        match pressure(&self.front.load(), &self.limits) {
            Pressure::None => {}
            Pressure::Delay { pause, bound } => {
                self.counters.delayed(bound);
                tokio::time::sleep(pause).await;
            }
            refusal @ (Pressure::Unflushed | Pressure::L0Full) => {
                return Err(Unwritten::Overloaded(refusal));
            }
        }
        let mut reads = 0;
        loop {
            let known = match &write.condition {
                Some(condition) => Some(self.read(condition).await.map_err(Unwritten::Failed)?),
                None => None,
            };
            let room = self.front.room();
            match self.front.submit(&mut write.ops, known.as_ref()) {
                Ok(ticket) => return Ok(ticket),
                Err(Refusal::Full) => room.await,
                Err(Refusal::Overloaded(pressure)) => return Err(Unwritten::Overloaded(pressure)),
                Err(Refusal::Reread) if reads < CONDITION_READS_MAX => reads += 1,
                Err(Refusal::Reread) => return Err(Unwritten::Overloaded(Pressure::Unflushed)),
                Err(Refusal::Failed { etag, decided_at }) => {
                    return Err(self.failed_condition(etag, decided_at).await);
                }
                Err(Refusal::Ended(end)) => return Err(Unwritten::Ended(end)),
            }
        }
    }

    /// W5: a failed condition is answered only once what decided it is durable.
    async fn failed_condition(&self, etag: Option<Seq>, decided_at: Seq) -> Unwritten {
        if !planted("condition_answered_before_durable") {
            let progress = self.wait_for(|progress| progress.durable >= decided_at).await;
            if progress.durable < decided_at {
                return Unwritten::Ended(progress.end.unwrap_or(End::Failed));
            }
        }
        match self.lease.ensure().await {
            Ok(()) => Unwritten::Precondition(etag),
            Err(error) => Unwritten::Failed(error),
        }
    }

    async fn read<'a>(&self, condition: &'a Condition) -> Result<Known<'a>, Error> {
        let now_ms = self.env.clock.wall_ms();
        let mut restart = Restart::default();
        loop {
            let view = self.front.memory_view();
            match view.get(&condition.key, now_ms).await {
                Ok(found) => {
                    let etag = found.map(|found| found.seq);
                    return Ok(Known { condition, etag, seq: view.seq, now_ms });
                }
                Err(error) => restart.judge(&view, error)?,
            }
            self.reload().await?;
        }
    }

    /// Reads CURRENT; from then on views show the tree that it named, or a newer one. One
    /// conditional GET.
    ///
    /// # Errors
    /// `Fenced`, `Unavailable`, `Indeterminate`, `Corrupt`.
    pub async fn reload(&self) -> Result<(), Error> {
        let ssts = Arc::clone(&self.front.tree().ssts);
        lease::follow_tree(&self.lease, &self.front, &ssts).await
    }

    /// A view of everything that was acknowledged before the call, and of nothing that is not
    /// durable.
    ///
    /// # Errors
    /// `Fenced`, `Closed`; passing ones where the lease cannot be renewed.
    pub async fn durable_view(&self) -> Result<Arc<View>, Error> {
        self.lease.ensure().await?;
        Ok(self.front.view())
    }

    /// A view that also has what is only in memory.
    ///
    /// # Errors
    /// As for [`Writer::durable_view`].
    pub async fn memory_view(&self) -> Result<Arc<View>, Error> {
        self.lease.ensure().await?;
        Ok(Arc::new(self.front.memory_view()))
    }

    /// Waits until everything up to `seq` is proven.
    ///
    /// # Errors
    /// Why the front has ended before.
    pub async fn durable(&self, seq: Seq) -> Result<(), End> {
        let reached = self.wait_for(|now| now.durable >= seq).await;
        match reached.end {
            Some(end) if reached.durable < seq => Err(end),
            _ => Ok(()),
        }
    }

    /// Waits until everything up to `seq` was taken.
    ///
    /// # Errors
    /// Why the front has ended before.
    pub async fn taken(&self, seq: Seq) -> Result<(), End> {
        loop {
            let more = self.front.taken();
            let end = self.front.progress().borrow().end;
            match end {
                _ if self.front.newest_seq() >= seq => return Ok(()),
                Some(end) => return Err(end),
                None => more.await,
            }
        }
    }

    /// Moves everything that was taken so far into L0; returns the seq up to which it is there.
    ///
    /// # Errors
    /// `Ended`: why the front has ended. `Failed`: the read lease could not be renewed, so another
    /// writer may hold more than this one knows of.
    pub async fn flush(&self) -> Result<Seq, Unwritten> {
        let target = self.front.request_flush();
        let progress = self.wait_for(|progress| progress.flushed >= target).await;
        if progress.flushed < target {
            return Err(Unwritten::Ended(progress.end.unwrap_or(End::Failed)));
        }
        self.may_promise().await.map_err(Unwritten::Failed)?;
        Ok(progress.flushed)
    }

    /// Waits until `reached`, or until the front has ended.
    pub async fn wait_for(&self, reached: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.front.progress();
        match progress.wait_for(|now| reached(now) || now.end.is_some()).await {
            Ok(now) => *now,
            Err(_) => Progress { end: Some(End::Failed), ..Progress::default() },
        }
    }

    fn end(&self) -> End {
        self.front.progress().borrow().end.unwrap_or(End::Failed)
    }
}
