//! Commits: replacing the manifest that CURRENT names, and small amendments of CURRENT itself.
//!
//! **Life of a commit**: read CURRENT and its body; see whether the edit's effect is there already;
//! compute the next body from *that* body; PUT it under a new name; swap CURRENT. Whatever the
//! answer to the swap but success, the loop begins again by reading. So a lost race, a lost answer
//! and a late landing are one path.
//!
//! **Invariants**
//! - A commit is computed from the body that it replaces, and settled by its effect.
//! - A body's name is used once, so a body whose swap did not land is garbage and never found.

use std::sync::Arc;

use super::manifest::{Manifests, Snapshot};
use super::pause::Pause;
use crate::error::{Error, Result};
use crate::format::current::Current;
use crate::format::edit::{self, Edit, Fresh, Rejected, Settled};
use crate::format::path::Object;
use crate::types::Epoch;

impl Manifests {
    /// Commits an edit, computed anew from whatever is there, until its effect is there. Begins
    /// with what is known and reads again only after a conflict.
    ///
    /// Goes on for as long as the store is unavailable; bound it by dropping it (it may land later
    /// then). Costs a PUT and a swap, and a GET more for each further try.
    ///
    /// # Errors
    /// `Fenced` where the edit's epoch has passed; `Conflict` where what it builds on is gone;
    /// `Invalid` where no state will take it; `Corrupt`.
    pub async fn commit(&self, mut known: Snapshot, edit: &Edit) -> Result<Snapshot> {
        let mut pause = Pause::of_commits();
        loop {
            match edit.settle(&known.current, &known.manifest) {
                Settled::Open => {}
                Settled::Done => return Ok(known),
                Settled::Fenced { held, found } => return Err(deposed(held, found)),
            }
            let (manifest, nonce) = (self.env.random.uuid(), self.env.random.uuid());
            let fresh = Fresh { manifest, nonce, now_ms: self.env.clock.wall_ms() };
            let next = edit::apply(&known.current, &known.manifest, edit, fresh)?;
            let object = Object::Manifest(next.manifest.id);
            let swapped = match self.bucket.put(&object, next.body).await {
                Ok(()) => {
                    let body = next.current.encode();
                    self.bucket.swap(&Object::Current, body, &known.version).await
                }
                Err(error) => Err(error),
            };
            let failed = match swapped {
                Ok(version) => {
                    let manifest = Arc::new(next.manifest);
                    return Ok(Snapshot { current: next.current, version, manifest });
                }
                // SUBTLE: a conflict while nothing has changed is the answer of a proxy, which may
                // repeat it for long.
                Err(
                    error @ (Error::Conflict(_) | Error::Unavailable(_) | Error::Indeterminate(_)),
                ) => error,
                Err(error) => return Err(error),
            };
            known = self.read_back(known, &failed, &mut pause).await?;
        }
    }

    /// Swaps fields of CURRENT that name no manifest: the writer's `closed` and lease.
    ///
    /// `change` returns `None` where its effect is there or not wanted any more. Costs a swap, and
    /// a GET and a swap for each further try; goes on while the store is unavailable.
    ///
    /// # Errors
    /// Those of `change`. `Corrupt`: what was read back. `Invalid`: the store refuses for good, or
    /// a newer version wrote CURRENT.
    pub async fn amend<C>(&self, mut known: Snapshot, mut change: C) -> Result<Snapshot>
    where
        C: FnMut(&Current) -> Result<Option<Current>> + Send,
    {
        let mut pause = Pause::of_commits();
        loop {
            let Some(mut next) = change(&known.current)? else { return Ok(known) };
            check_writable(&known.current)?;
            next.nonce = self.env.random.uuid();
            let swapped = self.bucket.swap(&Object::Current, next.encode(), &known.version).await;
            let failed = match swapped {
                Ok(version) => return Ok(Snapshot { current: next, version, ..known }),
                // SUBTLE: a conflict while nothing has changed is the answer of a proxy, which may
                // repeat it for long.
                Err(
                    error @ (Error::Conflict(_) | Error::Unavailable(_) | Error::Indeterminate(_)),
                ) => error,
                Err(error) => return Err(error),
            };
            known = self.read_back(known, &failed, &mut pause).await?;
        }
    }

    /// What is there after a swap that failed, however long the store is away. Waits where the race
    /// was not lost to somebody whose commit can be seen.
    async fn read_back(
        &self,
        known: Snapshot,
        failed: &Error,
        pause: &mut Pause,
    ) -> Result<Snapshot> {
        if !matches!(failed, Error::Conflict(_)) {
            pause.wait(&self.env, failed).await;
        }
        loop {
            match self.refresh(&known).await {
                Ok(Some(changed)) => return Ok(changed),
                Ok(None) => {
                    if matches!(failed, Error::Conflict(_)) {
                        pause.wait(&self.env, failed).await;
                    }
                    return Ok(known);
                }
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether this version may swap in another body.
///
/// # Errors
/// `Invalid`: upgrade this process.
pub(super) fn check_writable(current: &Current) -> Result<()> {
    current.check_writable().map_err(|newer| Error::Invalid(newer.to_string()))
}

/// What it means for a process of epoch `held` that CURRENT says `found`: another claimed the role,
/// or, since epochs only count up, CURRENT is an older one that somebody put back.
pub fn deposed(held: Epoch, found: Epoch) -> Error {
    if found > held {
        return Error::Fenced { held, found };
    }
    let cause = format!(
        "it went back from epoch {held} to epoch {found}: the bucket was restored under a running \
         process. Stop every process of it before you restore it"
    );
    Error::corrupt(Object::Current.path(), cause)
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Fenced { held, found } => deposed(held, found),
            Rejected::Gone(what) => Self::Conflict(what),
            Rejected::Invalid(what) => Self::Invalid(what),
        }
    }
}
