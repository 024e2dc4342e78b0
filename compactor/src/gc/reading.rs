//! Reading what a pass of collection is judged by: every checkpoint body, and the objects of every
//! run that the tree, a checkpoint or `retired` names.
//!
//! **Invariant**: what cannot be read is left out of the evidence, which keeps what it may refer
//! to; it is reported as damaged, and cleared once it can be read.

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

/// What was read.
#[derive(Debug)]
pub(super) struct Reading {
    /// What it proves.
    pub(super) evidence: Evidence,
    /// What could not be read, and why.
    pub(super) damaged: Vec<(Object, String)>,
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
    let mut damaged = Vec::new();
    let mut bodies = Vec::with_capacity(manifest.checkpoints.len());
    for checkpoint in &manifest.checkpoints {
        let object = Object::Manifest(checkpoint.manifest);
        let body = read_body(bucket, checkpoint).await;
        bodies.extend(unless_damaged(bucket, object, body, &mut damaged)?);
    }
    let mut runs: BTreeMap<OutputId, Run> = BTreeMap::new();
    for info in std::iter::once(&**manifest).chain(&bodies).flat_map(|body| &body.runs) {
        if !runs.contains_key(&info.id) {
            let run = catalog.load_one(info).await;
            let run = unless_damaged(bucket, Object::Run(info.id), run, &mut damaged)?;
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
            Err(error) => return Err(error),
        }
    }
    catalog.keep(&runs.keys().copied().collect());
    let runs: Vec<Run> = runs.into_values().collect();
    let evidence = Evidence::new(&snapshot.current, manifest, &bodies, &runs)
        .map_err(|cause| Error::corrupt("what CURRENT and its manifest refer to", cause))?;
    Ok(Reading { evidence, damaged })
}

async fn read_body(bucket: &Bucket, checkpoint: &Checkpoint) -> Result<Manifest> {
    let object = Object::Manifest(checkpoint.manifest);
    let parse = |bytes: Bytes| Manifest::parse(&bytes, &checkpoint.digest);
    bucket.read_parsed(&object, None, parse).await
}

/// What was read; `None`, and `damaged` longer, if it is missing or not what was written.
fn unless_damaged<T>(
    bucket: &Bucket,
    object: Object,
    read: Result<T>,
    damaged: &mut Vec<(Object, String)>,
) -> Result<Option<T>> {
    match read {
        Ok(read) => {
            bucket.damage().clear(&object);
            Ok(Some(read))
        }
        Err(error @ (Error::NotFound(_) | Error::Corrupt(_))) => {
            damaged.push((object, error.to_string()));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
