//! Claiming a role: PROTOCOL T1.
//!
//! **Invariants**
//! - A claim changes CURRENT alone and writes no body; it is settled by its uuid.
//! - What the claim replaced is the body that was read before the swap that landed: a swap is
//!   conditional, so no other can have come between.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::commit::check_writable;
use super::manifest::{Manifests, Snapshot};
use super::object::Version;
use super::pause::Pause;
use crate::error::{Error, Result};
use crate::format::current::{Claimant, Current};
use crate::format::manifest::Manifest;
use crate::format::path::Object;
use crate::types::{Epoch, Role};

/// Who claims a role.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The role.
    pub role: Role,
    /// The process.
    pub uuid: Uuid,
    /// Where it answers.
    pub url: Option<String>,
    /// The read lease that the claimer wants (writers).
    pub lease: Duration,
}

/// A claim that is certain.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The epoch that is ours now.
    pub epoch: Epoch,
    /// What CURRENT says since.
    pub snapshot: Snapshot,
    /// The body that the claim replaced: its lease and `closed` decide the hold.
    pub replaced: Current,
    /// Boot time at the receipt of the answer that proved the claim.
    pub proven_at: Duration,
}

/// The body of CURRENT that shows the claim.
struct Proof {
    current: Current,
    version: Version,
    /// Boot time at its receipt.
    proven_at: Duration,
}

impl Manifests {
    /// Claims a role, beginning with a read of CURRENT: see [`Manifests::claim_over`].
    ///
    /// # Errors
    /// As that one.
    pub async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        self.claim_over(None, claim).await
    }

    /// Claims a role: PROTOCOL T1. Begins with what is known, if anything is, and reads again after
    /// a conflict. Goes on until it is certain; the store may be away for long.
    ///
    /// Not cancel-safe: dropped halfway, the claim may land and fence the holder.
    ///
    /// # Errors
    /// `Corrupt`: CURRENT, or the manifest it names, also if it is gone. `Invalid`: the store
    /// refuses for good, or a newer version wrote CURRENT.
    pub async fn claim_over(&self, known: Option<Snapshot>, claim: &Claim) -> Result<Claimed> {
        let mut pause = Pause::of_commits();
        let mut replaced: Option<Current> = None;
        let manifest = known.as_ref().map(|known| Arc::clone(&known.manifest));
        let mut known = known.map(|known| (known.current, known.version));
        loop {
            let (current, version) = match known.take() {
                Some(known) => known,
                None => match self.existing_current().await {
                    Ok(found) => found,
                    Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                        pause.wait(&self.env, &error).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let proven_at = self.env.clock.boot();
            if let (Some(replaced), true) = (&replaced, claim.is_held_in(&current)) {
                let replaced = replaced.clone();
                let proof = Proof { current, version, proven_at };
                return self.claimed(claim, proof, replaced, manifest).await;
            }
            check_writable(&current)?;
            let root = self.bucket.root_id();
            let next = claim.apply(&current, root, self.env.random.uuid());
            // SUBTLE: a conflict while nothing has changed is a proxy's word, not the store's.
            let is_unchanged = replaced.as_ref() == Some(&current);
            replaced = Some(current.clone());
            match self.bucket.swap(&Object::Current, next.encode(), &version).await {
                Ok(version) => {
                    let proven_at = self.env.clock.boot();
                    let proof = Proof { current: next, version, proven_at };
                    return self.claimed(claim, proof, current, manifest).await;
                }
                Err(Error::Conflict(_)) if !is_unchanged => {}
                Err(
                    error @ (Error::Conflict(_) | Error::Unavailable(_) | Error::Indeterminate(_)),
                ) => {
                    pause.wait(&self.env, &error).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn claimed(
        &self,
        claim: &Claim,
        Proof { current, version, proven_at }: Proof,
        replaced: Current,
        manifest: Option<Arc<Manifest>>,
    ) -> Result<Claimed> {
        let epoch = claim.epoch_in(&current);
        if let Some(manifest) = manifest.filter(|manifest| manifest.id == current.manifest) {
            let snapshot = Snapshot { current, version, manifest };
            return Ok(Claimed { epoch, snapshot, replaced, proven_at });
        }
        let mut pause = Pause::of_commits();
        let snapshot = loop {
            match self.follow(current.clone(), version.clone()).await {
                Ok(snapshot) => break snapshot,
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Claimed { epoch, snapshot, replaced, proven_at })
    }
}

impl Claim {
    fn epoch_in(&self, current: &Current) -> Epoch {
        match self.role {
            Role::Writer => current.writer.epoch,
            Role::Compactor => current.compactor.epoch,
        }
    }

    fn is_held_in(&self, current: &Current) -> bool {
        match self.role {
            Role::Writer => current.writer.uuid == self.uuid,
            Role::Compactor => current.compactor.uuid == self.uuid,
        }
    }

    fn apply(&self, current: &Current, root: String, nonce: Uuid) -> Current {
        let claimant = Claimant { uuid: self.uuid, url: self.url.clone(), root: Some(root) };
        match self.role {
            Role::Writer => {
                let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
                current.claimed_by_writer(claimant, lease_ms, nonce)
            }
            Role::Compactor => current.claimed_by_compactor(claimant, nonce),
        }
    }
}
