//! What Cairn needs of a store, as one list of laws, and the stores on this machine held to it.
//! The laws run one after another in one bucket; each takes a root of its own.

use std::sync::Arc;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::env::Env;
use cairn_common::format::path::{ManifestId, Object, ObjectKind, OutputId};
use cairn_common::store::object::{Bucket, StoreSettings, Version};
use cairn_common::store::probe::{Verdict, probe};
use cairn_common::types::{Epoch, Role, WalId};
use futures::future::{BoxFuture, FutureExt, join_all};
use object_store::memory::InMemory;
use uuid::Uuid;

/// How many race for one object: more than there are connections to a host by default.
const CONTENDERS: u64 = 32;
/// S3 wants at least 5 MiB of every part but the last.
const PART_BYTES: usize = 5 * 1024 * 1024;

type Law = fn(Bucket) -> BoxFuture<'static, ()>;

const LAWS: &[(&str, Law)] = &[
    ("an object is created once", |bucket| created_once(bucket).boxed()),
    ("one of many creates wins", |bucket| one_create_wins(bucket).boxed()),
    ("a swap needs the right version", |bucket| swap_needs_the_version(bucket).boxed()),
    ("one of many swaps wins", |bucket| one_swap_wins(bucket).boxed()),
    ("no increment by swap is lost", |bucket| no_swap_is_lost(bucket).boxed()),
    ("a conditional read sees changes alone", |bucket| conditional_reads(bucket).boxed()),
    ("ranges are exact", |bucket| ranges_are_exact(bucket).boxed()),
    ("a listing holds what is there", |bucket| listings(bucket).boxed()),
    ("what is not there can be deleted", |bucket| deleting(bucket).boxed()),
    ("an upload of many parts arrives", |bucket| multipart(bucket).boxed()),
    ("an empty object is an object", |bucket| empty_object(bucket).boxed()),
    ("every name of ours is a name", |bucket| names(bucket).boxed()),
    ("the probe is content", |bucket| probe_is_content(bucket).boxed()),
];

#[expect(clippy::print_stdout, reason = "tells which law a failure belongs to")]
/// Holds a store to every law; `open` opens a root in it.
pub(crate) async fn conforms(open: impl Fn(&str) -> Bucket) {
    for (index, (law, check)) in LAWS.iter().enumerate() {
        println!("law: {law}");
        let bucket = open(&format!("laws/{index}"));
        bucket.check().await.unwrap();
        check(bucket).await;
    }
}

pub(crate) fn settings() -> StoreSettings {
    StoreSettings { part_bytes: PART_BYTES, ..StoreSettings::default() }
}

