//! `cairn up`: a whole cluster on this machine, on a local directory.
//!
//! **Life**: takes the directory's lock; starts a writer, readers and a compactor as processes of
//! this very executable; says where they listen once all are ready; starts again what dies; at
//! SIGINT or SIGTERM stops them and waits for them; at one more SIGINT kills them.
//!
//! **Invariants**
//! - One `up` a directory, by a file lock that the kernel releases whatever happens.
//! - No child outlives its `up`: the kernel sends it SIGTERM when `up` dies.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::output::{note, stdout};

mod child;
mod role;

use child::{Child, Ready};
use role::RoleName;
pub(crate) use role::{ROLE_COMMAND, RoleArgs, run_role};

/// Ports for operators are this much above those for data.
const OPS_PORT_OFFSET: u16 = 100;
/// What is escaped in the path of a URL.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Announcements that wait to be read: a few for each child.
const READY_WAITING_MAX: usize = 64;

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Where the database lives
    #[arg(long, default_value = "./cairn-data", value_name = "DIR")]
    dir: PathBuf,
    /// How many readers
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u16).range(0..=16))]
    readers: u16,
    /// Address to listen on, or a name that resolves to it
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST", value_parser = resolve)]
    host: IpAddr,
    /// Port of the writer; reader, compactor and more readers follow, operators' ports are 100
    /// above; 0 takes any
    #[arg(long, default_value = "7001", value_parser = clap::value_parser!(u16).range(..=60_000))]
    port: u16,
}

/// The variable by which a role finds its file of settings.
const CONFIG_VARIABLE: &str = "CAIRN_CONFIG";

pub(crate) async fn run(args: UpArgs) -> Outcome {
    refuse_config(std::env::var_os(CONFIG_VARIABLE).as_deref())?;
    let lock = lock(&args.dir)?;
    let executable = std::env::current_exe()?;
    let children = args.children(&store_url(&args.dir)?);
    for child in &children {
        child.find_ports_free()?;
    }
    let names: Vec<String> = children.iter().map(|child| child.name.clone()).collect();
    let stop = CancellationToken::new();
    let (announce, mut announced) = mpsc::channel(READY_WAITING_MAX);
    let mut keepers = JoinSet::new();
    for child in children {
        keepers.spawn(child.keep(executable.clone(), announce.clone(), stop.clone()));
    }
    drop(announce);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut places = BTreeMap::new();
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            Some(ready) = announced.recv() => {
                let was_up = places.len() == names.len();
                places.insert(ready.name.clone(), ready);
                if places.len() == names.len() && !was_up {
                    say_where(&args.dir, &names, &places)?;
                }
            }
            ended = keepers.join_next() => match ended {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(failure))) => {
                    outcome = outcome.and(Err(failure));
                    stop.cancel();
                }
                Some(Err(error)) => {
                    outcome = outcome.and(Err(Failure::new(error.to_string())));
                    stop.cancel();
                }
                None => break,
            },
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => {
                if stop.is_cancelled() {
                    // A process is killed when the one that keeps it is dropped.
                    keepers.shutdown().await;
                    return Err(Failure::new("killed what had not stopped yet"));
                }
                note("stopping; Ctrl-C again kills");
                stop.cancel();
            }
        }
    }
    drop(lock);
    outcome
}

/// A file holds the settings of one role; the others would refuse its keys, and not start.
fn refuse_config(file: Option<&OsStr>) -> Outcome {
    match file {
        Some(file) if !file.is_empty() => Err(Failure::usage(format!(
            "{CONFIG_VARIABLE} names {}, a file for one role, and `cairn up` runs three: unset it, \
             and give settings by variables (each role takes its own)",
            file.display()
        ))),
        _ => Ok(()),
    }
}

/// The address of a host; of several the first of IPv4, which is where clients look by default.
fn resolve(host: &str) -> Result<IpAddr, String> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(address);
    }
    let found = (host, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied().ok_or_else(|| "the name has no address".into())
}

/// Makes the directory, which is the root of the database, and takes it for this process.
///
/// A name with `#` is no object: the store never lists it.
fn lock(dir: &Path) -> Outcome<File> {
    std::fs::create_dir_all(dir).map_err(|error| Failure::at(dir, error))?;
    let path = dir.join("up#lock");
    let file = File::create(&path).map_err(|error| Failure::at(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::at(dir, "another `cairn up` runs on this directory"))
        }
        Err(TryLockError::Error(error)) => Err(Failure::at(&path, error)),
    }
}

