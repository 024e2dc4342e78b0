//! `cairn-reader`: serves reads of a database from its bucket alone. Any number may run; they
//! write nothing, and read-only credentials are enough.
//!
//! **Life of a reader**: listen at once (readyz 503); wait for a database; follow its log to the
//! end; say "ready"; go on following. Requests are answered from the newest sight: an immutable
//! view, and how fresh it is.
//!
//! **Invariants**
//! - The seq of answers never goes back in one process.
//! - An answer is at most `max_staleness` old, unless the client allows more.
//! - A damaged database ends the process (exit code 5); a store that is away does not.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use cairn_common::config::HttpLimits;
use cairn_common::env::Env;
use cairn_common::error::{Error, Result};
use cairn_common::http::metrics::Metrics;
use cairn_common::http::surface::Surface;
use cairn_common::http::{reads, shell};
use cairn_common::process::{self, Frame};
use cairn_common::store::cache::BlockCache;
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::store::sst::{MetaBudget, SstStore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, PROGRAM};
use crate::follow::{Tail, find};
use crate::node::ReaderNode;
use crate::sights::Sights;

pub mod config;
pub mod follow;
mod hole;
mod metrics;
pub mod node;
mod opening;
mod routes;
pub mod sights;
mod warm;
mod watch;

/// The process: settings from `args`, the environment and a file; runs until a signal.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::main(&PROGRAM, args, |config: Config, frame| async move {
        let bucket =
            Bucket::open(&config.shared.store, StoreSettings::default(), frame.env.clone())?;
        run(config, bucket, frame).await
    })
}

/// Serves the database in `bucket` until the frame's shutdown.
///
/// # Errors
/// `Corrupt` for a damaged database; `Invalid` for a store or a cache that cannot be used.
pub async fn run(config: Config, bucket: Bucket, frame: Frame) -> Result<()> {
    let Frame { env: _, data, ops, shutdown, announce } = frame;
    let env = bucket.env().clone();
    if let Err(error @ Error::Invalid(_)) = bucket.check().await {
        return Err(error);
    }
    let cache = BlockCache::open(config.cache()).await?;
    let sights = Arc::new(Sights::default());
    let node = Arc::new(ReaderNode::new(
        env.clone(),
        bucket.clone(),
        cache.clone(),
        &config,
        Arc::clone(&sights),
    ));
    let surface = surface(&node, (&bucket, &cache), &env, config.shared.http);
    let routes = reads::routes(Arc::clone(&node)).merge(routes::writes(Arc::clone(&node)));
    let (data_router, ops_router) =
        (surface.data(Arc::clone(&node), routes), surface.ops(node, axum::Router::new()));

    let mut servers = JoinSet::new();
    servers.spawn(shell::serve(data, data_router, config.shared.http, shutdown.clone()));
    servers.spawn(shell::serve(ops, ops_router, config.shared.http, shutdown.clone()));
    let stop = CancellationToken::new();
    let following = follow(&config, &bucket, &cache, (env, Arc::clone(&sights)), stop.clone());
    let mut following = std::pin::pin!(following);
    let ready = async {
        sights.first().await;
        announce.ready(None);
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = &mut following => ended,
        () = ready => Ok(()),
        // At the shutdown, or by a panic.
        closed = shell::ended(&mut servers) => closed,
    };
    // Servers that are still here were cut off by an error; those of a shutdown have ended.
    servers.shutdown().await;
    stop.cancel();
    let ended = match ended {
        Ok(()) => following.await,
        error => error,
    };
    cache.close().await;
    ended
}

fn surface(
    node: &Arc<ReaderNode>,
    (bucket, cache): (&Bucket, &BlockCache),
    env: &Env,
    limits: HttpLimits,
) -> Arc<Surface> {
    let metrics = Arc::new(Metrics::new(PROGRAM.role()));
    metrics.register_store(bucket.clone());
    metrics.register_cache(cache.clone());
    metrics::register(&metrics, Arc::clone(node));
    Surface::new(limits, metrics, Arc::clone(&env.clock))
}

/// Finds the database and follows it until `stop`.
async fn follow(
    config: &Config,
    bucket: &Bucket,
    cache: &BlockCache,
    (env, sights): (Env, Arc<Sights>),
    stop: CancellationToken,
) -> Result<()> {
    let found = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        found = find(bucket, &env, config.follow.poll_interval.0) => found?,
    };
    sights.found(found.clone());
    let ssts = SstStore::new(
        bucket.clone(),
        found.current.database,
        cache.clone(),
        MetaBudget { bytes: config.meta_memory.0 },
        env.clone(),
    );
    Tail::new(env, Arc::new(ssts), found, config.follow, sights).run(stop).await
}

#[cfg(test)]
mod tests;
