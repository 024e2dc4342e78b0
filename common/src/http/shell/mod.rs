//! The HTTP/1.1 server of every process: hyper, with limits from the first byte on.
//!
//! **Limits** (settings in [`crate::config::SHARED`]): connections, the time of a head, idle time,
//! the time without a byte taken by the client. Bodies and requests are bounded by
//! [`super::surface`].
//!
//! **A panic** in a connection's task goes on in the server's: what it left behind may be half
//! changed, so the process that owns the server must end. All its other connections are cut.
//!
//! **Life of a shutdown**: the listener closes; idle connections are closed; each request in
//! progress is answered with `connection: close`; what is left after `shutdown_grace` is cut.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use self::connection::{Phase, ReplyBody, RequestBody, Watched};
use crate::config::HttpLimits;
use crate::error::{Error, Result};

mod connection;
mod head;
#[cfg(test)]
mod tests;

/// After a failed accept: most failures are a lack of file descriptors, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Read buffer of one connection: a head with the longest key, every byte of it escaped, fits.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// Serves `router` on `listener` until `shutdown`, then for the requests in progress.
///
/// Returns when the last connection is closed. Dropping the future cuts every connection.
///
/// # Panics
/// With the panic of a request.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: HttpLimits,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let slots = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots, &shutdown) => accepted,
            Some(ended) = connections.join_next() => {
                settle(ended);
                continue;
            }
        };
        let Some((stream, slot)) = accepted else { break };
        let connection = Connection {
            router: router.clone(),
            limits,
            shutdown: shutdown.clone(),
            phase: Arc::default(),
        };
        connections.spawn(async move {
            connection.run(stream).await;
            drop(slot);
        });
    }
    drop(listener);
    let drain = async {
        while let Some(ended) = connections.join_next().await {
            settle(ended);
        }
    };
    if timeout(limits.shutdown_grace.0, drain).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut connections that did not end in time");
        connections.shutdown().await;
    }
}

/// How a connection ended; its panic goes on here.
fn settle(ended: Result<(), JoinError>) {
    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
        tracing::error!("a request broke its connection: the process must end");
        resume_unwind(panic);
    }
}

/// Waits until all of these servers have ended.
///
/// Cancel-safe.
///
/// # Errors
/// `Unavailable`, at the first that a panic ended.
pub async fn ended(servers: &mut JoinSet<()>) -> Result<()> {
    while let Some(ended) = servers.join_next().await {
        ended.map_err(|error| Error::unavailable("a server", error))?;
    }
    Ok(())
}

/// The next connection, once there is a slot for it; `None` at the shutdown.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let next = async {
        let slot = Arc::clone(slots).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, slot)),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        accepted = next => accepted,
    }
}

/// Stands in the extensions of a request of whose target hyper cut off a raw `#` and what follows:
/// a write of the key `a#b` would be one of `a`.
#[derive(Clone, Copy, Debug)]
pub(super) struct CutTarget;

struct Connection {
    router: Router,
    limits: HttpLimits,
    shutdown: CancellationToken,
    phase: Arc<Phase>,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&self.phase), &self.limits));
        let service = service_fn(|request| self.answer(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_timeout.0)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                // hyper would wait for the first request of a connection that never sent one.
                if !self.phase.is_touched() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke off");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<ReplyBody>, Infallible> {
        let phase = &self.phase;
        let is_cut = phase.serving(&request);
        let mut request = request.map(|body| Body::new(RequestBody::new(body, Arc::clone(phase))));
        if is_cut {
            request.extensions_mut().insert(CutTarget);
        }
        let response = self.router.clone().call(request).await?;
        Ok(response.map(|body| ReplyBody::new(body, Arc::clone(phase))))
    }
}
