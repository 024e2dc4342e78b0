//! Flushing: one frozen memtable becomes one SST in L0, and `replay_from` moves past its data.
//!
//! **Invariants** (PROTOCOL W4)
//! - Only proven data is flushed. Several memtables are built and uploaded at once, and committed
//!   oldest first: B is never published before A.
//! - The SST's name carries the epoch under which it is committed.
//! - A flush is in iff the epoch is ours and `replay_from` has reached its end; never judged by the
//!   SST's name, which a compaction may already have dropped.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::faults::planted;
use cairn_common::format::edit::{Edit, Flush};
use cairn_common::format::manifest::{SstInfo, WalRange};
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::sst::{SstBuilder, SstOptions};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::Bucket;
use cairn_common::store::sst::SstStore;
use cairn_common::types::{DatabaseId, Epoch, Role};
use futures::future::{Fuse, FusedFuture, FutureExt};
use futures::stream::{FuturesOrdered, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::commit::Position;
use crate::front::Frozen;
use crate::lease;
use crate::service::Writer;

/// Memtables that are built and uploaded at a time: one slow upload does not hold the others, and
/// the bytes of so many SSTs are in memory.
const FLUSHES_TOGETHER: usize = 3;

/// Makes L0.
#[derive(Clone, Debug)]
pub struct Flusher {
    /// The environment.
    pub env: Env,
    /// Where SSTs go.
    pub bucket: Bucket,
    /// CURRENT and manifests.
    pub manifests: Manifests,
    /// How SSTs are built.
    pub options: SstOptions,
}

impl Flusher {
    /// Puts one memtable into L0 under `epoch` and returns CURRENT with it.
    ///
    /// Goes on while the store is unavailable. Costs a PUT for the SST (a few more where it is
    /// large), then one commit.
    ///
    /// # Errors
    /// `Fenced`.
    pub async fn flush(&self, known: Snapshot, epoch: Epoch, frozen: &Frozen) -> Result<Snapshot> {
        let time_ms = frozen.time_ms.max(known.manifest.time_ms);
        let flush = self.upload(known.current.database, epoch, frozen, time_ms).await?;
        self.manifests.commit(known, &Edit::Flush(flush)).await
    }

    /// Builds the SST of one memtable and puts it into the bucket. What is left is to commit it.
    async fn upload(
        &self,
        database: DatabaseId,
        epoch: Epoch,
        frozen: &Frozen,
        time_ms: u64,
    ) -> Result<Flush> {
        let id = OutputId { role: Role::Writer, epoch, uuid: self.env.random.uuid() };
        let (memtable, options) = (Arc::clone(&frozen.memtable), self.options);
        let build = move || {
            let mut builder = SstBuilder::new(database, id, options);
            let added = memtable.flush_entries(time_ms, |entry| {
                builder.add(entry);
                Ok::<(), Infallible>(())
            });
            match added {
                Ok(()) => builder.finish(),
            }
        };
        let (bytes, info): (Bytes, SstInfo) = self.env.cpu.run(build).await;
        let skipped = u64::from(planted("flush_replays_from_one_too_far"));
        let wal = WalRange { to: frozen.wal.to.plus(skipped), ..frozen.wal };
        let sst = SstInfo { wal: Some(wal), ..info };
        tracing::info!(sst = %id, bytes = sst.bytes, entries = sst.entries, "flushing to L0");
        self.put(&Object::Sst(id), bytes).await?;
        let (replay_from, flushed_seq) = (wal.to, frozen.last_seq);
        Ok(Flush { epoch, sst: Some(sst), replay_from, flushed_seq, time_ms })
    }

    /// Commits that replay begins at `next`, behind fences that hold no data. One commit.
    ///
    /// # Errors
    /// `Fenced`.
    pub async fn pass_fences(
        &self,
        known: Snapshot,
        epoch: Epoch,
        next: Position,
    ) -> Result<Snapshot> {
        tracing::info!(replay_from = %next.id, "nothing is unflushed: replay begins here");
        let edit = Edit::Flush(Flush {
            epoch,
            sst: None,
            replay_from: next.id,
            flushed_seq: next.seq,
            time_ms: known.manifest.time_ms,
        });
        self.manifests.commit(known, &edit).await
    }

    async fn put(&self, object: &Object, bytes: Bytes) -> Result<()> {
        let mut pause = lease::pause("cannot write L0");
        loop {
            match self.bucket.put(object, bytes.clone()).await {
                // The name is ours alone: the same bytes under it again do no harm.
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                }
                settled => return settled,
            }
        }
    }
}

/// Flushes memtables as they are frozen and proven, until `stop` is cancelled and none is left.
/// First of all, replay moves to `bare`, if nothing but fences is before it. Needs no object of the
/// compactor's.
///
/// # Errors
/// `Fenced`, and what damages the tree.
pub async fn run(
    flusher: &Flusher,
    writer: &Writer,
    ssts: &Arc<SstStore>,
    bare: Option<Position>,
    stop: CancellationToken,
) -> Result<()> {
    let Writer { front, lease, .. } = writer;
    if let Some(next) = bare {
        let known = lease.snapshot();
        tokio::select! {
            biased;
            // Only the next walk is longer without it.
            () = stop.cancelled() => return Ok(()),
            passed = flusher.pass_fences(known, lease.epoch(), next) => lease.note(passed?),
        }
    }
    let mut uploads = FuturesOrdered::new();
    let mut uploaded = VecDeque::new();
    let mut committing = Fuse::terminated();
    let known = lease.snapshot();
    let (mut begun, mut time_ms) = (known.manifest.flushed_seq, known.manifest.time_ms);
    loop {
        if committing.is_terminated()
            && let Some(next) = uploaded.pop_front()
        {
            committing = commit(flusher, writer, ssts, next).boxed().fuse();
        }
        let in_progress = uploads.len() + uploaded.len();
        if in_progress < FLUSHES_TOGETHER
            && let Some(frozen) = front.next_to_flush(begun)
        {
            begun = frozen.last_seq;
            // What is flushed later was frozen later, whatever the clock said.
            time_ms = frozen.time_ms.max(time_ms);
            uploads.push_back(upload(flusher, writer, frozen, time_ms));
            continue;
        }
        let is_idle = uploads.is_empty() && committing.is_terminated();
        tokio::select! {
            biased;
            committed = &mut committing, if !committing.is_terminated() => committed?,
            Some(done) = uploads.next() => uploaded.push_back(done?),
            () = stop.cancelled(), if is_idle => return Ok(()),
            () = front.flushable() => {}
        }
    }
}

/// A flush that is to be committed, and when it began.
type Uploaded = (Flush, Duration);

async fn upload(
    flusher: &Flusher,
    Writer { lease, env, .. }: &Writer,
    frozen: Frozen,
    time_ms: u64,
) -> Result<Uploaded> {
    let began = env.clock.boot();
    let database = lease.snapshot().current.database;
    let flush = flusher.upload(database, lease.epoch(), &frozen, time_ms).await?;
    Ok((flush, began))
}

/// Commits a flush and shows its tree.
async fn commit(
    flusher: &Flusher,
    Writer { front, lease, env, counters, .. }: &Writer,
    ssts: &Arc<SstStore>,
    (flush, began): Uploaded,
) -> Result<()> {
    let known = lease.snapshot();
    let snapshot = flusher.manifests.commit(known, &Edit::Flush(flush)).await?;
    lease.note(snapshot);
    lease::show_tree(lease, front, ssts);
    counters.flushed(env.clock.boot().saturating_sub(began));
    Ok(())
}
