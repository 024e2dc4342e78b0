//! Tests of the common routes and of the frame of a process, over a made-up node.

use axum::body::{Body, to_bytes};
use axum::routing::{post, put};
use tower::ServiceExt as _;

use super::*;
use crate::clock::SystemClock;
use crate::http::keys::{Key, ROUTES};
use crate::store::metrics::StoreSnapshot;

enum Fake {
    Ready,
    Waiting,
}

#[async_trait]
impl Node for Fake {
    fn readiness(&self) -> Answer<()> {
        match self {
            Self::Ready => Ok(()),
            Self::Waiting => Err(Problem::new(Code::Standby, "waiting")),
        }
    }

    fn damaged(&self) -> Vec<Damaged> {
        let damaged = |object: &str, cause: &str| Damaged {
            object: object.to_owned(),
            cause: cause.to_owned(),
        };
        vec![damaged("run/a", "it is not there"), damaged("sst/b", "a checksum differs")]
    }

    async fn status(&self) -> Status {
        Status::new("writer", &StoreSnapshot::default())
    }
}

async fn echo(key: Key, arrival: Arrival, body: Body) -> Answer<Vec<u8>> {
    let body = arrival.body(body, 16).await?;
    Ok([&key.0[..], b"=", body.bytes()].concat())
}

fn surface(limits: HttpLimits) -> Arc<Surface> {
    Surface::new(limits, Arc::new(Metrics::new("writer")), Arc::new(SystemClock::default()))
}

fn routes() -> Router {
    let keyed = || put(echo).get(async |key: Key| key.0);
    let refused = async || Problem::new(Code::Precondition, "x").header(header::ETAG, "\"1\"");
    let routes = Router::new().route("/v1/batch", post(refused));
    ROUTES.into_iter().fold(routes, |routes, path| routes.route(path, keyed()))
}

fn data(node: Fake) -> Router {
    surface(HttpLimits::default()).data(Arc::new(node), routes())
}

async fn answer(router: &Router, method: &str, uri: &str, body: &'static str) -> (u16, Vec<u8>) {
    let request = Request::builder().method(method).uri(uri).body(Body::from(body)).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    (status, to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec())
}

async fn problem(router: &Router, method: &str, uri: &str) -> (u16, String, Option<String>) {
    let (status, body) = answer(router, method, uri, "body").await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["status"], status);
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    (status, text("code").unwrap(), text("outcome"))
}

#[tokio::test]
async fn keys_reach_handlers_as_they_stand_in_the_path() {
    let router = data(Fake::Ready);
    for (path, key) in [
        ("/v1/kv/users/42", &b"users/42"[..]),
        ("/v1/kv//", b"/"),
        ("/v1/kv//a//b/", b"/a//b/"),
        ("/v1/kv/a%2Fb+c%20%25", b"a/b+c %"),
        ("/v1/kv/%ff", b"\xff"),
        ("/v1/kv/{x}:*", b"{x}:*"),
        ("/v1/kv64/Lg", b"."),
        ("/v1/kv64/_w", b"\xff"),
    ] {
        assert_eq!(answer(&router, "GET", path, "").await, (200, key.to_vec()), "{path}");
    }
    let (status, body) = answer(&router, "PUT", "/v1/kv/a/b", "value").await;
    assert_eq!((status, &body[..]), (200, &b"a/b=value"[..]));
}

#[tokio::test]
async fn what_is_refused_before_a_handler_was_not_applied() {
    let router = data(Fake::Ready);
    let refused = |status, code: &str, outcome: Option<&str>| {
        (status, code.to_owned(), outcome.map(str::to_owned))
    };
    let not_applied = Some("not_applied");
    for (method, uri, expected) in [
        ("GET", "/v1/kv/", refused(400, "invalid_key", None)),
        ("PUT", "/v1/kv/", refused(400, "invalid_key", not_applied)),
        ("PUT", "/v1/kv64/", refused(400, "invalid_key", not_applied)),
        ("PUT", "/v1/kv/a/../b", refused(400, "invalid_key", not_applied)),
        ("GET", "/v2/kv/a", refused(404, "no_route", None)),
        ("GET", "/", refused(404, "no_route", None)),
        ("POST", "/v1/kv/a", refused(405, "method", not_applied)),
        ("DELETE", "/v1/batch", refused(405, "method", not_applied)),
        ("POST", "/livez", refused(405, "method", None)),
        ("GET", "/v1/status?x=1", refused(400, "invalid_argument", None)),
        ("POST", "/v1/batch", refused(412, "precondition", not_applied)),
    ] {
        assert_eq!(problem(&router, method, uri).await, expected, "{method} {uri}");
    }
}

#[tokio::test]
async fn readyz_and_status_name_damage() {
    let (status, text) = answer(&data(Fake::Ready), "GET", "/readyz", "").await;
    let lines = "ok\ndamaged: run/a: it is not there\ndamaged: sst/b: a checksum differs\n";
    assert_eq!((status, &*String::from_utf8(text).unwrap()), (200, lines));
    let (status, body) = answer(&data(Fake::Waiting), "GET", "/readyz", "").await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let detail = body["detail"].as_str().unwrap();
    assert!(status == 503 && detail.contains("; damaged: sst/b: a checksum"), "{body}");
    let (_, body) = answer(&data(Fake::Ready), "GET", "/v1/status", "").await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["damaged"][0]["object"], "run/a");
    assert_eq!(body["damaged"][1]["cause"], "a checksum differs");
}

#[tokio::test]
async fn headers_of_a_completed_problem_stay() {
    let request = Request::post("/v1/batch").body(Body::empty()).unwrap();
    let response = data(Fake::Ready).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["etag"], "\"1\"");
    let request = Request::patch("/v1/batch").body(Body::empty()).unwrap();
    let response = data(Fake::Ready).oneshot(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
}

