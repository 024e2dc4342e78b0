//! The reader as its HTTP surface sees it: views that are new enough, and what it says of itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::format::current::Current;
use cairn_common::format::path::ObjectKind;
use cairn_common::http::api::{Status, TreeStatus};
use cairn_common::http::problem::{Answer, Code, Problem};
use cairn_common::http::reads::{Answerable, ReadRequest, Views};
use cairn_common::http::request::{CAIRN_LAG_MS, CAIRN_SEQ, Deadline, Staleness};
use cairn_common::http::surface::Node;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::damage::Damaged;
use cairn_common::store::manifest::Snapshot;
use cairn_common::store::object::Bucket;
use cairn_common::types::Seq;

use crate::config::Config;
use crate::sights::{Sight, Sights};

/// How long a request that met a missing object waits for a newer manifest.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A seq this far above that of a fresh view was not given before the request's deadline: more than
/// 200 takeovers, each of which leaves 2^24 seqs out, and a million batches a second for a minute.
const SEQ_REACH: u64 = 1 << 32;

/// The reader as its HTTP surface sees it.
#[derive(Debug)]
pub struct ReaderNode {
    env: Env,
    bucket: Bucket,
    cache: BlockCache,
    sights: Arc<Sights>,
    max_staleness: Duration,
    writer: Option<String>,
}

impl ReaderNode {
    /// A node that shows these sights of this bucket.
    pub fn new(
        env: Env,
        bucket: Bucket,
        cache: BlockCache,
        config: &Config,
        sights: Arc<Sights>,
    ) -> Self {
        let (max_staleness, writer) = (config.follow.max_staleness.0, config.writer.clone());
        Self { env, bucket, cache, sights, max_staleness, writer }
    }

    /// Where writes go, if that is known. In a copy of a database CURRENT still names the writer of
    /// the original, which does not write here: nobody is sent to it.
    pub fn writer_url(&self) -> Option<String> {
        let told = || {
            let claim = &self.sights.latest()?.current.writer;
            claim.url.clone().filter(|_| claim.is_of_root(&self.bucket.root_id()))
        };
        self.writer.clone().or_else(told)
    }

    /// What the reader shows.
    pub fn sights(&self) -> &Sights {
        &self.sights
    }

    /// Boot time now.
    pub fn now(&self) -> Duration {
        self.env.clock.boot()
    }

    fn first(&self) -> Answer<Arc<Sight>> {
        let waiting = || Problem::new(Code::NotYet, "the reader has not loaded a view yet");
        self.sights.latest().ok_or_else(waiting)
    }

    /// Refuses a seq that no wait within a deadline can reach. A view that is not fresh says
    /// nothing about how far the seqs have come.
    fn within_reach(&self, seq: Seq) -> Answer<()> {
        let Some(sight) = self.sights.latest() else { return Ok(()) };
        let is_fresh = u128::from(sight.lag_ms(self.now())) <= self.max_staleness.as_millis();
        let reached = sight.view.seq;
        if is_fresh && seq.0 > reached.0.saturating_add(SEQ_REACH) {
            let detail = format!("seq {seq} was never given: the newest view is at {reached}");
            return Err(self.behind(Code::NotYet, detail));
        }
        Ok(())
    }

    /// The problem, with the headers that say how far this reader is.
    fn behind(&self, code: Code, detail: String) -> Problem {
        let problem = Problem::new(code, detail);
        match self.sights.latest() {
            Some(sight) => problem
                .header(CAIRN_SEQ, sight.view.seq)
                .header(CAIRN_LAG_MS, sight.lag_ms(self.now())),
            None => problem,
        }
    }
}

#[async_trait]
impl Views for ReaderNode {
    async fn view(&self, request: ReadRequest) -> Answer<Answerable> {
        let sight = match request.min_seq {
            None => self.first()?,
            Some(seq) => {
                self.within_reach(seq)?;
                let found = self.sights.at_least(seq, request.deadline.instant()).await;
                found.ok_or_else(|| {
                    let detail = format!("no view at or above seq {seq} came in time");
                    self.behind(Code::NotYet, detail)
                })?
            }
        };
        let lag_ms = sight.lag_ms(self.now());
        if request.staleness == Staleness::Bounded
            && u128::from(lag_ms) > self.max_staleness.as_millis()
        {
            let why = if self.bucket.damage().holds_any(ObjectKind::Wal) {
                "an object of the log is missing, see /v1/status"
            } else {
                "the store does not answer, or not with what it holds"
            };
            let detail = format!("the view may be {lag_ms} ms old: {why}");
            return Err(self.behind(Code::TooStale, detail));
        }
        let view = Arc::clone(&sight.view);
        Ok(Answerable { view, lag_ms: Some(lag_ms), now_ms: self.env.clock.wall_ms() })
    }

    async fn reload(&self) -> Result<()> {
        let deadline = Deadline::after(RELOAD_TIMEOUT).instant();
        if self.sights.look_again(deadline).await {
            return Ok(());
        }
        let cause = format!("the store gave no newer view within {RELOAD_TIMEOUT:?}");
        Err(Error::unavailable("reloading the manifest", cause))
    }
}

#[async_trait]
impl Node for ReaderNode {
    fn readiness(&self) -> Answer<()> {
        self.first().map(drop)
    }

    fn damaged(&self) -> Vec<Damaged> {
        self.bucket.damage().list()
    }

    async fn status(&self) -> Status {
        let mut status = Status::new("reader", &self.bucket.metrics().snapshot());
        status.put_cache(&self.cache.stats());
        let Some(sight) = self.sights.latest() else {
            if let Some(Snapshot { current, manifest, .. }) = self.sights.base() {
                status.epoch = Some(current.writer.epoch);
                status.seq = Some(manifest.flushed_seq);
                status.tree = Some(TreeStatus::of(manifest));
            }
            return status;
        };
        let Current { writer, .. } = &*sight.current;
        let tree = &sight.view.tree;
        let memtables = sight.view.memtables.iter().map(|memtable| memtable.bytes());
        status.memory.insert("memtables", memtables.sum());
        status.memory.insert("metadata", tree.ssts.meta_bytes());
        status.epoch = Some(writer.epoch);
        status.seq = Some(sight.view.seq);
        status.applied_seq = Some(sight.view.seq);
        status.lag_ms = Some(sight.lag_ms(self.now()));
        status.tree = Some(TreeStatus::of(&tree.manifest));
        status.more.insert("database", sight.current.database.to_string().into());
        status.more.insert("root", self.bucket.root_id().into());
        let writer_url = self.writer_url().map_or(serde_json::Value::Null, Into::into);
        status.more.insert("writer_url", writer_url);
        status
    }
}

impl fmt::Display for ReaderNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reader of {}", self.bucket.url())
    }
}
