//! The writer as its HTTP surface sees it: the phase of its life, and what it says of itself.

use std::sync::Arc;

use cairn_common::build;
use cairn_common::http::api::Status;
use cairn_common::http::problem::{Answer, Code, Outcome, Problem};
use cairn_common::http::request::Deadline;
use cairn_common::http::surface::Node;
use cairn_common::types::Epoch;
use tokio::sync::watch;

use crate::front::End;
use crate::service::Writer;

/// Where a writer is in its life.
#[derive(Clone, Debug)]
pub enum Phase {
    /// It reaches for the store, or replays the log.
    Starting,
    /// Another writer, at this address, is active.
    Standby(String),
    /// It owns the log, and waits until the old writer's read lease has run out.
    Holding(Arc<Writer>),
    /// It serves.
    Serving(Arc<Writer>),
    /// It was told to stop.
    Leaving(Arc<Writer>),
    /// It has ended.
    Ended(End),
}

impl Phase {
    /// The word for it in `/v1/status`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Standby(_) => "standby",
            Self::Holding(_) => "holding",
            Self::Serving(_) => "serving",
            Self::Leaving(_) => "leaving",
            Self::Ended(_) => "ended",
        }
    }

    /// The writer, where the log is ours.
    pub fn writer(&self) -> Option<&Arc<Writer>> {
        match self {
            Self::Holding(writer) | Self::Serving(writer) | Self::Leaving(writer) => Some(writer),
            Self::Starting | Self::Standby(_) | Self::Ended(_) => None,
        }
    }

    /// The epoch, where the log is ours.
    pub fn epoch(&self) -> Option<Epoch> {
        self.writer().map(|writer| writer.lease.epoch())
    }
}

/// The writer as its HTTP surface sees it.
#[derive(Debug)]
pub struct WriterNode {
    phase: watch::Receiver<Phase>,
}

impl WriterNode {
    /// A node that follows this phase.
    pub fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase }
    }

    /// The writer once it may answer: waits out a start and a hold, within the deadline.
    ///
    /// # Errors
    /// `standby`, `fenced`, `timeout`; nothing was applied.
    pub async fn serving(&self, deadline: Deadline) -> Answer<Arc<Writer>> {
        if let Phase::Serving(writer) | Phase::Leaving(writer) = &*self.phase.borrow() {
            return Ok(Arc::clone(writer));
        }
        let mut phase = self.phase.clone();
        let settled =
            phase.wait_for(|phase| !matches!(phase, Phase::Starting | Phase::Holding(_)));
        let settled = deadline.limit("the writer was taking over the log", settled).await;
        let settled = settled.map_err(|problem| problem.outcome(Outcome::NotApplied))?;
        match settled.as_deref() {
            Ok(Phase::Serving(writer) | Phase::Leaving(writer)) => Ok(Arc::clone(writer)),
            Ok(phase) => Err(refusal(phase)),
            Err(_) => Err(refusal(&Phase::Ended(End::Closed))),
        }
    }

    fn now(&self) -> Phase {
        self.phase.borrow().clone()
    }
}

/// Why a writer in this phase takes no requests.
fn refusal(phase: &Phase) -> Problem {
    let problem = match phase {
        Phase::Standby(active) => {
            Problem::new(Code::Standby, format!("the active writer is at {active}"))
        }
        Phase::Ended(end) => ended(*end),
        Phase::Starting | Phase::Holding(_) => {
            Problem::new(Code::NotYet, "the writer is taking over the log")
        }
        Phase::Serving(_) | Phase::Leaving(_) => {
            Problem::new(Code::Standby, "this writer is stopping: ask the next one")
        }
    };
    problem.outcome(Outcome::NotApplied)
}

/// What a writer that has ended answers.
pub fn ended(end: End) -> Problem {
    match end {
        End::Closed => Problem::new(Code::Standby, "this writer is stopping: ask the next one"),
        End::Fenced(found) => {
            let what = format!("another writer holds the log under epoch {found}: ask it");
            Problem::new(Code::Fenced, what)
        }
        End::Failed => Problem::new(Code::Internal, "the writer has failed; its log says why"),
    }
}

#[async_trait::async_trait]
impl Node for WriterNode {
    fn readiness(&self) -> Answer<()> {
        match &*self.phase.borrow() {
            Phase::Serving(_) => Ok(()),
            phase => Err(refusal(phase)),
        }
    }

    async fn status(&self) -> Status {
        let phase = self.now();
        let mut status = Status::new("writer", build::VERSION);
        status.phase = Some(phase.name());
        if let Some(writer) = phase.writer() {
            let progress = *writer.front.progress().borrow();
            status.epoch = Some(writer.lease.epoch());
            status.seq = Some(writer.front.view().seq);
            status.durable_seq = Some(progress.durable);
        }
        status
    }
}