#[tokio::test]
async fn targets_and_bodies_have_bounds() {
    let router = data(Fake::Ready);
    let long = format!("/v1/kv/{}", "x".repeat(URI_BYTES_MAX));
    assert_eq!(problem(&router, "GET", &long).await.0, 414);
    let (status, _) = answer(&router, "PUT", "/v1/kv/a", "sixteen bytes at most").await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn health_is_told_apart_from_readiness() {
    let waiting = data(Fake::Waiting);
    assert_eq!(answer(&waiting, "GET", "/livez", "").await.0, 200);
    assert_eq!(problem(&waiting, "GET", "/readyz").await.1, "standby");
    assert_eq!(answer(&data(Fake::Ready), "GET", "/readyz", "").await.0, 200);
    let (status, body) = answer(&waiting, "GET", "/v1/status", "").await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["role"]), (200, &"writer".into()));
}

#[tokio::test]
async fn metrics_are_on_the_ops_listener_alone() {
    let surface = surface(HttpLimits::default());
    let node = Arc::new(Fake::Ready);
    let data = surface.data(Arc::clone(&node), routes());
    let ops = surface.ops(node, Router::new());
    assert_eq!(problem(&data, "GET", "/metrics").await.0, 404);
    assert_eq!(answer(&data, "GET", "/v1/kv64/_w", "").await.0, 200);
    assert_eq!(problem(&data, "BREW", "/v1/unheard/of").await.0, 404);
    let (status, text) = answer(&ops, "GET", "/metrics", "").await;
    let text = String::from_utf8(text).unwrap();
    assert_eq!(status, 200);
    for line in [
        "cairn_http_requests_total{route=\"/v1/kv64/{key}\",method=\"GET\",status=\"200\"} 1\n",
        "cairn_http_requests_total{route=\"none\",method=\"other\",status=\"404\"} 1\n",
        "cairn_http_problems_total{code=\"no_route\"} 2\n",
        "cairn_http_requests_in_progress 1\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn excess_requests_are_refused_at_once() {
    let limits = HttpLimits { requests_max: 0, ..HttpLimits::default() };
    let router = surface(limits).data(Arc::new(Fake::Ready), routes());
    let refused = (503, "overloaded".to_owned(), Some("not_applied".to_owned()));
    assert_eq!(problem(&router, "PUT", "/v1/kv/a").await, refused);
    assert_eq!(answer(&router, "GET", "/livez", "").await.0, 200);
}

#[tokio::test]
async fn a_reply_on_its_way_has_no_place() {
    let limits = HttpLimits { requests_max: 1, ..HttpLimits::default() };
    let endless = async || {
        let piece = futures::stream::repeat_with(|| Ok::<_, std::io::Error>("piece"));
        Body::from_stream(piece)
    };
    let routes = Router::new().route("/v1/kv", get(endless));
    let router = surface(limits).data(Arc::new(Fake::Ready), routes);
    let ask = async || {
        let request = Request::get("/v1/kv").body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap()
    };
    let reply = ask().await;
    assert_eq!(ask().await.status(), 200);
    drop(reply);
}

#[tokio::test]
async fn half_sent_bodies_keep_nobody_out() {
    let limits = HttpLimits { requests_max: 1, ..HttpLimits::default() };
    let router = surface(limits).data(Arc::new(Fake::Ready), routes());
    let half = || {
        let silent = futures::stream::pending::<Result<&str, std::io::Error>>();
        let request = Request::put("/v1/kv/a").body(Body::from_stream(silent)).unwrap();
        Box::pin(router.clone().oneshot(request))
    };
    let mut halves = [half(), half(), half()];
    for half in &mut halves {
        assert!(futures::poll!(half).is_pending());
    }
    let (status, body) = answer(&router, "PUT", "/v1/kv/b", "value").await;
    assert_eq!((status, &body[..]), (200, &b"b=value"[..]));
    assert_eq!(answer(&router, "GET", "/v1/kv/b", "").await.0, 200);
}

#[tokio::test]
async fn a_target_that_was_cut_is_refused() {
    let mut request = Request::put("/v1/kv/a").body(Body::empty()).unwrap();
    request.extensions_mut().insert(CutTarget);
    let response = data(Fake::Ready).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 400);
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let expected = (&"invalid_argument".into(), &"not_applied".into());
    assert_eq!((&body["code"], &body["outcome"]), expected);
}

#[tokio::test]
async fn a_trace_context_is_logged_and_handed_back() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let logs = Logs::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(logs.clone())
        .json()
        .finish();
    let router = data(Fake::Ready);
    let ask = async |uri: &str, trace: &str| {
        let request = Request::get(uri).header("traceparent", trace).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        response.headers().get("traceparent").cloned()
    };
    let _guard = tracing::subscriber::set_default(subscriber);
    for uri in ["/v1/kv/a", "/v1/kv/", "/nowhere", "/v1/kv?cursor=x"] {
        assert_eq!(ask(uri, TRACE).await.unwrap(), TRACE, "{uri}");
    }
    assert_eq!(ask("/v1/kv/a", "00-nonsense").await, None);
    let logs = String::from_utf8(logs.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = logs.lines().filter(|line| line.contains("answered")).collect();
    assert_eq!(lines.len(), 5, "{logs}");
    let traced = |line: &&&str| {
        line.contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"")
            && line.contains("\"parent_id\":\"00f067aa0ba902b7\"")
    };
    assert_eq!(lines.iter().filter(traced).count(), 4, "{logs}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Logs(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Logs {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
