//! The compactor as its HTTP surface sees it.

use std::sync::Arc;

use async_trait::async_trait;
use cairn_common::env::Random;
use cairn_common::http::api::{Status, TreeStatus};
use cairn_common::http::problem::{Answer, Code, Problem};
use cairn_common::http::surface::Node;
use cairn_common::store::damage::Damaged;
use cairn_common::store::manifest::Snapshot;
use cairn_common::store::object::Bucket;
use cairn_common::types::Epoch;
use serde_json::json;
use tokio::sync::watch;

use crate::board::Board;

/// Where a compactor is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It reaches for the store.
    Starting,
    /// Another compactor is active.
    Standby,
    /// There is no database yet.
    Waiting,
    /// It works; under an epoch, unless it only collects.
    Working(Option<Epoch>),
    /// It was told to stop, or has to.
    Stopping,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Working(_) => "working",
            Self::Stopping => "stopping",
        }
    }
}

/// The compactor as its HTTP surface sees it.
#[derive(Debug)]
pub struct CompactorNode {
    /// Where it is in its life.
    pub phase: watch::Receiver<Phase>,
    /// The last CURRENT and manifest that were seen.
    pub seen: watch::Receiver<Option<Snapshot>>,
    /// Its jobs.
    pub board: Arc<Board>,
    /// Where the database is.
    pub bucket: Bucket,
    /// Names of jobs that are asked for.
    pub random: Arc<dyn Random>,
}

#[async_trait]
impl Node for CompactorNode {
    fn readiness(&self) -> Answer<()> {
        let problem = match *self.phase.borrow() {
            Phase::Working(_) => return Ok(()),
            Phase::Starting => Problem::new(Code::NotYet, "the store has not answered yet"),
            Phase::Standby => {
                Problem::new(Code::Standby, "another compactor is active; this one waits")
            }
            Phase::Waiting => Problem::new(Code::NotYet, "there is no database here yet"),
            Phase::Stopping => Problem::new(Code::Standby, "this compactor is stopping"),
        };
        Err(problem)
    }

    fn damaged(&self) -> Vec<Damaged> {
        self.bucket.damage().list()
    }

    async fn status(&self) -> Status {
        let phase = *self.phase.borrow();
        let mut status = Status::new("compactor", &self.bucket.metrics().snapshot());
        if let Some(snapshot) = &*self.seen.borrow() {
            status.epoch = Some(snapshot.current.compactor.epoch);
            status.seq = Some(snapshot.manifest.flushed_seq);
            status.tree = Some(TreeStatus::of(&snapshot.manifest));
            let retired = snapshot.manifest.retired.len();
            status.more.insert("retired", json!(retired));
        }
        if let Phase::Working(Some(epoch)) = phase {
            status.epoch = Some(epoch);
            let claim = self.seen.borrow().as_ref().map(|seen| seen.current.compactor.clone());
            if let Some(claim) = claim.filter(|claim| claim.epoch == epoch) {
                // By this a second compactor knows whether it is this one that holds the role.
                status.more.insert("instance", json!(claim.uuid));
            }
        }
        status.more.insert("state", json!(phase.name()));
        status.more.insert("compactions", json!(self.board.jobs()));
        status
    }
}
