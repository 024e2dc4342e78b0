//! Warm before switch: filters and indexes of SSTs that a new tree brings are loaded before it is
//! shown, so that reads do not all stumble over them at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::read::view::OpenTree;
use futures::stream::{self, StreamExt};

/// GETs in flight.
const TOGETHER: usize = 8;
/// Most SSTs that are loaded ahead: the newest and largest part of what reads ask for; the rest
/// comes when it is asked for.
const SSTS_MAX: usize = 256;

/// Loads the metadata of the SSTs that `next` has and `shown` has not, for at most `limit`.
///
/// Costs one GET for each. Failures are left to the reads that meet them.
pub(crate) async fn warm(next: &OpenTree, shown: Option<&OpenTree>, limit: Duration) {
    if limit.is_zero() {
        return;
    }
    let known: HashSet<u64> =
        shown.iter().flat_map(|tree| tree.handles()).map(|handle| handle.number()).collect();
    let new = next.handles().filter(|handle| !known.contains(&handle.number()));
    let new: Vec<_> = new.take(SSTS_MAX).map(Arc::clone).collect();
    let load = stream::iter(&new).for_each_concurrent(TOGETHER, async |handle| {
        if let Err(error) = next.ssts.meta(handle).await {
            tracing::debug!(%error, "an SST was not warmed");
        }
    });
    if tokio::time::timeout(limit, load).await.is_err() {
        tracing::debug!(ssts = new.len(), "a tree is shown before it is warm");
    }
}
