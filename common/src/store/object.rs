//! A bucket: the few verbs with which Cairn speaks to an object store.
//!
//! **Invariants**
//! - Every call ends within its deadline, and every attempt within a deadline of its own.
//! - Retries live here alone. Reads and unconditional writes are tried again after anything that
//!   may pass; `create` and `swap` only after attempts that certainly did nothing. An outcome that
//!   is not certain is told as such, and the caller reads back.
//! - Answers are as exact as the store allows, see [`super::answer`].
//!
//! Futures may be dropped at any time; a write then has an unknown outcome.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, PutMode, PutOptions, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::answer::{Again, Failed};
use super::attempt::Call;
use super::create::Latencies;
use super::damage::Damage;
use super::date::{self, StoreClock};
use super::link::{Link, Transfer};
pub use super::listing::Listed;
use super::metrics::{Operation, Prices, StoreMetrics};
use super::upload::Upload;
use super::url;
pub use super::url::{Variables, directory_of, is_on_network};
use crate::env::Env;
use crate::format::path::Object;
use crate::{Error, Result};

/// How patient and how eager a bucket is.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// How long one attempt may make no progress, beside what the bytes in flight are expected to
    /// take. Default 5 s: ten times the slowest ordinary request of S3.
    pub attempt_timeout: Duration,
    /// How long a call goes on trying. Default 30 s: half the longest request deadline.
    pub deadline: Duration,
    /// The first pause between attempts. Default 20 ms: about one request.
    pub backoff_min: Duration,
    /// The longest pause between attempts. Default 1 s.
    pub backoff_max: Duration,
    /// When a slow create is sent a second time.
    pub hedge: Hedge,
    /// Bytes of one part of a multipart upload; what is smaller is sent in one request. Default
    /// 8 MiB: a fifth of a second at 40 MiB/s, and 10,000 of them (S3's bound) are 80 GiB.
    pub part_bytes: usize,
    /// Parts of one upload in flight. Default 4; memory grows with it.
    pub parts_in_flight_max: usize,
}

/// When a slow create of a WAL object is sent a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedge {
    /// Never.
    Never,
    /// Once it has taken longer than 95 % of the recent ones.
    AfterP95,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            hedge: Hedge::AfterP95,
            part_bytes: 8 * 1024 * 1024,
            parts_in_flight_max: 4,
        }
    }
}

/// Which version of an object a read saw: what a swap or a conditional read is conditioned on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub(super) e_tag: Option<String>,
    /// Google Cloud Storage conditions on its generation, not on the ETag.
    pub(super) generation: Option<String>,
}

/// The objects of one database in an object store. A cheap handle.
#[derive(Clone)]
pub struct Bucket {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn ObjectStore>,
    root: Path,
    url: String,
    settings: StoreSettings,
    env: Env,
    metrics: Arc<StoreMetrics>,
    damage: Arc<Damage>,
    wal_creates: Latencies,
    /// What is sent, and what is read.
    links: Links,
    /// Whether somebody can stand between us and the store, and say something else.
    over_http: bool,
}

/// Both directions of the link; shared by all roots of a store.
#[derive(Clone)]
struct Links {
    up: Arc<Link>,
    down: Arc<Link>,
}

impl Links {
    fn new(env: &Env) -> Self {
        let link = || Arc::new(Link::new(Arc::clone(&env.clock)));
        Self { up: link(), down: link() }
    }
}

impl Bucket {
    /// The bucket that a URL names: `file:///path`, `s3://bucket/prefix`, `gs://…`, `az://…`, or
    /// `memory://` (a store of its own, gone with the handle). Credentials and endpoints come from
    /// the standard variables of each cloud.
    ///
    /// Sends nothing; see [`Bucket::check`].
    ///
    /// # Errors
    /// `Invalid`, with what to do, where the URL or the credentials cannot be used.
    pub fn open(url: &str, settings: StoreSettings, env: Env) -> Result<Self> {
        Self::open_with(url, &Variables::OfProcess, settings, env)
    }

