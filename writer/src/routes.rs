//! The writer's own routes: PUT and DELETE of a key, batches, flush. Reads are shared with readers.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{post, put};
use axum::{Json, Router};
use bytes::Bytes;
use cairn_common::http::batch::read_batch;
use cairn_common::http::conditions::Conditions;
use cairn_common::http::keys::{self, Key};
use cairn_common::http::problem::{Answer, Code, Outcome, Problem};
use cairn_common::http::request::{Arrival, CAIRN_SEQ, Params};
use cairn_common::limits::VALUE_BYTES_MAX;
use cairn_common::lsm::visible::fold_ops;
use cairn_common::types::{Epoch, Op, Payload, Seq};
use http::{StatusCode, header};
use serde::Serialize;

use crate::condition::Condition;
use crate::node::{WriterNode, ended};
use crate::pressure::Pressure;
use crate::service::{Durability, Unwritten, Write, Writer};

/// When a client that met a bound may try again: about what a flush takes.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// The reply to a batch or a flush.
#[derive(Clone, Copy, Debug, Serialize)]
struct Written {
    seq: Seq,
}

/// Values up to this size are copied out of the connection's buffer, which is about as large.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// The write routes.
pub fn routes(node: Arc<WriterNode>) -> Router {
    let routes = Router::new().route("/v1/batch", post(batch)).route("/v1/flush", post(flush));
    let key_routes = || put(put_key).delete(delete_key).post(merge_key);
    let routes = keys::ROUTES.into_iter().fold(routes, |all, path| all.route(path, key_routes()));
    routes.with_state(node)
}

async fn put_key(
    State(node): State<Arc<WriterNode>>,
    Key(key): Key,
    arrival: Arrival,
    request: Request,
) -> Answer {
    let (parts, body) = request.into_parts();
    let durability = durability(parts.uri.query())?;
    let tests = Conditions::parse(&parts.headers)?;
    let value = arrival.body(body, VALUE_BYTES_MAX).await?;
    let payload = Payload::Value(unpinned(value.bytes()));
    let op = Op { key, payload, expires_ms: None };
    let seq = write_one(&node, op, tests, durability, &arrival).await?;
    Ok((
        StatusCode::NO_CONTENT,
        [(header::ETAG, format!("\"{seq}\"")), (CAIRN_SEQ, seq.to_string())],
    )
        .into_response())
}

/// The bytes without the connection's buffer around them, which a memtable would keep alive.
fn unpinned(value: &Bytes) -> Bytes {
    if value.len() > COPY_BYTES_MAX { value.clone() } else { Bytes::copy_from_slice(value) }
}

async fn delete_key(
    State(node): State<Arc<WriterNode>>,
    Key(key): Key,
    arrival: Arrival,
    request: Request,
) -> Answer {
    let (parts, _) = request.into_parts();
    let durability = durability(parts.uri.query())?;
    let tests = Conditions::parse(&parts.headers)?;
    let op = Op { key, payload: Payload::Tombstone, expires_ms: None };
    let seq = write_one(&node, op, tests, durability, &arrival).await?;
    Ok((StatusCode::NO_CONTENT, [(CAIRN_SEQ, seq.to_string())]).into_response())
}

/// Merges are not offered yet: names the parameter, as for any that a route does not know.
async fn merge_key(request: Request) -> Answer {
    Params::parse(request.uri().query(), &[])?;
    Err(Problem::new(Code::NoRoute, "POST of a key needs a merge, which is not offered yet"))
}

async fn batch(
    State(node): State<Arc<WriterNode>>,
    arrival: Arrival,
    request: Request,
) -> Answer<Response> {
    let (parts, body) = request.into_parts();
    let durability = durability(parts.uri.query())?;
    Conditions::refuse(&parts.headers)?;
    // The share counts the operations until the write is answered: they may wait to be taken.
    let (ops, _share) = read_batch(&arrival, &parts.headers, body).await?.into_parts();
    let ops = fold_ops(ops)?;
    let _seat = arrival.write_seat()?;
    let writer = node.serving(arrival.deadline()).await?;
    let deadline = arrival.deadline().instant();
    let write = Write { ops, condition: None, durability, deadline };
    let seq = submit(&writer, write).await?;
    Ok(([(CAIRN_SEQ, seq.to_string())], Json(Written { seq })).into_response())
}

async fn flush(
    State(node): State<Arc<WriterNode>>,
    arrival: Arrival,
    request: Request<Body>,
) -> Answer<Response> {
    Params::parse(request.uri().query(), &[])?;
    let _seat = arrival.write_seat()?;
    let writer = node.serving(arrival.deadline()).await?;
    let flushed = arrival.deadline().limit("memtables were flushed", writer.flush()).await?;
    let seq = match flushed {
        Ok(seq) => seq,
        Err(unwritten) => return Err(refused(&writer, unwritten)),
    };
    Ok(([(CAIRN_SEQ, seq.to_string())], Json(Written { seq })).into_response())
}

fn durability(query: Option<&str>) -> Answer<Durability> {
    let params = Params::parse(query, &["durable"])?;
    Ok(match params.switch("durable")? {
        Some(false) => Durability::Memory,
        Some(true) | None => Durability::Durable,
    })
}

async fn write_one(
    node: &WriterNode,
    op: Op,
    tests: Conditions,
    durability: Durability,
    arrival: &Arrival,
) -> Answer<Seq> {
    // Before the write is taken: what is refused then was not applied.
    let _seat = arrival.write_seat()?;
    let writer = node.serving(arrival.deadline()).await?;
    let condition = (!tests.is_empty()).then(|| Condition { key: op.key.clone(), tests });
    let deadline = arrival.deadline().instant();
    submit(&writer, Write { ops: vec![op], condition, durability, deadline }).await
}

