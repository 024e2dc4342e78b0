//! A look into the bucket, without any process: CURRENT, manifests, runs, SSTs, the log, garbage.
//!
//! Nothing here writes. Everything is verified on the way in, so damage shows as exit code 5.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::config::Span;
use cairn_common::env::Env;
use cairn_common::format::collect::{Evidence, Grace, Stored};
use cairn_common::format::manifest::{Manifest, RetiredObject, RunInfo, SstInfo};
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::format::run::Run;
use cairn_common::store::cache::BlockCache;
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::object::{Bucket, StoreSettings};
use cairn_common::store::sst::{MetaBudget, SstStore};
use clap::Args;

use crate::args::{Place, up_to};
use crate::failure::{Failure, Outcome};
use crate::output::{Table, human_bytes, readable, stdout};

mod log;
mod tree;

pub(crate) use log::{WalArgs, wal};
pub(crate) use tree::{ManifestArgs, RunArgs, SstArgs, manifest, run, sst};

/// Memory for blocks and metadata of one look.
const CACHE_BYTES: usize = 32 << 20;
/// As the compactor's setting of the same name.
const RETENTION_MAX: Duration = Duration::from_hours(365 * 24);

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// How long what left the tree is kept for slow readers
    #[arg(
        long,
        default_value = "10min",
        value_name = "DUR",
        value_parser = up_to(RETENTION_MAX),
    )]
    retention: Span,
    #[command(flatten)]
    place: Place,
}

/// A database as it stands in its bucket.
struct Database {
    bucket: Bucket,
    snapshot: Snapshot,
    ssts: SstStore,
    env: Env,
}

impl Database {
    async fn open(place: &Place) -> Outcome<Self> {
        let bucket = Bucket::open(&place.store, StoreSettings::default(), Env::system())?;
        let env = bucket.env().clone();
        let snapshot = Manifests::new(bucket.clone(), env.clone()).load().await?;
        let missing = || Failure::new(format!("there is no database at {}", place.store));
        let snapshot = snapshot.ok_or_else(missing)?;
        let ssts = SstStore::new(
            bucket.clone(),
            snapshot.current.database,
            BlockCache::memory_only(CACHE_BYTES),
            MetaBudget { bytes: CACHE_BYTES as u64 },
            env.clone(),
        );
        Ok(Self { bucket, snapshot, ssts, env })
    }

    async fn run(&self, info: &RunInfo) -> Outcome<Run> {
        let run = self.ssts.load_run(info).await?;
        let wrong = |cause| Error::corrupt(Object::Run(info.id).path(), cause);
        run.check_named_by(info).map_err(wrong)?;
        Ok(run)
    }

    /// Every SST of the tree, L0 first.
    async fn sst_infos(&self) -> Outcome<Vec<SstInfo>> {
        let mut infos = self.snapshot.manifest.l0.clone();
        for info in &self.snapshot.manifest.runs {
            infos.extend(self.run(info).await?.ssts);
        }
        Ok(infos)
    }
}

/// The one name that begins with, or after its role and epoch goes on with, what was given.
fn pick<'a, T>(
    given: &str,
    all: &'a [T],
    name: impl Fn(&T) -> String,
    what: &str,
) -> Outcome<&'a T> {
    let fits = |item: &&T| {
        let name = name(item);
        name.starts_with(given) || name.split_once('-').is_some_and(|(_, id)| id.starts_with(given))
    };
    let mut found = all.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(item), None) => Ok(item),
        (None, _) => Err(Failure::new(format!("there is no {what} {given} in the tree"))),
        (Some(_), Some(_)) => Err(Failure::usage(format!("more than one {what} begins {given}"))),
    }
}

