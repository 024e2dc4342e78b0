//! The probe: whether a store honours conditional writes, without which nothing here is safe.
//!
//! Run once per database, before its CURRENT is created or where CURRENT says that it never was.

use bytes::Bytes;
use uuid::Uuid;

use super::object::Bucket;
use crate::format::path::Object;
use crate::{Error, Result};

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The store honours conditions.
    Honoured,
    /// The store does not, with a text for a person: what it did, and what to do.
    Refused(String),
}

/// Creates a probe object twice, swaps it with a wrong version, with the right one, and with the
/// one that is right no more. Seven requests; leaves one object of a few bytes, under a name that
/// must be fresh.
///
/// # Errors
/// `Unavailable`, `Indeterminate`: nothing was learnt, probe again under another name.
pub async fn probe(bucket: &Bucket, fresh: Uuid) -> Result<Verdict> {
    let object = Object::Probe(fresh);
    bucket.create(&object, Bytes::from_static(b"1")).await.map_err(unfit)?;
    match bucket.create(&object, Bytes::from_static(b"2")).await {
        Err(Error::Conflict(_)) => {}
        Ok(()) => return Ok(refused(bucket, "a second create of one object succeeded")),
        Err(error) => return Err(unfit(error)),
    }
    let (bytes, first) = bucket.get_versioned(&object).await?;
    if bytes != "1" {
        return Ok(refused(bucket, "a create that was refused has changed the object"));
    }
    let second = match bucket.swap(&object, Bytes::from_static(b"3"), &first).await {
        Ok(version) => version,
        Err(Error::Conflict(_)) => {
            return Ok(refused(bucket, "a swap with the right version was refused"));
        }
        Err(error) => return Err(unfit(error)),
    };
    match bucket.swap(&object, Bytes::from_static(b"4"), &first).await {
        Err(Error::Conflict(_)) => {}
        Ok(_) => return Ok(refused(bucket, "a swap with a version of the past succeeded")),
        Err(error) => return Err(unfit(error)),
    }
    if bucket.get_if_changed(&object, &second).await?.is_some() {
        return Ok(refused(bucket, "a conditional read of an unchanged object found a change"));
    }
    match bucket.get_if_changed(&object, &first).await? {
        Some((bytes, version)) if bytes == "3" && version == second => Ok(Verdict::Honoured),
        _ => Ok(refused(bucket, "a swap and the reads after it do not agree")),
    }
}

/// A store that cannot do what is asked at all.
fn unfit(error: Error) -> Error {
    match error {
        Error::Invalid(text) => Error::Invalid(format!("conditional writes do not work: {text}")),
        error => error,
    }
}

fn refused(bucket: &Bucket, what: &str) -> Verdict {
    Verdict::Refused(format!(
        "the store {} does not honour conditional writes: {what}. Two writers would overwrite each \
         other's data there. Use a store that does (Amazon S3, Google Cloud Storage, Azure Blob \
         Storage, MinIO, a local directory), or a newer version of this one",
        bucket.url()
    ))
}
