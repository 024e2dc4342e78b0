//! The command line of `cairn`.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use cairn_common::config::{LogFormat, Span};
use clap::{Args, Parser, Subcommand};

use crate::client::{self, load, point, scan};
use crate::failure::{Failure, Outcome, Reaction};
use crate::inspect;
use crate::up;

/// A durable key-value service on an object-store bucket.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, max_term_width = 100)]
struct Cairn {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, on a local directory
    ///
    /// Settings of the writer, the readers and the compactor are taken from their variables, such
    /// as `CAIRN_WAL_INTERVAL` (`cairn-writer --help` has them all); each role gets those that it
    /// knows. A file of settings is for one role: `CAIRN_CONFIG` is refused here. Ctrl-C stops the
    /// cluster cleanly, a second one kills it.
    Up(up::UpArgs),
    /// Print the value of a key
    Get(point::GetArgs),
    /// Set a key
    Put(point::PutArgs),
    /// Delete a key
    Del(point::DelArgs),
    /// List entries in the order of keys
    Scan(scan::ScanArgs),
    /// Write many entries: operations (NDJSON), keys and values (TSV), or the files of a directory
    Load(load::LoadArgs),
    /// Print every entry as NDJSON that `cairn load` reads
    Dump(scan::DumpArgs),
    /// What a process says of itself, or what the bucket holds
    Status(StatusArgs),
    /// Merge everything into one sorted run, and wait for it
    Compact(client::jobs::CompactArgs),
    /// List what the collector may delete now
    Gc(inspect::GcArgs),
    /// Show CURRENT and its manifest, or another manifest
    Manifest(inspect::ManifestArgs),
    /// Show a sorted run
    Run(inspect::RunArgs),
    /// Show an SST: its filter, its blocks, its entries
    Sst(inspect::SstArgs),
    /// Show the log: its objects, or one of them
    Wal(inspect::WalArgs),
    #[command(name = up::ROLE_COMMAND, hide = true)]
    Role(up::RoleArgs),
}

/// Which process a client talks to.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// URL of a writer or a reader
    #[arg(long, env = "CAIRN_URL", default_value = "http://127.0.0.1:7001", value_name = "URL")]
    pub(crate) url: String,
    /// Sent as `authorization: Bearer ...`, for a proxy before the servers: they ignore it
    #[arg(long, env = "CAIRN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// How long a request that is refused with 429 or 503 is tried again; by `load`, also one that
    /// was answered with 408, 502, 504 or not at all, for a minute at least
    #[arg(long, default_value = "10s", value_name = "DUR", value_parser = up_to(RETRY_FOR_MAX))]
    pub(crate) retry_for: Span,
}

/// Nobody waits for a request for longer.
const RETRY_FOR_MAX: Duration = Duration::from_hours(24);

/// A duration of at most so much: a longer one is a slip.
pub(crate) fn up_to(most: Duration) -> impl Fn(&str) -> Result<Span, String> + Clone + Send + Sync {
    move |text| match text.parse::<Span>()? {
        span if span.0 > most => Err(format!("{text} is above the most, {}", Span(most))),
        span => Ok(span),
    }
}

/// Which bucket is looked into.
#[derive(Clone, Debug, Args)]
pub(crate) struct Place {
    /// Where the database is, such as `file:///path` or `s3://bucket/prefix`
    #[arg(long, env = "CAIRN_STORE", value_name = "URL")]
    pub(crate) store: String,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// Look into this bucket instead of asking a process
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let is_explicit = args.iter().any(|arg| arg == "--");
    let cairn = match Cairn::try_parse_from(args) {
        Ok(cairn) => cairn,
        Err(error) => {
            // Help and version go to stdout with 0, everything else to stderr with 2.
            let printed = error.print();
            return match (printed, error.exit_code()) {
                (Ok(()), 0) => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    // The role sets up its own logs, its runtime and its exit code.
    if let Command::Role(role) = cairn.command {
        return up::run_role(role);
    }
    let checked = match &cairn.command {
        Command::Put(put) if !is_explicit => put.refuse_unknown_flag(),
        _ => Ok(()),
    };
    match checked.and_then(|()| start(cairn.command)) {
        Ok(()) | Err(Failure { reaction: Reaction::Hush, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            let written = writeln!(std::io::stderr(), "cairn: {failure}");
            drop(written);
            ExitCode::from(failure.code)
        }
    }
}

fn start(command: Command) -> Outcome {
    let filter = std::env::var("CAIRN_LOG").unwrap_or_else(|_| "warn".into());
    cairn_common::process::telemetry(&filter, LogFormat::Text)?;
    // One thread: the signal that ends a child follows the thread that started it, and nothing
    // here needs two.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(dispatch(command));
    // Reading stdin blocks a thread that nobody can wake.
    runtime.shutdown_background();
    ended
}

async fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Get(args) => point::get(args).await,
        Command::Put(args) => point::put(args).await,
        Command::Del(args) => point::del(args).await,
        Command::Scan(args) => scan::scan(args).await,
        Command::Dump(args) => scan::dump(args).await,
        Command::Load(args) => load::load(args).await,
        Command::Compact(args) => client::jobs::compact(args).await,
        Command::Status(StatusArgs { store: Some(store), .. }) => {
            inspect::status(&Place { store }).await
        }
        Command::Status(StatusArgs { target, .. }) => client::jobs::status(&target).await,
        Command::Gc(args) => inspect::gc(args).await,
        Command::Manifest(args) => inspect::manifest(args).await,
        Command::Run(args) => inspect::run(args).await,
        Command::Sst(args) => inspect::sst(args).await,
        Command::Wal(args) => inspect::wal(args).await,
        Command::Role(_) => Err(Failure::new("roles run on their own")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cairn::command().debug_assert();
    }
}
