//! Waiting for the compactor's role: a second compactor takes over when the active one has been
//! silent for a while, over HTTP and in the bucket. A wrong guess is harmless, the epoch fences;
//! this only avoids that two compactors depose each other and no long job ever ends.
//!
//! **Invariant**: a claim that names no address, or our own, is not waited for: nobody could answer
//! for it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::format::current::CompactorClaim;
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::Bucket;
use cairn_common::types::Role;
use serde::Deserialize;
use uuid::Uuid;

/// How often the active compactor is asked; free of store requests.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// How often CURRENT is read while the active compactor answers.
const CURRENT_INTERVAL: Duration = Duration::from_secs(5);
/// A compactor that works answers its status within milliseconds; a stopped process, never.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// A way to ask the active compactor.
#[async_trait]
pub trait Peers: Debug + Send + Sync {
    /// Whether the process that answers at `url` is the one that made this claim, and works.
    async fn is_active(&self, url: &str, claim: &CompactorClaim) -> bool;
}

/// Asks `GET {url}/v1/status`.
#[derive(Debug)]
pub struct HttpPeers {
    client: reqwest::Client,
}

#[derive(Deserialize)]
struct Status {
    role: String,
    instance: Option<Uuid>,
    state: Option<String>,
}

impl HttpPeers {
    /// A client with one short timeout.
    ///
    /// # Errors
    /// `Invalid` if the TLS settings of the machine cannot be loaded.
    pub fn new() -> Result<Self> {
        let client = reqwest::Client::builder().timeout(ASK_TIMEOUT).no_proxy().build();
        let client = client.map_err(|error| Error::Invalid(format!("no HTTP client: {error}")))?;
        Ok(Self { client })
    }
}

#[async_trait]
impl Peers for HttpPeers {
    async fn is_active(&self, url: &str, claim: &CompactorClaim) -> bool {
        let url = format!("{}/v1/status", url.trim_end_matches('/'));
        let Ok(reply) = self.client.get(url).send().await else { return false };
        let Ok(status) = reply.json::<Status>().await else { return false };
        status.role == "compactor"
            && status.instance == Some(claim.uuid)
            && status.state.as_deref() == Some("working")
    }
}

/// What a standby waits with.
#[derive(Debug)]
pub struct Standby<'a> {
    /// The environment.
    pub env: &'a Env,
    /// Where the database is.
    pub bucket: &'a Bucket,
    /// A way to ask the active compactor.
    pub peers: &'a dyn Peers,
    /// Silence after which the active compactor counts as dead; jittered upwards by a quarter.
    pub takeover_after: Duration,
    /// Our own address, if no other host has the same.
    pub url: Option<String>,
}

