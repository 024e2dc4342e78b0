//! A directory as an object store: durable, create-once and with compare-and-swap, which the store
//! that `object_store` brings for directories lacks.
//!
//! **Layout**: an object is the file of its name under the root, CURRENT among them: what is
//! copied, restored or deleted by hand is what the database sees. Names with `#` are not objects:
//! `NAME#PID-…` is a write on its way, `NAME#swap-PID-…` a swap, or what a kill has left of one
//! ([`sweep`]); `NAME#lock` is whose turn it is to swap NAME.
//!
//! **Invariants**
//! - An object appears whole or not at all: bytes are written beside it, synced, and then linked
//!   (create) or renamed (overwrite, swap) into place, and the directory is synced.
//! - An ETag is a digest of the content. What is swapped never returns to an earlier content, so
//!   equal ETags mean that nothing has changed. Only whole reads and writes give one.
//! - Any number of processes on one machine may share a directory, and none waits for one that was
//!   stopped: a swap that was overtaken cannot land any more ([`swap`]). Network file systems are
//!   not supported.
//! - "Exists" is told only once the existing object is durable, since callers take it for their own
//!   success; and before anything is deleted, the root's entries are durable, since CURRENT may
//!   have been the reason.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Extensions, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

use self::files::Files;
use self::upload::LocalUpload;
use super::url::directory_of;

mod files;
mod swap;
mod sweep;
#[cfg(test)]
mod tests;
mod upload;

/// Files deleted at a time on one thread.
const DELETE_BATCH: usize = 64;

/// A directory as an object store.
#[derive(Clone, Debug)]
pub struct LocalDirectory {
    files: Arc<Files>,
}

impl LocalDirectory {
    /// A store in the directory at an absolute path, which the first write creates.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { files: Arc::new(Files::new(root.into())) }
    }

    /// The store of a `file://` URL; `None` for every other.
    pub fn of_url(url: &str) -> Option<Self> {
        directory_of(url).map(Self::new)
    }

    /// Removes what killed processes have left; returns how many files and bytes. Costs one walk
    /// over the directory.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub async fn sweep(&self) -> Result<(u64, u64)> {
        self.blocking(Files::sweep).await
    }

    /// Work on files, on a thread that may wait.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let files = Arc::clone(&self.files);
        // Goes on to its end if the caller goes away.
        tokio::task::spawn_blocking(move || work(&files)).await?
    }

    fn unsupported(&self, operation: &str) -> object_store::Error {
        object_store::Error::NotImplemented {
            operation: operation.to_owned(),
            implementer: self.to_string(),
        }
    }
}

impl fmt::Display for LocalDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.files.root().display())
    }
}

#[async_trait]
impl ObjectStore for LocalDirectory {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if !options.attributes.is_empty() {
            return Err(self.unsupported("writing attributes"));
        }
        let location = location.clone();
        let e_tag = self
            .blocking(move |files| match options.mode {
                PutMode::Create => files.create(&location, &payload),
                PutMode::Overwrite => files.overwrite(&location, &payload),
                PutMode::Update(known) => {
                    files.swap(&location, &payload, known.e_tag.as_deref().unwrap_or_default())
                }
            })
            .await?;
        Ok(PutResult { e_tag: Some(e_tag), version: None, extensions: Extensions::default() })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !options.attributes.is_empty() {
            return Err(self.unsupported("writing attributes"));
        }
        let location = location.clone();
        let staged = self.blocking(move |files| files.stage(&location)).await?;
        Ok(Box::new(LocalUpload::new(self.clone(), staged)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let location = location.clone();
        let read = self.blocking(move |files| files.read(&location, &options)).await?;
        let bytes = futures::stream::once(futures::future::ready(Ok(read.bytes)));
        Ok(GetResult {
            payload: GetResultPayload::Stream(bytes.boxed()),
            meta: read.meta,
            range: read.range,
            attributes: Attributes::default(),
            extensions: Extensions::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .ready_chunks(DELETE_BATCH)
            .then(move |batch| {
                let store = store.clone();
                let delete_all = move |files: &Files| {
                    files.sync_root()?;
                    let delete = |location: Result<Path>| files.delete(location?);
                    Ok(batch.into_iter().map(delete).collect::<Vec<_>>())
                };
                async move {
                    store.blocking(delete_all).await.unwrap_or_else(|error| vec![Err(error)])
                }
            })
            .flat_map(futures::stream::iter)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        let prefix = prefix.cloned().unwrap_or_default();
        let found = async move {
            let found = store.blocking(move |files| files.list(&prefix)).await;
            let found: Vec<_> = match found {
                Ok(metas) => metas.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            futures::stream::iter(found)
        };
        futures::stream::once(found).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let (objects, common_prefixes) =
            self.blocking(move |files| files.list_one_level(&prefix)).await?;
        Ok(ListResult { objects, common_prefixes, extensions: Extensions::default() })
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(self.unsupported("copying"))
    }
}
