//! Compares a directory with what a reader serves: the digest of every file under its relative
//! path. Prints what it compared and how fast; ends with exit code 1 at the first difference.
//!
//! `cargo run --release -p cairn-tests --bin verify -- DIR [URL]`
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command that prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a measurement in real time")]
#![expect(clippy::cast_precision_loss, reason = "rates of small counts")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::stream::{self, StreamExt};
use sha2::{Digest, Sha256};

/// Requests in progress: enough to keep two cores busy.
const CONCURRENCY: usize = 32;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(root) = args.next().map(PathBuf::from) else {
        eprintln!("usage: verify DIR [URL]");
        return ExitCode::from(2);
    };
    let url = args.next().unwrap_or_else(|| "http://127.0.0.1:7002".to_owned());
    let mut files = Vec::new();
    if let Err(error) = walk(&root, &mut files) {
        eprintln!("{}: {error}", root.display());
        return ExitCode::from(2);
    }
    let client = reqwest::Client::new();
    let (client, root, url) = (&client, Arc::new(root), &url);
    let bytes = AtomicU64::new(0);
    let began = std::time::Instant::now();
    let differences: Vec<String> = stream::iter(&files)
        .map(|file| compare(client, url, &root, file, &bytes))
        .buffer_unordered(CONCURRENCY)
        .filter_map(|outcome| async { outcome.err() })
        .collect()
        .await;
    for difference in differences.iter().take(20) {
        eprintln!("{difference}");
    }
    let seconds = began.elapsed().as_secs_f64();
    let count = files.len();
    let megabytes = bytes.load(Ordering::Relaxed) / 1_000_000;
    println!(
        "{count} files, {megabytes} MB in {seconds:.1} s: {:.0} gets/s, {} differ",
        count as f64 / seconds,
        differences.len()
    );
    ExitCode::from(u8::from(!differences.is_empty()))
}

async fn compare(
    client: &reqwest::Client,
    url: &str,
    root: &Path,
    file: &Path,
    bytes: &AtomicU64,
) -> Result<(), String> {
    let name = file.strip_prefix(root).map_err(|error| error.to_string())?;
    let key = URL_SAFE_NO_PAD.encode(name.as_os_str().as_encoded_bytes());
    let failed = |what: String| format!("{}: {what}", name.display());
    let expected = tokio::fs::read(file).await.map_err(|error| failed(error.to_string()))?;
    let reply = client.get(format!("{url}/v1/kv64/{key}")).send().await;
    let reply = reply.map_err(|error| failed(error.to_string()))?;
    let status = reply.status();
    let found = reply.bytes().await.map_err(|error| failed(error.to_string()))?;
    bytes.fetch_add(found.len() as u64, Ordering::Relaxed);
    if !status.is_success() {
        return Err(failed(format!("status {status}")));
    }
    if Sha256::digest(&found) != Sha256::digest(&expected) {
        return Err(failed("the digest differs".to_owned()));
    }
    Ok(())
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
