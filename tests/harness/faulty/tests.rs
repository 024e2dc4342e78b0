//! The simulated store is itself held to what it promises.

use std::sync::Arc;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::WalId;
use object_store::ObjectStoreExt;

use super::*;

fn bucket(link: &Link, seed: u64) -> Bucket {
    let env = Env {
        clock: Arc::new(TokioClock::starting_at(0)),
        random: Arc::new(SeededRandom::new(seed)),
        cpu: Cpu::Inline,
    };
    Bucket::new(Arc::new(link.clone()), "db", StoreSettings::default(), env).unwrap()
}

fn wal(id: u64) -> Object {
    Object::Wal(WalId(id))
}

async fn found(store: &FaultyStore, object: Object) -> Option<Bytes> {
    let path = Path::from(format!("db/{object}"));
    store.objects().get(&path).await.ok()?.bytes().await.ok()
}

/// Creates, reads and deletes under rough conditions; returns the store when all has landed.
async fn exercise(seed: u64) -> FaultyStore {
    let store = FaultyStore::new(seed);
    store.set_faults(Faults { storm: 0.01, odd: 0.03, ..Faults::rough() });
    let bucket = bucket(&store.link(), seed);
    for id in 1..=300 {
        let answer = bucket.create(&wal(id), id.to_string().into()).await;
        let now = found(&store, wal(id)).await;
        match answer {
            Ok(()) => assert_eq!(now.unwrap(), id.to_string()),
            Err(Error::Unavailable(_)) => assert_eq!(now, None),
            Err(Error::Indeterminate(_) | Error::Conflict(_)) => {}
            Err(error) => panic!("{error}"),
        }
        drop(bucket.get(&wal(id)).await);
        if id % 10 == 0 {
            drop(bucket.list(ObjectKind::Wal).await);
            drop(bucket.delete(&[wal(id)]).await);
        }
    }
    while store.is_anything_under_way() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    store
}

#[tokio::test(start_paused = true)]
async fn every_fault_is_seen_and_equal_seeds_are_equal_runs() {
    let (one, same, other) = (exercise(1).await, exercise(1).await, exercise(2).await);
    assert_eq!((one.fingerprint(), one.counts()), (same.fingerprint(), same.counts()));
    assert_ne!(one.fingerprint(), other.fingerprint());
    for event in [
        Event::Refused,
        Event::Unreached,
        Event::RequestLost,
        Event::ResponseLost,
        Event::Parked,
        Event::Duplicated,
        Event::LandedLate,
        Event::LandedInVain,
        Event::StaleList,
        Event::Storm,
        Event::Odd(Odd::Garbled),
        Event::Odd(Odd::Shortened),
        Event::Odd(Odd::NotFound),
        Event::Odd(Odd::Precondition),
    ] {
        assert!(one.counts().contains_key(&event), "{event:?} was not seen: {:?}", one.counts());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_wrong_when_it_is_quiet() {
    let store = FaultyStore::new(1);
    let bucket = bucket(&store.link(), 1);
    for id in 1..=100 {
        bucket.create(&wal(id), id.to_string().into()).await.unwrap();
        assert_eq!(bucket.get(&wal(id)).await.unwrap(), id.to_string());
    }
    bucket.delete(&[wal(1)]).await.unwrap();
    let counts = store.counts();
    let seen: Vec<_> = counts.keys().copied().collect();
    assert_eq!(seen, [Event::Request, Event::Deleted(ObjectKind::Wal)]);
}

#[tokio::test(start_paused = true)]
async fn objects_are_stamped_with_the_time_of_the_world() {
    let store = FaultyStore::new(1);
    let bucket = bucket(&store.link(), 1);
    tokio::time::sleep(Duration::from_secs(100)).await;
    bucket.create(&wal(1), "1".into()).await.unwrap();
    let listed = bucket.list(ObjectKind::Wal).await.unwrap();
    let age_ms = listed[0].modified_ms - WALL_ORIGIN_MS;
    assert!((100_000..101_000).contains(&age_ms), "{age_ms}");
}

#[tokio::test(start_paused = true)]
async fn a_write_lands_though_its_sender_is_gone() {
    let store = FaultyStore::new(1);
    let link = store.link();
    let path = Path::from("db/wal/1");
    let mut put = Box::pin(link.put(&path, "sent".into()));
    assert!(futures::poll!(&mut put).is_pending());
    drop(put);
    assert!(store.objects().get(&path).await.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(store.objects().get(&path).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_process_hears_nothing_while_others_work() {
    let store = FaultyStore::new(1);
    let (stalled, other) = (store.link(), store.link());
    let path = Path::from("x");
    other.put(&path, "1".into()).await.unwrap();
    stalled.stall(Duration::from_secs(10));
    let clock = TokioClock::starting_at(0);
    other.get(&path).await.unwrap();
    assert!(clock.boot() < Duration::from_secs(1));
    stalled.get(&path).await.unwrap();
    assert!(clock.boot() >= Duration::from_secs(10));
    assert_eq!(store.counts()[&Event::Stalled], 1);
}

#[tokio::test(start_paused = true)]
async fn one_fault_meets_one_request() {
    let store = FaultyStore::new(1);
    let (link, path) = (store.link(), Path::from("db/wal/1"));
    link.put(&path, "0123456789".into()).await.unwrap();
    let read = async || link.get(&path).await?.bytes().await;
    for odd in [Odd::Garbled, Odd::Shortened, Odd::NotFound] {
        store.set_trap(Fault::Odd(odd), ObjectKind::Current);
        assert_eq!(read().await.unwrap(), "0123456789", "{odd:?} waits for another object");
        store.set_trap(Fault::Odd(odd), ObjectKind::Wal);
        assert_eq!(store.trap_sprung_at(), None);
        match read().await {
            Ok(bytes) => assert_ne!(bytes, "0123456789", "{odd:?}"),
            Err(error) => assert_eq!(odd, Odd::NotFound, "{error}"),
        }
        assert!(store.trap_sprung_at().is_some());
        assert_eq!(read().await.unwrap(), "0123456789", "{odd:?} is over");
        tokio::time::sleep(odd::ODD_APART).await;
    }
    store.set_trap(Fault::Odd(Odd::Precondition), ObjectKind::Wal);
    let other = Path::from("db/wal/2");
    assert!(link.put(&other, "x".into()).await.is_err());
    assert!(store.objects().get(&other).await.is_err(), "the store never saw it");
    link.put(&other, "x".into()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn odd_answers_about_one_object_are_apart() {
    let store = FaultyStore::new(1);
    let (link, path) = (store.link(), Path::from("db/wal/1"));
    link.put(&path, "0123456789".into()).await.unwrap();
    store.set_faults(Faults { odd: 0.3, ..Faults::quiet() });
    for _ in 0..100 {
        drop(link.get(&path).await);
    }
    let counts = store.counts();
    let seen: u64 = Odd::ALL.iter().filter_map(|odd| counts.get(&Event::Odd(*odd))).sum();
    assert_eq!(seen, 1, "{counts:?}");
}
