//! News from a directory: where the store is `file://`, the kernel tells of each new object.
//!
//! A hint only: where it fails, polling keeps the promises.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_common::format::path::ObjectKind;
use cairn_common::store::object::directory_of;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use crate::sights::Sights;

/// Wakes the follower at each change of CURRENT and of the log.
#[derive(Debug)]
pub(crate) struct Watch {
    watcher: Option<RecommendedWatcher>,
    local: Option<PathBuf>,
    /// Directories that are not watched yet.
    wanted: Vec<PathBuf>,
}

impl Watch {
    /// A watch over the store of this URL; of nothing, where that is no directory.
    pub(crate) fn new(url: &str, sights: Arc<Sights>) -> Self {
        let local = directory_of(url);
        let Some(root) = &local else { return Self { watcher: None, local, wanted: Vec::new() } };
        let wake = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_news(&event)) {
                sights.wake();
            }
        };
        let watcher = notify::recommended_watcher(wake);
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "cannot watch the directory; polling"))
            .ok();
        let wanted = vec![root.clone(), root.join(ObjectKind::Wal.name())];
        Self { watcher, local, wanted }
    }

    /// Whether the store is a directory.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// Watches what could not be watched yet: the log's directory comes with its first object.
    pub(crate) fn ensure(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        self.wanted.retain(|dir| watcher.watch(dir, RecursiveMode::NonRecursive).is_err());
    }
}

/// Whether something may have changed that readers follow.
fn is_news(event: &Event) -> bool {
    // Opening and closing are told too, and our own reads would wake us for ever.
    let changes = !matches!(event.kind, EventKind::Access(_));
    // What is on its way has `#` in its name.
    changes && event.paths.iter().any(|path| is_object(path))
}

fn is_object(path: &Path) -> bool {
    path.file_name().is_some_and(|name| !name.to_string_lossy().contains('#'))
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, AccessMode, CreateKind};

    use super::*;

    #[test]
    fn reads_and_unfinished_writes_are_no_news() {
        let event = |kind, path: &str| Event::new(kind).add_path(path.into());
        let created = EventKind::Create(CreateKind::File);
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert!(is_news(&event(created, "/db/wal/00000000000000000001")));
        assert!(!is_news(&event(opened, "/db/wal/00000000000000000001")));
        assert!(!is_news(&event(created, "/db/wal/00000000000000000001#17-3")));
    }

    #[tokio::test]
    async fn a_new_object_wakes_the_follower() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let sights = Arc::new(Sights::default());
        let mut watch = Watch::new(&url, Arc::clone(&sights));
        watch.ensure();
        assert_eq!(watch.wanted.len(), 1, "there is no log yet");
        std::fs::create_dir(dir.path().join("wal")).unwrap();
        sights.woken().await;
        watch.ensure();
        assert!(watch.wanted.is_empty());
        std::fs::write(dir.path().join("wal/00000000000000000001"), "x").unwrap();
        sights.woken().await;
    }
}
