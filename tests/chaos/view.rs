//! What a process shows over HTTP.

use std::time::Duration;

use harness::ledger::Shown;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;

/// Longer than any deadline of a server.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(70);
/// Retries of a read-back while a process starts or catches up.
const ATTEMPTS: usize = 100;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(100);

/// A line of a streamed scan.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Entry { key: String, value: String, etag: String },
    End { end: bool, seq: u64 },
}

/// A client with limits far above those of a server.
pub(crate) fn client() -> Client {
    Client::builder().timeout(CLIENT_TIMEOUT).build().expect("a client")
}

/// A header that is a number.
pub(crate) fn number(response: &Response, header: &str) -> Option<u64> {
    response.headers().get(header)?.to_str().ok()?.trim_matches('"').parse().ok()
}

/// Everything under a prefix, and the seq of the view, from one answer at or above `min_seq`;
/// `None` if it is refused or breaks off.
pub(crate) async fn scan(
    client: &Client,
    url: &str,
    prefix: &str,
    min_seq: u64,
) -> Option<(u64, Shown)> {
    let request = client
        .get(format!("{url}/v1/kv"))
        .query(&[("prefix", prefix)])
        .header("accept", "application/x-ndjson")
        .header("cairn-min-seq", min_seq)
        .header("cairn-timeout", "5s");
    let response = request.send().await.ok()?;
    if response.status() != StatusCode::OK {
        return None;
    }
    let text = response.text().await.ok()?;
    let mut shown = Shown::new();
    for line in text.lines() {
        match serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) {
            Line::Entry { key, value, etag } => {
                let etag = etag.parse().expect("an etag is a number");
                let before = shown.insert(key, (etag, value));
                assert!(before.is_none(), "a key is shown twice: {line}");
            }
            Line::End { end, seq } => {
                assert!(end && seq >= min_seq, "below {min_seq}: {line}");
                return Some((seq, shown));
            }
        }
    }
    None
}

/// Everything that a process shows at or above `min_seq`, however long it takes to get there.
pub(crate) async fn everything(client: &Client, url: &str, min_seq: u64) -> (u64, Shown) {
    for _ in 0..ATTEMPTS {
        if let Some(found) = scan(client, url, "", min_seq).await {
            return found;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("{url} never shows seq {min_seq}");
}
