//! A follower of a chain that is written by hand, with every race played between its two halves.

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use uuid::Uuid;

use super::log::MEMTABLE_BYTES;
use super::*;
use crate::clock::TokioClock;
use crate::env::{Cpu, Env, SeededRandom};
use crate::format::edit::{Edit, Flush, Fresh, apply};
use crate::format::wal::{WalBuilder, WalObject, WalStamp, encode_fence, seq_after_fence};
use crate::limits::WAL_JUMP;
use crate::lsm::memtable::SeqWindow;
use crate::store::object::{Bucket, Hedge, StoreSettings};
use crate::types::{Batch, DatabaseId, Epoch, Op, Payload};

/// A database whose writer is the test.
struct Chain {
    env: Env,
    store: Arc<ThrottledStore<InMemory>>,
    bucket: Bucket,
    manifests: Manifests,
    database: DatabaseId,
    position: WalId,
    seq: Seq,
    epoch: Epoch,
}

impl Chain {
    async fn new() -> Self {
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(1_700_000_000_000)),
            random: Arc::new(SeededRandom::new(7)),
            cpu: Cpu::Inline,
        };
        let store = ThrottledStore::new(InMemory::new(), ThrottleConfig::default());
        let store = Arc::new(store);
        let settings = StoreSettings { hedge: Hedge::Never, ..StoreSettings::default() };
        let bucket = Bucket::new(Arc::clone(&store) as _, "db", settings, env.clone()).unwrap();
        let manifests = Manifests::new(bucket.clone(), env.clone());
        manifests.create().await.unwrap();
        let database = manifests.load().await.unwrap().unwrap().current.database;
        let (position, seq, epoch) = (WalId::FIRST, Seq::ZERO, Epoch(0));
        Self { env, store, bucket, manifests, database, position, seq, epoch }
    }

    async fn follower(&self) -> Follower {
        let snapshot = self.manifests.load().await.unwrap().unwrap();
        let wal = Wal::new(self.bucket.clone(), self.database);
        Follower::new(self.manifests.clone(), wal, snapshot)
    }

    fn stamp(&self) -> WalStamp {
        WalStamp {
            database: self.database,
            id: self.position,
            epoch: self.epoch,
            writer: Uuid::from_u128(9),
            prev_seq: self.seq,
            proven: WalId(self.position.0 - 1),
        }
    }

    fn data(&self, count: u64) -> (Bytes, Seq) {
        let mut group = WalBuilder::new();
        let mut seq = self.seq;
        for _ in 0..count {
            seq = seq.next();
            let payload = Payload::Value(Bytes::from(format!("value {seq}")));
            let op = Op { key: Bytes::from(format!("key {seq}")), payload, expires_ms: None };
            group.push(&Batch { seq, ops: vec![op] });
        }
        (group.finish(&self.stamp()), seq)
    }

    /// Appends an object of so many batches.
    async fn append(&mut self, count: u64) {
        let (bytes, seq) = self.data(count);
        self.bucket.create(&Object::Wal(self.position), bytes).await.unwrap();
        (self.position, self.seq) = (self.position.next(), seq);
    }

    async fn fence(&mut self) {
        let bytes = encode_fence(&self.stamp());
        self.bucket.create(&Object::Wal(self.position), bytes).await.unwrap();
        self.position = self.position.plus(WAL_JUMP);
        self.seq = seq_after_fence(self.seq);
    }

    /// Moves replay to the chain's end, as a flush does.
    async fn flush(&self) {
        self.flush_to(self.position, self.seq).await;
    }

    async fn flush_to(&self, replay_from: WalId, flushed_seq: Seq) {
        let known = self.manifests.load().await.unwrap().unwrap();
        let edit = Edit::Flush(Flush {
            epoch: self.epoch,
            sst: None,
            replay_from,
            flushed_seq,
            time_ms: 0,
        });
        let version = u128::from(known.current.version);
        let fresh = Fresh {
            manifest: Uuid::from_u128(version),
            nonce: Uuid::from_u128(version << 8),
            now_ms: 0,
        };
        let commit = apply(&known.current, &known.manifest, &edit, fresh).unwrap();
        self.bucket.put(&Object::Manifest(commit.manifest.id), commit.body).await.unwrap();
        let body = commit.current.encode();
        self.bucket.swap(&Object::Current, body, &known.version).await.unwrap();
    }

    /// What every GET takes from now on.
    fn slow_gets(&self, took: Duration) {
        self.store.config_mut(|config| config.wait_get_per_call = took);
    }

    /// GETs that were sent so far.
    fn gets(&self) -> u64 {
        let rows = self.bucket.metrics().snapshot().rows;
        rows.iter().map(|row| row.requests).sum()
    }

    async fn collect(&self, ids: std::ops::Range<u64>) {
        let objects: Vec<_> = ids.map(|id| Object::Wal(WalId(id))).collect();
        self.bucket.delete(&objects).await.unwrap();
    }
}

