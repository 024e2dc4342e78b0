//! Running a job: fetch, merge, upload; everything but the commit.
//!
//! ```text
//! fetchers (a task per source) -> Merger (on Env::cpu, pause by pause) -> uploads (a task per SST)
//! ```
//!
//! **Invariants**
//! - Inputs are only read. Killed anywhere, a job leaves objects that nothing refers to.
//! - Memory is bounded: per source one and a half times its read-ahead, per upload what
//!   [`Bucket::upload`] holds, of which there are [`UPLOADS_MAX`]; plus one SST's filter and index.
//! - Every task is in a `JoinSet` that the job owns; dropped, it takes them along.

pub mod input;
pub mod merger;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::format::manifest::SstInfo;
use cairn_common::format::path::{Object, OutputId};
use cairn_common::lsm::visible::Rules;
use cairn_common::store::object::Bucket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::input::{Fetcher, Stretch};
use self::merger::{Made, Making, Merger, Pause};
use crate::plan::{Piece, Plan};

/// SSTs of one job that are uploaded at a time: one that is being made, one that is ending.
const UPLOADS_MAX: usize = 2;
/// Pieces of [`merger::OUTPUT_BYTES`] that wait for an upload.
const PIECES_MAX: usize = 4;

/// How far a job is.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    to_do: AtomicU64,
    written: AtomicU64,
}

impl Progress {
    /// Stored bytes of the inputs that were merged.
    pub fn bytes_done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stored bytes of the inputs that have to be merged; 0 until it is planned.
    pub fn bytes_to_do(&self) -> u64 {
        self.to_do.load(Ordering::Relaxed)
    }

    /// Bytes of new SSTs.
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// What a job works with.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Where the database is.
    pub bucket: Bucket,
    /// Clock, randomness, threads.
    pub env: Env,
    /// What new SSTs are like.
    pub making: Making,
    /// Bytes that are read ahead of the merge in each source.
    pub read_ahead_bytes: u64,
    /// Ends the job early.
    pub cancel: CancellationToken,
}

/// What a job has made so far. Whoever holds it deletes what will never be committed.
#[derive(Debug, Default)]
pub struct Work {
    /// The SSTs of the output, ascending: moved and new ones.
    pub ssts: Vec<SstInfo>,
    /// The names of new SSTs, also of those that are not finished.
    pub begun: Vec<OutputId>,
}

/// Makes what the plan says and leaves it in `work`, also where it fails halfway.
///
/// Not cancel-safe: what it had begun when it was dropped stays in the bucket.
///
/// # Errors
/// `Closed`: it was cancelled. `Corrupt`, `NotFound`, `Unavailable`, `Indeterminate`: an input
/// could not be read, or an output not be written.
pub async fn run(tools: &Tools, plan: Plan, progress: &Progress, work: &mut Work) -> Result<()> {
    progress.to_do.store(plan.bytes(), Ordering::Relaxed);
    for piece in plan.pieces {
        match piece {
            Piece::Move(sst) => work.ssts.push(*sst),
            Piece::Merge(sources) => {
                let mut uploads = Uploads::new(tools.bucket.clone());
                let merging = merge(tools, (sources, plan.rules), progress, (&mut uploads, work));
                let merged = tokio::select! {
                    biased;
                    () = tools.cancel.cancelled() => Err(merger::cancelled()),
                    merged = merging => merged,
                };
                match merged {
                    Ok(()) => uploads.finish().await?,
                    Err(error) => return Err(uploads.abort(error).await),
                }
            }
        }
    }
    Ok(())
}

