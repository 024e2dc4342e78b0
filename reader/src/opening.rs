//! Opening the tree of a newer manifest beside the following, in a task of its own.

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::error::Result;
use cairn_common::format::manifest::Manifest;
use cairn_common::read::view::OpenTree;
use cairn_common::store::sst::SstStore;
use tokio::task::JoinSet;

use crate::warm::warm;

/// A tree on its way; dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The manifest whose tree it is.
    pub(crate) manifest: Arc<Manifest>,
    /// The newest look that saw this manifest.
    pub(crate) look: u64,
    task: JoinSet<Result<Arc<OpenTree>>>,
}

impl Opening {
    /// Opens a tree and warms it for at most `limit`; what `previous` has open is used again.
    pub(crate) fn begin(
        ssts: &Arc<SstStore>,
        (manifest, look): (Arc<Manifest>, u64),
        previous: Option<Arc<OpenTree>>,
        limit: Duration,
    ) -> Self {
        let (ssts, named) = (Arc::clone(ssts), Arc::clone(&manifest));
        let open = async move {
            let tree = OpenTree::open(&ssts, named, previous.as_deref()).await?;
            warm(&tree, previous.as_deref(), limit).await;
            Ok(Arc::new(tree))
        };
        Self::of(manifest, look, open)
    }

    /// Warms a tree that was shown in a hurry.
    pub(crate) fn warming(
        tree: Arc<OpenTree>,
        look: u64,
        previous: Option<Arc<OpenTree>>,
        limit: Duration,
    ) -> Self {
        let manifest = Arc::clone(&tree.manifest);
        let warm = async move {
            warm(&tree, previous.as_deref(), limit).await;
            Ok(tree)
        };
        Self::of(manifest, look, warm)
    }

    fn of(
        manifest: Arc<Manifest>,
        look: u64,
        open: impl Future<Output = Result<Arc<OpenTree>>> + Send + 'static,
    ) -> Self {
        let mut task = JoinSet::new();
        task.spawn(open);
        Self { manifest, look, task }
    }
}

/// Waits for the opening to end; for ever if there is none. Cancel-safe.
pub(crate) async fn ended(opening: Option<&mut Opening>) -> Result<Arc<OpenTree>> {
    let ended = match opening {
        Some(opening) => opening.task.join_next().await,
        None => None,
    };
    match ended {
        Some(Ok(opened)) => opened,
        Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
        // Nothing is opened, or the runtime is ending.
        Some(Err(_)) | None => std::future::pending().await,
    }
}
