//! The writer as its HTTP surface sees it: the phase of its life, and what it says of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cairn_common::error::Result;
use cairn_common::http::api::{Status, TreeStatus};
use cairn_common::http::problem::{Answer, Code, Outcome, Problem};
use cairn_common::http::reads::{Answerable, Level, ReadRequest, Views};
use cairn_common::http::request::{CAIRN_SEQ, Deadline};
use cairn_common::http::surface::Node;
use cairn_common::store::damage::Damaged;
use cairn_common::store::manifest::Snapshot;
use cairn_common::types::{Epoch, Seq};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use uuid::Uuid;

use crate::engine::Parts;
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
    Holding(Arc<Writer>, Holds),
    /// It serves.
    Serving(Arc<Writer>),
    /// It was told to stop.
    Leaving(Arc<Writer>),
    /// It has ended.
    Ended(End),
}

/// Until when a writer answers nothing, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Unix milliseconds.
    pub until_ms: u64,
    /// Whose lease is waited for.
    pub reason: String,
}

/// The words for all phases.
pub const PHASES: [&str; 6] = ["starting", "standby", "holding", "serving", "leaving", "ended"];

impl Phase {
    /// The word for it in `/v1/status`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Standby(_) => "standby",
            Self::Holding(..) => "holding",
            Self::Serving(_) => "serving",
            Self::Leaving(_) => "leaving",
            Self::Ended(_) => "ended",
        }
    }

    /// The writer, where the log is ours.
    pub fn writer(&self) -> Option<&Arc<Writer>> {
        match self {
            Self::Holding(writer, _) | Self::Serving(writer) | Self::Leaving(writer) => {
                Some(writer)
            }
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
    seen: watch::Receiver<Option<Snapshot>>,
    instance: Uuid,
    parts: Parts,
    handover: Handover,
}

/// What a standby learns from the status of a writer that leaves.
#[derive(Debug, Default)]
struct Handover {
    /// Somebody has asked since the writer began to leave.
    is_awaited: AtomicBool,
    /// Somebody was told how CURRENT says that it is closed.
    told: Notify,
}

/// How long a writer that has closed waits for a standby to ask once more. Three of its questions.
const TELL_GRACE: Duration = Duration::from_millis(60);

impl WriterNode {
    /// A node that follows this phase, and what was last `seen` of CURRENT. `instance` is what the
    /// process claims the role with.
    pub fn new(
        phase: watch::Receiver<Phase>,
        seen: watch::Receiver<Option<Snapshot>>,
        instance: Uuid,
        parts: Parts,
    ) -> Self {
        Self { phase, seen, instance, parts, handover: Handover::default() }
    }

    /// Returns when a standby knows that this writer has closed, if one asks; soon in any case.
    pub async fn standby_was_told(&self) {
        if self.handover.is_awaited.load(Ordering::Relaxed) {
            let told = timeout(TELL_GRACE, self.handover.told.notified()).await;
            tracing::debug!(in_time = told.is_ok(), "told the standby that this writer has closed");
        }
    }

    /// What a standby needs to take over from a writer that leaves, without a request to the store.
    fn hand_over(&self, writer: &Writer, status: &mut Status) {
        self.handover.is_awaited.store(true, Ordering::Relaxed);
        let Some(Snapshot { current, version, .. }) = writer.lease.closed_as() else { return };
        let text = String::from_utf8_lossy(&current.encode()).into_owned();
        status.more.insert("closed", json!({"current": text, "version": version}));
        self.handover.told.notify_one();
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
            phase.wait_for(|phase| !matches!(phase, Phase::Starting | Phase::Holding(..)));
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
            let what = format!(
                "the active writer is at {active}; --takeover now would take its place at once"
            );
            Problem::new(Code::Standby, what)
        }
        Phase::Ended(end) => ended(*end),
        Phase::Holding(_, Holds { until_ms, reason }) => {
            let what =
                format!("nothing is answered before Unix time {until_ms} ms, because {reason}");
            Problem::new(Code::NotYet, what)
        }
        Phase::Starting => Problem::new(Code::NotYet, "the writer is taking over the log"),
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
        End::Damaged => {
            let what = "the database is damaged and this writer has stopped; its log says what";
            Problem::new(Code::Corrupt, what)
        }
        End::Failed => Problem::new(Code::Internal, "the writer has failed; its log says why"),
    }
}

