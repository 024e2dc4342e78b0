//! Following the log of a database that another process writes: PROTOCOL R1 to R4.
//!
//! **Life of a step** ([`Follower::step`]): GET a stretch of the chain from the position on, many
//! objects at a time; *then* read CURRENT again (one conditional GET); *then* decide. Where replay
//! still begins at or before the stretch, its objects are applied. Where not, the whole stretch is
//! dropped, for its ids may have been collected and junk may stand there; the log begins anew at
//! the manifest, which holds the data as SSTs.
//!
//! **Invariants**
//! - Nothing is applied, and nothing is called damaged, before CURRENT has vouched for the stretch.
//! - The log is a prefix of the chain: each object continues the seq of the one before, and the
//!   seq never goes back, also not by beginning anew.
//! - What is applied stays in memtables until the tree that replaces it is open and
//!   [`Follower::forget_flushed`] is called: tree and memtables together have every batch.
//! - Where a step says [`Reach::End`], every batch that was acknowledged before the step began is
//!   in the manifest or the memtables.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, StreamExt};

use super::manifest::{Manifests, Snapshot};
use super::wal::Wal;
use crate::error::{Error, REMEDY, Result};
use crate::faults::planted;
use crate::format::Corrupt;
use crate::format::path::Object;
use crate::format::wal::{WalKind, WalObject};
use crate::lsm::memtable::Memtable;
use crate::types::{Seq, WalId};

/// GETs in flight where the length of the chain is unknown: hides the store's latency; those
/// beyond the chain's end ask for nothing in vain.
const AHEAD_START: usize = 16;
/// Most GETs in flight.
const AHEAD_MAX: usize = 64;
/// Most bytes of objects in flight, as far as the last one tells.
const AHEAD_BYTES_MAX: usize = 64 << 20;
/// A stretch ends here, so that CURRENT is asked and a view is made at least so often.
const STRETCH_OBJECTS_MAX: usize = 256;
/// A stretch of so many bytes ends too.
const STRETCH_BYTES_MAX: usize = 64 << 20;
/// A memtable of this size is frozen: half a writer's, so that flushed ones can go soon, and few,
/// since every read asks each.
const MEMTABLE_BYTES: u64 = 32 << 20;

/// What was applied of the chain and is not known to be in the tree: position, seq and memtables.
#[derive(Debug)]
struct Log {
    position: WalId,
    last_seq: Seq,
    active: Arc<Memtable>,
    /// Newest first.
    frozen: VecDeque<Arc<Memtable>>,
}

/// What the second read of CURRENT says about a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Its objects are those of the chain.
    Sound,
    /// Its ids may have been collected: begin anew.
    Overtaken,
}

/// R3: whether a stretch read from `position` on was on the chain, judged by a CURRENT that was
/// read after it.
fn judge(position: WalId, replay_from: WalId) -> Verdict {
    // INVARIANT: an id holds one object for as long as it is at or after `replay_from`.
    if replay_from > position && !planted("follower_trusts_its_first_read") {
        Verdict::Overtaken
    } else {
        Verdict::Sound
    }
}

impl Log {
    fn new(position: WalId, last_seq: Seq) -> Self {
        Self { position, last_seq, active: Arc::new(Memtable::new()), frozen: VecDeque::new() }
    }

    /// Applies the object at the position and moves on.
    fn apply(&mut self, object: &WalObject) -> Result<(), Corrupt> {
        assert_eq!(object.header.id, self.position, "objects come in the order of the chain");
        let prev_seq = object.header.prev_seq;
        if prev_seq != self.last_seq {
            return Err(Corrupt(format!(
                "it continues seq {prev_seq}, but the chain before it ends at {}: an object of \
                 the log is missing; {REMEDY}",
                self.last_seq
            )));
        }
        if self.active.bytes() >= MEMTABLE_BYTES {
            self.frozen.push_front(std::mem::replace(&mut self.active, Arc::new(Memtable::new())));
        }
        for batch in &object.batches {
            self.active.insert(batch);
        }
        self.last_seq = object.last_seq();
        self.position = object.next();
        Ok(())
    }