impl Standby<'_> {
    /// Returns when the role is free to take, or there is no database yet. `waiting` is called
    /// once, if it has to wait.
    ///
    /// Costs a conditional GET every five seconds; while the active compactor is silent, a LIST of
    /// SSTs and runs each `takeover_after`. An unavailable store is waited for.
    ///
    /// # Errors
    /// `Corrupt`: CURRENT or the manifest it names; `Invalid`.
    pub async fn wait(&self, waiting: impl FnOnce()) -> Result<()> {
        let manifests = Manifests::new(self.bucket.clone(), self.env.clone());
        let patience = self.takeover_after.mul_f64(1.0 + self.env.random.unit() / 4.0);
        let mut waiting = Some(waiting);
        let Some(mut snapshot) = self.load(&manifests).await? else { return Ok(()) };
        let mut heard_at = self.env.clock.boot();
        let mut read_at = heard_at;
        // What the claim's holder had made when it was silent first.
        let mut made: Option<BTreeSet<Object>> = None;
        loop {
            let claim = snapshot.current.compactor.clone();
            let Some(url) = claim.url.clone().filter(|url| Some(url) != self.url.as_ref()) else {
                return Ok(());
            };
            let is_active = self.peers.is_active(&url, &claim).await;
            let now = self.env.clock.boot();
            if is_active {
                (heard_at, made) = (now, None);
                if let Some(waiting) = waiting.take() {
                    let epoch = claim.epoch;
                    tracing::info!(%url, %epoch, "another compactor is active: waiting");
                    waiting();
                }
            } else if made.is_none() {
                made = self.made_by(&claim).await;
            } else if now.saturating_sub(heard_at) >= patience {
                let since = self.made_by(&claim).await;
                if since.is_some() && since == made {
                    tracing::warn!(%url, epoch = %claim.epoch, "the active compactor is silent: \
                                   taking over");
                    return Ok(());
                }
                // It cannot be reached from here, and works all the same.
                (heard_at, made) = (now, since.or(made));
            }
            if !is_active || now.saturating_sub(read_at) >= CURRENT_INTERVAL {
                read_at = now;
                let epoch = claim.epoch;
                match manifests.refresh(&snapshot).await {
                    Ok(Some(newer)) => snapshot = newer,
                    Ok(None) | Err(Error::Unavailable(_) | Error::Indeterminate(_)) => {}
                    Err(error) => return Err(error),
                }
                if snapshot.current.compactor.epoch != epoch {
                    (heard_at, made) = (now, None);
                }
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    async fn load(&self, manifests: &Manifests) -> Result<Option<Snapshot>> {
        loop {
            match manifests.load().await {
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    // A bucket that does not exist, or credentials that are refused, are no outage.
                    if let Err(refused @ Error::Invalid(_)) = self.bucket.check().await {
                        return Err(refused);
                    }
                    tracing::warn!(%error, "the store does not answer; trying again");
                }
                loaded => return loaded,
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    /// The objects made under this claim that are there; `None` if they cannot be listed.
    async fn made_by(&self, claim: &CompactorClaim) -> Option<BTreeSet<Object>> {
        let mut made = BTreeSet::new();
        for kind in [ObjectKind::Run, ObjectKind::Sst] {
            let listed = self.bucket.list(kind).await.ok()?;
            made.extend(listed.into_iter().map(|listed| listed.object).filter(|object| {
                matches!(object, Object::Run(id) | Object::Sst(id)
                    if id.role == Role::Compactor && id.epoch == claim.epoch)
            }));
        }
        Some(made)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use cairn_common::format::path::OutputId;
    use cairn_common::store::claim::Claim;
    use tokio::time::timeout;

    use super::*;
    use crate::kit::{Kit, run_paused};

    const AFTER: Duration = Duration::from_secs(5);

    #[derive(Debug)]
    struct Peer(AtomicBool);

    #[async_trait]
    impl Peers for Peer {
        async fn is_active(&self, _: &str, _: &CompactorClaim) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    async fn claimed(kit: &Kit) -> CompactorClaim {
        kit.writer().await;
        let (uuid, url) = (kit.env.random.uuid(), Some("http://10.0.0.1:7003".to_owned()));
        let claim = Claim { role: Role::Compactor, uuid, url, lease: Duration::ZERO };
        kit.manifests.claim(&claim).await.unwrap().snapshot.current.compactor
    }

    fn standby<'a>(kit: &'a Kit, peers: &'a Peer, url: Option<&str>) -> Standby<'a> {
        let url = url.map(str::to_owned);
        Standby { env: &kit.env, bucket: &kit.bucket, peers, takeover_after: AFTER, url }
    }

    #[test]
    fn second_compactor_waits_until_the_first_is_silent() {
        run_paused(async {
            let kit = Kit::new();
            claimed(&kit).await;
            let (peer, waits) = (Peer(AtomicBool::new(true)), std::cell::Cell::new(0));
            let standby = standby(&kit, &peer, None);
            let mut waiting = std::pin::pin!(standby.wait(|| waits.set(waits.get() + 1)));
            assert!(timeout(Duration::from_hours(1), &mut waiting).await.is_err());
            peer.0.store(false, Ordering::Relaxed);
            assert!(timeout(AFTER, &mut waiting).await.is_err(), "not at the first silence");
            timeout(AFTER * 2, &mut waiting).await.unwrap().unwrap();
            assert_eq!(waits.get(), 1, "it says so once");
        });
    }

    #[test]
    fn life_in_the_bucket_counts() {
        run_paused(async {
            let kit = Kit::new();
            let claim = claimed(&kit).await;
            let peer = Peer(AtomicBool::new(false));
            let standby = standby(&kit, &peer, None);
            let mut waiting = std::pin::pin!(standby.wait(|| {}));
            for number in 0..20 {
                let uuid = Uuid::from_u128(number);
                let id = OutputId { role: Role::Compactor, epoch: claim.epoch, uuid };
                kit.bucket.put(&Object::Sst(id), Bytes::from_static(b"x")).await.unwrap();
                assert!(timeout(Duration::from_secs(3), &mut waiting).await.is_err());
            }
            timeout(AFTER * 3, &mut waiting).await.unwrap().unwrap();
        });
    }

    #[test]
    fn an_earlier_life_of_ours_and_nobody_are_not_waited_for() {
        run_paused(async {
            let kit = Kit::new();
            let peer = Peer(AtomicBool::new(true));
            standby(&kit, &peer, None).wait(|| panic!("no database")).await.unwrap();
            kit.writer().await;
            standby(&kit, &peer, None).wait(|| panic!("no compactor")).await.unwrap();
            let claim = claimed(&kit).await;
            let own = standby(&kit, &peer, claim.url.as_deref());
            own.wait(|| panic!("our own address")).await.unwrap();
        });
    }
}