async fn merge(
    tools: &Tools,
    (sources, rules): (Vec<Vec<SstInfo>>, Rules),
    progress: &Progress,
    (uploads, work): (&mut Uploads, &mut Work),
) -> Result<()> {
    let count = sources.len();
    let mut fetchers = JoinSet::new();
    let mut inputs: Vec<mpsc::Receiver<Result<Stretch>>> = Vec::with_capacity(count);
    for ssts in sources {
        let (sender, receiver) = mpsc::channel(1);
        let fetcher = Fetcher {
            bucket: tools.bucket.clone(),
            database: tools.making.database,
            // One stretch waits in the channel, one is on its way.
            stretch_bytes: tools.read_ahead_bytes / 2,
        };
        fetchers.spawn(fetcher.fetch(ssts, sender));
        inputs.push(receiver);
    }
    let mut merger = Merger::new(count, rules, tools.making.clone());
    let mut fed: Option<(usize, Option<Stretch>)> = None;
    let (done_before, mut read_before) = (progress.bytes_done(), 0);
    loop {
        let turn = move || {
            if let Some((source, stretch)) = fed {
                merger.feed(source, stretch);
            }
            let pause = merger.run();
            (merger, pause)
        };
        let (returned, pause) = tools.env.cpu.run(turn).await;
        merger = returned;
        fed = None;
        let pause = pause?;
        read_before = merger.bytes_read(count).max(read_before);
        progress.done.store(done_before + read_before, Ordering::Relaxed);
        for made in merger.take_made() {
            uploads.take(made, progress, work).await?;
        }
        match pause {
            Pause::Output => {}
            Pause::Input(source) => {
                let stretch = inputs[source].recv().await.transpose()?;
                fed = Some((source, stretch));
            }
            Pause::End => return Ok(()),
        }
    }
}

/// What is sent to the task that uploads an SST.
enum Part {
    Bytes(Bytes),
    /// The last bytes: without them the upload is given up.
    Last(Bytes),
}

/// The uploads of a job, each in a task of its own.
struct Uploads {
    bucket: Bucket,
    tasks: JoinSet<Result<()>>,
    open: Option<mpsc::Sender<Part>>,
}

impl Uploads {
    fn new(bucket: Bucket) -> Self {
        Self { bucket, tasks: JoinSet::new(), open: None }
    }

    async fn take(&mut self, made: Made, progress: &Progress, work: &mut Work) -> Result<()> {
        let (id, part, info) = match made {
            Made::Bytes(id, bytes) => (id, Part::Bytes(bytes), None),
            Made::Sst(rest, info) => (info.id, Part::Last(rest), Some(*info)),
        };
        if self.open.is_none() {
            work.begun.push(id);
            self.begin(id).await?;
        }
        let (Part::Bytes(bytes) | Part::Last(bytes)) = &part;
        let written = u64::try_from(bytes.len()).unwrap_or(0);
        progress.written.fetch_add(written, Ordering::Relaxed);
        let sent = match &self.open {
            Some(sender) => sender.send(part).await.is_ok(),
            None => false,
        };
        if !sent {
            // The task has ended without its last part, so it has failed.
            return Err(self.first_error().await);
        }
        if let Some(info) = info {
            self.open = None;
            work.ssts.push(info);
        }
        Ok(())
    }

    async fn begin(&mut self, id: OutputId) -> Result<()> {
        while self.tasks.len() >= UPLOADS_MAX {
            self.join_one().await?;
        }
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        self.tasks.spawn(upload(self.bucket.clone(), id, receiver));
        self.open = Some(sender);
        Ok(())
    }

    async fn join_one(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) => Err(merger::cancelled()),
            None => Ok(()),
        }
    }

    async fn first_error(&mut self) -> Error {
        while !self.tasks.is_empty() {
            if let Err(error) = self.join_one().await {
                return error;
            }
        }
        merger::cancelled()
    }

    /// Waits until every SST is in the bucket.
    async fn finish(mut self) -> Result<()> {
        assert!(self.open.is_none(), "the last SST was not ended");
        while !self.tasks.is_empty() {
            self.join_one().await?;
        }
        Ok(())
    }

    /// Gives up what is not finished, and waits until nothing is on its way any more.
    async fn abort(mut self, error: Error) -> Error {
        self.open = None;
        while !self.tasks.is_empty() {
            if let Err(other) = self.join_one().await {
                tracing::debug!(error = %other, "an upload ended with its job");
            }
        }
        error
    }
}

async fn upload(bucket: Bucket, id: OutputId, mut parts: mpsc::Receiver<Part>) -> Result<()> {
    let mut upload = bucket.upload(&Object::Sst(id));
    while let Some(part) = parts.recv().await {
        let written = match part {
            Part::Bytes(bytes) => upload.write(bytes).await,
            Part::Last(bytes) => match upload.write(bytes).await {
                Ok(()) => return upload.finish().await,
                failed => failed,
            },
        };
        if let Err(error) = written {
            upload.abort().await;
            return Err(error);
        }
    }
    upload.abort().await;
    Err(merger::cancelled())
}

#[cfg(test)]
mod tests;
