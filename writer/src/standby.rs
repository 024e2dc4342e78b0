//! Waiting for the writer's role: a second writer takes over when the active one has closed, or
//! has been silent for a while. A wrong guess is harmless; this only avoids needless takeovers.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::format::current::WriterClaim;
use cairn_common::store::manifest::{Manifests, Snapshot};

use crate::lease;

/// How often a standby asks the active writer; free of store requests.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// How often a standby reads CURRENT while the active writer is well.
const CURRENT_INTERVAL: Duration = Duration::from_secs(2);

/// When a starting writer takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakeoverWhen {
    /// When the active writer has closed or is silent.
    IfDead,
    /// At once.
    Now,
}

/// What the active writer says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It holds the role and serves, or will.
    Active,
    /// It is stopping: CURRENT will soon say that it is closed.
    Leaving,
    /// Nothing that holds the role answers at the address.
    Silent,
}

/// A way to ask the active writer.
#[async_trait]
pub trait Peers: Debug + Send + Sync {
    /// Asks whoever answers at `url` whether it is the process that made this claim, within a
    /// short time.
    async fn ask(&self, url: &str, claim: &WriterClaim) -> Answer;
}

/// What a standby waits with.
#[derive(Debug)]
pub struct Standby<'a> {
    /// The environment.
    pub env: &'a Env,
    /// CURRENT and manifests.
    pub manifests: &'a Manifests,
    /// A way to ask the active writer.
    pub peers: &'a dyn Peers,
    /// Silence after which the active writer counts as dead; jittered upwards by a quarter.
    pub takeover_after: Duration,
    /// Our own address, where no other host has the same: unless the active writer itself answers
    /// there, it is an earlier life of ours.
    pub url: Option<String>,
}

impl Standby<'_> {
    /// Returns when the role is free to take; `snapshot` is what is there now.
    ///
    /// Calls `waiting` with what CURRENT says each time the active writer was found alive. Costs a
    /// conditional GET every two seconds. An unavailable store is waited for.
    ///
    /// # Errors
    /// `Corrupt`: CURRENT or the manifest it names. `NotFound`: CURRENT is gone.
    pub async fn wait(
        &self,
        mut snapshot: Snapshot,
        mut waiting: impl FnMut(&Snapshot),
    ) -> Result<Snapshot> {
        let patience = self.takeover_after.mul_f64(1.0 + self.env.random.unit() / 4.0);
        let mut read_at = self.env.clock.boot();
        let mut heard_at = read_at;
        let mut heard_epoch = snapshot.current.writer.epoch;
        loop {
            let writer = &snapshot.current.writer;
            let url = match &writer.url {
                Some(url) if !writer.closed => url.clone(),
                _ => return Ok(snapshot),
            };
            if writer.epoch != heard_epoch {
                heard_epoch = writer.epoch;
                heard_at = self.env.clock.boot();
            }
            let answer = self.peers.ask(&url, writer).await;
            if answer == Answer::Silent && self.url.as_ref() == Some(&url) {
                return Ok(snapshot);
            }
            let now = self.env.clock.boot();
            if answer == Answer::Active {
                heard_at = now;
                waiting(&snapshot);
            }
            let silent = now.saturating_sub(heard_at) >= patience;
            // Before it takes over, and while the writer leaves, only CURRENT's word counts.
            if silent || answer != Answer::Active || now.saturating_sub(read_at) >= CURRENT_INTERVAL
            {
                read_at = now;
                let epoch = writer.epoch;
                snapshot = self.refresh(snapshot).await?;
                if silent && snapshot.current.writer.epoch == epoch {
                    tracing::warn!(%url, %epoch, "the active writer is silent: taking over");
                    return Ok(snapshot);
                }
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    async fn refresh(&self, known: Snapshot) -> Result<Snapshot> {
        match self.manifests.refresh(&known).await {
            Ok(changed) => Ok(changed.unwrap_or(known)),
            Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                tracing::warn!(%error, "cannot read CURRENT; trying again");
                Ok(known)
            }
            Err(error) => Err(error),
        }
    }
}

/// The database, made where the root is empty; waits while the store is unavailable.
///
/// # Errors
/// `Corrupt`: a damaged root. `Unfit`: a store that does not honour conditions.
pub async fn create(manifests: &Manifests, env: &Env) -> Result<Snapshot> {
    let mut pause = lease::pause("cannot reach the store");
    loop {
        match manifests.create().await {
            Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                pause.wait(env, &error).await;
            }
            settled => return settled,
        }
    }
}