async fn submit(writer: &Writer, write: Write) -> Answer<Seq> {
    match writer.write(write).await {
        Ok(seq) => Ok(seq),
        Err(unwritten) => Err(refused(writer, unwritten)),
    }
}

/// What a client is told that gets no acknowledgement.
fn refused(writer: &Writer, unwritten: Unwritten) -> Problem {
    match unwritten {
        Unwritten::Overloaded(pressure) => {
            Problem::new(Code::Overloaded, overload(writer, pressure))
                .retry_after(OVERLOAD_RETRY)
                .outcome(Outcome::NotApplied)
        }
        Unwritten::Precondition(etag) => {
            let found = match etag {
                Some(etag) => format!("the condition does not hold: the etag is \"{etag}\""),
                None => "the condition does not hold: there is no such entry".to_owned(),
            };
            let problem = Problem::new(Code::Precondition, found).outcome(Outcome::NotApplied);
            match etag {
                Some(etag) => problem.header(header::ETAG, format!("\"{etag}\"")),
                None => problem,
            }
        }
        Unwritten::Late => {
            Problem::timeout("the write waited to be taken").outcome(Outcome::NotApplied)
        }
        Unwritten::Ended(end) => ended(end).outcome(Outcome::NotApplied),
        Unwritten::Failed(error) => Problem::from(error).outcome(Outcome::NotApplied),
        Unwritten::Unknown => unknown(writer),
    }
}

/// The write may yet land: because the deadline passed, or because the writer has ended.
fn unknown(writer: &Writer) -> Problem {
    let problem = match writer.front.progress().borrow().end {
        Some(end) => ended(end),
        None => Problem::timeout("the log was written"),
    };
    problem.outcome(Outcome::Unknown)
}

/// What keeps writes from being taken, and where to look.
fn overload(writer: &Writer, pressure: Pressure) -> String {
    match pressure {
        Pressure::L0Full => {
            let compactor = writer.lease.snapshot().current.compactor;
            let bound = writer.limits.l0_stop_count;
            let why = match (compactor.epoch, compactor.url) {
                (Epoch(0), _) => "no compactor has ever run here: start cairn-compactor".to_owned(),
                (epoch, Some(url)) => format!(
                    "the compactor of epoch {epoch} does not empty it: {url}/v1/status says why, \
                     if it runs"
                ),
                (epoch, None) => format!(
                    "the compactor of epoch {epoch} does not empty it: its /v1/status and its log \
                     say why, if it runs"
                ),
            };
            format!("L0 is at its bound of {bound} SSTs; {why}")
        }
        Pressure::Unflushed => {
            "memtables fill their budget: the store takes flushes too slowly".to_owned()
        }
        Pressure::None | Pressure::Delay { .. } => "the writer is at one of its bounds".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use cairn_common::config::{HttpLimits, Size};
    use cairn_common::env::Env;
    use cairn_common::format::sst::SstOptions;
    use cairn_common::http::metrics::Metrics;
    use cairn_common::http::surface::Surface;
    use cairn_common::store::cache::BlockCache;
    use cairn_common::store::object::{Bucket, StoreSettings};
    use cairn_common::store::sst::MetaBudget;
    use tokio::sync::watch;
    use tower::ServiceExt as _;
    use uuid::Uuid;

    use super::*;
    use crate::engine::Parts;
    use crate::node::Phase;

    /// The routes of a writer that is taking over, with this much memory for requests.
    fn taking_over(request_memory: u64) -> (Router, watch::Sender<Phase>) {
        let env = Env::system();
        let settings = StoreSettings::default();
        let parts = Parts {
            bucket: Bucket::open("memory://", settings, env.clone()).unwrap(),
            cache: BlockCache::memory_only(1 << 20),
            meta: MetaBudget { bytes: 1 << 20 },
            sst: SstOptions::default(),
            env: env.clone(),
        };
        let (phase, phases) = watch::channel(Phase::Starting);
        let (_, seen) = watch::channel(None);
        let node = Arc::new(WriterNode::new(phases, seen, Uuid::nil(), parts));
        let limits = HttpLimits { request_memory: Size(request_memory), ..HttpLimits::default() };
        let surface = Surface::new(limits, Arc::new(Metrics::new("writer")), env.clock);
        (surface.data(Arc::clone(&node), routes(node)), phase)
    }

    #[tokio::test]
    async fn a_batch_with_a_condition_is_refused() {
        let (router, _phase) = taking_over(1 << 20);
        for (name, value) in [("if-match", "\"1\""), ("if-none-match", "*")] {
            let body = r#"{"ops":[{"op":"delete","key":"a"}]}"#;
            let request = Request::post("/v1/batch").header(name, value).body(Body::from(body));
            let response = router.clone().oneshot(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), 400, "{name}");
            let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let told = (&body["code"], &body["outcome"]);
            assert_eq!(told, (&"invalid_argument".into(), &"not_applied".into()), "{body}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_waits_to_be_taken_is_still_counted() {
        let (router, phase) = taking_over(64 << 10);
        let status = async || {
            let value = "v".repeat(40 << 10);
            let body = format!(r#"{{"ops":[{{"op":"put","key":"a","value":"{value}"}}]}}"#);
            let request = Request::post("/v1/batch").body(Body::from(body)).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            body["code"].as_str().unwrap().to_owned()
        };
        let then = async {
            let second = status().await;
            phase.send_replace(Phase::Standby("http://other".into()));
            second
        };
        let (first, second) = futures::join!(status(), then);
        assert_eq!((&*first, &*second), ("standby", "overloaded"));
        assert_eq!(status().await, "standby", "what was refused is not held");
    }
}