fn store_url(dir: &Path) -> Outcome<String> {
    let dir = dir.canonicalize().map_err(|error| Failure::at(dir, error))?;
    let path = dir.to_str().ok_or_else(|| Failure::at(&dir, "the path is not UTF-8"))?;
    Ok(format!("file://{}", utf8_percent_encode(path, ESCAPED)))
}

impl UpArgs {
    fn children(&self, store: &str) -> Vec<Child> {
        let child = |name: String, role, place: u16| {
            let (port, ops) = match self.port {
                0 => (0, 0),
                first => (first + place, first + place + OPS_PORT_OFFSET),
            };
            let at = |port| SocketAddr::new(self.host, port);
            Child { name, role, store: store.to_owned(), listen: at(port), ops: at(ops) }
        };
        let mut children = vec![child("writer".into(), RoleName::Writer, 0)];
        for index in 1..=self.readers {
            let name = if self.readers == 1 { "reader".into() } else { format!("reader-{index}") };
            // The first has the reader's usual port, the others come behind the compactor's.
            let place = if index == 1 { 1 } else { index + 1 };
            children.push(child(name, RoleName::Reader, place));
        }
        children.push(child("compactor".into(), RoleName::Compactor, 2));
        children
    }
}

fn say_where(dir: &Path, names: &[String], places: &BTreeMap<String, Ready>) -> Outcome {
    let mut out = stdout();
    writeln!(out, "cairn is up on {}", dir.display())?;
    for place in names.iter().filter_map(|name| places.get(name)) {
        let Ready { name, listen, ops } = place;
        writeln!(out, "  {name:<10} http://{listen}   ops http://{ops}")?;
    }
    writeln!(out, "Ctrl-C stops it.")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(readers: u16, port: u16) -> UpArgs {
        UpArgs { dir: "x".into(), readers, host: [127, 0, 0, 1].into(), port }
    }

    #[test]
    fn ports_are_the_usual_ones() {
        let places = |args: &UpArgs| {
            let children = args.children("file:///x");
            let place = |child: &Child| format!("{} {} {}", child.name, child.listen, child.ops);
            children.iter().map(place).collect::<Vec<_>>()
        };
        assert_eq!(
            places(&args(2, 7001)),
            [
                "writer 127.0.0.1:7001 127.0.0.1:7101",
                "reader-1 127.0.0.1:7002 127.0.0.1:7102",
                "reader-2 127.0.0.1:7004 127.0.0.1:7104",
                "compactor 127.0.0.1:7003 127.0.0.1:7103",
            ]
        );
        assert!(places(&args(1, 0)).iter().all(|place| place.contains(":0 ")));
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        assert_eq!(resolve("127.0.0.1"), Ok([127, 0, 0, 1].into()));
        assert_eq!(resolve("[::1]"), Ok(std::net::Ipv6Addr::LOCALHOST.into()));
        assert!(resolve("localhost").unwrap().is_loopback());
        assert!(resolve("no such host").is_err());
        assert!(resolve("").is_err());
    }

    #[test]
    fn a_file_for_one_role_is_refused() {
        refuse_config(None).unwrap();
        refuse_config(Some(OsStr::new(""))).unwrap();
        let failure = refuse_config(Some(OsStr::new("writer.toml"))).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(failure.text.starts_with("CAIRN_CONFIG names writer.toml"), "{failure}");
    }

    #[test]
    fn a_taken_port_is_told_before_anything_starts() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut child = args(1, 0).children("file:///x").remove(0);
        child.find_ports_free().unwrap();
        child.ops = taken.local_addr().unwrap();
        let failure = child.find_ports_free().unwrap_err();
        assert!(failure.text.contains(&child.ops.to_string()), "{failure}");
        assert_eq!(failure.code, 2);
    }

    #[test]
    fn a_directory_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let failure = lock(dir.path()).unwrap_err();
        assert!(failure.text.ends_with("another `cairn up` runs on this directory"), "{failure}");
        drop(first);
        assert!(lock(dir.path()).is_ok());
    }
}
