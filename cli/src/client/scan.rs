//! `cairn scan` and `cairn dump`: many entries, as a stream that survives a break.
//!
//! A stream that breaks off (a restart, a lost object) is taken up again behind the last key that
//! came, on a new view. One that ends is known by its end line.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cairn_common::http::api::NDJSON;
use cairn_common::types::{Direction, KeyRange};
use clap::Args;
use reqwest::{Method, header};
use serde::Deserialize;

use super::line::{Bytes64, LINE_BYTES_MAX, write_put};
use super::{Client, Unanswered};
use crate::args::Target;
use crate::failure::{Failure, Outcome};
use crate::output::stdout;

/// Tries to take up a stream again without an entry in between.
const BREAKS_MAX: u32 = 5;

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a command line")]
pub(crate) struct ScanArgs {
    /// Only keys that begin so
    #[arg(long, default_value = "")]
    prefix: String,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object a line, exact for all bytes; otherwise key, tab, value
    #[arg(long)]
    json: bool,
    /// Keys alone
    #[arg(long)]
    keys_only: bool,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// Only keys that begin so
    #[arg(long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    target: Target,
}

/// One line of a stream: an entry or the end.
#[derive(Debug, Deserialize)]
struct Line {
    key: Option<String>,
    key_b64: Option<Bytes64>,
    value: Option<String>,
    value_b64: Option<Bytes64>,
    #[serde(default)]
    end: bool,
}

/// An entry as it came.
#[derive(Debug)]
struct Entry {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// What is asked of a scan.
#[derive(Clone, Debug)]
struct Asked {
    prefix: Vec<u8>,
    limit: Option<u64>,
    shows: Shows,
    direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    KeysAndValues,
    Keys,
}

pub(crate) async fn scan(args: ScanArgs) -> Outcome {
    let asked = Asked {
        prefix: args.prefix.into_bytes(),
        limit: args.limit,
        shows: if args.keys_only { Shows::Keys } else { Shows::KeysAndValues },
        direction: if args.reverse { Direction::Reverse } else { Direction::Forward },
    };
    let mut out = stdout();
    let write = |raw: &[u8], entry: &Entry| {
        if args.json {
            out.write_all(raw)?;
        } else {
            out.write_all(&entry.key)?;
            if let Some(value) = &entry.value {
                out.write_all(b"\t")?;
                out.write_all(value)?;
            }
        }
        out.write_all(b"\n")
    };
    Stream::new(&args.target, asked)?.run(write).await?;
    Ok(out.flush()?)
}

pub(crate) async fn dump(args: DumpArgs) -> Outcome {
    let prefix = args.prefix.into_bytes();
    let (shows, direction) = (Shows::KeysAndValues, Direction::Forward);
    let asked = Asked { prefix, limit: None, shows, direction };
    let mut out = stdout();
    let mut line = Vec::new();
    let write = |_: &[u8], entry: &Entry| {
        line.clear();
        write_put(&mut line, &entry.key, entry.value.as_deref().unwrap_or_default());
        line.push(b'\n');
        out.write_all(&line)
    };
    Stream::new(&args.target, asked)?.run(write).await?;
    Ok(out.flush()?)
}

/// A scan under way.
struct Stream {
    client: Client,
    asked: Asked,
    last: Option<Vec<u8>>,
    count: u64,
}

impl Stream {
    fn new(target: &Target, asked: Asked) -> Outcome<Self> {
        let client = Client::new(target, Unanswered::Fails)?;
        Ok(Self { client, asked, last: None, count: 0 })
    }

