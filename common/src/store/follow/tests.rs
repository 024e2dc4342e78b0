//! A follower of a chain that is written by hand, with every race played between its two halves.

use bytes::Bytes;
use object_store::memory::InMemory;
use uuid::Uuid;

use super::*;
use crate::env::Env;
use crate::format::edit::{Edit, Flush, Fresh, apply};
use crate::format::wal::{WalBuilder, WalStamp, encode_fence, seq_after_fence};
use crate::limits::WAL_JUMP;
use crate::lsm::memtable::SeqWindow;
use crate::store::object::{Bucket, StoreSettings};
use crate::types::{Batch, DatabaseId, Epoch, Op, Payload};

/// A database whose writer is the test.
struct Chain {
    bucket: Bucket,
    manifests: Manifests,
    database: DatabaseId,
    position: WalId,
    seq: Seq,
    epoch: Epoch,
}

impl Chain {
    async fn new() -> Self {
        let store = Arc::new(InMemory::new());
        let bucket = Bucket::new(store, "db", StoreSettings::default(), Env::system()).unwrap();
        let manifests = Manifests::new(bucket.clone(), Env::system());
        manifests.create().await.unwrap();
        let database = manifests.load().await.unwrap().unwrap().current.database;
        let (position, seq, epoch) = (WalId::FIRST, Seq::ZERO, Epoch(0));
        Self { bucket, manifests, database, position, seq, epoch }
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
        let known = self.manifests.load().await.unwrap().unwrap();
        let edit = Edit::Flush(Flush {
            epoch: self.epoch,
            sst: None,
            replay_from: self.position,
            flushed_seq: self.seq,
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

const AT_END: Step = Step { reach: Reach::End, base: Base::Kept };
const ANEW: Step = Step { reach: Reach::Partway, base: Base::Anew };

#[test]
fn a_stretch_is_sound_where_replay_begins_at_or_before_it() {
    assert_eq!(judge(WalId(5), WalId(4)), Verdict::Sound);
    assert_eq!(judge(WalId(5), WalId(5)), Verdict::Sound);
    assert_eq!(judge(WalId(5), WalId(6)), Verdict::Overtaken);
}

#[tokio::test]
async fn the_chain_is_followed_through_fences_to_its_end() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    assert_eq!(follower.step().await.unwrap(), AT_END);
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
    assert_eq!(follower.step().await.unwrap(), AT_END);
    let behind = seq_after_fence(Seq(3)).next();
    assert_eq!((follower.position(), follower.seq()), (chain.position, behind));
    assert_eq!(held(&follower), [1, 2, 3, behind.0]);
    assert_eq!(follower.position(), WalId(4).plus(WAL_JUMP));
}

#[tokio::test]
async fn a_long_chain_takes_several_steps() {
    let mut chain = Chain::new().await;
    let objects = STRETCH_OBJECTS_MAX as u64 + 10;
    for _ in 0..objects {
        chain.append(1).await;
    }
    let mut follower = chain.follower().await;
    let partway = Step { reach: Reach::Partway, base: Base::Kept };
    assert_eq!(follower.step().await.unwrap(), partway);
    assert_eq!(follower.seq(), Seq(STRETCH_OBJECTS_MAX as u64));
    assert_eq!(follower.step().await.unwrap(), AT_END);
    assert_eq!(follower.seq(), Seq(objects));
}

#[tokio::test]
async fn requests_at_the_end_of_the_chain_are_two() {
    let chain = Chain::new().await;
    let mut follower = chain.follower().await;
    follower.step().await.unwrap();
    let requests = || {
        let rows = chain.bucket.metrics().snapshot().rows;
        rows.iter().map(|row| row.requests).sum::<u64>()
    };
    let before = requests();
    follower.step().await.unwrap();
    assert_eq!(requests() - before, 2);
}

#[tokio::test]
async fn flushed_memtables_go_once_their_tree_is_open() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.append(3).await;
    follower.step().await.unwrap();
    chain.flush().await;
    chain.append(1).await;
    assert_eq!(follower.step().await.unwrap(), AT_END);
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

#[tokio::test]
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

#[tokio::test]
async fn a_stretch_that_replay_has_passed_is_dropped_whole() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.append(1).await;
    chain.append(1).await;
    let stretch = follower.fetch().await.unwrap();
    assert_eq!(stretch.objects.len(), 2);
    chain.append(1).await;
    chain.flush().await;
    assert_eq!(follower.conclude(stretch).await.unwrap(), ANEW);
    assert_eq!((follower.position(), follower.seq()), (WalId(4), Seq(3)));
    assert!(follower.memtables().is_empty(), "nothing of the stretch is kept");
    assert_eq!(follower.step().await.unwrap(), AT_END);
}

#[tokio::test]
async fn an_end_that_collection_made_is_no_end() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    for _ in 0..4 {
        chain.append(1).await;
    }
    chain.flush().await;
    chain.collect(1..5).await;
    chain.append(1).await;
    let stretch = follower.fetch().await.unwrap();
    assert!(stretch.objects.is_empty(), "the first id is collected: absent");
    assert_eq!(follower.conclude(stretch).await.unwrap(), ANEW);
    assert_eq!(follower.step().await.unwrap(), AT_END);
    assert_eq!((follower.seq(), held(&follower)), (Seq(5), vec![5]));
}

#[tokio::test]
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
    assert_eq!(follower.step().await.unwrap(), ANEW);
    assert_eq!(follower.step().await.unwrap(), AT_END);
    assert_eq!(follower.position(), WalId(3), "and not behind the fence");
}

#[tokio::test]
async fn damage_counts_only_where_current_vouches_for_the_stretch() {
    let mut chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.append(1).await;
    let object = Object::Wal(chain.position);
    chain.bucket.put(&object, Bytes::from_static(b"damaged")).await.unwrap();
    let stretch = follower.fetch().await.unwrap();
    let overtaken = follower.fetch().await.unwrap();
    let error = follower.conclude(stretch).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    assert_eq!(follower.seq(), Seq(1), "what came before it is served");

    let mut other = chain.follower().await;
    chain.position = chain.position.next();
    chain.flush().await;
    assert_eq!(other.conclude(overtaken).await.unwrap(), ANEW);
}

#[tokio::test]
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

#[tokio::test]
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

#[tokio::test]
async fn a_current_that_vanishes_is_damage() {
    let chain = Chain::new().await;
    let mut follower = chain.follower().await;
    chain.bucket.delete(&[Object::Current]).await.unwrap();
    let error = follower.step().await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("restore it from"), "{error}");
}
