//! The compactor: keeps the tree in shape, and deletes what nobody needs any more.
//!
//! ```text
//! standby -> life (wait, claim) -> schedule -> pick -> task (plan, job, commit)   under the epoch
//!                               -> gc                                    under none, by any number
//! blacklist, check: damaged inputs, and looking at them again
//! routes, node: the HTTP surface; board: what it knows of jobs
//! ```
//!
//! **Invariants**
//! - Killed anywhere, it leaves the tree as it was, and objects that a later collection finds.
//! - Tombstones and expired entries are dropped only where nothing older is left, and "now" is the
//!   manifest's time, never a clock of this process.
//! - A compactor that met a newer epoch stops and exits 3.

pub mod blacklist;
pub mod board;
pub mod catalog;
pub mod check;
pub mod commit;
pub mod config;
pub mod gc;
pub mod job;
#[cfg(test)]
mod kit;
pub mod life;
pub mod metrics;
pub mod node;
pub mod pick;
pub mod plan;
pub mod routes;
pub mod schedule;
pub mod standby;
pub mod strikes;
pub mod task;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod withheld;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use cairn_common::address;
use cairn_common::config::{HttpLimits, Span};
use cairn_common::env::Env;
use cairn_common::error::Result;
use cairn_common::http::metrics::Metrics;
use cairn_common::http::shell;
use cairn_common::http::surface::Surface;
use cairn_common::process::{self, Frame};
use cairn_common::store::object::{Bucket, StoreSettings, is_on_network};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::board::Board;
use self::config::{Config, Only, PROGRAM};
use self::life::{Counters, Graces, Life};
use self::node::{CompactorNode, Phase};
use self::standby::{HttpPeers, Standby};

/// The process; `args` begins with its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::main(&PROGRAM, args, |config: Config, frame| async move {
        let settings = StoreSettings::default();
        let bucket = Bucket::open(&config.shared.store, settings, frame.env.clone())?;
        run(config, bucket, frame).await
    })
}

/// Runs a compactor on this bucket until the frame's shutdown.
///
/// # Errors
/// As [`Life::run`].
pub async fn run(config: Config, bucket: Bucket, frame: Frame) -> Result<()> {
    let Frame { env: _, data, ops, shutdown, announce } = frame;
    let env = bucket.env().clone();
    let shutdown_grace = Span(Graces::of(&config).requests);
    let limits = HttpLimits { shutdown_grace, ..config.shared.http };
    let metrics = Arc::new(Metrics::new("compactor"));
    metrics.register_store(bucket.clone());
    let url = config.advertise.clone().or_else(|| address::own_url(&data));
    let runs_jobs = config.only != Some(Only::Gc);
    let counters = Counters::register(&metrics);
    let (life, node) = assemble(config, bucket, &env, (url, counters));

    let surface = Surface::new(limits, metrics, Arc::clone(&env.clock));
    let routes = if runs_jobs { routes::routes(Arc::clone(&node)) } else { Router::new() };
    let mut servers = JoinSet::new();
    let closed = CancellationToken::new();
    let router = surface.data(Arc::clone(&node), routes);
    servers.spawn(shell::serve(data, router, limits, closed.clone()));
    servers.spawn(shell::serve(ops, surface.ops(node, Router::new()), limits, closed.clone()));

    let worked = tokio::select! {
        worked = async {
            if runs_jobs {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return Ok(()),
                    waited = stand_by(&life, || announce.standby()) => waited?,
                }
            }
            life.run(shutdown, |epoch| announce.ready(epoch)).await
        } => worked,
        // None ends by itself but by a panic.
        broken = shell::ended(&mut servers) => broken,
    };
    closed.cancel();
    let served = shell::ended(&mut servers).await;
    worked.and(served)
}

/// Waits while another compactor is active.
async fn stand_by(life: &Life, announce: impl FnOnce()) -> Result<()> {
    let store = life.bucket.url();
    // On a network store every host has the same loopback addresses.
    let is_own = |url: &String| !(address::is_loopback(url) && is_on_network(store));
    let peers = HttpPeers::new()?;
    let standby = Standby {
        env: &life.env,
        bucket: &life.bucket,
        peers: &peers,
        takeover_after: life.config.takeover_after.0,
        url: life.url.clone().filter(is_own),
    };
    let waiting = || {
        life.phase.send_replace(Phase::Standby);
        announce();
    };
    standby.wait(waiting).await
}

/// A life, and the node that tells of it.
fn assemble(
    config: Config,
    bucket: Bucket,
    env: &Env,
    (url, counters): (Option<String>, Counters),
) -> (Life, Arc<CompactorNode>) {
    let (phase, phase_seen) = watch::channel(Phase::Starting);
    let (seen, snapshot_seen) = watch::channel(None);
    let board = Arc::new(Board::default());
    let node = Arc::new(CompactorNode {
        phase: phase_seen,
        seen: snapshot_seen,
        board: Arc::clone(&board),
        bucket: bucket.clone(),
        random: Arc::clone(&env.random),
    });
    let life = Life { config, bucket, env: env.clone(), url, board, phase, seen, counters };
    (life, node)
}
