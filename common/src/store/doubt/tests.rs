//! What is believed after how many reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use uuid::Uuid;

use super::*;
use crate::clock::TokioClock;
use crate::env::{Cpu, Env, SeededRandom};
use crate::store::answer::Refusal;
use crate::store::claim::Claim;
use crate::store::manifest::Manifests;
use crate::store::object::StoreSettings;
use crate::types::Role;

/// What the next read meets.
#[derive(Clone, Debug)]
enum Odd {
    /// Other bytes.
    Garbled(Bytes),
    /// A status without the store's code.
    Foreign(u16),
    /// A 416 in the store's words.
    BeyondEnd,
    /// The object, a byte each four seconds.
    Dripping,
}

/// A store whose reads are odd as planned, and then sound.
#[derive(Debug)]
struct OddStore {
    objects: InMemory,
    plan: Mutex<VecDeque<Odd>>,
}

fn refused(refusal: Refusal) -> object_store::Error {
    let source = Box::new(HttpError::new(HttpErrorKind::Unknown, refusal));
    object_store::Error::Generic { store: "odd", source }
}

impl fmt::Display for OddStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("odd")
    }
}

#[async_trait]
impl ObjectStore for OddStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.objects.put_opts(location, payload, options).await
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
        let next = self.plan.lock().unwrap().pop_front();
        match next {
            None => self.objects.get_opts(location, options).await,
            Some(Odd::Garbled(text)) => {
                let other = InMemory::new();
                other.put(location, text.into()).await?;
                other.get_opts(location, GetOptions { if_none_match: None, ..options }).await
            }
            Some(Odd::Dripping) => {
                let found = self.objects.get_opts(location, options.clone()).await?;
                let bytes = found.bytes().await?;
                let drops = (0..bytes.len()).map(move |at| bytes.slice(at..=at));
                let drops = stream::iter(drops).then(|drop| async {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    Ok(drop)
                });
                let found = self.objects.get_opts(location, options).await?;
                Ok(GetResult { payload: GetResultPayload::Stream(drops.boxed()), ..found })
            }
            Some(Odd::Foreign(status)) => Err(refused(Refusal { status, code: None })),
            Some(Odd::BeyondEnd) => {
                Err(refused(Refusal { status: 416, code: Some("InvalidRange".to_owned()) }))
            }
        }
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

struct Kit {
    store: Arc<OddStore>,
    bucket: Bucket,
}

impl Kit {
    async fn new(content: &'static str) -> Self {
        let store = Arc::new(OddStore { objects: InMemory::new(), plan: Mutex::default() });
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(0)),
            random: Arc::new(SeededRandom::new(1)),
            cpu: Cpu::Inline,
        };
        let bucket =
            Bucket::new(Arc::clone(&store) as _, "db", StoreSettings::default(), env).unwrap();
        bucket.put(&Object::Current, content.into()).await.unwrap();
        Self { store, bucket }
    }

    fn plan(&self, odd: impl IntoIterator<Item = Odd>) {
        self.store.plan.lock().unwrap().extend(odd);
    }

    async fn read(&self) -> Result<Bytes> {
        self.bucket.read_parsed(&Object::Current, None, sound).await
    }
}

fn sound(bytes: Bytes) -> Result<Bytes, Corrupt> {
    if bytes == "sound" { Ok(bytes) } else { Err(Corrupt::new("not sound")) }
}

/// Texts that are all different.
fn different(count: usize) -> impl Iterator<Item = Odd> {
    (0..count).map(|index| Odd::Garbled(format!("odd {index}").into()))
}

