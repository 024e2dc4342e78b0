//! Waiting for the writer's role: a second writer takes over when the active one has closed, or
//! shows no life for a while. A wrong guess is harmless; this only avoids needless takeovers.
//!
//! **Signs of life**, the strongest first
//! - The active writer answers at its URL, for its claim, its database and its root.
//! - It leaves: it still answers, until CURRENT says that it has closed.
//! - Nothing answers, but its log grows: it lives where we cannot reach it.
//!
//! **Patience**. A writer that has answered us and falls silent is dead after `takeover_after`. One
//! that never answered us may be dead, or out of our reach: it is left alone while its log grows;
//! and if it has deposed us, for [`REIGN_MIN`], doubled each time that this happens in turn. So
//! writers that cannot reach each other do not depose each other all the time.
//!
//! Meanwhile the standby reads the log ahead ([`Prefetched`]).

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::format::current::{Current, WriterClaim};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::Version;
use cairn_common::store::wal::Wal;
use cairn_common::types::{DatabaseId, WalId};
use futures::future::{BoxFuture, FutureExt as _};

use crate::lease;
use crate::open::{HeadStart, Hold};
use crate::prefetch::Prefetched;

/// How often a standby asks the active writer; free of store requests.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// The same while that one leaves: what it answers saves a request to the store.
const ASK_INTERVAL_LEAVING: Duration = Duration::from_millis(20);
/// How often a standby reads CURRENT and the log while the active writer is well.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a writer may leave: above the default of `shutdown_grace`.
const LEAVING_MAX: Duration = Duration::from_secs(30);
/// How long a writer that never answered us may be without a sign of life once its log has grown
/// before our eyes: clients write less often than that to hardly any database that is in use.
const REMOTE_PATIENCE: Duration = Duration::from_secs(15);
/// A writer that has deposed us and never answered us is left alone for so long, at first.
const REIGN_MIN: Duration = Duration::from_secs(5);
/// The longest that strife alone makes a standby wait.
const STRIFE_PATIENCE_MAX: Duration = Duration::from_mins(5);

/// When a starting writer takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakeoverWhen {
    /// When the active writer has closed or shows no life.
    IfDead,
    /// At once.
    Now,
    /// At once and without the hold: the operator knows that the old writer is dead.
    AssumeDead,
}

/// What the active writer says of itself.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It holds the role and serves, or will.
    Active,
    /// It is stopping: CURRENT will soon say that it is closed.
    Leaving,
    /// It has closed, and this is CURRENT since.
    Closed(Box<(Current, Version)>),
    /// Nothing that holds the role answers at the address.
    Silent,
}

/// Whom a standby asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The claim that it must have made.
    pub claim: &'a WriterClaim,
    /// The database that it must write.
    pub database: DatabaseId,
    /// The root at which it must write it.
    pub root: &'a str,
}

/// A way to ask the active writer.
#[async_trait]
pub trait Peers: Debug + Send + Sync {
    /// Asks whoever answers at `url` whether it is the process that made this claim on this
    /// database at this root, within a short time.
    async fn ask(&self, url: &str, asked: Asked<'_>) -> Answer;
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
    /// Our own address as claims name it, whether or not others have the same.
    pub own_url: Option<String>,
}

/// One look at the bucket, with what it began with.
struct Look {
    began: Duration,
    /// CURRENT; `Err` only if waiting must end.
    found: Result<Snapshot>,
    /// Whether the store answered.
    is_certain: bool,
    log: Prefetched,
}

/// Whether a standby can tell a dead writer from one out of its reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// It has never answered us under this claim.
    Unheard,
    /// It has: if it is silent, it is dead.
    Heard,
    /// Its log has grown while nothing answered.
    Remote,
}

/// What a standby knows of the writer that it waits for.
#[derive(Debug)]
struct Vigil {
    snapshot: Snapshot,
    /// When it gave the last sign of life.
    alive_at: Duration,
    reach: Reach,
    /// Since when it leaves.
    leaving_since: Option<Duration>,
    /// Where the log ended when it was first looked at in this silence.
    silent_end: Option<WalId>,
    looked_at: Duration,
}

impl Vigil {
    fn new(snapshot: Snapshot, now: Duration) -> Self {
        Self {
            snapshot,
            alive_at: now,
            reach: Reach::Unheard,
            leaving_since: None,
            silent_end: None,
            looked_at: now,
        }
    }