/// The seqs that a follower has in memory, ascending.
fn held(follower: &Follower) -> Vec<u64> {
    let mut seqs = Vec::new();
    for memtable in follower.memtables() {
        // Seqs of a first writer and of one behind a fence.
        let behind = seq_after_fence(Seq::ZERO).0;
        for seq in (1..=600).chain(behind..behind + 100) {
            let key = format!("key {seq}");
            let flow = memtable.versions(key.as_bytes(), SeqWindow::ALL, |entry, _| {
                seqs.push(entry.seq.0);
                std::ops::ControlFlow::Continue(())
            });
            assert!(flow.is_continue());
        }
    }
    seqs.sort_unstable();
    seqs
}

/// Steps to the chain's end.
async fn catch_up(follower: &mut Follower) -> Duration {
    for _ in 0..100 {
        if let Reach::End { as_of } = follower.step().await.unwrap() {
            return as_of;
        }
    }
    panic!("no end of the chain");
}

/// What a step does before it reads CURRENT.
async fn read(follower: &mut Follower) {
    follower.ahead.read(follower.log.position).await;
}

fn is_end(reach: Result<Reach>) -> bool {
    matches!(reach.unwrap(), Reach::End { .. })
}

#[test]
fn what_was_read_at_or_after_replay_is_sound() {
    assert_eq!(judge(WalId(5), WalId(4)), Verdict::Sound);
    assert_eq!(judge(WalId(5), WalId(5)), Verdict::Sound);
    assert_eq!(judge(WalId(5), WalId(6)), Verdict::Passed);
}

#[tokio::test(start_paused = true)]
async fn the_chain_is_followed_through_fences_to_its_end() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    assert!(is_end(follower.step().await));
    chain.append(2).await;
    chain.append(1).await;
    chain.fence().await;
    // A stalled writer's object behind the fence, on an id that the fence jumps.
    let zombie = WalStamp { id: WalId(4), prev_seq: Seq(3), proven: WalId(2), ..chain.stamp() };
    let mut group = WalBuilder::new();
    let op = Op { key: "key 4".into(), payload: Payload::Tombstone, expires_ms: None };
    group.push(&Batch { seq: Seq(4), ops: vec![op] });
    chain.bucket.create(&Object::Wal(WalId(4)), group.finish(&zombie)).await.unwrap();
    chain.append(1).await;
    assert!(is_end(follower.step().await));
    let behind = seq_after_fence(Seq(3)).next();
    assert_eq!((follower.position(), follower.seq()), (chain.position, behind));
    assert_eq!(held(&follower), [1, 2, 3, behind.0]);
    assert_eq!(follower.position(), WalId(4).plus(WAL_JUMP));
}

#[tokio::test(start_paused = true)]
async fn a_long_chain_takes_several_steps() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    for _ in 0..400 {
        chain.append(1).await;
    }
    assert_eq!(follower.step().await.unwrap(), Reach::Partway);
    assert!((256..=320).contains(&follower.seq().0), "{}", follower.seq());
    assert!(is_end(follower.step().await));
    assert_eq!(follower.seq(), Seq(400));
}

#[tokio::test(start_paused = true)]
async fn requests_at_the_end_of_the_chain_are_two() {
    let chain = Chain::new().await;
    let mut follower = chain.follower().await;
    follower.step().await.unwrap();
    let before = chain.gets();
    follower.step().await.unwrap();
    assert_eq!(chain.gets() - before, 2);
}

/// A GET of the store, in the tests about time.
const GET: Duration = Duration::from_millis(60);

#[tokio::test(start_paused = true)]
async fn an_idle_follower_reads_many_at_once() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    for _ in 0..3 {
        follower.step().await.unwrap();
    }
    for _ in 0..40 {
        chain.append(1).await;
    }
    chain.slow_gets(GET);
    let began = chain.env.clock.boot();
    catch_up(&mut follower).await;
    // One, 8, 16, the rest and the end; CURRENT is read beside the last two, and after them.
    let took = chain.env.clock.boot().saturating_sub(began);
    assert!(took <= 6 * GET, "{took:?}");
    assert_eq!(follower.seq(), Seq(40));
}

