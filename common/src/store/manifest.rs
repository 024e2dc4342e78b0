//! CURRENT and the manifest it names: reading them together, and making a database.
//!
//! **Invariants**
//! - CURRENT is created once, after the store has shown that it honours conditions.
//! - A root without CURRENT is an empty database only where it holds at most what an unfinished
//!   creation leaves; else it is damaged, and never taken for empty.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::answer::Reason;
use super::object::{Bucket, Version};
use super::probe::{self, Verdict};
use crate::env::Env;
use crate::error::{Error, REMEDY, Result};
use crate::faults::planted;
use crate::format::current::Current;
use crate::format::manifest::Manifest;
use crate::format::path::{ManifestId, Object, ObjectKind};

/// Times that CURRENT may name a manifest that is gone before the root counts as damaged. Each time
/// another commit and a collection came between our two GETs.
const MOVED_COUNT_MAX: u32 = 8;
/// Between the two reads that must both miss CURRENT before it counts as gone: long enough for
/// another connection and another server to answer, far below the default lease.
const MISSING_PAUSE: Duration = Duration::from_millis(200);
/// Before the looks at a CURRENT that is older than it was.
const OLDER_PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];
/// Reads of a manifest that CURRENT goes on naming before it counts as lost.
const MISSED_COUNT_MAX: u32 = 3;
/// Between two of them, about.
const MISSED_PAUSE: Duration = Duration::from_millis(500);

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

/// The manifests of the database in one bucket.
#[derive(Clone, Debug)]
pub struct Manifests {
    pub(super) bucket: Bucket,
    pub(super) env: Env,
}

impl Manifests {
    /// The manifests in `bucket`.
    pub fn new(bucket: Bucket, env: Env) -> Self {
        Self { bucket, env }
    }

    /// The bucket that they are in.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// CURRENT as somebody else has just read or written it, with the manifest of `known`; `None`
    /// if it does not belong to `known`'s database, or names another manifest.
    pub fn with_current(
        &self,
        known: &Snapshot,
        current: Current,
        version: Version,
    ) -> Option<Snapshot> {
        let is_same = current.database == known.current.database
            && current.manifest == known.current.manifest
            && current.manifest_digest == known.current.manifest_digest;
        let manifest = Arc::clone(&known.manifest);
        is_same.then_some(Snapshot { current, version, manifest })
    }

    /// CURRENT and its manifest; `None` where the root holds no database yet.
    ///
    /// Costs two GETs; on an empty root one GET and a LIST for every kind.
    ///
    /// # Errors
    /// `Corrupt`, also for a root that has lost its CURRENT. `Unavailable`, `Indeterminate`.
    pub async fn load(&self) -> Result<Option<Snapshot>> {
        match self.current().await {
            Ok((current, version)) => self.follow(current, version).await.map(Some),
            Err(Error::NotFound(_)) => match self.refuse_damaged_root().await {
                Ok(()) => Ok(None),
                Err(damaged) => self.load_after_all(damaged).await.map(Some),
            },
            Err(error) => Err(error),
        }
    }

    /// SUBTLE: objects without a CURRENT are a damaged root, or a database that another process
    /// made between our look for CURRENT and our look for objects.
    async fn load_after_all(&self, damaged: Error) -> Result<Snapshot> {
        match self.current().await {
            Ok((current, version)) => self.follow(current, version).await,
            Err(Error::NotFound(_)) => Err(damaged),
            Err(error) => Err(error),
        }
    }