#[tokio::test(start_paused = true)]
async fn one_odd_answer_is_read_again() {
    let kit = Kit::new("sound").await;
    for odd in
        [Odd::Garbled("sou".into()), Odd::Garbled("".into()), Odd::Foreign(404), Odd::Foreign(200)]
    {
        kit.plan([odd.clone()]);
        assert_eq!(kit.read().await.unwrap(), "sound", "{odd:?}");
        kit.plan([odd.clone(), odd.clone()]);
        assert_eq!(kit.read().await.unwrap(), "sound", "{odd:?} twice");
        let (_, version) = kit.bucket.read_versioned(&Object::Current, sound).await.unwrap();
        kit.plan([odd.clone()]);
        let read = kit.bucket.read_if_changed(&Object::Current, &version, sound).await;
        assert_eq!(read.unwrap(), None, "{odd:?} on a conditional read");
    }
    assert_eq!(kit.bucket.damage().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_is_asked_for_again() {
    let kit = Kit::new("sound").await;
    let clock = Arc::clone(&kit.bucket.env().clock);
    let started = clock.boot();
    kit.plan([Odd::Dripping]);
    assert_eq!(kit.read().await.unwrap(), "sound");
    let took = clock.boot().saturating_sub(started);
    assert!(took < Duration::from_secs(10), "{took:?}, not a byte each four seconds to its end");
    kit.plan(vec![Odd::Dripping; 100]);
    let read = kit.read().await;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn damage_is_believed_within_seconds() {
    let kit = Kit::new("damaged").await;
    let env = kit.bucket.env().clone();
    let started = env.clock.boot();
    assert!(matches!(kit.read().await, Err(Error::Corrupt(_))));
    let took = env.clock.boot().saturating_sub(started);
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(5), "{took:?}");
    assert!(kit.bucket.damage().holds(&Object::Current));
    let started = env.clock.boot();
    assert!(matches!(kit.read().await, Err(Error::Corrupt(_))));
    assert!(env.clock.boot().saturating_sub(started) < Duration::from_millis(100), "known by now");
    kit.bucket.put(&Object::Current, "sound".into()).await.unwrap();
    assert_eq!(kit.read().await.unwrap(), "sound");
    assert_eq!(kit.bucket.damage().count(), 0, "and cleared");
}

#[tokio::test(start_paused = true)]
async fn a_link_that_flips_bits_convicts_nothing() {
    let kit = Kit::new("sound").await;
    kit.plan(different(30));
    assert_eq!(kit.read().await.unwrap(), "sound");
    kit.plan(different(1_000));
    let read = kit.read().await;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    assert_eq!(kit.bucket.damage().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_416_to_a_whole_read_is_asked_again() {
    let kit = Kit::new("sound").await;
    let (_, version) = kit.bucket.read_versioned(&Object::Current, sound).await.unwrap();
    kit.plan([Odd::BeyondEnd]);
    assert_eq!(kit.read().await.unwrap(), "sound");
    kit.plan([Odd::BeyondEnd]);
    let read = kit.bucket.read_if_changed(&Object::Current, &version, sound).await;
    assert_eq!(read.unwrap(), None);
    kit.plan([Odd::BeyondEnd]);
    assert_eq!(kit.bucket.get_range(&Object::Current, 1..5).await.unwrap(), "ound");
    kit.plan(vec![Odd::BeyondEnd; 1_000]);
    let read = kit.read().await;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    assert_eq!(kit.bucket.damage().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_404_is_never_absence() {
    let kit = Kit::new("sound").await;
    kit.plan(std::iter::repeat_n(Odd::Foreign(404), 1_000));
    let read = kit.read().await;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    kit.store.plan.lock().unwrap().clear();
    kit.bucket.delete(&[Object::Current]).await.unwrap();
    assert!(matches!(kit.read().await, Err(Error::NotFound(_))));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_ends_early_is_read_again() {
    let kit = Kit::new("sound").await;
    kit.plan([Odd::Garbled("so".into()), Odd::Garbled("s".into())]);
    assert_eq!(kit.bucket.get_range(&Object::Current, 1..5).await.unwrap(), "ound");
    let short = kit.bucket.get_range(&Object::Current, 1..6).await;
    assert!(matches!(short, Err(Error::Corrupt(_))), "{short:?}");
}

#[tokio::test(start_paused = true)]
async fn an_older_current_is_read_again() {
    let kit = Kit::new("sound").await;
    kit.bucket.delete(&[Object::Current]).await.unwrap();
    let manifests = Manifests::new(kit.bucket.clone(), kit.bucket.env().clone());
    manifests.create().await.unwrap();
    let old = kit.bucket.get(&Object::Current).await.unwrap();
    let (role, uuid) = (Role::Writer, Uuid::from_u128(1));
    let claim = Claim { role, uuid, url: None, lease: Duration::from_secs(2) };
    let known = manifests.claim(&claim).await.unwrap().snapshot;
    for times in [1, 2] {
        kit.plan(std::iter::repeat_n(Odd::Garbled(old.clone()), times));
        let found = manifests.refresh(&known).await.unwrap();
        assert!(found.is_none_or(|found| found.current == known.current), "{times} of a cache");
    }
    kit.bucket.put(&Object::Current, old).await.unwrap();
    let found = manifests.refresh(&known).await;
    let Err(Error::Corrupt(failure)) = found else { panic!("{found:?}") };
    assert!(format!("{failure}").contains("went back"), "{failure}");
}
