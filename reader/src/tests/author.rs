//! A writer played by hand: it appends to the log, flushes, compacts and collects when told to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::clock::TokioClock;
use cairn_common::config::Span;
use cairn_common::env::{Cpu, Env, SeededRandom};
use cairn_common::format::edit::{Compact, Edit, Flush, Fresh, Output, apply};
use cairn_common::format::manifest::{SstInfo, WalRange};
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::run::Run;
use cairn_common::format::sst::{SstBuilder, SstOptions};
use cairn_common::format::wal::{WalBuilder, WalStamp};
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::{Bucket, Hedge, StoreSettings};
use cairn_common::store::sst::{MetaBudget, SstStore};
use cairn_common::types::{Batch, Entry, Epoch, MergeOp, Op, Payload, Role, Seq, WalId};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};

use crate::config::FollowConfig;
use crate::follow::Tail;
use crate::sights::Sights;

pub(super) const POLL: Duration = Duration::from_secs(1);

pub(super) struct Author {
    pub(super) env: Env,
    pub(super) bucket: Bucket,
    pub(super) store: Arc<ThrottledStore<Arc<InMemory>>>,
    manifests: Manifests,
    position: WalId,
    seq: Seq,
    /// What the log holds since the last flush.
    unflushed: Vec<Entry>,
    flushed_to: WalId,
}

