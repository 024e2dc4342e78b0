//! The reader as a process of the simulation: what its `main` does, without the sockets.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::error::Result;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::sst::{MetaBudget, SstStore};
use cairn_reader::config::{Config, PROGRAM};
use cairn_reader::follow::{Tail, find};
use cairn_reader::node::ReaderNode;
use cairn_reader::sights::Sights;
use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::world::{Machine, Shown, World};

/// How often readers look.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(400);

/// One life of a reader.
#[derive(Debug)]
pub(crate) struct ReaderProcess {
    pub(crate) world: Arc<World>,
    pub(crate) name: String,
    /// Cancelled to stop it gracefully.
    pub(crate) stop: CancellationToken,
    /// Cancelled when it is gone, however it went.
    pub(crate) gone: CancellationToken,
}

impl ReaderProcess {
    /// Lives until it is stopped or dropped.
    pub(crate) async fn run(self, machine: Machine) -> Result<()> {
        let left = Leaving { process: &self };
        let outcome = self.live(machine).await;
        drop(left);
        outcome
    }

    async fn live(&self, machine: Machine) -> Result<()> {
        let Machine { link, env, bucket } = machine;
        let (warm, memory) = self.world.draw(|rng| {
            // With hardly a cache almost every read asks the store, and meets what was collected.
            (rng.random_bool(0.5), if rng.random_bool(0.7) { 1 << 10 } else { 1 << 20 })
        });
        let config = config(if warm { "500ms" } else { "0ms" });
        let found = tokio::select! {
            biased;
            found = find(&bucket, &env, config.follow.poll_interval.0) => found?,
            () = self.stop.cancelled() => return Ok(()),
        };
        let cache = BlockCache::memory_only(memory);
        let ssts = SstStore::new(
            bucket.clone(),
            found.current.database,
            cache.clone(),
            MetaBudget { bytes: u64::try_from(memory).unwrap() },
            env.clone(),
        );
        let sights = Arc::new(Sights::default());
        let shared = Arc::clone(&sights);
        let node = ReaderNode::new(env.clone(), bucket, cache, &config, shared);
        let life = format!("{}/{}", self.name, self.world.next_life());
        let turn = Arc::default();
        let shown = Shown { life, turn, node: Arc::new(node), link, gone: self.gone.clone() };
        self.world.readers.enter(&self.name, shown);
        Tail::new(env, Arc::new(ssts), found, config.follow, sights).run(self.stop.clone()).await
    }
}

/// Takes the process off the roster when it ends, also by being dropped.
struct Leaving<'a> {
    process: &'a ReaderProcess,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.process.gone.cancel();
        self.process.world.readers.leave(&self.process.name);
    }
}

fn config(warm_timeout: &str) -> Config {
    let settings = [
        ("store", "memory://"),
        ("poll_interval", "400ms"),
        ("max_staleness", "3s"),
        ("warm_timeout", warm_timeout),
    ];
    PROGRAM.with(&settings).unwrap()
}