    /// What is there now; `None` where CURRENT is still the body of `known`.
    ///
    /// Costs one conditional GET, and a GET of the manifest where that is another one.
    ///
    /// # Errors
    /// `Corrupt`, also where CURRENT is another database's, is an older one that was put back, or
    /// two reads in a row did not find it. `Unavailable`, `Indeterminate`.
    pub async fn refresh(&self, known: &Snapshot) -> Result<Option<Snapshot>> {
        let read =
            self.bucket.read_if_changed(&Object::Current, &known.version, |b| Current::parse(&b));
        let changed = match read.await {
            Err(Error::NotFound(_)) if planted("writer_ignores_missing_current") => {
                return Ok(None);
            }
            Err(Error::NotFound(_)) => Some(self.look_again_for_current().await?),
            answer => answer?,
        };
        let Some((current, version)) = changed else { return Ok(None) };
        let (current, version) = self.unless_older(&known.current, (current, version)).await?;
        if current.database != known.current.database {
            let cause = format!("database {} became {}", known.current.database, current.database);
            return Err(Error::corrupt(Object::Current.path(), cause));
        }
        if went_back(&known.current, &current) {
            return Err(put_back(&known.current, &current));
        }
        if current.manifest == known.current.manifest {
            let manifest = Arc::clone(&known.manifest);
            return Ok(Some(Snapshot { current, version, manifest }));
        }
        self.follow(current, version).await.map(Some)
    }