impl Author {
    /// An empty bucket.
    pub(super) fn nowhere() -> Self {
        let memory = Arc::new(InMemory::new());
        let store = Arc::new(ThrottledStore::new(memory, ThrottleConfig::default()));
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(1_700_000_000_000)),
            random: Arc::new(SeededRandom::new(7)),
            cpu: Cpu::Inline,
        };
        let settings = StoreSettings { hedge: Hedge::Never, ..StoreSettings::default() };
        let bucket = Bucket::new(Arc::clone(&store) as _, "db", settings, env.clone()).unwrap();
        let manifests = Manifests::new(bucket.clone(), env.clone());
        let position = WalId::FIRST;
        let (seq, unflushed) = (Seq::ZERO, Vec::new());
        Self { env, bucket, store, manifests, position, seq, unflushed, flushed_to: position }
    }

    /// A bucket with a database whose roles this author holds.
    pub(super) async fn of_database() -> Self {
        let author = Self::nowhere();
        author.create().await;
        author
    }

    pub(super) async fn create(&self) {
        self.manifests.create().await.unwrap();
        for role in [Role::Writer, Role::Compactor] {
            let (uuid, url) = (self.env.random.uuid(), Some("http://writer:7001".into()));
            let claim = Claim { role, uuid, url, lease: Duration::from_secs(2) };
            self.manifests.claim(&claim).await.unwrap();
        }
    }

    pub(super) async fn snapshot(&self) -> Snapshot {
        self.manifests.load().await.unwrap().unwrap()
    }

    /// A tail of this database that has not looked yet.
    pub(super) async fn tail(&self) -> (Tail, Arc<Sights>) {
        let snapshot = self.snapshot().await;
        let sights = Arc::new(Sights::default());
        let ssts = SstStore::new(
            self.bucket.clone(),
            snapshot.current.database,
            BlockCache::memory_only(1 << 20),
            MetaBudget { bytes: 1 << 20 },
            self.env.clone(),
        );
        let tail =
            Tail::new(self.env.clone(), Arc::new(ssts), snapshot, config(), Arc::clone(&sights));
        (tail, sights)
    }

    async fn append(&mut self, op: Op) {
        let snapshot = self.snapshot().await;
        let stamp = WalStamp {
            database: snapshot.current.database,
            id: self.position,
            epoch: Epoch(1),
            writer: snapshot.current.writer.uuid,
            prev_seq: self.seq,
            proven: WalId(self.position.0 - 1),
        };
        self.seq = self.seq.next();
        let Op { key, payload, expires_ms } = op.clone();
        self.unflushed.push(Entry { key, seq: self.seq, payload, expires_ms });
        let mut group = WalBuilder::new();
        group.push(&Batch { seq: self.seq, ops: vec![op] });
        self.bucket.create(&Object::Wal(self.position), group.finish(&stamp)).await.unwrap();
        self.position = self.position.next();
    }

    pub(super) async fn put(&mut self, key: &'static str, value: &'static str) {
        let payload = Payload::Value(value.into());
        self.append(Op { key: key.into(), payload, expires_ms: None }).await;
    }

    pub(super) async fn add(&mut self, key: &'static str, number: &'static str) {
        let operand = Bytes::from(number);
        let payload = Payload::Operand { op: MergeOp::Add, written_ms: 0, operand };
        self.append(Op { key: key.into(), payload, expires_ms: None }).await;
    }

    /// Uploads an SST of these entries.
    async fn sst(&self, role: Role, mut entries: Vec<Entry>) -> SstInfo {
        entries.sort_by(|a, b| a.key.cmp(&b.key).then(b.seq.cmp(&a.seq)));
        let id = OutputId { role, epoch: Epoch(1), uuid: self.env.random.uuid() };
        let database = self.snapshot().await.current.database;
        let mut builder = SstBuilder::new(database, id, SstOptions::default());
        for entry in &entries {
            builder.add(entry.as_ref());
        }
        let (bytes, info) = builder.finish();
        self.bucket.put(&Object::Sst(id), bytes).await.unwrap();
        info
    }

    async fn commit(&self, edit: Edit) {
        let known = self.snapshot().await;
        let (manifest, nonce) = (self.env.random.uuid(), self.env.random.uuid());
        let fresh = Fresh { manifest, nonce, now_ms: 0 };
        let commit = apply(&known.current, &known.manifest, &edit, fresh).unwrap();
        self.bucket.put(&Object::Manifest(commit.manifest.id), commit.body).await.unwrap();
        let body = commit.current.encode();
        self.bucket.swap(&Object::Current, body, &known.version).await.unwrap();
    }

    /// Moves the log so far into L0.
    pub(super) async fn flush(&mut self) {
        let entries = std::mem::take(&mut self.unflushed);
        let mut sst = self.sst(Role::Writer, entries).await;
        sst.wal = Some(WalRange { from: self.flushed_to, to: self.position });
        self.flushed_to = self.position;
        let flush = Flush {
            epoch: Epoch(1),
            sst: Some(sst),
            replay_from: self.position,
            flushed_seq: self.seq,
            time_ms: self.env.clock.wall_ms(),
        };
        self.commit(Edit::Flush(flush)).await;
    }

    /// Makes a run of one entry out of all of L0, which held that key alone; returns the inputs.
    pub(super) async fn compact(&self, key: &'static str, value: &'static str) -> Vec<Object> {
        let known = self.snapshot().await;
        let l0: Vec<_> = known.manifest.l0.iter().map(|sst| sst.id).collect();
        let inputs = l0.iter().map(|id| Object::Sst(*id)).collect();
        self.replace(l0, Vec::new(), (key, value)).await;
        inputs
    }

    /// Makes a run of one entry out of a run, which may be missing by now.
    pub(super) async fn replace_run(&self, run: Run, key: &'static str, value: &'static str) {
        self.replace(Vec::new(), vec![run], (key, value)).await;
    }

    pub(super) async fn newest_run(&self) -> Run {
        let info = self.snapshot().await.manifest.runs[0].clone();
        let bytes = self.bucket.get(&Object::Run(info.id)).await.unwrap();
        Run::parse(&bytes, &info.digest).unwrap()
    }

    async fn replace(
        &self,
        l0: Vec<OutputId>,
        runs: Vec<Run>,
        (key, value): (&'static str, &'static str),
    ) {
        let payload = Payload::Value(value.into());
        let entry = Entry { key: key.into(), seq: self.seq, payload, expires_ms: None };
        let sst = self.sst(Role::Compactor, vec![entry]).await;
        let id = OutputId { uuid: self.env.random.uuid(), ..sst.id };
        let database = self.snapshot().await.current.database;
        let run = Run::new(database, id, vec![sst]);
        let (bytes, digest) = run.encode();
        let info = run.info(digest, bytes.len() as u64);
        self.bucket.put(&Object::Run(id), bytes).await.unwrap();
        let outputs = vec![Output { run, info }];
        let compact = Compact { epoch: Epoch(1), l0, runs, outputs };
        self.commit(Edit::Compact(compact)).await;
    }

    /// Deletes the log before the last flush.
    pub(super) async fn collect_log(&self) {
        let ids = (WalId::FIRST.0..self.flushed_to.0).map(|id| Object::Wal(WalId(id)));
        self.bucket.delete(&ids.collect::<Vec<_>>()).await.unwrap();
    }
}

pub(super) fn config() -> FollowConfig {
    FollowConfig {
        poll_interval: Span(POLL),
        max_staleness: Span(10 * POLL),
        warm_timeout: Span(POLL),
    }
}
