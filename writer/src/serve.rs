//! The life of the process: settings to parts, listeners, standby, takeover, serving, leaving.
//!
//! **Life of a stop**: SIGTERM turns readyz off; new writes are refused, what was taken is made
//! durable at once; CURRENT records that this writer is closed, so that the next one need not wait;
//! then the listener closes and requests in progress are answered; exit 0. Until the record is
//! there reads and `/v1/status` are answered, since a standby asks. All of it takes
//! `shutdown_grace` at most: clients that are slower are cut off; if the store is away for longer,
//! the log says what is not durable, and the exit code is 1.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use cairn_common::address;
use cairn_common::config::{HttpLimits, Span};
use cairn_common::error::{Error, Result};
use cairn_common::format::sst::SstOptions;
use cairn_common::http::metrics::Metrics;
use cairn_common::http::surface::Surface;
use cairn_common::http::{reads, shell};
use cairn_common::process::Frame;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::claim::Claim;
use cairn_common::store::manifest::Snapshot;
use cairn_common::store::object::{Bucket, StoreSettings, is_on_network};
use cairn_common::store::probe;
use cairn_common::store::root::endpoint;
use cairn_common::store::sst::MetaBudget;
use cairn_common::types::Role;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::engine::{Engine, Parts};
use crate::front::End;
use crate::node::{Holds, Phase, WriterNode};
use crate::open::{HeadStart, Hold};
use crate::peers::HttpPeers;
use crate::service::Writer;
use crate::standby::{self, Standby, TakeoverWhen};
use crate::{metrics, routes};

/// After an error, requests in progress have this long to be told so.
const FAREWELL: Duration = Duration::from_millis(500);

/// Runs the writer until SIGTERM, or until it must not go on.
///
/// # Errors
/// By exit code: `Invalid`, `Fenced`, `Unfit`, `Corrupt`; anything else is unexpected.
pub async fn run(config: Config, frame: Frame) -> Result<()> {
    let Frame { env, data, ops, shutdown, announce } = frame;
    let bucket = Bucket::open(&config.shared.store, StoreSettings::default(), env)?;
    let env = bucket.env().clone();
    let parts = Parts {
        env: env.clone(),
        bucket: bucket.clone(),
        cache: BlockCache::memory_only(config.cache_memory.to_usize()),
        meta: MetaBudget { bytes: config.meta_memory.0 },
        sst: SstOptions::default(),
    };
    let url = config.advertise.clone().or_else(|| address::own_url(&data));
    let (phase, phases) = watch::channel(Phase::Starting);
    let (seen, snapshots) = watch::channel(None);
    let instance = env.random.uuid();
    let node = Arc::new(WriterNode::new(phases.clone(), snapshots, instance, parts.clone()));
    let surface = surface(&parts, phases, config.shared.http);
    let write_routes = routes::routes(Arc::clone(&node)).merge(reads::routes(Arc::clone(&node)));
    let data_router = surface.data(Arc::clone(&node), write_routes);
    let ops_router = surface.ops(Arc::clone(&node), Router::new());
    let mut servers = Servers::start(config.shared.http, (data, data_router), (ops, ops_router));

    let life = Life { config, parts, url, instance, node, phase, seen };
    let ended = tokio::select! {
        opened = life.open(|| announce.standby()) => match opened {
            Ok(engine) => {
                announce.ready(Some(engine.epoch()));
                life.serve(engine, &shutdown, &mut servers).await
            }
            Err(error) => Err(error),
        },
        error = servers.failed() => Err(error),
        // Nothing was taken yet; a claim that stands is taken over like any other.
        () = shutdown.cancelled() => Ok(()),
    };
    if let Err(error) = &ended {
        life.phase.send_replace(Phase::Ended(End::of(error)));
    }
    servers.stop().await;
    ended
}

/// The surface of a writer in this phase, and its metrics.
pub(crate) fn surface(
    parts: &Parts,
    phase: watch::Receiver<Phase>,
    limits: HttpLimits,
) -> Arc<Surface> {
    let metrics = Arc::new(Metrics::new("writer"));
    metrics.register_store(parts.bucket.clone());
    metrics.register_cache(parts.cache.clone());
    metrics::register(&metrics, phase);
    Surface::new(limits, metrics, Arc::clone(&parts.env.clock))
}

/// Whether no other host can mean itself by this address, while it writes to the same store: a
/// store whose server is on the loopback interface is of one host, as a directory is.
pub(crate) fn is_unique(url: &str, store: &str) -> bool {
    let server_is_here = || endpoint(store).is_some_and(|server| address::is_loopback(&server));
    !(address::is_loopback(url) && is_on_network(store) && !server_is_here())
}