#[tokio::test(start_paused = true)]
async fn what_came_is_shown_a_few_times_a_second() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    for _ in 0..2_000 {
        chain.append(1).await;
    }
    chain.slow_gets(GET);
    let (mut steps, mut seq) = (0, Seq::ZERO);
    loop {
        let began = chain.env.clock.boot();
        let reach = follower.step().await.unwrap();
        let took = chain.env.clock.boot().saturating_sub(began);
        assert!(took <= Duration::from_millis(200), "{took:?}");
        assert!(follower.seq() > seq || steps == 0, "each step brings something");
        (steps, seq) = (steps + 1, follower.seq());
        if reach != Reach::Partway {
            break;
        }
    }
    assert_eq!(seq, Seq(2_000));
    // 64 at a time are a thousand a second.
    let took = chain.env.clock.boot();
    assert!(took <= Duration::from_secs(3), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_is_dated_by_the_get_that_found_it() {
    let mut chain = Chain::new().await;
    chain.append(1).await;
    let mut follower = chain.follower().await;
    chain.slow_gets(GET);
    let sent = chain.env.clock.boot();
    assert_eq!(follower.step().await.unwrap(), Reach::End { as_of: sent });
    assert_eq!(chain.env.clock.boot(), sent + 2 * GET);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_vouched_for_by_a_later_current() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    follower.step().await.unwrap();
    for _ in 0..20 {
        chain.append(1).await;
    }
    chain.slow_gets(GET);
    // One object came in 60 ms; 8 more came while CURRENT was on its way.
    assert_eq!(follower.step().await.unwrap(), Reach::Partway);
    assert_eq!(follower.seq(), Seq(1));
    assert!(is_end(follower.step().await));
    assert_eq!(follower.seq(), Seq(20));
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_of_current_loses_nothing() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    for _ in 0..20 {
        chain.append(1).await;
    }
    read(&mut follower).await;
    chain.slow_gets(Duration::from_hours(1));
    let error = follower.conclude().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    chain.slow_gets(Duration::ZERO);
    let before = chain.gets();
    assert!(is_end(follower.step().await));
    assert_eq!((follower.seq(), chain.gets() - before), (Seq(20), 1));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_is_asked_again() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.append(1).await;
    follower.step().await.unwrap();
    chain.append(1).await;
    chain.slow_gets(Duration::from_hours(1));
    read(&mut follower).await;
    chain.slow_gets(Duration::ZERO);
    let error = follower.conclude().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(is_end(follower.step().await));
    assert_eq!(follower.seq(), Seq(2));
}

#[tokio::test(start_paused = true)]
async fn flushed_memtables_go_once_their_tree_is_open() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.append(3).await;
    follower.step().await.unwrap();
    chain.flush().await;
    chain.append(1).await;
    assert!(is_end(follower.step().await));
    let flushed = follower.snapshot().manifest.flushed_seq;
    assert_eq!(flushed, Seq(3));
    assert_eq!(held(&follower), [1, 2, 3, 4], "views over the old tree still need them");
    follower.forget_flushed(flushed);
    assert_eq!(held(&follower), [1, 2, 3, 4], "one memtable holds flushed and unflushed batches");
    chain.flush().await;
    follower.step().await.unwrap();
    follower.forget_flushed(follower.snapshot().manifest.flushed_seq);
    assert!(follower.memtables().is_empty());
}

#[tokio::test(start_paused = true)]
async fn large_memtables_are_frozen_and_forgotten_one_by_one() {
    let mut log = Log::new(WalId(1), Seq(0));
    let value = Bytes::from(vec![0; usize::try_from(MEMTABLE_BYTES).unwrap() / 2]);
    let mut stamp = Chain::new().await.stamp();
    for seq in 1..=5 {
        let op = Op { key: "k".into(), payload: Payload::Value(value.clone()), expires_ms: None };
        let mut group = WalBuilder::new();
        group.push(&Batch { seq: Seq(seq), ops: vec![op] });
        (stamp.id, stamp.prev_seq) = (WalId(seq), Seq(seq - 1));
        let object = WalObject::parse(group.finish(&stamp), stamp.database, stamp.id).unwrap();
        log.apply(&object).unwrap();
    }
    let lasts = |log: &Log| -> Vec<_> {
        log.memtables().iter().map(|memtable| memtable.last_seq().unwrap().0).collect()
    };
    assert_eq!(lasts(&log), [5, 4, 2], "newest first");
    log.forget(Seq(3));
    assert_eq!(lasts(&log), [5, 4]);
    log.forget(Seq(4));
    assert_eq!(lasts(&log), [5]);
}

