//! One real process of ours: its lines on stdout, its signals, its end.

use std::fmt;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Longer than any start, hold or end takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines of a log that an assertion shows.
const LOG_LINES: usize = 15;

/// The three kinds of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `cairn-writer`
    Writer,
    /// `cairn-reader`
    Reader,
    /// `cairn-compactor`
    Compactor,
}

impl Kind {
    /// Its word in names and lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Compactor => "compactor",
        }
    }

    fn executable(self) -> PathBuf {
        executable(&format!("cairn-{}", self.name()))
    }
}

/// An executable of ours. It lies where Cargo puts those of the profile in which the caller was
/// built: beside a command, above a test (`target/PROFILE/deps/TEST`).
///
/// # Panics
/// If it has not been built.
pub fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a process has an executable");
    let mut folder = own.parent().expect("it lies in a folder");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("target/PROFILE");
    }
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: build the workspace's binaries in the same profile first",
        path.display()
    );
    path
}

/// What a process says of itself on stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// `ready` or `standby`.
    pub state: String,
    /// Where it serves.
    pub listen: SocketAddr,
    /// Where it is operated.
    pub ops: SocketAddr,
    /// The epoch, where the role has one.
    pub epoch: Option<u64>,
}

impl Announced {
    /// Reads `ready role=writer listen=127.0.0.1:7001 ops=127.0.0.1:7101 epoch=3`.
    pub fn parse(line: &str) -> Option<Self> {
        let (state, rest) = line.split_once(' ')?;
        let field = |name: &str| {
            let named = |field: &&str| field.split_once('=').is_some_and(|(key, _)| key == name);
            rest.split(' ').find(named).and_then(|field| field.split_once('=')).map(|(_, v)| v)
        };
        Some(Self {
            state: state.to_owned(),
            listen: field("listen")?.parse().ok()?,
            ops: field("ops")?.parse().ok()?,
            epoch: field("epoch").and_then(|epoch| epoch.parse().ok()),
        })
    }
}

/// A running process; killed when dropped.
pub struct Process {
    kind: Kind,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    announced: Option<Announced>,
}

impl Process {
    /// Starts an executable; what it writes to stderr goes to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(
        kind: Kind,
        args: &[String],
        environment: &[(String, String)],
        log: PathBuf,
    ) -> Self {
        let mut command = Command::new(kind.executable());
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("CAIRN_") && name_text != "CAIRN_PLANTED_BUG" {
                command.env_remove(name);
            }
        }
        command.args(args).envs(environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(&log).expect("a log file")).kill_on_drop(true);
        let mut child = command.spawn().expect("an executable of ours starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        Self { kind, child, lines: BufReader::new(stdout).lines(), log, announced: None }
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Waits for the line of this state; `None` if the process ends before it.
    ///
    /// # Panics
    /// If neither happens for long.
    pub async fn announced(&mut self, state: &str) -> Option<Announced> {
        let line = async {
            while let Some(line) = self.lines.next_line().await.expect("stdout can be read") {
                let announced = Announced::parse(&line);
                let announced = announced.unwrap_or_else(|| panic!("strange line: {line}"));
                if announced.state == state {
                    return Some(announced);
                }
            }
            None
        };
        let announced = tokio::time::timeout(PATIENCE, line).await;
        self.announced = announced.unwrap_or_else(|_| panic!("never {state}: {self:?}"));
        self.announced.clone()
    }

    /// Waits until it can serve.
    ///
    /// # Panics
    /// If it ends instead.
    pub async fn ready(&mut self) -> Announced {
        let announced = self.announced("ready").await;
        announced.unwrap_or_else(|| panic!("ended before it was ready: {self:?}"))
    }

    /// `http://` and where it serves.
    ///
    /// # Panics
    /// If it has not announced itself.
    pub fn url(&self) -> String {
        format!("http://{}", self.announced.as_ref().expect("it is announced").listen)
    }

    /// Sends a signal to it, if it still runs.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(id) = id {
            // Until it is waited for, its id is no other's: a failure would be one of this test.
            kill_process(id, signal).expect("a child takes signals");
        }
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Panics
    /// If it survives that.
    pub async fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().await.expect("a killed process ends");
    }

    /// Waits for its end; returns the exit code.
    ///
    /// # Panics
    /// If it does not end by itself, or by a signal.
    pub async fn exit_code(&mut self) -> i32 {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("does not end: {self:?}"));
        let code = ended.expect("a child can be waited for").code();
        code.unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// SIGTERM; returns the exit code.
    pub async fn stop(mut self) -> i32 {
        self.signal(Signal::TERM);
        self.exit_code().await
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        writeln!(f, "{} {:?}; the end of its log:", self.kind.name(), self.child.id())?;
        write!(f, "{}", last.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_process_says() {
        let line = "ready role=writer listen=127.0.0.1:7001 ops=127.0.0.1:7101 epoch=3";
        let said = Announced::parse(line).unwrap();
        assert_eq!((said.state.as_str(), said.epoch), ("ready", Some(3)));
        assert_eq!((said.listen.port(), said.ops.port()), (7001, 7101));
        assert_eq!(Announced::parse("ready role=writer"), None);
    }
}
