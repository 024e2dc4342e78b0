//! S3: moto and the fake held to the laws of stores, and what is told where outcomes are unclear.

use std::time::Duration;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::env::Env;
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::store::metrics::Operation;
use cairn_common::store::object::{Bucket, StoreSettings, Variables};
use cairn_common::store::probe::{Verdict, probe};
use cairn_common::store::wal::{Appended, Wal};
use cairn_common::types::WalId;
use harness::fake_s3::{BUCKET, Conditions, FakeS3, Fault, Rates, Rule, Verb};
use harness::moto::Moto;
use uuid::Uuid;

use crate::conformance::{conforms, settings};

/// Longer than anything a request waits for here.
const LONG: Duration = Duration::from_millis(800);

fn open(variables: &Variables, root: &str, settings: StoreSettings) -> Bucket {
    let url = format!("s3://{BUCKET}/{root}");
    Bucket::open_with(&url, variables, settings, Env::system()).unwrap()
}

/// Impatient, so that a timeout takes no time.
fn impatient() -> StoreSettings {
    StoreSettings {
        attempt_timeout: LONG / 2,
        deadline: LONG * 4,
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..settings()
    }
}

#[tokio::test]
async fn moto_conforms() {
    let moto = Moto::start(BUCKET).await;
    conforms(|root| open(&moto.variables(), root, settings())).await;
}

#[tokio::test]
async fn the_fake_conforms() {
    let fake = FakeS3::start_anywhere(1).await;
    conforms(|root| open(&fake.variables(), root, settings())).await;
}