    fn claim(&self) -> &WriterClaim {
        &self.snapshot.current.writer
    }

    fn answered(&mut self, now: Duration) {
        (self.alive_at, self.reach) = (now, Reach::Heard);
        (self.leaving_since, self.silent_end) = (None, None);
    }

    fn leaves(&mut self, now: Duration) {
        let since = *self.leaving_since.get_or_insert(now);
        self.reach = Reach::Heard;
        if now.saturating_sub(since) < LEAVING_MAX {
            self.alive_at = now;
        }
    }

    /// How long after `alive_at` the writer counts as dead. `own` is our URL.
    fn patience(&self, takeover_after: Duration, own: Option<&str>) -> Duration {
        match self.reach {
            Reach::Heard => return takeover_after,
            Reach::Remote => return takeover_after.max(REMOTE_PATIENCE),
            Reach::Unheard => {}
        }
        let claim = self.claim();
        if own.is_none() || claim.deposed.as_deref() != own {
            return takeover_after;
        }
        // It has deposed us, and we cannot hear it: once more would be the same again.
        let doubled = REIGN_MIN.saturating_mul(1 << claim.strife.min(16));
        takeover_after.max(doubled.min(STRIFE_PATIENCE_MAX))
    }

    /// Notes a look; whether the writer counts as dead then.
    fn looked(&mut self, look: &Look, snapshot: Snapshot, patience: Duration) -> bool {
        self.looked_at = look.began;
        if snapshot.current.writer.epoch != self.claim().epoch {
            *self = Self::new(snapshot, look.began);
            return false;
        }
        self.snapshot = snapshot;
        if look.began <= self.alive_at || !look.is_certain {
            return false;
        }
        let end = look.log.position();
        let before = *self.silent_end.get_or_insert(end);
        let is_due = look.began.saturating_sub(self.alive_at) >= patience;
        if is_due && end != before {
            tracing::warn!(
                url = self.claim().url.as_deref(),
                "nothing answers for the active writer, but its log grows: it lives where this one \
                 cannot reach it. Check its --advertise, or start this one with --takeover now"
            );
            (self.reach, self.alive_at) = (Reach::Remote, look.began);
            self.silent_end = Some(end);
            return false;
        }
        is_due
    }
}

type Looking = BoxFuture<'static, Look>;

