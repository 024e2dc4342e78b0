//! `cairn load`: many entries, in batches, several at a time, in bounded memory.
//!
//! **Invariants**
//! - What the source says of one key is written in the order of the source: keys are dealt to
//!   lanes by hash, and a lane sends one batch after the other.
//! - A batch that is refused, late or unanswered is sent again: its operations are puts and
//!   deletes, and nothing else of its lane was sent in between, so twice is the same as once.
//! - Memory: three batches a lane (one being filled, one waiting, one on its way). A large value
//!   goes on its own, as raw bytes: in a batch it would come near the largest body.
//! - What cannot be loaded of a directory is found before anything is sent.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_common::clock::{Clock as _, SystemClock};
use cairn_common::config::Span;
use cairn_common::format::filter::KeyHash;
use cairn_common::http::api::NDJSON;
use cairn_common::http::keys::Key;
use cairn_common::http::request::CAIRN_TIMEOUT;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, header};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::source::{Content, Item, Source};
use super::{Client, Unanswered};
use crate::args::Target;
use crate::failure::{Failure, Outcome, Reaction};
use crate::output::{human_bytes, note};

/// A batch is sent at so many operations: a tenth of what the server takes.
const BATCH_OPS: usize = 1_000;
/// Or at so many bytes; one operation may be larger.
const BATCH_BYTES: usize = 2 << 20;
/// What a request asks for as its deadline: a large value on a thin line takes longer than the
/// default, and there is time for another try.
const REQUEST_TIMEOUT: &str = "25s";
/// Between two lines of progress where stderr is no terminal.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// FILE.ndjson, FILE.tsv, a directory, or `-` for NDJSON from stdin
    ///
    /// NDJSON: one operation a line, as in a batch; `cairn dump` writes it.
    ///
    /// TSV: key, tab, value, taken byte by byte, without quotes or escapes. Where the first line
    /// ends in CR LF, lines end in CR LF; otherwise they end in LF, and a CR before it is of the
    /// value.
    ///
    /// Directory: each file's path in it is a key, its content the value. Links to files are
    /// followed; links to directories, FIFOs, sockets and devices are skipped. Nothing is loaded if
    /// a file cannot be read or is larger than a value may be.
    source: PathBuf,
    /// Batches on their way at one time
    #[arg(long, default_value = "16", value_parser = clap::value_parser!(u8).range(1..=64))]
    concurrency: u8,
    #[command(flatten)]
    target: Target,
}

/// What a lane sends next.
#[derive(Debug)]
enum Parcel {
    Batch(Batch),
    Single(Single),
}

/// A value that goes on its own.
#[derive(Debug)]
struct Single {
    key: Vec<u8>,
    value: Value,
    source_bytes: u64,
}

#[derive(Debug)]
enum Value {
    /// Of this line of the source.
    Bytes(u64, Bytes),
    File(PathBuf),
}

#[derive(Debug, Default)]
struct Batch {
    body: Vec<u8>,
    /// The line in the source of each operation.
    lines: Vec<u64>,
    source_bytes: u64,
}

pub(crate) async fn load(args: LoadArgs) -> Outcome {
    let source = Source::of(args.source)?;
    let (bytes, skipped) = source.survey()?;
    let mut target = args.target;
    // Long enough for a writer to be replaced while a large load runs.
    target.retry_for = target.retry_for.max(Span(Duration::from_mins(1)));
    let client = Client::new(&target, Unanswered::Retries)?;
    let clock = SystemClock::default();
    let began = clock.boot();
    let progress = Arc::new(Progress::new(bytes));
    let mut tasks = JoinSet::new();
    let mut lanes = Vec::new();
    for _ in 0..args.concurrency {
        let (sender, receiver) = mpsc::channel(1);
        lanes.push(Lane { batch: Batch::default(), sender });
        tasks.spawn(run_lane(client.clone(), receiver, Arc::clone(&progress)));
    }
    tasks.spawn_blocking(move || deal(&source, lanes));
    watch(tasks, &progress).await.map_err(|failure| progress.broken_off(&failure))?;
    progress.finish(clock.boot().saturating_sub(began));
    if skipped > 0 {
        note(&format!("skipped {skipped} that are neither files nor directories"));
    }
    Ok(())
}

