//! A database on a local directory that real processes share, and a look at its bucket from
//! outside.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use cairn_common::format::current::Current;
use cairn_common::format::manifest::{Manifest, RetiredObject};
use cairn_common::format::path::{Object, OutputId};
use cairn_common::format::run::Run;
use cairn_common::types::Role;
use tempfile::TempDir;

use crate::process::{Kind, Process};

/// Settings under which everything happens all the time: short leases, small memtables and runs,
/// nothing retained.
const BUSY: [(Kind, &[&str]); 3] = [
    (
        Kind::Writer,
        &[
            "--lease=200ms",
            "--takeover-after=100ms",
            "--wal-interval=5ms",
            "--memtable-bytes=32KiB",
            "--unflushed-bytes-max=1MiB",
        ],
    ),
    (Kind::Reader, &["--poll-interval=50ms"]),
    (
        Kind::Compactor,
        &[
            "--poll-interval=20ms",
            "--gc-interval=200ms",
            "--retention=0ms",
            "--l0-count=2",
            "--tier-count=2",
            "--sst-bytes=32KiB",
        ],
    ),
];

/// A database, and the processes that were started on it.
#[derive(Debug)]
pub struct Cluster {
    folder: Option<TempDir>,
    started: AtomicUsize,
    pace: Pace,
}

/// The settings of a cluster's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Everything happens all the time: short leases, small memtables, nothing retained.
    Busy,
    /// The defaults.
    Usual,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// An empty root in a folder of its own, for busy processes.
    pub fn new() -> Self {
        Self::at(Pace::Busy)
    }

    /// An empty root in a folder of its own.
    ///
    /// # Panics
    /// If there is no room for one.
    pub fn at(pace: Pace) -> Self {
        let folder = tempfile::Builder::new().prefix("cairn-chaos-").tempdir();
        let folder = folder.expect("a temporary folder");
        fs::create_dir(folder.path().join("db")).expect("a folder for the database");
        Self { folder: Some(folder), started: AtomicUsize::new(0), pace }
    }

    /// The folder with the database, the logs and whatever else a test puts there.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("there until it is dropped").path()
    }

    /// The directory of the database.
    pub fn root(&self) -> PathBuf {
        self.folder().join("db")
    }

    /// Starts a process on the directory, at any free ports.
    pub fn start(&self, kind: Kind, more: &[&str]) -> Process {
        self.start_on(kind, &format!("file://{}", self.root().display()), more, &[])
    }

    /// Starts a process on another store, with these variables. What is asked for here (as
    /// `--name=value`) replaces what is usual.
    pub fn start_on(
        &self,
        kind: Kind,
        store: &str,
        more: &[&str],
        environment: &[(String, String)],
    ) -> Process {
        let count = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder().join(format!("{count:03}-{}.log", kind.name()));
        let own = [
            format!("--store={store}"),
            "--listen=127.0.0.1:0".to_owned(),
            "--ops-listen=127.0.0.1:0".to_owned(),
        ];
        let busy = BUSY.iter().find(|(other, _)| *other == kind && self.pace == Pace::Busy);
        let busy = busy.map_or(&[][..], |(_, args)| args);
        let usual = own.into_iter().chain(busy.iter().map(|&arg| arg.to_owned()));
        let name = |arg: &str| arg.split('=').next().map(str::to_owned);
        let replaced = |arg: &String| more.iter().any(|other| name(other) == name(arg));
        let mut args: Vec<_> = usual.filter(|arg| !replaced(arg)).collect();
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        Process::start(kind, &args, environment, log)
    }

    /// CURRENT, where there is one.
    ///
    /// # Panics
    /// If it is damaged: it is swapped whole.
    pub fn current(&self) -> Option<Current> {
        let bytes = fs::read(self.root().join(Object::Current.path())).ok()?;
        Some(Current::parse(&bytes).expect("CURRENT is whole"))
    }

    /// The tree that CURRENT names.
    ///
    /// # Panics
    /// If there is none.
    pub fn tree(&self) -> Manifest {
        let current = self.current().expect("a database");
        let path = self.root().join(Object::Manifest(current.manifest).path());
        let bytes = fs::read(path).expect("the manifest is there");
        Manifest::parse(&bytes, &current.manifest_digest).expect("a manifest")
    }

    /// SSTs of the role's present epoch that exist, in whole or in part, and that the tree does
    /// not name: what is being made right now. `None` where the bucket changes meanwhile.
    pub fn in_progress(&self, role: Role) -> Option<BTreeSet<OutputId>> {
        let before = self.current()?;
        let made = self.ssts();
        let current = self.current()?;
        if before != current {
            return None;
        }
        let named = self.named(&current)?;
        let epoch = match role {
            Role::Writer => current.writer.epoch,
            Role::Compactor => current.compactor.epoch,
        };
        let present = |id: &OutputId| id.role == role && id.epoch == epoch && !named.contains(id);
        Some(made.into_iter().filter(present).collect())
    }

    /// The ids of all files under `sst/`, those on their way included.
    fn ssts(&self) -> BTreeSet<OutputId> {
        let files = |folder: PathBuf| {
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
        };
        let names = files(self.root().join("sst")).flat_map(files).filter_map(|path| {
            let name = path.file_name()?.to_str()?.to_owned();
            name.split('#').next()?.parse().ok()
        });
        names.collect()
    }

    /// The SSTs that the tree names, or did until they were retired.
    fn named(&self, current: &Current) -> Option<BTreeSet<OutputId>> {
        let read = |object: Object| fs::read(self.root().join(object.path())).ok();
        let manifest = read(Object::Manifest(current.manifest))?;
        let manifest = Manifest::parse(&manifest, &current.manifest_digest).expect("a manifest");
        let mut named: BTreeSet<_> = manifest.l0.iter().map(|sst| sst.id).collect();
        named.extend(manifest.retired.iter().filter_map(|retired| match retired.object {
            RetiredObject::Sst(id) => Some(id),
            RetiredObject::Run(_) => None,
        }));
        for retired in &manifest.retired {
            let RetiredObject::Run(id) = retired.object else { continue };
            // One that is gone was the last of its SSTs to go.
            let Some(bytes) = read(Object::Run(id)) else { continue };
            let run = Run::parse_retired(&bytes, id, current.database).expect("a run");
            named.extend(run.ssts.iter().map(|sst| sst.id));
        }
        for info in &manifest.runs {
            let run = Run::parse(&read(Object::Run(info.id))?, &info.digest).expect("a run");
            named.extend(run.ssts.iter().map(|sst| sst.id));
        }
        Some(named)
    }

    /// The newest data object of the log, the one most certainly on the chain.
    pub fn newest_wal_object(&self) -> Option<PathBuf> {
        let files = fs::read_dir(self.root().join("wal")).ok()?.flatten().map(|e| e.path());
        let whole = |path: &PathBuf| !path.to_string_lossy().contains('#');
        files.filter(whole).max()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What a failed test leaves is looked at.
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            let path = folder.keep();
            say(&format!("the database and the logs are left in {}", path.display()));
        }
    }
}

#[expect(clippy::print_stderr, reason = "a failed test says where to look")]
fn say(line: &str) {
    eprintln!("{line}");
}