    fn forget(&mut self, flushed_seq: Seq) {
        self.frozen.retain(|memtable| memtable.last_seq() > Some(flushed_seq));
        if self.active.last_seq().is_some_and(|last| last <= flushed_seq) {
            self.active = Arc::new(Memtable::new());
        }
    }

    fn memtables(&self) -> Vec<Arc<Memtable>> {
        let all = std::iter::once(&self.active).chain(&self.frozen);
        all.filter(|memtable| !memtable.is_empty()).map(Arc::clone).collect()
    }
}

/// How far a step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To the chain's end.
    End,
    /// There may be more: step again.
    Partway,
}

/// What became of the memtables in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// They still reach back to every manifest since the log began: any of these goes with them.
    Kept,
    /// The log began anew: they go with the manifest of this step and later ones alone.
    Anew,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How far it came.
    pub reach: Reach,
    /// What became of the memtables.
    pub base: Base,
}

/// Objects that follow each other on the chain, and why there are no more.
struct Stretch {
    objects: Vec<WalObject>,
    end: StretchEnd,
}

enum StretchEnd {
    /// The next one is absent.
    Absent,
    /// Enough for one step.
    Full,
    /// The next one cannot be read: damaged, if CURRENT vouches for the stretch.
    Broken(Error),
}

/// One follower's place on the chain.
#[derive(Debug)]
pub struct Follower {
    manifests: Manifests,
    wal: Wal,
    snapshot: Snapshot,
    log: Log,
    /// GETs in flight at the beginning of the next stretch.
    ahead: usize,
}

impl Follower {
    /// R1: a follower at the place where replay begins in `snapshot`.
    pub fn new(manifests: Manifests, wal: Wal, snapshot: Snapshot) -> Self {
        let log = Log::new(snapshot.current.replay_from, snapshot.manifest.flushed_seq);
        Self { manifests, wal, snapshot, log, ahead: AHEAD_START }
    }

    /// CURRENT and its manifest, as of the last step.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The next id on the chain.
    pub fn position(&self) -> WalId {
        self.log.position
    }

    /// Everything at or below it was applied.
    pub fn seq(&self) -> Seq {
        self.log.last_seq
    }

    /// What was applied and not yet forgotten, newest first.
    pub fn memtables(&self) -> Vec<Arc<Memtable>> {
        self.log.memtables()
    }

    /// Lets go of memtables whose data an open tree has up to `flushed_seq`.
    pub fn forget_flushed(&mut self, flushed_seq: Seq) {
        self.log.forget(flushed_seq);
    }

    /// R2 to R4: reads on along the chain and applies what CURRENT vouches for.
    ///
    /// At the chain's end this costs one GET of an absent object and one conditional GET.
    /// Cancel-safe: what was read is read again.
    ///
    /// # Errors
    /// `Unavailable`: nothing was applied, step again. `Corrupt`: the chain or the root is damaged.
    pub async fn step(&mut self) -> Result<Step> {
        let stretch = self.fetch().await?;
        self.conclude(stretch).await
    }

    /// R3: asks CURRENT about the stretch, then applies or drops it.
    async fn conclude(&mut self, stretch: Stretch) -> Result<Step> {
        if let Some(changed) = self.refresh().await? {
            self.snapshot = changed;
        }
        let replay_from = self.snapshot.current.replay_from;
        if judge(self.log.position, replay_from) == Verdict::Overtaken {
            self.begin_anew()?;
            return Ok(Step { reach: Reach::Partway, base: Base::Anew });
        }
        for object in &stretch.objects {
            let name = || Object::Wal(object.header.id).path();
            self.log.apply(object).map_err(|cause| Error::corrupt(name(), cause))?;
        }
        let reach = match stretch.end {
            StretchEnd::Absent => Reach::End,
            StretchEnd::Full => Reach::Partway,
            StretchEnd::Broken(error) => return Err(error),
        };
        self.check_tree_is_behind()?;
        Ok(Step { reach, base: Base::Kept })
    }