#[tokio::test(start_paused = true)]
async fn what_replay_has_passed_is_dropped() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    for _ in 0..4 {
        chain.append(1).await;
    }
    chain.slow_gets(GET);
    read(&mut follower).await;
    chain.flush_to(WalId(3), Seq(2)).await;
    let before = chain.gets();
    assert!(is_end(follower.conclude().await));
    assert_eq!((follower.position(), follower.seq()), (WalId(5), Seq(4)));
    assert_eq!((follower.covers_from(), held(&follower)), (Seq(2), vec![3, 4]));
    assert_eq!(chain.gets() - before, 2, "CURRENT and its manifest: the rest is kept");
}

#[tokio::test(start_paused = true)]
async fn a_follower_is_fresh_though_each_look_is_flushed() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.slow_gets(GET);
    let mut lag_max = Duration::ZERO;
    let mut fresh_at = chain.env.clock.boot();
    for _ in 0..40 {
        chain.append(1).await;
        read(&mut follower).await;
        // What is written and flushed before CURRENT is read passes all that was read.
        chain.append(1).await;
        chain.flush().await;
        chain.collect(1..chain.position.0).await;
        if let Reach::End { as_of } = follower.conclude().await.unwrap() {
            fresh_at = as_of;
        }
        lag_max = lag_max.max(chain.env.clock.boot().saturating_sub(fresh_at));
    }
    assert_eq!(follower.seq(), chain.seq);
    assert!(lag_max <= 16 * GET, "{lag_max:?}");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_collection_made_is_no_end() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    for _ in 0..4 {
        chain.append(1).await;
    }
    chain.flush().await;
    chain.collect(1..5).await;
    chain.append(1).await;
    read(&mut follower).await;
    chain.append(1).await;
    // Id 1 is collected, and absent; so was id 6, but that is the end as of then.
    assert!(is_end(follower.conclude().await));
    assert_eq!((follower.seq(), held(&follower)), (Seq(5), vec![5]));
    assert!(is_end(follower.step().await));
    assert_eq!((follower.seq(), held(&follower)), (Seq(6), vec![5, 6]));
}

#[tokio::test(start_paused = true)]
async fn junk_on_a_collected_id_is_never_applied() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    // A stalled taker prepared its fence for id 1 long ago.
    let late_fence = encode_fence(&chain.stamp());
    for _ in 0..2 {
        chain.append(1).await;
    }
    chain.flush().await;
    chain.collect(1..3).await;
    chain.bucket.create(&Object::Wal(WalId(1)), late_fence).await.unwrap();
    catch_up(&mut follower).await;
    assert_eq!(follower.position(), WalId(3), "and not behind the fence");
}

#[tokio::test(start_paused = true)]
async fn damage_counts_only_if_current_vouches_for_it() {
    let mut chain = Chain::new().await;
    let (mut follower, mut passed) = (chain.follower().await, chain.follower().await);
    chain.append(1).await;
    assert!(is_end(follower.step().await) && is_end(passed.step().await));
    let object = Object::Wal(chain.position);
    chain.bucket.put(&object, Bytes::from_static(b"damaged")).await.unwrap();
    read(&mut passed).await;
    let error = follower.step().await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    assert_eq!(follower.seq(), Seq(1), "what came before it is served");

    chain.position = chain.position.next();
    chain.flush().await;
    catch_up(&mut passed).await;
    assert_eq!(passed.position(), chain.position);
}

#[tokio::test(start_paused = true)]
async fn a_gap_between_seqs_is_damage() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.append(1).await;
    chain.seq = Seq(7);
    chain.append(1).await;
    let error = follower.step().await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("wal/00000000000000000002"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_takes_batches_back_is_damage() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.append(3).await;
    follower.step().await.unwrap();
    (chain.position, chain.seq) = (WalId(9), Seq(2));
    chain.flush().await;
    let error = follower.step().await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_current_that_vanishes_is_damage() {
    let chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.bucket.delete(&[Object::Current]).await.unwrap();
    let error = follower.step().await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("restore it from"), "{error}");
}
