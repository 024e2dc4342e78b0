//! Logs that lost an object, and logs that hold nothing but fences.

use cairn_common::error::Result;
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::store::metrics::Operation;
use cairn_common::types::WalId;

use super::*;

/// Ids of the log that exist, in order.
async fn log_ids(rig: &Rig) -> Vec<WalId> {
    let listed = rig.parts.bucket.list(ObjectKind::Wal).await.unwrap();
    let mut ids: Vec<_> = listed
        .iter()
        .filter_map(|listed| match listed.object {
            Object::Wal(id) => Some(id),
            _ => None,
        })
        .collect();
    ids.sort_unstable();
    ids
}

/// Puts `key 0` to `key {count - 1}`, one WAL object each, and dies.
async fn write_and_die(rig: &Rig, count: u32, flush_at: Option<u32>) {
    let engine = rig.open(&[]).await;
    for n in 0..count {
        engine.writer().write(put(&format!("key {n}"), "value")).await.unwrap();
        if flush_at == Some(n) {
            engine.writer().flush().await.unwrap();
        }
    }
}

async fn try_open(rig: &Rig) -> Result<Engine> {
    let database = rig.parts.manifests().load().await.unwrap().unwrap().current.database;
    let uuid = rig.parts.env.random.uuid();
    let claim = Claim { role: Role::Writer, uuid, url: None, lease: LEASE };
    let mut engine = Engine::open(&rig.parts, database, &Rig::log(&[]), &claim).await?;
    engine.hold().await?;
    Ok(engine)
}

/// Loses these objects of the log, in places counted from its first id; what a takeover says.
async fn lose(rig: &Rig, places: &[usize]) -> Error {
    let all = log_ids(rig).await;
    let lost: Vec<_> = places.iter().map(|&place| Object::Wal(all[place])).collect();
    let mut kept = Vec::new();
    for object in &lost {
        kept.push(rig.parts.bucket.get(object).await.unwrap());
    }
    rig.parts.bucket.delete(&lost).await.unwrap();
    let before = log_ids(rig).await;
    let error = try_open(rig).await.expect_err("an acknowledged object is missing");
    assert_eq!(log_ids(rig).await, before, "nothing is written");
    for (object, bytes) in lost.iter().zip(kept) {
        rig.parts.bucket.put(object, bytes).await.unwrap();
    }
    error
}

#[tokio::test(start_paused = true)]
async fn lost_wal_object_ends_takeover() {
    // Place 0 is the fence of the first writer, place 1 its first group.
    for (places, flush_at) in
        [(&[11][..], None), (&[11, 12], None), (&[1], None), (&[19], None), (&[8], Some(6))]
    {
        let rig = Rig::new();
        write_and_die(&rig, 20, flush_at).await;
        let first = log_ids(&rig).await[places[0]];
        let error = lose(&rig, places).await;
        let Error::Corrupt(failure) = &error else { panic!("{places:?}: {error}") };
        assert_eq!(failure.what, Object::Wal(first).path(), "{error}");
        assert!(error.to_string().contains("it was acknowledged"), "{error}");
        // With the object back, everything is.
        let engine = try_open(&rig).await.unwrap();
        for n in 0..20 {
            assert!(get(engine.writer(), &format!("key {n}")).await.is_some(), "key {n}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lost_fence_of_a_later_writer_ends_takeover() {
    let rig = Rig::new();
    write_and_die(&rig, 3, None).await;
    write_and_die(&rig, 3, None).await;
    let error = lose(&rig, &[4]).await;
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn lost_last_object_is_not_told_from_an_end() {
    // Nothing that is left says that it ever existed: the one loss that T2b cannot see.
    let rig = Rig::new();
    write_and_die(&rig, 3, None).await;
    let last = *log_ids(&rig).await.last().unwrap();
    rig.parts.bucket.delete(&[Object::Wal(last)]).await.unwrap();
    let engine = try_open(&rig).await.unwrap();
    assert_eq!(get(engine.writer(), "key 1").await.as_deref(), Some(&b"value"[..]));
    assert_eq!(get(engine.writer(), "key 2").await, None);
}

#[tokio::test(start_paused = true)]
async fn restarts_without_writes_cost_no_more() {
    for flushed in [true, false] {
        let rig = Rig::new();
        write_and_die(&rig, 3, flushed.then_some(2)).await;
        let mut costs = Vec::new();
        for _ in 0..40 {
            let gets = || {
                let rows = rig.parts.bucket.metrics().snapshot().rows;
                let of_wal = rows
                    .iter()
                    .filter(|row| row.kind == ObjectKind::Wal && row.operation == Operation::Get);
                of_wal.map(|row| row.requests).sum::<u64>()
            };
            let before = gets();
            let engine = try_open(&rig).await.unwrap();
            costs.push(gets() - before);
            assert!(get(engine.writer(), "key 2").await.is_some());
            // It lives for a moment, as one that is restarted by an upgrade.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let worst = costs.iter().max().unwrap();
        assert!(*worst <= 32, "{costs:?}");
        assert!(*costs.last().unwrap() <= 24, "{costs:?}");
    }
}