    /// Like [`Bucket::open`], with the variables given.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_with(
        url: &str,
        variables: &Variables,
        mut settings: StoreSettings,
        env: Env,
    ) -> Result<Self> {
        let clock = Arc::new(StoreClock::new(Arc::clone(&env.clock)));
        let opened = url::open(url, variables, &clock)?;
        if opened.prices == Prices::FREE {
            // A second write to the same disk is not faster than the first.
            settings.hedge = Hedge::Never;
        }
        let over_http = is_on_network(url);
        Ok(Self::assemble(opened, settings, env, (over_http, clock)))
    }

    /// A bucket over any store, for tests: objects live under `root`, hedging is as set.
    ///
    /// # Errors
    /// `Invalid` where the root cannot be a name.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        root: &str,
        settings: StoreSettings,
        env: Env,
    ) -> Result<Self> {
        let url = format!("{store}/{root}");
        let root = Path::parse(root).map_err(|error| Error::Invalid(error.to_string()))?;
        let clock = Arc::new(StoreClock::new(Arc::clone(&env.clock)));
        let opened = url::Opened { store, root, url, prices: Prices::S3 };
        Ok(Self::assemble(opened, settings, env, (false, clock)))
    }

    fn assemble(
        opened: url::Opened,
        settings: StoreSettings,
        env: Env,
        (over_http, clock): (bool, Arc<StoreClock>),
    ) -> Self {
        let url::Opened { store, root, url, prices } = opened;
        let env = date::bounded(env, &clock);
        let links = Links::new(&env);
        let shared = Shared {
            store,
            root,
            url,
            settings,
            env,
            metrics: Arc::new(StoreMetrics::new(prices)),
            damage: Arc::default(),
            wal_creates: Latencies::default(),
            links,
            over_http,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The database at another root of the same store; requests and damage count for both together.
    ///
    /// # Errors
    /// `Invalid` where that is no path.
    pub fn rooted(&self, root: &str) -> Result<Self> {
        let shared = &*self.shared;
        let root = Path::parse(root).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                store: Arc::clone(&shared.store),
                url: format!("{}/{root}", shared.store),
                root,
                settings: shared.settings.clone(),
                env: shared.env.clone(),
                metrics: Arc::clone(&shared.metrics),
                damage: Arc::clone(&shared.damage),
                wal_creates: Latencies::default(),
                links: shared.links.clone(),
                over_http: shared.over_http,
            }),
        })
    }

    /// The URL of the database, for people.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Counters of everything that was asked of the store.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.shared.metrics
    }

    /// The objects that are known to be missing or damaged.
    pub fn damage(&self) -> &Damage {
        &self.shared.damage
    }

    /// Clocks, randomness and CPU. The wall clock is bounded by the store's: use it for everything
    /// that writes a wall time to the bucket, or judges expiry by one.
    pub fn env(&self) -> &Env {
        &self.shared.env
    }

    /// The way to the store.
    pub(super) fn uplink(&self) -> &Arc<Link> {
        &self.shared.links.up
    }

    /// The way from the store.
    pub(super) fn downlink(&self) -> &Arc<Link> {
        &self.shared.links.down
    }

    pub(super) fn is_over_http(&self) -> bool {
        self.shared.over_http
    }

    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.shared.store
    }

    pub(super) fn root(&self) -> &Path {
        &self.shared.root
    }

    pub(super) fn settings(&self) -> &StoreSettings {
        &self.shared.settings
    }

    pub(super) fn wal_creates(&self) -> &Latencies {
        &self.shared.wal_creates
    }

    /// Asks the store for CURRENT once, to see whether the bucket can be used at all.
    ///
    /// # Errors
    /// `Invalid`, with what to do, where the bucket does not exist or the credentials are refused;
    /// `Unavailable` where the store does not answer.
    pub async fn check(&self) -> Result<()> {
        let call = Call::new(Operation::Get, &Object::Current);
        match self.fetch(call, &Object::Current, GetOptions::default()).await {
            Ok(_) | Err(Failed { error: Error::NotFound(_), .. }) => Ok(()),
            Err(Failed { error, again: Again::Futile, .. }) => Err(Error::Invalid(format!(
                "the store {} cannot be used: {error}. Check that the bucket exists, and the \
                 region, the endpoint and the credentials in the environment",
                self.url()
            ))),
            Err(Failed { error, .. }) => Err(error),
        }
    }

    /// Replaces an object if it still is the version given; returns the new version. One
    /// conditional PUT, again only if the store refused it without looking.
    ///
    /// # Errors
    /// `Conflict` where it is another version, or not there; `Indeterminate`: read back;
    /// `Unavailable`.
    pub async fn swap(&self, object: &Object, bytes: Bytes, known: &Version) -> Result<Version> {
        let call = Call::new(Operation::Swap, object);
        let mode = PutMode::Update(UpdateVersion {
            e_tag: known.e_tag.clone(),
            version: known.generation.clone(),
        });
        self.retry_certain(|| self.write(call, object, bytes.clone(), mode.clone())).await
    }

    /// Writes an object whatever is there: for names that are never used twice. One PUT, or a
    /// multipart upload where the object is large.
    ///
    /// # Errors
    /// `Unavailable`; `Indeterminate`: it may be there, or appear later.
    pub async fn put(&self, object: &Object, bytes: Bytes) -> Result<()> {
        if bytes.len() > self.settings().part_bytes {
            let mut upload = self.upload(object);
            if let Err(error) = upload.write(bytes).await {
                upload.abort().await;
                return Err(error);
            }
            return upload.finish().await;
        }
        self.put_whole(object, bytes).await
    }

    /// Writes an object with one PUT, again after anything that may pass.
    pub(super) async fn put_whole(&self, object: &Object, bytes: Bytes) -> Result<()> {
        let call = Call::new(Operation::Put, object);
        let ambiguous = AtomicBool::new(false);
        let attempt = || async {
            let written = self.write(call, object, bytes.clone(), PutMode::Overwrite).await;
            if let Err(Failed { error: Error::Indeterminate(_), .. }) = &written {
                ambiguous.store(true, Ordering::Relaxed);
            }
            written.map(drop)
        };
        match self.retry(attempt).await {
            // SUBTLE: the last attempt did nothing, but an earlier one may have.
            Err(Error::Unavailable(failure)) if ambiguous.into_inner() => {
                Err(Error::Indeterminate(failure))
            }
            answer => answer,
        }
    }

    /// Begins an object that is written piece by piece, under a name that is never used twice.
    pub fn upload(&self, object: &Object) -> Upload {
        Upload::new(self.clone(), *object)
    }

    /// One conditional or unconditional PUT.
    pub(super) async fn write(
        &self,
        call: Call<'_>,
        object: &Object,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<Version, Failed> {
        let length = bytes.len();
        let path = self.path(object);
        let options = PutOptions { mode, ..PutOptions::default() };
        let permit = self.uplink().enter(call.class(length), length).await;
        let work = self.shared.store.put_opts(&path, PutPayload::from(bytes), options);
        let patience = permit.patience(self.settings().attempt_timeout);
        let put = self.attempt(call, patience, work).await;
        permit.end(Transfer::of(&put));
        let put = put?;
        self.metrics().sent(call.operation, call.kind, length);
        Ok(Version { e_tag: put.e_tag, generation: put.version })
    }

    /// The name of an object in the store.
    pub(super) fn path(&self, object: &Object) -> Path {
        Path::from(format!("{}/{object}", self.shared.root))
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.shared.url).finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::format::path::ObjectKind;
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::probe::{Verdict, probe};
    use crate::types::WalId;

    fn bucket(root: &str) -> Bucket {
        let store = Arc::new(InMemory::new());
        Bucket::new(store, root, StoreSettings::default(), Env::system()).unwrap()
    }

    fn wal(id: u64) -> Object {
        Object::Wal(WalId(id))
    }

    fn is_send<T: Send>(value: T) -> T {
        value
    }

    #[tokio::test]
    async fn an_object_is_created_once() {
        let bucket = bucket("db");
        is_send(bucket.create(&wal(1), "a".into())).await.unwrap();
        let again = bucket.create(&wal(1), "b".into()).await;
        assert!(matches!(again, Err(Error::Conflict(name)) if name == wal(1).path()));
        assert_eq!(bucket.get(&wal(1)).await.unwrap(), "a");
    }

    #[tokio::test]
    async fn a_swap_needs_the_version_that_is_there() {
        let bucket = bucket("");
        bucket.create(&Object::Current, "0".into()).await.unwrap();
        let (_, zero) = bucket.get_versioned(&Object::Current).await.unwrap();
        let one = is_send(bucket.swap(&Object::Current, "1".into(), &zero)).await.unwrap();
        let late = bucket.swap(&Object::Current, "2".into(), &zero).await;
        assert!(matches!(late, Err(Error::Conflict(_))));
        assert_eq!(bucket.get_if_changed(&Object::Current, &one).await.unwrap(), None);
        let changed = is_send(bucket.get_if_changed(&Object::Current, &zero)).await.unwrap();
        assert_eq!(changed, Some(("1".into(), one)));
    }

    #[tokio::test]
    async fn a_range_is_exact_or_corrupt() {
        let bucket = bucket("db");
        is_send(bucket.put(&wal(1), "0123456789".into())).await.unwrap();
        assert_eq!(is_send(bucket.get_range(&wal(1), 2..10)).await.unwrap(), "23456789");
        assert_eq!(bucket.get_range(&wal(1), 2..2).await.unwrap(), "");
        for past in [2..11, 9..12, 10..11, 20..30] {
            let answer = bucket.get_range(&wal(1), past.clone()).await;
            assert!(matches!(answer, Err(Error::Corrupt(_))), "{past:?}: {answer:?}");
        }
        assert!(matches!(bucket.get_range(&wal(2), 0..1).await, Err(Error::NotFound(_))));
    }

    #[tokio::test]
    async fn listings_are_of_one_kind_and_one_root() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let open = |root: &str| {
            let settings = StoreSettings::default();
            Bucket::new(Arc::clone(&store), root, settings, Env::system()).unwrap()
        };
        let (one, two) = (open("db"), open("db2"));
        assert_eq!(is_send(one.any_object()).await.unwrap(), None);
        for id in 1..=3 {
            one.put(&wal(id), vec![0; 7].into()).await.unwrap();
        }
        two.put(&wal(4), "x".into()).await.unwrap();
        one.put(&Object::Current, "x".into()).await.unwrap();
        store.put_opts(&"db/wal/alien".into(), "x".into(), PutOptions::default()).await.unwrap();
        let mut listed = is_send(one.list(ObjectKind::Wal)).await.unwrap();
        listed.sort_by_key(|listed| listed.object);
        assert_eq!(
            listed.iter().map(|listed| (listed.object, listed.bytes)).collect::<Vec<_>>(),
            [(wal(1), 7), (wal(2), 7), (wal(3), 7)]
        );
        assert_eq!(one.list(ObjectKind::Current).await.unwrap().len(), 1);
        assert_eq!(one.list(ObjectKind::Sst).await.unwrap(), []);
        assert!(one.any_object().await.unwrap().is_some());
        is_send(one.delete(&[wal(1), wal(3), wal(9)])).await.unwrap();
        assert_eq!(one.list(ObjectKind::Wal).await.unwrap().len(), 1);
        assert_eq!(two.list(ObjectKind::Wal).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_upload_arrives_whole_whatever_its_pieces() {
        let settings =
            StoreSettings { part_bytes: 10, parts_in_flight_max: 2, ..StoreSettings::default() };
        let store = Arc::new(InMemory::new());
        let bucket = Bucket::new(store, "db", settings, Env::system()).unwrap();
        let text: Bytes = (0..=99_u8).collect::<Vec<_>>().into();
        for (id, piece) in [1, 3, 9, 10, 11, 25, 100].into_iter().enumerate() {
            let object = wal(u64::try_from(id).unwrap());
            let mut upload = bucket.upload(&object);
            for piece in text.chunks(piece) {
                is_send(upload.write(Bytes::copy_from_slice(piece))).await.unwrap();
            }
            assert!(matches!(bucket.get(&object).await, Err(Error::NotFound(_))));
            is_send(upload.finish()).await.unwrap();
            assert_eq!(bucket.get(&object).await.unwrap(), text);
        }
        let mut given_up = bucket.upload(&wal(99));
        given_up.write(text.clone()).await.unwrap();
        is_send(given_up.abort()).await;
        assert!(matches!(bucket.get(&wal(99)).await, Err(Error::NotFound(_))));
        is_send(bucket.put(&wal(98), text.clone())).await.unwrap();
        assert_eq!(bucket.get(&wal(98)).await.unwrap(), text);
    }

    #[tokio::test]
    async fn what_is_asked_is_counted() {
        let bucket = bucket("db");
        bucket.put(&wal(1), "abc".into()).await.unwrap();
        bucket.get(&wal(1)).await.unwrap();
        assert!(bucket.get(&wal(2)).await.is_err());
        let snapshot = bucket.metrics().snapshot();
        let [get, put] = &snapshot.rows[..] else { panic!("{:?}", snapshot.rows) };
        assert_eq!(
            (get.operation, get.requests, get.errors, get.bytes_in),
            (Operation::Get, 2, 0, 3)
        );
        assert_eq!((put.operation, put.requests, put.bytes_out), (Operation::Put, 1, 3));
        assert_eq!(snapshot.nanodollars, 2 * 400 + 5_000);
    }

    #[tokio::test]
    async fn a_memory_url_opens_and_a_probe_passes() {
        let bucket = Bucket::open("memory:///db", StoreSettings::default(), Env::system()).unwrap();
        is_send(bucket.check()).await.unwrap();
        let verdict = is_send(probe(&bucket, uuid::Uuid::from_u128(7))).await;
        assert_eq!(verdict.unwrap(), Verdict::Honoured);
    }
}
