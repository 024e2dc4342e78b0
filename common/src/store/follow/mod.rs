//! Following the log of a database that another process writes: PROTOCOL R1 to R4.
//!
//! **Life of a step** ([`Follower::step`]): GET objects along the chain from the position on, many
//! at a time, for about a tenth of a second; *then* read CURRENT (one conditional GET) while the
//! GETs go on; *then* decide. If replay still begins at or before the position, the objects that
//! came before that read are applied. If not, they may have been collected, and junk may be at
//! their ids: the log begins at the manifest, which holds the data as SSTs, and what was read at or
//! after the new `replay_from` is applied to that.
//!
//! **Invariants**
//! - Nothing is applied, and nothing is called damaged, before CURRENT has vouched for its id: by a
//!   read that was sent after the object had come, and that says `replay_from` at or before it.
//! - What was read is kept by id until it is applied or passed, so flushes that come faster than
//!   steps do not hold the follower up.
//! - The log is a prefix of the chain: each object continues the seq of the one before, and the
//!   seq never goes back, also not when the log begins at another manifest.
//! - What is applied stays in memtables until the tree that replaces it is open and
//!   [`Follower::forget_flushed`] is called: a tree whose flushed seq is at or above
//!   [`Follower::covers_from`] and the memtables together have every batch.
//! - If a step says [`Reach::End`], every batch that was acknowledged before `as_of` is in the
//!   manifest or the memtables: `as_of` is when the GET was sent that found nothing at the end.

use std::sync::Arc;
use std::time::Duration;

use self::ahead::{Ahead, Next};
use self::log::Log;
use super::manifest::{Manifests, Snapshot};
use super::wal::Wal;
use crate::error::{Error, Result};
use crate::faults::planted;
use crate::format::path::Object;
use crate::lsm::memtable::Memtable;
use crate::types::{Seq, WalId};

mod ahead;
mod log;

/// What a read of CURRENT says about a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// What was read from it on is the chain.
    Sound,
    /// Ids from it on may have been collected.
    Passed,
}

/// R3: whether what was read from `position` on was the chain, judged by a CURRENT that was read
/// after it.
fn judge(position: WalId, replay_from: WalId) -> Verdict {
    // INVARIANT: an id holds one object for as long as it is at or after `replay_from`.
    if replay_from > position && !planted("follower_trusts_its_first_read") {
        Verdict::Passed
    } else {
        Verdict::Sound
    }
}

/// How far a step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To the chain's end.
    End {
        /// Boot time before which everything acknowledged is included.
        as_of: Duration,
    },
    /// There may be more: step again.
    Partway,
}

/// One follower's place on the chain.
#[derive(Debug)]
pub struct Follower {
    manifests: Manifests,
    snapshot: Snapshot,
    log: Log,
    ahead: Ahead,
}

impl Follower {
    /// R1: a follower at the place where replay begins in `snapshot`.
    pub fn new(manifests: Manifests, wal: Wal, snapshot: Snapshot) -> Self {
        let log = Log::new(snapshot.current.replay_from, snapshot.manifest.flushed_seq);
        let ahead = Ahead::new(wal, Arc::clone(&manifests.env.clock), log.position);
        Self { manifests, snapshot, log, ahead }
    }

    /// CURRENT and its manifest, as of the last step.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The next id on the chain.
    pub fn position(&self) -> WalId {
        self.log.position
    }

    /// Everything at or below it was applied, or is in the manifest.
    pub fn seq(&self) -> Seq {
        self.log.last_seq
    }

    /// The memtables hold everything above it: they go with every tree that holds everything at or
    /// below it.
    pub fn covers_from(&self) -> Seq {
        self.log.from
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
    /// At the end of an idle chain this costs one GET of an absent object and one conditional GET.
    /// Cancel-safe: what was read is kept.
    ///
    /// # Errors
    /// `Unavailable`: step again; what was read is kept. `Corrupt`: the chain or the root is
    /// damaged.
    pub async fn step(&mut self) -> Result<Reach> {
        self.ahead.read(self.log.position).await;
        self.conclude().await
    }

    /// R3: asks CURRENT about what was read, then applies it.
    async fn conclude(&mut self) -> Result<Reach> {
        let refresh = self.manifests.refresh(&self.snapshot);
        let reached = match self.ahead.vouched(refresh).await {
            Ok(changed) => {
                if let Some(changed) = changed {
                    self.snapshot = changed;
                }
                self.apply()
            }
            Err(error) => Err(error),
        };
        match reached {
            Ok(Reach::Partway) => {}
            Ok(Reach::End { .. }) => self.ahead.end_look(),
            // Nobody polls them until the next step.
            Err(_) => self.ahead.ground(),
        }
        reached
    }

    fn apply(&mut self) -> Result<Reach> {
        let replay_from = self.snapshot.current.replay_from;
        if judge(self.log.position, replay_from) == Verdict::Passed {
            self.begin_at_manifest()?;
            if planted("follower_forgets_what_it_fetched") {
                self.ahead.forget();
                return Ok(Reach::Partway);
            }
        }
        self.check_tree_is_behind()?;
        let before = self.log.position;
        let reach = loop {
            match self.ahead.next(self.log.position) {
                Next::Object(object) => {
                    let name = || Object::Wal(object.header.id).path();
                    self.log.apply(&object).map_err(|cause| Error::corrupt(name(), cause))?;
                }
                Next::Absent { asked_at } => break Reach::End { as_of: asked_at },
                // The next step asks for it again.
                Next::Failed(Error::Unavailable(_) | Error::Indeterminate(_))
                    if self.log.position > before =>
                {
                    break Reach::Partway;
                }
                Next::Failed(error) => return Err(error),
                Next::Unknown => break Reach::Partway,
            }
        };
        self.ahead.pass(self.log.position);
        Ok(reach)
    }

    fn begin_at_manifest(&mut self) -> Result<()> {
        let Snapshot { current, manifest, .. } = &self.snapshot;
        if manifest.flushed_seq < self.log.last_seq {
            let cause = format!(
                "it moves replay to {} but holds only seq {} of {}",
                current.replay_from, manifest.flushed_seq, self.log.last_seq
            );
            return Err(Error::corrupt(Object::Manifest(current.manifest).path(), cause));
        }
        let (from, to) = (self.log.position, current.replay_from);
        tracing::debug!(%from, %to, "replay begins behind the position: the log begins there");
        self.log = Log::new(current.replay_from, manifest.flushed_seq);
        self.ahead.pass(self.log.position);
        Ok(())
    }

    /// Replay begins at or before the position, so the tree holds nothing that was not applied.
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

#[cfg(test)]
mod tests;