    /// R2: the objects of the chain from the position on, up to a bound.
    async fn fetch(&mut self) -> Result<Stretch> {
        let mut stretch = Stretch { objects: Vec::new(), end: StretchEnd::Full };
        let mut position = self.log.position;
        let mut bytes = 0;
        'chain: while stretch.objects.len() < STRETCH_OBJECTS_MAX && bytes < STRETCH_BYTES_MAX {
            let from = position;
            let ids = stream::iter((0..).map(|offset| from.plus(offset)));
            let mut objects = ids.map(|id| self.wal.get(id)).buffered(self.ahead);
            while stretch.objects.len() < STRETCH_OBJECTS_MAX && bytes < STRETCH_BYTES_MAX {
                match objects.next().await {
                    Some(Ok(Some(object))) => {
                        let object_bytes = bytes_of(&object);
                        bytes += object_bytes;
                        position = object.next();
                        let kind = object.header.kind;
                        stretch.objects.push(object);
                        if kind != WalKind::Data {
                            // What stands behind a fence is not on the chain.
                            continue 'chain;
                        }
                    }
                    Some(Ok(None)) | None => {
                        stretch.end = StretchEnd::Absent;
                        break 'chain;
                    }
                    Some(Err(error @ Error::Corrupt(_))) => {
                        stretch.end = StretchEnd::Broken(error);
                        break 'chain;
                    }
                    Some(Err(error)) if stretch.objects.is_empty() => return Err(error),
                    Some(Err(_)) => break 'chain,
                }
            }
        }
        // As many as came this time, and one to see the end.
        let mean_bytes = bytes / stretch.objects.len().max(1);
        let fit = AHEAD_BYTES_MAX / mean_bytes.max(1);
        self.ahead = (stretch.objects.len() + 1).min(fit).clamp(1, AHEAD_MAX);
        Ok(stretch)
    }

    /// R3: CURRENT and its manifest where they have changed.
    async fn refresh(&self) -> Result<Option<Snapshot>> {
        match self.manifests.refresh(&self.snapshot).await {
            Err(Error::NotFound(_)) => {
                Err(Error::corrupt(Object::Current.path(), format!("it is gone: {REMEDY}")))
            }
            answer => answer,
        }
    }

    fn begin_anew(&mut self) -> Result<()> {
        let Snapshot { current, manifest, .. } = &self.snapshot;
        if manifest.flushed_seq < self.log.last_seq {
            let cause = format!(
                "it moves replay to {} but holds only seq {} of {}",
                current.replay_from, manifest.flushed_seq, self.log.last_seq
            );
            return Err(Error::corrupt(Object::Manifest(current.manifest).path(), cause));
        }
        tracing::debug!(from = %self.log.position, to = %current.replay_from, "log begins anew");
        self.log = Log::new(current.replay_from, manifest.flushed_seq);
        self.ahead = AHEAD_START;
        Ok(())
    }

    /// A tree that holds what the chain does not have yet would make views go back.
    fn check_tree_is_behind(&self) -> Result<()> {
        let Snapshot { current, manifest, .. } = &self.snapshot;
        if manifest.flushed_seq <= self.log.last_seq {
            return Ok(());
        }
        let cause = format!(
            "it holds seq {}, the chain before {} ends at {}",
            manifest.flushed_seq, self.log.position, self.log.last_seq
        );
        Err(Error::corrupt(Object::Manifest(current.manifest).path(), cause))
    }
}

/// Bytes of keys and values of an object.
fn bytes_of(object: &WalObject) -> usize {
    let ops = object.batches.iter().flat_map(|batch| &batch.ops);
    ops.map(|op| op.key.len() + op.payload.bytes()).sum()
}

#[cfg(test)]
mod tests;