/// Waits for the tasks and reports; the first failure of substance ends it.
async fn watch(mut tasks: JoinSet<Outcome>, progress: &Progress) -> Outcome {
    let mut reports = tokio::time::interval(REPORT_INTERVAL);
    reports.tick().await;
    let mut stopped = Ok(());
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(Ok(Ok(()))) => {}
                // Its lane has failed or will in a moment, and knows why.
                Some(Ok(Err(failure))) if failure.reaction == Reaction::Hush => {
                    stopped = Err(failure);
                }
                Some(Ok(Err(failure))) => return Err(failure),
                Some(Err(error)) => return Err(Failure::new(error.to_string())),
                None => return stopped,
            },
            _ = reports.tick() => progress.report(),
        }
    }
}

struct Lane {
    batch: Batch,
    sender: mpsc::Sender<Parcel>,
}

impl Lane {
    /// Waits while the lane is busy. When the lane has failed its own failure is told, not this.
    fn send(&mut self, parcel: Parcel) -> Outcome {
        let gone = |_| Failure { reaction: Reaction::Hush, ..Failure::new("a lane has failed") };
        self.sender.blocking_send(parcel).map_err(gone)
    }

    fn flush(&mut self) -> Outcome {
        if self.batch.lines.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.send(Parcel::Batch(batch))
    }

    fn take(&mut self, item: Item) -> Outcome {
        match item.content {
            Content::Operation(line) => {
                if self.batch.body.len() + line.len() > BATCH_BYTES {
                    self.flush()?;
                }
                self.batch.body.extend_from_slice(&line);
                self.batch.body.push(b'\n');
                self.batch.lines.push(item.line);
                self.batch.source_bytes += item.source_bytes;
                if self.batch.lines.len() >= BATCH_OPS { self.flush() } else { Ok(()) }
            }
            Content::Value(bytes) => {
                self.send_alone(item.key, Value::Bytes(item.line, bytes), item.source_bytes)
            }
            Content::File(path) => self.send_alone(item.key, Value::File(path), item.source_bytes),
        }
    }

    fn send_alone(&mut self, key: Vec<u8>, value: Value, source_bytes: u64) -> Outcome {
        self.flush()?;
        self.send(Parcel::Single(Single { key, value, source_bytes }))
    }
}

/// Reads the source to its end and deals it to the lanes. Blocks.
fn deal(source: &Source, mut lanes: Vec<Lane>) -> Outcome {
    let count = lanes.len() as u64;
    source.read(&mut |item| {
        let lane = usize::try_from(KeyHash::of(&item.key).0 % count).unwrap_or(0);
        lanes.get_mut(lane).map_or(Ok(()), |lane| lane.take(item))
    })?;
    lanes.iter_mut().try_for_each(Lane::flush)
}

async fn run_lane(
    client: Client,
    mut parcels: mpsc::Receiver<Parcel>,
    progress: Arc<Progress>,
) -> Outcome {
    while let Some(parcel) = parcels.recv().await {
        let (operations, source_bytes) = match parcel {
            Parcel::Batch(batch) => (batch.lines.len() as u64, send_batch(&client, batch).await?),
            Parcel::Single(single) => (1, send_single(&client, single).await?),
        };
        progress.add(operations, source_bytes);
    }
    Ok(())
}

/// Returns the bytes of the source that are done with.
async fn send_batch(client: &Client, batch: Batch) -> Outcome<u64> {
    let body = Bytes::from(batch.body);
    let make = || {
        let request =
            client.request(Method::POST, "/v1/batch").header(CAIRN_TIMEOUT, REQUEST_TIMEOUT);
        request.header(header::CONTENT_TYPE, NDJSON).body(body.clone())
    };
    client.send(make).await.map_err(|failure| name_line(failure, &batch.lines))?;
    Ok(batch.source_bytes)
}