#[tokio::test]
async fn memory_conforms() {
    let store = Arc::new(InMemory::new());
    conforms(|root| {
        let store = Arc::clone(&store);
        Bucket::new(store, root, settings(), Env::system()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conforms(|root| {
        let url = format!("file://{}/{root}", directory.path().display());
        Bucket::open(&url, settings(), Env::system()).unwrap()
    })
    .await;
}

fn wal(id: u64) -> Object {
    Object::Wal(WalId(id))
}

fn text(number: u64) -> Bytes {
    number.to_string().into()
}

/// Bytes in which every stretch is different.
fn pattern(length: usize) -> Bytes {
    let mut state = 1_u32;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

async fn current(bucket: &Bucket) -> (u64, Version) {
    let (bytes, version) = bucket.get_versioned(&Object::Current).await.unwrap();
    (std::str::from_utf8(&bytes).unwrap().parse().unwrap(), version)
}

async fn created_once(bucket: Bucket) {
    assert!(matches!(bucket.get(&wal(1)).await, Err(Error::NotFound(_))));
    bucket.create(&wal(1), "first".into()).await.unwrap();
    let again = bucket.create(&wal(1), "second".into()).await;
    assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
    assert_eq!(bucket.get(&wal(1)).await.unwrap(), "first");
}

async fn one_create_wins(bucket: Bucket) {
    for round in 1..=4 {
        let creates = (0..CONTENDERS).map(|contender| {
            let bucket = bucket.clone();
            async move { bucket.create(&wal(round), text(contender)).await }
        });
        let answers = join_all(creates).await;
        let found = bucket.get(&wal(round)).await.unwrap();
        for (contender, answer) in answers.iter().enumerate() {
            let own = text(u64::try_from(contender).unwrap()) == found;
            match answer {
                Ok(()) => assert!(own, "{contender} was told that it won"),
                Err(Error::Conflict(_)) => assert!(!own, "{contender} was told that it lost"),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    }
}

async fn swap_needs_the_version(bucket: Bucket) {
    bucket.create(&Object::Current, text(0)).await.unwrap();
    let (_, zero) = current(&bucket).await;
    let one = bucket.swap(&Object::Current, text(1), &zero).await.unwrap();
    let late = bucket.swap(&Object::Current, text(2), &zero).await;
    assert!(matches!(late, Err(Error::Conflict(_))), "{late:?}");
    assert_eq!(current(&bucket).await, (1, one.clone()));
    bucket.swap(&Object::Current, text(3), &one).await.unwrap();
    bucket.delete(&[Object::Current]).await.unwrap();
    let gone = bucket.swap(&Object::Current, text(4), &one).await;
    assert!(matches!(gone, Err(Error::Conflict(_))), "{gone:?}");
    assert!(matches!(bucket.get(&Object::Current).await, Err(Error::NotFound(_))));
}

async fn one_swap_wins(bucket: Bucket) {
    bucket.create(&Object::Current, "start".into()).await.unwrap();
    for round in 0..4 {
        let (_, known) = bucket.get_versioned(&Object::Current).await.unwrap();
        let swaps = (0..CONTENDERS).map(|contender| {
            let (bucket, known) = (bucket.clone(), known.clone());
            async move {
                let bytes = text(round * CONTENDERS + contender);
                bucket.swap(&Object::Current, bytes, &known).await
            }
        });
        let answers = join_all(swaps).await;
        let won: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
        assert_eq!(won.len(), 1);
        assert_eq!(current(&bucket).await.1, *won[0]);
        let lost = |answer: &Result<_, _>| matches!(answer, Ok(_) | Err(Error::Conflict(_)));
        assert!(answers.iter().all(lost), "{answers:?}");
    }
}

async fn no_swap_is_lost(bucket: Bucket) {
    const EACH: u64 = 4;
    bucket.create(&Object::Current, text(0)).await.unwrap();
    let counters = (0..8).map(|_| {
        let bucket = bucket.clone();
        async move {
            let mut done = 0;
            while done < EACH {
                let (count, version) = current(&bucket).await;
                match bucket.swap(&Object::Current, text(count + 1), &version).await {
                    Ok(_) => done += 1,
                    Err(Error::Conflict(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    join_all(counters).await;
    assert_eq!(current(&bucket).await.0, 8 * EACH);
}

async fn conditional_reads(bucket: Bucket) {
    bucket.create(&Object::Current, text(0)).await.unwrap();
    let (_, zero) = current(&bucket).await;
    assert_eq!(bucket.get_if_changed(&Object::Current, &zero).await.unwrap(), None);
    let one = bucket.swap(&Object::Current, text(1), &zero).await.unwrap();
    let changed = bucket.get_if_changed(&Object::Current, &zero).await.unwrap();
    assert_eq!(changed, Some((text(1), one.clone())));
    assert_eq!(bucket.get_if_changed(&Object::Current, &one).await.unwrap(), None);
    bucket.delete(&[Object::Current]).await.unwrap();
    let gone = bucket.get_if_changed(&Object::Current, &one).await;
    assert!(matches!(gone, Err(Error::NotFound(_))), "{gone:?}");
}

async fn ranges_are_exact(bucket: Bucket) {
    let bytes = pattern(10_000);
    bucket.put(&wal(1), bytes.clone()).await.unwrap();
    for (start, end) in [(0, 1), (0, 10_000), (9_999, 10_000), (17, 4_711), (5, 5)] {
        let range = u64::try_from(start).unwrap()..u64::try_from(end).unwrap();
        assert_eq!(bucket.get_range(&wal(1), range).await.unwrap(), bytes.slice(start..end));
    }
    for past in [0..10_001, 9_999..10_001, 10_000..10_001, 20_000..20_001] {
        let answer = bucket.get_range(&wal(1), past.clone()).await;
        assert!(matches!(answer, Err(Error::Corrupt(_))), "{past:?}: {answer:?}");
    }
    let gone = bucket.get_range(&wal(2), 0..1).await;
    assert!(matches!(gone, Err(Error::NotFound(_))), "{gone:?}");
}

async fn listings(bucket: Bucket) {
    assert_eq!(bucket.any_object().await.unwrap(), None);
    for kind in ObjectKind::ALL {
        assert_eq!(bucket.list(kind).await.unwrap(), []);
    }
    for id in 1..=20 {
        bucket.put(&wal(id * 7), pattern(usize::try_from(id).unwrap())).await.unwrap();
    }
    for object in one_of_each() {
        bucket.put(&object, "x".into()).await.unwrap();
    }
    let mut listed = bucket.list(ObjectKind::Wal).await.unwrap();
    listed.sort_by_key(|listed| listed.object);
    let mut want: Vec<_> = (1..=20).map(|id| (wal(id * 7), id)).collect();
    want.push((wal(u64::MAX), 1));
    let found: Vec<_> = listed.iter().map(|listed| (listed.object, listed.bytes)).collect();
    assert_eq!(found, want);
    assert!(listed.iter().all(|listed| listed.modified_ms > 1_600_000_000_000));
    for kind in ObjectKind::ALL.into_iter().filter(|kind| *kind != ObjectKind::Wal) {
        let listed = bucket.list(kind).await.unwrap();
        let found: Vec<_> = listed.iter().map(|listed| listed.object).collect();
        let want: Vec<_> =
            one_of_each().into_iter().filter(|object| object.kind() == kind).collect();
        assert_eq!(found, want);
    }
    assert!(bucket.any_object().await.unwrap().is_some());
}

async fn deleting(bucket: Bucket) {
    for id in 1..=5 {
        bucket.put(&wal(id), text(id)).await.unwrap();
    }
    bucket.delete(&[]).await.unwrap();
    bucket.delete(&[wal(99)]).await.unwrap();
    bucket.delete(&[wal(1), wal(98), wal(3), wal(97), wal(5)]).await.unwrap();
    bucket.delete(&[wal(1)]).await.unwrap();
    let mut left = bucket.list(ObjectKind::Wal).await.unwrap();
    left.sort_by_key(|listed| listed.object);
    assert_eq!(left.iter().map(|left| left.object).collect::<Vec<_>>(), [wal(2), wal(4)]);
    assert!(matches!(bucket.get(&wal(3)).await, Err(Error::NotFound(_))));
    bucket.create(&wal(3), "again".into()).await.unwrap();
}

async fn multipart(bucket: Bucket) {
    let bytes = pattern(2 * PART_BYTES + 1_234);
    bucket.put(&wal(1), bytes.clone()).await.unwrap();
    assert!(bucket.get(&wal(1)).await.unwrap() == bytes, "another content");
    let mut upload = bucket.upload(&wal(2));
    for piece in bytes.chunks(700_001) {
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert!(matches!(bucket.get(&wal(2)).await, Err(Error::NotFound(_))), "appeared too early");
    upload.finish().await.unwrap();
    assert!(bucket.get(&wal(2)).await.unwrap() == bytes, "another content");
    let (start, end) = (PART_BYTES - 10, PART_BYTES + 10);
    let range = u64::try_from(start).unwrap()..u64::try_from(end).unwrap();
    assert_eq!(bucket.get_range(&wal(2), range).await.unwrap(), bytes.slice(start..end));
    let mut given_up = bucket.upload(&wal(3));
    given_up.write(bytes).await.unwrap();
    given_up.abort().await;
    assert_eq!(bucket.list(ObjectKind::Wal).await.unwrap().len(), 2);
}

async fn empty_object(bucket: Bucket) {
    bucket.create(&wal(1), Bytes::new()).await.unwrap();
    assert_eq!(bucket.get(&wal(1)).await.unwrap(), "");
    let again = bucket.create(&wal(1), "x".into()).await;
    assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
    let mut nothing = bucket.upload(&wal(2));
    nothing.write(Bytes::new()).await.unwrap();
    nothing.finish().await.unwrap();
    assert_eq!(bucket.get(&wal(2)).await.unwrap(), "");
}

async fn names(bucket: Bucket) {
    for object in one_of_each() {
        bucket.create(&object, object.path().into()).await.unwrap();
    }
    for object in one_of_each() {
        assert_eq!(bucket.get(&object).await.unwrap(), object.path());
    }
    bucket.delete(&one_of_each()).await.unwrap();
    assert_eq!(bucket.any_object().await.unwrap(), None);
}

async fn probe_is_content(bucket: Bucket) {
    assert_eq!(probe(&bucket, Uuid::from_u128(1)).await.unwrap(), Verdict::Honoured);
}

/// One object of every kind, with extreme names.
fn one_of_each() -> Vec<Object> {
    let uuid = Uuid::max();
    vec![
        Object::Current,
        Object::Manifest(ManifestId { version: u64::MAX, uuid }),
        Object::Run(OutputId { role: Role::Compactor, epoch: Epoch(u32::MAX), uuid }),
        wal(u64::MAX),
        Object::Sst(OutputId { role: Role::Writer, epoch: Epoch(0), uuid: Uuid::nil() }),
        Object::Probe(uuid),
    ]
}
