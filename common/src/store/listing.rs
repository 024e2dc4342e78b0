//! Verbs that touch many objects: listing and deleting.

use futures::StreamExt;
use object_store::ObjectMeta;
use object_store::path::Path;

use super::answer::Failed;
use super::attempt::Call;
use super::metrics::Operation;
use super::object::Bucket;
use crate::Result;
use crate::format::path::{Object, ObjectKind};

/// Objects of one page of a listing, with every store but a directory.
const PAGE_OBJECTS: usize = 1_000;
/// Objects that one request to delete names: S3's bound.
const DELETE_BATCH: usize = 1_000;

/// One object of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub object: Object,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the store's clock, in Unix milliseconds.
    pub modified_ms: u64,
}

impl Bucket {
    /// Every object of a kind, in no particular order. One LIST per thousand; names that are not
    /// ours are left out.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>> {
        let call = Call { operation: Operation::List, kind, name: &kind.name() };
        self.retry(|| self.list_once(call)).await
    }

    /// The objects of a kind that come after `last` in the order of names. One LIST per thousand of
    /// them; on a directory one of the whole kind.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list_after(&self, kind: ObjectKind, last: &Object) -> Result<Vec<Listed>> {
        let call = Call { operation: Operation::List, kind, name: &kind.name() };
        let offset = self.path(last);
        self.retry(|| self.list_pages(call, Some(&offset))).await
    }

    async fn list_once(&self, call: Call<'_>) -> Result<Vec<Listed>, Failed> {
        let kind = call.kind;
        if kind == ObjectKind::Current {
            let page = self.store().list_with_delimiter(Some(self.root()));
            let timeout = self.downlink().patience(self.settings().attempt_timeout);
            let page = self.attempt(call, timeout, page).await?;
            let listed = page.objects.iter().filter_map(|meta| self.listed(meta, kind));
            return Ok(listed.collect());
        }
        self.list_pages(call, None).await
    }

    async fn list_pages(
        &self,
        call: Call<'_>,
        after: Option<&Path>,
    ) -> Result<Vec<Listed>, Failed> {
        let kind = call.kind;
        let timeout = self.downlink().patience(self.settings().attempt_timeout);
        let prefix = self.root().clone().join(kind.name());
        let mut stream = match after {
            Some(after) => self.store().list_with_offset(Some(&prefix), after),
            None => self.store().list(Some(&prefix)),
        };
        let mut listed = Vec::new();
        let mut pages = 0;
        loop {
            // Entries of a page that is here already come at once: only pages are requests.
            let next = async { stream.next().await.transpose() };
            let next = if listed.len() >= pages * PAGE_OBJECTS {
                pages += 1;
                self.attempt(call, timeout, next).await?
            } else {
                self.within(call, timeout, next).await?
            };
            match next {
                Some(meta) => listed.extend(self.listed(&meta, kind)),
                None => return Ok(listed),
            }
        }
    }

    fn listed(&self, meta: &ObjectMeta, kind: ObjectKind) -> Option<Listed> {
        let name = match self.root().as_ref() {
            "" => meta.location.as_ref(),
            root => meta.location.as_ref().strip_prefix(root)?.strip_prefix('/')?,
        };
        let object = Object::parse(name).filter(|object| object.kind() == kind)?;
        let modified_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
        Some(Listed { object, bytes: meta.size, modified_ms })
    }

    /// The name of any object under the root, ours or not; `None` where the root is empty. One
    /// LIST.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn any_object(&self) -> Result<Option<String>> {
        let name = &"the root";
        let call = Call { operation: Operation::List, kind: ObjectKind::Current, name };
        let attempt = || async {
            let mut stream = self.store().list(Some(self.root()));
            let first = async { stream.next().await.transpose() };
            self.attempt(call, self.settings().attempt_timeout, first).await
        };
        Ok(self.retry(attempt).await?.map(|meta| meta.location.to_string()))
    }

    /// Deletes objects; one that is not there is deleted. One request per thousand where the store
    /// can, else one each.
    ///
    /// # Errors
    /// `Unavailable`, `Indeterminate`: some may be deleted and others not.
    pub async fn delete(&self, objects: &[Object]) -> Result<()> {
        for batch in objects.chunks(DELETE_BATCH) {
            let Some(first) = batch.first() else { continue };
            let call = Call::new(Operation::Delete, first);
            self.retry(|| self.delete_once(call, batch)).await?;
        }
        Ok(())
    }

    async fn delete_once(&self, call: Call<'_>, batch: &[Object]) -> Result<(), Failed> {
        let paths: Vec<_> = batch.iter().map(|object| Ok(self.path(object))).collect();
        let mut stream = self.store().delete_stream(futures::stream::iter(paths).boxed());
        let deleted = async {
            let mut failure = Ok(());
            while let Some(answer) = stream.next().await {
                match answer {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => failure = Err(error),
                }
            }
            failure
        };
        self.attempt(call, self.settings().attempt_timeout * 2, deleted).await
    }
}
