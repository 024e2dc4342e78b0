//! The server over real connections: limits, deadlines, shutdown.

use axum::extract::Request as AxumRequest;
use axum::routing::{get, put};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::*;
use crate::config::Span;

/// A server and the means to stop it.
struct Running {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

async fn start(router: Router, limits: HttpLimits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, router, limits, shutdown.clone()));
    Running { address, shutdown, tasks }
}

impl Running {
    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

/// Everything up to the end of the stream.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hello() -> Router {
    Router::new().route("/", get("hello"))
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const GET_CLOSE: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn requests_are_answered_on_a_kept_connection() {
    let running = start(hello(), HttpLimits::default()).await;
    let mut stream = running.send(&[GET, GET_CLOSE].concat()).await;
    let text = rest(&mut stream).await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert_eq!(text.matches("hello").count(), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_slow_head_ends_the_connection_and_idleness_does_not() {
    let limits =
        HttpLimits { header_timeout: Span(Duration::from_millis(50)), ..HttpLimits::default() };
    let running = start(hello(), limits).await;
    let mut idle = running.send(b"").await;
    let mut served = running.send(GET).await;
    let mut slow = running.send(b"GET / HTTP/1.1\r\nho").await;
    assert_eq!(rest(&mut slow).await, "");
    // Both outlived the slow one's limit, counted from before its first byte.
    for stream in [&mut idle, &mut served] {
        stream.write_all(GET_CLOSE).await.unwrap();
        assert!(rest(stream).await.contains("hello"));
    }
    running.stop().await;
}

#[tokio::test]
async fn idleness_has_its_own_limit() {
    let limits =
        HttpLimits { idle_timeout: Span(Duration::from_millis(50)), ..HttpLimits::default() };
    let running = start(hello(), limits).await;
    let mut stream = running.send(GET).await;
    assert!(rest(&mut stream).await.contains("hello"));
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let limits =
        HttpLimits { stall_timeout: Span(Duration::from_millis(50)), ..HttpLimits::default() };
    let begun = Arc::new(Notify::new());
    let notify = Arc::clone(&begun);
    let endless = async move || {
        notify.notify_one();
        let piece = bytes::Bytes::from(vec![0; 1 << 16]);
        let pieces = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
        Body::from_stream(pieces)
    };
    let running = start(Router::new().route("/", get(endless)), limits).await;
    let stream = running.send(GET).await;
    begun.notified().await;
    // The shutdown waits for the reply, but not for its whole grace.
    timeout(Duration::from_secs(5), running.stop()).await.unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_reply_reaches_a_client_that_is_still_sending() {
    let refuse = async |_: AxumRequest| http::StatusCode::PAYLOAD_TOO_LARGE;
    let running = start(Router::new().route("/", put(refuse)), HttpLimits::default()).await;
    let bytes = 8 << 20;
    let head = format!("PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
    let mut stream = running.send(head.as_bytes()).await;
    stream.write_all(&vec![0; bytes]).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 413"));
    drop(stream);
    running.stop().await;
}

#[tokio::test]
async fn a_shutdown_waits_for_requests_and_for_nothing_else() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
        async move || {
            begun.notify_one();
            go.notified().await;
            "done"
        }
    };
    let running = start(hello().route("/slow", get(slow)), HttpLimits::default()).await;
    let fresh = running.send(b"").await;
    let idle = running.send(GET).await;
    let mut busy = running.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    begun.notified().await;
    let address = running.address;
    let mut stopping = Box::pin(running.stop());
    assert!(timeout(Duration::from_millis(100), &mut stopping).await.is_err());
    assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
    go.notify_one();
    timeout(Duration::from_secs(5), stopping).await.unwrap();
    let text = rest(&mut busy).await;
    assert!(text.contains("connection: close") && text.ends_with("done"), "{text}");
    drop((fresh, idle));
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut() {
    let limits =
        HttpLimits { shutdown_grace: Span(Duration::from_millis(50)), ..HttpLimits::default() };
    let begun = Arc::new(Notify::new());
    let never = {
        let begun = Arc::clone(&begun);
        async move || {
            begun.notify_one();
            std::future::pending::<&'static str>().await
        }
    };
    let running = start(Router::new().route("/", get(never)), limits).await;
    let mut busy = running.send(GET).await;
    begun.notified().await;
    timeout(Duration::from_secs(5), running.stop()).await.unwrap();
    assert_eq!(rest(&mut busy).await, "");
}

#[tokio::test]
async fn a_connection_waits_for_a_slot() {
    let limits = HttpLimits { connections_max: 1, ..HttpLimits::default() };
    let running = start(hello(), limits).await;
    let first = running.send(GET).await;
    let mut second = running.send(GET_CLOSE).await;
    assert!(timeout(Duration::from_millis(100), second.readable()).await.is_err());
    drop(first);
    assert!(rest(&mut second).await.contains("hello"));
    running.stop().await;
}

#[tokio::test]
async fn a_panic_of_a_request_ends_the_server() {
    async fn broken() -> &'static str {
        panic!("as a handler with a defect does")
    }
    let mut running = start(hello().route("/x", get(broken)), HttpLimits::default()).await;
    let mut other = running.send(GET).await;
    let mut breaking = running.send(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let error = ended(&mut running.tasks).await.unwrap_err();
    assert!(error.to_string().starts_with("a server"), "{error}");
    assert_eq!(rest(&mut breaking).await, "");
    drop(rest(&mut other).await);
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn more_connections_than_can_be_counted_are_allowed() {
    let limits = HttpLimits { connections_max: usize::MAX, ..HttpLimits::default() };
    let running = start(hello(), limits).await;
    assert!(rest(&mut running.send(GET_CLOSE).await).await.contains("hello"));
    running.stop().await;
}

#[tokio::test]
async fn a_chunked_body_that_was_read_leaves_nothing_to_linger_for() {
    let take = async |body: bytes::Bytes| format!("{} bytes", body.len());
    let running = start(Router::new().route("/", put(take)), HttpLimits::default()).await;
    let chunked = b"PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut stream = running.send(chunked).await;
    assert!(rest(&mut stream).await.ends_with("3 bytes"));
    // Its client keeps the connection; a lingering close would wait for 5 s.
    timeout(Duration::from_secs(2), running.stop()).await.unwrap();
    drop(stream);
}

#[tokio::test]
async fn what_hyper_refuses_is_a_problem_as_well() {
    let limits = HttpLimits::default();
    let running = start(hello(), limits).await;
    let fields = "x: y\r\n".repeat(101);
    let target = |bytes| "a".repeat(bytes);
    for (head, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "invalid_argument"),
        ("GET / HTTP/1.1\r\nhost : x\r\n\r\n".to_owned(), 400, "invalid_argument"),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", target(65_534)), 414, "uri_too_long"),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", target(1 << 20)), 414, "uri_too_long"),
        (format!("GET / HTTP/1.1\r\n{fields}\r\n"), 431, "too_large"),
    ] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let mut answer = [0; 1024];
        assert!(stream.read(&mut answer).await.unwrap() > 0, "a reply before it is as ever");
        stream.write_all(head.as_bytes()).await.unwrap();
        let text = rest(&mut stream).await;
        let (answer, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains("date: "), "{answer}");
        assert!(answer.contains(&format!("content-length: {}", body.len())), "{answer}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["code"], &body["status"]), (&code.into(), &status.into()));
    }
    running.stop().await;
}

#[tokio::test]
async fn a_target_that_was_cut_is_marked() {
    let say = async |request: AxumRequest| {
        let is_cut = request.extensions().get::<CutTarget>().is_some();
        format!("{} {is_cut}", request.uri())
    };
    let running = start(Router::new().fallback(say), HttpLimits::default()).await;
    let mut stream = running.send(b"").await;
    for (target, field, seen) in [
        ("/v1/kv/a#b", "", "/v1/kv/a true"),
        ("/v1/kv?prefix=a#", "", "/v1/kv?prefix=a true"),
        ("/v1/kv/a", "x: GET /v1/kv/a#", "/v1/kv/a false"),
        ("/v1/kv/a%23b", "", "/v1/kv/a%23b false"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\n{field}\r\n\r\n");
        let head = head.replace("\r\n\r\n\r\n", "\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let bytes = stream.read(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer[..bytes]).into_owned();
        assert!(text.ends_with(seen), "{target}: {text}");
    }
    drop(stream);
    running.stop().await;
}
