//! WAL objects in the bucket: reading one, and appending one until its fate is known.
//!
//! **Invariants**
//! - A retry sends the same bytes at the same id, and an ambiguous answer is settled by one: never
//!   by the next id, and never by reading back alone, since a directory shows a file before its
//!   name is durable.
//! - A name holds one object for ever, so bytes equal to ours at our id are ours once the store has
//!   said "exists".
//! - An absent object is the end of the log unless a later one shows that it was acknowledged
//!   ([`Wal::look_behind`]); and that counts only if the object is still absent afterwards, and
//!   CURRENT, read after that, has not moved replay past it.

use std::time::Duration;

use bytes::Bytes;

use super::object::Bucket;
use super::pause::Pause;
use crate::error::{Error, REMEDY, Result};
use crate::faults::planted;
use crate::format::Corrupt;
use crate::format::path::{Object, ObjectKind};
use crate::format::wal::{FENCE_BYTES, WalKind, WalObject};
use crate::limits::WAL_JUMP;
use crate::types::{DatabaseId, WalId};

/// Smaller objects are copied out of the buffer in which they came over the network: their batches
/// stay in memtables for long, and would keep all of it.
const UNPINNED_BYTES_MAX: usize = 512 << 10;
/// The first pause before an append is tried again after the bucket's own retries gave up.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// The longest: what an append that was refused for long may lose once the store is back.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Most objects behind the end of a walk that are asked for: each further one only because the one
/// before is listed and gone.
const PROOFS_MAX: usize = 8;

/// The WAL of one database.
#[derive(Clone, Debug)]
pub struct Wal {
    bucket: Bucket,
    database: DatabaseId,
}

/// What lies behind the end of a walk.
#[derive(Debug)]
pub enum Behind {
    /// Nothing that shows that more was acknowledged.
    Nothing,
    /// The object that was absent has landed meanwhile: the walk goes on there.
    Landed(WalObject),
    /// The object is absent, and this later one shows that it was acknowledged.
    Proof(WalId),
}

/// How an append ended.
#[derive(Debug)]
pub enum Appended {
    /// Our bytes are in the bucket at our id.
    Proven,
    /// Another writer's object is there; ours is not and will never be.
    Taken(WalObject),
}

impl Wal {
    /// The WAL of `database` in `bucket`.
    pub fn new(bucket: Bucket, database: DatabaseId) -> Self {
        Self { bucket, database }
    }

    /// The object at `id`; `None` where there is none.
    ///
    /// Costs one GET.
    ///
    /// # Errors
    /// `Unavailable`, `Indeterminate`; `Corrupt`.
    pub async fn get(&self, id: WalId) -> Result<Option<WalObject>> {
        let parse = |bytes: Bytes| {
            let bytes = if bytes.len() < UNPINNED_BYTES_MAX {
                Bytes::copy_from_slice(&bytes)
            } else {
                bytes
            };
            self.parse(id, bytes)
        };
        match self.bucket.read_parsed(&Object::Wal(id), None, parse).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts `bytes` at `id` and returns once it is certain what stands there. Tries for as long as
    /// the store is unavailable: the caller bounds it by dropping the future.
    ///
    /// Costs one PUT; one more for every ambiguous answer, and a GET where the object exists then.
    /// Dropped halfway, the bytes may land later.
    ///
    /// # Errors
    /// `Corrupt`: what stands there is no WAL object. `Invalid`: the store refuses for good.
    pub async fn append(&self, id: WalId, bytes: &Bytes) -> Result<Appended> {
        let object = Object::Wal(id);
        let mut pause = Pause::new("a WAL object is not written", PAUSE_FIRST, PAUSE_MAX);
        loop {
            let met = match self.bucket.create(&object, bytes.clone()).await {
                Ok(()) => return Ok(Appended::Proven),
                Err(Error::Conflict(_)) if planted("exists_is_taken_as_success") => {
                    return Ok(Appended::Proven);
                }
                Err(Error::Conflict(_)) => {
                    let parse = |found: Bytes| {
                        if found == *bytes {
                            return Ok(Appended::Proven);
                        }
                        self.parse(id, found).map(Appended::Taken)
                    };
                    self.bucket.read_parsed(&object, None, parse).await
                }
                Err(error) => Err(error),
            };
            match met {
                // SUBTLE: absent though it exists: another create is in progress, maybe our own; or
                // it was not the store that said "exists".
                Err(
                    error @ (Error::NotFound(_) | Error::Unavailable(_) | Error::Indeterminate(_)),
                ) => pause.wait(self.bucket.env(), &error).await,
                settled => return settled,
            }
        }
    }

    /// T2b: whether objects behind `end`, at which the walk found nothing, show that an object was
    /// acknowledged there.
    ///
    /// `Proof` is a verdict only if CURRENT, read after this call, still shows the epoch under
    /// which the caller walks; or, without an epoch, a `replay_from` not after the place where the
    /// walk began. Else the object was collected.
    ///
    /// Costs one LIST of what lies behind; if anything does, a GET of one object of it, and one of
    /// the end.
    ///
    /// # Errors
    /// `Corrupt`: the object that may prove it is damaged. `Unavailable`, `Indeterminate`.
    pub async fn look_behind(&self, end: WalId) -> Result<Behind> {
        let Some(proof) = self.proof_behind(end).await? else { return Ok(Behind::Nothing) };
        // SUBTLE: two worlds: somebody deleted it, or it landed and was proven while we looked.
        match self.get(end).await? {
            Some(object) => Ok(Behind::Landed(object)),
            None => Ok(Behind::Proof(proof)),
        }
    }

    /// What to say of an object that is missing, as `proof` shows.
    pub fn missing(&self, id: WalId, proof: WalId) -> Error {
        let cause = format!(
            "it was acknowledged, as {} shows, and it is not there: somebody else deleted it, or a \
             copy left it out; nothing was written behind it. Put {} back from a version or a \
             backup of the bucket and start again, or start a new database at another root",
            Object::Wal(proof),
            Object::Wal(id)
        );
        Error::corrupt(Object::Wal(id).path(), cause)
    }

    /// An object behind `end` that shows that `end` was acknowledged.
    async fn proof_behind(&self, end: WalId) -> Result<Option<WalId>> {
        if planted("takeover_trusts_the_first_gap") {
            return Ok(None);
        }
        let listed = self.bucket.list_after(ObjectKind::Wal, &Object::Wal(end)).await?;
        let ids = listed.iter().filter_map(|listed| match listed.object {
            Object::Wal(id) if id > end => Some((id, listed.bytes <= FENCE_BYTES as u64)),
            _ => None,
        });
        let mut behind: Vec<_> = ids.collect();
        // Those that prove it whatever they say, then data from the highest id down: of one
        // writer's, the highest has seen the most proven.
        let proves = |id: WalId, is_fence| is_fence || id >= end.plus(WAL_JUMP);
        behind.sort_unstable_by_key(|&(id, is_fence)| (proves(id, is_fence), id));
        for (id, _) in behind.into_iter().rev().take(PROOFS_MAX) {
            // Listed and not there: collected, or the listing is stale.
            let Some(object) = self.get(id).await? else { continue };
            let is_fence = object.header.kind != WalKind::Data;
            let is_proof = proves(id, is_fence) || object.header.proven >= end;
            return Ok(is_proof.then_some(id));
        }
        Ok(None)
    }

    fn parse(&self, id: WalId, bytes: Bytes) -> Result<WalObject, Corrupt> {
        WalObject::parse(bytes, self.database, id)
            .map_err(|cause| Corrupt(format!("{cause}: {REMEDY}")))
    }
}
