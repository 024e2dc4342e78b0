//! The probe of stores behind a proxy; those that lie are in the suites of the whole stores.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::env::Env;
use crate::store::object::StoreSettings;

/// What becomes of a swap whose condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swaps {
    /// It lands; a proxy loses the answer and sends it again, which is refused.
    Repeated,
    /// It is refused.
    Refused,
}

/// A sound store but for its swaps.
#[derive(Debug)]
struct ProxiedStore {
    objects: InMemory,
    swaps: Swaps,
}

fn refused(location: &Path) -> object_store::Error {
    let path = location.to_string();
    object_store::Error::Precondition { path, source: "refused".into() }
}

impl fmt::Display for ProxiedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("proxied")
    }
}

#[async_trait]
impl ObjectStore for ProxiedStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let is_swap = matches!(options.mode, PutMode::Update(_));
        if is_swap && self.swaps == Swaps::Refused {
            return Err(refused(location));
        }
        let landed = self.objects.put_opts(location, payload.clone(), options.clone()).await;
        match (is_swap, landed) {
            (true, Ok(_)) => self.objects.put_opts(location, payload, options).await,
            (_, landed) => landed,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

async fn verdict(swaps: Swaps) -> Verdict {
    let store = Arc::new(ProxiedStore { objects: InMemory::new(), swaps });
    let bucket = Bucket::new(store, "", StoreSettings::default(), Env::system()).unwrap();
    probe(&bucket, Uuid::from_u128(1)).await.unwrap()
}

#[tokio::test]
async fn a_proxy_that_repeats_swaps_is_no_verdict() {
    assert_eq!(verdict(Swaps::Repeated).await, Verdict::Honoured);
}

#[tokio::test]
async fn a_store_that_refuses_all_swaps_is_refused() {
    let Verdict::Refused(text) = verdict(Swaps::Refused).await else { panic!("honoured") };
    assert!(text.contains("a swap with the right version was refused"), "{text}");
}