struct Life {
    config: Config,
    parts: Parts,
    /// Where others reach this process.
    url: Option<String>,
    /// What it claims the role with.
    instance: Uuid,
    node: Arc<WriterNode>,
    phase: watch::Sender<Phase>,
    /// What CURRENT said last, while the role is not ours.
    seen: watch::Sender<Option<Snapshot>>,
}

impl Life {
    /// Waits for the role, takes it, and waits out the hold.
    async fn open(&self, announce_standby: impl Fn()) -> Result<Engine> {
        let url = self.unique_url()?;
        let Parts { env, bucket, .. } = &self.parts;
        if let Err(error @ Error::Invalid(_)) = bucket.check().await {
            return Err(error);
        }
        let manifests = self.parts.manifests();
        let snapshot = standby::create(&manifests, env).await?;
        let database = snapshot.current.database;
        self.seen.send_replace(Some(snapshot.clone()));
        let mut head = HeadStart::at(snapshot.clone());
        if self.config.takeover == TakeoverWhen::AssumeDead {
            tracing::warn!("assuming that no other writer is alive: there is no hold");
            head.hold = Hold::Never;
        }
        // Before each claim, while another writer is waited for: a hand-over takes no longer.
        let probed = probe::assure(bucket);
        if self.config.takeover == TakeoverWhen::IfDead {
            let peers = HttpPeers::new()?;
            let standby = Standby {
                env,
                manifests: &manifests,
                peers: &peers,
                takeover_after: self.config.takeover_after.0,
                url,
                own_url: self.url.clone(),
            };
            let freed = standby.wait(snapshot, |found| self.wait(found, &announce_standby));
            (head, ()) = tokio::try_join!(freed, probed)?;
            self.phase.send_replace(Phase::Starting);
            self.seen.send_replace(head.snapshot.clone());
        } else {
            probed.await?;
        }
        let claim = Claim {
            role: Role::Writer,
            uuid: self.instance,
            url: self.url.clone(),
            lease: self.config.lease.0,
        };
        let (parts, log) = (&self.parts, &self.config.log);
        let mut engine = Engine::open_from(head, parts, database, log, &claim).await?;
        self.phase.send_replace(Phase::Holding(Arc::clone(engine.writer()), self.holding(&engine)));
        engine.hold().await?;
        self.phase.send_replace(Phase::Serving(Arc::clone(engine.writer())));
        Ok(engine)
    }

    /// Says in the log until when nothing is answered, and why.
    fn holding(&self, engine: &Engine) -> Holds {
        let (left, reason) = engine.hold_reason().unwrap_or_default();
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let until_ms = self.parts.env.clock.wall_ms().saturating_add(left_ms);
        if !left.is_zero() {
            tracing::info!(
                hold_ms = left_ms,
                "the hold: nothing is answered yet, because {reason}"
            );
        }
        Holds { until_ms, reason }
    }

    /// Our address, which must be ours alone: a writer that is named by another one may live
    /// elsewhere, and nobody here can tell.
    ///
    /// # Errors
    /// `Invalid`: every host would take it for itself, on a store that several hosts can have.
    fn unique_url(&self) -> Result<Option<String>> {
        let Some(url) = &self.url else { return Ok(None) };
        let store = &self.config.shared.store;
        if is_unique(url, store) {
            return Ok(Some(url.clone()));
        }
        Err(Error::Invalid(format!(
            "advertise: {url} leads every host to itself, and other hosts can use {store}: a \
             standby there would take this writer for dead. Listen on an address of the network, \
             or set --advertise to a URL that others reach"
        )))
    }

    /// Another writer is alive: says so, once on stdout.
    fn wait(&self, found: &Snapshot, announce_standby: impl Fn()) {
        let active = found.current.writer.url.clone().unwrap_or_default();
        let is_first = !matches!(&*self.phase.borrow(), Phase::Standby(_));
        self.phase.send_if_modified(|phase| {
            let is_news = !matches!(&phase, Phase::Standby(known) if *known == active);
            if is_news {
                *phase = Phase::Standby(active);
            }
            is_news
        });
        self.seen.send_if_modified(|seen| {
            let is_news = seen.as_ref().is_none_or(|seen| seen.version != found.version);
            if is_news {
                *seen = Some(found.clone());
            }
            is_news
        });
        if is_first {
            announce_standby();
        }
    }

