//! WAL objects in the bucket: reading one, and appending one until its fate is known.
//!
//! **Invariants**
//! - A retry sends the same bytes at the same id, and an ambiguous answer is settled by one: never
//!   by the next id, and never by reading back alone, since a directory shows a file before its
//!   name is durable.
//! - A name holds one object for ever, so bytes equal to ours at our id are ours once the store has
//!   said "exists".

use std::time::Duration;

use bytes::Bytes;

use super::object::Bucket;
use super::pause::Pause;
use crate::error::{Error, REMEDY, Result};
use crate::faults::planted;
use crate::format::path::Object;
use crate::format::wal::WalObject;
use crate::types::{DatabaseId, WalId};

/// Smaller objects are copied out of the buffer in which they came over the network: their batches
/// stay in memtables for long, and would keep all of it.
const UNPINNED_BYTES_MAX: usize = 512 << 10;
/// The first pause before an append is tried again after the bucket's own retries gave up.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// The longest: what an append that was refused for long may lose once the store is back.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The WAL of one database.
#[derive(Clone, Debug)]
pub struct Wal {
    bucket: Bucket,
    database: DatabaseId,
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
        match self.bucket.get(&Object::Wal(id)).await {
            Ok(bytes) if bytes.len() < UNPINNED_BYTES_MAX => {
                self.parse(id, Bytes::copy_from_slice(&bytes)).map(Some)
            }
            Ok(bytes) => self.parse(id, bytes).map(Some),
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
                Err(Error::Conflict(_)) => self.bucket.get(&object).await,
                Err(error) => Err(error),
            };
            match met {
                Ok(found) if found == *bytes => return Ok(Appended::Proven),
                Ok(found) => return self.parse(id, found).map(Appended::Taken),
                // SUBTLE: absent though it exists: another create is in progress, maybe our own.
                Err(
                    error @ (Error::NotFound(_) | Error::Unavailable(_) | Error::Indeterminate(_)),
                ) => pause.wait(self.bucket.env(), &error).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn parse(&self, id: WalId, bytes: Bytes) -> Result<WalObject> {
        WalObject::parse(bytes, self.database, id)
            .map_err(|cause| Error::corrupt(Object::Wal(id).path(), format!("{cause}: {REMEDY}")))
    }
}
