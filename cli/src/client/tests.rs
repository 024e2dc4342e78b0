//! The client commands against a server of the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{StatusCode as Status, Uri};
use axum::response::{IntoResponse as _, Response as Reply};
use axum::routing::{get, put};
use cairn_common::config::{HttpLimits, Span};
use cairn_common::http::shell::serve;
use futures::StreamExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

/// A server that gives the replies of a script, one a request; its URL, and how many it gave.
async fn server(
    tasks: &mut JoinSet<()>,
    script: fn(usize, Uri) -> Reply,
) -> (Target, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let reply = async move |uri: Uri| script(counter.fetch_add(1, Ordering::Relaxed), uri);
    let routes = Router::new().route("/v1/kv", get(reply.clone())).route("/v1/x", put(reply));
    tasks.spawn(serve(listener, routes, HttpLimits::default(), CancellationToken::new()));
    let retry_for = Span(Duration::from_secs(5));
    (Target { url, token: Some("secret".into()), retry_for }, count)
}

fn refused(status: Status, code: &str) -> Reply {
    let body = format!(r#"{{"code":"{code}","detail":"why","outcome":"not_applied"}}"#);
    (status, [("retry-after", "0")], body).into_response()
}

async fn put_x(target: &Target) -> Outcome {
    let client = Client::new(target, Unanswered::Fails)?;
    client.send(|| client.request(Method::PUT, "/v1/x")).await.map(drop)
}

#[tokio::test]
async fn a_refusal_that_may_pass_is_tried_again() {
    let mut tasks = JoinSet::new();
    let script = |index, _| match index {
        0 => refused(Status::SERVICE_UNAVAILABLE, "overloaded"),
        1 => refused(Status::TOO_MANY_REQUESTS, "rate_limited"),
        _ => Status::NO_CONTENT.into_response(),
    };
    let (target, count) = server(&mut tasks, script).await;
    put_x(&target).await.unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn other_refusals_are_told_at_once() {
    let mut tasks = JoinSet::new();
    let script = |index, _| match index {
        0 => refused(Status::BAD_REQUEST, "invalid_key"),
        1 => refused(Status::INTERNAL_SERVER_ERROR, "corrupt"),
        _ => Status::BAD_GATEWAY.into_response(),
    };
    let (target, _) = server(&mut tasks, script).await;
    for (code, text) in [
        (2, "invalid_key: why (not_applied)"),
        (1, "corrupt: why (not_applied)"),
        (1, "the server answered 502 Bad Gateway"),
    ] {
        let failure = put_x(&target).await.unwrap_err();
        assert_eq!((failure.code, &*failure.text), (code, text));
    }
}

#[tokio::test]
async fn what_ran_out_of_time_is_tried_again_where_twice_is_the_same_as_once() {
    let mut tasks = JoinSet::new();
    let script = |index, _| match index % 4 {
        0 => refused(Status::GATEWAY_TIMEOUT, "timeout"),
        1 => refused(Status::REQUEST_TIMEOUT, "timeout"),
        2 => Status::BAD_GATEWAY.into_response(),
        _ => Status::NO_CONTENT.into_response(),
    };
    let (target, count) = server(&mut tasks, script).await;
    assert_eq!(put_x(&target).await.unwrap_err().text, "timeout: why (not_applied)");
    count.store(0, Ordering::Relaxed);
    let client = Client::new(&target, Unanswered::Retries).unwrap();
    client.send(|| client.request(Method::PUT, "/v1/x")).await.unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn patience_ends() {
    let mut tasks = JoinSet::new();
    let script = |_, _| refused(Status::SERVICE_UNAVAILABLE, "standby");
    let (mut target, count) = server(&mut tasks, script).await;
    target.retry_for = Span(Duration::from_millis(300));
    assert_eq!(put_x(&target).await.unwrap_err().code, 1);
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_broken_stream_goes_on_behind_the_last_key() {
    let mut tasks = JoinSet::new();
    let script = |index, uri: Uri| {
        let query = uri.query().unwrap_or("").to_owned();
        let lines = match index {
            0 => "{\"key\":\"a\",\"value\":\"1\",\"etag\":\"1\"}\n{\"key\":\"b\",\"val",
            // "a", and a zero behind it.
            1 if query.contains("start_b64=YQA") => {
                "{\"key\":\"b\",\"value\":\"2\",\"etag\":\"2\"}\n\
                 {\"end\":true,\"seq\":2,\"cursor\":null}\n"
            }
            _ => "{\"no\":\"such\"}\n",
        };
        // Late enough for the head of the reply and what came first to have left.
        let broken = async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("broken"))
        };
        let first = futures::stream::iter([Ok(lines)]);
        let pieces = first.chain(futures::stream::once(broken).take(usize::from(index == 0)));
        Body::from_stream(pieces).into_response()
    };
    let (target, count) = server(&mut tasks, script).await;
    let mut entries = Vec::new();
    scan::collect(&target, &mut entries).await.unwrap();
    assert_eq!(entries, [("a".to_owned(), "1".to_owned()), ("b".into(), "2".into())]);
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[test]
fn what_is_no_url_is_a_wrong_argument() {
    for url in ["localhost", "file:///x", ""] {
        let retry_for = Span(Duration::ZERO);
        let target = Target { url: url.into(), token: None, retry_for };
        assert_eq!(Client::new(&target, Unanswered::Fails).unwrap_err().code, 2, "{url}");
    }
}
