//! The probe of stores behind a proxy; those that lie are in the suites of the whole stores.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
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
    /// As it should be.
    Sound,
}

/// What becomes of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// Every other one is garbled on its way, in another place each time.
    Garbled,
    /// All show the same that nobody wrote.
    Forged,
    /// Every other conditional one finds a version that nobody made.
    OddVersion,
    /// As it should be.
    Sound,
}

/// A store that is sound but for its swaps or its reads.
#[derive(Debug)]
struct ProxiedStore {
    objects: InMemory,
    swaps: Swaps,
    reads: Reads,
    count: AtomicUsize,
}

impl ProxiedStore {
    /// What is read under a name instead of what is there.
    async fn instead(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let options_of_all = GetOptions { if_none_match: None, ..options };
        let found = self.objects.get_opts(location, options_of_all.clone()).await?;
        let meta = found.meta.clone();
        let mut bytes = found.bytes().await?.to_vec();
        let place = self.count.load(Ordering::Relaxed) % bytes.len();
        match self.reads {
            Reads::Garbled => bytes[place] ^= 0x20,
            Reads::Forged => bytes = b"forged".to_vec(),
            Reads::OddVersion | Reads::Sound => {}
        }
        let other = InMemory::new();
        other.put(location, bytes.into()).await?;
        let mut instead = other.get_opts(location, options_of_all).await?;
        instead.meta.e_tag = match self.reads {
            Reads::OddVersion => Some(format!("odd-{place}")),
            _ => meta.e_tag,
        };
        Ok(instead)
    }
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
        let is_odd = match self.reads {
            Reads::Forged => true,
            Reads::Garbled => self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2),
            Reads::OddVersion => {
                options.if_none_match.is_some()
                    && self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(4)
            }
            Reads::Sound => false,
        };
        if is_odd {
            return self.instead(location, options).await;
        }
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

async fn verdict(swaps: Swaps, reads: Reads) -> Verdict {
    let objects = InMemory::new();
    let store = Arc::new(ProxiedStore { objects, swaps, reads, count: AtomicUsize::new(0) });
    let bucket = Bucket::new(store, "", StoreSettings::default(), Env::system()).unwrap();
    let verdict = probe(&bucket, Uuid::from_u128(1)).await.unwrap();
    assert_eq!(bucket.damage().count(), 0);
    verdict
}

#[tokio::test]
async fn a_proxy_that_repeats_swaps_is_no_verdict() {
    assert_eq!(verdict(Swaps::Repeated, Reads::Sound).await, Verdict::Honoured);
}

#[tokio::test]
async fn a_store_that_refuses_all_swaps_is_refused() {
    let Verdict::Refused(text) = verdict(Swaps::Refused, Reads::Sound).await else {
        panic!("honoured")
    };
    assert!(text.contains("a swap with the right version was refused"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn odd_reads_are_no_verdict() {
    for reads in [Reads::Sound, Reads::Garbled, Reads::OddVersion] {
        assert_eq!(verdict(Swaps::Sound, reads).await, Verdict::Honoured, "{reads:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn content_that_nobody_wrote_is_refused() {
    let Verdict::Refused(text) = verdict(Swaps::Sound, Reads::Forged).await else {
        panic!("honoured")
    };
    assert!(text.contains("a created object holds something else"), "{text}");
}
