//! Commits: replacing the manifest that CURRENT names, and small amendments of CURRENT itself.
//!
//! **Life of a commit**: read CURRENT and its body; decide from *that* body; PUT the new body under
//! a new name; swap CURRENT. Whatever the answer to the swap, the loop begins again by reading, and
//! the caller's `decide` says whether its effect is there. So a lost race, a lost answer and a
//! late landing are one path.
//!
//! **Invariants**
//! - A commit is computed from the body that it replaces, and settled by its effect.
//! - A body's name is used once, so a body whose swap did not land is garbage and never found.

use super::manifest::{Manifests, Snapshot};
use super::pause::Pause;
use crate::error::{Error, Result};
use crate::format::current::Current;
use crate::format::path::Object;

impl Manifests {
    /// Swaps fields of CURRENT that name no manifest: the writer's `closed` and lease.
    ///
    /// `change` returns `None` where its effect is there or not wanted any more.
    pub async fn amend<C>(&self, mut known: Snapshot, mut change: C) -> Result<Snapshot>
    where
        C: FnMut(&Current) -> Result<Option<Current>> + Send,
    {
        let mut pause = Pause::new();
        loop {
            let Some(mut next) = change(&known.current)? else { return Ok(known) };
            next.nonce = self.env.random.uuid();
            match self.bucket.swap(&Object::Current, next.encode(), &known.version).await {
                Ok(version) => return Ok(Snapshot { current: next, version, ..known }),
                Err(Error::Conflict(_)) => {}
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                }
                Err(error) => return Err(error),
            }
            known = self.read_back(&known, &mut pause).await?;
        }
    }

    /// What is there now, however long the store is away.
    async fn read_back(&self, known: &Snapshot, pause: &mut Pause) -> Result<Snapshot> {
        loop {
            match self.refresh(known).await {
                Ok(changed) => return Ok(changed.unwrap_or_else(|| known.clone())),
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
