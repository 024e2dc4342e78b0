//! Multipart uploads into a directory: parts are written at their offsets of one staged file.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::{Extensions, MultipartUpload, PutPayload, PutResult, Result, UploadPart};

use super::LocalDirectory;
use super::files::Staged;

/// An upload into a directory. One that is dropped leaves nothing.
#[derive(Debug)]
pub(super) struct LocalUpload {
    store: LocalDirectory,
    staged: Option<Arc<Staged>>,
    bytes: u64,
}

impl LocalUpload {
    pub(super) fn new(store: LocalDirectory, staged: Staged) -> Self {
        Self { store, staged: Some(Arc::new(staged)), bytes: 0 }
    }
}

fn ended() -> object_store::Error {
    object_store::Error::NotSupported {
        source: "the upload has ended, or has parts under way".into(),
    }
}

#[async_trait]
impl MultipartUpload for LocalUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let Some(staged) = self.staged.clone() else {
            return Box::pin(futures::future::ready(Err(ended())));
        };
        let mut offset = self.bytes;
        self.bytes += u64::try_from(part.content_length()).unwrap_or(u64::MAX);
        let store = self.store.clone();
        Box::pin(async move {
            store
                .blocking(move |_| {
                    for piece in &part {
                        staged.write_at(piece, offset)?;
                        offset += u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    }
                    Ok(())
                })
                .await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().and_then(Arc::into_inner).ok_or_else(ended)?;
        self.store
            .blocking(move |_| {
                staged.sync()?;
                staged.put_in_place()
            })
            .await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Extensions::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        self.staged = None;
        Ok(())
    }
}