#[async_trait]
impl Node for WriterNode {
    fn readiness(&self) -> Answer<()> {
        match &*self.phase.borrow() {
            Phase::Serving(_) => Ok(()),
            phase => Err(refusal(phase)),
        }
    }

    fn damaged(&self) -> Vec<Damaged> {
        self.parts.bucket.damage().list()
    }

    async fn status(&self) -> Status {
        let phase = self.now();
        let mut status = Status::new("writer", &self.parts.bucket.metrics().snapshot());
        status.more.insert("phase", phase.name().into());
        status.more.insert("instance", self.instance.to_string().into());
        status.more.insert("root", self.parts.bucket.root_id().into());
        status.put_cache(&self.parts.cache.stats());
        if let Some(Snapshot { current, manifest, .. }) = &*self.seen.borrow() {
            status.more.insert("database", json!(current.database));
            status.epoch = Some(current.writer.epoch);
            status.seq = Some(manifest.flushed_seq);
            status.tree = Some(TreeStatus::of(manifest));
        }
        if let Some(writer) = phase.writer() {
            let view = writer.front.view();
            status.epoch = Some(writer.lease.epoch());
            status.seq = Some(view.seq);
            status.durable_seq = Some(writer.front.progress().borrow().durable);
            status.tree = Some(TreeStatus::of(&view.tree.manifest));
            status.memory.insert("memtables", writer.front.load().unflushed_bytes);
            status.memory.insert("metadata", view.tree.ssts.meta_bytes());
        }
        if let Phase::Holding(_, Holds { until_ms, reason }) = &phase {
            status.more.insert("hold_until_ms", json!(until_ms));
            status.more.insert("hold_reason", json!(reason));
        }
        if let Phase::Leaving(writer) = &phase {
            self.hand_over(writer, &mut status);
        }
        status
    }
}

#[async_trait]
impl Views for WriterNode {
    async fn view(&self, request: ReadRequest) -> Answer<Answerable> {
        let writer = match (self.serving(request.deadline).await, request.min_seq) {
            (Err(problem), Some(_)) if problem.code == Code::Timeout => {
                return Err(Problem::new(Code::NotYet, problem.detail));
            }
            (settled, _) => settled?,
        };
        // Whoever asks for a seq beyond the newest would wait for a write of somebody else's.
        if request.min_seq.is_some_and(|min_seq| min_seq > writer.front.newest_seq()) {
            return Err(not_yet(&writer, &request));
        }
        let view = async {
            if let Some(min_seq) = request.min_seq {
                let reached = match request.level {
                    Level::Durable => writer.durable(min_seq).await,
                    Level::Memory => writer.taken(min_seq).await,
                };
                reached.map_err(ended)?;
            }
            let view = match request.level {
                Level::Durable => writer.durable_view().await?,
                Level::Memory => writer.memory_view().await?,
            };
            Ok::<_, Problem>(view)
        };
        let view = match request.deadline.limit("the view was awaited", view).await {
            Ok(view) => view?,
            Err(_) if request.min_seq.is_some() => return Err(not_yet(&writer, &request)),
            Err(problem) => return Err(problem),
        };
        if request.min_seq.is_some_and(|min_seq| view.seq < min_seq) {
            return Err(not_yet(&writer, &request));
        }
        Ok(Answerable { view, lag_ms: None, now_ms: writer.env.clock.wall_ms() })
    }

    async fn reload(&self) -> Result<()> {
        match self.now().writer() {
            Some(writer) => writer.reload().await,
            None => Ok(()),
        }
    }
}

fn not_yet(writer: &Writer, request: &ReadRequest) -> Problem {
    let (level, reached) = match request.level {
        Level::Durable => ("durable", writer.front.view().seq),
        Level::Memory => ("given", writer.front.newest_seq()),
    };
    let wanted = request.min_seq.unwrap_or(Seq::ZERO);
    Problem::new(Code::NotYet, format!("the newest seq {level} is {reached}, not {wanted} yet"))
        .header(CAIRN_SEQ, reached)
}
