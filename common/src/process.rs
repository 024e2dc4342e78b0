//! The frame of a process: settings, logs, signals, listeners, the line on stdout, the exit code.
//!
//! **Exit codes**: 0 clean, 1 unexpected, 2 usage or settings, 3 fenced, 4 the store does not
//! honour conditional writes, 5 corruption or a damaged root. Each but 0 comes with one line on
//! stderr that begins with the name of the program.
//!
//! **Signals**: the first SIGTERM or SIGINT asks for a clean stop; a second one ends the process at
//! once, with 1.

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, IsTerminal, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Loaded, LogFormat, Program, Settings, Shared};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::types::Epoch;

/// What a process is given by its frame.
#[derive(Debug)]
pub struct Frame {
    /// Clocks, randomness, CPU.
    pub env: Env,
    /// Bound to `listen`.
    pub data: TcpListener,
    /// Bound to `ops_listen`.
    pub ops: TcpListener,
    /// Cancelled by SIGTERM and SIGINT.
    pub shutdown: CancellationToken,
    /// Says that the process is ready.
    pub announce: Announce,
}

/// The line on stdout by which a process says that it can serve.
#[derive(Clone, Copy, Debug)]
pub struct Announce {
    role: &'static str,
    listen: SocketAddr,
    ops: SocketAddr,
}

impl Announce {
    /// For a process that listens here; ports are the resolved ones.
    ///
    /// # Errors
    /// When a listener has no address.
    pub fn new(role: &'static str, data: &TcpListener, ops: &TcpListener) -> io::Result<Self> {
        Ok(Self { role, listen: data.local_addr()?, ops: ops.local_addr()? })
    }

    /// `ready role=writer listen=… ops=… epoch=3`
    pub fn ready(&self, epoch: Option<Epoch>) {
        let epoch = epoch.map(|epoch| format!(" epoch={epoch}")).unwrap_or_default();
        self.print("ready", &epoch);
    }

    /// `standby role=writer listen=… ops=…`
    pub fn standby(&self) {
        self.print("standby", "");
    }

    fn print(&self, state: &str, rest: &str) {
        let Self { role, listen, ops } = self;
        let line = format!("{state} role={role} listen={listen} ops={ops}{rest}");
        tracing::info!("{line}");
        let mut out = io::stdout().lock();
        if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
            tracing::warn!(%error, "nobody reads stdout");
        }
    }
}

/// Runs a process to its end: `run` gets the typed settings and the frame.
///
/// `args` begins with the name of the program.
pub fn main<C, F, R>(
    program: &Program,
    args: impl IntoIterator<Item = OsString>,
    run: F,
) -> ExitCode
where
    C: Settings + AsRef<Shared> + Send + 'static,
    F: FnOnce(C, Frame) -> R + Send + 'static,
    R: Future<Output = Result<()>> + Send,
{
    let config: C = match program.load(args, std::env::vars_os()) {
        Ok(Loaded::Run(config)) => config,
        Ok(Loaded::Print(text)) => return print(&text),
        Err(error) => return fail(program, &error),
    };
    let shared = config.as_ref();
    if let Err(error) = telemetry(&shared.log, shared.log_format) {
        return fail(program, &error);
    }
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(program, &Error::unavailable("start of the runtime", error)),
    };
    let role = program.role();
    let ended = runtime.block_on(async {
        // As a task of its own, a panic becomes an exit code instead of an abort half-way.
        let running = async move { run_in_frame(role, config, run).await };
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(running);
        tasks.join_next().await
    });
    // What still runs on a thread of its own was given up by whoever waited for it.
    runtime.shutdown_background();
    match ended {
        Some(Ok(Ok(()))) => ExitCode::SUCCESS,
        Some(Ok(Err(error))) => fail(program, &error),
        Some(Err(error)) => fail(program, &Error::unavailable("a task", error)),
        None => ExitCode::FAILURE,
    }
}

async fn run_in_frame<C, F, R>(role: &'static str, config: C, run: F) -> Result<()>
where
    C: AsRef<Shared>,
    F: FnOnce(C, Frame) -> R,
    R: Future<Output = Result<()>>,
{
    let shutdown = CancellationToken::new();
    let signals = on_signal(shutdown.clone())?;
    let data = listen(&config.as_ref().listen).await?;
    let ops = listen(&config.as_ref().ops_listen).await?;
    let announce = Announce::new(role, &data, &ops)
        .map_err(|error| Error::unavailable("the address of a listener", error))?;
    let frame = Frame { env: Env::system(), data, ops, shutdown, announce };
    let running = run(config, frame);
    let mut running = std::pin::pin!(running);
    tokio::select! {
        ended = &mut running => ended,
        insistence = signals => Err(insistence),
    }
}

async fn listen(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::unavailable(format!("listening on {address}"), error))
}

/// Cancels `shutdown` at the first SIGTERM or SIGINT; resolves at the second.
fn on_signal(shutdown: CancellationToken) -> Result<impl Future<Output = Error>> {
    let wrong = |error| Error::unavailable("a handler of signals", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    Ok(async move {
        let name = next().await;
        tracing::info!("{name}: stopping");
        shutdown.cancel();
        let name = next().await;
        Error::indeterminate("the stop", format!("{name} came again before its end"))
    })
}

/// Sends logs to stderr.
///
/// # Errors
/// `Invalid` for a filter that cannot be parsed.
pub fn telemetry(filter: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Error::Invalid(format!("log: {error} (in {filter:?})")))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let is_text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => io::stderr().is_terminal(),
    };
    let set = if is_text {
        logs.with_ansi(io::stderr().is_terminal()).try_init()
    } else {
        logs.json().flatten_event(true).try_init()
    };
    // A second process in one (tests) keeps the first one's logs.
    if let Err(error) = set {
        tracing::debug!(%error, "logs are set up already");
    }
    Ok(())
}

/// The code with which a process ends after this error.
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Invalid(_) => 2,
        Error::Fenced { .. } => 3,
        Error::Unfit(_) => 4,
        Error::Corrupt(_) => 5,
        Error::Closed
        | Error::NotFound(_)
        | Error::Conflict(_)
        | Error::Unavailable(_)
        | Error::Indeterminate(_) => 1,
    }
}

fn fail(program: &Program, error: &Error) -> ExitCode {
    let code = exit_code(error);
    // Nothing can be done where stderr is gone.
    let written = writeln!(io::stderr(), "{}: {error}", program.name);
    drop(written);
    ExitCode::from(code)
}

fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Connections and cached files cost descriptors; the soft limit of a shell is often 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_end_has_its_code() {
        let fenced = Error::Fenced { held: Epoch(1), found: Epoch(2) };
        let codes = [
            (Error::Invalid("x".into()), 2),
            (fenced, 3),
            (Error::Unfit("x".into()), 4),
            (Error::corrupt("CURRENT", "crc"), 5),
            (Error::unavailable("GET", "refused"), 1),
        ];
        for (error, code) in codes {
            assert_eq!(exit_code(&error), code, "{error}");
        }
    }

    #[test]
    fn a_wrong_filter_is_a_wrong_setting() {
        let error = telemetry("info,=nonsense=", LogFormat::Json).unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.starts_with("log: ")), "{error}");
    }
}
