//! What stands around every route of a listener: limits, deadline, metrics, honest errors, and
//! the routes that all processes have.
//!
//! **Invariants**
//! - `/livez` depends on nothing but the process itself.
//! - Whatever is refused before a handler is reached was not applied, and says so on writes.
//! - An unknown path is `no_route`, a known path with another method is `method`.
//! - A request has a place among those that are worked on until its handler has ended, but for
//!   the time in which it waits, see [`super::places`].

use std::sync::Arc;

use async_trait::async_trait;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{Method, header};
use tracing::{Instrument as _, Span};

use super::api::Status;
use super::budget::Budgets;
use super::metrics::{MEDIA_TYPE, Metrics, Sample};
use super::problem::{Answer, Code, Outcome, Problem};
use super::request::{Arrival, Params};
use super::shell::CutTarget;
use super::trace::TraceParent;
use crate::clock::Clock;
use crate::config::HttpLimits;
use crate::store::damage::Damaged;

/// The longest request target; a key of the greatest length fits, every byte of it escaped.
/// (hyper itself refuses targets from 65,535 bytes on, see [`super::shell`].)
const URI_BYTES_MAX: usize = 60_000;

/// A process as its surfaces see it.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Whether it can serve.
    ///
    /// # Errors
    /// Why not: a `standby` or `not_yet` problem.
    fn readiness(&self) -> Answer<()>;
    /// What `/v1/status` says. Asks nothing of the store.
    async fn status(&self) -> Status;
    /// The objects that are known to be missing or damaged.
    fn damaged(&self) -> Vec<Damaged>;
}

/// The limits and metrics that the surfaces of one process share.
#[derive(Debug)]
pub struct Surface {
    limits: HttpLimits,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    budgets: Budgets,
}

impl Surface {
    /// The surface of one process.
    pub fn new(limits: HttpLimits, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let budgets = Budgets::new(&limits);
        metrics.register_places(Arc::clone(&budgets.places));
        Arc::new(Self { limits, metrics, clock, budgets })
    }

    /// The router of `--listen`: the routes of the process, `/livez`, `/readyz`, `/v1/status`.
    pub fn data<N: Node>(self: &Arc<Self>, node: Arc<N>, routes: Router) -> Router {
        // A layer over no routes panics: a process that only collects has none of its own.
        let limited = if routes.has_routes() { routes.route_layer(from_fn(bound)) } else { routes };
        self.around(common(node).merge(limited))
    }

    /// The router of `--ops-listen`: the same common routes, `/metrics`, and admin routes.
    pub fn ops<N: Node>(self: &Arc<Self>, node: Arc<N>, routes: Router) -> Router {
        let metrics = Arc::clone(&self.metrics);
        let text = async move || ([(header::CONTENT_TYPE, MEDIA_TYPE)], metrics.encode());
        self.around(common(node).route("/metrics", get(text)).merge(routes))
    }

    fn around(self: &Arc<Self>, routes: Router) -> Router {
        routes
            .fallback(async |request: Request| {
                let path = request.uri().path();
                Problem::new(Code::NoRoute, format!("{path} is no route of this listener"))
            })
            .method_not_allowed_fallback(async |request: Request| {
                let (method, path) = (request.method(), request.uri().path());
                Problem::new(Code::Method, format!("{path} does not take {method}"))
            })
            .layer(from_fn_with_state(Arc::clone(self), observe))
    }
}

fn common<N: Node>(node: Arc<N>) -> Router {
    Router::new()
        .route("/livez", get("ok\n"))
        .route("/readyz", get(readyz::<N>))
        .route("/v1/status", get(status::<N>))
        .with_state(node)
}

/// Damage of single objects does not make a process unready: it answers for all other keys, and a
/// restart would not help. The text names the objects all the same.
async fn readyz<N: Node>(State(node): State<Arc<N>>) -> Answer<String> {
    let damaged = node.damaged();
    let damaged = damaged.iter().map(|damaged| format!("{}: {}", damaged.object, damaged.cause));
    match node.readiness() {
        Ok(()) => Ok(damaged.fold("ok\n".into(), |text, line| text + "damaged: " + &line + "\n")),
        Err(mut problem) => {
            damaged
                .for_each(|line| problem.detail = format!("{}; damaged: {line}", problem.detail));
            Err(problem)
        }
    }
}

async fn status<N: Node>(State(node): State<Arc<N>>, request: Request) -> Answer<Json<Status>> {
    Params::parse(request.uri().query(), &[])?;
    Ok(Json(Status { damaged: node.damaged(), ..node.status().await }))
}

