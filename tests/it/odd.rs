//! Odd answers: what somebody between us and the store says in its place, and bytes that a link
//! changes, are never the store's word. The table of writes is in `s3`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::clock::{Clock, SystemClock, TokioClock};
use cairn_common::env::Env;
use cairn_common::format::Corrupt;
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::types::WalId;
use futures::future::join_all;
use harness::fake_s3::{BUCKET, FakeS3, Fault, Rates, Rule, Verb};

use crate::conformance::settings;

/// Longer than a doubt takes.
const PATIENCE: Duration = Duration::from_secs(4);
const YEAR_MS: u64 = 365 * 24 * 3_600 * 1_000;
/// So that a fault is met until the caller gives up.
const ALWAYS: usize = 1_000_000;

fn open(fake: &FakeS3) -> Bucket {
    let settings = StoreSettings { deadline: PATIENCE, ..settings() };
    let url = format!("s3://{BUCKET}/db");
    Bucket::open_with(&url, &fake.variables(), settings, Env::system()).unwrap()
}

fn wal(id: u64) -> Object {
    Object::Wal(WalId(id))
}

/// The content of an object: its own name, often.
fn content(object: &Object) -> Bytes {
    object.path().repeat(50).into()
}

async fn read(bucket: &Bucket, object: &Object) -> Result<Bytes, Error> {
    let want = content(object);
    let parse = |bytes: Bytes| {
        if bytes == want { Ok(bytes) } else { Err(Corrupt::new("other bytes")) }
    };
    bucket.read_parsed(object, None, parse).await
}

fn odd_reads() -> Vec<Fault> {
    let mut faults = vec![Fault::Garble, Fault::Shorten, Fault::Cut, Fault::LostRequest];
    faults.extend([200, 304, 400, 403, 404, 409, 412, 416].map(Fault::ForeignBefore));
    faults
}

fn rule(verb: Verb, key: String, fault: &Fault, times: usize) -> Rule {
    Rule { verb, key, fault: fault.clone(), times }
}

#[tokio::test]
async fn a_clock_a_year_ahead_is_not_believed() {
    let fake = FakeS3::start_anywhere(1).await;
    let now_ms = SystemClock::default().wall_ms();
    let clock = Arc::new(TokioClock::starting_at(now_ms + YEAR_MS));
    let url = format!("s3://{BUCKET}/db");
    let env = Env { clock, ..Env::system() };
    let bucket = Bucket::open_with(&url, &fake.variables(), settings(), env).unwrap();
    assert!(bucket.env().clock.wall_ms() >= now_ms + YEAR_MS, "the store has told no time yet");
    for id in 1..=3 {
        bucket.put(&wal(id), content(&wal(id))).await.unwrap();
    }
    let ahead_ms = bucket.env().clock.wall_ms().saturating_sub(now_ms);
    assert!(ahead_ms < YEAR_MS / 2, "{ahead_ms} ms ahead of the store");
}

#[tokio::test]
async fn one_odd_answer_to_a_read_is_not_the_end() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake);
    for (id, fault) in (1..).zip(odd_reads()) {
        let object = wal(id);
        bucket.put(&object, content(&object)).await.unwrap();
        let key = format!("db/{object}");
        for times in [1, 2] {
            fake.faults().add(rule(Verb::Get, key.clone(), &fault, times));
            assert_eq!(read(&bucket, &object).await.unwrap(), content(&object), "{fault:?}");
        }
        fake.faults().add(rule(Verb::Get, key, &fault, 1));
        let part = bucket.get_range(&object, 10..90).await;
        if fault != Fault::Garble {
            assert_eq!(part.unwrap(), content(&object).slice(10..90), "{fault:?}");
        }
    }
    assert_eq!(bucket.damage().count(), 0);
}

#[tokio::test]
async fn odd_answers_that_stay_are_an_outage() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake);
    let rows = (1..).zip(odd_reads()).map(|(id, fault)| {
        let (bucket, fake) = (bucket.clone(), &fake);
        async move {
            let object = wal(id);
            bucket.put(&object, content(&object)).await.unwrap();
            fake.faults().add(rule(Verb::Get, format!("db/{object}"), &fault, ALWAYS));
            let answer = read(&bucket, &object).await;
            assert!(matches!(answer, Err(Error::Unavailable(_))), "{fault:?}: {answer:?}");
        }
    });
    join_all(rows).await;
    assert_eq!(bucket.damage().count(), 0);
    fake.faults().quiet();
    assert!(matches!(read(&bucket, &wal(999)).await, Err(Error::NotFound(_))), "the store's word");
}

#[tokio::test]
async fn stored_damage_is_damage_over_http_too() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake);
    for (id, bytes) in [(1, &b"damaged"[..]), (2, b"")] {
        bucket.put(&wal(id), Bytes::from_static(bytes)).await.unwrap();
        let answer = read(&bucket, &wal(id)).await;
        assert!(matches!(answer, Err(Error::Corrupt(_))), "{answer:?}");
        let short = bucket.get_range(&wal(id), 3..99).await;
        assert!(matches!(short, Err(Error::Corrupt(_))), "{short:?}");
    }
}

#[tokio::test]
async fn an_odd_listing_is_never_an_empty_one() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake);
    bucket.put(&wal(1), Bytes::new()).await.unwrap();
    let faults = [200, 304, 403, 404, 412].map(Fault::ForeignBefore);
    for fault in faults.into_iter().chain([Fault::Shorten, Fault::Cut]) {
        fake.faults().add(rule(Verb::List, "db".into(), &fault, 2));
        assert_eq!(bucket.list(ObjectKind::Wal).await.unwrap().len(), 1, "{fault:?}");
        fake.faults().add(rule(Verb::List, "db".into(), &fault, 2));
        assert!(bucket.any_object().await.unwrap().is_some(), "{fault:?}");
    }
    fake.faults().add(rule(Verb::List, "db".into(), &Fault::ForeignBefore(404), ALWAYS));
    let answer = bucket.list(ObjectKind::Wal).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn odd_answers_to_what_may_be_repeated_repeat_it() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake);
    for status in [200, 304, 403, 404, 409, 412] {
        for fault in [Fault::ForeignBefore(status), Fault::ForeignAfter(status)] {
            fake.faults().add(rule(Verb::Put, "db".into(), &fault, 2));
            bucket.put(&wal(1), content(&wal(1))).await.unwrap();
            assert!(fake.object(&format!("db/{}", wal(1))).is_some(), "{fault:?}");
            fake.faults().add(rule(Verb::Delete, String::new(), &fault, 2));
            bucket.delete(&[wal(1)]).await.unwrap();
            assert_eq!(fake.object(&format!("db/{}", wal(1))), None, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_link_that_changes_reads_ends_nothing() {
    let fake = FakeS3::start_anywhere(7).await;
    let bucket = open(&fake);
    let objects: Vec<_> = (1..=40).map(wal).collect();
    for object in &objects {
        bucket.put(object, content(object)).await.unwrap();
    }
    let shares = [
        (Fault::Garble, 0.1),
        (Fault::Shorten, 0.1),
        (Fault::Cut, 0.05),
        (Fault::ForeignBefore(404), 0.05),
    ];
    fake.faults().set_rates(Rates { shares: shares.into() });
    for _ in 0..5 {
        for (object, answer) in
            objects.iter().zip(join_all(objects.iter().map(|object| read(&bucket, object))).await)
        {
            assert_eq!(answer.unwrap(), content(object));
        }
    }
    assert!(fake.faults().met() > 30, "only {} faults", fake.faults().met());
    assert_eq!(bucket.damage().count(), 0);
}
