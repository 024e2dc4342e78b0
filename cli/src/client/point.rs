//! `cairn get`, `put`, `del`: one key.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use cairn_common::http::keys::Key;
use clap::Args;
use reqwest::Method;

use super::save::Replacement;
use super::{Client, Unanswered};
use crate::args::Target;
use crate::failure::{Failure, Outcome};
use crate::output::{readable, stdout};

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    key: OsString,
    /// Write the value to a file, which is replaced once the whole value is there
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    key: OsString,
    /// The value; `-`, or none, reads it from stdin. What looks like a flag is taken for a value
    /// behind `--` alone: `cairn put KEY -- --flag`
    #[arg(allow_hyphen_values = true)]
    value: Option<OsString>,
    /// Read the value from a file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct DelArgs {
    key: OsString,
    #[command(flatten)]
    target: Target,
}

impl PutArgs {
    /// Refuses a value that is more likely a flag mistyped; to be called where no `--` stood before
    /// the value. `-1` and `-----BEGIN CERTIFICATE-----` are values.
    pub(crate) fn refuse_unknown_flag(&self) -> Outcome {
        let value = self.value.as_ref().map(|value| value.to_string_lossy());
        let name = value.as_deref().and_then(|value| value.strip_prefix("--"));
        match name {
            Some(name) if name.starts_with(|first: char| first.is_ascii_lowercase()) => {
                Err(Failure::usage(format!(
                    "unknown flag --{name}; if it is the value, write it behind `--`"
                )))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) async fn get(args: GetArgs) -> Outcome {
    let key = args.key.into_vec();
    let client = Client::new(&args.target, Unanswered::Fails)?;
    let path = Key::to_path(&key);
    let sent = client.send(|| client.request(Method::GET, &path)).await;
    let mut response = sent.map_err(|failure| absent(failure, &key))?;
    // The value is written as it comes: it may be larger than what a terminal's pipe holds.
    let Some(path) = &args.out else {
        let mut out = stdout();
        while let Some(piece) = response.chunk().await? {
            out.write_all(&piece)?;
        }
        return Ok(out.flush()?);
    };
    let wrong = |error| Failure::at(path, error);
    let mut file = Replacement::begin(path).map_err(wrong)?;
    while let Some(piece) = response.chunk().await? {
        file.write_all(&piece).map_err(wrong)?;
    }
    file.finish().map_err(wrong)
}

pub(crate) async fn put(args: PutArgs) -> Outcome {
    let value = match (args.value, &args.file) {
        (_, Some(path)) => tokio::fs::read(path).await.map_err(|error| Failure::at(path, error))?,
        (Some(value), None) if value != "-" => value.into_vec(),
        _ => {
            let mut value = Vec::new();
            std::io::stdin().lock().read_to_end(&mut value)?;
            value
        }
    };
    let value = Bytes::from(value);
    let client = Client::new(&args.target, Unanswered::Fails)?;
    let path = Key::to_path(&args.key.into_vec());
    client.send(|| client.request(Method::PUT, &path).body(value.clone())).await?;
    Ok(())
}

pub(crate) async fn del(args: DelArgs) -> Outcome {
    let client = Client::new(&args.target, Unanswered::Fails)?;
    let path = Key::to_path(&args.key.into_vec());
    client.send(|| client.request(Method::DELETE, &path)).await?;
    Ok(())
}

/// A missing key by its name: its path would say little to a person.
fn absent(failure: Failure, key: &[u8]) -> Failure {
    if failure.text.starts_with("not_found") {
        return Failure::new(format!("no such key: {}", readable(key)));
    }
    failure
}
