//! `POST /v1/compactions` asks for a job, `GET /v1/compactions` lists them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use cairn_common::http::api::{BodyKind, body_kind};
use cairn_common::http::json::Object;
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
    let Object(ask): Object<Ask> = serde_json::from_slice(body.bytes())
        .map_err(|error| Problem::body(format!("{error}; expected {{\"kind\":\"full\"}}")))?;
    node.readiness()?;
    let id = match ask.kind {
        Kind::Full => node.board.request_full(node.random.uuid()),
    };
    Ok((StatusCode::ACCEPTED, Json(Asked { id })))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::to_bytes;
    use axum::http::Request;
    use cairn_common::config::HttpLimits;
    use cairn_common::http::metrics::Metrics;
    use cairn_common::http::surface::Surface;
    use serde_json::{Value, json};
    use tokio::time::sleep;
    use tower::ServiceExt as _;

    use super::*;
    use crate::kit::{Kit, run_paused};

    async fn answer(router: &Router, method: &str, uri: &str, body: &str) -> (u16, Value) {
        let body = Body::from(body.to_owned());
        let request = Request::builder().method(method).uri(uri).body(body).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    #[test]
    fn full_compaction_is_asked_for_and_followed() {
        run_paused(async {
            let kit = Kit::new();
            let started = kit.start(&[]);
            let metrics = Arc::new(Metrics::new("compactor"));
            let surface = Surface::new(HttpLimits::default(), metrics, Arc::clone(&kit.env.clock));
            let node = Arc::clone(&started.node);
            let router = surface.data(Arc::clone(&node), routes(node));
            let path = "/v1/compactions";
            let full = r#"{"kind":"full"}"#;

            sleep(Duration::from_secs(2)).await;
            let (status, body) = answer(&router, "POST", path, full).await;
            assert_eq!((status, &body["code"]), (503, &json!("not_yet")), "no database yet");
            assert_eq!(answer(&router, "GET", "/readyz", "").await.0, 503);

            let mut writer = kit.writer().await;
            writer.flush(&[("a", Some("1"))]).await;
            writer.flush(&[("a", Some("2"))]).await;
            sleep(Duration::from_secs(2)).await;
            assert_eq!(answer(&router, "GET", "/readyz", "").await.0, 200);
            let (status, asked) = answer(&router, "POST", path, full).await;
            assert_eq!(status, 202);
            let (_, again) = answer(&router, "POST", path, full).await;
            assert_eq!(asked["id"], again["id"], "one waits already");
            sleep(Duration::from_secs(2)).await;
            let (status, jobs) = answer(&router, "GET", path, "").await;
            let job = &jobs["compactions"][0];
            assert_eq!((status, &job["id"], &job["state"]), (200, &asked["id"], &json!("done")));
            assert!(job["bytes_to_do"].as_u64() > Some(0), "{job}");

            let (status, told) = answer(&router, "GET", "/v1/status", "").await;
            assert_eq!(
                (status, &told["role"], &told["epoch"]),
                (200, &json!("compactor"), &json!(1))
            );
            assert_eq!(told["tree"]["runs"].as_array().map(Vec::len), Some(1));
            started.stop().await;
        });
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        run_paused(async {
            let kit = Kit::new();
            kit.writer().await;
            let started = kit.start(&[]);
            sleep(Duration::from_secs(2)).await;
            let metrics = Arc::new(Metrics::new("compactor"));
            let surface = Surface::new(HttpLimits::default(), metrics, Arc::clone(&kit.env.clock));
            let node = Arc::clone(&started.node);
            let router = surface.data(Arc::clone(&node), routes(node));
            for (method, uri, body, code) in [
                ("POST", "/v1/compactions", "", "invalid_body"),
                ("POST", "/v1/compactions", r#"{"kind":"half"}"#, "invalid_body"),
                ("POST", "/v1/compactions", r#"["full"]"#, "invalid_body"),
                ("POST", "/v1/compactions", r#"{"kind":"full","x":1}"#, "invalid_body"),
                ("POST", "/v1/compactions?now=1", r#"{"kind":"full"}"#, "invalid_argument"),
                ("GET", "/v1/compactions?x", "", "invalid_argument"),
                ("DELETE", "/v1/compactions", "", "method"),
                ("GET", "/v1/kv/a", "", "no_route"),
            ] {
                let (_, problem) = answer(&router, method, uri, body).await;
                assert_eq!(problem["code"], code, "{method} {uri} {body}");
            }
            started.stop().await;
        });
    }
}