/// Refuses at once what cannot be taken on: a queue would only make every request late.
async fn bound(request: Request, next: Next) -> Response {
    let Some(arrival) = request.extensions().get::<Arrival>().cloned() else {
        return Problem::new(Code::Internal, "the route is outside its surface").into_response();
    };
    if let Err(problem) = arrival.enter() {
        return problem.into_response();
    }
    let response = next.run(request).await;
    // What is left is the sending, of bytes that are counted against the memory for replies.
    arrival.leave();
    response
}

/// Counts requests in progress also when the client goes away and the future is dropped.
struct InProgress<'a> {
    surface: &'a Surface,
    route: Option<MatchedPath>,
    method: Method,
    status: u16,
    began: std::time::Duration,
    span: Span,
}

/// What is counted where the client went away first (nginx's word for it).
const STATUS_CLIENT_GONE: u16 = 499;

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        let took = self.surface.clock.boot().saturating_sub(self.began);
        let route = self.route.as_ref().map_or("none", |route| route_label(route.as_str()));
        let method = method_label(&self.method);
        let status = self.status;
        tracing::debug!(parent: &self.span, method, route, status, ?took, "answered");
        self.surface.metrics.answered(Sample { route, method, status: self.status, took });
    }
}

/// Routes by the names that the contract gives them, without an allocation per request.
fn route_label(route: &str) -> &'static str {
    const LABELS: [(&str, &str); 15] = [
        ("/v1/kv/{*key}", "/v1/kv/{key}"),
        ("/v1/kv64/{*key}", "/v1/kv64/{key}"),
        ("/v1/kv", "/v1/kv"),
        ("/v1/get", "/v1/get"),
        ("/v1/batch", "/v1/batch"),
        ("/v1/kv/", "/v1/kv/{key}"),
        ("/v1/kv64/", "/v1/kv64/{key}"),
        ("/v1/txn", "/v1/txn"),
        ("/v1/flush", "/v1/flush"),
        ("/v1/tail", "/v1/tail"),
        ("/v1/compactions", "/v1/compactions"),
        ("/v1/status", "/v1/status"),
        ("/metrics", "/metrics"),
        ("/livez", "/livez"),
        ("/readyz", "/readyz"),
    ];
    LABELS.iter().find(|(matched, _)| *matched == route).map_or("other", |(_, label)| label)
}

/// Methods that clients invent must not make series.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

async fn observe(
    State(surface): State<Arc<Surface>>,
    mut request: Request,
    next: Next,
) -> Response {
    surface.metrics.started();
    let trace = TraceParent::of(request.headers());
    let span = trace.as_ref().map_or_else(Span::none, TraceParent::span);
    let mut progress = InProgress {
        surface: &surface,
        route: request.extensions().get::<MatchedPath>().cloned(),
        method: request.method().clone(),
        status: STATUS_CLIENT_GONE,
        began: surface.clock.boot(),
        span: span.clone(),
    };
    let is_write = is_write(&progress);
    let response = match admit(&surface, &mut request) {
        Ok(()) => next.run(request).instrument(span).await,
        Err(problem) => problem.into_response(),
    };
    let mut response = complete(&surface, response, is_write);
    if let Some(trace) = trace {
        trace.put(response.headers_mut());
    }
    progress.status = response.status().as_u16();
    response
}

fn admit(surface: &Surface, request: &mut Request) -> Answer<()> {
    if request.extensions().get::<CutTarget>().is_some() {
        return Err(Problem::argument("target", "has a raw #; in a key it is %23"));
    }
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target > URI_BYTES_MAX {
        let detail = format!("a request target of {target} bytes is above {URI_BYTES_MAX}");
        return Err(Problem::new(Code::UriTooLong, detail));
    }
    let arrival = Arrival::new(request.headers(), &surface.limits, &surface.budgets)?;
    request.extensions_mut().insert(arrival);
    Ok(())
}

fn is_write(request: &InProgress<'_>) -> Writes {
    let route = request.route.as_ref().map_or("", MatchedPath::as_str);
    let writes = match request.method {
        Method::PUT | Method::DELETE => true,
        Method::POST => route.starts_with("/v1/kv") || ["/v1/batch", "/v1/txn"].contains(&route),
        _ => false,
    };
    if writes { Writes::Yes } else { Writes::No }
}

#[derive(Clone, Copy, PartialEq)]
enum Writes {
    Yes,
    No,
}

/// Counts a problem; one of a write that says no outcome was refused before it was tried.
fn complete(surface: &Surface, mut response: Response, writes: Writes) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    surface.metrics.problem(problem.code.name());
    if writes == Writes::No || problem.outcome.is_some() {
        return response;
    }
    let headers = response.headers().clone();
    let mut response = problem.outcome(Outcome::NotApplied).into_response();
    for (name, value) in &headers {
        if name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests;
