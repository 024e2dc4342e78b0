//! Reading what a pass of collection is judged by: every checkpoint body, and the objects of every
//! run that the tree, a checkpoint or `retired` names.
//!
//! **Invariant**: what cannot be read is left out of the evidence, which keeps what it may refer
//! to. What is damaged is reported, and cleared once it can be read; what the store did not give is
//! named in the log.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_common::error::{Error, Result};
use cairn_common::format::collect::Evidence;
use cairn_common::format::manifest::{Checkpoint, Manifest, RetiredObject};
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::run::Run;
use cairn_common::store::manifest::Snapshot;
use cairn_common::store::object::Bucket;

use crate::catalog::Catalog;

/// Objects that the store may fail to give before a pass is broken off: it is the store then. Each
/// costs a call with tries and pauses of its own.
const UNREAD_MAX: usize = 3;

/// What was read.
#[derive(Debug)]
pub(super) struct Reading {
    /// What it proves.
    pub(super) evidence: Evidence,
    /// What could not be read.
    pub(super) missed: Missed,
}

/// What could not be read.
#[derive(Debug, Default)]
pub(super) struct Missed {
    /// Missing or not what was written, and why.
    pub(super) damaged: Vec<(Object, String)>,
    /// Not given by the store.
    pub(super) unread: Vec<Object>,
}

/// Reads all that `snapshot` refers to; of the retired runs, those that were listed.
///
/// # Errors
/// `Unavailable`, `Indeterminate`; `Corrupt`: what was read does not belong together.
pub(super) async fn read(
    bucket: &Bucket,
    catalog: &mut Catalog,
    snapshot: &Snapshot,
    listed_runs: &BTreeSet<OutputId>,
) -> Result<Reading> {
    let manifest = &snapshot.manifest;
    let mut missed = Missed::default();
    let mut bodies = Vec::with_capacity(manifest.checkpoints.len());
    for checkpoint in &manifest.checkpoints {
        let object = Object::Manifest(checkpoint.manifest);
        let body = read_body(bucket, checkpoint).await;
        let body = missed.unless_missing(object, body)?;
        if body.is_some() {
            bucket.damage().clear(&object);
        }
        bodies.extend(body);
    }
    let mut runs: BTreeMap<OutputId, Run> = BTreeMap::new();
    for info in std::iter::once(&**manifest).chain(&bodies).flat_map(|body| &body.runs) {
        if !runs.contains_key(&info.id) {
            let (object, is_known) = (Object::Run(info.id), catalog.holds(info.id));
            let run = missed.unless_missing(object, catalog.load_one(info).await)?;
            if run.is_some() && !is_known {
                bucket.damage().clear(&object);
            }
            runs.extend(run.map(|run| (run.id, Run::clone(&run))));
        }
    }
    let retired = manifest.retired.iter().filter_map(|retired| match retired.object {
        RetiredObject::Run(id) => Some(id),
        RetiredObject::Sst(_) => None,
    });
    for id in retired.filter(|id| listed_runs.contains(id)) {
        match catalog.load_retired(id, snapshot.current.database).await {
            Ok(run) => drop(runs.insert(id, Run::clone(&run))),
            // Deleted by another collector, or damaged: nothing in the tree depends on it.
            Err(error @ (Error::NotFound(_) | Error::Corrupt(_))) => {
                tracing::warn!(%error, "a retired run cannot be read; its SSTs are kept for now");
            }
            Err(error) => drop(missed.unless_missing::<Run>(Object::Run(id), Err(error))?),
        }
    }
    catalog.keep(&runs.keys().copied().collect());
    let runs: Vec<Run> = runs.into_values().collect();
    let evidence = Evidence::new(&snapshot.current, manifest, &bodies, &runs)
        .map_err(|cause| Error::corrupt("what CURRENT and its manifest refer to", cause))?;
    Ok(Reading { evidence, missed })
}

async fn read_body(bucket: &Bucket, checkpoint: &Checkpoint) -> Result<Manifest> {
    let object = Object::Manifest(checkpoint.manifest);
    let parse = |bytes: Bytes| Manifest::parse(&bytes, &checkpoint.digest);
    bucket.read_parsed(&object, None, parse).await
}

impl Missed {
    /// What was read; `None`, and one more of the missed, if it could not be.
    fn unless_missing<T>(&mut self, object: Object, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error @ (Error::NotFound(_) | Error::Corrupt(_))) => {
                self.damaged.push((object, error.to_string()));
                Ok(None)
            }
            Err(error @ Error::Unavailable(_)) if self.unread.len() < UNREAD_MAX => {
                tracing::warn!(%object, %error, "the store does not give an object");
                self.unread.push(object);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
