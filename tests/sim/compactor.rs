//! Compactors and collectors as processes of the simulation: what their `main` does, without the
//! sockets.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::error::Result;
use cairn_common::types::Role;
use cairn_compactor::board::Board;
use cairn_compactor::config::{Config, PROGRAM};
use cairn_compactor::life::{Counters, Life};
use cairn_compactor::node::Phase;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::world::{Machine, World};

/// What has left the tree is kept for one of these, so that collection deletes within the story:
/// for nobody, or hardly for long enough.
const RETENTIONS: [&str; 3] = ["0ms", "500ms", "3s"];
/// The longest of them.
pub(crate) const RETENTION_MAX: Duration = Duration::from_secs(3);
/// Between two passes of collection.
pub(crate) const GC_INTERVAL: Duration = Duration::from_millis(1_500);
/// L0 is merged when it has so many SSTs.
const L0_COUNTS: [&str; 2] = ["2", "4"];
/// The larger of them.
pub(crate) const L0_COUNT_MAX: usize = 4;

/// One life of a compactor.
#[derive(Debug)]
pub(crate) struct CompactorProcess {
    pub(crate) world: Arc<World>,
    pub(crate) name: String,
    /// Both duties, or one of them.
    pub(crate) only: Option<&'static str>,
    /// Cancelled to stop it gracefully.
    pub(crate) stop: CancellationToken,
}

impl CompactorProcess {
    /// Lives until it is stopped, fenced, or dropped.
    pub(crate) async fn run(self, machine: Machine) -> Result<()> {
        let Self { world, name, only, stop } = self;
        let (retention, l0_count) = world
            .draw(|rng| (RETENTIONS[rng.random_range(0..3)], L0_COUNTS[rng.random_range(0..2)]));
        let (phase, _) = watch::channel(Phase::Starting);
        let (seen, _) = watch::channel(None);
        let board = Arc::new(Board::default());
        let life = Life {
            config: config(only, retention, l0_count),
            bucket: machine.bucket,
            env: machine.env.clone(),
            url: None,
            board: Arc::clone(&board),
            phase,
            seen,
            counters: Counters::default(),
        };
        let ready = |epoch| {
            if let Some(epoch) = epoch {
                world.enter_epoch(&name, Role::Compactor, epoch);
            }
        };
        let ask = async {
            loop {
                sleep(world.span(4_000, 20_000)).await;
                board.request_full(machine.env.random.uuid());
            }
        };
        tokio::select! {
            biased;
            ended = life.run(stop, ready) => ended,
            () = ask, if only != Some("gc") => unreachable!("it asks for ever"),
        }
    }
}

/// Small bounds, so that everything happens within a minute.
fn config(only: Option<&str>, retention: &str, l0_count: &str) -> Config {
    let mut settings = vec![
        ("store", "memory://"),
        ("sst_bytes", "16KiB"),
        ("read_ahead", "64KiB"),
        ("l0_count", l0_count),
        ("tier_count", "2"),
        ("poll_interval", "250ms"),
        ("gc_interval", "1500ms"),
        ("retention", retention),
    ];
    settings.extend(only.map(|only| ("only", only)));
    PROGRAM.with(&settings).unwrap()
}