impl Standby<'_> {
    /// Returns when the role is free to take, with all that is known by then; `snapshot` is what is
    /// there now.
    ///
    /// Calls `waiting` with what CURRENT says each time the active writer was found alive. Costs a
    /// conditional GET every two seconds, and one of the log. An unavailable store is waited for.
    ///
    /// # Errors
    /// `Corrupt`: CURRENT or the manifest it names, or CURRENT is gone.
    pub async fn wait(
        &self,
        snapshot: Snapshot,
        mut waiting: impl FnMut(&Snapshot),
    ) -> Result<HeadStart> {
        let takeover_after = self.takeover_after.mul_f64(1.0 + self.env.random.unit() / 4.0);
        let root = self.manifests.bucket().root_id();
        let mut log = Some(Prefetched::new(snapshot.current.replay_from));
        let mut vigil = Vigil::new(snapshot, self.env.clock.boot());
        let mut looking: Option<Looking> = None;
        loop {
            if vigil.claim().closed {
                return Ok(head_start(vigil.snapshot, log, looking));
            }
            let answer = self.ask(&vigil.snapshot, &root).await;
            let now = self.env.clock.boot();
            match answer {
                Answer::Active => {
                    vigil.answered(now);
                    waiting(&vigil.snapshot);
                }
                Answer::Leaving => vigil.leaves(now),
                Answer::Closed(told) => {
                    let (current, version) = *told;
                    let snapshot = self.manifests.with_current(&vigil.snapshot, current, version);
                    match snapshot {
                        Some(snapshot) => return Ok(head_start(snapshot, log, looking)),
                        // It names a manifest that is not known here: a look finds both.
                        None => vigil.leaves(now),
                    }
                }
                Answer::Silent if self.is_earlier_life(vigil.claim(), &root) => {
                    return Ok(head_start(vigil.snapshot, log, looking));
                }
                Answer::Silent => {}
            }
            let is_leaving = vigil.leaving_since.is_some();
            let patience = vigil.patience(takeover_after, self.own_url.as_deref());
            if patience > takeover_after {
                waiting(&vigil.snapshot);
            }
            if looking.is_none() && wants_look(&vigil, now, patience) {
                looking = log.take().map(|log| self.look(vigil.snapshot.clone(), log));
            }
            let pause = if is_leaving { ASK_INTERVAL_LEAVING } else { ASK_INTERVAL };
            let Some(look) = within(&mut looking, pause).await else { continue };
            let dead = match &look.found {
                Ok(snapshot) => vigil.looked(&look, snapshot.clone(), patience),
                Err(_) => false,
            };
            log = Some(look.log);
            look.found?;
            if dead {
                let WriterClaim { url, epoch, .. } = vigil.claim();
                let url = url.as_deref();
                tracing::warn!(url, %epoch, "the active writer shows no life: taking over");
                return Ok(head_start(vigil.snapshot, log, looking));
            }
        }
    }

    /// Asks the writer that made the claim. A claim that was made at another root came with a copy
    /// of that root's objects: its writer does not write here.
    async fn ask(&self, snapshot: &Snapshot, root: &str) -> Answer {
        let Current { writer: claim, database, .. } = &snapshot.current;
        match &claim.url {
            Some(url) if claim.is_of_root(root) => {
                self.peers.ask(url, Asked { claim, database: *database, root }).await
            }
            _ => Answer::Silent,
        }
    }

    fn is_earlier_life(&self, claim: &WriterClaim, root: &str) -> bool {
        self.url.is_some() && self.url == claim.url && claim.is_of_root(root)
    }

    /// Reads CURRENT and the log, at the same time.
    fn look(&self, known: Snapshot, mut log: Prefetched) -> Looking {
        let (manifests, env) = (self.manifests.clone(), self.env.clone());
        let wal = Wal::new(manifests.bucket().clone(), known.current.database);
        async move {
            let began = env.clock.boot();
            let (refreshed, mut read) =
                futures::join!(manifests.refresh(&known), log.read_on(&wal));
            let mut is_certain = true;
            let mut note = |error: Error| {
                is_certain = false;
                tracing::warn!(%error, "the standby cannot read the bucket; trying again");
            };
            let found = match refreshed {
                Ok(changed) => Ok(changed.unwrap_or(known)),
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    note(error);
                    Ok(known)
                }
                Err(error) => Err(error),
            };
            if let Ok(snapshot) = &found {
                let before = log.position();
                log.advance(snapshot.current.replay_from);
                // SUBTLE: a flush has passed what was read, and what came next may be collected.
                // The log goes on behind it, and only its end shows whether it grows.
                if read.is_ok() && log.position() > before {
                    read = log.read_on(&wal).await;
                }
            }
            if let Err(error) = read {
                note(error);
            }
            Look { began, found, is_certain, log }
        }
        .boxed()
    }
}

fn wants_look(vigil: &Vigil, now: Duration, patience: Duration) -> bool {
    let silence = now.saturating_sub(vigil.alive_at);
    vigil.leaving_since.is_some()
        || (silence > Duration::ZERO && vigil.silent_end.is_none())
        || silence >= patience
        || now.saturating_sub(vigil.looked_at) >= LOOK_INTERVAL
}

/// The look, if one ends within the pause.
async fn within(looking: &mut Option<Looking>, pause: Duration) -> Option<Look> {
    let pause = tokio::time::sleep(pause);
    let Some(look) = looking else {
        pause.await;
        return None;
    };
    let ended = tokio::select! {
        biased;
        look = look => look,
        () = pause => return None,
    };
    *looking = None;
    Some(ended)
}

/// What a takeover begins with; a look under way goes on beside the claim.
fn head_start(snapshot: Snapshot, log: Option<Prefetched>, looking: Option<Looking>) -> HeadStart {
    let replay_from = snapshot.current.replay_from;
    let log = match (log, looking) {
        (Some(log), _) => std::future::ready(log).boxed(),
        (None, Some(looking)) => looking.map(|look| look.log).boxed(),
        (None, None) => std::future::ready(Prefetched::new(replay_from)).boxed(),
    };
    HeadStart { snapshot: Some(snapshot), log, hold: Hold::AsLeased }
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