    /// Hands on every entry, with its line as it came.
    async fn run(mut self, mut write: impl FnMut(&[u8], &Entry) -> std::io::Result<()>) -> Outcome {
        let mut breaks = 0;
        loop {
            let before = self.count;
            match self.attempt(&mut write).await {
                Ok(End::Whole) => return Ok(()),
                Ok(End::BrokenOff) if self.is_done() => return Ok(()),
                Ok(End::BrokenOff) => {
                    breaks = if self.count > before { 0 } else { breaks + 1 };
                    if breaks > BREAKS_MAX {
                        return Err(Failure::new("the stream breaks off again and again"));
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    fn is_done(&self) -> bool {
        self.asked.limit.is_some_and(|limit| self.count >= limit)
    }

    async fn attempt(
        &mut self,
        write: &mut impl FnMut(&[u8], &Entry) -> std::io::Result<()>,
    ) -> Outcome<End> {
        let query = self.asked.query(self.last.as_deref(), self.count);
        // A server that was there will be there again.
        let client = match self.last {
            Some(_) => self.client.patient(),
            None => self.client.clone(),
        };
        let make = || {
            let request = client.request(Method::GET, "/v1/kv").query(&query);
            request.header(header::ACCEPT, NDJSON)
        };
        let mut response = client.send(make).await?;
        let mut rest = Vec::new();
        while let Ok(Some(piece)) = response.chunk().await {
            let mut seen = rest.len();
            rest.extend_from_slice(&piece);
            let mut start = 0;
            while let Some(end) = rest.iter().skip(seen).position(|byte| *byte == b'\n') {
                let line = rest.get(start..seen + end).unwrap_or_default();
                if let End::Whole = self.take(line, write)? {
                    return Ok(End::Whole);
                }
                seen += end + 1;
                start = seen;
            }
            rest.drain(..start);
            if rest.len() > LINE_BYTES_MAX {
                return Err(Failure::new("the server sent a line without end"));
            }
        }
        Ok(End::BrokenOff)
    }

    fn take(
        &mut self,
        raw: &[u8],
        write: &mut impl FnMut(&[u8], &Entry) -> std::io::Result<()>,
    ) -> Outcome<End> {
        let wrong =
            |error| Failure::new(format!("the server sent a line that is no JSON: {error}"));
        let line: Line = serde_json::from_slice(raw).map_err(wrong)?;
        if line.end {
            return Ok(End::Whole);
        }
        let key = line.key.map(String::into_bytes).or(line.key_b64.map(|key| key.0));
        let value = line.value.map(String::into_bytes).or(line.value_b64.map(|value| value.0));
        let key = key.ok_or_else(|| Failure::new("the server sent an entry without a key"))?;
        let entry = Entry { key, value };
        write(raw, &entry)?;
        self.last = Some(entry.key);
        self.count += 1;
        Ok(End::BrokenOff)
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    BrokenOff,
}

impl Asked {
    /// The query for what is left behind the last key.
    fn query(&self, last: Option<&[u8]>, count: u64) -> Vec<(&'static str, String)> {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let range = KeyRange::prefix(&self.prefix);
        let (mut start, mut end) = (range.start.to_vec(), range.end.map(|end| end.to_vec()));
        match (last, self.direction) {
            (Some(last), Direction::Forward) => start = [last, &[0]].concat(),
            (Some(last), Direction::Reverse) => end = Some(last.to_vec()),
            (None, _) => {}
        }
        let mut query = vec![("start_b64", encode(&start))];
        query.extend(end.map(|end| ("end_b64", encode(&end))));
        query.extend(self.limit.map(|limit| ("limit", limit.saturating_sub(count).to_string())));
        if self.shows == Shows::Keys {
            query.push(("keys_only", "true".into()));
        }
        if self.direction == Direction::Reverse {
            query.push(("reverse", "true".into()));
        }
        query
    }
}

/// Every entry as text.
#[cfg(test)]
pub(super) async fn collect(target: &Target, entries: &mut Vec<(String, String)>) -> Outcome {
    let (shows, direction) = (Shows::KeysAndValues, Direction::Forward);
    let asked = Asked { prefix: Vec::new(), limit: None, shows, direction };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let write = |_: &[u8], entry: &Entry| {
        entries.push((text(&entry.key), text(entry.value.as_deref().unwrap_or_default())));
        Ok(())
    };
    Stream::new(target, asked)?.run(write).await
}
