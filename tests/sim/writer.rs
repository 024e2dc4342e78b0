//! The writer as a process of the simulation: what its `main` does, without the sockets.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cairn_common::error::{Error, Result};
use cairn_common::format::sst::SstOptions;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::Snapshot;
use cairn_common::store::sst::MetaBudget;
use cairn_common::types::{Epoch, Role};
use cairn_writer::config::{Config, LogConfig, PROGRAM};
use cairn_writer::engine::{Engine, Parts};
use cairn_writer::open::HeadStart;
use cairn_writer::service::Writer;
use cairn_writer::standby::{self, Answer, Asked, Peers, Standby, TakeoverWhen};
use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::world::{Listed, Machine, Phase, Tempo, World};

/// The lease that writers ask for.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// The silence after which a standby takes over.
pub(crate) const TAKEOVER_AFTER: Duration = Duration::from_secs(1);
/// Between two WAL objects.
pub(crate) const WAL_INTERVAL: Duration = Duration::from_millis(20);
/// What a standby waits for an answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// One life of a writer.
#[derive(Debug)]
pub(crate) struct WriterProcess {
    pub(crate) world: Arc<World>,
    pub(crate) name: String,
    pub(crate) takeover: TakeoverWhen,
    /// Cancelled to stop it gracefully.
    pub(crate) stop: CancellationToken,
    /// Cancelled when it is gone, however it went.
    pub(crate) gone: CancellationToken,
}

impl WriterProcess {
    /// Lives until it is stopped, fenced, or dropped.
    pub(crate) async fn run(self, machine: Machine) -> Result<()> {
        let left = Leaving { process: &self };
        let outcome = self.live(machine).await;
        drop(left);
        outcome
    }

    fn url(&self) -> String {
        format!("http://{}", self.name)
    }

    /// Clients that are slow to go: they are waited for once nobody waits for the role.
    async fn slow_clients(&self, writer: Arc<Writer>) -> Result<()> {
        let is_closed = writer.lease.closed_as().is_some();
        assert!(is_closed, "slow clients are waited for before the role is free");
        let slow = self.world.draw(|rng| Duration::from_millis(rng.random_range(0..2_000)));
        tokio::time::sleep(slow).await;
        Ok(())
    }

    async fn live(&self, machine: Machine) -> Result<()> {
        let Machine { link, env, bucket } = machine;
        // With hardly a cache almost every read asks the store, and meets what was collected.
        let memory = self.world.draw(|rng| if rng.random_bool(0.5) { 1 << 10 } else { 1 << 20 });
        let parts = Parts {
            env: env.clone(),
            bucket,
            cache: BlockCache::memory_only(memory),
            meta: MetaBudget { bytes: u64::try_from(memory).unwrap() },
            sst: SstOptions { block_bytes: 1024, ..SstOptions::default() },
        };
        let manifests = parts.manifests();
        let snapshot = standby::create(&manifests, &env).await?;
        let database = snapshot.current.database;
        let mut head = HeadStart::at(snapshot.clone());
        if self.takeover == TakeoverWhen::IfDead {
            let peers = RosterPeers { world: Arc::clone(&self.world) };
            let standby = Standby {
                env: &env,
                manifests: &manifests,
                peers: &peers,
                takeover_after: TAKEOVER_AFTER,
                url: Some(self.url()),
                own_url: Some(self.url()),
            };
            let waiting = |_: &Snapshot| self.world.events.count("standby waits");
            tokio::select! {
                biased;
                free = standby.wait(snapshot, waiting) => head = free?,
                () = self.stop.cancelled() => return Ok(()),
            }
        }
        if let Some(Snapshot { current, .. }) = &head.snapshot
            && let replaced = &current.writer
            && replaced.epoch > Epoch(0)
        {
            let kind = if replaced.closed { "takeover of a closed writer" } else { "takeover" };
            self.world.events.count(kind);
        }
        let uuid = env.random.uuid();
        let url = Some(self.url());
        let claim = Claim { role: Role::Writer, uuid, url, lease: LEASE };
        let log = log(self.world.tempo);
        let mut engine = Engine::open_from(head, &parts, database, &log, &claim).await?;
        self.world.enter_epoch(&self.name, Role::Writer, engine.epoch());
        let listed = Listed {
            epoch: engine.epoch(),
            phase: Phase::Holding,
            since: self.world.now(),
            writer: Arc::clone(engine.writer()),
            turn: Arc::default(),
            link,
            gone: self.gone.clone(),
        };
        self.world.roster.enter(&self.url(), listed.clone());
        engine.hold().await?;
        self.world.ledger.reign(engine.epoch());
        let (phase, since) = (Phase::Serving, self.world.now());
        self.world.roster.enter(&self.url(), Listed { phase, since, ..listed.clone() });
        tokio::select! {
            biased;
            error = engine.failed() => return Err(error),
            () = self.stop.cancelled() => {}
        }
        let (phase, since) = (Phase::Leaving, self.world.now());
        self.world.roster.enter(&self.url(), Listed { phase, since, ..listed });
        let clients = self.slow_clients(Arc::clone(engine.writer()));
        engine.leave(clients).await?;
        self.world.events.count("writer closed");
        Ok(())
    }
}

/// Takes the process off the roster when it ends, also by being dropped.
struct Leaving<'a> {
    process: &'a WriterProcess,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.process.gone.cancel();
        self.process.world.roster.leave(&self.process.url());
    }
}

/// Small bounds, so that everything happens within a minute.
fn log(tempo: Tempo) -> LogConfig {
    let (brisk, long) = (tempo != Tempo::Mixed, tempo == Tempo::BriskLongLog);
    let settings = [
        ("store", "memory://"),
        ("wal_interval", "20ms"),
        ("wal_window", "4"),
        ("wal_bytes_max", "4KiB"),
        ("memtable_bytes", "48KiB"),
        ("memtable_wal_objects", if long { "1000" } else { "60" }),
        ("memtable_age", if long { "5m" } else { "8s" }),
        ("unflushed_bytes_max", "256KiB"),
        // The laws hold while the compactor is away for longer than a stall.
        ("l0_slowdown", if brisk { "60" } else { "12" }),
        ("l0_stop", if brisk { "80" } else { "24" }),
    ];
    PROGRAM.with::<Config>(&settings).unwrap().log
}

/// Asks through the roster whether a writer is alive.
#[derive(Debug)]
struct RosterPeers {
    world: Arc<World>,
}

#[async_trait]
impl Peers for RosterPeers {
    async fn ask(&self, url: &str, Asked { claim, .. }: Asked<'_>) -> Answer {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match self.world.roster.look_up(url) {
            Some(listed) if listed.epoch == claim.epoch => {
                // A process that is stopped answers nothing.
                let answers = tokio::time::timeout(ASK_TIMEOUT, listed.link.let_on()).await;
                match (answers, listed.phase) {
                    (Err(_), _) => Answer::Silent,
                    (Ok(()), Phase::Leaving) => Answer::Leaving,
                    (Ok(()), _) => Answer::Active,
                }
            }
            _ => Answer::Silent,
        }
    }
}

/// Whether an end is one that the design foresees; anything else fails the run.
pub(crate) fn foreseen(error: &Error) -> bool {
    matches!(error, Error::Fenced { .. } | Error::Closed)
}
