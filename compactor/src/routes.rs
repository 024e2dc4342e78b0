//! `POST /v1/compactions` asks for a job, `GET /v1/compactions` lists them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use cairn_common::http::api::{BodyKind, body_kind};
use cairn_common::http::problem::{Answer, Code, Problem};
use cairn_common::http::request::{Arrival, Params};
use cairn_common::http::surface::Node;
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::board::JobStatus;
use crate::node::CompactorNode;

/// The largest body: it names a kind.
const BODY_BYTES_MAX: usize = 4 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    kind: Kind,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Everything into one run.
    Full,
}

#[derive(Serialize)]
struct Asked {
    id: Uuid,
}

#[derive(Serialize)]
struct Jobs {
    compactions: Vec<JobStatus>,
}

/// The routes of a compactor that runs jobs.
pub fn routes(node: Arc<CompactorNode>) -> Router {
    Router::new().route("/v1/compactions", get(list).post(ask)).with_state(node)
}

async fn list(State(node): State<Arc<CompactorNode>>, uri: Uri) -> Answer<Json<Jobs>> {
    Params::parse(uri.query(), &[])?;
    Ok(Json(Jobs { compactions: node.board.jobs() }))
}

async fn ask(
    State(node): State<Arc<CompactorNode>>,
    uri: Uri,
    headers: HeaderMap,
    arrival: Arrival,
    body: Body,
) -> Answer<(StatusCode, Json<Asked>)> {
    Params::parse(uri.query(), &[])?;
    if body_kind(&headers)? != BodyKind::Json {
        return Err(Problem::new(Code::MediaType, "the body is one JSON document"));
    }
    let body = arrival.body(body, BODY_BYTES_MAX).await?;
    let ask: Ask = serde_json::from_slice(body.bytes())
        .map_err(|error| Problem::body(format!("{error}; expected {{\"kind\":\"full\"}}")))?;
    node.readiness()?;
    let id = match ask.kind {
        Kind::Full => node.board.request_full(node.random.uuid()),
    };
    Ok((StatusCode::ACCEPTED, Json(Asked { id })))
}
