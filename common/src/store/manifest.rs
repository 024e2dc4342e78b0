//! CURRENT and the manifest it names: loading, claiming an epoch, committing an edit.
//!
//! **Life of a commit**: read CURRENT and its body; decide from *that* body; PUT the new body under
//! a new name; swap CURRENT. Whatever the answer to the swap, the loop begins again by reading, and
//! the caller's `decide` says whether its effect is there. So a lost race, a lost answer and a
//! late landing are one path.
//!
//! **Invariants**
//! - A commit is computed from the body that it replaces, and settled by its effect.
//! - A claim changes CURRENT alone and writes no body; it is settled by its uuid.
//! - CURRENT is created once, after the store has shown that it honours conditions.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::object::{Bucket, Version};
use super::probe;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::current::{Claimant, Current};
use crate::format::edit::{self, Committer, Edit};
use crate::format::manifest::Manifest;
use crate::format::path::{ManifestId, Object, ObjectKind};
use crate::types::{Epoch, Role};

/// Times that CURRENT may name a manifest that is gone before the root counts as damaged. Each time
/// another commit and a collection came between our two GETs.
const MOVED_COUNT_MAX: u32 = 8;
/// Pause between tries of a swap while the store is unavailable or others win: grows to the second.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// CURRENT and the manifest it names, read together.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The body of CURRENT.
    pub current: Current,
    /// The store's version of that body: what a swap replaces.
    pub version: Version,
    /// The manifest that it names.
    pub manifest: Arc<Manifest>,
}

/// What a commit does next, decided from what is there now.
#[derive(Debug)]
pub enum Decision {
    /// The effect is there (or is not wanted any more): the commit is over.
    Over,
    /// Replace what is there by this edit of it.
    Commit(Edit),
}

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

/// The manifests of the database in one bucket.
#[derive(Clone, Debug)]
pub struct Manifests {
    bucket: Bucket,
    env: Env,
}

impl Manifests {
    /// The manifests in `bucket`.
    pub fn new(bucket: Bucket, env: Env) -> Self {
        Self { bucket, env }
    }

