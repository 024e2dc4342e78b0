//! WAL objects in the bucket: reading one, and appending one until its fate is known.
//!
//! **Invariants**
//! - A name holds one object for ever, so bytes equal to ours at our id are ours: every ambiguous
//!   answer is settled by reading back, never by "exists" alone and never by the next id.
//! - A retry sends the same bytes at the same id.

use std::time::Duration;

use bytes::Bytes;

use super::object::Bucket;
use crate::error::{Error, Result};
use crate::format::path::Object;
use crate::format::wal::WalObject;
use crate::types::{DatabaseId, WalId};

/// Pause before an append is tried again after the bucket's own retries gave up.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

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
            Ok(bytes) => self.parse(id, bytes).map(Some),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts `bytes` at `id` and returns once it is certain what stands there. Tries for as long as
    /// the store is unavailable: the caller bounds it by dropping the future.
    ///
    /// Costs one PUT; one GET more for every ambiguous answer. Dropped halfway, the bytes may land
    /// later.
    ///
    /// # Errors
    /// `Corrupt`: what stands there is no WAL object. `Invalid`: the store refuses for good.
    pub async fn append(&self, id: WalId, bytes: &Bytes) -> Result<Appended> {
        let object = Object::Wal(id);
        loop {
            match self.bucket.create(&object, bytes.clone()).await {
                Ok(()) => return Ok(Appended::Proven),
                Err(Error::Conflict(_) | Error::Indeterminate(_)) => {}
                Err(error @ Error::Unavailable(_)) => {
                    tracing::warn!(%error, wal = %id, "the store refuses WAL writes; trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            match self.bucket.get(&object).await {
                Ok(found) if found == *bytes => return Ok(Appended::Proven),
                Ok(found) => return self.parse(id, found).map(Appended::Taken),
                // SUBTLE: absent after an ambiguous answer: either ours never landed, or it has
                // not landed yet. Both are settled by the same bytes at the same id.
                Err(Error::NotFound(_)) => {}
                Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                    tracing::warn!(%error, wal = %id, "a WAL object cannot be read back; again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn parse(&self, id: WalId, bytes: Bytes) -> Result<WalObject> {
        WalObject::parse(bytes, self.database, id).map_err(|cause| {
            let advice = format!("{cause}: restore the object, or run `cairn repair`");
            Error::corrupt(Object::Wal(id).path(), advice)
        })
    }
}