    /// Serves until SIGTERM, or the end of the engine or of a server.
    async fn serve(
        &self,
        mut engine: Engine,
        shutdown: &CancellationToken,
        servers: &mut Servers,
    ) -> Result<()> {
        tokio::select! {
            error = engine.failed() => return Err(error),
            error = servers.failed() => return Err(error),
            () = shutdown.cancelled() => {}
        }
        let writer = Arc::clone(engine.writer());
        self.phase.send_replace(Phase::Leaving(Arc::clone(&writer)));
        let grace = self.config.shared.http.shutdown_grace.0;
        let clients = async {
            self.node.standby_was_told().await;
            servers.drain().await
        };
        match timeout(grace, engine.leave(clients)).await {
            Ok(ended) => ended,
            Err(_) if writer.lease.closed_as().is_some() => {
                tracing::warn!("requests in progress did not end in shutdown_grace: cutting them");
                Ok(())
            }
            Err(_) => Err(unfinished(&writer, grace)),
        }
    }
}

/// Ends a writer that could not close in time; whoever waits for it is told.
fn unfinished(writer: &Writer, grace: Duration) -> Error {
    let (durable, newest) = (writer.front.progress().borrow().durable, writer.front.newest_seq());
    writer.front.end(End::Closed);
    let what = if newest > durable {
        let first = durable.next();
        tracing::error!(%first, last = %newest, "the store is away: these writes are not durable");
        format!("the writes of seq {first} to {newest} are not durable")
    } else {
        "everything is durable, but CURRENT does not say that this writer has closed".to_owned()
    };
    Error::indeterminate("the stop", format!("after {}: {what}", Span(grace)))
}

/// The two HTTP servers.
struct Servers {
    data: JoinSet<()>,
    ops: JoinSet<()>,
    stop_data: CancellationToken,
    stop_ops: CancellationToken,
}

impl Servers {
    fn start(
        limits: HttpLimits,
        (data_listener, data_router): (TcpListener, Router),
        (ops_listener, ops_router): (TcpListener, Router),
    ) -> Self {
        // The life of the writer bounds their stop: connections that are cut get no answer.
        let shutdown_grace = Span(limits.shutdown_grace.0 + 2 * FAREWELL);
        let limits = HttpLimits { shutdown_grace, ..limits };
        let (stop_data, stop_ops) = (CancellationToken::new(), CancellationToken::new());
        let (mut data, mut ops) = (JoinSet::new(), JoinSet::new());
        data.spawn(shell::serve(data_listener, data_router, limits, stop_data.clone()));
        ops.spawn(shell::serve(ops_listener, ops_router, limits, stop_ops.clone()));
        Self { data, ops, stop_data, stop_ops }
    }

    /// Resolves when a server has ended, which none does by itself but by the panic of a request.
    /// Half a change of the state may be left of it: nothing more is taken on.
    ///
    /// Cancel-safe.
    async fn failed(&mut self) -> Error {
        let ended = tokio::select! {
            ended = shell::ended(&mut self.data) => ended,
            ended = shell::ended(&mut self.ops) => ended,
        };
        ended.err().unwrap_or(Error::Closed)
    }

    /// Stops accepting on the data listener, and waits for its requests in progress.
    async fn drain(&mut self) -> Result<()> {
        self.stop_data.cancel();
        shell::ended(&mut self.data).await
    }

    /// Stops both, with a short time for requests in progress.
    async fn stop(mut self) {
        self.stop_data.cancel();
        self.stop_ops.cancel();
        let farewell = async {
            while self.data.join_next().await.is_some() {}
            while self.ops.join_next().await.is_some() {}
        };
        if timeout(FAREWELL, farewell).await.is_err() {
            tracing::warn!("cut connections at the end");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;

    use super::*;

    async fn broken() -> &'static str {
        panic!("as a handler with a defect does")
    }

    #[tokio::test]
    async fn a_panic_at_either_listener_is_the_end_of_serving() {
        for (data, ops) in [("/x", "/y"), ("/y", "/x")] {
            let router = |path| Router::new().route(path, get(broken));
            let listen = || TcpListener::bind("127.0.0.1:0");
            let listeners = (listen().await.unwrap(), listen().await.unwrap());
            let at = if data == "/x" { &listeners.0 } else { &listeners.1 };
            let address = at.local_addr().unwrap();
            let (data, ops) = ((listeners.0, router(data)), (listeners.1, router(ops)));
            let mut servers = Servers::start(HttpLimits::default(), data, ops);
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let error = servers.failed().await;
            assert!(matches!(error, Error::Unavailable(_)), "{error}");
            servers.stop().await;
        }
    }
}