#[tokio::test]
async fn a_listing_of_many_pages_is_whole() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", settings());
    let ids: Vec<u64> = (1..=2_345).collect();
    for batch in ids.chunks(64) {
        let puts = batch.iter().map(|id| {
            let bucket = bucket.clone();
            async move { bucket.put(&Object::Wal(WalId(*id)), Bytes::new()).await.unwrap() }
        });
        futures::future::join_all(puts).await;
    }
    let mut listed = bucket.list(ObjectKind::Wal).await.unwrap();
    listed.sort_by_key(|listed| listed.object);
    let want: Vec<_> = ids.iter().map(|id| Object::Wal(WalId(*id))).collect();
    assert_eq!(listed.iter().map(|listed| listed.object).collect::<Vec<_>>(), want);
    let snapshot = bucket.metrics().snapshot();
    let pages = snapshot.rows.iter().find(|row| row.operation == Operation::List).unwrap();
    assert_eq!(pages.requests, 3, "pages are what is paid for");
    bucket.delete(&want).await.unwrap();
    assert_eq!(bucket.any_object().await.unwrap(), None);
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused() {
    let fake = FakeS3::start_anywhere(1).await;
    fake.faults().set_conditions(Conditions::Ignored);
    let bucket = open(&fake.variables(), "db", settings());
    let verdict = probe(&bucket, Uuid::from_u128(1)).await.unwrap();
    let Verdict::Refused(text) = verdict else { panic!("{verdict:?}") };
    for part in ["several creates", "Use a store that does", "s3://cairn/db"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_store_that_judges_and_then_writes_is_refused() {
    let fake = FakeS3::start_anywhere(1).await;
    fake.faults().set_conditions(Conditions::JudgedEarly);
    let bucket = open(&fake.variables(), "db", settings());
    let object = Object::Wal(WalId(1));
    bucket.create(&object, "a".into()).await.unwrap();
    let again = bucket.create(&object, "b".into()).await;
    assert!(matches!(again, Err(Error::Conflict(_))), "one at a time it is right: {again:?}");
    for n in 0..8 {
        let verdict = probe(&bucket, Uuid::from_u128(n)).await.unwrap();
        assert!(matches!(verdict, Verdict::Refused(_)), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_probe_is_cheap_and_leaves_nothing() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", settings());
    let before = fake.faults().requests();
    assert_eq!(probe(&bucket, Uuid::from_u128(1)).await.unwrap(), Verdict::Honoured);
    let requests = fake.faults().requests() - before;
    assert!(requests <= 40, "{requests} requests");
    assert!(bucket.list(ObjectKind::Probe).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_probe_through_faults_refuses_no_good_store() {
    let fake = FakeS3::start_anywhere(7).await;
    let bucket = open(&fake.variables(), "db", impatient());
    let shares = vec![
        (Fault::LostResponse, 0.05),
        (Fault::LostRequest, 0.05),
        (Fault::ErrorAfter(500), 0.05),
        (Fault::ErrorBefore(503), 0.05),
        (Fault::ConflictBefore, 0.05),
    ];
    fake.faults().set_rates(Rates { shares });
    for n in 0..16 {
        let verdict = probe(&bucket, Uuid::from_u128(n)).await;
        assert!(!matches!(verdict, Ok(Verdict::Refused(_))), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_missing_bucket_is_not_an_empty_database() {
    let fake = FakeS3::start_anywhere(1).await;
    let url = "s3://another/db";
    let bucket = Bucket::open_with(url, &fake.variables(), impatient(), Env::system()).unwrap();
    let Err(Error::Invalid(text)) = bucket.check().await else { panic!("taken") };
    assert!(text.contains("NoSuchBucket") && text.contains(url), "{text}");
    let read = bucket.get(&Object::Current).await;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    let created = bucket.create(&Object::Current, Bytes::new()).await;
    assert!(matches!(created, Err(Error::Unavailable(_))), "{created:?}");
}

/// What a conditional write may tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Done,
    Unavailable,
    Indeterminate,
    Conflict,
}

fn told<T>(answer: &Result<T, Error>) -> Told {
    match answer {
        Ok(_) => Told::Done,
        Err(Error::Unavailable(_)) => Told::Unavailable,
        Err(Error::Indeterminate(_)) => Told::Indeterminate,
        Err(Error::Conflict(_)) => Told::Conflict,
        Err(error) => panic!("{error}"),
    }
}

/// One way for a conditional write to go wrong, and what becomes of it.
struct Row {
    fault: Fault,
    told: Told,
    /// Whether it is in the bucket when the answer comes, and a while later.
    there: (bool, bool),
    /// How often it was sent.
    sent: usize,
}

/// Every fault met by the first sending of a conditional write.
fn matrix() -> Vec<Row> {
    use Told::{Done, Indeterminate};
    let row = |fault, told, there, sent| Row { fault, told, there, sent };
    vec![
        row(Fault::LostResponse, Indeterminate, (true, true), 1),
        row(Fault::ErrorAfter(500), Indeterminate, (true, true), 1),
        row(Fault::ErrorAfter(502), Indeterminate, (true, true), 1),
        row(Fault::ErrorBefore(500), Indeterminate, (false, false), 1),
        row(Fault::ErrorBefore(503), Done, (true, true), 2),
        row(Fault::ErrorBefore(429), Done, (true, true), 2),
        row(Fault::ConflictBefore, Indeterminate, (false, false), 1),
        row(Fault::ConflictAfter, Indeterminate, (true, true), 1),
        row(Fault::LostRequest, Indeterminate, (false, false), 1),
        row(Fault::Late(LONG / 4), Indeterminate, (false, true), 1),
        row(Fault::Slow(LONG / 10), Done, (true, true), 1),
        row(Fault::Slow(LONG), Indeterminate, (false, false), 1),
        row(Fault::Duplicate(LONG / 4), Done, (true, true), 1),
        row(Fault::Silence, Indeterminate, (false, false), 1),
        row(Fault::ForeignBefore(200), Indeterminate, (false, false), 1),
        row(Fault::ForeignAfter(200), Indeterminate, (true, true), 1),
        row(Fault::ForeignBefore(304), Indeterminate, (false, false), 1),
        row(Fault::ForeignBefore(403), Indeterminate, (false, false), 1),
        row(Fault::ForeignBefore(404), Indeterminate, (false, false), 1),
        row(Fault::ForeignBefore(409), Indeterminate, (false, false), 1),
        row(Fault::ForeignBefore(412), Indeterminate, (false, false), 1),
        row(Fault::ForeignAfter(412), Indeterminate, (true, true), 1),
        row(Fault::ForeignBefore(502), Indeterminate, (false, false), 1),
    ]
}

#[tokio::test]
async fn creates_tell_no_more_than_is_certain() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", impatient());
    for (id, row) in (1..).zip(matrix()) {
        let object = Object::Wal(WalId(id));
        let key = format!("db/{object}");
        fake.faults().next_put(&key, row.fault.clone());
        let before = fake.faults().requests();
        let answer = bucket.create(&object, "mine".into()).await;
        assert_eq!(told(&answer), row.told, "{:?}", row.fault);
        assert_eq!(fake.faults().requests() - before, row.sent, "{:?}", row.fault);
        assert_eq!(fake.object(&key).is_some(), row.there.0, "{:?}", row.fault);
        tokio::time::sleep(LONG / 2).await;
        assert_eq!(fake.object(&key).is_some(), row.there.1, "{:?} later", row.fault);
        let again = bucket.create(&object, "again".into()).await;
        let want = if row.there.1 { Told::Conflict } else { Told::Done };
        assert_eq!(told(&again), want, "{:?} again", row.fault);
    }
}

#[tokio::test]
async fn an_append_is_proven_by_the_store_and_not_by_what_can_be_read() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", impatient());
    let wal = Wal::new(bucket.clone(), Uuid::nil());
    let requests = |operation| {
        let rows = bucket.metrics().snapshot().rows;
        rows.iter().find(|row| row.operation == operation).map_or(0, |row| row.requests)
    };
    for (id, row) in (1..).zip(matrix()) {
        let id = WalId(id);
        fake.faults().next_put(&format!("db/{}", Object::Wal(id)), row.fault.clone());
        let before = [Operation::Create, Operation::Get].map(requests);
        let appended = wal.append(id, &"mine".into()).await;
        assert!(matches!(appended, Ok(Appended::Proven)), "{:?}", row.fault);
        assert_eq!(bucket.get(&Object::Wal(id)).await.unwrap(), "mine", "{:?}", row.fault);
        if row.told == Told::Indeterminate && row.there.0 {
            // What was in doubt was sent again, and read only once the store had said "exists".
            let after = [Operation::Create, Operation::Get].map(requests);
            assert_eq!([after[0] - before[0], after[1] - before[1]], [2, 2], "{:?}", row.fault);
        }
    }
}

#[tokio::test]
async fn swaps_tell_no_more_than_is_certain() {
    let fake = FakeS3::start_anywhere(1).await;
    for (index, row) in matrix().into_iter().enumerate() {
        let bucket = open(&fake.variables(), &format!("db{index}"), impatient());
        let key = format!("db{index}/CURRENT");
        bucket.create(&Object::Current, "old".into()).await.unwrap();
        let (_, known) = bucket.get_versioned(&Object::Current).await.unwrap();
        fake.faults().next_put(&key, row.fault.clone());
        let before = fake.faults().requests();
        let answer = bucket.swap(&Object::Current, "mine".into(), &known).await;
        assert_eq!(told(&answer), row.told, "{:?}", row.fault);
        assert_eq!(fake.faults().requests() - before, row.sent, "{:?}", row.fault);
        assert_eq!(fake.object(&key).unwrap() == "mine", row.there.0, "{:?}", row.fault);
        tokio::time::sleep(LONG / 2).await;
        assert_eq!(fake.object(&key).unwrap() == "mine", row.there.1, "{:?} later", row.fault);
        let again = bucket.swap(&Object::Current, "again".into(), &known).await;
        let want = if row.there.1 { Told::Conflict } else { Told::Done };
        assert_eq!(told(&again), want, "{:?} again", row.fault);
    }
}

#[tokio::test]
async fn a_duplicate_lands_where_a_collected_object_was() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", impatient());
    let object = Object::Wal(WalId(1));
    fake.faults().next_put("wal", Fault::Duplicate(LONG / 4));
    bucket.create(&object, "mine".into()).await.unwrap();
    bucket.delete(&[object]).await.unwrap();
    assert!(matches!(bucket.get(&object).await, Err(Error::NotFound(_))));
    tokio::time::sleep(LONG / 2).await;
    assert_eq!(bucket.get(&object).await.unwrap(), "mine");
    assert_eq!(fake.faults().landed_late(), 1);
}

#[tokio::test]
async fn what_may_be_done_twice_is_tried_until_it_is_done() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", impatient());
    let faults = [
        Fault::LostResponse,
        Fault::ErrorAfter(500),
        Fault::ErrorBefore(500),
        Fault::ErrorBefore(503),
        Fault::LostRequest,
        Fault::Slow(LONG),
        Fault::Silence,
        Fault::Cut,
    ];
    for (id, fault) in (1..).zip(faults) {
        let object = Object::Wal(WalId(id));
        let bytes = Bytes::from(vec![7; 1000]);
        let key = format!("db/{object}");
        if fault != Fault::Cut {
            fake.faults().next_put(&key, fault.clone());
        }
        bucket.put(&object, bytes.clone()).await.unwrap();
        fake.faults().next_get(&key, fault.clone());
        assert_eq!(bucket.get(&object).await.unwrap(), bytes, "{fault:?}");
        fake.faults().next_get(&key, fault.clone());
        assert_eq!(bucket.get_range(&object, 10..20).await.unwrap(), vec![7; 10], "{fault:?}");
        if fault != Fault::Cut {
            let (verb, key) = (Verb::List, "db/wal".to_owned());
            fake.faults().add(Rule { verb, key, fault: fault.clone(), times: 1 });
        }
        assert_eq!(bucket.list(ObjectKind::Wal).await.unwrap().len(), 1, "{fault:?}");
        bucket.delete(&[object]).await.unwrap();
    }
    let retries = bucket.metrics().snapshot().retries.iter().map(|row| row.count).sum();
    assert_eq!(u64::try_from(fake.faults().met()), Ok(retries));
}

#[tokio::test]
async fn nothing_happens_at_a_store_that_is_down() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", impatient());
    fake.stop().await;
    let created = bucket.create(&Object::Wal(WalId(1)), Bytes::new()).await;
    assert_eq!(told(&created), Told::Unavailable, "{created:?}");
    assert_eq!(told(&bucket.get(&Object::Current).await), Told::Unavailable);
    assert!(matches!(bucket.check().await, Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn parts_are_sent_again() {
    let fake = FakeS3::start_anywhere(1).await;
    let settings = StoreSettings { attempt_timeout: LONG * 10, ..impatient() };
    let bucket = open(&fake.variables(), "db", settings);
    let object = Object::Wal(WalId(1));
    let mut upload = bucket.upload(&object);
    // The second and third request of the upload: the first begins it.
    let rule = |fault| Rule { verb: Verb::Multipart, key: "wal".into(), fault, times: 1 };
    upload.write(vec![1; 1_000].into()).await.unwrap();
    fake.faults().add(rule(Fault::ErrorBefore(503)));
    fake.faults().add(rule(Fault::ErrorAfter(500)));
    fake.faults().add(rule(Fault::LostResponse));
    for _ in 0..11 {
        upload.write(vec![1; 1024 * 1024].into()).await.unwrap();
    }
    upload.finish().await.unwrap();
    assert_eq!(fake.faults().met(), 3);
    assert_eq!(bucket.get(&object).await.unwrap().len(), 1_000 + 11 * 1024 * 1024);
}

#[tokio::test]
async fn a_slow_create_is_sent_again_and_the_first_answer_counts() {
    let fake = FakeS3::start_anywhere(1).await;
    let bucket = open(&fake.variables(), "db", settings());
    for id in 1..=30 {
        bucket.create(&Object::Wal(WalId(id)), "usual".into()).await.unwrap();
    }
    fake.faults().next_put("wal", Fault::Slow(LONG * 5));
    let clock = Env::system().clock;
    let before = clock.boot();
    bucket.create(&Object::Wal(WalId(99)), "slow".into()).await.unwrap();
    assert!(clock.boot() < before + LONG * 4, "the hedge did not help");
    let snapshot = bucket.metrics().snapshot();
    assert!(snapshot.hedges >= 1 && snapshot.hedges_won >= 1, "{snapshot:?}");
    // Where the first sending is lost after it was done, the second meets it.
    fake.faults().next_put("wal", Fault::ErrorAfter(500));
    let met = bucket.create(&Object::Wal(WalId(100)), "lost".into()).await;
    assert!(matches!(met, Err(Error::Indeterminate(_) | Error::Conflict(_))), "{met:?}");
    assert_eq!(bucket.get(&Object::Wal(WalId(100))).await.unwrap(), "lost");
}

#[tokio::test]
async fn every_answer_holds_under_random_faults() {
    let fake = FakeS3::start_anywhere(42).await;
    let bucket = open(&fake.variables(), "db", impatient());
    let faults = [
        Fault::LostResponse,
        Fault::ErrorAfter(500),
        Fault::ErrorBefore(500),
        Fault::ErrorBefore(503),
        Fault::ConflictBefore,
        Fault::LostRequest,
        Fault::Late(LONG / 8),
        Fault::Duplicate(LONG / 8),
        Fault::Cut,
    ];
    let shares = faults.into_iter().map(|fault| (fault, 0.03)).collect();
    fake.faults().set_rates(Rates { shares });
    let mut answers = Vec::new();
    for id in 1..=300 {
        let bytes = Bytes::from(id.to_string());
        answers.push(bucket.create(&Object::Wal(WalId(id)), bytes).await);
    }
    tokio::time::sleep(LONG / 4).await;
    let met = fake.faults().met();
    fake.faults().quiet();
    for (id, answer) in (1..).zip(answers) {
        let found = fake.object(&format!("db/{}", Object::Wal(WalId(id))));
        let whole = found.as_ref().is_some_and(|found| *found == id.to_string());
        match told(&answer) {
            Told::Done => assert!(whole, "{id} is lost"),
            Told::Unavailable => assert_eq!(found, None, "{id}: {answer:?}"),
            Told::Indeterminate | Told::Conflict => assert!(whole || found.is_none(), "{id}"),
        }
    }
    assert!(met > 40, "only {met} faults");
}