    /// Makes the database where the root is empty: probes the store, then writes manifest 1 and
    /// CURRENT.
    ///
    /// Costs two GETs where a database is there, about a dozen requests where not. Dropped halfway,
    /// it leaves what the next try takes for an empty root.
    ///
    /// # Errors
    /// `Unfit` where the store does not honour conditional writes; `Corrupt` for a damaged root.
    pub async fn create(&self) -> Result<Snapshot> {
        loop {
            if let Some(snapshot) = self.load().await? {
                return Ok(snapshot);
            }
            match probe::probe(&self.bucket, self.env.random.uuid()).await? {
                Verdict::Honoured => {}
                Verdict::Refused(why) => return Err(Error::Unfit(why)),
            }
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

    /// Loads the manifest that `current` names; starts over from CURRENT where it is gone.
    pub(super) async fn follow(
        &self,
        mut current: Current,
        mut version: Version,
    ) -> Result<Snapshot> {
        let mut missed_count = 0;
        for _ in 0..MOVED_COUNT_MAX {
            match self.manifest(&current).await {
                Ok(manifest) => {
                    return Ok(Snapshot { current, version, manifest: Arc::new(manifest) });
                }
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
            let (next, found) = self.existing_current().await?;
            if next.manifest == current.manifest {
                missed_count += 1;
                if missed_count >= MISSED_COUNT_MAX {
                    break;
                }
                self.bucket.metrics().retried(Reason::Missing);
                tokio::time::sleep(MISSED_PAUSE.mul_f64(0.5 + self.env.random.unit())).await;
            }
            (current, version) = (next, found);
        }
        let name = Object::Manifest(current.manifest).path();
        let cause = format!("CURRENT names it and it is not there: {REMEDY}");
        Err(Error::corrupt(name, cause))
    }

    /// CURRENT only goes forward: one that is older than what is known is the answer of a cache on
    /// the way, or was put back by somebody. It is read again, without a condition; what the last
    /// look shows is what is there.
    async fn unless_older(
        &self,
        known: &Current,
        mut found: (Current, Version),
    ) -> Result<(Current, Version)> {
        let is_odd = |found: &Current| found.database != known.database || went_back(known, found);
        for pause in OLDER_PAUSES {
            if !is_odd(&found.0) || planted("one_odd_answer_is_believed") {
                break;
            }
            self.bucket.metrics().retried(Reason::Garbled);
            tokio::time::sleep(pause).await;
            found = self.existing_current().await?;
        }
        Ok(found)
    }

    /// CURRENT of a database that was there: it takes two reads to believe that it is not.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    pub(super) async fn existing_current(&self) -> Result<(Current, Version)> {
        match self.current().await {
            Err(Error::NotFound(_)) => self.look_again_for_current().await,
            answer => answer,
        }
    }

    /// CURRENT did not answer to one read: one answer is not belief, so it is read again, without a
    /// condition, a moment later.
    ///
    /// # Errors
    /// `Corrupt`: the second read did not find it either.
    async fn look_again_for_current(&self) -> Result<(Current, Version)> {
        tokio::time::sleep(MISSING_PAUSE).await;
        match self.current().await {
            Err(Error::NotFound(_)) => {
                let url = self.bucket.url();
                let cause = format!("it is gone from {url}: two reads did not find it. {REMEDY}");
                Err(Error::corrupt(Object::Current.path(), cause))
            }
            answer => answer,
        }
    }

    async fn manifest(&self, current: &Current) -> Result<Manifest> {
        let object = Object::Manifest(current.manifest);
        let parse = |bytes: Bytes| {
            let manifest = Manifest::parse(&bytes, &current.manifest_digest)?;
            manifest.check_named_by(current)?;
            Ok(manifest)
        };
        self.bucket.read_parsed(&object, None, parse).await
    }

    /// CURRENT and its version, read until it parses. One GET.
    pub(super) async fn current(&self) -> Result<(Current, Version)> {
        let parse = |bytes: Bytes| Current::parse(&bytes);
        self.bucket.read_versioned(&Object::Current, parse).await
    }

    /// A root without CURRENT is empty where it holds at most what an unfinished creation leaves:
    /// probes and manifests of version 1. Anything else is a database that lost its CURRENT, or
    /// somebody else's data.
    async fn refuse_damaged_root(&self) -> Result<()> {
        let Some(found) = self.bucket.any_object().await? else { return Ok(()) };
        for kind in [ObjectKind::Wal, ObjectKind::Sst, ObjectKind::Run, ObjectKind::Manifest] {
            let listed = self.bucket.list(kind).await?;
            let unfinished =
                |object: &Object| matches!(object, Object::Manifest(ManifestId { version: 1, .. }));
            if let Some(listed) = listed.iter().find(|listed| !unfinished(&listed.object)) {
                return Err(damaged_root(&listed.object.path()));
            }
        }
        let ours = ObjectKind::ALL.iter().any(|kind| found.contains(&format!("{}/", kind.name())));
        if ours { Ok(()) } else { Err(damaged_root(&found)) }
    }
}

fn went_back(known: &Current, found: &Current) -> bool {
    found.version < known.version
        || found.writer.epoch < known.writer.epoch
        || found.compactor.epoch < known.compactor.epoch
}

fn put_back(known: &Current, found: &Current) -> Error {
    let place = |current: &Current| {
        let (version, writer, compactor) =
            (current.version, current.writer.epoch, current.compactor.epoch);
        format!("version {version} (epochs of writer {writer}, of compactor {compactor})")
    };
    let cause = format!(
        "it went back from {} to {}: the bucket was restored under running processes. Stop every \
         process of it before you restore it",
        place(known),
        place(found)
    );
    Error::corrupt(Object::Current.path(), cause)
}

fn damaged_root(found: &str) -> Error {
    Error::corrupt(
        Object::Current.path(),
        format!("the root holds {found} and no CURRENT, so it is not new: {REMEDY}"),
    )
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::throttle::{ThrottleConfig, ThrottledStore};

    use super::*;
    use crate::store::object::StoreSettings;
    use crate::types::WalId;

    #[tokio::test(start_paused = true)]
    async fn a_database_that_appears_while_we_look_is_not_a_damaged_root() {
        let memory = Arc::new(InMemory::new());
        let wait_list_per_call = Duration::from_millis(100);
        let slow = ThrottleConfig { wait_list_per_call, ..ThrottleConfig::default() };
        let slow = Arc::new(ThrottledStore::new(Arc::clone(&memory), slow));
        let env = Env::system();
        let open = |store: Arc<dyn object_store::ObjectStore>| {
            let bucket = Bucket::new(store, "db", StoreSettings::default(), env.clone());
            Manifests::new(bucket.unwrap(), env.clone())
        };
        let (maker, looker) = (open(memory), open(slow));
        // What an unfinished creation has left: else one look at the root is enough.
        maker.bucket.put(&Object::Probe(env.random.uuid()), "1".into()).await.unwrap();
        let made = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let made = maker.create().await.unwrap();
            maker.bucket.put(&Object::Wal(WalId(1)), "fence".into()).await.unwrap();
            made
        };
        let (found, made) = tokio::join!(looker.load(), made);
        assert_eq!(found.unwrap().unwrap().current, made.current);
        maker.bucket.delete(&[Object::Current]).await.unwrap();
        assert!(matches!(looker.load().await, Err(Error::Corrupt(_))), "and this one is");
    }
}
