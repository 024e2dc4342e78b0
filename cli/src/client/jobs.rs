//! `cairn compact` and `cairn status`: what processes do and say.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde::Deserialize;
use uuid::Uuid;

use super::{Client, Unanswered};
use crate::args::Target;
use crate::failure::{Failure, Outcome};
use crate::output::{human_bytes, note, stdout};

/// Between two looks at a job.
const POLL: Duration = Duration::from_millis(300);

#[derive(Debug, Args)]
pub(crate) struct CompactArgs {
    /// URL of the compactor; `CAIRN_URL`, that of a writer or reader, does not count here
    #[arg(
        long,
        env = "CAIRN_COMPACTOR_URL",
        default_value = "http://127.0.0.1:7003",
        value_name = "URL"
    )]
    url: String,
    /// Sent as `authorization: Bearer ...`, for a proxy before the servers: they ignore it
    #[arg(long, env = "CAIRN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    id: Uuid,
}

#[derive(Debug, Deserialize)]
struct Jobs {
    compactions: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    id: Uuid,
    state: String,
    #[serde(default)]
    bytes_done: u64,
    #[serde(default)]
    bytes_to_do: u64,
    #[serde(default)]
    bytes_written: u64,
    error: Option<String>,
}

pub(crate) async fn compact(args: CompactArgs) -> Outcome {
    let retry_for = cairn_common::config::Span(Duration::from_secs(30));
    let target = Target { url: args.url, token: args.token, retry_for };
    let client = Client::new(&target, Unanswered::Fails)?;
    let body = serde_json::json!({"kind": "full"});
    let make = || client.request(Method::POST, "/v1/compactions").json(&body);
    let asked: Asked = client.send(make).await?.json().await?;
    let bar = ProgressBar::new(0);
    let template = "{bar:32} {binary_bytes} of {binary_total_bytes} at {binary_bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    loop {
        let response = client.send(|| client.request(Method::GET, "/v1/compactions")).await?;
        let jobs: Jobs = response.json().await?;
        let Some(job) = jobs.compactions.into_iter().find(|job| job.id == asked.id) else {
            return Err(Failure::new("the compactor no longer knows the job: did it restart?"));
        };
        bar.set_length(job.bytes_to_do);
        bar.set_position(job.bytes_done);
        match (job.state.as_str(), job.error) {
            (_, Some(error)) => {
                return Err(Failure::new(format!("the compaction failed: {error}")));
            }
            ("done", None) => {
                bar.finish_and_clear();
                let (read, written) = (human_bytes(job.bytes_done), human_bytes(job.bytes_written));
                note(&format!("compacted: {read} merged, {written} written"));
                return Ok(());
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

pub(crate) async fn status(target: &Target) -> Outcome {
    let client = Client::new(target, Unanswered::Fails)?;
    let response = client.send(|| client.request(Method::GET, "/v1/status")).await?;
    let status: serde_json::Value = response.json().await?;
    let mut out = stdout();
    writeln!(out, "{status:#}")?;
    Ok(out.flush()?)
}