/// What the bucket holds: `cairn status --store`.
pub(crate) async fn status(place: &Place) -> Outcome {
    let database = Database::open(place).await?;
    let Snapshot { current, manifest, .. } = &database.snapshot;
    let mut out = stdout();
    writeln!(out, "database    {}", current.database)?;
    writeln!(out, "version     {}", current.version)?;
    writeln!(out, "writer      epoch {}{}", current.writer.epoch, at(current.writer.url.as_ref()))?;
    let compactor = &current.compactor;
    writeln!(out, "compactor   epoch {}{}", compactor.epoch, at(compactor.url.as_ref()))?;
    writeln!(out, "flushed     seq {}", manifest.flushed_seq)?;
    let (l0, runs) = (&manifest.l0, &manifest.runs);
    let l0_bytes = l0.iter().map(|sst| sst.bytes).sum();
    let run_bytes = runs.iter().map(|run| run.bytes).sum();
    writeln!(out, "L0          {} SSTs, {}", l0.len(), human_bytes(l0_bytes))?;
    writeln!(out, "runs        {}, {}", runs.len(), human_bytes(run_bytes))?;
    writeln!(out, "retired     {}", manifest.retired.len())?;
    writeln!(out, "checkpoints {}", manifest.checkpoints.len())?;
    let mut table = Table::new(&["objects", "count", "bytes"]);
    let mut log = Ok(());
    for kind in ObjectKind::ALL {
        let listed = database.bucket.list(kind).await?;
        if kind == ObjectKind::Wal {
            log = log::summary(&database, &listed)
                .await
                .and_then(|summary| Ok(writeln!(out, "log         {summary}")?));
        }
        let bytes = listed.iter().map(|listed| listed.bytes).sum();
        table.row(vec![kind.name().into(), listed.len().to_string(), human_bytes(bytes)]);
    }
    table.write(&mut out)?;
    out.flush()?;
    log
}

fn at(url: Option<&String>) -> String {
    url.map(|url| format!(" at {}", readable(url.as_bytes()))).unwrap_or_default()
}

/// What the collector may delete now.
pub(crate) async fn gc(args: GcArgs) -> Outcome {
    let database = Database::open(&args.place).await?;
    let mut listing = Vec::new();
    for kind in [ObjectKind::Sst, ObjectKind::Run, ObjectKind::Wal, ObjectKind::Manifest] {
        let listed = database.bucket.list(kind).await?;
        listing.extend(listed.iter().map(|l| Stored { object: l.object, bytes: l.bytes }));
    }
    let evidence = evidence(&database, &listing).await?;
    let retention_ms = u64::try_from(args.retention.0.as_millis()).unwrap_or(u64::MAX);
    let grace = Grace { retention_ms, now_ms: database.env.clock.wall_ms() };
    let deletable = evidence.deletable(listing.iter().copied(), grace);
    let mut out = stdout();
    let mut bytes = 0;
    for object in &deletable {
        let stored = listing.iter().find(|stored| stored.object == *object);
        let size = stored.map_or(0, |stored| stored.bytes);
        bytes += size;
        writeln!(out, "{}  {}", object.path(), human_bytes(size))?;
    }
    let (count, all) = (deletable.len(), listing.len());
    writeln!(out, "{count} of {all} objects may be deleted, {}", human_bytes(bytes))?;
    Ok(out.flush()?)
}

async fn evidence(database: &Database, listing: &[Stored]) -> Outcome<Evidence> {
    let Snapshot { current, manifest, .. } = &database.snapshot;
    let mut checkpoints = Vec::new();
    for checkpoint in &manifest.checkpoints {
        let object = Object::Manifest(checkpoint.manifest);
        let parse = |bytes: Bytes| Manifest::parse(&bytes, &checkpoint.digest);
        checkpoints.push(database.bucket.read_parsed(&object, None, parse).await?);
    }
    let mut runs: Vec<Run> = Vec::new();
    for info in std::iter::once(&**manifest).chain(&checkpoints).flat_map(|body| &body.runs) {
        if !runs.iter().any(|run| run.id == info.id) {
            runs.push(database.run(info).await?);
        }
    }
    for retired in &manifest.retired {
        let RetiredObject::Run(id) = retired.object else { continue };
        let object = Object::Run(id);
        if listing.iter().any(|stored| stored.object == object) {
            let parse = |bytes: Bytes| Run::parse_retired(&bytes, id, current.database);
            runs.push(database.bucket.read_parsed(&object, None, parse).await?);
        }
    }
    let evidence = Evidence::new(current, manifest, &checkpoints, &runs);
    Ok(evidence.map_err(|cause| Error::corrupt("the manifest and what it names", cause))?)
}
