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

/// Reads the runs of `next`, then loads the metadata of the SSTs that it has and `shown` has not,
/// for at most `limit`.
///
/// Costs one GET for each run and each SST. Failures are left to the reads that meet them.
pub(crate) async fn warm(next: &OpenTree, shown: Option<&OpenTree>, limit: Duration) {
    if limit.is_zero() {
        return;
    }
    let whole = async {
        if let Err(error) = next.load_runs().await {
            tracing::debug!(%error, "a run was not warmed");
        }
        load_metadata(next, shown).await;
    };
    if tokio::time::timeout(limit, whole).await.is_err() {
        tracing::debug!("a tree is shown before it is warm");
    }
}

async fn load_metadata(next: &OpenTree, shown: Option<&OpenTree>) {
    let known: HashSet<u64> =
        shown.iter().flat_map(|tree| tree.handles()).map(|handle| handle.number()).collect();
    let new = next.handles().filter(|handle| !known.contains(&handle.number()));
    let new: Vec<_> = new.take(SSTS_MAX).map(Arc::clone).collect();
    let load = stream::iter(new).for_each_concurrent(TOGETHER, async |handle| {
        if let Err(error) = next.ssts.meta(&handle).await {
            tracing::debug!(%error, "an SST was not warmed");
        }
    });
    load.await;
}
