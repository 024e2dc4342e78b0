//! One process of `cairn up`: started, listened to, started again, stopped.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_common::clock::{Clock as _, SystemClock};
use cairn_common::config::Setting;
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{self, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::role::{ROLE_COMMAND, RoleName};
use crate::failure::{Failure, Outcome};
use crate::output::note;

/// The first pause before a start again; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A child that lived so long was well: the next pause is the first one again.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// A child that has not stopped by then is killed: above its own grace for requests.
const STOP_MAX: Duration = Duration::from_secs(40);
/// Exit codes that another start would only repeat: settings, store, damage.
const FINAL_CODES: [i32; 3] = [2, 4, 5];

/// A process that should run.
#[derive(Clone, Debug)]
pub(super) struct Child {
    /// Stands before each line of its log.
    pub(super) name: String,
    pub(super) role: RoleName,
    /// URL of the store.
    pub(super) store: String,
    /// Where it shall serve, and be operated; port 0 is any.
    pub(super) listen: SocketAddr,
    pub(super) ops: SocketAddr,
}

/// A child that can serve, and where.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) listen: String,
    pub(super) ops: String,
}

impl Child {
    /// Refuses where another process has a port: the child would only die of it, again and again.
    pub(super) fn find_ports_free(&self) -> Outcome {
        for address in [self.listen, self.ops] {
            if let Err(error) = TcpListener::bind(address) {
                return Err(Failure::usage(format!(
                    "the {} cannot listen on {address} ({error}): stop what is there, or choose \
                     other ports with --port",
                    self.name
                )));
            }
        }
        Ok(())
    }

    /// Keeps the process running until `stop`. Ends early, with its last words, when another start
    /// would not help.
    pub(super) async fn keep(
        self,
        executable: PathBuf,
        announce: mpsc::Sender<Ready>,
        stop: CancellationToken,
    ) -> Outcome {
        let clock = SystemClock::default();
        let mut pause = PAUSE_MIN;
        loop {
            let began = clock.boot();
            let (status, last_words) = self.live(&executable, &announce, &stop).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
            let name = &self.name;
            if let Some(code) = status.code().filter(|code| FINAL_CODES.contains(code)) {
                let code = u8::try_from(code).unwrap_or(1);
                return Err(Failure { code, ..Failure::new(format!("[{name}] {last_words}")) });
            }
            if clock.boot().saturating_sub(began) >= WELL_AFTER {
                pause = PAUSE_MIN;
            }
            note(&format!("[{name}] ended ({status}); starting it again in {pause:?}"));
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// One life of the process: how it ended, and its last line on stderr.
    async fn live(
        &self,
        executable: &Path,
        announce: &mpsc::Sender<Ready>,
        stop: &CancellationToken,
    ) -> Outcome<(ExitStatus, String)> {
        let mut process = self.command(executable).spawn()?;
        let last_words = Arc::new(Mutex::new(String::new()));
        let mut listeners = JoinSet::new();
        if let Some(stdout) = process.stdout.take() {
            let (child, announce) = (self.clone(), announce.clone());
            listeners.spawn(lines(stdout, move |line| child.hear(&line, &announce)));
        }
        if let Some(stderr) = process.stderr.take() {
            let (name, last_words) = (self.name.clone(), Arc::clone(&last_words));
            listeners.spawn(lines(stderr, move |line| {
                note(&format!("[{name}] {line}"));
                *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
            }));
        }
        let status = tokio::select! {
            status = process.wait() => status?,
            () = stop.cancelled() => end(&mut process).await?,
        };
        while listeners.join_next().await.is_some() {}
        let words = last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((status, words))
    }

    fn command(&self, executable: &Path) -> Command {
        let mut command = Command::new(executable);
        command
            .arg(ROLE_COMMAND)
            .arg(self.role.name())
            .arg(getpid().as_raw_pid().to_string())
            .arg(format!("--store={}", self.store))
            .arg(format!("--listen={}", self.listen))
            .arg(format!("--ops-listen={}", self.ops))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // A Ctrl-C of the terminal goes to `up` alone, which stops its children itself.
            .process_group(0);
        for variable in foreign_variables(self.role) {
            command.env_remove(variable);
        }
        if std::env::var_os("CAIRN_LOG_FORMAT").is_none() {
            command.env("CAIRN_LOG_FORMAT", "text");
        }
        command
    }

    /// Takes a line of stdout: `ready role=writer listen=... ops=... epoch=3`.
    fn hear(&self, line: &str, announce: &mpsc::Sender<Ready>) {
        let field = |name: &str| {
            let mut words = line.split(' ');
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
        };
        match (line.starts_with("ready "), field("listen"), field("ops")) {
            (true, Some(listen), Some(ops)) => {
                let ready = Ready { name: self.name.clone(), listen, ops };
                if announce.try_send(ready).is_err() {
                    note(&format!("[{}] {line}", self.name));
                }
            }
            _ => note(&format!("[{}] {line}", self.name)),
        }
    }
}

/// Variables that are settings of other roles: to this one they would be unknown.
fn foreign_variables(role: RoleName) -> Vec<String> {
    let variables = |role: RoleName| -> BTreeSet<String> {
        role.program().all_settings().iter().map(Setting::variable).collect()
    };
    let own = variables(role);
    let all: BTreeSet<String> = RoleName::ALL.into_iter().flat_map(variables).collect();
    all.difference(&own).cloned().collect()
}

/// SIGTERM, and what it takes if that does not help.
async fn end(process: &mut process::Child) -> std::io::Result<ExitStatus> {
    let pid = process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        kill_process(pid, Signal::TERM)?;
    }
    if let Ok(status) = timeout(STOP_MAX, process.wait()).await {
        return status;
    }
    process.kill().await?;
    process.wait().await
}

async fn lines(stream: impl AsyncRead + Unpin, take: impl Fn(String)) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        take(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_other_roles_stay_away() {
        let foreign = foreign_variables(RoleName::Reader);
        assert!(foreign.contains(&"CAIRN_WAL_INTERVAL".to_owned()));
        assert!(!foreign.contains(&"CAIRN_STORE".to_owned()));
        assert!(!foreign_variables(RoleName::Writer).contains(&"CAIRN_WAL_INTERVAL".to_owned()));
    }

    #[test]
    fn the_line_of_a_ready_process_is_understood() {
        let (announce, mut announced) = mpsc::channel(1);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (name, store) = ("writer".into(), "file:///x".into());
        let child = Child { name, role: RoleName::Writer, store, listen: any, ops: any };
        child.hear("ready role=writer listen=127.0.0.1:7001 ops=127.0.0.1:7101 epoch=3", &announce);
        let ready = announced.try_recv().unwrap();
        assert_eq!((&*ready.listen, &*ready.ops), ("127.0.0.1:7001", "127.0.0.1:7101"));
        child.hear("standby role=writer listen=127.0.0.1:7001 ops=127.0.0.1:7101", &announce);
        assert!(announced.try_recv().is_err());
    }
}
