//! The probe: whether a store honours conditional writes, also those of many at once, without which
//! nothing here is safe.
//!
//! Run before a database is created, and by each writer before it claims its role: a store may be
//! replaced by another version of itself, or be reached through a proxy since.
//!
//! **Life of a probe**: [`RIVALS`] create one name at once; exactly one succeeds. As many swap the
//! version that it made; exactly one succeeds. Then the past is tried: a create of what exists, a
//! swap of a version that is no more, conditional reads. The object is deleted; one that cannot be
//! is left to the collector.
//!
//! **Invariants**
//! - An answer that is not certain refutes nothing.
//! - Nor does a refusal on its own: a proxy that repeats a PUT whose answer it lost brings the
//!   repetition's refusal, while the write has landed. The content decides what has.
//! - Nor does one odd read: content that no rival wrote is read again, see [`super::doubt`], and so
//!   is a version that nobody made.
//! - What refutes: two successes, a success that the content does not show, content that nobody
//!   wrote, or a condition that held and was refused to all, with nothing written.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use super::object::{Bucket, Version};
use super::pause::Pause;
use crate::format::Corrupt;
use crate::format::path::Object;
use crate::{Error, Result};

/// Writers of one object at once: a store that judges a condition and writes in two steps lets
/// several of them pass. More would cost more and find little more.
const RIVALS: usize = 16;

/// Conditional reads that must find the same before it counts against the store.
const AGREEING: usize = 3;

/// The first pause after a probe that taught nothing.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest: a store that is away is asked again soon after it is back.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The store honours conditions.
    Honoured,
    /// The store does not, with a text for a person: what it did, and what to do.
    Refused(String),
}

/// Probes the store with an object of a few bytes, under a name that must be fresh.
///
/// Costs about 40 small requests, in five rounds. Dropped halfway, the object stays.
///
/// # Errors
/// `Unavailable`, `Indeterminate`: nothing was learnt, probe again under another name. `Invalid`:
/// the store refuses for good.
pub async fn probe(bucket: &Bucket, fresh: Uuid) -> Result<Verdict> {
    let object = Object::Probe(fresh);
    let verdict = race(bucket, &object).await;
    // INVARIANT: probes do not pile up. Without the right to delete, the collector does it.
    if let Err(error) = bucket.delete(&[object]).await {
        tracing::debug!(%error, %object, "the probe's object is left to the collector");
    }
    Ok(match verdict? {
        Ok(()) => Verdict::Honoured,
        Err(what) => Verdict::Refused(refusal(bucket, what)),
    })
}