    /// CURRENT and its manifest; `None` where the root holds no database yet.
    ///
    /// Costs two GETs; on an empty root one GET and a LIST for every kind. Errors: `Corrupt` for a
    /// root that has lost its CURRENT.
    pub async fn load(&self) -> Result<Option<Snapshot>> {
        match self.bucket.get_versioned(&Object::Current).await {
            Ok((bytes, version)) => self.follow(parse_current(&bytes)?, version).await.map(Some),
            Err(Error::NotFound(_)) => self.refuse_damaged_root().await.map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// What is there now; `None` where CURRENT is still the body of `known`.
    ///
    /// Costs one conditional GET, and a GET of the manifest where that is another one.
    pub async fn refresh(&self, known: &Snapshot) -> Result<Option<Snapshot>> {
        let changed = self.bucket.get_if_changed(&Object::Current, &known.version).await?;
        let Some((bytes, version)) = changed else { return Ok(None) };
        let current = parse_current(&bytes)?;
        if current.database != known.current.database {
            let cause = format!("database {} became {}", known.current.database, current.database);
            return Err(Error::corrupt(Object::Current.path(), cause));
        }
        if current.manifest == known.current.manifest {
            let manifest = Arc::clone(&known.manifest);
            return Ok(Some(Snapshot { current, version, manifest }));
        }
        self.follow(current, version).await.map(Some)
    }

    /// Makes the database where the root is empty: probes the store, then writes manifest 1 and
    /// CURRENT. Returns what is there then, made by us or by another.
    ///
    /// Errors: `Invalid` where the store does not honour conditions.
    pub async fn create(&self) -> Result<Snapshot> {
        loop {
            if let Some(snapshot) = self.load().await? {
                return Ok(snapshot);
            }
            probe::probe(&self.bucket, self.env.random.uuid()).await?;
            let id = ManifestId { version: 1, uuid: self.env.random.uuid() };
            let manifest = Manifest::empty(self.env.random.uuid(), id);
            let (bytes, digest) = manifest.encode();
            self.bucket.put(&Object::Manifest(id), bytes).await?;
            let nonce = self.env.random.uuid();
            let first = Current::first(manifest.database, (id, digest), nonce);
            let current = Current { probed: true, ..first };
            match self.bucket.create(&Object::Current, current.encode()).await {
                Ok(()) | Err(Error::Conflict(_) | Error::Indeterminate(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Claims a role: PROTOCOL T1. Goes on until it is certain; the store may be away for long.
    ///
    /// Not cancel-safe: dropped halfway, the claim may land and fence the holder.
    pub async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let mut pause = Pause::new();
        let mut replaced: Option<Current> = None;
        loop {
            let (bytes, version) = match self.bucket.get_versioned(&Object::Current).await {
                Ok(found) => found,
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let proven_at = self.env.clock.boot();
            let current = parse_current(&bytes)?;
            if let (Some(replaced), true) = (&replaced, claim.is_held_in(&current)) {
                let replaced = replaced.clone();
                return self.claimed(claim, current, version, replaced, proven_at).await;
            }
            let next = claim.apply(&current, self.env.random.uuid());
            replaced = Some(current.clone());
            match self.bucket.swap(&Object::Current, next.encode(), &version).await {
                Ok(version) => {
                    let proven_at = self.env.clock.boot();
                    return self.claimed(claim, next, version, current, proven_at).await;
                }
                Err(Error::Conflict(_)) => {}
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Commits what `decide` makes of what is there, until `decide` says that it is over.
    ///
    /// Goes on for as long as the store is unavailable; bound it by dropping it (the commit may
    /// land later then). Costs a GET, a PUT and a swap for each try. Errors: those of `decide`;
    /// `Fenced` where the committer's epoch has passed; `Invalid` where the edit does not fit.
    pub async fn commit<D>(
        &self,
        mut known: Snapshot,
        committer: Committer,
        mut decide: D,
    ) -> Result<Snapshot>
    where
        D: FnMut(&Snapshot) -> Result<Decision> + Send,
    {
        let mut pause = Pause::new();
        loop {
            let Decision::Commit(edit) = decide(&known)? else { return Ok(known) };
            let id = ManifestId {
                version: known.current.version + 1,
                uuid: self.env.random.uuid(),
            };
            let edited = edit::apply(&known.current, &known.manifest, &edit, committer, id)?;
            let (bytes, digest) = edited.manifest.encode();
            let current = edited.current(digest, self.env.random.uuid());
            let swapped = match self.bucket.put(&Object::Manifest(id), bytes).await {
                Ok(()) => {
                    self.bucket.swap(&Object::Current, current.encode(), &known.version).await
                }
                Err(error) => Err(error),
            };
            match swapped {
                Ok(version) => {
                    let manifest = Arc::new(edited.manifest);
                    return Ok(Snapshot { current, version, manifest });
                }
                Err(Error::Conflict(_)) => {}
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    pause.wait(&self.env, &error).await;
                }
                Err(error) => return Err(error),
            }
            known = self.read_back(&known, &mut pause).await?;
        }
    }

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

    async fn claimed(
        &self,
        claim: &Claim,
        current: Current,
        version: Version,
        replaced: Current,
        proven_at: Duration,
    ) -> Result<Claimed> {
        let epoch = claim.epoch_in(&current);
        let mut pause = Pause::new();
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

    /// Loads the manifest that `current` names; starts over from CURRENT where it is gone.
    async fn follow(&self, mut current: Current, mut version: Version) -> Result<Snapshot> {
        for _ in 0..MOVED_COUNT_MAX {
            match self.manifest(&current).await {
                Ok(manifest) => {
                    return Ok(Snapshot { current, version, manifest: Arc::new(manifest) });
                }
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
            let (bytes, found) = self.bucket.get_versioned(&Object::Current).await?;
            let next = parse_current(&bytes)?;
            if next.manifest == current.manifest {
                break;
            }
            (current, version) = (next, found);
        }
        let name = Object::Manifest(current.manifest).path();
        let cause = "CURRENT names it and it is not there: restore it, or run `cairn repair`";
        Err(Error::corrupt(name, cause))
    }

    async fn manifest(&self, current: &Current) -> Result<Manifest> {
        let object = Object::Manifest(current.manifest);
        let bytes = self.bucket.get(&object).await?;
        let corrupt = |cause| Error::corrupt(object.path(), cause);
        let manifest = Manifest::parse(&bytes, &current.manifest_digest).map_err(corrupt)?;
        manifest.check_named_by(current).map_err(corrupt)?;
        Ok(manifest)
    }

    /// A root without CURRENT is empty where it holds at most what an unfinished creation leaves:
    /// probes and manifests of version 1. Anything else is a database that lost its CURRENT, or
    /// somebody else's data.
    async fn refuse_damaged_root(&self) -> Result<()> {
        let Some(found) = self.bucket.any_object().await? else { return Ok(()) };
        for kind in [ObjectKind::Wal, ObjectKind::Sst, ObjectKind::Run, ObjectKind::Manifest] {
            let listed = self.bucket.list(kind).await?;
            let unfinished = |object: &Object| {
                matches!(object, Object::Manifest(ManifestId { version: 1, .. }))
            };
            if let Some(listed) = listed.iter().find(|listed| !unfinished(&listed.object)) {
                return Err(damaged_root(&listed.object.path()));
            }
        }
        let ours = ObjectKind::ALL.iter().any(|kind| found.contains(&format!("{}/", kind.name())));
        if ours { Ok(()) } else { Err(damaged_root(&found)) }
    }
}

fn damaged_root(found: &str) -> Error {
    Error::corrupt(
        Object::Current.path(),
        format!(
            "the root holds {found} but no CURRENT: choose an empty root, or rebuild CURRENT with \
             `cairn repair`"
        ),
    )
}

fn parse_current(bytes: &[u8]) -> Result<Current> {
    Current::parse(bytes).map_err(|cause| Error::corrupt(Object::Current.path(), cause))
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

    fn apply(&self, current: &Current, nonce: Uuid) -> Current {
        let claimant = Claimant { uuid: self.uuid, url: self.url.clone() };
        match self.role {
            Role::Writer => {
                let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
                current.claimed_by_writer(claimant, lease_ms, nonce)
            }
            Role::Compactor => current.claimed_by_compactor(claimant, nonce),
        }
    }
}

/// A pause that doubles, with jitter, up to a bound.
struct Pause {
    next: Duration,
}

impl Pause {
    fn new() -> Self {
        Self { next: PAUSE_FIRST }
    }

    async fn wait(&mut self, env: &Env, error: &Error) {
        tracing::warn!(%error, "the store did not take a commit; trying again");
        tokio::time::sleep(self.next.mul_f64(0.5 + env.random.unit())).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }
}
