//! The board: which jobs wait, run and have ended, for whoever asks; and where a full one is asked
//! for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::job::Progress;
use crate::pick::Reason;

/// Ended jobs that are remembered: a day of a busy compactor fits a screen or two.
const ENDED_MAX: usize = 100;

/// The jobs of this process.
#[derive(Debug, Default)]
pub struct Board {
    lines: Mutex<VecDeque<Line>>,
    wake: Notify,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It was asked for and has not begun.
    Waiting,
    /// It runs.
    Running,
    /// It is in the tree, or there was nothing to do.
    Done,
    /// It ended without effect.
    Failed,
}

#[derive(Debug)]
struct Line {
    id: Uuid,
    kind: &'static str,
    stage: Stage,
    inputs: usize,
    progress: Arc<Progress>,
    began_ms: Option<u64>,
    ended_ms: Option<u64>,
    error: Option<String>,
}

/// A job as `GET /v1/compactions` tells it.
#[derive(Clone, Debug, Serialize)]
pub struct JobStatus {
    /// Its name.
    pub id: Uuid,
    /// Why it runs.
    pub kind: &'static str,
    /// Where it is in its life.
    pub state: Stage,
    /// L0 SSTs and runs that it merges.
    pub inputs: usize,
    /// Stored bytes of the inputs that were merged.
    pub bytes_done: u64,
    /// Stored bytes of the inputs that have to be merged; what moves as it is does not count.
    pub bytes_to_do: u64,
    /// Bytes of new SSTs.
    pub bytes_written: u64,
    /// Unix milliseconds.
    pub began_ms: Option<u64>,
    /// Unix milliseconds.
    pub ended_ms: Option<u64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Board {
    /// Asks for everything in one run; the name of the job that will do it, which is `id` unless
    /// one waits already.
    pub fn request_full(&self, id: Uuid) -> Uuid {
        let mut lines = self.lines();
        if let Some(waiting) = lines.iter().find(|line| line.stage == Stage::Waiting) {
            return waiting.id;
        }
        lines.push_back(Line {
            id,
            kind: Reason::Full.name(),
            stage: Stage::Waiting,
            inputs: 0,
            progress: Arc::default(),
            began_ms: None,
            ended_ms: None,
            error: None,
        });
        self.wake.notify_one();
        id
    }

    /// The full job that waits, if one does.
    pub fn waiting(&self) -> Option<Uuid> {
        let lines = self.lines();
        lines.iter().find(|line| line.stage == Stage::Waiting).map(|line| line.id)
    }

    /// Returns once a full job was asked for since it returned last.
    pub async fn asked(&self) {
        self.wake.notified().await;
    }

    /// A job begins: the one that waited under this name, or a new one.
    pub fn begin(&self, id: Uuid, reason: Reason, inputs: usize, now_ms: u64) -> Arc<Progress> {
        let mut lines = self.lines();
        let progress = Arc::new(Progress::default());
        lines.retain(|line| line.id != id);
        lines.push_back(Line {
            id,
            kind: reason.name(),
            stage: Stage::Running,
            inputs,
            progress: Arc::clone(&progress),
            began_ms: Some(now_ms),
            ended_ms: None,
            error: None,
        });
        progress
    }

    /// A job has ended, without effect if there is an error.
    pub fn end(&self, id: Uuid, now_ms: u64, error: Option<String>) {
        let mut lines = self.lines();
        if let Some(line) = lines.iter_mut().find(|line| line.id == id) {
            line.stage = if error.is_some() { Stage::Failed } else { Stage::Done };
            line.ended_ms = Some(now_ms);
            line.error = error;
        }
        let is_over = |line: &Line| matches!(line.stage, Stage::Done | Stage::Failed);
        if lines.iter().filter(|line| is_over(line)).count() > ENDED_MAX
            && let Some(oldest) = lines.iter().position(is_over)
        {
            lines.remove(oldest);
        }
    }

    /// Every job, oldest first.
    pub fn jobs(&self) -> Vec<JobStatus> {
        let status = |line: &Line| JobStatus {
            id: line.id,
            kind: line.kind,
            state: line.stage,
            inputs: line.inputs,
            bytes_done: line.progress.bytes_done(),
            bytes_to_do: line.progress.bytes_to_do(),
            bytes_written: line.progress.bytes_written(),
            began_ms: line.began_ms,
            ended_ms: line.ended_ms,
            error: line.error.clone(),
        };
        self.lines().iter().map(status).collect()
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_job_is_asked_for_once_and_goes_through_its_life() {
        let (board, first, second) = (Board::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(board.request_full(first), first);
        assert_eq!(board.request_full(second), first, "one waits already");
        assert_eq!(board.waiting(), Some(first));
        board.begin(first, Reason::Full, 3, 10);
        assert_eq!(board.waiting(), None);
        assert_eq!(board.request_full(second), second, "what runs may have begun too early");
        board.end(first, 20, Some("no".into()));
        let jobs = board.jobs();
        assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [first, second]);
        assert_eq!((jobs[0].state, jobs[0].inputs), (Stage::Failed, 3));
        assert_eq!((jobs[0].began_ms, jobs[0].ended_ms), (Some(10), Some(20)));
    }

    #[test]
    fn old_jobs_are_forgotten() {
        let board = Board::default();
        for id in 0..150 {
            board.begin(Uuid::from_u128(id), Reason::L0, 4, 0);
            board.end(Uuid::from_u128(id), 0, None);
        }
        assert_eq!(board.jobs().len(), ENDED_MAX);
        assert_eq!(board.jobs()[0].id, Uuid::from_u128(50));
    }
}