/// Probes until the store gives a verdict: before a claim, which is a conditional write itself.
///
/// # Errors
/// `Unfit`: the store does not honour conditional writes. `Invalid`: it refuses for good.
pub async fn assure(bucket: &Bucket) -> Result<()> {
    let mut pause = Pause::new("the store was not probed", PAUSE_FIRST, PAUSE_MAX);
    loop {
        match probe(bucket, bucket.env().random.uuid()).await {
            Ok(Verdict::Honoured) => return Ok(()),
            Ok(Verdict::Refused(why)) => return Err(Error::Unfit(why)),
            Err(error @ (Error::Unavailable(_) | Error::Indeterminate(_))) => {
                pause.wait(bucket.env(), &error).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a store did that no store may do.
type Broken = &'static str;

async fn race(bucket: &Bucket, object: &Object) -> Result<Result<(), Broken>> {
    let creates = (0..RIVALS).map(|rival| bucket.create(object, body("create", rival)));
    let created = count(&join_all(creates).await)?;
    if created > 1 {
        return Ok(Err("several creates of one object succeeded"));
    }
    let (made, first) = match read(bucket, object).await {
        Err(Error::Corrupt(_)) => return Ok(Err("a created object holds something else")),
        read => read?,
    };
    if !is_by("create", &made) {
        return Ok(Err("a created object holds something else"));
    }
    let swaps = (0..RIVALS).map(|rival| bucket.swap(object, body("swap", rival), &first));
    let answers = join_all(swaps).await;
    let swapped = count(&answers)?;
    if swapped > 1 {
        return Ok(Err("several swaps of one version succeeded"));
    }
    let (found, second) = match read(bucket, object).await {
        Err(Error::Corrupt(_)) => return Ok(Err("a swapped object holds something else")),
        read => read?,
    };
    let is_certain = answers.iter().all(|answer| matches!(answer, Ok(_) | Err(Error::Conflict(_))));
    // SUBTLE: one may have landed all the same, and its repetition have been refused.
    if is_certain && swapped == 0 && second == first {
        return Ok(Err("a swap with the right version was refused"));
    }
    let winner = answers.iter().position(Result::is_ok);
    let is_explained = match winner {
        Some(rival) => found == text("swap", rival),
        None => is_by("swap", &found) || second == first,
    };
    if !is_explained {
        return Ok(Err("a swap and the read after it do not agree"));
    }
    if second == first {
        // Not one swap is known to have happened: nothing was learnt of swaps.
        return Err(Error::indeterminate(format!("the probe of {object}"), "no swap answered"));
    }
    try_the_past(bucket, object, &first, &second).await
}

/// Conditions on what is not so any more, and conditional reads.
async fn try_the_past(
    bucket: &Bucket,
    object: &Object,
    first: &Version,
    second: &Version,
) -> Result<Result<(), Broken>> {
    let create = bucket.create(object, body("late create", 0));
    let swap = bucket.swap(object, body("late swap", 0), first);
    let (created, swapped) = tokio::join!(create, swap);
    if count(&[created])? > 0 {
        return Ok(Err("a second create of one object succeeded"));
    }
    if count(&[swapped])? > 0 {
        return Ok(Err("a swap with a version of the past succeeded"));
    }
    let mut broken = "";
    for _ in 0..AGREEING {
        let same = bucket.read_if_changed(object, second, |bytes| parse(&bytes));
        let changed = bucket.read_if_changed(object, first, |bytes| parse(&bytes));
        let (same, changed) = tokio::join!(same, changed);
        let (same, changed) = (same.map_err(passing)?, changed.map_err(passing)?);
        broken = if same.is_some() {
            "a conditional read of an unchanged object found a change"
        } else if changed.is_none_or(|(_, version)| version != *second) {
            "a swap and the reads after it do not agree"
        } else {
            return Ok(Ok(()));
        };
    }
    Ok(Err(broken))
}

/// How many succeeded.
fn count<T>(answers: &[Result<T>]) -> Result<usize> {
    for answer in answers {
        if let Err(Error::Invalid(text)) = answer {
            return Err(Error::Invalid(format!("conditional writes do not work: {text}")));
        }
    }
    Ok(answers.iter().filter(|answer| answer.is_ok()).count())
}

/// What a rival wrote, and the version that it is.
async fn read(bucket: &Bucket, object: &Object) -> Result<(String, Version)> {
    bucket.read_versioned(object, |bytes| parse(&bytes)).await.map_err(passing)
}

/// An object that is not there was never created for certain, or was deleted: nothing was learnt.
fn passing(error: Error) -> Error {
    match error {
        Error::NotFound(object) => {
            Error::indeterminate(format!("the probe of {object}"), "the object is not there")
        }
        error => error,
    }
}

/// What one of the rivals writes; no two write the same.
fn text(act: &str, rival: usize) -> String {
    format!("{act} {rival}")
}

/// The text with its digest: a read that is garbled on its way does not look like content that
/// nobody wrote.
fn body(act: &str, rival: usize) -> Bytes {
    let text = text(act, rival);
    format!("{text} {:032x}", xxh3_128(text.as_bytes())).into()
}

fn parse(bytes: &Bytes) -> Result<String, Corrupt> {
    let whole = std::str::from_utf8(bytes).ok();
    let (text, digest) = whole
        .and_then(|whole| whole.rsplit_once(' '))
        .ok_or_else(|| Corrupt::new("the probe's object holds no digest"))?;
    if digest != format!("{:032x}", xxh3_128(text.as_bytes())) {
        return Err(Corrupt::new("the digest of the probe's object differs"));
    }
    Ok(text.to_owned())
}

fn is_by(act: &str, text: &str) -> bool {
    text.strip_prefix(act).is_some_and(|rest| rest.starts_with(' '))
}

fn refusal(bucket: &Bucket, what: &str) -> String {
    format!(
        "the store {} does not honour conditional writes: {what}. Two writers would overwrite each \
         other's data there. Use a store that does (Amazon S3, Google Cloud Storage, Azure Blob \
         Storage, MinIO, a local directory), or a newer version of this one",
        bucket.url()
    )
}

#[cfg(test)]
mod tests;