/// The same for one value.
async fn send_single(client: &Client, single: Single) -> Outcome<u64> {
    let (value, origin) = match single.value {
        Value::Bytes(line, bytes) => (bytes, format!("line {line}")),
        Value::File(path) => {
            let value = tokio::fs::read(&path).await.map_err(|error| Failure::at(&path, error))?;
            (value.into(), path.display().to_string())
        }
    };
    let name = Key::to_path(&single.key);
    let make = || {
        let request = client.request(Method::PUT, &name).header(CAIRN_TIMEOUT, REQUEST_TIMEOUT);
        request.body(value.clone())
    };
    let named = |failure: Failure| Failure { text: format!("{origin}: {failure}"), ..failure };
    client.send(make).await.map_err(named)?;
    Ok(single.source_bytes)
}

/// The server counts lines of the batch, people those of the source.
fn name_line(failure: Failure, lines: &[u64]) -> Failure {
    let Some((before, after)) = failure.text.split_once("line ") else { return failure };
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let (number, after) = after.split_at_checked(digits).unwrap_or((after, ""));
    let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let line = index.and_then(|index| lines.get(index)).filter(|line| **line > 0);
    match line {
        Some(line) => Failure { text: format!("{before}line {line}{after}"), ..failure },
        None => failure,
    }
}

/// How far the load is: a bar on a terminal, a line now and then otherwise.
struct Progress {
    bar: ProgressBar,
    operations: AtomicU64,
}

impl Progress {
    fn new(bytes: Option<u64>) -> Self {
        // indicatif draws to stderr, and draws nothing where that is no terminal.
        let (bar, template) = match bytes {
            Some(bytes) => (
                ProgressBar::new(bytes),
                "{bar:32} {binary_bytes} of {binary_total_bytes} at {binary_bytes_per_sec}, \
                 {eta} left",
            ),
            None => {
                (ProgressBar::new_spinner(), "{spinner} {binary_bytes} at {binary_bytes_per_sec}")
            }
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, operations: AtomicU64::new(0) }
    }

    fn add(&self, operations: u64, bytes: u64) {
        self.operations.fetch_add(operations, Ordering::Relaxed);
        self.bar.inc(bytes);
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    fn report(&self) {
        if self.bar.is_hidden() {
            let (operations, bytes) = (self.operations(), human_bytes(self.bar.position()));
            note(&format!("{operations} operations, {bytes} so far"));
        }
    }

    /// The failure, and what it leaves behind.
    fn broken_off(&self, failure: &Failure) -> Failure {
        self.bar.finish_and_clear();
        let operations = self.operations();
        let text = format!(
            "{failure}; {operations} operations were loaded before, and to load all again does no \
             harm"
        );
        Failure { code: failure.code, text, reaction: failure.reaction }
    }

    fn finish(&self, took: Duration) {
        self.bar.finish_and_clear();
        let (operations, bytes) = (self.operations(), self.bar.position());
        let rate = |count: u64| {
            let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
            count.saturating_mul(1_000) / millis
        };
        note(&format!(
            "loaded {operations} operations, {} in {:.1} s ({} operations/s, {}/s)",
            human_bytes(bytes),
            took.as_secs_f64(),
            rate(operations),
            human_bytes(rate(bytes)),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_batch_become_lines_of_the_source() {
        let failure = || Failure::usage("invalid_body: line 2: no key");
        assert_eq!(name_line(failure(), &[10, 70]).text, "invalid_body: line 70: no key");
        assert_eq!(name_line(failure(), &[10]).text, "invalid_body: line 2: no key");
        assert_eq!(name_line(Failure::new("else"), &[1]).text, "else");
    }
}
