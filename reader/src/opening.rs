//! Warming the tree of a newer manifest beside the following, in a task of its own.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::read::view::OpenTree;
use tokio::task::JoinSet;

use crate::warm::warm;

/// A tree that is being warmed; dropped, the warming ends.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) tree: Arc<OpenTree>,
    /// The newest look that saw its manifest.
    pub(crate) look: u64,
    task: JoinSet<()>,
}

impl Opening {
    /// Warms a tree for at most `limit`; what `previous` has loaded is not loaded again.
    pub(crate) fn begin(
        tree: Arc<OpenTree>,
        look: u64,
        previous: Option<Arc<OpenTree>>,
        limit: Duration,
    ) -> Self {
        let mut task = JoinSet::new();
        let next = Arc::clone(&tree);
        task.spawn(async move { warm(&next, previous.as_deref(), limit).await });
        Self { tree, look, task }
    }
}

/// Waits for the warming to end and returns the tree; waits forever if there is none. Cancel-safe.
pub(crate) async fn ended(opening: Option<&mut Opening>) -> Arc<OpenTree> {
    let Some(opening) = opening else { return std::future::pending().await };
    match opening.task.join_next().await {
        Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
        // The runtime is ending.
        Some(Err(_)) => std::future::pending().await,
        Some(Ok(())) | None => Arc::clone(&opening.tree),
    }
}
