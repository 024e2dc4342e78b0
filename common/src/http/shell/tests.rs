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
